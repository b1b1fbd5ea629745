/* echo11: an echo server and its client in Winsock 1.1, as a program of 1995 does it: WSAStartup(0x0101), select.
 *
 *     echo11 server PORT [CONNECTIONS]             ends after so many connections (default: never)
 *     echo11 client HOST PORT [COUNT] [BYTES]      COUNT round trips of BYTES bytes (default: 10000 of 64)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <winsock.h>

static void fail(const char *what)
{
    fprintf(stderr, "echo11: %s: error %d\n", what, WSAGetLastError());
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

/* Echoes what a connection has; gives 0 at its end. */
static int echo(SOCKET s, double *bytes)
{
    static char data[65536];
    int n = recv(s, data, sizeof data, 0);
    if (n == SOCKET_ERROR)
        fail("recv");
    if (n > 0)
        send_all(s, data, n);
    *bytes += n;
    return n;
}

static void serve(int port, long connections)
{
    struct sockaddr_in address;
    SOCKET open[FD_SETSIZE - 1];
    int count = 0, i;
    long ended = 0;
    double bytes = 0;
    SOCKET listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener == INVALID_SOCKET)
        fail("socket");
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)port);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 5))
        fail("bind or listen");
    printf("listening on port %d\n", port);
    fflush(stdout);
    while (connections == 0 || ended < connections) {
        fd_set ready;
        FD_ZERO(&ready);
        if (count < FD_SETSIZE - 1)
            FD_SET(listener, &ready);
        for (i = 0; i < count; i++)
            FD_SET(open[i], &ready);
        if (select(0, &ready, NULL, NULL, NULL) == SOCKET_ERROR)
            fail("select");
        for (i = 0; i < count; i++)
            if (FD_ISSET(open[i], &ready) && echo(open[i], &bytes) == 0) {
                closesocket(open[i]);
                open[i--] = open[--count];
                ended++;
            }
        if (FD_ISSET(listener, &ready)) {
            open[count] = accept(listener, NULL, NULL);
            if (open[count] == INVALID_SOCKET)
                fail("accept");
            count++;
        }
    }
    closesocket(listener);
    printf("echoed %.0f bytes of %ld connections\n", bytes, ended);
}

static SOCKET connect_to(const char *name, int port)
{
    struct sockaddr_in address;
    SOCKET s = socket(AF_INET, SOCK_STREAM, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)port);
    address.sin_addr.s_addr = inet_addr(name);
    if (address.sin_addr.s_addr == INADDR_NONE) {
        struct hostent *host = gethostbyname(name);
        if (!host)
            fail("gethostbyname");
        memcpy(&address.sin_addr, host->h_addr_list[0], sizeof address.sin_addr);
    }
    if (s == INVALID_SOCKET || connect(s, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    return s;
}

/* Waits with select for each piece of the answer. */
static void receive_all(SOCKET s, char *data, int length)
{
    while (length > 0) {
        struct timeval limit = {10, 0};
        fd_set ready;
        int n;
        FD_ZERO(&ready);
        FD_SET(s, &ready);
        if (select(0, &ready, NULL, NULL, &limit) != 1)
            fail("select: no answer within 10 s");
        n = recv(s, data, length, 0);
        if (n <= 0)
            fail("recv");
        data += n;
        length -= n;
    }
}

static void ask(const char *host, int port, long count, int bytes)
{
    SOCKET s = connect_to(host, port);
    char *out = malloc((size_t)bytes), *in = malloc((size_t)bytes);
    double start = now_us(), took;
    long i;
    int k;
    for (i = 0; i < count; i++) {
        for (k = 0; k < bytes; k++)
            out[k] = (char)(i * 7 + k);
        send_all(s, out, bytes);
        receive_all(s, in, bytes);
        if (memcmp(in, out, (size_t)bytes)) {
            fprintf(stderr, "echo11: other bytes came back in round trip %ld\n", i);
            exit(1);
        }
    }
    took = now_us() - start;
    closesocket(s);
    printf("%ld round trips of %d bytes, every byte right\n", count, bytes);
    printf("%.1f us each\n", took / (double)count);
    free(in);
    free(out);
}

int main(int argc, char **argv)
{
    WSADATA data;
    if (WSAStartup(0x0101, &data))
        fail("WSAStartup");
    if (argc >= 3 && !strcmp(argv[1], "server"))
        serve(atoi(argv[2]), argc > 3 ? atol(argv[3]) : 0);
    else if (argc >= 4 && !strcmp(argv[1], "client"))
        ask(argv[2], atoi(argv[3]), argc > 4 ? atol(argv[4]) : 10000, argc > 5 ? atoi(argv[5]) : 64);
    else {
        fprintf(stderr, "use: echo11 server PORT [CONNECTIONS] | client HOST PORT [COUNT] [BYTES]\n");
        return 2;
    }
    WSACleanup();
    return 0;
}
