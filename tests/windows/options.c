/* Socket options, ioctls and names: what is set is what is read, before and after the connection is busy. */
#include "common.h"

static void say_int(const char *what, SOCKET s, int level, int option)
{
    int value = 0x77777777, length = sizeof value;
    WSASetLastError(0);
    if (getsockopt(s, level, option, (char *)&value, &length)) {
        say_result(what, -1, WSAGetLastError());
        return;
    }
    if (length == 1)
        value &= 255;
    say("%s: %d (%d bytes)", what, value, length);
}

static void set_int(const char *what, SOCKET s, int level, int option, int value)
{
    CALL(what, setsockopt(s, level, option, (char *)&value, sizeof value));
    say_int(what, s, level, option);
}

static void options_server(SOCKET s)
{
    UNUSED(s);
    meet();
}
static void options_client(SOCKET s)
{
    say_int("SO_TYPE", s, SOL_SOCKET, SO_TYPE);
    say_int("SO_ERROR", s, SOL_SOCKET, SO_ERROR);
    say_int("SO_ACCEPTCONN", s, SOL_SOCKET, SO_ACCEPTCONN);
    say_int("TCP_NODELAY", s, IPPROTO_TCP, TCP_NODELAY);
    set_int("TCP_NODELAY", s, IPPROTO_TCP, TCP_NODELAY, 1);
    set_int("TCP_NODELAY", s, IPPROTO_TCP, TCP_NODELAY, 0);
    set_int("SO_KEEPALIVE", s, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_int("SO_KEEPALIVE", s, SOL_SOCKET, SO_KEEPALIVE, 0);
    set_int("SO_OOBINLINE", s, SOL_SOCKET, SO_OOBINLINE, 1);
    set_int("SO_OOBINLINE", s, SOL_SOCKET, SO_OOBINLINE, 0);
    set_int("SO_RCVTIMEO", s, SOL_SOCKET, SO_RCVTIMEO, 1500);
    set_int("SO_RCVTIMEO", s, SOL_SOCKET, SO_RCVTIMEO, 0);
    set_int("SO_SNDTIMEO", s, SOL_SOCKET, SO_SNDTIMEO, 2500);
    set_int("SO_SNDTIMEO", s, SOL_SOCKET, SO_SNDTIMEO, 0);
    set_int("SO_RCVBUF", s, SOL_SOCKET, SO_RCVBUF, 40000);
    set_int("SO_SNDBUF", s, SOL_SOCKET, SO_SNDBUF, 50000);
    set_int("SO_REUSEADDR", s, SOL_SOCKET, SO_REUSEADDR, 1);
    set_int("SO_DONTLINGER", s, SOL_SOCKET, SO_DONTLINGER, 1);
    set_int("SO_BROADCAST", s, SOL_SOCKET, SO_BROADCAST, 1);
    say_int("SO_MAX_MSG_SIZE", s, SOL_SOCKET, SO_MAX_MSG_SIZE);
    say_int("an unknown option", s, SOL_SOCKET, 0x1234);
    say_int("an unknown level", s, 0x1234, SO_TYPE);
    struct linger linger = {7, 7};
    int length = sizeof linger;
    CALL("SO_LINGER", getsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&linger, &length));
    say("%d %d (%d bytes)", linger.l_onoff, linger.l_linger, length);
    linger = (struct linger){1, 9};
    CALL("SO_LINGER", setsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&linger, sizeof linger));
    CALL("SO_LINGER", getsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&linger, &length));
    say("%d %d", linger.l_onoff, linger.l_linger);
    say_int("SO_DONTLINGER", s, SOL_SOCKET, SO_DONTLINGER);
    set_int("SO_DONTLINGER", s, SOL_SOCKET, SO_DONTLINGER, 1);
    length = 1;
    CALL("a short buffer", getsockopt(s, SOL_SOCKET, SO_TYPE, (char *)&linger, &length));
    CALL("no buffer", getsockopt(s, SOL_SOCKET, SO_TYPE, NULL, NULL));
    CALL("no buffer to set", setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, NULL, 4));
    CALL("a short buffer to set", setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, (char *)&linger, 1));
    CALL("setsockopt of nothing", setsockopt(INVALID_SOCKET, SOL_SOCKET, SO_KEEPALIVE, (char *)&linger, 4));
    meet();
}

