/* sgm_bench: one end of the measurements of `sgm bench --wine`, an ordinary Winsock 2 program that knows nothing of the providers.
 *
 *     sgm_bench PORT CPU
 *
 * It connects to the driver at 127.0.0.1:PORT and does what it is told, one order a line, until the driver hangs up:
 *
 *     SIDE WORK WAIT SIZE PORT COUNT MS TIMED_MS
 *
 * and answers in JSON lines, the ones of role.rs: {"Ready":{"port":N}}, {"Done":{...}}, {"Failed":{"error":"..."}}. One that
 * failed ends. The conversations of `stream` and `connections` are those of the Linux workers.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <winsock2.h>
#include <x86intrin.h>

typedef unsigned long long u64;

/* An order that takes longer hangs: then nobody may be left to end this program. */
#define PATIENCE_MS 60000
/* Round trips of a connection that then is idle: more than it takes to be promoted. */
#define IDLE_TRIPS 16
#define IDLE_MAX 60
#define LAST_BYTE 0xff
#define SAMPLES_MAX (1 << 20)
#define PIECE 65536

struct order {
    char side[16], work[16], wait[16];
    int size, port, count, ms, timed_ms;
};

/* What this end measured: the fields of role.rs that a Windows worker fills in. */
struct outcome {
    u64 sent_bytes, connections, messages;
    double wall_ns, mean_ns, p50_ns, p99_ns;
};

/* A connection and its way of waiting for the next message. */
struct channel {
    SOCKET s;
    enum { BLOCKING, SELECT, EVENTS, OVERLAPPED_EVENT, ROUTINE, PORT } wait;
    WSAEVENT event;
    int closing;
    HANDLE port;
    /* Of the overlapped calls; `sending`: its end was not told yet. */
    WSAOVERLAPPED sent, received;
    int sending;
};

static SOCKET driver;

static void send_all(SOCKET s, const char *data, int length);

static void say(const char *line)
{
    send_all(driver, line, (int)strlen(line));
}

static void fail(const char *what)
{
    static int failing;
    char line[256];
    int error = WSAGetLastError();
    if (!failing++) {
        snprintf(line, sizeof line, "{\"Failed\":{\"error\":\"%s, error %d\"}}\n", what, error);
        say(line);
    }
    exit(1);
}

static void say_ready(int port)
{
    char line[64];
    snprintf(line, sizeof line, "{\"Ready\":{\"port\":%d}}\n", port);
    say(line);
}

static void say_done(const struct outcome *o)
{
    char line[512];
    snprintf(line, sizeof line,
             "{\"Done\":{\"sent_bytes\":%llu,\"connections\":%llu,\"messages\":%llu,\"wall_ns\":%.0f,"
             "\"mean_ns\":%.3f,\"p50_ns\":%.3f,\"p99_ns\":%.3f}}\n",
             o->sent_bytes, o->connections, o->messages, o->wall_ns, o->mean_ns, o->p50_ns, o->p99_ns);
    say(line);
}

static double now_ns(void)
{
    static double ns_per_tick;
    LARGE_INTEGER ticks;
    if (ns_per_tick == 0) {
        LARGE_INTEGER per_second;
        QueryPerformanceFrequency(&per_second);
        ns_per_tick = 1e9 / (double)per_second.QuadPart;
    }
    QueryPerformanceCounter(&ticks);
    return (double)ticks.QuadPart * ns_per_tick;
}

/* ---- sockets ---- */

static void await(SOCKET s, int for_write)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(s, &set);
    if (select(0, for_write ? NULL : &set, for_write ? &set : NULL, NULL, NULL) != 1)
        fail("select");
}

static void send_all(SOCKET s, const char *data, int length)
{
    while (length > 0) {
        int n = send(s, data, length, 0);
        if (n >= 0) {
            data += n;
            length -= n;
        } else if (WSAGetLastError() == WSAEWOULDBLOCK)
            await(s, 1);
        else
            fail("send");
    }
}

/* Fills `data` from a blocking socket. */
static void receive_all(SOCKET s, char *data, int length)
{
    while (length > 0) {
        int n = recv(s, data, length, 0);
        if (n <= 0)
            fail(n ? "recv" : "recv: the peer closed");
        data += n;
        length -= n;
    }
}

static void no_delay(SOCKET s)
{
    int on = 1;
    if (setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (char *)&on, sizeof on))
        fail("TCP_NODELAY");
}

