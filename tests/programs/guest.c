/* The front as a guest: what may be called anywhere can be called anywhere. Signal handlers, an allocator, code before main and
 * after exit, and forks while other threads make and close sockets. */
#include "common.h"

#include <setjmp.h>

#include <semaphore.h>
#include <sys/time.h>
#include <time.h>

#include "epoll_common.h"

/* An allocator that makes a socket for each piece, from the first on, before main. */
extern void *__libc_malloc(size_t) __attribute__((weak));
static volatile int allocator_armed;
static _Thread_local bool in_allocator;
static volatile unsigned allocated;
static void touch_sockets(void)
{
    int error = errno, one = socket(AF_INET, SOCK_STREAM, 0), other = dup(one);
    close(one);
    close(other);
    errno = error;
}
void *malloc(size_t size)
{
    if (allocator_armed && !in_allocator) {
        in_allocator = true;
        allocated++;
        touch_sockets();
        in_allocator = false;
    }
    return __libc_malloc ? __libc_malloc(size) : NULL;
}
static bool is_case(const char *name)
{
    char line[256] = "";
    int fd = open("/proc/self/cmdline", O_RDONLY);
    ssize_t n = read(fd, line, sizeof line - 1);
    close(fd);
    for (ssize_t i = 0; i < n; i += strlen(line + i) + 1)
        if (!strcmp(line + i, name))
            return true;
    return false;
}
__attribute__((constructor)) static void arm(void) { allocator_armed = is_case("allocator"); }

static void turns(int fd, bool first, int rounds)
{
    char text[64];
    for (int i = 0; i < rounds; i++) {
        free(malloc(100 + i));
        if (first)
            send_text(fd, "ping");
        CHECK(read_full(fd, text, 4) == 4);
        if (!first)
            send_text(fd, "pong");
    }
}
static void allocator_server(int fd)
{
    turns(fd, false, 300);
    say("%s", allocated >= 300 ? "allocated" : "no allocator");
}
static void allocator_client(int fd) { turns(fd, true, 300); }

/* Signals all the time, with handlers that make, copy, poll and close sockets, and close a member of a set. */
static volatile sig_atomic_t handled;
static int handler_set = -1, handler_fd;
static void on_signal(int number)
{
    int error = errno;
    handled++;
    touch_sockets();
    int copy = dup(handler_fd);
    struct pollfd entry = {.fd = copy, .events = POLLOUT};
    poll(&entry, 1, 0);
    struct epoll_event event = {.events = EPOLLIN};
    if (handled % 2)
        epoll_ctl(handler_set, EPOLL_CTL_ADD, copy, &event);
    close(copy);
    errno = error;
    (void)number;
}
static void in_handlers(int fd, bool first)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    int set = handler_set = new_set();
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1};
    handler_fd = fd;
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    MUST(sigaction(SIGUSR1, &action, NULL));
    timer_t timer;
    struct sigevent how = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    MUST(timer_create(CLOCK_MONOTONIC, &how, &timer));
    struct itimerspec often = {{0, 60000}, {0, 60000}}, never = {{0, 0}, {0, 0}};
    MUST(timer_settime(timer, 0, &often, NULL));
    for (int round = 0; round < 300 || handled < 1500; round++) {
        free(malloc(64 + round % 5000));
        touch_sockets();
        int other = new_set();
        MUST(epoll_ctl(other, EPOLL_CTL_ADD, fd, &event));
        MUST(epoll_ctl(other, EPOLL_CTL_MOD, fd, &event));
        epoll_wait(set, &event, 1, 0);
        close(other);
    }
    for (int round = 0; round < 300; round++)
        turns(fd, first, 1);
    MUST(timer_settime(timer, 0, &never, NULL));
    say("done");
}
static void handlers_server(int fd) { in_handlers(fd, false); }
static void handlers_client(int fd) { in_handlers(fd, true); }

