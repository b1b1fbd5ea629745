/* Signals: what they interrupt, what goes on, and what their handlers may do. */
#include "common.h"

#include <sys/time.h>

#include "epoll_common.h"

static volatile sig_atomic_t handled;
static void on_signal(int number) { handled++; (void)number; }

static void handle(int number, int flags)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
    MUST(sigaction(number, &action, NULL));
    handled = 0;
}

/* A child that sends SIGUSR1 once the parent is asleep. */
static pid_t signal_when_asleep(void)
{
    pid_t parent = getpid(), child = MUST(fork());
    if (child == 0) {
        await_asleep(parent);
        kill(parent, SIGUSR1);
        _exit(0);
    }
    return child;
}
static void gather(pid_t child)
{
    while (waitpid(child, NULL, 0) < 0)
        CHECK(errno == EINTR);
}
#define INTERRUPTED(what, expression)             \
    do {                                          \
        pid_t child_ = signal_when_asleep();      \
        CALL(what, expression);                   \
        say("handled %d", (int)handled);          \
        handled = 0;                              \
        gather(child_);                           \
    } while (0)

/* Without SA_RESTART a blocked call ends with EINTR. */
static void interrupt_server(int fd)
{
    char text[16];
    struct iovec piece = {text, 16};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    handle(SIGUSR1, 0);
    INTERRUPTED("read", read(fd, text, 16));
    INTERRUPTED("recv", recv(fd, text, 16, 0));
    INTERRUPTED("readv", readv(fd, &piece, 1));
    INTERRUPTED("recvmsg", recvmsg(fd, &message, 0));
    INTERRUPTED("recv, peek", recv(fd, text, 16, MSG_PEEK));
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    INTERRUPTED("poll", poll(&entry, 1, -1));
    INTERRUPTED("poll with a limit", poll(&entry, 1, 20000));
    INTERRUPTED("ppoll", ppoll(&entry, 1, NULL, NULL));
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    INTERRUPTED("select", select(fd + 1, &reading, NULL, NULL, NULL));
    FD_SET(fd, &reading);
    INTERRUPTED("pselect", pselect(fd + 1, &reading, NULL, NULL, NULL, NULL));
    int set = new_set();
    struct epoll_event event;
    add(set, fd, EPOLLIN, 1);
    INTERRUPTED("epoll_wait", epoll_wait(set, &event, 1, -1));
    INTERRUPTED("epoll_wait with a limit", epoll_wait(set, &event, 1, 20000));
    INTERRUPTED("epoll_pwait", epoll_pwait(set, &event, 1, -1, NULL));
    tell(1);
    CALL("read", read(fd, text, 16));
}
static void interrupt_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "hello");
}

/* With SA_RESTART reading goes on; poll and epoll_wait end all the same. */
static void restart_server(int fd)
{
    char text[16];
    handle(SIGUSR1, SA_RESTART);
    for (int i = 0; i < 3; i++) {
        pid_t child = signal_when_asleep();
        tell(thread_id());
        CALL("read", i == 0 ? read(fd, text, 16) : i == 1 ? recv(fd, text, 16, 0) : recv(fd, text, 10, MSG_WAITALL));
        say("handled %d", (int)handled);
        handled = 0;
        gather(child);
    }
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    INTERRUPTED("poll", poll(&entry, 1, -1));
    int set = new_set();
    struct epoll_event event;
    add(set, fd, EPOLLIN, 1);
    INTERRUPTED("epoll_wait", epoll_wait(set, &event, 1, -1));
    struct timeval limit = {20, 0};
    MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    INTERRUPTED("read with a time limit", read(fd, text, 16));
}
static void restart_client(int fd)
{
    for (int i = 0; i < 3; i++) {
        pid_t reader = hear();
        /* Two sleeps: one before the signal, one after it. */
        for (int quiet = 0; quiet < 2; quiet++)
            await_asleep(reader);
        char path[64], text[4096] = "";
        snprintf(path, sizeof path, "/proc/%d/task/%d/children", reader, reader);
        /* The signalling child has done its part when it is a zombie; then the reader is asleep once more. */
        for (bool zombie = false; !zombie; sched_yield()) {
            int list = MUST(open(path, O_RDONLY));
            ssize_t n = MUST(read(list, text, sizeof text - 1));
            close(list);
            text[n] = 0;
            pid_t child = atoi(text);
            if (child == 0)
                continue;
            char status[64];
            snprintf(status, sizeof status, "/proc/%d/stat", child);
            int stat = open(status, O_RDONLY);
            if (stat < 0)
                continue;
            n = read(stat, text, sizeof text - 1);
            close(stat);
            text[n > 0 ? n : 0] = 0;
            zombie = strstr(text, ") Z ") != NULL;
        }
        await_asleep(reader);
        send_text(fd, "ten bytes.");
    }
}

