/* From a seed to a script. See fuzz.h.
 *
 * The generator follows who holds what, so that most steps make sense; a step that makes none when it is played (a shrunk
 * script, an actor that died) is passed over in the same way everywhere. It works in phrases: a few steps that belong
 * together, chosen so that the dangerous meetings are common: bytes unread in two places, a connection that is given away,
 * and a peer that just then ends, falls silent or stands still. */
#include "fuzz.h"

uint64_t without;

struct writer {
    struct rng rng;
    struct script *script;
    int side[SLOTS][CONNECTIONS]; /* -1: holds none */
    bool alive[SLOTS], silent[SLOTS];
    int connections;
};

static uint32_t below(struct writer *w, uint32_t limit) { return rng_next(&w->rng) % limit; }
static bool chance(struct writer *w, uint32_t percent) { return below(w, 100) < percent; }

static void add(struct writer *w, enum op op, int slot, int conn, uint32_t kind, uint32_t n)
{
    uint32_t m = rng_next(&w->rng) >> 33;
    if (w->script->count < STEPS && slot >= 0 && !(without >> op & 1))
        w->script->steps[w->script->count++] = (struct step){op, slot, conn, kind, n, m};
}
static uint32_t kind(struct writer *w) { return below(w, 240); }

/* A holder of that side that may still act; -1 if there is none. */
static int holder(struct writer *w, int conn, int side)
{
    int start = below(w, SLOTS);
    for (int i = 0; i < SLOTS; i++) {
        int slot = (start + i) % SLOTS;
        if (w->alive[slot] && !w->silent[slot] && w->side[slot][conn] == side)
            return slot;
    }
    return -1;
}
static int free_slot(struct writer *w)
{
    for (int slot = 3; slot < SLOTS; slot++)
        if (!w->alive[slot])
            return slot;
    return -1;
}

static uint32_t amount(struct writer *w)
{
    uint32_t limits[] = {200, 200, 200, 3000, 3000, 9000, 9000, 30000, 70000, 250000};
    return 1 + below(w, limits[below(w, 10)]);
}

static void send_some(struct writer *w, int conn, int side) { add(w, SEND, holder(w, conn, side), conn, kind(w), amount(w)); }
static void receive_some(struct writer *w, int conn, int side, uint32_t n) { add(w, RECV, holder(w, conn, side), conn, kind(w), n); }

static void ask(struct writer *w, int conn, int side)
{
    static const enum op ops[] = {PEEK, UNREAD, POLL, SELECT, EPOLL_ADD, EPOLL_WAIT, EPOLL_WAIT, ERROR, POLL, PEEK, UNREAD, RECV};
    enum op op = ops[below(w, 12)];
    add(w, op, holder(w, conn, side), conn, kind(w), op == RECV ? 1 + below(w, 50) : kind(w) * 7);
}

/* Messages to and fro, of which not all are read. */
static void traffic(struct writer *w, int conn)
{
    int side = below(w, 2);
    for (int i = 1 + below(w, 6); i > 0; i--) {
        send_some(w, conn, side);
        if (chance(w, 60))
            receive_some(w, conn, !side, chance(w, 60) ? 1 + below(w, 300) : 0);
        if (chance(w, 25))
            ask(w, conn, below(w, 2));
        if (chance(w, 40))
            side = !side;
    }
}

/* Bytes first in the kernel's queue, then in the ring: the reader makes calls, but takes little. */
static void pile_up(struct writer *w, int conn, int side)
{
    for (int i = 1 + below(w, 9); i > 0; i--) {
        send_some(w, conn, side);
        if (chance(w, 70))
            receive_some(w, conn, !side, 1 + below(w, 20));
        if (chance(w, 10))
            send_some(w, conn, !side);
    }
}

static void leave_slot(struct writer *w, int slot)
{
    w->alive[slot] = false;
    for (int conn = 0; conn < CONNECTIONS; conn++)
        w->side[slot][conn] = -1;
}

/* What the peer does next: it ends, is silent from now on, stands still, or goes on. */
static void peer_acts(struct writer *w, int conn, int side)
{
    int slot = holder(w, conn, side);
    if (slot < 0)
        return;
    switch (below(w, 10)) {
    case 0:
        w->silent[slot] = true;
        break;
    case 1:
        add(w, SHUT, slot, conn, kind(w), 0);
        w->silent[slot] = chance(w, 50);
        break;
    case 2:
        add(w, CLOSE, slot, conn, 1, 0);
        w->side[slot][conn] = -1;
        break;
    case 3:
        add(w, EXIT, slot, conn, kind(w), 0);
        leave_slot(w, slot);
        break;
    case 4:
        add(w, KILL, slot, conn, 0, 0);
        leave_slot(w, slot);
        break;
    case 5:
        add(w, STOP, slot, conn, 0, 0);
        w->silent[slot] = true;
        break;
    case 6:
        add(w, SHUT, slot, conn, 0, 0);
        break;
    case 7:
        receive_some(w, conn, side, 0);
        break;
    default:
        send_some(w, conn, side);
    }
}

