/* Connections behind FILE streams, and other library functions that write without calling the public write. */
#include "common.h"

#include <aio.h>
#include <stdio_ext.h>
#include <wchar.h>

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

/* Every way to read from a FILE, and the end. */
static void ways_server(int fd)
{
    FILE *in = fdopen(fd, "r");
    char text[64], *line = NULL;
    size_t room = 0;
    int number = 0;
    CALL("getc", getc(in));
    CALL("ungetc", ungetc('z', in));
    CALL("getc", getc(in));
    CALL("fscanf", fscanf(in, "%d %60s\n", &number, text));
    say("%d %s", number, text);
    CALL("getline", getline(&line, &room, in));
    CALL("getdelim", getdelim(&line, &room, ';', in));
    CALL("fread", fread(text, 5, 3, in));
    say("%.15s", text);
    meet();
    setvbuf(in, NULL, _IONBF, 0);
    CALL("getc", getc(in));
    say("%zu read ahead", __fpending(in));
    meet();
    CALL("fgets at the end", fgets(text, sizeof text, in) == NULL);
    say("end %d, error %d", !!feof(in), !!ferror(in));
    clearerr(in);
    CALL("getc", getc(in));
    free(line);
    CALL("fclose", fclose(in));
    CALL("read", read(fd, text, 1));
}
static void ways_client(int fd)
{
    send_text(fd, "x12 apples\na line\npart;fifteen bytes..");
    meet();
    send_text(fd, "y");
    meet();
    MUST(shutdown(fd, SHUT_WR));
    char byte;
    CALL("read", read(fd, &byte, 1));
}

/* Wide characters have tables of their own. */
static void wide_server(int fd)
{
    FILE *both = fdopen(fd, "r+");
    wchar_t line[64];
    CALL("fgetws", fgetws(line, 64, both) != NULL);
    say("%ls", line);
    CALL("fwprintf", fwprintf(both, L"%ls back\n", L"wide"));
    CALL("fflush", fflush(both));
    CALL("fgetwc", fgetwc(both) == WEOF);
    CALL("fclose", fclose(both));
}
static void wide_client(int fd)
{
    char text[16] = "";
    send_text(fd, "narrow\n");
    CHECK(read_full(fd, text, 10) == 10);
    say("%s", text);
    MUST(shutdown(fd, SHUT_WR));
    CALL("read", read(fd, text, 1));
}

/* More than any buffer takes, in one call, to a reader that takes its time; then one that is gone. */
enum { MUCH = 3 * MIB };
static void written_server(int fd)
{
    CHECK(hear() == 1);
    stream_receive(&(struct stream){202, 0}, fd, MUCH, 30000);
    struct linger at_once = {1, 0};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once));
    MUST(close(fd));
    tell(2);
}
static void written_client(int fd)
{
    static uint8_t data[MUCH];
    stream_fill(&(struct stream){202, 0}, data, sizeof data);
    FILE *out = fdopen(fd, "w");
    tell(1);
    say("%zu written, error %d", fwrite(data, 1, sizeof data, out), !!ferror(out));
    CALL("fflush", fflush(out));
    CHECK(hear() == 2);
    watch_sigpipe();
    await_events(fd, POLLERR);
    CALL("fputs", fputs("to nobody", out) >= 0);
    CALL("fflush", fflush(out));
    say("error %d", !!ferror(out));
    CALL("fclose", fclose(out));
    say("%d signals", sigpipes() > 0);
}

/* What does not wait: some is written, the rest is lost with EAGAIN; nothing is read. */
static void unwaiting_server(int fd)
{
    set_nonblocking(fd, true);
    FILE *in = fdopen(fd, "r");
    CALL("getc", getc(in));
    say("end %d, error %d", !!feof(in), !!ferror(in));
    clearerr(in);
    tell(1);
    await_events(fd, POLLIN);
    CALL("getc", getc(in));
    CALL("fclose", fclose(in));
}
static void unwaiting_client(int fd)
{
    CHECK(hear() == 1);
    send_text(fd, "x");
    char byte;
    CALL("read", read(fd, &byte, 1));
}

/* What is buffered goes out as the process ends, by exit or by return; by _exit it does not. */
static void left_server(int fd)
{
    for (int i = 0; i < 3; i++) {
        pid_t child = MUST(fork());
        if (child == 0) {
            MUST(dup2(fd, 1));
            MUST(close(fd));
            FILE *other = fdopen(MUST(dup(1)), "w");
            printf("first %d;", i);
            fprintf(other, "other %d;", i);
            if (i == 0)
                fflush(stdout);
            if (i == 2)
                _exit(3);
            exit(3);
        }
        wait_child(child);
    }
    send_text(fd, "last");
    MUST(shutdown(fd, SHUT_WR));
    meet();
}
static void left_client(int fd)
{
    char text[100] = "";
    read_full(fd, text, sizeof text - 1);
    /* Which of two FILEs is flushed first is the C library's business. */
    say("%zu bytes: %d%d%d%d%d%d", strlen(text), !!strstr(text, "first 0;"), !!strstr(text, "other 0;"), !!strstr(text, "first 1;"),
        !!strstr(text, "other 1;"), !!strstr(text, "first 2;"), !!strstr(text, "last"));
    meet();
}

static const char *path_of(const char *name)
{
    static char path[200];
    snprintf(path, sizeof path, "%s/%s", getenv("SGM_TEST_DIR"), name);
    return path;
}

