/* See common.h. */
#include "common.h"

#include <stdarg.h>
#include <time.h>

static bool serving;
static int tell_fd, hear_fd;

void say(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length < 0 || length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    /* One write a line and no stdio buffer: a forked child repeats nothing. */
    if (write(STDOUT_FILENO, line, length) != length)
        abort();
}

long say_result(const char *what, long value, int error)
{
    if (value == -1)
        say("%s = -1 %s", what, strerrorname_np(error));
    else
        say("%s = %ld", what, value);
    errno = error;
    return value;
}

void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vdprintf(STDERR_FILENO, format, arguments);
    va_end(arguments);
    dprintf(STDERR_FILENO, "\n");
    _exit(99);
}

const char *events_name(unsigned events)
{
    static const struct {
        unsigned bit;
        const char *name;
    } names[] = {{EPOLLIN, "IN"},   {EPOLLPRI, "PRI"}, {EPOLLOUT, "OUT"},    {EPOLLERR, "ERR"},
                 {EPOLLHUP, "HUP"}, {POLLNVAL, "NVAL"}, {EPOLLRDHUP, "RDHUP"},
                 {EPOLLRDNORM, "RDNORM"}, {EPOLLWRNORM, "WRNORM"}};
    static __thread char text[2][64]; /* two, so that one say() can name two sets */
    static __thread int turn;
    char *out = text[turn ^= 1];
    out[0] = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (events & names[i].bit) {
            if (out[0])
                strcat(out, "|");
            strcat(out, names[i].name);
        }
    return out[0] ? out : "none";
}

void tell(uint64_t number) { CHECK(write(tell_fd, &number, sizeof number) == sizeof number); }

uint64_t hear(void)
{
    uint64_t number;
    CHECK(read(hear_fd, &number, sizeof number) == sizeof number);
    return number;
}

void meet(void)
{
    tell(0x6d656574);
    CHECK(hear() == 0x6d656574);
}

void give_back(int fd)
{
    int kept = MUST(dup(2));
    MUST(dup2(fd, 2));
    MUST(dup2(kept, 2));
    MUST(close(kept));
}

bool is_server(void) { return serving; }

static socklen_t loopback(int family, uint16_t port, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (family == AF_INET6) {
        struct sockaddr_in6 *in6 = (void *)out;
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        in6->sin6_addr = in6addr_loopback;
        return sizeof *in6;
    }
    struct sockaddr_in *in = (void *)out;
    in->sin_family = AF_INET;
    in->sin_port = htons(port);
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return sizeof *in;
}

int listen_on(int family)
{
    struct sockaddr_storage address;
    socklen_t length = loopback(family, 0, &address);
    int listener = MUST(socket(family, SOCK_STREAM, 0));
    MUST(bind(listener, (struct sockaddr *)&address, length));
    MUST(listen(listener, 512));
    return listener;
}

uint16_t port_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    MUST(getsockname(fd, (struct sockaddr *)&address, &length));
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

int accept_from(int listener) { return MUST(accept(listener, NULL, NULL)); }

int connect_to(int family, uint16_t port)
{
    struct sockaddr_storage address;
    socklen_t length = loopback(family, port, &address);
    int fd = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(fd, (struct sockaddr *)&address, length));
    return fd;
}

void warm_up_n(int fd, bool first, int rounds)
{
    char mine[16] = "warming it up..", theirs[16];
    for (int i = 0; i < rounds; i++) {
        if (first)
            write_all(fd, mine, sizeof mine);
        CHECK(read_full(fd, theirs, sizeof theirs) == sizeof theirs && !memcmp(mine, theirs, sizeof mine));
        if (!first)
            write_all(fd, mine, sizeof mine);
    }
}

void warm_up(int fd, bool first)
{
    const char *rounds = getenv("WARMUP");
    warm_up_n(fd, first, rounds ? atoi(rounds) : 32);
}

int accept_warm(int listener)
{
    int fd = accept_from(listener);
    warm_up(fd, false);
    return fd;
}

int connect_warm(uint16_t port)
{
    int fd = connect_to(AF_INET, port);
    warm_up(fd, true);
    return fd;
}

