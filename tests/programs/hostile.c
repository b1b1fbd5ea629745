/* A peer that writes nonsense over the header of the memory it shares with its victim, an echo server.
 *
 *     hostile PORT SEED [cut]
 *
 * Exchanges some messages, finds the segment in its own memory map, strikes, says how, and stays connected until its input
 * ends. `cut`: strikes by cutting the segment short, if the kernel lets it. Whatever becomes of this process is no
 * matter; so what must not be told to our own front (the stray bytes on the stream) goes to the C library directly. */
#define main common_main
#include "common.c"
#undef main
#include <dlfcn.h>

const struct test_case cases[] = {END_OF_CASES};

/* Where the words are: see crates/ring/src/layout.rs. */
enum {
    PAGE = 4096,
    HEADER = 896,
    DECISION = 16,
    DIRECTIONS = 128,
    DIRECTION = 384,
    TAIL = 0,
    UP = 8,
    DOWN = 16,
    DOWN_TCP = 24,
    SWITCHES = 32,
    MOVED = 36,
    FLAGS = 40,
    BELLS_SENT = 44,
    HEAD = 128,
    SLEEPERS = 256,
    BELLS_TAKEN = 260,
    ASKS = 264,
    SPACE_WANTED = 268,
    EDGE = 272,
    SPACE_SEQ = 276,
    PASSED = 280,
    AT = 288,
    TO_VICTIM = 0,
    FROM_VICTIM = 1,
};
enum { PLANNED = 27, MESSAGE = 100, BELL = 7 };

static volatile uint8_t *header;
static size_t ring_bytes;
static ssize_t (*write_stream)(int, const void *, size_t); /* past the front */
static int its_socket;
static char its_file[64]; /* a name by which the kernel lets a privileged process open it still */

static volatile uint64_t *word(int direction, int at) { return (void *)(header + DIRECTIONS + direction * DIRECTION + at); }
static volatile uint32_t *half(int direction, int at) { return (void *)word(direction, at); }

/* The last mapping whose name is that of a segment. */
static bool find_segment(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    CHECK(maps);
    while (fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (strstr(line, "/seg-") && sscanf(line, "%lx-%lx", &start, &end) == 2) {
            header = (void *)start;
            ring_bytes = (end - start - PAGE) / 2;
            snprintf(its_file, sizeof its_file, "/proc/self/map_files/%lx-%lx", start, end);
        }
    }
    fclose(maps);
    return header != NULL;
}

/* Makes a switch down in good order and, when the victim has followed, one up behind a stretch that never comes, with an end in
 * the ring. */
static const char *end_behind_a_stretch(void)
{
    uint64_t here = *word(TO_VICTIM, UP) + *half(TO_VICTIM, BELLS_SENT);
    *word(TO_VICTIM, DOWN) = *word(TO_VICTIM, TAIL);
    *word(TO_VICTIM, DOWN_TCP) = here;
    *half(TO_VICTIM, SWITCHES) += 1;
    (void)!write_stream(its_socket, "x", 1);
    for (uint64_t start = now_ms(); *half(TO_VICTIM, PASSED) != *half(TO_VICTIM, SWITCHES) && now_ms() - start < 1000;)
        sched_yield();
    bool followed = *half(TO_VICTIM, PASSED) == *half(TO_VICTIM, SWITCHES);
    *word(TO_VICTIM, UP) = here + 100000;
    *half(TO_VICTIM, SWITCHES) += 1;
    *half(TO_VICTIM, FLAGS) = 1;
    return followed ? "an end behind a stretch that never comes" : "an end behind a stretch, not followed";
}