/* A part was there: an interrupted wait for all gives the part, an interrupted write gives what was taken. */
static void part_at(int fd, int flags)
{
    char text[64];
    handle(SIGUSR1, flags);
    tell(1);
    await_unread(fd, 10);
    INTERRUPTED("recv all of 64", recv(fd, text, 64, MSG_WAITALL));
    enum { HUGE = 64 * MIB };
    char *buffer = calloc(1, HUGE);
    pid_t child = signal_when_asleep();
    ssize_t n = write(fd, buffer, HUGE);
    say("a part was taken: %d, handled %d", n > 0 && n < HUGE, (int)handled);
    gather(child);
    tell(n);
}
static void part_server(int fd) { part_at(fd, 0); }
/* With SA_RESTART as well. */
static void part_restart_server(int fd) { part_at(fd, SA_RESTART); }
static void part_client(int fd)
{
    static char text[64 * KIB];
    CHECK(hear() == 1);
    send_text(fd, "ten bytes.");
    for (uint64_t left = hear(); left;)
        left -= MUST(read(fd, text, left < sizeof text ? left : sizeof text));
    CALL("nothing more", recv(fd, text, 1, MSG_DONTWAIT));
}
static void part_restart_client(int fd) { part_client(fd); }

/* A write that can take nothing: of two kinds of handlers only one ends it. */
static void on_other(int number) { (void)number; }
static void both_kinds_server(int fd)
{
    static char buffer[64 * KIB];
    struct sigaction other = {.sa_handler = on_other, .sa_flags = SA_RESTART};
    uint64_t total = 0;
    meet(); /* nobody reads from here on */
    handle(SIGUSR1, 0);
    MUST(sigaction(SIGUSR2, &other, NULL));
    pid_t parent = getpid(), child = MUST(fork());
    if (child == 0)
        for (int i = 0;; i++) {
            await_asleep(parent);
            kill(parent, i < 10 ? SIGUSR2 : SIGUSR1);
        }
    ssize_t n;
    while ((n = write(fd, buffer, sizeof buffer)) > 0) /* a part ends with any signal */
        total += n;
    say_result("write", n, errno);
    MUST(kill(child, SIGKILL));
    gather(child);
    say("by the right one: %d", handled > 0);
    tell(total);
    tell(1);
}
static void both_kinds_client(int fd)
{
    static char text[64 * KIB];
    meet();
    for (uint64_t left = hear(); left;)
        left -= MUST(read(fd, text, left < sizeof text ? left : sizeof text));
    CHECK(hear() == 1);
    CALL("nothing more", recv(fd, text, 1, MSG_DONTWAIT));
}

/* A signal for what arrives, however it was asked for. */
static void sigio_server(int fd)
{
    sigset_t blocked, none;
    char text[16];
    int on = 1;
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGIO);
    MUST(sigprocmask(SIG_BLOCK, &blocked, NULL));
    handle(SIGIO, 0);
    MUST(fcntl(fd, F_SETOWN, getpid()));
    MUST(fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK));
    for (int i = 0; i < 20; i++) {
        if (i == 10) {
            MUST(fcntl(fd, F_SETFL, O_NONBLOCK));
            MUST(ioctl(fd, FIOASYNC, &on));
        }
        tell(1);
        for (long n = 0; n < 5;) {
            sigsuspend(&none);
            for (ssize_t got; (got = read(fd, text, sizeof text)) > 0;)
                n += got;
        }
    }
    say("handled some: %d", handled > 0);
}
static void sigio_client(int fd)
{
    for (int i = 0; i < 20; i++) {
        CHECK(hear() == 1);
        send_text(fd, "hello");
    }
}

