/* The steps that move bytes or ask about them. See fuzz.h. */
#include "fuzz.h"

#include <stdarg.h>
#include <sys/sendfile.h>

struct board *board;
FILE *files[CONNECTIONS];

enum { BUFFER = 2 * MIB };
static uint8_t buffer[BUFFER], expected[BUFFER];

void tell_outcome(struct answer *out, const char *format, ...)
{
    size_t length = strlen(out->text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out->text + length, sizeof out->text - length, format, arguments);
    va_end(arguments);
}

const char *error_name(int error) { return error ? strerrorname_np(error) : "ok"; }

/* Of a reset that raced with bytes under way TCP makes either error; of a peer that has gone, so does the front. */
static const char *error_of(int conn, int error)
{
    struct connection *c = &board->conn[conn];
    if ((c->aborted || c->closed[0] || c->closed[1]) && (error == EPIPE || error == ECONNRESET))
        return "BROKEN";
    return error_name(error);
}

int any_fd(int slot, int conn, uint32_t choice)
{
    struct holding *hold = &board->holds[slot][conn];
    for (int i = 0; i < COPIES; i++)
        if (hold->fd[(i + choice) % COPIES] >= 0)
            return hold->fd[(i + choice) % COPIES];
    return -1;
}

uint64_t unread(int conn, int side)
{
    struct direction *in = &board->conn[conn].dir[!side];
    uint64_t sent = in->promised > in->sent ? in->promised : in->sent;
    return sent > in->received ? sent - in->received : 0;
}

bool end_is_due(int conn, int side)
{
    struct connection *c = &board->conn[conn];
    return c->dir[!side].fin || c->closed[!side] || c->shut_rd[side];
}

bool is_luck(int conn, int side)
{
    struct connection *c = &board->conn[conn];
    return c->dir[!side].unsure || c->aborted || (c->shut_rd[side] && c->dir[!side].loose);
}

bool is_gone(int conn, int side)
{
    struct connection *c = &board->conn[conn];
    return c->aborted || c->closed[!side] || c->shut_rd[!side];
}

static struct stream content(int conn, int direction, uint64_t offset)
{
    return (struct stream){board->seed * 8 + conn * 2 + direction + 1, offset};
}

/* Where the stream that should have been at `offset` has gone on instead. */
static void tell_wrong(struct answer *out, int conn, int direction, uint64_t offset, const uint8_t *data, size_t length)
{
    size_t bells = 0;
    while (bells < length && data[bells] == 7)
        bells++;
    tell_outcome(out, "WRONG BYTES at %llu", (unsigned long long)offset);
    if (bells == length || bells > 3)
        tell_outcome(out, " (%zu doorbells)", bells);
    size_t sample = length < 8 ? length : 8;
    for (int c = 0; c < CONNECTIONS; c++)
        for (int d = 0; d < 2; d++) {
            size_t total = board->conn[c].dir[d].sent + 70000;
            if (total > BUFFER)
                total = BUFFER;
            struct stream all = content(c, d, 0);
            stream_fill(&all, expected, total);
            uint8_t *place = sample < 4 ? NULL : memmem(expected, total, data, sample);
            if (place)
                tell_outcome(out, " (these are of c%d%c %zu)", c, "><"[d], place - expected);
        }
    (void)conn, (void)direction;
}

/* Whether `length` bytes are what the stream has next; if not, says so. */
static bool right(struct answer *out, int conn, int side, const uint8_t *data, size_t length, bool taken)
{
    struct direction *in = &board->conn[conn].dir[!side];
    struct stream next = content(conn, !side, in->received);
    stream_fill(&next, expected, length);
    for (size_t i = 0; memcmp(data, expected, length) && i < length; i++)
        if (data[i] != expected[i]) {
            tell_wrong(out, conn, !side, in->received + i, data + i, length - i);
            return false;
        }
    if (taken)
        in->received += length;
    if (in->orphan && in->received > in->sent)
        in->sent = in->received;
    if (in->received == in->sent && !board->conn[conn].aborted && !board->conn[conn].shut_rd[side] && !in->unsure)
        in->loose = false;
    return true;
}

static ssize_t send_file(int fd, const void *data, size_t length)
{
    int file = MUST(memfd_create("fuzz", MFD_CLOEXEC));
    write_all(file, data, length);
    off_t at = 0;
    ssize_t sent = sendfile(fd, file, &at, length);
    int error = errno;
    close(file);
    errno = error;
    return sent;
}

