/* Wake-ups and their delay: clients that sleep at random speak to a server that sleeps at random, over every way of waiting.
 *
 *     soak SECONDS SEED [SLOW_US]
 *
 * Each message carries the time at which it was sent. Printed is how many came, how many of them later than SLOW_US (5000) after
 * both that time and the end of the receiver's own sleep, and the longest delay: a machine that is busy with other things
 * delays some natively, too. A message that never comes ends the program with an error after 20 s. */
#define main common_main
#include "common.c"
#undef main
#include <poll.h>

const struct test_case cases[] = {END_OF_CASES};

enum way { BLOCKING, POLL, SELECT, EPOLL_LEVEL, EPOLL_EDGE, WAYS };
static const char *const names[WAYS] = {"recv", "poll", "select", "epoll", "epoll, edges"};
enum { EACH = 4, LONGEST_MS = 20000 };

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ull + t.tv_nsec / 1000;
}

static void rest(struct rng *rng)
{
    /* Mostly not at all, else for longer than anybody spins. */
    size_t us = between(rng, 0, 3) ? between(rng, 0, 30) : between(rng, 0, 2000);
    struct timespec t = {0, us * 1000};
    nanosleep(&t, NULL);
}

static struct tally {
    _Atomic uint64_t messages[WAYS], late[WAYS], worst[WAYS];
    _Atomic int over;
} *tally;
static uint64_t slow_us = 5000;

struct message {
    uint64_t sent_us;
};

/* Waits for input, in its own way. */
static int set_of(int fd, enum way way)
{
    int set = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN | (way == EPOLL_EDGE ? EPOLLET : 0), .data.fd = fd};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    return set;
}

static void wait_for(int fd, int set, enum way way)
{
    int n = 1;
    if (way == POLL) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        n = poll(&entry, 1, LONGEST_MS);
    } else if (way == SELECT) {
        fd_set reading;
        FD_ZERO(&reading);
        FD_SET(fd, &reading);
        struct timeval limit = {LONGEST_MS / 1000, 0};
        n = select(fd + 1, &reading, NULL, NULL, &limit);
    } else if (way != BLOCKING) {
        struct epoll_event event;
        n = epoll_wait(set, &event, 1, LONGEST_MS);
    }
    if (n != 1)
        die("%s: no news", names[way]);
}

static bool receive(int fd, int set, enum way way, struct message *message)
{
    uint64_t since = now_us();
    for (size_t got = 0; got < sizeof *message;) {
        ssize_t n = recv(fd, (char *)message + got, sizeof *message - got, way == BLOCKING ? 0 : MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN && way == BLOCKING)
            die("recv: nothing came");
        if (n < 0 && errno == EAGAIN) {
            wait_for(fd, set, way);
            continue;
        }
        if (MUST(n) == 0)
            return false;
        got += n;
    }
    uint64_t from = message->sent_us > since ? message->sent_us : since, delay = now_us() - from;
    tally->messages[way]++;
    if (delay > slow_us)
        tally->late[way]++;
    if (delay > tally->worst[way])
        tally->worst[way] = delay;
    return true;
}

struct talk {
    int fd;
    enum way way;
    uint64_t seed;
    bool first;
};

static void *talks(void *argument)
{
    struct talk *t = argument;
    struct rng rng = {t->seed};
    struct timeval limit = {LONGEST_MS / 1000, 0};
    MUST(setsockopt(t->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    int set = t->way >= EPOLL_LEVEL ? set_of(t->fd, t->way) : -1;
    struct message message;
    for (bool speak = t->first;; speak = true) {
        if (speak) {
            rest(&rng);
            if (t->first && tally->over)
                break;
            message.sent_us = now_us();
            write_all(t->fd, &message, sizeof message);
            rest(&rng);
        }
        if (!receive(t->fd, set, t->way, &message))
            break;
    }
    MUST(close(t->fd));
    if (set >= 0)
        MUST(close(set));
    return NULL;
}

/* One server for all: a set of many, served by one thread. */
static void *serves_crowd(void *argument)
{
    int *fds = argument, open = 2 * EACH;
    struct rng rng = {99};
    int set = MUST(epoll_create1(0));
    for (int i = 0; i < open; i++) {
        struct epoll_event event = {.events = EPOLLIN | (i % 2 ? EPOLLET : 0), .data.fd = fds[i]};
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &event));
    }
    while (open > 0) {
        struct epoll_event events[4];
        int n = MUST(epoll_wait(set, events, 4, LONGEST_MS));
        if (n == 0)
            die("the crowd is silent");
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            struct message message;
            ssize_t got;
            while ((got = recv(fd, &message, sizeof message, MSG_DONTWAIT)) == sizeof message) {
                message.sent_us = now_us();
                write_all(fd, &message, sizeof message);
            }
            if (got == 0) {
                MUST(close(fd));
                open--;
            }
        }
        rest(&rng);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    CHECK(argc >= 3);
    int seconds = atoi(argv[1]);
    uint64_t seed = atoll(argv[2]);
    if (argc > 3)
        slow_us = atoll(argv[3]);
    tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tally != MAP_FAILED);
    int listener = listen_on(AF_INET), port = port_of(listener);
    enum { TALKS = WAYS * EACH, CROWD = 2 * EACH };
    pthread_t threads[TALKS + CROWD + 1];
    static struct talk talk[TALKS + CROWD];
    pid_t client = MUST(fork());
    for (int i = 0; i < TALKS + CROWD; i++) {
        /* Both sides of a pair wait in different ways, in all combinations over the seeds. */
        enum way way = (i + (client || i >= TALKS ? 0 : seed)) % WAYS;
        talk[i] = (struct talk){client ? accept_from(listener) : connect_to(AF_INET, port), way, seed * 1000 + 2 * i + !client, !client};
    }
    int crowd[CROWD], n = 0;
    for (int i = 0; i < TALKS + CROWD; i++) {
        if (client && i >= TALKS)
            crowd[i - TALKS] = talk[i].fd;
        else
            threads[n++] = start_thread(talks, &talk[i]);
    }
    if (client)
        threads[n++] = start_thread(serves_crowd, crowd);
    else {
        struct timespec t = {seconds, 0};
        while (nanosleep(&t, &t) < 0 && errno == EINTR)
            ;
        tally->over = 1;
    }
    for (int i = 0; i < n; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    if (!client)
        _exit(0);
    wait_child(client);
    uint64_t messages = 0, late = 0;
    for (int i = 0; i < WAYS; i++) {
        fprintf(stderr, "%-12s %9lu messages, %4lu late, %6lu us at most\n", names[i], tally->messages[i], tally->late[i], tally->worst[i]);
        messages += tally->messages[i];
        late += tally->late[i];
    }
    printf("%lu messages, %lu late\n", messages, late);
    return 0;
}
