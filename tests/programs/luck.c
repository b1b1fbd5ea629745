/* Servers and clients for bad luck: they live on their own, on a port that the test gives, and say only what must be so.
 *
 *     luck epoll PORT                       echo server: one thread, level-triggered epoll
 *     luck threads PORT                     echo server: blocking calls, a thread for each connection
 *     luck ask PORT CONNECTIONS ROUNDS MOST exchanges of 1..MOST bytes on all connections in turn
 *     luck bulk PORT CONNECTIONS BYTES      as many bytes each way on all connections at once
 *     luck fill PORT BYTES AT FILE          as bulk, one connection; after AT bytes FILE takes all space there is, until the end
 *     luck talk PORT                        ten exchanges for each line of input, then a line
 *     luck hold PORT CONNECTIONS            makes connections busy, says so, and holds them idle until its input ends
 *     luck heirs PORT SOCKETS               makes so many sockets, says how long a program takes that inherits them, and becomes one
 *                                           that connects the first and the last of them and exchanges on both
 *     luck signalled -                      says each SIGINT from within its handler, and what comes in
 *     luck leave PORT                       connections that are killed at every step of their promotion
 *     luck exit CODE | luck die SIGNAL      makes a TCP socket and ends so
 */
#define main common_main
#include "common.c"
#undef main
#include <sys/resource.h>

const struct test_case cases[] = {END_OF_CASES};

enum { WARMING = 32, PIECE = 64 * KIB };

static int listen_at(const char *port)
{
    struct sockaddr_storage address;
    socklen_t length = loopback(AF_INET, atoi(port), &address);
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0)), on = 1;
    MUST(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(bind(listener, (struct sockaddr *)&address, length));
    MUST(listen(listener, 4096));
    return listener;
}

/* A peer's bad luck is not ours: a broken connection is closed and the others served. */
static bool broken(int error) { return error == ECONNRESET || error == EPIPE || error == ETIMEDOUT; }

struct guest {
    int fd;
    size_t have, sent;
    uint8_t data[PIECE];
};

/* False: the connection is over. */
static bool serve_guest(struct guest *guest, int set)
{
    for (int turn = 0; turn < 16; turn++) {
        while (guest->sent < guest->have) {
            ssize_t n = write(guest->fd, guest->data + guest->sent, guest->have - guest->sent);
            if (n < 0 && errno == EAGAIN) {
                struct epoll_event event = {.events = EPOLLOUT, .data.ptr = guest};
                MUST(epoll_ctl(set, EPOLL_CTL_MOD, guest->fd, &event));
                return true;
            }
            if (n < 0 && broken(errno))
                return false;
            guest->sent += MUST(n);
        }
        ssize_t n = read(guest->fd, guest->data, sizeof guest->data);
        if (n == 0 || (n < 0 && broken(errno)))
            return false;
        if (n < 0) {
            CHECK(errno == EAGAIN);
            break;
        }
        guest->have = n;
        guest->sent = 0;
    }
    struct epoll_event event = {.events = guest->sent < guest->have ? EPOLLOUT : EPOLLIN, .data.ptr = guest};
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, guest->fd, &event));
    return true;
}

static void serve_epoll(int listener)
{
    int set = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[64];
    set_nonblocking(listener, true);
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, listener, &event));
    for (;;) {
        int n = MUST(epoll_wait(set, events, 64, -1));
        for (int i = 0; i < n; i++) {
            struct guest *guest = events[i].data.ptr;
            if (guest) {
                if (!serve_guest(guest, set)) {
                    MUST(close(guest->fd));
                    free(guest);
                }
                continue;
            }
            for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                guest = calloc(1, sizeof *guest);
                guest->fd = fd;
                event = (struct epoll_event){.events = EPOLLIN, .data.ptr = guest};
                MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
            }
            CHECK(errno == EAGAIN || errno == ECONNABORTED);
        }
    }
}

static void *serve_one(void *argument)
{
    int fd = (intptr_t)argument;
    uint8_t *data = malloc(PIECE);
    for (ssize_t n; (n = read(fd, data, PIECE)) > 0;)
        for (ssize_t at = 0, m; at < n; at += m)
            if ((m = write(fd, data + at, n - at)) < 0) {
                CHECK(broken(errno));
                n = at = 0;
                goto over;
            }
over:
    free(data);
    MUST(close(fd));
    return NULL;
}

