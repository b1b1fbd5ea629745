//! How this process ceases to hold a socket: by its last close here, by exec, as it exits. Who has left and was not the last
//! touches the end no more (`Conn::leave`): it is the others', and may be another socket's at any moment.

use std::ffi::c_int;
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use gm::Role;

use super::{Inside, NO_LISTENER, STDIO_FDS, each_slot_once};

impl Inside {
    /// This process holds the socket no more. True: nobody does.
    pub fn leave_end(&self) -> bool {
        self.leave_end_to(gm::os::process_exists)
    }

    fn leave_end_to(&self, exists: impl FnOnce(u32) -> bool) -> bool {
        let end = self.conn().end();
        let me = self.ctx().node.me().pid;
        // The end is somebody else's now: of the one from whom it came, if that one lives.
        let before = self.slot.pid_before.load(Relaxed);
        let before = if exists(before) { before } else { 0 };
        let alone = end.refs.load(Acquire) == 1;
        if !alone && end.role() != Role::Listener {
            let _ = end.pid.compare_exchange(me, before, AcqRel, Relaxed);
        }
        end.refs.fetch_sub(1, AcqRel) == 1
    }

    /// As [`Inside::leave_end`], and ends well, if the kernel's socket is there to do it with (`open`).
    fn leave_well(&self, open: bool, exists: impl FnOnce(u32) -> bool) -> bool {
        let uncount = || self.leave_end_to(exists);
        let (conn, node) = (self.conn(), &self.ctx().node);
        if open && !self.is_asleep() {
            return conn.leave(node, &self.fd(), uncount);
        }
        // What is asleep was not used here: there is something to do for the last holder alone.
        let last = uncount();
        if last {
            self.wake();
            if open {
                conn.close(node, &self.fd());
            }
        }
        last
    }

    /// The program closes its last descriptor while other calls are at work on the socket. As the kernel would, they go on, on
    /// a descriptor of ours, and the socket ends when the last of them does. False: there are none, or what they are at is the
    /// kernel's and needs no holder: no other process could free the end before they leave.
    pub(super) fn outlives_close(&self) -> bool {
        let conn = self.conn();
        let alone = || conn.end().refs.load(Acquire) == 1;
        if self.slot.gate.is_mine_alone() || !conn.is_engaged() && alone() {
            return false;
        }
        self.wake();
        // Not a low number, which the program may expect of its next descriptor.
        const HIGH: c_int = 512;
        let copy = |least| {
            // SAFETY: the descriptor is open: it is about to be closed.
            let fd = unsafe { BorrowedFd::borrow_raw(self.number) };
            rustix::io::fcntl_dupfd_cloexec(fd, least)
        };
        let Ok(kept) = copy(HIGH).or_else(|_| copy(STDIO_FDS)) else {
            return false;
        };
        self.slot.kept.store(kept.into_raw_fd() + 1, Release);
        true
    }

    /// The socket has no descriptor in this process any more. `open`: for the moment it has, to end well with.
    pub(super) fn end(&self, open: bool) {
        let last = self.leave_well(open, gm::os::process_exists);
        self.slot.ends.store(last, Release);
        let ctx = self.ctx();
        if let Some(entry) = self.slot.take_listener()
            && self.slot.listener_pid.load(Relaxed) == ctx.node.me().pid
        {
            match last {
                true => ctx.node.unlisten(entry),
                false => ctx.node.leave_listener(entry),
            }
        }
        self.slot.listener_pid.store(NO_LISTENER, Relaxed);
    }

    /// It does after all, having left as the last holder (`last`), or not. False: others were the last since, and the end is nobody's
    /// any more, or another socket's.
    pub fn return_to_end(&self, last: bool) -> bool {
        let end = self.conn().end();
        let cookie = crate::adopt::cookie(self.number);
        let ours = || end.is_used() && end.cookie.load(Relaxed) == cookie;
        let one_more = |refs: u32| (last || refs > 0 && ours()).then_some(refs + 1);
        if end.refs.fetch_update(AcqRel, Acquire, one_more).is_err() {
            return false;
        }
        if !last && !ours() {
            // Another socket's since a moment ago.
            end.refs.fetch_sub(1, AcqRel);
            return false;
        }
        if end.role() != Role::Listener {
            end.pid.store(self.ctx().node.me().pid, Relaxed);
        }
        true
    }
}

/// This process is about to end: its sockets have one holder less, and those of the last holder end as by close. The
/// ends are not given back, for other threads may still be at work.
pub fn at_exit() {
    let mut asked = (0, false);
    let mut exists = |pid| {
        if asked.0 != pid {
            asked = (pid, gm::os::process_exists(pid));
        }
        asked.1
    };
    each_slot_once(|inside| {
        if inside.leave_well(true, &mut exists) {
            inside.conn().release(&inside.ctx().node);
        }
    });
}
