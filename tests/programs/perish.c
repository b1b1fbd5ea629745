/* A sender and a receiver that hand their connection on in every way there is, struck at random moments.
 *
 *     perish ROUNDS SECONDS SEED     the driver: so many rounds, or as many as fit
 *     perish FD BOARD ROLE SEED MORE the worker that a role goes on as, in a program that was started for it
 *
 * A role is one worker at a time. Now and then it hands its descriptor on (`enum way`) and waits for who goes on; so when
 * the blow falls (`enum blow`), any of several processes may hold the socket. Whatever is struck: who reads to the end has read
 * a correct prefix, with all in it whose write had returned; and everybody ends in time. */
#define main common_main
#include "common.c"
#undef main
#include <spawn.h>
#include <sys/prctl.h>

extern char **environ;
const struct test_case cases[] = {END_OF_CASES};

enum { SENDER, RECEIVER, HUNG_MS = 10000, TOTAL = MIB, PIECE = 40000 };
enum way { FORK, EXEC, EXEC_PLAIN, RIGHTS, DUP, SPAWN, SYSTEM, THREAD, VFORK_EXEC, EPOLL_FORK, WAYS };
enum blow { KILL, TERM, EXIT, STOP, NOTHING, BLOWS };
static const char *const way_names[] = {"fork", "exec", "exec without the front", "SCM_RIGHTS", "dup", "posix_spawn", "system",
                                        "a thread", "vfork and exec", "an epoll set over fork"};
static const char *const blow_names[] = {"kill", "SIGTERM", "exit", "stop and go on", "nothing"};

/* Shared by all processes of a round. */
static struct board {
    _Atomic uint64_t sent, received; /* bytes of returned writes; bytes read and found right */
    _Atomic int port, working;
    _Atomic pid_t worker[2]; /* who plays the role now */
    _Atomic bool finished[2];
    _Atomic int exit_at[2]; /* the step at which its worker exits; 0: never */
    _Atomic int steps[2];
    _Atomic int errors[2]; /* what ended the role's stream */
    _Atomic uint32_t ways; /* that were gone, as bits */
} *board;
static int memory, resets;
static char self[4096];

/* A process that does not hold the connection, and is there to get it by SCM_RIGHTS. */
struct courier {
    int through;
    pid_t pid;
};
static int work(int fd, int set, int role, struct rng *rng, int more, struct courier courier);
static const struct courier nobody = {-1, 0};

static int status_code(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 0; /* struck: no failure of its own */ }
static int wait_for(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    return status_code(status);
}

static void send_descriptor(int through, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0}, byte = 1;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    MUST(sendmsg(through, &message, MSG_NOSIGNAL));
}
static int receive_descriptor(int through)
{
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(through, &message, 0) != 1)
        _exit(0); /* the one that would have handed it on was struck */
    int fd;
    CHECK(CMSG_FIRSTHDR(&message));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

struct threaded {
    int fd, role, more, code;
    struct rng rng;
};
static void *work_in_thread(void *argument)
{
    struct threaded *t = argument;
    t->code = work(t->fd, -1, t->role, &t->rng, t->more, nobody);
    return NULL;
}

/* Goes on as another worker; gives that one's exit code. */
static int hand_on(int fd, int role, struct rng *rng, int more, struct courier courier)
{
    enum way way = between(rng, 0, WAYS - 1);
    board->ways |= 1u << way;
    char text[5][24], command[4600];
    snprintf(text[0], 24, "%d", fd), snprintf(text[1], 24, "%d", memory), snprintf(text[2], 24, "%d", role);
    snprintf(text[3], 24, "%llu", (unsigned long long)rng_next(rng)), snprintf(text[4], 24, "%d", more);
    char *arguments[] = {self, text[0], text[1], text[2], text[3], text[4], NULL};
    bool keeps = rng_next(rng) % 2;
    pid_t child;
    int set = -1, code;
    switch (way) {
    case EPOLL_FORK: {
        struct epoll_event event = {.events = role == SENDER ? EPOLLOUT : EPOLLIN};
        set = MUST(epoll_create1(0));
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    } /* fall through */
    case FORK:
        child = MUST(fork());
        if (child == 0)
            _exit(work(fd, set, role, rng, more, nobody));
        break;
    case EXEC_PLAIN:
        setenv("SGM_DISABLE", "1", 1);
        /* fall through */
    case EXEC:
        execv(self, arguments);
        die("exec");
    case RIGHTS:
        send_descriptor(courier.through, fd);
        child = courier.pid;
        break;
    case DUP: {
        int copy = MUST(dup(fd));
        MUST(close(fd));
        return work(copy, -1, role, rng, more, nobody);
    }
    case SPAWN:
        CHECK(posix_spawn(&child, self, NULL, NULL, arguments, environ) == 0);
        break;
    case SYSTEM:
        snprintf(command, sizeof command, "exec '%s' %s %s %s %s %s", self, text[0], text[1], text[2], text[3], text[4]);
        code = system(command);
        MUST(close(fd));
        return status_code(code);
    case THREAD: {
        struct threaded t = {.fd = fd, .role = role, .more = more, .rng = {rng_next(rng)}};
        pthread_join(start_thread(work_in_thread, &t), NULL);
        return t.code;
    }
    default:
        child = vfork();
        if (child == 0) {
            execv(self, arguments);
            _exit(127);
        }
        MUST(child);
    }
    if (!keeps)
        MUST(close(fd));
    code = wait_for(child);
    if (keeps)
        close(fd);
    return code;
}

