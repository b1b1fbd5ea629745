//! What a peer that is gone has left, read without taking it: other holders of the socket have it as well.

use std::io::IoSliceMut;

use gm::Path;
use ring::Corrupt;
use ring::sync::Ordering::Relaxed;

use crate::{Conn, Fault, Kernel, Ready, RecvOptions};

/// Bytes of a copy, and whether they are all.
pub struct Copied {
    pub bytes: usize,
    pub whole: bool,
}

fn part(bytes: usize) -> Result<Copied, Fault> {
    let whole = false;
    Ok(Copied { bytes, whole })
}

fn all(bytes: usize) -> Result<Copied, Fault> {
    let whole = true;
    Ok(Copied { bytes, whole })
}

impl Conn {
    /// What is unread, on the stream and in the ring, in its order. The peer is gone, but its kernel may hold bytes that find no
    /// room here: then it is a part.
    pub fn peek_all(&self, k: &impl Kernel, buf: &mut [u8]) -> Result<Copied, Fault> {
        self.advance(k);
        if self.end.rx_path() == Path::Ring {
            let peek = RecvOptions {
                dont_wait: true,
                peek: true,
                wait_all: false,
            };
            return all(self.recv(k, &mut [IoSliceMut::new(buf)], peek)?);
        }
        let rx = self.rings()?.rx();
        let (passed, position) = (self.passed(), self.end.tcp_rx.load(Relaxed));
        let moves = rx.is_moved() && !rx.all_moved();
        let (up, down) = (rx.up_at(passed), rx.down_at(passed));
        if up.is_none() && moves && passed > 0 {
            // It died in the middle of moving: what did not come, and what came and is unread, is in the ring.
            let (ring, tcp) = rx.direction.last_down();
            return all(self.copy_moved(buf, ring.wrapping_add(position.wrapping_sub(tcp)))?);
        }
        // Before the look: with the end, all is here.
        let ended = k.poll().intersects(Ready::RDHUP | Ready::HUP);
        let seen = match k.recv(buf, true) {
            Err(Fault::WouldBlock) => 0,
            seen => seen?,
        };
        let offset = |at: u64| usize::try_from(at.wrapping_sub(position)).unwrap_or(usize::MAX);
        let Some(before) = up.map(offset) else {
            return Ok(Copied {
                bytes: seen,
                whole: ended,
            });
        };
        if before > seen {
            return part(seen);
        }
        match down {
            None => {
                let behind = &mut [IoSliceMut::new(&mut buf[before..])];
                let read = rx.read(&self.read_cache, behind, 0, true);
                all(before + read.map_err(|Corrupt| self.corrupt())?)
            }
            Some((ring, _)) if moves => all(before + self.copy_moved(&mut buf[before..], ring)?),
            Some((_, tcp)) => {
                // Doorbells lie between.
                let resumes = offset(tcp);
                if resumes > seen || resumes < before {
                    return part(before);
                }
                buf.copy_within(resumes..seen, before);
                Ok(Copied {
                    bytes: before + seen - resumes,
                    whole: ended,
                })
            }
        }
    }

    /// The bytes from position `from` of the ring on, whose reader was stopped.
    fn copy_moved(&self, buf: &mut [u8], from: u64) -> Result<usize, Fault> {
        let rx = self.rings()?.rx();
        let left = rx.published().wrapping_sub(from);
        if left > rx.bytes.capacity() {
            return Err(self.corrupt());
        }
        let n = left as usize;
        let room = buf.get_mut(..n).ok_or(Fault::WouldBlock)?;
        rx.bytes.get(from, room);
        Ok(n)
    }

    /// Is what the peer has left followed by a reset?
    pub fn ends_by_reset(&self) -> bool {
        let died_unread = |s: &gm::Segment| self.died_unread(s);
        self.peer_aborted() || self.segment().is_some_and(died_unread)
    }
}
