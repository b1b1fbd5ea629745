/* poll, ppoll, select, pselect. */
#include "common.h"

#include <sys/select.h>
#include <time.h>

static void show_poll(const char *what, struct pollfd *entries, int count, int timeout_ms)
{
    int n = poll(entries, count, timeout_ms);
    char line[256] = "";
    for (int i = 0; i < count; i++)
        snprintf(line + strlen(line), sizeof line - strlen(line), " %s", events_name(entries[i].revents));
    say("%s: %d:%s", what, n, line);
}
static void poll_one(const char *what, int fd, short events, int timeout_ms)
{
    struct pollfd entry = {.fd = fd, .events = events};
    show_poll(what, &entry, 1, timeout_ms);
}

static void poll_basic_server(int fd)
{
    char text[64];
    poll_one("nothing to read", fd, POLLIN, 0);
    poll_one("nothing to read for 20 ms", fd, POLLIN, 20);
    poll_one("room to write", fd, POLLOUT, -1);
    poll_one("both asked, one there", fd, POLLIN | POLLOUT, -1);
    poll_one("nothing asked", fd, 0, 0);
    struct pollfd odd[3] = {{.fd = -1, .events = POLLIN}, {.fd = 40, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    show_poll("ignored, invalid, quiet", odd, 3, 0);
    CALL("poll of nothing", poll(NULL, 0, 1));
    tell(1);
    await_unread(fd, 5);
    poll_one("input", fd, POLLIN, 0);
    poll_one("input asked by its other name", fd, POLLRDNORM, 0);
    poll_one("input and output", fd, POLLIN | POLLOUT | POLLPRI, 0);
    struct pollfd twice[2] = {{.fd = fd, .events = POLLIN}, {.fd = fd, .events = POLLOUT}};
    show_poll("the same twice", twice, 2, 0);
    CALL("read", read(fd, text, 2));
    poll_one("some left", fd, POLLIN, 0);
    CALL("read", read(fd, text, 64));
    poll_one("none left", fd, POLLIN, 0);
    for (int i = 0; i < 5; i++) {
        tell(thread_id());
        poll_one("asleep until input", fd, POLLIN, i % 2 ? 20000 : -1);
        CALL("read", read(fd, text, 64));
    }
}
static void poll_basic_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "hello");
    for (int i = 0; i < 5; i++) {
        await_asleep(hear());
        send_text(fd, "more");
    }
}

static volatile sig_atomic_t caught;
static void on_signal(int number)
{
    caught += number == SIGUSR1;
}
static void poll_signal_mask_server(int fd)
{
    struct timespec limit = {0, 20000000};
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    sigset_t none;
    sigemptyset(&none);
    CALL("ppoll, nothing", ppoll(&entry, 1, &limit, &none));
    limit.tv_nsec = -1;
    CALL("ppoll, bad time", ppoll(&entry, 1, &limit, NULL));
    struct sigaction action = {.sa_handler = on_signal};
    MUST(sigaction(SIGUSR1, &action, NULL));
    sigset_t held, before;
    sigemptyset(&held);
    sigaddset(&held, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &held, &before));
    MUST(raise(SIGUSR1));
    limit.tv_nsec = 0;
    CALL("ppoll, no time, a signal held back", ppoll(&entry, 1, &limit, NULL));
    say("%d", caught);
    CALL("ppoll, no time, a signal let through", ppoll(&entry, 1, &limit, &none));
    say("%d", caught);
    MUST(sigprocmask(SIG_SETMASK, &before, NULL));
    tell(thread_id());
    CALL("ppoll, input", ppoll(&entry, 1, NULL, &none));
    say("%s", events_name(entry.revents));
}
static void poll_signal_mask_client(int fd)
{
    await_asleep(hear());
    send_text(fd, "x");
}

/* Ends of the stream. */
static void poll_ends_server(int fd)
{
    char text[64];
    tell(1);
    await_events(fd, POLLRDHUP);
    poll_one("data and the end", fd, POLLIN | POLLRDHUP | POLLOUT, 0);
    CALL("read", read(fd, text, 64));
    poll_one("the end", fd, POLLIN | POLLRDHUP | POLLOUT, 0);
    poll_one("the end, nothing asked", fd, 0, 0);
    CALL("read", read(fd, text, 64));
    poll_one("the end stays", fd, POLLIN, 0);
    CHECK(hear() == 1);
    CALL("shutdown", shutdown(fd, SHUT_WR));
    poll_one("both ends", fd, POLLIN | POLLRDHUP | POLLOUT, -1);
    poll_one("both ends, nothing asked", fd, 0, 0);
    tell(2);
}
static void poll_ends_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "last words");
    CALL("shutdown", shutdown(fd, SHUT_WR));
    poll_one("own end", fd, POLLOUT, 0);
    tell(1);
    CHECK(hear() == 2);
    await_events(fd, POLLHUP);
    poll_one("both ends", fd, POLLIN | POLLRDHUP | POLLOUT, 0);
}

