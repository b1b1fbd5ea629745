/* Sockets used from many threads, closed under blocked ones, and duplicated. */
#include "common.h"

/* Writers of tagged records on one socket: the records may come in any order, but none in pieces. */
enum { WRITERS = 6, RECORDS = 300 };
struct record {
    uint32_t length, writer, number, sum;
    uint8_t body[200];
};

static uint32_t sum_of(const struct record *record)
{
    uint32_t sum = record->writer * 31 + record->number;
    for (uint32_t i = 0; i < record->length; i++)
        sum = sum * 31 + record->body[i];
    return sum;
}

struct writer {
    SOCKET s;
    uint32_t number;
};

static void write_records(void *argument)
{
    struct writer *writer = argument;
    struct rng rng = {writer->number};
    for (uint32_t i = 0; i < RECORDS; i++) {
        struct record record = {(uint32_t)between(&rng, 1, sizeof record.body), writer->number, i, 0, {0}};
        for (uint32_t k = 0; k < record.length; k++)
            record.body[k] = (uint8_t)rng_next(&rng);
        record.sum = sum_of(&record);
        int size = (int)offsetof(struct record, body) + (int)record.length;
        CHECK(send(writer->s, (char *)&record, size, 0) == size);
    }
}

static void many_writers_server(SOCKET s)
{
    struct writer writers[WRITERS];
    HANDLE threads[WRITERS];
    for (uint32_t i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){s, i};
        threads[i] = start_thread(write_records, &writers[i]);
    }
    for (int i = 0; i < WRITERS; i++)
        join(threads[i]);
    MUST(shutdown(s, SD_SEND));
    say("%d writers, %d records each", WRITERS, RECORDS);
}
static void many_writers_client(SOCKET s)
{
    uint32_t next[WRITERS] = {0};
    struct record record;
    int head = (int)offsetof(struct record, body), records = 0;
    for (; recv_full(s, &record, head) == head; records++) {
        CHECK(record.length <= sizeof record.body && record.writer < WRITERS);
        CHECK(recv_full(s, record.body, (int)record.length) == (int)record.length);
        CHECK(record.sum == sum_of(&record) && record.number == next[record.writer]++);
    }
    say("%d records, whole and each writer's in order", records);
}

/* Both directions of both ends at once, each by its own thread, in small pieces. */
struct lane {
    SOCKET s;
    struct stream stream;
    size_t bytes;
};
static void send_lane(void *argument)
{
    struct lane *lane = argument;
    stream_send(&lane->stream, lane->s, lane->bytes, 3000);
}
static void four_threads_part(SOCKET s, uint64_t out_seed, uint64_t in_seed)
{
    struct lane out = {s, {out_seed, 0}, 4 * MIB};
    struct stream in = {in_seed, 0};
    HANDLE sender = start_thread(send_lane, &out);
    stream_receive(&in, s, 4 * MIB, 3000);
    join(sender);
    say("4 MiB each way");
    meet();
}
static void four_threads_server(SOCKET s) { four_threads_part(s, 1, 2); }
static void four_threads_client(SOCKET s) { four_threads_part(s, 2, 1); }

/* Two readers of one stream: together they get every byte once. */
struct reader {
    SOCKET s;
    uint64_t bytes, sum;
};
static void read_some(void *argument)
{
    struct reader *reader = argument;
    uint8_t data[5000];
    for (int n; (n = (int)MUST(recv(reader->s, (char *)data, sizeof data, 0))) > 0; reader->bytes += (uint64_t)n)
        for (int i = 0; i < n; i++)
            reader->sum += data[i];
}
static void two_readers_server(SOCKET s)
{
    struct stream out = {3, 0};
    stream_send(&out, s, MIB, 4000);
    MUST(shutdown(s, SD_SEND));
    uint8_t *data = malloc(MIB);
    struct stream same = {3, 0};
    stream_fill(&same, data, MIB);
    uint64_t sum = 0;
    for (int i = 0; i < MIB; i++)
        sum += data[i];
    free(data);
    tell(sum);
    meet();
}
static void two_readers_client(SOCKET s)
{
    struct reader readers[2] = {{s, 0, 0}, {s, 0, 0}};
    HANDLE other = start_thread(read_some, &readers[0]);
    read_some(&readers[1]);
    join(other);
    say("%llu bytes, sum right: %d", (unsigned long long)(readers[0].bytes + readers[1].bytes), readers[0].sum + readers[1].sum == hear());
    meet();
}

/* A thread blocked in a call when another closes the socket under it. */
static void block_in_recv(void *s) { say_recv("recv, blocked", *(SOCKET *)s, 10, 0); }
static void close_under_recv_server(SOCKET s)
{
    say_recv("recv", s, 10, 0);
}
static void close_under_recv_client(SOCKET s)
{
    HANDLE blocked = start_thread(block_in_recv, &s);
    let_it_block();
    int result = closesocket(s);
    join(blocked);
    CALL("closesocket", result);
}