static bool is_end(int error) { return error == EPIPE || error == ECONNRESET; }

/* One transfer of a role. False: the stream is over. */
static bool step(int fd, int set, int role, struct rng *rng)
{
    static _Thread_local uint8_t buffer[PIECE];
    size_t length = between(rng, 1, rng_next(rng) % 2 ? 300 : PIECE);
    if (set >= 0) {
        struct epoll_event event;
        while (epoll_wait(set, &event, 1, -1) < 0)
            CHECK(errno == EINTR);
    }
    ssize_t n;
    if (role == SENDER) {
        struct stream out = {77, board->sent};
        if (out.offset >= TOTAL)
            return false;
        if (length > TOTAL - out.offset)
            length = TOTAL - out.offset;
        stream_fill(&out, buffer, length);
        n = send(fd, buffer, length, MSG_NOSIGNAL | (set >= 0 ? MSG_DONTWAIT : 0));
        if (n > 0)
            board->sent += n;
    } else {
        struct stream in = {77, board->received};
        n = recv(fd, buffer, length, set >= 0 ? MSG_DONTWAIT : 0);
        if (n > 0) {
            stream_check(&in, buffer, n);
            board->received += n;
        }
    }
    if (n == 0 || (n < 0 && is_end(errno))) {
        board->errors[role] = n < 0 ? errno : 0;
        return false;
    }
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        MUST(n);
    return true;
}

static struct courier send_for(int fd, int role, struct rng *rng, int more)
{
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    struct courier courier = {pair[0], MUST(fork())};
    if (courier.pid == 0) {
        close(pair[0]);
        if (fd >= 0)
            close(fd);
        int got = receive_descriptor(pair[1]);
        struct rng own = {rng_next(rng)};
        _exit(work(got, -1, role, &own, more, nobody));
    }
    close(pair[1]);
    return courier;
}

/* Plays a role to its end, or hands it on `more` times first. */
static int work(int fd, int set, int role, struct rng *rng, int more, struct courier courier)
{
    board->worker[role] = getpid();
    if (more > 0 && courier.pid == 0)
        courier = send_for(fd, role, rng, more - 1);
    int due = more > 0 ? between(rng, 1, 40) : 0;
    for (int i = 1; step(fd, set, role, rng); i++) {
        if (++board->steps[role] == board->exit_at[role])
            exit(0);
        if (i == due) {
            int code = hand_on(fd, role, rng, more - 1, courier);
            close(courier.through);
            return code;
        }
    }
    close(fd);
    board->finished[role] = true;
    return 0;
}

static void play(int role, bool accepts, uint64_t seed)
{
    struct rng rng = {seed};
    int fd, more = between(&rng, 0, 3);
    /* Before there is a connection, which is promoted only while one process holds it. */
    struct courier courier = more > 0 ? send_for(-1, role, &rng, more - 1) : nobody;
    if (accepts) {
        int listener = listen_on(AF_INET);
        board->port = port_of(listener);
        fd = accept_from(listener);
        close(listener);
    } else {
        while (board->port == 0)
            sched_yield();
        fd = connect_to(AF_INET, board->port);
    }
    board->working++;
    exit(work(fd, -1, role, &rng, more, courier));
}

/* All that a round started must end in time. */
static void await_all(const char *how)
{
    for (uint64_t start = now_ms();;) {
        int status;
        pid_t ended = waitpid(-1, &status, WNOHANG);
        if (ended < 0 && errno == ECHILD)
            return;
        if (ended > 0) {
            int code = status_code(status);
            if (code != 0)
                die("%s: a process failed with %d", how, code);
            continue;
        }
        if (now_ms() - start > HUNG_MS) {
            fprintf(stderr, "%s: hangs (sent %llu, received %llu, finished %d %d)\n", how, (unsigned long long)board->sent,
                    (unsigned long long)board->received, board->finished[0], board->finished[1]);
            if (getenv("SGM_PERISH_STAY"))
                pause();
            kill(0, SIGKILL);
        }
        struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
    }
}