/* The peer goes away without having read: an error is there at once. */
static void poll_reset_server(int fd)
{
    char text[8];
    tell(1);
    await_events(fd, POLLERR);
    poll_one("reset", fd, POLLIN | POLLRDHUP | POLLOUT, 0);
    CALL("read", read(fd, text, 8));
    poll_one("reset, error taken", fd, POLLIN | POLLRDHUP | POLLOUT, 0);
    CALL("read", read(fd, text, 8));
}
static void poll_reset_client(int fd)
{
    struct linger linger = {1, 0};
    CHECK(hear() == 1);
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    MUST(close(fd));
}

/* There is room to write all the time, and the peer ends with a byte unread: who asks for both hears of it. */
static void poll_both_server(int fd)
{
    enum { PATIENCE_MS = 5000 };
    char text[8];
    CALL("write", write(fd, "one more", 8));
    tell(1);
    uint64_t start = now_ms();
    struct pollfd entry = {.fd = fd, .events = POLLIN | POLLOUT};
    /* The kernel notes the error, and only then ends the socket. */
    do
        CHECK(poll(&entry, 1, -1) == 1);
    while (!(entry.revents & POLLHUP) && now_ms() - start < PATIENCE_MS);
    say("%s", events_name(entry.revents));
    CALL("read", read(fd, text, 8));
}
static void poll_both_client(int fd)
{
    CHECK(hear() == 1);
    await_unread(fd, 8);
    MUST(close(fd));
}
static void select_both_server(int fd)
{
    enum { PATIENCE_MS = 5000 };
    tell(1);
    uint64_t start = now_ms();
    fd_set reading, writing;
    do {
        FD_ZERO(&reading);
        FD_ZERO(&writing);
        FD_SET(fd, &reading);
        FD_SET(fd, &writing);
        CHECK(select(fd + 1, &reading, &writing, NULL, NULL) >= 1);
    } while (!FD_ISSET(fd, &reading) && now_ms() - start < PATIENCE_MS);
    say("to be read: %d", FD_ISSET(fd, &reading));
}
static void select_both_client(int fd)
{
    struct linger linger = {1, 0};
    CHECK(hear() == 1);
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    MUST(close(fd));
}

static void poll_full_server(int fd)
{
    struct stream in = {61, 0};
    tell(thread_id());
    stream_receive(&in, fd, hear(), 64 * KIB);
    tell(1);
}
static void poll_full_client(int fd)
{
    static uint8_t buffer[30000];
    struct stream out = {61, 0};
    CHECK(hear() > 0);
    set_nonblocking(fd, true);
    for (;;) {
        struct stream ahead = out;
        stream_fill(&ahead, buffer, sizeof buffer);
        ssize_t n = write(fd, buffer, sizeof buffer);
        if (n > 0)
            out.offset += n;
        /* Longer than a full ring is waited for: then it is full on every way there is, and stays so. */
        struct pollfd entry = {.fd = fd, .events = POLLOUT};
        if (n < 0 && poll(&entry, 1, 300) == 0)
            break;
    }
    poll_one("full", fd, POLLOUT | POLLIN, 0);
    fd_set writing;
    FD_ZERO(&writing);
    FD_SET(fd, &writing);
    struct timeval limit = {0, 10000};
    CALL("select when full", select(fd + 1, NULL, &writing, NULL, &limit));
    tell(out.offset);
    CHECK(hear() == 1);
    poll_one("drained", fd, POLLOUT | POLLIN, -1);
}

