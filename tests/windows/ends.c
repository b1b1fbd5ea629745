/* Shutdown, close, reset: what each end is told, whatever was read or not. */
#include "common.h"

static const struct linger AT_ONCE = {1, 0};

static void reset(SOCKET s)
{
    MUST(setsockopt(s, SOL_SOCKET, SO_LINGER, (const char *)&AT_ONCE, sizeof AT_ONCE));
    MUST(closesocket(s));
}

static void half_close_server(SOCKET s)
{
    struct stream in = {1, 0}, out = {2, 0};
    stream_receive(&in, s, MIB, 64 * KIB);
    CALL("recv at the end", recv(s, (char *)&in, 1, 0));
    CALL("once more", recv(s, (char *)&in, 1, 0));
    stream_send(&out, s, MIB, 64 * KIB);
    CALL("shutdown", shutdown(s, SD_SEND));
    meet();
}
static void half_close_client(SOCKET s)
{
    struct stream out = {1, 0}, in = {2, 0};
    stream_send(&out, s, MIB, 64 * KIB);
    CALL("shutdown", shutdown(s, SD_SEND));
    CALL("send after it", send(s, "x", 1, 0));
    CALL("shutdown again", shutdown(s, SD_SEND));
    stream_receive(&in, s, MIB, 64 * KIB);
    CALL("recv at the end", recv(s, (char *)&in, 1, 0));
    meet();
    CALL("shutdown of both", shutdown(s, SD_BOTH));
    CALL("recv after it", recv(s, (char *)&in, 1, 0));
    CALL("closesocket", closesocket(s));
    CALL("closesocket again", closesocket(s));
}

static void shut_receive_server(SOCKET s)
{
    send_text(s, "before");
    hear();
    CALL("send", send(s, "after", 5, 0));
    meet();
}
static void shut_receive_client(SOCKET s)
{
    await_unread(s, 6);
    CALL("shutdown, receive", shutdown(s, SD_RECEIVE));
    say_recv("recv", s, 20, 0);
    tell(0);
    CALL("send is still allowed", send(s, "x", 1, 0));
    CALL("shutdown, how 3", shutdown(s, 3));
    CALL("shutdown, how -1", shutdown(s, -1));
    meet();
}

/* The last bytes and the end, all sent before the peer looks. */
static void close_at_once_server(SOCKET s)
{
    struct stream in = {3, 0};
    hear();
    stream_receive(&in, s, 40000, 7000);
    say("all there");
    CALL("recv at the end", recv(s, (char *)&in, 1, 0));
    say("send to a peer that closed: %s", send(s, "x", 1, 0) == 1 ? "taken" : "refused");
}
static void close_at_once_client(SOCKET s)
{
    struct stream out = {3, 0};
    stream_send(&out, s, 40000, 40000);
    CALL("closesocket", closesocket(s));
    tell(0);
}

/* Unread bytes at close: the peer is told by a reset, not by an end. */
static void close_unread_server(SOCKET s)
{
    await_unread(s, 5);
    CALL("closesocket", closesocket(s));
    meet();
}
static void close_unread_client(SOCKET s)
{
    send_text(s, "never");
    meet();
    say_recv("recv", s, 10, 0);
    say_recv("recv again", s, 10, 0);
    CALL("send", send(s, "x", 1, 0));
}

static void linger_zero_server(SOCKET s)
{
    hear();
    say_recv("recv", s, 10, 0);
    say_recv("recv again", s, 10, 0);
    CALL("send", send(s, "x", 1, 0));
    CALL("send again", send(s, "x", 1, 0));
    CALL("shutdown", shutdown(s, SD_BOTH));
    CALL("closesocket", closesocket(s));
}
static void linger_zero_client(SOCKET s)
{
    reset(s);
    tell(0);
}

/* A reset while bytes wait unread on the other side; the network may or may not have thrown them away, so only the last word counts. */
static void reset_unread_server(SOCKET s)
{
    char text[20];
    await_unread(s, 5);
    tell(0);
    hear();
    int n;
    while ((n = recv(s, text, sizeof text, 0)) > 0)
        ;
    say_result("at last", n, WSAGetLastError());
}
static void reset_unread_client(SOCKET s)
{
    send_text(s, "bytes");
    hear();
    reset(s);
    tell(0);
}

