/* Calls every kind of hooked function with odd descriptors, lengths, flags, orders and pointers, on a small stack and under tight
 * limits, and says what each answered. The same seed must say the same natively and carried.
 *     hooks SEED STEPS
 * Pointers are null or bad only where that can be an error and no crash: not for the bytes of a carried connection. */
#define main common_main
#include "common.c"
#undef main

#include <sys/resource.h>
#include <limits.h>
#include <sys/sendfile.h>

const struct test_case cases[] = {END_OF_CASES};

static struct rng dice;
static unsigned pick(unsigned n) { return between(&dice, 0, n - 1); }
#define ONE_OF(...) \
    ({ const long of_[] = {__VA_ARGS__}; of_[pick(sizeof of_ / sizeof of_[0])]; })

/* The things that descriptors can be. Fixed numbers, so that a descriptor is told by its number in the transcript. */
enum { FIRST = 20, CARRIED_A = FIRST, CARRIED_B, PLAIN_A, PLAIN_B, FRESH, LISTENER, UDP, UNIX_A, UNIX_B, PIPE_R, PIPE_W, A_FILE, SET, CLOSED, END };
static struct sockaddr_in address;

static void place(int from, int to)
{
    MUST(dup2(from, to));
    if (from != to)
        close(from);
}
static void connect_pair(int a, int b, bool warm)
{
    char text[8];
    place(MUST(socket(AF_INET, SOCK_STREAM, 0)), a);
    MUST(connect(a, (void *)&address, sizeof address));
    place(MUST(accept(LISTENER, NULL, NULL)), b);
    for (int i = 0; warm && i < 40; i++) {
        write_all(a, "ping", 4);
        CHECK(read_full(b, text, 4) == 4);
        write_all(b, "pong", 4);
        CHECK(read_full(a, text, 4) == 4);
    }
    int on = 1; /* else what is visible at once depends on acknowledgements */
    MUST(setsockopt(a, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    MUST(setsockopt(b, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    set_nonblocking(a, true);
    set_nonblocking(b, true);
}
static void set_up(void)
{
    for (int fd = FIRST; fd < END; fd++)
        close(fd);
    socklen_t length = sizeof address;
    place(MUST(socket(AF_INET, SOCK_STREAM, 0)), LISTENER);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    MUST(bind(LISTENER, (void *)&address, sizeof address));
    MUST(listen(LISTENER, 16));
    MUST(getsockname(LISTENER, (void *)&address, &length));
    connect_pair(CARRIED_A, CARRIED_B, true);
    connect_pair(PLAIN_A, PLAIN_B, false);
    set_nonblocking(LISTENER, true);
    place(MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), FRESH);
    place(MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)), UDP);
    int two[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, two));
    place(two[0], UNIX_A);
    place(two[1], UNIX_B);
    MUST(pipe2(two, O_NONBLOCK));
    place(two[0], PIPE_R);
    place(two[1], PIPE_W);
    place(MUST(memfd_create("hooks", 0)), A_FILE);
    MUST(ftruncate(A_FILE, 0));
    place(MUST(epoll_create1(0)), SET);
}

static int any_fd(void)
{
    return pick(3) ? CARRIED_A + (int)pick(2) : pick(8) ? FIRST + (int)pick(END - FIRST) : ONE_OF(-1, CLOSED, 1000000, INT_MAX, INT_MIN, 1 << 20);
}
static bool connected(int fd) { return fd == CARRIED_A || fd == CARRIED_B || fd == PLAIN_A || fd == PLAIN_B; }
static char buffer[65536];
static void *any_buffer(int fd) { return connected(fd) || pick(4) ? buffer : NULL; }
static size_t any_size(void) { return ONE_OF(0, 1, 7, 64, 1000, SSIZE_MAX, -1); }
static size_t small_size(void) { return ONE_OF(0, 1, 7, 64, 500); }
static long detail;
static int any_flags(void)
{
    return detail = ONE_OF(0, 0, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, MSG_NOSIGNAL, MSG_OOB, MSG_ERRQUEUE, 1 << 30, ~(MSG_OOB | MSG_ERRQUEUE | MSG_MORE));
}

