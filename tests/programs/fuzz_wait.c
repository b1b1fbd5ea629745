/* The steps that ask for readiness. See fuzz.h.
 *
 * Over TCP all is still between two steps, so what is ready can be told. Two things are the kernel's luck and left out: whether
 * a buffer that was filled has room again before it is empty, and which of several events an edge-triggered set tells at once. */
#include "fuzz.h"

static int set = -1;
static struct member {
    int fd;
    uint32_t events;
    bool spent; /* one-shot, and told */
    uint64_t told_sent; /* what of the peer's sending the last wait could know */
    bool told_end, asked;
} members[CONNECTIONS];

enum { LEVEL_IN, LEVEL_ALL, EDGE_IN, EDGE_ALL, ONESHOT, MODES };

static short wanted_events(uint32_t choice)
{
    static const short events[] = {POLLIN, POLLIN | POLLOUT, POLLIN | POLLOUT | POLLRDHUP, POLLIN | POLLRDHUP, POLLOUT, 0};
    return events[choice % (sizeof events / sizeof *events)];
}

/* What of `events` can be compared. */
static unsigned sure_events(int slot, int conn, unsigned events)
{
    struct connection *c = &board->conn[conn];
    int side = board->holds[slot][conn].side;
    if (c->aborted)
        return 0;
    if (c->closed[!side])
        events &= ~(EPOLLHUP | EPOLLERR);
    if (c->dir[side].loose || c->dir[side].promised || c->dir[side].unsure)
        events &= ~EPOLLOUT;
    if (is_luck(conn, side) || c->dir[!side].promised)
        events &= ~EPOLLIN;
    if (c->killed[!side] && unread(conn, side)) /* the kernel alone knows, and is asked when the rings have nothing (docs/limitations.md) */
        events &= ~EPOLLRDHUP;
    if (c->dir[!side].loose) /* the end may wait behind bytes that found no room */
        events &= ~(EPOLLRDHUP | EPOLLHUP);
    return events;
}

static bool input_is_due(int slot, int conn)
{
    int side = board->holds[slot][conn].side;
    return unread(conn, side) || end_is_due(conn, side);
}

static void tell_events(struct answer *out, int conn, unsigned events)
{
    tell_outcome(out, "%sc%d %s", out->text[0] ? ", " : "", conn, events_name(events));
}

static void act_poll(int slot, const struct step *step, struct answer *out)
{
    struct pollfd entries[CONNECTIONS];
    int conns[CONNECTIONS], count = 0;
    short events = wanted_events(step->n);
    for (int conn = 0; conn < CONNECTIONS; conn++) {
        int fd = any_fd(slot, conn, step->m);
        if (fd < 0)
            continue;
        if ((events & POLLIN) && input_is_due(slot, conn)) { /* it may still be on its way */
            struct pollfd one = {fd, POLLIN, 0};
            poll(&one, 1, 0);
            if (!one.revents)
                poll(&one, 1, 1000);
        }
        conns[count] = conn;
        entries[count++] = (struct pollfd){fd, events, 0};
    }
    struct timespec now = {0, 0};
    MUST(step->kind % 2 ? ppoll(entries, count, &now, NULL) : poll(entries, count, 0));
    for (int i = 0; i < count; i++)
        tell_events(out, conns[i], sure_events(slot, conns[i], entries[i].revents));
}

static void act_select(int slot, const struct step *step, struct answer *out)
{
    for (int once = 0; once < 2; once++) {
        fd_set in, room;
        FD_ZERO(&in);
        FD_ZERO(&room);
        int top = 0;
        bool late = false;
        for (int conn = 0; conn < CONNECTIONS; conn++) {
            int fd = any_fd(slot, conn, step->m);
            if (fd < 0)
                continue;
            FD_SET(fd, &in);
            if (step->n % 2)
                FD_SET(fd, &room);
            top = fd >= top ? fd + 1 : top;
        }
        struct timeval now = {0, 0};
        MUST(select(top, &in, &room, NULL, &now));
        for (int conn = 0; conn < CONNECTIONS; conn++) {
            int fd = any_fd(slot, conn, step->m);
            if (fd < 0)
                continue;
            late |= !once && input_is_due(slot, conn) && !FD_ISSET(fd, &in) && poll(&(struct pollfd){fd, POLLIN, 0}, 1, 1000) >= 0;
            tell_events(out, conn, sure_events(slot, conn, (FD_ISSET(fd, &in) ? EPOLLIN : 0) | (FD_ISSET(fd, &room) ? EPOLLOUT : 0)));
        }
        if (!late)
            return;
        out->text[0] = 0;
    }
}

