/* Short words for epoll, and a transcript of what a wait gave: events sorted by their tag. */
#pragma once

static int new_set(void) { return MUST(epoll_create1(EPOLL_CLOEXEC)); }

static long control(const char *what, int set, int operation, int fd, unsigned events, uint64_t tag)
{
    struct epoll_event event = {.events = events, .data.u64 = tag};
    return CALL(what, epoll_ctl(set, operation, fd, &event));
}
static inline void add(int set, int fd, unsigned events, uint64_t tag)
{
    control("ADD", set, EPOLL_CTL_ADD, fd, events, tag);
}
static inline void modify(int set, int fd, unsigned events, uint64_t tag)
{
    control("MOD", set, EPOLL_CTL_MOD, fd, events, tag);
}
static inline void drop(int set, int fd) { control("DEL", set, EPOLL_CTL_DEL, fd, 0, 0); }

static void show_events(const char *what, struct epoll_event *events, int count)
{
    char line[512] = "";
    for (int i = 1; i < count; i++) /* the order within one wait is not promised */
        for (int j = i; j > 0 && events[j].data.u64 < events[j - 1].data.u64; j--) {
            struct epoll_event other = events[j];
            events[j] = events[j - 1];
            events[j - 1] = other;
        }
    for (int i = 0; i < count; i++)
        snprintf(line + strlen(line), sizeof line - strlen(line), " %d:%s", (int)events[i].data.u64,
                 events_name(events[i].events));
    say("%s: %d%s", what, count, line);
}
static inline void wait_show(const char *what, int set, int timeout_ms)
{
    struct epoll_event events[16];
    show_events(what, events, epoll_wait(set, events, 16, timeout_ms));
}