/* Strikes that the code of an honest reader suggests. */
static const char *planned(int number)
{
    volatile uint64_t *tail = word(TO_VICTIM, TAIL), *head = word(FROM_VICTIM, HEAD);
    switch (number) {
    case 0: /* bells announced before a switch that were never sent */
        *word(TO_VICTIM, DOWN_TCP) = 1 << 20;
        *word(TO_VICTIM, DOWN) = *tail;
        *half(TO_VICTIM, SWITCHES) += 1;
        return "down, far ahead on the stream";
    case 1:
        *word(TO_VICTIM, DOWN_TCP) = 3, *word(TO_VICTIM, DOWN) = *tail, *half(TO_VICTIM, SWITCHES) += 1;
        return "down, in the past of the stream";
    case 2: *word(TO_VICTIM, DOWN) = *tail + 999, *half(TO_VICTIM, SWITCHES) += 1; return "down, where no byte is";
    case 3: *word(TO_VICTIM, DOWN) = 0, *half(TO_VICTIM, SWITCHES) += 1; return "down at the beginning";
    case 4: *tail += 1; return "tail one too far";
    case 5: *tail += ring_bytes + 1; return "tail a ring too far";
    case 6: *tail -= 1; return "tail one back";
    case 7: *tail += 1ull << 63; return "tail half the world on";
    case 8: *head += 1; return "head beyond tail";
    case 9: *head -= ring_bytes + 1; return "head a ring behind";
    case 10: *word(TO_VICTIM, UP) = 1, *half(TO_VICTIM, SWITCHES) += 2; return "up at the beginning";
    case 11: *word(TO_VICTIM, UP) = 1 << 30, *half(TO_VICTIM, SWITCHES) += 2; return "up in the future";
    case 12: *half(TO_VICTIM, BELLS_SENT) += 1000; return "bells that never come";
    case 13: *half(TO_VICTIM, BELLS_SENT) -= 1000; return "bells unsaid";
    case 14: *half(TO_VICTIM, FLAGS) = 1; return "end of file, without closing";
    case 15: *half(TO_VICTIM, FLAGS) = 3; return "reset, without closing";
    case 16: *half(FROM_VICTIM, ASKS) = 3; return "asks for TCP and reads no more";
    case 17: *(volatile uint32_t *)(header + DECISION) = 4; return "withdrawn after all";
    case 18: *(volatile uint32_t *)(header + DECISION) = 77; return "a decision that does not exist";
    case 19: *word(TO_VICTIM, HEAD) += ring_bytes; return "the victim's own head";
    case 20: *word(FROM_VICTIM, TAIL) -= 5; return "the victim's own tail";
    case 21: *head |= 1ull << 63; return "moved";
    case 22: *head |= 1ull << 63, *half(FROM_VICTIM, ASKS) = 2; return "moved, and asks for TCP";
    case 23: *head = (1ull << 63) | 0x123456789abcdef; return "moved at nonsense";
    case 24: /* each of them where the victim is */
        *word(TO_VICTIM, UP) += *half(TO_VICTIM, BELLS_SENT);
        *word(TO_VICTIM, DOWN_TCP) = *word(TO_VICTIM, UP), *word(TO_VICTIM, DOWN) = *tail;
        *half(TO_VICTIM, SWITCHES) += (1 << 30) + 1;
        return "switches without end";
    case 25: return end_behind_a_stretch();
    default: *half(TO_VICTIM, SLEEPERS) = 0, *half(TO_VICTIM, BELLS_TAKEN) += 500; return "sleepers and bells forgotten";
    }
}

/* The same behind some bytes, for a victim that looks no further than whether there are any. */
static const char *planned_behind_bytes(int number)
{
    *word(TO_VICTIM, TAIL) += 10;
    return planned(number);
}

static uint64_t odd_value(struct rng *rng, uint64_t now)
{
    const uint64_t pool[] = {0, 1, ~0ull, now + 1, now - 1, now + ring_bytes, now + ring_bytes + 1, 1ull << 31, 1ull << 63,
                             between(rng, 0, 8000), rng_next(rng)};
    return pool[between(rng, 0, sizeof pool / sizeof *pool - 1)];
}

