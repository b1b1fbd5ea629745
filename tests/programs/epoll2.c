/* epoll: errors, masks, mixed and nested sets, sets made before the connection or its promotion, threads and children. */
#include "common.h"

#include "epoll_common.h"

static void errors_server(int fd)
{
    int set = new_set(), pipes[2];
    struct epoll_event events[4];
    MUST(pipe(pipes));
    add(set, fd, EPOLLIN, 1);
    add(set, fd, EPOLLIN, 1);
    modify(set, pipes[0], EPOLLIN, 2);
    drop(set, pipes[0]);
    add(set, 40, EPOLLIN, 3);
    add(set, set, EPOLLIN, 4);
    add(fd, pipes[0], EPOLLIN, 5);
    control("unknown operation", set, 99, fd, EPOLLIN, 1);
    CALL("no room", epoll_wait(set, events, 0, 0));
    volatile int negative = -1; /* hidden from the compiler, which would warn */
    CALL("negative room", epoll_wait(set, events, negative, 0));
    CALL("not a set", epoll_wait(fd, events, 4, 0));
    CALL("bad descriptor", epoll_wait(40, events, 4, 0));
    CALL("ADD from nowhere", epoll_ctl(set, EPOLL_CTL_ADD, pipes[0], (struct epoll_event *)8));
    CALL("DEL without event", epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    add(set, fd, EPOLLIN | EPOLLEXCLUSIVE, 6);
    modify(set, fd, EPOLLIN | EPOLLEXCLUSIVE, 6);
    tell(1);
    await_unread(fd, 1);
    wait_show("exclusive", set, -1);
}
static void errors_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "x");
}

static void masks_server(int fd)
{
    int set = new_set();
    char text[8];
    struct epoll_event events[4];
    struct timespec limit = {0, 20000000};
    sigset_t none;
    sigemptyset(&none);
    add(set, fd, EPOLLIN, 1);
    CALL("epoll_pwait, nothing", epoll_pwait(set, events, 4, 10, &none));
    CALL("epoll_pwait2, nothing", epoll_pwait2(set, events, 4, &limit, &none));
    limit.tv_nsec = -1;
    CALL("epoll_pwait2, bad time", epoll_pwait2(set, events, 4, &limit, NULL));
    tell(thread_id());
    CALL("epoll_pwait, input", epoll_pwait(set, events, 4, -1, &none));
    show_events("events", events, 1);
    CALL("read", read(fd, text, 8));
    tell(thread_id());
    CALL("epoll_pwait2, input", epoll_pwait2(set, events, 4, NULL, &none));
    show_events("events", events, 1);
}
static void masks_client(int fd)
{
    await_asleep(hear());
    send_text(fd, "one");
    await_asleep(hear());
    send_text(fd, "two");
}

static void mixed_server(int listener)
{
    int set = new_set(), one = accept_warm(listener), two = accept_warm(listener), pipes[2];
    int counter = MUST(eventfd(0, 0));
    char text[64];
    MUST(pipe(pipes));
    add(set, listener, EPOLLIN, 0);
    add(set, one, EPOLLIN, 1);
    add(set, two, EPOLLIN | EPOLLET, 2);
    add(set, pipes[0], EPOLLIN, 3);
    add(set, counter, EPOLLIN | EPOLLET, 4);
    wait_show("nothing", set, 0);
    MUST(write(pipes[1], "x", 1));
    MUST(eventfd_write(counter, 1));
    wait_show("pipe and counter", set, -1);
    tell(1);
    await_unread(one, 3);
    await_unread(two, 3);
    wait_show("pipe, one, two", set, -1);
    wait_show("pipe, one", set, 0);
    MUST(read(pipes[0], text, 1));
    MUST(read(one, text, 64));
    MUST(read(two, text, 64));
    wait_show("nothing", set, 0);
    tell(thread_id());
    wait_show("asleep until a connection", set, -1);
    int three = accept_warm(listener);
    add(set, three, EPOLLIN, 5);
    tell(thread_id());
    wait_show("asleep until three", set, -1);
    MUST(read(three, text, 64));
    pid_t child = MUST(fork());
    if (child == 0) {
        await_asleep(getppid());
        MUST(write(pipes[1], "y", 1));
        _exit(0);
    }
    wait_show("asleep until a child writes to the pipe", set, -1);
    wait_child(child);
    meet();
}
static void mixed_client(int port)
{
    int one = connect_warm(port), two = connect_warm(port);
    CHECK(hear() == 1);
    send_text(one, "one");
    send_text(two, "two");
    await_asleep(hear());
    int three = connect_warm(port);
    await_asleep(hear());
    send_text(three, "three");
    meet();
}

