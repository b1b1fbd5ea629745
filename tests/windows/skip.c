/* FILE_SKIP_COMPLETION_PORT_ON_SUCCESS: a call that succeeds at once brings no packet, any other exactly one. Event loops
 * (mio, libuv) free or reuse an OVERLAPPED by that rule, so a wrong result or one packet too many is a crash. */
#include "common.h"

static HANDLE skipping(SOCKET s, HANDLE port, ULONG_PTR key)
{
    port = CreateIoCompletionPort((HANDLE)s, port, key, 0);
    CHECK(port && SetFileCompletionNotificationModes((HANDLE)s, FILE_SKIP_COMPLETION_PORT_ON_SUCCESS));
    return port;
}

struct told {
    DWORD error, bytes;
    bool later;
};

/* How a call ended that has just returned. Nothing else may be at the port: what we post ourselves is the next packet. */
static struct told told_once(HANDLE port, OVERLAPPED *call, bool at_once, DWORD bytes)
{
    enum { MARK = 99 };
    struct told told = {ERROR_SUCCESS, bytes, !at_once};
    ULONG_PTR key = 0;
    OVERLAPPED *of = NULL;
    if (!at_once) {
        CHECK(WSAGetLastError() == WSA_IO_PENDING);
        if (!GetQueuedCompletionStatus(port, &told.bytes, &key, &of, LATE_MS))
            told.error = GetLastError();
        CHECK(of == call && key != MARK);
    }
    CHECK(PostQueuedCompletionStatus(port, 0, MARK, NULL));
    CHECK(GetQueuedCompletionStatus(port, &bytes, &key, &of, LATE_MS) && key == MARK && !of);
    return told;
}

static void say_told(const char *what, struct told told)
{
    say("%s: %s, %lu bytes", what, error_name((int)told.error), told.bytes);
}

static int post_recv(SOCKET s, OVERLAPPED *overlapped, void *data, int length, DWORD *bytes)
{
    static DWORD flags;
    WSABUF buffer = {(ULONG)length, data};
    flags = 0;
    return WSARecv(s, &buffer, 1, bytes, &flags, overlapped, NULL);
}

static int post_send(SOCKET s, OVERLAPPED *overlapped, void *data, int length, DWORD *bytes)
{
    WSABUF buffer = {(ULONG)length, data};
    return WSASend(s, &buffer, 1, bytes, 0, overlapped, NULL);
}

/* Each kind of call by itself. Whether one succeeds at once is for the provider to choose. */
static void skip_calls_server(SOCKET s)
{
    static const char *const texts[] = {"one", "three", "seven"};
    for (int i = 0; i < COUNT(texts); i++) {
        hear();
        send_text(s, texts[i]);
    }
    say_recv("recv", s, 5, MSG_WAITALL);
    say_recv("recv", s, 4, MSG_WAITALL);
    say_recv("recv", s, 7, MSG_WAITALL);
    meet();
}
static void skip_calls_client(SOCKET s)
{
    char data[20] = "";
    DWORD bytes = 0;
    OVERLAPPED call = {0};
    HANDLE port = skipping(s, NULL, 1);
    CALL("WSARecv", post_recv(s, &call, data, 20, &bytes));
    tell(0);
    say_told("WSARecv", told_once(port, &call, false, 0));
    tell(0);
    await_unread(s, 5);
    bool at_once = !post_recv(s, &call, data, 20, &bytes);
    say_told("WSARecv", told_once(port, &call, at_once, bytes));
    BOOL_CALL("ReadFile", ReadFile((HANDLE)s, data, 20, NULL, &call));
    tell(0);
    say_told("ReadFile", told_once(port, &call, false, 0));
    say("%s", data);
    at_once = !post_send(s, &call, "hello", 5, &bytes);
    say_told("WSASend", told_once(port, &call, at_once, bytes));
    at_once = WriteFile((HANDLE)s, "file", 4, &bytes, &call);
    say_told("WriteFile", told_once(port, &call, at_once, bytes));
    WSABUF buffer = {7, "message"};
    WSAMSG message = {.lpBuffers = &buffer, .dwBufferCount = 1};
    at_once = !WSASendMsg(s, &message, 0, &bytes, &call, NULL);
    say_told("WSASendMsg", told_once(port, &call, at_once, bytes));
    CloseHandle(port);
    meet();
}