static const char *at_random(struct rng *rng)
{
    volatile uint64_t *words = (void *)header;
    switch (between(rng, 0, 4)) {
    case 0:
        for (int i = 0; i < HEADER / 8; i++)
            words[i] = rng_next(rng);
        return "all words at random";
    case 1:
        for (int i = 0; i < HEADER / 8; i++)
            words[i] = 0;
        return "all words zero";
    case 2:
        for (int i = 0; i < HEADER / 8; i++)
            if (rng_next(rng) % 8 == 0)
                words[i] = rng_next(rng);
        return "some words at random";
    case 3:
        for (int i = 0; i < HEADER / 4; i++)
            if (rng_next(rng) % 8 == 0)
                ((volatile uint32_t *)header)[i] = odd_value(rng, ((volatile uint32_t *)header)[i]);
        return "some halves odd";
    default:
        for (int n = between(rng, 1, 6); n > 0; n--) {
            static const int places[] = {TAIL, UP, DOWN, DOWN_TCP, SWITCHES, MOVED, HEAD, FLAGS, SLEEPERS, ASKS, EDGE, PASSED, AT};
            int direction = between(rng, 0, 1), at = places[between(rng, 0, sizeof places / sizeof *places - 1)];
            *word(direction, at) = odd_value(rng, *word(direction, at));
        }
        return "a few words odd";
    }
}

int main(int argc, char **argv)
{
    CHECK(argc >= 3);
    int seed = atoi(argv[2]);
    struct rng rng = {seed};
    uint8_t data[MESSAGE] = {0};
    int fd = connect_to(AF_INET, atoi(argv[1]));
    /* A quarter strikes while the promotion is being agreed on. */
    int rounds = rng_next(&rng) % 4 == 0 ? between(&rng, 3, 8) : between(&rng, 20, 60);
    for (int i = 0; i < rounds || !find_segment(); i++) {
        if (i == 200)
            die("no segment: the connection was not promoted");
        write_all(fd, data, sizeof data);
        CHECK(read_full(fd, data, sizeof data) == sizeof data);
    }
    /* A third leaves the victim with more to send than there is room for. */
    bool flood = rng_next(&rng) % 3 == 0;
    static uint8_t much[MIB];
    for (int i = 0; flood && i < 20; i++)
        (void)!send(fd, much, sizeof much, MSG_DONTWAIT | MSG_NOSIGNAL);

    void *libc = dlopen("libc.so.6", RTLD_LAZY);
    CHECK(libc);
    its_socket = fd;
    write_stream = (ssize_t(*)(int, const void *, size_t))dlsym(libc, "write");
    signal(SIGPIPE, SIG_IGN);
    const char *how = argc > 3                ? "cut short"
                      : seed < PLANNED     ? planned(seed)
                      : seed < 2 * PLANNED ? planned_behind_bytes(seed - PLANNED)
                                           : at_random(&rng);
    if (argc > 3)
        MUST(truncate(its_file, 0));
    static const size_t strays[] = {0, 1, 1, 3, 70, 1000};
    size_t stray = strays[between(&rng, 0, 5)];
    if (seed < 2 * PLANNED)
        stray = 1; /* the victim looks at it, in any case */
    CHECK(stray <= sizeof much);
    /* Doorbells, or what nobody takes for one. */
    memset(much, seed < 2 * PLANNED || seed % 3 ? BELL : 'x', stray);
    (void)!write_stream(fd, much, stray);
    for (uint64_t start = now_ms(); argc == 3 && seed >= 2 * PLANNED && seed % 5 == 0 && now_ms() - start < 30;)
        at_random(&rng); /* while the victim reads */
    say("%s after %d rounds%s, %zu stray bytes", how, rounds, flood ? " and a flood" : "", stray);
    (void)!read(STDIN_FILENO, data, 1);
    if (seed % 2)
        MUST(close(fd)); /* by its own front, with what is left of the header */
    kill(getpid(), SIGKILL);
}
