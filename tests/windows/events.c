/* WSAEventSelect and WSAEnumNetworkEvents: which events are recorded when, and when they come again. */
#include "common.h"

static WSAEVENT select_events(SOCKET s, long events)
{
    WSAEVENT event = WSACreateEvent();
    CHECK(event != WSA_INVALID_EVENT);
    CALL("WSAEventSelect", WSAEventSelect(s, event, events));
    return event;
}

static bool is_signaled(WSAEVENT event) { return WSAWaitForMultipleEvents(1, &event, TRUE, 0, FALSE) == WSA_WAIT_EVENT_0; }

/* FD_READ comes once, and again only after a receive that leaves something. */
static void event_read_server(SOCKET s)
{
    hear();
    send_text(s, "four");
    hear();
    send_text(s, "more");
    hear();
    send_text(s, "last");
    meet();
}
static void event_read_client(SOCKET s)
{
    WSAEVENT event = select_events(s, FD_READ);
    say_no_network_events("at first", s, event);
    tell(0);
    say_network_events("data", s, event);
    say("signaled: %d", is_signaled(event));
    say_no_network_events("once only", s, event);
    say_recv("peek", s, 2, MSG_PEEK);
    say_network_events("after a peek", s, event);
    say_recv("recv", s, 2, 0);
    say_network_events("something is left", s, event);
    say_recv("recv", s, 2, 0);
    say_no_network_events("nothing is left", s, event);
    tell(0);
    await_unread(s, 4);
    say_network_events("more", s, event);
    say_recv("recv", s, 10, 0);
    say_recv("recv of nothing", s, 10, 0);
    tell(0);
    say_network_events("last", s, event);
    CALL("WSAEventSelect again", WSAEventSelect(s, event, FD_READ));
    let_it_block();
    /* Windows would post again here; Wine does not. */
    say_no_network_events("selected while there is data", s, event);
    WSACloseEvent(event);
    meet();
}

/* FD_WRITE at once, then only after WSAEWOULDBLOCK and room again. */
static void event_write_server(SOCKET s)
{
    uint64_t total = hear();
    struct stream in = {1, 0};
    stream_receive(&in, s, total, 64 * KIB);
    say("all there");
    meet();
}
static void event_write_client(SOCKET s)
{
    static char data[20000];
    struct stream out = {1, 0};
    WSAEVENT event = select_events(s, FD_WRITE);
    say_network_events("at first", s, event);
    say_no_network_events("once only", s, event);
    MUST(send(s, data, 0, 0));
    say_no_network_events("after a send", s, event);
    for (;;) {
        struct stream ahead = out;
        stream_fill(&ahead, data, sizeof data);
        int n = send(s, data, sizeof data, 0);
        if (n < 0)
            break;
        out.offset += (uint64_t)n;
    }
    say("%s", error_name(WSAGetLastError()));
    tell(out.offset);
    say_network_events("room again", s, event);
    say_no_network_events("once only", s, event);
    WSACloseEvent(event);
    meet();
}

static void event_close_server(SOCKET s)
{
    hear();
    send_text(s, "bye");
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void event_close_client(SOCKET s)
{
    WSAEVENT event = select_events(s, FD_READ | FD_CLOSE);
    tell(0);
    await_unread(s, 3);
    say_network_events("data", s, event);
    say_recv("recv", s, 10, 0);
    say_network_events("the end", s, event);
    say_recv("recv", s, 10, 0);
    say_no_network_events("after it", s, event);
    CALL("WSAEventSelect again", WSAEventSelect(s, event, FD_READ | FD_CLOSE | FD_WRITE));
    say_network_events("selected again", s, event);
    WSACloseEvent(event);
    meet();
}

static void event_reset_server(SOCKET s)
{
    struct linger at_once = {1, 0};
    hear();
    MUST(setsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&at_once, sizeof at_once));
    MUST(closesocket(s));
}
static void event_reset_client(SOCKET s)
{
    WSAEVENT event = select_events(s, FD_READ | FD_CLOSE);
    tell(0);
    say_network_events("reset", s, event);
    say_recv("recv", s, 10, 0);
    WSACloseEvent(event);
}

