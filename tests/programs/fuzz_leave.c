/* The steps that change who holds a connection, and how an actor lives. See fuzz.h. */
#include "fuzz.h"

#include <spawn.h>

extern char **environ;

void answer_as(int slot, const struct answer *answer) { MUST(send(CONTROL + slot, answer, sizeof *answer, MSG_NOSIGNAL)); }

static void keep(int slot, int conn, int fd, int side)
{
    struct holding *hold = &board->holds[slot][conn];
    for (int i = 0; i < COPIES; i++)
        if (hold->fd[i] < 0) {
            hold->fd[i] = fd;
            hold->side = side;
            return;
        }
    close(fd);
}

static socklen_t address_of(uint16_t port, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (board->script.family == AF_INET6) {
        *(struct sockaddr_in6 *)out = (struct sockaddr_in6){AF_INET6, htons(port), .sin6_addr = in6addr_loopback};
        return sizeof(struct sockaddr_in6);
    }
    *(struct sockaddr_in *)out = (struct sockaddr_in){AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}};
    return sizeof(struct sockaddr_in);
}

static int new_socket(void)
{
    int fd = MUST(socket(board->script.family, SOCK_STREAM | (board->script.cloexec ? SOCK_CLOEXEC : 0), 0));
    if (board->script.small_buffer) {
        MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &board->script.small_buffer, sizeof(int)));
        MUST(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &board->script.small_buffer, sizeof(int)));
    }
    return fd;
}

