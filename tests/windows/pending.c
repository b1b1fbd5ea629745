/* Overlapped calls by the dozen, cancelled, closed and reset at random moments.
 *
 *     suite pending ROUNDS SEED
 *
 * A round is one connection with both ends in threads of this process, which keep several receives and sends pending, hear of
 * them by a completion port, by events or by completion routines, and cancel some receives. It ends well, or with one end closed
 * or reset in the middle. Whatever happens, every call is told of exactly once, what is received is the stream without a
 * gap, and nobody writes to an OVERLAPPED or a buffer that is the program's again. */
#include "common.h"

enum way { PORT, EVENTS, ROUTINES, WAYS };
enum finish { WHOLE, CLOSED, RESET, FINISHES };
enum { CALLS = 4, LARGEST = 40000, TOTAL = 1 * MIB, POISON = 0xdb, LOST_MS = 10000 };

enum state { OURS, PENDING, TOLD };
struct call {
    WSAOVERLAPPED overlapped; /* first: what is told of leads here */
    WSAEVENT event;
    struct end *end;
    enum state state;
    bool was_used;
    int error;
    DWORD length, bytes;
    char data[LARGEST];
};

/* One end of a connection. Calls of a direction take turns, so the oldest is `first[direction]`. */
struct end {
    SOCKET s;
    HANDLE port;
    enum way way;
    struct rng rng;
    struct stream in, out;
    uint64_t quits_at;  /* bytes received after which it closes in the middle */
    enum finish finish; /* WHOLE, or what it does then */
    struct call calls[2][CALLS];
    int first[2], pending[2];
    bool ended[2], refused[2], shut;
    const struct end *peer;
    long long told, cancelled, aborted;
};

static void poison(struct call *call)
{
    memset(&call->overlapped, POISON, sizeof call->overlapped);
    memset(call->data, POISON, sizeof call->data);
    call->was_used = true;
}

static void check_poison(const struct call *call)
{
    const unsigned char *overlapped = (const unsigned char *)&call->overlapped;
    if (!call->was_used)
        return;
    for (size_t i = 0; i < sizeof call->overlapped; i++)
        CHECK(overlapped[i] == POISON);
    for (size_t i = 0; i < LARGEST; i++)
        CHECK((unsigned char)call->data[i] == POISON);
}

static void CALLBACK routine(DWORD error, DWORD bytes, WSAOVERLAPPED *overlapped, DWORD flags)
{
    struct call *call = (struct call *)overlapped;
    UNUSED(flags);
    CHECK(call->state == PENDING);
    call->state = TOLD;
    call->error = (int)error;
    call->bytes = bytes;
}

static void result_of(struct call *call)
{
    DWORD flags = 0;
    CHECK(HasOverlappedIoCompleted(&call->overlapped));
    call->state = TOLD;
    if (call->end->s == INVALID_SOCKET) { /* there is nothing left to ask */
        call->error = WSA_OPERATION_ABORTED;
        call->bytes = 0;
        return;
    }
    bool good = WSAGetOverlappedResult(call->end->s, &call->overlapped, &call->bytes, FALSE, &flags);
    call->error = good ? 0 : WSAGetLastError();
}

/* Begins one more. False: refused, which ends the direction. */
static bool begin(struct end *end, bool sends)
{
    struct call *call = &end->calls[sends][(end->first[sends] + end->pending[sends]) % CALLS];
    DWORD flags = 0;
    CHECK(call->state == OURS);
    check_poison(call);
    memset(&call->overlapped, 0, sizeof call->overlapped);
    if (end->way == EVENTS) {
        if (!call->event)
            CHECK(call->event = WSACreateEvent());
        call->overlapped.hEvent = call->event;
    }
    call->end = end;
    call->length = (DWORD)between(&end->rng, 1, rng_next(&end->rng) % 2 ? 200 : LARGEST);
    if (sends) {
        if (call->length > TOTAL - end->out.offset)
            call->length = (DWORD)(TOTAL - end->out.offset);
        stream_fill(&end->out, call->data, call->length);
    }
    call->state = PENDING;
    WSABUF buffer = {call->length, call->data};
    LPWSAOVERLAPPED_COMPLETION_ROUTINE by = end->way == ROUTINES ? routine : NULL;
    int n = sends ? WSASend(end->s, &buffer, 1, NULL, 0, &call->overlapped, by)
                  : WSARecv(end->s, &buffer, 1, NULL, &flags, &call->overlapped, by);
    if (n != 0 && WSAGetLastError() != WSA_IO_PENDING) {
        CHECK(call->state == PENDING);
        call->state = OURS;
        poison(call);
        return false;
    }
    end->pending[sends]++;
    return true;
}

