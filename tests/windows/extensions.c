/* The extension functions, asked for by SIO_GET_EXTENSION_FUNCTION_POINTER: AcceptEx, ConnectEx, DisconnectEx, TransmitFile. */
#include "common.h"

static void *extension(SOCKET s, GUID guid)
{
    void *function = NULL;
    DWORD bytes = 0;
    WSASetLastError(0);
    int result = WSAIoctl(s, SIO_GET_EXTENSION_FUNCTION_POINTER, &guid, sizeof guid, &function, sizeof function, &bytes, NULL, NULL);
    if (result || !function || bytes != sizeof function)
        die("no extension function: %s", error_name(WSAGetLastError()));
    return function;
}

static void say_result_of(const char *what, SOCKET s, OVERLAPPED *overlapped)
{
    DWORD bytes = 0, flags = 0;
    WSASetLastError(0);
    if (WSAGetOverlappedResult(s, overlapped, &bytes, TRUE, &flags))
        say("%s: %lu bytes", what, bytes);
    else
        say("%s: %s", what, error_name(WSAGetLastError()));
}

static const char *begun(BOOL yes) { return yes || WSAGetLastError() == WSA_IO_PENDING ? "begun" : error_name(WSAGetLastError()); }

enum { SLOT = sizeof(struct sockaddr_storage) + 16 };

/* Accepts one by AcceptEx, with its first `length` bytes. */
static SOCKET accept_ex(SOCKET listener, char *data, int length)
{
    LPFN_ACCEPTEX accept_function = (LPFN_ACCEPTEX)extension(listener, (GUID)WSAID_ACCEPTEX);
    LPFN_GETACCEPTEXSOCKADDRS addresses = (LPFN_GETACCEPTEXSOCKADDRS)extension(listener, (GUID)WSAID_GETACCEPTEXSOCKADDRS);
    static char buffer[1000 + 2 * SLOT];
    struct sockaddr *mine = NULL, *theirs = NULL;
    int mine_length = 0, theirs_length = 0;
    SOCKET s = stream_socket();
    DWORD bytes = 0;
    OVERLAPPED overlapped = {.hEvent = WSACreateEvent()};
    say("AcceptEx: %s", begun(accept_function(listener, s, buffer, (DWORD)length, SLOT, SLOT, &bytes, &overlapped)));
    tell(0);
    say_result_of("AcceptEx", listener, &overlapped);
    memcpy(data, buffer, (size_t)length);
    CALL("SO_UPDATE_ACCEPT_CONTEXT", setsockopt(s, SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, (char *)&listener, sizeof listener));
    addresses(buffer, (DWORD)length, SLOT, SLOT, &mine, &mine_length, &theirs, &theirs_length);
    struct sockaddr_storage name;
    int name_length = sizeof name;
    MUST(getsockname(s, (struct sockaddr *)&name, &name_length));
    say("local address as getsockname says: %d", mine && mine_length >= name_length && !memcmp(&((struct sockaddr_in *)mine)->sin_port, &((struct sockaddr_in *)&name)->sin_port, 2));
    MUST(getpeername(s, (struct sockaddr *)&name, &name_length));
    say("remote address as getpeername says: %d", theirs && !memcmp(&((struct sockaddr_in *)theirs)->sin_port, &((struct sockaddr_in *)&name)->sin_port, 2));
    WSACloseEvent(overlapped.hEvent);
    return s;
}

static SOCKET connect_ex(unsigned short port, const char *text)
{
    struct sockaddr_storage address;
    SOCKET s = stream_socket();
    LPFN_CONNECTEX function = (LPFN_CONNECTEX)extension(s, (GUID)WSAID_CONNECTEX);
    OVERLAPPED overlapped = {.hEvent = WSACreateEvent()};
    DWORD sent = 0;
    int length = loopback(family, port, &address);
    say("ConnectEx, unbound: %s", begun(function(s, (struct sockaddr *)&address, length, NULL, 0, &sent, &overlapped)));
    length = loopback(family, 0, &address);
    MUST(bind(s, (struct sockaddr *)&address, length));
    length = loopback(family, port, &address);
    say("ConnectEx: %s", begun(function(s, (struct sockaddr *)&address, length, (void *)text, text ? (DWORD)strlen(text) : 0, &sent, &overlapped)));
    say_result_of("ConnectEx", s, &overlapped);
    CALL("SO_UPDATE_CONNECT_CONTEXT", setsockopt(s, SOL_SOCKET, SO_UPDATE_CONNECT_CONTEXT, NULL, 0));
    WSACloseEvent(overlapped.hEvent);
    return s;
}