/* The registration: what it replaces, what it does to blocking, when it ends. */
static void event_rules_server(SOCKET s)
{
    hear();
    send_text(s, "x");
    meet();
}
static void event_rules_client(SOCKET s)
{
    u_long off = 0, on = 1;
    WSAEVENT first = select_events(s, FD_READ | FD_WRITE), second;
    CALL("ioctlsocket, FIONBIO 0", ioctlsocket(s, (long)FIONBIO, &off));
    CALL("ioctlsocket, FIONBIO 1", ioctlsocket(s, (long)FIONBIO, &on));
    DWORD bytes;
    CALL("WSAIoctl, FIONBIO 0", WSAIoctl(s, FIONBIO, &off, sizeof off, NULL, 0, &bytes, NULL, NULL));
    say_recv("recv", s, 1, 0);
    say_network_events("first", s, first);
    second = select_events(s, FD_READ);
    say("signaled: %d %d", is_signaled(first), is_signaled(second));
    tell(0);
    await_readable(s);
    say_network_events("second", s, second);
    say("signaled: %d %d", is_signaled(first), is_signaled(second));
    CALL("WSAEventSelect, none", WSAEventSelect(s, NULL, 0));
    say_recv("recv", s, 1, 0);
    say_recv("still non-blocking: recv", s, 1, 0);
    CALL("ioctlsocket, FIONBIO 0", ioctlsocket(s, (long)FIONBIO, &off));
    CALL("WSAEventSelect, no event", WSAEventSelect(s, NULL, FD_READ));
    CALL("WSAEventSelect, no socket", WSAEventSelect(INVALID_SOCKET, second, FD_READ));
    WSACloseEvent(first);
    WSACloseEvent(second);
    meet();
}

/* A listener's events, and what the accepted socket inherits. */
static void event_accept_server(SOCKET listener)
{
    WSAEVENT event = select_events(listener, FD_ACCEPT | FD_READ | FD_WRITE | FD_CLOSE);
    say_no_network_events("at first", listener, event);
    SOCKET_CALL("accept of nobody", accept(listener, NULL, NULL));
    tell(0);
    say_network_events("a connection", listener, event);
    say_no_network_events("once only", listener, event);
    SOCKET first = accept_from(listener);
    say_network_events("accepted: writable", first, event);
    tell(0);
    say_network_events("accepted: data", first, event);
    say_recv("recv", first, 10, 0);
    say_recv("recv", first, 10, 0);
    tell(0);
    say_network_events("two at once", listener, event);
    hear();
    SOCKET second = accept_from(listener);
    say_network_events("one is left", listener, event);
    SOCKET third = accept_from(listener);
    SOCKET_CALL("accept of nobody", accept(listener, NULL, NULL));
    closesocket(first);
    closesocket(second);
    closesocket(third);
    WSACloseEvent(event);
    meet();
}
static void event_accept_client(SOCKET port)
{
    hear();
    SOCKET first = connect_to((unsigned short)port);
    hear();
    send_text(first, "hello");
    hear();
    SOCKET second = connect_to((unsigned short)port), third = connect_to((unsigned short)port);
    tell(0);
    meet();
    closesocket(first);
    closesocket(second);
    closesocket(third);
}

static void event_connect_solo(SOCKET unused)
{
    UNUSED(unused);
    struct sockaddr_storage address;
    SOCKET listener = listen_on(), s = stream_socket();
    WSAEVENT event = select_events(s, FD_CONNECT | FD_WRITE | FD_READ | FD_CLOSE);
    say_no_network_events("unconnected", s, event);
    int length = loopback(family, port_of(listener), &address);
    CALL("connect", connect(s, (struct sockaddr *)&address, length));
    await_writable(s);
    say_network_events("connected", s, event);
    say_no_network_events("once only", s, event);
    unsigned short port = port_of(listener);
    closesocket(s);
    closesocket(listener);
    s = stream_socket();
    MUST(WSAEventSelect(s, event, FD_CONNECT | FD_WRITE | FD_CLOSE));
    length = loopback(family, port, &address);
    CALL("connect to nobody", connect(s, (struct sockaddr *)&address, length));
    say_network_events("refused", s, event);
    closesocket(s);
    WSACloseEvent(event);
}

