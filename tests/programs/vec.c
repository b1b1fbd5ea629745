/* Scattered and gathered transfers: readv, writev, sendmsg, recvmsg and their plural and positioned relatives. */
#include "common.h"

#include <dlfcn.h>

enum { VECTORS = 64, LARGEST = 3000 };

/* Cuts `buffer` into up to `count` pieces of random length, some of them empty. */
static size_t cut(struct rng *rng, uint8_t *buffer, struct iovec *pieces, int count)
{
    size_t total = 0;
    for (int i = 0; i < count; i++) {
        size_t n = between(rng, 0, 5) == 0 ? 0 : between(rng, 1, LARGEST);
        pieces[i] = (struct iovec){buffer + total, n};
        total += n;
    }
    return total;
}

static void send_vectors(int fd, bool as_message)
{
    struct rng rng = {21};
    struct stream out = {22, 0};
    static uint8_t buffer[VECTORS * LARGEST];
    struct iovec pieces[VECTORS];
    while (out.offset < 3 * MIB) {
        int count = between(&rng, 1, VECTORS);
        size_t total = cut(&rng, buffer, pieces, count);
        stream_fill(&out, buffer, total);
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
        ssize_t n = MUST(as_message ? sendmsg(fd, &message, 0) : writev(fd, pieces, count));
        CHECK((size_t)n == total); /* a blocking call takes everything */
    }
    say("sent %llu bytes", (unsigned long long)out.offset);
    MUST(close(fd));
}

static void receive_vectors(int fd, bool as_message)
{
    struct rng rng = {23};
    struct stream in = {22, 0};
    static uint8_t buffer[VECTORS * LARGEST];
    struct iovec pieces[VECTORS];
    for (;;) {
        int count = between(&rng, 1, VECTORS);
        size_t room = cut(&rng, buffer, pieces, count);
        if (room == 0)
            continue;
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
        ssize_t n = MUST(as_message ? recvmsg(fd, &message, 0) : readv(fd, pieces, count));
        if (n == 0)
            break;
        stream_check(&in, buffer, n);
    }
    say("received %llu bytes", (unsigned long long)in.offset);
}

static void vectors_server(int fd) { receive_vectors(fd, false); }
static void vectors_client(int fd) { send_vectors(fd, false); }
static void messages_server(int fd) { receive_vectors(fd, true); }
static void messages_client(int fd) { send_vectors(fd, true); }

static void iov_limit_server(int fd)
{
    static uint8_t buffer[1025 * 7];
    static struct iovec pieces[1025];
    struct stream in = {24, 0};
    for (int i = 0; i < 1025; i++)
        pieces[i] = (struct iovec){buffer + i * 7, 7};
    await_unread(fd, 1024 * 7);
    CALL("readv of 1025", readv(fd, pieces, 1025));
    volatile int negative = -1; /* hidden from the compiler, which would warn */
    CALL("readv of -1", readv(fd, pieces, negative));
    CALL("readv of 0", readv(fd, pieces, 0));
    long n = CALL("readv of 1024", readv(fd, pieces, 1024));
    stream_check(&in, buffer, n);
}
static void iov_limit_client(int fd)
{
    static uint8_t buffer[1025 * 7];
    static struct iovec pieces[1025];
    struct stream out = {24, 0};
    stream_fill(&out, buffer, sizeof buffer);
    for (int i = 0; i < 1025; i++)
        pieces[i] = (struct iovec){buffer + i * 7, 7};
    CALL("writev of 1025", writev(fd, pieces, 1025));
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 1025};
    CALL("sendmsg of 1025", sendmsg(fd, &message, 0));
    CALL("writev of 0", writev(fd, pieces, 0));
    CALL("writev of 1024", writev(fd, pieces, 1024));
}

/* What recvmsg and recvfrom write besides the data. */
static void details_server(int fd)
{
    char text[8], more[8], control[64];
    struct sockaddr_storage name;
    struct iovec pieces[2] = {{text, 3}, {more, 8}};
    struct msghdr message = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = pieces, .msg_iovlen = 2,
                             .msg_control = control, .msg_controllen = sizeof control, .msg_flags = -1};
    await_unread(fd, 8);
    CALL("recvmsg", recvmsg(fd, &message, 0));
    say("%.3s %.5s, name %u, control %zu, flags %x", text, more, message.msg_namelen, message.msg_controllen,
        message.msg_flags);
    tell(1);
    socklen_t length = sizeof name;
    await_unread(fd, 4);
    CALL("recvfrom", recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&name, &length));
    say("address of %u bytes", length);
    tell(2);
    await_unread(fd, 4);
    CALL("recvfrom without address", recvfrom(fd, text, sizeof text, 0, NULL, NULL));
}
static void details_client(int fd)
{
    char one[] = "one", two[] = "two22";
    struct iovec pieces[3] = {{one, 3}, {NULL, 0}, {two, 5}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 3};
    CALL("sendmsg", sendmsg(fd, &message, 0));
    CHECK(hear() == 1);
    /* An address given to a connected stream socket is ignored. */
    struct sockaddr_in other = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CALL("sendto with an address", sendto(fd, "four", 4, 0, (struct sockaddr *)&other, sizeof other));
    CHECK(hear() == 2);
    struct msghdr named = {.msg_name = &other, .msg_namelen = sizeof other, .msg_iov = &(struct iovec){"five", 4},
                           .msg_iovlen = 1};
    CALL("sendmsg with an address", sendmsg(fd, &named, 0));
}

