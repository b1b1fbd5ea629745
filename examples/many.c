/* many: hundreds of connections between the same two programs, all served by one select on each side.
 *
 *     many server PORT [CONNECTIONS]               ends after so many connections (default: never)
 *     many client HOST PORT [COUNT] [BYTES] [ROUNDS]
 *                                                  COUNT connections (default 200), on each ROUNDS (50) round trips of BYTES (64)
 */
#define FD_SETSIZE 1025
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <winsock2.h>

enum { MOST = FD_SETSIZE - 1 };

static SOCKET open[MOST];
static int count;

static void fail(const char *what)
{
    fprintf(stderr, "many: %s: error %d\n", what, WSAGetLastError());
    exit(1);
}

static double now_us(void)
{
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart * 1e6 / (double)per_second.QuadPart;
}

static void send_all(SOCKET s, const char *data, int length)
{
    while (length > 0) {
        int n = send(s, data, length, 0);
        if (n == SOCKET_ERROR)
            fail("send");
        data += n;
        length -= n;
    }
}

static struct sockaddr_in address_of(const char *host, int port)
{
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)port);
    address.sin_addr.s_addr = host ? inet_addr(host) : INADDR_ANY;
    return address;
}

static void serve(int port, long connections)
{
    static char data[65536];
    static fd_set ready;
    struct sockaddr_in address = address_of(NULL, port);
    double bytes = 0;
    long ended = 0;
    int i, n, most = 0;
    SOCKET listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener == INVALID_SOCKET || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, SOMAXCONN))
        fail("socket, bind or listen");
    printf("listening on port %d\n", port);
    fflush(stdout);
    while (connections == 0 || ended < connections) {
        FD_ZERO(&ready);
        if (count < MOST)
            FD_SET(listener, &ready);
        for (i = 0; i < count; i++)
            FD_SET(open[i], &ready);
        if (select(0, &ready, NULL, NULL, NULL) == SOCKET_ERROR)
            fail("select");
        /* The set itself says who is ready: no search through all connections. */
        for (i = 0; i < (int)ready.fd_count; i++) {
            SOCKET s = ready.fd_array[i];
            int k = 0;
            if (s == listener) {
                if ((open[count++] = accept(listener, NULL, NULL)) == INVALID_SOCKET)
                    fail("accept");
                most = count > most ? count : most;
                continue;
            }
            if ((n = recv(s, data, sizeof data, 0)) == SOCKET_ERROR)
                fail("recv");
            bytes += n;
            if (n) {
                send_all(s, data, n);
                continue;
            }
            while (open[k] != s)
                k++;
            open[k] = open[--count];
            closesocket(s);
            ended++;
        }
    }
    closesocket(listener);
    printf("echoed %.0f bytes of %ld connections, %d at once at most\n", bytes, ended, most);
}

/* A connection of the client, and how far it is. */
struct talk {
    SOCKET s;
    int received;
    long round;
};

static void fill(char *data, int bytes, int number, long round)
{
    int k;
    for (k = 0; k < bytes; k++)
        data[k] = (char)(number * 31 + round * 7 + k);
}

static void ask(const char *host, int port, int wanted, int bytes, long rounds)
{
    static struct talk talks[MOST];
    static fd_set ready;
    struct sockaddr_in address = address_of(host, port);
    char *out = malloc((size_t)bytes), *in = malloc((size_t)bytes);
    double start = now_us(), took;
    int i, left = wanted;
    for (i = 0; i < wanted; i++) {
        talks[i].s = socket(AF_INET, SOCK_STREAM, 0);
        if (talks[i].s == INVALID_SOCKET || connect(talks[i].s, (struct sockaddr *)&address, sizeof address))
            fail("socket or connect");
    }
    printf("%d connections in %.1f ms\n", wanted, (now_us() - start) / 1000);
    start = now_us();
    for (i = 0; i < wanted; i++) {
        fill(out, bytes, i, 0);
        send_all(talks[i].s, out, bytes);
    }
    while (left > 0) {
        FD_ZERO(&ready);
        for (i = 0; i < wanted; i++)
            if (talks[i].s != INVALID_SOCKET)
                FD_SET(talks[i].s, &ready);
        if (select(0, &ready, NULL, NULL, NULL) == SOCKET_ERROR)
            fail("select");
        for (i = 0; i < wanted; i++) {
            struct talk *talk = &talks[i];
            int n;
            if (talk->s == INVALID_SOCKET || !FD_ISSET(talk->s, &ready))
                continue;
            if ((n = recv(talk->s, in, bytes - talk->received, 0)) <= 0)
                fail("recv");
            fill(out, bytes, i, talk->round);
            if (memcmp(in, out + talk->received, (size_t)n)) {
                fprintf(stderr, "many: other bytes came back on connection %d\n", i);
                exit(1);
            }
            talk->received += n;
            if (talk->received < bytes)
                continue;
            talk->received = 0;
            if (++talk->round < rounds) {
                fill(out, bytes, i, talk->round);
                send_all(talk->s, out, bytes);
            } else {
                closesocket(talk->s);
                talk->s = INVALID_SOCKET;
                left--;
            }
        }
    }
    took = now_us() - start;
    printf("%ld round trips of %d bytes on each of %d connections, every byte right\n", rounds, bytes, wanted);
    printf("%.1f us each\n", took / ((double)rounds * wanted));
    free(in);
    free(out);
}

int main(int argc, char **argv)
{
    WSADATA data;
    if (WSAStartup(MAKEWORD(2, 2), &data))
        fail("WSAStartup");
    if (argc >= 3 && !strcmp(argv[1], "server"))
        serve(atoi(argv[2]), argc > 3 ? atol(argv[3]) : 0);
    else if (argc >= 4 && !strcmp(argv[1], "client")) {
        int wanted = argc > 4 ? atoi(argv[4]) : 200;
        if (wanted < 1 || wanted > MOST) {
            fprintf(stderr, "many: 1 to %d connections\n", MOST);
            return 2;
        }
        ask(argv[2], atoi(argv[3]), wanted, argc > 5 ? atoi(argv[5]) : 64, argc > 6 ? atol(argv[6]) : 50);
    } else {
        fprintf(stderr, "use: many server PORT [CONNECTIONS] | client HOST PORT [COUNT] [BYTES] [ROUNDS]\n");
        return 2;
    }
    WSACleanup();
    return 0;
}
