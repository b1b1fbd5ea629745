/* A sender whose last word is out, and which then ends in every way there is, while the receiver gives the connection away.
 *
 *     bequest ROUNDS SECONDS SEED    so many rounds, or as many as fit
 *     bequest OFFSET                 the program that a round gives descriptor 0 to: it reads the rest
 *
 * The kernel goes on delivering what it has taken from a process that was killed. So the receiver must have every byte whose
 * send had returned, and then the end. */
#define main common_main
#include "common.c"
#undef main
#include <sched.h>
#include <spawn.h>

extern char **environ;
const struct test_case cases[] = {END_OF_CASES};

enum { TOTAL = 700000, PIECE = 40000, TURNS = 20, TURN = 64, HUNG_S = 20, STREAM = 78, STALL_MS = 60 };
enum way { ZERO, RIGHTS, SPAWN, FDOPEN, FORK_ZERO, STRANGER, SHUT, STALL, NOT, WAYS };
enum end { KILL, TERM, HANDLER, EXIT, CLOSE, EXEC, ENDS };
static const char *const way_names[] = {"dup2 to 0",    "SCM_RIGHTS",    "posix_spawn to 0", "fdopen", "a child's dup2 to 0",
                                        "a stranger",   "half a close",  "a pause",          "nothing"};
static const char *const end_names[] = {"kill", "SIGTERM", "exit in a handler", "exit", "close", "exec"};
static char self[4096];
static uint8_t buffer[PIECE];

static void leave(int number)
{
    (void)number;
    _exit(0);
}

static void end_by(enum end end, int fd)
{
    char *const arguments[] = {"/bin/true", NULL};
    switch (end) {
    case KILL:
        raise(SIGKILL);
        break;
    case TERM:
        raise(SIGTERM);
        break;
    case HANDLER:
        signal(SIGUSR1, leave);
        raise(SIGUSR1);
        break;
    case CLOSE:
        MUST(close(fd));
        break;
    case EXEC:
        setenv("SGM_DISABLE", "1", 1);
        execv(arguments[0], arguments);
        die("exec");
    default:
        break;
    }
    exit(0);
}

static void take_turns(int fd, bool first)
{
    uint8_t message[TURN] = {0};
    for (int i = 0; i < TURNS; i++) {
        if (first)
            write_all(fd, message, TURN);
        CHECK(read_full(fd, message, TURN) == TURN);
        if (!first)
            write_all(fd, message, TURN);
    }
}

static void send_all(int fd, enum way way, enum end end, struct rng *rng)
{
    struct stream out = {STREAM, 0};
    bool polls = way == SHUT || rng_next(rng) % 2;
    set_nonblocking(fd, polls);
    while (out.offset < TOTAL) {
        struct stream next = out;
        size_t length = between(rng, 1, PIECE);
        if (length > TOTAL - out.offset)
            length = TOTAL - out.offset;
        stream_fill(&next, buffer, length);
        ssize_t n = send(fd, buffer, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd wait = {fd, POLLOUT, 0};
            MUST(poll(&wait, 1, -1));
        } else
            out.offset += MUST(n);
    }
    end_by(end, fd);
}

/* Reads up to `most`, or to the end: false then. */
static bool receive(int fd, struct stream *in, size_t most)
{
    while (in->offset < most) {
        size_t length = most - in->offset < PIECE ? most - in->offset : PIECE;
        ssize_t n = recv(fd, buffer, length, 0);
        if (n < 0)
            die("%llu of %d bytes, then %s", (unsigned long long)in->offset, TOTAL, strerrorname_np(errno));
        if (n == 0)
            return false;
        stream_check(in, buffer, n);
    }
    return true;
}

static void receive_rest(int fd, struct stream *in)
{
    receive(fd, in, TOTAL + 1);
    if (in->offset != TOTAL)
        die("%llu of %d bytes, then the end", (unsigned long long)in->offset, TOTAL);
}

static int through_a_message(int fd)
{
    int pair[2], got;
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    char control[CMSG_SPACE(sizeof fd)] = {0}, byte = 1;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    MUST(sendmsg(pair[0], &message, 0));
    MUST(close(fd));
    CHECK(recvmsg(pair[1], &message, 0) == 1);
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
    close(pair[0]), close(pair[1]);
    return got;
}

