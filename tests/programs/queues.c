/* Sleepers and what becomes of their way of being woken: limits on descriptors, sets that are closed under them, handlers that
 * fork, filters. Everybody is asleep when the message comes. */
#include "common.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

/* As many sleeps as it takes until a process, or a set, sleeps in another way. */
enum { SLEEPS = 20, PATIENCE = 10000 };

/* The client's part of a round: a byte for a sleeper, and its answer. */
static void rouse(pid_t sleeper, int fd, int rounds)
{
    char byte = 'r';
    for (int i = 0; i < rounds; i++) {
        await_asleep(sleeper);
        MUST(write(fd, &byte, 1));
        CHECK(read(fd, &byte, 1) == 1);
    }
}

static void answer(int fd)
{
    char byte;
    CHECK(MUST(read(fd, &byte, 1)) == 1);
    MUST(write(fd, &byte, 1));
}

static void by_recv(int fd, int rounds)
{
    for (int i = 0; i < rounds; i++)
        answer(fd);
}

static void by_poll(int fd, int entries, int rounds)
{
    struct pollfd all[64];
    for (int i = 0; i < rounds; i++) {
        for (int k = 0; k < entries; k++)
            all[k] = (struct pollfd){.fd = k == 0 ? fd : -1, .events = POLLIN};
        if (MUST(poll(all, entries, PATIENCE)) == 0)
            die("poll of %d: not woken", entries);
        answer(fd);
    }
}

static void by_select(int fd, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(fd, &set);
        FD_SET(2, &set);
        struct timeval limit = {PATIENCE / 1000, 0};
        if (MUST(select(fd + 1, &set, NULL, NULL, &limit)) == 0)
            die("select: not woken");
        answer(fd);
    }
}

static void by_set(int set, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        struct epoll_event event;
        int n;
        while ((n = epoll_wait(set, &event, 1, PATIENCE)) < 0 && errno == EINTR)
            ;
        if (MUST(n) == 0)
            die("epoll_wait: not woken");
        answer(event.data.fd);
    }
}