/* Both extension calls, then a busy connection on what they made. */
static void accept_connect_ex_server(SOCKET listener)
{
    char data[16] = "";
    SOCKET s = accept_ex(listener, data, 0);
    struct stream in = {1, 0}, out = {2, 0};
    for (int i = 0; i < 30; i++) {
        stream_receive(&in, s, 4000, 4000);
        stream_send(&out, s, 4000, 4000);
    }
    say("30 turns");
    closesocket(s);
    s = accept_ex(listener, data, 5);
    say("first bytes %.5s", data);
    say_recv("recv", s, 10, 0);
    closesocket(s);
    meet();
}
static void accept_connect_ex_client(SOCKET port)
{
    hear();
    SOCKET s = connect_ex((unsigned short)port, NULL);
    struct stream out = {1, 0}, in = {2, 0};
    for (int i = 0; i < 30; i++) {
        stream_send(&out, s, 4000, 4000);
        stream_receive(&in, s, 4000, 4000);
    }
    say("30 turns");
    closesocket(s);
    hear();
    s = connect_ex((unsigned short)port, "first");
    MUST(shutdown(s, SD_SEND));
    meet();
    closesocket(s);
}

static void connect_ex_errors_solo(SOCKET unused)
{
    UNUSED(unused);
    struct sockaddr_storage address;
    SOCKET gone = listen_on();
    int length = loopback(family, port_of(gone), &address);
    closesocket(gone);
    SOCKET s = stream_socket();
    LPFN_CONNECTEX function = (LPFN_CONNECTEX)extension(s, (GUID)WSAID_CONNECTEX);
    OVERLAPPED overlapped = {.hEvent = WSACreateEvent()};
    struct sockaddr_storage any;
    int any_length = loopback(family, 0, &any);
    MUST(bind(s, (struct sockaddr *)&any, any_length));
    say("ConnectEx, no overlapped: %s", begun(function(s, (struct sockaddr *)&address, length, NULL, 0, NULL, NULL)));
    say("ConnectEx to nobody: %s", begun(function(s, (struct sockaddr *)&address, length, NULL, 0, NULL, &overlapped)));
    say_result_of("ConnectEx", s, &overlapped);
    closesocket(s);
    GUID nonsense = {1, 2, 3, {4, 5, 6, 7, 8, 9, 10, 11}};
    void *pointer;
    DWORD bytes;
    s = stream_socket();
    CALL("an unknown function", WSAIoctl(s, SIO_GET_EXTENSION_FUNCTION_POINTER, &nonsense, sizeof nonsense, &pointer, sizeof pointer, &bytes, NULL, NULL));
    closesocket(s);
    WSACloseEvent(overlapped.hEvent);
}

/* AcceptEx that is cancelled by closing the listener. */
static void accept_ex_closed_solo(SOCKET unused)
{
    UNUSED(unused);
    char buffer[2 * SLOT];
    DWORD bytes;
    SOCKET listener = listen_on(), s = stream_socket();
    OVERLAPPED overlapped = {.hEvent = WSACreateEvent()};
    LPFN_ACCEPTEX function = (LPFN_ACCEPTEX)extension(listener, (GUID)WSAID_ACCEPTEX);
    HANDLE port = CreateIoCompletionPort((HANDLE)listener, NULL, 3, 0);
    say("AcceptEx: %s", begun(function(listener, s, buffer, 0, SLOT, SLOT, &bytes, &overlapped)));
    CALL("closesocket", closesocket(listener));
    ULONG_PTR key = 0;
    OVERLAPPED *done = NULL;
    BOOL good = GetQueuedCompletionStatus(port, &bytes, &key, &done, LATE_MS);
    say("packet: %s, key %llu, %s", good ? "good" : error_name((int)GetLastError()), (unsigned long long)key, done == &overlapped ? "ours" : "none");
    closesocket(s);
    WSACloseEvent(overlapped.hEvent);
    CloseHandle(port);
}