static void select_all_server(int fd)
{
    char text[64];
    fd_set reading, writing, failing;
    struct timeval limit = {0, 20000};
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    CALL("select, nothing", select(fd + 1, &reading, NULL, NULL, &limit));
    say("set %d, time left %ld", !!FD_ISSET(fd, &reading), (long)(limit.tv_sec + limit.tv_usec));
    FD_ZERO(&reading);
    FD_ZERO(&writing);
    FD_ZERO(&failing);
    FD_SET(fd, &reading), FD_SET(fd, &writing), FD_SET(fd, &failing);
    CALL("select, output", select(fd + 1, &reading, &writing, &failing, NULL));
    say("set %d %d %d", !!FD_ISSET(fd, &reading), !!FD_ISSET(fd, &writing), !!FD_ISSET(fd, &failing));
    tell(thread_id());
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    limit = (struct timeval){20, 0};
    CALL("select, asleep until input", select(fd + 1, &reading, NULL, NULL, &limit));
    say("set %d, time is left %d", !!FD_ISSET(fd, &reading), limit.tv_sec >= 10);
    FD_SET(fd, &reading), FD_SET(fd, &writing);
    limit = (struct timeval){0, 0};
    CALL("select, both", select(fd + 1, &reading, &writing, NULL, &limit));
    FD_SET(fd, &reading);
    CALL("select below the descriptor", select(fd, &reading, NULL, NULL, &limit));
    CALL("read", read(fd, text, 64));
    FD_ZERO(&reading);
    FD_SET(fd, &reading), FD_SET(40, &reading);
    CALL("select of a bad descriptor", select(41, &reading, NULL, NULL, &limit));
    CALL("select of nothing", select(0, NULL, NULL, NULL, &limit));
    CALL("select, bad count", select(-1, NULL, NULL, NULL, &limit));
    tell(thread_id());
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    struct timespec precise = {20, 0};
    sigset_t none;
    sigemptyset(&none);
    CALL("pselect, asleep until the end", pselect(fd + 1, &reading, NULL, NULL, &precise, &none));
    say("set %d, time untouched %d", !!FD_ISSET(fd, &reading), precise.tv_sec == 20);
    CALL("read", read(fd, text, 64));
}
static void select_all_client(int fd)
{
    await_asleep(hear());
    send_text(fd, "hello");
    await_asleep(hear());
    CALL("shutdown", shutdown(fd, SHUT_WR));
}

/* Carried connections beside a plain pipe, an eventfd and a listener, in one call. */
static void mixed_server(int listener)
{
    int one = accept_warm(listener), two = accept_warm(listener), pipes[2], counter = MUST(eventfd(0, 0));
    char text[64];
    MUST(pipe(pipes));
    struct pollfd entries[5] = {{.fd = one, .events = POLLIN}, {.fd = pipes[0], .events = POLLIN},
                                {.fd = two, .events = POLLIN}, {.fd = counter, .events = POLLIN},
                                {.fd = listener, .events = POLLIN}};
    show_poll("nothing", entries, 5, 0);
    MUST(write(pipes[1], "x", 1));
    show_poll("the pipe", entries, 5, -1);
    tell(1);
    await_unread(two, 3);
    show_poll("the pipe and the second", entries, 5, -1);
    MUST(read(pipes[0], text, 1));
    show_poll("the second", entries, 5, -1);
    MUST(read(two, text, 64));
    tell(thread_id());
    show_poll("asleep until the first", entries, 5, -1);
    MUST(eventfd_write(counter, 1));
    show_poll("the first and the counter", entries, 5, -1);
    MUST(read(one, text, 64));
    eventfd_t value;
    MUST(eventfd_read(counter, &value));
    tell(thread_id());
    show_poll("asleep until a third connects", entries, 5, -1);
    fd_set reading;
    FD_ZERO(&reading);
    for (int i = 0; i < 5; i++)
        FD_SET(entries[i].fd, &reading);
    CALL("select of all", select(64, &reading, NULL, NULL, NULL));
    for (int i = 0; i < 5; i++)
        say("%d", !!FD_ISSET(entries[i].fd, &reading));
    close(accept_warm(listener));
    pid_t child = MUST(fork());
    if (child == 0) {
        await_asleep(getppid());
        MUST(write(pipes[1], "y", 1));
        _exit(0);
    }
    show_poll("asleep until a child writes to the pipe", entries, 5, -1);
    wait_child(child);
    meet();
}
static void mixed_client(int port)
{
    int one = connect_warm(port), two = connect_warm(port);
    CHECK(hear() == 1);
    send_text(two, "two");
    await_asleep(hear());
    send_text(one, "one");
    await_asleep(hear());
    connect_warm(port);
    meet();
}

/* Many messages of which little is read: some bytes are unread in the kernel's queue, others behind them in the ring. What comes
 * then is told at once: each message as an edge, the end, and how much is unread, also when the sender has left the ring. */
