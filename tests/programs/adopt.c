/* A connection that another program gets, which also runs under the front: by exec, spawn, system, popen, vfork, in a message.
 * Natively nothing is special about it; under the front it must stay carried. */
#include "common.h"

#include <spawn.h>
#include <sys/resource.h>

extern char **environ;

enum { PART = 256 * KIB, SEED_IN = 301, SEED_OUT = 302 };

static void serve(int fd, int part)
{
    struct stream in = {SEED_IN + part, 0}, out = {SEED_OUT + part, 0};
    stream_receive(&in, fd, PART, 5000);
    stream_send(&out, fd, PART, 5000);
}
static void be_served(int fd, int part)
{
    struct stream out = {SEED_IN + part, 0}, in = {SEED_OUT + part, 0};
    stream_send(&out, fd, PART, 5000);
    stream_receive(&in, fd, PART, 5000);
}
static void client_of(int port, int parts)
{
    int fd = connect_warm(port);
    char text[8];
    for (int i = 0; i < parts; i++)
        be_served(fd, i);
    say("%d parts", parts);
    CALL("read", read(fd, text, 8));
}

/* What this program does under another name: serves a part on a descriptor, or holds it and waits, for ever or for the end of a
 * pipe. */
static __attribute__((constructor)) void after_exec(void)
{
    char *what = getenv("SGM_TEST_SERVE");
    int fd, part;
    char byte;
    struct rlimit most;
    if (!what)
        return;
    if (sscanf(what, "%d %d", &fd, &part) == 2)
        serve(fd, part);
    else if (sscanf(what, "crowded %d %d", &fd, &part) == 2) {
        /* With no descriptor to spare from the first call on. */
        MUST(getrlimit(RLIMIT_NOFILE, &most));
        most.rlim_cur = 32;
        MUST(setrlimit(RLIMIT_NOFILE, &most));
        while (dup(2) >= 0)
            ;
        CHECK(errno == EMFILE);
        serve(fd, part);
        MUST(getrlimit(RLIMIT_NOFILE, &most));
        CHECK(most.rlim_cur == 32 && dup(2) < 0);
    } else if (sscanf(what, "until %d", &fd) == 1)
        CHECK(read(fd, &byte, 1) == 0);
    else if (!strcmp(what, "wait"))
        pause();
    _exit(0);
}
static char *const arguments[] = {"adopt", NULL};
static const char *own_path(void)
{
    static char path[4096];
    MUST(readlink("/proc/self/exe", path, sizeof path - 1));
    return path;
}
static void set_serve(int fd, int part)
{
    char text[32];
    snprintf(text, sizeof text, "%d %d", fd, part);
    setenv("SGM_TEST_SERVE", text, 1);
}
static pid_t spawned(const char *path, posix_spawn_file_actions_t *actions)
{
    pid_t child;
    CHECK(posix_spawn(&child, path, actions, NULL, arguments, environ) == 0);
    return child;
}

/* A forked child execs; then the parent serves on. */
static void exec_server(int listener)
{
    int fd = accept_warm(listener);
    serve(fd, 0);
    pid_t child = MUST(fork());
    if (child == 0) {
        set_serve(fd, 1);
        execv("/proc/self/exe", arguments);
        _exit(127);
    }
    wait_child(child);
    serve(fd, 2);
    MUST(close(fd));
}
static void exec_client(int port) { client_of(port, 3); }

/* The process that made the connection becomes another program, and this one again another. */
static void exec_self_server(int listener)
{
    int fd = accept_warm(listener);
    serve(fd, 0);
    set_serve(fd, 1);
    say("and on");
    fflush(stdout);
    tell(0x6d656574); /* as in meet, for which the new program does not come back */
    execl("/bin/sh", "sh", "-c", "exec /bin/sh -c 'exec \"$0\"' \"$0\"", own_path(), NULL);
    die("exec");
}
static void exec_self_client(int port) { client_of(port, 2); }

/* Several descriptors of one connection, of which some close on exec. */
static void exec_copies_server(int listener)
{
    int fd = accept_warm(listener), copy = MUST(dup(fd));
    MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
    MUST(dup3(fd, 77, O_CLOEXEC));
    pid_t child = MUST(fork());
    if (child == 0) {
        set_serve(copy, 0);
        execvp("/proc/self/exe", arguments);
        _exit(127);
    }
    wait_child(child);
    MUST(close(copy));
    MUST(close(77));
    serve(fd, 1);
    MUST(close(fd));
}
static void exec_copies_client(int port) { client_of(port, 2); }

