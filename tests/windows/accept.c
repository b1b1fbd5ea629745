/* accept and WSAAccept: addresses, inheritance, the condition function; connecting in every way. */
#include "common.h"

static void accept_basics_server(SOCKET listener)
{
    struct sockaddr_storage address;
    int length = sizeof address;
    tell(0);
    SOCKET s = SOCKET_CALL("accept", accept(listener, (struct sockaddr *)&address, &length));
    say("family as asked: %d, %d bytes", address.ss_family == family, length);
    say_recv("recv", s, 3, 0);
    closesocket(s);
    tell(0);
    length = 4;
    SOCKET_CALL("accept, short", s = accept(listener, (struct sockaddr *)&address, &length));
    if (s != INVALID_SOCKET)
        closesocket(s);
    set_nonblocking(listener, true);
    SOCKET_CALL("accept of nobody", accept(listener, NULL, NULL));
    tell(0);
    await_readable(listener);
    s = SOCKET_CALL("accept", accept(listener, NULL, NULL));
    say_recv("it is non-blocking too: recv", s, 3, 0);
    meet();
    closesocket(s);
}
static void accept_basics_client(SOCKET port)
{
    for (int i = 0; i < 3; i++) {
        hear();
        SOCKET s = connect_to((unsigned short)port);
        if (i == 0)
            send_text(s, "one");
        if (i == 2)
            meet();
        closesocket(s);
    }
}

/* Connections that were made and even used before anybody accepts. */
static void backlog_server(SOCKET listener)
{
    hear();
    for (int i = 0; i < 5; i++) {
        SOCKET s = accept_from(listener);
        say_recv("recv", s, 10, 0);
        say_recv("recv", s, 10, 0);
        closesocket(s);
    }
}
static void backlog_client(SOCKET port)
{
    for (int i = 0; i < 5; i++) {
        char text[] = "number 0";
        text[7] += (char)i;
        SOCKET s = connect_to((unsigned short)port);
        send_text(s, text);
        closesocket(s);
    }
    tell(0);
}

static int CALLBACK decide(LPWSABUF caller, LPWSABUF caller_data, LPQOS sqos, LPQOS gqos, LPWSABUF callee, LPWSABUF callee_data, GROUP *group,
                           DWORD_PTR answer)
{
    UNUSED(sqos), UNUSED(gqos), UNUSED(callee_data), UNUSED(group);
    /* Wine has room for IPv4 addresses only; what it gives for IPv6 is not an address. */
    bool four = family == AF_INET;
    say("condition: caller %d, data %d, callee %d", !four || (caller && caller->buf && ((struct sockaddr *)caller->buf)->sa_family == family),
        caller_data && caller_data->len > 0, !four || (callee && callee->buf && ((struct sockaddr *)callee->buf)->sa_family == family));
    return (int)answer;
}

static void condition_server(SOCKET listener)
{
    struct sockaddr_storage address;
    int length = sizeof address;
    tell(0);
    SOCKET s = SOCKET_CALL("WSAAccept, CF_ACCEPT", WSAAccept(listener, (struct sockaddr *)&address, &length, decide, CF_ACCEPT));
    say_recv("recv", s, 2, 0);
    closesocket(s);
    tell(0);
    SOCKET_CALL("WSAAccept, CF_REJECT", WSAAccept(listener, NULL, NULL, decide, CF_REJECT));
    hear();
    tell(0);
    SOCKET_CALL("WSAAccept, CF_DEFER", WSAAccept(listener, NULL, NULL, decide, CF_DEFER));
    SOCKET_CALL("WSAAccept, CF_DEFER again", WSAAccept(listener, NULL, NULL, decide, CF_DEFER));
    s = SOCKET_CALL("WSAAccept, the deferred one", WSAAccept(listener, NULL, NULL, decide, CF_ACCEPT));
    say_recv("recv", s, 2, 0);
    warm_up(s, false);
    closesocket(s);
    set_nonblocking(listener, true);
    SOCKET_CALL("WSAAccept of nobody", WSAAccept(listener, NULL, NULL, decide, CF_ACCEPT));
    SOCKET_CALL("WSAAccept without a condition", WSAAccept(listener, NULL, NULL, NULL, 0));
}
static void condition_client(SOCKET port)
{
    for (int i = 0; i < 3; i++) {
        hear();
        SOCKET s = connect_to((unsigned short)port);
        if (i != 1)
            send_text(s, "ok");
        if (i == 1) {
            say_recv("rejected: recv", s, 1, 0);
            tell(0);
        }
        if (i == 2)
            warm_up(s, true);
        closesocket(s);
    }
}

/* WSAConnect, and a non-blocking connect that is busy afterwards. */
static void connect_ways_server(SOCKET listener)
{
    for (int i = 0; i < 3; i++) {
        SOCKET s = accept_warm(listener);
        say_recv("recv", s, 10, 0);
        closesocket(s);
    }
}
static void connect_ways_client(SOCKET port)
{
    struct sockaddr_storage address;
    int length = loopback(family, (unsigned short)port, &address);
    for (int i = 0; i < 3; i++) {
        SOCKET s = i == 2 ? (SOCKET)MUST(WSASocketA(family, SOCK_STREAM, IPPROTO_TCP, NULL, 0, 0)) : stream_socket();
        if (i == 0)
            CALL("WSAConnect", WSAConnect(s, (struct sockaddr *)&address, length, NULL, NULL, NULL, NULL));
        else if (i == 1) {
            set_nonblocking(s, true);
            CALL("connect, non-blocking", connect(s, (struct sockaddr *)&address, length));
            await_writable(s);
            set_nonblocking(s, false);
        } else
            CALL("connect, without the overlapped flag", connect(s, (struct sockaddr *)&address, length));
        warm_up(s, true);
        send_text(s, "hello");
        closesocket(s);
    }
}

/* Options of the listener that its connections inherit. */
static void inherited_server(SOCKET listener)
{
    struct linger linger = {1, 3};
    int on = 1, limit = 300, value;
    MUST(setsockopt(listener, SOL_SOCKET, SO_LINGER, (char *)&linger, sizeof linger));
    MUST(setsockopt(listener, SOL_SOCKET, SO_KEEPALIVE, (char *)&on, sizeof on));
    MUST(setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, (char *)&on, sizeof on));
    MUST(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, (char *)&limit, sizeof limit));
    tell(0);
    SOCKET s = accept_warm(listener);
    int length = sizeof linger;
    MUST(getsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&linger, &length));
    say("SO_LINGER %d %d", linger.l_onoff, linger.l_linger);
    length = sizeof value, value = 0;
    MUST(getsockopt(s, SOL_SOCKET, SO_KEEPALIVE, (char *)&value, &length));
    say("SO_KEEPALIVE %d", value);
    length = sizeof value, value = 0;
    MUST(getsockopt(s, IPPROTO_TCP, TCP_NODELAY, (char *)&value, &length));
    say("TCP_NODELAY %d", value);
    length = sizeof value, value = 0;
    MUST(getsockopt(s, SOL_SOCKET, SO_RCVTIMEO, (char *)&value, &length));
    say("SO_RCVTIMEO %d", value);
    meet();
    closesocket(s);
}
static void inherited_client(SOCKET port)
{
    hear();
    SOCKET s = connect_warm((unsigned short)port);
    meet();
    closesocket(s);
}

const struct test_case accept_cases[] = {
    RAW_CASE(accept_basics), RAW_CASE(backlog), RAW_CASE(condition), RAW_CASE(connect_ways), RAW_CASE(inherited), END_OF_CASES,
};
