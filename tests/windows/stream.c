/* Bytes through blocking and non-blocking sockets: every one once and in order, and what each call says. */
#include "common.h"

static void echo_everything(SOCKET s, int largest)
{
    char *buffer = malloc((size_t)largest);
    long long total = 0;
    for (int n; (n = (int)MUST(recv(s, buffer, largest, 0))) > 0; total += n)
        send_all(s, buffer, n);
    free(buffer);
    say("echoed %lld bytes to the end of the stream", total);
}

static void ask_for_echo(SOCKET s, int total, int largest)
{
    struct rng sizes = {7};
    struct stream out = {7, 0}, in = {7, 0};
    char *buffer = malloc((size_t)largest);
    int messages = 0;
    for (int left = total, n; left; messages++, left -= n) {
        n = between(&sizes, 1, largest < left ? largest : left);
        stream_fill(&out, buffer, (size_t)n);
        send_all(s, buffer, n);
        CHECK(recv_full(s, buffer, n) == n);
        stream_check(&in, buffer, (size_t)n);
    }
    free(buffer);
    say("%d messages, %d bytes came back intact", messages, total);
    CALL("shutdown", shutdown(s, SD_SEND));
}

static void echo_server(SOCKET s) { echo_everything(s, 20000); }
static void echo_client(SOCKET s) { ask_for_echo(s, 2 * MIB, 20000); }
static void echo_small_server(SOCKET s) { echo_everything(s, 100); }
static void echo_small_client(SOCKET s) { ask_for_echo(s, 8 * KIB, 64); }

/* Messages of a mebibyte each way in turn: larger than any buffer, so each send waits for the reader. */
static void large_turns_server(SOCKET s)
{
    struct stream out = {1, 0}, in = {2, 0};
    for (int i = 0; i < 4; i++) {
        stream_receive(&in, s, MIB, 200 * KIB);
        stream_send(&out, s, MIB, 2 * MIB);
    }
    say("4 turns");
}
static void large_turns_client(SOCKET s)
{
    struct stream out = {2, 0}, in = {1, 0};
    for (int i = 0; i < 4; i++) {
        stream_send(&out, s, MIB, 2 * MIB);
        stream_receive(&in, s, MIB, 200 * KIB);
    }
    say("4 turns");
}

/* 64 MiB each way at once, in sizes from one byte up. */
enum { BULK = 64 * MIB };
struct half {
    SOCKET s;
    struct stream stream;
};
static void send_half(void *argument)
{
    struct half *half = argument;
    stream_send(&half->stream, half->s, BULK, 200 * KIB);
}
static void bulk(SOCKET s, uint64_t out_seed, uint64_t in_seed)
{
    struct half out = {s, {out_seed, 0}};
    struct stream in = {in_seed, 0};
    HANDLE sender = start_thread(send_half, &out);
    stream_receive(&in, s, BULK, 150 * KIB);
    join(sender);
    say("%llu bytes out, %llu bytes in", (unsigned long long)out.stream.offset, (unsigned long long)in.offset);
}
static void bulk_server(SOCKET s) { bulk(s, 10, 11); }
static void bulk_client(SOCKET s) { bulk(s, 11, 10); }

/* One writer of small pieces, a reader of large ones. */
static void small_writes_server(SOCKET s)
{
    struct stream in = {4, 0};
    stream_receive(&in, s, 64 * KIB, 64 * KIB);
    say("all there");
    CALL("recv at the end", recv(s, (char *)&in, 1, 0));
}
static void small_writes_client(SOCKET s)
{
    struct stream out = {4, 0};
    stream_send(&out, s, 64 * KIB, 50);
    CALL("closesocket", closesocket(s));
}

static void peek_server(SOCKET s)
{
    send_text(s, "hello");
    hear();
    send_text(s, " world");
    meet();
}
static void peek_client(SOCKET s)
{
    u_long unread;
    await_unread(s, 5);
    say_recv("peek 3", s, 3, MSG_PEEK);
    say_recv("peek 100", s, 100, MSG_PEEK);
    MUST(ioctlsocket(s, FIONREAD, &unread));
    say("unread %lu", unread);
    say_recv("recv 2", s, 2, 0);
    tell(0);
    await_unread(s, 9);
    say_recv("peek 100", s, 100, MSG_PEEK);
    say_recv("recv 100", s, 100, 0);
    MUST(ioctlsocket(s, FIONREAD, &unread));
    say("unread %lu", unread);
    set_nonblocking(s, true);
    say_recv("peek of nothing", s, 100, MSG_PEEK);
    meet();
}