void forget_set(void)
{
    if (set >= 0)
        close(set);
    set = -1;
    for (int i = 0; i < CONNECTIONS; i++)
        members[i] = (struct member){-1};
}

void forget_in_set(int conn, int fd)
{
    if (set >= 0 && members[conn].events && members[conn].fd == fd) {
        epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL);
        members[conn] = (struct member){-1};
    }
}

static void act_epoll_add(int slot, const struct step *step, struct answer *out)
{
    static const uint32_t modes[MODES] = {
        [LEVEL_IN] = EPOLLIN,
        [LEVEL_ALL] = EPOLLIN | EPOLLOUT | EPOLLRDHUP,
        [EDGE_IN] = EPOLLIN | EPOLLET | EPOLLRDHUP,
        [EDGE_ALL] = EPOLLIN | EPOLLOUT | EPOLLET,
        [ONESHOT] = EPOLLIN | EPOLLONESHOT,
    };
    if (set < 0) {
        forget_set();
        set = MUST(epoll_create1(EPOLL_CLOEXEC));
    }
    struct member *member = &members[step->conn];
    struct epoll_event event = {modes[step->kind % MODES], {.u32 = step->conn}};
    bool known = member->events;
    if (!known)
        member->fd = any_fd(slot, step->conn, step->m);
    int result = epoll_ctl(set, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, member->fd, &event);
    tell_outcome(out, "%s", result ? error_name(errno) : "0");
    if (!result)
        *member = (struct member){.fd = member->fd, .events = event.events};
}

/* Of an edge-triggered member. An edge may be told once more while bytes are unread (epoll(7): several for one arrival; TCP does so
 * with an edge for room), so one counts if something came since the last wait. What found no room comes when it likes. */
static unsigned sure_edges(int slot, int conn)
{
    struct member *member = &members[conn];
    int side = board->holds[slot][conn].side;
    struct direction *in = &board->conn[conn].dir[!side];
    bool end = end_is_due(conn, side), news = !member->asked || member->told_sent != in->sent || member->told_end != end;
    member->told_sent = in->sent, member->told_end = end, member->asked = true;
    return news && !in->loose ? ~EPOLLOUT : ~(EPOLLOUT | EPOLLIN | EPOLLRDHUP);
}

static void act_epoll_wait(int slot, struct answer *out)
{
    unsigned seen[CONNECTIONS] = {0};
    struct epoll_event events[4];
    if (set < 0) {
        tell_outcome(out, "-");
        return;
    }
    for (int tries = 0; tries < 4; tries++) {
        int timeout = 0;
        for (int conn = 0; conn < CONNECTIONS && tries; conn++)
            if (members[conn].events && !members[conn].spent && any_fd(slot, conn, 0) >= 0 && input_is_due(slot, conn) &&
                !(members[conn].events & EPOLLIN ? seen[conn] & EPOLLIN : seen[conn]) &&
                timeout < 1000)
                timeout = members[conn].events & EPOLLET ? 2 : 1000;
        if (tries && !timeout)
            break;
        int count = MUST(epoll_wait(set, events, 4, timeout));
        for (int i = 0; i < count; i++)
            seen[events[i].data.u32] |= events[i].events;
        if (tries && !count)
            break;
    }
    for (int conn = 0; conn < CONNECTIONS; conn++) {
        if (!members[conn].events || any_fd(slot, conn, 0) < 0)
            continue;
        if (seen[conn] && (members[conn].events & EPOLLONESHOT))
            members[conn].spent = true;
        unsigned events_seen = seen[conn];
        if (members[conn].events & EPOLLET)
            events_seen &= sure_edges(slot, conn);
        tell_events(out, conn, sure_events(slot, conn, events_seen));
    }
}

