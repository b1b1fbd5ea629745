/* What is not about connections: WSAStartup's count, names and addresses, the catalog, UDP. */
#include "common.h"

static void startup_solo(SOCKET unused)
{
    UNUSED(unused);
    WSADATA data;
    CALL("WSACleanup", WSACleanup());
    SOCKET_CALL("socket before WSAStartup", socket(AF_INET, SOCK_STREAM, 0));
    CALL("send before", send((SOCKET)4, "x", 1, 0));
    CALL("select before", select(0, NULL, NULL, NULL, NULL));
    CALL("WSACleanup before", WSACleanup());
    static const WORD versions[] = {0x0000, 0x0100, 0x0001, 0x0101, 0x0002, 0x0202, 0x0102, 0x0003};
    for (int i = 0; i < COUNT(versions); i++) {
        memset(&data, 0, sizeof data);
        int error = WSAStartup(versions[i], &data);
        say("WSAStartup %d.%d: %s, %x, highest %x", LOBYTE(versions[i]), HIBYTE(versions[i]), error_name(error), data.wVersion,
            data.wHighVersion);
        if (!error)
            CALL("WSACleanup", WSACleanup());
    }
    say("WSAStartup into nowhere: %s", error_name(WSAStartup(0x0202, NULL)));
    for (int i = 0; i < 3; i++)
        say("WSAStartup: %s", error_name(WSAStartup(0x0101, &data)));
    SOCKET s = SOCKET_CALL("socket", socket(AF_INET, SOCK_STREAM, 0));
    CALL("WSACleanup", WSACleanup());
    CALL("WSACleanup", WSACleanup());
    CALL("a socket is still one", setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, (char *)&(int){1}, sizeof(int)));
    CALL("WSACleanup", WSACleanup());
    CALL("WSACleanup", WSACleanup());
    MUST(WSAStartup(0x0202, &data));
    CALL("after the last cleanup it is not", setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, (char *)&(int){1}, sizeof(int)));
    say("description: %d, status: %d", data.szDescription[0] != 0, data.szSystemStatus[0] != 0);
}

/* The last cleanup closes what is open: the peer sees an end. */
static void cleanup_ends_server(SOCKET s)
{
    char byte;
    meet();
    say("the peer cleaned up: %s", recv(s, &byte, 1, 0) > 0 ? "data" : "an end");
}
static void cleanup_ends_client(SOCKET s)
{
    WSADATA data;
    UNUSED(s);
    meet();
    CALL("WSACleanup", WSACleanup());
    MUST(WSAStartup(0x0202, &data));
    CALL("send", send(s, "x", 1, 0));
}

/* A DLL that the last cleanup lets go may have had threads. */
static void cleanup_again_solo(SOCKET unused)
{
    UNUSED(unused);
    WSADATA data;
    for (int i = 0; i < 3; i++) {
        HWND window = CreateWindowExA(0, "STATIC", "", 0, 0, 0, 0, 0, HWND_MESSAGE, NULL, NULL, NULL);
        SOCKET ends[2];
        socket_pair(ends);
        CHECK(window && !WSAAsyncSelect(ends[0], window, WM_USER, FD_READ | FD_WRITE | FD_CLOSE));
        send_text(ends[1], "text");
        MSG message;
        CHECK(GetMessageA(&message, window, WM_USER, WM_USER) == TRUE);
        char text[8];
        WSABUF buffer = {sizeof text, text};
        DWORD flags = 0;
        OVERLAPPED call = {.hEvent = CreateEventA(NULL, TRUE, FALSE, NULL)};
        CALL("WSARecv", WSARecv(ends[1], &buffer, 1, NULL, &flags, &call, NULL));
        CALL("WSACleanup", WSACleanup());
        say("its event: %lu", WaitForSingleObject(call.hEvent, LATE_MS));
        DestroyWindow(window);
        CloseHandle(call.hEvent);
        MUST(WSAStartup(0x0202, &data));
    }
}

static void last_error_solo(SOCKET unused)
{
    UNUSED(unused);
    WSASetLastError(WSAEMFILE);
    say("%s, GetLastError the same: %d", error_name(WSAGetLastError()), GetLastError() == WSAEMFILE);
    SOCKET s = socket(AF_INET, SOCK_STREAM, 0);
    say("%s", error_name(WSAGetLastError()));
    closesocket(s);
    CALL("closesocket of a closed one", closesocket(s));
    CALL("closesocket of nothing", closesocket(INVALID_SOCKET));
    CALL("closesocket of 0", closesocket(0));
}

