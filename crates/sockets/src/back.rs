//! Ending: shutdown, close, and handing a direction back to TCP.

use gm::end::flag;
use gm::{Node, Path, Reason, State};
use ring::sync::Ordering::{Relaxed, Release};
use ring::{Decision, Tx, layout};

use crate::lock::lock;
use crate::{Conn, Fault, Kernel};

impl Conn {
    /// From here on this end sends over TCP. Caller holds the sending lock; the direction is on the ring.
    #[cold]
    pub(crate) fn switch_down(&self, k: &impl Kernel, tx: Tx<'_>, why: Option<Reason>) {
        let end = self.end;
        if !end.has(flag::KERNEL_DEAD) && tx.bell_due() {
            // The reader may sleep; once switched, only payload may follow on the stream.
            self.ring_bell(k);
        }
        tx.switch_down(end.tcp_tx.load(Relaxed));
        end.tx_path.store(Path::Back as u32, Release);
        if let Some(why) = why {
            end.keep_tcp(why);
        }
        self.settle_back();
    }

    /// Both directions back on TCP: the engine is out of it.
    pub(crate) fn settle_back(&self) {
        let end = self.end;
        if end.tx_path() == Path::Back && end.rx_path() == Path::Back {
            end.set_state(State::Back);
        }
    }

    /// Hands the connection back, because of a call that is not carried (`why`): our direction at once; the peer's as
    /// soon as it sees that we ask. A connection that is not promoted yet never will be.
    pub fn hand_back(&self, node: &Node, k: &impl Kernel, why: Reason) {
        let end = self.end;
        end.keep_tcp(why);
        match end.state() {
            State::Offered => self.withdraw(node),
            State::Claimed if self.segment().is_some_and(|s| s.header().withdraw()) => {
                self.see_confirmation(k);
            }
            State::Claimed | State::Carried => {
                self.see_confirmation(k);
                self.send_over_tcp(k, why);
                if let Some(segment) = self.segment() {
                    let rx = segment.rx();
                    rx.ask(layout::PLEASE_DOWN);
                    self.wake_writer(k, rx.release_writer());
                }
            }
            _ => {}
        }
    }

    /// Our direction alone (MSG_OOB, sendfile of what can't be mapped ...).
    pub fn send_over_tcp(&self, k: &impl Kernel, why: Reason) {
        let Some(segment) = self.segment() else {
            return;
        };
        let guard = lock(&self.end.tx_lock, k);
        if guard.is_nested() {
            // A signal handler in the middle of this end's own send: that one switches when it is called again.
            return;
        }
        if self.end.tx_path() == Path::Ring {
            self.switch_down(k, segment.tx(), Some(why));
        }
    }

    /// shutdown(2). The sending half is shut in the ring only: the kernel's half stays open for doorbells that tell
    /// the peer of room, and ends with close.
    pub fn shutdown(&self, k: &impl Kernel, read: bool, write: bool) -> Result<(), Fault> {
        let end = self.end;
        self.see_confirmation(k);
        if read {
            end.set(flag::READ_SHUT);
        }
        let mut write_kernel = false;
        if write {
            let _tx = lock(&end.tx_lock, k);
            end.set(flag::WRITE_SHUT);
            write_kernel = true;
            if end.tx_path() == Path::Ring {
                let segment = self.rings()?;
                let tx = segment.tx();
                tx.finish(false);
                if tx.bell_due() {
                    self.ring_bell(k);
                }
                // If nothing comes in any more, no room has to be told of.
                let over = segment.rx().flags() & layout::FIN != 0 || end.has(flag::KERNEL_ENDS);
                write_kernel = over;
                end.set(if over { flag::CLOSED_BOTH } else { 0 });
            }
        }
        match k.shutdown(read, write_kernel) {
            // The peer closed, and a doorbell made its kernel reset the stream: not the program's business, unless it
            // was reset in earnest.
            Err(_) if write && end.tx_path() == Path::Ring && !end.has(flag::RESET_TOLD) => Ok(()),
            other => other,
        }
    }

    /// Before the kernel's close of this process's last descriptor. `last`: no other process holds the socket.
    pub fn close(&self, node: &Node, k: &impl Kernel, last: bool) {
        let end = self.end;
        if !last {
            return;
        }
        let Some(segment) = self.segment() else {
            return;
        };
        match end.state() {
            State::Offered => return self.withdraw(node),
            State::Claimed if segment.header().decision() != Ok(Decision::Confirmed) => {
                segment.header().withdraw();
                return;
            }
            State::Claimed | State::Carried => {}
            _ => return,
        }
        self.see_confirmation(k);
        let rx = segment.rx();
        let unread = end.rx_path() != Path::Back && rx.readable().map_or(true, |n| n > 0);
        let abort = unread || end.has(flag::LINGER_ZERO | flag::CORRUPT);
        if abort {
            // What the kernel would do with unread bytes: the peer gets ECONNRESET.
            k.abort_on_close();
        } else {
            // Unread doorbells would make the kernel reset the connection.
            let _ = self.take_bells(k);
        }
        if end.tx_path() == Path::Ring {
            let _tx = lock(&end.tx_lock, k);
            segment.tx().finish(abort);
        }
        rx.ask(layout::READ_CLOSED);
        let wanted = rx.release_writer();
        if wanted & layout::WANT_FUTEX != 0 {
            k.wake_word(&rx.direction.wait.space_seq);
        }
    }
}