/* A mirror as event loops are built: one OVERLAPPED for each direction, used again at once; what succeeds at once goes on
 * in the calling thread, the rest in the thread that took the packet. Every other connection asks with zero bytes whether
 * there is something, and takes it with recv. */
enum { MIRRORS = 8, ROOM = 16 * KIB, TURNS = 40, LARGEST = 24 * KIB };
/* Warming up takes its time, and a few connections that were carried before will do. */
enum { WARM = 2 };

struct mirror {
    SOCKET s;
    CRITICAL_SECTION lock;
    OVERLAPPED receive, send;
    bool receiving, sending, asks, ended;
    int filled, sent;
    struct rng rng;
    char data[ROOM];
};

static struct mirror mirrors[MIRRORS];
static HANDLE mirror_port;
static LONG mirrors_left;

static void mirror_received(struct mirror *m, int bytes)
{
    m->filled = bytes;
    m->sent = 0;
    m->ended = !bytes;
}

static void mirror_receive(struct mirror *m)
{
    DWORD bytes = 0;
    int length = between(&m->rng, 1, ROOM);
    if (m->asks) {
        int got = recv(m->s, m->data, length, 0);
        if (got >= 0) {
            mirror_received(m, got);
            return;
        }
        CHECK(WSAGetLastError() == WSAEWOULDBLOCK);
        length = 0;
    }
    m->receiving = true;
    if (post_recv(m->s, &m->receive, m->data, length, &bytes)) {
        CHECK(WSAGetLastError() == WSA_IO_PENDING);
        return;
    }
    m->receiving = false;
    if (!m->asks)
        mirror_received(m, (int)bytes);
}

static void mirror_send(struct mirror *m)
{
    DWORD bytes = 0;
    m->sending = true;
    if (post_send(m->s, &m->send, m->data + m->sent, m->filled - m->sent, &bytes)) {
        CHECK(WSAGetLastError() == WSA_IO_PENDING);
        return;
    }
    m->sending = false;
    m->sent += (int)bytes;
}

/* Until something is pending. The lock is held. */
static void mirror_on(struct mirror *m)
{
    while (!m->ended && !m->receiving && !m->sending)
        m->sent < m->filled ? mirror_send(m) : mirror_receive(m);
    if (m->ended) {
        MUST(shutdown(m->s, SD_SEND));
        if (!InterlockedDecrement(&mirrors_left))
            for (int i = 0; i < 2; i++)
                PostQueuedCompletionStatus(mirror_port, 0, 0, NULL);
    }
}

static void mirror_thread(void *argument)
{
    UNUSED(argument);
    for (;;) {
        DWORD bytes = 0, again = 0, flags = 0;
        ULONG_PTR key = 0;
        OVERLAPPED *of = NULL;
        CHECK(GetQueuedCompletionStatus(mirror_port, &bytes, &key, &of, INFINITE));
        if (!key)
            return;
        struct mirror *m = &mirrors[key - 1];
        EnterCriticalSection(&m->lock);
        bool received = of == &m->receive;
        CHECK((received || of == &m->send) && !m->ended);
        bool *expected = received ? &m->receiving : &m->sending;
        CHECK(*expected);
        *expected = false;
        CHECK(WSAGetOverlappedResult(m->s, of, &again, FALSE, &flags) && again == bytes);
        if (!received)
            m->sent += (int)bytes;
        else if (!m->asks)
            mirror_received(m, (int)bytes);
        mirror_on(m);
        LeaveCriticalSection(&m->lock);
    }
}

