/* A connection whose peer is gone and has left bytes in the ring, given to whom only the kernel's stream reaches, while others hold
 * it as well: whoever reads, reads on where the last one stopped, and the socket is what it was. */
#include "common.h"

enum { LEFT = 200000, PART = 30000 };

/* The others hold it on. */
static void give_by_child(int fd)
{
    pid_t child = MUST(fork());
    if (child == 0) {
        give_back(fd);
        _exit(0);
    }
    wait_child(child);
}

static void leave_bytes(int fd)
{
    stream_send(&(struct stream){301, 0}, fd, LEFT, LEFT);
    MUST(close(fd));
    tell(1);
}

static void read_part(struct stream *in, int fd) { stream_receive(in, fd, PART, 7000); }

static void say_end(int fd)
{
    char byte;
    CALL("read", read(fd, &byte, 1));
    CALL("read", read(fd, &byte, 1));
}

/* The children give it away, one after the other; all of them and their parent read. */
static void shared_server(int fd)
{
    struct stream in = {301, 0};
    CHECK(hear() == 1);
    for (int i = 0; i < 2; i++) {
        pid_t child = MUST(fork());
        if (child == 0) {
            give_back(fd);
            read_part(&in, fd);
            _exit(0);
        }
        wait_child(child);
        in.offset += PART;
    }
    read_part(&in, fd);
    stream_receive(&in, fd, LEFT - 3 * PART, LEFT);
    say_end(fd);
}
static void shared_client(int fd) { leave_bytes(fd); }

/* It is given away while another process reads, a little at a time. */
static void beside_server(int fd)
{
    CHECK(hear() == 1);
    pid_t child = MUST(fork());
    if (child == 0) {
        give_back(fd);
        _exit(0);
    }
    struct stream in = {301, 0};
    stream_receive(&in, fd, LEFT, 97);
    say_end(fd);
    wait_child(child);
}
static void beside_client(int fd) { leave_bytes(fd); }

/* It is given away while a splice waits for room in the pipe. */
static void spliced_server(int fd)
{
    enum { FILL = 4096 };
    static uint8_t data[FILL];
    int pipes[2];
    pid_t parent = getpid();
    MUST(pipe(pipes));
    MUST(fcntl(pipes[0], F_SETPIPE_SZ, FILL));
    CHECK(MUST(write(pipes[1], data, FILL)) == FILL);
    CHECK(hear() == 1);
    pid_t child = MUST(fork());
    if (child == 0) {
        await_asleep(parent);
        give_back(fd);
        CHECK(read_full(pipes[0], data, FILL) == FILL);
        _exit(0);
    }
    ssize_t n = MUST(splice(fd, NULL, pipes[1], NULL, FILL, 0));
    wait_child(child);
    CHECK(read_full(pipes[0], data, n) == n);
    struct stream in = {301, 0};
    stream_check(&in, data, n);
    stream_receive(&in, fd, LEFT - n, LEFT);
    say_end(fd);
}
static void spliced_client(int fd) { leave_bytes(fd); }

static void await_stopped(pid_t process)
{
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", process);
    while (!strstr(text, ") T ")) {
        int fd = MUST(open(path, O_RDONLY));
        text[MUST(read(fd, text, sizeof text - 1))] = 0;
        MUST(close(fd));
        usleep(1000); /* as in await_asleep */
    }
}

/* A reader that was asleep, and stopped, while its peer sent, was killed, and the rest was given away: woken, it takes no byte for a
 * doorbell. */
static void stopped_server(int fd)
{
    pid_t parent = getpid(), child = MUST(fork());
    if (child == 0) {
        await_asleep(parent);
        MUST(kill(parent, SIGSTOP));
        await_stopped(parent);
        tell(3);
        CHECK(hear() == 1);
        give_back(fd);
        MUST(kill(parent, SIGCONT));
        _exit(0);
    }
    struct stream in = {301, 0};
    stream_receive(&in, fd, PART, PART);
    say_end(fd);
    wait_child(child);
}
static void stopped_client(int fd)
{
    pid_t child = MUST(fork());
    if (child == 0) {
        CHECK(hear() == 3);
        stream_send(&(struct stream){301, 0}, fd, PART, PART);
        tell(1);
        raise(SIGKILL);
    }
    MUST(close(fd));
    MUST(waitpid(child, NULL, 0));
}

/* What the program set stays set, and what waits for it goes on waiting: level, edge, one-shot, in both processes. */
static void settings_server(int fd)
{
    int on = 1, size = 0, sets[3];
    socklen_t length = sizeof size;
    struct timeval limit = {7, 0};
    struct epoll_event events[3] = {{.events = EPOLLIN}, {.events = EPOLLIN | EPOLLET}, {.events = EPOLLIN | EPOLLONESHOT}}, got;
    set_nonblocking(fd, true);
    MUST(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
    MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    for (int i = 0; i < 3; i++) {
        sets[i] = MUST(epoll_create1(0));
        MUST(epoll_ctl(sets[i], EPOLL_CTL_ADD, fd, &events[i]));
    }
    CHECK(hear() == 1);
    give_by_child(fd);
    for (int i = 0; i < 3; i++)
        say("set %d: %d, %s", i, epoll_wait(sets[i], &got, 1, 2000), events_name(got.events & ~EPOLLRDHUP));
    await_events(fd, POLLIN);
    struct stream in = {301, 0};
    say("%zu bytes", stream_receive_to_end(&in, fd));
    say("set 0: %d, %s", epoll_wait(sets[0], &got, 1, 2000), events_name(got.events & ~EPOLLRDHUP));
    MUST(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &size, &length));
    say("keepalive %d, non-blocking %d", size, !!(fcntl(fd, F_GETFL) & O_NONBLOCK));
    MUST(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &(socklen_t){sizeof limit}));
    say("time-out %ld s", (long)limit.tv_sec);
    CALL("SO_ERROR", getsockopt(fd, SOL_SOCKET, SO_ERROR, &size, &length) ? -1 : size);
}
static void settings_client(int fd) { leave_bytes(fd); }

