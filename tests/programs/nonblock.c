/* Non-blocking sockets: every way to make one, EAGAIN at empty and at full, connections made without waiting. */
#include "common.h"

#include <sys/ioctl.h>

static void read_empty_then_full(int fd)
{
    char text[16];
    CALL("read, empty", read(fd, text, sizeof text));
    CALL("recv, empty", recv(fd, text, sizeof text, 0));
    struct iovec piece = {text, sizeof text};
    CALL("readv, empty", readv(fd, &piece, 1));
    CALL("recv all, empty", recv(fd, text, sizeof text, MSG_WAITALL));
    tell(1);
    await_unread(fd, 5);
    CALL("recv all of 16, 5 there", recv(fd, text, sizeof text, MSG_WAITALL));
    CALL("read, empty", read(fd, text, sizeof text));
    tell(2);
    await_events(fd, POLLIN);
    CALL("read at the end", read(fd, text, sizeof text));
}
static void answer_empty(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "hello");
    CHECK(hear() == 2);
    MUST(shutdown(fd, SHUT_WR));
}

static void by_fcntl_server(int fd)
{
    set_nonblocking(fd, true);
    say("flags: nonblocking %d, access %d", !!(fcntl(fd, F_GETFL) & O_NONBLOCK), fcntl(fd, F_GETFL) & O_ACCMODE);
    read_empty_then_full(fd);
}
static void by_fcntl_client(int fd) { answer_empty(fd); }

static void by_ioctl_server(int fd)
{
    int on = 1;
    CALL("FIONBIO", ioctl(fd, FIONBIO, &on));
    say("flags: nonblocking %d", !!(fcntl(fd, F_GETFL) & O_NONBLOCK));
    read_empty_then_full(fd);
}
static void by_ioctl_client(int fd) { answer_empty(fd); }

/* On and off again; the flag belongs to the socket, so that a duplicate and a child share it. */
static void on_and_off_server(int fd)
{
    char text[16];
    int copy = MUST(dup(fd)), off = 0;
    set_nonblocking(copy, true);
    CALL("read the original after setting the copy", read(fd, text, sizeof text));
    CALL("FIONBIO off", ioctl(fd, FIONBIO, &off));
    tell(thread_id());
    CALL("blocking read of the copy", read(copy, text, sizeof text));
    pid_t child = MUST(fork());
    if (child == 0) {
        set_nonblocking(fd, true);
        _exit(0);
    }
    wait_child(child);
    CALL("read after a child set the flag", read(fd, text, sizeof text));
    say("flags: nonblocking %d", !!(fcntl(fd, F_GETFL) & O_NONBLOCK));
}
static void on_and_off_client(int fd)
{
    await_asleep(hear());
    send_text(fd, "hello");
}

/* Fill until EAGAIN while nobody reads; then the reader starts and the rest goes by poll or by retrying. */
static void fill(int fd, size_t chunk, bool polling)
{
    struct stream out = {41, 0};
    uint8_t *buffer = malloc(chunk);
    size_t total = 0;
    bool full = false;
    set_nonblocking(fd, true);
    while (total == 0 || out.offset < total) {
        struct stream ahead = out;
        size_t want = total && total - out.offset < chunk ? total - out.offset : chunk;
        stream_fill(&ahead, buffer, want);
        ssize_t n = write(fd, buffer, want);
        if (n < 0) {
            CHECK(errno == EAGAIN);
            struct pollfd entry = {.fd = fd, .events = POLLOUT};
            if (!full && poll(&entry, 1, 20) == 0) { /* full for good, and not only until a packet is acknowledged */
                /* As much again, through the drained connection. */
                total = out.offset * 2 + 12345;
                tell(total);
                full = true;
            }
            if (polling)
                await_events(fd, POLLOUT);
            else
                sched_yield();
            continue;
        }
        out.offset += n;
        CHECK(full || out.offset < 256 * MIB); /* never full */
    }
    free(buffer);
    say("full once: %d", full);
    CHECK(hear() == total);
}
static void drain(int fd)
{
    struct stream in = {41, 0};
    size_t total = hear();
    stream_receive(&in, fd, total, 64 * KIB);
    char more;
    CALL("no more", recv(fd, &more, 1, MSG_DONTWAIT));
    say("drained");
    tell(total);
}
static void fill_small_server(int fd) { drain(fd); }
static void fill_small_client(int fd) { fill(fd, 1000, true); }
static void fill_large_server(int fd) { drain(fd); }
static void fill_large_client(int fd) { fill(fd, MIB, true); }
static void fill_retry_server(int fd) { drain(fd); }
static void fill_retry_client(int fd) { fill(fd, 20000, false); }

