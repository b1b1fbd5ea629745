/* Arguments and surroundings that few programs have: impossible lengths, sets and arrays of any size, pipes half full, a stack
 * of a few pages. */
#include "common.h"

#include <limits.h>
#include <sys/resource.h>
#include <sys/sendfile.h>

/* Out of the compiler's sight. */
static void *volatile nothing_there = NULL;
static volatile size_t minus_one = -1;

/* The kernel refuses some lengths, cuts others off, and takes nothing from the stream for a bad one. */
static void lengths_server(int fd)
{
    char *volatile hidden = calloc(1, 64), *text = hidden;
    await_unread(fd, 10);
    struct iovec negative[2] = {{text, -1}, {text, 1}}, later[2] = {{text, 1}, {text + 1, -1}};
    struct iovec nowhere[2] = {{nothing_there, 5}, {text, 5}}, partly[3] = {{text, 2}, {NULL, 0}, {text + 2, 1}};
    struct iovec over[3] = {{text, 3}, {text + 3, INT_MAX}, {text + 3, INT_MAX}};
    struct iovec beyond[2] = {{text, 1}, {text, LONG_MAX}};
    struct msghdr message = {.msg_iov = negative, .msg_iovlen = 2};
    CALL("readv, first is negative", readv(fd, negative, 2));
    CALL("readv, second is negative", readv(fd, later, 2));
    CALL("recvmsg, negative", recvmsg(fd, &message, 0));
    CALL("preadv2, negative", preadv2(fd, negative, 2, -1, 0));
    CALL("readv of no vector", readv(fd, nothing_there, 2));
    message.msg_iov = NULL;
    CALL("recvmsg of no vector", recvmsg(fd, &message, 0));
    CALL("recvmsg of no header", recvmsg(fd, nothing_there, 0));
    CALL("recvmmsg of no headers", recvmmsg(fd, nothing_there, 2, 0, NULL));
    CALL("readv to nowhere", readv(fd, nowhere, 2));
    CALL("read to nowhere", read(fd, nothing_there, 5));
    CALL("recv to nowhere", recv(fd, nothing_there, 5, 0));
    CALL("read, negative", read(fd, text, minus_one));
    CALL("readv past a null of nothing", readv(fd, partly, 3));
    CALL("readv beyond all addresses", readv(fd, beyond, 2));
    CALL("readv of more than a call takes", readv(fd, over, 3));
    CALL("the rest", recv(fd, text, 64, MSG_DONTWAIT));
    struct mmsghdr two[2] = {{.msg_hdr = {.msg_iov = partly, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = partly, .msg_iovlen = 1}}};
    CALL("recvmmsg, bad time", recvmmsg(fd, two, 2, MSG_DONTWAIT, &(struct timespec){0, 2000000000}));
    meet();
}
static void lengths_client(int fd)
{
    char *volatile hidden = calloc(1, 64), *text = hidden;
    struct iovec negative[2] = {{text, 1}, {text, -1}}, nowhere[2] = {{nothing_there, 5}, {text, 5}};
    struct msghdr message = {.msg_iov = negative, .msg_iovlen = 2};
    CALL("writev, negative", writev(fd, negative, 2));
    CALL("sendmsg, negative", sendmsg(fd, &message, 0));
    CALL("writev of no vector", writev(fd, nothing_there, 1));
    CALL("writev from nowhere", writev(fd, nowhere, 2));
    CALL("write from nowhere", write(fd, nothing_there, 5));
    CALL("send from nowhere", send(fd, nothing_there, 5, 0));
    CALL("sendmmsg of no headers", sendmmsg(fd, nothing_there, 2, 0));
    CALL("write, negative", write(fd, text, minus_one));
    send_text(fd, "0123456789");
    meet();
}

/* Sets of more than FD_SETSIZE descriptors, as some programs make themselves. */
#define WIDE 4096
static unsigned long reading[WIDE / 64], writing[WIDE / 64];
static void put_in(unsigned long *set, int fd) { set[fd / 64] |= 1ul << fd % 64; }
static int has(const unsigned long *set, int fd) { return set[fd / 64] >> fd % 64 & 1; }