/* A handler that forks, whatever it interrupted. */
static void on_signal_fork(int number)
{
    int error = errno;
    handled++;
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    int status;
    while (child > 0 && waitpid(child, &status, 0) < 0)
        ;
    if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
        _exit(9);
    errno = error;
    (void)number;
}
static void fork_in_handler(int fd, bool first)
{
    struct sigaction action = {.sa_handler = on_signal_fork, .sa_flags = SA_RESTART};
    int set = new_set();
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    MUST(sigaction(SIGALRM, &action, NULL));
    struct itimerval often = {{0, 2000}, {0, 2000}}, never = {{0, 0}, {0, 0}};
    MUST(setitimer(ITIMER_REAL, &often, NULL));
    while (handled < 100) {
        touch_sockets();
        event.events = EPOLLIN;
        MUST(epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
        epoll_wait(set, &event, 1, 0);
    }
    MUST(setitimer(ITIMER_REAL, &never, NULL));
    turns(fd, first, 50);
    say("done");
}
static void forking_handler_server(int fd) { fork_in_handler(fd, false); }
static void forking_handler_client(int fd) { fork_in_handler(fd, true); }

/* The connection is used, and sockets are made, by what runs after main. */
static int late_fd;
static bool late_first;
static void late(void)
{
    turns(late_fd, late_first, 20);
    touch_sockets();
}
__attribute__((destructor)) static void latest(void)
{
    if (late_fd == 0)
        return;
    touch_sockets();
    char text[8];
    if (late_first) {
        send_text(late_fd, "last");
        CHECK(read(late_fd, text, 8) == 0);
    } else {
        CHECK(read_full(late_fd, text, 4) == 4);
    }
}
static void after_main(int fd, bool first)
{
    late_fd = fd;
    late_first = first;
    atexit(late);
    say("main is over");
}
static void after_exit_server(int fd) { after_main(fd, false); }
static void after_exit_client(int fd) { after_main(fd, true); }

/* Threads that make, use and close connections, and a thread that forks: children that exit, and children that close. */
enum { CHURNERS = 8, CONNECTIONS = 60, TURNS = 20 };
static volatile int churning;
static int storm_listener;
static uint16_t storm_port;
static void *churn(void *unused)
{
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = storm_port ? connect_to(AF_INET, storm_port) : accept_from(storm_listener);
        turns(fd, storm_port != 0, TURNS);
        int copy = dup(fd);
        close(fd);
        shutdown(copy, SHUT_WR);
        char text[4];
        CHECK(read(copy, text, 4) == 0);
        close(copy);
    }
    __atomic_sub_fetch(&churning, 1, __ATOMIC_SEQ_CST);
    return unused;
}
static void storm(void)
{
    pthread_t threads[CHURNERS];
    churning = CHURNERS;
    for (int i = 0; i < CHURNERS; i++)
        threads[i] = start_thread(churn, NULL);
    int bad = 0;
    for (int i = 0; churning > 0; i++) {
        int status;
        pid_t child = MUST(fork());
        if (child == 0) {
            for (int fd = 20; i % 3 && fd < 60; fd += i % 3)
                close(fd);
            _exit(0);
        }
        MUST(waitpid(child, &status, 0));
        bad += status != 0;
    }
    for (int i = 0; i < CHURNERS; i++)
        pthread_join(threads[i], NULL);
    say("%d connections, %d children failed", CHURNERS * CONNECTIONS, bad);
}
static void fork_storm_server(int listener)
{
    storm_listener = listener;
    storm();
}
static void fork_storm_client(int port)
{
    storm_port = port;
    storm();
}

