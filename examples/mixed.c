/* mixed: Winsock 1 and Winsock 2 calls in turns on one socket, as programs do that were modernised in parts.
 *
 *     mixed server PORT                            serves one connection
 *     mixed client HOST PORT [COUNT] [BYTES]       COUNT round trips of BYTES bytes (default: 10000 of 64)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <winsock2.h>
#include <ws2tcpip.h>

static void fail(const char *what)
{
    fprintf(stderr, "mixed: %s: error %d\n", what, WSAGetLastError());
    exit(1);
}

static double now_us(void)
{
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart * 1e6 / (double)per_second.QuadPart;
}

/* Sends all of it by the call whose turn it is. */
static void send_all(SOCKET s, char *data, int length, long turn)
{
    while (length > 0) {
        int n = 0;
        if (turn % 2) {
            WSABUF buffer = {(ULONG)length, data};
            DWORD sent = 0;
            if (WSASend(s, &buffer, 1, &sent, 0, NULL, NULL))
                fail("WSASend");
            n = (int)sent;
        } else if ((n = send(s, data, length, 0)) == SOCKET_ERROR)
            fail("send");
        data += n;
        length -= n;
    }
}

/* Waits by select, by an event, or in the call itself. */
static void await(SOCKET s, WSAEVENT event, long turn)
{
    u_long off = 0;
    if (turn % 3 == 1) {
        fd_set ready;
        FD_ZERO(&ready);
        FD_SET(s, &ready);
        if (select(0, &ready, NULL, NULL, NULL) != 1)
            fail("select");
    } else if (turn % 30 == 2) {
        WSANETWORKEVENTS seen;
        if (WSAEventSelect(s, event, FD_READ | FD_CLOSE) ||
            WSAWaitForMultipleEvents(1, &event, TRUE, WSA_INFINITE, FALSE) != WSA_WAIT_EVENT_0 ||
            WSAEnumNetworkEvents(s, event, &seen) || WSAEventSelect(s, NULL, 0) || ioctlsocket(s, (long)FIONBIO, &off))
            fail("waiting for an event");
    }
}

/* One receive by the call whose turn it is; 0 at the end. */
static int receive(SOCKET s, char *data, int length, long turn)
{
    int n;
    if (turn % 2) {
        if ((n = recv(s, data, length, 0)) == SOCKET_ERROR)
            fail("recv");
    } else {
        WSABUF buffer = {(ULONG)length, data};
        DWORD got = 0, flags = 0;
        if (WSARecv(s, &buffer, 1, &got, &flags, NULL, NULL))
            fail("WSARecv");
        n = (int)got;
    }
    return n;
}

static void serve(int port)
{
    static char data[65536];
    struct sockaddr_in address = {0};
    double bytes = 0;
    long turn;
    int n;
    WSAEVENT event = WSACreateEvent();
    SOCKET s, listener = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)port);
    if (listener == INVALID_SOCKET || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 5))
        fail("socket, bind or listen");
    printf("listening on port %d\n", port);
    fflush(stdout);
    if ((s = WSAAccept(listener, NULL, NULL, NULL, 0)) == INVALID_SOCKET)
        fail("WSAAccept");
    for (turn = 0;; turn++) {
        await(s, event, turn);
        if ((n = receive(s, data, sizeof data, turn)) == 0)
            break;
        send_all(s, data, n, turn);
        bytes += n;
    }
    closesocket(s);
    closesocket(listener);
    WSACloseEvent(event);
    printf("echoed %.0f bytes\n", bytes);
}

static void ask(const char *host, const char *port, long count, int bytes)
{
    struct addrinfo hints = {0}, *found;
    char *out = malloc((size_t)bytes), *in = malloc((size_t)bytes);
    double start, took;
    long turn;
    int k, got, n;
    WSAEVENT event = WSACreateEvent();
    SOCKET s = WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED);
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host, port, &hints, &found))
        fail("getaddrinfo");
    if (s == INVALID_SOCKET || connect(s, found->ai_addr, (int)found->ai_addrlen))
        fail("WSASocket or connect");
    freeaddrinfo(found);
    start = now_us();
    for (turn = 0; turn < count; turn++) {
        for (k = 0; k < bytes; k++)
            out[k] = (char)(turn * 7 + k);
        send_all(s, out, bytes, turn / 2);
        for (got = 0; got < bytes; got += n) {
            await(s, event, turn);
            if ((n = receive(s, in + got, bytes - got, turn)) == 0)
                fail("the server closed early");
        }
        if (memcmp(in, out, (size_t)bytes)) {
            fprintf(stderr, "mixed: other bytes came back in round trip %ld\n", turn);
            exit(1);
        }
    }
    took = now_us() - start;
    shutdown(s, SD_SEND);
    if (receive(s, in, bytes, 0) != 0)
        fail("something after the end");
    closesocket(s);
    WSACloseEvent(event);
    printf("%ld round trips of %d bytes, every byte right\n", count, bytes);
    printf("%.1f us each\n", took / (double)count);
    free(in);
    free(out);
}

int main(int argc, char **argv)
{
    WSADATA data;
    if (WSAStartup(MAKEWORD(2, 2), &data))
        fail("WSAStartup");
    if (argc >= 3 && !strcmp(argv[1], "server"))
        serve(atoi(argv[2]));
    else if (argc >= 4 && !strcmp(argv[1], "client"))
        ask(argv[2], argv[3], argc > 4 ? atol(argv[4]) : 10000, argc > 5 ? atoi(argv[5]) : 64);
    else {
        fprintf(stderr, "use: mixed server PORT | client HOST PORT [COUNT] [BYTES]\n");
        return 2;
    }
    WSACleanup();
    return 0;
}