/* alarm and setitimer, which need no second process; a busy timer during bulk transfer loses nothing. */
static void alarms_server(int fd)
{
    char text[16];
    handle(SIGALRM, 0);
    struct itimerval timer = {.it_value = {0, 30000}};
    MUST(setitimer(ITIMER_REAL, &timer, NULL));
    CALL("read", read(fd, text, 16));
    say("handled %d", (int)handled);
    timer = (struct itimerval){{0, 500}, {0, 500}};
    handle(SIGALRM, SA_RESTART);
    MUST(setitimer(ITIMER_REAL, &timer, NULL));
    tell(1);
    struct stream in = {191, 0}, out = {192, 0};
    stream_receive(&in, fd, 16 * MIB, 30000);
    stream_send(&out, fd, 16 * MIB, 30000);
    timer = (struct itimerval){0};
    MUST(setitimer(ITIMER_REAL, &timer, NULL));
    say("handled some: %d", handled > 0);
}
static void alarms_client(int fd)
{
    struct stream out = {191, 0}, in = {192, 0};
    CHECK(hear() == 1);
    stream_send(&out, fd, 16 * MIB, 30000);
    stream_receive(&in, fd, 16 * MIB, 30000);
    say("exchanged");
}

/* The mask of ppoll, pselect and epoll_pwait holds while they wait: a blocked, pending signal comes through. */
static void masks_server(int fd)
{
    sigset_t blocked, none;
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    fd_set reading;
    int set = new_set();
    struct epoll_event event;
    add(set, fd, EPOLLIN, 1);
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    handle(SIGUSR1, 0);
    MUST(sigprocmask(SIG_BLOCK, &blocked, NULL));
    kill(getpid(), SIGUSR1);
    struct timespec limit = {20, 0};
    CALL("poll, blocked", poll(&entry, 1, 10));
    say("handled %d", (int)handled);
    CALL("ppoll", ppoll(&entry, 1, &limit, &none));
    say("handled %d", (int)handled);
    kill(getpid(), SIGUSR1);
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    CALL("pselect", pselect(fd + 1, &reading, NULL, NULL, &limit, &none));
    say("handled %d", (int)handled);
    kill(getpid(), SIGUSR1);
    CALL("epoll_pwait", epoll_pwait(set, &event, 1, -1, &none));
    say("handled %d", (int)handled);
    /* Input is there and a signal is pending: input wins for poll, without the handler running. */
    tell(1);
    await_unread(fd, 5);
    kill(getpid(), SIGUSR1);
    CALL("poll with input, blocked", poll(&entry, 1, -1));
    say("handled %d", (int)handled);
}
static void masks_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "hello");
}

/* A handler that writes to the connection its own thread may just be writing to. */
static int handler_fd;
static volatile sig_atomic_t handler_writes;
static void write_in_handler(int number)
{
    int error = errno;
    (void)number;
    if (handler_writes < 20 && write(handler_fd, "H", 1) == 1)
        handler_writes++;
    errno = error;
}
static void handler_server(int fd)
{
    static char text[64 * KIB];
    long letters = 0, others = 0;
    for (ssize_t n; (n = MUST(read(fd, text, sizeof text))) > 0;)
        for (ssize_t i = 0; i < n; i++)
            text[i] == 'H' ? letters++ : others++;
    say("%ld from the handler, %ld others", letters, others);
}
static void handler_client(int fd)
{
    struct sigaction action = {.sa_handler = write_in_handler, .sa_flags = SA_RESTART};
    static char text[1000];
    long total = 0;
    handler_fd = fd;
    MUST(sigaction(SIGALRM, &action, NULL));
    struct itimerval timer = {{0, 1000}, {0, 1000}};
    MUST(setitimer(ITIMER_REAL, &timer, NULL));
    while (total < 2000000 || handler_writes < 20) {
        size_t n = total < 2000000 ? sizeof text : 0;
        write_all(fd, text, n);
        total += n;
    }
    timer = (struct itimerval){0};
    MUST(setitimer(ITIMER_REAL, &timer, NULL));
    say("%d from the handler", (int)handler_writes);
    MUST(shutdown(fd, SHUT_WR));
}

const struct test_case cases[] = {
    CASE(interrupt), CASE(restart), CASE(part), CASE(part_restart), CASE(both_kinds), CASE(sigio), CASE(alarms), CASE(masks), CASE(handler), END_OF_CASES,
};