static HANDLE stream_file(struct stream *stream, int length)
{
    char directory[MAX_PATH], path[MAX_PATH];
    DWORD written;
    CHECK(GetTempPathA(sizeof directory, directory) && GetTempFileNameA(directory, "sgm", 0, path));
    HANDLE file = CreateFileA(path, GENERIC_READ | GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, FILE_FLAG_DELETE_ON_CLOSE, NULL);
    char *data = malloc((size_t)length);
    stream_fill(stream, data, (size_t)length);
    CHECK(file != INVALID_HANDLE_VALUE && WriteFile(file, data, (DWORD)length, &written, NULL));
    SetFilePointer(file, 0, NULL, FILE_BEGIN);
    free(data);
    return file;
}

static void transmit_file_server(SOCKET s)
{
    struct stream in = {4, 0};
    char data[8] = "";
    CHECK(recv_full(s, data, 4) == 4);
    say("%s", data);
    stream_receive(&in, s, 300000, 20000);
    CHECK(recv_full(s, data, 4) == 4);
    say("300000 bytes, %s", data);
    in.offset = 1000;
    stream_receive(&in, s, 5000, 5000);
    say("a part of 5000 bytes");
    meet();
}
static void transmit_file_client(SOCKET s)
{
    struct stream contents = {4, 0};
    LPFN_TRANSMITFILE function = (LPFN_TRANSMITFILE)extension(s, (GUID)WSAID_TRANSMITFILE);
    HANDLE file = stream_file(&contents, 300000);
    TRANSMIT_FILE_BUFFERS ends = {"head", 4, "tail", 4};
    BOOL_CALL("TransmitFile", function(s, file, 0, 0, NULL, &ends, 0));
    OVERLAPPED overlapped = {.hEvent = WSACreateEvent(), .Offset = 1000};
    say("TransmitFile, overlapped: %s", begun(function(s, file, 5000, 0, &overlapped, NULL, 0)));
    say_result_of("TransmitFile", s, &overlapped);
    WSACloseEvent(overlapped.hEvent);
    CloseHandle(file);
    meet();
}

/* A file that no buffer takes, with what is before, behind and after it, in the order of the calls; and one from an offset on, told of by a
 * port; from a handle that is overlapped itself. */
enum { LARGE = 6 * MIB, FROM = 5 * MIB + 123 };
static void transmit_large_server(SOCKET s)
{
    struct stream in = {4, 0};
    char data[8] = "";
    hear();
    CHECK(recv_full(s, data, 4) == 4);
    say("%s", data);
    stream_receive(&in, s, LARGE, 50000);
    CHECK(recv_full(s, data, 4) == 4);
    say("6 MiB, %s", data);
    CHECK(recv_full(s, data, 5) == 5);
    say("%s", data);
    in.offset = FROM;
    stream_receive(&in, s, LARGE - FROM, 50000);
    say("the rest of it");
    meet();
}
static void transmit_large_client(SOCKET s)
{
    struct stream contents = {4, 0};
    HANDLE file = stream_file(&contents, LARGE), again = ReOpenFile(file, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, FILE_FLAG_OVERLAPPED);
    TRANSMIT_FILE_BUFFERS ends = {"head", 4, "tail", 4};
    WSABUF after = {5, "after"};
    OVERLAPPED first = {.hEvent = WSACreateEvent()}, second = {.hEvent = WSACreateEvent()}, third = {.Offset = FROM};
    LPFN_TRANSMITFILE function = (LPFN_TRANSMITFILE)extension(s, (GUID)WSAID_TRANSMITFILE);
    say("TransmitFile: %s", begun(function(s, file, 0, 0, &first, &ends, 0)));
    say("WSASend: %s", begun(WSASend(s, &after, 1, NULL, 0, &second, NULL) == 0));
    say("told already: %lx", WSAWaitForMultipleEvents(1, &first.hEvent, TRUE, 0, FALSE));
    tell(0);
    say_result_of("TransmitFile", s, &first);
    say_result_of("WSASend", s, &second);
    HANDLE port = CreateIoCompletionPort((HANDLE)s, NULL, 1, 0);
    say("TransmitFile: %s", begun(function(s, again == INVALID_HANDLE_VALUE ? file : again, 0, 1000, &third, NULL, 0)));
    DWORD bytes = 0;
    ULONG_PTR key;
    OVERLAPPED *done = NULL;
    BOOL good = GetQueuedCompletionStatus(port, &bytes, &key, &done, LATE_MS);
    say("packet: %s, %lu bytes, %s", good ? "good" : error_name((int)GetLastError()), bytes, done == &third ? "ours" : "none");
    CloseHandle(port);
    WSACloseEvent(first.hEvent);
    WSACloseEvent(second.hEvent);
    if (again != INVALID_HANDLE_VALUE)
        CloseHandle(again);
    CloseHandle(file);
    meet();
}