static void addresses_solo(SOCKET unused)
{
    UNUSED(unused);
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *list = NULL;
    int error = getaddrinfo("127.0.0.1", "80", &hints, &list);
    say("getaddrinfo: %s", error_name(error));
    for (struct addrinfo *one = list; one; one = one->ai_next) {
        char host[64] = "", service[16] = "";
        say("family %d, type %d, port %d", one->ai_family, one->ai_socktype, ntohs(((struct sockaddr_in *)one->ai_addr)->sin_port));
        say("getnameinfo: %s", error_name(getnameinfo(one->ai_addr, (socklen_t)one->ai_addrlen, host, sizeof host, service, sizeof service,
                                                      NI_NUMERICHOST | NI_NUMERICSERV)));
        say("%s %s", host, service);
    }
    if (list)
        freeaddrinfo(list);
    hints.ai_family = AF_INET6;
    say("getaddrinfo ::1: %s", error_name(getaddrinfo("::1", NULL, &hints, &list)));
    freeaddrinfo(list);
    say("getaddrinfo of nonsense: %s", error_name(getaddrinfo("not a number", NULL, &hints, &list)));
    say("getaddrinfo of nothing: %s", error_name(getaddrinfo(NULL, NULL, NULL, &list)));
    ADDRINFOW wide = {.ai_family = AF_INET, .ai_flags = AI_NUMERICHOST}, *wide_list = NULL;
    say("GetAddrInfoW: %s", error_name(GetAddrInfoW(L"10.1.2.3", NULL, &wide, &wide_list)));
    if (wide_list)
        FreeAddrInfoW(wide_list);
    say("inet_addr %lx, inet_ntoa %s", inet_addr("1.2.3.4"), inet_ntoa((struct in_addr){.s_addr = htonl(0x7f000001)}));
    char text[64] = "";
    struct in6_addr six;
    say("inet_pton %d", inet_pton(AF_INET6, "fe80::1:2", &six));
    say("inet_ntop %s", inet_ntop(AF_INET6, &six, text, sizeof text));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1234), .sin_addr.s_addr = htonl(0x0a000001)};
    DWORD length = sizeof text;
    CALL("WSAAddressToString", WSAAddressToStringA((struct sockaddr *)&address, sizeof address, NULL, text, &length));
    say("%s", text);
    int size = sizeof address;
    memset(&address, 0, sizeof address);
    CALL("WSAStringToAddress", WSAStringToAddressA((char *)"192.168.1.2:99", AF_INET, NULL, (struct sockaddr *)&address, &size));
    say("%s %d", inet_ntoa(address.sin_addr), ntohs(address.sin_port));
    say("htonl %lx, htons %x", htonl(0x01020304), htons(0x0102));
    char name[256] = "";
    CALL("gethostname", gethostname(name, sizeof name));
    say("a name: %d", name[0] != 0);
    struct hostent *host = gethostbyname("127.0.0.1");
    say("gethostbyname %s", host ? inet_ntoa(*(struct in_addr *)host->h_addr_list[0]) : "none");
    struct protoent *protocol = getprotobyname("tcp");
    say("getprotobyname %d", protocol ? protocol->p_proto : -1);
}

/* Whatever the chain above them: TCP and UDP are offered for both families, each with the flags of its kind. */
static void catalog_solo(SOCKET unused)
{
    UNUSED(unused);
    DWORD bytes = 0;
    int count = WSAEnumProtocolsW(NULL, NULL, &bytes);
    say("WSAEnumProtocols without room: %d %s, room asked for: %d", count, error_name(WSAGetLastError()), bytes >= sizeof(WSAPROTOCOL_INFOW));
    WSAPROTOCOL_INFOW *all = malloc(bytes);
    count = WSAEnumProtocolsW(NULL, all, &bytes);
    bool seen[2][2] = {{false, false}, {false, false}};
    for (int i = 0; i < count; i++)
        for (int six = 0; six < 2; six++)
            for (int udp = 0; udp < 2; udp++)
                if (all[i].iAddressFamily == (six ? AF_INET6 : AF_INET) && all[i].iSocketType == (udp ? SOCK_DGRAM : SOCK_STREAM) &&
                    all[i].iProtocol == (udp ? IPPROTO_UDP : IPPROTO_TCP) && !!(all[i].dwServiceFlags1 & XP1_CONNECTIONLESS) == !!udp)
                    seen[six][udp] = true;
    say("tcp %d, udp %d, tcp6 %d, udp6 %d", seen[0][0], seen[0][1], seen[1][0], seen[1][1]);
    int only_tcp[] = {IPPROTO_TCP, 0};
    count = WSAEnumProtocolsW(only_tcp, all, &bytes);
    for (int i = 0; i < count; i++)
        CHECK(all[i].iProtocol == IPPROTO_TCP);
    say("only tcp: %s", count >= 2 ? "some" : "too few");
    free(all);
}

