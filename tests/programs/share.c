/* One connection behind several descriptors and in several processes: dup, fork, prefork. */
#include "common.h"

#include <linux/close_range.h>

static void echo_lines(int fd, int count)
{
    char text[64];
    for (int i = 0; i < count; i++) {
        ssize_t n = MUST(read(fd, text, sizeof text));
        write_all(fd, text, n);
    }
}
static void ask(int fd, const char *what)
{
    char text[64] = "";
    send_text(fd, what);
    ssize_t n = read(fd, text, sizeof text);
    if (n < 0)
        say("%s -> %s", what, strerrorname_np(errno));
    else
        say("%s -> %.*s", what, (int)n, text);
}

/* Each way of duplicating; each copy works, and closing one leaves the others. */
static void duplicates_server(int fd) { echo_lines(fd, 8); }
static void duplicates_client(int fd)
{
    char text[8];
    int one = MUST(dup(fd)), two = MUST(dup2(fd, 50)), three = MUST(dup3(fd, 51, O_CLOEXEC));
    int four = MUST(fcntl(fd, F_DUPFD, 60)), five = MUST(fcntl(fd, F_DUPFD_CLOEXEC, 61));
    say("numbers %d %d %d %d", two, three, four, five);
    say("close on exec %d %d %d", fcntl(one, F_GETFD), fcntl(three, F_GETFD), fcntl(five, F_GETFD));
    CALL("dup2 onto itself", dup2(fd, fd) == fd);
    CALL("dup3 onto itself", dup3(fd, fd, 0));
    CALL("dup2 of a bad one", dup2(45, 46));
    ask(fd, "original");
    ask(one, "dup");
    ask(two, "dup2");
    ask(three, "dup3");
    ask(four, "F_DUPFD");
    ask(five, "F_DUPFD_CLOEXEC");
    CALL("close", close(fd));
    CALL("read the closed one", read(fd, text, 8));
    ask(one, "after close");
    MUST(close(one));
    MUST(close(two));
    MUST(close(three));
    MUST(close(four));
    ask(five, "the last copy");
    struct stat status;
    say("fstat %d", fstat(five, &status));
}

/* The same numbers come out of every call that makes a descriptor: programs rely on the lowest free one. */
static void numbers_server(int fd) { echo_lines(fd, 1); }
static void numbers_client(int fd)
{
    ask(fd, "hello");
    CALL("close everything above, as daemons do", close_range(fd + 1, ~0u, 0));
    int pipes[2], plain = MUST(socket(AF_INET, SOCK_STREAM, 0)), copy = MUST(dup(fd)), set = MUST(epoll_create1(0));
    MUST(pipe(pipes));
    int counter = MUST(eventfd(0, 0)), file = MUST(open("/dev/null", O_RDONLY));
    say("%d %d %d %d %d %d %d", plain - fd, copy - fd, set - fd, pipes[0] - fd, pipes[1] - fd, counter - fd, file - fd);
    close(copy);
    say("lowest free %d", (int)MUST(dup(0)) - fd);
}

/* dup2 over a connection closes it: the peer sees the end; dup2 of a connection over a file makes the file a connection. */
static void over_server(int fd)
{
    echo_lines(fd, 2);
    char text[8];
    CALL("read", read(fd, text, 8));
}
static void over_client(int fd)
{
    char text[16];
    int file = MUST(open("/dev/zero", O_RDONLY)), target = MUST(open("/dev/null", O_RDWR));
    MUST(dup2(fd, target));
    ask(target, "through the former file");
    MUST(dup2(file, fd));
    ask(target, "still through it");
    CALL("a former connection gives zeroes", read(fd, text, 4));
    say("%d", text[3]);
    MUST(dup2(file, target));
    CALL("gives zeroes too", read(target, text, 4));
}

/* close_range with and without CLOEXEC. */
static void close_range_server(int listener)
{
    int one = accept_warm(listener), two = accept_warm(listener);
    char text[8];
    echo_lines(one, 2);
    CALL("read", read(one, text, 8));
    CALL("read", read(two, text, 8));
}
static void close_range_client(int port)
{
    int one = MUST(dup2(connect_warm(port), 70)), two = MUST(dup2(connect_warm(port), 80));
    for (int fd = 3; fd < 20; fd++)
        if (getpeername(fd, (struct sockaddr *)&(struct sockaddr_in){0}, &(socklen_t){sizeof(struct sockaddr_in)}) == 0)
            close(fd);
    CALL("close_range, on exec", close_range(70, 80, CLOSE_RANGE_CLOEXEC));
    say("close on exec %d %d", fcntl(one, F_GETFD), fcntl(two, F_GETFD));
    ask(one, "still open");
    CALL("close_range around", close_range(71, 79, 0));
    ask(one, "still open");
    CALL("close_range", close_range(70, 80, 0));
    CALL("write", write(one, "x", 1));
    CALL("write", write(two, "x", 1));
}

/* The classic server: a child for each connection, the parent closes its copy. */
static void served_by_child_server(int listener)
{
    for (int i = 0; i < 3; i++) {
        int fd = accept_warm(listener);
        pid_t child = MUST(fork());
        if (child == 0) {
            char *buffer = malloc(64 * KIB);
            close(listener);
            for (ssize_t n; (n = MUST(read(fd, buffer, 64 * KIB))) > 0;)
                write_all(fd, buffer, n);
            _exit(i);
        }
        close(fd);
        wait_child(child);
    }
}
static void served_by_child_client(int port)
{
    for (int i = 0; i < 3; i++) {
        int fd = connect_warm(port);
        static uint8_t buffer[10000];
        struct stream out = {101 + i, 0}, in = out;
        for (int j = 0; j < 50; j++) {
            stream_fill(&out, buffer, sizeof buffer);
            write_all(fd, buffer, sizeof buffer);
            CHECK(read_full(fd, buffer, sizeof buffer) == sizeof buffer);
            stream_check(&in, buffer, sizeof buffer);
        }
        CALL("shutdown", shutdown(fd, SHUT_WR));
        CALL("read", read(fd, buffer, 1));
        CALL("close", close(fd));
    }
}

