/* epoll: level and edge triggered, one-shot, several sets, duplicates, sets that outlive a promotion. */
#include "common.h"

#include "epoll_common.h"

static void level_server(int fd)
{
    int set = new_set();
    char text[64];
    add(set, fd, EPOLLIN, 1);
    wait_show("nothing", set, 0);
    wait_show("nothing for 20 ms", set, 20);
    tell(1);
    await_unread(fd, 10);
    wait_show("input", set, -1);
    wait_show("still", set, 0);
    CALL("read", read(fd, text, 4));
    wait_show("some left", set, 0);
    CALL("read", read(fd, text, 64));
    wait_show("none left", set, 0);
    for (int i = 0; i < 5; i++) {
        tell(thread_id());
        wait_show("asleep until input", set, i % 2 ? 20000 : -1);
        CALL("read", read(fd, text, 64));
    }
    modify(set, fd, EPOLLIN | EPOLLOUT, 2);
    wait_show("output", set, -1);
    wait_show("output still", set, 0);
    modify(set, fd, 0, 3);
    wait_show("nothing asked", set, 0);
}
static void level_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "ten bytes.");
    for (int i = 0; i < 5; i++) {
        await_asleep(hear());
        send_text(fd, "more");
    }
}

/* Events have two names. */
static void other_names_server(int fd)
{
    int set = new_set();
    char text[64];
    add(set, fd, EPOLLRDNORM, 1);
    wait_show("nothing", set, 0);
    tell(1);
    await_unread(fd, 5);
    wait_show("input", set, -1);
    CALL("read", read(fd, text, 64));
    tell(thread_id());
    wait_show("asleep until input", set, -1);
    CALL("read", read(fd, text, 64));
    modify(set, fd, EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM, 2);
    wait_show("room", set, -1);
    modify(set, fd, EPOLLWRNORM | EPOLLET, 3);
    wait_show("room", set, -1);
    wait_show("once only", set, 0);
    tell(2);
    await_unread(fd, 4);
    wait_show("input is no room", set, 0);
    modify(set, fd, EPOLLRDNORM | EPOLLET, 4);
    wait_show("input", set, -1);
    wait_show("once only", set, 0);
}
static void other_names_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "hello");
    await_asleep(hear());
    send_text(fd, "more");
    CHECK(hear() == 2);
    send_text(fd, "more");
}

/* Edge triggered: reported once an arrival, however much is left unread. */
static void edge_server(int fd)
{
    int set = new_set();
    char text[64];
    add(set, fd, EPOLLIN | EPOLLET, 1);
    wait_show("nothing", set, 0);
    tell(1);
    await_unread(fd, 10);
    wait_show("input", set, -1);
    wait_show("once only", set, 0);
    CALL("read a part", read(fd, text, 4));
    wait_show("the rest is no news", set, 0);
    tell(2);
    await_unread(fd, 16);
    wait_show("more came", set, -1);
    wait_show("once only", set, 0);
    CALL("read all", read(fd, text, 64));
    CALL("read", recv(fd, text, 64, MSG_DONTWAIT));
    wait_show("none left", set, 0);
    for (int i = 0; i < 5; i++) {
        tell(thread_id());
        wait_show("asleep until input", set, 20000);
        CALL("read a byte", read(fd, text, 1));
    }
    modify(set, fd, EPOLLIN | EPOLLET, 2);
    wait_show("armed again by MOD", set, 0);
    wait_show("once only", set, 0);
    CALL("read all", read(fd, text, 64));
    tell(1);
    await_events(fd, POLLRDHUP);
    wait_show("the end", set, -1);
    wait_show("once only", set, 0);
    CALL("read", read(fd, text, 64));
    wait_show("once only", set, 0);
}
static void edge_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "ten bytes.");
    CHECK(hear() == 2);
    send_text(fd, "ten bytes.");
    for (int i = 0; i < 5; i++) {
        await_asleep(hear());
        send_text(fd, "xyz");
    }
    CHECK(hear() == 1);
    CALL("shutdown", shutdown(fd, SHUT_WR));
}

/* Edge triggered output: news only after the connection was full and has room again. */
static void edge_out_server(int fd)
{
    struct stream in = {81, 0};
    for (int i = 0; i < 3; i++) {
        stream_receive(&in, fd, hear(), 64 * KIB);
        tell(1);
    }
}
static void edge_out_client(int fd)
{
    static uint8_t buffer[30000];
    struct stream out = {81, 0};
    int set = new_set();
    set_nonblocking(fd, true);
    add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1);
    wait_show("room", set, -1);
    wait_show("once only", set, 0);
    for (int i = 0; i < 3; i++) {
        uint64_t before = out.offset;
        for (bool full = false; !full;) {
            struct stream ahead = out;
            stream_fill(&ahead, buffer, sizeof buffer);
            ssize_t n = write(fd, buffer, sizeof buffer);
            struct epoll_event event;
            if (n > 0)
                out.offset += n;
            else if (epoll_wait(set, &event, 1, 20) == 0)
                full = true;
        }
        wait_show("full", set, 0);
        tell(out.offset - before);
        wait_show("room again", set, 20000);
        CHECK(hear() == 1);
        if (i == 0) /* further room may be further news while the reader goes on: take it before the next round */
            CALL("write", write(fd, buffer, 0));
        struct epoll_event event;
        while (epoll_wait(set, &event, 1, 20) > 0)
            CHECK(!(event.events & ~EPOLLOUT));
    }
}