/* The environment of the new program has nothing of what brought the front here. */
static void exec_cleared_server(int listener)
{
    int fd = accept_warm(listener);
    char text[64];
    snprintf(text, sizeof text, "SGM_TEST_SERVE=%d 0", fd);
    char *few[] = {text, NULL};
    pid_t child = MUST(fork());
    if (child == 0) {
        execve("/proc/self/exe", arguments, few);
        _exit(127);
    }
    wait_child(child);
    pid_t other;
    text[strlen(text) - 1] = '1';
    CHECK(posix_spawn(&other, "/proc/self/exe", NULL, NULL, arguments, few) == 0);
    wait_child(other);
    serve(fd, 2);
    MUST(close(fd));
}
static void exec_cleared_client(int port) { client_of(port, 3); }

/* The new program will not run under the front: it gets plain TCP. */
static void exec_refused_server(int listener)
{
    int fd = accept_warm(listener);
    serve(fd, 0);
    pid_t child = MUST(fork());
    if (child == 0) {
        setenv("SGM_DISABLE", "1", 1);
        set_serve(fd, 1);
        execv("/proc/self/exe", arguments);
        _exit(127);
    }
    MUST(close(fd));
    wait_child(child);
}
static void exec_refused_client(int port) { client_of(port, 2); }

/* A script, with the connection for its interpreter's interpreter. */
static void exec_script_server(int listener)
{
    int fd = accept_warm(listener);
    char name[4096];
    snprintf(name, sizeof name, "%s/script", getenv("SGM_TEST_DIR"));
    int file = MUST(open(name, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0700));
    send_text(file, "#! /bin/sh -e\nexec \"$1\"\n");
    MUST(close(file));
    set_serve(fd, 0);
    pid_t child = MUST(fork());
    if (child == 0) {
        execl(name, "script", own_path(), NULL);
        _exit(127);
    }
    wait_child(child);
    serve(fd, 1);
    MUST(close(fd));
}
static void exec_script_client(int port) { client_of(port, 2); }

/* posix_spawn: the child serves, on the same descriptor and on one of its own. */
static void spawn_server(int listener)
{
    int fd = accept_warm(listener);
    set_serve(fd, 0);
    wait_child(spawned("/proc/self/exe", NULL));
    serve(fd, 1);
    posix_spawn_file_actions_t actions;
    MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 99);
    set_serve(99, 2);
    wait_child(spawned("/proc/self/exe", &actions));
    posix_spawn_file_actions_destroy(&actions);
    serve(fd, 3);
    MUST(close(fd));
}
static void spawn_client(int port) { client_of(port, 4); }

/* The parent leaves first; what the child does is all that happens then. */
static void spawn_last_server(int listener)
{
    int fd = accept_warm(listener);
    serve(fd, 0);
    set_serve(fd, 1);
    pid_t child = spawned("/proc/self/exe", NULL);
    MUST(close(fd));
    wait_child(child);
}
static void spawn_last_client(int port) { client_of(port, 2); }

/* The child has used up its descriptors when it serves. */
static void spawn_crowded_server(int listener)
{
    int fd = accept_warm(listener);
    char text[32];
    snprintf(text, sizeof text, "crowded %d 0", fd);
    setenv("SGM_TEST_SERVE", text, 1);
    wait_child(spawned("/proc/self/exe", NULL));
    serve(fd, 1);
    MUST(close(fd));
}
static void spawn_crowded_client(int port) { client_of(port, 2); }

/* Nothing comes of it, and nothing changes. */
static void spawn_fails_server(int listener)
{
    int fd = accept_warm(listener);
    pid_t child;
    serve(fd, 0);
    say("spawn of nothing: %s", strerrorname_np(posix_spawn(&child, "/nowhere", NULL, NULL, arguments, environ)));
    say("spawn of a directory: %s", strerrorname_np(posix_spawn(&child, "/tmp", NULL, NULL, arguments, environ)));
    for (int i = 0; i < 3; i++)
        if (vfork() == 0) {
            execl("/nowhere", "nowhere", NULL);
            execlp("no-program-of-that-name", "nowhere", NULL);
            _exit(0);
        }
    for (int i = 0; i < 3; i++)
        wait(NULL);
    CALL("execl of nothing", execl("/nowhere", "nowhere", NULL));
    serve(fd, 1);
    MUST(close(fd));
}
static void spawn_fails_client(int port) { client_of(port, 2); }

