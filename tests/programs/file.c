/* Files and connections: sendfile, splice, copying between descriptors. */
#include "common.h"

#include <sys/sendfile.h>

static int file_of(uint64_t seed, size_t length)
{
    struct stream content = {seed, 0};
    uint8_t *buffer = malloc(length);
    int file = MUST(memfd_create("file", 0));
    stream_fill(&content, buffer, length);
    write_all(file, buffer, length);
    MUST(lseek(file, 0, SEEK_SET));
    free(buffer);
    return file;
}

static void sendfile_loop(int fd, int file, off_t *offset, size_t length)
{
    while (length) {
        ssize_t n = sendfile(fd, file, offset, length);
        if (n < 0 && errno == EAGAIN) {
            await_events(fd, POLLOUT);
            continue;
        }
        CHECK(n > 0);
        length -= n;
    }
}

/* With the file's own position, with an offset, beyond the end, of nothing. */
static void sendfile_small_server(int fd)
{
    struct stream in = {151, 0};
    static uint8_t buffer[10000];
    stream_receive(&in, fd, 5000, 1000);
    in.offset = 2000;
    stream_receive(&in, fd, 1000, 1000);
    in.offset = 9000;
    stream_receive(&in, fd, 1000, 1000);
    CHECK(read_full(fd, buffer, 5) == 5);
    say("%.5s", buffer);
    in.offset = 5000;
    stream_receive(&in, fd, 5000, 1000);
    say("end %zd", read(fd, buffer, 1));
}
static void sendfile_small_client(int fd)
{
    int file = file_of(151, 10000), pipes[2];
    off_t offset = 2000;
    CALL("sendfile by position", sendfile(fd, file, NULL, 5000));
    say("position %ld", (long)lseek(file, 0, SEEK_CUR));
    CALL("sendfile by offset", sendfile(fd, file, &offset, 1000));
    say("offset %ld, position %ld", (long)offset, (long)lseek(file, 0, SEEK_CUR));
    offset = 9000;
    CALL("sendfile across the end", sendfile(fd, file, &offset, 50000));
    CALL("sendfile at the end", sendfile(fd, file, &offset, 50000));
    CALL("sendfile of nothing", sendfile(fd, file, NULL, 0));
    CALL("sendfile to nowhere", sendfile(40, file, NULL, 10));
    CALL("sendfile from nowhere", sendfile(fd, 40, NULL, 10));
    offset = -5;
    CALL("sendfile, bad offset", sendfile(fd, file, &offset, 10));
    MUST(pipe(pipes));
    CALL("sendfile from a pipe by offset", sendfile(fd, pipes[0], &(off_t){0}, 10));
    send_text(fd, "then.");
    CALL("sendfile the rest", sendfile(fd, file, NULL, 50000));
    MUST(shutdown(fd, SHUT_WR));
    CALL("send after", send(fd, "x", 1, MSG_NOSIGNAL));
    watch_sigpipe();
    CALL("sendfile after the end", sendfile(fd, file, &(off_t){0}, 10));
    say("sigpipes %d", sigpipes());
}

static void sendfile_large_server(int fd)
{
    struct stream in = {152, 0};
    stream_receive(&in, fd, 50 * MIB, 256 * KIB);
    in.offset = 0;
    stream_receive(&in, fd, 20 * MIB, 256 * KIB);
    say("70 MiB");
}
static void sendfile_large_client(int fd)
{
    int file = file_of(152, 50 * MIB);
    off_t offset = 0;
    sendfile_loop(fd, file, NULL, 50 * MIB);
    say("position %ld", (long)lseek(file, 0, SEEK_CUR));
    set_nonblocking(fd, true);
    sendfile_loop(fd, file, &offset, 20 * MIB);
    say("offset %ld", (long)offset);
}

/* A header by write, the body by sendfile, over and over: the two never change places. */
static void header_and_body_server(int fd)
{
    for (int i = 0; i < 300; i++) {
        uint32_t header[2];
        CHECK(read_full(fd, header, sizeof header) == sizeof header);
        struct stream in = {153, header[0]};
        stream_receive(&in, fd, header[1], 9000);
    }
    say("300 bodies");
}
static void header_and_body_client(int fd)
{
    int file = file_of(153, 200000);
    struct rng rng = {153};
    for (int i = 0; i < 300; i++) {
        uint32_t header[2] = {between(&rng, 0, 100000), between(&rng, 1, 20000)};
        off_t offset = header[0];
        CHECK(send(fd, header, sizeof header, MSG_MORE) == sizeof header);
        sendfile_loop(fd, file, &offset, header[1]);
    }
    say("300 bodies");
}

/* Connection -> pipe -> connection by splice, as proxies do. */
static void splice_server(int fd)
{
    int pipes[2];
    size_t total = 0;
    MUST(pipe(pipes));
    for (ssize_t n; (n = MUST(splice(fd, NULL, pipes[1], NULL, 60000, SPLICE_F_MOVE))) > 0; total += n)
        for (ssize_t left = n; left;)
            left -= MUST(splice(pipes[0], NULL, fd, NULL, left, SPLICE_F_MOVE));
    say("spliced %zu bytes", total);
    set_nonblocking(fd, true);
    MUST(shutdown(fd, SHUT_WR));
}
static void splice_client(int fd)
{
    struct stream out = {154, 0}, in = {154, 0};
    for (int i = 0; i < 50; i++) {
        stream_send(&out, fd, 30000, 30000);
        stream_receive(&in, fd, 30000, 30000);
    }
    MUST(shutdown(fd, SHUT_WR));
    char text[8];
    CALL("read", read(fd, text, 8));
}

