/* A sender and a receiver, one of them killed at a random moment, again and again.
 *
 *     kill ROUNDS SEED               the driver: starts both roles of each round, kills one, judges the survivor
 *     kill ROUNDS SEED ROLE ...      a role (started by the driver)
 *
 * The survivor must have received a correct prefix of the stream, with everything in it whose write had returned before the
 * kill, and then see the end or an error within ten seconds (a busy machine needs some). The last round kills nobody and must
 * end well. */
#define main common_main
#include "common.c"
#undef main
#include <spawn.h>

extern char **environ;
const struct test_case cases[] = {END_OF_CASES};

enum { PREFIX_RIGHT = 0, HUNG_MS = 10000, TOTAL = 2 * MIB };
enum mode { BULK, SMALL, TURNS, POLLED, MODES };

/* Shared by the driver and both roles of a round. */
struct board {
    _Atomic uint64_t sent, received; /* bytes of returned writes; bytes read and found right */
    _Atomic int port, connected, streaming;
};
static struct board *board;

static void send_until_broken(int fd, struct rng *rng, enum mode mode, bool finite)
{
    struct stream out = {77, 0};
    static uint8_t buffer[60000];
    while (!finite || out.offset < TOTAL) {
        size_t n = between(rng, 1, mode == SMALL || mode == TURNS ? 200 : sizeof buffer);
        stream_fill(&out, buffer, n);
        for (size_t at = 0; at < n;) {
            ssize_t taken = write(fd, buffer + at, n - at);
            if (taken < 0 && (errno == EPIPE || errno == ECONNRESET))
                return;
            at += MUST(taken);
            board->sent += taken;
        }
        char answer;
        if (mode == TURNS && (n = read(fd, &answer, 1)) != 1) {
            CHECK(n == 0 || errno == ECONNRESET);
            return;
        }
    }
}

static void receive_until_broken(int fd, struct rng *rng, enum mode mode)
{
    struct stream in = {77, 0};
    static uint8_t buffer[60000];
    if (mode == POLLED)
        set_nonblocking(fd, true);
    for (;;) {
        ssize_t n = read(fd, buffer, between(rng, 1, sizeof buffer));
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return;
        if (n < 0 && errno == EAGAIN && mode == POLLED) {
            await_events(fd, POLLIN);
            continue;
        }
        MUST(n);
        stream_check(&in, buffer, n);
        board->received += n;
        if (mode == TURNS && write(fd, "!", 1) != 1) {
            CHECK(errno == EPIPE || errno == ECONNRESET);
            return;
        }
    }
}

/* A warm-up that takes the peer's death at any point for what it is. */
static bool warm_up_or_end(int fd, bool first)
{
    char text[16];
    for (int i = 0; i < 32; i++)
        for (int step = 0; step < 2; step++) {
            if ((step == 0) == first) {
                if (write(fd, "warming it up..", sizeof text) < 0) {
                    CHECK(errno == EPIPE || errno == ECONNRESET);
                    return false;
                }
            } else
                for (size_t at = 0; at < sizeof text;) {
                    ssize_t n = read(fd, text + at, sizeof text - at);
                    if (n <= 0) {
                        CHECK(n == 0 || errno == ECONNRESET);
                        return false;
                    }
                    at += n;
                }
        }
    return true;
}

/* A role: argv[3] = sender|receiver, argv[4] = memory, argv[5] = seed, argv[6] = mode, argv[7] = accepts, argv[8] = finite */
static int play(char **argv)
{
    bool sender = !strcmp(argv[3], "sender");
    struct rng rng = {strtoull(argv[5], NULL, 10)};
    bool accepts = argv[7][0] == '1';
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[4]), 0);
    CHECK(board != MAP_FAILED);
    signal(SIGPIPE, SIG_IGN);
    int fd;
    if (accepts) {
        int listener = listen_on(AF_INET);
        board->port = port_of(listener);
        fd = accept_from(listener);
    } else {
        while (board->port == 0)
            sched_yield();
        fd = connect_to(AF_INET, board->port);
    }
    board->connected++;
    if (!warm_up_or_end(fd, !accepts))
        return PREFIX_RIGHT;
    board->streaming++;
    enum mode mode = atoi(argv[6]);
    if (sender)
        send_until_broken(fd, &rng, mode, argv[8][0] == '1');
    else
        receive_until_broken(fd, &rng, mode);
    return PREFIX_RIGHT;
}

