/* A program of the same user, not under the front, that writes into the files of the node directory while others use them.
 *
 *     attack DIR KINDS SEED MS     stores odd values into the words of these files for MS milliseconds
 *     attack DIR locks SEED 0      writes its own thread's number into every lock
 *     attack DIR bells SEED MS     takes every ring off the bells, and floods them
 *
 * KINDS: any of seg, port, queue, node, joined by commas. Says how much it did, and stays until its input ends: so the number
 * that it writes into locks is that of a live thread. */
#define main common_main
#include "common.c"
#undef main
#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>

const struct test_case cases[] = {END_OF_CASES};

/* See crates/gm/src/port.rs and end.rs, crates/ring/src/layout.rs and events.rs. */
enum {
    ENDS_AT = 16 * KIB,
    END_BYTES = 256,
    HIGH_WATER = 24,
    TX_LOCK = 32,
    RX_LOCK = 36,
    PAGE = 4096,
};
enum { FILES = 256, BURST = 64 };

struct file {
    char name[64];
    uint8_t *at;
    size_t bytes;
};

static struct file files[FILES];
static int count;

static bool is_of(const char *name, const char *kinds)
{
    char prefix[16];
    for (const char *kind = kinds; *kind; kind += strcspn(kind, ","), kind += *kind == ',') {
        int n = strcspn(kind, ",");
        snprintf(prefix, sizeof prefix, "%.*s-", n, kind);
        if (!strncmp(name, prefix, n + 1))
            return true;
    }
    return false;
}

/* What is there now, mapped. Files that went stay mapped: their users have them still. */
static void look_around(const char *directory, const char *kinds)
{
    DIR *all = opendir(directory);
    if (!all)
        return;
    for (struct dirent *entry; (entry = readdir(all)) && count < FILES;) {
        bool known = !is_of(entry->d_name, kinds);
        for (int i = 0; i < count && !known; i++)
            known = !strcmp(files[i].name, entry->d_name);
        int fd = known ? -1 : openat(dirfd(all), entry->d_name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        struct stat about;
        if (fd < 0)
            continue;
        MUST(fstat(fd, &about));
        struct file *file = &files[count];
        snprintf(file->name, sizeof file->name, "%.63s", entry->d_name);
        file->bytes = about.st_size;
        file->at = file->bytes ? mmap(NULL, file->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
        if (file->at != MAP_FAILED)
            count++;
        MUST(close(fd));
    }
    closedir(all);
}

static uint32_t ends_of(const struct file *file)
{
    uint32_t used = *(volatile uint32_t *)(file->at + HIGH_WATER);
    uint32_t most = (file->bytes - ENDS_AT) / END_BYTES;
    return used < most ? used : most;
}

/* A word that somebody looks at. */
static uint8_t *a_word(struct rng *rng, const struct file *file, size_t width)
{
    size_t at = between(rng, 0, PAGE / width - 1) * width;
    if (!strncmp(file->name, "port-", 5) && ends_of(file) && rng_next(rng) % 16)
        at = ENDS_AT + between(rng, 0, ends_of(file) - 1) * END_BYTES + between(rng, 0, END_BYTES / width - 1) * width;
    else if (!strncmp(file->name, "seg-", 4))
        at %= 896;
    else if (strncmp(file->name, "port-", 5))
        at = between(rng, 0, file->bytes / width - 1) * width;
    return file->at + at;
}

static uint64_t odd_value(struct rng *rng, uint64_t now)
{
    const uint64_t pool[] = {0, 1, 2, 3, ~0ull, now + 1, now - 1, now ^ 1, now + 2, 1ull << 31, 1ull << 63, gettid(), getppid(),
                             between(rng, 0, 8000), rng_next(rng)};
    return pool[between(rng, 0, sizeof pool / sizeof *pool - 1)];
}

static void store_odd(struct rng *rng, const struct file *file)
{
    if (rng_next(rng) % 2) {
        volatile uint64_t *word = (void *)a_word(rng, file, 8);
        *word = odd_value(rng, *word);
    } else {
        volatile uint32_t *word = (void *)a_word(rng, file, 4);
        *word = odd_value(rng, *word);
    }
}

static void hold_locks(const char *directory)
{
    int locks = 0;
    look_around(directory, "port");
    for (int i = 0; i < count; i++)
        for (uint32_t end = 0; end < ends_of(&files[i]); end++, locks += 2) {
            uint8_t *at = files[i].at + ENDS_AT + end * END_BYTES;
            *(volatile uint32_t *)(at + TX_LOCK) = gettid();
            *(volatile uint32_t *)(at + RX_LOCK) = gettid();
        }
    say("%d locks held", locks);
}

static void spoil_bells(const char *directory, struct rng *rng, uint64_t ms)
{
    static int bells[FILES];
    static uint8_t bytes[PAGE];
    int open_bells = 0, rings = 0;
    DIR *all = opendir(directory);
    CHECK(all);
    for (struct dirent *entry; (entry = readdir(all)) && open_bells < FILES;) {
        int fd = strncmp(entry->d_name, "bell-", 5) ? -1 : openat(dirfd(all), entry->d_name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0)
            bells[open_bells++] = fd;
    }
    closedir(all);
    for (uint64_t start = now_ms(); now_ms() - start < ms;)
        for (int i = 0; i < open_bells; i++, rings++)
            (void)!(rng_next(rng) % 4 ? read(bells[i], bytes, sizeof bytes) : write(bells[i], bytes, between(rng, 1, sizeof bytes)));
    say("%d bells spoilt", open_bells);
}

int main(int argc, char **argv)
{
    CHECK(argc == 5);
    const char *directory = argv[1], *kinds = argv[2];
    struct rng rng = {atoi(argv[3])};
    uint64_t ms = atoi(argv[4]);
    char end;
    if (!strcmp(kinds, "locks")) {
        hold_locks(directory);
    } else if (!strcmp(kinds, "bells")) {
        spoil_bells(directory, &rng, ms);
    } else {
        size_t stores = 0;
        for (uint64_t start = now_ms(); now_ms() - start < ms;) {
            look_around(directory, kinds);
            for (int n = 0; n < BURST && count; n++, stores++)
                store_odd(&rng, &files[between(&rng, 0, count - 1)]);
            /* Its victims are to go on meanwhile. */
            usleep(between(&rng, 0, 500));
        }
        say("%zu words stored in %d files", stores, count);
    }
    (void)!read(STDIN_FILENO, &end, 1);
    return 0;
}