/* One write of more than anything can hold takes a part. */
static void partial_server(int fd)
{
    struct stream in = {42, 0};
    uint64_t total = hear();
    stream_receive(&in, fd, total, 64 * KIB);
    say("received what was taken");
    CHECK(stream_receive_to_end(&in, fd) == 0);
}
static void partial_client(int fd)
{
    enum { HUGE = 48 * MIB };
    struct stream out = {42, 0};
    uint8_t *buffer = malloc(HUGE);
    stream_fill(&out, buffer, HUGE);
    set_nonblocking(fd, true);
    ssize_t n = MUST(write(fd, buffer, HUGE));
    say("took a part: %d, megabytes: %d", n > 0 && n < HUGE, n > 2 * MIB);
    /* With time there can be room again: as bytes are acknowledged, or go another way. There is an end to it. */
    for (ssize_t more = 1; more > 0;) {
        while ((more = write(fd, buffer + n, HUGE - n)) > 0)
            n += more;
        CHECK(errno == EAGAIN);
        struct iovec pieces[3] = {{buffer + n, 1}, {buffer + n + 1, 1}, {buffer + n + 2, 1}};
        if ((more = writev(fd, pieces, 3)) > 0)
            n += more;
    }
    say("all is full: %s", strerrorname_np(errno));
    tell(n);
    MUST(close(fd));
}

/* accept4 and socket with SOCK_NONBLOCK; connecting without waiting. */
static void at_birth_server(int listener)
{
    set_nonblocking(listener, true);
    CALL("accept, nobody there", accept(listener, NULL, NULL));
    CALL("accept4, bad flags", accept4(listener, NULL, NULL, 12345));
    tell(1);
    await_events(listener, POLLIN);
    int fd = MUST(accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
    say("flags: nonblocking %d, cloexec %d", !!(fcntl(fd, F_GETFL) & O_NONBLOCK), fcntl(fd, F_GETFD));
    char text[16];
    CALL("read, empty", read(fd, text, sizeof text));
    tell(2);
    set_nonblocking(fd, false);
    warm_up(fd, false);
    set_nonblocking(fd, true);
    CALL("read, empty", read(fd, text, sizeof text));
    meet();
    tell(2);
    CHECK(hear() == 3);
    read_empty_then_full(fd);
}
static void at_birth_client(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(hear() == 1);
    int fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    char text[16];
    CALL("connect", connect(fd, (struct sockaddr *)&to, sizeof to));
    say("events %s", events_name(await_events(fd, POLLOUT)));
    int error = -1;
    socklen_t length = sizeof error;
    CALL("SO_ERROR", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
    say("error %d", error);
    CALL("connect again", connect(fd, (struct sockaddr *)&to, sizeof to));
    CALL("and again", connect(fd, (struct sockaddr *)&to, sizeof to));
    CHECK(hear() == 2);
    CALL("read, empty", read(fd, text, sizeof text));
    set_nonblocking(fd, false);
    warm_up(fd, true);
    set_nonblocking(fd, true);
    meet();
    CHECK(hear() == 2);
    CALL("read, empty", read(fd, text, sizeof text));
    tell(3);
    answer_empty(fd);
}

/* Nobody listens: blocking, non-blocking with poll, non-blocking with epoll. */
static void refused_server(int listener)
{
    MUST(close(listener));
    tell(1);
}
static void refused_client(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(hear() == 1);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    CALL("connect", connect(fd, (struct sockaddr *)&to, sizeof to));
    char text[8];
    CALL("read", read(fd, text, sizeof text));
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    MUST(close(fd));
    for (int by_epoll = 0; by_epoll < 2; by_epoll++) {
        fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        struct epoll_event event = {.events = EPOLLOUT};
        int set = MUST(epoll_create1(0));
        if (by_epoll)
            MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
        CALL("connect", connect(fd, (struct sockaddr *)&to, sizeof to));
        if (by_epoll)
            MUST(epoll_wait(set, &event, 1, -1));
        else
            event.events = await_events(fd, POLLOUT);
        say("events %s", events_name(event.events));
        int error = -1;
        socklen_t length = sizeof error;
        CALL("SO_ERROR", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
        say("error %s", strerrorname_np(error));
        MUST(close(set));
        MUST(close(fd));
    }
}

/* Buffers that the program chose are obeyed: with small ones little is on its way to a peer that does not read. */
static void choose_buffers(int fd)
{
    int bytes = 4 * KIB;
    MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes));
    MUST(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes));
    meet();
}
static void small_buffers_server(int fd)
{
    choose_buffers(fd);
    stream_receive(&(struct stream){106, 0}, fd, (size_t)hear(), 64 * KIB);
}
static void small_buffers_client(int fd)
{
    static uint8_t buffer[1000];
    struct stream out = {106, 0};
    choose_buffers(fd);
    set_nonblocking(fd, true);
    for (;;) {
        struct stream ahead = out;
        stream_fill(&ahead, buffer, sizeof buffer);
        ssize_t n = write(fd, buffer, sizeof buffer);
        if (n < 0)
            break;
        out.offset += n;
    }
    say("%s", out.offset < 128 * KIB ? "little" : "much");
    tell(out.offset);
}