static void fork_one(struct writer *w, int slot)
{
    int child = free_slot(w);
    if (child < 0 || slot < 0)
        return;
    add(w, FORK, slot, 0, 0, child);
    if (without >> FORK & 1)
        return;
    w->alive[child] = true;
    memcpy(w->side[child], w->side[slot], sizeof w->side[slot]);
    switch (below(w, 4)) {
    case 0: /* the child goes on alone */
        for (int conn = 0; conn < w->connections; conn++)
            if (w->side[slot][conn] >= 0) {
                add(w, CLOSE, slot, conn, 1, 0);
                w->side[slot][conn] = -1;
            }
        break;
    case 1: /* the parent goes on alone */
        if (chance(w, 50)) {
            add(w, EXIT, child, 0, kind(w), 0);
            leave_slot(w, child);
        } else
            w->silent[child] = true;
    }
}

static void pass_on(struct writer *w, int conn, int slot)
{
    int to = -1;
    for (int other = 0; other < SLOTS; other++)
        if (other != slot && w->alive[other] && !w->silent[other] && w->side[other][conn] != !w->side[slot][conn] && (to < 0 || chance(w, 60)))
            to = other;
    if (to < 0)
        return;
    uint32_t how = kind(w);
    add(w, SCM, slot, conn, how, to);
    add(w, TAKE, to, conn, 0, 0);
    if (without >> SCM & 1)
        return;
    w->side[to][conn] = w->side[slot][conn];
    if (how % 3)
        w->side[slot][conn] = -1;
}

static void execute(struct writer *w, int slot)
{
    struct script *script = w->script;
    add(w, EXEC, slot, 0, kind(w), 0);
    if (without >> EXEC & 1)
        return;
    struct step *step = &script->steps[script->count - 1];
    step->m = chance(w, 80) ? 0 : step->m % 8;
    for (int conn = 0; conn < w->connections; conn++)
        if (step->m >> conn & 1)
            w->side[slot][conn] = -1;
}

/* A holder does something that shared memory alone cannot serve. */
static void give_away(struct writer *w, int conn, int side)
{
    int slot = holder(w, conn, side);
    if (slot < 0)
        return;
    switch (below(w, 12)) {
    case 0:
    case 1:
    case 2:
        return execute(w, slot);
    case 3:
    case 4:
        return pass_on(w, conn, slot);
    case 5:
        return add(w, FDOPEN, slot, conn, 0, 0);
    case 6:
        return add(w, DUP, slot, conn, kind(w), 0);
    case 7:
        return fork_one(w, slot);
    default:
        return add(w, COMMAND, slot, conn, kind(w), 0);
    }
}

static void giving(struct writer *w, int conn)
{
    int side = below(w, 2);
    pile_up(w, conn, side);
    bool peer_first = chance(w, 50);
    if (peer_first && chance(w, 80))
        peer_acts(w, conn, side);
    give_away(w, conn, chance(w, 85) ? !side : side);
    if (!peer_first)
        peer_acts(w, conn, side);
    for (int i = below(w, 3); i > 0; i--)
        receive_some(w, conn, !side, 1 + below(w, 3000));
    if (chance(w, 30))
        ask(w, conn, !side);
    if (chance(w, 70))
        receive_some(w, conn, !side, 0);
    if (chance(w, 30))
        send_some(w, conn, !side);
}

/* More than a ring holds, while the other end does not read; with bytes of its own unread, or without. */
static void stalling(struct writer *w, int conn)
{
    int side = below(w, 2);
    if (chance(w, 85))
        send_some(w, conn, !side);
    add(w, SEND, holder(w, conn, side), conn, kind(w), 280000 + below(w, 500000));
    if (chance(w, 30))
        receive_some(w, conn, side, 0);
    if (chance(w, 40))
        receive_some(w, conn, !side, 1 + below(w, 300000));
    if (chance(w, 80))
        peer_acts(w, conn, side);
    receive_some(w, conn, !side, 0);
}

