/* See common.h. */
#include "common.h"

#include <stdarg.h>

int family = AF_INET;
bool warm;

/* What a thread needs to know about the part that it plays. */
static __thread bool serving = true;
static __thread HANDLE transcript;
static volatile LONG64 case_deadline;

/* The parts' mailboxes: a ring of numbers and a semaphore for each. */
struct mailbox {
    volatile LONG written, read;
    volatile LONG64 numbers[256];
};
static struct mailbox *boxes;
static HANDLE mail[2];

static void open_channel(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "suite-%s", name);
    HANDLE file = CreateFileMappingA(INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE, 0, 2 * sizeof *boxes, path);
    CHECK(file && (boxes = MapViewOfFile(file, FILE_MAP_ALL_ACCESS, 0, 0, 0)));
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "suite-%s-%d", name, i);
        CHECK(mail[i] = CreateSemaphoreA(NULL, 0, 1 << 20, path));
    }
}

void tell(uint64_t number)
{
    struct mailbox *box = &boxes[serving];
    box->numbers[(InterlockedIncrement(&box->written) - 1) & 255] = (LONG64)number;
    CHECK(ReleaseSemaphore(mail[serving], 1, NULL));
}

uint64_t hear(void)
{
    struct mailbox *box = &boxes[!serving];
    CHECK(WaitForSingleObject(mail[!serving], INFINITE) == WAIT_OBJECT_0);
    return (uint64_t)box->numbers[(InterlockedIncrement(&box->read) - 1) & 255];
}

void meet(void)
{
    tell(0x6d656574);
    CHECK(hear() == 0x6d656574);
}

void say(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    int error = WSAGetLastError();
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length < 0 || length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    DWORD written;
    WriteFile(transcript, line, (DWORD)length, &written, NULL);
    WSASetLastError(error);
}

void die(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    say("FATAL %s", line);
    TerminateProcess(GetCurrentProcess(), 99);
    abort();
}

#define NAME(n) { n, #n }
struct name {
    int value;
    const char *text;
};

const char *error_name(int error)
{
    static const struct name names[] = {
        NAME(WSAEINTR), NAME(WSAEBADF), NAME(WSAEACCES), NAME(WSAEFAULT), NAME(WSAEINVAL), NAME(WSAEMFILE),
        NAME(WSAEWOULDBLOCK), NAME(WSAEINPROGRESS), NAME(WSAEALREADY), NAME(WSAENOTSOCK), NAME(WSAEDESTADDRREQ),
        NAME(WSAEMSGSIZE), NAME(WSAEPROTOTYPE), NAME(WSAENOPROTOOPT), NAME(WSAEPROTONOSUPPORT), NAME(WSAESOCKTNOSUPPORT),
        NAME(WSAEOPNOTSUPP), NAME(WSAEPFNOSUPPORT), NAME(WSAEAFNOSUPPORT), NAME(WSAEADDRINUSE), NAME(WSAEADDRNOTAVAIL),
        NAME(WSAENETDOWN), NAME(WSAENETUNREACH), NAME(WSAENETRESET), NAME(WSAECONNABORTED), NAME(WSAECONNRESET),
        NAME(WSAENOBUFS), NAME(WSAEISCONN), NAME(WSAENOTCONN), NAME(WSAESHUTDOWN), NAME(WSAETIMEDOUT), NAME(WSAECONNREFUSED),
        NAME(WSAEHOSTUNREACH), NAME(WSASYSNOTREADY), NAME(WSAVERNOTSUPPORTED), NAME(WSANOTINITIALISED), NAME(WSAEDISCON),
        NAME(WSAHOST_NOT_FOUND), NAME(WSATRY_AGAIN), NAME(WSANO_RECOVERY), NAME(WSANO_DATA), NAME(WSATYPE_NOT_FOUND),
        NAME(WSA_IO_PENDING), NAME(WSA_IO_INCOMPLETE), NAME(WSA_OPERATION_ABORTED), NAME(WSA_INVALID_HANDLE),
        NAME(WSA_INVALID_PARAMETER), NAME(ERROR_NETNAME_DELETED), NAME(ERROR_NOT_FOUND), NAME(ERROR_HANDLE_EOF),
        NAME(ERROR_MORE_DATA), NAME(ERROR_PORT_UNREACHABLE), NAME(ERROR_CONNECTION_REFUSED), NAME(ERROR_NOT_SUPPORTED),
        NAME(ERROR_SUCCESS), NAME(WAIT_TIMEOUT), NAME(ERROR_SEM_TIMEOUT), NAME(ERROR_CONNECTION_ABORTED),
    };
    static __thread char number[24];
    for (int i = 0; i < COUNT(names); i++)
        if (names[i].value == error)
            return names[i].text;
    snprintf(number, sizeof number, "error %d", error);
    return number;
}

/* "A|B" for the bits that are set; four buffers, so that one say() can name several sets. */
static const char *bits(long value, const struct name *names, int count)
{
    static __thread char texts[4][160];
    static __thread int turn;
    char *text = texts[turn++ & 3];
    text[0] = 0;
    for (int i = 0; i < count; i++)
        if (value & names[i].value) {
            if (text[0])
                strcat(text, "|");
            strcat(text, names[i].text);
            value &= ~names[i].value;
        }
    if (value)
        snprintf(text + strlen(text), 24, "|%lx", value);
    return text[0] ? text : "none";
}

const char *events_name(long events)
{
    static const struct name names[] = {NAME(FD_READ), NAME(FD_WRITE), NAME(FD_OOB), NAME(FD_ACCEPT), NAME(FD_CONNECT), NAME(FD_CLOSE)};
    return bits(events, names, COUNT(names));
}

