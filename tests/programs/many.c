/* Many connections at once. */
#include "common.h"

#include <sys/resource.h>

enum { MANY = 300, ROUNDS = 12 };

/* An epoll server as event loops write it: non-blocking, edge triggered, output kept until there is room. */
struct peer {
    int fd;
    uint8_t *pending;
    size_t have, sent;
    bool ended;
};

static void serve_peer(struct peer *peer)
{
    for (;;) {
        while (peer->sent < peer->have) {
            ssize_t n = send(peer->fd, peer->pending + peer->sent, peer->have - peer->sent, MSG_NOSIGNAL);
            if (n < 0) {
                CHECK(errno == EAGAIN);
                return;
            }
            peer->sent += n;
        }
        ssize_t n = recv(peer->fd, peer->pending, 4096, 0);
        if (n < 0) {
            CHECK(errno == EAGAIN);
            return;
        }
        peer->have = n;
        peer->sent = 0;
        if (n == 0) {
            peer->ended = true;
            return;
        }
    }
}

static void serve(int listener, unsigned trigger)
{
    int set = MUST(epoll_create1(0)), ended = 0, accepted = 0;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[64];
    set_nonblocking(listener, true);
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, listener, &event));
    while (ended < MANY) {
        int n = MUST(epoll_wait(set, events, 64, -1));
        for (int i = 0; i < n; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!peer) {
                for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0; accepted++) {
                    peer = calloc(1, sizeof *peer);
                    peer->fd = fd;
                    peer->pending = malloc(4096);
                    event = (struct epoll_event){.events = EPOLLIN | (trigger ? EPOLLOUT | trigger : 0), .data.ptr = peer};
                    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
                }
                CHECK(errno == EAGAIN);
                continue;
            }
            serve_peer(peer);
            if (peer->ended) {
                MUST(close(peer->fd));
                free(peer->pending);
                free(peer);
                ended++;
            }
        }
    }
    say("%d accepted, %d ended", accepted, ended);
}

/* All connections speak in every round, in a shuffled order, and all answers are awaited by epoll. */
static void speak(int port)
{
    static struct stream out[MANY], in[MANY];
    static size_t awaited[MANY];
    int fds[MANY], order[MANY], set = MUST(epoll_create1(0));
    struct rng rng = {170};
    uint8_t buffer[3000];
    for (int i = 0; i < MANY; i++) {
        fds[i] = connect_to(AF_INET, port);
        out[i].seed = in[i].seed = i + 1000;
        order[i] = i;
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &event));
    }
    size_t total = 0;
    for (int round = 0; round < ROUNDS; round++) {
        size_t awaited_total = 0;
        for (int i = MANY - 1; i > 0; i--) {
            int j = between(&rng, 0, i), other = order[i];
            order[i] = order[j];
            order[j] = other;
        }
        for (int k = 0; k < MANY; k++) {
            int i = order[k];
            size_t n = between(&rng, 1, sizeof buffer);
            stream_fill(&out[i], buffer, n);
            write_all(fds[i], buffer, n);
            awaited[i] += n;
            awaited_total += n;
        }
        total += awaited_total;
        while (awaited_total) {
            struct epoll_event events[32];
            int n = MUST(epoll_wait(set, events, 32, -1));
            for (int k = 0; k < n; k++) {
                int i = events[k].data.u64;
                ssize_t got = MUST(read(fds[i], buffer, sizeof buffer));
                CHECK(got > 0 && (size_t)got <= awaited[i]);
                stream_check(&in[i], buffer, got);
                awaited[i] -= got;
                awaited_total -= got;
            }
        }
    }
    say("%d rounds of %d connections, %zu bytes came back intact", ROUNDS, MANY, total);
    for (int i = 0; i < MANY; i++)
        MUST(close(fds[i]));
}

static void level_server(int listener) { serve(listener, 0); }
static void level_client(int port) { speak(port); }
static void edge_server(int listener) { serve(listener, EPOLLET); }
static void edge_client(int port) { speak(port); }

/* One after another, each long enough to be promoted: nothing piles up. */
static void in_a_row_server(int listener)
{
    for (int i = 0; i < MANY; i++) {
        int fd = accept_from(listener);
        char text[64];
        for (ssize_t n; (n = MUST(read(fd, text, sizeof text))) > 0;)
            write_all(fd, text, n);
        MUST(close(fd));
    }
    say("%d served, the next descriptor is %d", MANY, (int)MUST(dup(0)) - listener);
}
static void in_a_row_client(int port)
{
    for (int i = 0; i < MANY; i++) {
        int fd = connect_to(AF_INET, port);
        char text[32] = "a message of thirty-two bytes..";
        for (int j = 0; j < 20; j++) {
            write_all(fd, text, sizeof text);
            CHECK(read_full(fd, text, sizeof text) == sizeof text);
        }
        MUST(close(fd));
    }
    say("%d done", MANY);
}

const struct test_case cases[] = {RAW_CASE(level), RAW_CASE(edge), RAW_CASE(in_a_row), END_OF_CASES};