static void add(int set, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

/* With a limit on descriptors below what is open, what sleeps sleeps on. */
static const int limits[] = {16, 4, 2, 1};
enum { LIMITS = sizeof limits / sizeof *limits };

static void few_descriptors_server(int fd)
{
    tell(getpid());
    by_recv(fd, SLEEPS);
    for (int i = 0; i < LIMITS; i++) {
        struct rlimit limit;
        MUST(getrlimit(RLIMIT_NOFILE, &limit));
        limit.rlim_cur = limits[i];
        MUST(setrlimit(RLIMIT_NOFILE, &limit));
        by_poll(fd, limits[i], 3);
        by_select(fd, 3);
        by_recv(fd, 3);
        say("with %d", limits[i]);
    }
}

static void few_descriptors_client(int fd)
{
    pid_t sleeper = hear();
    rouse(sleeper, fd, SLEEPS + 9 * LIMITS);
}

/* A set is closed while a thread sleeps on it. When that one gives up, another set's sleeper is woken all the same. */
static pid_t late_sleeper;
static int late_pipe[2];

static void *sleeps_late(void *argument)
{
    struct epoll_event event;
    pid_t me = thread_id();
    MUST(write(late_pipe[1], &me, sizeof me));
    CALL("the wait on the closed set", epoll_wait(*(int *)argument, &event, 1, 700));
    return NULL;
}

static void closed_asleep_server(int fd)
{
    int set = MUST(epoll_create1(EPOLL_CLOEXEC));
    tell(getpid());
    add(set, fd);
    by_set(set, SLEEPS);
    MUST(pipe(late_pipe));
    pthread_t thread = start_thread(sleeps_late, &set);
    MUST(read(late_pipe[0], &late_sleeper, sizeof late_sleeper));
    await_asleep(late_sleeper);
    MUST(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    MUST(close(set));
    tell(late_sleeper);
    set = MUST(epoll_create1(EPOLL_CLOEXEC));
    add(set, fd);
    by_set(set, SLEEPS);
    by_set(set, 1);
    CHECK(pthread_join(thread, NULL) == 0);
    by_set(set, 3);
}

static void await_gone(pid_t process, pid_t thread)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d", process, thread);
    struct timespec moment = {0, 1000000};
    while (access(path, F_OK) == 0)
        nanosleep(&moment, NULL);
}

static void closed_asleep_client(int fd)
{
    pid_t sleeper = hear();
    rouse(sleeper, fd, SLEEPS);
    pid_t late = hear();
    rouse(sleeper, fd, SLEEPS);
    await_asleep(sleeper);
    await_gone(sleeper, late);
    rouse(sleeper, fd, 1 + 3);
}

/* A handler forks, and the child returns into the call that it interrupted: while the parent sleeps anew. */
static volatile pid_t forked;
static sigset_t child_goes;

static void forks(int signal)
{
    (void)signal;
    forked = MUST(fork());
    int go;
    if (forked == 0)
        CHECK(sigwait(&child_goes, &go) == 0);
}

static void forking(int listener, bool in_set)
{
    struct sigaction action = {.sa_handler = forks};
    MUST(sigaction(SIGUSR1, &action, NULL));
    sigemptyset(&child_goes);
    sigaddset(&child_goes, SIGUSR2);
    MUST(sigprocmask(SIG_BLOCK, &child_goes, NULL));
    int set = MUST(epoll_create1(EPOLL_CLOEXEC)), first = accept_warm(listener);
    tell(getpid());
    add(set, first);
    if (in_set)
        by_set(set, SLEEPS);
    else
        by_poll(first, 1, SLEEPS);
    struct pollfd entry = {.fd = first, .events = POLLIN};
    struct epoll_event event;
    CHECK((in_set ? epoll_wait(set, &event, 1, PATIENCE) : poll(&entry, 1, PATIENCE)) == -1 && errno == EINTR);
    if (forked == 0) {
        tell(0);
        _exit(0);
    }
    int second = accept_warm(listener);
    MUST(epoll_ctl(set, EPOLL_CTL_DEL, first, NULL));
    tell(forked);
    if (in_set) {
        add(set, second);
        by_set(set, 3);
    } else {
        by_poll(second, 1, 3);
    }
    wait_child(forked);
}

static void asking_of_forking(int port)
{
    int first = connect_warm(port);
    pid_t sleeper = hear();
    rouse(sleeper, first, SLEEPS);
    await_asleep(sleeper);
    MUST(kill(sleeper, SIGUSR1));
    int second = connect_warm(port);
    pid_t child = hear();
    await_asleep(sleeper);
    MUST(kill(child, SIGUSR2));
    hear();
    rouse(sleeper, second, 3);
}

static void forking_poller_server(int listener) { forking(listener, false); }
static void forking_poller_client(int port) { asking_of_forking(port); }
static void forking_waiter_server(int listener) { forking(listener, true); }
static void forking_waiter_client(int port) { asking_of_forking(port); }

/* A filter that knows of no call but the program's own. */
static void install_filter(void)
{
    static const int refused[] = {SYS_fcntl,     SYS_openat,      SYS_mknodat, SYS_unlinkat, SYS_getsockopt,
                                  SYS_epoll_ctl, SYS_sched_yield, SYS_ioctl,   SYS_getpid,   SYS_sendto};
    enum { N = sizeof refused / sizeof *refused };
    struct sock_filter code[2 * N + 2];
    int n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < N; i++) {
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[i], 0, 1);
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {n, code};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void filtered_server(int fd)
{
    int set = MUST(epoll_create1(EPOLL_CLOEXEC));
    tell(getpid());
    add(set, fd);
    by_set(set, SLEEPS);
    by_poll(fd, 1, SLEEPS);
    install_filter();
    by_set(set, 5);
    by_poll(fd, 1, 5);
    by_recv(fd, 5);
    pid_t child = MUST(fork());
    if (child == 0)
        _exit(3);
    wait_child(child);
    say("served");
}

static void filtered_client(int fd)
{
    pid_t sleeper = hear();
    rouse(sleeper, fd, 2 * SLEEPS + 15);
}

const struct test_case cases[] = {
    CASE(few_descriptors), CASE(closed_asleep),        RAW_CASE(forking_poller), RAW_CASE(forking_waiter),
    CASE(filtered),        END_OF_CASES,
};