/* What FIONREAD says is there, the next wait reports, beside an entry that is always ready. */
static void announced_server(int fd)
{
    int set = new_set(), pipes[2], missed = 0;
    char text[8];
    MUST(pipe(pipes));
    MUST(write(pipes[1], "x", 1));
    add(set, pipes[0], EPOLLIN, 1);
    add(set, fd, EPOLLIN, 2);
    for (int i = 0; i < 2000; i++) {
        struct epoll_event events[4];
        CHECK(epoll_wait(set, events, 4, 0) == 1); /* the connection has nothing, and goes cold */
        tell(1);
        for (int unread = 0; unread == 0;)
            MUST(ioctl(fd, FIONREAD, &unread));
        missed += epoll_wait(set, events, 4, 0) != 2;
        CHECK(read(fd, text, 8) == 1);
    }
    say("%d missed", missed);
}
static void announced_client(int fd)
{
    for (int i = 0; i < 2000; i++) {
        CHECK(hear() == 1);
        send_text(fd, "a");
    }
}

/* Messages one way, each to a sleeper: none may wait for TCP's delayed acknowledgement of the one before (40 ms). */
enum { PACED_ROUNDS = 5, PACED_MESSAGES = 400 };
static void paced_server(int fd)
{
    int set = new_set(), fewest_late = PACED_MESSAGES;
    struct epoll_event event;
    uint64_t sent;
    add(set, fd, EPOLLIN, 1);
    /* The best round counts: on a busy machine any message may be late, but not in every round a quarter of them. */
    for (int round = 0; round < PACED_ROUNDS; round++) {
        int late = 0;
        for (int i = 0; i < PACED_MESSAGES; i++) {
            CHECK(epoll_wait(set, &event, 1, -1) == 1);
            CHECK(read_full(fd, &sent, sizeof sent) == sizeof sent);
            late += now_ms() - sent > 8;
        }
        if (late < fewest_late)
            fewest_late = late;
    }
    say("%s", fewest_late < PACED_MESSAGES / 4 ? "prompt" : "late again and again");
}
static void paced_client(int fd)
{
    for (int i = 0; i < PACED_ROUNDS * PACED_MESSAGES; i++) {
        usleep(300); /* the pace is the case */
        uint64_t now = now_ms();
        write_all(fd, &now, sizeof now);
    }
}

/* Room for one event at a time: whoever is ready all the time leaves the others their turn. */
static void one_at_a_time_server(int fd)
{
    int set = new_set(), pipes[2], times[3] = {0};
    struct epoll_event event;
    MUST(pipe(pipes));
    MUST(write(pipes[1], "x", 1));
    add(set, fd, EPOLLIN, 1);
    add(set, pipes[0], EPOLLIN, 2);
    tell(1);
    await_unread(fd, 1);
    for (int i = 0; i < 40; i++) {
        CHECK(epoll_wait(set, &event, 1, -1) == 1);
        times[event.data.u64]++;
    }
    say("both had their turns: %d", times[1] >= 10 && times[2] >= 10);
}
static void one_at_a_time_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "a");
}

/* A set within a set, and poll of a set. */
static void nested_server(int fd)
{
    int inner = new_set(), outer = new_set();
    char text[64];
    add(inner, fd, EPOLLIN, 1);
    add(outer, inner, EPOLLIN, 2);
    wait_show("outer, nothing", outer, 0);
    tell(thread_id());
    wait_show("outer, asleep until input", outer, -1);
    wait_show("inner", inner, 0);
    say("poll of the inner: %s", events_name(await_events(inner, POLLIN)));
    CALL("read", read(fd, text, 64));
    wait_show("outer, nothing", outer, 0);
    tell(thread_id());
    say("asleep in poll of the inner: %s", events_name(await_events(inner, POLLIN)));
    wait_show("inner", inner, 0);
}
static void nested_client(int fd)
{
    await_asleep(hear());
    send_text(fd, "one");
    await_asleep(hear());
    send_text(fd, "two");
}