/* Sending on and on to a peer that closed: an error after a while, and then always. */
static void to_nobody_server(SOCKET s)
{
    hear();
    static char data[1000];
    int n, sends = 0;
    while ((n = send(s, data, sizeof data, 0)) > 0 && sends < 100000)
        sends++;
    say_result("send", n, WSAGetLastError());
    CALL("send again", send(s, data, 1, 0));
    CALL("recv", recv(s, data, 1, 0));
}
static void to_nobody_client(SOCKET s)
{
    MUST(closesocket(s));
    tell(0);
}

/* A sender that waits for room when the peer resets. */
static void blocked_sender_server(SOCKET s)
{
    static char data[64 * KIB];
    tell(0);
    int n;
    while ((n = send(s, data, sizeof data, 0)) > 0)
        CHECK(n == sizeof data);
    say_result("send", n, WSAGetLastError());
}
static void blocked_sender_client(SOCKET s)
{
    hear();
    let_it_block();
    reset(s);
}

static void blocked_receiver_server(SOCKET s)
{
    tell(0);
    say_recv("recv", s, 10, 0);
    say_recv("recv", s, 10, 0);
}
static void blocked_receiver_client(SOCKET s)
{
    hear();
    let_it_block();
    reset(s);
}

static void blocked_receiver_end_server(SOCKET s)
{
    tell(0);
    say_recv("recv", s, 10, 0);
    say_recv("recv", s, 10, 0);
    CALL("send", send(s, "ok", 2, 0));
}
static void blocked_receiver_end_client(SOCKET s)
{
    hear();
    let_it_block();
    MUST(shutdown(s, SD_SEND));
    say_recv("recv", s, 10, 0);
}

/* Linger with time: close returns when all is delivered. */
static void linger_time_server(SOCKET s)
{
    struct stream in = {6, 0};
    stream_receive(&in, s, 2 * MIB, 100 * KIB);
    say("all there");
    CALL("recv at the end", recv(s, (char *)&in, 1, 0));
}
static void linger_time_client(SOCKET s)
{
    struct linger time = {1, 10};
    struct stream out = {6, 0};
    MUST(setsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&time, sizeof time));
    stream_send(&out, s, 2 * MIB, 100 * KIB);
    CALL("closesocket", closesocket(s));
}

static void disconnect_calls_server(SOCKET s)
{
    say_recv("recv", s, 10, 0);
    say_recv("recv", s, 10, 0);
    CALL("WSASendDisconnect", WSASendDisconnect(s, NULL));
    CALL("send", send(s, "x", 1, 0));
    meet();
}
static void disconnect_calls_client(SOCKET s)
{
    send_text(s, "bye");
    CALL("WSASendDisconnect", WSASendDisconnect(s, NULL));
    CALL("send", send(s, "x", 1, 0));
    say_recv("recv", s, 10, 0);
    meet();
    CALL("WSARecvDisconnect", WSARecvDisconnect(s, NULL));
    say_recv("recv", s, 10, 0);
}

/* Both close at the same time, in any order: both see an end. */
static void both_shut_server(SOCKET s)
{
    meet();
    CALL("shutdown", shutdown(s, SD_BOTH));
    say_recv("recv", s, 10, 0);
    CALL("send", send(s, "x", 1, 0));
    meet();
}
static void both_shut_client(SOCKET s) { both_shut_server(s); }

/* What is unread when the peer ended can still be read, peeked at and counted. */
static void unread_after_end_server(SOCKET s)
{
    send_text(s, "tail");
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void unread_after_end_client(SOCKET s)
{
    u_long unread;
    meet();
    await_unread(s, 4);
    let_it_block(); /* the end comes after the bytes; with these unread no call tells */
    MUST(ioctlsocket(s, FIONREAD, &unread));
    say("unread %lu", unread);
    say_recv("peek", s, 10, MSG_PEEK);
    say_recv("recv", s, 2, 0);
    say_recv("recv", s, 10, 0);
    say_recv("recv", s, 10, 0);
    say_recv("peek at the end", s, 10, MSG_PEEK);
    CALL("recv of 0 at the end", recv(s, NULL, 0, 0));
    MUST(ioctlsocket(s, FIONREAD, &unread));
    say("unread %lu", unread);
}

const struct test_case ends_cases[] = {
    CASE(half_close),        CASE(shut_receive),     CASE(close_at_once), CASE(close_unread),     CASE(linger_zero),
    CASE(reset_unread),      CASE(to_nobody),        CASE(blocked_sender), CASE(blocked_receiver), CASE(blocked_receiver_end),
    CASE(linger_time),       CASE(disconnect_calls), CASE(both_shut),     CASE(unread_after_end), END_OF_CASES,
};
