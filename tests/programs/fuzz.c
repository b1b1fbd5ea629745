/* The director: plays scripts. See fuzz.h. */
#define main common_main
#include "common.c"
#undef main
#include "fuzz.h"

#include <stdarg.h>
#include <sys/prctl.h>

const struct test_case cases[] = {END_OF_CASES};

enum { LINE = 400, TRANSCRIPT = 128 * KIB };
static char transcript[TRANSCRIPT];
static size_t written;

/* What the director knows of an actor. */
static struct control {
    int process; /* a pidfd */
    bool pending, stopped;
    int step; /* the pending one */
    uint64_t start; /* bytes received or sent when it began */
} actors[SLOTS];
static int limit_ms = 3000;

static void note(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(transcript + written, TRANSCRIPT - written, format, arguments);
    va_end(arguments);
    written += length;
    if (written >= TRANSCRIPT)
        written = TRANSCRIPT - 1;
}

static void outcome(int number, const char *text)
{
    char line[LINE];
    describe(&board->script.steps[number], line, sizeof line);
    note("%3d %-44s = %s\n", number, line, text);
}

/* A comment: where a process is. It is not compared. */
static void note_whereabouts(int slot)
{
    char path[64], text[256] = "";
    const char *const files_of[] = {"wchan", "syscall", "status"};
    note("# %c (%d):", 'A' + slot, board->pid[slot]);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", board->pid[slot], files_of[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : read(fd, text, i == 2 ? 80 : sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        for (char *c = text; *c; c++)
            if (*c == '\n' || *c == '\t')
                *c = ' ';
        note(" %s", text);
    }
    note("\n");
}

static void setup_board(uint64_t seed)
{
    char program[256], static_program[256];
    memcpy(program, board->program, sizeof program);
    memcpy(static_program, board->static_program, sizeof static_program);
    memset(board, 0, sizeof *board);
    memcpy(board->program, program, sizeof program);
    memcpy(board->static_program, static_program, sizeof static_program);
    board->seed = seed;
    make_script(seed, &board->script);
    for (int slot = 0; slot < SLOTS; slot++)
        for (int conn = 0; conn < CONNECTIONS; conn++) {
            struct holding *hold = &board->holds[slot][conn];
            hold->side = -1;
            hold->fd[0] = hold->fd[1] = hold->fd[2] = -1;
        }
}

/* Channels at their fixed places. Who comes by fork or exec finds his there. */
static void open_channels(void)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        int pair[2];
        MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
        MUST(dup2(pair[0], CONTROL + slot));
        MUST(dup3(pair[1], DIRECTOR + slot, O_CLOEXEC));
        close(pair[0]), close(pair[1]);
        MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
        MUST(dup2(pair[0], MAIL_OUT + slot));
        MUST(dup2(pair[1], MAIL_IN + slot));
        close(pair[0]), close(pair[1]);
    }
}
static void close_channels(void)
{
    for (int slot = 0; slot < SLOTS; slot++)
        close(CONTROL + slot), close(DIRECTOR + slot), close(MAIL_OUT + slot), close(MAIL_IN + slot);
}

/* The answer of an actor. False: it has ended instead, or gives none in time. */
static bool answered(int slot, int limit, struct answer *out)
{
    struct pollfd entries[2] = {{DIRECTOR + slot, POLLIN, 0}, {actors[slot].process, POLLIN, 0}};
    for (uint64_t end = now_ms() + limit;;) {
        int left = (int)(end - now_ms());
        int n = poll(entries, actors[slot].process >= 0 ? 2 : 1, left < 0 ? 0 : left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0) {
            strcpy(out->text, "HANGS");
            return false;
        }
        if (entries[0].revents) {
            CHECK(recv(DIRECTOR + slot, out, sizeof *out, 0) == sizeof *out);
            return true;
        }
        strcpy(out->text, "DIED");
        return false;
    }
}