/* A half that was shut stays shut; what is sent to nobody is refused in the end. */
static void halves_server(int fd)
{
    CHECK(hear() == 1);
    MUST(shutdown(fd, SHUT_WR));
    give_back(fd);
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    struct stream in = {301, 0};
    say("%zu bytes", stream_receive_to_end(&in, fd));
    say_end(fd);
}
static void halves_client(int fd) { leave_bytes(fd); }

/* A peer that is killed with bytes of ours unread: all of its own come, then the reset. */
static void reset_server(int fd)
{
    CHECK(hear() == 1);
    give_by_child(fd);
    static uint8_t data[LEFT];
    CALL("read", read_full(fd, data, LEFT / 4));
    char byte;
    CALL("read", read(fd, &byte, 1));
    CALL("read", read(fd, &byte, 1));
}
static void reset_client(int fd)
{
    stream_send(&(struct stream){301, 0}, fd, LEFT / 4, LEFT);
    struct linger at_once = {1, 0};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once));
    MUST(close(fd));
    tell(1);
}

/* The giver has shut both ways, with bytes of the peer unread: the kernel tells of a hang-up then, but the peer lives and reads. */
enum { MORE = 200000 };
static void alive_server(int fd)
{
    CHECK(hear() == 1);
    MUST(shutdown(fd, SHUT_RD));
    stream_send(&(struct stream){302, 0}, fd, MORE, MORE / 4);
    MUST(shutdown(fd, SHUT_WR));
    give_back(fd);
    char data[PART];
    CALL("read", read_full(fd, data, sizeof data));
    MUST(close(fd));
    tell(2);
}
static void alive_client(int fd)
{
    stream_send(&(struct stream){301, 0}, fd, PART / 2, PART);
    tell(1);
    CHECK(hear() == 2);
    struct stream in = {302, 0};
    say("%zu bytes", stream_receive_to_end(&in, fd));
}

/* Whatever addresses it has: IPv4, IPv6, the one in the clothes of the other, bound by the program. */
static void addresses_server(int listener)
{
    int any = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
    MUST(setsockopt(any, IPPROTO_IPV6, IPV6_V6ONLY, &(int){0}, sizeof(int)));
    MUST(bind(any, (struct sockaddr *)&address, sizeof address));
    MUST(listen(any, 8));
    int listeners[] = {listener, listen_on(AF_INET6), any, listener};
    for (int i = 0; i < 4; i++) {
        tell(port_of(listeners[i]));
        int fd = accept_warm(listeners[i]);
        if (i < 3) {
            CHECK(hear() == 1);
            give_back(fd);
            struct stream in = {301, 0};
            say("%d: %zu bytes", i, stream_receive_to_end(&in, fd));
            MUST(close(fd));
            tell(2);
        } else {
            leave_bytes(fd);
        }
    }
}
static void addresses_client(int port)
{
    for (int i = 0; i < 4; i++) {
        int to = hear(), fd;
        CHECK(to);
        if (i < 3) {
            fd = connect_to(i == 1 ? AF_INET6 : AF_INET, to);
        } else {
            struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
            fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
            MUST(bind(fd, (struct sockaddr *)&address, sizeof address));
            address.sin_port = htons(to);
            MUST(connect(fd, (struct sockaddr *)&address, sizeof address));
        }
        warm_up(fd, true);
        if (i < 3) {
            leave_bytes(fd);
            CHECK(hear() == 2);
        } else {
            CHECK(hear() == 1);
            give_back(fd);
            struct stream in = {301, 0};
            say("%d: %zu bytes", i, stream_receive_to_end(&in, fd));
        }
    }
    say("port told first: %d", port > 0);
}

/* Several processes give it away at the same time, and read: nobody's end comes before all is read. */
enum { ROUNDS = 20, GIVERS = 3 };
static void at_once_server(int listener)
{
    for (int i = 0; i < ROUNDS; i++) {
        int fd = accept_warm(listener), start[2], results[2];
        size_t total = 0, read_here;
        MUST(pipe(start));
        MUST(pipe(results));
        CHECK(hear() == 1);
        for (int j = 0; j < GIVERS; j++)
            if (MUST(fork()) == 0) {
                char data[7001];
                MUST(close(start[1]));
                CHECK(read(start[0], data, 1) == 0);
                give_back(fd);
                read_here = 0;
                for (ssize_t n; (n = MUST(read(fd, data, sizeof data))) > 0; read_here += n)
                    ;
                write_all(results[1], &read_here, sizeof read_here);
                _exit(0);
            }
        MUST(close(start[0]));
        MUST(close(start[1]));
        for (int j = 0; j < GIVERS; j++) {
            CHECK(read_full(results[0], &read_here, sizeof read_here) == sizeof read_here);
            total += read_here;
            MUST(wait(NULL));
        }
        if (total != LEFT)
            say("round %d: %zu bytes", i, total);
        MUST(close(fd));
        MUST(close(results[0]));
        MUST(close(results[1]));
    }
    say("%d rounds", ROUNDS);
}
static void at_once_client(int port)
{
    for (int i = 0; i < ROUNDS; i++)
        leave_bytes(connect_warm(port));
}

const struct test_case cases[] = {CASE(shared), CASE(beside), CASE(spliced), CASE(stopped), CASE(settings), CASE(halves), CASE(reset), CASE(alive), RAW_CASE(addresses), RAW_CASE(at_once), END_OF_CASES};
