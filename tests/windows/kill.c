/* A sender and a receiver, one of them ended by TerminateProcess at a random moment, again and again.
 *
 *     suite kill ROUNDS SEED               the driver: starts both roles of each round, ends one, judges the survivor
 *     suite kill ROUNDS SEED ROLE ...      a role (started by the driver)
 *
 * The survivor must have received a correct prefix of the stream, with everything in it whose send had returned before the
 * kill, and then see the end or an error within a few seconds. The last round ends nobody and must go well.
 *
 * On plain Wine 8 a survivor may wait for ever: a process that is killed between two server requests of one recv or send leaves
 * its socket open in the server. So a survivor that hangs is counted, and the caller says how many are right. */
#include "common.h"

enum { HUNG_MS = 10000, START_MS = 60000, START_TRIES = 5, TOTAL = 2 * MIB };
enum mode { BULK, SMALL, TURNS, SELECTED, POSTED, MODES };
/* How a role saw its connection end, as exit codes. */
enum { END = 10, RESET, ABORTED, HUNG, WAYS = HUNG - END + 1 };

/* Shared by the driver and both roles of a round. */
struct board {
    volatile LONG64 sent, received; /* bytes of returned sends; bytes received and found right */
    volatile LONG port, connected, streaming;
};
static struct board *board;

static void open_board(const char *name)
{
    char path[80];
    snprintf(path, sizeof path, "suite-board-%s", name);
    HANDLE file = CreateFileMappingA(INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE, 0, sizeof *board, path);
    CHECK(file && (board = MapViewOfFile(file, FILE_MAP_ALL_ACCESS, 0, 0, 0)));
}

static int ended_by(int n)
{
    if (n == 0)
        return END;
    int error = WSAGetLastError();
    if (error == WSAECONNRESET)
        return RESET;
    if (error == WSAECONNABORTED)
        return ABORTED;
    die("ended by %s", error_name(error));
}

/* send or recv, in mode POSTED by an overlapped call that is waited for. */
static int transfer(SOCKET s, char *data, int size, enum mode mode, bool sends)
{
    static WSAOVERLAPPED call;
    WSABUF buffer = {(ULONG)size, data};
    DWORD bytes = 0, flags = 0;
    if (mode != POSTED)
        return sends ? send(s, data, size, 0) : recv(s, data, size, 0);
    if (!call.hEvent)
        CHECK(call.hEvent = WSACreateEvent());
    int n = sends ? WSASend(s, &buffer, 1, NULL, 0, &call, NULL) : WSARecv(s, &buffer, 1, NULL, &flags, &call, NULL);
    if (n != 0 && WSAGetLastError() != WSA_IO_PENDING)
        return -1;
    return WSAGetOverlappedResult(s, &call, &bytes, TRUE, &flags) ? (int)bytes : -1;
}

static int send_until_broken(SOCKET s, struct rng *rng, enum mode mode, bool finite)
{
    struct stream out = {77, 0};
    static char data[60000];
    while (!finite || out.offset < TOTAL) {
        int size = between(rng, 1, mode == SMALL || mode == TURNS ? 200 : (int)sizeof data);
        stream_fill(&out, data, (size_t)size);
        int taken = transfer(s, data, size, mode, true);
        if (taken < 0)
            return ended_by(taken);
        CHECK(taken == size);
        InterlockedExchangeAdd64(&board->sent, taken);
        char answer;
        int n = mode == TURNS ? recv(s, &answer, 1, 0) : 1;
        if (n != 1)
            return ended_by(n);
    }
    return END;
}

static int receive_until_broken(SOCKET s, struct rng *rng, enum mode mode)
{
    struct stream in = {77, 0};
    static char data[60000];
    set_nonblocking(s, mode == SELECTED);
    for (;;) {
        int n = transfer(s, data, between(rng, 1, sizeof data), mode, false);
        if (n < 0 && mode == SELECTED && WSAGetLastError() == WSAEWOULDBLOCK) {
            fd_set set;
            FD_ZERO(&set);
            FD_SET(s, &set);
            MUST(select(0, &set, NULL, NULL, NULL));
            continue;
        }
        if (n <= 0)
            return ended_by(n);
        stream_check(&in, data, (size_t)n);
        InterlockedExchangeAdd64(&board->received, n);
        if (mode == TURNS && (n = send(s, "!", 1, 0)) != 1)
            return ended_by(n);
    }
}

/* A warm-up that takes the peer's death at any point for what it is. */
static int warm_up_or_end(SOCKET s, bool first)
{
    char text[16];
    for (int i = 0; i < 32; i++)
        for (int step = 0; step < 2; step++) {
            int n = sizeof text;
            if ((step == 0) == first)
                n = send(s, "warming it up..", sizeof text, 0);
            else
                for (int at = 0; at < (int)sizeof text && n > 0; at += n)
                    n = recv(s, text + at, (int)sizeof text - at, 0);
            if (n <= 0)
                return ended_by(n);
        }
    return 0;
}