/* Four messages of five bytes, which lie `apart` bytes from each other. */
static void in_fives(struct mmsghdr *messages, struct iovec *pieces, char *text, size_t apart)
{
    memset(messages, 0, 4 * sizeof *messages);
    for (int i = 0; i < 4; i++) {
        pieces[i] = (struct iovec){text + i * apart, 5};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
}

static void plural_server(int fd)
{
    char text[4][8];
    struct iovec pieces[4];
    struct mmsghdr messages[4];
    in_fives(messages, pieces, text[0], sizeof text[0]);
    await_unread(fd, 20);
    CALL("recvmmsg", recvmmsg(fd, messages, 4, 0, NULL));
    for (int i = 0; i < 4; i++)
        say("%u: %.5s", messages[i].msg_len, text[i]);
    tell(1);
    await_unread(fd, 20);
    struct timespec limit = {0, 0};
    CALL("recvmmsg, no time", recvmmsg(fd, messages, 4, 0, &limit));
    limit.tv_sec = 60;
    CALL("recvmmsg, time enough", recvmmsg(fd, messages, 3, 0, &limit));
    say("some is left: %d", limit.tv_sec > 0 && limit.tv_sec < 60);
    tell(1);
    await_unread(fd, 10);
    CALL("recvmmsg, half of them there", recvmmsg(fd, messages, 4, MSG_WAITFORONE, NULL));
    CALL("recvmmsg, none there", recvmmsg(fd, messages, 4, MSG_DONTWAIT, NULL));
}
static void plural_client(int fd)
{
    char text[] = "aaaaabbbbbcccccddddd";
    struct iovec pieces[4];
    struct mmsghdr messages[4];
    in_fives(messages, pieces, text, 5);
    CALL("sendmmsg", sendmmsg(fd, messages, 4, 0));
    say("lengths %u %u", messages[0].msg_len, messages[3].msg_len);
    CHECK(hear() == 1);
    CALL("sendmmsg", sendmmsg(fd, messages, 4, 0));
    CHECK(hear() == 1);
    CALL("sendmmsg", sendmmsg(fd, messages, 2, 0));
}

/* A reset after some messages is told by the next call. */
static void plural_reset_server(int fd)
{
    char text[4][8];
    struct iovec pieces[4];
    struct mmsghdr messages[4];
    in_fives(messages, pieces, text[0], sizeof text[0]);
    CHECK(hear() == 1);
    await_events(fd, POLLERR);
    CALL("recvmmsg", recvmmsg(fd, messages, 4, 0, NULL));
    CALL("recvmmsg", recvmmsg(fd, messages, 4, 0, NULL));
    CALL("recvmmsg", recvmmsg(fd, messages, 1, 0, NULL));
    say("of %u bytes", messages[0].msg_len);
}
static void plural_reset_client(int fd)
{
    struct linger at_once = {1, 0};
    send_text(fd, "aaaaabbbbb");
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once));
    MUST(close(fd));
    tell(1);
}

/* The positioned calls: position -1 means none, any other is an error on a socket. */
static void positioned_server(int fd)
{
    char text[16];
    struct iovec piece = {text, sizeof text};
    await_unread(fd, 6);
    CALL("pread", pread(fd, text, 4, 0));
    CALL("preadv", preadv(fd, &piece, 1, 0));
    CALL("lseek", lseek(fd, 0, SEEK_CUR));
    CALL("preadv2 at -1", preadv2(fd, &piece, 1, -1, 0));
    CALL("preadv2 at -1, nowait, empty", preadv2(fd, &piece, 1, -1, RWF_NOWAIT));
    tell(1);
    await_events(fd, POLLIN);
    CALL("preadv2 at -1, nowait", preadv2(fd, &piece, 1, -1, RWF_NOWAIT));
}
static void positioned_client(int fd)
{
    struct iovec piece = {"sixsix", 6};
    CALL("pwrite", pwrite(fd, "x", 1, 0));
    CALL("pwritev", pwritev(fd, &piece, 1, 0));
    CALL("pwritev2 at -1", pwritev2(fd, &piece, 1, -1, 0));
    CHECK(hear() == 1);
    send_text(fd, "more");
}