/* read and write before, between and after splices. */
static void splice_mixed_server(int fd)
{
    struct stream in = {155, 0};
    uint8_t buffer[5000];
    int pipes[2];
    MUST(pipe(pipes));
    set_nonblocking(fd, true);
    CALL("splice, empty", splice(fd, NULL, pipes[1], NULL, 100, 0));
    set_nonblocking(fd, false);
    tell(1);
    for (int i = 0; i < 20; i++) {
        CHECK(read_full(fd, buffer, 3000) == 3000);
        stream_check(&in, buffer, 3000);
        for (size_t left = 5000; left;) {
            ssize_t n = MUST(splice(fd, NULL, pipes[1], NULL, left, 0));
            CHECK(n > 0 && read_full(pipes[0], buffer, n) == (size_t)n);
            stream_check(&in, buffer, n);
            left -= n;
        }
    }
    say("%llu bytes in order", (unsigned long long)in.offset);
}
static void splice_mixed_client(int fd)
{
    struct stream out = {155, 0};
    CHECK(hear() == 1);
    stream_send(&out, fd, 160000, 7000);
}

/* The bytes before a reset first, then the reset, once. */
static void abort_connection(int fd)
{
    struct linger at_once = {1, 0};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once));
    MUST(close(fd));
}
static void splice_reset_server(int fd)
{
    int pipes[2];
    MUST(pipe(pipes));
    await_unread(fd, 1000);
    meet();
    CHECK(hear() == 1);
    for (int i = 0; i < 3; i++)
        CALL("splice", splice(fd, NULL, pipes[1], NULL, 60000, 0));
}
static void splice_reset_client(int fd)
{
    char bytes[1000] = "";
    write_all(fd, bytes, sizeof bytes);
    meet();
    abort_connection(fd);
    tell(1);
}
static void sendfile_reset_server(int fd)
{
    await_asleep(hear());
    abort_connection(fd);
}
static void sendfile_reset_client(int fd)
{
    int file = file_of(158, 50 * MIB);
    tell(thread_id());
    ssize_t n = sendfile(fd, file, NULL, 50 * MIB);
    say("a part: %d", n > 0 && n < 50 * MIB);
    for (int i = 0; i < 2; i++)
        CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
}

/* A connection on its way into shared memory, whose peer takes that back while a call waits: the call is done all the same, and
 * done once. The server reads what makes it claim an offer, then waits; the client has made no call since its offer. */
enum { LINES = 20, LINE = 14, BEFORE = LINES * LINE, PARTS = 2, PART = 2500 };
static int accept_on_the_way(int listener, struct stream *in)
{
    int fd = accept_from(listener);
    CHECK(hear() == 1);
    stream_receive(in, fd, BEFORE, LINE / 2);
    return fd;
}
static void take_back(int port)
{
    struct stream out = {156, 0};
    int fd = connect_to(AF_INET, port);
    for (int i = 0; i < LINES; i++)
        stream_send(&out, fd, LINE, LINE);
    tell(1);
    pid_t waits = hear();
    await_asleep(waits);
    CHECK(fdopen(fd, "r+"));
    for (int i = 0; i < PARTS; i++) {
        stream_send(&out, fd, PART, PART);
        await_asleep(waits);
    }
    MUST(shutdown(fd, SHUT_WR));
    meet();
}
static void splice_taken_back_server(int listener)
{
    struct stream in = {156, 0};
    int fd = accept_on_the_way(listener, &in), pipes[2];
    uint8_t buffer[4 * PART];
    MUST(pipe(pipes));
    tell(thread_id());
    for (ssize_t n; (n = MUST(splice(fd, NULL, pipes[1], NULL, sizeof buffer, 0))) > 0;) {
        CHECK(read_full(pipes[0], buffer, n) == (size_t)n);
        stream_check(&in, buffer, n);
    }
    say("%llu bytes", (unsigned long long)in.offset);
    meet();
}
static void splice_taken_back_client(int port) { take_back(port); }

static void skip_taken_back_server(int listener)
{
    struct stream in = {156, 0};
    int fd = accept_on_the_way(listener, &in);
    tell(thread_id());
    CALL("thrown away", recv(fd, NULL, PARTS * PART, MSG_TRUNC | MSG_WAITALL));
    meet();
}
static void skip_taken_back_client(int port) { take_back(port); }

const struct test_case cases[] = {
    CASE(sendfile_small), CASE(sendfile_large), CASE(header_and_body), CASE(splice), CASE(splice_mixed),
    CASE(splice_reset), CASE(sendfile_reset), RAW_CASE(splice_taken_back), RAW_CASE(skip_taken_back), END_OF_CASES,
};
