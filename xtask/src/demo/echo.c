/* A Linux echo server in the blocking calls that every socket book begins with: `echo PORT` says that it listens, serves
 * one connection, then ends. It knows nothing of Sockets-GM. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    at.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1))
        fail("listen");
    printf("listening\n");
    fflush(stdout);
    int s = accept(listener, NULL, NULL);
    if (s < 0 || setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        fail("accept");
    char bytes[4096];
    ssize_t n;
    while ((n = recv(s, bytes, sizeof bytes, 0)) > 0)
        for (ssize_t sent = 0, r; sent < n; sent += r)
            if ((r = send(s, bytes + sent, n - sent, 0)) <= 0)
                fail("send");
    if (n < 0)
        fail("recv");
    close(s);
    return 0;
}