static void expect_event(int set, unsigned events, int round)
{
    struct epoll_event event;
    int n = MUST(epoll_wait(set, &event, 1, -1));
    if (n != 1 || event.events != events) {
        say("round %d: %d events, %s instead of %s", round, n, events_name(n > 0 ? event.events : 0), events_name(events));
        _exit(98);
    }
}

/* Entered before the connection exists and before it is promoted. */
static void early_server(int listener)
{
    int set = new_set(), fd = accept_from(listener);
    char text[16];
    add(set, fd, EPOLLIN, 1);
    for (int i = 0; i < 40; i++) {
        expect_event(set, EPOLLIN, i);
        CHECK(read(fd, text, 16) == 16);
        write_all(fd, text, 16);
    }
    wait_show("nothing", set, 0);
    tell(thread_id());
    wait_show("asleep until input", set, -1);
    modify(set, fd, EPOLLIN | EPOLLET, 2);
    wait_show("input", set, 0);
    wait_show("once only", set, 0);
    tell(1);
    await_unread(fd, 10);
    wait_show("more input", set, 0);
    wait_show("once only", set, 0);
}
static void early_client(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int set = new_set(), fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    char text[16] = "fifteen letters";
    add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1);
    wait_show("not connected", set, 0);
    CALL("connect", connect(fd, (struct sockaddr *)&to, sizeof to));
    wait_show("connected", set, -1);
    wait_show("once only", set, 0);
    for (int i = 0; i < 40; i++) {
        CHECK(write(fd, text, 16) == 16);
        expect_event(set, EPOLLIN | EPOLLOUT, i);
        CHECK(read(fd, text, 16) == 16);
    }
    wait_show("nothing", set, 0);
    await_asleep(hear());
    send_text(fd, "hello");
    CHECK(hear() == 1);
    send_text(fd, "hello");
}

static int thread_set, thread_fd;
static void *waiting_thread(void *unused)
{
    (void)unused;
    tell(thread_id());
    wait_show("thread", thread_set, -1);
    return NULL;
}
/* A socket that enters a set on which a thread is asleep already. */
static void enter_while_waiting_server(int fd)
{
    thread_set = new_set();
    pthread_t thread = start_thread(waiting_thread, NULL);
    CHECK(hear() == 1);
    add(thread_set, fd, EPOLLIN, 1);
    tell(2);
    pthread_join(thread, NULL);
}
static void enter_while_waiting_client(int fd)
{
    pid_t waiter = hear();
    await_asleep(waiter);
    tell(1);
    CHECK(hear() == 2);
    await_asleep(waiter);
    send_text(fd, "hello");
}

static void *closing_thread(void *unused)
{
    (void)unused;
    await_asleep(getpid());
    say("closing");
    MUST(close(thread_fd));
    tell(1);
    return NULL;
}
/* A thread closes what another waits for: the other goes on waiting and sees its other entry. */
static void close_while_waiting_server(int fd)
{
    int pipes[2], set = new_set();
    MUST(pipe(pipes));
    add(set, fd, EPOLLIN, 1);
    add(set, pipes[0], EPOLLIN, 2);
    thread_fd = fd;
    pthread_t thread = start_thread(closing_thread, NULL);
    pid_t child = MUST(fork());
    if (child == 0) {
        close(fd);
        CHECK(hear() == 2); /* the client saw the end, although this process waits */
        await_asleep(getppid());
        MUST(write(pipes[1], "x", 1));
        _exit(0);
    }
    wait_show("asleep until the pipe", set, -1);
    pthread_join(thread, NULL);
    wait_child(child);
}
static void close_while_waiting_client(int fd)
{
    char text[8];
    CHECK(hear() == 1);
    CALL("read", read(fd, text, 8));
    tell(2);
}