static bool alive_from_now(int slot)
{
    struct answer answer;
    actors[slot] = (struct control){.process = -1};
    if (!answered(slot, limit_ms, &answer))
        return false;
    actors[slot].process = MUST(syscall(SYS_pidfd_open, board->pid[slot], 0));
    MUST(fcntl(actors[slot].process, F_SETFD, FD_CLOEXEC));
    board->alive[slot] = true;
    return true;
}

static bool start_actor(int slot)
{
    pid_t child = MUST(fork());
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int i = 0; i < SLOTS; i++) {
            close(DIRECTOR + i);
            if (actors[i].process >= 0)
                close(actors[i].process);
        }
        int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(nothing, 0);
        close(nothing), close(1);
        forget_set();
        if (board->script.spawned) {
            char number[4];
            snprintf(number, sizeof number, "%d", slot);
            execl(board->program, "fuzz", "actor", number, NULL);
        }
        actor(slot);
    }
    board->pid[slot] = child;
    return alive_from_now(slot);
}

static int holders(int conn, int side)
{
    int count = 0;
    for (int slot = 0; slot < SLOTS; slot++)
        for (int i = 0; i < COPIES; i++)
            count += board->alive[slot] && board->holds[slot][conn].side == side && board->holds[slot][conn].fd[i] >= 0;
    return count;
}

/* What follows from a step for the connections: a side that nobody holds is closed. */
static void look_at_ends(void)
{
    for (int conn = 0; conn < CONNECTIONS; conn++)
        for (int side = 0; side < 2; side++) {
            struct connection *c = &board->conn[conn];
            /* Data that comes after this makes the kernel send a reset. */
            if (c->shut_rd[side] && c->dir[side].fin && c->dir[!side].loose && c->dir[!side].sent != c->dir[!side].received)
                c->aborted = true;
            if (!c->open[side] || c->closed[side] || c->in_flight[side] || holders(conn, side))
                continue;
            c->closed[side] = true;
            if (c->dir[!side].sent != c->dir[!side].received || c->dir[!side].unsure)
                c->aborted = true;
        }
}

/* Whether what an actor does in the background must come to its end by what has happened. */
static bool due(int slot)
{
    struct step *step = &board->script.steps[actors[slot].step];
    struct connection *c = &board->conn[step->conn];
    int side = board->holds[slot][step->conn].side;
    if (side < 0)
        return true;
    struct direction *in = &c->dir[!side], *out = &c->dir[side];
    switch (step->op) {
    case WAIT_RECV:
        return in->sent - actors[slot].start >= step->n || end_is_due(step->conn, side);
    case WAIT_POLL:
        return step->n ? (out->sent == out->received && !out->unsure) || c->closed[!side] || out->fin
                       : in->sent != in->received || end_is_due(step->conn, side);
    default: /* BULK */
        return actors[slot].start + step->n - out->received <= CAPACITY || c->closed[!side];
    }
}

static bool luck(int conn, int side)
{
    return is_luck(conn, side) || is_gone(conn, side);
}

static bool finish(int slot)
{
    struct answer answer;
    struct step *step = &board->script.steps[actors[slot].step];
    bool interrupted = false, got, was_due = due(slot);
    if (was_due)
        got = answered(slot, limit_ms, &answer);
    else {
        /* Nothing will come: a signal ends the call. It may come before the call; then once more. */
        uint64_t end = now_ms() + limit_ms;
        do {
            interrupted = true;
            kill(board->pid[slot], SIGUSR1);
            got = answered(slot, 30, &answer);
        } while (!got && !strcmp(answer.text, "HANGS") && now_ms() < end);
    }
    actors[slot].pending = false;
    struct holding *hold = &board->holds[slot][step->conn];
    if (hold->side >= 0)
        board->conn[step->conn].dir[hold->side].promised = 0;
    /* How far it came before nothing more came, a full buffer decides. */
    bool counted = strspn(answer.text, "0123456789") == strlen(answer.text);
    if (got && (step->op == WAIT_POLL || !counted) && strncmp(answer.text, "WRONG", 5) && hold->side >= 0 && luck(step->conn, hold->side))
        strcpy(answer.text, "?");
    if (got && !was_due && step->op == WAIT_POLL && step->n)
        strcpy(answer.text, "room or not");
    if (interrupted && got && step->op == BULK) {
        strcpy(answer.text, "interrupted");
        if (hold->side >= 0) {
            struct direction *way = &board->conn[step->conn].dir[hold->side];
            way->fuzzy = way->unsure = way->loose = true;
        }
    }
    outcome(actors[slot].step, answer.text);
    if (!got)
        note_whereabouts(slot);
    return got && strncmp(answer.text, "WRONG", 5);
}

