/* Connections that are given to somebody who reads the kernel's stream, when that holds more than the reader's buffer takes, or
 * when there is no byte left but an end to tell, or bytes of both directions are unread. */
#include "common.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

enum { MANY = 300 * 1000, FEW = 700, PIECES = 100 * 2048, LAST = 700 };

/* Reads the connection by stdio: so much, and then the end. */
static void read_by_stdio(int fd, struct stream *in, size_t total)
{
    static char buffer[2 * MANY];
    FILE *file = fdopen(fd, "r");
    CHECK(file);
    size_t n, got = 0;
    while (got < total && (n = fread(buffer, 1, total - got, file)) > 0) {
        stream_check(in, buffer, n);
        got += n;
    }
    say("%zu bytes, error %d", got, ferror(file));
    CALL("and then", fread(buffer, 1, 1, file));
    say("at the end %d, error %d", feof(file), ferror(file));
}

/* Talks until the connection is promoted, with what was sent before still unread: the accepting side has sent MANY bytes, and the
 * other reads FEW of them. */
static int busy_acceptor(int listener, struct stream *out, struct stream *in)
{
    int fd = accept_from(listener);
    stream_send(out, fd, MANY, MANY);
    tell(1);
    CHECK(hear() == 2);
    stream_receive(in, fd, FEW, FEW / 10);
    tell(3);
    CHECK(hear() == 4);
    return fd;
}
static int busy_connector(uint16_t port, struct stream *out, struct stream *in)
{
    int fd = connect_to(AF_INET, port);
    CHECK(hear() == 1);
    stream_receive(in, fd, FEW / 2, FEW);
    stream_send(out, fd, FEW, FEW / 10);
    tell(2);
    CHECK(hear() == 3);
    stream_receive(in, fd, FEW / 2, FEW);
    tell(4);
    return fd;
}

/* The peer has closed, and its kernel has not said so yet: the end waits behind what finds no room. */
static void end_behind_full_buffer_server(int listener)
{
    struct stream out = {1, 0}, in = {2, 0};
    int fd = busy_acceptor(listener, &out, &in);
    MUST(close(fd));
    tell(5);
    CHECK(hear() == 6);
}
static void end_behind_full_buffer_client(int port)
{
    struct stream out = {2, 0}, in = {1, 0};
    int fd = busy_connector(port, &out, &in);
    CHECK(hear() == 5);
    read_by_stdio(fd, &in, MANY - FEW);
    tell(6);
}

/* The same, and the peer's last bytes are behind it in the ring. */
static void ring_behind_full_buffer_server(int listener)
{
    struct stream out = {1, 0}, in = {2, 0};
    int fd = busy_acceptor(listener, &out, &in);
    stream_send(&out, fd, MANY / 3, MANY);
    MUST(close(fd));
    tell(5);
    CHECK(hear() == 6);
}
static void ring_behind_full_buffer_client(int port)
{
    struct stream out = {2, 0}, in = {1, 0};
    int fd = busy_connector(port, &out, &in);
    CHECK(hear() == 5);
    read_by_stdio(fd, &in, MANY + MANY / 3 - FEW);
    tell(6);
}

/* A peer that has sent more than a ring holds and is killed: all of it is on its way. */
static void killed_after_moving_server(int fd)
{
    CHECK(hear() == 1);
    read_by_stdio(fd, &(struct stream){3, 0}, MANY);
    tell(2);
}
static void killed_after_moving_client(int fd)
{
    int sent[2];
    char byte;
    MUST(pipe(sent));
    pid_t child = MUST(fork());
    if (child == 0) {
        stream_send(&(struct stream){3, 0}, fd, MANY, MANY);
        MUST(close(sent[1]));
        for (;;)
            pause();
    }
    MUST(close(fd));
    MUST(close(sent[1]));
    CHECK(read(sent[0], &byte, 1) == 0);
    MUST(kill(child, SIGKILL));
    MUST(waitpid(child, NULL, 0));
    tell(1);
    CHECK(hear() == 2);
}