/* A FILE opened anew closes what it was, and is a file's from then on; daemon() takes the standard ones away as well. */
static void reopened_server(int fd)
{
    char text[32] = "";
    int kept = MUST(dup(1));
    FILE *in = fdopen(MUST(dup(fd)), "r");
    MUST(dup2(fd, 0));
    MUST(dup2(fd, 1));
    MUST(close(fd));
    printf("to the peer;");
    bool out = freopen(path_of("reopened"), "w", stdout);
    printf("to the file");
    fflush(stdout);
    MUST(dup2(kept, 1));
    say("reopened %d, %d", out, getc(in) == 'x');
    say("again %d", freopen(path_of("reopened"), "r", in) == in && fgets(text, sizeof text, in));
    say("%s", text);
    fclose(in);
    int ends[2];
    MUST(pipe(ends));
    pid_t child = MUST(fork());
    if (child == 0) {
        MUST(daemon(1, 0));
        MUST(dprintf(ends[1], "%zd", read(0, text, 1)));
        _exit(0);
    }
    wait_child(child);
    MUST(close(ends[1]));
    CALL("the daemon", read(ends[0], text, 1));
    say("read %c", *text);
    MUST(close(0));
    meet();
}
static void reopened_client(int fd)
{
    char text[32] = "";
    send_text(fd, "xy");
    CALL("read", read_full(fd, text, 12));
    say("%s", text);
    CALL("read", read(fd, text, 1));
    meet();
}

/* A library's destructor is the last to write, and takes its time: long enough for a peer that was told of the end to read it. */
static __attribute__((constructor)) void exit_at_once(void)
{
    if (getenv("SGM_TEST_LATE"))
        exit(0);
}
static void late_server(int fd)
{
    char command[600], preload[600];
    FILE *source = fopen(path_of("late.c"), "w");
    fputs("#include <unistd.h>\n"
          "static __attribute__((destructor)) void late(void) { usleep(100000); if (write(1, \"late\", 4) != 4) _exit(7); }\n", source);
    fclose(source);
    snprintf(command, sizeof command, "cd %s && gcc -shared -fPIC -o late.so late.c", getenv("SGM_TEST_DIR"));
    CHECK(system(command) == 0);
    pid_t child = MUST(fork());
    if (child == 0) {
        const char *before = getenv("LD_PRELOAD");
        snprintf(preload, sizeof preload, "%s %s", before ? before : "", path_of("late.so"));
        setenv("LD_PRELOAD", preload, 1);
        setenv("SGM_TEST_LATE", "1", 1);
        MUST(dup2(fd, 1));
        execl("/proc/self/exe", "stdio", NULL);
        _exit(127);
    }
    MUST(close(fd));
    wait_child(child);
}
static void late_client(int fd)
{
    char text[8] = "";
    CALL("read", read_full(fd, text, sizeof text));
    say("%s", text);
}

/* Programs one after the other read parts of a stream whose sender is gone, by stdio and without. */
static void take_turns(int turn)
{
    char text[11] = "";
    setvbuf(stdin, NULL, _IONBF, 0);
    if (turn % 2)
        CHECK(fread(text, 1, 10, stdin) == 10);
    else
        CHECK(read(0, text, 10) == 10);
    say("turn %d: %s", turn, text);
    exit(0);
}
static __attribute__((constructor)) void after_exec(void)
{
    const char *turn = getenv("SGM_TEST_TURN");
    if (turn)
        take_turns(atoi(turn));
}
static void turns_server(int fd)
{
    CHECK(hear() == 1);
    for (int turn = 0; turn < 6; turn++) {
        pid_t child = MUST(fork());
        if (child == 0) {
            char word[] = {'0' + turn, 0};
            setenv("SGM_TEST_TURN", word, 1);
            MUST(dup2(fd, 0));
            execl("/proc/self/exe", "stdio", NULL);
            _exit(127);
        }
        wait_child(child);
    }
    char text[10];
    CALL("read", read_full(fd, text, sizeof text));
    say("%.10s", text);
    CALL("read", read(fd, text, sizeof text));
}
static void turns_client(int fd)
{
    for (int i = 0; i < 7; i++) {
        char text[11];
        snprintf(text, sizeof text, "%09d\n", i);
        write_all(fd, text, 10);
    }
    MUST(close(fd));
    tell(1);
}

/* A thread is cancelled in the middle of a line. */
static void *read_a_line(void *file)
{
    char line[64];
    return fgets(line, sizeof line, file) ? file : NULL;
}
static void cancelled_server(int fd)
{
    FILE *in = fdopen(fd, "r");
    send_text(fd, "go");
    pthread_t thread = start_thread(read_a_line, in);
    CHECK(hear() == 1);
    void *result;
    MUST(pthread_cancel(thread));
    CHECK(pthread_join(thread, &result) == 0);
    say("cancelled %d", result == PTHREAD_CANCELED);
    tell(2);
    char line[64] = "";
    CALL("fgets", fgets(line, sizeof line, in) != NULL);
    say("%s", line);
    fclose(in);
}
static void cancelled_client(int fd)
{
    char text[4];
    CHECK(read_full(fd, text, 2) == 2);
    tell(1);
    CHECK(hear() == 2);
    send_text(fd, "after\n");
    CALL("read", read(fd, text, 1));
}

const struct test_case cases[] = {CASE(lines),  CASE(mixed),     CASE(dprintf), CASE(inetd),    CASE(aio),   CASE(ways),      CASE(wide),
                                  CASE(written), CASE(unwaiting), CASE(left),    CASE(reopened), CASE(late), CASE(turns), CASE(cancelled), END_OF_CASES};
