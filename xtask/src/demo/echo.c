/* A server that sends back what it gets, and a client that counts round trips: the same text for both systems, in the
 * blocking calls that every socket book begins with. It knows nothing of Sockets-GM.
 *
 *     echo server PORT             says "ready", serves one connection, then ends
 *     echo client PORT SECONDS     prints the round trips per second of 64-byte messages */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <winsock2.h>
static double now(void)
{
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / per_second.QuadPart;
}
#else
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
typedef int SOCKET;
enum { INVALID_SOCKET = -1 };
#define closesocket close
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
#endif

enum { BYTES = 64, WARM_UP = 200, SLICE = 100 };

static void fail(const char *what)
{
    fprintf(stderr, "echo: %s failed\n", what);
    exit(1);
}

static SOCKET tcp(void)
{
    SOCKET s = socket(AF_INET, SOCK_STREAM, 0);
    if (s == INVALID_SOCKET)
        fail("socket");
    return s;
}

static struct sockaddr_in address(const char *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return at;
}

static void no_delay(SOCKET s)
{
    int on = 1;
    if (setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (const char *)&on, sizeof on) != 0)
        fail("setsockopt");
}

static void send_all(SOCKET s, const char *bytes, int n)
{
    for (int sent = 0; sent < n;) {
        int r = send(s, bytes + sent, n - sent, 0);
        if (r <= 0)
            fail("send");
        sent += r;
    }
}

static void server(const char *port)
{
    SOCKET listener = tcp();
    struct sockaddr_in at = address(port);
    int on = 1;
#ifndef _WIN32 /* where it means something else */
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
#endif
    (void)on;
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 1) != 0)
        fail("listen");
    puts("ready");
    fflush(stdout);
    SOCKET s = accept(listener, NULL, NULL);
    if (s == INVALID_SOCKET)
        fail("accept");
    no_delay(s);
    char bytes[4096];
    int n;
    while ((n = recv(s, bytes, sizeof bytes, 0)) > 0)
        send_all(s, bytes, n);
    if (n < 0)
        fail("recv");
    closesocket(s);
    closesocket(listener);
}

static void round_trips(SOCKET s, long rounds)
{
    char out[BYTES], in[BYTES];
    for (long i = 0; i < rounds; i++) {
        memset(out, (int)i, BYTES);
        send_all(s, out, BYTES);
        for (int have = 0; have < BYTES;) {
            int n = recv(s, in + have, BYTES - have, 0);
            if (n <= 0)
                fail("recv");
            have += n;
        }
        if (memcmp(in, out, BYTES) != 0)
            fail("the comparison of what came back");
    }
}

static void client(const char *port, double seconds)
{
    struct sockaddr_in at = address(port);
    SOCKET s = tcp();
    if (connect(s, (struct sockaddr *)&at, sizeof at) != 0)
        fail("connect");
    no_delay(s);
    round_trips(s, WARM_UP);
    double start = now(), took;
    long rounds = 0;
    do {
        round_trips(s, SLICE);
        rounds += SLICE;
        took = now() - start;
    } while (took < seconds);
    printf("%.1f\n", rounds / took);
    closesocket(s);
}

int main(int argc, char **argv)
{
#ifdef _WIN32
    WSADATA data;
    if (WSAStartup(MAKEWORD(2, 2), &data) != 0)
        fail("WSAStartup");
#endif
    if (argc == 3 && strcmp(argv[1], "server") == 0)
        server(argv[2]);
    else if (argc == 4 && strcmp(argv[1], "client") == 0)
        client(argv[2], atof(argv[3]));
    else
        puts("usage: echo server PORT | echo client PORT SECONDS");
#ifdef _WIN32
    WSACleanup();
#endif
    return 0;
}
