/* Overlapped calls: events, completion ports, completion routines; at once and pending; cancelled and aborted. */
#include "common.h"

static WSAOVERLAPPED fresh(void)
{
    WSAOVERLAPPED overlapped = {.hEvent = WSACreateEvent()};
    CHECK(overlapped.hEvent);
    return overlapped;
}

static int post_recv(SOCKET s, WSAOVERLAPPED *overlapped, char *data, int length, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)
{
    static DWORD flags;
    WSABUF buffer = {(ULONG)length, data};
    flags = 0;
    return WSARecv(s, &buffer, 1, NULL, &flags, overlapped, routine);
}

static int post_send(SOCKET s, WSAOVERLAPPED *overlapped, const char *data, int length, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)
{
    WSABUF buffer = {(ULONG)length, (char *)data};
    return WSASend(s, &buffer, 1, NULL, 0, overlapped, routine);
}

/* Whether a call completes at once or later is for the provider to choose; both are accepted here. */
static const char *accepted(int result)
{
    return result == 0 || WSAGetLastError() == WSA_IO_PENDING ? "accepted" : error_name(WSAGetLastError());
}

static void say_overlapped(const char *what, SOCKET s, WSAOVERLAPPED *overlapped, BOOL wait)
{
    DWORD bytes = 0, flags = 0;
    WSASetLastError(0);
    if (WSAGetOverlappedResult(s, overlapped, &bytes, wait, &flags))
        say("%s: %lu bytes, flags %lx", what, bytes, flags);
    else
        say("%s: %s", what, error_name(WSAGetLastError()));
}