const char *poll_name(short events)
{
    static const struct name names[] = {NAME(POLLERR), NAME(POLLHUP), NAME(POLLNVAL), NAME(POLLWRNORM), NAME(POLLWRBAND),
                                        NAME(POLLRDNORM), NAME(POLLRDBAND), NAME(POLLPRI)};
    return bits(events, names, COUNT(names));
}

long long say_result(const char *what, long long value, int error)
{
    if (value == -1)
        say("%s = -1 %s", what, error_name(error));
    else
        say("%s = %lld", what, value);
    WSASetLastError(error);
    return value;
}

SOCKET say_socket(const char *what, SOCKET s, int error)
{
    if (s == INVALID_SOCKET)
        say("%s = none, %s", what, error_name(error));
    else
        say("%s = a socket", what);
    WSASetLastError(error);
    return s;
}

BOOL say_bool(const char *what, BOOL yes, int error)
{
    if (yes)
        say("%s = true", what);
    else
        say("%s = false, %s", what, error_name(error));
    WSASetLastError(error);
    return yes;
}

struct start {
    void (*body)(void *);
    void *argument;
    bool serving;
    HANDLE transcript;
};

static DWORD WINAPI begin_thread(void *data)
{
    struct start start = *(struct start *)data;
    free(data);
    serving = start.serving;
    transcript = start.transcript;
    start.body(start.argument);
    return 0;
}

static HANDLE start_as(bool server, HANDLE output, void (*body)(void *), void *argument)
{
    struct start *start = malloc(sizeof *start);
    *start = (struct start){body, argument, server, output};
    HANDLE thread = CreateThread(NULL, 0, begin_thread, start, 0, NULL);
    CHECK(thread);
    return thread;
}

HANDLE start_thread(void (*body)(void *), void *argument) { return start_as(serving, transcript, body, argument); }

void join(HANDLE thread)
{
    CHECK(WaitForSingleObject(thread, INFINITE) == WAIT_OBJECT_0);
    CloseHandle(thread);
}

void let_it_block(void) { Sleep(150); }

/* A case that does not end is told apart from the others and ends the process; the caller goes on with the next case. */
enum { CASE_LIMIT_MS = 40000 };

static void watch(void *argument)
{
    UNUSED(argument);
    for (;; Sleep(100))
        if ((LONG64)GetTickCount64() > case_deadline) {
            say("HANGS");
            TerminateProcess(GetCurrentProcess(), 98);
        }
}

extern const struct test_case *const themes[];
int kill_main(int argc, char **argv);
int peer_main(int argc, char **argv);
int pending_main(int argc, char **argv);
int hooked_main(int argc, char **argv);

static const struct test_case *find(const char *name)
{
    for (int i = 0; themes[i]; i++)
        for (const struct test_case *one = themes[i]; one->name; one++)
            if (!strcmp(one->name, name))
                return one;
    die("no case %s", name);
}

static void play_connected(const struct test_case *one)
{
    SOCKET given;
    if (serving) {
        SOCKET listener = listen_on();
        tell(port_of(listener));
        given = listener;
        if (one->kind == PAIR) {
            given = accept_warm(listener);
            closesocket(listener);
        }
    } else {
        unsigned short port = (unsigned short)hear();
        given = one->kind == PAIR ? connect_warm(port) : port;
    }
    (serving ? one->server : one->client)(given);
    meet(); /* so that no case sees the end of the other's by chance */
    if (serving || one->kind == PAIR)
        closesocket(given); /* no matter whether the case did it: no other thread runs that could own the number by now */
    meet();
}

static void play(void *arguments)
{
    for (char **name = arguments; *name; name++) {
        const struct test_case *one = find(*name);
        say("=== %s", *name);
        InterlockedExchange64(&case_deadline, (LONG64)GetTickCount64() + CASE_LIMIT_MS);
        if (one->kind == SOLO)
            one->server(INVALID_SOCKET);
        else
            play_connected(one);
    }
    say("=== done");
}

static int list(void)
{
    static const char *const kinds[] = {"pair", "raw", "solo"};
    for (int i = 0; themes[i]; i++)
        for (const struct test_case *one = themes[i]; one->name; one++)
            say("%s %s", kinds[one->kind], one->name);
    return 0;
}

int main(int argc, char **argv)
{
    WSADATA data;
    transcript = GetStdHandle(STD_OUTPUT_HANDLE);
    if (argc == 2 && !strcmp(argv[1], "list"))
        return list();
    bool hooked = argc == 3 && !strcmp(argv[1], "hooked");
    bool other = hooked || (argc >= 4 && (!strcmp(argv[1], "kill") || !strcmp(argv[1], "peer") || !strcmp(argv[1], "pending")));
    if (!other && argc < 5)
        die("use: %s server|client|both|solo CHANNEL cold|warm|cold6|warm6 CASE...", argv[0]);
    int error = WSAStartup(MAKEWORD(2, 2), &data);
    if (error)
        die("WSAStartup: %s", error_name(error));
    if (hooked)
        return hooked_main(argc, argv);
    if (other && !strcmp(argv[1], "pending"))
        return pending_main(argc, argv);
    if (other)
        return argv[1][0] == 'k' ? kill_main(argc, argv) : peer_main(argc, argv);
    warm = !strncmp(argv[3], "warm", 4);
    family = strchr(argv[3], '6') ? AF_INET6 : AF_INET;
    serving = strcmp(argv[1], "client");
    open_channel(argv[2]);
    case_deadline = (LONG64)GetTickCount64() + CASE_LIMIT_MS;
    start_thread(watch, NULL);
    HANDLE client = NULL;
    if (!strcmp(argv[1], "both"))
        client = start_as(false, GetStdHandle(STD_ERROR_HANDLE), play, argv + 4);
    play(argv + 4);
    if (client)
        join(client);
    WSACleanup();
    return 0;
}