/* Threads that are cancelled where they sleep: their handlers run, and the connection goes on. */
static int sleeper_fd, sleeper_set;
static volatile int cleaned;
static volatile pid_t sleeper;
static void clean(void *unused)
{
    cleaned++;
    (void)unused;
}
static void sleep_in(int how)
{
    static char big[65536];
    char text[16];
    struct iovec piece = {text, 16};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    static struct pollfd entry;
    struct epoll_event event;
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(sleeper_fd, &reading);
    entry = (struct pollfd){.fd = sleeper_fd, .events = POLLIN};
    switch (how) {
    case 0: (void)!read(sleeper_fd, text, 16); break;
    case 1: recv(sleeper_fd, text, 16, 0); break;
    case 2: recvmsg(sleeper_fd, &message, MSG_WAITALL); break;
    case 3: (void)!readv(sleeper_fd, &piece, 1); break;
    case 4: poll(&entry, 1, -1); break;
    case 5: ppoll(&entry, 1, NULL, NULL); break;
    case 6: select(sleeper_fd + 1, &reading, NULL, NULL, NULL); break;
    case 7: epoll_wait(sleeper_set, &event, 1, -1); break;
    case 8:
        for (;;)
            send(sleeper_fd, big, sizeof big, 0);
    }
}
static void *sleep_thread(void *how)
{
    sleeper = thread_id();
    pthread_cleanup_push(clean, NULL);
    sleep_in((int)(intptr_t)how);
    pthread_cleanup_pop(0);
    return NULL;
}
static void cancel_in(const char *what, int how)
{
    void *result;
    sleeper = 0;
    cleaned = 0;
    pthread_t thread = start_thread(sleep_thread, (void *)(intptr_t)how);
    while (sleeper == 0)
        sched_yield();
    await_asleep(sleeper);
    CHECK(pthread_cancel(thread) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    say("%s: %s, cleaned %d", what, result == PTHREAD_CANCELED ? "cancelled" : "returned", cleaned);
}
/* Cancelled before it calls: the call does not come to anything, though there is something to read. */
static sem_t go;
static void *late_thread(void *unused)
{
    int state;
    char text[16];
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    while (sem_wait(&go) < 0)
        ;
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
    (void)!read(sleeper_fd, text, 5);
    return unused;
}
static void cancelled_server(int fd)
{
    static const char *names[] = {"read", "recv", "recvmsg", "readv", "poll", "ppoll", "select", "epoll_wait"};
    char text[16] = "";
    sleeper_fd = fd;
    sleeper_set = new_set();
    add(sleeper_set, fd, EPOLLIN, 1);
    for (int round = 0; round < 2; round++)
        for (int how = 0; how < 8; how++)
            cancel_in(names[how], how);
    tell(1);
    await_unread(fd, 10);
    void *result;
    sem_init(&go, 0, 0);
    pthread_t thread = start_thread(late_thread, NULL);
    pthread_cancel(thread);
    sem_post(&go);
    pthread_join(thread, &result);
    say("late: %s", result == PTHREAD_CANCELED ? "cancelled" : "returned");
    CALL("read", read(fd, text, 10));
    say("%s", text);
    tell(2);
    turns(fd, false, 40);
    cancel_in("send", 8);
    meet();
}
static void cancelled_client(int fd)
{
    hear();
    send_text(fd, "all there ");
    hear();
    turns(fd, true, 40);
    meet();
}

/* A handler that leaves by siglongjmp out of a sleeping call, as time-outs are made with alarm(2): the call is gone, and
 * nothing of it is left behind. Somebody else sends the signal, when the caller sleeps: another thread, or, so that the caller has
 * none, a child. Every second handler has a stack of its own. */
static sigjmp_buf leap;
static int leap_soon[2];
static void on_leap(int number) { siglongjmp(leap, number); }
static void *leaper(void *pid)
{
    char number;
    while (read(leap_soon[0], &number, 1) == 1) {
        await_asleep(sleeper);
        syscall(SYS_tgkill, (pid_t)(intptr_t)pid, sleeper, number);
    }
    return NULL;
}
static void leap_out_of(int how, char number)
{
    if (sigsetjmp(leap, 1) == 0) {
        CHECK(write(leap_soon[1], &number, 1) == 1);
        sleep_in(how);
        die("the call came back");
    }
}
static void start_leaping(int fd, bool alone)
{
    static char elsewhere[256 * KIB];
    struct sigaction action = {.sa_handler = on_leap};
    MUST(sigaction(SIGUSR1, &action, NULL));
    action.sa_flags = SA_ONSTACK;
    MUST(sigaction(SIGUSR2, &action, NULL));
    stack_t stack = {.ss_sp = elsewhere, .ss_size = sizeof elsewhere};
    MUST(sigaltstack(&stack, NULL));
    MUST(pipe2(leap_soon, O_CLOEXEC));
    sleeper = thread_id();
    void *pid = (void *)(intptr_t)getpid();
    if (!alone) {
        start_thread(leaper, pid);
    } else if (MUST(fork()) == 0) {
        close(fd);
        close(leap_soon[1]);
        leaper(pid);
        _exit(0);
    }
}
static void leap_often(int fd, bool alone)
{
    sleeper_fd = fd;
    sleeper_set = new_set();
    add(sleeper_set, fd, EPOLLIN, 1);
    start_leaping(fd, alone);
    for (int round = 0; round < 8; round++) {
        for (int how = 0; how < 8; how++)
            leap_out_of(how, (round + how) % 2 ? SIGUSR1 : SIGUSR2);
        tell(1);
        turns(fd, false, 40);
    }
    close(sleeper_set);
    tell(1);
    leap_out_of(8, SIGUSR1);
    tell(1);
    CALL("close", close(fd));
}
static void leaping_server(int fd) { leap_often(fd, false); }
static void leaping_alone_server(int fd) { leap_often(fd, true); }
static void leaping_client(int fd)
{
    static char text[65536];
    for (int round = 0; round < 8; round++) {
        hear();
        turns(fd, true, 40);
    }
    hear();
    hear();
    /* It is full of zeros, and then over. */
    ssize_t n;
    while ((n = read(fd, text, sizeof text)) > 0)
        CHECK(text[0] == 0 && memcmp(text, text + 1, n - 1) == 0);
    say_result("read", n, errno);
    CALL("the end", await_events(fd, POLLIN) & POLLIN);
}
static void leaping_alone_client(int fd) { leaping_client(fd); }

const struct test_case cases[] = {
    CASE(allocator),  CASE(handlers),       CASE(forking_handler),
    CASE(after_exit), CASE(cancelled), CASE(leaping), CASE(leaping_alone), RAW_CASE(fork_storm), END_OF_CASES,
};
