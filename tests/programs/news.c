/* Epoll sets of many quiet connections: who sleeps on one is woken for each of them, whatever happens to set, process and
 * descriptors meanwhile. The server sleeps whenever it can, and so does the client, at random. */
#include "common.h"

#include <sched.h>

#include "epoll_common.h"

enum { CROWD = 40, TURNS = 300, LONGEST = 200 };

static void serve_one(int fd)
{
    uint8_t buffer[LONGEST];
    ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0) {
        CHECK(errno == EAGAIN);
        return;
    }
    write_all(fd, buffer, n);
}

/* The client's part: one message at a time, on a connection drawn by lot, and its answer. It says when it has done `turns`. */
static void turns(int *fds, struct stream *out, struct stream *in, struct rng *rng, int turns)
{
    uint8_t buffer[LONGEST];
    for (int turn = 0; turn < turns; turn++) {
        int i = between(rng, 0, CROWD - 1);
        size_t n = between(rng, 1, sizeof buffer);
        stream_fill(&out[i], buffer, n);
        write_all(fds[i], buffer, n);
        for (size_t got = 0; got < n;) {
            struct pollfd entry = {.fd = fds[i], .events = POLLIN};
            if (MUST(poll(&entry, 1, 20000)) == 0)
                die("turn %d, connection %d: no answer", turn, i);
            ssize_t r = MUST(recv(fds[i], buffer, sizeof buffer, 0));
            CHECK(r > 0);
            stream_check(&in[i], buffer, r);
            got += r;
        }
        /* Now and then the server gets the time to fall asleep. */
        if (turn % 4 == 0) {
            struct timespec while_ = {0, between(rng, 1, 300) * 1000};
            nanosleep(&while_, NULL);
        }
    }
}

static struct crowd {
    int fds[CROWD];
    struct stream out[CROWD], in[CROWD];
    struct rng rng;
} crowd;

static void gather(int port)
{
    crowd.rng.state = 4711;
    for (int i = 0; i < CROWD; i++) {
        crowd.fds[i] = connect_to(AF_INET, port);
        crowd.out[i].seed = crowd.in[i].seed = 500 + i;
        warm_up(crowd.fds[i], true);
    }
}

static void speak(int port, int parts)
{
    gather(port);
    for (int part = 0; part < parts; part++) {
        meet();
        turns(crowd.fds, crowd.out, crowd.in, &crowd.rng, TURNS / parts);
        tell(part);
    }
    say("%d turns on %d connections", TURNS, CROWD);
    for (int i = 0; i < CROWD; i++)
        MUST(close(crowd.fds[i]));
}

/* The server's sockets, all in `set`. */
static void take_in(int listener, int set, unsigned events, int *fds)
{
    for (int i = 0; i < CROWD; i++) {
        fds[i] = accept_warm(listener);
        struct epoll_event event = {.events = EPOLLIN | events, .data.fd = fds[i]};
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &event));
    }
}

/* Serves until something is said on `stop`, which is in the set as well. */
static void serve(int set, int stop, bool rearm)
{
    for (;;) {
        struct epoll_event events[8];
        int n = epoll_wait(set, events, 8, -1);
        if (n < 0 && errno == EINTR)
            continue;
        CHECK(n > 0);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == stop)
                return;
            serve_one(events[i].data.fd);
            if (rearm) {
                struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.fd = events[i].data.fd};
                MUST(epoll_ctl(set, EPOLL_CTL_MOD, events[i].data.fd, &event));
            }
        }
    }
}

static int stopper(int set)
{
    int stop = MUST(eventfd(0, 0));
    struct epoll_event event = {.events = EPOLLIN, .data.fd = stop};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, stop, &event));
    return stop;
}

struct server {
    int set, stop;
    bool rearm;
};

static void *thread_serves(void *argument)
{
    struct server *server = argument;
    serve(server->set, server->stop, server->rearm);
    return NULL;
}

/* Serves in `threads` threads while the client does its part. */
static void serve_in_threads(struct server server, int threads)
{
    pthread_t ids[8];
    uint64_t one = 1;
    for (int i = 0; i < threads; i++)
        ids[i] = start_thread(thread_serves, &server);
    meet();
    hear();
    MUST(write(server.stop, &one, sizeof one));
    for (int i = 0; i < threads; i++)
        CHECK(pthread_join(ids[i], NULL) == 0);
    MUST(read(server.stop, &one, sizeof one));
}

static void with(int listener, unsigned events, int threads)
{
    int fds[CROWD], set = MUST(epoll_create1(EPOLL_CLOEXEC)), stop = stopper(set);
    take_in(listener, set, events, fds);
    serve_in_threads((struct server){set, stop, events & EPOLLONESHOT}, threads);
    for (int i = 0; i < CROWD; i++)
        MUST(close(fds[i]));
}