/* Flags of the positioned calls: on a stream most say nothing, and what the kernel doesn't know moves nothing. */
enum { NO_SUCH_FLAG = 1 << 20, RWF_ALL_WORK = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_APPEND };
static const int with_flags[] = {RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_APPEND, RWF_ALL_WORK, NO_SUCH_FLAG};
static void with_flags_server(int fd)
{
    char text[16];
    struct iovec piece = {text, 4};
    await_unread(fd, 36);
    for (size_t i = 0; i < sizeof with_flags / sizeof *with_flags; i++)
        CALL("preadv2", preadv2(fd, &piece, 1, -1, with_flags[i]));
    CALL("preadv64v2", preadv64v2(fd, &piece, 1, -1, RWF_SYNC));
    CALL("read", read(fd, text, sizeof text));
    meet();
}
static void with_flags_client(int fd)
{
    struct iovec piece = {"sixsix", 6};
    for (size_t i = 0; i < sizeof with_flags / sizeof *with_flags; i++)
        CALL("pwritev2", pwritev2(fd, &piece, 1, -1, with_flags[i]));
    CALL("pwritev64v2", pwritev64v2(fd, &piece, 1, -1, RWF_SYNC));
    meet();
}

/* The C library's second names of its functions. */
#define ALIAS(name, type) ((type)dlsym(RTLD_DEFAULT, name))
static void aliases_server(int fd)
{
    char text[16];
    struct pollfd entry = {fd, POLLIN, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    CALL("__poll", ALIAS("__poll", int (*)(struct pollfd *, nfds_t, int))(&entry, 1, -1));
    CALL("__read", ALIAS("__read", ssize_t (*)(int, void *, size_t))(fd, text, 7));
    CALL("__select", ALIAS("__select", int (*)(int, fd_set *, fd_set *, fd_set *, void *))(fd + 1, &set, NULL, NULL, NULL));
    CALL("recv", recv(fd, text, 7, MSG_WAITALL));
    int other = ALIAS("__fcntl", int (*)(int, int, ...))(fd, F_DUPFD_CLOEXEC, 100);
    CALL("__close", ALIAS("__close", int (*)(int))(fd));
    meet();
    CALL("recv", recv(other, text, 7, MSG_WAITALL));
    close(other);
}
static void aliases_client(int fd)
{
    CALL("__write", ALIAS("__write", ssize_t (*)(int, const void *, size_t))(fd, "seven!!", 7));
    CALL("__send", ALIAS("__send", ssize_t (*)(int, const void *, size_t, int))(fd, "seven!!", 7, 0));
    meet();
    pid_t child = MUST(ALIAS("__fork", pid_t (*)(void))());
    if (child == 0)
        _exit(write(fd, "seven!!", 7) != 7);
    wait_child(child);
}

/* Transfers of nothing. */
static void nothing_server(int fd)
{
    char text[8];
    CALL("read of 0, empty", read(fd, text, 0));
    CALL("recv of 0, empty", recv(fd, text, 0, MSG_DONTWAIT));
    tell(1);
    await_unread(fd, 3);
    CALL("read of 0", read(fd, text, 0));
    CALL("recv of 0", recv(fd, text, 0, 0));
    CALL("read", read(fd, text, 8));
    tell(2);
    await_events(fd, POLLRDHUP);
    CALL("read of 0 at the end", read(fd, text, 0));
    CALL("recv of 0 at the end", recv(fd, text, 0, 0));
    CALL("read at the end", read(fd, text, 8));
}
static void nothing_client(int fd)
{
    CHECK(hear() == 1);
    CALL("write of 0", write(fd, "", 0));
    CALL("send of 0", send(fd, "", 0, 0));
    CALL("write of 0 from nowhere", write(fd, NULL, 0));
    send_text(fd, "abc");
    CHECK(hear() == 2);
    MUST(close(fd));
}

/* A bad buffer is an error of the call, never a crash, and takes nothing from the stream. */
static void bad_buffer_server(int fd)
{
    char *wall = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char text[32] = "";
    await_unread(fd, 10);
    CALL("read to nowhere", read(fd, wall, 10));
    struct iovec piece = {wall, 10};
    CALL("readv to nowhere", readv(fd, &piece, 1));
    CALL("readv by a bad vector", readv(fd, (struct iovec *)wall, 1));
    CALL("recvmsg by a bad header", recvmsg(fd, (struct msghdr *)wall, 0));
    CALL("read", read(fd, text, sizeof text - 1));
    say("%s", text);
    meet();
}
static void bad_buffer_client(int fd)
{
    char *wall = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CALL("write from nowhere", write(fd, wall, 10));
    CALL("send from nowhere", send(fd, wall, 10, 0));
    CALL("writev by a bad vector", writev(fd, (struct iovec *)wall, 1));
    CALL("write", write(fd, "ten bytes!", 10));
    meet();
}

const struct test_case cases[] = {
    CASE(vectors), CASE(messages),   CASE(iov_limit), CASE(details),
    CASE(plural), CASE(plural_reset),  CASE(positioned), CASE(with_flags), CASE(aliases), CASE(nothing),   CASE(bad_buffer), END_OF_CASES,
};
