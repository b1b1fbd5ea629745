/* The way back to TCP, and what happens where both paths meet: unread bytes when a connection is given to stdio, whatever
 * the peer does next; half-closed connections with slow readers; peers that both write before they read. */
#include "common.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

enum { UNREAD = 100 * 1000 };

/* A request, half-closed; an answer larger than all buffers, read slowly; the answerer closes as soon as it has sent. */
enum { ANSWER = 12 * MIB };
static void slow_and_half_closed_server(int fd)
{
    char text[16];
    CHECK(read_full(fd, text, 7) == 7);
    CALL("after the request", read(fd, text, 1));
    stream_send(&(struct stream){101, 0}, fd, ANSWER, MIB);
    MUST(close(fd));
    tell(1);
}
static void slow_and_half_closed_client(int fd)
{
    struct stream in = {101, 0};
    send_text(fd, "request");
    CALL("half-close", shutdown(fd, SHUT_WR));
    /* Nothing is read until the answerer's buffers are full: it waits in its send. */
    for (uint64_t start = now_ms(); now_ms() - start < 150;)
        poll(NULL, 0, 50);
    stream_receive(&in, fd, 3 * MIB, 64 * KIB);
    poll(NULL, 0, 100);
    say("%zu bytes to the end", 3 * MIB + stream_receive_to_end(&in, fd));
    CHECK(hear() == 1);
}

/* Two non-blocking peers write what TCP's buffers take, and read then. */
enum { FIRST = 512 * KIB };
static void write_without_reading(int fd, struct stream *out)
{
    static uint8_t buffer[FIRST];
    size_t done = 0;
    set_nonblocking(fd, true);
    stream_fill(out, buffer, sizeof buffer);
    while (done < sizeof buffer) {
        ssize_t n = write(fd, buffer + done, sizeof buffer - done);
        if (n > 0)
            done += n;
        else if (!(await_events(fd, POLLOUT) & POLLOUT))
            die("no room");
    }
    set_nonblocking(fd, false);
}
static void write_first(int fd)
{
    struct stream out = {102 + is_server(), 0}, in = {102 + !is_server(), 0};
    write_without_reading(fd, &out);
    stream_receive(&in, fd, FIRST, 64 * KIB);
    say("both ways");
    meet();
}
static void both_write_first_server(int fd) { write_first(fd); }
static void both_write_first_client(int fd) { write_first(fd); }

/* One writes first and then the other, on a connection that is just being promoted, and only the second reads: the first is told
 * of unread bytes. */
static void unread_behind_switches_server(int listener)
{
    int fd = accept_from(listener);
    warm_up_n(fd, false, 4);
    CHECK(hear() == 1);
    write_without_reading(fd, &(struct stream){103, 0});
    stream_receive(&(struct stream){102, 0}, fd, FIRST, 64 * KIB);
    tell(2);
    CHECK(hear() == 3);
}
static void unread_behind_switches_client(int port)
{
    int fd = connect_to(AF_INET, port), unread = 0;
    warm_up_n(fd, true, 4);
    write_without_reading(fd, &(struct stream){102, 0});
    tell(1);
    CHECK(hear() == 2);
    for (int tries = 0; !unread && tries < 1000; tries++) {
        MUST(ioctl(fd, FIONREAD, &unread));
        sched_yield();
    }
    say("unread: %s", unread ? "some" : "none");
    stream_receive(&(struct stream){103, 0}, fd, FIRST, 64 * KIB);
    tell(3);
}

/* The receiving side gives the connection to stdio with bytes unread. */
static void read_by_stdio(int fd)
{
    static char buffer[UNREAD];
    struct stream in = {103, 0};
    FILE *file = fdopen(fd, "r");
    CHECK(file);
    size_t n, total = 0;
    while (total < UNREAD && (n = fread(buffer, 1, UNREAD - total, file)) > 0) {
        stream_check(&in, buffer, n);
        total += n;
    }
    say("%zu bytes, error %d", total, ferror(file));
    tell(2);
    CALL("and then", fread(buffer, 1, 1, file));
    say("at the end %d, error %d", feof(file), ferror(file));
}
static void send_unread(int fd)
{
    stream_send(&(struct stream){103, 0}, fd, UNREAD, UNREAD);
}
static void give_server(int fd)
{
    CHECK(hear() == 1);
    read_by_stdio(fd);
}