static ssize_t send_once(int fd, FILE *file, int kind, uint8_t *data, size_t length, int flags)
{
    struct iovec parts[3] = {{data, length / 3}, {data + length / 3, length / 2}, {NULL, 0}};
    parts[2] = (struct iovec){data + length / 3 + length / 2, length - length / 3 - length / 2};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    if (file && kind % 3 == 0 && !flags) {
        size_t n = fwrite(data, 1, length, file);
        return n ? (ssize_t)n : -1;
    }
    if (flags && kind % 6 != 3)
        kind = 1;
    switch (kind % 6) {
    case 0:
        return write(fd, data, length);
    case 2:
        return writev(fd, parts, 3);
    case 3:
        return sendmsg(fd, &message, flags);
    case 4:
        return send_file(fd, data, length);
    default:
        return send(fd, data, length, flags);
    }
}

static uint64_t sure_amount(void) { return board->script.small_buffer ? 1024 : SURE; }
static uint64_t capacity(void) { return board->script.small_buffer ? 2048 : CAPACITY; }

enum { GO_ON, STOP_WHEN_FULL };
/* Sends `total` bytes in calls of at most `chunk`. `stuck`: there was no room though TCP would have had some. */
static size_t put(int slot, const struct step *step, size_t total, size_t chunk, int when_full, int *error, bool *stuck)
{
    struct holding *hold = &board->holds[slot][step->conn];
    struct connection *c = &board->conn[step->conn];
    struct direction *out = &c->dir[hold->side];
    int fd = any_fd(slot, step->conn, step->m);
    size_t done = 0;
    *error = 0, *stuck = false;
    /* The peer's kernel answers with a reset. */
    bool refused = c->closed[!hold->side] || (c->shut_rd[!hold->side] && c->dir[!hold->side].fin);
    while (done < total) {
        size_t n = total - done < chunk ? total - done : chunk;
        if (n > BUFFER)
            n = BUFFER;
        struct stream next = content(step->conn, hold->side, out->sent);
        stream_fill(&next, buffer, n);
        bool polls = step->op == PUSH || (step->op == BULK && step->m % 2);
        int flags = when_full == STOP_WHEN_FULL || polls ? MSG_DONTWAIT : 0;
        ssize_t sent = send_once(fd, files[step->conn], step->kind, buffer, n, flags);
        c->aborted |= refused;
        if (sent > 0) {
            done += sent;
            out->sent += sent;
            if (out->sent - out->received > sure_amount())
                out->loose = true;
            continue;
        }
        if (sent < 0 && errno == EAGAIN && when_full == GO_ON) {
            struct pollfd room = {fd, POLLOUT, 0};
            int ready = poll(&room, 1, step->op == BULK ? -1 : 700);
            if (ready == 1)
                continue;
            *stuck = ready == 0;
        }
        *error = errno;
        break;
    }
    return done;
}

static void act_send(int slot, const struct step *step, struct answer *out)
{
    struct holding *hold = &board->holds[slot][step->conn];
    struct direction *way = &board->conn[step->conn].dir[hold->side];
    bool stuck;
    int error;
    size_t chunk = step->op == FILL ? 1 + step->m % 60000 : step->op == BULK ? 65536 : step->op == PUSH ? 32768 : step->n;
    size_t total = step->op == FILL ? 12 * MIB : step->n;
    if (board->script.small_buffer && step->op != FILL && total > 4096)
        total = 4096; /* small buffers make large messages slow: the kernel's timers drive them */
    bool fits = way->sent - way->received + total <= capacity() && !way->unsure;
    /* Where it would wait for a reader that is not at work: as much as there is room for. */
    bool full = step->op == FILL || (!fits && step->op != BULK);
    bool luck = is_gone(step->conn, hold->side) && step->op != BULK;
    if (full)
        way->loose = true;
    size_t done = put(slot, step, total, chunk, full ? STOP_WHEN_FULL : GO_ON, &error, &stuck);
    if (luck) {
        way->fuzzy = way->unsure = true; /* the reset may be there already, or not yet */
        tell_outcome(out, "?");
    } else if (full && (error == EAGAIN || error == 0)) {
        way->fuzzy = way->unsure = true;
        tell_outcome(out, "as much as there is room for");
    } else if (error == EINTR)
        tell_outcome(out, "EINTR");
    else if (stuck)
        tell_outcome(out, "NO ROOM");
    else if (done == total)
        tell_outcome(out, "%zu", done);
    else if (done && (way->loose || full)) {
        way->fuzzy = way->unsure = true;
        tell_outcome(out, "some, then %s", error_of(step->conn, error));
    } else
        tell_outcome(out, "%zu, then %s", done, error_of(step->conn, error));
}