static void give(int *fd, enum way way, struct stream *in)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)in->offset);
    char *const rest[] = {self, text, NULL}, *const other[] = {"/bin/true", NULL};
    pid_t child;
    switch (way) {
    case ZERO:
        MUST(dup2(*fd, 0));
        MUST(close(*fd));
        *fd = MUST(dup(0));
        break;
    case RIGHTS:
        *fd = through_a_message(*fd);
        break;
    case SPAWN: {
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, *fd, 0);
        CHECK(posix_spawn(&child, other[0], &actions, NULL, other, environ) == 0);
        posix_spawn_file_actions_destroy(&actions);
        break;
    }
    case FDOPEN:
        fclose(fdopen(MUST(dup(*fd)), "r"));
        break;
    case FORK_ZERO:
    case STRANGER:
        if ((child = MUST(fork())) == 0) {
            MUST(dup2(*fd, 0));
            if (way == STRANGER)
                setenv("SGM_DISABLE", "1", 1);
            execv(way == STRANGER ? self : other[0], way == STRANGER ? rest : other);
            die("exec");
        }
        if (way == STRANGER) {
            int status;
            MUST(close(*fd));
            MUST(waitpid(child, &status, 0));
            exit(status != 0);
        }
        break;
    case SHUT:
        MUST(shutdown(*fd, SHUT_WR));
        break;
    case STALL: {
        /* Long enough for what is not read to go over TCP. */
        struct timespec pause = {0, STALL_MS * 1000000};
        nanosleep(&pause, NULL);
        break;
    }
    default:
        break;
    }
}

static void round_of(struct rng *rng, bool sender_accepts, enum way way, enum end end)
{
    int listener = listen_on(AF_INET);
    uint16_t port = port_of(listener);
    struct rng own = {rng_next(rng)};
    pid_t sender = MUST(fork());
    bool sends = sender == 0;
    alarm(HUNG_S);
    int fd = sends == sender_accepts ? accept_from(listener) : connect_to(AF_INET, port);
    close(listener);
    take_turns(fd, sends);
    if (sends)
        send_all(fd, way, end, &own);
    struct stream in = {STREAM, 0};
    if (rng_next(rng) % 3 != 0)
        CHECK(receive(fd, &in, between(rng, 1, TOTAL - 1)));
    /* Whatever the sender is at by then. */
    for (int n = between(rng, 0, 200); n > 0; n--)
        sched_yield();
    give(&fd, way, &in);
    receive_rest(fd, &in);
    close(fd);
    MUST(close(0));
    while (wait(NULL) > 0)
        ;
}

int main(int argc, char **argv)
{
    MUST(readlink("/proc/self/exe", self, sizeof self - 1));
    if (argc == 2) {
        struct stream in = {STREAM, strtoull(argv[1], NULL, 10)};
        receive_rest(0, &in);
        return 0;
    }
    CHECK(argc == 4);
    int rounds = atoi(argv[1]), made = 0, failed = 0;
    uint64_t until = now_ms() + atoi(argv[2]) * 1000ull;
    struct rng rng = {strtoull(argv[3], NULL, 10)};
    for (; made < rounds && now_ms() < until; made++) {
        enum way way = between(&rng, 0, WAYS - 1);
        enum end end = between(&rng, 0, 1) ? KILL : between(&rng, 0, ENDS - 1);
        bool sender_accepts = rng_next(&rng) % 2;
        struct rng own = {rng_next(&rng)};
        pid_t child = MUST(fork());
        if (child == 0) {
            round_of(&own, sender_accepts, way, end);
            exit(0);
        }
        int status;
        MUST(waitpid(child, &status, 0));
        if (status != 0) {
            fprintf(stderr, "round %d of seed %s, %s at the %s, the sender ends by %s: status %x\n", made, argv[3], way_names[way],
                    sender_accepts ? "client" : "server", end_names[end], status);
            failed++;
        }
    }
    say("%d rounds, %d failed", made, failed);
    return failed != 0;
}
