/* Ends of a connection: half close, close, reset, writing to nobody, descriptors after their end. */
#include "common.h"

/* The client says what it wants, ends its half, and reads a long answer. */
static void half_close_server(int fd)
{
    struct stream in = {91, 0}, out = {92, 0};
    say("request of %zu bytes", stream_receive_to_end(&in, fd));
    stream_send(&out, fd, 8 * MIB, 100000);
    MUST(close(fd));
}
static void half_close_client(int fd)
{
    struct stream out = {91, 0}, in = {92, 0};
    char text[8];
    stream_send(&out, fd, 300000, 20000);
    CALL("shutdown", shutdown(fd, SHUT_WR));
    CALL("shutdown again", shutdown(fd, SHUT_WR));
    watch_sigpipe();
    CALL("write after shutdown", write(fd, "x", 1));
    CALL("send after shutdown", send(fd, "x", 1, MSG_NOSIGNAL));
    say("sigpipes %d", sigpipes());
    say("answer of %zu bytes", stream_receive_to_end(&in, fd));
    CALL("read at the end", read(fd, text, 8));
    CALL("read at the end", read(fd, text, 8));
}

/* SHUT_RD on Linux: reads give 0 while nothing is there, but what arrives can still be read. */
static void no_reading_server(int fd)
{
    char text[16];
    CALL("shutdown", shutdown(fd, SHUT_RD));
    CALL("read", read(fd, text, 16));
    tell(1);
    await_unread(fd, 5);
    CALL("read what came", read(fd, text, 16));
    CALL("read", read(fd, text, 16));
    CALL("write", write(fd, "hello", 5));
    say("%s", events_name(await_events(fd, POLLIN | POLLRDHUP | POLLOUT)));
}
static void no_reading_client(int fd)
{
    char text[16];
    CHECK(hear() == 1);
    CALL("write", write(fd, "hello", 5));
    CALL("read", read(fd, text, 16));
}

static void no_reading_at_all_server(int fd)
{
    char text[16];
    CALL("shutdown", shutdown(fd, SHUT_RDWR));
    CALL("read", read(fd, text, 16));
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    tell(1);
}
static void no_reading_at_all_client(int fd)
{
    char text[16];
    CHECK(hear() == 1);
    CALL("read", read(fd, text, 16));
    CALL("bad shutdown", shutdown(fd, 3));
    CALL("shutdown", shutdown(fd, SHUT_RDWR));
    await_events(fd, POLLHUP);
    int lonely = MUST(socket(AF_INET, SOCK_STREAM, 0));
    CALL("shutdown of an unconnected one", shutdown(lonely, SHUT_WR));
}

static void *blocked_reader(void *fd)
{
    char text[16];
    tell(thread_id());
    CALL("read in a thread", read((int)(intptr_t)fd, text, 16));
    return NULL;
}
/* shutdown(SHUT_RDWR) by one thread ends the read of another; the peer's read ends too. */
static void wake_by_shutdown_server(int fd)
{
    pthread_t thread = start_thread(blocked_reader, (void *)(intptr_t)fd);
    CHECK(hear() == 1);
    MUST(shutdown(fd, SHUT_RDWR));
    pthread_join(thread, NULL);
}
static void wake_by_shutdown_client(int fd)
{
    char text[16];
    await_asleep(hear());
    tell(1);
    CALL("read", read(fd, text, 16));
}

/* What was sent before the close arrives, then the end. */
static void close_at_once_server(int fd)
{
    struct stream in = {93, 0};
    say("%zu bytes, then the end", stream_receive_to_end(&in, fd));
}
static void close_at_once_client(int fd)
{
    struct stream out = {93, 0};
    stream_send(&out, fd, 200000, 200000);
    CALL("close", close(fd));
}
static void exit_at_once_server(int fd)
{
    struct stream in = {94, 0};
    say("%zu bytes, then the end", stream_receive_to_end(&in, fd));
    _exit(0);
}
static void exit_at_once_client(int fd)
{
    struct stream out = {94, 0};
    stream_send(&out, fd, 100000, 100000);
    _exit(3);
}