/* Set while another thread waits in a call: that call goes on as it began, the next one does not wait. */
enum { WHOLE = 24 * MIB, PIECES = 4, PIECE = 500 };
static struct {
    int fd;
    bool sends;
    ssize_t n;
    int error;
    _Atomic pid_t thread;
} under_way;
static void *call_under_way(void *bytes)
{
    under_way.thread = thread_id();
    under_way.n = under_way.sends ? send(under_way.fd, bytes, WHOLE, 0)
                                  : recv(under_way.fd, bytes, PIECES * PIECE, MSG_WAITALL);
    under_way.error = errno;
    return NULL;
}
static uint8_t *begin_call(int fd, bool sends, pthread_t *thread)
{
    uint8_t *bytes = calloc(1, WHOLE);
    under_way.fd = fd;
    under_way.sends = sends;
    *thread = start_thread(call_under_way, bytes);
    while (!under_way.thread)
        sched_yield();
    await_asleep(under_way.thread);
    return bytes;
}

static void set_under_reader_server(int fd)
{
    pthread_t thread;
    uint8_t *bytes = begin_call(fd, false, &thread);
    set_nonblocking(fd, true);
    for (int i = 0; i < PIECES; i++) {
        tell(i);
        if (i < PIECES - 1) {
            CHECK(hear() == (uint64_t)i);
            await_asleep(under_way.thread);
        }
    }
    pthread_join(thread, NULL);
    say_result("all of it", under_way.n, under_way.error);
    CALL("the next", recv(fd, bytes, 1, 0));
    tell(PIECES);
    free(bytes);
}
static void set_under_reader_client(int fd)
{
    char piece[PIECE] = "";
    for (int i = 0; i < PIECES; i++) {
        CHECK(hear() == (uint64_t)i);
        write_all(fd, piece, PIECE);
        if (i < PIECES - 1)
            tell(i);
    }
    CHECK(hear() == PIECES);
}

static void set_under_writer_server(int fd)
{
    pthread_t thread;
    uint8_t *bytes = begin_call(fd, true, &thread);
    int on = 1;
    MUST(ioctl(fd, FIONBIO, &on));
    tell(under_way.thread);
    pthread_join(thread, NULL);
    say_result("all of it", under_way.n, under_way.error);
    CALL("a receive", recv(fd, bytes, 1, 0));
    MUST(shutdown(fd, SHUT_WR));
    CHECK(hear() == 2);
    free(bytes);
}
static void set_under_writer_client(int fd)
{
    static char bytes[WHOLE / 8];
    pid_t writer = hear();
    /* It waits for room once more. */
    size_t total = read_full(fd, bytes, sizeof bytes);
    await_asleep(writer);
    for (ssize_t n; (n = MUST(read(fd, bytes, sizeof bytes))) > 0;)
        total += n;
    say("%zu bytes", total);
    tell(2);
}

const struct test_case cases[] = {
    CASE(by_fcntl),
    CASE(by_ioctl),
    CASE(on_and_off),
    CASE(fill_small),
    CASE(fill_large),
    CASE(fill_retry),
    CASE(partial),
    CASE(small_buffers),
    CASE(set_under_reader),
    CASE(set_under_writer),
    RAW_CASE(at_birth),
    RAW_CASE(refused),
    END_OF_CASES,
};