enum { PILES = 12, PILE = 2000 };
static void piled_up_server(int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    char text[2];
    int set = MUST(epoll_create1(0));
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    for (int i = 0; i < PILES; i++) {
        CHECK(hear() == 1);
        await_unread(fd, (i + 1) * PILE - i * (int)sizeof text);
        CALL("edge", epoll_wait(set, &event, 1, 1000));
        CHECK(read(fd, text, sizeof text) == sizeof text);
        tell(1);
    }
    await_unread(fd, PILES * (PILE - (int)sizeof text));
    CHECK(hear() == 2);
    poll_one("the end behind them", fd, POLLIN | POLLRDHUP, 0);
    tell(1);
    CHECK(hear() == 3);
    await_unread(fd, PILES * (PILE - (int)sizeof text));
    poll_one("the end behind them", fd, POLLIN | POLLRDHUP, 0);
}
static void piled_up_client(int fd)
{
    struct stream out = {63, 0};
    for (int i = 0; i < PILES; i++) {
        stream_send(&out, fd, PILE, PILE);
        tell(1);
        CHECK(hear() == 1);
    }
    CALL("shutdown", shutdown(fd, SHUT_WR));
    tell(2);
    CHECK(hear() == 1);
    MUST(dup2(fd, 0));
    tell(3);
}

/* Somebody who waits for the end alone, with bytes unread. */
static void end_alone_server(int fd)
{
    await_unread(fd, 5);
    tell(thread_id());
    poll_one("the end alone", fd, POLLRDHUP, -1);
}
static void end_alone_client(int fd)
{
    send_text(fd, "hello");
    await_asleep(hear());
    CALL("shutdown", shutdown(fd, SHUT_WR));
}

/* The same, and another thread comes meanwhile that waits for the socket's edges by a set: both are told of the end. */
static int ended_fd;
static volatile pid_t end_waiters[2];
static void *wait_for_end(void *unused)
{
    end_waiters[0] = thread_id();
    uint64_t start = now_ms();
    poll_one("the end alone", ended_fd, POLLRDHUP, -1);
    say("%s", now_ms() - start < 5000 ? "soon" : "late");
    return unused;
}
static void *wait_for_edge(void *unused)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};
    int set = MUST(epoll_create1(0));
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, ended_fd, &event));
    CHECK(epoll_wait(set, &event, 1, -1) == 1);
    end_waiters[1] = thread_id();
    do
        CHECK(epoll_wait(set, &event, 1, -1) == 1);
    while (!(event.events & EPOLLRDHUP));
    return unused;
}
static void end_and_edge_server(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    /* A process that has not slept often sleeps in another way. */
    for (int i = 0; i < 20; i++)
        CHECK(poll(&entry, 1, 1) == 0);
    ended_fd = fd;
    tell(1);
    await_unread(fd, 5);
    pthread_t end = start_thread(wait_for_end, NULL);
    while (end_waiters[0] == 0)
        sched_yield();
    await_asleep(end_waiters[0]);
    pthread_t edge = start_thread(wait_for_edge, NULL);
    while (end_waiters[1] == 0)
        sched_yield();
    await_asleep(end_waiters[1]);
    tell(2);
    pthread_join(end, NULL);
    pthread_join(edge, NULL);
}
static void end_and_edge_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "hello");
    CHECK(hear() == 2);
    CALL("shutdown", shutdown(fd, SHUT_WR));
}

/* The peer's connection goes to another descriptor, where the ring is not known: that is no news to who waits for bytes. */
static void not_for_us_server(int fd)
{
    int unread;
    tell(thread_id());
    poll_one("bytes", fd, POLLIN, -1);
    MUST(ioctl(fd, FIONREAD, &unread));
    say("%d unread", unread);
    meet();
}
static void not_for_us_client(int fd)
{
    pid_t waits = hear();
    await_asleep(waits);
    MUST(dup2(fd, 0));
    await_asleep(waits);
    send_text(fd, "x");
    meet();
}

const struct test_case cases[] = {
    CASE(poll_basic), CASE(poll_signal_mask), CASE(poll_ends), CASE(poll_reset),
    CASE(poll_both), CASE(select_both),
    CASE(poll_full),  CASE(select_all),       RAW_CASE(mixed), CASE(piled_up),
    CASE(end_alone),  CASE(end_and_edge), CASE(not_for_us),       END_OF_CASES,
};