static void round_of(struct rng *rng, const char *name)
{
    memset(board, 0, sizeof *board);
    enum blow blow = between(rng, 0, BLOWS - 1);
    int struck = between(rng, 0, 1);
    bool sender_accepts = rng_next(rng) % 2, first = rng_next(rng) % 3 == 0;
    if (blow == EXIT)
        board->exit_at[struck] = between(rng, 1, 60);
    pid_t roles[2];
    for (int role = 0; role < 2; role++) {
        uint64_t seed = rng_next(rng);
        roles[role] = MUST(fork());
        if (roles[role] == 0) {
            prctl(PR_SET_CHILD_SUBREAPER, 0);
            play(role, (role == SENDER) == sender_accepts, seed);
        }
    }
    for (uint64_t start = now_ms(); board->working < 2; sched_yield())
        CHECK(now_ms() - start < HUNG_MS);
    struct timespec moment = {0, between(rng, 0, rng_next(rng) % 2 ? 2000000 : 15000000)};
    nanosleep(&moment, NULL);
    pid_t whom = first ? roles[struck] : board->worker[struck];
    char how[200];
    snprintf(how, sizeof how, "%s: %s, the %s's %s process", name, blow_names[blow], struck == SENDER ? "sender" : "receiver",
             first ? "first" : "working");
    if (whom > 0 && blow == STOP) {
        kill(whom, SIGSTOP);
        struct timespec pause = {0, between(rng, 0, 30000000)};
        nanosleep(&pause, NULL);
        kill(whom, SIGCONT);
    } else if (whom > 0 && blow != EXIT && blow != NOTHING)
        kill(whom, blow == KILL ? SIGKILL : SIGTERM);
    await_all(how);
    uint64_t sent = board->sent, received = board->received;
    bool hit = blow == KILL || blow == TERM || blow == EXIT;
    for (int role = 0; role < 2; role++)
        if (!board->finished[role] && !(hit && struck == role))
            die("%s: the %s did not come to its end", how, role == SENDER ? "sender" : "receiver");
    /* What was given away may be reset, and never end short of what was sent: see "Hand-back" in ARCHITECTURE.md. */
    bool given = board->ways & (1u << EXEC_PLAIN | 1u << RIGHTS);
    if (given && received < sent && board->errors[RECEIVER] == ECONNRESET)
        resets++;
    else if (board->finished[RECEIVER] && received < sent) {
        fprintf(stderr, "ways:");
        for (int way = 0; way < WAYS; way++)
            if (board->ways >> way & 1)
                fprintf(stderr, " %s,", way_names[way]);
        die(" %s: %llu bytes were taken, %llu arrived, then %s", how, (unsigned long long)sent, (unsigned long long)received,
            strerrorname_np(board->errors[RECEIVER]));
    }
}

int main(int argc, char **argv)
{
    MUST(readlink("/proc/self/exe", self, sizeof self - 1));
    signal(SIGPIPE, SIG_IGN);
    if (argc == 6) {
        struct rng rng = {strtoull(argv[4], NULL, 10)};
        memory = atoi(argv[2]);
        board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
        CHECK(board != MAP_FAILED);
        return work(atoi(argv[1]), -1, atoi(argv[3]), &rng, atoi(argv[5]), nobody);
    }
    CHECK(argc == 4);
    int rounds = atoi(argv[1]);
    uint64_t until = now_ms() + atoi(argv[2]) * 1000ull;
    struct rng rng = {strtoull(argv[3], NULL, 10)};
    memory = MUST(memfd_create("board", 0));
    MUST(ftruncate(memory, sizeof *board));
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (getpgrp() != getpid())
        MUST(setpgid(0, 0)); /* all that it starts can be killed together */
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    const char *only = getenv("SGM_PERISH_ROUND");
    uint32_t ways = 0;
    int made = 0;
    for (int i = 0; i < rounds && now_ms() < until; i++) {
        char name[40];
        snprintf(name, sizeof name, "round %d of seed %s", i, argv[3]);
        struct rng own = {rng_next(&rng)};
        if (only && i != atoi(only))
            continue;
        round_of(&own, name);
        made++;
        ways |= board->ways;
    }
    say("%d rounds, ways %x, %d resets", made, ways, resets);
    return 0;
}