/* A peek that blocks until something comes. */
static void peek_waits_server(SOCKET s)
{
    hear();
    let_it_block();
    send_text(s, "late");
}
static void peek_waits_client(SOCKET s)
{
    tell(0);
    say_recv("peek", s, 10, MSG_PEEK);
    say_recv("recv", s, 10, 0);
}

static void vectors_server(SOCKET s)
{
    char one[] = "one ", two[] = "", three[] = "three ", four[4000];
    memset(four, '4', sizeof four);
    WSABUF buffers[] = {{4, one}, {0, two}, {6, three}, {sizeof four, four}};
    DWORD sent = 77;
    CALL("WSASend of 4", WSASend(s, buffers, 4, &sent, 0, NULL, NULL));
    say("%lu bytes", sent);
    CALL("WSASend of none", WSASend(s, buffers, 0, &sent, 0, NULL, NULL));
    say("%lu bytes", sent);
    CALL("WSASend without a count", WSASend(s, buffers, 1, NULL, 0, NULL, NULL));
    struct stream out = {9, 0};
    char *large = malloc(MIB);
    for (int i = 0; i < 4; i++) {
        stream_fill(&out, large, MIB);
        WSABUF parts[] = {{MIB / 4, large}, {MIB / 4, large + MIB / 4}, {1, large + MIB / 2}, {MIB / 2 - 1, large + MIB / 2 + 1}};
        MUST(WSASend(s, parts, 4, &sent, 0, NULL, NULL));
        CHECK(sent == MIB);
    }
    free(large);
}
static void vectors_client(SOCKET s)
{
    char a[3], b[1], c[6], d[5000];
    WSABUF buffers[] = {{sizeof a, a}, {0, NULL}, {sizeof b, b}, {sizeof c, c}};
    DWORD got = 77, flags = 0;
    await_readable(s);
    CALL("WSARecv of 4", WSARecv(s, buffers, 4, &got, &flags, NULL, NULL));
    say("%lu bytes, flags %lx: %.3s|%.1s|%.6s", got, flags, a, b, c);
    flags = MSG_PEEK;
    WSABUF more = {5, d};
    CALL("WSARecv with MSG_PEEK", WSARecv(s, &more, 1, &got, &flags, NULL, NULL));
    say("%lu bytes, flags %lx", got, flags);
    CHECK(recv_full(s, d, 4000) == 4000);
    say("then %.2s", d);
    struct stream in = {9, 0};
    char *large = malloc(100000);
    for (size_t left = 4 * MIB; left; left -= got) {
        WSABUF parts[] = {{1, large}, {999, large + 1}, {99000, large + 1000}};
        flags = 0;
        MUST(WSARecv(s, parts, 3, &got, &flags, NULL, NULL));
        CHECK(got > 0 && got <= left && flags == 0);
        stream_check(&in, large, got);
    }
    free(large);
    say("4 MiB in pieces");
}

/* Nothing asked, nothing given. A blocking receive of zero bytes waits until there is something to receive. */
static void nothing_server(SOCKET s)
{
    CALL("send of 0", send(s, "", 0, 0));
    send_text(s, "x");
    meet();
}
static void nothing_client(SOCKET s)
{
    char text[4];
    await_unread(s, 1);
    CALL("recv of 0", recv(s, text, 0, 0));
    say_recv("recv", s, 4, 0);
    meet();
}

static void odd_flags_server(SOCKET s)
{
    CALL("send, MSG_DONTROUTE", send(s, "abc", 3, MSG_DONTROUTE));
    CALL("sendto with an address", sendto(s, "def", 3, 0, (struct sockaddr *)&(struct sockaddr_in){.sin_family = AF_INET}, 16));
    CALL("sendto without one", sendto(s, "ghi", 3, 0, NULL, 0));
    meet();
}
static void odd_flags_client(SOCKET s)
{
    struct sockaddr_storage from = {.ss_family = 0x5555};
    int length = sizeof from;
    char text[10] = "";
    await_unread(s, 9);
    CALL("recvfrom", recvfrom(s, text, 4, 0, (struct sockaddr *)&from, &length));
    say("%s, family %x", text, from.ss_family);
    CALL("recvfrom without an address", recvfrom(s, text, 2, 0, NULL, NULL));
    CALL("recvfrom without a length", recvfrom(s, text, 3, 0, (struct sockaddr *)&from, NULL));
    say("%s", text);
    meet();
}