/* The peer makes no call on the connection until all has been read. */
static void silent_peer_server(int fd) { give_server(fd); }
static void silent_peer_client(int fd)
{
    send_unread(fd);
    tell(1);
    CHECK(hear() == 2);
    MUST(close(fd));
}
static void silent_half_closed_server(int fd) { give_server(fd); }
static void silent_half_closed_client(int fd)
{
    send_unread(fd);
    MUST(shutdown(fd, SHUT_WR));
    tell(1);
    CHECK(hear() == 2);
}
static void closed_peer_server(int fd) { give_server(fd); }
static void closed_peer_client(int fd)
{
    send_unread(fd);
    MUST(close(fd));
    tell(1);
    CHECK(hear() == 2);
}
/* A child that is the only one on the connection ends, before or after it is given away. */
static pid_t only_child(int fd, int (*body)(int), int go[2])
{
    MUST(pipe(go));
    pid_t child = MUST(fork());
    if (child == 0) {
        send_unread(fd);
        MUST(close(go[1]));
        _exit(body(go[0]));
    }
    MUST(close(fd));
    return child;
}
static int at_once(int go)
{
    (void)go;
    return 0;
}
static int when_told(int go)
{
    char byte;
    return read(go, &byte, 1) != 0;
}
static void exited_peer_server(int fd) { give_server(fd); }
static void exited_peer_client(int fd)
{
    int go[2];
    wait_child(only_child(fd, at_once, go));
    tell(1);
    CHECK(hear() == 2);
}
static void peer_exits_later_server(int fd)
{
    await_unread(fd, UNREAD);
    tell(1);
    read_by_stdio(fd);
}
static void peer_exits_later_client(int fd)
{
    int go[2];
    pid_t child = only_child(fd, when_told, go);
    CHECK(hear() == 1);
    CHECK(hear() == 2);
    MUST(close(go[1]));
    wait_child(child);
}

/* Bytes unread on the stream, and behind them in the ring. */
static void given_before_the_switch_server(int fd)
{
    CHECK(hear() == 1);
    read_by_stdio(fd);
}
static void given_before_the_switch_client(int fd)
{
    struct stream out = {103, 0};
    for (int i = 0; i < 100; i++)
        stream_send(&out, fd, UNREAD / 100, UNREAD / 100);
    tell(1);
    CHECK(hear() == 2);
    MUST(close(fd));
}

/* As a shell does it: a copy on descriptor 0, read there, the peer closed long since. */
static void copy_on_stdin_server(int fd)
{
    CHECK(hear() == 1);
    MUST(dup2(fd, 0));
    MUST(close(fd));
    char line[100];
    struct stream in = {103, 0};
    size_t total = 0;
    for (ssize_t n; (n = read(0, line, sizeof line)) > 0; total += n)
        stream_check(&in, line, n);
    say("%zu bytes", total);
}
static void copy_on_stdin_client(int fd)
{
    send_unread(fd);
    MUST(close(fd));
    tell(1);
}

/* The same of a connection whose sending half was shut before: it stays so. */
static void shut_copy_on_stdin_server(int fd)
{
    CHECK(hear() == 1);
    CALL("shutdown", shutdown(fd, SHUT_WR));
    MUST(dup2(fd, 0));
    MUST(close(fd));
    CALL("send", send(0, "x", 1, MSG_NOSIGNAL));
    struct stream in = {103, 0};
    say("%zu bytes", stream_receive_to_end(&in, 0));
}
static void shut_copy_on_stdin_client(int fd) { copy_on_stdin_client(fd); }

