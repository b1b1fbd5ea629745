/* Pseudo-random numbers and the checked byte stream (see common.h). */
#include "common.h"

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t rng_next(struct rng *rng) { return mix(rng->state += 0x9e3779b97f4a7c15ull); }

size_t between(struct rng *rng, size_t low, size_t high) { return low + rng_next(rng) % (high - low + 1); }

static uint64_t word_at(const struct stream *stream, uint64_t index)
{
    return mix(stream->seed * 0x2545f4914f6cdd1dull + index * 0x9e3779b97f4a7c15ull);
}

void stream_fill(struct stream *stream, void *data, size_t length)
{
    uint8_t *out = data;
    while (length) {
        uint64_t word = word_at(stream, stream->offset / 8);
        size_t skip = stream->offset % 8, n = 8 - skip < length ? 8 - skip : length;
        memcpy(out, (uint8_t *)&word + skip, n);
        out += n;
        length -= n;
        stream->offset += n;
    }
}

void stream_check(struct stream *stream, const void *data, size_t length)
{
    const uint8_t *in = data;
    while (length) {
        uint64_t word = word_at(stream, stream->offset / 8);
        size_t skip = stream->offset % 8, n = 8 - skip < length ? 8 - skip : length;
        if (memcmp(in, (uint8_t *)&word + skip, n)) {
            say("WRONG BYTES at offset %llu of stream %llu", (unsigned long long)stream->offset,
                (unsigned long long)stream->seed);
            _exit(98);
        }
        in += n;
        length -= n;
        stream->offset += n;
    }
}

void stream_send(struct stream *stream, int fd, size_t total, size_t largest)
{
    struct rng sizes = {stream->seed};
    uint8_t *buffer = malloc(largest);
    while (total) {
        size_t n = between(&sizes, 1, largest);
        if (n > total)
            n = total;
        stream_fill(stream, buffer, n);
        write_all(fd, buffer, n);
        total -= n;
    }
    free(buffer);
}

void stream_receive(struct stream *stream, int fd, size_t total, size_t largest)
{
    struct rng sizes = {~stream->seed};
    uint8_t *buffer = malloc(largest);
    while (total) {
        size_t n = between(&sizes, 1, largest);
        ssize_t got = MUST(read(fd, buffer, n < total ? n : total));
        if (got == 0) {
            say("END OF STREAM with %zu bytes missing", total);
            _exit(98);
        }
        stream_check(stream, buffer, got);
        total -= got;
    }
    free(buffer);
}

size_t stream_receive_to_end(struct stream *stream, int fd)
{
    uint8_t *buffer = malloc(64 * KIB);
    size_t total = 0;
    for (ssize_t n; (n = MUST(read(fd, buffer, 64 * KIB))) > 0; total += n)
        stream_check(stream, buffer, n);
    free(buffer);
    return total;
}

uint64_t hash_bytes(uint64_t hash, const void *data, size_t length)
{
    for (const uint8_t *at = data; length--; at++)
        hash = (hash ^ *at) * 0x100000001b3ull;
    return hash;
}
