/* Connections behind FILE streams, and other library functions that write without calling the public write. */
#include "common.h"

#include <aio.h>

static void lines_server(int fd)
{
    FILE *in = fdopen(fd, "r"), *out = fdopen(MUST(dup(fd)), "w");
    char line[256];
    CHECK(in && out);
    int count = 0;
    for (; fgets(line, sizeof line, in); count++) {
        fprintf(out, "%d: %s", count, line);
        fflush(out);
    }
    say("%d lines, end %d, error %d", count, !!feof(in), !!ferror(in));
    fclose(out);
    fclose(in);
}
static void lines_client(int fd)
{
    FILE *both = fdopen(fd, "r+");
    char line[256];
    setvbuf(both, NULL, _IOLBF, 4096);
    for (int i = 0; i < 200; i++) {
        fprintf(both, "line %d\n", i);
        fflush(both);
        CHECK(fgets(line, sizeof line, both));
        if (i % 50 == 0)
            say("%.*s", (int)strcspn(line, "\n"), line);
        fseek(both, 0, SEEK_CUR);
    }
    MUST(shutdown(fd, SHUT_WR));
    say("then %s", fgets(line, sizeof line, both) ? "more" : "the end");
    CALL("fclose", fclose(both));
    CALL("close", close(fd));
}

/* write, then a stream, then write again; the other side reads likewise. */
static void mixed_server(int fd)
{
    struct stream in = {201, 0};
    stream_receive(&in, fd, 100000, 5000);
    FILE *file = fdopen(MUST(dup(fd)), "r");
    static uint8_t buffer[100000];
    CHECK(fread(buffer, 1, sizeof buffer, file) == sizeof buffer);
    stream_check(&in, buffer, sizeof buffer);
    /* What the stream has read ahead is the stream's: nothing is, as the sender waits here. */
    meet();
    stream_receive(&in, fd, 100000, 5000);
    say("%llu bytes in order", (unsigned long long)in.offset);
    fclose(file);
}
static void mixed_client(int fd)
{
    struct stream out = {201, 0};
    static uint8_t buffer[100000];
    stream_send(&out, fd, 100000, 3000);
    FILE *file = fdopen(MUST(dup(fd)), "w");
    stream_fill(&out, buffer, sizeof buffer);
    CHECK(fwrite(buffer, 1, sizeof buffer, file) == sizeof buffer);
    fflush(file);
    meet();
    stream_send(&out, fd, 100000, 3000);
    fclose(file);
    say("sent");
}

static void dprintf_server(int fd)
{
    char text[64] = "";
    CHECK(read_full(fd, text, 25) == 25);
    say("%s", text);
    char longer[128] = "";
    CHECK(read_full(fd, longer, 60) == 60);
    say("%s", longer);
}
static void dprintf_client(int fd)
{
    write_all(fd, "written;", 8);
    CALL("dprintf", dprintf(fd, "printed %d;", 7));
    write_all(fd, "written", 7);
    /* More arguments than registers hold, of both kinds. */
    CALL("dprintf", dprintf(fd, "%d %s %.1f %ld %c %x %.2f %s %d %.1f %.1f %.1f %.1f %.1f %.1f %.1f %s", 1, "two", 3.5, 4L, '5', 6,
                            7.25, "eight", 9, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, "end"));
}

/* Standard input and output are the connection, as under inetd. */
static void inetd_server(int fd)
{
    char line[64];
    int transcript = MUST(dup(1));
    MUST(dup2(fd, 0));
    MUST(dup2(fd, 1));
    MUST(close(fd));
    while (fgets(line, sizeof line, stdin)) {
        printf("you said %s", line);
        fflush(stdout);
    }
    fclose(stdout);
    MUST(dup2(transcript, 1));
    close(0);
    say("served");
}
static void inetd_client(int fd)
{
    char text[64];
    for (int i = 0; i < 10; i++) {
        send_text(fd, "hello\n");
        ssize_t n = MUST(read(fd, text, sizeof text));
        say("%.*s", (int)n - 1, text);
    }
    MUST(shutdown(fd, SHUT_WR));
    CALL("read", read(fd, text, sizeof text));
}

/* POSIX asynchronous transfers: the C library's own threads make the calls. */
static ssize_t finished(struct aiocb *block)
{
    const struct aiocb *list[] = {block};
    while (aio_error(block) == EINPROGRESS)
        aio_suspend(list, 1, NULL);
    return aio_return(block);
}
static void aio_server(int fd)
{
    char text[16] = "";
    for (int i = 0; i < 10; i++) {
        struct aiocb block = {.aio_fildes = fd, .aio_buf = text, .aio_nbytes = 5}, *list[] = {NULL, &block};
        block.aio_lio_opcode = LIO_READ;
        MUST(i % 2 ? aio_read(&block) : lio_listio(LIO_NOWAIT, list, 2, NULL));
        CALL("aio_read", finished(&block));
        CHECK(write(fd, text, 5) == 5);
    }
    say("%s", text);
}
static void aio_client(int fd)
{
    char text[16] = "";
    for (int i = 0; i < 10; i++) {
        struct aiocb block = {.aio_fildes = fd, .aio_buf = "hello", .aio_nbytes = 5};
        MUST(aio_write(&block));
        CALL("aio_write", finished(&block));
        CHECK(read_full(fd, text, 5) == 5);
    }
    say("%s", text);
}

const struct test_case cases[] = {CASE(lines), CASE(mixed), CASE(dprintf), CASE(inetd), CASE(aio), END_OF_CASES};