/* A role: argv[4] = sender|receiver, [5] = board, [6] = seed, [7] = mode, [8] = accepts, [9] = finite */
static int play(char **argv)
{
    struct rng rng = {strtoull(argv[6], NULL, 10)};
    bool sender = !strcmp(argv[4], "sender"), accepts = argv[8][0] == '1';
    enum mode mode = (enum mode)atoi(argv[7]);
    SOCKET s;
    open_board(argv[5]);
    if (accepts) {
        SOCKET listener = listen_on();
        board->port = port_of(listener);
        s = accept_from(listener);
    } else {
        while (board->port == 0)
            Sleep(1);
        s = connect_to((unsigned short)board->port);
    }
    InterlockedIncrement(&board->connected);
    int end = warm_up_or_end(s, !accepts);
    if (end)
        return end;
    InterlockedIncrement(&board->streaming);
    end = sender ? send_until_broken(s, &rng, mode, argv[9][0] == '1') : receive_until_broken(s, &rng, mode);
    closesocket(s);
    return end;
}

static HANDLE start(char **argv, const char *role, const char *name, uint64_t seed, enum mode mode, bool accepts, bool finite)
{
    char line[400];
    STARTUPINFOA how = {.cb = sizeof how};
    PROCESS_INFORMATION process;
    char self[MAX_PATH];
    CHECK(GetModuleFileNameA(NULL, self, sizeof self));
    snprintf(line, sizeof line, "suite kill %s %s %s %s %llu %d %d %d", argv[2], argv[3], role, name, (unsigned long long)seed, mode,
             accepts, finite);
    /* Wine says ERROR_INTERNAL_ERROR for a new process that ended before its first Windows instruction, in the set-up that its
     * Unix half does with the server: no DLL of anybody's was in it yet, so it is plain Wine's own. Anything else is ours. */
    for (int tries = 1; !CreateProcessA(self, line, NULL, NULL, TRUE, 0, NULL, NULL, &how, &process); tries++) {
        DWORD error = GetLastError();
        if (error != ERROR_INTERNAL_ERROR || tries == START_TRIES)
            die("CreateProcess: error %lu, try %d", error, tries);
        fprintf(stderr, "Wine could not start a process (error %lu), once more\n", error);
    }
    CloseHandle(process.hThread);
    return process.hProcess;
}

static void await_both(volatile LONG *count)
{
    for (ULONGLONG limit = GetTickCount64() + START_MS; *count < 2; Sleep(1))
        CHECK(GetTickCount64() < limit);
}

/* The exit code of a role that has ended or ends in time; HUNG if it does not. */
static DWORD code_of(HANDLE process)
{
    DWORD code = HUNG;
    if (WaitForSingleObject(process, HUNG_MS) == WAIT_OBJECT_0)
        CHECK(GetExitCodeProcess(process, &code));
    else
        TerminateProcess(process, 98);
    CloseHandle(process);
    return code;
}

static void one_round(char **argv, struct rng *rng, int round, bool last, int seen[2][WAYS])
{
    char name[40];
    bool sender_accepts = rng_next(rng) % 2, sender_dies = rng_next(rng) % 2;
    enum mode mode = (enum mode)(rng_next(rng) % MODES);
    if (last)
        mode = BULK; /* 2 MiB in turns would take a while */
    snprintf(name, sizeof name, "%lu-%d", GetCurrentProcessId(), round);
    open_board(name);
    HANDLE sender = start(argv, "sender", name, rng_next(rng), mode, sender_accepts, last);
    HANDLE receiver = start(argv, "receiver", name, rng_next(rng), mode, !sender_accepts, last);
    await_both(&board->connected);
    if (last)
        sender_dies = true; /* it ends by itself */
    else {
        if (rng_next(rng) % 4) /* else some time in the warm-up */
            await_both(&board->streaming);
        Sleep((DWORD)between(rng, 0, 60)); /* the random moment */
        CHECK(TerminateProcess(sender_dies ? sender : receiver, 77));
    }
    DWORD code = code_of(sender_dies ? sender : receiver);
    CHECK(code == (last ? END : 77));
    LONG64 sent = board->sent;
    code = code_of(sender_dies ? receiver : sender);
    if (code < END || code > (last ? ABORTED : HUNG))
        die("round %d, mode %d: the survivor (%s) ended with %lu", round, mode, sender_dies ? "receiver" : "sender", code);
    if (code == HUNG)
        fprintf(stderr, "round %d, mode %d: the %s hangs (sent %lld, received %lld)\n", round, mode, sender_dies ? "receiver" : "sender",
                board->sent, board->received);
    seen[sender_dies][code - END]++;
    if (sender_dies && board->received < sent)
        die("round %d, mode %d: %lld bytes were taken from the sender, %lld arrived", round, mode, sent, board->received);
    if (last && board->received < TOTAL)
        die("the last round lost bytes");
    UnmapViewOfFile(board);
}

int kill_main(int argc, char **argv)
{
    if (argc == 10)
        return play(argv);
    CHECK(argc == 4);
    int rounds = atoi(argv[2]), seen[2][WAYS] = {{0}};
    struct rng rng = {strtoull(argv[3], NULL, 10)};
    for (int round = 0; round <= rounds; round++)
        one_round(argv, &rng, round, round == rounds, seen);
    say("%d rounds with a kill and one without, %d survivors hung", rounds, seen[0][HUNG - END] + seen[1][HUNG - END]);
    fprintf(stderr, "senders: %d ends, %d resets, %d aborts; receivers: %d, %d, %d\n", seen[0][0], seen[0][1], seen[0][2], seen[1][0],
            seen[1][1], seen[1][2]);
    return 0;
}