/* The same, killed after the connection was given away: what finds no room yet still comes. */
static void killed_after_giving_server(int fd)
{
    CHECK(hear() == 1);
    FILE *file = fdopen(fd, "r");
    CHECK(file);
    tell(2);
    CHECK(hear() == 3);
    read_by_stdio(fd, &(struct stream){3, 0}, MANY);
    tell(4);
}
static void killed_after_giving_client(int fd)
{
    int sent[2];
    char byte;
    MUST(pipe(sent));
    pid_t child = MUST(fork());
    if (child == 0) {
        stream_send(&(struct stream){3, 0}, fd, MANY, MANY);
        MUST(close(sent[1]));
        for (;;)
            pause();
    }
    MUST(close(fd));
    MUST(close(sent[1]));
    CHECK(read(sent[0], &byte, 1) == 0);
    tell(1);
    CHECK(hear() == 2);
    MUST(kill(child, SIGKILL));
    MUST(waitpid(child, NULL, 0));
    tell(3);
    CHECK(hear() == 4);
}

/* Not by the C library: to the front, who confines himself is on TCP. */
static void confine(struct sock_filter *filter, size_t length)
{
    struct sock_fprog program = {length, filter};
    long r;
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    __asm__ volatile("syscall"
                     : "=a"(r)
                     : "a"(SYS_seccomp), "D"(SECCOMP_SET_MODE_FILTER), "S"(0), "d"(&program)
                     : "rcx", "r11", "memory");
    CHECK(r == 0);
}

/* The system kills the caller for a send of LAST bytes. */
static void die_of_last_piece(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sendto, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, LAST, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    confine(filter, sizeof filter / sizeof *filter);
}

/* A program under a service's filter, which kills for the calls of a debugger, gives a connection away whose peer is silent for a
 * while: longer than the front waits before it acts for a peer, where it may. */
static void given_under_filter_server(int fd)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_getfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    CHECK(hear() == 1);
    confine(filter, sizeof filter / sizeof *filter);
    tell(2);
    read_by_stdio(fd, &(struct stream){3, 0}, MANY / 10);
}
static void given_under_filter_client(int fd)
{
    char byte;
    stream_send(&(struct stream){3, 0}, fd, MANY / 10, MANY);
    tell(1);
    CHECK(hear() == 2);
    poll(NULL, 0, 100);
    CALL("recv", recv(fd, &byte, 1, MSG_DONTWAIT));
    shutdown(fd, SHUT_WR);
}

/* A peer that dies while it moves what is unread to TCP, which the reader shares with another process as it gives it away: what
 * was moved and what was not are all there. */
static void killed_in_moving_server(int fd)
{
    int over[2];
    char byte;
    MUST(pipe(over));
    CHECK(hear() == 1);
    pid_t child = MUST(fork());
    if (child == 0) {
        MUST(close(over[1]));
        CHECK(read(over[0], &byte, 1) == 0);
        _exit(0);
    }
    read_by_stdio(fd, &(struct stream){3, 0}, PIECES + LAST);
    MUST(close(over[1]));
    wait_child(child);
    tell(2);
}
static void killed_in_moving_client(int fd)
{
    pid_t child = MUST(fork());
    if (child == 0) {
        stream_send(&(struct stream){3, 0}, fd, PIECES + LAST, PIECES);
        die_of_last_piece();
        MUST(dup2(fd, 0));
        kill(getpid(), SIGSYS);
    }
    int status;
    MUST(close(fd));
    MUST(waitpid(child, &status, 0));
    say("killed by signal %d", WTERMSIG(status));
    tell(1);
    CHECK(hear() == 2);
}

