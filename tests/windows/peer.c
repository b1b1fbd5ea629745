/* One end of a connection to a program that is not of this suite, such as the Linux program of the same name:
 *
 *     suite peer listen|connect PORT echo|ask|duplex
 *
 * echo gives back what it gets, ask wants it back, duplex sends and receives at once. */
#include "common.h"

enum { TURNS = 2000, DUPLEX = 16 * MIB };

static void echo(SOCKET s)
{
    static char data[65536];
    long long bytes = 0;
    for (int n; (n = (int)MUST(recv(s, data, sizeof data, 0))) > 0; bytes += n)
        send_all(s, data, n);
    say("echoed %lld bytes", bytes);
}

static void ask(SOCKET s)
{
    struct stream out = {1, 0}, in = {1, 0};
    struct rng sizes = {1};
    for (int i = 0; i < TURNS; i++) {
        int n = between(&sizes, 1, 2000);
        stream_send(&out, s, (size_t)n, n);
        stream_receive(&in, s, (size_t)n, n);
    }
    say("%d turns, %llu bytes came back", TURNS, (unsigned long long)in.offset);
    MUST(shutdown(s, SD_SEND));
    say_recv("recv at the end", s, 10, 0);
}

struct half {
    SOCKET s;
    struct stream stream;
};

static void send_half(void *argument)
{
    struct half *half = argument;
    stream_send(&half->stream, half->s, DUPLEX, 100 * KIB);
    MUST(shutdown(half->s, SD_SEND));
}

static void duplex(SOCKET s, bool listens)
{
    struct half out = {s, {listens, 0}};
    struct stream in = {!listens, 0};
    HANDLE sender = start_thread(send_half, &out);
    stream_receive(&in, s, DUPLEX, 70 * KIB);
    join(sender);
    say_recv("recv at the end", s, 10, 0);
    say("16 MiB each way");
}

int peer_main(int argc, char **argv)
{
    CHECK(argc == 5);
    bool listens = !strcmp(argv[2], "listen");
    unsigned short port = (unsigned short)atoi(argv[3]);
    SOCKET s;
    if (listens) {
        struct sockaddr_storage address;
        int length = loopback(AF_INET, port, &address);
        SOCKET listener = stream_socket();
        MUST(bind(listener, (struct sockaddr *)&address, length));
        MUST(listen(listener, 5));
        s = accept_from(listener);
        closesocket(listener);
    } else
        s = connect_to(port);
    warm = true;
    if (!strcmp(argv[4], "duplex")) {
        warm_up(s, !listens);
        duplex(s, listens);
    } else
        (!strcmp(argv[4], "echo") ? echo : ask)(s);
    closesocket(s);
    return 0;
}