static pid_t start(char **argv, const char *role, int memory, uint64_t seed, enum mode mode, bool accepts, bool finite)
{
    char text[3][24];
    snprintf(text[0], 24, "%d", memory);
    snprintf(text[1], 24, "%llu", (unsigned long long)seed);
    snprintf(text[2], 24, "%d", mode);
    char *arguments[] = {argv[0], argv[1], argv[2], (char *)role, text[0], text[1], text[2], accepts ? "1" : "0", finite ? "1" : "0", NULL};
    pid_t child;
    CHECK(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ) == 0);
    return child;
}

static void await_both(_Atomic int *count)
{
    for (uint64_t start = now_ms(); *count < 2; sched_yield())
        CHECK(now_ms() - start < 60000);
}

/* The status of a child that ends in time; a hung one is killed and reported. */
static int status_of(pid_t child, const char *who, int round)
{
    int status;
    int process = MUST(syscall(SYS_pidfd_open, child, 0));
    struct pollfd entry = {.fd = process, .events = POLLIN};
    if (poll(&entry, 1, HUNG_MS) == 0) {
        kill(child, SIGKILL);
        die("round %d: the %s hangs (sent %llu, received %llu)", round, who, (unsigned long long)board->sent,
            (unsigned long long)board->received);
    }
    close(process);
    MUST(waitpid(child, &status, 0));
    return status;
}

int main(int argc, char **argv)
{
    if (argc == 9)
        return play(argv);
    CHECK(argc == 3);
    int rounds = atoi(argv[1]);
    struct rng rng = {strtoull(argv[2], NULL, 10)};
    int memory = MUST(memfd_create("board", 0));
    MUST(ftruncate(memory, sizeof *board));
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    uint64_t total = 0;
    for (int round = 0; round <= rounds; round++) {
        memset(board, 0, sizeof *board);
        bool last = round == rounds, sender_accepts = rng_next(&rng) % 2, sender_dies = rng_next(&rng) % 2;
        enum mode mode = rng_next(&rng) % MODES;
        pid_t sender = start(argv, "sender", memory, rng_next(&rng), mode, sender_accepts, last);
        pid_t receiver = start(argv, "receiver", memory, rng_next(&rng), mode, !sender_accepts, last);
        await_both(&board->connected);
        if (last) {
            sender_dies = true; /* it ends by itself */
        } else {
            if (rng_next(&rng) % 4) /* else some time in the warm-up */
                await_both(&board->streaming);
            struct timespec pause = {0, between(&rng, 0, 2000000)};
            nanosleep(&pause, NULL); /* the random moment */
            kill(sender_dies ? sender : receiver, SIGKILL);
        }
        int status = status_of(sender_dies ? sender : receiver, "victim", round);
        CHECK(last ? status == 0 : WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        uint64_t sent = board->sent;
        status = status_of(sender_dies ? receiver : sender, "survivor", round);
        if (status != 0)
            die("round %d: the survivor (%s) ended with status %x, mode %d", round, sender_dies ? "receiver" : "sender", status,
                mode);
        if (sender_dies && board->received < sent)
            die("round %d, mode %d: %llu bytes were taken from the sender, %llu arrived", round, mode,
                (unsigned long long)sent, (unsigned long long)board->received);
        if (last && board->received < TOTAL)
            die("the last round lost bytes");
        total += board->received;
    }
    say("%d rounds with a kill and one without", rounds);
    dprintf(2, "%llu bytes in all\n", (unsigned long long)total);
    return 0;
}