void act_ready(int slot, const struct step *step, struct answer *out)
{
    switch (step->op) {
    case POLL:
        return act_poll(slot, step, out);
    case SELECT:
        return act_select(slot, step, out);
    case EPOLL_ADD:
        return act_epoll_add(slot, step, out);
    default:
        return act_epoll_wait(slot, out);
    }
}

/* Waits without limit for bytes or the end (n = 0) or for room (n = 1). */
void act_wait_poll(int slot, const struct step *step, struct answer *out)
{
    int fd = any_fd(slot, step->conn, step->m), result;
    unsigned events = step->n ? EPOLLOUT : EPOLLIN | EPOLLRDHUP;
    switch (step->kind % 3) {
    case 0: {
        struct pollfd entry = {fd, events, 0};
        result = poll(&entry, 1, -1);
        events = entry.revents;
        break;
    }
    case 1: {
        fd_set wanted;
        FD_ZERO(&wanted);
        FD_SET(fd, &wanted);
        result = select(fd + 1, step->n ? NULL : &wanted, step->n ? &wanted : NULL, NULL, NULL);
        events = step->n ? EPOLLOUT : EPOLLIN;
        break;
    }
    default: {
        int one = MUST(epoll_create1(EPOLL_CLOEXEC));
        struct epoll_event event = {events | (step->m % 2 ? EPOLLET : 0), {.fd = fd}};
        MUST(epoll_ctl(one, EPOLL_CTL_ADD, fd, &event));
        result = epoll_wait(one, &event, 1, -1);
        int error = errno;
        close(one);
        errno = error;
        events = event.events;
    }
    }
    if (result < 0)
        tell_outcome(out, "%s", error_name(errno));
    else
        tell_outcome(out, "%s", step->n ? "OUT" : events_name(events & ~EPOLLOUT));
}

struct sleeper {
    int fd;
    bool polls;
    _Atomic pid_t thread;
    char text[64];
};
static void *sleeper(void *argument)
{
    struct sleeper *self = argument;
    char byte;
    self->thread = thread_id();
    if (self->polls) {
        struct pollfd entry = {self->fd, POLLIN | POLLRDHUP, 0};
        int result = poll(&entry, 1, -1);
        strcpy(self->text, result < 0 ? error_name(errno) : events_name(entry.revents & ~POLLOUT));
    } else {
        ssize_t got = recv(self->fd, &byte, 1, 0);
        strcpy(self->text, got > 0 ? "a byte" : got == 0 ? "end" : error_name(errno));
    }
    return NULL;
}

/* One thread waits for bytes, another shuts the connection down: the first wakes. */
void act_cross(int slot, const struct step *step, struct answer *out)
{
    struct holding *hold = &board->holds[slot][step->conn];
    struct connection *c = &board->conn[step->conn];
    if (input_is_due(slot, step->conn) || is_luck(step->conn, hold->side) || hold->nonblocking)
        return tell_outcome(out, "-");
    static struct sleeper self; /* outlives this call if the thread does */
    self = (struct sleeper){any_fd(slot, step->conn, step->m), step->m & 1, 0, ""};
    pthread_t thread = start_thread(sleeper, &self);
    while (!self.thread)
        sched_yield();
    await_asleep(self.thread);
    bool both = step->kind % 2;
    int result = shutdown(self.fd, both ? SHUT_RDWR : SHUT_RD), error = errno;
    if (result == 0) {
        c->shut_rd[hold->side] = true;
        c->dir[hold->side].fin |= both;
        pthread_join(thread, NULL);
    } else
        pthread_detach(thread);
    tell_outcome(out, "%s, the other thread: %s", result ? error_name(error) : "0", self.text);
}