/* Non-blocking: would block, then the same call as a blocking one. */
static void nonblocking_server(SOCKET s)
{
    hear();
    send_text(s, "one");
    hear();
    let_it_block();
    send_text(s, "two");
    meet();
}
static void nonblocking_client(SOCKET s)
{
    set_nonblocking(s, true);
    say_recv("recv", s, 10, 0);
    say_recv("recv of 0", s, 0, 0);
    tell(0);
    await_readable(s);
    say_recv("recv", s, 10, 0);
    say_recv("recv", s, 10, 0);
    set_nonblocking(s, false);
    tell(0);
    say_recv("recv, blocking again", s, 10, 0);
    meet();
}

/* Fills the way until it would block, twice; everything taken must arrive. */
static void fill_server(SOCKET s)
{
    struct stream in = {5, 0};
    char *buffer = malloc(64 * KIB);
    for (int round = 0; round < 2; round++) {
        uint64_t end = hear();
        while (in.offset < end) {
            int n = (int)MUST(recv(s, buffer, 64 * KIB, 0));
            CHECK(n > 0);
            stream_check(&in, buffer, (size_t)n);
        }
        CHECK(in.offset == end);
        say("all that was taken arrived");
        tell(0);
    }
    free(buffer);
}
static void fill_client(SOCKET s)
{
    struct stream out = {5, 0};
    static char buffer[10000];
    set_nonblocking(s, true);
    for (int round = 0; round < 2; round++) {
        for (;;) {
            struct stream ahead = out;
            stream_fill(&ahead, buffer, sizeof buffer);
            int n = send(s, buffer, sizeof buffer, 0);
            if (n < 0)
                break;
            CHECK(n > 0);
            out.offset += (uint64_t)n;
        }
        say("%s", error_name(WSAGetLastError()));
        tell(out.offset);
        say("%s", await_writable(s) ? "writable again" : "never writable again");
        hear();
    }
    CHECK(out.offset > 100000);
}

/* WSASend that would block half-way gives a part; both directions by one thread each, non-blocking with select. */
static void duplex_nonblocking(SOCKET s, uint64_t out_seed, uint64_t in_seed)
{
    enum { TOTAL = 8 * MIB, PIECE = 64 * KIB };
    struct stream out = {out_seed, 0}, in = {in_seed, 0};
    char *buffer = malloc(PIECE);
    set_nonblocking(s, true);
    while (out.offset < TOTAL || in.offset < TOTAL) {
        fd_set reads, writes;
        FD_ZERO(&reads);
        FD_ZERO(&writes);
        if (in.offset < TOTAL)
            FD_SET(s, &reads);
        if (out.offset < TOTAL)
            FD_SET(s, &writes);
        MUST(select(0, &reads, &writes, NULL, NULL));
        if (FD_ISSET(s, &reads)) {
            int n = (int)MUST(recv(s, buffer, PIECE, 0));
            CHECK(n > 0);
            stream_check(&in, buffer, (size_t)n);
        }
        if (FD_ISSET(s, &writes)) {
            struct stream ahead = out;
            size_t want = TOTAL - out.offset < PIECE ? TOTAL - out.offset : PIECE;
            stream_fill(&ahead, buffer, want);
            DWORD n = 0;
            WSABUF parts[] = {{(ULONG)want / 3, buffer}, {(ULONG)(want - want / 3), buffer + want / 3}};
            if (WSASend(s, parts, 2, &n, 0, NULL, NULL) == 0)
                out.offset += n;
            else
                CHECK(WSAGetLastError() == WSAEWOULDBLOCK);
        }
    }
    free(buffer);
    say("8 MiB each way");
    meet();
}
static void duplex_nonblocking_server(SOCKET s) { duplex_nonblocking(s, 20, 21); }
static void duplex_nonblocking_client(SOCKET s) { duplex_nonblocking(s, 21, 20); }