/* Both sides have ended their sending, and one does not know of it yet and makes no call. */
static void only_the_end_server(int fd)
{
    char byte;
    CHECK(hear() == 1);
    CALL("end", read(fd, &byte, 1));
    stream_send(&(struct stream){4, 0}, fd, MANY / 10, MANY);
    CALL("shut", shutdown(fd, SHUT_WR));
    tell(2);
    CHECK(hear() == 3);
    CALL("end", read(fd, &byte, 1));
    read_by_stdio(fd, &(struct stream){0, 0}, 0);
    tell(4);
}
static void only_the_end_client(int fd)
{
    CALL("shut", shutdown(fd, SHUT_WR));
    tell(1);
    CHECK(hear() == 2);
    stream_receive(&(struct stream){4, 0}, fd, MANY / 10, MANY);
    tell(3);
    CHECK(hear() == 4);
}

/* Shut both ways with bytes unread: those are read, and nothing can be sent. */
static void shut_and_given_server(int fd)
{
    await_unread(fd, MANY / 10);
    CALL("shut", shutdown(fd, SHUT_RDWR));
    FILE *file = fdopen(fd, "r");
    CHECK(file);
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    read_by_stdio(fd, &(struct stream){5, 0}, MANY / 10);
    tell(1);
}
static void shut_and_given_client(int fd)
{
    stream_send(&(struct stream){5, 0}, fd, MANY / 10, MANY);
    CHECK(hear() == 1);
}

/* A small send buffer, and more unread than it takes: who gives the connection away and makes no other call has sent it all. */
static void rest_is_sent_server(int fd)
{
    CHECK(hear() == 1);
    stream_receive(&(struct stream){7, 0}, fd, 53353, 53353);
    tell(2);
}
static void rest_is_sent_client(int fd)
{
    MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){12378}, sizeof(int)));
    stream_send(&(struct stream){7, 0}, fd, 53353, 53353);
    give_back(fd);
    tell(1);
    CHECK(hear() == 2);
}

/* Polls for bytes while the other side gives the connection away: there is nothing to read. */
static void polled_and_given_server(int fd)
{
    char byte;
    struct pollfd entry = {fd, POLLIN, 0};
    stream_send(&(struct stream){6, 0}, fd, FEW, FEW);
    tell(thread_id());
    CALL("poll", poll(&entry, 1, -1));
    CALL("read", recv(fd, &byte, 1, MSG_DONTWAIT));
    MUST(close(fd));
    tell(1);
}
static void polled_and_given_client(int fd)
{
    pid_t other = hear();
    await_asleep(other);
    FILE *file = fdopen(fd, "r");
    CHECK(file);
    await_asleep(other);
    send_text(fd, "x");
    CHECK(hear() == 1);
    read_by_stdio(fd, &(struct stream){6, 0}, FEW);
}

/* Both sides give it away, with bytes unread of both directions, of one also in the ring. */
static void given_by_both_server(int listener)
{
    struct stream out = {1, 0}, in = {2, 0};
    int fd = busy_acceptor(listener, &out, &in);
    CHECK(hear() == 5);
    FILE *file = fdopen(fd, "r");
    CHECK(file);
    tell(6);
    CHECK(hear() == 7);
    stream_receive(&in, fd, 3 * FEW, FEW);
    MUST(close(fd));
    tell(8);
}
static void given_by_both_client(int port)
{
    struct stream out = {2, 0}, in = {1, 0};
    int fd = busy_connector(port, &out, &in);
    stream_send(&out, fd, FEW, FEW);
    stream_send(&out, fd, FEW, FEW);
    tell(5);
    CHECK(hear() == 6);
    MUST(dup2(fd, 0));
    stream_send(&out, fd, FEW, FEW);
    tell(7);
    CHECK(hear() == 8);
    stream_receive(&in, 0, MANY - FEW, 64 * KIB);
    char byte;
    CALL("end", read(0, &byte, 1));
}

/* The peer has sent more than a ring holds and shut both ways: a byte for it would reset the connection. */
static void shut_by_peer_and_given_server(int fd)
{
    CHECK(hear() == 1);
    read_by_stdio(fd, &(struct stream){7, 0}, MANY);
    tell(2);
}
static void shut_by_peer_and_given_client(int fd)
{
    char byte;
    stream_send(&(struct stream){7, 0}, fd, MANY, MANY);
    CALL("shut", shutdown(fd, SHUT_RDWR));
    tell(1);
    CHECK(hear() == 2);
    CALL("end", read(fd, &byte, 1));
}

