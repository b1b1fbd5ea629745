/* Odd arguments: sizes of buffers, structures that say one thing and numbers that say another, what the last error is. */
#include "common.h"

static BOOL called;
static DWORD called_with;
static void CALLBACK routine(DWORD error, DWORD bytes, LPWSAOVERLAPPED call, DWORD flags)
{
    UNUSED(bytes), UNUSED(call), UNUSED(flags);
    called = TRUE;
    called_with = error;
}

struct request {
    const char *name;
    DWORD code;
    const void *input;
    DWORD input_size, output_size;
    bool once; /* not overlapped: Wine never signals the end of these */
};

/* What it says; what it writes is not said where it is of this machine. */
static void say_ioctl(SOCKET s, const struct request *r, bool output, bool bytes_place, int how)
{
    static const char *const ways[] = {"", ", event", ", routine"};
    char result[256], name[128];
    DWORD bytes = 0xdead;
    OVERLAPPED call = {.Internal = 0xdead, .InternalHigh = 0xdead};
    if (how == 1)
        call.hEvent = CreateEventA(NULL, TRUE, FALSE, NULL);
    called = FALSE;
    snprintf(name, sizeof name, "%s %lu %s%lu%s%s", r->name, r->input_size, output ? "" : "nowhere ", r->output_size,
             bytes_place ? "" : ", no place", ways[how]);
    int done = CALL(name, WSAIoctl(s, r->code, (void *)r->input, r->input_size, output ? result : NULL, r->output_size,
                                   bytes_place ? &bytes : NULL, how ? &call : NULL, how == 2 ? routine : NULL));
    bool pending = done && WSAGetLastError() == WSA_IO_PENDING;
    if (how == 1 && pending)
        WaitForSingleObject(call.hEvent, LATE_MS);
    SleepEx(0, TRUE);
    if (how)
        say("    status %lx, %llx bytes, signaled %d, called %d %s", pending || !done ? (DWORD)call.Internal : 0,
            pending || !done ? (long long)call.InternalHigh : 0, how == 1 && !WaitForSingleObject(call.hEvent, 0), called,
            called ? error_name((int)called_with) : "");
    else
        say("    %lx bytes", bytes);
    if (call.hEvent)
        CloseHandle(call.hEvent);
}

static void odd_ioctls_solo(SOCKET unused)
{
    UNUSED(unused);
    static const GUID accept_ex = WSAID_ACCEPTEX, nothing = {1, 2, 3, {4}};
    static const u_long on = 1;
    static const DWORD keepalive[3] = {0, 1000, 1000};
    static const struct request requests[] = {
        {"FIONREAD", FIONREAD, NULL, 0, 4, false},
        {"FIONREAD", FIONREAD, NULL, 0, 8, false},
        {"FIONREAD", FIONREAD, NULL, 0, 3, false},
        {"FIONREAD", FIONREAD, NULL, 0, 0, false},
        {"FIONBIO", (DWORD)FIONBIO, &on, 4, 0, false},
        {"FIONBIO", (DWORD)FIONBIO, &on, 4, 4, false},
        {"FIONBIO", (DWORD)FIONBIO, &on, 3, 0, false},
        {"FIONBIO", (DWORD)FIONBIO, &on, 5, 0, false},
        {"FIONBIO", (DWORD)FIONBIO, NULL, 4, 0, false},
        {"FIONBIO", (DWORD)FIONBIO, &on, 0, 0, false},
        {"SIOCATMARK", (DWORD)SIOCATMARK, NULL, 0, 4, false},
        {"SIOCATMARK", (DWORD)SIOCATMARK, NULL, 0, 1, false},
        {"SIOCATMARK", (DWORD)SIOCATMARK, NULL, 0, 0, false},
        {"extension", SIO_GET_EXTENSION_FUNCTION_POINTER, &accept_ex, sizeof accept_ex, 8, false},
        {"extension", SIO_GET_EXTENSION_FUNCTION_POINTER, &accept_ex, sizeof accept_ex, 16, false},
        {"no extension", SIO_GET_EXTENSION_FUNCTION_POINTER, &nothing, sizeof nothing, 8, false},
        {"base handle", SIO_BASE_HANDLE, NULL, 0, 8, true},
        {"base handle", SIO_BASE_HANDLE, NULL, 0, 16, true},
        {"base handle", SIO_BASE_HANDLE, NULL, 0, 4, true},
        {"base handle", SIO_BASE_HANDLE, NULL, 0, 0, true},
        {"keepalive", SIO_KEEPALIVE_VALS, keepalive, 12, 0, false},
        {"keepalive", SIO_KEEPALIVE_VALS, keepalive, 11, 0, false},
        {"keepalive", SIO_KEEPALIVE_VALS, NULL, 0, 0, false},
        {"address list", SIO_ADDRESS_LIST_QUERY, NULL, 0, 0, false},
        {"address list", SIO_ADDRESS_LIST_QUERY, NULL, 0, 3, false},
        {"interfaces", SIO_GET_INTERFACE_LIST, NULL, 0, 0, true},
        {"unknown", 0x4004aaaa, NULL, 0, 4, true},
        {"unknown", 0xdeadbeef, NULL, 0, 4, true},
    };
    for (int connected = 0; connected < 2; connected++) {
        SOCKET ends[2] = {INVALID_SOCKET, INVALID_SOCKET};
        if (connected)
            socket_pair(ends);
        else
            ends[0] = stream_socket();
        say("%s", connected ? "connected" : "not connected");
        for (int i = 0; i < COUNT(requests); i++)
            for (int how = 0; how < (requests[i].once ? 1 : 3); how++) {
                say_ioctl(ends[0], &requests[i], true, true, how);
                if (requests[i].code == FIONREAD || requests[i].code == (DWORD)SIOCATMARK)
                    say_ioctl(ends[0], &requests[i], false, true, how);
                if (requests[i].code == FIONREAD)
                    say_ioctl(ends[0], &requests[i], true, false, how);
            }
        closesocket(ends[0]);
        closesocket(ends[1]);
    }
}