/* What is told is looked at in the order of the calls. */
static void look(struct end *end, bool sends)
{
    while (end->pending[sends]) {
        struct call *call = &end->calls[sends][end->first[sends]];
        if (call->state == PENDING && end->way == EVENTS && WSAWaitForMultipleEvents(1, &call->event, TRUE, 0, FALSE) == WSA_WAIT_EVENT_0)
            result_of(call);
        if (call->state != TOLD)
            return;
        end->told++;
        if (call->error) {
            if (call->error != WSA_OPERATION_ABORTED && call->error != WSAECONNRESET && call->error != WSAECONNABORTED)
                die("way %d, sends %d: %s", end->way, sends, error_name(call->error));
            if (call->error == WSA_OPERATION_ABORTED)
                end->aborted++;
            else
                end->ended[sends] = true;
            CHECK(sends || call->bytes == 0);
        } else if (sends) {
            CHECK(call->bytes == call->length || end->ended[1] || end->s == INVALID_SOCKET);
        } else if (call->bytes) {
            CHECK(call->bytes <= call->length && !end->ended[0]);
            stream_check(&end->in, call->data, call->bytes);
        } else
            end->ended[0] = true;
        poison(call);
        call->state = OURS;
        end->first[sends] = (end->first[sends] + 1) % CALLS;
        end->pending[sends]--;
    }
}

static void take_packet(struct end *end, DWORD wait_ms)
{
    DWORD bytes = 0;
    ULONG_PTR key;
    OVERLAPPED *of = NULL;
    bool good = GetQueuedCompletionStatus(end->port, &bytes, &key, &of, wait_ms);
    if (!of) {
        CHECK(!good && GetLastError() == WAIT_TIMEOUT);
        return;
    }
    struct call *call = (struct call *)of;
    CHECK(call->state == PENDING && key == (ULONG_PTR)end);
    call->state = TOLD;
    call->bytes = bytes;
    switch (good ? 0 : GetLastError()) {
    case 0: call->error = 0; break;
    case ERROR_OPERATION_ABORTED: call->error = WSA_OPERATION_ABORTED; break;
    default: call->error = WSAECONNRESET;
    }
}

static void say_end(const char *who, const struct end *end)
{
    fprintf(stderr, "%s: way %d, %llu in, %llu out, %d receives and %d sends pending%s%s%s\n", who, end->way,
            (unsigned long long)end->in.offset, (unsigned long long)end->out.offset, end->pending[0], end->pending[1],
            end->ended[0] ? ", has seen the end" : "", end->shut ? ", has shut down" : "", end->s == INVALID_SOCKET ? ", closed" : "");
    for (int sends = 0; sends < 2; sends++)
        for (int i = 0; i < CALLS; i++)
            if (end->calls[sends][i].state == PENDING)
                fprintf(stderr, "    a %s: status %llx\n", sends ? "send" : "receive",
                        (unsigned long long)end->calls[sends][i].overlapped.Internal);
}

static void lost(const struct end *end)
{
    say_end("this end", end);
    say_end("the other", end->peer);
    die("LOST: no news for a call that is pending");
}

/* Waits for news of some call. */
static void wait_for_news(struct end *end, DWORD wait_ms)
{
    HANDLE events[2 * CALLS];
    DWORD count = 0;
    switch (end->way) {
    case PORT: take_packet(end, wait_ms); break;
    case ROUTINES: SleepEx(wait_ms, TRUE); break;
    default:
        for (int sends = 0; sends < 2; sends++)
            for (int i = 0; i < CALLS; i++)
                if (end->calls[sends][i].state == PENDING)
                    events[count++] = end->calls[sends][i].event;
        if (count)
            CHECK(WSAWaitForMultipleEvents(count, events, FALSE, wait_ms, FALSE) != WSA_WAIT_FAILED);
    }
    look(end, false);
    look(end, true);
}

static void cancel_one(struct end *end)
{
    struct call *call = &end->calls[0][rng_next(&end->rng) % CALLS];
    if (call->state == PENDING) {
        CancelIoEx((HANDLE)end->s, &call->overlapped);
        end->cancelled++;
    }
}

