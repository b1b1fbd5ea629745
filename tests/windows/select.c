/* select and WSAPoll: over one socket, hundreds, mixed ones; time-outs, errors, exceptions. */
#define FD_SETSIZE 600
#include "common.h"

static __thread fd_set reads, writes, excepts;

static void zero(void)
{
    FD_ZERO(&reads);
    FD_ZERO(&writes);
    FD_ZERO(&excepts);
}

/* One look at a socket in all three sets. */
static void say_ready(const char *what, SOCKET s)
{
    struct timeval none = {0, 0};
    zero();
    FD_SET(s, &reads);
    FD_SET(s, &writes);
    FD_SET(s, &excepts);
    int n = select(0, &reads, &writes, &excepts, &none);
    say("%s: %d%s%s%s (%u %u %u)", what, n, FD_ISSET(s, &reads) ? " read" : "", FD_ISSET(s, &writes) ? " write" : "",
        FD_ISSET(s, &excepts) ? " except" : "", reads.fd_count, writes.fd_count, excepts.fd_count);
}

static void select_states_server(SOCKET s)
{
    hear();
    send_text(s, "x");
    hear();
    MUST(shutdown(s, SD_SEND));
    hear();
    meet();
}
static void select_states_client(SOCKET s)
{
    char byte;
    say_ready("idle", s);
    tell(0);
    await_readable(s);
    say_ready("a byte", s);
    MUST(recv(s, &byte, 1, MSG_PEEK));
    say_ready("a byte, peeked at", s);
    MUST(recv(s, &byte, 1, 0));
    say_ready("read", s);
    tell(0);
    await_readable(s);
    say_ready("the end", s);
    CALL("recv", recv(s, &byte, 1, 0));
    say_ready("the end again", s);
    tell(0);
    MUST(shutdown(s, SD_SEND));
    say_ready("shut", s);
    meet();
}

static void select_reset_server(SOCKET s)
{
    struct linger at_once = {1, 0};
    hear();
    MUST(setsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&at_once, sizeof at_once));
    MUST(closesocket(s));
}
static void select_reset_client(SOCKET s)
{
    char byte;
    tell(0);
    await_readable(s);
    say_ready("reset", s);
    CALL("recv", recv(s, &byte, 1, 0));
    say_ready("after recv", s);
}

/* A set of FD_SETs with nothing in it, no set at all, bad members. */
static void select_errors_server(SOCKET s)
{
    UNUSED(s);
    meet();
}
static void select_errors_client(SOCKET s)
{
    struct timeval none = {0, 0}, strange = {0, -1};
    zero();
    CALL("no sets", select(0, NULL, NULL, NULL, &none));
    CALL("empty sets", select(0, &reads, &writes, &excepts, &none));
    FD_SET(s, &writes);
    CALL("a strange time", select(0, NULL, &writes, NULL, &strange));
    zero();
    SOCKET gone = stream_socket();
    MUST(closesocket(gone));
    FD_SET(s, &reads);
    FD_SET(gone, &reads);
    CALL("a closed member", select(0, &reads, NULL, NULL, &none));
    zero();
    FD_SET(gone, &reads);
    CALL("only a closed member", select(0, &reads, NULL, NULL, &none));
    zero();
    FD_SET(s, &writes);
    CALL("nfds says nothing", select(-5, NULL, &writes, NULL, NULL));
    zero();
    FD_SET(s, &reads);
    FD_SET(s, &writes);
    CALL("one of two sets", select(0, &reads, &writes, NULL, &none));
    say("members left: %u %u", reads.fd_count, writes.fd_count);
    /* FD_SET keeps members once; a program that fills the array itself may name one twice. */
    writes.fd_array[0] = writes.fd_array[1] = s;
    writes.fd_count = 2;
    CALL("a member twice", select(0, NULL, &writes, NULL, &none));
    meet();
}

