/* io_uring beside the ordinary calls, by raw system calls: epoll_ctl in the manner of libuv, waits, transfers and ends that
 * only the kernel sees. Where there is no io_uring (old kernels, containers), epoll_ctl stands in and the rest is skipped. */
#include "common.h"

#include <linux/io_uring.h>

#include "epoll_common.h"

/* As syscall(), or in line, as static libraries and some runtimes make their system calls. */
static bool in_line;
static long enter_kernel(long number, long a, long b, long c, long d)
{
#ifdef __x86_64__
    if (in_line) {
        register long fourth __asm__("r10") = d;
        register long fifth __asm__("r8") = 0;
        register long sixth __asm__("r9") = 0;
        long value;
        __asm__ volatile("syscall"
                         : "=a"(value)
                         : "0"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                         : "rcx", "r11", "memory");
        if (value >= 0)
            return value;
        errno = -value;
        return -1;
    }
#endif
    return syscall(number, a, b, c, d, NULL, 0);
}

struct ring {
    int fd;
    unsigned *head, *tail, *cq_head, *cq_tail, mask, cq_mask;
    struct io_uring_sqe *entries;
    struct io_uring_cqe *results;
    unsigned unsent;
};

static struct ring ring_of(int fd, struct io_uring_params *with)
{
    size_t queue = with->sq_off.array + with->sq_entries * sizeof(unsigned);
    size_t results = with->cq_off.cqes + with->cq_entries * sizeof(struct io_uring_cqe);
    size_t length = queue > results ? queue : results;
    int access = PROT_READ | PROT_WRITE;
    char *at = mmap(NULL, length, access, MAP_SHARED, fd, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entries =
        mmap(NULL, with->sq_entries * sizeof *entries, access, MAP_SHARED, fd, IORING_OFF_SQES);
    CHECK(at != MAP_FAILED && (void *)entries != MAP_FAILED);
    for (unsigned i = 0; i < with->sq_entries; i++)
        ((unsigned *)(at + with->sq_off.array))[i] = i;
    return (struct ring){fd,
                         (unsigned *)(at + with->sq_off.head),
                         (unsigned *)(at + with->sq_off.tail),
                         (unsigned *)(at + with->cq_off.head),
                         (unsigned *)(at + with->cq_off.tail),
                         with->sq_entries - 1,
                         with->cq_entries - 1,
                         entries,
                         (struct io_uring_cqe *)(at + with->cq_off.cqes),
                         0};
}

/* fd -1: there is no io_uring here. */
static struct ring new_ring(unsigned flags)
{
    struct io_uring_params with = {.flags = flags, .sq_thread_idle = 1000};
    int fd = enter_kernel(SYS_io_uring_setup, 16, (long)&with, 0, 0);
    return fd < 0 ? (struct ring){.fd = -1} : ring_of(fd, &with);
}

static struct io_uring_sqe *put(struct ring *ring, int op, int fd, const void *at, unsigned length, uint64_t offset)
{
    struct io_uring_sqe *entry = &ring->entries[*ring->tail & ring->mask];
    *entry = (struct io_uring_sqe){.opcode = op, .fd = fd, .addr = (uintptr_t)at, .len = length, .off = offset};
    entry->user_data = *ring->tail;
    ring->unsent++;
    __atomic_store_n(ring->tail, *ring->tail + 1, __ATOMIC_RELEASE);
    return entry;
}
static void enter(struct ring *ring, unsigned wait)
{
    unsigned count = ring->unsent;
    ring->unsent = 0;
    CHECK(enter_kernel(SYS_io_uring_enter, ring->fd, count, wait, IORING_ENTER_GETEVENTS) == count);
}
static int result(struct ring *ring)
{
    while (*ring->cq_head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
        MUST(enter_kernel(SYS_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS));
    int value = ring->results[*ring->cq_head & ring->cq_mask].res;
    __atomic_store_n(ring->cq_head, *ring->cq_head + 1, __ATOMIC_RELEASE);
    return value;
}
static int now(struct ring *ring, const char *what)
{
    enter(ring, 1);
    int value = result(ring);
    say_result(what, value < 0 ? -1 : value, -value);
    return value;
}

/* epoll_ctl as libuv does it. */
static void ctl(struct ring *ring, const char *what, int set, int op, int fd, unsigned events, uint64_t tag)
{
    struct epoll_event event = {.events = events, .data.u64 = tag};
    if (ring->fd < 0) {
        control(what, set, op, fd, events, tag);
        return;
    }
    put(ring, IORING_OP_EPOLL_CTL, set, &event, op, fd);
    int value = (enter(ring, 1), result(ring));
    say_result(what, value < 0 ? -1 : value, -value);
}

static void echo(int set, int fd, int rounds, unsigned events)
{
    static uint8_t buffer[4096];
    for (int i = 0; i < rounds;) {
        struct epoll_event event = {0};
        CHECK(epoll_wait(set, &event, 1, 20000) == 1);
        CHECK(event.data.u64 == 7 && (event.events & EPOLLIN));
        for (ssize_t n; (n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0; i++) {
            write_all(fd, buffer, n);
            if (!(events & EPOLLET))
                n = 0;
        }
    }
}
static void ask(int fd, int rounds)
{
    uint8_t mine[512], theirs[512];
    struct stream out = {271, 0};
    for (int i = 0; i < rounds; i++) {
        stream_fill(&out, mine, sizeof mine);
        write_all(fd, mine, sizeof mine);
        CHECK(read_full(fd, theirs, sizeof theirs) == sizeof theirs && !memcmp(mine, theirs, sizeof mine));
    }
}

static void control_of(int fd, unsigned how)
{
    struct ring ring = new_ring(0);
    int set = new_set();
    ctl(&ring, "ADD", set, EPOLL_CTL_ADD, fd, EPOLLIN | how, 7);
    echo(set, fd, 300, how);
    ctl(&ring, "ADD again", set, EPOLL_CTL_ADD, fd, EPOLLIN, 8);
    ctl(&ring, "MOD", set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT | how, 9);
    wait_show("room", set, -1);
    ctl(&ring, "MOD", set, EPOLL_CTL_MOD, fd, EPOLLIN | how, 7);
    tell(1);
    echo(set, fd, 300, how);
    ctl(&ring, "DEL", set, EPOLL_CTL_DEL, fd, 0, 0);
    tell(2);
    await_unread(fd, 4);
    wait_show("not a member", set, 0);
    ctl(&ring, "DEL again", set, EPOLL_CTL_DEL, fd, 0, 0);
    ctl(&ring, "MOD of none", set, EPOLL_CTL_MOD, fd, EPOLLIN, 10);
    wait_show("not a member", set, 0);
    ctl(&ring, "nonsense", set, 77, fd, EPOLLIN, 10);
    ctl(&ring, "not a set", fd, EPOLL_CTL_ADD, fd, EPOLLIN, 10);
    ctl(&ring, "exclusive MOD", set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLEXCLUSIVE, 10);
    ctl(&ring, "ADD", set, EPOLL_CTL_ADD, fd, EPOLLIN | how, 11);
    wait_show("a member", set, 0);
    drop(set, fd);
    ctl(&ring, "DEL by epoll_ctl before", set, EPOLL_CTL_DEL, fd, 0, 0);
    add(set, fd, EPOLLIN | how, 12);
    ctl(&ring, "MOD of epoll_ctl's", set, EPOLL_CTL_MOD, fd, EPOLLIN | how, 13);
    wait_show("a member", set, 0);
}
static void control_peer(int fd)
{
    ask(fd, 300);
    CHECK(hear() == 1);
    ask(fd, 300);
    CHECK(hear() == 2);
    send_text(fd, "rest");
}
static void control_level_server(int fd) { control_of(fd, 0); }
static void control_level_client(int fd) { control_peer(fd); }
static void control_edge_server(int fd) { control_of(fd, EPOLLET); }
static void control_edge_client(int fd) { control_peer(fd); }

/* Several in one go, some of them later or never: a link that breaks takes the rest with it. */
static void batch_server(int fd)
{
    struct ring ring = new_ring(0);
    int set = new_set(), other = new_set();
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7}, second = {.events = EPOLLIN, .data.u64 = 8};
    if (ring.fd < 0) {
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
        MUST(epoll_ctl(other, EPOLL_CTL_ADD, fd, &second));
    } else {
        put(&ring, IORING_OP_NOP, -1, NULL, 0, 0);
        put(&ring, IORING_OP_EPOLL_CTL, set, &event, EPOLL_CTL_ADD, fd);
        put(&ring, IORING_OP_EPOLL_CTL, other, &second, EPOLL_CTL_ADD, fd);
        enter(&ring, 3);
        CHECK(result(&ring) == 0 && result(&ring) == 0 && result(&ring) == 0);
    }
    echo(set, fd, 200, 0);
    tell(1);
    await_unread(fd, 4);
    wait_show("one", set, -1);
    wait_show("other", other, -1);
    char text[8] = "";
    CALL("read", read(fd, text, 4));
    if (ring.fd >= 0) {
        put(&ring, IORING_OP_CLOSE, 900, NULL, 0, 0)->flags = IOSQE_IO_LINK;
        put(&ring, IORING_OP_EPOLL_CTL, set, NULL, EPOLL_CTL_DEL, fd);
        enter(&ring, 2);
        CHECK(result(&ring) == -EBADF && result(&ring) == -ECANCELED);
        tell(2);
        wait_show("still a member", set, -1);
        CALL("read", read(fd, text, 1));
        put(&ring, IORING_OP_NOP, -1, NULL, 0, 0)->flags = IOSQE_IO_LINK;
        put(&ring, IORING_OP_EPOLL_CTL, set, NULL, EPOLL_CTL_DEL, fd);
        enter(&ring, 2);
        CHECK(result(&ring) == 0 && result(&ring) == 0);
    } else {
        tell(2);
        wait_show("still a member", set, -1);
        CALL("read", read(fd, text, 1));
        MUST(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    }
    tell(3);
    wait_show("other", other, -1);
    wait_show("no member", set, 0);
    CALL("read", read(fd, text, 1));
    wait_show("nothing left", other, 0);
}
static void batch_client(int fd)
{
    ask(fd, 200);
    CHECK(hear() == 1);
    send_text(fd, "rest");
    CHECK(hear() == 2);
    send_text(fd, "x");
    CHECK(hear() == 3);
    send_text(fd, "y");
}

/* Waiting that only the kernel does: on the connection, and on a set that it is a member of. */
static void wait_server(int fd)
{
    struct ring ring = new_ring(0);
    char text[16];
    if (ring.fd < 0)
        return;
    for (int i = 0; i < 20; i++) {
        put(&ring, IORING_OP_POLL_ADD, fd, NULL, 0, 0)->poll32_events = POLLIN;
        enter(&ring, 0);
        tell(1);
        int events = result(&ring);
        CHECK(events == POLLIN && read(fd, text, sizeof text) == 4);
    }
    say("polled");
}
static void wait_client(int fd)
{
    if (new_ring(0).fd < 0)
        return;
    for (int i = 0; i < 20; i++) {
        CHECK(hear() == 1);
        send_text(fd, "more");
    }
}
static void wait_set_server(int fd)
{
    struct ring ring = new_ring(0);
    int set = new_set();
    char text[16];
    if (ring.fd < 0)
        return;
    add(set, fd, EPOLLIN, 7);
    for (int i = 0; i < 20; i++) {
        put(&ring, IORING_OP_POLL_ADD, set, NULL, 0, 0)->poll32_events = POLLIN;
        enter(&ring, 0);
        tell(1);
        int events = result(&ring);
        CHECK(events & POLLIN);
        if (i == 0)
            wait_show("member", set, 0);
        CHECK(read(fd, text, sizeof text) == 4);
    }
    say("polled");
}
static void wait_set_client(int fd) { wait_client(fd); }

/* Bytes that only the kernel moves, in turn with calls that the library sees. */
static void transfer_server(int fd)
{
    struct ring ring = new_ring(0);
    char text[64] = "";
    struct iovec piece = {text, sizeof text};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (ring.fd < 0)
        return;
    for (int i = 0; i < 12; i++) {
        tell(1);
        if (i % 6 == 0)
            put(&ring, IORING_OP_RECV, fd, text, sizeof text, 0);
        else if (i % 6 == 1)
            put(&ring, IORING_OP_READ, fd, text, sizeof text, 0);
        else if (i % 6 == 2)
            put(&ring, IORING_OP_READV, fd, &piece, 1, 0);
        else if (i % 6 == 3)
            put(&ring, IORING_OP_RECVMSG, fd, &message, 1, 0);
        if (i % 6 < 4)
            now(&ring, "in");
        else
            CALL("in", i % 6 == 4 ? recv(fd, text, sizeof text, 0) : read(fd, text, sizeof text));
        say("%.12s", text);
        piece.iov_len = 12;
        if (i % 5 == 0)
            put(&ring, IORING_OP_SEND, fd, text, 12, 0);
        else if (i % 5 == 1)
            put(&ring, IORING_OP_WRITE, fd, text, 12, 0);
        else if (i % 5 == 2)
            put(&ring, IORING_OP_WRITEV, fd, &piece, 1, 0);
        else if (i % 5 == 3)
            put(&ring, IORING_OP_SENDMSG, fd, &message, 1, 0);
        if (i % 5 < 4)
            now(&ring, "out");
        else
            CALL("out", send(fd, text, 12, 0));
        piece.iov_len = sizeof text;
    }
}
static void transfer_client(int fd)
{
    char text[64], back[64];
    if (new_ring(0).fd < 0)
        return;
    for (int i = 0; i < 12; i++) {
        CHECK(hear() == 1);
        snprintf(text, sizeof text, "message % 4d", i);
        send_text(fd, text);
        CHECK(read_full(fd, back, 12) == 12 && !memcmp(text, back, 12));
    }
    say("all came back");
}

/* What was unread when only the kernel could read on, while the peer is busy elsewhere. */
static void unread_server(int fd)
{
    struct ring ring = new_ring(0);
    char text[16] = "";
    await_unread(fd, 4);
    if (ring.fd >= 0) {
        put(&ring, IORING_OP_RECV, fd, text, sizeof text, 0);
        now(&ring, "in");
    }
    tell(1);
}
static void unread_client(int fd)
{
    send_text(fd, "text");
    CHECK(hear() == 1);
}

/* A registered file is the kernel's to use whenever it likes. */
static void fixed_server(int fd)
{
    struct ring ring = new_ring(0);
    char text[16] = "";
    if (ring.fd < 0)
        return;
    int files[2] = {-1, fd};
    CALL("register", syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, files, 2));
    tell(1);
    put(&ring, IORING_OP_READ, 1, text, sizeof text, 0)->flags = IOSQE_FIXED_FILE;
    now(&ring, "read");
    say("%s", text);
    put(&ring, IORING_OP_WRITE, 1, "answer", 6, 0)->flags = IOSQE_FIXED_FILE;
    now(&ring, "write");
}
static void fixed_client(int fd)
{
    char text[8] = "";
    if (new_ring(0).fd < 0)
        return;
    CHECK(hear() == 1);
    send_text(fd, "question");
    CALL("read", read(fd, text, 6));
    say("%s", text);
}

/* The end of a connection; its number is free, and serves another. */
static void close_server(int fd)
{
    struct ring ring = new_ring(0);
    if (ring.fd < 0)
        return;
    send_text(fd, "last words");
    put(&ring, IORING_OP_CLOSE, fd, NULL, 0, 0);
    now(&ring, "close");
    CALL("write", write(fd, "x", 1));
    CALL("close", close(fd));
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    say("the number again: %d", pair[0] == fd || pair[1] == fd);
    CALL("write", write(pair[0], "x", 1));
    put(&ring, IORING_OP_CLOSE, fd, NULL, 0, 0);
    now(&ring, "close");
}
static void close_client(int fd)
{
    char text[16] = "";
    if (new_ring(0).fd < 0)
        return;
    CALL("read", recv(fd, text, 10, MSG_WAITALL));
    say("%s", text);
    CALL("read", read(fd, text, 16));
}

static void shutdown_server(int fd)
{
    struct ring ring = new_ring(0);
    char text[16] = "";
    if (ring.fd < 0)
        return;
    send_text(fd, "last words");
    put(&ring, IORING_OP_SHUTDOWN, fd, NULL, SHUT_WR, 0);
    now(&ring, "shutdown");
    CALL("read", recv(fd, text, 6, MSG_WAITALL));
    CALL("read", read(fd, text, 6));
}
static void shutdown_client(int fd)
{
    char text[16] = "";
    if (new_ring(0).fd < 0)
        return;
    CALL("read", recv(fd, text, 10, MSG_WAITALL));
    CALL("read", read(fd, text, 16));
    send_text(fd, "answer");
    MUST(shutdown(fd, SHUT_WR));
}

/* A kernel thread takes what is submitted, without a call. */
static void thread_server(int fd)
{
    struct ring ring = new_ring(IORING_SETUP_SQPOLL);
    char text[16] = "";
    if (ring.fd < 0)
        return;
    for (int i = 0; i < 5; i++) {
        put(&ring, IORING_OP_RECV, fd, text, sizeof text, 0);
        MUST(enter_kernel(SYS_io_uring_enter, ring.fd, 0, 0, IORING_ENTER_SQ_WAKEUP));
        tell(1);
        int n = result(&ring);
        CHECK(n == 4);
        write_all(fd, text, n);
    }
    say("by a thread");
}
static void thread_client(int fd)
{
    char text[16];
    if (new_ring(IORING_SETUP_SQPOLL).fd < 0)
        return;
    for (int i = 0; i < 5; i++) {
        CHECK(hear() == 1);
        send_text(fd, "ping");
        CHECK(read_full(fd, text, 4) == 4);
    }
}

/* Copies of the ring's descriptor, and a ring that is gone. */
static void copies_server(int fd)
{
    struct ring ring = new_ring(0);
    int set = new_set();
    if (ring.fd >= 0) {
        int copy = MUST(fcntl(ring.fd, F_DUPFD_CLOEXEC, 40));
        close(ring.fd);
        ring.fd = copy;
    }
    ctl(&ring, "ADD", set, EPOLL_CTL_ADD, fd, EPOLLIN, 7);
    echo(set, fd, 100, 0);
    if (ring.fd >= 0) {
        close(ring.fd);
        ring = new_ring(0);
    }
    ctl(&ring, "MOD", set, EPOLL_CTL_MOD, fd, EPOLLIN, 7);
    tell(1);
    echo(set, fd, 100, 0);
}
static void copies_client(int fd)
{
    ask(fd, 100);
    CHECK(hear() == 1);
    ask(fd, 100);
}

/* A connection that came to be by io_uring at both ends is plain, and works with every call. */
static void birth_server(int listener)
{
    struct ring ring = new_ring(0);
    int fd;
    if (ring.fd < 0) {
        fd = accept_from(listener);
    } else {
        put(&ring, IORING_OP_ACCEPT, listener, NULL, 0, 0);
        enter(&ring, 1);
        fd = result(&ring);
        CHECK(fd >= 0);
    }
    int set = new_set();
    ctl(&ring, "ADD", set, EPOLL_CTL_ADD, fd, EPOLLIN, 7);
    echo(set, fd, 200, 0);
}
static void birth_client(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct ring ring = new_ring(0);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    if (ring.fd < 0) {
        MUST(connect(fd, (struct sockaddr *)&to, sizeof to));
    } else {
        put(&ring, IORING_OP_CONNECT, fd, &to, 0, sizeof to);
        CHECK((enter(&ring, 1), result(&ring)) == 0);
    }
    ask(fd, 200);
    say("asked");
}

/* A ring that nobody saw being made, found in time: before the process promotes anything. */
static void unseen_server(int listener)
{
    in_line = true;
    struct ring ring = new_ring(0);
    int set = new_set();
    int fd = accept_warm(listener);
    ctl(&ring, "ADD", set, EPOLL_CTL_ADD, fd, EPOLLIN, 7);
    echo(set, fd, 200, 0);
    ctl(&ring, "DEL", set, EPOLL_CTL_DEL, fd, 0, 0);
    tell(1);
    await_unread(fd, 4);
    wait_show("no member", set, 0);
}
static void unseen_client(int port)
{
    int fd = connect_warm(port);
    ask(fd, 200);
    CHECK(hear() == 1);
    send_text(fd, "rest");
    say("asked");
}

const struct test_case cases[] = {CASE(control_level), CASE(control_edge), CASE(batch),     CASE(wait),
                                  CASE(wait_set),      CASE(transfer),     CASE(unread),    CASE(fixed),
                                  CASE(close),         CASE(shutdown),     CASE(thread),    CASE(copies),
                                  RAW_CASE(birth),     RAW_CASE(unseen),   END_OF_CASES};
