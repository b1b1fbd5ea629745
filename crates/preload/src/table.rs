// One row per interposed function. Everything else about a hook's existence derives from this table: the original's
// pointer (`real.rs`), and `docs/compatibility.md` (`sgm compat`). This file is included by both, so it holds only the
// macro.
//
// name, (signature), class, what it does when the socket is carried
#[macro_export]
macro_rules! for_each_hook {
    ($m:ident) => {
        $m! {
            // Bytes in
            read(fd: c_int, buf: *mut c_void, n: size_t) -> ssize_t, receive, "read from the ring";
            recv(fd: c_int, buf: *mut c_void, n: size_t, flags: c_int) -> ssize_t, receive, "read from the ring; MSG_PEEK, MSG_WAITALL, MSG_DONTWAIT, MSG_TRUNC carried, a peek that has to wait for all goes back to TCP, MSG_OOB goes to the kernel";
            recvfrom(fd: c_int, buf: *mut c_void, n: size_t, flags: c_int, from: *mut sockaddr, len: *mut socklen_t) -> ssize_t, receive, "as recv; the address is left alone, as TCP does";
            recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t, receive, "as recv, into all buffers; no control data. A socket that comes in a message is recognised";
            readv(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t, receive, "as read, into all buffers";
            __read_chk(fd: c_int, buf: *mut c_void, n: size_t, room: size_t) -> ssize_t, receive, "fortified read";
            __recv_chk(fd: c_int, buf: *mut c_void, n: size_t, room: size_t, flags: c_int) -> ssize_t, receive, "fortified recv";
            __recvfrom_chk(fd: c_int, buf: *mut c_void, n: size_t, room: size_t, flags: c_int, from: *mut sockaddr, len: *mut socklen_t) -> ssize_t, receive, "fortified recvfrom";
            recvmmsg(fd: c_int, msgs: *mut mmsghdr, n: c_uint, flags: c_int, timeout: *mut timespec) -> c_int, receive, "one message at a time";
            preadv2(fd: c_int, iov: *const iovec, n: c_int, offset: i64, flags: c_int) -> ssize_t, receive, "as readv when the offset is -1; flags that Linux does not know go back to TCP";
            preadv64v2(fd: c_int, iov: *const iovec, n: c_int, offset: i64, flags: c_int) -> ssize_t, receive, "as preadv2";
            // Bytes out
            write(fd: c_int, buf: *const c_void, n: size_t) -> ssize_t, send, "write to the ring";
            send(fd: c_int, buf: *const c_void, n: size_t, flags: c_int) -> ssize_t, send, "write to the ring; MSG_OOB goes back to TCP first";
            sendto(fd: c_int, buf: *const c_void, n: size_t, flags: c_int, to: *const sockaddr, len: socklen_t) -> ssize_t, send, "as send";
            sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t, send, "as send, from all buffers; a carried connection passed along (SCM_RIGHTS) goes back to TCP first, a plain one may be carried by who receives it";
            writev(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t, send, "as write, from all buffers";
            sendmmsg(fd: c_int, msgs: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int, send, "one message at a time";
            pwritev2(fd: c_int, iov: *const iovec, n: c_int, offset: i64, flags: c_int) -> ssize_t, send, "as writev when the offset is -1; flags that Linux does not know go back to TCP";
            pwritev64v2(fd: c_int, iov: *const iovec, n: c_int, offset: i64, flags: c_int) -> ssize_t, send, "as pwritev2";
            sendfile(out: c_int, from: c_int, offset: *mut i64, n: size_t) -> ssize_t, send, "the file is read straight into the ring";
            sendfile64(out: c_int, from: c_int, offset: *mut i64, n: size_t) -> ssize_t, send, "the file is read straight into the ring";
            splice(from: c_int, off_in: *mut i64, to: c_int, off_out: *mut i64, n: size_t, flags: c_uint) -> ssize_t, send, "copied between the ring and the pipe";
            // Life of a socket
            socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int, setup, "remembers TCP sockets";
            connect(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int, setup, "the kernel connects; this end may offer a ring later";
            listen(fd: c_int, backlog: c_int) -> c_int, setup, "the kernel listens; the address goes into the node's registry";
            accept(fd: c_int, from: *mut sockaddr, len: *mut socklen_t) -> c_int, setup, "the kernel accepts; this end may claim a ring later";
            accept4(fd: c_int, from: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int, setup, "as accept";
            close(fd: c_int) -> c_int, setup, "ends the ring as TCP would: end-of-file, or reset if bytes are unread";
            close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int, setup, "closes the range's carried sockets one by one first; with CLOSE_RANGE_UNSHARE in a process with threads as unshare";
            closefrom(first: c_int) -> (), setup, "as close_range";
            shutdown(fd: c_int, how: c_int) -> c_int, setup, "shuts the direction in the ring";
            dup(fd: c_int) -> c_int, setup, "both descriptors are the same connection; one on 2 goes back to TCP, because what the C library says there is not seen";
            dup2(fd: c_int, to: c_int) -> c_int, setup, "as dup; the old one is closed first";
            dup3(fd: c_int, to: c_int, flags: c_int) -> c_int, setup, "as dup2";
            fcntl(fd: c_int, cmd: c_int, arg: usize) -> c_int, setup, "F_DUPFD*, F_SETFL; O_ASYNC goes back to TCP";
            fcntl64(fd: c_int, cmd: c_int, arg: usize) -> c_int, setup, "as fcntl";
            ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int, setup, "FIONREAD, FIONBIO, SIOCOUTQ, SIOCOUTQNSD; the rest is the kernel's";
            setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int, setup, "the kernel keeps the value; time-outs and linger are also obeyed on the ring";
            getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int, setup, "the kernel answers; an error that SO_ERROR takes is taken from the ring as well";
            // Waiting
            poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int, wait, "carried and other descriptors together";
            __poll_chk(fds: *mut pollfd, n: nfds_t, timeout: c_int, room: size_t) -> c_int, wait, "fortified poll";
            ppoll(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int, wait, "as poll";
            __ppoll_chk(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: size_t) -> c_int, wait, "fortified ppoll";
            select(n: c_int, r: *mut fd_set, w: *mut fd_set, e: *mut fd_set, timeout: *mut timeval) -> c_int, wait, "as poll";
            pselect(n: c_int, r: *mut fd_set, w: *mut fd_set, e: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int, wait, "as poll";
            epoll_create(size: c_int) -> c_int, wait, "remembers the set";
            epoll_create1(flags: c_int) -> c_int, wait, "remembers the set";
            epoll_ctl(set: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int, wait, "the kernel's set stays true; carried members are remembered";
            epoll_wait(set: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int, wait, "carried members' events are added: level, edge, one-shot";
            epoll_pwait(set: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int, wait, "as epoll_wait";
            epoll_pwait2(set: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int, wait, "as epoll_wait";
            // Processes
            fork() -> c_int, process, "the child holds the same connections; the state is shared";
            clone(start: *mut c_void, stack: *mut c_void, flags: c_int, arg: *mut c_void, parent: size_t, tls: size_t, child: size_t) -> c_int, process, "a thread that is made so is one";
            vfork() -> c_int, process, "the child shares our memory: there every descriptor goes straight to the kernel, until it execs (x86-64; elsewhere it is fork)";
            _exit(status: c_int) -> !, process, "gives this process's sockets back";
            _Exit(status: c_int) -> !, process, "as _exit";
            daemon(stays: c_int, keeps: c_int) -> c_int, process, "what was on 0, 1 and 2 is not there any more";
            forkpty(pty: *mut c_int, name: *mut c_char, settings: *const c_void, size: *const c_void) -> c_int, process, "as fork; in the child as login_tty";
            login_tty(fd: c_int) -> c_int, process, "what was on 0, 1 and 2 is not there any more";
            sigaction(signal: c_int, action: *const c_void, before: *mut c_void) -> c_int, process, "what a handler does to a call that sleeps is looked at anew";
            signal(signal: c_int, handler: size_t) -> size_t, process, "as sigaction";
            sigset(signal: c_int, handler: size_t) -> size_t, process, "as sigaction";
            sysv_signal(signal: c_int, handler: size_t) -> size_t, process, "as sigaction";
            __sysv_signal(signal: c_int, handler: size_t) -> size_t, process, "as sigaction";
            bsd_signal(signal: c_int, handler: size_t) -> size_t, process, "as sigaction";
            siginterrupt(signal: c_int, ends: c_int) -> c_int, process, "as sigaction";
            prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int, process, "before a seccomp filter is installed, everything goes back to TCP, for good";
            unshare(flags: c_int) -> c_int, process, "before a process, time or user namespace, and before a thread among others gets descriptors of its own, everything goes back to TCP, for good; before a mount namespace, what is carried now, as with chroot";
            setns(fd: c_int, kind: c_int) -> c_int, process, "as unshare";
            chroot(path: *const c_char) -> c_int, process, "what is carried goes back to TCP: the node's files may be out of reach from then on";
            setuid(user: c_uint) -> c_int, process, "becoming another user: as chroot";
            seteuid(user: c_uint) -> c_int, process, "as setuid";
            setreuid(user: c_uint, effective: c_uint) -> c_int, process, "as setuid";
            setresuid(user: c_uint, effective: c_uint, saved: c_uint) -> c_int, process, "as setuid";
            setrlimit(kind: c_uint, limit: *const c_void) -> c_int, process, "connections that came by exec and were not used yet get what they need while it can be had";
            setrlimit64(kind: c_uint, limit: *const c_void) -> c_int, process, "as setrlimit";
            prlimit(pid: c_int, kind: c_uint, limit: *const c_void, before: *mut c_void) -> c_int, process, "as setrlimit";
            prlimit64(pid: c_int, kind: c_uint, limit: *const c_void, before: *mut c_void) -> c_int, process, "as setrlimit";
            dl_iterate_phdr(callback: *mut c_void, data: *mut c_void) -> c_int, loader, "tells of this library last: AddressSanitizer wants to be first";
            execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int, process, "a program that will load the front joins the connections that stay open; for another they go back to TCP";
            execv(path: *const c_char, argv: *const *const c_char) -> c_int, process, "as execve";
            execvp(path: *const c_char, argv: *const *const c_char) -> c_int, process, "as execve";
            execvpe(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int, process, "as execve";
            fexecve(fd: c_int, argv: *const *const c_char, env: *const *const c_char) -> c_int, process, "as execve";
            execveat(dir: c_int, path: *const c_char, argv: *const *const c_char, env: *const *const c_char, flags: c_int) -> c_int, process, "as execve";
            execl(path: *const c_char, first: *const c_char) -> c_int, process, "as execv (x86-64)";
            execle(path: *const c_char, first: *const c_char) -> c_int, process, "as execve (x86-64)";
            execlp(file: *const c_char, first: *const c_char) -> c_int, process, "as execvp (x86-64)";
            posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *const c_char, env: *const *const c_char) -> c_int, process, "as execve";
            posix_spawnp(pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *const c_char, env: *const *const c_char) -> c_int, process, "as execve";
            posix_spawn_file_actions_adddup2(actions: *mut c_void, fd: c_int, to: c_int) -> c_int, process, "a copy on 2 goes back to TCP; another is the new program's as with execve";
            system(command: *const c_char) -> c_int, process, "as execve";
            popen(command: *const c_char, mode: *const c_char) -> *mut c_void, process, "as execve";
            // Ways around the others
            aio_read(block: *mut aiocb) -> c_int, handback, "goes back to TCP: the C library's threads read and write unseen";
            aio_read64(block: *mut aiocb) -> c_int, handback, "as aio_read";
            aio_write(block: *mut aiocb) -> c_int, handback, "as aio_read";
            aio_write64(block: *mut aiocb) -> c_int, handback, "as aio_read";
            lio_listio(mode: c_int, list: *const *mut aiocb, n: c_int, event: *mut c_void) -> c_int, handback, "as aio_read, for each in the list";
            lio_listio64(mode: c_int, list: *const *mut aiocb, n: c_int, event: *mut c_void) -> c_int, handback, "as lio_listio";
            fdopen(fd: c_int, mode: *const c_char) -> *mut c_void, setup, "what the FILE reads and writes is seen, and what is in it goes out before the process leaves";
            fclose(file: *mut c_void) -> c_int, setup, "as close";
            freopen(path: *const c_char, mode: *const c_char, file: *mut c_void) -> *mut c_void, setup, "the connection behind it ends as by fclose";
            freopen64(path: *const c_char, mode: *const c_char, file: *mut c_void) -> *mut c_void, setup, "as freopen";
            dprintf(fd: c_int, format: *const c_char) -> c_int, send, "formatted into memory and written (x86-64)";
            vdprintf(fd: c_int, format: *const c_char, list: *mut c_void) -> c_int, send, "as dprintf";
            __dprintf_chk(fd: c_int, flag: c_int, format: *const c_char) -> c_int, send, "fortified dprintf";
            __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, list: *mut c_void) -> c_int, send, "fortified vdprintf";
            pthread_cancel(thread: pthread_t) -> c_int, process, "noted, so that calls on carried connections act on it as well";
            longjmp(to: *mut c_void, value: c_int) -> (), process, "a handler that leaves a sleep on a connection leaves nothing of it behind";
            _longjmp(to: *mut c_void, value: c_int) -> (), process, "as longjmp";
            siglongjmp(to: *mut c_void, value: c_int) -> (), process, "as longjmp";
            __longjmp_chk(to: *mut c_void, value: c_int) -> (), process, "fortified longjmp and siglongjmp";
            syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long, raw, "the calls above, by number; io_uring_setup, io_uring_enter, io_uring_register";
            // io_uring, by liburing
            io_uring_submit(ring: *mut c_void) -> c_int, uring, "EPOLL_CTL and CLOSE are done as by their functions; a socket that anything else is submitted for goes back to TCP first";
            io_uring_submit_and_wait(ring: *mut c_void, n: c_uint) -> c_int, uring, "as io_uring_submit";
            io_uring_submit_and_wait_timeout(ring: *mut c_void, cqe: *mut c_void, n: c_uint, time: *mut c_void, mask: *mut sigset_t) -> c_int, uring, "as io_uring_submit";
            io_uring_submit_and_wait_min_timeout(ring: *mut c_void, cqe: *mut c_void, n: c_uint, time: *mut c_void, least: c_uint, mask: *mut sigset_t) -> c_int, uring, "as io_uring_submit";
            io_uring_submit_and_wait_reg(ring: *mut c_void, cqe: *mut c_void, n: c_uint, at: c_int) -> c_int, uring, "as io_uring_submit";
            io_uring_submit_and_get_events(ring: *mut c_void) -> c_int, uring, "as io_uring_submit";
            io_uring_enter(fd: c_uint, submit: c_uint, wait: c_uint, flags: c_uint, mask: *mut sigset_t) -> c_int, uring, "as io_uring_submit";
            io_uring_enter2(fd: c_uint, submit: c_uint, wait: c_uint, flags: c_uint, argument: *mut c_void, size: size_t) -> c_int, uring, "as io_uring_submit";
            io_uring_setup(entries: c_uint, params: *mut c_void) -> c_int, uring, "remembers the ring; with one that can't be looked into (SQPOLL), everything goes back to TCP";
            io_uring_queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int, uring, "remembers the ring";
            io_uring_queue_init_params(entries: c_uint, ring: *mut c_void, params: *mut c_void) -> c_int, uring, "remembers the ring";
            io_uring_queue_init_mem(entries: c_uint, ring: *mut c_void, params: *mut c_void, buf: *mut c_void, size: size_t) -> c_int, uring, "remembers the ring";
            io_uring_queue_exit(ring: *mut c_void) -> (), uring, "forgets the ring";
            io_uring_register(fd: c_uint, op: c_uint, argument: *const c_void, n: c_uint) -> c_int, uring, "sockets among the files go back to TCP";
            io_uring_register_files(ring: *mut c_void, files: *const c_int, n: c_uint) -> c_int, uring, "as io_uring_register";
            io_uring_register_files_tags(ring: *mut c_void, files: *const c_int, tags: *const u64, n: c_uint) -> c_int, uring, "as io_uring_register";
            io_uring_register_files_update(ring: *mut c_void, offset: c_uint, files: *const c_int, n: c_uint) -> c_int, uring, "as io_uring_register";
            io_uring_register_files_update_tag(ring: *mut c_void, offset: c_uint, files: *const c_int, tags: *const u64, n: c_uint) -> c_int, uring, "as io_uring_register"
        }
    };
}
