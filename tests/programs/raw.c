/* The same through syscall(), as Go-like runtimes, node and nginx do for some calls. */
#include "common.h"

static long raw_read(int fd, void *data, size_t length) { return syscall(SYS_read, fd, data, length); }
static long raw_write(int fd, const void *data, size_t length) { return syscall(SYS_write, fd, data, length); }

static void read_write_server(int fd)
{
    static uint8_t buffer[30000];
    for (long n; (n = raw_read(fd, buffer, sizeof buffer)) > 0;)
        for (long at = 0; at < n;)
            at += MUST(raw_write(fd, buffer + at, n - at));
    say("echoed to the end");
    MUST(syscall(SYS_shutdown, fd, SHUT_WR));
}
static void read_write_client(int fd)
{
    static uint8_t buffer[20000];
    struct stream out = {161, 0}, in = {161, 0};
    for (int i = 0; i < 100; i++) {
        stream_fill(&out, buffer, sizeof buffer);
        for (size_t at = 0; at < sizeof buffer;)
            at += MUST(raw_write(fd, buffer + at, sizeof buffer - at));
        for (size_t at = 0; at < sizeof buffer;)
            at += MUST(raw_read(fd, buffer + at, sizeof buffer - at));
        stream_check(&in, buffer, sizeof buffer);
    }
    MUST(syscall(SYS_shutdown, fd, SHUT_WR));
    CALL("read", raw_read(fd, buffer, 1));
    CALL("close", syscall(SYS_close, fd));
    CALL("close", close(fd));
    CALL("read", read(fd, buffer, 1));
}

/* Library calls and raw ones in turn on one connection: one stream. */
static void in_turn_server(int fd)
{
    char text[64];
    struct iovec piece = {text, 5};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    await_unread(fd, 60);
    CALL("read", read(fd, text, 5));
    CALL("SYS_read", syscall(SYS_read, fd, text, 5));
    CALL("recv", recv(fd, text, 5, 0));
    CALL("SYS_recvfrom", syscall(SYS_recvfrom, fd, text, 5, 0, NULL, NULL));
    CALL("SYS_recvmsg", syscall(SYS_recvmsg, fd, &message, 0));
    CALL("SYS_readv", syscall(SYS_readv, fd, &piece, 1));
    CALL("SYS_recvfrom, peek", syscall(SYS_recvfrom, fd, text, 64, MSG_PEEK, NULL, NULL));
    say("%.30s", text);
    int unread = -1;
    CALL("SYS_ioctl FIONREAD", syscall(SYS_ioctl, fd, FIONREAD, &unread));
    say("unread %d", unread);
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    CALL("SYS_poll", syscall(SYS_poll, &entry, 1, -1));
    struct timespec limit = {1, 0};
    CALL("SYS_ppoll", syscall(SYS_ppoll, &entry, 1, &limit, NULL, 8));
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    CALL("SYS_select", syscall(SYS_select, fd + 1, &reading, NULL, NULL, NULL));
    int set = syscall(SYS_epoll_create1, 0);
    struct epoll_event event = {.events = EPOLLIN};
    CALL("SYS_epoll_ctl", syscall(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fd, &event));
    CALL("SYS_epoll_wait", syscall(SYS_epoll_wait, set, &event, 1, -1));
    say("%s", events_name(event.events));
    CALL("read", read(fd, text, 64));
    CALL("SYS_epoll_pwait, nothing", syscall(SYS_epoll_pwait, set, &event, 1, 0, NULL, 8));
    CALL("SYS_recvfrom, empty", syscall(SYS_recvfrom, fd, text, 64, MSG_DONTWAIT, NULL, NULL));
    tell(thread_id());
    CALL("SYS_read, asleep", syscall(SYS_read, fd, text, 64));
    tell(thread_id());
    CALL("SYS_epoll_wait, asleep", syscall(SYS_epoll_wait, set, &event, 1, -1));
    CALL("SYS_fcntl", syscall(SYS_fcntl, fd, F_SETFL, O_NONBLOCK));
    CALL("read", read(fd, text, 64));
    CALL("read", read(fd, text, 64));
    int copy = syscall(SYS_dup, fd);
    CALL("SYS_close", syscall(SYS_close, fd));
    CALL("write", write(fd, "x", 1));
    CALL("write to the copy", write(copy, "copy", 4));
    CALL("SYS_dup2", syscall(SYS_dup2, copy, 60) == 60);
    CALL("SYS_dup3", syscall(SYS_dup3, copy, 61, 0) == 61);
    CALL("SYS_close_range", syscall(SYS_close_range, copy, 60, 0));
    CALL("write to the last copy", write(61, "last", 4));
    CALL("SYS_shutdown", syscall(SYS_shutdown, 61, SHUT_WR));
}
static void in_turn_client(int fd)
{
    char text[16];
    struct iovec piece = {"43210", 5};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    for (int i = 0; i < 2; i++) {
        CALL("write", write(fd, "01234", 5));
        CALL("SYS_write", syscall(SYS_write, fd, "56789", 5));
        CALL("SYS_sendto", syscall(SYS_sendto, fd, "abcde", 5, 0, NULL, 0));
        CALL("send", send(fd, "fghij", 5, 0));
        CALL("SYS_sendmsg", syscall(SYS_sendmsg, fd, &message, 0));
        CALL("SYS_writev", syscall(SYS_writev, fd, &piece, 1));
    }
    for (int i = 0; i < 2; i++) {
        await_asleep(hear());
        MUST(syscall(SYS_write, fd, "again", 5));
    }
    CALL("read 8", recv(fd, text, 8, MSG_WAITALL));
    CALL("read", read(fd, text, 16));
}