/* A reader that pauses long enough for the sender to go over TCP, and then reads on for a long time: most goes through the
 * ring again. */
static void stalled_and_back_server(int fd)
{
    struct stream in = {104, 0};
    poll(NULL, 0, 300);
    stream_receive(&in, fd, 40 * MIB, 256 * KIB);
    meet();
}
static void stalled_and_back_client(int fd)
{
    stream_send(&(struct stream){104, 0}, fd, 40 * MIB, 64 * KIB);
    meet();
}

/* The writer has gone over TCP and comes back, in one breath, while the reader sleeps: what wakes that are bytes on the stream,
 * with more behind them in the ring. It reads a part, and gives the connection away with the rest. One CPU for both, and a
 * reader that does not displace the writer as it wakes, make it so. */
enum { BREATH = 40, SHORT = 100 };
static void share_a_cpu(int policy)
{
    cpu_set_t all, one;
    int first = 0;
    MUST(sched_getaffinity(0, sizeof all, &all));
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    MUST(sched_setaffinity(0, sizeof one, &one));
    MUST(sched_setscheduler(0, policy, &(struct sched_param){0}));
}
static void give_as_it_wakes(int fd, bool polls)
{
    struct stream in = {105, 0};
    CHECK(hear() == 1);
    poll(NULL, 0, 100); /* for the writer to find that nobody reads */
    stream_receive(&in, fd, 4 * MIB, 64 * KIB);
    share_a_cpu(SCHED_BATCH);
    tell(thread_id());
    if (polls)
        await_events(fd, POLLIN);
    stream_receive(&in, fd, SHORT / 2, SHORT / 2);
    FILE *file = fdopen(fd, "r");
    CHECK(file);
    static char rest[BREATH * SHORT];
    size_t n = fread(rest, 1, sizeof rest - SHORT / 2, file);
    stream_check(&in, rest, n);
    say("%zu bytes, error %d", n, ferror(file));
    meet();
}
static void write_as_it_sleeps(int fd)
{
    struct stream out = {105, 0};
    tell(1);
    stream_send(&out, fd, 4 * MIB, 64 * KIB);
    pid_t reader = hear();
    share_a_cpu(SCHED_OTHER);
    await_asleep(reader);
    stream_send(&out, fd, BREATH * SHORT, SHORT);
    meet();
}
static void given_as_it_wakes_server(int fd) { give_as_it_wakes(fd, false); }
static void given_as_it_wakes_client(int fd) { write_as_it_sleeps(fd); }
static void given_as_poll_wakes_server(int fd) { give_as_it_wakes(fd, true); }
static void given_as_poll_wakes_client(int fd) { write_as_it_sleeps(fd); }

/* A reader that takes a little now and then while the writer waits for room, and then nothing until all is written. */
enum { SLOWLY = 20, BIT = 500, MUCH = 900 * 1000 };
static void little_then_nothing_server(int fd)
{
    struct stream in = {106, 0};
    for (int i = 0; i < SLOWLY; i++) {
        stream_receive(&in, fd, BIT, BIT);
        poll(NULL, 0, 5);
    }
    CHECK(hear() == 1);
    stream_receive(&in, fd, MUCH - SLOWLY * BIT, 64 * KIB);
    meet();
}
static void little_then_nothing_client(int fd)
{
    stream_send(&(struct stream){106, 0}, fd, MUCH, 64 * KIB);
    tell(1);
    meet();
}

/* More was sent than a ring holds, and nothing read: a set tells of the room that TCP has, and does not go round for ever. */
static void room_in_set_server(int fd)
{
    struct stream in = {107, 0};
    CHECK(hear() == 1);
    stream_receive(&in, fd, MUCH, 64 * KIB);
    meet();
}
static void room_in_set_client(int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP};
    int set = MUST(epoll_create1(0));
    stream_send(&(struct stream){107, 0}, fd, MUCH, MUCH);
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    long n = CALL("wait", epoll_wait(set, &event, 1, 0));
    say("events %s", n > 0 ? events_name(event.events) : "none");
    tell(1);
    meet();
}