/* As nginx does it: asks for room only when there is none; input is reported in between. */
static void room_asked_late_server(int fd)
{
    struct stream in = {82, 0};
    size_t much = hear();
    send_text(fd, "input");
    tell(1);
    CHECK(hear() == 1);
    stream_receive(&in, fd, much, 64 * KIB);
    meet();
}
static void room_asked_late_client(int fd)
{
    static uint8_t buffer[30000];
    char text[8];
    struct stream out = {82, 0};
    int set = new_set();
    set_nonblocking(fd, true);
    add(set, fd, EPOLLIN | EPOLLET, 1);
    for (;;) {
        struct stream ahead = out;
        stream_fill(&ahead, buffer, sizeof buffer);
        ssize_t n = write(fd, buffer, sizeof buffer);
        if (n < 0 && poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 100) == 0)
            break;
        out.offset += n < 0 ? 0 : n;
    }
    modify(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 2);
    wait_show("full", set, 0);
    tell(out.offset);
    CHECK(hear() == 1);
    await_unread(fd, 5);
    wait_show("input", set, -1);
    wait_show("once only", set, 0);
    CALL("read", read(fd, text, 8));
    tell(1);
    wait_show("room", set, 20000);
    meet();
}

/* Taken out and put in again between any two messages, as redis-benchmark does it. */
static void in_and_out_server(int fd)
{
    int set = new_set();
    char text[64];
    for (int i = 0; i < 40; i++) {
        add(set, fd, EPOLLIN, i);
        wait_show("input", set, -1);
        drop(set, fd);
        ssize_t n = MUST(read(fd, text, sizeof text));
        add(set, fd, EPOLLOUT, 100 + i);
        wait_show("room", set, -1);
        drop(set, fd);
        write_all(fd, text, n);
    }
    drop(set, fd);
    modify(set, fd, EPOLLIN, 1);
    add(set, fd, EPOLLIN, 2);
    add(set, fd, EPOLLIN, 3);
    drop(set, fd);
    tell(thread_id());
    wait_show("out: asleep until the time is over", set, 300);
    add(set, fd, EPOLLIN | EPOLLET, 4);
    wait_show("input that came meanwhile", set, -1);
    wait_show("once only", set, 0);
    drop(set, fd);
    add(set, fd, EPOLLIN | EPOLLET, 5);
    wait_show("news again", set, -1);
    drop(set, fd);
    int copy = MUST(dup(fd));
    add(set, copy, EPOLLIN, 6);
    wait_show("a copy", set, -1);
    drop(set, copy);
    MUST(close(copy));
    int other = MUST(dup(STDIN_FILENO)), pipes[2];
    CHECK(other == copy);
    MUST(close(other));
    MUST(pipe(pipes));
    CHECK(pipes[0] == copy);
    MUST(write(pipes[1], "x", 1));
    add(set, pipes[0], EPOLLIN, 8);
    wait_show("another of that number", set, -1);
    wait_show("once more", set, -1);
    MUST(close(pipes[0]));
    pid_t child = MUST(fork());
    if (child == 0) {
        wait_show("child: out", set, 0);
        drop(set, fd);
        _exit(0);
    }
    wait_child(child);
    CALL("read", read(fd, text, sizeof text));
    tell(1);
    await_events(fd, POLLRDHUP);
    add(set, fd, EPOLLIN | EPOLLRDHUP, 7);
    wait_show("the end", set, -1);
}
static void in_and_out_client(int fd)
{
    char text[64];
    for (int i = 0; i < 40; i++) {
        send_text(fd, "hello");
        CHECK(MUST(read(fd, text, sizeof text)) == 5);
    }
    await_asleep(hear());
    send_text(fd, "meanwhile");
    CHECK(hear() == 1);
    CALL("shutdown", shutdown(fd, SHUT_WR));
}

static void one_shot_server(int fd)
{
    int set = new_set();
    char text[64];
    add(set, fd, EPOLLIN | EPOLLONESHOT, 1);
    tell(1);
    await_unread(fd, 5);
    wait_show("input", set, -1);
    wait_show("disarmed", set, 0);
    tell(2);
    await_unread(fd, 10);
    wait_show("disarmed still", set, 0);
    modify(set, fd, EPOLLIN | EPOLLONESHOT, 2);
    wait_show("armed again", set, -1);
    wait_show("disarmed", set, 0);
    CALL("read", read(fd, text, 64));
    modify(set, fd, EPOLLIN | EPOLLONESHOT, 3);
    wait_show("armed, nothing there", set, 0);
    tell(thread_id());
    wait_show("asleep until input", set, -1);
    CALL("read", read(fd, text, 64));
    modify(set, fd, EPOLLIN | EPOLLONESHOT | EPOLLET, 4);
    tell(thread_id());
    wait_show("asleep until input", set, -1);
    wait_show("disarmed", set, 0);
    modify(set, fd, EPOLLIN | EPOLLONESHOT | EPOLLET, 5);
    wait_show("armed again", set, 0);
}
static void one_shot_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "hello");
    CHECK(hear() == 2);
    send_text(fd, "hello");
    for (int i = 0; i < 2; i++) {
        await_asleep(hear());
        send_text(fd, "again");
    }
}