/* A turn-taking protocol driven by events alone. */
static void event_echo_server(SOCKET s)
{
    WSAEVENT event = WSACreateEvent();
    WSANETWORKEVENTS seen;
    char data[300];
    long long bytes = 0;
    MUST(WSAEventSelect(s, event, FD_READ | FD_CLOSE));
    for (bool open = true; open;) {
        CHECK(WSAWaitForMultipleEvents(1, &event, FALSE, LATE_MS, FALSE) == WSA_WAIT_EVENT_0);
        MUST(WSAEnumNetworkEvents(s, event, &seen));
        if (seen.lNetworkEvents & FD_READ) {
            int n = recv(s, data, sizeof data, 0);
            CHECK(n > 0 || (n < 0 && WSAGetLastError() == WSAEWOULDBLOCK));
            if (n > 0) {
                send_all(s, data, n);
                bytes += n;
            }
        }
        open = !(seen.lNetworkEvents & FD_CLOSE);
    }
    say("echoed %lld bytes", bytes);
    say_recv("recv at the end", s, 10, 0);
    WSACloseEvent(event);
}
static void event_echo_client(SOCKET s)
{
    struct stream out = {3, 0}, in = {3, 0};
    struct rng sizes = {3};
    for (int i = 0; i < 200; i++) {
        int n = between(&sizes, 1, 1000);
        stream_send(&out, s, (size_t)n, n);
        stream_receive(&in, s, (size_t)n, n);
    }
    say("200 turns");
    MUST(shutdown(s, SD_SEND));
}

/* One socket, three ways of waiting in turns: in the call, by select, by an event that is selected and given up again. */
static void wait_in_turn(SOCKET s, WSAEVENT event, int turn)
{
    WSANETWORKEVENTS seen;
    if (turn % 3 == 1)
        await_readable(s);
    if (turn % 3 != 2)
        return;
    MUST(WSAEventSelect(s, event, FD_READ | FD_CLOSE));
    CHECK(WSAWaitForMultipleEvents(1, &event, TRUE, LATE_MS, FALSE) == WSA_WAIT_EVENT_0);
    MUST(WSAEnumNetworkEvents(s, event, &seen));
    CHECK(seen.lNetworkEvents & (FD_READ | FD_CLOSE));
    MUST(WSAEventSelect(s, NULL, 0));
    set_nonblocking(s, false);
}
static void event_in_turns_server(SOCKET s)
{
    WSAEVENT event = WSACreateEvent();
    char data[100];
    for (int turn = 0; turn < 60; turn++) {
        wait_in_turn(s, event, turn);
        CHECK(recv_full(s, data, 50) == 50);
        send_all(s, data, 50);
    }
    say("60 turns");
    WSACloseEvent(event);
    meet();
}
static void event_in_turns_client(SOCKET s)
{
    WSAEVENT event = WSACreateEvent();
    struct stream out = {4, 0}, in = {4, 0};
    for (int turn = 0; turn < 60; turn++) {
        stream_send(&out, s, 50, 50);
        wait_in_turn(s, event, turn);
        stream_receive(&in, s, 50, 50);
    }
    say("60 turns");
    WSACloseEvent(event);
    meet();
}

/* Waiting for one of several events of several sockets. */
static void event_several_server(SOCKET s)
{
    hear();
    send_text(s, "go");
    meet();
}
static void event_several_client(SOCKET s)
{
    SOCKET ends[2];
    socket_pair(ends);
    WSAEVENT events[3] = {select_events(s, FD_READ), select_events(ends[0], FD_READ), WSACreateEvent()};
    say("wait: %lx", WSAWaitForMultipleEvents(3, events, FALSE, 0, FALSE));
    tell(0);
    say("wait: %lx", WSAWaitForMultipleEvents(3, events, FALSE, LATE_MS, FALSE));
    say_network_events("first", s, events[0]);
    send_text(ends[1], "x");
    say("wait: %lx", WSAWaitForMultipleEvents(3, events, FALSE, LATE_MS, FALSE));
    say_network_events("second", ends[0], events[1]);
    BOOL_CALL("WSASetEvent", WSASetEvent(events[2]));
    say("wait: %lx", WSAWaitForMultipleEvents(3, events, FALSE, LATE_MS, FALSE));
    BOOL_CALL("WSAResetEvent", WSAResetEvent(events[2]));
    say("wait: %lx", WSAWaitForMultipleEvents(3, events, FALSE, 20, FALSE));
    for (int i = 0; i < 3; i++)
        WSACloseEvent(events[i]);
    BOOL_CALL("WSACloseEvent of a closed one", WSACloseEvent(events[2]));
    closesocket(ends[0]);
    closesocket(ends[1]);
    meet();
}

const struct test_case events_cases[] = {
    CASE(event_read),       CASE(event_write),        CASE(event_close), CASE(event_reset),   CASE(event_rules),
    RAW_CASE(event_accept), SOLO_CASE(event_connect), CASE(event_echo),  CASE(event_several),
    CASE(event_in_turns),   END_OF_CASES,
};