/* Those in the background whose time has come. */
static bool finish_due(void)
{
    for (int slot = 0; slot < SLOTS; slot++)
        if (board->alive[slot] && actors[slot].pending && !actors[slot].stopped && due(slot) && !finish(slot))
            return false;
    return true;
}

static bool has_ended(int slot)
{
    struct pollfd end = {actors[slot].process, POLLIN, 0};
    if (poll(&end, 1, limit_ms) != 1) {
        note_whereabouts(slot);
        return false;
    }
    board->alive[slot] = false;
    close(actors[slot].process);
    actors[slot] = (struct control){.process = -1};
    for (int conn = 0; conn < CONNECTIONS; conn++)
        for (int i = 0; i < COPIES; i++)
            board->holds[slot][conn].fd[i] = -1;
    return true;
}

static void go_on(int slot)
{
    if (actors[slot].stopped)
        kill(board->pid[slot], SIGCONT);
    actors[slot].stopped = false;
}

/* Whether the state of the process is `state`, soon. */
static void await_state(int slot, const char *states)
{
    char path[40], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", board->pid[slot]);
    for (int tries = 0; tries < 50; tries++) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        char *state = strrchr(text, ')');
        if (!state || strchr(states, state[2]))
            return;
        usleep(100);
    }
}

/* Steps that the director takes itself. */
static bool direct(int number, const struct step *step)
{
    int slot = step->slot;
    bool well = true;
    if (step->op == PAUSE)
        usleep(step->n * 1000);
    else if (!board->alive[slot]) {
        outcome(number, "-");
        return true;
    } else if (step->op == KILL) {
        if (actors[slot].pending) { /* what it has sent is known when it is received */
            struct step *pending = &board->script.steps[actors[slot].step];
            int side = board->holds[slot][pending->conn].side;
            if (pending->op == BULK && side >= 0) {
                board->conn[pending->conn].dir[side].promised = 0;
                board->conn[pending->conn].dir[side].loose = board->conn[pending->conn].dir[side].orphan =
                    board->conn[pending->conn].dir[side].fuzzy = board->conn[pending->conn].dir[side].unsure = true;
            }
        }
        for (int conn = 0; conn < CONNECTIONS; conn++)
            if (board->holds[slot][conn].side >= 0)
                board->conn[conn].killed[board->holds[slot][conn].side] = true;
        kill(board->pid[slot], SIGKILL);
        well = has_ended(slot);
    } else if (step->op == STOP) {
        if (!actors[slot].pending) {
            kill(board->pid[slot], SIGSTOP);
            actors[slot].stopped = true;
            await_state(slot, "TtXZ");
        }
    } else
        go_on(slot);
    outcome(number, well ? "done" : "HANGS");
    return well;
}

static int partner(const struct step *step, int side)
{
    for (int slot = 0; slot < SLOTS; slot++)
        if (board->alive[slot] && board->holds[slot][step->conn].side == side && any_fd(slot, step->conn, 0) >= 0 &&
            !actors[slot].pending && !actors[slot].stopped)
            return slot;
    return -1;
}