/* A set inherited by a child, which waits on it and serves the connection. */
static void inherited_server(int fd)
{
    int set = new_set();
    add(set, fd, EPOLLIN, 1);
    pid_t child = MUST(fork());
    if (child == 0) {
        char text[64];
        for (int i = 0; i < 3; i++) {
            tell(thread_id());
            wait_show("child, asleep until input", set, -1);
            ssize_t n = MUST(read(fd, text, 64));
            write_all(fd, text, n);
        }
        _exit(0);
    }
    wait_child(child);
    tell(thread_id());
    wait_show("parent, asleep until input", set, -1);
}
static void inherited_client(int fd)
{
    char text[64];
    for (int i = 0; i < 3; i++) {
        await_asleep(hear());
        send_text(fd, "hello");
        CALL("read", read(fd, text, 64));
    }
    await_asleep(hear());
    send_text(fd, "parent");
}

/* Members that came into edge-triggered sets at any moment of the promotion, in sets that are waited on when all is over: what was
 * ready on the stream then, and is ready in the ring now, is told. */
enum { ROUNDS = 12, BEFORE = 100 * 1000, BEHIND = 700 };
static void show_sets(const char *what, const int *sets)
{
    for (int i = 0; i < ROUNDS; i++)
        wait_show(what, sets[i], 0);
}
static void over_the_switch_server(int listener)
{
    struct stream out = {1, 0}, in = {2, 0};
    int sets[ROUNDS], fd = accept_from(listener);
    stream_send(&out, fd, BEFORE, BEFORE);
    for (int i = 0; i < ROUNDS; i++) {
        stream_receive(&in, fd, 1, 1);
        sets[i] = new_set();
        add(sets[i], fd, EPOLLOUT | EPOLLET, i);
        meet();
    }
    stream_send(&out, fd, BEHIND, BEHIND);
    MUST(shutdown(fd, SHUT_WR));
    meet();
    show_sets("room", sets);
    meet();
}
static void over_the_switch_client(int port)
{
    struct stream out = {2, 0}, in = {1, 0};
    int sets[ROUNDS], fd = connect_to(AF_INET, port);
    stream_receive(&in, fd, 1, 1);
    for (int i = 0; i < ROUNDS; i++) {
        stream_send(&out, fd, 1, 1);
        sets[i] = new_set();
        add(sets[i], fd, EPOLLIN | EPOLLRDHUP | EPOLLET, i);
        meet();
    }
    meet();
    int late = new_set();
    add(late, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, ROUNDS);
    stream_receive(&in, fd, BEFORE + BEHIND - 1, BEFORE);
    show_sets("the end", sets);
    wait_show("the end", late, 0);
    meet();
}

/* A thread that sleeps for edges, while bytes from before the promotion are unread: what comes behind them is told all the same.
 * Another set waits for the connection as well. */
static int behind_set;
static void *wait_behind(void *unused)
{
    wait_show("before", behind_set, -1);
    tell(thread_id());
    wait_show("behind", behind_set, -1);
    return unused;
}
static void behind_unread_server(int listener)
{
    struct stream out = {1, 0}, in = {2, 0};
    int fd = accept_from(listener);
    stream_send(&out, fd, BEHIND, BEHIND);
    for (int i = 0; i < ROUNDS; i++) {
        stream_receive(&in, fd, 1, 1);
        meet();
    }
    await_asleep(hear());
    stream_send(&out, fd, BEHIND, BEHIND);
    meet();
}
static void behind_unread_client(int port)
{
    struct stream out = {2, 0}, in = {1, 0};
    int other = new_set(), fd = connect_to(AF_INET, port);
    stream_receive(&in, fd, 1, 1);
    for (int i = 0; i < ROUNDS; i++) {
        stream_send(&out, fd, 1, 1);
        meet();
    }
    behind_set = new_set();
    add(behind_set, fd, EPOLLIN | EPOLLET, 0);
    add(other, fd, EPOLLIN | EPOLLET, 1);
    pthread_join(start_thread(wait_behind, NULL), NULL);
    stream_receive(&in, fd, 2 * BEHIND - 1, BEHIND);
    meet();
}

const struct test_case cases[] = {
    CASE(errors), CASE(masks),     RAW_CASE(mixed), CASE(announced), CASE(paced), CASE(one_at_a_time), CASE(nested), RAW_CASE(early), CASE(enter_while_waiting),
    CASE(close_while_waiting), CASE(inherited), RAW_CASE(over_the_switch), RAW_CASE(behind_unread), END_OF_CASES,
};
