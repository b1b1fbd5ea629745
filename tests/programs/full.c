/* A waiter that is asleep for room on a connection whose buffers are full when its peer ends in some way, reads, or sends. */
#include "common.h"

enum end { CLOSES, EXITS, IS_KILLED, RESETS, READS, SHUTS_WRITING, SENDS, ENDS };
static const char *const end_names[] = {"closes", "exits", "is killed", "resets", "reads", "shuts writing", "sends"};

/* How full: until a send says EAGAIN, or until sending is no use for a while. How much the first is, and so whether there is room a
 * moment later, is the connection's to say: only for ends that decide that. */
enum fill { AT_ONCE, PATIENTLY, FILLS };

/* Who asks for room alone is not told of the last two, and would wait in vain. */
static bool is_left_out(int round, unsigned events)
{
    return round / FILLS > READS && (round % FILLS == AT_ONCE || !(events & POLLIN));
}

static void play(int fd, enum end how)
{
    static char piece[64 * KIB];
    struct linger abort_it = {1, 0};
    switch (how) {
    case CLOSES:
        MUST(close(fd));
        break;
    case EXITS:
        _exit(0);
    case IS_KILLED:
        MUST(kill(getpid(), SIGKILL));
        break;
    case RESETS:
        MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it));
        MUST(close(fd));
        break;
    case SHUTS_WRITING:
        MUST(shutdown(fd, SHUT_WR));
        break;
    case SENDS:
        MUST(send(fd, "hello", 5, 0));
        break;
    default:
        while (read(fd, piece, sizeof piece) > 0)
            ;
        _exit(0);
    }
}

static void server(int listener, unsigned events)
{
    for (int round = 0; round < ENDS * FILLS; round++) {
        if (is_left_out(round, events))
            continue;
        int fd = accept_warm(listener);
        pid_t waiter = (pid_t)hear();
        pid_t child = MUST(fork());
        if (child == 0) {
            close(listener);
            await_asleep(waiter);
            play(fd, round / FILLS);
            for (;;)
                pause();
        }
        close(fd);
        CHECK(hear() == 1);
        kill(child, SIGKILL);
        MUST(waitpid(child, NULL, 0));
        tell(2);
    }
}

static void fill(int fd, enum fill how)
{
    static char piece[64 * KIB];
    struct timeval patience = {0, 200000};
    MUST(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience));
    while (send(fd, piece, sizeof piece, how == AT_ONCE ? MSG_DONTWAIT : 0) > 0)
        ;
    CHECK(errno == EAGAIN);
}

/* The first events that a waiter who asks for `events` is told of. */
typedef unsigned wait_function(int fd, unsigned events);

static unsigned by_poll(int fd, unsigned events)
{
    struct pollfd one = {fd, (short)events, 0};
    MUST(poll(&one, 1, 20000));
    return (unsigned)one.revents;
}
static unsigned by_select(int fd, unsigned events)
{
    fd_set sets[2];
    struct timeval limit = {20, 0};
    for (int i = 0; i < 2; i++) {
        FD_ZERO(&sets[i]);
        if (events & (i ? POLLOUT : POLLIN))
            FD_SET(fd, &sets[i]);
    }
    MUST(select(fd + 1, &sets[0], &sets[1], NULL, &limit));
    return (FD_ISSET(fd, &sets[0]) ? POLLIN : 0u) | (FD_ISSET(fd, &sets[1]) ? POLLOUT : 0u);
}
static unsigned by_epoll(int fd, unsigned events)
{
    int set = (int)MUST(epoll_create1(0));
    struct epoll_event event = {.events = events};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    event.events = 0;
    int count = (int)MUST(epoll_wait(set, &event, 1, 20000));
    MUST(close(set));
    return count ? event.events : 0;
}
static unsigned by_edge(int fd, unsigned events)
{
    return by_epoll(fd, events | EPOLLET);
}

/* Some more room may come before the end, which select calls the same: waits for the end alone then. */
static bool came_before_the_end(int fd)
{
    struct pollfd one = {fd, POLLOUT, 0};
    MUST(poll(&one, 1, 0));
    if (one.revents != POLLOUT)
        return false;
    one.events = 0;
    MUST(poll(&one, 1, 20000));
    return true;
}

static void client(uint16_t port, wait_function *wait_for, unsigned events)
{
    for (int round = 0; round < ENDS * FILLS; round++) {
        if (is_left_out(round, events))
            continue;
        enum end how = round / FILLS;
        int fd = connect_warm(port);
        fill(fd, round % FILLS);
        tell((uint64_t)thread_id());
        unsigned told = wait_for(fd, events);
        if (how <= RESETS && told == POLLOUT && came_before_the_end(fd))
            told = wait_for(fd, events);
        say("%s, %s: %s", end_names[how], round % FILLS == AT_ONCE ? "full at once" : "full for a while", events_name(told));
        if (how <= RESETS) {
            int error = -1;
            socklen_t length = sizeof error;
            CALL("send", send(fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT));
            MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
            say("error %d", error);
            CALL("send", send(fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT));
            CALL("read", recv(fd, &error, 1, MSG_DONTWAIT));
            say("%s", events_name(by_poll(fd, POLLIN | POLLOUT | POLLRDHUP)));
        }
        MUST(close(fd));
        tell(1);
        CHECK(hear() == 2);
    }
}

#define WAITS(name, how, events)                                      \
    static void name##_server(int listener) { server(listener, events); }     \
    static void name##_client(int port) { client((uint16_t)port, how, events); }
WAITS(poll_out, by_poll, POLLOUT)
WAITS(poll_all, by_poll, POLLIN | POLLOUT | POLLRDHUP)
WAITS(select_both, by_select, POLLIN | POLLOUT)
WAITS(epoll_out, by_epoll, EPOLLOUT)
WAITS(edge_all, by_edge, EPOLLIN | EPOLLOUT | EPOLLRDHUP)

const struct test_case cases[] = {
    RAW_CASE(poll_out),  RAW_CASE(poll_all), RAW_CASE(select_both),
    RAW_CASE(epoll_out), RAW_CASE(edge_all), END_OF_CASES,
};