/* The peer goes away in the middle; and a cancelled one says so, and the connection is of no use to it any more. */
static void transmit_broken_server(SOCKET s)
{
    char data[100];
    hear();
    CHECK(recv_full(s, data, sizeof data) == sizeof data);
    struct linger at_once = {1, 0};
    MUST(setsockopt(s, SOL_SOCKET, SO_LINGER, (char *)&at_once, sizeof at_once));
    MUST(closesocket(s));
}
static void transmit_broken_client(SOCKET s)
{
    struct stream contents = {4, 0};
    HANDLE file = stream_file(&contents, LARGE);
    OVERLAPPED first = {.hEvent = WSACreateEvent()};
    LPFN_TRANSMITFILE function = (LPFN_TRANSMITFILE)extension(s, (GUID)WSAID_TRANSMITFILE);
    say("TransmitFile: %s", begun(function(s, file, 0, 0, &first, NULL, 0)));
    tell(0);
    say_result_of("TransmitFile", s, &first);
    WSACloseEvent(first.hEvent);
    CloseHandle(file);
}

static void disconnect_ex_server(SOCKET s)
{
    say_recv("recv", s, 10, 0);
    say_recv("recv", s, 10, 0);
    meet();
}
static void disconnect_ex_client(SOCKET s)
{
    LPFN_DISCONNECTEX function = (LPFN_DISCONNECTEX)extension(s, (GUID)WSAID_DISCONNECTEX);
    send_text(s, "bye");
    BOOL_CALL("DisconnectEx", function(s, NULL, 0, 0));
    CALL("send", send(s, "x", 1, 0));
    meet();
}

/* mswsock's own exports, of which programs have the pointers without asking. */
static void mswsock_exports_server(SOCKET listener)
{
    char buffer[2 * SLOT];
    DWORD bytes = 0;
    SOCKET s = stream_socket();
    OVERLAPPED overlapped = {.hEvent = WSACreateEvent()};
    say("AcceptEx: %s", begun(AcceptEx(listener, s, buffer, 0, SLOT, SLOT, &bytes, &overlapped)));
    tell(0);
    say_result_of("AcceptEx", listener, &overlapped);
    MUST(setsockopt(s, SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, (char *)&listener, sizeof listener));
    warm_up(s, false);
    struct stream contents = {4, 0};
    HANDLE file = stream_file(&contents, 10000);
    BOOL_CALL("TransmitFile", TransmitFile(s, file, 0, 0, NULL, NULL, 0));
    CloseHandle(file);
    closesocket(s);
    WSACloseEvent(overlapped.hEvent);
}
static void mswsock_exports_client(SOCKET port)
{
    struct stream in = {4, 0};
    hear();
    SOCKET s = connect_warm((unsigned short)port);
    stream_receive(&in, s, 10000, 3000);
    say("10000 bytes");
    say_recv("recv", s, 1, 0);
    closesocket(s);
}

const struct test_case extensions_cases[] = {
    RAW_CASE(accept_connect_ex), SOLO_CASE(connect_ex_errors), SOLO_CASE(accept_ex_closed), CASE(transmit_file), CASE(transmit_large), CASE(transmit_broken),
    CASE(disconnect_ex),         RAW_CASE(mswsock_exports),    END_OF_CASES,
};