/* Bytes are unread while programs run that hold the connection and never touch it; the peer says all and closes. */
static void unread_server(int listener)
{
    int fd = accept_warm(listener);
    static uint8_t all[PART];
    struct stream in = {SEED_IN, 0};
    for (int i = 0; i < 4; i++) {
        CALL("system", system("exit 3"));
        FILE *pipe = popen("echo from a pipe", "r");
        char text[32] = "";
        CHECK(pipe && fgets(text, sizeof text, pipe));
        say("%s", text);
        CALL("pclose", pclose(pipe));
        pid_t child = vfork();
        if (child == 0) {
            execl("/bin/true", "true", NULL);
            _exit(127);
        }
        wait_child(child);
        if (i == 1) {
            tell(1);
            CHECK(hear() == 2);
        }
        CHECK(read_full(fd, all, PART / 8) == PART / 8);
        stream_check(&in, all, PART / 8);
    }
    say("%zu bytes to the end", read_full(fd, all, PART));
}
static void unread_client(int port)
{
    int fd = connect_warm(port);
    struct stream out = {SEED_IN, 0};
    stream_send(&out, fd, PART / 4, 5000);
    CHECK(hear() == 1);
    stream_send(&out, fd, PART / 2, 5000);
    MUST(close(fd));
    tell(2);
}

/* Holders that never touch it: one ends, one is killed. The connection ends when the last one that lives is gone. */
static void holders_server(int listener)
{
    int fd = accept_warm(listener);
    serve(fd, 0);
    setenv("SGM_TEST_SERVE", "end", 1);
    wait_child(spawned("/proc/self/exe", NULL));
    setenv("SGM_TEST_SERVE", "wait", 1);
    pid_t child = spawned("/proc/self/exe", NULL);
    await_asleep(child);
    serve(fd, 1);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    serve(fd, 2);
    MUST(close(fd));
}
static void holders_client(int port) { client_of(port, 3); }

/* The last holder never touches it. Its end is a clean one, or a reset if bytes are unread. */
static void untouched(int fd)
{
    int until[2];
    char text[24];
    MUST(pipe2(until, O_CLOEXEC));
    int end = MUST(dup(until[0]));
    snprintf(text, sizeof text, "until %d", end);
    setenv("SGM_TEST_SERVE", text, 1);
    pid_t child = spawned("/proc/self/exe", NULL);
    MUST(close(fd));
    meet();
    MUST(close(until[1]));
    MUST(close(end));
    wait_child(child);
    meet();
}
static void untouched_server(int listener)
{
    int fd = accept_warm(listener);
    stream_send(&(struct stream){SEED_OUT, 0}, fd, PART / 4, 5000);
    untouched(fd);
    fd = accept_warm(listener);
    await_unread(fd, 5000);
    untouched(fd);
}
static void untouched_client(int port)
{
    struct stream in = {SEED_OUT, 0};
    char byte;
    int fd = connect_warm(port);
    stream_receive(&in, fd, PART / 8, 5000);
    meet();
    stream_receive(&in, fd, PART / 16, 5000);
    meet();
    stream_receive(&in, fd, PART / 16, 5000);
    CALL("end", read(fd, &byte, 1));
    fd = connect_warm(port);
    stream_send(&(struct stream){SEED_IN, 0}, fd, 5000, 5000);
    meet();
    meet();
    CALL("reset", read(fd, &byte, 1));
}

/* vfork and exec, with the connection under another number. */
static void vfork_server(int listener)
{
    int fd = accept_warm(listener);
    serve(fd, 0);
    set_serve(88, 1);
    pid_t child = vfork();
    if (child == 0) {
        dup2(fd, 88);
        close(fd);
        fcntl(88, F_SETFD, 0);
        execve("/proc/self/exe", arguments, environ);
        _exit(127);
    }
    wait_child(child);
    serve(fd, 2);
    child = vfork();
    if (child == 0) {
        close(fd);
        _exit(7);
    }
    wait_child(child);
    serve(fd, 3);
    MUST(close(fd));
}
static void vfork_client(int port) { client_of(port, 4); }