static void udp_server(SOCKET unused_listener)
{
    UNUSED(unused_listener);
    struct sockaddr_storage address, from;
    int length = loopback(family, 0, &address);
    SOCKET s = (SOCKET)MUST(socket(family, SOCK_DGRAM, IPPROTO_UDP));
    char data[100];
    MUST(bind(s, (struct sockaddr *)&address, length));
    tell(port_of(s));
    for (int i = 0; i < 20; i++) {
        int from_length = sizeof from;
        int n = (int)MUST(recvfrom(s, data, sizeof data, 0, (struct sockaddr *)&from, &from_length));
        MUST(sendto(s, data, n, 0, (struct sockaddr *)&from, from_length));
    }
    say("20 datagrams");
    CALL("listen", listen(s, 5));
    SOCKET_CALL("accept", accept(s, NULL, NULL));
    meet();
    closesocket(s);
}
static void udp_client(SOCKET unused_port)
{
    UNUSED(unused_port);
    struct sockaddr_storage address;
    int length = loopback(family, (unsigned short)hear(), &address);
    SOCKET s = (SOCKET)MUST(socket(family, SOCK_DGRAM, IPPROTO_UDP));
    char data[100] = "datagram";
    for (int i = 0; i < 10; i++) {
        MUST(sendto(s, "datagram", 8, 0, (struct sockaddr *)&address, length));
        CHECK(recvfrom(s, data, sizeof data, 0, NULL, NULL) == 8);
    }
    CALL("connect", connect(s, (struct sockaddr *)&address, length));
    for (int i = 0; i < 9; i++) {
        MUST(send(s, "datagram", 8, 0));
        CHECK(recv(s, data, sizeof data, 0) == 8);
    }
    CALL("send", send(s, "datagram", 8, 0));
    CALL("recv, short", recv(s, data, 4, 0));
    set_nonblocking(s, true);
    say_recv("recv of nothing", s, 10, 0);
    meet();
    closesocket(s);
}

/* A copy of the handle leads to the socket: what was sent to it is received by the copy, plainly and on the first one's port. */
static void udp_copies_solo(SOCKET unused)
{
    UNUSED(unused);
    struct sockaddr_storage address;
    int length = loopback(family, 0, &address);
    SOCKET s = (SOCKET)MUST(socket(family, SOCK_DGRAM, IPPROTO_UDP));
    MUST(bind(s, (struct sockaddr *)&address, length));
    length = loopback(family, port_of(s), &address);
    HANDLE copy = NULL, process = GetCurrentProcess();
    CHECK(DuplicateHandle(process, (HANDLE)s, process, &copy, 0, FALSE, DUPLICATE_SAME_ACCESS));
    char data[100];
    CALL("sendto", sendto(s, "datagram", 8, 0, (struct sockaddr *)&address, length));
    CALL("recv by the copy", recv((SOCKET)copy, data, sizeof data, 0));
    HANDLE port = CreateIoCompletionPort((HANDLE)s, NULL, 5, 0);
    CHECK(port);
    OVERLAPPED ov = {0}, *told = NULL;
    DWORD bytes = 0;
    ULONG_PTR key = 0;
    CALL("ReadFile by the copy", ReadFile(copy, data, sizeof data, NULL, &ov));
    CALL("send to it", sendto(s, "more", 4, 0, (struct sockaddr *)&address, length));
    bool got = GetQueuedCompletionStatus(port, &bytes, &key, &told, 5000) && told == &ov;
    say("packet: %s, key %d, %lu bytes", got ? "yes" : "no", (int)key, bytes);
    CALL("closesocket", closesocket(s));
    CALL("CloseHandle of the copy", CloseHandle(copy));
    CloseHandle(port);
}

const struct test_case library_cases[] = {
    SOLO_CASE(startup), CASE(cleanup_ends), SOLO_CASE(cleanup_again), SOLO_CASE(last_error), SOLO_CASE(addresses), SOLO_CASE(catalog), RAW_CASE(udp), SOLO_CASE(udp_copies), END_OF_CASES,
};
