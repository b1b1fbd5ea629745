/* Families and addresses. */
#include "common.h"

#include <sys/un.h>

static void exchange(int fd, bool first, uint64_t seed)
{
    struct stream out = {seed, 0}, in = {seed, 0};
    int on = 1;
    MUST(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)); /* else Nagle and the delayed ACK wait for each other */
    warm_up(fd, first);
    for (int i = 0; i < 10; i++) {
        if (first)
            stream_send(&out, fd, 50000, 9000);
        stream_receive(&in, fd, 50000, 9000);
        if (!first)
            stream_send(&out, fd, 50000, 9000);
    }
    say("exchanged 10 times");
}

static void show_name(const char *what, int fd, int (*get)(int, struct sockaddr *, socklen_t *))
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    char text[64] = "";
    MUST(get(fd, (struct sockaddr *)&name, &length));
    if (name.ss_family == AF_INET)
        inet_ntop(AF_INET, &((struct sockaddr_in *)&name)->sin_addr, text, sizeof text);
    else if (name.ss_family == AF_INET6)
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&name)->sin6_addr, text, sizeof text);
    say("%s: family %d, %s, length %u", what, name.ss_family, text, length);
}

static void ipv6_server(int unused)
{
    int listener = listen_on(AF_INET6);
    close(unused);
    tell(port_of(listener));
    int fd = accept_from(listener);
    show_name("own", fd, getsockname);
    show_name("peer", fd, getpeername);
    exchange(fd, false, 181);
}
static void ipv6_client(int unused)
{
    (void)unused;
    int fd = connect_to(AF_INET6, hear());
    show_name("own", fd, getsockname);
    show_name("peer", fd, getpeername);
    exchange(fd, true, 181);
}

/* A listener for both families; the peer comes by IPv4, then by IPv6, then by an IPv4-mapped address. */
static void dual_stack_server(int unused)
{
    int listener = MUST(socket(AF_INET6, SOCK_STREAM, 0)), off = 0;
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
    close(unused);
    MUST(setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off));
    MUST(bind(listener, (struct sockaddr *)&any, sizeof any));
    MUST(listen(listener, 8));
    tell(port_of(listener));
    for (int i = 0; i < 3; i++) {
        int fd = accept_from(listener);
        show_name("own", fd, getsockname);
        show_name("peer", fd, getpeername);
        exchange(fd, false, 182);
        close(fd);
    }
}
static void dual_stack_client(int unused)
{
    (void)unused;
    uint16_t port = hear();
    for (int i = 0; i < 3; i++) {
        int fd;
        if (i < 2)
            fd = connect_to(i ? AF_INET6 : AF_INET, port);
        else {
            struct sockaddr_in6 mapped = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
            inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped.sin6_addr);
            fd = MUST(socket(AF_INET6, SOCK_STREAM, 0));
            MUST(connect(fd, (struct sockaddr *)&mapped, sizeof mapped));
        }
        show_name("own", fd, getsockname);
        show_name("peer", fd, getpeername);
        exchange(fd, true, 182);
        close(fd);
    }
}

/* Bound to all addresses, reached through another loopback address from a chosen port. */
static void any_address_server(int unused)
{
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in any = {.sin_family = AF_INET};
    close(unused);
    MUST(bind(listener, (struct sockaddr *)&any, sizeof any));
    MUST(listen(listener, 8));
    tell(port_of(listener));
    struct sockaddr_in peer;
    socklen_t length = sizeof peer;
    int fd = MUST(accept(listener, (struct sockaddr *)&peer, &length));
    char text[32];
    say("accept gave %s, length %u", inet_ntop(AF_INET, &peer.sin_addr, text, sizeof text), length);
    show_name("own", fd, getsockname);
    exchange(fd, false, 183);
}
static void any_address_client(int unused)
{
    (void)unused;
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in mine = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(hear())};
    inet_pton(AF_INET, "127.0.0.9", &mine.sin_addr);
    inet_pton(AF_INET, "127.0.0.5", &to.sin_addr);
    MUST(bind(fd, (struct sockaddr *)&mine, sizeof mine));
    MUST(connect(fd, (struct sockaddr *)&to, sizeof to));
    exchange(fd, true, 183);
}

