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
    do {
        CHECK(WSAWaitForMultipleEvents(1, &event, TRUE, LATE_MS, FALSE) == WSA_WAIT_EVENT_0);
        MUST(WSAEnumNetworkEvents(s, event, &seen));
        /* Through the lower provider, the event also tells of a doorbell that comes late. */
    } while (seen.lNetworkEvents == 0 && GetEnvironmentVariableA("SGM_LINUX", NULL, 0));
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

/* Selecting again changes who is told, and not what has been recorded or told of. */
static void event_again_server(SOCKET s)
{
    hear();
    send_text(s, "four");
    hear();
    send_text(s, "more");
    hear();
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void event_again_client(SOCKET s)
{
    WSAEVENT event = select_events(s, FD_READ | FD_WRITE | FD_CLOSE), other = WSACreateEvent();
    say_network_events("at first", s, event);
    CALL("WSAEventSelect again", WSAEventSelect(s, event, FD_READ | FD_WRITE | FD_CLOSE));
    let_it_block();
    say_no_network_events("writable is told once", s, event);
    tell(0);
    CHECK(WSAWaitForMultipleEvents(1, &event, FALSE, LATE_MS, FALSE) == WSA_WAIT_EVENT_0);
    CALL("WSAEventSelect, another event", WSAEventSelect(s, other, FD_READ | FD_CLOSE));
    say("signaled: %d", is_signaled(other));
    say_network_events("data, not told yet", s, other);
    say_recv("recv", s, 10, 0);
    tell(0);
    CHECK(WSAWaitForMultipleEvents(1, &other, FALSE, LATE_MS, FALSE) == WSA_WAIT_EVENT_0);
    say_recv("recv first", s, 10, 0);
    say_no_network_events("nothing is left to tell", s, other);
    CALL("WSAEventSelect, none", WSAEventSelect(s, NULL, 0));
    CALL("WSAEventSelect", WSAEventSelect(s, event, FD_READ | FD_CLOSE));
    tell(0);
    CHECK(WSAWaitForMultipleEvents(1, &event, FALSE, LATE_MS, FALSE) == WSA_WAIT_EVENT_0);
    CALL("WSAEventSelect, another event", WSAEventSelect(s, other, FD_READ | FD_CLOSE));
    say_network_events("the end, not told yet", s, other);
    CALL("WSAEventSelect again", WSAEventSelect(s, other, FD_READ | FD_CLOSE));
    let_it_block();
    say_no_network_events("told once", s, other);
    WSACloseEvent(event);
    WSACloseEvent(other);
    meet();
}

/* Recorded and not told of, then given up, then selected again. */
static void event_given_up_server(SOCKET s)
{
    hear();
    send_text(s, "four");
    hear();
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void event_given_up_client(SOCKET s)
{
    WSAEVENT event = select_events(s, FD_READ | FD_CLOSE);
    tell(0);
    CHECK(WSAWaitForMultipleEvents(1, &event, FALSE, LATE_MS, FALSE) == WSA_WAIT_EVENT_0);
    CALL("WSAEventSelect, none", WSAEventSelect(s, NULL, 0));
    say("signaled: %d", is_signaled(event));
    WSAResetEvent(event);
    CALL("WSAEventSelect", WSAEventSelect(s, event, FD_READ | FD_CLOSE));
    say_network_events("data", s, event);
    CALL("WSAEventSelect, none", WSAEventSelect(s, NULL, 0));
    say_recv("peek", s, 10, MSG_PEEK);
    CALL("WSAEventSelect", WSAEventSelect(s, event, FD_READ | FD_CLOSE));
    say_network_events("after a peek", s, event);
    say_recv("recv", s, 10, 0);
    tell(0);
    CHECK(WSAWaitForMultipleEvents(1, &event, FALSE, LATE_MS, FALSE) == WSA_WAIT_EVENT_0);
    CALL("WSAEventSelect, none", WSAEventSelect(s, NULL, 0));
    CALL("WSAEventSelect", WSAEventSelect(s, event, FD_READ | FD_CLOSE));
    say_network_events("the end", s, event);
    say_recv("recv", s, 10, 0);
    WSACloseEvent(event);
    meet();
}

/* Every way of waiting for an event object, of both kinds, with messages going to and fro. */
static bool await_event(HANDLE event, HANDLE never, int way)
{
    HANDLE both[] = {never, event};
    MSG message;
    switch (way % 7) {
    case 0: return WaitForSingleObject(event, LATE_MS) == WAIT_OBJECT_0;
    case 1: return WaitForMultipleObjects(2, both, FALSE, LATE_MS) == WAIT_OBJECT_0 + 1;
    case 2: return WaitForMultipleObjects(1, &event, TRUE, LATE_MS) == WAIT_OBJECT_0;
    case 3: return WSAWaitForMultipleEvents(2, both, FALSE, LATE_MS, TRUE) == WSA_WAIT_EVENT_0 + 1;
    case 4:
        PeekMessageA(&message, NULL, 0, 0, PM_NOREMOVE);
        return MsgWaitForMultipleObjects(1, &event, FALSE, LATE_MS, QS_ALLINPUT) == WAIT_OBJECT_0;
    case 5: {
        HANDLE copy;
        CHECK(DuplicateHandle(GetCurrentProcess(), event, GetCurrentProcess(), &copy, 0, FALSE, DUPLICATE_SAME_ACCESS));
        bool there = WaitForSingleObject(copy, LATE_MS) == WAIT_OBJECT_0;
        CloseHandle(copy);
        return there;
    }
    default: return SignalObjectAndWait(CreateEventA(NULL, TRUE, FALSE, NULL), event, LATE_MS, FALSE) == WAIT_OBJECT_0;
    }
}
static void wait_ways(SOCKET s, bool manual, bool first, const int *ways, int count)
{
    HANDLE event = CreateEventA(NULL, manual, FALSE, NULL), never = CreateEventA(NULL, TRUE, FALSE, NULL);
    char data[64] = "a message of sixty-four bytes";
    WSANETWORKEVENTS seen;
    MUST(WSAEventSelect(s, event, FD_READ | FD_CLOSE));
    for (int turn = 0; turn < 120; turn++) {
        if (first || turn > 0)
            send_all(s, data, sizeof data);
        for (int have = 0; have < (int)sizeof data;) {
            if (!await_event(event, never, ways[turn % count])) {
                say("LATE: turn %d, way %d", turn, ways[turn % count]);
                return;
            }
            /* A manual one stays as it is; the other has been reset by the wait. */
            if (turn % 10 == 9 && is_signaled(event) != manual)
                say("turn %d: signaled: %d", turn, !manual);
            MUST(WSAEnumNetworkEvents(s, turn % 3 ? event : manual ? event : NULL, &seen));
            if (turn % 10 == 8 && is_signaled(event) && !(seen.lNetworkEvents & FD_READ))
                say("turn %d: still signaled", turn);
            int n = recv(s, data + have, (int)sizeof data - have, 0);
            CHECK(n > 0 || WSAGetLastError() == WSAEWOULDBLOCK);
            have += n > 0 ? n : 0;
        }
    }
    if (!first)
        send_all(s, data, sizeof data);
    MUST(WSAEventSelect(s, NULL, 0));
    CloseHandle(event);
    CloseHandle(never);
    say("120 turns");
}
static const int shown_ways[] = {0, 1, 2, 3}, all_ways[] = {0, 1, 2, 3, 4, 0, 1, 5, 6, 2};
static void event_ways_server(SOCKET s)
{
    wait_ways(s, true, false, shown_ways, COUNT(shown_ways));
    wait_ways(s, false, false, shown_ways, COUNT(shown_ways));
    wait_ways(s, true, false, all_ways, COUNT(all_ways));
    meet();
}
static void event_ways_client(SOCKET s)
{
    wait_ways(s, true, true, shown_ways, COUNT(shown_ways));
    wait_ways(s, false, true, shown_ways, COUNT(shown_ways));
    wait_ways(s, false, true, all_ways, COUNT(all_ways));
    meet();
}

/* A busy socket keeps nothing else that is waited for from being told: other objects, APCs, the state of the object itself. */
static bool routine_ran;
static void CALLBACK routine(ULONG_PTR word) { routine_ran = word == 7; }
static void event_others_server(SOCKET s)
{
    char data[16];
    while (recv_full(s, data, sizeof data) == (int)sizeof data)
        send_all(s, data, sizeof data);
}
struct busy {
    SOCKET s;
    HANDLE event;
    char data[16];
};
static void busy_turn(struct busy *b)
{
    WSANETWORKEVENTS seen;
    MUST(WSAEnumNetworkEvents(b->s, b->event, &seen));
    if (recv(b->s, b->data, sizeof b->data, 0) == (int)sizeof b->data)
        send_all(b->s, b->data, sizeof b->data);
}
static void event_others_client(SOCKET s)
{
    HANDLE stop = CreateEventA(NULL, TRUE, FALSE, NULL), timer = CreateWaitableTimerA(NULL, TRUE, NULL);
    struct busy b = {s, select_events(s, FD_READ), "sixteen bytes.."};
    HANDLE first[] = {stop, b.event}, with_timer[] = {b.event, timer}, all[] = {b.event, stop};
    LARGE_INTEGER soon = {.QuadPart = -300000};
    DWORD got;
    int turns = 0;
    send_all(s, b.data, sizeof b.data);
    for (; (got = WaitForMultipleObjects(2, first, FALSE, LATE_MS)) == WAIT_OBJECT_0 + 1; busy_turn(&b))
        if (++turns == 50)
            SetEvent(stop);
    say("%lu after %d turns", got, turns);
    say("%lu", WaitForMultipleObjects(2, all, TRUE, LATE_MS));
    busy_turn(&b);
    SetWaitableTimer(timer, &soon, 0, NULL, NULL, FALSE);
    for (turns = 0; WaitForMultipleObjects(2, with_timer, FALSE, LATE_MS) == WAIT_OBJECT_0; busy_turn(&b))
        if (turns++ == 0)
            QueueUserAPC(routine, GetCurrentThread(), 7);
        else if (WaitForSingleObject(timer, 0) == WAIT_OBJECT_0)
            break;
    say("the timer");
    for (turns = 0; turns < 1000 && !routine_ran; turns++)
        if (WaitForSingleObjectEx(b.event, LATE_MS, TRUE) == WAIT_OBJECT_0)
            busy_turn(&b);
    say("the routine ran: %d", routine_ran);
    CHECK(WaitForSingleObject(b.event, LATE_MS) == WAIT_OBJECT_0);
    say("signaled: %d, %d", is_signaled(b.event), is_signaled(b.event));
    WSAResetEvent(b.event);
    say("reset: %d", is_signaled(b.event));
    say_no_network_events("recorded all the same", s, b.event);
    WSASetEvent(b.event);
    say("set: %d", is_signaled(b.event));
    CHECK(recv(s, b.data, sizeof b.data, 0) == (int)sizeof b.data);
    say_no_network_events("set by the program", s, b.event);
    say("reset with it: %d", is_signaled(b.event));
    ULONGLONG start = GetTickCount64();
    say("nothing comes: %lx", WaitForSingleObject(b.event, 60));
    say("in time: %d", GetTickCount64() - start >= 59 && GetTickCount64() - start < 1000);
    MUST(WSAEventSelect(s, NULL, 0));
    CloseHandle(b.event);
    CloseHandle(timer);
    CloseHandle(stop);
    MUST(shutdown(s, SD_SEND));
}

/* Two threads wait for one object, and a second waits while the first one works. */
struct shared {
    SOCKET s;
    HANDLE event;
    volatile LONG told;
};
static void share_event(void *argument)
{
    struct shared *shared = argument;
    WSANETWORKEVENTS seen;
    char byte;
    while (shared->told < 200) {
        if (WaitForSingleObject(shared->event, 20) != WAIT_OBJECT_0)
            continue;
        MUST(WSAEnumNetworkEvents(shared->s, shared->event, &seen));
        if (recv(shared->s, &byte, 1, 0) == 1) {
            InterlockedIncrement(&shared->told);
            /* Wine has a send wait while another thread is in one. */
            while (send(shared->s, &byte, 1, 0) != 1)
                CHECK(WSAGetLastError() == WSAEWOULDBLOCK && await_writable(shared->s));
        }
    }
}
static void event_shared_server(SOCKET s)
{
    struct shared shared = {s, select_events(s, FD_READ), 0};
    HANDLE threads[2] = {start_thread(share_event, &shared), start_thread(share_event, &shared)};
    join(threads[0]);
    join(threads[1]);
    say("%ld bytes", shared.told);
    WSACloseEvent(shared.event);
    meet();
}
static void event_shared_client(SOCKET s)
{
    for (int i = 0; i < 200; i++) {
        char byte = (char)i;
        send_all(s, &byte, 1);
        CHECK(recv_full(s, &byte, 1) == 1 && byte == (char)i);
    }
    say("200 turns");
    meet();
}

/* An answer that has been told of does not signal the object once more, however late its bell. */
enum { ANSWERS = 400 };
static void busy_for(int us)
{
    LARGE_INTEGER frequency, start, now;
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&start);
    do
        QueryPerformanceCounter(&now);
    while ((now.QuadPart - start.QuadPart) * 1000000 < us * frequency.QuadPart);
}
static void event_once_server(SOCKET s)
{
    char byte;
    for (int i = 0; i < ANSWERS && recv(s, &byte, 1, 0) == 1; i++) {
        /* Into the client's polling, its nap, its sleep. */
        busy_for(i % 20 * 20);
        MUST(send(s, &byte, 1, 0));
    }
    meet();
}
static void event_once_client(SOCKET s)
{
    WSAEVENT event = select_events(s, FD_READ);
    int untold = 0, signaled = 0;
    char byte = 'x';
    for (int i = 0; i < ANSWERS; i++) {
        MUST(send(s, &byte, 1, 0));
        CHECK(WSAWaitForMultipleEvents(1, &event, FALSE, 60000, FALSE) == WSA_WAIT_EVENT_0);
        WSANETWORKEVENTS told;
        MUST(WSAEnumNetworkEvents(s, event, &told));
        untold += told.lNetworkEvents != FD_READ;
        busy_for(100);
        signaled += is_signaled(event);
        MUST(recv(s, &byte, 1, 0));
    }
    say("answers not told of: %d; signaled once more: %d", untold, signaled);
    WSACloseEvent(event);
    meet();
}

const struct test_case events_cases[] = {
    CASE(event_read),       CASE(event_write),        CASE(event_close), CASE(event_reset),   CASE(event_rules),
    RAW_CASE(event_accept), SOLO_CASE(event_connect), CASE(event_echo),  CASE(event_several),
    CASE(event_in_turns),   CASE(event_again),        CASE(event_given_up), CASE(event_ways),   CASE(event_others),
    CASE(event_shared),     CASE(event_once),         END_OF_CASES,
};
