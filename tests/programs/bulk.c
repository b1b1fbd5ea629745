/* Many bytes, blocking calls: every byte arrives once and in order, whatever the sizes of the writes and reads. */
#include "common.h"

/* Echo: the server sends back whatever each read gave. */
static void echo_everything(int fd, size_t largest)
{
    uint8_t *buffer = malloc(largest);
    size_t total = 0;
    for (ssize_t n; (n = MUST(read(fd, buffer, largest))) > 0; total += n)
        write_all(fd, buffer, n);
    free(buffer);
    say("echoed %zu bytes to the end of the stream", total);
}

static void ask_for_echo(int fd, size_t total, size_t largest)
{
    struct rng sizes = {7};
    struct stream out = {7, 0}, in = {7, 0};
    uint8_t *buffer = malloc(largest);
    size_t messages = 0;
    for (size_t left = total; left; messages++) {
        size_t n = between(&sizes, 1, largest < left ? largest : left);
        stream_fill(&out, buffer, n);
        write_all(fd, buffer, n);
        CHECK(read_full(fd, buffer, n) == n);
        stream_check(&in, buffer, n);
        left -= n;
    }
    free(buffer);
    say("%zu messages, %zu bytes came back intact", messages, total);
    MUST(close(fd));
}

static void echo_server(int fd) { echo_everything(fd, 20000); }
static void echo_client(int fd) { ask_for_echo(fd, 4 * MIB, 20000); }
static void echo_small_server(int fd) { echo_everything(fd, 100); }
static void echo_small_client(int fd) { ask_for_echo(fd, 100 * KIB, 64); }

/* Messages of a mebibyte each way in turn: larger than any ring, so each write waits for the reader. */
static void large_turns_server(int fd)
{
    struct stream out = {1, 0}, in = {2, 0};
    for (int i = 0; i < 8; i++) {
        stream_receive(&in, fd, MIB, 200 * KIB);
        stream_send(&out, fd, MIB, 2 * MIB);
    }
    say("8 turns");
}
static void large_turns_client(int fd)
{
    struct stream out = {2, 0}, in = {1, 0};
    for (int i = 0; i < 8; i++) {
        stream_send(&out, fd, MIB, 2 * MIB);
        stream_receive(&in, fd, MIB, 200 * KIB);
    }
    say("8 turns");
}

static void upload_server(int fd)
{
    struct stream in = {3, 0};
    stream_receive(&in, fd, 32 * MIB, 150 * KIB);
    say("got it all");
    send_text(fd, "!");
}
static void upload_client(int fd)
{
    struct stream out = {3, 0};
    char answer;
    stream_send(&out, fd, 32 * MIB, 100 * KIB);
    CALL("read", read(fd, &answer, 1));
    say("answer %c", answer);
}

/* One writer of small pieces, a reader of large ones: what is not waited for piles up and is read in one go. */
static void small_writes_server(int fd)
{
    struct stream in = {4, 0};
    stream_receive(&in, fd, 512 * KIB, 64 * KIB);
    say("end: %zd", read(fd, &in, 1));
}
static void small_writes_client(int fd)
{
    struct stream out = {4, 0};
    stream_send(&out, fd, 512 * KIB, 50);
    MUST(close(fd));
}

/* Both write first and read afterwards, as protocols do whose messages fit the kernel's buffers. */
static void cross(int fd, size_t bytes, int rounds)
{
    struct stream out = {5, 0}, in = {5, 0};
    int on = 1;
    MUST(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)); /* else Nagle and the delayed ACK wait for each other */
    for (int i = 0; i < rounds; i++) {
        stream_send(&out, fd, bytes, bytes);
        stream_receive(&in, fd, bytes, bytes);
    }
    say("%d rounds of %zu bytes", rounds, bytes);
    meet();
}
static void cross_16k_server(int fd) { cross(fd, 16 * KIB, 100); }
static void cross_16k_client(int fd) { cross(fd, 16 * KIB, 100); }
static void cross_128k_server(int fd) { cross(fd, 128 * KIB, 10); }
static void cross_128k_client(int fd) { cross(fd, 128 * KIB, 10); }
static void cross_512k_server(int fd) { cross(fd, 512 * KIB, 4); }
static void cross_512k_client(int fd) { cross(fd, 512 * KIB, 4); }

/* Full duplex from one thread: poll says which way can go on. */
static void duplex(int fd, uint64_t out_seed, uint64_t in_seed)
{
    struct stream out = {out_seed, 0}, in = {in_seed, 0};
    const size_t total = 12 * MIB;
    uint8_t *buffer = malloc(64 * KIB);
    set_nonblocking(fd, true);
    while (out.offset < total || in.offset < total) {
        struct pollfd entry = {.fd = fd, .events = (out.offset < total ? POLLOUT : 0) | (in.offset < total ? POLLIN : 0)};
        MUST(poll(&entry, 1, -1));
        if (entry.revents & POLLIN) {
            ssize_t n = read(fd, buffer, 64 * KIB);
            CHECK(n != 0 && (n > 0 || errno == EAGAIN));
            if (n > 0)
                stream_check(&in, buffer, n);
        }
        if (entry.revents & POLLOUT) {
            struct stream ahead = out;
            size_t want = total - out.offset < 64 * KIB ? total - out.offset : 64 * KIB;
            stream_fill(&ahead, buffer, want);
            ssize_t n = write(fd, buffer, want);
            CHECK(n > 0 || errno == EAGAIN);
            if (n > 0)
                out.offset += n;
        }
    }
    free(buffer);
    say("%zu bytes each way", total);
    meet();
}
static void duplex_server(int fd) { duplex(fd, 10, 11); }
static void duplex_client(int fd) { duplex(fd, 11, 10); }

/* A pause in which the receiver falls asleep before every message: the doorbell's path. */
static void sleepy_server(int fd)
{
    char text[64];
    tell(thread_id());
    for (int i = 0; i < 20; i++) {
        ssize_t n = MUST(read(fd, text, sizeof text));
        say("%.*s", (int)n, text);
        tell(i);
    }
}
static void sleepy_client(int fd)
{
    pid_t reader = hear();
    for (int i = 0; i < 20; i++) {
        char text[32];
        await_asleep(reader);
        snprintf(text, sizeof text, "message %d", i);
        send_text(fd, text);
        CHECK(hear() == (uint64_t)i);
    }
}

const struct test_case cases[] = {
    CASE(echo),      CASE(echo_small), CASE(large_turns), CASE(upload), CASE(small_writes),
    CASE(cross_16k), CASE(cross_128k), CASE(cross_512k),  CASE(duplex), CASE(sleepy), END_OF_CASES,
};