/* WARM and BURST: both sides are at it together. */
static bool together(int number, const struct step *step)
{
    struct connection *c = &board->conn[step->conn];
    int writer = step->op == WARM ? partner(step, 0) : step->slot;
    int side = board->holds[writer < 0 ? 0 : writer][step->conn].side;
    int reader = side < 0 ? -1 : partner(step, !side);
    for (int slot = 0; slot < SLOTS; slot++) /* who waits for bytes in the background would take some of these */
        if (actors[slot].pending && board->script.steps[actors[slot].step].conn == step->conn)
            reader = -1;
    for (int i = 0; i < 2; i++)
        if (c->dir[i].sent != c->dir[i].received || c->dir[i].unsure || c->dir[i].fin || c->dir[i].promised || c->closed[i] || c->shut_rd[i])
            reader = -1;
    if (writer < 0 || reader < 0 || c->aborted || (board->script.small_buffer && step->op == BURST) || !board->alive[writer] || (step->op == BURST && (any_fd(writer, step->conn, 0) < 0 ||
        board->holds[writer][step->conn].nonblocking || board->holds[reader][step->conn].nonblocking))) {
        outcome(number, "-");
        return true;
    }
    struct answer answers[2];
    struct step other = *step;
    if (step->op == BURST)
        other.op = BURST_READ;
    else
        c->dir[0].promised = c->dir[1].promised = 1ull << 40;
    CHECK(send(DIRECTOR + writer, step, sizeof *step, 0) == sizeof *step);
    CHECK(send(DIRECTOR + reader, &other, sizeof other, 0) == sizeof other);
    bool one = answered(writer, limit_ms, &answers[0]), two = answered(reader, limit_ms, &answers[1]);
    c->dir[0].promised = c->dir[1].promised = 0;
    char text[sizeof answers + 3];
    snprintf(text, sizeof text, "%s, %s", answers[0].text, answers[1].text);
    outcome(number, text);
    for (int i = 0; !(one && two) && i < 2; i++)
        note_whereabouts(i ? reader : writer);
    return one && two && !strstr(text, "TORN");
}

/* Whether somebody in the background is at the same thing. */
static bool busy(const struct step *step)
{
    bool reads = step->op == CROSS || step->op == RECV || step->op == PEEK || step->op == UNREAD || step->op == WAIT_RECV;
    bool writes = step->op == SEND || step->op == FILL || step->op == PUSH || step->op == BULK;
    int side = board->holds[step->slot][step->conn].side;
    for (int slot = 0; slot < SLOTS; slot++) {
        struct step *other = &board->script.steps[actors[slot].step];
        if (!actors[slot].pending || other->conn != step->conn || board->holds[slot][step->conn].side != side)
            continue;
        if (other->op == BULK ? writes : other->op == WAIT_RECV ? reads : step->op == EPOLL_WAIT || reads)
            return true;
    }
    return false;
}

/* Whether it can not be told when a step in the background will have ended. */
static bool cannot_wait(const struct step *step, int side)
{
    struct connection *c = &board->conn[step->conn];
    if (step->op == WAIT_POLL)
        return !step->n && is_luck(step->conn, side);
    if (board->holds[step->slot][step->conn].nonblocking)
        return true;
    if (step->op == WAIT_RECV) /* with small buffers, whether a send fits depends on how soon this one has read */
        return is_luck(step->conn, side) || board->script.small_buffer;
    /* A kernel whose reading is shut tells of no room: how much it lets through is luck. */
    return c->dir[side].unsure || c->shut_rd[!side] || board->script.small_buffer;
}