static ssize_t receive_once(int fd, FILE *file, int kind, uint8_t *data, size_t length, int flags)
{
    struct iovec parts[2] = {{data, length / 3}, {data + length / 3, length - length / 3}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (file && kind % 3 == 0 && !flags) {
        clearerr(file);
        errno = 0;
        size_t n = fread(data, 1, length, file);
        return n ? (ssize_t)n : ferror(file) ? -1 : 0;
    }
    if (flags)
        return kind % 2 ? recvmsg(fd, &message, flags) : recv(fd, data, length, flags);
    switch (kind % 6) {
    case 0:
        return read(fd, data, length);
    case 1:
        return readv(fd, parts, 2);
    case 2:
        return recvmsg(fd, &message, 0);
    case 3:
        return recvmsg(fd, &message, MSG_WAITALL);
    case 4:
        return recv(fd, data, length, MSG_WAITALL);
    default:
        return recv(fd, data, length, 0);
    }
}

/* Receives exactly `wanted` bytes that were sent; less only at the end, at an error, or where `what` says so. */
static size_t take(int slot, const struct step *step, size_t wanted, size_t chunk, struct answer *out, const char **what)
{
    struct holding *hold = &board->holds[slot][step->conn];
    int fd = any_fd(slot, step->conn, step->m);
    size_t done = 0;
    *what = "";
    while (done < wanted) {
        size_t n = wanted - done < chunk ? wanted - done : chunk;
        if (n > BUFFER)
            n = BUFFER;
        ssize_t got;
        bool drop = step->kind % 16 == 15 && !hold->nonblocking;
        if (drop) /* the bytes are thrown away unseen; their number must be right */
            got = recv(fd, NULL, n, MSG_TRUNC);
        else
            got = receive_once(fd, files[step->conn], step->kind, buffer, n, step->kind % 16 == 14 ? MSG_DONTWAIT : 0);
        if (got > 0) {
            if (drop) {
                board->conn[step->conn].dir[!hold->side].received += got;
            } else if (!right(out, step->conn, hold->side, buffer, got, true)) {
                *what = "wrong";
                return done;
            }
            done += got;
            if (step->op == RECV && step->n == 0 && step->m % 5 == 0 && done < wanted)
                usleep(200); /* a slow reader */
            continue;
        }
        if (got < 0 && errno == EAGAIN) {
            struct pollfd bytes = {fd, POLLIN, 0};
            int ready = poll(&bytes, 1, step->op == WAIT_RECV ? -1 : 2500);
            if (ready == 1)
                continue;
            if (ready < 0) {
                *what = "EINTR";
                return done;
            }
            *what = "NOTHING COMES";
            return done;
        }
        *what = got == 0 ? "end" : error_of(step->conn, errno);
        return done;
    }
    return done;
}

/* The end of what a peer sent that was killed: over TCP end-of-file, unless it left something unread; a doorbell may be that. */
static const char *end_of(int conn, int side, ssize_t got)
{
    bool broken = got < 0 && (errno == EPIPE || errno == ECONNRESET);
    if (board->conn[conn].killed[!side] && (got == 0 || broken))
        return "over";
    return got == 0 ? "end" : error_of(conn, errno);
}

/* Receives where nothing is left: the end, an error, or EAGAIN. */
static void receive_none(int slot, const struct step *step, struct answer *out)
{
    struct holding *hold = &board->holds[slot][step->conn];
    struct direction *in = &board->conn[step->conn].dir[!hold->side];
    int fd = any_fd(slot, step->conn, step->m), flags = end_is_due(step->conn, hold->side) ? 0 : MSG_DONTWAIT;
    ssize_t got = receive_once(fd, files[step->conn], step->kind % 6, buffer, 100, flags);
    /* An end that the kernel alone tells, the front may ask for with a later read only (docs/limitations.md), or in a poll. */
    struct pollfd end = {fd, POLLIN, 0};
    if (got < 0 && errno == EAGAIN && !flags && poll(&end, 1, 1000) == 1)
        got = receive_once(fd, files[step->conn], step->kind % 6, buffer, 100, flags);
    if (got > 0 && !in->orphan)
        tell_outcome(out, "MORE THAN WAS SENT");
    else if (got > 0 && right(out, step->conn, hold->side, buffer, got, true))
        tell_outcome(out, "?");
    else if (got <= 0)
        tell_outcome(out, "%s", end_of(step->conn, hold->side, got));
}

static void act_receive(int slot, const struct step *step, struct answer *out)
{
    struct holding *hold = &board->holds[slot][step->conn];
    struct connection *c = &board->conn[step->conn];
    struct direction *in = &c->dir[!hold->side];
    uint64_t there = unread(step->conn, hold->side), before = in->received;
    bool background = step->op == WAIT_RECV, was_luck = is_luck(step->conn, hold->side) && (step->n || !in->unsure || c->aborted);
    size_t wanted = background || (step->n && step->n < there) ? step->n : there;
    if (step->n == 0 && in->unsure && there == 0 && !c->aborted && !c->shut_rd[hold->side]) { /* elsewhere there was a rest to read */
        in->loose = in->unsure = false;
        tell_outcome(out, "all");
        return;
    }
    if (wanted == 0 && !background) {
        receive_none(slot, step, out);
        if (was_luck && strncmp(out->text, "MORE", 4) && strncmp(out->text, "WRONG", 5))
            strcpy(out->text, "?");
        return;
    }
    size_t chunk = step->m % 3 == 0 ? wanted : step->m % 3 == 1 ? 1 + step->m % 5000 : 1 + step->m % 100000;
    if (chunk < wanted / 100) /* it shall come to an end */
        chunk = wanted / 100;
    const char *what;
    size_t done = take(slot, step, wanted, chunk, out, &what);
    if (!strcmp(what, "wrong"))
        return;
    if (step->n == 0 && done == wanted && !c->aborted && !c->shut_rd[hold->side])
        in->loose = in->unsure = false;
    if (background && done == wanted)
        tell_outcome(out, "%zu", done);
    else if (was_luck && strcmp(what, "NOTHING COMES"))
        tell_outcome(out, "?");
    else if (in->fuzzy && (c->aborted || c->shut_rd[0] || c->shut_rd[1]))
        tell_outcome(out, "?");
    else if (in->fuzzy) /* at the end all must have come, however much that is */
        tell_outcome(out, "%s%s%s", unread(step->conn, hold->side) == 0 ? "all" : done == wanted ? "as wanted" : "PART", what[0] ? ", then " : "", what);
    else if (!what[0])
        tell_outcome(out, "%zu from %llu", done, (unsigned long long)before);
    else
        tell_outcome(out, "%zu of %zu from %llu, then %s", done, wanted, (unsigned long long)before, what);
}

static void act_peek(int slot, const struct step *step, struct answer *out)
{
    struct holding *hold = &board->holds[slot][step->conn];
    bool there = unread(step->conn, hold->side) > 0;
    int fd = any_fd(slot, step->conn, step->m), flags = MSG_PEEK;
    if (!there && !end_is_due(step->conn, hold->side))
        flags |= MSG_DONTWAIT;
    ssize_t got;
    do
        got = recv(fd, buffer, 1 + step->n % 70000, flags);
    while (got < 0 && errno == EAGAIN && there && poll(&(struct pollfd){fd, POLLIN, 0}, 1, 2500) == 1);
    if (got > 0 && !right(out, step->conn, hold->side, buffer, got, false))
        return;
    if (is_luck(step->conn, hold->side))
        tell_outcome(out, "?");
    else if (got <= 0)
        tell_outcome(out, "%s", got == 0 ? "end" : error_of(step->conn, errno));
    else
        tell_outcome(out, "the next bytes");
}

static void act_ask(int slot, const struct step *step, struct answer *out)
{
    struct holding *hold = &board->holds[slot][step->conn];
    struct direction *in = &board->conn[step->conn].dir[!hold->side];
    int fd = any_fd(slot, step->conn, step->m), value = 0;
    socklen_t length = sizeof value;
    if (step->op == ERROR) {
        MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length));
        tell_outcome(out, "%s", is_gone(step->conn, hold->side) ? "?" : value ? error_of(step->conn, value) : "none");
        return;
    }
    for (int tries = 0; tries < 100; tries++) {
        MUST(ioctl(fd, FIONREAD, &value));
        if ((uint64_t)value >= in->sent - in->received)
            break;
        usleep(1000);
    }
    if (is_luck(step->conn, hold->side))
        tell_outcome(out, "?");
    else if (in->loose)
        tell_outcome(out, "%s", value ? "some" : "none");
    else
        tell_outcome(out, "%d", value);
}

