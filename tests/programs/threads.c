/* Several threads on one connection, and one on each of several. */
#include "common.h"

struct work {
    int fd;
    struct stream stream;
    size_t bytes;
};

static void *send_work(void *argument)
{
    struct work *work = argument;
    stream_send(&work->stream, work->fd, work->bytes, 30000);
    return NULL;
}
static void *receive_work(void *argument)
{
    struct work *work = argument;
    stream_receive(&work->stream, work->fd, work->bytes, 30000);
    return NULL;
}

/* One thread reads while another writes. */
static void duplex(int fd, uint64_t out_seed, uint64_t in_seed)
{
    struct work out = {fd, {out_seed, 0}, 12 * MIB}, in = {fd, {in_seed, 0}, 12 * MIB};
    pthread_t sender = start_thread(send_work, &out), receiver = start_thread(receive_work, &in);
    pthread_join(sender, NULL);
    pthread_join(receiver, NULL);
    say("%zu bytes each way", in.bytes);
}
static void duplex_server(int fd) { duplex(fd, 121, 122); }
static void duplex_client(int fd) { duplex(fd, 122, 121); }

/* Four threads write whole records of 16 bytes: no record is torn, each thread's stay in order. */
struct record {
    uint64_t writer, number;
};
static pthread_mutex_t record_mutex = PTHREAD_MUTEX_INITIALIZER;
static int record_fd;
static bool use_mutex;
enum { RECORDS = 5000 };

static void *write_records(void *writer)
{
    for (uint64_t i = 0; i < RECORDS; i++) {
        struct record record = {(uintptr_t)writer, i};
        if (use_mutex)
            pthread_mutex_lock(&record_mutex);
        CHECK(write(record_fd, &record, sizeof record) == sizeof record);
        if (use_mutex)
            pthread_mutex_unlock(&record_mutex);
    }
    return NULL;
}
static void records(int fd, bool with_mutex)
{
    pthread_t threads[4];
    record_fd = fd;
    use_mutex = with_mutex;
    for (uintptr_t i = 0; i < 4; i++)
        threads[i] = start_thread(write_records, (void *)i);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    say("written");
    MUST(shutdown(fd, SHUT_WR));
}
static void check_records(int fd)
{
    uint64_t next[4] = {0};
    for (struct record record; read_full(fd, &record, sizeof record) == sizeof record;) {
        CHECK(record.writer < 4);
        if (record.number != next[record.writer]++)
            die("record %llu of %llu out of order", (unsigned long long)record.number,
                (unsigned long long)record.writer);
    }
    say("%d %d %d %d records", (int)next[0], (int)next[1], (int)next[2], (int)next[3]);
}
static void records_server(int fd) { check_records(fd); }
static void records_client(int fd) { records(fd, true); }
/* The kernel takes a small write as a whole even without a mutex. */
static void records_no_mutex_server(int fd) { check_records(fd); }
static void records_no_mutex_client(int fd) { records(fd, false); }

/* Several threads, each on its own connection. */
enum { LANES = 6 };
static void lanes(int *fds, bool sending)
{
    struct work works[LANES];
    pthread_t threads[LANES];
    for (int i = 0; i < LANES; i++) {
        works[i] = (struct work){fds[i], {130 + i, 0}, 2 * MIB};
        threads[i] = start_thread(sending ? send_work : receive_work, &works[i]);
    }
    for (int i = 0; i < LANES; i++)
        pthread_join(threads[i], NULL);
    say("all lanes done");
}
static void lanes_server(int listener)
{
    int fds[LANES];
    for (int i = 0; i < LANES; i++)
        fds[i] = accept_warm(listener);
    lanes(fds, false);
}
static void lanes_client(int port)
{
    int fds[LANES];
    for (int i = 0; i < LANES; i++)
        fds[i] = connect_warm(port);
    lanes(fds, true);
}

/* Two threads blocked in reading the same connection: every message goes to one of them. */
static int shared_total;
static pthread_mutex_t shared_mutex = PTHREAD_MUTEX_INITIALIZER;
static void *shared_reader(void *fd)
{
    char text[10];
    tell(thread_id());
    for (ssize_t n; (n = MUST(recv((int)(intptr_t)fd, text, sizeof text, MSG_WAITALL))) > 0;) {
        CHECK(n == 10 && !memcmp(text, "ten bytes.", 10));
        pthread_mutex_lock(&shared_mutex);
        shared_total++;
        pthread_mutex_unlock(&shared_mutex);
        tell(0);
    }
    return NULL;
}
static void two_readers_server(int fd)
{
    pthread_t one = start_thread(shared_reader, (void *)(intptr_t)fd), two;
    CHECK(hear() == 1);
    two = start_thread(shared_reader, (void *)(intptr_t)fd);
    pthread_join(one, NULL);
    pthread_join(two, NULL);
    say("%d messages", shared_total);
}
static void two_readers_client(int fd)
{
    pid_t readers[2];
    readers[0] = hear();
    tell(1);
    readers[1] = hear();
    for (int i = 0; i < 20; i++) {
        await_asleep(readers[0]);
        await_asleep(readers[1]);
        send_text(fd, "ten bytes.");
        CHECK(hear() == 0);
    }
    for (int i = 0; i < 2000; i++)
        send_text(fd, "ten bytes.");
    for (int i = 0; i < 2000; i++)
        CHECK(hear() == 0);
    CALL("shutdown", shutdown(fd, SHUT_WR));
}

