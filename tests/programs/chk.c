/* Calls whose lengths the compiler cannot see, into buffers whose size it knows: with _FORTIFY_SOURCE they go through
 * __read_chk, __recv_chk, __recvfrom_chk, __poll_chk, __ppoll_chk and __fdelt_chk. */
#include "common.h"

static volatile size_t four = 4, one = 1;

static void fortified_server(int fd)
{
    char text[16];
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    struct pollfd entries[4];
    await_unread(fd, 12);
    CALL("read", read(fd, text, four));
    say("%.4s", text);
    CALL("recv", recv(fd, text, four, 0));
    say("%.4s", text);
    CALL("recvfrom", recvfrom(fd, text, four, 0, (struct sockaddr *)&name, &length));
    say("%.4s", text);
    CALL("recv, empty", recv(fd, text, four, MSG_DONTWAIT));
    entries[0] = (struct pollfd){.fd = fd, .events = POLLIN};
    CALL("poll, nothing", poll(entries, one, 0));
    tell(thread_id());
    CALL("poll", poll(entries, one, -1));
    say("%s", events_name(entries[0].revents));
    CALL("ppoll", ppoll(entries, one, NULL, NULL));
    fd_set reading;
    volatile int number = fd;
    FD_ZERO(&reading);
    FD_SET(number, &reading);
    CALL("select", select(fd + 1, &reading, NULL, NULL, NULL));
    say("%d", !!FD_ISSET(number, &reading));
    CALL("pread", pread(fd, text, four, 0));
    CALL("read", read(fd, text, four));
    struct stream in = {71, 0};
    static uint8_t buffer[10000];
    volatile size_t room = sizeof buffer;
    for (ssize_t n; (n = MUST(read(fd, buffer, room))) > 0;)
        stream_check(&in, buffer, n);
    say("%llu bytes", (unsigned long long)in.offset);
}
static void fortified_client(int fd)
{
    send_text(fd, "readrecvfrom");
    await_asleep(hear());
    send_text(fd, "poll");
    struct stream out = {71, 0};
    stream_send(&out, fd, MIB, 20000);
    MUST(shutdown(fd, SHUT_WR));
}

const struct test_case cases[] = {CASE(fortified), END_OF_CASES};