static void connect_time_server(SOCKET s)
{
    UNUSED(s);
    meet();
}
static void connect_time_client(SOCKET s)
{
    DWORD seconds = 0;
    int length = sizeof seconds;
    CALL("SO_CONNECT_TIME", getsockopt(s, SOL_SOCKET, SO_CONNECT_TIME, (char *)&seconds, &length));
    say("%s, %d bytes", seconds < 60 ? "less than a minute" : "something else", length);
    SOCKET fresh = stream_socket();
    CALL("SO_CONNECT_TIME, unconnected", getsockopt(fresh, SOL_SOCKET, SO_CONNECT_TIME, (char *)&seconds, &length));
    say("%lx", seconds);
    closesocket(fresh);
    meet();
}

/* Only what is the same for a layered provider: the chain and the handle flags are its own. */
static void protocol_info_server(SOCKET s)
{
    UNUSED(s);
    meet();
}
static void protocol_info_client(SOCKET s)
{
    WSAPROTOCOL_INFOW info;
    WSAPROTOCOL_INFOA narrow;
    int length = sizeof info;
    CALL("SO_PROTOCOL_INFOW", getsockopt(s, SOL_SOCKET, SO_PROTOCOL_INFOW, (char *)&info, &length));
    say("%d bytes, family as asked: %d, type %d, protocol %d, order %d, security %d, message size %lu", length, info.iAddressFamily == family,
        info.iSocketType, info.iProtocol, info.iNetworkByteOrder, info.iSecurityScheme, info.dwMessageSize);
    say("addresses %d to %d, version %d, reliable %d, ordered %d, graceful %d", info.iMinSockAddr, info.iMaxSockAddr, info.iVersion,
        !!(info.dwServiceFlags1 & XP1_GUARANTEED_DELIVERY), !!(info.dwServiceFlags1 & XP1_GUARANTEED_ORDER),
        !!(info.dwServiceFlags1 & XP1_GRACEFUL_CLOSE));
    length = sizeof narrow;
    CALL("SO_PROTOCOL_INFOA", getsockopt(s, SOL_SOCKET, SO_PROTOCOL_INFOA, (char *)&narrow, &length));
    say("%d bytes, type %d, protocol %d", length, narrow.iSocketType, narrow.iProtocol);
    meet();
}

static void names_server(SOCKET s)
{
    struct sockaddr_storage mine, theirs;
    int mine_length = sizeof mine, theirs_length = sizeof theirs;
    MUST(getsockname(s, (struct sockaddr *)&mine, &mine_length));
    MUST(getpeername(s, (struct sockaddr *)&theirs, &theirs_length));
    say("lengths %d %d", mine_length, theirs_length);
    tell(port_of(s));
    tell(ntohs(((struct sockaddr_in *)&theirs)->sin_port)); /* at the same place in both families */
    hear();
    CALL("getpeername when the peer closed", getpeername(s, (struct sockaddr *)&theirs, &theirs_length));
    MUST(shutdown(s, SD_BOTH));
    CALL("getpeername when shut", getpeername(s, (struct sockaddr *)&theirs, &theirs_length));
    CALL("getsockname when shut", getsockname(s, (struct sockaddr *)&theirs, &theirs_length));
}
static void names_client(SOCKET s)
{
    struct sockaddr_storage mine, theirs;
    int length = sizeof mine;
    MUST(getsockname(s, (struct sockaddr *)&mine, &length));
    CALL("getpeername", getpeername(s, (struct sockaddr *)&theirs, &length));
    uint64_t server_port = hear(), my_port = hear();
    say("ports agree: %d %d", ntohs(((struct sockaddr_in *)&theirs)->sin_port) == server_port,
        ntohs(((struct sockaddr_in *)&mine)->sin_port) == my_port);
    length = 3;
    CALL("getsockname, short", getsockname(s, (struct sockaddr *)&mine, &length));
    length = 3;
    CALL("getpeername, short", getpeername(s, (struct sockaddr *)&mine, &length));
    CALL("getpeername, no length", getpeername(s, (struct sockaddr *)&mine, NULL));
    MUST(closesocket(s));
    tell(0);
    length = sizeof mine;
    CALL("getsockname of a closed one", getsockname(s, (struct sockaddr *)&mine, &length));
    CALL("getpeername of a closed one", getpeername(s, (struct sockaddr *)&mine, &length));
}

