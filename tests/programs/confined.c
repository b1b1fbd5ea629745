/* Programs that confine themselves while they run: what is carried then, and what comes after. As root; who is not says
 * the same EPERM with and without the front. */
#include "common.h"

#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { BYTES = 300 * KIB };

/* Each end sends and receives, so that both directions go through whatever they are on now. */
static void exchange(int fd, bool first, uint64_t seed)
{
    struct stream out = {seed + first, 0}, in = {seed + !first, 0};
    int on = 1; /* a part is several small writes: no waiting for acknowledgements between them */
    MUST(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    for (int i = 0; i < 20; i++) {
        if (first)
            stream_send(&out, fd, BYTES / 20, 4 * KIB);
        stream_receive(&in, fd, BYTES / 20, 8 * KIB);
        if (!first)
            stream_send(&out, fd, BYTES / 20, 4 * KIB);
    }
    say("exchanged");
}

/* What a program goes on doing: the connection it has, a fresh one each way, one that is given back to TCP with bytes
 * unread in both directions, and a child. */
static void go_on_serving(int fd)
{
    meet();
    exchange(fd, false, 10);
    int listener = listen_on(AF_INET);
    tell(port_of(listener));
    int fresh = accept_from(listener);
    warm_up(fresh, false);
    exchange(fresh, false, 20);
    send_text(fd, "left in the ring");
    meet();
    meet();
    char text[32] = "";
    CALL("read", read_full(fd, text, 5));
    say("%s", text);
    pid_t child = MUST(fork());
    if (child == 0) {
        exchange(fresh, false, 30);
        _exit(7);
    }
    close(fresh);
    wait_child(child);
    CALL("read at the end", read(fd, text, 1));
}

static void go_on_asking(int fd)
{
    meet();
    exchange(fd, true, 10);
    int fresh = connect_to(AF_INET, hear());
    warm_up(fresh, true);
    exchange(fresh, true, 20);
    send_text(fd, "there");
    meet();
    /* The stream's own calls are not seen, so all that is unread goes along. */
    FILE *stream = fdopen(fd, "r");
    CHECK(stream);
    meet();
    char text[32] = "";
    CALL("fread", fread(text, 1, 16, stream));
    say("%s", text);
    exchange(fresh, true, 30);
    char byte;
    CALL("read at the end", read(fresh, &byte, 1));
    CALL("shutdown", shutdown(fd, SHUT_WR));
}

static void without_proc(void)
{
    if (CALL("unshare", unshare(CLONE_NEWNS)) == 0) {
        MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
        while (umount2("/proc", MNT_DETACH) == 0)
            ;
        CALL("open", open("/proc/self/stat", O_RDONLY));
    }
}

static void in_another_root(void)
{
    CALL("chroot", chroot(getenv("SGM_TEST_DIR")));
    CALL("chdir", chdir("/"));
    CALL("open", open("/proc/self/stat", O_RDONLY));
}

static void with_other_memory(void)
{
    if (CALL("unshare", unshare(CLONE_NEWNS)) == 0) {
        MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
        CALL("mount", mount("fresh", "/dev/shm", "tmpfs", 0, NULL));
    }
}

static void with_memory_read_only(void)
{
    if (CALL("unshare", unshare(CLONE_NEWNS)) == 0) {
        MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
        CALL("mount", mount("/dev/shm", "/dev/shm", NULL, MS_BIND, NULL));
        CALL("mount", mount(NULL, "/dev/shm", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
    }
}

static void as_another_user(void)
{
    CALL("setresgid", setresgid(65534, 65534, 65534));
    CALL("setresuid", setresuid(65534, 65534, 65534));
}

static void undumpable(void) { CALL("prctl", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)); }

static void as_nobody_there(void) { CALL("unshare", unshare(CLONE_NEWUSER)); }

static void with_children_apart(void) { CALL("unshare", unshare(CLONE_NEWPID)); }

/* A thread that gets descriptors of its own does as it likes with their numbers, also with that of a connection. */
static void *go_apart(void *by_closing)
{
    if (by_closing)
        CALL("close_range", syscall(SYS_close_range, 3, ~0U, 2 /* CLOSE_RANGE_UNSHARE */));
    else
        CALL("unshare", unshare(CLONE_FILES));
    int null = MUST(open("/dev/null", O_RDWR));
    for (int fd = 3; fd < 64; fd++)
        if (fd != null)
            MUST(dup2(null, fd));
    for (int fd = 3; fd < 64; fd++)
        MUST(write(fd, "nobody reads this", 17));
    for (int fd = 3; fd < 64; fd++)
        MUST(close(fd));
    return NULL;
}

static void in_a_thread(void *by_closing)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, go_apart, by_closing) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

static void with_a_thread_apart(void) { in_a_thread(NULL); }

static void with_a_thread_that_closes(void) { in_a_thread(""); }

static void alone_with_its_files(void) { CALL("unshare", unshare(CLONE_FILES)); }

/* Each case by itself on one side, and on both. */
#define CONFINED(name)                                                \
    static void name##_server(int fd) { name(); go_on_serving(fd); }  \
    static void name##_client(int fd) { go_on_asking(fd); }           \
    static void name##_asking_server(int fd) { go_on_serving(fd); }   \
    static void name##_asking_client(int fd) { name(); go_on_asking(fd); } \
    static void name##_both_server(int fd) { name(); go_on_serving(fd); }  \
    static void name##_both_client(int fd) { name(); go_on_asking(fd); }
CONFINED(without_proc)
CONFINED(in_another_root)
CONFINED(with_other_memory)
CONFINED(with_memory_read_only)
CONFINED(as_another_user)
CONFINED(undumpable)
CONFINED(as_nobody_there)
CONFINED(with_children_apart)
CONFINED(with_a_thread_apart)
CONFINED(with_a_thread_that_closes)
CONFINED(alone_with_its_files)

/* The same addresses and ports in two network namespaces, of one node: a process serves in both, another asks in both. */
enum { PORT = 7101, FROM = 7102 };

static void raise_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(ioctl(fd, SIOCGIFFLAGS, &request));
    request.ifr_flags |= IFF_UP;
    MUST(ioctl(fd, SIOCSIFFLAGS, &request));
    close(fd);
}