/* A message of `size` bytes that tells its thread and its number. */
static void fill_message(uint8_t *message, size_t size, int thread, uint32_t number)
{
    memset(message, 0x40 + thread * 16 + number % 16, size);
    message[0] = thread;
    memcpy(message + 1, &number, 4);
}
struct burst {
    int fd, thread, count, size;
    const char *error;
};
static void *burst_thread(void *argument)
{
    struct burst *burst = argument;
    uint8_t message[512];
    for (int i = 0; i < burst->count && !burst->error; i++) {
        fill_message(message, burst->size, burst->thread, i);
        ssize_t sent = send(burst->fd, message, burst->size, 0);
        if (sent != burst->size)
            burst->error = sent < 0 ? error_name(errno) : "in part";
    }
    return NULL;
}
/* kind threads send m messages of n bytes each, with no lock of their own: a small message stays whole. */
static void act_burst(int slot, const struct step *step, struct answer *out)
{
    pthread_t threads[8];
    struct burst bursts[8];
    for (int i = 0; i < step->kind; i++) {
        bursts[i] = (struct burst){any_fd(slot, step->conn, 0), i, step->m, step->n, NULL};
        threads[i] = start_thread(burst_thread, &bursts[i]);
    }
    const char *error = NULL;
    for (int i = 0; i < step->kind; i++) {
        pthread_join(threads[i], NULL);
        error = error ? error : bursts[i].error;
    }
    tell_outcome(out, "%s", error ? error : "all sent");
}
static void act_burst_read(int slot, const struct step *step, struct answer *out)
{
    int fd = any_fd(slot, step->conn, 0);
    uint32_t next[8] = {0};
    usleep(1000 * (step->m % 16)); /* the senders shall find the ring full */
    for (uint32_t i = 0; i < step->kind * step->m; i++) {
        uint8_t want[512];
        size_t got = read_full(fd, buffer, step->n);
        if (got < step->n) {
            tell_outcome(out, "the end after %u messages", i);
            return;
        }
        int thread = buffer[0] % 8;
        fill_message(want, step->n, thread, next[thread]++);
        if (memcmp(want, buffer, step->n)) {
            tell_outcome(out, "TORN");
            return;
        }
    }
    tell_outcome(out, "all whole");
}

