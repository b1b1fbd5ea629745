/* The flags of recv and send. */
#include "common.h"

static void peek_server(int fd)
{
    char text[128];
    CALL("peek, empty", recv(fd, text, 10, MSG_PEEK | MSG_DONTWAIT));
    tell(1);
    await_unread(fd, 100);
    struct stream in = {31, 0}, look = in;
    long n = CALL("peek 10", recv(fd, text, 10, MSG_PEEK));
    stream_check(&look, text, n);
    look = in;
    n = CALL("peek 128", recv(fd, text, 128, MSG_PEEK));
    stream_check(&look, text, n);
    n = CALL("read 30", read(fd, text, 30));
    stream_check(&in, text, n);
    look = in;
    struct iovec pieces[2] = {{text, 20}, {text + 20, 90}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    n = CALL("peek by recvmsg", recvmsg(fd, &message, MSG_PEEK));
    stream_check(&look, text, n);
    say("poll still says %s", events_name(await_events(fd, POLLIN)));
    CALL("peek and wait for all of 70", recv(fd, text, 70, MSG_PEEK | MSG_WAITALL));
    n = CALL("read the rest", read(fd, text, 128));
    stream_check(&in, text, n);
    CALL("peek, empty again", recv(fd, text, 10, MSG_PEEK | MSG_DONTWAIT));
    tell(2);
    /* A blocking peek wakes as a read does, and a peek at the end gives 0 every time. */
    CALL("blocking peek", recv(fd, text, 5, MSG_PEEK));
    CALL("read", read(fd, text, 5));
    CALL("blocking peek at the end", recv(fd, text, 5, MSG_PEEK));
    CALL("peek at the end", recv(fd, text, 5, MSG_PEEK));
    CALL("read at the end", read(fd, text, 5));
    meet();
}
static void peek_client(int fd)
{
    struct stream out = {31, 0};
    CHECK(hear() == 1);
    stream_send(&out, fd, 100, 100);
    CHECK(hear() == 2);
    send_text(fd, "hello");
    MUST(shutdown(fd, SHUT_WR));
    meet();
}

/* A peek that waits for all waits, whatever is there before. */
static void peek_all_server(int fd)
{
    char text[128];
    await_unread(fd, 30);
    tell(thread_id());
    CALL("peek and wait for all of 70", recv(fd, text, 70, MSG_PEEK | MSG_WAITALL));
    CALL("read", recv(fd, text, 100, MSG_WAITALL));
    meet();
    CALL("peek and wait for all, at the end", recv(fd, text, 70, MSG_PEEK | MSG_WAITALL));
    CALL("read", read(fd, text, 128));
}
static void peek_all_client(int fd)
{
    stream_send(&(struct stream){33, 0}, fd, 30, 30);
    await_asleep(hear());
    stream_send(&(struct stream){33, 30}, fd, 70, 70);
    meet();
    stream_send(&(struct stream){33, 100}, fd, 20, 20);
    shutdown(fd, SHUT_WR);
}

static void wait_all_server(int fd)
{
    static uint8_t buffer[2 * MIB];
    struct stream in = {32, 0};
    tell(thread_id());
    long n = CALL("all of 4000 in pieces", recv(fd, buffer, 4000, MSG_WAITALL));
    stream_check(&in, buffer, n);
    tell(1);
    n = CALL("all of 1500000", recv(fd, buffer, 1500000, MSG_WAITALL));
    stream_check(&in, buffer, n);
    tell(2);
    await_unread(fd, 100);
    n = CALL("all of 200, not waiting", recv(fd, buffer, 200, MSG_WAITALL | MSG_DONTWAIT));
    stream_check(&in, buffer, n);
    tell(3);
    struct iovec pieces[2] = {{buffer, 300}, {buffer + 300, 300}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    n = CALL("all of 600 by recvmsg", recvmsg(fd, &message, MSG_WAITALL));
    stream_check(&in, buffer, n);
    n = CALL("all of 500, cut short by the end", recv(fd, buffer, 500, MSG_WAITALL));
    stream_check(&in, buffer, n);
    CALL("all of 500 at the end", recv(fd, buffer, 500, MSG_WAITALL));
}
static void wait_all_client(int fd)
{
    struct stream out = {32, 0};
    pid_t reader = hear();
    for (int i = 0; i < 4; i++) {
        await_asleep(reader);
        stream_send(&out, fd, 1000, 1000);
    }
    CHECK(hear() == 1);
    stream_send(&out, fd, 1500000, 90000);
    CHECK(hear() == 2);
    stream_send(&out, fd, 100, 100);
    CHECK(hear() == 3);
    stream_send(&out, fd, 300, 300);
    await_asleep(reader);
    stream_send(&out, fd, 350, 350);
    MUST(shutdown(fd, SHUT_WR));
}

/* MSG_DONTWAIT on a blocking socket; the calls beside it still block. */
static void dont_wait_server(int fd)
{
    char text[16];
    CALL("recv, empty", recv(fd, text, sizeof text, MSG_DONTWAIT));
    struct msghdr message = {.msg_iov = &(struct iovec){text, sizeof text}, .msg_iovlen = 1};
    CALL("recvmsg, empty", recvmsg(fd, &message, MSG_DONTWAIT));
    tell(thread_id());
    CALL("blocking recv", recv(fd, text, sizeof text, 0));
    CALL("recv, empty", recv(fd, text, sizeof text, MSG_DONTWAIT));
    /* The other side now fills the connection without anybody reading. */
    tell(1);
    size_t total = hear();
    struct stream in = {33, 0};
    stream_receive(&in, fd, total, 64 * KIB);
    CALL("recv, empty", recv(fd, text, sizeof text, MSG_DONTWAIT));
    tell(2);
}
static void dont_wait_client(int fd)
{
    static uint8_t buffer[10000];
    await_asleep(hear());
    send_text(fd, "hello");
    CHECK(hear() == 1);
    struct stream out = {33, 0};
    for (;;) {
        struct stream ahead = out;
        stream_fill(&ahead, buffer, sizeof buffer);
        ssize_t n = send(fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (n < 0)
            break;
        out.offset += n;
    }
    CALL("send to the full connection", send(fd, buffer, 1, MSG_DONTWAIT));
    CHECK(out.offset > sizeof buffer);
    tell(out.offset);
    CHECK(hear() == 2);
    CALL("send to the empty connection", send(fd, buffer, 1, MSG_DONTWAIT));
}

/* MSG_TRUNC on a stream throws bytes away instead of copying them. */
static void truncate_server(int fd)
{
    char text[64];
    memset(text, 'x', sizeof text);
    await_unread(fd, 60);
    CALL("throw away 20", recv(fd, text, 20, MSG_TRUNC));
    say("the buffer still holds %.20s", text);
    CALL("throw away 10 without a buffer", recv(fd, NULL, 10, MSG_TRUNC));
    CALL("look at 40 and throw away", recv(fd, text, 40, MSG_TRUNC | MSG_PEEK));
    long n = CALL("read", read(fd, text, sizeof text));
    struct stream in = {34, 30};
    stream_check(&in, text, n);
    meet();
}
static void truncate_client(int fd)
{
    struct stream out = {34, 0};
    stream_send(&out, fd, 60, 60);
    meet();
}
/* "More follows" may delay bytes but never loses them. */
static void more_server(int fd)
{
    char text[64] = "";
    CALL("all of 20", recv(fd, text, 20, MSG_WAITALL));
    say("%s", text);
    tell(1);
    CALL("all of 10", recv(fd, text, 10, MSG_WAITALL));
    tell(2);
}
static void more_client(int fd)
{
    int on = 1, off = 0;
    CALL("send with more", send(fd, "0123456789", 10, MSG_MORE));
    CALL("send", send(fd, "abcdefghij", 10, 0));
    CHECK(hear() == 1);
    CALL("cork", setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on));
    CALL("write", write(fd, "01234", 5));
    CALL("write", write(fd, "56789", 5));
    CALL("uncork", setsockopt(fd, IPPROTO_TCP, TCP_CORK, &off, sizeof off));
    CHECK(hear() == 2);
}

/* Flags that make no difference, and those that ask for something else than the stream. */
static void odd_server(int fd)
{
    char text[64];
    struct msghdr message = {.msg_iov = &(struct iovec){text, sizeof text}, .msg_iovlen = 1};
    CALL("error queue, empty", recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT));
    CALL("out of band, none there", recv(fd, text, 1, MSG_OOB));
    tell(1);
    await_unread(fd, 12);
    CALL("recv with NOSIGNAL and CMSG_CLOEXEC", recv(fd, text, 12, MSG_NOSIGNAL | MSG_CMSG_CLOEXEC));
    tell(2);
}
static void odd_client(int fd)
{
    CHECK(hear() == 1);
    CALL("send with NOSIGNAL", send(fd, "0123", 4, MSG_NOSIGNAL));
    CALL("send with CONFIRM", send(fd, "4567", 4, MSG_CONFIRM));
    CALL("send with DONTROUTE", send(fd, "89ab", 4, MSG_DONTROUTE));
    CHECK(hear() == 2);
}

/* SO_RCVLOWAT: nothing is readable before so many bytes are there. */
static void low_water_server(int fd)
{
    static char text[1000];
    int mark = 100, got = 0;
    socklen_t length = sizeof got;
    CALL("set", setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark));
    CALL("get", getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &got, &length));
    say("mark %d", got);
    tell(1);
    await_unread(fd, 60);
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    CALL("poll with 60 there", poll(&entry, 1, 0));
    tell(thread_id());
    CALL("blocking read of 200", read(fd, text, 200));
    tell(2);
}
static void low_water_client(int fd)
{
    static char text[140];
    CHECK(hear() == 1);
    write_all(fd, text, 60);
    await_asleep(hear());
    write_all(fd, text, 140);
    CHECK(hear() == 2);
}

const struct test_case cases[] = {
    CASE(peek), CASE(peek_all), CASE(wait_all), CASE(dont_wait), CASE(truncate), CASE(more), CASE(odd), CASE(low_water), END_OF_CASES,
};