/* A reader that sleeps while the direction comes back to the ring, is woken by the payload before that, and reads a part of it: the
 * doorbell lies behind the rest. Then the peer has gone back to TCP, and has closed. */
enum { MESSAGES = 16 };
static void left_behind_bell(int fd, bool to_several)
{
    struct stream in = {8, 0};
    int held[2];
    char byte;
    CHECK(hear() == 1);
    stream_receive(&in, fd, MANY, MANY);
    tell(thread_id());
    stream_receive(&in, fd, FEW / 10, FEW / 10);
    CHECK(hear() == 2);
    MUST(pipe(held));
    pid_t child = to_several ? MUST(fork()) : 0;
    if (to_several && child == 0) {
        MUST(close(held[1]));
        _exit(read(held[0], &byte, 1) != 0);
    }
    read_by_stdio(fd, &in, (MESSAGES + 1) * FEW - FEW / 10);
    MUST(close(held[1]));
    if (to_several)
        wait_child(child);
    tell(3);
}
static void leave_behind_bell(int fd)
{
    struct stream out = {8, 0};
    stream_send(&out, fd, MANY, MANY);
    tell(1);
    pid_t reader = hear();
    await_asleep(reader);
    MUST(kill(reader, SIGSTOP));
    for (int i = 0; i < MESSAGES; i++)
        stream_send(&out, fd, FEW, FEW);
    FILE *file = fdopen(fd, "w");
    CHECK(file);
    stream_send(&out, fd, FEW, FEW);
    MUST(fclose(file));
    MUST(kill(reader, SIGCONT));
    tell(2);
    CHECK(hear() == 3);
}
static void left_to_one_server(int fd) { left_behind_bell(fd, false); }
static void left_to_one_client(int fd) { leave_behind_bell(fd); }
static void left_to_several_server(int fd) { left_behind_bell(fd, true); }
static void left_to_several_client(int fd) { leave_behind_bell(fd); }

/* The peer has sent more than a ring holds and shut its reading as well, in two calls or in one, with bytes of ours unread: giving the
 * connection away moves those, and neither direction loses any. */
static void moved_to_shut_server(int fd)
{
    stream_send(&(struct stream){9, 0}, fd, MANY / 30, MANY);
    tell(1);
    CHECK(hear() == 2);
    read_by_stdio(fd, &(struct stream){10, 0}, MANY);
    tell(3);
}
static void send_and_shut(int fd, bool at_once)
{
    CHECK(hear() == 1);
    stream_send(&(struct stream){10, 0}, fd, MANY, MANY);
    if (!at_once)
        CALL("shut", shutdown(fd, SHUT_RD));
    CALL("shut", shutdown(fd, at_once ? SHUT_RDWR : SHUT_WR));
    tell(2);
    CHECK(hear() == 3);
    say("%zu bytes to the end", stream_receive_to_end(&(struct stream){9, 0}, fd));
}
static void moved_to_shut_client(int fd) { send_and_shut(fd, true); }
static void moved_to_shut_twice_server(int fd) { moved_to_shut_server(fd); }
static void moved_to_shut_twice_client(int fd) { send_and_shut(fd, false); }

/* Reading is shut with bytes of before the switch still on their way: what ends then is no fault, and this side goes on sending. */
static void shut_before_the_switch_server(int listener)
{
    struct stream out = {1, 0}, in = {2, 0};
    int fd = busy_acceptor(listener, &out, &in);
    stream_send(&out, fd, FEW, FEW);
    tell(5);
    stream_receive(&in, fd, FEW, FEW);
    tell(6);
}
static void shut_before_the_switch_client(int port)
{
    static char buffer[64 * KIB];
    struct stream out = {2, 0}, in = {1, 0};
    int fd = busy_connector(port, &out, &in);
    CHECK(hear() == 5);
    CALL("shut", shutdown(fd, SHUT_RD));
    for (ssize_t n; (n = MUST(read(fd, buffer, sizeof buffer))) > 0;)
        stream_check(&in, buffer, n);
    stream_send(&out, fd, FEW, FEW);
    CHECK(hear() == 6);
}