void set_nonblocking(int fd, bool on)
{
    int flags = MUST(fcntl(fd, F_GETFL));
    MUST(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
}

void write_all(int fd, const void *data, size_t length)
{
    for (const char *at = data; length;) {
        ssize_t n = MUST(write(fd, at, length));
        at += n;
        length -= n;
    }
}

size_t read_full(int fd, void *data, size_t length)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = MUST(read(fd, (char *)data + done, length - done));
        if (n == 0)
            break;
        done += n;
    }
    return done;
}

void send_text(int fd, const char *text) { write_all(fd, text, strlen(text)); }

short await_events(int fd, short events)
{
    struct pollfd entry = {.fd = fd, .events = events};
    MUST(poll(&entry, 1, -1));
    return entry.revents;
}

void await_unread(int fd, int bytes)
{
    for (int unread = -1; unread != bytes; sched_yield())
        MUST(ioctl(fd, FIONREAD, &unread));
}

pid_t thread_id(void) { return syscall(SYS_gettid); }

/* Asleep = the state letter is S and no context switch happened over a few looks, so that a thread which merely yields or
 * naps between two spins does not count. */
void await_asleep(pid_t thread)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/status", thread);
    char last[128] = "";
    for (int same = 0; same < 3;) {
        int fd = MUST(open(path, O_RDONLY));
        ssize_t n = MUST(read(fd, text, sizeof text - 1));
        close(fd);
        text[n] = 0;
        const char *state = strstr(text, "State:\t"), *switches = strstr(text, "voluntary_ctxt_switches:");
        CHECK(state && switches);
        bool quiet = state[7] == 'S' && !strncmp(last, switches, sizeof last - 1);
        same = quiet ? same + 1 : 0;
        snprintf(last, sizeof last, "%.127s", switches);
        usleep(1000); /* the pace of the looks; nothing can be waited on here */
    }
}

uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000ull + now.tv_nsec / 1000000;
}

static volatile sig_atomic_t sigpipe_count;
static void on_sigpipe(int signal) { sigpipe_count++; (void)signal; }
int sigpipes(void) { return sigpipe_count; }

void watch_sigpipe(void)
{
    struct sigaction action = {.sa_handler = on_sigpipe};
    MUST(sigaction(SIGPIPE, &action, NULL));
}

void wait_child(pid_t child)
{
    int status;
    MUST(waitpid(child, &status, 0));
    if (WIFSIGNALED(status))
        say("child ended by signal %d", WTERMSIG(status));
    else
        say("child ended with %d", WEXITSTATUS(status));
}

pid_t idle_child(void)
{
    pid_t child = MUST(fork());
    if (child == 0)
        for (;;)
            pause();
    return child;
}

pthread_t start_thread(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, body, argument) == 0);
    return thread;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        die("use: %s CASE server|client", argv[0]);
    const struct test_case *found = cases;
    while (found->name && strcmp(found->name, argv[1]))
        found++;
    if (!found->name)
        die("no case %s", argv[1]);
    const char *directory = getenv("SGM_TEST_DIR"), *swap = getenv("SWAP");
    CHECK(directory);
    serving = !strcmp(argv[2], "server");
    char path[512];
    /* Opened for both reading and writing, a FIFO opens at once and keeps its content until the other role comes. */
    snprintf(path, sizeof path, "%s/to_%s", directory, serving ? "client" : "server");
    tell_fd = MUST(open(path, O_RDWR | O_CLOEXEC));
    snprintf(path, sizeof path, "%s/to_%s", directory, serving ? "server" : "client");
    hear_fd = MUST(open(path, O_RDWR | O_CLOEXEC));

    int fd, listener = -1;
    if (serving) {
        listener = listen_on(AF_INET);
        tell(port_of(listener));
        fd = found->kind == RAW ? listener : accept_warm(listener);
    } else {
        uint16_t port = hear();
        fd = found->kind == RAW ? port : connect_warm(port);
    }
    bool server_part = serving != (found->kind == PAIR && swap && !strcmp(swap, "1"));
    (server_part ? found->server : found->client)(fd);
    meet(); /* so that no case sees the other's exit by chance */
    say("done");
    return 0;
}