/* A peer that is killed when a non-blocking sender has just found no room for a large message. */
static void refused_then_killed_server(int fd)
{
    static char buffer[60000];
    set_nonblocking(fd, true);
    watch_sigpipe();
    CHECK(hear() == 1);
    while (write(fd, buffer, sizeof buffer) > 0)
        ;
    CHECK(errno == EAGAIN);
    tell(2);
    CHECK(hear() == 3);
    ssize_t n = write(fd, buffer, 2000);
    say("after its death: %s", n > 0 ? "taken" : errno == EPIPE || errno == ECONNRESET ? "an error" : strerror(errno));
    tell(4);
}
static void refused_then_killed_client(int fd)
{
    pid_t child = idle_child();
    MUST(close(fd));
    tell(1);
    CHECK(hear() == 2);
    MUST(kill(child, SIGKILL));
    MUST(waitpid(child, NULL, 0));
    tell(3);
    CHECK(hear() == 4);
}

/* A peer that slept for what we sent, sends more than a ring holds, reads the rest of ours, and is killed: all of its bytes come,
 * and a clean end. */
static void killed_awoken_server(int fd)
{
    char byte;
    struct stream in = {108, 0};
    await_asleep(hear());
    stream_send(&(struct stream){109, 0}, fd, BIT, BIT);
    CHECK(hear() == 2);
    stream_receive(&in, fd, MUCH, 64 * KIB);
    CALL("end", read(fd, &byte, 1));
    tell(3);
}
/* A child that is the only one on the connection does `body`, and is killed. */
static void killed_after(int fd, void (*body)(int))
{
    int done[2];
    char byte;
    MUST(pipe(done));
    pid_t child = MUST(fork());
    if (child == 0) {
        body(fd);
        MUST(close(done[1]));
        for (;;)
            pause();
    }
    MUST(close(fd));
    MUST(close(done[1]));
    CHECK(read(done[0], &byte, 1) == 0);
    MUST(kill(child, SIGKILL));
    MUST(waitpid(child, NULL, 0));
}
static void reads_and_sends_much(int fd)
{
    struct stream in = {109, 0};
    tell(thread_id());
    stream_receive(&in, fd, BIT / 2, BIT / 2);
    stream_send(&(struct stream){108, 0}, fd, MUCH, MUCH);
    stream_receive(&in, fd, BIT / 2, BIT / 2);
}
static void killed_awoken_client(int fd)
{
    killed_after(fd, reads_and_sends_much);
    tell(2);
    CHECK(hear() == 3);
}

/* A peer that has sent more than a ring holds, and is killed as it waits for our end, before or after it saw that. */
static void sends_much_and_reads(int fd)
{
    char byte;
    stream_send(&(struct stream){108, 0}, fd, MUCH, MUCH);
    tell(thread_id());
    if (read(fd, &byte, 1) != 0)
        die("no end");
}
static void read_to_the_end(int fd)
{
    char byte;
    stream_receive(&(struct stream){108, 0}, fd, MUCH, 64 * KIB);
    CALL("end", read(fd, &byte, 1));
    tell(2);
}
static void killed_at_the_end_server(int fd)
{
    await_asleep(hear());
    CALL("shut", shutdown(fd, SHUT_WR));
    CHECK(hear() == 1);
    read_to_the_end(fd);
}
static void killed_at_the_end_client(int fd)
{
    killed_after(fd, sends_much_and_reads);
    tell(1);
    CHECK(hear() == 2);
}
static void killed_before_the_end_server(int fd)
{
    pid_t peer = hear();
    await_asleep(peer);
    MUST(kill(peer, SIGKILL));
    CHECK(hear() == 1);
    CALL("shut", shutdown(fd, SHUT_WR));
    read_to_the_end(fd);
}
static void killed_before_the_end_client(int fd)
{
    killed_after(fd, sends_much_and_reads);
    tell(1);
    CHECK(hear() == 2);
}

