/* What a program can ask about a connection. */
#include "common.h"

#include <linux/sockios.h>
#include <netdb.h>

/* FIONREAD counts exactly what a read would give; SIOCOUTQ sinks to 0 when the peer has read all. */
static void unread_server(int fd)
{
    char text[64];
    int unread = -1;
    CALL("FIONREAD", ioctl(fd, FIONREAD, &unread));
    say("unread %d", unread);
    tell(1);
    await_unread(fd, 50);
    CALL("read", read(fd, text, 20));
    CALL("SIOCINQ", ioctl(fd, SIOCINQ, &unread));
    say("unread %d", unread);
    CALL("peek", recv(fd, text, 10, MSG_PEEK));
    CALL("FIONREAD", ioctl(fd, FIONREAD, &unread));
    say("unread %d", unread);
    tell(2);
    await_unread(fd, 80);
    CALL("read", read(fd, text, 64));
    CALL("read", read(fd, text, 64));
    CALL("FIONREAD", ioctl(fd, FIONREAD, &unread));
    say("unread %d", unread);
    tell(3);
    await_events(fd, POLLRDHUP);
    CALL("FIONREAD at the end", ioctl(fd, FIONREAD, &unread));
    say("unread %d", unread);
    CALL("FIONREAD to nowhere", ioctl(fd, FIONREAD, (int *)8));
}
static void unread_client(int fd)
{
    static char text[50];
    CHECK(hear() == 1);
    write_all(fd, text, 50);
    CHECK(hear() == 2);
    write_all(fd, text, 50);
    CHECK(hear() == 3);
    MUST(shutdown(fd, SHUT_WR));
}

static void unsent_server(int fd)
{
    struct stream in = {51, 0};
    stream_receive(&in, fd, hear(), 64 * KIB);
    tell(1);
}
static void unsent_client(int fd)
{
    static uint8_t buffer[50000];
    struct stream out = {51, 0};
    int unsent = -1;
    set_nonblocking(fd, true);
    for (ssize_t n = 0; n >= 0; out.offset += n) {
        struct stream ahead = out;
        stream_fill(&ahead, buffer, sizeof buffer);
        n = write(fd, buffer, sizeof buffer);
        if (n < 0)
            break;
    }
    CALL("SIOCOUTQ", ioctl(fd, SIOCOUTQ, &unsent));
    say("something is unsent when full: %d, but not more than was written: %d", unsent > 0,
        (uint64_t)unsent <= out.offset);
    tell(out.offset);
    CHECK(hear() == 1);
    while (unsent) /* the last acknowledgement may take its time */
        MUST(ioctl(fd, TIOCOUTQ, &unsent));
    say("unsent %d", unsent);
}

static void names_server(int fd)
{
    struct sockaddr_in name;
    char text[INET_ADDRSTRLEN];
    socklen_t length = sizeof name;
    CALL("getsockname", getsockname(fd, (struct sockaddr *)&name, &length));
    say("family %d, %s, length %u", name.sin_family, inet_ntop(AF_INET, &name.sin_addr, text, sizeof text), length);
    tell(ntohs(name.sin_port));
    length = 4;
    memset(&name, 0x55, sizeof name);
    CALL("getpeername with little room", getpeername(fd, (struct sockaddr *)&name, &length));
    say("length %u, the rest untouched: %d", length, name.sin_addr.s_addr == 0x55555555);
    length = sizeof name;
    CALL("getpeername", getpeername(fd, (struct sockaddr *)&name, &length));
    say("same as the peer's own name: %d", hear() == ntohs(name.sin_port));
    tell(0);
    await_events(fd, POLLRDHUP);
    CALL("getpeername after the peer's end", getpeername(fd, (struct sockaddr *)&name, &length));
    MUST(shutdown(fd, SHUT_RDWR));
    while (getpeername(fd, (struct sockaddr *)&name, &length) == 0)
        sched_yield();
    CALL("getpeername after both ends", getpeername(fd, (struct sockaddr *)&name, &length));
}
static void names_client(int fd)
{
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    CALL("getpeername", getpeername(fd, (struct sockaddr *)&name, &length));
    say("same as the peer's own name: %d", hear() == ntohs(name.sin_port));
    tell(port_of(fd));
    CHECK(hear() == 0);
    MUST(shutdown(fd, SHUT_WR));
}