/* A thread is asleep in a read of a full connection's other way: the other thread's writes go on. */
static void *echo_thread(void *fd)
{
    char text[64];
    for (ssize_t n; (n = MUST(read((int)(intptr_t)fd, text, sizeof text))) > 0;)
        write_all((int)(intptr_t)fd, text, n);
    return NULL;
}
static void reader_asleep_server(int fd)
{
    struct stream in = {141, 0};
    stream_receive(&in, fd, 4 * MIB, 30000);
    send_text(fd, "got it");
    CHECK(hear() == 1);
    MUST(shutdown(fd, SHUT_WR));
    char text[16] = "";
    CALL("read", read(fd, text, 15));
    say("%s", text);
}
static void reader_asleep_client(int fd)
{
    struct stream out = {141, 0};
    pthread_t reader = start_thread(echo_thread, (void *)(intptr_t)fd);
    stream_send(&out, fd, 4 * MIB, 30000);
    tell(1);
    pthread_join(reader, NULL);
    say("joined");
}

/* Threads that come and go, each using the connection once. */
static void *one_question(void *fd)
{
    char text[8];
    send_text((int)(intptr_t)fd, "ping");
    CHECK(read_full((int)(intptr_t)fd, text, 4) == 4);
    return NULL;
}
static void passing_threads_server(int fd) { echo_thread((void *)(intptr_t)fd); }
static void passing_threads_client(int fd)
{
    for (int i = 0; i < 200; i++)
        pthread_join(start_thread(one_question, (void *)(intptr_t)fd), NULL);
    say("200 threads");
    MUST(shutdown(fd, SHUT_WR));
}

/* A thread is in a call on the connection when another closes its descriptor, whose number may go to something else: the call
 * goes on as if nothing had happened, and the connection ends with it. A poll wakes up all the same, and finds no descriptor. */
enum { LONG_SEND = 24 * MIB };
static struct {
    int fd;
    void (*work)(int fd);
    _Atomic pid_t thread;
} under;
static void *under_close(void *nothing)
{
    under.thread = thread_id();
    under.work(under.fd);
    return nothing;
}
enum how { CLOSED, USED_AGAIN, REPLACED };
static void close_under(int fd, void (*work)(int fd), enum how how)
{
    int pipes[2];
    MUST(pipe(pipes));
    under.fd = fd, under.work = work;
    pthread_t thread = start_thread(under_close, NULL);
    while (!under.thread)
        sched_yield();
    await_asleep(under.thread);
    if (how != REPLACED)
        CALL("close", close(fd));
    if (how != CLOSED)
        CALL("the number is another's", dup2(pipes[1], fd) == fd);
    tell(1);
    pthread_join(thread, NULL);
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    char byte;
    CALL("nothing in the pipe", read(pipes[0], &byte, 1));
    meet();
}
static void one_read(int fd)
{
    char text[16];
    CALL("read", read(fd, text, sizeof text));
}
static void one_poll(int fd)
{
    struct pollfd entry = {fd, POLLIN, 0};
    CALL("poll", poll(&entry, 1, -1));
    say("%s", events_name(entry.revents));
}
static void one_send(int fd)
{
    static uint8_t data[LONG_SEND];
    struct stream out = {127, 0};
    stream_fill(&out, data, sizeof data);
    CALL("send", send(fd, data, sizeof data, 0));
}
static void late_words(int fd)
{
    char byte;
    CHECK(hear() == 1);
    CALL("write", write(fd, "late", 4));
    long n = read(fd, &byte, 1);
    say("%s", n == 0 || (n < 0 && errno == ECONNRESET) ? "over" : "not over");
    meet();
}
static void close_under_reader_server(int fd) { close_under(fd, one_read, USED_AGAIN); }
static void close_under_reader_client(int fd) { late_words(fd); }
static void dup_over_reader_server(int fd) { close_under(fd, one_read, REPLACED); }
static void dup_over_reader_client(int fd) { late_words(fd); }
static void close_under_poll_server(int fd) { close_under(fd, one_poll, CLOSED); }
static void close_under_poll_client(int fd) { late_words(fd); }
static void close_under_writer_server(int fd) { close_under(fd, one_send, USED_AGAIN); }
static void close_under_writer_client(int fd)
{
    CHECK(hear() == 1);
    struct stream in = {127, 0};
    say("%zu bytes, then the end", stream_receive_to_end(&in, fd));
    meet();
}

/* A thread that waits for room when another shuts the sending half down: what it has sent arrives, and no more. */
static ssize_t sent_before_shutdown;
static void send_until_shut(int fd)
{
    static uint8_t data[LONG_SEND];
    struct stream out = {128, 0};
    stream_fill(&out, data, sizeof data);
    sent_before_shutdown = send(fd, data, sizeof data, MSG_NOSIGNAL);
}
static void shut_under_writer_server(int fd)
{
    under.fd = fd, under.work = send_until_shut;
    pthread_t thread = start_thread(under_close, NULL);
    while (!under.thread)
        sched_yield();
    await_asleep(under.thread);
    CALL("shutdown", shutdown(fd, SHUT_WR));
    pthread_join(thread, NULL);
    say("%s", sent_before_shutdown > 0 && sent_before_shutdown < LONG_SEND ? "a part was sent" : "all or nothing was sent");
    tell(sent_before_shutdown);
    meet();
}
static void shut_under_writer_client(int fd)
{
    size_t sent = hear();
    struct stream in = {128, 0};
    say("%s", stream_receive_to_end(&in, fd) == sent ? "what was sent came, then the end" : "something else came");
    meet();
}

const struct test_case cases[] = {
    CASE(duplex),      CASE(records),      CASE(records_no_mutex), RAW_CASE(lanes),
    CASE(two_readers), CASE(reader_asleep), CASE(passing_threads), CASE(close_under_reader),
    CASE(dup_over_reader), CASE(close_under_poll), CASE(close_under_writer), CASE(shut_under_writer), END_OF_CASES,
};
