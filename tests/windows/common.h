/* What every part of the Winsock behaviour suite shares.
 *
 * One program, many small named cases; a case has a server's and a client's part:
 *     suite server|client|both|solo CHANNEL MODE CASE...      MODE = cold|warm|cold6|warm6
 *     suite list                                              every case and its kind
 *     suite kill ..., suite peer ..., suite pending ...       see kill.c, peer.c, pending.c
 *     suite hooked ...                                        see hooked.c
 * `both` plays the parts in two threads of one process, the client's transcript on standard error. `solo` runs cases
 * that have one part only. Beside the connection the parts talk through named objects (CHANNEL names them): `tell`,
 * `hear` and `meet` fix the order of events, so that hardly any case has to sleep. warm = the connection of a PAIR case
 * has seen 20 round trips and more than 64 KiB each way before the case begins, so that it is carried; 6 = over IPv6.
 *
 * Standard output is the transcript: return values, names of errors and event bits, checked byte counts; never a port, a
 * handle, a time, or an amount that depends on buffer sizes. */
#pragma once

#ifndef FD_SETSIZE
#define FD_SETSIZE 64
#endif
#define _WINSOCK_DEPRECATED_NO_WARNINGS
#include <winsock2.h>
#include <mswsock.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>
#include <ws2tcpip.h>

#define KIB 1024
#define MIB (1024 * 1024)
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* A PAIR case gets the connected socket; of a RAW case the server gets a listener and the client its port; a SOLO case
 * gets nothing and has a server's part only. What they are given is closed after the case. */
enum kind { PAIR, RAW, SOLO };
struct test_case {
    const char *name;
    void (*server)(SOCKET s);
    void (*client)(SOCKET s);
    enum kind kind;
};
#define CASE(n) { #n, n##_server, n##_client, PAIR }
#define RAW_CASE(n) { #n, n##_server, n##_client, RAW }
#define SOLO_CASE(n) { #n, n##_solo, NULL, SOLO }
#define END_OF_CASES { NULL, NULL, NULL, SOLO }
#define UNUSED(x) ((void)(x))

/* Transcript. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *error_name(int error);
const char *events_name(long events);      /* FD_READ ... */
const char *poll_name(short events);       /* POLLRDNORM ... */
long long say_result(const char *what, long long value, int error);
/* "what = value" or "what = -1 WSAE..."; gives the value back. */
#define CALL(what, expression)                                         \
    ({                                                                 \
        WSASetLastError(0);                                            \
        long long value_ = (long long)(expression);                    \
        int error_ = WSAGetLastError();                                \
        say_result((what), value_, error_);                            \
    })
/* The same for what gives a socket (or any handle whose number says nothing) and for what gives a BOOL. */
SOCKET say_socket(const char *what, SOCKET s, int error);
BOOL say_bool(const char *what, BOOL yes, int error);
#define SOCKET_CALL(what, expression)                                  \
    ({                                                                 \
        WSASetLastError(0);                                            \
        SOCKET socket_ = (expression);                                 \
        say_socket((what), socket_, WSAGetLastError());                \
    })
#define BOOL_CALL(what, expression)                                    \
    ({                                                                 \
        WSASetLastError(0);                                            \
        BOOL yes_ = (expression);                                      \
        say_bool((what), yes_, WSAGetLastError());                     \
    })

/* For what must work for the case to make sense at all: ends the process with a message in the transcript. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
#define MUST(expression)                                                                             \
    ({                                                                                               \
        long long must_ = (long long)(expression);                                                   \
        if (must_ == -1)                                                                             \
            die("%s:%d: %s: %s", __FILE__, __LINE__, #expression, error_name(WSAGetLastError()));    \
        must_;                                                                                       \
    })
#define CHECK(condition)                                                                             \
    do {                                                                                             \
        if (!(condition))                                                                            \
            die("%s:%d: not so: %s (%s)", __FILE__, __LINE__, #condition, error_name(WSAGetLastError())); \
    } while (0)

/* Between the parts. */
void tell(uint64_t number);
uint64_t hear(void);
void meet(void); /* both reach this point, then both go on */

/* Connections, in the family of the mode. */
extern int family;
extern bool warm;
int loopback(int af, unsigned short port, struct sockaddr_storage *out); /* gives the length */
SOCKET stream_socket(void);
SOCKET listen_on(void);
unsigned short port_of(SOCKET s);
SOCKET accept_from(SOCKET listener);
SOCKET connect_to(unsigned short port);
SOCKET accept_warm(SOCKET listener);
SOCKET connect_warm(unsigned short port);
void warm_up(SOCKET s, bool first);
void socket_pair(SOCKET ends[2]); /* both ends in this process, warmed up if the mode says so; [1] connected */
void set_nonblocking(SOCKET s, bool on);

/* Blocking transfers that must succeed. */
void send_all(SOCKET s, const void *data, int length);
int recv_full(SOCKET s, void *data, int length); /* less than `length` only at the end of the stream */
void send_text(SOCKET s, const char *text);
void say_recv(const char *what, SOCKET s, int length, int flags); /* one recv, its bytes as text */

/* Pseudo-random numbers, and a byte stream whose content is a function of seed and offset. */
struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *rng);
int between(struct rng *rng, int low, int high);
struct stream {
    uint64_t seed, offset;
};
void stream_fill(struct stream *stream, void *data, size_t length);
void stream_check(struct stream *stream, const void *data, size_t length); /* dies at the first wrong byte */
void stream_send(struct stream *stream, SOCKET s, size_t total, int largest);
void stream_receive(struct stream *stream, SOCKET s, size_t total, int largest);

/* Waiting for what must come; 5 s at most, then "LATE" in the transcript. */
enum { LATE_MS = 5000 };
bool await_readable(SOCKET s);
bool await_writable(SOCKET s);
void await_unread(SOCKET s, unsigned bytes);           /* FIONREAD */
void say_network_events(const char *what, SOCKET s, WSAEVENT event); /* waits, enumerates, says bits and errors */
void say_no_network_events(const char *what, SOCKET s, WSAEVENT event); /* enumerates at once */
/* Nothing tells that a thread is asleep inside a call; this is time enough to get there. */
void let_it_block(void);

/* Threads keep the part (server or client) of the thread that started them. */
HANDLE start_thread(void (*body)(void *), void *argument);
void join(HANDLE thread);