static struct sockaddr_in local(int port)
{
    struct sockaddr_in address = {0};
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static SOCKET connect_to(int port)
{
    struct sockaddr_in address = local(port);
    SOCKET s = socket(AF_INET, SOCK_STREAM, 0);
    if (s == INVALID_SOCKET || connect(s, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    no_delay(s);
    return s;
}

/* Listens on a port of the system's choice and tells the driver which. */
static SOCKET listening(void)
{
    struct sockaddr_in address = local(0);
    int length = sizeof address;
    SOCKET s = socket(AF_INET, SOCK_STREAM, 0);
    if (s == INVALID_SOCKET || bind(s, (struct sockaddr *)&address, sizeof address) || listen(s, 64) ||
        getsockname(s, (struct sockaddr *)&address, &length))
        fail("listen");
    say_ready(ntohs(address.sin_port));
    return s;
}

static SOCKET accepted(SOCKET listener)
{
    SOCKET s = accept(listener, NULL, NULL);
    if (s == INVALID_SOCKET)
        fail("accept");
    no_delay(s);
    return s;
}

/* ---- round trips ---- */

static struct channel channel(SOCKET s, const char *wait)
{
    struct channel c = {.s = s, .wait = BLOCKING, .event = WSA_INVALID_EVENT};
    u_long on = 1;
    if (!strcmp(wait, "select")) {
        c.wait = SELECT;
        if (ioctlsocket(s, FIONBIO, &on))
            fail("FIONBIO");
    } else if (!strcmp(wait, "events")) {
        c.wait = EVENTS;
        c.event = WSACreateEvent();
        if (c.event == WSA_INVALID_EVENT || WSAEventSelect(s, c.event, FD_READ | FD_CLOSE))
            fail("WSAEventSelect");
    } else if (!strcmp(wait, "overlapped")) {
        c.wait = OVERLAPPED_EVENT;
        c.received.hEvent = WSACreateEvent();
    } else if (!strcmp(wait, "routine"))
        c.wait = ROUTINE;
    else if (!strcmp(wait, "port")) {
        c.wait = PORT;
        c.port = CreateIoCompletionPort((HANDLE)s, NULL, 1, 0);
        if (!c.port)
            fail("CreateIoCompletionPort");
    }
    return c;
}

static int is_overlapped(const struct channel *c)
{
    return c->wait >= OVERLAPPED_EVENT;
}

/* What the completion routine was told; one receive is under way at a time. */
static DWORD routine_bytes, routine_error;
static int routine_ran;

static void CALLBACK on_received(DWORD error, DWORD bytes, LPWSAOVERLAPPED o, DWORD flags)
{
    (void)o;
    (void)flags;
    routine_error = error;
    routine_bytes = bytes;
    routine_ran = 1;
}

/* The end of the receive that is under way, and before it, by a port, of the send. */
static int await_received(struct channel *c)
{
    DWORD bytes = 0, flags = 0;
    if (c->wait == OVERLAPPED_EVENT) {
        if (!WSAGetOverlappedResult(c->s, &c->received, &bytes, TRUE, &flags))
            fail("WSAGetOverlappedResult");
        return (int)bytes;
    }
    if (c->wait == ROUTINE) {
        while (!routine_ran)
            SleepEx(INFINITE, TRUE);
        if (routine_error)
            fail("the completion routine");
        return (int)routine_bytes;
    }
    for (int got = 0; !got || c->sending;) {
        ULONG_PTR key;
        OVERLAPPED *ended;
        DWORD n;
        if (!GetQueuedCompletionStatus(c->port, &n, &key, &ended, INFINITE))
            fail("GetQueuedCompletionStatus");
        if (ended == &c->sent)
            c->sending = 0;
        else {
            bytes = n;
            got = 1;
        }
    }
    return (int)bytes;
}

static int receive_overlapped(struct channel *c, char *data, int size)
{
    WSABUF room = {(u_long)size, data};
    DWORD bytes, flags = 0;
    HANDLE event = c->received.hEvent;
    memset(&c->received, 0, sizeof c->received);
    c->received.hEvent = event;
    routine_ran = 0;
    if (WSARecv(c->s, &room, 1, &bytes, &flags, &c->received, c->wait == ROUTINE ? on_received : NULL) &&
        WSAGetLastError() != WSA_IO_PENDING)
        fail("WSARecv");
    return await_received(c);
}

static void send_message(struct channel *c, char *data, int size)
{
    WSABUF bytes = {(u_long)size, data};
    DWORD sent;
    if (c->wait != PORT) {
        send_all(c->s, data, size);
        return;
    }
    memset(&c->sent, 0, sizeof c->sent);
    c->sending = 1;
    if (WSASend(c->s, &bytes, 1, &sent, 0, &c->sent, NULL) && WSAGetLastError() != WSA_IO_PENDING)
        fail("WSASend");
}

static void channel_close(struct channel *c)
{
    closesocket(c->s);
    if (c->wait == EVENTS)
        WSACloseEvent(c->event);
    if (c->received.hEvent)
        WSACloseEvent(c->received.hEvent);
    if (c->port)
        CloseHandle(c->port);
}

static void await_readable(struct channel *c)
{
    if (c->wait == SELECT)
        await(c->s, 0);
    else if (c->wait == EVENTS && !c->closing) {
        WSANETWORKEVENTS events;
        if (WSAWaitForMultipleEvents(1, &c->event, FALSE, WSA_INFINITE, FALSE) != WSA_WAIT_EVENT_0)
            fail("WSAWaitForMultipleEvents");
        if (WSAEnumNetworkEvents(c->s, c->event, &events))
            fail("WSAEnumNetworkEvents");
        /* It is said once only. */
        c->closing = (events.lNetworkEvents & FD_CLOSE) != 0;
    }
}

/* Fills `data`; 0 if the peer closed before its first byte. */
static int receive(struct channel *c, char *data, int size)
{
    int have = 0;
    while (have < size) {
        int n;
        await_readable(c);
        n = is_overlapped(c) ? receive_overlapped(c, data + have, size - have) : recv(c->s, data + have, size - have, 0);
        if (n > 0)
            have += n;
        else if (n == 0 && have == 0)
            return 0;
        else if (n == 0)
            fail("the peer closed within a message");
        else if (c->wait == BLOCKING || WSAGetLastError() != WSAEWOULDBLOCK)
            fail("recv");
    }
    return 1;
}

/* The client's half of the conversation: numbered messages out, the same ones back. */
struct caller {
    struct channel c;
    char *out, *in;
    int size;
    u64 trips;
};

static struct caller caller(const struct order *o)
{
    struct caller k = {channel(connect_to(o->port), o->wait), malloc(o->size), malloc(o->size), o->size, 0};
    int i;
    for (i = 0; i < o->size; i++)
        k.out[i] = (char)(i * 7 + 1);
    return k;
}

static void trip(struct caller *k)
{
    memcpy(k->out, &k->trips, sizeof k->trips);
    k->trips++;
    send_message(&k->c, k->out, k->size);
    if (!receive(&k->c, k->in, k->size))
        fail("the server closed the connection");
    if (memcmp(k->in, k->out, k->size))
        fail("other bytes came back");
}

static void end_call(struct caller *k, struct outcome *out)
{
    out->sent_bytes += k->trips * k->size;
    out->connections++;
    if (shutdown(k->c.s, SD_SEND))
        fail("shutdown");
    if (receive(&k->c, k->in, k->size))
        fail("an answer that nobody asked for");
    channel_close(&k->c);
    free(k->out);
    free(k->in);
}

static int by_value(const void *a, const void *b)
{
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

/* Each round trip timed by itself, by the time stamp counter: the performance counter ticks too slowly under Wine. */
static void each(struct caller *k, int ms, struct outcome *out)
{
    static unsigned samples[SAMPLES_MAX];
    double start = now_ns(), end = start + ms * 1e6, ns_per_tick;
    u64 first = __rdtsc(), last = first, now;
    int n = 0;
    while (n < SAMPLES_MAX && (n % 64 || now_ns() < end)) {
        if (n % 64 == 0)
            last = __rdtsc();
        trip(k);
        now = __rdtsc();
        samples[n++] = (unsigned)(now - last);
        last = now;
    }
    ns_per_tick = (now_ns() - start) / (double)(__rdtsc() - first);
    qsort(samples, n, sizeof *samples, by_value);
    out->messages += n;
    out->p50_ns = samples[n / 2] * ns_per_tick;
    out->p99_ns = samples[(int)(n * 0.99)] * ns_per_tick;
}

static void ask(const struct order *o, struct outcome *out)
{
    struct caller k = caller(o);
    double start = now_ns(), elapsed;
    int i, batch;
    for (i = 0; i < o->count; i++)
        trip(&k);
    /* The clock is read about every half millisecond, so that reading it does not show in the figure. */
    batch = (int)(500000.0 * o->count / (now_ns() - start)) + 1;
    start = now_ns();
    do {
        for (i = 0; i < batch; i++)
            trip(&k);
        out->messages += batch;
        elapsed = now_ns() - start;
    } while (elapsed < o->ms * 1e6);
    out->mean_ns = elapsed / (double)out->messages;
    each(&k, o->timed_ms, out);
    out->wall_ns = now_ns() - start;
    end_call(&k, out);
}

static void answer(const struct order *o, struct outcome *out)
{
    SOCKET listener = listening();
    struct channel c = channel(accepted(listener), o->wait);
    char *message = malloc(o->size);
    while (receive(&c, message, o->size)) {
        send_message(&c, message, o->size);
        out->sent_bytes += o->size;
    }
    out->connections = 1;
    channel_close(&c);
    closesocket(listener);
    free(message);
}

/* ---- one direction ---- */

/* The messages' numbers, wherever one stands whole in this piece, which begins at byte `at` of the stream. */
static void check_numbers(const char *data, int length, u64 at, int size)
{
    u64 number = (at + size - 1) / size;
    u64 k = number * size - at;
    for (; k + sizeof number <= (u64)length; k += size, number++)
        if (memcmp(data + k, &number, sizeof number))
            fail("wrong bytes in the stream");
}

static void drain(const struct order *o, struct outcome *out)
{
    SOCKET listener = listening();
    SOCKET s = accepted(listener);
    char *data = malloc(PIECE);
    u64 warm = (u64)o->count * o->size, received = 0;
    int n;
    while ((n = recv(s, data, PIECE, 0)) > 0) {
        u64 before = received;
        check_numbers(data, n, received, o->size);
        received += n;
        if (before < warm && received >= warm)
            send_all(s, (char *)&received, sizeof received);
    }
    if (n < 0)
        fail("recv");
    send_all(s, (char *)&received, sizeof received);
    closesocket(s);
    closesocket(listener);
    out->sent_bytes = 16;
    out->connections = 1;
    free(data);
}

static void send_numbered(SOCKET s, char *message, int size, u64 *number)
{
    memcpy(message, number, sizeof *number);
    ++*number;
    send_all(s, message, size);
}

/* The clock runs from when the server has read the warm-up until it has read everything: bytes in a buffer do not count. */
static void pour(const struct order *o, struct outcome *out)
{
    SOCKET s = connect_to(o->port);
    char *message = calloc(1, o->size);
    u64 number = 0, read;
    int i, batch = PIECE / o->size > 0 ? PIECE / o->size : 1;
    double start;
    for (i = 0; i < o->count; i++)
        send_numbered(s, message, o->size, &number);
    receive_all(s, (char *)&read, sizeof read);
    if (read != number * o->size)
        fail("the server did not read the warm-up");
    start = now_ns();
    while (now_ns() - start < o->ms * 1e6)
        for (i = 0; i < batch; i++)
            send_numbered(s, message, o->size, &number);
    if (shutdown(s, SD_SEND))
        fail("shutdown");
    receive_all(s, (char *)&read, sizeof read);
    out->wall_ns = now_ns() - start;
    out->messages = number - o->count;
    out->sent_bytes = number * o->size;
    out->connections = 1;
    if (read != out->sent_bytes)
        fail("the server did not read everything");
    closesocket(s);
    free(message);
}

/* ---- connect, one byte each way, close ---- */

static void accept_many(const struct order *o, struct outcome *out)
{
    SOCKET listener = listening();
    unsigned char byte = 0;
    (void)o;
    while (byte != LAST_BYTE) {
        SOCKET s = accepted(listener);
        char inverse, more;
        receive_all(s, (char *)&byte, 1);
        inverse = (char)~byte;
        send_all(s, &inverse, 1);
        if (recv(s, &more, 1, 0) != 0)
            fail("a byte too many");
        closesocket(s);
        out->connections++;
    }
    out->sent_bytes = out->connections;
    closesocket(listener);
}

static void connect_once(int port, unsigned char byte, struct outcome *out)
{
    SOCKET s = connect_to(port);
    unsigned char back;
    send_all(s, (char *)&byte, 1);
    receive_all(s, (char *)&back, 1);
    if (back != (unsigned char)~byte)
        fail("a wrong answer");
    closesocket(s);
    out->connections++;
}

static void connect_many(const struct order *o, struct outcome *out)
{
    double start;
    int i;
    for (i = 0; i < o->count; i++)
        connect_once(o->port, 0, out);
    start = now_ns();
    while (now_ns() - start < o->ms * 1e6) {
        connect_once(o->port, (unsigned char)(out->messages % LAST_BYTE), out);
        out->messages++;
    }
    out->wall_ns = now_ns() - start;
    connect_once(o->port, LAST_BYTE, out);
    out->sent_bytes = out->connections;
}

/* ---- idle connections ---- */

/* Echoes what comes, in one select over all, until each of COUNT connections has come and gone. */
static void hold(const struct order *o, struct outcome *out)
{
    SOCKET listener = listening(), open[IDLE_MAX];
    int count = 0, ended = 0, i;
    char data[4096];
    while (ended < o->count) {
        fd_set ready;
        FD_ZERO(&ready);
        if (count + ended < o->count)
            FD_SET(listener, &ready);
        for (i = 0; i < count; i++)
            FD_SET(open[i], &ready);
        if (select(0, &ready, NULL, NULL, NULL) == SOCKET_ERROR)
            fail("select");
        for (i = 0; i < count; i++) {
            int n;
            if (!FD_ISSET(open[i], &ready))
                continue;
            n = recv(open[i], data, sizeof data, 0);
            if (n < 0)
                fail("recv");
            send_all(open[i], data, n);
            out->sent_bytes += n;
            if (n == 0) {
                closesocket(open[i]);
                open[i--] = open[--count];
                ended++;
            }
        }
        if (FD_ISSET(listener, &ready))
            open[count++] = accepted(listener);
    }
    out->connections = ended;
    closesocket(listener);
}

/* COUNT connections, used and then left alone for MS. The driver watches from when it hears of it. */
static void rest(const struct order *o, struct outcome *out)
{
    struct caller *held = malloc(o->count * sizeof *held);
    struct timeval limit = {o->ms / 1000, o->ms % 1000 * 1000};
    fd_set ready;
    int i, k;
    FD_ZERO(&ready);
    for (i = 0; i < o->count; i++) {
        held[i] = caller(o);
        for (k = 0; k < IDLE_TRIPS; k++)
            trip(&held[i]);
        FD_SET(held[i].c.s, &ready);
    }
    say_ready(0);
    if (select(0, &ready, NULL, NULL, &limit) != 0)
        fail("an event on an idle connection");
    for (i = 0; i < o->count; i++)
        end_call(&held[i], out);
    free(held);
}

static const struct {
    const char *work;
    void (*server)(const struct order *, struct outcome *), (*client)(const struct order *, struct outcome *);
} works[] = {
    {"rtt", answer, ask},
    {"stream", drain, pour},
    {"connections", accept_many, connect_many},
    {"idle", hold, rest},
};

static DWORD WINAPI watch(void *done)
{
    if (WaitForSingleObject(done, PATIENCE_MS) == WAIT_TIMEOUT)
        TerminateProcess(GetCurrentProcess(), 3);
    return 0;
}

static void obey(const char *line)
{
    HANDLE done = CreateEventA(NULL, TRUE, FALSE, NULL);
    HANDLE watcher = CreateThread(NULL, 0, watch, done, 0, NULL);
    struct outcome out = {0};
    struct order o;
    size_t i;
    if (sscanf(line, "%15s %15s %15s %d %d %d %d %d", o.side, o.work, o.wait, &o.size, &o.port, &o.count, &o.ms, &o.timed_ms) != 8 ||
        o.size < (int)sizeof(u64) || o.count < 1 || (!strcmp(o.work, "idle") && o.count > IDLE_MAX))
        fail("not an order");
    for (i = 0; strcmp(o.work, works[i].work); i++)
        if (i + 1 == sizeof works / sizeof *works)
            fail("unknown work");
    (strcmp(o.side, "server") ? works[i].client : works[i].server)(&o, &out);
    SetEvent(done);
    WaitForSingleObject(watcher, INFINITE);
    CloseHandle(watcher);
    CloseHandle(done);
    say_done(&out);
}

/* The next order; 0 when the driver has hung up. */
static int next_order(char *line, int size)
{
    int have = 0;
    while (have < size - 1 && recv(driver, line + have, 1, 0) == 1) {
        if (line[have] == '\n') {
            line[have] = 0;
            return 1;
        }
        have++;
    }
    return 0;
}

int main(int argc, char **argv)
{
    WSADATA data;
    char line[256];
    if (argc != 3 || WSAStartup(MAKEWORD(2, 2), &data))
        return 2;
    if (atoi(argv[2]) < 64)
        SetProcessAffinityMask(GetCurrentProcess(), (DWORD_PTR)1 << atoi(argv[2]));
    driver = connect_to(atoi(argv[1]));
    while (next_order(line, sizeof line))
        obey(line);
    return 0;
}
