/* One end of a connection to a Windows program: the Linux side of `suite peer` (tests/windows/peer.c).
 *
 *     peer listen|connect PORT echo|ask|duplex */
#define main common_main
#include "common.c"
#undef main

const struct test_case cases[] = {END_OF_CASES};
enum { TURNS = 2000, DUPLEX = 16 * MIB };

static void echo(int fd)
{
    static uint8_t data[65536];
    long long bytes = 0;
    for (ssize_t n; (n = MUST(read(fd, data, sizeof data))) > 0; bytes += n)
        write_all(fd, data, n);
    say("echoed %lld bytes", bytes);
}

static void ask(int fd)
{
    struct stream out = {1, 0}, in = {1, 0};
    struct rng sizes = {1};
    for (int i = 0; i < TURNS; i++) {
        size_t n = between(&sizes, 1, 2000);
        stream_send(&out, fd, n, n);
        stream_receive(&in, fd, n, n);
    }
    say("%d turns, %llu bytes came back", TURNS, (unsigned long long)in.offset);
    MUST(shutdown(fd, SHUT_WR));
    char byte;
    CALL("recv at the end", read(fd, &byte, 1));
}

struct half {
    int fd;
    struct stream stream;
};

static void *send_half(void *argument)
{
    struct half *half = argument;
    stream_send(&half->stream, half->fd, DUPLEX, 100 * KIB);
    MUST(shutdown(half->fd, SHUT_WR));
    return NULL;
}

static void duplex(int fd, bool listens)
{
    struct half out = {fd, {listens, 0}};
    struct stream in = {!listens, 0};
    pthread_t sender = start_thread(send_half, &out);
    char byte;
    stream_receive(&in, fd, DUPLEX, 70 * KIB);
    pthread_join(sender, NULL);
    CALL("recv at the end", read(fd, &byte, 1));
    say("16 MiB each way");
}

/* As the suite's: 20 round trips of 4 KiB. */
static void warm_up_as_the_suite(int fd, bool first)
{
    struct stream out = {first, 0}, in = {!first, 0};
    for (int i = 0; i < 20; i++) {
        if (first)
            stream_send(&out, fd, 4 * KIB, 4 * KIB);
        stream_receive(&in, fd, 4 * KIB, 4 * KIB);
        if (!first)
            stream_send(&out, fd, 4 * KIB, 4 * KIB);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    bool listens = !strcmp(argv[1], "listen");
    int fd;
    if (listens) {
        int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
        struct sockaddr_storage address;
        socklen_t length = loopback(AF_INET, atoi(argv[2]), &address);
        MUST(bind(listener, (struct sockaddr *)&address, length));
        MUST(listen(listener, 5));
        fd = accept_from(listener);
        close(listener);
    } else
        fd = connect_to(AF_INET, atoi(argv[2]));
    if (!strcmp(argv[3], "duplex")) {
        warm_up_as_the_suite(fd, !listens);
        duplex(fd, listens);
    } else
        (!strcmp(argv[3], "echo") ? echo : ask)(fd);
    close(fd);
    return 0;
}