/* n round trips of small messages: both sides are at it at once. */
static void act_warm(int slot, const struct step *step, struct answer *out)
{
    struct holding *hold = &board->holds[slot][step->conn];
    struct step part = *step;
    part.m = 0;
    for (uint32_t i = 0; i < step->n; i++)
        for (int turn = 0; turn < 2; turn++) {
            bool stuck;
            int error;
            const char *what;
            if (turn == hold->side) {
                part.kind = 1;
                put(slot, &part, 16, 16, GO_ON, &error, &stuck);
                if (error) {
                    tell_outcome(out, "%s", error_name(error));
                    return;
                }
            } else if (take(slot, &part, 16, 16, out, &what) < 16) {
                tell_outcome(out, "%s", what);
                return;
            }
        }
    tell_outcome(out, "done");
}

void act(int slot, const struct step *step, struct answer *out)
{
    switch (step->op) {
    case SEND:
    case FILL:
    case PUSH:
    case BULK:
        return act_send(slot, step, out);
    case RECV:
    case WAIT_RECV:
        return act_receive(slot, step, out);
    case PEEK:
        return act_peek(slot, step, out);
    case UNREAD:
    case ERROR:
        return act_ask(slot, step, out);
    case WARM:
        return act_warm(slot, step, out);
    case BURST:
        return act_burst(slot, step, out);
    case BURST_READ:
        return act_burst_read(slot, step, out);
    case POLL:
    case SELECT:
    case EPOLL_ADD:
    case EPOLL_WAIT:
        return act_ready(slot, step, out);
    case CROSS:
        return act_cross(slot, step, out);
    case WAIT_POLL:
        return act_wait_poll(slot, step, out);
    default:
        return act_leave(slot, step, out);
    }
}