/* Calls with bad arguments: none may disturb the stream. */
static void bad_arguments_server(SOCKET s)
{
    send_text(s, "still here");
    meet();
}
static void bad_arguments_client(SOCKET s)
{
    DWORD got = 0, flags = 0;
    WSABUF buffer = {4, NULL};
    char text[16] = "";
    await_unread(s, 10);
    CALL("recv into nowhere", recv(s, NULL, 4, 0));
    CALL("WSARecv without flags", WSARecv(s, &buffer, 1, &got, NULL, NULL, NULL));
    buffer.buf = text;
    flags = 0x4000;
    CALL("send with a strange flag", send(s, text, 0, 0x4000));
    CALL("ioctlsocket, strange", ioctlsocket(s, 0x12345678, &(u_long){0}));
    CALL("WSARecv", WSARecv(s, &buffer, 1, &got, &(DWORD){0}, NULL, NULL));
    say("%lu bytes: %s", got, text);
    say_recv("recv", s, 16, 0);
    UNUSED(flags);
    meet();
}

/* Memory that is not there, or not the program's to write, and lengths that are none. */
static void bad_memory_server(SOCKET s)
{
    char data[4];
    send_text(s, "ten bytes.");
    CHECK(recv_full(s, data, 4) == 4);
    meet();
}
static void bad_memory_client(SOCKET s)
{
    char text[16] = "", *nowhere = (char *)8;
    char *fixed = VirtualAlloc(NULL, 4096, MEM_RESERVE | MEM_COMMIT, PAGE_READONLY);
    char *two = VirtualAlloc(NULL, 8192, MEM_RESERVE, PAGE_NOACCESS);
    CHECK(fixed && two && VirtualAlloc(two, 4096, MEM_COMMIT, PAGE_READWRITE));
    await_unread(s, 10);
    for (int i = 0; i < 2; i++) {
        CALL("recv into nowhere", recv(s, nowhere, 4, 0));
        CALL("recv into what can't be written", recv(s, fixed, 4, 0));
        CALL("recv beyond the end", recv(s, two + 4090, 100, 0));
        CALL("recv, length -1", recv(s, text, -1, 0));
        CALL("peek into nowhere", recv(s, nowhere, 4, MSG_PEEK));
        CALL("send from nowhere", send(s, nowhere, 4, 0));
    }
    CALL("recv to the end", recv(s, two + 4092, 4, 0));
    say("%.4s", two + 4092);
    CALL("send of what can't be written", send(s, fixed, 4, 0));
    say_recv("recv", s, 16, 0);
    meet();
}

/* MSG_WAITALL fills the buffer, from however many sends, as Windows does; Wine gives what is there. Either way nothing is
 * lost, and at the end of the stream both give what there is. */
static void wait_all_server(SOCKET s)
{
    for (int i = 0; i < 5; i++) {
        hear();
        send_text(s, "12345");
        tell(0);
    }
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void send_on(void *unused)
{
    UNUSED(unused);
    for (int i = 0; i < 5; i++) {
        tell(0);
        hear();
    }
}
static void wait_all_client(SOCKET s)
{
    HANDLE other = start_thread(send_on, NULL);
    char text[32] = "";
    int first = (int)MUST(recv(s, text, 20, MSG_WAITALL));
    join(other);
    int second = (int)MUST(recv(s, text + first, 20, MSG_WAITALL));
    say("the first: %s", first == 5 || first == 20 ? "one send or the whole buffer" : "something else");
    if (first + second < 25)
        CHECK(recv_full(s, text + first + second, 25 - first - second) == 25 - first - second);
    say("%s", text);
    say_recv("recv at the end, MSG_WAITALL", s, 20, MSG_WAITALL);
    meet();
}

const struct test_case stream_cases[] = {
    CASE(echo),     CASE(echo_small),   CASE(large_turns), CASE(bulk),        CASE(small_writes), CASE(peek),
    CASE(peek_waits), CASE(vectors),    CASE(nothing),     CASE(odd_flags),   CASE(nonblocking),  CASE(fill),
    CASE(duplex_nonblocking), CASE(bad_arguments), CASE(bad_memory), CASE(wait_all), END_OF_CASES,
};