static void skip_mirror_server(SOCKET listener)
{
    mirror_port = NULL;
    mirrors_left = MIRRORS;
    for (int i = 0; i < MIRRORS; i++) {
        struct mirror *m = &mirrors[i];
        *m = (struct mirror){.s = i < WARM ? accept_warm(listener) : accept_from(listener), .asks = i % 2, .rng = {(uint64_t)i + 1}};
        InitializeCriticalSection(&m->lock);
        set_nonblocking(m->s, true);
        mirror_port = skipping(m->s, mirror_port, (ULONG_PTR)i + 1);
    }
    HANDLE threads[2] = {start_thread(mirror_thread, NULL), start_thread(mirror_thread, NULL)};
    for (int i = 0; i < MIRRORS; i++) {
        EnterCriticalSection(&mirrors[i].lock);
        mirror_on(&mirrors[i]);
        LeaveCriticalSection(&mirrors[i].lock);
    }
    for (int i = 0; i < COUNT(threads); i++)
        join(threads[i]);
    for (int i = 0; i < MIRRORS; i++) {
        closesocket(mirrors[i].s);
        DeleteCriticalSection(&mirrors[i].lock);
    }
    CloseHandle(mirror_port);
    say("%d mirrors, each call told of once", MIRRORS);
    meet();
}

static void look_into_mirror(void *argument)
{
    SOCKET s = *(SOCKET *)argument;
    struct stream out = {s, 0}, in = {s, 0};
    struct rng rng = {s};
    for (int i = 0; i < TURNS; i++) {
        size_t size = (size_t)between(&rng, 1, i % 4 ? 400 : LARGEST);
        stream_send(&out, s, size, LARGEST);
        stream_receive(&in, s, size, LARGEST);
    }
    MUST(shutdown(s, SD_SEND));
    CHECK(recv(s, &(char){0}, 1, 0) == 0);
}
static void skip_mirror_client(SOCKET port)
{
    SOCKET all[MIRRORS];
    HANDLE threads[MIRRORS];
    for (int i = 0; i < MIRRORS; i++)
        all[i] = i < WARM ? connect_warm((unsigned short)port) : connect_to((unsigned short)port);
    for (int i = 0; i < MIRRORS; i++)
        threads[i] = start_thread(look_into_mirror, &all[i]);
    for (int i = 0; i < MIRRORS; i++) {
        join(threads[i]);
        closesocket(all[i]);
    }
    say("all bytes came back");
    meet();
}

/* A receive is cancelled while its byte comes: it ends one way or the other, and the byte is not lost. */
enum { ROUNDS = 100 };
static void skip_cancel_server(SOCKET s)
{
    for (int i = 0; i < ROUNDS; i++) {
        hear();
        char byte = (char)i;
        send_all(s, &byte, 1);
    }
    meet();
}
static void skip_cancel_client(SOCKET s)
{
    OVERLAPPED call = {0};
    HANDLE port = skipping(s, NULL, 1);
    for (int i = 0; i < ROUNDS; i++) {
        char byte = 0;
        DWORD bytes = 0;
        tell(0);
        bool at_once = !post_recv(s, &call, &byte, 1, &bytes);
        int error = WSAGetLastError();
        CHECK(CancelIoEx((HANDLE)s, &call) || GetLastError() == ERROR_NOT_FOUND);
        WSASetLastError(error);
        struct told told = told_once(port, &call, at_once, bytes);
        CHECK(told.error ? told.error == WSA_OPERATION_ABORTED && !told.bytes : told.bytes == 1);
        if (told.error)
            CHECK(recv_full(s, &byte, 1) == 1);
        CHECK(byte == (char)i);
    }
    say("%d receives, cancelled or not", ROUNDS);
    CloseHandle(port);
    meet();
}

/* A socket is closed while the byte comes for which it waits. */
static void send_a_byte(void *argument) { send_all(*(SOCKET *)argument, "x", 1); }