static void level_server(int listener) { with(listener, 0, 1); }
static void level_client(int port) { speak(port, 1); }
static void edge_server(int listener) { with(listener, EPOLLET, 1); }
static void edge_client(int port) { speak(port, 1); }
static void one_shot_threads_server(int listener) { with(listener, EPOLLONESHOT, 3); }
static void one_shot_threads_client(int port) { speak(port, 1); }
static void edge_threads_server(int listener) { with(listener, EPOLLET, 3); }
static void edge_threads_client(int port) { speak(port, 1); }

/* Every connection is in two sets, with a thread on each: both are woken, and who comes first serves. */
static void two_sets_server(int listener)
{
    int fds[CROWD], sets[2] = {MUST(epoll_create1(0)), MUST(epoll_create1(0))};
    int stop = stopper(sets[0]);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = stop};
    MUST(epoll_ctl(sets[1], EPOLL_CTL_ADD, stop, &event));
    take_in(listener, sets[0], 0, fds);
    struct server first = {sets[0], stop, false}, second = {sets[1], stop, false};
    for (int part = 0; part < 3; part++) {
        /* Each set alone, then both. */
        uint64_t one = 1;
        pthread_t a = 0, b = 0;
        for (int i = 0; part == 1 && i < CROWD; i++) {
            event = (struct epoll_event){.events = EPOLLIN, .data.fd = fds[i]};
            MUST(epoll_ctl(sets[1], EPOLL_CTL_ADD, fds[i], &event));
        }
        if (part != 1)
            a = start_thread(thread_serves, &first);
        if (part != 0)
            b = start_thread(thread_serves, &second);
        meet();
        hear();
        MUST(write(stop, &one, sizeof one));
        if (part != 1)
            CHECK(pthread_join(a, NULL) == 0);
        if (part != 0)
            CHECK(pthread_join(b, NULL) == 0);
        MUST(read(stop, &one, sizeof one));
    }
    say("both sets served");
    for (int i = 0; i < CROWD; i++)
        MUST(close(fds[i]));
}
static void two_sets_client(int port) { speak(port, 3); }

/* The set is used by its maker, then by a child that inherited it, then by both, then by its maker again. */
static void inherited_server(int listener)
{
    int fds[CROWD], set = MUST(epoll_create1(0)), stop = stopper(set);
    take_in(listener, set, 0, fds);
    for (int part = 0; part < 4; part++) {
        uint64_t one = 1;
        pid_t child = part == 1 || part == 2 ? MUST(fork()) : 1;
        if (child == 0) {
            serve(set, stop, false);
            _exit(0);
        }
        struct server server = {set, stop, false};
        pthread_t thread = 0;
        if (part != 1)
            thread = start_thread(thread_serves, &server);
        meet();
        hear();
        MUST(write(stop, &one, sizeof one));
        if (part != 1)
            CHECK(pthread_join(thread, NULL) == 0);
        if (child > 1)
            wait_child(child);
        MUST(read(stop, &one, sizeof one));
        say("part %d", part);
    }
    for (int i = 0; i < CROWD; i++)
        MUST(close(fds[i]));
}
static void inherited_client(int port) { speak(port, 4); }

/* A child that never touches the set changes nothing, nor does its end. */
static void child_beside_server(int listener)
{
    int fds[CROWD], set = MUST(epoll_create1(0)), stop = stopper(set), pipe_[2];
    take_in(listener, set, 0, fds);
    MUST(pipe(pipe_));
    pid_t child = MUST(fork());
    if (child == 0) {
        char byte;
        MUST(close(pipe_[1]));
        CHECK(read(pipe_[0], &byte, 1) == 0);
        _exit(0);
    }
    serve_in_threads((struct server){set, stop, false}, 1);
    MUST(close(pipe_[1]));
    wait_child(child);
    serve_in_threads((struct server){set, stop, false}, 1);
    for (int i = 0; i < CROWD; i++)
        MUST(close(fds[i]));
}
static void child_beside_client(int port) { speak(port, 2); }

/* Everything that it does not know is closed by the program: by close_range, one by one, or by calls that nobody sees; and
 * something else is put in its place. */
