/* WSAAsyncSelect with a message-only window: the same events as messages, posted once until the re-enabling call. */
#include "common.h"

enum { MESSAGE = WM_USER + 77 };

static HWND make_window(void)
{
    HWND window = CreateWindowExA(0, "STATIC", "", 0, 0, 0, 0, 0, HWND_MESSAGE, NULL, NULL, NULL);
    CHECK(window);
    return window;
}

static bool next_message(HWND window, MSG *message, DWORD limit)
{
    ULONGLONG end = GetTickCount64() + limit;
    for (;;) {
        if (PeekMessageA(message, window, MESSAGE, MESSAGE, PM_REMOVE))
            return true;
        ULONGLONG now = GetTickCount64();
        if (now >= end)
            return false;
        MsgWaitForMultipleObjects(0, NULL, FALSE, (DWORD)(end - now), QS_ALLINPUT);
    }
}

static void say_message(const char *what, HWND window, SOCKET s)
{
    MSG message;
    if (!next_message(window, &message, LATE_MS)) {
        say("LATE: no message for %s", what);
        return;
    }
    int error = WSAGETSELECTERROR(message.lParam);
    say("%s: %s%s%s%s", what, events_name(WSAGETSELECTEVENT(message.lParam)), error ? " " : "", error ? error_name(error) : "",
        (SOCKET)message.wParam == s ? "" : ", of another socket");
}

/* None may be there: what would have caused one has happened already. */
static void say_no_message(const char *what, HWND window)
{
    MSG message;
    if (next_message(window, &message, 0))
        say("%s: %s", what, events_name(WSAGETSELECTEVENT(message.lParam)));
    else
        say("%s: none", what);
}