static int chosen;
static void *volatile bad = (void *)16; /* The compiler need not know. */
static long step(const char **name)
{
    int fd = chosen = any_fd(), other = any_fd();
    struct iovec piece[2] = {{any_buffer(fd), small_size()}, {buffer + 600, small_size()}};
    struct msghdr message = {.msg_iov = pick(8) ? piece : NULL, .msg_iovlen = ONE_OF(0, 1, 2, 2, 1025, -1)};
    if (message.msg_iovlen > 2)
        message.msg_iov = piece;
    struct mmsghdr many[2] = {{.msg_hdr = {.msg_iov = piece, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = piece, .msg_iovlen = 2}}};
    struct {
        struct cmsghdr head;
        int data[4];
    } control = {{ONE_OF(0, 1, CMSG_LEN(4), CMSG_LEN(16), 1 << 20, -1), ONE_OF(SOL_SOCKET, IPPROTO_TCP), ONE_OF(SCM_RIGHTS, SCM_CREDENTIALS, SO_MARK, 9999)}, {-1, CLOSED, INT_MAX, INT_MIN}};
    struct msghdr with_control = {.msg_iov = piece, .msg_iovlen = 2, .msg_control = pick(8) ? &control : NULL, .msg_controllen = ONE_OF(0, 1, 16, 20, 32, 32, 32, -1)};
    struct sockaddr_storage named = {0};
    struct msghdr with_name = {.msg_iov = piece, .msg_iovlen = 2, .msg_name = pick(4) ? &named : NULL, .msg_namelen = ONE_OF(0, 2, 16, 128, 1000, -1, INT_MIN)};
    char *none[] = {NULL};
    int count = ONE_OF(0, 1, 2, 2, -1, 1025, INT_MIN);
    struct timespec time = {ONE_OF(0, 0, -1), ONE_OF(0, 1000, 1000000000, -1)};
    struct timeval interval = {ONE_OF(0, 0, -1), ONE_OF(0, 1000, -1)};
    struct pollfd polled[3] = {{any_fd(), ONE_OF(POLLIN, POLLOUT, 0, POLLPRI, -1), 0}, {any_fd(), POLLIN | POLLOUT, 0}, {-1, -1, 0}};
    for (int i = 0; i < 2; i++) /* whose members then go back to TCP */
        polled[i].fd = polled[i].fd == SET ? UDP : polled[i].fd;
    struct epoll_event event = {ONE_OF(EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLET, EPOLLIN | EPOLLONESHOT, 0, EPOLLIN | EPOLLEXCLUSIVE), {.u64 = pick(3)}}, events[4];
    struct sockaddr_storage name_of = {0};
    socklen_t length = ONE_OF(0, 2, 16, 28, 128, 1 << 20, -1);
    int value[8] = {ONE_OF(0, 1, -1, INT_MAX)}, number = 0;
    off_t offset = ONE_OF(0, 1, -1, LONG_MAX);
    fd_set sets[3];
    for (int i = 0; i < 3; i++)
        FD_ZERO(&sets[i]);
    FD_SET(FIRST + pick(END - FIRST), &sets[0]);
    FD_SET(FIRST + pick(4), &sets[1]);
    FD_SET(FIRST + pick(4), &sets[2]);
#define SET_OR_NULL(i) (pick(2) ? &sets[i] : NULL)
    if (connected(fd) && (unsigned)count > 2 && count > 0)
        count = 2000;
    switch (pick(57)) {
#define DO(n, call) *name = n; return call
    case 0: DO("read", read(fd, any_buffer(fd), any_size() & (connected(fd) ? -1 : 1023)));
    case 1: DO("recv", recv(fd, any_buffer(fd), small_size(), any_flags()));
    case 2: DO("recvfrom", recvfrom(fd, buffer, small_size(), any_flags(), pick(2) ? (void *)&name_of : NULL, &length));
    case 3: DO("recvmsg", recvmsg(fd, &message, any_flags()));
    case 4: DO("readv", readv(fd, piece, count));
    case 5: DO("recvmmsg", recvmmsg(fd, many, pick(3), any_flags() | MSG_DONTWAIT, NULL));
    case 6: DO("preadv2", preadv2(fd, piece, pick(3), ONE_OF(-1, 0, -2), ONE_OF(0, 1 << 20)));
    case 7: case 8: case 9: DO("write", write(fd, any_buffer(fd), small_size()));
    case 10: DO("send", send(fd, any_buffer(fd), small_size(), any_flags() & ~MSG_OOB));
    case 11: DO("sendto", sendto(fd, buffer, small_size(), MSG_NOSIGNAL, pick(3) ? NULL : (void *)&address, length));
    case 12: DO("sendmsg", sendmsg(fd, &message, MSG_NOSIGNAL));
    case 13: DO("writev", writev(fd, piece, count));
    case 14: DO("sendmmsg", sendmmsg(fd, many, pick(3), MSG_NOSIGNAL));
    case 15: DO("pwritev2", pwritev2(fd, piece, pick(3), ONE_OF(-1, 0, -2), ONE_OF(0, 1 << 20)));
    case 16: DO("sendfile", sendfile(fd, other, pick(2) ? &offset : NULL, small_size()));
    case 17: DO("splice", splice(fd, pick(4) ? NULL : &offset, other, NULL, small_size(), ONE_OF(SPLICE_F_NONBLOCK, SPLICE_F_NONBLOCK | 64)));
    case 18: number = socket(ONE_OF(AF_INET, AF_INET6, -1, 99), ONE_OF(SOCK_STREAM, SOCK_STREAM | SOCK_NONBLOCK, SOCK_RAW, -1), ONE_OF(0, IPPROTO_TCP, IPPROTO_UDP, -1));
        if (number >= 0)
            close(number);
        DO("socket", number < 0 ? -1 : 0);
    case 19: DO("connect", connect(fd, (void *)&address, ONE_OF(0, 1, 2, 15, -1)));
    case 20: DO("connect null", connect(fd, NULL, ONE_OF(0, 16)));
    case 21: DO("listen", listen(ONE_OF(LISTENER, CLOSED, UDP, CARRIED_A, -1), ONE_OF(0, -1, INT_MAX)));
    case 22: DO("accept", accept(fd, pick(2) ? (void *)&name_of : NULL, &length));
    case 23: DO("accept4", accept4(fd, NULL, NULL, ONE_OF(0, SOCK_NONBLOCK, -1)));
    case 24: number = dup(fd);
        if (number >= 0)
            close(number);
        DO("dup", number < 0 ? -1 : 0);
    case 25: DO("dup2", dup2(fd, ONE_OF(fd, -1, 1 << 21, INT_MAX)));
    case 26: DO("dup3", dup3(fd, ONE_OF(1 << 21, fd, -1), ONE_OF(0, O_CLOEXEC, -1)));
    case 46: DO("dup2 of nothing", dup2(ONE_OF(-1, CLOSED, INT_MAX, INT_MIN), other));
    case 47: DO("dup3, odd", dup3(fd, other, ONE_OF(1, -1, O_NONBLOCK)));
    case 48: DO("close_range, odd", close_range(ONE_OF(FIRST, 3, 0), ONE_OF(END, -1), ONE_OF(1, 8, 64, -1, 1 << 31)));
    case 49: DO("fexecve", fexecve(ONE_OF(-1, CLOSED, INT_MIN), none, none));
    case 50: DO("execveat", execveat(ONE_OF(-1, CLOSED, UDP), pick(2) ? "" : "x", none, none, ONE_OF(0, AT_EMPTY_PATH)));
    case 51: DO("sendmsg, control", sendmsg(fd, &with_control, MSG_NOSIGNAL));
    case 52: DO("recvmsg, name", recvmsg(fd, &with_name, MSG_DONTWAIT));
    case 53: DO("sendmsg, name", sendmsg(fd, &with_name, MSG_NOSIGNAL));
    /* What is no TCP socket has nothing to do with us, wherever a pointer leads. */
    case 54: DO("readv, bad", readv(ONE_OF(UDP, UNIX_A, PIPE_R, SET, CLOSED, -1), bad, 1));
    case 55: DO("recvmsg, bad", recvmsg(ONE_OF(UDP, UNIX_A, PIPE_R, CLOSED, -1), bad, MSG_DONTWAIT));
    case 56: DO("recvmmsg, bad", recvmmsg(ONE_OF(UDP, UNIX_A, PIPE_R, CLOSED, -1), pick(2) ? many : bad, 1, MSG_DONTWAIT, bad));
    case 27: number = fcntl(fd, ONE_OF(F_DUPFD, F_DUPFD_CLOEXEC), ONE_OF(100, -1, 1 << 21));
        if (number >= 0)
            close(number);
        DO("fcntl dup", number < 0 ? -1 : 0);
    case 28: DO("fcntl", fcntl(fd, ONE_OF(F_GETFL, F_GETFD, F_SETFD, -1, 9999), 0));
    case 29: DO("ioctl", ioctl(fd, ONE_OF(FIONREAD, 0, 0xdead, 0x894b), value));
    case 30: DO("ioctl null", ioctl(fd, ONE_OF(0, 0xdead), NULL));
    case 31: DO("getsockopt", getsockopt(fd, ONE_OF(SOL_SOCKET, IPPROTO_TCP, -1), ONE_OF(SO_TYPE, TCP_NODELAY, SO_KEEPALIVE, 9999, -1), pick(4) ? value : NULL, pick(4) ? &length : NULL));
    case 32: DO("setsockopt", setsockopt(fd, ONE_OF(SOL_SOCKET, IPPROTO_TCP, -1), ONE_OF(TCP_KEEPIDLE, SO_KEEPALIVE, 9999, SO_RCVLOWAT, SO_RCVTIMEO), pick(6) ? value : NULL, ONE_OF(0, 1, 4, 16, -1)));
    case 33: DO("poll", poll(pick(5) ? polled : NULL, ONE_OF(0, 1, 2, 3, -1), 0));
    case 34: DO("ppoll", ppoll(polled, pick(4), &time, NULL));
    case 35: DO("select", select(ONE_OF(0, END, -1, INT_MIN), SET_OR_NULL(0), SET_OR_NULL(1), SET_OR_NULL(2), &interval));
    case 36: DO("pselect", pselect(ONE_OF(0, END, -1), SET_OR_NULL(0), SET_OR_NULL(1), SET_OR_NULL(2), &time, NULL));
    case 37: case 38: DO("epoll_ctl", epoll_ctl(pick(5) ? SET : other, ONE_OF(EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, 0, 99), fd, pick(8) ? &event : NULL));
    /* The kernel says EFAULT for no room if it has something to put there, and it does not know of the rings. */
    case 39: DO("epoll_wait", epoll_wait(pick(4) ? SET : fd, events, ONE_OF(4, 4, 1, 0, -1, INT_MAX), 0));
    case 40: DO("epoll_pwait2", epoll_pwait2(SET, events, 4, &time, NULL));
    case 41: DO("close", close(ONE_OF(CLOSED, -1, INT_MAX, INT_MIN)));
    case 42: DO("close_range", close_range(CLOSED, ONE_OF(CLOSED, 0), ONE_OF(0, 64, 4)));
    case 43: DO("shutdown", shutdown(connected(fd) ? -1 : fd, ONE_OF(SHUT_RD, SHUT_WR, SHUT_RDWR, 3, -1)));
    case 44: DO("syscall", syscall(ONE_OF(SYS_read, SYS_write, SYS_recvfrom, SYS_sendto), fd, buffer, small_size(), 0, NULL, NULL));
    default: DO("syscall, odd", syscall(ONE_OF(-1, 9999, SYS_io_uring_enter, SYS_pidfd_getfd), -1, 0, 0, 0, 0, 0));
    }
}