static void wide_select_server(int fd)
{
    struct rlimit limit = {WIDE, WIDE};
    int pipes[2], high, pipe_high;
    struct timeval now = {0, 0}, long_time = {20, 0};
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    MUST(pipe(pipes));
    high = MUST(fcntl(fd, F_DUPFD, 2000));
    pipe_high = MUST(fcntl(pipes[0], F_DUPFD, 3000));
    put_in(reading, high), put_in(reading, pipe_high);
    CALL("select, nothing", select(pipe_high + 1, (fd_set *)reading, NULL, NULL, &now));
    say("set %d %d", has(reading, high), has(reading, pipe_high));
    put_in(reading, high), put_in(reading, pipe_high), put_in(writing, high);
    CALL("select, output", select(pipe_high + 1, (fd_set *)reading, (fd_set *)writing, NULL, NULL));
    say("set %d %d %d", has(reading, high), has(reading, pipe_high), has(writing, high));
    tell(thread_id());
    put_in(reading, high), put_in(reading, pipe_high);
    CALL("select, asleep", select(pipe_high + 1, (fd_set *)reading, NULL, NULL, &long_time));
    say("set %d %d", has(reading, high), has(reading, pipe_high));
    MUST(write(pipes[1], "x", 1));
    put_in(reading, high), put_in(reading, pipe_high);
    CALL("pselect, both", pselect(pipe_high + 1, (fd_set *)reading, NULL, NULL, NULL, NULL));
    say("set %d %d", has(reading, high), has(reading, pipe_high));
    /* The word that the count ends in is written whole, the next is not. */
    memset(reading, 0, sizeof reading);
    put_in(reading, high), put_in(reading, high / 64 * 64 + 63), put_in(reading, high / 64 * 64 + 64);
    CALL("select, bits beyond the count", select(high + 1, (fd_set *)reading, NULL, NULL, NULL));
    say("set %d %d %d", has(reading, high), has(reading, high / 64 * 64 + 63), has(reading, high / 64 * 64 + 64));
    put_in(reading, high), put_in(reading, 2500);
    CALL("select of a bad descriptor", select(pipe_high + 1, (fd_set *)reading, NULL, NULL, NULL));
    meet();
}
static void wide_select_client(int fd)
{
    await_asleep(hear());
    send_text(fd, "hello");
    meet();
}

/* The count is the limit on descriptors, the set an ordinary one at the end of a page: the kernel looks no further than
 * descriptors can be open. */
static void careless_select_server(int fd)
{
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(mprotect(pages + 4096, 4096, PROT_NONE));
    fd_set *set = (fd_set *)(pages + 4096 - 128);
    FD_SET(fd, set);
    FD_SET(1000, set);
    CHECK(limit.rlim_cur > 1024);
    CALL("select", select(limit.rlim_cur, set, NULL, NULL, NULL));
    say("set %d", !!FD_ISSET(fd, set));
    struct pollfd *volatile one = malloc(sizeof *one);
    *one = (struct pollfd){.fd = fd, .events = POLLIN};
    CALL("poll of more than can be open", poll(one, limit.rlim_cur + 1, 0));
    CALL("poll of far too many", poll(one, minus_one, 0));
    CALL("poll of one and 2^32", poll(one, minus_one / UINT_MAX, 0));
    CALL("ppoll, the longest time", ppoll(one, 1, &(struct timespec){LONG_MAX, 0}, NULL));
    meet();
}
static void careless_select_client(int fd)
{
    send_text(fd, "hello");
    meet();
}

/* More carried descriptors than the front has room for in place. */
static void long_poll_server(int fd)
{
    struct pollfd entries[300];
    fd_set set;
    FD_ZERO(&set);
    for (int i = 0; i < 300; i++)
        entries[i] = (struct pollfd){.fd = MUST(dup(fd)), .events = i % 2 ? POLLIN : POLLOUT};
    CALL("poll, half", poll(entries, 300, 0));
    tell(thread_id());
    for (int i = 0; i < 300; i++) {
        entries[i].events = POLLIN;
        FD_SET(entries[i].fd, &set);
    }
    CALL("poll, asleep", poll(entries, 300, -1));
    CALL("select", select(entries[299].fd + 1, &set, NULL, NULL, NULL));
    meet();
}
static void long_poll_client(int fd)
{
    await_asleep(hear());
    send_text(fd, "hello");
    meet();
}

