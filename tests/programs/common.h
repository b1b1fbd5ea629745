/* What every program of the behaviour suite shares.
 *
 * A program holds a table of cases; each case has a server and a client role, run as two processes:
 *     PROGRAM CASE server|client
 * The runner gives both the same directory in SGM_TEST_DIR, with two FIFOs in it: `tell` and `hear` carry numbers between
 * the roles beside the connection (the port, "I have closed now", ...), so that the order of events is fixed and no case
 * needs to sleep. Standard output is the transcript: values, errno names and checked byte counts; never a port, a pid, a
 * time or an amount that depends on buffer sizes.
 *
 * Environment: WARMUP=n  messages exchanged before a case (default 32, so that the connection is promoted; 0 = none)
 *              SWAP=1    the accepting process plays the client's part of a paired case and the other way round
 */
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define KIB 1024
#define MIB (1024 * 1024)

/* A case: both functions get the connected, warmed-up socket; of a RAW case the server gets the listener (its port told
 * already) and the client gets the port. */
struct test_case {
    const char *name;
    void (*server)(int fd);
    void (*client)(int fd);
    enum { PAIR, RAW } kind;
};
#define CASE(n) { #n, n##_server, n##_client, PAIR }
#define RAW_CASE(n) { #n, n##_server, n##_client, RAW }
#define END_OF_CASES { NULL, NULL, NULL, PAIR }
extern const struct test_case cases[];

/* Transcript. CALL says "what = value" or "what = -1 ERRNO" and gives the value back. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
long say_result(const char *what, long value, int error);
const char *events_name(unsigned events); /* EPOLLIN and POLLIN share their values */
#define CALL(what, expression)                         \
    ({                                                 \
        errno = 0;                                     \
        long value_ = (long)(expression);              \
        say_result((what), value_, errno);             \
    })

/* For what must work for the case to make sense at all: ends the process with a message on standard error. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
#define MUST(expression)                                                            \
    ({                                                                              \
        long value_ = (long)(expression);                                           \
        if (value_ < 0)                                                             \
            die("%s:%d: %s: %s", __FILE__, __LINE__, #expression, strerror(errno)); \
        value_;                                                                     \
    })
#define CHECK(condition)                                                  \
    do {                                                                  \
        if (!(condition))                                                 \
            die("%s:%d: not so: %s", __FILE__, __LINE__, #condition);     \
    } while (0)

/* Between the roles. */
void tell(uint64_t number);
uint64_t hear(void);
void meet(void); /* both reach this point, then both go on */
bool is_server(void);

/* Connections. */
int listen_on(int family);      /* any free port of the loopback address */
uint16_t port_of(int listener);
int accept_from(int listener);
int connect_to(int family, uint16_t port);
void warm_up(int fd, bool first);
void warm_up_n(int fd, bool first, int rounds);
int accept_warm(int listener);  /* accept_from and warm_up */
int connect_warm(uint16_t port);
void set_nonblocking(int fd, bool on);

/* Blocking transfers that must succeed. */
void write_all(int fd, const void *data, size_t length);
size_t read_full(int fd, void *data, size_t length); /* less than `length` only at the end of the stream */
void send_text(int fd, const char *text);

/* Pseudo-random numbers and a pseudo-random byte stream whose content is a function of seed and offset. */
struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *rng);
size_t between(struct rng *rng, size_t low, size_t high);
struct stream {
    uint64_t seed, offset;
};
void stream_fill(struct stream *stream, void *data, size_t length);
void stream_check(struct stream *stream, const void *data, size_t length); /* says and exits at the first wrong byte */
void stream_send(struct stream *stream, int fd, size_t total, size_t largest);
void stream_receive(struct stream *stream, int fd, size_t total, size_t largest);
size_t stream_receive_to_end(struct stream *stream, int fd);
uint64_t hash_bytes(uint64_t hash, const void *data, size_t length);
#define HASH_START 0xcbf29ce484222325ull

/* Awaiting what has no event of its own. */
short await_events(int fd, short events); /* polls until one of them shows; gives all that show */
void await_unread(int fd, int bytes);     /* FIONREAD */
void await_asleep(pid_t thread);          /* blocked in the kernel */

/* Gives a connection back to TCP for all who hold it: descriptor 2 is never carried. */
void give_back(int fd);
pid_t thread_id(void);
uint64_t now_ms(void);
void watch_sigpipe(void);                 /* count instead of dying */
int sigpipes(void);
void wait_child(pid_t child);
/* A child that holds what its parent holds, and makes no call on it. */
pid_t idle_child(void);
pthread_t start_thread(void *(*body)(void *), void *argument);