static bool play_step(int number)
{
    struct step *step = &board->script.steps[number];
    int slot = step->slot;
    if (step->op == PAUSE || step->op == KILL || step->op == STOP || step->op == CONT)
        return direct(number, step);
    if (actors[slot].pending && !finish(slot))
        return false;
    look_at_ends();
    if (step->op == WARM || step->op == BURST)
        return together(number, step);
    bool child_is_there = step->op == FORK && (board->alive[step->n] || board->pid[step->n]);
    bool nobody = (step->op == SCM) && (!board->alive[step->n] || board->holds[step->n][step->conn].side == !board->holds[slot][step->conn].side);
    if (!board->alive[slot] || busy(step) || child_is_there || nobody) {
        outcome(number, "-");
        return true;
    }
    go_on(slot);
    struct connection *c = &board->conn[step->conn];
    int side = board->holds[slot][step->conn].side;
    bool background = (step->op == BULK || step->op == WAIT_RECV || step->op == WAIT_POLL) && any_fd(slot, step->conn, 0) >= 0;
    if (background && cannot_wait(step, side)) {
        outcome(number, "-");
        return true;
    }
    if (background) {
        actors[slot].pending = true;
        actors[slot].step = number;
        actors[slot].start = step->op == BULK ? c->dir[side].sent : c->dir[!side].received;
        if (step->op == BULK)
            c->dir[side].promised = c->dir[side].sent + step->n;
    }
    CHECK(send(DIRECTOR + slot, step, sizeof *step, 0) == sizeof *step);
    if (background) {
        await_state(slot, "SXZ");
        return true;
    }
    struct answer answer;
    if (step->op == EXIT) {
        bool ended = has_ended(slot);
        outcome(number, ended ? "done" : "HANGS");
        return ended;
    }
    bool got = answered(slot, limit_ms + 1000, &answer);
    if (got && step->op == FORK)
        got = alive_from_now(step->n);
    outcome(number, answer.text);
    if (!got)
        for (int i = 0; i < SLOTS; i++)
            if (board->alive[i])
                note_whereabouts(i);
    return got && strncmp(answer.text, "WRONG", 5);
}

/* Kills what is left. Every actor is a child of this process, or has become one when its parent ended. */
static void clear_stage(void)
{
    for (int slot = 0; slot < SLOTS; slot++)
        if (board->pid[slot] && board->alive[slot]) {
            kill(board->pid[slot], SIGKILL);
            close(actors[slot].process);
        }
    close_channels();
    while (waitpid(-1, NULL, 0) > 0)
        ;
}

static void play(uint64_t seed, const char *mask)
{
    setup_board(seed);
    struct script *script = &board->script;
    written = 0;
    note("seed %llu: %s%s%sbuffers %d, %s\n", (unsigned long long)seed, script->spawned ? "spawned, " : "",
         script->bystander ? "bystander, " : "", script->cloexec ? "cloexec, " : "", script->small_buffer,
         script->family == AF_INET ? "IPv4" : "IPv6");
    open_channels();
    for (int slot = 0; slot < SLOTS; slot++)
        actors[slot] = (struct control){.process = -1};
    bool well = start_actor(0) && start_actor(1) && (!script->bystander || start_actor(2));
    for (int number = 0; well && number < script->count; number++) {
        if (mask && number < (int)strlen(mask) && mask[number] == '0')
            continue;
        well = play_step(number);
        look_at_ends();
        well = well && finish_due();
    }
    for (int slot = 0; well && slot < SLOTS; slot++)
        if (board->alive[slot] && actors[slot].pending && !actors[slot].stopped)
            well = finish(slot);
    note("end%s\n", well ? "" : " (not well)");
    clear_stage();
    CHECK(write(STDOUT_FILENO, transcript, written) == (ssize_t)written);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "actor"))
        actor_after_exec(atoi(argv[2]));
    CHECK(argc == 3 || argc == 4);
    int memory = MUST(memfd_create("board", 0));
    MUST(ftruncate(memory, sizeof *board));
    MUST(dup2(memory, BOARD));
    close(memory);
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, BOARD, 0);
    CHECK(board != MAP_FAILED);
    MUST(readlink("/proc/self/exe", board->program, sizeof board->program - 1));
    const char *static_program = getenv("FUZZ_STATIC"), *limit = getenv("FUZZ_LIMIT_MS"), *names = getenv("FUZZ_WITHOUT");
    if (static_program)
        snprintf(board->static_program, sizeof board->static_program, "%s", static_program);
    if (limit)
        limit_ms = atoi(limit);
    for (int op = 0; names && op < OPS; op++)
        if (strstr(names, op_name(op)))
            without |= 1ull << op;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    uint64_t first = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10);
    for (uint64_t i = 0; i < count; i++)
        play(first + i, argc == 4 ? argv[3] : NULL);
    return 0;
}