/* Calls on sockets in the wrong state. */
static void states_solo(SOCKET unused)
{
    UNUSED(unused);
    struct sockaddr_storage address;
    int size = sizeof address, length = loopback(family, 0, &address);
    char byte;
    SOCKET s = stream_socket();
    CALL("getsockname, unbound", getsockname(s, (struct sockaddr *)&address, &size));
    CALL("getpeername, unbound", getpeername(s, (struct sockaddr *)&address, &size));
    CALL("send, unconnected", send(s, "x", 1, 0));
    CALL("recv, unconnected", recv(s, &byte, 1, 0));
    CALL("shutdown, unconnected", shutdown(s, SD_BOTH));
    CALL("listen, unbound", listen(s, 5));
    SOCKET_CALL("accept, not listening", accept(s, NULL, NULL));
    CALL("bind, short", bind(s, (struct sockaddr *)&address, 3));
    length = loopback(family, 0, &address);
    CALL("bind", bind(s, (struct sockaddr *)&address, length));
    CALL("bind again", bind(s, (struct sockaddr *)&address, length));
    size = sizeof address;
    CALL("getsockname, bound", getsockname(s, (struct sockaddr *)&address, &size));
    CALL("getpeername, bound", getpeername(s, (struct sockaddr *)&address, &size));
    CALL("listen", listen(s, 5));
    CALL("listen again", listen(s, 7));
    /* No recv or send here: Wine waits for ever. */
    CALL("connect, listening", connect(s, (struct sockaddr *)&address, length));
    say_int("SO_ACCEPTCONN", s, SOL_SOCKET, SO_ACCEPTCONN);
    SOCKET other = stream_socket();
    CALL("bind to a taken port", bind(other, (struct sockaddr *)&address, length));
    ((struct sockaddr_in *)&address)->sin_family = 99;
    CALL("connect, strange family", connect(other, (struct sockaddr *)&address, length));
    closesocket(other);
    closesocket(s);
    CALL("send, closed", send(s, "x", 1, 0));
    CALL("recv, closed", recv(s, &byte, 1, 0));
    CALL("listen, closed", listen(s, 1));
    CALL("shutdown, closed", shutdown(s, SD_BOTH));
    CALL("bind, closed", bind(s, (struct sockaddr *)&address, length));
    CALL("ioctlsocket, closed", ioctlsocket(s, FIONREAD, &(u_long){0}));
    SOCKET_CALL("socket, strange family", socket(99, SOCK_STREAM, 0));
    SOCKET_CALL("socket, strange type", socket(AF_INET, 99, 0));
    SOCKET_CALL("socket, wrong protocol", socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    SOCKET_CALL("WSASocket, no family", WSASocketW(AF_UNSPEC, SOCK_STREAM, IPPROTO_TCP, NULL, 0, 0));
    SOCKET_CALL("WSASocket", s = WSASocketW(family, SOCK_STREAM, 0, NULL, 0, WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT));
    closesocket(s);
}

static void connect_errors_solo(SOCKET unused)
{
    UNUSED(unused);
    struct sockaddr_storage address;
    SOCKET gone = listen_on();
    int length = loopback(family, port_of(gone), &address);
    closesocket(gone);
    SOCKET s = stream_socket();
    CALL("connect to nobody", connect(s, (struct sockaddr *)&address, length));
    CALL("once more", connect(s, (struct sockaddr *)&address, length));
    SOCKET ends[2];
    socket_pair(ends);
    CALL("connect, connected", connect(ends[1], (struct sockaddr *)&address, length));
    CALL("listen, connected", listen(ends[1], 5));
    CALL("bind, connected", bind(ends[1], (struct sockaddr *)&address, length));
    closesocket(ends[0]);
    closesocket(ends[1]);
    closesocket(s);
}

/* A receive and a send that give up in time. */
static void timeouts_server(SOCKET s)
{
    hear();
    send_text(s, "now");
    meet();
}
static void timeouts_client(SOCKET s)
{
    int limit = 200;
    MUST(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, (char *)&limit, sizeof limit));
    ULONGLONG start = GetTickCount64();
    say_recv("recv", s, 10, 0);
    ULONGLONG took = GetTickCount64() - start;
    say("%s", took + 17 >= 200 && took < LATE_MS ? "after its time" : "EARLY or LATE");
    tell(0);
    await_unread(s, 3);
    say_recv("recv", s, 10, 0);
    say_recv("recv", s, 10, 0);
    MUST(setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, (char *)&limit, sizeof limit));
    static char data[64 * KIB];
    long long sent = 0;
    int n;
    while ((n = send(s, data, sizeof data, 0)) > 0 && sent < 64 * MIB)
        sent += n;
    say_result("send", n, WSAGetLastError());
    meet();
}