static int bound_to(uint16_t port)
{
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0)), on = 1;
    MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    MUST(bind(fd, (struct sockaddr *)&at, sizeof at));
    return fd;
}

/* The roles enter the two namespaces that the server has made, by /proc/PID/fd. */
static void two_networks_server(int listener)
{
    close(listener);
    int listeners[2], fds[2], spaces[2];
    for (int i = 0; i < 2; i++) {
        if (CALL("unshare", unshare(CLONE_NEWNET)) < 0) {
            tell(0);
            return;
        }
        raise_loopback();
        spaces[i] = MUST(open("/proc/self/ns/net", O_RDONLY));
        listeners[i] = bound_to(PORT);
        MUST(listen(listeners[i], 5));
    }
    tell(getpid());
    tell(spaces[0]);
    tell(spaces[1]);
    meet();
    for (int i = 0; i < 2; i++)
        fds[i] = accept_from(listeners[i]);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 2; i++)
            exchange(fds[i], false, 100 * (i + 1));
}

static void two_networks_client(int port)
{
    (void)port;
    int fds[2];
    pid_t server = hear();
    if (server == 0)
        return;
    int spaces[2];
    for (int i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/fd/%d", server, (int)hear());
        spaces[i] = MUST(open(path, O_RDONLY));
    }
    for (int i = 0; i < 2; i++) {
        MUST(setns(spaces[i], CLONE_NEWNET));
        fds[i] = bound_to(FROM);
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        MUST(connect(fds[i], (struct sockaddr *)&to, sizeof to));
    }
    meet();
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 2; i++)
            exchange(fds[i], true, 100 * (i + 1));
}

const struct test_case cases[] = {
#define THREE(name) CASE(name), CASE(name##_asking), CASE(name##_both)
    THREE(without_proc),
    THREE(in_another_root),
    THREE(with_other_memory),
    THREE(with_memory_read_only),
    THREE(as_another_user),
    THREE(undumpable),
    THREE(as_nobody_there),
    THREE(with_children_apart),
    THREE(with_a_thread_apart),
    THREE(with_a_thread_that_closes),
    THREE(alone_with_its_files),
    RAW_CASE(two_networks),
    END_OF_CASES,
};