static int rang;
static void ring(int number)
{
    rang = number;
}
static void moved(const char *what, ssize_t n)
{
    int error = errno;
    say("%s: %s%s", what, n > 0 ? "some" : n == 0 ? "0" : strerrorname_np(error), rang ? ", interrupted" : "");
    rang = 0;
}

/* splice never waits for a pipe that it was told not to wait for, and moves what fits. */
static void pipes_server(int fd)
{
    static char bytes[100000];
    int pipes[2], other[2];
    struct sigaction action = {.sa_handler = ring};
    MUST(sigaction(SIGALRM, &action, NULL));
    MUST(pipe(pipes));
    MUST(pipe(other));
    alarm(10);
    moved("empty pipe, not to wait", splice(pipes[0], NULL, fd, NULL, 4096, SPLICE_F_NONBLOCK));
    MUST(fcntl(pipes[0], F_SETFL, O_NONBLOCK));
    moved("empty pipe that never waits", splice(pipes[0], NULL, fd, NULL, 4096, 0));
    MUST(fcntl(pipes[0], F_SETFL, 0));
    await_unread(fd, 60000);
    MUST(write(pipes[1], bytes, 40000));
    moved("to a pipe with some room, not to wait", splice(fd, NULL, pipes[1], NULL, 65536, SPLICE_F_NONBLOCK));
    MUST(read_full(pipes[0], bytes, 40000));
    int left, queued;
    MUST(ioctl(fd, FIONREAD, &left));
    MUST(ioctl(pipes[0], FIONREAD, &queued));
    say("nothing lost: %d", left + queued == 60000);
    while (queued > 0)
        queued -= MUST(read(pipes[0], bytes, queued));
    CHECK(recv(fd, bytes, left, MSG_WAITALL | (left ? 0 : MSG_DONTWAIT)) == (left ? left : -1));
    send_text(fd, "go");
    await_unread(fd, 5);
    while (write(pipes[1], bytes, 4096) == 4096 && ioctl(pipes[0], FIONREAD, &queued) == 0 && queued < 65536)
        ;
    moved("to a full pipe, not to wait", splice(fd, NULL, pipes[1], NULL, 5, SPLICE_F_NONBLOCK));
    off_t offset = 0;
    CALL("socket with an offset", splice(fd, &offset, other[1], NULL, 5, SPLICE_F_NONBLOCK));
    CALL("pipe with an offset", splice(pipes[0], &offset, fd, NULL, 5, 0));
    CALL("to a socket with an offset", splice(pipes[0], NULL, fd, &offset, 5, 0));
    CALL("to itself", splice(fd, NULL, fd, NULL, 5, 0));
    CALL("to a file", splice(fd, NULL, MUST(memfd_create("file", 0)), NULL, 5, 0));
    CALL("unknown flags", splice(fd, NULL, other[1], NULL, 5, 0x100));
    CALL("to the wrong end", splice(fd, NULL, other[0], NULL, 5, 0));
    CALL("nothing", splice(fd, NULL, other[1], NULL, 0, 0));
    CALL("the five", splice(fd, NULL, other[1], NULL, 100, 0));
    CALL("sendfile from a pipe", sendfile(fd, other[0], NULL, 5));
    CALL("sendfile from a connection", sendfile(fd, fd, NULL, 5));
    CALL("sendfile from the far past", sendfile(fd, MUST(memfd_create("file", 0)), &(off_t){-1}, 5));
    int status = MUST(open("/proc/self/status", O_RDONLY));
    CALL("sendfile from a file without a size", sendfile(fd, status, NULL, 5000) > 0);
    CALL("of its beginning", sendfile(fd, status, NULL, 100) > 0);
    MUST(close(other[1]));
    CALL("a pipe's last bytes", splice(other[0], NULL, fd, NULL, 100, 0));
    CALL("a pipe's end", splice(other[0], NULL, fd, NULL, 100, 0));
    meet();
}
static void pipes_client(int fd)
{
    static char bytes[60000];
    char text[8];
    write_all(fd, bytes, sizeof bytes);
    CHECK(read_full(fd, text, 2) == 2);
    send_text(fd, "hello");
    CHECK(read_full(fd, text, 5) == 5);
    say("%.5s", text);
    meet();
}