static void ioctls_server(SOCKET s)
{
    send_text(s, "bytes");
    meet();
}
static void ioctls_client(SOCKET s)
{
    u_long value = 0;
    DWORD bytes = 77;
    await_unread(s, 5);
    CALL("WSAIoctl, FIONREAD", WSAIoctl(s, FIONREAD, NULL, 0, &value, sizeof value, &bytes, NULL, NULL));
    say("%lu in %lu bytes", value, bytes);
    CALL("WSAIoctl, SIOCATMARK", WSAIoctl(s, SIOCATMARK, NULL, 0, &value, sizeof value, &bytes, NULL, NULL));
    say("%lu in %lu bytes", value, bytes);
    CALL("ioctlsocket, SIOCATMARK", ioctlsocket(s, (long)SIOCATMARK, &value));
    say("%lu", value);
    value = 1;
    CALL("WSAIoctl, FIONBIO", WSAIoctl(s, FIONBIO, &value, sizeof value, NULL, 0, &bytes, NULL, NULL));
    CALL("WSAIoctl, FIONREAD, short", WSAIoctl(s, FIONREAD, NULL, 0, &value, 2, &bytes, NULL, NULL));
    CALL("WSAIoctl, no count", WSAIoctl(s, FIONREAD, NULL, 0, &value, sizeof value, NULL, NULL, NULL));
    CALL("WSAIoctl, strange", WSAIoctl(s, 0x48001234, NULL, 0, &value, sizeof value, &bytes, NULL, NULL));
    struct {
        u_long on, time, interval;
    } keepalive = {1, 10000, 1000};
    CALL("SIO_KEEPALIVE_VALS", WSAIoctl(s, _WSAIOW(IOC_VENDOR, 4), &keepalive, sizeof keepalive, NULL, 0, &bytes, NULL, NULL));
    say_recv("recv", s, 10, 0);
    say_recv("recv", s, 10, 0);
    meet();
}

const struct test_case options_cases[] = {
    CASE(options),           CASE(connect_time),        CASE(protocol_info), CASE(names),
    SOLO_CASE(states),       SOLO_CASE(connect_errors), CASE(timeouts),      CASE(ioctls), END_OF_CASES,
};
