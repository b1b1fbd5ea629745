/* echo2: an echo server and its client in Winsock 2: WSASocket, WSASend, WSARecv, network events.
 *
 *     echo2 server PORT [CONNECTIONS]              ends after so many connections (default: never)
 *     echo2 client HOST PORT [COUNT] [BYTES]       COUNT round trips of BYTES bytes (default: 10000 of 64)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <winsock2.h>
#include <ws2tcpip.h>

static void fail(const char *what)
{
    fprintf(stderr, "echo2: %s: error %d\n", what, WSAGetLastError());
    exit(1);
}

static double now_us(void)
{
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart * 1e6 / (double)per_second.QuadPart;
}

/* A connection of the server: what it has read and not yet written back. */
struct connection {
    SOCKET s;
    char data[65536];
    DWORD filled, written;
    int ended;
};

/* The server's sockets, each with its event; the first is the listener. */
static SOCKET sockets[WSA_MAXIMUM_WAIT_EVENTS];
static WSAEVENT events[WSA_MAXIMUM_WAIT_EVENTS];
static struct connection *connections[WSA_MAXIMUM_WAIT_EVENTS];
static DWORD count;
static double bytes;

static void add(SOCKET s, long wanted, struct connection *connection)
{
    if (count == WSA_MAXIMUM_WAIT_EVENTS)
        fail("too many connections");
    sockets[count] = s;
    events[count] = WSACreateEvent();
    connections[count] = connection;
    if (WSAEventSelect(s, events[count++], wanted))
        fail("WSAEventSelect");
}

static void take_out(DWORD i)
{
    closesocket(sockets[i]);
    WSACloseEvent(events[i]);
    free(connections[i]);
    count--;
    sockets[i] = sockets[count];
    events[i] = events[count];
    connections[i] = connections[count];
}

/* Writes back and reads on until a call would block. FD_READ and FD_WRITE tell when to go on. */
static void move(struct connection *c)
{
    for (;;) {
        WSABUF buffer;
        DWORD n = 0, flags = 0;
        int result;
        if (c->written < c->filled) {
            buffer.buf = c->data + c->written;
            buffer.len = c->filled - c->written;
            result = WSASend(c->s, &buffer, 1, &n, 0, NULL, NULL);
            c->written += n;
        } else {
            if (c->ended)
                return;
            buffer.buf = c->data;
            buffer.len = sizeof c->data;
            result = WSARecv(c->s, &buffer, 1, &n, &flags, NULL, NULL);
            c->filled = n;
            c->written = 0;
            bytes += n;
            c->ended = result == 0 && n == 0;
        }
        if (result == SOCKET_ERROR) {
            if (WSAGetLastError() == WSAEWOULDBLOCK)
                return;
            fail("WSASend or WSARecv");
        }
    }
}

static void serve(int port, long wanted)
{
    struct sockaddr_in address = {0};
    long ended = 0;
    SOCKET listener = WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED);
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)port);
    if (listener == INVALID_SOCKET || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 20))
        fail("WSASocket, bind or listen");
    add(listener, FD_ACCEPT, NULL);
    printf("listening on port %d\n", port);
    fflush(stdout);
    while (wanted == 0 || ended < wanted) {
        WSANETWORKEVENTS seen;
        DWORD i = WSAWaitForMultipleEvents(count, events, FALSE, WSA_INFINITE, FALSE) - WSA_WAIT_EVENT_0;
        if (i >= count || WSAEnumNetworkEvents(sockets[i], events[i], &seen))
            fail("waiting for events");
        if (seen.lNetworkEvents & FD_ACCEPT) {
            struct connection *c = calloc(1, sizeof *c);
            c->s = WSAAccept(listener, NULL, NULL, NULL, 0);
            if (c->s == INVALID_SOCKET)
                fail("WSAAccept");
            add(c->s, FD_READ | FD_WRITE | FD_CLOSE, c);
        }
        if (seen.lNetworkEvents & (FD_READ | FD_WRITE | FD_CLOSE))
            move(connections[i]);
        if (seen.lNetworkEvents & FD_CLOSE) {
            take_out(i);
            ended++;
        }
    }
    take_out(0);
    printf("echoed %.0f bytes of %ld connections\n", bytes, ended);
}

static SOCKET connect_to(const char *name, const char *port)
{
    struct addrinfo hints = {0}, *found;
    SOCKET s;
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(name, port, &hints, &found))
        fail("getaddrinfo");
    s = WSASocketW(found->ai_family, found->ai_socktype, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED);
    if (s == INVALID_SOCKET || WSAConnect(s, found->ai_addr, (int)found->ai_addrlen, NULL, NULL, NULL, NULL))
        fail("WSAConnect");
    freeaddrinfo(found);
    return s;
}

static void ask(const char *host, const char *port, long rounds, DWORD size)
{
    SOCKET s = connect_to(host, port);
    char *out = malloc(size), *in = malloc(size);
    double start = now_us(), took;
    long i;
    DWORD k;
    for (i = 0; i < rounds; i++) {
        /* Two buffers for one message, as a header and a body. */
        WSABUF parts[2] = {{size / 4, out}, {size - size / 4, out + size / 4}};
        DWORD n = 0, got;
        for (k = 0; k < size; k++)
            out[k] = (char)(i * 7 + (long)k);
        if (WSASend(s, parts, 2, &n, 0, NULL, NULL) || n != size)
            fail("WSASend");
        for (got = 0; got < size; got += n) {
            WSABUF rest = {size - got, in + got};
            DWORD flags = 0;
            if (WSARecv(s, &rest, 1, &n, &flags, NULL, NULL) || n == 0)
                fail("WSARecv");
        }
        if (memcmp(in, out, size)) {
            fprintf(stderr, "echo2: other bytes came back in round trip %ld\n", i);
            exit(1);
        }
    }
    took = now_us() - start;
    WSASendDisconnect(s, NULL);
    closesocket(s);
    printf("%ld round trips of %lu bytes, every byte right\n", rounds, size);
    printf("%.1f us each\n", took / (double)rounds);
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
    else if (argc >= 4 && !strcmp(argv[1], "client"))
        ask(argv[2], argv[3], argc > 4 ? atol(argv[4]) : 10000, argc > 5 ? (DWORD)atol(argv[5]) : 64);
    else {
        fprintf(stderr, "use: echo2 server PORT [CONNECTIONS] | client HOST PORT [COUNT] [BYTES]\n");
        return 2;
    }
    WSACleanup();
    return 0;
}
