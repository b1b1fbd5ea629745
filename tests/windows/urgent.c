/* Out-of-band bytes: MSG_OOB, FD_OOB, SIOCATMARK, SO_OOBINLINE, select's exceptions. */
#include "common.h"

static bool is_exception(SOCKET s)
{
    struct timeval none = {0, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(s, &set);
    return MUST(select(0, NULL, NULL, &set, &none)) == 1;
}

static void await_exception(SOCKET s)
{
    struct timeval limit = {LATE_MS / 1000, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(s, &set);
    CALL("select for an exception", select(0, NULL, NULL, &set, &limit));
}

static void say_mark(SOCKET s)
{
    u_long mark = 7;
    MUST(ioctlsocket(s, (long)SIOCATMARK, &mark));
    say("SIOCATMARK %lu", mark);
}

static void urgent_server(SOCKET s)
{
    send_text(s, "before");
    hear();
    CALL("send, MSG_OOB", send(s, "!", 1, MSG_OOB));
    hear();
    send_text(s, "after");
    hear();
    meet();
}
static void urgent_client(SOCKET s)
{
    char byte = '-';
    await_unread(s, 6);
    say("an exception: %d", is_exception(s));
    /* No receive of an urgent byte that has not come: Wine waits for ever where Windows says WSAEINVAL. */
    tell(0);
    await_exception(s);
    say_mark(s);
    say_recv("recv", s, 3, 0);
    say_mark(s);
    CALL("recv, MSG_OOB", recv(s, &byte, 1, MSG_OOB));
    say("%c, an exception: %d", byte, is_exception(s));
    tell(0);
    say_recv("recv", s, 3, 0);
    await_readable(s);
    say_recv("recv", s, 5, 0);
    tell(0);
    meet();
}

static void urgent_inline_server(SOCKET s)
{
    hear();
    send_text(s, "ab");
    CALL("send, MSG_OOB", send(s, "!", 1, MSG_OOB));
    send_text(s, "cd");
    meet();
}
static void urgent_inline_client(SOCKET s)
{
    int on = 1;
    char data[8] = "";
    MUST(setsockopt(s, SOL_SOCKET, SO_OOBINLINE, (char *)&on, sizeof on));
    tell(0);
    await_unread(s, 5);
    CHECK(recv_full(s, data, 5) == 5);
    say("%s", data);
    meet();
}

static void urgent_event_server(SOCKET s)
{
    hear();
    MUST(send(s, "!", 1, MSG_OOB));
    meet();
}
static void urgent_event_client(SOCKET s)
{
    char byte = '-';
    WSAEVENT event = WSACreateEvent();
    MUST(WSAEventSelect(s, event, FD_OOB));
    tell(0);
    say_network_events("urgent", s, event);
    CALL("recv, MSG_OOB", recv(s, &byte, 1, MSG_OOB));
    say("%c", byte);
    say_no_network_events("then", s, event);
    WSACloseEvent(event);
    meet();
}

/* After an urgent byte the stream goes on. */
static void urgent_then_bulk_server(SOCKET s)
{
    struct stream out = {2, 0};
    stream_send(&out, s, 100000, 5000);
    MUST(send(s, "!", 1, MSG_OOB));
    stream_send(&out, s, 100000, 5000);
    meet();
}
static void urgent_then_bulk_client(SOCKET s)
{
    struct stream in = {2, 0};
    stream_receive(&in, s, 200000, 7000);
    say("200000 bytes, the urgent one not among them");
    meet();
}

const struct test_case urgent_cases[] = {CASE(urgent), CASE(urgent_inline), CASE(urgent_event), CASE(urgent_then_bulk), END_OF_CASES};
