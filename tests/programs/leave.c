/* A connection that leaves the process that promoted it, or carries what a ring cannot: SCM_RIGHTS, exec, MSG_OOB. */
#include "common.h"

#include <spawn.h>

extern char **environ;

static void echo_lines(int fd, int count)
{
    char text[64];
    for (int i = 0; i < count; i++) {
        ssize_t n = MUST(read(fd, text, sizeof text));
        write_all(fd, text, n);
    }
}
static void ask(int fd, int count)
{
    char text[64], answer[64];
    for (int i = 0; i < count; i++) {
        int n = snprintf(text, sizeof text, "question %d", i);
        write_all(fd, text, n);
        size_t got = read_full(fd, answer, n);
        if (got != (size_t)n || memcmp(text, answer, n)) {
            say("answer %d: %zu bytes: %.*s", i, got, (int)got, answer);
            _exit(98);
        }
    }
    say("%d answers", count);
}
static void ask_to_the_end(int fd, int count)
{
    char text[8];
    ask(fd, count);
    CALL("read", read(fd, text, 8));
}

static void send_descriptor(int channel, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct msghdr message = {.msg_iov = &(struct iovec){"d", 1}, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    CHECK(sendmsg(channel, &message, 0) == 1);
}
static int receive_descriptor(int channel)
{
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct msghdr message = {.msg_iov = &(struct iovec){&byte, 1}, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    int fd;
    CHECK(recvmsg(channel, &message, 0) == 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

/* The connection goes by SCM_RIGHTS to a process forked before it existed; the sender closes its copy. */
static void passed_server(int listener)
{
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    pid_t child = MUST(fork());
    if (child == 0) {
        int fd = receive_descriptor(pair[1]);
        echo_lines(fd, 20);
        _exit(0);
    }
    int fd = accept_warm(listener);
    echo_lines(fd, 10);
    send_descriptor(pair[0], fd);
    MUST(close(fd));
    wait_child(child);
}
static void passed_client(int port) { ask_to_the_end(connect_warm(port), 30); }

/* There and back again, with bytes unread at the moment of passing. */
static void passed_unread_server(int listener)
{
    int pair[2];
    char text[16] = "";
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    pid_t child = MUST(fork());
    if (child == 0) {
        int fd = receive_descriptor(pair[1]);
        CALL("child reads", read(fd, text, 4));
        say("%s", text);
        send_descriptor(pair[1], fd);
        _exit(0);
    }
    int fd = accept_warm(listener);
    await_unread(fd, 12);
    CALL("parent reads", read(fd, text, 4));
    say("%s", text);
    send_descriptor(pair[0], fd);
    MUST(close(fd));
    fd = receive_descriptor(pair[0]);
    wait_child(child);
    CALL("parent reads", read(fd, text, 4));
    say("%s", text);
    tell(1);
    echo_lines(fd, 10);
}
static void passed_unread_client(int port)
{
    int fd = connect_warm(port);
    send_text(fd, "one.two.six.");
    CHECK(hear() == 1);
    ask(fd, 10);
}

/* Passed on with much unread, and closed here: the receiver reads it all and closes, and that is a clean end. */
enum { PASSED = 30000, PIECES = 12 };
static void passed_and_closed_client(int port)
{
    int pair[2], fd;
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    pid_t child = MUST(fork());
    if (child == 0) {
        struct stream in = {71, 0};
        fd = receive_descriptor(pair[1]);
        stream_receive(&in, fd, PASSED, PASSED);
        CALL("child closes", close(fd));
        _exit(0);
    }
    struct stream out = {72, 0};
    fd = connect_warm(port);
    CHECK(hear() == 1);
    for (int i = 0; i < PIECES; i++) {
        stream_send(&out, fd, 500, 500);
        tell(1);
        CHECK(hear() == 2);
    }
    await_unread(fd, PASSED);
    send_descriptor(pair[0], fd);
    MUST(close(fd));
    wait_child(child);
    tell(3);
}
static void passed_and_closed_server(int listener)
{
    int fd = accept_warm(listener);
    struct stream out = {71, 0}, in = {72, 0};
    stream_send(&out, fd, PASSED, PASSED);
    tell(1);
    for (int i = 0; i < PIECES; i++) {
        CHECK(hear() == 1);
        stream_receive(&in, fd, 10, 10);
        tell(2);
    }
    CHECK(hear() == 3);
    say("%zu bytes, then the end", stream_receive_to_end(&in, fd));
}

/* exec with the connection open: the new program (this one, under another name) serves it on descriptor 0. */
static void serve_after_exec(void)
{
    echo_lines(0, 20);
    _exit(0);
}
static __attribute__((constructor)) void after_exec(void)
{
    if (getenv("SGM_TEST_SERVE_STDIN"))
        serve_after_exec();
}
static void exec_server_with(int listener, bool keep_preload, bool spawn)
{
    int fd = accept_warm(listener);
    echo_lines(fd, 10);
    setenv("SGM_TEST_SERVE_STDIN", "1", 1);
    if (!keep_preload)
        unsetenv("LD_PRELOAD");
    char *arguments[] = {"leave", NULL};
    pid_t child;
    if (spawn) {
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, fd, 0);
        CHECK(posix_spawn(&child, "/proc/self/exe", &actions, NULL, arguments, environ) == 0);
    } else if ((child = MUST(fork())) == 0) {
        MUST(dup2(fd, 0));
        execve("/proc/self/exe", arguments, environ);
        _exit(127);
    }
    unsetenv("SGM_TEST_SERVE_STDIN");
    MUST(close(fd));
    wait_child(child);
}
static void exec_same_server(int listener) { exec_server_with(listener, true, false); }
static void exec_same_client(int port) { ask_to_the_end(connect_warm(port), 30); }
static void exec_plain_server(int listener) { exec_server_with(listener, false, false); }
static void exec_plain_client(int port) { ask_to_the_end(connect_warm(port), 30); }
static void spawn_same_server(int listener) { exec_server_with(listener, true, true); }
static void spawn_same_client(int port) { ask_to_the_end(connect_warm(port), 30); }
static void spawn_plain_server(int listener) { exec_server_with(listener, false, true); }
static void spawn_plain_client(int port) { ask_to_the_end(connect_warm(port), 30); }

/* cat by a shell, as socat, inetd and CGI servers do. */
static void shell_server(int listener)
{
    int fd = accept_warm(listener);
    echo_lines(fd, 10);
    pid_t child = MUST(fork());
    if (child == 0) {
        MUST(dup2(fd, 0));
        MUST(dup2(fd, 1));
        execl("/bin/sh", "sh", "-c", "cat", NULL);
        _exit(127);
    }
    MUST(close(fd));
    wait_child(child);
}
static void shell_client(int port)
{
    int fd = connect_warm(port);
    char text[8];
    ask(fd, 30);
    MUST(shutdown(fd, SHUT_WR));
    CALL("read", read(fd, text, 8));
}

/* Each way to exec with a list of arguments, more of them than registers hold. */
static void exec_lists_server(int fd)
{
    char *environment[] = {"WORD=of its own", NULL}, *arguments[] = {"sh", "-c", "echo execveat", NULL};
    echo_lines(fd, 10);
    for (int i = 0; i < 4; i++) {
        pid_t child = MUST(fork());
        if (child == 0) {
            if (i == 0)
                execl("/bin/sh", "sh", "-c", "echo $# $1 $9", "sh", "1", "2", "3", "4", "5", "6", "7", "8", "nine", NULL);
            if (i == 1)
                execle("/bin/sh", "sh", "-c", "echo $# $7 $WORD", "sh", "1", "2", "3", "4", "5", "6", "seven", NULL, environment);
            if (i == 2)
                execlp("sh", "sh", "-c", "echo $# $WORD", NULL);
            execveat(AT_FDCWD, "/bin/sh", arguments, environment, 0);
            _exit(127);
        }
        wait_child(child);
    }
    CALL("execl of nothing", execl("/nowhere", "nowhere", NULL));
    echo_lines(fd, 10);
}
static void exec_lists_client(int fd) { ask(fd, 20); }

/* exec fails, and nothing else has changed: the end of this process is the end of the connection. */
static void exec_fails_server(int fd)
{
    MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
    echo_lines(fd, 10);
    for (int i = 0; i < 3; i++)
        CALL("execl of nothing", execl("/nowhere", "nowhere", NULL));
    echo_lines(fd, 10);
    MUST(close(fd));
    tell(1);
}
static void exec_fails_client(int fd)
{
    char text[8];
    ask(fd, 20);
    CHECK(hear() == 1);
    CALL("read", read(fd, text, 8));
}

/* exec fails again and again while the only other holder closes. If all others were gone in such a moment, there may be an error, but
 * no byte that was taken is lost without one; no other connection is the worse for it. */
enum { FAILING_ROUNDS = 30, FAILING_EXECS = 200 };
static void exec_fails_as_others_close_server(int listener)
{
    int nonsense = MUST(memfd_create("nonsense", MFD_CLOEXEC));
    char *const none[] = {"nonsense", NULL}, byte;
    MUST(write(nonsense, "nonsense", 8));
    MUST(fchmod(nonsense, 0700));
    int before = -1;
    for (int i = 0; i < FAILING_ROUNDS; i++) {
        int fd = accept_warm(listener), pipes[2];
        if (before >= 0)
            MUST(close(before));
        before = fd;
        echo_lines(fd, 20);
        MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
        MUST(pipe(pipes));
        pid_t child = MUST(fork());
        if (child == 0) {
            MUST(read(pipes[0], &byte, 1));
            for (volatile int pause = 0; pause < i * 1000; pause++)
                ;
            close(fd);
            _exit(0);
        }
        MUST(write(pipes[1], "", 1));
        for (int k = 0; k < FAILING_EXECS; k++)
            CHECK(fexecve(nonsense, none, environ) == -1 && errno == ENOEXEC);
        wait_child(child);
        close(pipes[0]);
        close(pipes[1]);
        if (send(fd, "x", 1, MSG_NOSIGNAL) == 1)
            CHECK(read(fd, &byte, 1) != 0);
    }
    MUST(close(before));
}
static void exec_fails_as_others_close_client(int port)
{
    for (int i = 0; i < FAILING_ROUNDS; i++) {
        int fd = connect_warm(port);
        char byte;
        ask(fd, 20);
        if (read(fd, &byte, 1) == 1) {
            CHECK(byte == 'x');
            send(fd, "y", 1, MSG_NOSIGNAL);
        }
        MUST(close(fd));
    }
}

/* A close-on-exec connection ends when its process execs something else. */
static void exec_closes_server(int listener)
{
    int fd = accept_warm(listener);
    pid_t child = MUST(fork());
    if (child == 0) {
        MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
        echo_lines(fd, 10);
        execl("/bin/true", "true", NULL);
        _exit(127);
    }
    MUST(close(fd));
    wait_child(child);
}
static void exec_closes_client(int port) { ask_to_the_end(connect_warm(port), 10); }

/* A vfork child that only execs must leave the parent's connection alone. */
static void vfork_server(int fd)
{
    echo_lines(fd, 10);
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", NULL);
        _exit(127);
    }
    wait_child(child);
    CALL("system", system("exit 3"));
    echo_lines(fd, 10);
}
static void vfork_client(int fd) { ask(fd, 20); }

/* What a peer left that is gone, read by a program that a vfork child became; then by the parent, whose child had the socket for
 * its output and did nothing. */
static void vfork_left_server(int fd)
{
    struct stream stream = {23, 0};
    int ends[2];
    echo_lines(fd, 10);
    CHECK(hear() == 1);
    await_events(fd, POLLRDHUP);
    MUST(pipe2(ends, O_CLOEXEC));
    pid_t child = vfork();
    if (child == 0) {
        dup2(fd, 0);
        dup2(ends[1], 1);
        execl("/bin/cat", "cat", NULL);
        _exit(127);
    }
    MUST(close(ends[1]));
    say("%zu bytes", stream_receive_to_end(&stream, ends[0]));
    wait_child(child);
}
static void vfork_left_client(int fd)
{
    struct stream stream = {23, 0};
    ask(fd, 10);
    stream_send(&stream, fd, 5000, 700);
    MUST(close(fd));
    tell(1);
}
static void vfork_idle_server(int fd)
{
    struct stream stream = {23, 0};
    echo_lines(fd, 10);
    CHECK(hear() == 1);
    await_events(fd, POLLRDHUP);
    pid_t child = vfork();
    if (child == 0) {
        dup2(fd, 1);
        execl("/bin/true", "true", NULL);
        _exit(127);
    }
    wait_child(child);
    CALL("write", write(fd, "x", 1));
    say("%zu bytes", stream_receive_to_end(&stream, fd));
}
static void vfork_idle_client(int fd) { vfork_left_client(fd); }

/* Out-of-band data: one urgent byte beside the stream. */
static void urgent_server(int fd)
{
    char text[32] = "";
    int mark = -1;
    say("%s", events_name(await_events(fd, POLLPRI) & POLLPRI));
    CALL("recv urgent", recv(fd, text, 1, MSG_OOB));
    say("urgent %c", text[0]);
    CALL("recv urgent again", recv(fd, text, 1, MSG_OOB));
    await_unread(fd, 3); /* the kernel counts up to the mark */
    CALL("SIOCATMARK", ioctl(fd, SIOCATMARK, &mark));
    say("mark %d", mark);
    CALL("read stops at the mark", read(fd, text, 32));
    say("%.3s", text);
    CALL("SIOCATMARK", ioctl(fd, SIOCATMARK, &mark));
    say("mark %d", mark);
    CALL("read", read(fd, text, 32));
    say("%.3s", text);
    tell(1);
    struct stream in = {211, 0};
    stream_receive(&in, fd, 100000, 5000);
    say("the stream goes on");
}
static void urgent_client(int fd)
{
    send_text(fd, "abc");
    CALL("send urgent", send(fd, "!", 1, MSG_OOB));
    send_text(fd, "def");
    CHECK(hear() == 1);
    struct stream out = {211, 0};
    stream_send(&out, fd, 100000, 5000);
}
static void urgent_inline_server(int fd)
{
    char text[32] = "";
    int on = 1;
    CALL("inline", setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
    tell(1);
    await_unread(fd, 7);
    size_t n = read_full(fd, text, 7);
    say("%zu: %s", n, text);
}
static void urgent_inline_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "abc");
    CALL("send urgent", send(fd, "!", 1, MSG_OOB));
    send_text(fd, "def");
}

const struct test_case cases[] = {
    RAW_CASE(passed),      RAW_CASE(passed_unread), RAW_CASE(passed_and_closed), RAW_CASE(exec_same), RAW_CASE(exec_plain), RAW_CASE(spawn_same),
    RAW_CASE(spawn_plain), RAW_CASE(shell),         RAW_CASE(exec_closes), CASE(vfork),        CASE(urgent),
    CASE(exec_lists), CASE(exec_fails), RAW_CASE(exec_fails_as_others_close), CASE(vfork_left), CASE(vfork_idle),
    CASE(urgent_inline),   END_OF_CASES,
};