/* A writer in the background and a reader that takes its time. */
static void bulk(struct writer *w, int conn)
{
    int side = below(w, 2), slot = holder(w, conn, side);
    if (chance(w, 50))
        send_some(w, conn, !side);
    add(w, BULK, slot, conn, kind(w), 100000 + below(w, chance(w, 50) ? 600000 : 5000000));
    if (chance(w, 50))
        add(w, PAUSE, 0, 0, 0, chance(w, 97) ? below(w, 30) : 530);
    for (int i = below(w, 6); i > 0; i--)
        receive_some(w, conn, !side, 1 + below(w, 200000));
    if (chance(w, 20))
        ask(w, conn, !side);
    if (chance(w, 15))
        give_away(w, conn, !side);
    receive_some(w, conn, !side, 0);
    if (chance(w, 50))
        peer_acts(w, conn, side);
}

/* To the brim, and then room again; in one direction or in both. */
static void filling(struct writer *w, int conn)
{
    int side = below(w, 2);
    if (chance(w, 40)) {
        uint32_t n = 100000 + below(w, 400000);
        add(w, PUSH, holder(w, conn, side), conn, kind(w), n);
        if (chance(w, 70))
            add(w, PUSH, holder(w, conn, !side), conn, kind(w), n);
    } else {
        int slot = holder(w, conn, side);
        add(w, FILL, slot, conn, kind(w), 0);
        if (chance(w, 60))
            add(w, WAIT_POLL, slot, conn, kind(w), 1);
        for (int i = below(w, 5); i > 0; i--)
            receive_some(w, conn, !side, 1 + below(w, 150000));
        if (chance(w, 20))
            peer_acts(w, conn, side);
    }
    if (chance(w, 80))
        receive_some(w, conn, !side, 0);
    if (chance(w, 50))
        ask(w, conn, side);
    receive_some(w, conn, side, 0);
}

/* Asleep in a call when the other end acts. */
static void waiting(struct writer *w, int conn)
{
    int side = below(w, 2), slot = holder(w, conn, side);
    if (chance(w, 60))
        receive_some(w, conn, side, 0);
    if (chance(w, 50))
        add(w, WAIT_RECV, slot, conn, kind(w), amount(w));
    else
        add(w, WAIT_POLL, slot, conn, kind(w), 0);
    for (int i = below(w, 4); i > 0; i--)
        chance(w, 75) ? send_some(w, conn, !side) : give_away(w, conn, !side);
    if (chance(w, 40))
        peer_acts(w, conn, !side);
    if (chance(w, 50))
        receive_some(w, conn, side, 0);
}

static void readiness(struct writer *w, int conn)
{
    int side = below(w, 2);
    add(w, EPOLL_ADD, holder(w, conn, side), conn, kind(w), 0);
    for (int i = 1 + below(w, 4); i > 0; i--) {
        chance(w, 70) ? send_some(w, conn, !side) : receive_some(w, conn, side, 1 + below(w, 5000));
        ask(w, conn, side);
    }
    if (chance(w, 30))
        peer_acts(w, conn, !side);
    ask(w, conn, side);
}

static void mishap(struct writer *w, int conn)
{
    int slot = holder(w, conn, below(w, 2));
    switch (below(w, 7)) {
    case 0:
        add(w, NONBLOCK, slot, conn, kind(w), 0);
        break;
    case 1:
        add(w, STOP, slot, conn, 0, 0);
        traffic(w, conn);
        break;
    case 2:
        add(w, LINGER, slot, conn, 0, 0);
        if (slot >= 0)
            w->side[slot][conn] = -1;
        break;
    case 3:
        fork_one(w, slot);
        break;
    case 4:
        add(w, DUP, slot, conn, kind(w), 0);
        break;
    case 5:
        receive_some(w, conn, slot >= 0 ? w->side[slot][conn] : 0, 0);
        add(w, CROSS, slot, conn, kind(w), 0);
        break;
    default:
        add(w, CLOSE, slot, conn, kind(w), 0);
    }
}

static void burst(struct writer *w, int conn)
{
    int side = below(w, 2);
    receive_some(w, conn, !side, 0);
    uint32_t threads = 2 + below(w, 5), size = 12 + below(w, 300);
    add(w, BURST, holder(w, conn, side), conn, threads, size);
    /* More than a ring holds, less than TCP's buffers do: there no message meets a full one. */
    uint32_t messages = (250000 + below(w, 550000)) / (threads * size);
    if (!(without >> BURST & 1))
        w->script->steps[w->script->count - 1].m = messages < 8000 ? messages : 8000;
}