/* All of it in a row, children that are killed at any moment among them, while the connection is used. */
static void churn_server(int listener)
{
    int fd = accept_warm(listener);
    struct rng rng = {17};
    struct stream in = {SEED_IN, 0}, out = {SEED_OUT, 0};
    setenv("SGM_TEST_SERVE", "wait", 1);
    for (int i = 0; i < 60; i++) {
        pid_t child = 0;
        switch (between(&rng, 0, 5)) {
        case 0:
            child = spawned("/proc/self/exe", NULL);
            break;
        case 1:
            if ((child = MUST(fork())) == 0) {
                execv("/proc/self/exe", arguments);
                _exit(127);
            }
            break;
        case 2:
            if ((child = MUST(vfork())) == 0) {
                execl("/bin/sleep", "sleep", "9", NULL);
                _exit(127);
            }
            break;
        case 3:
            if ((child = MUST(fork())) == 0)
                for (;;)
                    pause();
            break;
        default:
            MUST(system("true"));
        }
        stream_receive(&in, fd, 3000, 1000);
        if (child) {
            usleep(between(&rng, 0, 3000));
            kill(child, SIGKILL);
        }
        stream_send(&out, fd, 3000, 1000);
        if (child)
            waitpid(child, NULL, 0);
    }
    say("all done");
    MUST(close(fd));
}
static void churn_client(int port)
{
    int fd = connect_warm(port);
    char text[8];
    struct stream out = {SEED_IN, 0}, in = {SEED_OUT, 0};
    for (int i = 0; i < 60; i++) {
        stream_send(&out, fd, 3000, 1000);
        stream_receive(&in, fd, 3000, 1000);
    }
    CALL("read", read(fd, text, 8));
}

/* The parent's memory is the child's, as programs rely on that use vfork's and nothing less. */
static void vfork_memory_server(int fd)
{
    static volatile int told;
    pid_t child = vfork();
    if (child == 0) {
        told = 5;
        errno = EXDEV;
        _exit(9);
    }
    say("told %d", told);
    wait_child(child);
    CALL("write", write(fd, "done", 4));
}
static void vfork_memory_client(int fd)
{
    char text[8] = "";
    CALL("read", read(fd, text, 8));
    say("%s", text);
}

/* A connection goes in a message, before its first byte or after some, to a process that was there before. */
static void send_descriptor(int channel, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct msghdr message = {.msg_iov = &(struct iovec){"d", 1}, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    CHECK(sendmsg(channel, &message, MSG_NOSIGNAL) == 1);
}
static int receive_descriptor(int channel)
{
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct msghdr message = {.msg_iov = &(struct iovec){&byte, 1}, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    int fd;
    CHECK(recvmsg(channel, &message, MSG_CMSG_CLOEXEC) == 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}
static void passed_server(int listener)
{
    int pair[2];
    char byte;
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    pid_t child = MUST(fork());
    if (child == 0) {
        int fd = receive_descriptor(pair[1]);
        MUST(write(pair[1], "k", 1));
        warm_up(fd, false);
        serve(fd, 0);
        _exit(0);
    }
    int fd = accept_from(listener);
    send_descriptor(pair[0], fd);
    MUST(read(pair[0], &byte, 1));
    MUST(close(fd));
    wait_child(child);
}
static void passed_client(int port) { client_of(port, 1); }

/* To oneself: the same connection under another number. */
static void passed_to_self_server(int fd)
{
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    send_descriptor(pair[0], fd);
    int copy = receive_descriptor(pair[1]);
    serve(copy, 0);
    MUST(close(copy));
    serve(fd, 1);
}
static void passed_to_self_client(int fd)
{
    be_served(fd, 0);
    be_served(fd, 1);
    say("two parts");
}

const struct test_case cases[] = {
    RAW_CASE(exec),        RAW_CASE(exec_self),   RAW_CASE(exec_copies), RAW_CASE(exec_cleared), RAW_CASE(exec_refused),
    RAW_CASE(exec_script), RAW_CASE(spawn),       RAW_CASE(spawn_last),  RAW_CASE(spawn_fails),  RAW_CASE(unread),
    RAW_CASE(holders),     RAW_CASE(vfork),       CASE(vfork_memory),    RAW_CASE(passed),       CASE(passed_to_self),
    RAW_CASE(churn),       RAW_CASE(untouched),   RAW_CASE(spawn_crowded), END_OF_CASES,
};
