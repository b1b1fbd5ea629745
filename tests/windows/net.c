/* Sockets, transfers and waiting (see common.h). */
#include "common.h"

int loopback(int af, unsigned short port, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (af == AF_INET6) {
        struct sockaddr_in6 *in6 = (void *)out;
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        in6->sin6_addr = in6addr_loopback;
        return sizeof *in6;
    }
    struct sockaddr_in *in = (void *)out;
    in->sin_family = AF_INET;
    in->sin_port = htons(port);
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return sizeof *in;
}

SOCKET stream_socket(void) { return (SOCKET)MUST(socket(family, SOCK_STREAM, IPPROTO_TCP)); }

SOCKET listen_on(void)
{
    struct sockaddr_storage address;
    int length = loopback(family, 0, &address);
    SOCKET listener = stream_socket();
    MUST(bind(listener, (struct sockaddr *)&address, length));
    MUST(listen(listener, SOMAXCONN));
    return listener;
}

unsigned short port_of(SOCKET s)
{
    struct sockaddr_storage address;
    int length = sizeof address;
    MUST(getsockname(s, (struct sockaddr *)&address, &length));
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

SOCKET accept_from(SOCKET listener) { return (SOCKET)MUST(accept(listener, NULL, NULL)); }

SOCKET connect_to(unsigned short port)
{
    struct sockaddr_storage address;
    int length = loopback(family, port, &address);
    SOCKET s = stream_socket();
    MUST(connect(s, (struct sockaddr *)&address, length));
    return s;
}

/* 20 round trips and 80 KiB each way. */
void warm_up(SOCKET s, bool first)
{
    enum { ROUNDS = 20, BYTES = 4 * KIB };
    struct stream out = {first, 0}, in = {!first, 0};
    for (int i = 0; warm && i < ROUNDS; i++) {
        if (first)
            stream_send(&out, s, BYTES, BYTES);
        stream_receive(&in, s, BYTES, BYTES);
        if (!first)
            stream_send(&out, s, BYTES, BYTES);
    }
}

SOCKET accept_warm(SOCKET listener)
{
    SOCKET s = accept_from(listener);
    warm_up(s, false);
    return s;
}

SOCKET connect_warm(unsigned short port)
{
    SOCKET s = connect_to(port);
    warm_up(s, true);
    return s;
}

static void warm_up_accepted(void *s) { warm_up(*(SOCKET *)s, false); }

void socket_pair(SOCKET ends[2])
{
    SOCKET listener = listen_on();
    ends[1] = connect_to(port_of(listener));
    ends[0] = accept_from(listener);
    closesocket(listener);
    if (warm) {
        HANDLE other = start_thread(warm_up_accepted, &ends[0]);
        warm_up(ends[1], true);
        join(other);
    }
}

void set_nonblocking(SOCKET s, bool on)
{
    u_long value = on;
    MUST(ioctlsocket(s, FIONBIO, &value));
}

void send_all(SOCKET s, const void *data, int length)
{
    for (const char *at = data; length;) {
        int n = (int)MUST(send(s, at, length, 0));
        at += n;
        length -= n;
    }
}

int recv_full(SOCKET s, void *data, int length)
{
    int done = 0;
    while (done < length) {
        int n = (int)MUST(recv(s, (char *)data + done, length - done, 0));
        if (n == 0)
            break;
        done += n;
    }
    return done;
}

void send_text(SOCKET s, const char *text) { send_all(s, text, (int)strlen(text)); }

void say_recv(const char *what, SOCKET s, int length, int flags)
{
    char text[512];
    CHECK(length <= (int)sizeof text);
    WSASetLastError(0);
    int n = recv(s, text, length, flags);
    if (n > 0)
        say("%s = %d \"%.*s\"", what, n, n, text);
    else
        say_result(what, n, WSAGetLastError());
}

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t rng_next(struct rng *rng) { return mix(rng->state += 0x9e3779b97f4a7c15ull); }

int between(struct rng *rng, int low, int high) { return low + (int)(rng_next(rng) % (uint64_t)(high - low + 1)); }

/* Walks the stream in words; with `check` compares instead of writing and gives the first wrong offset, else the end. */
static uint64_t walk(struct stream *stream, uint8_t *data, size_t length, bool check)
{
    while (length) {
        uint64_t word = mix(stream->seed * 0x2545f4914f6cdd1dull + stream->offset / 8 * 0x9e3779b97f4a7c15ull);
        size_t skip = stream->offset % 8, n = 8 - skip < length ? 8 - skip : length;
        if (!check)
            memcpy(data, (uint8_t *)&word + skip, n);
        else if (memcmp(data, (uint8_t *)&word + skip, n))
            break;
        data += n;
        length -= n;
        stream->offset += n;
    }
    return length;
}

void stream_fill(struct stream *stream, void *data, size_t length) { walk(stream, data, length, false); }

void stream_check(struct stream *stream, const void *data, size_t length)
{
    if (walk(stream, (uint8_t *)data, length, true))
        die("WRONG BYTES at offset %llu of stream %llu", (unsigned long long)stream->offset, (unsigned long long)stream->seed);
}

void stream_send(struct stream *stream, SOCKET s, size_t total, int largest)
{
    struct rng sizes = {stream->seed};
    uint8_t *buffer = malloc((size_t)largest);
    while (total) {
        size_t n = (size_t)between(&sizes, 1, largest);
        if (n > total)
            n = total;
        stream_fill(stream, buffer, n);
        send_all(s, buffer, (int)n);
        total -= n;
    }
    free(buffer);
}

void stream_receive(struct stream *stream, SOCKET s, size_t total, int largest)
{
    struct rng sizes = {~stream->seed};
    char *buffer = malloc((size_t)largest);
    while (total) {
        size_t n = (size_t)between(&sizes, 1, largest);
        int got = (int)MUST(recv(s, buffer, (int)(n < total ? n : total), 0));
        if (got == 0)
            die("END OF STREAM with %llu bytes missing", (unsigned long long)total);
        stream_check(stream, buffer, (size_t)got);
        total -= (size_t)got;
    }
    free(buffer);
}

static bool await(SOCKET s, bool writing)
{
    struct timeval limit = {LATE_MS / 1000, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(s, &set);
    int n = (int)MUST(select(0, writing ? NULL : &set, writing ? &set : NULL, NULL, &limit));
    if (n != 1)
        say("LATE");
    return n == 1;
}

bool await_readable(SOCKET s) { return await(s, false); }
bool await_writable(SOCKET s) { return await(s, true); }

void await_unread(SOCKET s, unsigned bytes)
{
    u_long unread = 0;
    ULONGLONG limit = GetTickCount64() + LATE_MS;
    for (;; Sleep(0)) {
        MUST(ioctlsocket(s, FIONREAD, &unread));
        if (unread == bytes)
            return;
        if (GetTickCount64() > limit) {
            say("LATE: %lu bytes unread instead of %u", unread, bytes);
            return;
        }
    }
}

void say_no_network_events(const char *what, SOCKET s, WSAEVENT event)
{
    WSANETWORKEVENTS seen;
    memset(&seen, 0x55, sizeof seen);
    if (WSAEnumNetworkEvents(s, event, &seen)) {
        say_result(what, -1, WSAGetLastError());
        return;
    }
    char errors[256] = "";
    for (int bit = 0; bit < FD_MAX_EVENTS; bit++)
        if ((seen.lNetworkEvents & (1 << bit)) && seen.iErrorCode[bit])
            snprintf(errors + strlen(errors), sizeof errors - strlen(errors), ", %s %s", events_name(1 << bit),
                     error_name(seen.iErrorCode[bit]));
    say("%s: %s%s", what, events_name(seen.lNetworkEvents), errors);
}

void say_network_events(const char *what, SOCKET s, WSAEVENT event)
{
    if (WSAWaitForMultipleEvents(1, &event, TRUE, LATE_MS, FALSE) != WSA_WAIT_EVENT_0)
        say("LATE: no event for %s", what);
    say_no_network_events(what, s, event);
}