/* The fork comes before the first byte: the child makes all of the exchange, promotion included. */
static void child_from_the_start_server(int listener)
{
    int fd = accept_from(listener);
    pid_t child = MUST(fork());
    if (child == 0) {
        warm_up(fd, false);
        echo_lines(fd, 20);
        _exit(0);
    }
    close(fd);
    wait_child(child);
}
static void child_from_the_start_client(int port)
{
    int fd = connect_warm(port);
    for (int i = 0; i < 20; i++)
        ask(fd, i % 2 ? "odd" : "even");
    char text[8];
    CALL("read", read(fd, text, 8));
}

/* Parent and child take turns on the same connection; then the child ends and the parent goes on; and once more with the
 * parent's copy closed before the child's. */
static void take_turns_server(int fd)
{
    int there[2], back[2];
    char token = 0;
    MUST(pipe(there));
    MUST(pipe(back));
    pid_t child = MUST(fork());
    for (int i = 0; i < 10; i++) {
        if (child == 0) {
            MUST(read(there[0], &token, 1));
            echo_lines(fd, 2);
            MUST(write(back[1], &token, 1));
        } else {
            echo_lines(fd, 2);
            MUST(write(there[1], &token, 1));
            MUST(read(back[0], &token, 1));
        }
    }
    if (child == 0)
        _exit(0);
    wait_child(child);
    echo_lines(fd, 2);
    child = MUST(fork());
    if (child == 0) {
        MUST(read(there[0], &token, 1));
        echo_lines(fd, 2);
        _exit(0);
    }
    MUST(close(fd));
    MUST(write(there[1], &token, 1));
    wait_child(child);
}
static void take_turns_client(int fd)
{
    char text[8];
    for (int i = 0; i < 44; i++) {
        snprintf(text, sizeof text, "%d", i);
        ask(fd, text);
    }
    CALL("read", read(fd, text, 8));
}

/* The child writes while the parent reads, both at full speed. */
static void divided_server(int fd)
{
    struct stream out = {111, 0}, in = {112, 0};
    pid_t child = MUST(fork());
    if (child == 0) {
        stream_send(&out, fd, 4 * MIB, 30000);
        _exit(0);
    }
    stream_receive(&in, fd, 4 * MIB, 30000);
    wait_child(child);
    say("both done");
    meet();
}
static void divided_client(int fd)
{
    struct stream out = {112, 0}, in = {111, 0};
    pid_t child = MUST(fork());
    if (child == 0) {
        stream_receive(&in, fd, 4 * MIB, 30000);
        _exit(0);
    }
    stream_send(&out, fd, 4 * MIB, 30000);
    wait_child(child);
    say("both done");
    meet();
}

/* Several children accept from one listener. */
static void prefork_server(int listener)
{
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
        children[i] = MUST(fork());
        if (children[i] == 0) {
            for (int j = 0; j < 3; j++) {
                int fd = accept_warm(listener);
                echo_lines(fd, 20);
                close(fd);
            }
            _exit(0);
        }
    }
    for (int i = 0; i < 4; i++)
        wait_child(children[i]);
}
static void prefork_client(int port)
{
    char text[16], answer[16];
    for (int i = 0; i < 12; i++) {
        int fd = connect_warm(port);
        for (int j = 0; j < 20; j++) {
            int n = snprintf(text, sizeof text, "%d %d", i, j);
            write_all(fd, text, n);
            CHECK(read(fd, answer, sizeof answer) == n && !memcmp(text, answer, n));
        }
        CHECK(read(fd, text, 1) == 0);
        close(fd);
    }
    say("12 connections served");
}

/* The fork comes when the client has offered to have the connection carried: one process waits in the kernel's own receive while the
 * server takes the offer, and the other one goes on. */
enum { HEADS = 12, LINES = 20, LINE = 8 };
static void parted_before_promotion_server(int listener)
{
    char line[LINE];
    int fd = accept_from(listener);
    CHECK(hear() == 1);
    for (int i = 0; i < HEADS * LINE; i += 4)
        CHECK(read_full(fd, line, 4) == 4);
    tell(2);
    for (int i = 0; i < LINES; i++) {
        CHECK(read_full(fd, line, LINE) == LINE);
        write_all(fd, line, LINE);
    }
    MUST(close(fd));
}
static void parted_before_promotion_client(int port)
{
    char line[LINE] = "";
    int fd = connect_to(AF_INET, port);
    for (int i = 0; i < HEADS; i++)
        write_all(fd, "a head..", LINE);
    pid_t reader = getpid(), writer = MUST(fork());
    if (writer == 0) {
        await_asleep(reader);
        tell(1);
        CHECK(hear() == 2);
        for (int i = 0; i < LINES; i++)
            write_all(fd, "a line..", LINE);
        _exit(0);
    }
    size_t n = 0;
    while (read_full(fd, line, LINE) == LINE && !memcmp(line, "a line..", LINE))
        n++;
    say("%zu answers", n);
    wait_child(writer);
    MUST(close(fd));
}

const struct test_case cases[] = {
    CASE(duplicates),          CASE(numbers), CASE(over),        RAW_CASE(close_range),
    RAW_CASE(served_by_child), RAW_CASE(child_from_the_start), CASE(take_turns), CASE(divided),
    RAW_CASE(prefork),         RAW_CASE(parted_before_promotion), END_OF_CASES,
};