/* A connection born by raw calls. */
static void birth_server(int listener)
{
    int fd = MUST(syscall(SYS_accept4, listener, NULL, NULL, SOCK_CLOEXEC));
    warm_up(fd, false);
    struct stream in = {162, 0};
    stream_receive(&in, fd, MIB, 30000);
    say("received");
}
static void birth_client(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = MUST(syscall(SYS_socket, AF_INET, SOCK_STREAM, 0));
    CALL("SYS_connect", syscall(SYS_connect, fd, &to, sizeof to));
    warm_up(fd, true);
    struct stream out = {162, 0};
    stream_send(&out, fd, MIB, 30000);
    say("sent");
}

/* syscall() still does everything else. */
static void others_server(int fd)
{
    CALL("SYS_getpid", syscall(SYS_getpid) == getpid());
    CALL("SYS_mmap", syscall(SYS_mmap, NULL, 4096L, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L) > 0);
    CALL("unknown", syscall(100000));
    CALL("bad descriptor", syscall(SYS_read, 45, NULL, 0L));
    send_text(fd, "x");
}
static void others_client(int fd)
{
    char text[8];
    CALL("read", read(fd, text, 8));
}

/* The waits with a signal mask, asleep each time until the other side sends. */
static void waits_server(int fd)
{
    sigset_t none;
    char byte;
    int set = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    sigemptyset(&none);
    for (int i = 0; i < 40; i++) {
        struct timespec limit = {20, 0};
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        struct {
            const sigset_t *mask;
            size_t size;
        } masked = {&none, 8};
        fd_set reading;
        FD_ZERO(&reading);
        FD_SET(fd, &reading);
        tell(1);
        long n = i % 4 == 0   ? syscall(SYS_ppoll, &entry, 1, &limit, &none, 8)
                 : i % 4 == 1 ? syscall(SYS_pselect6, fd + 1, &reading, NULL, NULL, &limit, &masked)
                 : i % 4 == 2 ? syscall(SYS_epoll_pwait, set, &event, 1, 20000, &none, 8)
                              : syscall(SYS_epoll_pwait2, set, &event, 1, &limit, &none, 8);
        if (n != 1 || (i % 4 < 2 && limit.tv_sec > 19))
            say("round %d: %ld", i, n);
        CHECK(syscall(SYS_read, fd, &byte, 1) == 1);
    }
    struct timespec limit = {0, 1000000};
    CALL("ppoll", syscall(SYS_ppoll, &(struct pollfd){.fd = fd, .events = POLLIN}, 1, &limit, &none, 8));
    say("time left: %d", limit.tv_sec || limit.tv_nsec);
}
static void waits_client(int fd)
{
    for (int i = 0; i < 40; i++) {
        CHECK(hear() == 1);
        send_text(fd, "x");
    }
}

const struct test_case cases[] = {CASE(read_write), CASE(in_turn), RAW_CASE(birth), CASE(others), CASE(waits), END_OF_CASES};