static void serve_threads(int listener)
{
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0 && errno == ECONNABORTED)
            continue;
        pthread_detach(start_thread(serve_one, (void *)(intptr_t)MUST(fd)));
    }
}

struct link {
    int fd;
    struct stream out, in;
};

static struct link *links_to(int port, int count)
{
    struct link *links = calloc(count, sizeof *links);
    for (int i = 0; i < count; i++)
        links[i] = (struct link){connect_to(AF_INET, port), {i + 500, 0}, {i + 500, 0}};
    return links;
}

static void exchange(struct link *link, size_t n)
{
    static uint8_t data[MIB];
    CHECK(n <= sizeof data);
    stream_fill(&link->out, data, n);
    write_all(link->fd, data, n);
    for (size_t left = n; left;) {
        ssize_t got = MUST(read(link->fd, data, left));
        if (got == 0)
            die("the server left");
        stream_check(&link->in, data, got);
        left -= got;
    }
}

static void warm(struct link *links, int count)
{
    for (int i = 0; i < count; i++)
        for (int j = 0; j < WARMING; j++)
            exchange(&links[i], 16);
}

static void ask(int port, int count, int rounds, size_t most)
{
    struct link *links = links_to(port, count);
    struct rng rng = {3};
    size_t total = 0;
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < count; i++) {
            size_t n = between(&rng, 1, most);
            exchange(&links[i], n);
            total += n;
        }
    say("%d connections, %d rounds, %zu bytes came back", count, rounds, total);
}

/* Takes all space where `path` is. */
static int fill_up(const char *path)
{
    static uint8_t page[4096];
    int fd = MUST(open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600));
    while (write(fd, page, sizeof page) > 0)
        ;
    CHECK(errno == ENOSPC);
    return fd;
}

/* Full duplex over all connections; in the middle of it `filler`, if any, takes all space. */
static void bulk(int port, int count, size_t bytes, size_t at, const char *filler)
{
    struct link *links = links_to(port, count);
    struct pollfd *entries = calloc(count, sizeof *entries);
    static uint8_t data[PIECE];
    warm(links, count);
    bytes += WARMING * 16;
    bool full = false;
    for (int open = count; open > 0;) {
        for (int i = 0; i < count; i++)
            entries[i] = (struct pollfd){links[i].in.offset < bytes ? links[i].fd : -1,
                                         POLLIN | (links[i].out.offset < bytes ? POLLOUT : 0), 0};
        MUST(poll(entries, count, -1));
        for (int i = 0; i < count; i++) {
            struct link *link = &links[i];
            if (entries[i].revents & POLLOUT) {
                struct stream ahead = link->out;
                size_t want = bytes - ahead.offset < PIECE ? bytes - ahead.offset : PIECE;
                stream_fill(&ahead, data, want);
                ssize_t n = send(link->fd, data, want, MSG_DONTWAIT);
                CHECK(n > 0 || errno == EAGAIN);
                link->out.offset += n > 0 ? n : 0;
            }
            if (entries[i].revents & (POLLIN | POLLHUP | POLLERR)) {
                ssize_t n = recv(link->fd, data, PIECE, MSG_DONTWAIT);
                CHECK(n > 0 || (n < 0 && errno == EAGAIN));
                if (n > 0)
                    stream_check(&link->in, data, n);
                open -= link->in.offset == bytes && n > 0;
            }
            if (filler && !full && link->in.offset >= at) {
                full = true;
                MUST(close(fill_up(filler)));
            }
        }
    }
    CHECK(full == (filler != NULL));
    if (filler)
        MUST(unlink(filler));
    say("%d connections, %zu bytes came back on each", count, bytes);
}

static void talk(int port)
{
    char line[64];
    struct link *link = links_to(port, 1);
    warm(link, 1);
    say("warm");
    while (fgets(line, sizeof line, stdin)) {
        for (int i = 0; i < 10; i++)
            exchange(link, i == 5 ? 30000 : 1 + i * 37);
        say("right");
    }
}

static void hold(int port, int count)
{
    char byte;
    warm(links_to(port, count), count);
    say("held");
    MUST(read(STDIN_FILENO, &byte, 1));
}