static void show_int(int fd, const char *what, int level, int option)
{
    int value = -1;
    socklen_t length = sizeof value;
    if (getsockopt(fd, level, option, &value, &length) == 0)
        say("%s %d (%u)", what, value, length);
    else
        say("%s: %s", what, strerrorname_np(errno));
}
#define SHOW(level, option) show_int(fd, #option, level, option)
static void set_int(int fd, int level, int option, int value)
{
    CALL("setsockopt", setsockopt(fd, level, option, &value, sizeof value));
}

static void options(int fd)
{
    SHOW(SOL_SOCKET, SO_TYPE);
    SHOW(SOL_SOCKET, SO_DOMAIN);
    SHOW(SOL_SOCKET, SO_PROTOCOL);
    SHOW(SOL_SOCKET, SO_ACCEPTCONN);
    SHOW(SOL_SOCKET, SO_ERROR);
    SHOW(SOL_SOCKET, SO_KEEPALIVE);
    set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    SHOW(SOL_SOCKET, SO_KEEPALIVE);
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    SHOW(IPPROTO_TCP, TCP_NODELAY);
    set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, 33);
    SHOW(IPPROTO_TCP, TCP_KEEPIDLE);
    set_int(fd, SOL_SOCKET, SO_SNDBUF, 50000);
    SHOW(SOL_SOCKET, SO_SNDBUF);
    set_int(fd, SOL_SOCKET, SO_RCVBUF, 60000);
    SHOW(SOL_SOCKET, SO_RCVBUF);
    set_int(fd, SOL_SOCKET, 12345, 1);
    SHOW(SOL_SOCKET, 12345);
    struct timeval limit = {1, 500000};
    socklen_t length = sizeof limit;
    CALL("set SO_RCVTIMEO", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    limit = (struct timeval){0, 0};
    CALL("get SO_RCVTIMEO", getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &length));
    say("%ld.%06ld s", (long)limit.tv_sec, (long)limit.tv_usec);
    struct linger linger = {1, 7};
    length = sizeof linger;
    CALL("set SO_LINGER", setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    CALL("get SO_LINGER", getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &length));
    say("%d %d", linger.l_onoff, linger.l_linger);
    struct tcp_info info;
    length = sizeof info;
    CALL("TCP_INFO", getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
    say("state %d", info.tcpi_state);
    struct stat status;
    CALL("fstat", fstat(fd, &status));
    say("socket %d, size %ld", S_ISSOCK(status.st_mode), (long)status.st_size);
    CALL("isatty", isatty(fd));
    CALL("fsync", fsync(fd));
    CALL("ftruncate", ftruncate(fd, 0));
    CALL("listen", listen(fd, 1));
    CALL("accept", accept(fd, NULL, NULL));
    int mark = -1;
    CALL("SIOCATMARK", ioctl(fd, SIOCATMARK, &mark));
    CALL("ioctl, unknown", ioctl(fd, 0x12345, &mark));
    set_int(fd, SOL_SOCKET, SO_LINGER, 0);
    meet();
}
static void options_server(int fd) { options(fd); }
static void options_client(int fd) { options(fd); }

/* Small kernel buffers asked for by the program: everything still arrives. */
static void buffers_server(int listener)
{
    set_int(listener, SOL_SOCKET, SO_RCVBUF, 4096);
    tell(0);
    int fd = accept_warm(listener);
    struct stream in = {52, 0};
    stream_receive(&in, fd, 2 * MIB, 30000);
    say("received");
}
static void buffers_client(int port)
{
    CHECK(hear() == 0);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    set_int(fd, SOL_SOCKET, SO_SNDBUF, 4096);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CALL("connect", connect(fd, (struct sockaddr *)&to, sizeof to));
    warm_up(fd, true);
    struct stream out = {52, 0};
    stream_send(&out, fd, 2 * MIB, 20000);
    say("sent");
}

const struct test_case cases[] = {
    CASE(unread), CASE(unsent), CASE(names), CASE(options), RAW_CASE(buffers), END_OF_CASES,
};