/* Everything that is pending is told of, or the program hangs. */
static void drain(struct end *end)
{
    ULONGLONG limit = GetTickCount64() + LOST_MS;
    while (end->pending[0] + end->pending[1]) {
        wait_for_news(end, 1000);
        if (GetTickCount64() > limit)
            lost(end);
    }
    /* Nor is anything told twice. */
    wait_for_news(end, 0);
    for (int sends = 0; sends < 2; sends++)
        for (int i = 0; i < CALLS; i++) {
            CHECK(end->calls[sends][i].state == OURS);
            check_poison(&end->calls[sends][i]);
        }
}

static void live(void *argument)
{
    struct end *end = argument;
    ULONGLONG limit = GetTickCount64() + 3 * LOST_MS;
    if (end->way == PORT)
        CHECK(end->port = CreateIoCompletionPort((HANDLE)end->s, NULL, (ULONG_PTR)end, 0));
    while (!end->ended[0] || !end->shut) {
        while (end->pending[0] < CALLS - 1 && !end->ended[0] && !end->refused[0])
            if (!begin(end, false))
                end->refused[0] = true;
        while (end->pending[1] < CALLS - 1 && !end->ended[1] && !end->refused[1] && end->out.offset < TOTAL)
            if (!begin(end, true))
                end->refused[1] = true;
        if (end->finish != WHOLE && end->in.offset >= end->quits_at)
            break;
        if (rng_next(&end->rng) % 8 == 0)
            cancel_one(end);
        for (int sends = 0; sends < 2; sends++) /* nothing more comes of what was refused */
            end->ended[sends] |= end->refused[sends] && end->pending[sends] == 0;
        if (!end->shut && (end->ended[1] || (end->out.offset == TOTAL && end->pending[1] == 0))) {
            shutdown(end->s, SD_SEND);
            end->shut = true;
        }
        if (end->pending[0] + end->pending[1])
            wait_for_news(end, 1000);
        if (GetTickCount64() > limit)
            lost(end);
    }
    if (end->finish == RESET) {
        struct linger at_once = {1, 0};
        setsockopt(end->s, SOL_SOCKET, SO_LINGER, (char *)&at_once, sizeof at_once);
    }
    if (end->finish == WHOLE)
        drain(end);
    closesocket(end->s);
    end->s = INVALID_SOCKET;
    drain(end);
    for (int sends = 0; sends < 2; sends++)
        for (int i = 0; i < CALLS; i++)
            if (end->calls[sends][i].event)
                WSACloseEvent(end->calls[sends][i].event);
    if (end->port)
        CloseHandle(end->port);
}

int pending_main(int argc, char **argv)
{
    CHECK(argc == 4);
    int rounds = atoi(argv[2]), whole = 0;
    uint64_t seed = strtoull(argv[3], NULL, 10);
    long long told = 0, cancelled = 0, aborted = 0;
    warm = true;
    for (int round = 0; round < rounds; round++) {
        struct rng rng = {seed + (uint64_t)round};
        struct end *ends = calloc(2, sizeof *ends);
        SOCKET pair[2];
        socket_pair(pair);
        enum finish finish = (enum finish)(rng_next(&rng) % FINISHES);
        int quitter = (int)(rng_next(&rng) % 2);
        for (int i = 0; i < 2; i++) {
            ends[i].s = pair[i];
            ends[i].peer = &ends[!i];
            ends[i].way = (enum way)(rng_next(&rng) % WAYS);
            ends[i].rng.state = rng_next(&rng);
            ends[i].in.seed = (uint64_t)i;
            ends[i].out.seed = (uint64_t)!i;
            ends[i].finish = i == quitter ? finish : WHOLE;
            ends[i].quits_at = rng_next(&rng) % TOTAL;
        }
        HANDLE other = start_thread(live, &ends[1]);
        live(&ends[0]);
        join(other);
        for (int i = 0; i < 2; i++) {
            told += ends[i].told;
            cancelled += ends[i].cancelled;
            aborted += ends[i].aborted;
            if (finish == WHOLE)
                CHECK(ends[i].in.offset == TOTAL);
        }
        whole += finish == WHOLE;
        free(ends);
    }
    say("%d rounds, %d of them whole", rounds, whole);
    fprintf(stderr, "%lld calls told of, %lld cancelled, %lld aborted\n", told, cancelled, aborted);
    return 0;
}