/* What is no TCP connection is left alone. */
static void strangers_server(int fd)
{
    int pair[2], datagram = MUST(socket(AF_INET, SOCK_DGRAM, 0)), local = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    char text[64] = "";
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "\0sgm-nobody-listens-here"};
    socklen_t length = sizeof name;
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    CALL("write to the pair", write(pair[0], "pair", 4));
    CALL("read", read(pair[1], text, 64));
    MUST(bind(datagram, (struct sockaddr *)&name, sizeof name));
    MUST(getsockname(datagram, (struct sockaddr *)&name, &length));
    CALL("sendto", sendto(datagram, "datagram", 8, 0, (struct sockaddr *)&name, length));
    CALL("recv a part", recv(datagram, text, 4, MSG_TRUNC));
    CALL("connect", connect(local, (struct sockaddr *)&path, sizeof path));
    CALL("connect with a bad family", connect(MUST(socket(AF_INET, SOCK_STREAM, 0)), (struct sockaddr *)&path, 10));
    CALL("connect with a short address", connect(MUST(socket(AF_INET, SOCK_STREAM, 0)), (struct sockaddr *)&name, 3));
    CALL("connect again", connect(fd, (struct sockaddr *)&name, length));
    send_text(fd, "still here");
}
static void strangers_client(int fd)
{
    char text[32];
    CALL("read", read(fd, text, 32));
}

/* A process that talks to itself, both ends in one thread. */
static void own_peer_server(int listener)
{
    uint16_t port = port_of(listener);
    int one = connect_to(AF_INET, port), two = accept_from(listener);
    char text[16];
    for (int i = 0; i < 50; i++) {
        write_all(one, "there and back..", 16);
        CHECK(read_full(two, text, 16) == 16);
        write_all(two, text, 16);
        CHECK(read_full(one, text, 16) == 16);
    }
    CALL("shutdown", shutdown(one, SHUT_WR));
    CALL("read", read(two, text, 16));
    CALL("close", close(two));
    CALL("read", read(one, text, 16));
}
static void own_peer_client(int port) { (void)port; }

/* A server for one connection only, which stops listening as soon as it has it. */
static void one_shot_listener_server(int listener)
{
    int fd = accept_from(listener);
    MUST(close(listener));
    exchange(fd, false, 184);
}
static void one_shot_listener_client(int port) { exchange(connect_to(AF_INET, port), true, 184); }

/* The listener comes from another process by fork and exec (as from systemd or inetd), which keeps it open too. */
static __attribute__((constructor)) void accept_after_exec(void)
{
    if (!getenv("SGM_TEST_ACCEPT_STDIN"))
        return;
    exchange(accept_from(0), false, 185);
    _exit(0);
}
static void inherited_listener_server(int listener)
{
    pid_t child = MUST(fork());
    if (child == 0) {
        MUST(dup2(listener, 0));
        setenv("SGM_TEST_ACCEPT_STDIN", "1", 1);
        execl("/proc/self/exe", "address", NULL);
        _exit(127);
    }
    wait_child(child);
}
static void inherited_listener_client(int port) { exchange(connect_to(AF_INET, port), true, 185); }

/* Options of the listener hold for what it accepts. */
static void inherited_options_server(int listener)
{
    struct linger linger = {1, 0};
    struct timeval limit = {0, 50000};
    MUST(setsockopt(listener, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    MUST(setsockopt(listener, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
    tell(1); /* a connection has its options from the moment that it is made */
    int fd = accept_warm(listener);
    static char buffer[64 * KIB];
    ssize_t n;
    while ((n = write(fd, buffer, sizeof buffer)) > 0)
        ;
    say_result("write that nobody reads", n, errno);
    MUST(close(fd));
    tell(6);
    int low = 5;
    MUST(setsockopt(listener, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
    tell(2);
    fd = accept_from(listener);
    CHECK(hear() == 3);
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    CALL("poll, two bytes of five", poll(&entry, 1, 0));
    tell(4);
    CALL("poll, five", poll(&entry, 1, -1));
    MUST(close(fd));
    tell(5);
}
static void inherited_options_client(int port)
{
    static char buffer[64 * KIB];
    CHECK(hear() == 1);
    int fd = connect_warm(port);
    ssize_t n;
    CHECK(hear() == 6);
    while ((n = read(fd, buffer, sizeof buffer)) > 0)
        ;
    say_result("read", n, errno);
    CHECK(hear() == 2);
    fd = connect_to(AF_INET, port);
    send_text(fd, "ab");
    tell(3);
    CHECK(hear() == 4);
    send_text(fd, "cde");
    CHECK(hear() == 5);
    CALL("read", read(fd, buffer, 8));
}

const struct test_case cases[] = {
    RAW_CASE(inherited_options),
    RAW_CASE(one_shot_listener), RAW_CASE(inherited_listener),
    RAW_CASE(ipv6), RAW_CASE(dual_stack), RAW_CASE(any_address), CASE(strangers), RAW_CASE(own_peer), END_OF_CASES,
};