/* Which of the numbers count, and which of the structure's. */
static void odd_info_solo(SOCKET unused)
{
    UNUSED(unused);
    WSAPROTOCOL_INFOA tcp, info;
    WSAPROTOCOL_INFOW wide;
    int length = sizeof tcp;
    SOCKET s = (SOCKET)MUST(socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
    MUST(getsockopt(s, SOL_SOCKET, SO_PROTOCOL_INFOA, (char *)&tcp, &length));
    closesocket(s);
    static const int families[] = {AF_INET, AF_INET6, AF_UNSPEC, FROM_PROTOCOL_INFO, 0xdead};
    static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, 0, FROM_PROTOCOL_INFO, 0xdead};
    static const int protocols[] = {IPPROTO_TCP, IPPROTO_UDP, 0, FROM_PROTOCOL_INFO, 0xdead};
    for (int given = 0; given < 5; given++)
        for (int i = 0; i < COUNT(families); i++)
            for (int j = 0; j < COUNT(kinds); j++)
                for (int k = 0; k < COUNT(protocols); k++) {
                    info = tcp;
                    if (given == 1)
                        info.iAddressFamily = AF_INET6;
                    if (given == 2)
                        info.iSocketType = SOCK_DGRAM;
                    if (given == 3)
                        info.iProtocol = IPPROTO_UDP;
                    WSASetLastError(0);
                    s = WSASocketA(families[i], kinds[j], protocols[k], given < 4 ? &info : NULL, 0, WSA_FLAG_OVERLAPPED);
                    int error = WSAGetLastError();
                    char made[64] = "";
                    length = sizeof wide;
                    if (s != INVALID_SOCKET && !getsockopt(s, SOL_SOCKET, SO_PROTOCOL_INFOW, (char *)&wide, &length))
                        snprintf(made, sizeof made, "%d %d %d", wide.iAddressFamily, wide.iSocketType, wide.iProtocol);
                    say("%d: %d %d %d: %s", given, families[i], kinds[j], protocols[k], s == INVALID_SOCKET ? error_name(error) : made);
                    closesocket(s);
                }
}

/* Each call that succeeds: whether it touches the last error. */
#define SUCCEEDS(expression)                                                               \
    do {                                                                                   \
        SetLastError(0x5a5a);                                                              \
        long long value_ = (long long)(expression);                                        \
        DWORD error_ = GetLastError();                                                     \
        say("%s: %s, last error %lx", #expression, value_ == -1 ? "fails" : "good", error_); \
    } while (0)

static void odd_last_errors_solo(SOCKET unused)
{
    UNUSED(unused);
    struct sockaddr_storage address;
    SOCKET ends[2], s;
    int value = 1, length = sizeof value;
    u_long off = 0;
    DWORD bytes, flags = 0;
    char data[16];
    WSABUF buffer = {1, data};
    WSAEVENT event = WSACreateEvent();
    WSANETWORKEVENTS told;
    bool as_it_was = warm;
    warm = false; /* calls that a carried connection answers itself are not compared */
    socket_pair(ends);
    warm = as_it_was;
    SUCCEEDS(s = socket(AF_INET, SOCK_STREAM, 0));
    int size = loopback(AF_INET, 0, &address);
    SUCCEEDS(bind(s, (struct sockaddr *)&address, size));
    SUCCEEDS(listen(s, 1));
    SUCCEEDS((size = sizeof address, getsockname(s, (struct sockaddr *)&address, &size)));
    SUCCEEDS(setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, (char *)&value, sizeof value));
    SUCCEEDS(getsockopt(s, SOL_SOCKET, SO_KEEPALIVE, (char *)&value, &length));
    SUCCEEDS(closesocket(s));
    SUCCEEDS(send(ends[0], "x", 1, 0));
    SUCCEEDS(recv(ends[1], data, 1, 0));
    SUCCEEDS(WSASend(ends[0], &buffer, 1, &bytes, 0, NULL, NULL));
    SUCCEEDS(WSARecv(ends[1], &buffer, 1, &bytes, &flags, NULL, NULL));
    SUCCEEDS(sendto(ends[0], "x", 1, 0, NULL, 0));
    SUCCEEDS(recvfrom(ends[1], data, 1, 0, NULL, NULL));
    SUCCEEDS(ioctlsocket(ends[0], FIONREAD, &off));
    SUCCEEDS((size = sizeof address, getpeername(ends[0], (struct sockaddr *)&address, &size)));
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    SUCCEEDS(select(0, NULL, &set, NULL, NULL));
    WSAPOLLFD one = {ends[0], POLLWRNORM, 0};
    SUCCEEDS(WSAPoll(&one, 1, 0));
    SUCCEEDS(WSAEventSelect(ends[0], event, FD_WRITE));
    SUCCEEDS(WSAEnumNetworkEvents(ends[0], event, &told));
    SUCCEEDS(WSAEventSelect(ends[0], NULL, 0));
    off = 0;
    SUCCEEDS(ioctlsocket(ends[0], FIONBIO, &off));
    OVERLAPPED call = {.hEvent = event};
    SUCCEEDS(WSARecv(ends[0], &buffer, 1, NULL, &flags, &call, NULL));
    MUST(send(ends[1], "x", 1, 0));
    SUCCEEDS(WSAGetOverlappedResult(ends[0], &call, &bytes, TRUE, &flags));
    SUCCEEDS(WSASend(ends[0], &buffer, 1, NULL, 0, &call, NULL));
    SUCCEEDS(shutdown(ends[0], SD_SEND));
    SUCCEEDS(closesocket(ends[0]));
    SUCCEEDS(closesocket(ends[1]));
    WSACloseEvent(event);
}