static void skip_close_solo(SOCKET unused)
{
    UNUSED(unused);
    SOCKET listener = listen_on();
    for (int i = 0; i < ROUNDS; i++) {
        SOCKET ends[2];
        char byte;
        DWORD bytes;
        OVERLAPPED call = {0};
        if (i < WARM) {
            socket_pair(ends);
        } else {
            ends[1] = connect_to(port_of(listener));
            ends[0] = accept_from(listener);
        }
        HANDLE port = skipping(ends[0], NULL, 1);
        CHECK(post_recv(ends[0], &call, &byte, 1, &bytes) && WSAGetLastError() == WSA_IO_PENDING);
        HANDLE sender = start_thread(send_a_byte, &ends[1]);
        MUST(closesocket(ends[0]));
        WSASetLastError(WSA_IO_PENDING);
        struct told told = told_once(port, &call, false, 0);
        if (told.error ? told.bytes : told.bytes != 1)
            die("closed: %s, %lu bytes", error_name((int)told.error), told.bytes);
        join(sender);
        closesocket(ends[1]);
        CloseHandle(port);
    }
    closesocket(listener);
    say("each receive told of once");
}

/* The extension functions follow the rule as well. */
static void skip_extensions_solo(SOCKET unused)
{
    UNUSED(unused);
    enum { SLOT = sizeof(struct sockaddr_storage) + 16 };
    GUID accept_id = WSAID_ACCEPTEX, connect_id = WSAID_CONNECTEX;
    LPFN_ACCEPTEX accept_ex;
    LPFN_CONNECTEX connect_ex;
    DWORD bytes;
    SOCKET listener = listen_on();
    HANDLE accepting = skipping(listener, NULL, 1);
    MUST(WSAIoctl(listener, SIO_GET_EXTENSION_FUNCTION_POINTER, &accept_id, sizeof accept_id, &accept_ex, sizeof accept_ex, &bytes, NULL, NULL));
    MUST(WSAIoctl(listener, SIO_GET_EXTENSION_FUNCTION_POINTER, &connect_id, sizeof connect_id, &connect_ex, sizeof connect_ex, &bytes, NULL, NULL));
    for (int i = 0; i < 10; i++) {
        OVERLAPPED accept_call = {0}, connect_call = {0};
        char buffer[2 * SLOT + 8];
        struct sockaddr_storage address;
        SOCKET connected = stream_socket(), accepted = stream_socket();
        HANDLE connecting = skipping(connected, NULL, 2);
        int length = loopback(family, 0, &address);
        MUST(bind(connected, (struct sockaddr *)&address, length));
        length = loopback(family, port_of(listener), &address);
        /* In turns: the accept waits for the connection, or it waits for the accept. */
        bool waits = i % 2, at_once[2] = {false, false};
        DWORD first = i % 4 < 2 ? 0 : 8;
        for (int k = 0; k < 2; k++) {
            bytes = 0;
            if (k == waits)
                at_once[0] = accept_ex(listener, accepted, buffer, first, SLOT, SLOT, &bytes, &accept_call);
            else
                at_once[1] = connect_ex(connected, (struct sockaddr *)&address, length, "greeting", first, &bytes, &connect_call);
            CHECK(at_once[k != waits] || WSAGetLastError() == WSA_IO_PENDING);
        }
        WSASetLastError(WSA_IO_PENDING);
        struct told told = told_once(connecting, &connect_call, at_once[1], first);
        CHECK(!told.error && told.bytes == first);
        WSASetLastError(WSA_IO_PENDING);
        told = told_once(accepting, &accept_call, at_once[0], first);
        CHECK(!told.error && told.bytes == first);
        closesocket(connected);
        closesocket(accepted);
        CloseHandle(connecting);
    }
    closesocket(listener);
    CloseHandle(accepting);
    say("each accept and connect told of once");
}

const struct test_case skip_cases[] = {
    CASE(skip_calls), RAW_CASE(skip_mirror), CASE(skip_cancel), SOLO_CASE(skip_close), SOLO_CASE(skip_extensions), END_OF_CASES,
};