static void phrase(struct writer *w)
{
    int conn = below(w, w->connections);
    uint32_t choice = below(w, 100);
    static const struct {
        uint32_t weight;
        void (*write)(struct writer *w, int conn);
    } phrases[] = {{18, traffic}, {33, giving}, {6, stalling}, {5, bulk}, {6, filling}, {10, waiting}, {9, readiness}, {9, mishap}, {4, burst}};
    for (size_t i = 0; i < sizeof phrases / sizeof *phrases; i++) {
        if (choice < phrases[i].weight)
            return phrases[i].write(w, conn);
        choice -= phrases[i].weight;
    }
}

/* Everybody who still acts reads what there is, says something, and ends. */
static void farewell(struct writer *w)
{
    for (int conn = 0; conn < w->connections; conn++) {
        for (int side = 0; side < 2; side++)
            receive_some(w, conn, side, 0);
        if (chance(w, 70))
            for (int side = 0; side < 2; side++) {
                add(w, SEND, holder(w, conn, side), conn, kind(w), 1 + below(w, 100));
                receive_some(w, conn, !side, 0);
            }
        int side = below(w, 2);
        for (int slot = 0; slot < SLOTS; slot++)
            if (w->side[slot][conn] == side && w->alive[slot])
                add(w, chance(w, 80) ? CLOSE : EXIT, slot, conn, 1, 0);
        receive_some(w, conn, !side, 0);
        receive_some(w, conn, !side, 0);
    }
}

void make_script(uint64_t seed, struct script *out)
{
    struct writer w = {.rng = {seed}, .script = out, .alive = {true, true, true}};
    *out = (struct script){0};
    memset(w.side, -1, sizeof w.side);
    w.connections = chance(&w, 70) ? 1 : 2 + below(&w, 2);
    out->spawned = chance(&w, 30);
    out->bystander = chance(&w, 40);
    out->cloexec = chance(&w, 30);
    out->family = chance(&w, 90) ? AF_INET : AF_INET6;
    out->small_buffer = chance(&w, 6) ? 16384 << below(&w, 4) : 0;
    w.alive[2] = out->bystander;
    if (out->bystander && chance(&w, 30))
        add(&w, EXEC, 2, 0, kind(&w), 0);
    for (int conn = 0; conn < w.connections; conn++) {
        int client = below(&w, 2);
        add(&w, LISTEN, !client, conn, 0, 0);
        add(&w, CONNECT, client, conn, 0, 0);
        add(&w, ACCEPT, !client, conn, 0, 0);
        w.side[client][conn] = 0, w.side[!client][conn] = 1;
        if (chance(&w, 75))
            add(&w, WARM, 0, conn, 0, chance(&w, 50) ? below(&w, 41) : below(&w, 9));
    }
    for (int i = 1 + below(&w, 5); i > 0; i--)
        phrase(&w);
    farewell(&w);
}

static const char *const names[OPS] = {
    "listen", "connect", "accept", "warm", "send", "recv", "peek", "unread", "error", "poll", "select", "epoll_add", "epoll_wait", "fill",
    "push", "burst", "burst_read", "shut", "close", "linger", "exit", "kill", "stop", "cont", "fork", "exec", "scm", "take", "dup", "command",
    "fdopen", "nonblock", "pause", "bulk", "wait_recv", "wait_poll", "cross"};
const char *op_name(enum op op) { return names[op]; }

void describe(const struct step *step, char *text, size_t size)
{
    static const char *const senders[] = {"write", "send", "writev", "sendmsg", "sendfile", "send"};
    static const char *const receivers[] = {"read", "readv", "recvmsg", "recvmsg waitall", "recv waitall", "recv"};
    static const char *const commands[] = {"system", "popen", "posix_spawn", "vfork", "fork and exec", "without the front"};
    static const char *const targets[] = {"itself", "itself", "itself", "linked statically", "without environment", "itself"};
    static const char *const shuts[] = {"WR", "WR", "RD", "RDWR"};
    static const char *const waits[] = {"poll", "select", "epoll"};
    int length = snprintf(text, size, "%c %s c%d", 'A' + step->slot, names[step->op], step->conn);
    const char *how = "";
    switch (step->op) {
    case SEND: case PUSH: case BULK: case FILL:
        how = senders[step->kind % 6];
        break;
    case RECV: case WAIT_RECV:
        how = step->kind % 16 == 15 ? "recv trunc" : step->kind % 16 == 14 ? "recv dontwait" : receivers[step->kind % 6];
        break;
    case COMMAND:
        how = commands[step->kind % 6];
        break;
    case EXEC:
        how = targets[step->kind % 6];
        break;
    case SHUT:
        how = shuts[step->kind % 4];
        break;
    case WAIT_POLL:
        how = waits[step->kind % 3];
        break;
    case EXIT:
        how = step->kind % 2 ? "exit" : "_exit";
    }
    snprintf(text + length, size - length, " %u %s", step->n, how);
}