static void async_read_server(SOCKET s)
{
    hear();
    send_text(s, "four");
    hear();
    send_text(s, "more");
    hear();
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void async_read_client(SOCKET s)
{
    HWND window = make_window();
    CALL("WSAAsyncSelect", WSAAsyncSelect(s, window, MESSAGE, FD_READ | FD_CLOSE));
    say_no_message("at first", window);
    tell(0);
    say_message("data", window, s);
    say_no_message("once only", window);
    say_recv("recv", s, 2, 0);
    say_message("something is left", window, s);
    say_recv("recv", s, 2, 0);
    say_no_message("nothing is left", window);
    tell(0);
    say_message("more", window, s);
    say_recv("recv", s, 10, 0);
    say_recv("recv of nothing", s, 10, 0);
    tell(0);
    say_message("the end", window, s);
    say_recv("recv", s, 10, 0);
    say_no_message("after it", window);
    DestroyWindow(window);
    meet();
}

static void async_write_server(SOCKET s)
{
    struct stream in = {1, 0};
    stream_receive(&in, s, hear(), 64 * KIB);
    say("all there");
    meet();
}
static void async_write_client(SOCKET s)
{
    static char data[20000];
    struct stream out = {1, 0};
    HWND window = make_window();
    CALL("WSAAsyncSelect", WSAAsyncSelect(s, window, MESSAGE, FD_WRITE));
    say_message("at first", window, s);
    MUST(send(s, data, 0, 0));
    say_no_message("after a send", window);
    for (;;) {
        struct stream ahead = out;
        stream_fill(&ahead, data, sizeof data);
        int n = send(s, data, sizeof data, 0);
        if (n < 0)
            break;
        out.offset += (uint64_t)n;
    }
    say("%s", error_name(WSAGetLastError()));
    say_no_message("no room", window);
    tell(out.offset);
    say_message("room again", window, s);
    DestroyWindow(window);
    meet();
}

static void async_rules_server(SOCKET s)
{
    hear();
    send_text(s, "x");
    hear();
    send_text(s, "y");
    meet();
}
static void async_rules_client(SOCKET s)
{
    u_long off = 0;
    HWND window = make_window(), other = make_window();
    WSAEVENT event = WSACreateEvent();
    CALL("WSAAsyncSelect", WSAAsyncSelect(s, window, MESSAGE, FD_READ));
    CALL("ioctlsocket, FIONBIO 0", ioctlsocket(s, (long)FIONBIO, &off));
    CALL("WSAAsyncSelect, another window", WSAAsyncSelect(s, other, MESSAGE, FD_READ));
    tell(0);
    say_message("the other window", other, s);
    say_no_message("the first window", window);
    say_recv("recv", s, 1, 0);
    CALL("WSAEventSelect", WSAEventSelect(s, event, FD_READ));
    tell(0);
    say_network_events("the event", s, event);
    say_no_message("the other window", other);
    CALL("WSAAsyncSelect", WSAAsyncSelect(s, window, MESSAGE, FD_WRITE));
    say_message("the first window", window, s);
    say("event: %lx", WSAWaitForMultipleEvents(1, &event, FALSE, 0, FALSE));
    CALL("WSAAsyncSelect, none", WSAAsyncSelect(s, window, 0, 0));
    say_recv("recv", s, 1, 0);
    say_recv("still non-blocking: recv", s, 1, 0);
    CALL("ioctlsocket, FIONBIO 0", ioctlsocket(s, (long)FIONBIO, &off));
    CALL("WSAAsyncSelect, no socket", WSAAsyncSelect(INVALID_SOCKET, window, MESSAGE, FD_READ));
    WSACloseEvent(event);
    DestroyWindow(window);
    DestroyWindow(other);
    meet();
}

/* Selecting again tells of all that holds, in the order of Wine's. */
static void async_again_server(SOCKET s)
{
    hear();
    send_text(s, "four");
    hear();
    MUST(shutdown(s, SD_SEND));
    meet();
}
static void async_again_client(SOCKET s)
{
    HWND window = make_window();
    long all = FD_READ | FD_WRITE | FD_CLOSE;
    CALL("WSAAsyncSelect", WSAAsyncSelect(s, window, MESSAGE, all));
    say_message("at first", window, s);
    tell(0);
    say_message("data", window, s);
    CALL("WSAAsyncSelect again", WSAAsyncSelect(s, window, MESSAGE, all));
    say_message("again", window, s);
    say_message("again", window, s);
    CALL("WSAAsyncSelect, none", WSAAsyncSelect(s, window, 0, 0));
    CALL("WSAAsyncSelect, data alone", WSAAsyncSelect(s, window, MESSAGE, FD_READ | FD_CLOSE));
    say_message("on again", window, s);
    let_it_block();
    say_no_message("once", window);
    say_recv("recv", s, 10, 0);
    tell(0);
    say_message("the end", window, s);
    CALL("WSAAsyncSelect again", WSAAsyncSelect(s, window, MESSAGE, FD_READ | FD_CLOSE));
    say_message("the end again", window, s);
    CALL("WSAAsyncSelect, none", WSAAsyncSelect(s, window, 0, 0));
    CALL("WSAAsyncSelect, on", WSAAsyncSelect(s, window, MESSAGE, all));
    say_message("on again", window, s);
    say_message("on again", window, s);
    let_it_block();
    say_no_message("once", window);
    say_recv("recv", s, 10, 0);
    DestroyWindow(window);
    meet();
}

/* A listener that is selected again, and a connection that was there before it was selected. */
static void async_late_solo(SOCKET unused)
{
    UNUSED(unused);
    HWND window = make_window();
    SOCKET listener = listen_on();
    CALL("WSAAsyncSelect, listener", WSAAsyncSelect(listener, window, MESSAGE, FD_ACCEPT));
    SOCKET s = connect_to(port_of(listener));
    say_message("listener", window, listener);
    CALL("WSAAsyncSelect again", WSAAsyncSelect(listener, window, MESSAGE, FD_ACCEPT));
    say_message("again", window, listener);
    CALL("WSAAsyncSelect, none", WSAAsyncSelect(listener, window, 0, 0));
    CALL("WSAAsyncSelect, on", WSAAsyncSelect(listener, window, MESSAGE, FD_ACCEPT));
    say_message("on again", window, listener);
    let_it_block();
    say_no_message("once", window);
    CALL("WSAAsyncSelect, none", WSAAsyncSelect(listener, window, 0, 0));
    SOCKET accepted = accept_from(listener);
    send_text(accepted, "four");
    await_unread(s, 4);
    CALL("WSAAsyncSelect, connected", WSAAsyncSelect(s, window, MESSAGE, FD_CONNECT | FD_WRITE | FD_READ | FD_CLOSE));
    say_message("connected", window, s);
    say_message("connected", window, s);
    let_it_block();
    say_no_message("no more", window);
    closesocket(accepted);
    closesocket(s);
    closesocket(listener);
    DestroyWindow(window);
}

/* Many short lives of selected connections: whoever looks at one must not be in the way of its close. */
static void async_short_lives_solo(SOCKET unused)
{
    UNUSED(unused);
    HWND window = make_window();
    SOCKET listener = listen_on();
    MSG message;
    for (int i = 0; i < 200; i++) {
        SOCKET s = connect_to(port_of(listener)), accepted = accept_from(listener);
        for (int trips = i % 2 ? 3 : 50; trips > 0; trips--) {
            char byte = (char)i;
            send_all(s, &byte, 1);
            CHECK(recv_full(accepted, &byte, 1) == 1);
            send_all(accepted, &byte, 1);
            CHECK(recv_full(s, &byte, 1) == 1);
        }
        MUST(WSAAsyncSelect(s, window, MESSAGE, FD_READ | FD_WRITE | FD_CLOSE));
        MUST(WSAAsyncSelect(accepted, window, MESSAGE, FD_READ | FD_WRITE | FD_CLOSE));
        MUST(closesocket(i % 3 ? s : accepted));
        MUST(closesocket(i % 3 ? accepted : s));
        while (next_message(window, &message, 0))
            ;
    }
    say("200 lives");
    closesocket(listener);
    DestroyWindow(window);
}

/* Connecting, accepting and the accepted socket's inheritance, in one thread of one process. */
static void async_both_ends_solo(SOCKET unused)
{
    UNUSED(unused);
    struct sockaddr_storage address;
    HWND window = make_window();
    SOCKET listener = listen_on(), s = stream_socket();
    unsigned short port = port_of(listener);
    CALL("WSAAsyncSelect, listener", WSAAsyncSelect(listener, window, MESSAGE, FD_ACCEPT | FD_READ | FD_CLOSE));
    HWND client_window = make_window();
    CALL("WSAAsyncSelect, client", WSAAsyncSelect(s, client_window, MESSAGE, FD_CONNECT | FD_READ | FD_WRITE | FD_CLOSE));
    int length = loopback(family, port, &address);
    CALL("connect", connect(s, (struct sockaddr *)&address, length));
    say_message("client", client_window, s);
    say_message("client", client_window, s);
    say_message("listener", window, listener);
    SOCKET accepted = SOCKET_CALL("accept", accept(listener, NULL, NULL));
    for (int i = 0; i < 20; i++) {
        char data[8] = "12345";
        MUST(send(s, data, 6, 0));
        if (i == 0)
            say_message("accepted", window, accepted);
        else
            await_unread(accepted, 6);
        MUST(recv(accepted, data, 6, 0));
        MUST(send(accepted, data, 6, 0));
        await_unread(s, 6);
        MUST(recv(s, data, 6, 0));
    }
    say("20 round trips");
    MSG message;
    while (next_message(window, &message, 0) || next_message(client_window, &message, 0))
        ;
    MUST(closesocket(accepted));
    say_message("client", client_window, s);
    MUST(closesocket(s));
    closesocket(listener);
    s = stream_socket();
    MUST(WSAAsyncSelect(s, client_window, MESSAGE, FD_CONNECT));
    CALL("connect to nobody", connect(s, (struct sockaddr *)&address, length));
    say_message("refused", client_window, s);
    closesocket(s);
    DestroyWindow(window);
    DestroyWindow(client_window);
}

/* A turn-taking protocol driven by messages. */
static void async_echo_server(SOCKET s)
{
    HWND window = make_window();
    char data[300];
    long long bytes = 0;
    MUST(WSAAsyncSelect(s, window, MESSAGE, FD_READ | FD_CLOSE));
    for (MSG message; next_message(window, &message, LATE_MS);) {
        if (WSAGETSELECTEVENT(message.lParam) == FD_CLOSE)
            break;
        int n = recv(s, data, sizeof data, 0);
        CHECK(n > 0 || (n < 0 && WSAGetLastError() == WSAEWOULDBLOCK));
        if (n > 0) {
            send_all(s, data, n);
            bytes += n;
        }
    }
    say("echoed %lld bytes", bytes);
    say_recv("recv at the end", s, 10, 0);
    DestroyWindow(window);
}
static void async_echo_client(SOCKET s)
{
    struct stream out = {3, 0}, in = {3, 0};
    struct rng sizes = {3};
    for (int i = 0; i < 200; i++) {
        int n = between(&sizes, 1, 1000);
        stream_send(&out, s, (size_t)n, n);
        stream_receive(&in, s, (size_t)n, n);
    }
    say("200 turns");
    MUST(shutdown(s, SD_SEND));
}

/* Between blocking calls: no hook is set, nothing blocks, nothing can be cancelled. */
static void blocking_hooks_solo(SOCKET unused)
{
    UNUSED(unused);
    say("WSAIsBlocking: %d", WSAIsBlocking());
    CALL("WSACancelBlockingCall", WSACancelBlockingCall());
    WSASetLastError(0);
    say("WSASetBlockingHook: %s, %s", WSASetBlockingHook((FARPROC)(void *)make_window) ? "a hook" : "none", error_name(WSAGetLastError()));
    CALL("WSAUnhookBlockingHook", WSAUnhookBlockingHook());
}

const struct test_case async_cases[] = {
    CASE(async_read), CASE(async_write), CASE(async_rules), SOLO_CASE(async_both_ends), CASE(async_echo), SOLO_CASE(blocking_hooks),
    CASE(async_again), SOLO_CASE(async_late), SOLO_CASE(async_short_lives), END_OF_CASES,
};