static void block_in_accept(void *s) { SOCKET_CALL("accept, blocked", accept(*(SOCKET *)s, NULL, NULL)); }
static void close_under_accept_solo(SOCKET unused)
{
    UNUSED(unused);
    SOCKET s = listen_on();
    HANDLE blocked = start_thread(block_in_accept, &s);
    let_it_block();
    int result = closesocket(s);
    join(blocked);
    CALL("closesocket", result);
}

static void block_in_select(void *s)
{
    struct timeval limit = {1, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(*(SOCKET *)s, &set);
    CALL("select, blocked", select(0, &set, NULL, NULL, &limit));
}
static void close_under_select_server(SOCKET s)
{
    say_recv("recv", s, 10, 0);
}
static void close_under_select_client(SOCKET s)
{
    HANDLE blocked = start_thread(block_in_select, &s);
    let_it_block();
    int result = closesocket(s);
    join(blocked);
    CALL("closesocket", result);
}

/* The same, with WSAPoll and with sets of two, one of which goes away. */
struct pair_of {
    SOCKET ends[2];
    SOCKET s;
};
static void block_in_poll(void *argument)
{
    struct pair_of *p = argument;
    WSAPOLLFD fds[2] = {{p->s, POLLRDNORM, 0}, {p->ends[0], POLLRDNORM, 0}};
    CALL("WSAPoll, blocked", WSAPoll(fds, 2, LATE_MS));
    say("%s, %s", poll_name(fds[0].revents), poll_name(fds[1].revents));
}
static void block_in_sets(void *argument)
{
    struct pair_of *p = argument;
    struct timeval limit = {LATE_MS / 1000, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(p->ends[0], &set);
    FD_SET(p->s, &set);
    CALL("select, blocked", select(0, &set, NULL, NULL, &limit));
}
static void close_under_poll_server(SOCKET s)
{
    say_recv("recv", s, 10, 0);
}
static void close_under_poll_client(SOCKET s)
{
    struct pair_of p = {.s = s};
    socket_pair(p.ends);
    HANDLE blocked = start_thread(block_in_poll, &p);
    let_it_block();
    int result = closesocket(s);
    join(blocked);
    CALL("closesocket", result);
    p.s = listen_on();
    blocked = start_thread(block_in_sets, &p);
    let_it_block();
    closesocket(p.ends[0]);
    join(blocked);
    closesocket(p.s);
    closesocket(p.ends[1]);
}

/* shutdown wakes a blocked reader of the same socket. */
static void shut_under_recv_server(SOCKET s)
{
    say_recv("recv", s, 10, 0);
    meet();
}
static void shut_under_recv_client(SOCKET s)
{
    HANDLE blocked = start_thread(block_in_recv, &s);
    let_it_block();
    int result = shutdown(s, SD_SEND);
    meet(); /* the peer has the end now */
    /* Only its close ends the blocked call. */
    join(blocked);
    CALL("shutdown", result);
}
static void shut_under_recv_close_server(SOCKET s)
{
    shut_under_recv_server(s);
    closesocket(s);
}

/* Two descriptors of one socket in one process: both work, and it ends with the second. */
static SOCKET duplicate(SOCKET s)
{
    WSAPROTOCOL_INFOW info;
    MUST(WSADuplicateSocketW(s, GetCurrentProcessId(), &info));
    return (SOCKET)MUST(WSASocketW(FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, &info, 0, WSA_FLAG_OVERLAPPED));
}

static void duplicated_server(SOCKET s)
{
    char data[100];
    for (int n; (n = (int)MUST(recv(s, data, sizeof data, 0))) > 0;)
        send_all(s, data, n);
    say("the end");
}
static void duplicated_client(SOCKET s)
{
    struct stream out = {9, 0}, in = {9, 0};
    SOCKET other = duplicate(s);
    say("another handle: %d", other != s);
    for (int i = 0; i < 40; i++) {
        stream_send(&out, i & 1 ? s : other, 50, 50);
        stream_receive(&in, i & 2 ? s : other, 50, 50);
    }
    say("40 turns over both");
    set_nonblocking(other, true);
    say_recv("recv, non-blocking by the other", s, 10, 0);
    set_nonblocking(s, false);
    CALL("closesocket of the first", closesocket(s));
    say_recv("recv of the first", s, 10, 0);
    for (int i = 0; i < 40; i++) {
        stream_send(&out, other, 50, 50);
        stream_receive(&in, other, 50, 50);
    }
    say("40 turns over the second");
    CALL("closesocket of the second", closesocket(other));
}

static void duplicate_first_closed_server(SOCKET s) { duplicated_server(s); }
static void duplicate_first_closed_client(SOCKET s)
{
    struct stream out = {9, 0}, in = {9, 0};
    SOCKET other = duplicate(s);
    CALL("closesocket of the second", closesocket(other));
    for (int i = 0; i < 40; i++) {
        stream_send(&out, s, 50, 50);
        stream_receive(&in, s, 50, 50);
    }
    say("40 turns over the first");
    CALL("shutdown", shutdown(s, SD_SEND));
}

/* Both handles are the same socket, and have the port that one of them was given. */
static void duplicated_ports_server(SOCKET s)
{
    for (int i = 0; i < 5; i++) {
        hear();
        send_text(s, "text");
    }
    say_recv("recv", s, 5, MSG_WAITALL);
    meet();
}
static void say_packet(const char *what, HANDLE port, OVERLAPPED *call)
{
    DWORD bytes = 0;
    ULONG_PTR key = 0;
    OVERLAPPED *of = NULL;
    BOOL good = GetQueuedCompletionStatus(port, &bytes, &key, &of, LATE_MS);
    if (!of)
        say("LATE: no packet for %s", what);
    else
        say("%s: %s, %lu bytes, key %d%s", what, good ? "good" : error_name((int)GetLastError()), bytes, (int)key,
            of == call ? "" : ", of another");
}
static void receive_by(const char *what, SOCKET s, HANDLE port)
{
    char data[8] = "";
    WSABUF buffer = {4, data};
    DWORD flags = 0;
    OVERLAPPED call = {0};
    CALL(what, WSARecv(s, &buffer, 1, NULL, &flags, &call, NULL));
    tell(0);
    say_packet(what, port, &call);
    say("%s", data);
}
static void duplicated_ports_client(SOCKET s)
{
    SOCKET before = duplicate(s);
    HANDLE port = CreateIoCompletionPort((HANDLE)s, NULL, 5, 0);
    CHECK(port);
    SOCKET after = duplicate(s);
    receive_by("WSARecv", s, port);
    receive_by("WSARecv, by one from before", before, port);
    receive_by("WSARecv, by one from after", after, port);
    HANDLE other = CreateIoCompletionPort(NULL, NULL, 0, 0);
    BOOL_CALL("a second port", CreateIoCompletionPort((HANDLE)after, other, 6, 0) != NULL);
    CloseHandle(other);
    CALL("closesocket of the first", closesocket(s));
    receive_by("WSARecv, by one from before", before, port);
    receive_by("WSARecv, by one from after", after, port);
    CALL("closesocket of the second", closesocket(before));
    OVERLAPPED call = {0};
    WSABUF out = {5, "hello"};
    CHECK(!WSASend(after, &out, 1, NULL, 0, &call, NULL) || WSAGetLastError() == WSA_IO_PENDING);
    say_packet("WSASend", port, &call);
    meet();
    CALL("closesocket of the last", closesocket(after));
    CloseHandle(port);
}

/* A listener's: what one handle has, the other's AcceptEx is told by. */
static void duplicated_listener_server(SOCKET listener)
{
    GUID guid = WSAID_ACCEPTEX;
    LPFN_ACCEPTEX accept_ex;
    DWORD bytes = 0;
    char addresses[256];
    MUST(WSAIoctl(listener, SIO_GET_EXTENSION_FUNCTION_POINTER, &guid, sizeof guid, &accept_ex, sizeof accept_ex, &bytes, NULL, NULL));
    HANDLE port = CreateIoCompletionPort((HANDLE)listener, NULL, 9, 0);
    CHECK(port);
    SOCKET other = duplicate(listener), accepted = stream_socket();
    OVERLAPPED call = {0};
    BOOL_CALL("AcceptEx", accept_ex(other, accepted, addresses, 0, 100, 100, &bytes, &call));
    tell(0);
    say_packet("AcceptEx", port, &call);
    MUST(setsockopt(accepted, SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, (char *)&listener, sizeof listener));
    send_text(accepted, "welcome");
    meet();
    closesocket(accepted);
    closesocket(other);
    CloseHandle(port);
}
static void duplicated_listener_client(SOCKET port)
{
    hear();
    SOCKET s = connect_to((unsigned short)port);
    say_recv("recv", s, 7, MSG_WAITALL);
    meet();
    closesocket(s);
}

/* Threads that come and go on one connection. */
struct turn {
    SOCKET s;
    struct stream *out, *in;
};
static void one_turn(void *argument)
{
    struct turn *turn = argument;
    stream_send(turn->out, turn->s, 100, 100);
    stream_receive(turn->in, turn->s, 100, 100);
}
static void passing_threads_server(SOCKET s) { duplicated_server(s); }
static void passing_threads_client(SOCKET s)
{
    struct stream out = {9, 0}, in = {9, 0};
    struct turn turn = {s, &out, &in};
    for (int i = 0; i < 60; i++)
        join(start_thread(one_turn, &turn));
    say("60 threads, a turn each");
    MUST(shutdown(s, SD_SEND));
}

const struct test_case threads_cases[] = {
    CASE(many_writers),
    CASE(four_threads),
    CASE(two_readers),
    CASE(close_under_recv),
    SOLO_CASE(close_under_accept),
    CASE(close_under_select),
    CASE(close_under_poll),
    {"shut_under_recv", shut_under_recv_close_server, shut_under_recv_client, PAIR},
    CASE(duplicated),
    CASE(duplicate_first_closed),
    CASE(duplicated_ports),
    RAW_CASE(duplicated_listener),
    CASE(passing_threads),
    END_OF_CASES,
};