/* No delayed segments: what send has taken is in the peer's queue when it returns. */
static void connected(int slot, int conn, int fd, int side)
{
    int on = 1;
    MUST(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    keep(slot, conn, fd, side);
    board->conn[conn].open[side] = true;
}

static void act_open(int slot, const struct step *step)
{
    struct sockaddr_storage address;
    struct connection *c = &board->conn[step->conn];
    int fd;
    switch (step->op) {
    case LISTEN:
        fd = new_socket();
        MUST(bind(fd, (struct sockaddr *)&address, address_of(0, &address)));
        MUST(listen(fd, 8));
        c->port = port_of(fd);
        MUST(dup3(fd, LISTENER + step->conn, O_CLOEXEC));
        close(fd);
        return;
    case CONNECT:
        fd = new_socket();
        MUST(connect(fd, (struct sockaddr *)&address, address_of(c->port, &address)));
        return connected(slot, step->conn, fd, 0);
    default:
        fd = MUST(accept4(LISTENER + step->conn, NULL, NULL, board->script.cloexec ? SOCK_CLOEXEC : 0));
        close(LISTENER + step->conn);
        return connected(slot, step->conn, fd, 1);
    }
}

static void close_copy(int slot, int conn, int index)
{
    struct holding *hold = &board->holds[slot][conn];
    forget_in_set(conn, hold->fd[index]);
    if (files[conn] && fileno(files[conn]) == hold->fd[index]) {
        fclose(files[conn]);
        files[conn] = NULL;
    } else
        MUST(close(hold->fd[index]));
    hold->fd[index] = -1;
}

static void close_all(int slot, int conn)
{
    for (int i = 0; i < COPIES; i++)
        if (board->holds[slot][conn].fd[i] >= 0)
            close_copy(slot, conn, i);
}

static void act_shut(int slot, const struct step *step, struct answer *out)
{
    static const int how[] = {SHUT_WR, SHUT_WR, SHUT_RD, SHUT_RDWR};
    int which = how[step->kind % 4], side = board->holds[slot][step->conn].side;
    int result = shutdown(any_fd(slot, step->conn, step->m), which);
    struct connection *c = &board->conn[step->conn];
    bool late = c->dir[!side].fin && (c->dir[!side].loose || c->dir[side].loose); /* an end may wait behind bytes that found no room */
    if (is_gone(step->conn, side) || late) { /* ENOTCONN, or not yet */
        tell_outcome(out, "?");
        result = 0;
    } else
        tell_outcome(out, "%s", result ? error_name(errno) : "0");
    if (!result && which != SHUT_RD)
        board->conn[step->conn].dir[side].fin = true;
    if (!result && which != SHUT_WR)
        board->conn[step->conn].shut_rd[side] = true;
}

static void act_close(int slot, const struct step *step)
{
    struct holding *hold = &board->holds[slot][step->conn];
    if (step->op == LINGER) {
        struct linger now = {1, 0};
        setsockopt(any_fd(slot, step->conn, 0), SOL_SOCKET, SO_LINGER, &now, sizeof now);
        board->conn[step->conn].aborted = true; /* if it is the last */
        return close_all(slot, step->conn);
    }
    if (step->kind % 4)
        return close_all(slot, step->conn);
    for (int i = 0; i < COPIES; i++)
        if (hold->fd[i] >= 0)
            return close_copy(slot, step->conn, i);
}

/* kind: what; the place 0, 1 or 2 counts as standard input and output. */
static void act_dup(int slot, const struct step *step)
{
    struct holding *hold = &board->holds[slot][step->conn];
    int fd = any_fd(slot, step->conn, step->m), copy, place = -1;
    for (int i = 0; i < COPIES; i++)
        if (hold->fd[i] < 0)
            place = i;
    if (place < 0)
        return;
    switch (step->kind % 5) {
    case 0:
        copy = MUST(dup(fd));
        break;
    case 1:
        copy = MUST(fcntl(fd, F_DUPFD_CLOEXEC, 30));
        break;
    case 2:
        copy = 60 + step->conn;
        if (hold->fd[0] == copy || hold->fd[1] == copy || hold->fd[2] == copy)
            return;
        MUST(dup3(fd, copy, O_CLOEXEC));
        break;
    default:
        copy = step->m % 3;
        for (int conn = 0; conn < CONNECTIONS; conn++)
            for (int i = 0; i < COPIES; i++)
                if (board->holds[slot][conn].fd[i] == copy)
                    return;
        copy = MUST(dup2(fd, copy));
    }
    hold->fd[place] = copy;
}

static void open_over_exec(int slot, bool open)
{
    for (int conn = 0; conn < CONNECTIONS; conn++)
        for (int i = 0; i < COPIES; i++)
            if (board->holds[slot][conn].fd[i] >= 0)
                MUST(fcntl(board->holds[slot][conn].fd[i], F_SETFD, open ? 0 : FD_CLOEXEC));
}

/* A command that has nothing to do with the connection. m: the sockets are open in it as well. */
static void act_command(int slot, const struct step *step, struct answer *out)
{
    int status = 0;
    char word[8] = "";
    char *arguments[] = {"true", NULL};
    pid_t child;
    if (step->m % 4)
        open_over_exec(slot, true);
    FILE *pipe;
    switch (step->kind % 6) {
    case 0:
        status = system("true");
        break;
    case 1:
        pipe = popen("echo yes", "r");
        if (!pipe || !fgets(word, sizeof word, pipe))
            tell_outcome(out, "nothing read ");
        status = pipe ? pclose(pipe) : -1;
        break;
    case 2:
        status = posix_spawnp(&child, "true", NULL, NULL, arguments, environ);
        if (!status)
            MUST(waitpid(child, &status, 0));
        break;
    case 3:
        child = vfork();
        if (child == 0) {
            execlp("true", "true", NULL);
            _exit(126);
        }
        MUST(waitpid(child, &status, 0));
        break;
    case 4:
        child = MUST(fork());
        if (child == 0) {
            execlp("true", "true", NULL);
            _exit(126);
        }
        MUST(waitpid(child, &status, 0));
        break;
    default: /* in an environment without the front */
        child = MUST(fork());
        if (child == 0) {
            char *nothing[] = {"PATH=/usr/bin:/bin", NULL};
            execvpe("true", arguments, nothing);
            _exit(126);
        }
        MUST(waitpid(child, &status, 0));
    }
    tell_outcome(out, "status %d", status);
}

/* kind: 0-2 this program again, 3 linked statically, 4 without an environment. m: which connections stay. */
static void act_exec(int slot, const struct step *step, struct answer *out)
{
    forget_set();
    open_over_exec(slot, true);
    for (int conn = 0; conn < CONNECTIONS; conn++)
        if (files[conn])
            fflush(files[conn]);
    for (int conn = 0; conn < CONNECTIONS; conn++)
        if (step->m >> conn & 1)
            for (int i = 0; i < COPIES; i++)
                if (board->holds[slot][conn].fd[i] >= 0) {
                    MUST(fcntl(board->holds[slot][conn].fd[i], F_SETFD, FD_CLOEXEC));
                    board->holds[slot][conn].fd[i] = -1;
                }
    char number[4];
    snprintf(number, sizeof number, "%d", slot);
    char *arguments[] = {"fuzz", "actor", number, NULL};
    char *nothing[] = {"PATH=/usr/bin:/bin", NULL};
    bool linked_statically = step->kind % 6 == 3 && board->static_program[0];
    bool cleared = step->kind % 6 == 4 || (step->kind % 6 == 3 && !linked_statically);
    execve(linked_statically ? board->static_program : board->program, arguments, cleared ? nothing : environ);
    tell_outcome(out, "%s", error_name(errno));
}

static void act_pass(int slot, const struct step *step)
{
    struct holding *hold = &board->holds[slot][step->conn];
    int fd = any_fd(slot, step->conn, step->m);
    char control[CMSG_SPACE(sizeof fd)] = {0}, side = hold->side;
    struct msghdr message = {.msg_iov = &(struct iovec){&side, 1}, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    MUST(sendmsg(MAIL_OUT + step->n, &message, 0));
    board->conn[step->conn].in_flight[hold->side]++;
    if (step->kind % 3)
        close_all(slot, step->conn);
}
static void act_take(int slot, const struct step *step, struct answer *out)
{
    char control[CMSG_SPACE(sizeof(int))], side;
    struct msghdr message = {.msg_iov = &(struct iovec){&side, 1}, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    int fd;
    if (recvmsg(MAIL_IN + slot, &message, MSG_DONTWAIT) != 1) {
        tell_outcome(out, "-");
        return;
    }
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    keep(slot, step->conn, fd, side);
    board->conn[step->conn].in_flight[(int)side]--;
    tell_outcome(out, "taken");
}

static void act_fork(int slot, const struct step *step, struct answer *out)
{
    int child_slot = step->n;
    memcpy(board->holds[child_slot], board->holds[slot], sizeof board->holds[slot]);
    pid_t child = MUST(fork());
    if (child == 0) {
        forget_set();
        actor(child_slot);
    }
    board->pid[child_slot] = child;
    tell_outcome(out, "done");
}

static void act_fdopen(int slot, const struct step *step, struct answer *out)
{
    if (files[step->conn])
        return tell_outcome(out, "-");
    files[step->conn] = fdopen(any_fd(slot, step->conn, step->m), "r+");
    if (!files[step->conn])
        return tell_outcome(out, "%s", error_name(errno));
    /* What a FILE would read ahead is its own. */
    setvbuf(files[step->conn], NULL, _IONBF, 0);
    tell_outcome(out, "done");
}

static void act_nonblock(int slot, const struct step *step)
{
    struct holding *hold = &board->holds[slot][step->conn];
    set_nonblocking(any_fd(slot, step->conn, step->m), step->kind % 2);
    for (int other = 0; other < SLOTS; other++) /* all that hold the same socket */
        if (board->holds[other][step->conn].side == hold->side)
            board->holds[other][step->conn].nonblocking = step->kind % 2;
}

/* A connection whose peer has gone, held by another process as well: one that gives it to somebody who knows no ring has a
 * copy of what is unread (docs/limitations.md), so who reads it first can not be told. */
static bool is_shared_orphan(int slot)
{
    for (int conn = 0; conn < CONNECTIONS; conn++) {
        int side = board->holds[slot][conn].side;
        if (any_fd(slot, conn, 0) < 0 || !is_gone(conn, side))
            continue;
        for (int other = 0; other < SLOTS; other++)
            if (other != slot && board->alive[other] && board->holds[other][conn].side == side && any_fd(other, conn, 0) >= 0)
                return true;
    }
    return false;
}

void act_leave(int slot, const struct step *step, struct answer *out)
{
    bool gives = step->op == EXEC || step->op == COMMAND || step->op == FDOPEN || step->op == DUP || step->op == SCM;
    if (gives && is_shared_orphan(slot))
        return tell_outcome(out, step->op == EXEC ? "ready" : step->op == COMMAND ? "status 0" : "done");
    switch (step->op) {
    case SHUT:
        return act_shut(slot, step, out);
    case FORK:
        return act_fork(slot, step, out);
    case EXEC:
        return act_exec(slot, step, out);
    case TAKE:
        return act_take(slot, step, out);
    case COMMAND:
        return act_command(slot, step, out);
    case FDOPEN:
        return act_fdopen(slot, step, out);
    case EXIT:
        step->kind % 2 ? exit(0) : _exit(0);
    case CLOSE:
    case LINGER:
        act_close(slot, step);
        break;
    case DUP:
        act_dup(slot, step);
        break;
    case SCM:
        act_pass(slot, step);
        break;
    case NONBLOCK:
        act_nonblock(slot, step);
        break;
    default:
        act_open(slot, step);
    }
    tell_outcome(out, "done");
}

static void on_interrupt(int signal) { (void)signal; }

/* Does what the director says, to the end of its days. */
void actor(int slot)
{
    struct sigaction interrupt = {.sa_handler = on_interrupt};
    sigaction(SIGUSR1, &interrupt, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct answer answer = {"ready"};
    answer_as(slot, &answer);
    for (;;) {
        struct step step;
        ssize_t got = recv(CONTROL + slot, &step, sizeof step, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got != sizeof step)
            _exit(0);
        bool connected = any_fd(slot, step.conn, 0) >= 0;
        bool needs_one = step.op > ACCEPT && !(1ull << step.op & (1ull << POLL | 1ull << SELECT | 1ull << EPOLL_WAIT | 1ull << TAKE |
                                                                   1ull << FORK | 1ull << EXEC | 1ull << COMMAND | 1ull << EXIT));
        answer = (struct answer){""};
        if (needs_one && !connected)
            tell_outcome(&answer, "-");
        else
            act(slot, &step, &answer);
        if (step.op != EXEC || answer.text[0])
            answer_as(slot, &answer);
    }
}

void actor_after_exec(int slot)
{
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, BOARD, 0);
    CHECK(board != MAP_FAILED);
    actor(slot);
}
