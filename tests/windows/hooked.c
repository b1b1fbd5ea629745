/* Completions in a process whose memory is taken, or whose ntdll somebody has changed, before the first socket is made:
 *
 *     suite hooked free|reserved|everything|changed
 *
 * reserved: the gigabyte that a Java machine takes; everything: all that is free within 2 GiB of ntdll; changed: the first byte
 * of NtReadFile is not what it was. Threads stand in and around the functions in question meanwhile. */
#include "common.h"

static char *ntdll(void) { return (char *)GetModuleHandleA("ntdll.dll"); }

static void reserve(char *from, char *to)
{
    MEMORY_BASIC_INFORMATION region;
    for (char *at = from; at < to && VirtualQuery(at, &region, sizeof region); at = (char *)region.BaseAddress + region.RegionSize) {
        if (region.State != MEM_FREE)
            continue;
        char *begin = (char *)(((uintptr_t)region.BaseAddress + 0xffff) & ~(uintptr_t)0xffff);
        char *end = (char *)region.BaseAddress + region.RegionSize;
        if (end > to)
            end = to;
        if (begin < end)
            VirtualAlloc(begin, (SIZE_T)(end - begin), MEM_RESERVE, PAGE_NOACCESS);
    }
}

static volatile bool over;

/* Files are read, written and closed all the time. */
static void use_files(void *unused)
{
    UNUSED(unused);
    while (!over) {
        DWORD bytes;
        HANDLE file = CreateFileA("NUL", GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, 0, NULL);
        CHECK(file != INVALID_HANDLE_VALUE && WriteFile(file, "x", 1, &bytes, NULL) && bytes == 1);
        char byte;
        CHECK(ReadFile(file, &byte, 1, &bytes, NULL) && CloseHandle(file));
    }
}

static void told(const char *what, HANDLE port, OVERLAPPED *call)
{
    DWORD bytes = 0;
    ULONG_PTR key = 0;
    OVERLAPPED *of = NULL;
    BOOL good = GetQueuedCompletionStatus(port, &bytes, &key, &of, LATE_MS);
    say("%s: %s, %lu bytes, key %d%s", what, good ? "good" : error_name((int)GetLastError()), bytes, (int)key,
        of == call ? "" : ", of nothing");
}

int hooked_main(int argc, char **argv)
{
    CHECK(argc == 3);
    HANDLE threads[3];
    for (int i = 0; i < COUNT(threads); i++)
        threads[i] = start_thread(use_files, NULL);
    if (!strcmp(argv[2], "reserved"))
        reserve((char *)0x100090000, (char *)0x140000000);
    if (!strcmp(argv[2], "everything"))
        reserve(ntdll() - 0x7fff0000LL, ntdll() + 0x7fff0000LL);
    if (!strcmp(argv[2], "changed")) {
        /* A prefix that changes nothing, where a hook would have its jump. */
        static const unsigned char instead[] = {0x49, 0x89, 0xca};
        char *stub = (char *)GetProcAddress((HMODULE)ntdll(), "NtReadFile");
        DWORD old;
        CHECK(VirtualProtect(stub, sizeof instead, PAGE_EXECUTE_READWRITE, &old));
        memcpy(stub, instead, sizeof instead); /* mov r10, rcx in its other form */
        CHECK(VirtualProtect(stub, sizeof instead, old, &old));
    }
    SOCKET ends[2];
    socket_pair(ends);
    HANDLE port = CreateIoCompletionPort((HANDLE)ends[0], NULL, 7, 0);
    CHECK(port);
    OVERLAPPED read = {0}, write = {0};
    char data[10] = "";
    CHECK(ReadFile((HANDLE)ends[0], data, 4, NULL, &read) || GetLastError() == ERROR_IO_PENDING);
    send_text(ends[1], "text");
    told("ReadFile", port, &read);
    say("%s", data);
    CHECK(WriteFile((HANDLE)ends[0], "back", 4, NULL, &write) || GetLastError() == ERROR_IO_PENDING);
    told("WriteFile", port, &write);
    say_recv("recv", ends[1], 4, MSG_WAITALL);
    CHECK(!ReadFile((HANDLE)ends[0], data, 4, NULL, &read) && GetLastError() == ERROR_IO_PENDING);
    BOOL_CALL("CancelIoEx", CancelIoEx((HANDLE)ends[0], &read));
    told("ReadFile", port, &read);
    BOOL_CALL("CloseHandle", CloseHandle((HANDLE)ends[0]));
    say_recv("recv after CloseHandle", ends[1], 4, 0);
    over = true;
    for (int i = 0; i < COUNT(threads); i++)
        join(threads[i]);
    closesocket(ends[1]);
    WSACleanup();
    return 0;
}