/* Ends and errors. */
static void ends_server(int fd)
{
    int set = new_set();
    char text[64];
    add(set, fd, EPOLLIN | EPOLLRDHUP, 1);
    tell(thread_id());
    wait_show("asleep until the end", set, -1);
    CALL("read", read(fd, text, 64));
    wait_show("the end stays", set, 0);
    modify(set, fd, EPOLLIN, 2);
    wait_show("without RDHUP", set, 0);
    CALL("shutdown", shutdown(fd, SHUT_WR));
    wait_show("both ends", set, 0);
    modify(set, fd, 0, 3);
    wait_show("nothing asked", set, 0);
}
static void ends_client(int fd)
{
    await_asleep(hear());
    CALL("shutdown", shutdown(fd, SHUT_WR));
    await_events(fd, POLLHUP);
}

static void reset_server(int fd)
{
    int set = new_set();
    char text[64];
    add(set, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, 1);
    tell(thread_id());
    wait_show("asleep until the reset", set, -1);
    CALL("read", read(fd, text, 64));
    CALL("read", read(fd, text, 64));
    wait_show("once only", set, 0);
}
static void reset_client(int fd)
{
    struct linger linger = {1, 0};
    await_asleep(hear());
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    MUST(close(fd));
}

static void two_sets_server(int fd)
{
    int level = new_set(), edge = new_set();
    char text[64];
    add(level, fd, EPOLLIN, 1);
    add(edge, fd, EPOLLIN | EPOLLOUT | EPOLLET, 2);
    wait_show("edge: output", edge, 0);
    tell(1);
    await_unread(fd, 5);
    wait_show("level", level, -1);
    wait_show("edge", edge, -1);
    wait_show("level again", level, 0);
    wait_show("edge again", edge, 0);
    CALL("read", read(fd, text, 64));
    tell(2);
    await_unread(fd, 5);
    wait_show("edge first", edge, -1);
    wait_show("level", level, 0);
    CALL("read", read(fd, text, 64));
    wait_show("level", level, 0);
    drop(level, fd);
    tell(3);
    await_unread(fd, 5);
    wait_show("level dropped it", level, 0);
    wait_show("edge", edge, 0);
}
static void two_sets_client(int fd)
{
    for (unsigned i = 1; i <= 3; i++) {
        CHECK(hear() == i);
        send_text(fd, "hello");
    }
}

/* Duplicates are entries of their own, and closing one descriptor leaves the other's entry alone. */
static void duplicate_server(int fd)
{
    int set = new_set(), copy = MUST(dup(fd));
    char text[64];
    add(set, fd, EPOLLIN, 1);
    add(set, copy, EPOLLIN, 2);
    tell(1);
    await_unread(fd, 5);
    wait_show("both", set, -1);
    drop(set, fd);
    wait_show("the copy", set, 0);
    MUST(close(fd));
    wait_show("the copy", set, 0);
    CALL("read the copy", read(copy, text, 64));
    tell(thread_id());
    wait_show("asleep until input", set, -1);
    CALL("read the copy", read(copy, text, 64));
    MUST(close(copy));
    wait_show("all closed", set, 0);
}
static void duplicate_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "hello");
    await_asleep(hear());
    send_text(fd, "again");
}

/* One place at a time: a ready descriptor must not starve the others. */
static void fair_server(int listener)
{
    int fds[3], set = new_set(), seen[3] = {0};
    for (int i = 0; i < 3; i++) {
        fds[i] = accept_warm(listener);
        add(set, fds[i], EPOLLIN, i);
    }
    tell(1);
    for (int i = 0; i < 3; i++)
        await_unread(fds[i], 5);
    for (int i = 0; i < 9; i++) {
        struct epoll_event event;
        CHECK(epoll_wait(set, &event, 1, -1) == 1);
        seen[event.data.u64]++;
    }
    say("turns %d %d %d", seen[0], seen[1], seen[2]);
    meet();
}
static void fair_client(int port)
{
    int fds[3];
    for (int i = 0; i < 3; i++)
        fds[i] = connect_warm(port);
    CHECK(hear() == 1);
    for (int i = 0; i < 3; i++)
        send_text(fds[i], "hello");
    meet();
}

const struct test_case cases[] = {
    CASE(level), CASE(other_names), CASE(edge),     CASE(edge_out),  CASE(room_asked_late), CASE(in_and_out), CASE(one_shot), CASE(ends),
    CASE(reset), CASE(two_sets), CASE(duplicate), RAW_CASE(fair), END_OF_CASES,
};