/* Every status that a request could end with. */
static void odd_statuses_solo(SOCKET unused)
{
    UNUSED(unused);
    static const DWORD severities[] = {0x00000000, 0x40000000, 0x80000000, 0xc0000000, 0xc0070000, 0x80070000, 0xc0010000};
    SOCKET s = stream_socket();
    for (int i = 0; i < COUNT(severities); i++) {
        DWORD last = ~0u, from = 0, flags = 0, bytes = 0;
        for (DWORD low = 0; low <= 0x10000; low++) {
            OVERLAPPED call = {.Internal = severities[i] | low, .InternalHigh = 3};
            SetLastError(0x5a5a);
            BOOL good = WSAGetOverlappedResult(s, &call, &bytes, FALSE, &flags);
            DWORD error = good << 31 | GetLastError();
            if (error == last && low < 0x10000)
                continue;
            if (low)
                say("%lx to %lx: %lx", severities[i] | from, severities[i] | (low - 1), last);
            last = error, from = low;
        }
        CHECK(bytes == 3);
    }
    closesocket(s);
}

static void odd_calls_solo(SOCKET unused)
{
    UNUSED(unused);
    SOCKET ends[2];
    DWORD bytes = 0xdead, flags = 0;
    char data[16];
    WSABUF buffer = {4, data};
    bool as_it_was = warm;
    warm = false; /* calls that a carried connection answers itself are not compared */
    socket_pair(ends);
    warm = as_it_was;
    CALL("WSASendMsg of nothing", WSASendMsg(ends[0], NULL, 0, &bytes, NULL, NULL));
    CALL("WSASendMsg of nothing, no socket", WSASendMsg((SOCKET)0xdead0, NULL, 0, &bytes, NULL, NULL));
    WSAMSG message = {0};
    CALL("WSASendMsg of no buffer", WSASendMsg(ends[0], &message, 0, &bytes, NULL, NULL));
    say("%lx", bytes);
    HANDLE port = CreateIoCompletionPort((HANDLE)ends[0], NULL, 1, 0);
    OVERLAPPED call = {0};
    CALL("WSARecv by routine, with a port", WSARecv(ends[0], &buffer, 1, NULL, &flags, &call, routine));
    CALL("WSASend by routine, with a port", WSASend(ends[0], &buffer, 1, NULL, 0, &call, routine));
    send_text(ends[1], "text");
    say("a routine is called: %lu %d", SleepEx(100, TRUE), called);
    ULONG_PTR key;
    OVERLAPPED *of = NULL;
    say("a packet: %d", GetQueuedCompletionStatus(port, &bytes, &key, &of, 0));
    CALL("WSARecv into nothing", WSARecv(ends[0], NULL, 1, NULL, &flags, NULL, NULL));
    CALL("WSARecv, no flags", WSARecv(ends[0], &buffer, 1, &bytes, NULL, NULL, NULL));
    CALL("WSARecv, overlapped, no flags", WSARecv(ends[0], &buffer, 1, &bytes, NULL, &call, NULL));
    CALL("WSARecv, no count", WSARecv(ends[0], &buffer, 0, &bytes, &flags, NULL, NULL));
    CloseHandle(port);
    closesocket(ends[0]);
    closesocket(ends[1]);
}

const struct test_case odd_cases[] = {
    SOLO_CASE(odd_ioctls), SOLO_CASE(odd_info), SOLO_CASE(odd_last_errors), SOLO_CASE(odd_statuses), SOLO_CASE(odd_calls), END_OF_CASES,
};