static void select_times_server(SOCKET s)
{
    UNUSED(s);
    meet();
}
static void select_times_client(SOCKET s)
{
    static const struct timeval times[] = {{0, 0}, {0, 1}, {0, 50000}, {0, 999999}, {1, 100000}};
    for (int i = 0; i < COUNT(times); i++) {
        struct timeval limit = times[i];
        ULONGLONG start = GetTickCount64(), least = (ULONGLONG)times[i].tv_sec * 1000 + (ULONGLONG)times[i].tv_usec / 1000;
        zero();
        FD_SET(s, &reads);
        int n = select(0, &reads, NULL, NULL, &limit);
        ULONGLONG took = GetTickCount64() - start;
        /* The tick is 16 ms coarse; late is a matter of the machine. */
        say("select = %d, %s, members left %u, time untouched: %d", n, took + 17 >= least ? "not early" : "EARLY", reads.fd_count,
            limit.tv_sec == times[i].tv_sec && limit.tv_usec == times[i].tv_usec);
    }
    meet();
}

/* A select that waits for ever, woken by each kind of event. */
static void select_wakes_server(SOCKET s)
{
    for (int i = 0; i < 5; i++) {
        hear();
        let_it_block();
        send_text(s, "x");
    }
    hear();
    let_it_block();
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void select_wakes_client(SOCKET s)
{
    char byte;
    for (int i = 0; i < 6; i++) {
        zero();
        FD_SET(s, &reads);
        tell(0);
        CALL("select", select(0, &reads, NULL, NULL, NULL));
        CALL("recv", recv(s, &byte, 1, 0));
    }
    meet();
}

/* Many connections between the same two processes, each with traffic of its own, served by one select. */
enum { MANY = 300, TURNS = 12, BYTES = 100 };
static void many_connections_server(SOCKET listener)
{
    static SOCKET all[MANY];
    int open = 0, accepted = 0;
    long long bytes = 0;
    while (accepted < MANY || open) {
        zero();
        if (accepted < MANY)
            FD_SET(listener, &reads);
        for (int i = 0; i < accepted; i++)
            if (all[i] != INVALID_SOCKET)
                FD_SET(all[i], &reads);
        CHECK(select(0, &reads, NULL, NULL, NULL) > 0);
        if (FD_ISSET(listener, &reads)) {
            all[accepted++] = accept_from(listener);
            open++;
        }
        for (u_int i = 0; i < reads.fd_count; i++) {
            char data[1000];
            SOCKET s = reads.fd_array[i];
            if (s == listener)
                continue;
            int n = (int)MUST(recv(s, data, sizeof data, 0));
            bytes += n;
            if (n) {
                send_all(s, data, n);
                continue;
            }
            MUST(closesocket(s));
            open--;
            for (int k = 0; k < accepted; k++)
                if (all[k] == s)
                    all[k] = INVALID_SOCKET;
        }
    }
    say("%lld bytes of %d connections", bytes, accepted);
}
static void many_connections_client(SOCKET port)
{
    static SOCKET all[MANY];
    struct stream in[MANY];
    int open = MANY;
    char data[BYTES];
    for (int i = 0; i < MANY; i++) {
        struct stream out = {(uint64_t)i, 0};
        all[i] = connect_to((unsigned short)port);
        in[i] = (struct stream){(uint64_t)i, 0};
        stream_send(&out, all[i], BYTES, BYTES);
    }
    while (open) {
        zero();
        for (int i = 0; i < MANY; i++)
            if (all[i] != INVALID_SOCKET)
                FD_SET(all[i], &reads);
        CHECK(select(0, &reads, NULL, NULL, NULL) > 0);
        for (int i = 0; i < MANY; i++) {
            if (all[i] == INVALID_SOCKET || !FD_ISSET(all[i], &reads))
                continue;
            int n = (int)MUST(recv(all[i], data, (int)(BYTES - in[i].offset % BYTES), 0));
            CHECK(n > 0);
            stream_check(&in[i], data, (size_t)n);
            if (in[i].offset == TURNS * BYTES) {
                MUST(closesocket(all[i]));
                all[i] = INVALID_SOCKET;
                open--;
            } else if (in[i].offset % BYTES == 0) {
                struct stream out = in[i];
                stream_fill(&out, data, BYTES);
                send_all(all[i], data, BYTES);
            }
        }
    }
    say("%d connections, %d turns each", MANY, TURNS);
}

/* One select over all kinds of sockets: an unconnected one, a listener, UDP, warm and fresh connections. */
static void mixed_sockets_server(SOCKET listener)
{
    SOCKET first = accept_warm(listener), second = accept_from(listener);
    hear();
    send_text(second, "b");
    hear();
    send_text(first, "a");
    hear();
    closesocket(first);
    closesocket(second);
    meet();
}
static void mixed_sockets_client(SOCKET port)
{
    enum { UDP, LISTENER, WARM, FRESH, ALL };
    static const char *const names[] = {"udp", "listener", "warm", "fresh"};
    struct sockaddr_storage address;
    SOCKET s[ALL] = {(SOCKET)MUST(socket(family, SOCK_DGRAM, 0)), listen_on(), connect_warm((unsigned short)port), 0};
    s[FRESH] = connect_to((unsigned short)port);
    int length = loopback(family, 0, &address);
    MUST(bind(s[UDP], (struct sockaddr *)&address, length));
    MUST(getsockname(s[UDP], (struct sockaddr *)&address, &length));
    for (int round = 0; round < 5; round++) {
        struct timeval none = {0, 0};
        SOCKET other = INVALID_SOCKET;
        if (round == 1)
            MUST(sendto(s[UDP], "u", 1, 0, (struct sockaddr *)&address, length));
        else if (round == 2)
            other = connect_to(port_of(s[LISTENER]));
        else if (round)
            tell(0);
        zero();
        for (int i = 0; i < ALL; i++)
            FD_SET(s[i], &reads);
        int n = select(0, &reads, NULL, NULL, round ? NULL : &none);
        say("round %d: %d", round, n);
        for (int i = 0; i < ALL; i++)
            if (FD_ISSET(s[i], &reads) && n > 0) {
                char byte = '-';
                if (i == LISTENER)
                    MUST(closesocket(accept_from(s[i])));
                else
                    MUST(recv(s[i], &byte, 1, 0));
                say("%s %c", names[i], byte);
            }
        if (other != INVALID_SOCKET)
            closesocket(other);
    }
    tell(0);
    for (int i = 0; i < ALL; i++)
        closesocket(s[i]);
    meet();
}

/* Non-blocking connects: the one that works becomes writable, the refused one shows as an exception. */
static void connecting_solo(SOCKET unused)
{
    UNUSED(unused);
    struct sockaddr_storage address;
    SOCKET listener = listen_on(), works = stream_socket(), refused = stream_socket();
    SOCKET closed = listen_on();
    unsigned short nobody = port_of(closed);
    MUST(closesocket(closed));
    set_nonblocking(works, true);
    set_nonblocking(refused, true);
    say_ready("unconnected", works);
    int length = loopback(family, port_of(listener), &address);
    CALL("connect", connect(works, (struct sockaddr *)&address, length));
    zero();
    FD_SET(works, &writes);
    FD_SET(works, &excepts);
    CALL("select", select(0, NULL, &writes, &excepts, NULL));
    say_ready("connected", works);
    CALL("connect again", connect(works, (struct sockaddr *)&address, length));
    say_ready("listener", listener);
    closesocket(accept_from(listener));
    say_ready("listener without", listener);
    length = loopback(family, nobody, &address);
    CALL("connect", connect(refused, (struct sockaddr *)&address, length));
    zero();
    FD_SET(refused, &writes);
    FD_SET(refused, &excepts);
    CALL("select", select(0, NULL, &writes, &excepts, NULL));
    say("writes %u, exceptions %u", writes.fd_count, excepts.fd_count);
    int error = 0;
    length = sizeof error;
    MUST(getsockopt(refused, SOL_SOCKET, SO_ERROR, (char *)&error, &length));
    say("SO_ERROR %s", error_name(error));
    MUST(getsockopt(refused, SOL_SOCKET, SO_ERROR, (char *)&error, &length));
    say("SO_ERROR again %s", error_name(error));
    closesocket(works);
    closesocket(refused);
    closesocket(listener);
}

static void say_poll(const char *what, SOCKET s, short events, int limit)
{
    WSAPOLLFD entry = {s, events, 0x7777};
    WSASetLastError(0);
    int n = WSAPoll(&entry, 1, limit), error = WSAGetLastError();
    say("%s: %d %s %s", what, n, n < 0 ? error_name(error) : "", poll_name(entry.revents));
}

static void poll_states_server(SOCKET s)
{
    hear();
    send_text(s, "x");
    hear();
    let_it_block();
    send_text(s, "y");
    hear();
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void poll_states_client(SOCKET s)
{
    char byte;
    say_poll("idle", s, POLLIN | POLLOUT, 0);
    say_poll("idle, in", s, POLLIN, 0);
    say_poll("idle, nothing asked", s, 0, 0);
    say_poll("idle, 30 ms", s, POLLRDNORM, 30);
    tell(0);
    await_readable(s);
    say_poll("a byte", s, POLLIN | POLLOUT, -1);
    say_poll("a byte, normal in", s, POLLRDNORM, -1);
    MUST(recv(s, &byte, 1, 0));
    say_poll("read", s, POLLIN | POLLOUT, 0);
    tell(0);
    say_poll("waiting", s, POLLIN, -1);
    MUST(recv(s, &byte, 1, 0));
    tell(0);
    await_readable(s);
    say_poll("the end", s, POLLIN | POLLOUT, -1);
    say_poll("the end, nothing asked", s, 0, 100);
    CALL("recv", recv(s, &byte, 1, 0));
    meet();
}

static void poll_many_server(SOCKET s)
{
    hear();
    send_text(s, "z");
    meet();
}
static void poll_many_client(SOCKET s)
{
    SOCKET listener = listen_on(), fresh = stream_socket();
    SOCKET udp = (SOCKET)MUST(socket(family, SOCK_DGRAM, 0));
    WSAPOLLFD all[] = {{s, POLLIN, 1}, {listener, POLLIN, 1}, {fresh, POLLIN | POLLOUT, 1}, {udp, POLLOUT, 1}, {INVALID_SOCKET, POLLIN, 1}};
    for (int round = 0; round < 2; round++) {
        CALL("WSAPoll", WSAPoll(all, COUNT(all), 0));
        for (int i = 0; i < COUNT(all); i++)
            say("  %d: %s", i, poll_name(all[i].revents));
        if (round == 0) {
            tell(0);
            await_readable(s);
        }
    }
    CALL("WSAPoll of none", WSAPoll(all, 0, 0));
    CALL("WSAPoll of nowhere", WSAPoll(NULL, 1, 0));
    closesocket(listener);
    closesocket(fresh);
    closesocket(udp);
    meet();
}

static void poll_reset_server(SOCKET s)
{
    select_reset_server(s);
}
static void poll_reset_client(SOCKET s)
{
    char byte;
    tell(0);
    await_readable(s);
    say_poll("reset", s, POLLIN | POLLOUT, 0);
    CALL("recv", recv(s, &byte, 1, 0));
}

/* One set for several questions. */
static void say_one_set(const char *what, SOCKET s, SOCKET other, bool write, bool except)
{
    struct timeval at_once = {0, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(s, &set);
    FD_SET(other, &set);
    CALL(what, select(0, &set, write ? &set : NULL, except ? &set : NULL, &at_once));
    say("%u in it: %d %d", set.fd_count, FD_ISSET(s, &set), FD_ISSET(other, &set));
}
static void one_set_server(SOCKET s)
{
    hear();
    send_text(s, "x");
    meet();
}
static void one_set_client(SOCKET s)
{
    SOCKET listener = listen_on();
    say_one_set("to write", s, listener, true, false);
    say_one_set("errors alone", s, listener, false, true);
    tell(0);
    await_readable(s);
    say_one_set("both", s, listener, true, false);
    say_one_set("to read", s, listener, false, true);
    say_one_set("all", listener, s, true, true);
    closesocket(listener);
    meet();
}

const struct test_case select_cases[] = {
    CASE(select_states),     CASE(select_reset), CASE(select_errors),  CASE(select_times), CASE(select_wakes), RAW_CASE(many_connections),
    RAW_CASE(mixed_sockets), SOLO_CASE(connecting), CASE(poll_states), CASE(poll_many),    CASE(poll_reset), CASE(one_set),   END_OF_CASES,
};