/* One thread fills and empties the pipe, and leaves much in it: TCP's own pieces would all fit. */
static void leftovers_server(int fd)
{
    static char bytes[60000];
    int pipes[2];
    size_t in = 0;
    struct stream check = {161, 0};
    MUST(pipe(pipes));
    MUST(write(pipes[1], bytes, 40000));
    await_unread(fd, 60000);
    in += MUST(splice(fd, NULL, pipes[1], NULL, 30000, SPLICE_F_NONBLOCK));
    in += MUST(splice(fd, NULL, pipes[1], NULL, 10, 0));
    CHECK(read_full(pipes[0], bytes, 40000) == 40000);
    CHECK(read_full(pipes[0], bytes, in) == in);
    stream_check(&check, bytes, in);
    say("in order");
    CHECK(read_full(fd, bytes, 60000 - in) == 60000 - in);
    meet();
}
static void leftovers_client(int fd)
{
    struct stream out = {161, 0};
    stream_send(&out, fd, 60000, 60000);
    meet();
}

/* Everything that copies or lists, on the smallest stack that a thread can have. */
static void *on_small_stack(void *argument)
{
    int fd = *(int *)argument, pipes[2], file = MUST(memfd_create("file", 0));
    struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    MUST(pipe(pipes));
    MUST(ftruncate(file, 100000));
    MUST(poll(&one, 1, -1));
    MUST(select(fd + 1, NULL, &set, NULL, NULL));
    for (off_t sent = 0; sent < 100000;)
        MUST(sendfile(fd, file, &sent, 100000 - sent));
    for (size_t moved = 0; moved < 100000;) {
        ssize_t n = MUST(splice(fd, NULL, pipes[1], NULL, 30000, 0));
        for (ssize_t left = n; left > 0;)
            left -= MUST(splice(pipes[0], NULL, fd, NULL, left, 0));
        moved += n;
    }
    return NULL;
}
static void small_stack_server(int fd)
{
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN) == 0);
    CHECK(pthread_create(&thread, &attributes, on_small_stack, &fd) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    say("sent 200000 bytes from a small stack");
    meet();
}
static void small_stack_client(int fd)
{
    static char bytes[100000];
    CHECK(read_full(fd, bytes, 100000) == 100000);
    write_all(fd, bytes, 100000);
    CHECK(read_full(fd, bytes, 100000) == 100000);
    meet();
}

/* What the kernel refuses closes nothing, and -1 is a number as any other. */
static void refused_server(int fd)
{
    char *volatile none[] = {NULL};
    char byte = 'x';
    CALL("dup2 of -1", dup2(-1, fd));
    CALL("dup3, flags", dup3(STDERR_FILENO, fd, O_NONBLOCK));
    CALL("close_range, flags", close_range(fd, fd, 64));
    CALL("close_range, flags and all", close_range(3, ~0u, 1));
    CALL("fexecve of -1", fexecve(-1, (char **)none, (char **)none));
    CALL("execveat at -1", execveat(-1, "nothing", (char **)none, (char **)none, 0));
    struct iovec piece = {&byte, 1};
    struct cmsghdr header = {.cmsg_len = minus_one, .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &header, .msg_controllen = sizeof header};
    CALL("sendmsg, header of all memory", sendmsg(fd, &message, 0));
    header.cmsg_len = 0;
    CALL("sendmsg, header of nothing", sendmsg(fd, &message, 0));
    message.msg_control = nothing_there;
    CALL("sendmsg, no control data", sendmsg(fd, &message, 0));
    struct sockaddr_storage name = {0};
    message = (struct msghdr){.msg_iov = &piece, .msg_iovlen = 1, .msg_name = &name, .msg_namelen = -1};
    CALL("sendmsg, negative name", sendmsg(fd, &message, 0));
    CALL("recvmsg, negative name", recvmsg(fd, &message, MSG_DONTWAIT));
    send_text(fd, "still here");
    meet();
}
static void refused_client(int fd)
{
    char text[16] = "";
    CHECK(read_full(fd, text, 10) == 10);
    say("%s", text);
    meet();
}

const struct test_case cases[] = {
    CASE(lengths), CASE(wide_select), CASE(careless_select), CASE(long_poll), CASE(pipes), CASE(leftovers),
    CASE(small_stack), CASE(refused), END_OF_CASES,
};
