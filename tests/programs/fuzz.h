/* The differential fuzzer: what its parts share.
 *
 *     fuzz FIRST COUNT [MASK]        plays the scripts of COUNT seeds and prints a transcript of each
 *     fuzz actor SLOT                an actor that has come through exec (the director starts it)
 *
 * A script is a list of steps that follows from its seed alone (fuzz_script.c). A director (fuzz.c) plays it with up to
 * SLOTS actors, processes called A to F, in lock-step: a step has ended before the next begins, unless it says "in the
 * background". So the kernel's TCP has one answer to nearly every step, and a run under the front must give the same.
 *
 * Bytes: the payload of each direction is a function of seed, connection, direction and offset, so a byte that is lost,
 * doubled, moved or not of this stream is known at once, with its place. The board, a page that all actors share, holds what
 * was sent and what was received; a step that reads asks it how much must be there, and never waits for what nobody sent.
 *
 * What TCP leaves open is not told: how much a full buffer held, how the bytes of a step were cut, errno and amounts after
 * a reset that raced with bytes under way. See `loose` below. Nor is what the front is known to tell otherwise
 * (docs/limitations.md): when a sender learns that its peer has gone, and by which of the two errors. */
#pragma once
#include "common.h"

enum { SLOTS = 6, CONNECTIONS = 3, COPIES = 3, STEPS = 160 };

enum op {
    LISTEN, CONNECT, ACCEPT, WARM, SEND, RECV, PEEK, UNREAD, ERROR, POLL, SELECT, EPOLL_ADD, EPOLL_WAIT, FILL, PUSH, BURST,
    BURST_READ, SHUT, CLOSE, LINGER, EXIT, KILL, STOP, CONT, FORK, EXEC, SCM, TAKE, DUP, COMMAND, FDOPEN, NONBLOCK, PAUSE,
    BULK, WAIT_RECV, WAIT_POLL, CROSS, OPS
};

struct step {
    uint8_t op, slot, conn, kind;
    uint32_t n, m; /* see fuzz_script.c for what they say with each op */
};

struct script {
    int count;
    struct step steps[STEPS];
    bool spawned;     /* actors begin with an exec, as programs that a shell starts; else they are forked */
    bool bystander;   /* a third actor that has no connection at first */
    int small_buffer; /* bytes for SO_SNDBUF and SO_RCVBUF, or 0 */
    bool cloexec;     /* sockets are opened with SOCK_CLOEXEC */
    int family;
};

/* One direction of a connection, by the side that writes it (0 connected, 1 accepted). */
struct direction {
    uint64_t sent, received;
    uint64_t promised; /* what a writer in the background will have sent */
    bool fin;
    bool orphan; /* its writer was killed at work: more may come than `sent` says */
    bool loose;  /* more is under way than surely fits the receiver's buffer: amounts at a reset, and room, are the kernel's luck */
    bool fuzzy;  /* a full buffer once decided how much was sent: positions differ from run to run */
    bool unsure; /* ... and not all of that has been received: whether more is there differs as well */
};
struct connection {
    struct direction dir[2];
    uint16_t port;
    bool open[2], closed[2], shut_rd[2], killed[2];
    int in_flight[2]; /* descriptors of that side that are under way to another process */
    bool aborted; /* something happened that may reset it */
};
struct holding {
    int fd[COPIES]; /* -1: none */
    int side;
    bool nonblocking;
};
struct board {
    uint64_t seed;
    char program[256], static_program[256];
    struct script script;
    struct connection conn[CONNECTIONS];
    struct holding holds[SLOTS][CONNECTIONS];
    pid_t pid[SLOTS];
    bool alive[SLOTS];
};
extern struct board *board;

/* Fixed descriptors of every actor, the same after fork and exec. */
enum { CONTROL = 200, MAIL_OUT = 210, MAIL_IN = 220, DIRECTOR = 230, BOARD = 240, LISTENER = 241 };

#define CAPACITY ((uint64_t)MIB) /* what a connection with default buffers takes in one direction without a reader, and more */
#define SURE 32768               /* what surely is in the receiver's queue when send has returned */

/* fuzz_script.c */
void make_script(uint64_t seed, struct script *out);
void describe(const struct step *step, char *text, size_t size);
const char *op_name(enum op op);
extern uint64_t without; /* a bit for each op that no script shall have */

/* fuzz_ops.c: what a step does; the outcome as text */
struct answer {
    char text[240];
};
void act(int slot, const struct step *step, struct answer *out);
int any_fd(int slot, int conn, uint32_t choice);
uint64_t unread(int conn, int side);
bool end_is_due(int conn, int side);
bool is_luck(int conn, int side); /* whether what `side` receives can not be told */
bool is_gone(int conn, int side); /* the peer of `side` has closed or died, or a reset is on its way */
void tell_outcome(struct answer *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *error_name(int error);

/* fuzz_wait.c: poll, select, epoll */
void act_ready(int slot, const struct step *step, struct answer *out);
void act_wait_poll(int slot, const struct step *step, struct answer *out);
void act_cross(int slot, const struct step *step, struct answer *out);
void forget_in_set(int conn, int fd);
void forget_set(void);

/* fuzz_leave.c: what changes who holds a connection; may not return */
void act_leave(int slot, const struct step *step, struct answer *out);
void actor(int slot) __attribute__((noreturn));
void actor_after_exec(int slot) __attribute__((noreturn));
void answer_as(int slot, const struct answer *answer);
extern FILE *files[CONNECTIONS]; /* of fdopen */