static void closes_all_server(int listener)
{
    int fds[CROWD], set = MUST(epoll_create1(0)), stop = stopper(set), highest = stop, own[64];
    take_in(listener, set, 0, fds);
    for (int i = 0; i < CROWD; i++)
        highest = fds[i] > highest ? fds[i] : highest;
    for (int part = 0; part < 4; part++) {
        serve_in_threads((struct server){set, stop, false}, 1);
        if (part == 0)
            MUST(syscall(SYS_close_range, highest + 1, ~0u, 0));
        for (int fd = highest + 1; part == 1 && fd < 1024; fd++)
            if (close(fd) == 0)
                say("%d was open", fd);
#ifdef __x86_64__
        for (long fd = highest + 1, number, result; part == 2 && fd < 1024; fd++) {
            number = SYS_close;
            __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(fd) : "rcx", "r11", "memory");
        }
#endif
        for (int i = 0; part == 2 && i < 64; i++)
            own[i] = MUST(fcntl(stop, F_DUPFD, 100));
    }
    uint64_t nothing;
    set_nonblocking(stop, true);
    CALL("nothing was written to what took their place", read(own[0], &nothing, sizeof nothing));
    for (int i = 0; i < CROWD; i++)
        MUST(close(fds[i]));
}
static void closes_all_client(int port) { speak(port, 4); }

/* Sets come and go over the same connections; some are closed while a thread sleeps on them. */
static void sets_come_and_go_server(int listener)
{
    int fds[CROWD], set = MUST(epoll_create1(0)), stop = stopper(set);
    take_in(listener, set, 0, fds);
    for (int part = 0; part < 6; part++) {
        serve_in_threads((struct server){set, stop, false}, 1);
        int other = MUST(epoll_create1(0));
        for (int i = 0; i < CROWD; i++) {
            struct epoll_event event = {.events = EPOLLIN | (part % 2 ? EPOLLET : 0), .data.fd = fds[i]};
            if (part % 3 == 0)
                MUST(epoll_ctl(set, EPOLL_CTL_DEL, fds[i], NULL));
            MUST(epoll_ctl(other, EPOLL_CTL_ADD, fds[i], &event));
        }
        MUST(close(set));
        MUST(close(stop));
        set = other;
        stop = stopper(set);
    }
    for (int i = 0; i < CROWD; i++)
        MUST(close(fds[i]));
}
static void sets_come_and_go_client(int port) { speak(port, 6); }

/* A member is taken out, or closed, with news that nobody was told of. */
static void emptied_server(int listener)
{
    int set = MUST(epoll_create1(0));
    for (int part = 0; part < 2; part++) {
        int fd = accept_warm(listener);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
        for (int i = 0; i < 8; i++)
            CHECK(epoll_wait(set, &event, 1, 5) == 0);
        tell(part);
        await_unread(fd, 4);
        if (part == 0)
            MUST(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
        else
            MUST(close(fd));
        CALL("nothing is left in it", epoll_wait(set, &event, 1, 20));
        if (part == 0)
            MUST(close(fd));
    }
}
static void emptied_client(int port)
{
    for (int part = 0; part < 2; part++) {
        int fd = connect_warm(port);
        hear();
        send_text(fd, "news");
        char byte;
        CHECK(read(fd, &byte, 1) < 0 && errno == ECONNRESET);
        MUST(close(fd));
    }
}

/* A member is closed with its news unheard, and another takes its place in the set: one that is on TCP. */
static void in_its_place_server(int listener)
{
    int gone = accept_warm(listener), stays = accept_warm(listener), plain = accept_from(listener), set = new_set();
    char text[8];
    add(set, gone, EPOLLIN, 1);
    add(set, stays, EPOLLIN, 2);
    for (int i = 0; i < 13; i++) {
        tell(thread_id());
        wait_show("asleep until input", set, -1);
        CALL("read", read(i % 2 ? gone : stays, text, sizeof text));
    }
    tell(1);
    CHECK(hear() == 2);
    CALL("read", read(gone, text, sizeof text));
    CALL("close", close(gone));
    add(set, plain, EPOLLOUT, 3);
    wait_show("output", set, 0);
    wait_show("output still", set, 20);
    modify(set, plain, 0, 3);
    wait_show("nothing", set, 0);
    tell(3);
}
static void in_its_place_client(int port)
{
    int gone = connect_warm(port), stays = connect_warm(port);
    connect_to(AF_INET, port);
    for (int i = 0; i < 13; i++) {
        await_asleep(hear());
        send_text(i % 2 ? gone : stays, "more");
    }
    CHECK(hear() == 1);
    send_text(gone, "last");
    tell(2);
    CHECK(hear() == 3);
}

const struct test_case cases[] = {
    RAW_CASE(level),       RAW_CASE(edge),         RAW_CASE(one_shot_threads), RAW_CASE(edge_threads),
    RAW_CASE(two_sets),    RAW_CASE(inherited),    RAW_CASE(child_beside),     RAW_CASE(closes_all),
    RAW_CASE(sets_come_and_go), RAW_CASE(emptied), RAW_CASE(in_its_place), END_OF_CASES,
};