/* Closing with unread data resets: the peer first reads what was sent to it, then gets the error once. */
static void close_unread_server(int fd)
{
    await_unread(fd, 1000);
    write_all(fd, "farewell", 8);
    CHECK(hear() == 1);
    CALL("close", close(fd));
    tell(2);
}
static void close_unread_client(int fd)
{
    static char text[1000];
    write_all(fd, text, 1000);
    await_unread(fd, 8);
    tell(1);
    CHECK(hear() == 2);
    await_events(fd, POLLERR);
    CALL("read", read(fd, text, 1000));
    CALL("read", read(fd, text, 1000));
    CALL("read", read(fd, text, 1000));
    watch_sigpipe();
    CALL("write", write(fd, "x", 1));
    say("sigpipes %d", sigpipes());
}
static void exit_unread_server(int fd)
{
    await_unread(fd, 1000);
    _exit(4);
}
static void exit_unread_client(int fd)
{
    static char text[1000];
    write_all(fd, text, 1000);
    await_events(fd, POLLERR);
    CALL("read", read(fd, text, 1000));
    CALL("read", read(fd, text, 1000));
    _exit(0);
}

/* SO_LINGER 0: reset at close; SO_ERROR takes the error away. */
static void linger_zero_server(int fd)
{
    struct linger linger = {1, 0};
    CALL("linger", setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    write_all(fd, "hello", 5);
    CHECK(hear() == 1);
    CALL("close", close(fd));
}
static void linger_zero_client(int fd)
{
    char text[16];
    int error = 0;
    socklen_t length = sizeof error;
    await_unread(fd, 5);
    tell(1);
    await_events(fd, POLLERR);
    CALL("SO_ERROR", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
    say("error %s", strerrorname_np(error));
    CALL("SO_ERROR again", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
    say("error %d", error);
    CALL("read", read(fd, text, 16));
    CALL("read", read(fd, text, 16));
}
static void linger_time_server(int fd)
{
    struct stream in = {95, 0};
    say("%zu bytes, then the end", stream_receive_to_end(&in, fd));
}
static void linger_time_client(int fd)
{
    struct linger linger = {1, 5};
    struct stream out = {95, 0};
    CALL("linger", setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    stream_send(&out, fd, 3 * MIB, 100000);
    CALL("close", close(fd));
}

/* As much as goes, whatever buffers there are: until a send that may wait a while has sent nothing. */
static size_t fill(int fd)
{
    static char piece[64 * KIB];
    struct timeval patience = {0, 400000};
    MUST(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience));
    size_t total = 0;
    ssize_t sent;
    while ((sent = send(fd, piece, sizeof piece, 0)) > 0)
        total += (size_t)sent;
    CHECK(sent < 0 && errno == EAGAIN);
    return total;
}
static double seconds(void)
{
    struct timespec now;
    MUST(clock_gettime(CLOCK_MONOTONIC, &now));
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* SO_LINGER with all buffers full, and a peer that does not read until close is over: it waits so long and no longer; or that reads
 * as soon as it hears of it. */
static void linger_in_vain_server(int fd)
{
    static char piece[64 * KIB];
    uint64_t total = hear(), length = 0;
    CHECK(hear() == 1);
    ssize_t got;
    while ((got = read(fd, piece, sizeof piece)) > 0)
        length += (size_t)got;
    say("%s", got == 0 && length == total ? "all, then the end" : got < 0 ? strerrorname_np(errno) : "not all, and the end");
}
static void linger_in_vain_client(int fd)
{
    struct linger linger = {1, 1};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    tell(fill(fd));
    double start = seconds();
    CALL("close", close(fd));
    double took = seconds() - start;
    say("it waited: %s", took < 0.9 ? "no" : took < 5 ? "as long as it may" : "longer");
    tell(1);
}
static void linger_in_time_server(int fd)
{
    linger_in_vain_server(fd);
}
static void linger_in_time_client(int fd)
{
    struct linger linger = {1, 15};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    tell(fill(fd));
    tell(1);
    double start = seconds();
    CALL("close", close(fd));
    say("it waited: %s", seconds() - start < 10 ? "until all was taken" : "too long");
}

/* Writing to somebody who closed: the first write is taken, then the connection is broken. */
static void to_nobody_server(int fd)
{
    CALL("close", close(fd));
    tell(1);
}
static void to_nobody_client(int fd)
{
    char text[8];
    CHECK(hear() == 1);
    say("%s", events_name(await_events(fd, POLLRDHUP)));
    watch_sigpipe();
    CALL("first write", write(fd, "hello", 5));
    await_events(fd, POLLERR | POLLHUP);
    CALL("write", write(fd, "hello", 5));
    say("sigpipes %d", sigpipes());
    CALL("send, no signal", send(fd, "hello", 5, MSG_NOSIGNAL));
    struct iovec piece = {"x", 1};
    CALL("writev", writev(fd, &piece, 1));
    say("sigpipes %d", sigpipes());
    CALL("read", read(fd, text, 8));
}
static void killed_by_pipe_server(int fd)
{
    pid_t child = MUST(fork());
    if (child == 0) {
        CHECK(hear() == 1);
        await_events(fd, POLLRDHUP);
        MUST(write(fd, "x", 1));
        await_events(fd, POLLERR | POLLHUP);
        MUST(write(fd, "x", 1));
        _exit(0);
    }
    wait_child(child);
}
static void killed_by_pipe_client(int fd)
{
    MUST(close(fd));
    tell(1);
}

/* The peer shuts both ways and keeps the socket: its kernel answers what comes with a reset. */
static void deaf_server(int fd)
{
    enum { MOST = 1000 };
    int sent = 0;
    CHECK(hear() == 1);
    await_events(fd, POLLRDHUP);
    while (sent < MOST && send(fd, "hello", 5, MSG_NOSIGNAL) == 5)
        sent++;
    say("the end is told: %d, soon: %d", errno == EPIPE, sent < 3);
    tell(2);
}
static void deaf_client(int fd)
{
    MUST(shutdown(fd, SHUT_RDWR));
    tell(1);
    CHECK(hear() == 2);
}

/* The peer closes while this side is blocked in a write that cannot finish. */
static void blocked_writer_server(int fd)
{
    await_asleep(hear());
    CALL("close with unread data", close(fd));
}
static void blocked_writer_client(int fd)
{
    enum { HUGE = 64 * MIB };
    char *buffer = calloc(1, HUGE), text[8];
    tell(thread_id());
    ssize_t n = write(fd, buffer, HUGE);
    say("the blocked write took a part: %d", n > 0 && n < HUGE);
    watch_sigpipe();
    CALL("write", write(fd, buffer, 10));
    say("sigpipes %d", sigpipes());
    CALL("write", write(fd, buffer, 10));
    say("sigpipes %d", sigpipes());
    CALL("read", read(fd, text, 8));
}

/* A descriptor that is closed is bad at once, and its number may be anything afterwards. */
static void bad_descriptor_server(int fd)
{
    char text[16];
    int file = MUST(memfd_create("file", 0));
    write_all(file, "from the file", 13);
    CALL("close", close(fd));
    CALL("close again", close(fd));
    CALL("read", read(fd, text, 16));
    CALL("write", write(fd, "x", 1));
    CALL("recv", recv(fd, text, 16, 0));
    CALL("shutdown", shutdown(fd, SHUT_RDWR));
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    CALL("poll", poll(&entry, 1, 0));
    say("%s", events_name(entry.revents));
    say("the number is used again: %d", dup(file) == fd);
    CALL("pread", pread(fd, text, 16, 0));
    MUST(lseek(fd, 0, SEEK_SET));
    CALL("read", read(fd, text, 16));
    CALL("recv", recv(fd, text, 16, 0));
    int pipes[2];
    MUST(close(fd));
    MUST(pipe(pipes));
    say("the number is a pipe now: %d", pipes[0] == fd);
    CALL("write", write(pipes[1], "pipe", 4));
    CALL("read", read(fd, text, 16));
}
static void bad_descriptor_client(int fd)
{
    char text[16];
    CALL("read", read(fd, text, 16));
}

/* Time limits of the socket. */
static void limits_server(int fd)
{
    static char text[1000];
    struct timeval limit = {0, 50000};
    CALL("limit reads", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    uint64_t start = now_ms();
    CALL("read", read(fd, text, 16));
    uint64_t took_ms = now_ms() - start;
    say("waited as long as asked: %d", took_ms >= 49 && took_ms < 5000);
    struct msghdr message = {.msg_iov = &(struct iovec){text, 16}, .msg_iovlen = 1};
    CALL("recvmsg", recvmsg(fd, &message, 0));
    tell(1);
    await_unread(fd, 10);
    CALL("read all of 100 while 10 are there", recv(fd, text, 100, MSG_WAITALL));
    limit = (struct timeval){0, 0};
    CALL("no limit", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    tell(thread_id());
    CALL("read", read(fd, text, 16));
    limit = (struct timeval){0, 50000};
    CALL("limit writes", setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
    enum { HUGE = 64 * MIB };
    char *buffer = calloc(1, HUGE);
    start = now_ms();
    ssize_t n = write(fd, buffer, HUGE);
    took_ms = now_ms() - start;
    say("took a part: %d, waited: %d", n > 0 && n < HUGE, took_ms >= 49 && took_ms < 5000);
    uint64_t total = n;
    while ((n = write(fd, buffer, HUGE)) > 0) /* a little may still have fitted */
        total += n;
    say("then %s", strerrorname_np(errno));
    tell(total);
}
static void limits_client(int fd)
{
    static char text[64 * KIB];
    CHECK(hear() == 1);
    send_text(fd, "ten bytes.");
    await_asleep(hear());
    send_text(fd, "hello");
    for (uint64_t left = hear(); left;)
        left -= MUST(read(fd, text, left < sizeof text ? left : sizeof text));
    CALL("nothing more", recv(fd, text, 1, MSG_DONTWAIT));
}

/* Both halves are shut, one from each side: there is nothing left to shut. */
static void shut_by_both_server(int fd)
{
    char byte;
    CHECK(hear() == 1);
    CALL("read", read(fd, &byte, 1));
    CALL("shutdown", shutdown(fd, SHUT_WR));
    await_events(fd, POLLHUP);
    CALL("shutdown again", shutdown(fd, SHUT_WR));
    CALL("shutdown of the other half", shutdown(fd, SHUT_RD));
    CALL("read", read(fd, &byte, 1));
    meet();
}
static void shut_by_both_client(int fd)
{
    char byte;
    CALL("shutdown", shutdown(fd, SHUT_WR));
    tell(1);
    await_events(fd, POLLHUP);
    CALL("shutdown again", shutdown(fd, SHUT_WR));
    CALL("shutdown of both", shutdown(fd, SHUT_RDWR));
    CALL("read", read(fd, &byte, 1));
    meet();
}

/* TCP_USER_TIMEOUT: a peer that does not read for that long ends the connection, for a sender that waits and for one that polls. */
enum { MOST = 24 * MIB };
static void limit_waiting(int fd)
{
    unsigned limit_ms = 300;
    CALL("TCP_USER_TIMEOUT", setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit_ms, sizeof limit_ms));
}
static void after_timeout(int fd)
{
    char byte;
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    CALL("read", read(fd, &byte, 1));
    tell(1);
}
static void user_timeout_server(int fd)
{
    static char data[MIB];
    ssize_t n;
    CHECK(hear() == 1);
    while ((n = recv(fd, data, sizeof data, 0)) > 0)
        ;
    say_result("after what had come", n, errno);
    CALL("once more", recv(fd, data, sizeof data, 0));
}
static void user_timeout_client(int fd)
{
    static char data[MOST];
    limit_waiting(fd);
    ssize_t sent = send(fd, data, sizeof data, MSG_NOSIGNAL);
    say("%s", sent > 0 && sent < MOST ? "a part was sent" : "all or nothing was sent");
    say("%s", events_name(await_events(fd, POLLERR)));
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    after_timeout(fd);
}
static void user_timeout_polling_server(int fd) { user_timeout_server(fd); }
static void user_timeout_polling_client(int fd)
{
    static char data[64 * KIB];
    struct pollfd room = {fd, POLLOUT, 0};
    limit_waiting(fd);
    set_nonblocking(fd, true);
    while (send(fd, data, sizeof data, MSG_NOSIGNAL) > 0 || errno == EAGAIN)
        MUST(poll(&room, 1, -1));
    say("%s, %s", strerrorname_np(errno), events_name(room.revents));
    after_timeout(fd);
}

/* A peer that is killed in its sleep, and a sender who does not look: the first send is taken, and answered by a reset. Handlers of
 * both kinds make that a sleep in the kernel's own call, which the kernel's stream ends. */
static void ignore_signal(int number) { (void)number; }
static void killed_asleep_server(int fd)
{
    char byte;
    pid_t child = MUST(fork());
    if (child == 0) {
        struct sigaction ends = {.sa_handler = ignore_signal}, goes_on = {.sa_handler = ignore_signal, .sa_flags = SA_RESTART};
        MUST(sigaction(SIGUSR1, &ends, NULL));
        MUST(sigaction(SIGUSR2, &goes_on, NULL));
        MUST(read(fd, &byte, 1));
        _exit(1);
    }
    MUST(close(fd));
    tell(child);
    CHECK(hear() == 1);
    wait_child(child);
    meet();
}
static void kill_asleep(void)
{
    pid_t peer = hear();
    struct pollfd end = {MUST(syscall(SYS_pidfd_open, peer, 0)), POLLIN, 0};
    await_asleep(peer);
    MUST(kill(peer, SIGKILL));
    MUST(poll(&end, 1, -1));
}
static void killed_asleep_client(int fd)
{
    kill_asleep();
    CALL("first", send(fd, "x", 1, MSG_NOSIGNAL));
    await_events(fd, POLLERR);
    CALL("second", send(fd, "y", 1, MSG_NOSIGNAL));
    CALL("third", send(fd, "z", 1, MSG_NOSIGNAL));
    CALL("read", read(fd, &(char){0}, 1));
    tell(1);
    meet();
}
static void killed_asleep_read_server(int fd) { killed_asleep_server(fd); }
static void killed_asleep_read_client(int fd)
{
    kill_asleep();
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    await_events(fd, POLLERR);
    CALL("read", read(fd, &(char){0}, 1));
    CALL("read", read(fd, &(char){0}, 1));
    CALL("send", send(fd, "y", 1, MSG_NOSIGNAL));
    tell(1);
    meet();
}

/* Nor is one who sends much to a peer that was not reading left to fill buffers. */
static void killed_bulk_server(int fd)
{
    pid_t child = idle_child();
    MUST(close(fd));
    tell(child);
    CHECK(hear() == 1);
    wait_child(child);
    meet();
}
static void killed_bulk_client(int fd)
{
    static char data[64 * KIB];
    size_t taken = 0;
    ssize_t n;
    kill_asleep();
    while ((n = send(fd, data, sizeof data, MSG_NOSIGNAL)) > 0)
        taken += n;
    /* Whether what is in the ring came before the peer's death, which makes it a reset, can't be told. */
    CHECK(errno == EPIPE || errno == ECONNRESET);
    say("an error after %s", taken < MIB ? "little" : "much");
    tell(1);
    meet();
}

/* A peer that ends with bytes unread resets the connection: every call says so at once, and one alone is told. */
static void say_error(int fd)
{
    int error = -1;
    socklen_t length = sizeof error;
    MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
    say("error %s", error ? strerrorname_np(error) : "none");
}
static void reset_at_once_server(int fd) { close_unread_server(fd); }
static void reset_at_once_client(int fd)
{
    static char text[1000];
    write_all(fd, text, 1000);
    await_unread(fd, 8);
    CALL("read", read(fd, text, 1000));
    tell(1);
    CHECK(hear() == 2);
    CALL("look", recv(fd, text, 1000, MSG_DONTWAIT | MSG_PEEK));
    CALL("read", recv(fd, text, 1000, MSG_DONTWAIT));
    say_error(fd);
}
static void shut_after_reset_server(int fd) { exit_unread_server(fd); }
static void shut_after_reset_client(int fd)
{
    static char text[1000];
    write_all(fd, text, 1000);
    await_events(fd, POLLERR);
    CALL("shutdown", shutdown(fd, SHUT_WR));
    CALL("read", read(fd, text, 1000));
    CALL("shutdown", shutdown(fd, SHUT_RDWR));
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    _exit(0);
}
static void killed_unread_server(int fd)
{
    pid_t child = MUST(fork());
    if (child == 0) {
        pause();
        _exit(1);
    }
    await_unread(fd, 8);
    MUST(close(fd));
    MUST(kill(child, SIGKILL));
    wait_child(child);
    tell(2);
}
static void killed_unread_client(int fd)
{
    char text[8];
    send_text(fd, "unread..");
    CHECK(hear() == 2);
    say_error(fd);
    say_error(fd);
    CALL("read", read(fd, text, 8));
}

/* The accepting side shuts its sending at every step of the promotion, and goes on reading, by poll: the peer lives. */
enum { MOST_TURNS = 12, PILE = 1 * MIB };
static void shut_at_a_step_server(int listener)
{
    for (int turns = 1; turns <= MOST_TURNS; turns++) {
        int fd = accept_from(listener);
        warm_up_n(fd, false, turns);
        MUST(shutdown(fd, SHUT_WR));
        tell(turns);
        CHECK(hear() == (uint64_t)turns);
        struct stream in = {311, 0};
        static uint8_t data[64 * KIB];
        short events = 0;
        while (in.offset < PILE) {
            events |= await_events(fd, POLLIN);
            stream_check(&in, data, MUST(read(fd, data, sizeof data)));
        }
        events |= await_events(fd, POLLOUT);
        say("%d: %s", turns, events_name(events));
        tell(turns);
        CHECK(hear() == (uint64_t)turns);
        MUST(close(fd));
    }
}
static void shut_at_a_step_client(int port)
{
    for (int turns = 1; turns <= MOST_TURNS; turns++) {
        int fd = connect_to(AF_INET, port);
        char byte;
        warm_up_n(fd, true, turns);
        CHECK(hear() == (uint64_t)turns);
        struct stream out = {311, 0};
        static uint8_t data[PILE];
        stream_fill(&out, data, PILE);
        set_nonblocking(fd, true);
        bool told = false;
        for (size_t at = 0; at < PILE || !told;) {
            ssize_t n = write(fd, data + at, PILE - at < 5000 ? PILE - at : 5000);
            CHECK(n >= 0 || errno == EAGAIN);
            at += n > 0 ? n : 0;
            if ((n < 0 || at == PILE) && !told) {
                told = true;
                CHECK(read(fd, &byte, 1) == 0);
                tell(turns);
            }
            if (n < 0)
                await_events(fd, POLLOUT);
        }
        set_nonblocking(fd, false);
        CHECK(hear() == (uint64_t)turns);
        CALL("read", read(fd, &byte, 1));
        tell(turns);
        MUST(close(fd));
    }
}

const struct test_case cases[] = {
    RAW_CASE(shut_at_a_step), CASE(half_close),    CASE(no_reading),     CASE(no_reading_at_all), CASE(wake_by_shutdown), CASE(close_at_once),
    CASE(exit_at_once),  CASE(close_unread),   CASE(exit_unread),       CASE(linger_zero),      CASE(linger_time),
    CASE(linger_in_vain), CASE(linger_in_time),
    CASE(to_nobody),     CASE(killed_by_pipe), CASE(blocked_writer),    CASE(bad_descriptor),   CASE(limits),
    CASE(deaf),          CASE(shut_by_both),  CASE(user_timeout),  CASE(user_timeout_polling), CASE(killed_asleep), CASE(killed_asleep_read), CASE(killed_bulk),
    CASE(reset_at_once), CASE(shut_after_reset), CASE(killed_unread),    END_OF_CASES,
};