/* Both have shut their sending, one over TCP and one in the ring: a poll says that it is all over, whatever is unread. */
static void shut_on_both_paths_server(int fd)
{
    stream_send(&(struct stream){111, 0}, fd, MUCH, MUCH);
    CALL("shut", shutdown(fd, SHUT_WR));
    tell(1);
    CHECK(hear() == 2);
    say("%zu bytes to the end", stream_receive_to_end(&(struct stream){112, 0}, fd));
}
static void shut_on_both_paths_client(int fd)
{
    struct stream in = {111, 0};
    struct pollfd entry = {fd, POLLIN | POLLRDHUP, 0};
    CHECK(hear() == 1);
    stream_send(&(struct stream){112, 0}, fd, BIT, BIT);
    CALL("shut", shutdown(fd, SHUT_WR));
    stream_receive(&in, fd, MUCH - 1, MUCH);
    while (poll(&entry, 1, 1000) == 1 && !(entry.revents & POLLRDHUP))
        sched_yield();
    say("before the last byte: %s", events_name(entry.revents));
    stream_receive(&in, fd, 1, 1);
    CALL("poll", poll(&entry, 1, 1000));
    say("behind it: %s", events_name(entry.revents));
    tell(2);
}

/* Reading is shut with more on its way than the buffers hold: an end is told whenever nothing has arrived, and the rest comes
 * all the same, as the sender's kernel probes. */
enum { ON_ITS_WAY = 300 * 1000, LONG_MS = 10000 };
static void read_on_after_shut_server(int fd)
{
    static char buffer[64 * KIB];
    struct stream in = {110, 0};
    CHECK(hear() == 1);
    CALL("shut", shutdown(fd, SHUT_RD));
    for (uint64_t start = now_ms(); in.offset < ON_ITS_WAY && now_ms() - start < LONG_MS;) {
        ssize_t n = MUST(read(fd, buffer, sizeof buffer));
        stream_check(&in, buffer, n);
        if (n == 0)
            poll(NULL, 0, 5);
    }
    say("%llu bytes", (unsigned long long)in.offset);
    CALL("send", send(fd, "x", 1, MSG_NOSIGNAL));
    CHECK(hear() == 2);
}
static void read_on_after_shut_client(int fd)
{
    char byte;
    stream_send(&(struct stream){110, 0}, fd, ON_ITS_WAY, ON_ITS_WAY);
    tell(1);
    CALL("read", read(fd, &byte, 1));
    tell(2);
}

/* Threads that write small messages on one connection without a lock of their own, against a full ring. */
enum { WRITERS = 8, MESSAGES = 3000, BYTES = 100 };
static int torn_fd;
static void *torn_writer(void *letter)
{
    char message[BYTES];
    memset(message, (char)(intptr_t)letter, sizeof message);
    for (int i = 0; i < MESSAGES; i++)
        if (send(torn_fd, message, sizeof message, 0) != BYTES)
            die("send");
    return NULL;
}
static void torn_server(int fd)
{
    char message[BYTES];
    int counts[WRITERS] = {0}, torn = 0;
    for (int i = 0; i < WRITERS * MESSAGES; i++) {
        CHECK(read_full(fd, message, BYTES) == BYTES);
        for (int k = 1; k < BYTES; k++)
            torn += message[k] != message[0];
        counts[(message[0] - 'a') % WRITERS]++;
    }
    for (int i = 0; i < WRITERS; i++)
        CHECK(torn || counts[i] == MESSAGES);
    say("torn at %d places", torn);
    meet();
}
static void torn_client(int fd)
{
    pthread_t writers[WRITERS];
    torn_fd = fd;
    for (intptr_t i = 0; i < WRITERS; i++)
        writers[i] = start_thread(torn_writer, (void *)('a' + i));
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    meet();
}