static void by_event_server(SOCKET s)
{
    hear();
    send_text(s, "first");
    hear();
    let_it_block();
    send_text(s, "second");
    hear();
    say_recv("recv", s, 10, 0);
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void by_event_client(SOCKET s)
{
    char data[20] = "";
    WSAOVERLAPPED one = fresh();
    CALL("WSARecv of nothing", post_recv(s, &one, data, 20, NULL));
    say_overlapped("at once", s, &one, FALSE);
    say("event: %lx", WSAWaitForMultipleEvents(1, &one.hEvent, TRUE, 0, FALSE));
    tell(0);
    say("event: %lx", WSAWaitForMultipleEvents(1, &one.hEvent, TRUE, LATE_MS, FALSE));
    say_overlapped("then", s, &one, FALSE);
    say("%s", data);
    memset(data, 0, sizeof data);
    CALL("WSARecv", post_recv(s, &one, data, 20, NULL));
    tell(0);
    say_overlapped("waited for", s, &one, TRUE);
    say("%s", data);
    say("WSASend: %s", accepted(post_send(s, &one, "reply", 5, NULL)));
    say_overlapped("sent", s, &one, TRUE);
    CALL("WSARecv for the end", post_recv(s, &one, data, 20, NULL));
    tell(0);
    say_overlapped("the end", s, &one, TRUE);
    WSACloseEvent(one.hEvent);
    meet();
}

/* Data that is there already, in the order of the calls; the completion comes all the same. */
static void at_once_server(SOCKET s)
{
    send_text(s, "abcdefgh");
    meet();
}
static void at_once_client(SOCKET s)
{
    char data[2][8] = {"", ""};
    DWORD bytes = 0, flags = 0;
    WSAOVERLAPPED one[2] = {fresh(), fresh()};
    await_unread(s, 8);
    for (int i = 0; i < 2; i++) {
        say("WSARecv: %s", accepted(post_recv(s, &one[i], data[i], 3, NULL)));
        say("event: %lx", WSAWaitForMultipleEvents(1, &one[i].hEvent, TRUE, LATE_MS, FALSE));
        say_overlapped("result", s, &one[i], FALSE);
        say("%s", data[i]);
    }
    WSABUF buffer = {8, data[0]};
    memset(data, 0, sizeof data);
    CALL("WSARecv, not overlapped", WSARecv(s, &buffer, 1, &bytes, &flags, NULL, NULL));
    say("%lu %s", bytes, data[0]);
    WSACloseEvent(one[0].hEvent);
    WSACloseEvent(one[1].hEvent);
    meet();
}

/* Several receives wait in line and are served in it. */
static void in_line_server(SOCKET s)
{
    hear();
    for (int i = 0; i < 4; i++) {
        send_all(s, "0123" + i, 1);
        hear();
    }
    meet();
}
static void in_line_client(SOCKET s)
{
    char data[4][8] = {"", "", "", ""};
    WSAOVERLAPPED all[4];
    for (int i = 0; i < 4; i++) {
        all[i] = fresh();
        CALL("WSARecv", post_recv(s, &all[i], data[i], 8, NULL));
    }
    tell(0);
    for (int i = 0; i < 4; i++) {
        say_overlapped("result", s, &all[i], TRUE);
        say("%s", data[i]);
        for (int k = i + 1; k < 4; k++)
            CHECK(!WSAGetOverlappedResult(s, &all[k], &(DWORD){0}, FALSE, &(DWORD){0}));
        tell(0);
        WSACloseEvent(all[i].hEvent);
    }
    meet();
}

static void say_packet(const char *what, HANDLE port, OVERLAPPED *expected)
{
    DWORD bytes = 0;
    ULONG_PTR key = 0;
    OVERLAPPED *overlapped = NULL;
    SetLastError(0);
    BOOL good = GetQueuedCompletionStatus(port, &bytes, &key, &overlapped, LATE_MS);
    say("%s: %s, %lu bytes, key %llu%s", what, good ? "good" : error_name((int)GetLastError()), bytes, (unsigned long long)key,
        overlapped == expected ? "" : ", of another call");
}

static void by_port_server(SOCKET s)
{
    hear();
    send_text(s, "one");
    hear();
    send_text(s, "two");
    hear();
    say_recv("recv", s, 10, 0);
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void by_port_client(SOCKET s)
{
    char data[20] = "";
    OVERLAPPED one = {0}, two = {0};
    HANDLE port = CreateIoCompletionPort((HANDLE)s, NULL, 42, 0);
    say("CreateIoCompletionPort: %s", port ? "good" : error_name((int)GetLastError()));
    CALL("WSARecv", post_recv(s, &one, data, 20, NULL));
    tell(0);
    say_packet("received", port, &one);
    say("%s", data);
    tell(0);
    await_unread(s, 3);
    say("WSARecv: %s", accepted(post_recv(s, &one, data, 20, NULL)));
    say_packet("received at once", port, &one);
    say("WSASend: %s", accepted(post_send(s, &two, "reply", 5, NULL)));
    say_packet("sent", port, &two);
    CALL("WSARecv", post_recv(s, &one, data, 20, NULL));
    tell(0);
    say_packet("the end", port, &one);
    /* The low bit of the event keeps the packet away from the port. */
    WSAOVERLAPPED quiet = fresh();
    WSAEVENT event = quiet.hEvent;
    quiet.hEvent = (HANDLE)((ULONG_PTR)event | 1);
    say("WSARecv: %s", accepted(post_recv(s, &quiet, data, 20, NULL)));
    say("event: %lx", WSAWaitForMultipleEvents(1, &event, TRUE, LATE_MS, FALSE));
    DWORD bytes;
    ULONG_PTR key;
    OVERLAPPED *overlapped;
    say("a packet: %d", GetQueuedCompletionStatus(port, &bytes, &key, &overlapped, 20));
    WSACloseEvent(event);
    CloseHandle(port);
    meet();
}

static int routine_calls;
static DWORD routine_thread;
static void CALLBACK routine(DWORD error, DWORD bytes, WSAOVERLAPPED *overlapped, DWORD flags)
{
    routine_calls++;
    say("routine %llu: %s, %lu bytes, flags %lx, %s", (unsigned long long)(ULONG_PTR)overlapped->hEvent, error_name((int)error), bytes, flags,
        GetCurrentThreadId() == routine_thread ? "same thread" : "ANOTHER THREAD");
}

static void by_routine_server(SOCKET s)
{
    hear();
    send_text(s, "hello");
    hear();
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void by_routine_client(SOCKET s)
{
    char data[20] = "";
    WSAOVERLAPPED one = {.hEvent = (HANDLE)1}, two = {.hEvent = (HANDLE)2};
    routine_calls = 0;
    routine_thread = GetCurrentThreadId();
    CALL("WSARecv", post_recv(s, &one, data, 20, routine));
    tell(0);
    let_it_block();
    say("not alertable: %d calls", routine_calls);
    say("SleepEx: %s", SleepEx(LATE_MS, TRUE) == WAIT_IO_COMPLETION ? "by a routine" : "late");
    say("%s", data);
    say("WSASend: %s", accepted(post_send(s, &two, "x", 1, routine)));
    say("SleepEx: %s", SleepEx(LATE_MS, TRUE) == WAIT_IO_COMPLETION ? "by a routine" : "late");
    CALL("WSARecv", post_recv(s, &one, data, 20, routine));
    tell(0);
    WSAEVENT never = WSACreateEvent();
    say("WSAWaitForMultipleEvents: %lx", WSAWaitForMultipleEvents(1, &never, TRUE, LATE_MS, TRUE));
    say("%d calls", routine_calls);
    WSACloseEvent(never);
    meet();
}

/* Zero bytes: complete when there is something to receive, and take nothing. */
static void zero_bytes_server(SOCKET s)
{
    hear();
    let_it_block();
    send_text(s, "data");
    meet();
}
static void zero_bytes_client(SOCKET s)
{
    WSAOVERLAPPED one = fresh();
    CALL("WSARecv of 0 bytes", post_recv(s, &one, NULL, 0, NULL));
    tell(0);
    say_overlapped("result", s, &one, TRUE);
    say_recv("recv", s, 10, 0);
    say("WSASend of 0 bytes: %s", accepted(post_send(s, &one, NULL, 0, NULL)));
    say_overlapped("result", s, &one, TRUE);
    WSACloseEvent(one.hEvent);
    meet();
}

static void cancel_server(SOCKET s)
{
    hear();
    send_text(s, "data");
    meet();
}
static void cancel_client(SOCKET s)
{
    char data[3][8];
    WSAOVERLAPPED all[3] = {fresh(), fresh(), fresh()};
    for (int i = 0; i < 3; i++)
        CALL("WSARecv", post_recv(s, &all[i], data[i], 8, NULL));
    BOOL_CALL("CancelIoEx of the second", CancelIoEx((HANDLE)s, &all[1]));
    say_overlapped("second", s, &all[1], TRUE);
    say_overlapped("first", s, &all[0], FALSE);
    tell(0);
    say_overlapped("first", s, &all[0], TRUE);
    BOOL_CALL("CancelIo", CancelIo((HANDLE)s));
    say_overlapped("third", s, &all[2], TRUE);
    BOOL_CALL("CancelIoEx of nothing", CancelIoEx((HANDLE)s, &all[0]));
    BOOL_CALL("CancelIoEx of all", CancelIoEx((HANDLE)s, NULL));
    for (int i = 0; i < 3; i++)
        WSACloseEvent(all[i].hEvent);
    meet();
}

/* closesocket completes what is pending. */
static void close_pending_server(SOCKET s)
{
    meet();
    say_recv("recv", s, 10, 0);
}
static void close_pending_client(SOCKET s)
{
    char data[8];
    WSAOVERLAPPED one = fresh();
    OVERLAPPED two = {0};
    HANDLE port = CreateIoCompletionPort((HANDLE)s, NULL, 7, 0);
    CALL("WSARecv", post_recv(s, &one, data, 8, NULL));
    CALL("WSARecv", post_recv(s, &two, data, 8, NULL));
    meet();
    CALL("closesocket", closesocket(s));
    say("event: %lx", WSAWaitForMultipleEvents(1, &one.hEvent, TRUE, LATE_MS, FALSE));
    say_packet("first", port, &one);
    say_packet("second", port, &two);
    WSACloseEvent(one.hEvent);
    CloseHandle(port);
}

static void reset_pending_server(SOCKET s)
{
    struct linger at_once = {1, 0};
    hear();
    MUST(setsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&at_once, sizeof at_once));
    MUST(closesocket(s));
}
static void reset_pending_client(SOCKET s)
{
    char data[8];
    WSAOVERLAPPED one = fresh();
    CALL("WSARecv", post_recv(s, &one, data, 8, NULL));
    tell(0);
    say_overlapped("reset", s, &one, TRUE);
    say("WSARecv again: %s", accepted(post_recv(s, &one, data, 8, NULL)));
    say_overlapped("again", s, &one, TRUE);
    WSACloseEvent(one.hEvent);
}

/* A pipeline over a port: many calls in flight both ways, every byte checked. */
static void port_bulk_server(SOCKET s)
{
    struct stream in = {5, 0}, out = {6, 0};
    stream_receive(&in, s, 4 * MIB, 50000);
    stream_send(&out, s, 4 * MIB, 50000);
    say("4 MiB in, 4 MiB out");
    meet();
}
static void port_bulk_client(SOCKET s)
{
    enum { PIECE = 32 * KIB, FLIGHT = 4, TOTAL = 4 * MIB };
    static char data[FLIGHT][PIECE];
    struct stream out = {5, 0}, in = {6, 0};
    OVERLAPPED calls[FLIGHT];
    DWORD bytes;
    ULONG_PTR key;
    OVERLAPPED *done;
    HANDLE port = CreateIoCompletionPort((HANDLE)s, NULL, 1, 0);
    CHECK(port);
    memset(calls, 0, sizeof calls);
    for (int posted = 0, ended = 0; ended < TOTAL / PIECE; posted++) {
        if (posted < TOTAL / PIECE) {
            char *piece = data[posted % FLIGHT];
            stream_fill(&out, piece, PIECE);
            CHECK(!strcmp(accepted(post_send(s, &calls[posted % FLIGHT], piece, PIECE, NULL)), "accepted"));
        }
        if (posted >= FLIGHT - 1) {
            CHECK(GetQueuedCompletionStatus(port, &bytes, &key, &done, LATE_MS) && bytes == PIECE && done == &calls[ended % FLIGHT]);
            ended++;
        }
    }
    say("all sends completed, in order and whole");
    while (in.offset < TOTAL) {
        CHECK(!strcmp(accepted(post_recv(s, &calls[0], data[0], PIECE, NULL)), "accepted"));
        CHECK(GetQueuedCompletionStatus(port, &bytes, &key, &done, LATE_MS) && done == &calls[0] && bytes > 0);
        stream_check(&in, data[0], bytes);
    }
    say("4 MiB received");
    CloseHandle(port);
    meet();
}

/* First plain calls until the connection is busy, then overlapped ones, then plain ones again. */
static void in_turns_server(SOCKET s)
{
    char data[100];
    for (int n; (n = (int)MUST(recv(s, data, sizeof data, 0))) > 0;)
        send_all(s, data, n);
    say("the end");
}
static void in_turns_client(SOCKET s)
{
    struct stream out = {8, 0}, in = {8, 0};
    WSAOVERLAPPED one = fresh();
    char data[64];
    for (int i = 0; i < 90; i++) {
        if (i / 30 != 1) {
            stream_send(&out, s, 64, 64);
            stream_receive(&in, s, 64, 64);
            continue;
        }
        DWORD bytes = 0, flags;
        stream_fill(&out, data, 64);
        CHECK(!strcmp(accepted(post_send(s, &one, data, 64, NULL)), "accepted"));
        CHECK(WSAGetOverlappedResult(s, &one, &bytes, TRUE, &flags) && bytes == 64);
        for (DWORD got = 0; got < 64; got += bytes) {
            CHECK(!strcmp(accepted(post_recv(s, &one, data, (int)(64 - got), NULL)), "accepted"));
            CHECK(WSAGetOverlappedResult(s, &one, &bytes, TRUE, &flags) && bytes > 0);
            stream_check(&in, data, bytes);
        }
    }
    say("90 round trips, the middle ones overlapped");
    WSACloseEvent(one.hEvent);
    MUST(shutdown(s, SD_SEND));
}

/* Three threads wait at one port; each answer is taken by one of them, which asks again. */
enum { ASKED = 300, WAITERS = 3, STOP = 99 };
static struct {
    SOCKET s;
    HANDLE port;
    OVERLAPPED in;
    unsigned long long asked, answer;
    LONG ended, strange;
} shared;

static void ask_again(void)
{
    WSABUF question = {sizeof shared.asked, (char *)&shared.asked}, answer = {sizeof shared.answer, (char *)&shared.answer};
    DWORD flags = 0;
    shared.asked++;
    memset(&shared.in, 0, sizeof shared.in);
    CHECK(WSARecv(shared.s, &answer, 1, NULL, &flags, &shared.in, NULL) == 0 || WSAGetLastError() == WSA_IO_PENDING);
    CHECK(send(shared.s, question.buf, (int)question.len, 0) == (int)question.len);
}

static void wait_at_port(void *unused)
{
    UNUSED(unused);
    for (;;) {
        DWORD bytes;
        ULONG_PTR key;
        OVERLAPPED *of;
        CHECK(GetQueuedCompletionStatus(shared.port, &bytes, &key, &of, INFINITE));
        if (key == STOP)
            break;
        if (of != &shared.in || bytes != sizeof shared.answer || shared.answer != ~shared.asked)
            InterlockedIncrement(&shared.strange);
        if (shared.asked < ASKED)
            ask_again();
        else
            for (int i = 0; i < WAITERS; i++)
                CHECK(PostQueuedCompletionStatus(shared.port, 0, STOP, NULL));
    }
    InterlockedIncrement(&shared.ended);
}

static void port_threads_server(SOCKET s)
{
    for (int i = 0; i < ASKED; i++) {
        unsigned long long number;
        CHECK(recv(s, (char *)&number, sizeof number, MSG_WAITALL) == sizeof number);
        number = ~number;
        CHECK(send(s, (char *)&number, sizeof number, 0) == sizeof number);
    }
    meet();
}
static void port_threads_client(SOCKET s)
{
    HANDLE threads[WAITERS];
    memset(&shared, 0, sizeof shared);
    shared.s = s;
    shared.port = CreateIoCompletionPort((HANDLE)s, NULL, 1, 0);
    for (int i = 0; i < WAITERS; i++)
        threads[i] = start_thread(wait_at_port, NULL);
    ask_again();
    for (int i = 0; i < WAITERS; i++) {
        CHECK(WaitForSingleObject(threads[i], INFINITE) == WAIT_OBJECT_0);
        CloseHandle(threads[i]);
    }
    say("%llu answers, %ld strange, %ld threads ended", shared.asked, shared.strange, shared.ended);
    CloseHandle(shared.port);
    meet();
}

/* A second handle of the port, several packets at a time, packets of the program's own among them. */
static void port_ways_server(SOCKET s)
{
    hear();
    send_text(s, "by the twin");
    hear();
    send_text(s, "abc");
    meet();
}
static void port_ways_client(SOCKET s)
{
    char data[20] = "";
    OVERLAPPED calls[3];
    OVERLAPPED_ENTRY entries[8];
    ULONG n = 0;
    HANDLE twin = NULL, port = CreateIoCompletionPort((HANDLE)s, NULL, 7, 0);
    memset(calls, 0, sizeof calls);
    BOOL_CALL("DuplicateHandle", DuplicateHandle(GetCurrentProcess(), port, GetCurrentProcess(), &twin, 0, FALSE, DUPLICATE_SAME_ACCESS));
    CALL("WSARecv", post_recv(s, &calls[0], data, 20, NULL));
    tell(0);
    say_packet("by the twin", twin, &calls[0]);
    say("%s", data);
    for (int i = 0; i < 3; i++)
        CALL("WSARecv", post_recv(s, &calls[i], data + i, 1, NULL));
    BOOL_CALL("PostQueuedCompletionStatus", PostQueuedCompletionStatus(port, 5, 6, NULL));
    say_packet("its own", port, NULL);
    tell(0);
    for (ULONG got = 0; got < 3; got += n) {
        CHECK(GetQueuedCompletionStatusEx(port, entries, COUNT(entries), &n, LATE_MS, got != 0) && n <= 3 - got);
        for (ULONG i = 0; i < n; i++)
            say("packet: %lu bytes, key %d, call %d", entries[i].dwNumberOfBytesTransferred, (int)entries[i].lpCompletionKey,
                (int)(entries[i].lpOverlapped - calls));
    }
    BOOL_CALL("GetQueuedCompletionStatusEx of nothing", GetQueuedCompletionStatusEx(port, entries, COUNT(entries), &n, 0, FALSE));
    CloseHandle(twin);
    CloseHandle(port);
    meet();
}

const struct test_case overlapped_cases[] = {
    CASE(by_event), CASE(at_once), CASE(in_line),       CASE(by_port),       CASE(by_routine), CASE(zero_bytes),
    CASE(cancel),   CASE(close_pending), CASE(reset_pending), CASE(port_bulk), CASE(in_turns),   CASE(port_threads),
    CASE(port_ways), END_OF_CASES,
};