/* It goes into a message and is closed here with bytes unread: who got it reads them, and the peer sees a clean end. */
static void pass_fd(int through, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct msghdr message = {.msg_iov = &(struct iovec){"f", 1}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    *CMSG_FIRSTHDR(&message) = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &fd, sizeof fd);
    CHECK(sendmsg(through, &message, 0) == 1);
}
static int take_fd(int through)
{
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct msghdr message = {.msg_iov = &(struct iovec){&byte, 1}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int fd;
    CHECK(recvmsg(through, &message, 0) == 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}
static void passed_and_closed_server(int listener)
{
    struct stream out = {1, 0}, in = {2, 0};
    char byte;
    int fd = busy_acceptor(listener, &out, &in);
    stream_receive(&in, fd, FEW, FEW);
    tell(5);
    CHECK(hear() == 6);
    CALL("end", read(fd, &byte, 1));
    tell(7);
}
static void passed_and_closed_client(int port)
{
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    pid_t child = MUST(fork());
    if (child == 0) {
        struct stream in = {1, FEW};
        MUST(close(pair[0]));
        int fd = take_fd(pair[1]);
        stream_receive(&in, fd, MANY - FEW, 64 * KIB);
        _exit(0);
    }
    struct stream out = {2, 0}, in = {1, 0};
    int fd = busy_connector(port, &out, &in);
    stream_send(&out, fd, FEW, FEW);
    CHECK(hear() == 5);
    pass_fd(pair[0], fd);
    MUST(close(fd));
    wait_child(child);
    tell(6);
    CHECK(hear() == 7);
}

/* The peer has closed with bytes unread: who is given the connection after that hears of the reset. */
static void close_unread(int fd)
{
    await_unread(fd, 8);
    MUST(close(fd));
    tell(1);
}
static void hear_of_reset(int fd)
{
    char text[8];
    CALL("read", read(fd, text, 8));
    CALL("read again", read(fd, text, 8));
}
static void passed_after_reset_server(int listener)
{
    close_unread(accept_warm(listener));
}
static void passed_after_reset_client(int port)
{
    int pair[2], fd = connect_warm(port);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    send_text(fd, "unread..");
    CHECK(hear() == 1);
    await_events(fd, POLLERR);
    pass_fd(pair[0], fd);
    MUST(close(fd));
    hear_of_reset(take_fd(pair[1]));
}
static void input_after_reset_server(int listener)
{
    close_unread(accept_warm(listener));
}
static void input_after_reset_client(int port)
{
    int fd = connect_warm(port);
    send_text(fd, "unread..");
    CHECK(hear() == 1);
    await_events(fd, POLLERR);
    MUST(dup2(fd, 0));
    MUST(close(fd));
    hear_of_reset(0);
}

const struct test_case cases[] = {
    RAW_CASE(end_behind_full_buffer), RAW_CASE(ring_behind_full_buffer), CASE(killed_after_moving), CASE(killed_after_giving),
    CASE(given_under_filter), CASE(killed_in_moving),
    CASE(only_the_end), CASE(shut_and_given), CASE(rest_is_sent), CASE(polled_and_given), RAW_CASE(given_by_both), RAW_CASE(passed_and_closed),
    CASE(shut_by_peer_and_given), CASE(left_to_one), CASE(left_to_several),
    CASE(moved_to_shut), CASE(moved_to_shut_twice), RAW_CASE(shut_before_the_switch), RAW_CASE(passed_after_reset), RAW_CASE(input_after_reset),
    END_OF_CASES,
};