/* Whatever the one who started us has set. */
static uint64_t now_us(void)
{
    struct timespec now;
    MUST(clock_gettime(CLOCK_MONOTONIC, &now));
    return now.tv_sec * 1000000ULL + now.tv_nsec / 1000;
}

static void heirs(const char *port, int count)
{
    char first[16], last[16];
    for (int i = 0; i < count; i++) {
        int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
        snprintf(i ? last : first, sizeof last, "%d", fd);
    }
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t start = now_us();
        pid_t child = MUST(vfork());
        if (child == 0) {
            execl("/bin/true", "true", NULL);
            _exit(9);
        }
        int status;
        MUST(waitpid(child, &status, 0));
        CHECK(status == 0);
        uint64_t took = now_us() - start;
        best = took < best ? took : best;
    }
    say("%llu us", (unsigned long long)best);
    fflush(stdout);
    execl("/proc/self/exe", "luck", "heir", port, first, last, NULL);
    die("exec");
}

static void heir(int port, int first, int last)
{
    struct link links[] = {{first, {1, 0}, {1, 0}}, {last, {2, 0}, {2, 0}}};
    struct sockaddr_storage address;
    socklen_t length = loopback(AF_INET, port, &address);
    for (int i = 0; i < 2; i++)
        MUST(connect(links[i].fd, (struct sockaddr *)&address, length));
    warm(links, 2);
    say("inherited");
}

static void say_signal(int number)
{
    (void)number;
    if (write(1, "SIGINT\n", 7) != 7)
        _exit(9);
}

static void signalled(void)
{
    struct sigaction action = {.sa_handler = say_signal, .sa_flags = SA_RESTART};
    char text[64];
    MUST(sigaction(SIGINT, &action, NULL));
    MUST(write(1, "ready\n", 6));
    while (fgets(text, sizeof text, stdin))
        MUST(write(1, text, strlen(text)));
}

static void die_of(int number)
{
    signal(number, SIG_DFL);
    raise(number);
}

static void leave(int port)
{
    enum { ROUNDS = 14, LOOKS = 3 };
    for (int i = 0; i < ROUNDS * LOOKS; i++) {
        pid_t child = MUST(fork());
        if (child == 0) {
            char byte;
            struct link *link = links_to(port, 1);
            for (int round = 0; round < i / LOOKS; round++)
                exchange(link, 100);
            for (int look = 0; look < i % LOOKS; look++)
                CHECK(recv(link->fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
            die_of(SIGKILL);
        }
        MUST(waitpid(child, NULL, 0));
    }
    say("all left");
}

int main(int argc, char **argv)
{
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    MUST(getrlimit(RLIMIT_NOFILE, &files));
    files.rlim_cur = files.rlim_max;
    MUST(setrlimit(RLIMIT_NOFILE, &files));
    CHECK(argc >= 3);
    const char *what = argv[1];
    int port = atoi(argv[2]);
    if (!strcmp(what, "epoll"))
        serve_epoll(listen_at(argv[2]));
    else if (!strcmp(what, "threads"))
        serve_threads(listen_at(argv[2]));
    else if (!strcmp(what, "ask") && argc == 6)
        ask(port, atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
    else if (!strcmp(what, "bulk") && argc == 5)
        bulk(port, atoi(argv[3]), atoi(argv[4]), 0, NULL);
    else if (!strcmp(what, "fill") && argc == 6)
        bulk(port, 1, atoi(argv[3]), atoi(argv[4]), argv[5]);
    else if (!strcmp(what, "talk"))
        talk(port);
    else if (!strcmp(what, "heirs") && argc == 4)
        heirs(argv[2], atoi(argv[3]));
    else if (!strcmp(what, "heir") && argc == 5)
        heir(port, atoi(argv[3]), atoi(argv[4]));
    else if (!strcmp(what, "signalled"))
        signalled();
    else if (!strcmp(what, "leave"))
        leave(port);
    else if (!strcmp(what, "hold") && argc == 4)
        hold(port, atoi(argv[3]));
    else {
        int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
        say("a socket");
        if (!strcmp(what, "die"))
            die_of(atoi(argv[2]));
        MUST(close(fd));
        return atoi(argv[2]);
    }
    return 0;
}