/* A writer that polls for room while the reader takes odd amounts: no reading may take the bell that tells of room. */
static void room_in_turns_server(int fd)
{
    static uint8_t buffer[70 * KIB];
    struct stream in = {105, 0};
    struct rng rng = {7};
    for (size_t left = 8 * MIB; left;) {
        size_t want = between(&rng, 1, sizeof buffer);
        ssize_t n = MUST(recv(fd, buffer, want < left ? want : left, 0));
        stream_check(&in, buffer, n);
        left -= n;
    }
    meet();
}
static void room_in_turns_client(int fd)
{
    static uint8_t buffer[64 * KIB];
    struct stream out = {105, 0};
    set_nonblocking(fd, true);
    for (size_t left = 8 * MIB; left;) {
        struct stream ahead = out;
        stream_fill(&ahead, buffer, sizeof buffer);
        ssize_t n = write(fd, buffer, left < sizeof buffer ? left : sizeof buffer);
        if (n > 0)
            left -= n, out.offset += n;
        else if (!(await_events(fd, POLLIN | POLLOUT) & POLLOUT))
            die("no room");
    }
    meet();
}

/* A connection that its own process has shut both ways: its epoll set says so at once. */
static void shut_in_epoll_server(int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    int set = MUST(epoll_create1(0));
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    CALL("shut", shutdown(fd, SHUT_RDWR));
    long n = CALL("wait", epoll_wait(set, &event, 1, 0));
    say("events %s", n > 0 ? events_name(event.events) : "none");
    meet();
}
static void shut_in_epoll_client(int fd)
{
    (void)fd;
    meet();
}

/* A program that confines itself when it is connected, as sshd's children do: the filter knows its own system calls, and
 * kills for others. It goes on talking, closes and ends. */
static void echo(int fd, int count)
{
    char byte;
    for (int i = 0; i < count; i++) {
        CHECK(read(fd, &byte, 1) == 1);
        CHECK(write(fd, &byte, 1) == 1);
    }
}
static void confined_server(int fd)
{
#define KILL_FOR(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        KILL_FOR(SYS_kill),
        KILL_FOR(SYS_openat),
        KILL_FOR(SYS_unlink),
        KILL_FOR(SYS_unlinkat),
        KILL_FOR(SYS_poll),
        KILL_FOR(SYS_ppoll),
        KILL_FOR(SYS_recvfrom),
        KILL_FOR(SYS_sendto),
        KILL_FOR(SYS_sendmsg),
        KILL_FOR(SYS_getsockopt),
        KILL_FOR(SYS_setsockopt),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    echo(fd, 40);
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CALL("confined", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    echo(fd, 40);
    CALL("closed", close(fd));
}
static void confined_client(int fd)
{
    char byte;
    for (int i = 0; i < 80; i++) {
        CHECK(write(fd, "c", 1) == 1);
        CHECK(read(fd, &byte, 1) == 1);
    }
    CALL("at the end", read(fd, &byte, 1));
}

const struct test_case cases[] = {
    CASE(slow_and_half_closed), CASE(both_write_first), CASE(silent_peer), CASE(silent_half_closed), CASE(closed_peer),
    CASE(exited_peer), CASE(peer_exits_later), CASE(given_before_the_switch), CASE(copy_on_stdin), CASE(shut_copy_on_stdin), CASE(stalled_and_back), CASE(given_as_it_wakes), CASE(given_as_poll_wakes),
    CASE(torn), CASE(room_in_turns), CASE(shut_in_epoll), CASE(confined), CASE(little_then_nothing), CASE(room_in_set),
    CASE(refused_then_killed), CASE(killed_awoken), CASE(killed_at_the_end),
    CASE(killed_before_the_end), CASE(shut_on_both_paths), CASE(read_on_after_shut), RAW_CASE(unread_behind_switches),
    END_OF_CASES,
};