static void *play(void *steps)
{
    for (long i = 0; i < (long)steps; i++) {
        const char *name = "";
        errno = 0;
        long result = step(&name);
        int error = errno;
        /* What is unread tells a step that took too much, or too little, at once. */
        int unread[2] = {0};
        ioctl(CARRIED_A, FIONREAD, &unread[0]);
        ioctl(CARRIED_B, FIONREAD, &unread[1]);
        /* How much a stream takes is its own business; here it always takes all. */
        say("%ld %s, %d, %lx = %ld %s (%d, %d)", i, name, chosen, detail, result, result < 0 ? strerrorname_np(error) : "", unread[0],
            unread[1]);
        if (i % 50 == 49)
            set_up();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    long seed = atol(argv[1]);
    static const int limits[] = {RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_FSIZE, RLIMIT_MEMLOCK, RLIMIT_NPROC, -1, -1, -1};
    static const rlim_t most[] = {64, 256 * MIB, MIB, 0, 1, 0, 0, 0};
    int which = seed % 8;
    struct rlimit limit = {most[which], most[which]};
    if (limits[which] >= 0)
        MUST(setrlimit(limits[which], &limit));
    dice.state = seed;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    set_up();
    /* The smallest stack that there is, on pages of our own: the C library keeps its thread's own words there too. */
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    CHECK(pthread_attr_setstacksize(&small, 16 * KIB) == 0);
    int error = pthread_create(&thread, &small, play, (void *)atol(argv[2]));
    if (error == 0)
        pthread_join(thread, NULL);
    else /* RLIMIT_NPROC */
        play((void *)atol(argv[2]));
    return 0;
}
