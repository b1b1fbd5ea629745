//! A port's bell: a FIFO in the node directory. Whoever writes a byte to it makes it readable for the waiter whose it is.
//!
//! Its descriptors live in the host program, which knows nothing of them: they close on exec, have high numbers, and are in a
//! table, so that a front can spare them when the program closes all that it did not open ([`is_ours`], [`move_away`]).
//! A program that closes them past the front is noticed: before each ring, the descriptor must still be a pipe of the size that
//! was found when it was opened. What a stranger's pipe would get is one byte, and no pipe has this size by chance.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::trusted_parent;

/// The smallest there is: what lies in it is a handful of bytes.
const PIPE_BYTES: usize = 4096;
/// Taken off at once.
const PIECE: usize = 64;
/// Not a low number, which the program may expect of its next descriptor; nor a high one, for which the kernel would make a larger
/// table, and then look at bits of a careless program's `fd_set` that it did not look at before.
const HIGH: i32 = 100;
const OURS: usize = 256;
const NONE: i32 = -1;
const BUSY: i32 = -2;

static NUMBERS: [AtomicI32; OURS] = [const { AtomicI32::new(NONE) }; OURS];

/// None of ours is below.
static LOWEST: AtomicI32 = AtomicI32::new(i32::MAX);

/// Is this one of our descriptors?
#[inline]
pub fn is_ours(fd: i32) -> bool {
    place_of(fd).is_some()
}

#[inline]
fn place_of(fd: i32) -> Option<&'static AtomicI32> {
    let known = fd >= LOWEST.load(Relaxed);
    known.then(|| NUMBERS.iter().find(|n| n.load(Relaxed) == fd))?
}

/// The lowest of our descriptors from `first` on.
pub fn next_of_ours(first: u32) -> Option<u32> {
    if LOWEST.load(Relaxed) == i32::MAX {
        return None;
    }
    let numbers = NUMBERS.iter().map(|n| n.load(Relaxed));
    numbers
        .filter_map(|n| u32::try_from(n).ok())
        .filter(|n| *n >= first)
        .min()
}

/// The program is about to put something else in this one's place.
pub fn move_away(fd: i32) {
    let Some(place) = place_of(fd) else { return };
    // SAFETY: open as long as it is in the table.
    let other = unsafe { high(BorrowedFd::borrow_raw(fd)) };
    let number = other.map_or(NONE, IntoRawFd::into_raw_fd);
    let _ = place.compare_exchange(fd, number, AcqRel, Relaxed);
}

fn high(fd: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::io::fcntl_dupfd_cloexec(fd, HIGH)
        .or_else(|_| rustix::io::fcntl_dupfd_cloexec(fd, 3))?;
    LOWEST.fetch_min(fd.as_raw_fd(), Relaxed);
    Ok(fd)
}

/// An open bell; closed on drop.
pub struct Bell {
    place: &'static AtomicI32,
    pipe_bytes: usize,
}

impl Bell {
    /// Makes the FIFO, which must not be there.
    pub fn make(path: &Path) -> io::Result<Self> {
        let (dir, name) = trusted_parent(path)?;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(&dir, name, FileType::Fifo, mode, 0)?;
        let made = Self::open(path).and_then(|mut bell| {
            rustix::pipe::fcntl_setpipe_size(bell.get()?, PIPE_BYTES)?;
            bell.pipe_bytes = rustix::pipe::fcntl_getpipe_size(bell.get()?)?;
            Ok(bell)
        });
        made.inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        })
    }

    pub fn open(path: &Path) -> io::Result<Self> {
        let (dir, name) = trusted_parent(path)?;
        // For both, so that neither end needs the other, and a lone writer gets no SIGPIPE.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
        if !FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_fifo() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fd = high(fd.as_fd())?;
        let pipe_bytes = rustix::pipe::fcntl_getpipe_size(&fd)?;
        let free = |n: &&AtomicI32| n.compare_exchange(NONE, BUSY, AcqRel, Relaxed).is_ok();
        let place = NUMBERS.iter().find(free).ok_or(Errno::MFILE)?;
        place.store(fd.into_raw_fd(), Relaxed);
        Ok(Self { place, pipe_bytes })
    }

    /// In a forked child, which has no use for it.
    pub fn close(&self) {
        let sound = self.is_sound();
        let fd = self.place.swap(NONE, AcqRel);
        if sound && fd >= 0 {
            // SAFETY: ours, checked just now.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }

    /// For polling.
    pub fn descriptor(&self) -> i32 {
        self.place.load(Acquire)
    }

    fn get(&self) -> io::Result<BorrowedFd<'_>> {
        let fd = self.descriptor();
        // SAFETY: ours; where it was closed behind our back, what is done with it fails or was checked.
        (fd >= 0)
            .then(|| unsafe { BorrowedFd::borrow_raw(fd) })
            .ok_or(Errno::BADF.into())
    }

    /// Is the descriptor what we opened?
    pub fn is_sound(&self) -> bool {
        self.get()
            .is_ok_and(|fd| rustix::pipe::fcntl_getpipe_size(fd) == Ok(self.pipe_bytes))
    }

    /// False: it can't be rung any more.
    pub fn ring(&self) -> bool {
        if !self.is_sound() {
            return false;
        }
        let Ok(fd) = self.get() else { return false };
        match rustix::io::write(fd, &[ring::layout::BELL]) {
            Ok(_) => true,
            // Full of bells that nobody took: an edge needs a new one.
            Err(Errno::AGAIN) => {
                self.hush();
                rustix::io::write(fd, &[ring::layout::BELL]).is_ok()
            }
            Err(_) => false,
        }
    }

    /// Takes off what was rung.
    pub fn hush(&self) {
        let mut scratch = [0_u8; PIECE];
        if let Ok(fd) = self.get()
            && self.is_sound()
        {
            // No more than it holds, however fast somebody rings.
            let more = |_: &usize| rustix::io::read(fd, &mut scratch) == Ok(scratch.len());
            let _ = (0..=PIPE_BYTES / PIECE).take_while(more).count();
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_bell() -> (std::path::PathBuf, Bell) {
        let dir = std::env::temp_dir().join(format!("sgm-bell-{:016x}", super::super::random()));
        super::super::ensure_dir(&dir).unwrap();
        let bell = Bell::make(&dir.join("bell-1")).unwrap();
        (dir, bell)
    }

    #[test]
    fn rings_are_edges_and_a_full_one_still_rings() {
        let (dir, bell) = a_bell();
        let other = Bell::open(&dir.join("bell-1")).unwrap();
        let set = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = rustix::event::epoll::EventFlags::IN | rustix::event::epoll::EventFlags::ET;
        let data = rustix::event::epoll::EventData::new_u64(1);
        rustix::event::epoll::add(&set, bell.get().unwrap(), data, flags).unwrap();
        for _ in 0..PIPE_BYTES + 10 {
            assert!(other.ring());
            let mut out = Vec::with_capacity(4);
            let now = rustix::event::Timespec::default();
            let events = rustix::buffer::spare_capacity(&mut out);
            rustix::event::epoll::wait(&set, events, Some(&now)).unwrap();
            assert_eq!(out.len(), 1);
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_descriptor_that_became_another_is_left_alone() {
        let (dir, bell) = a_bell();
        let number = bell.descriptor();
        assert!(is_ours(number) && next_of_ours(0).is_some());
        let file = std::fs::File::create(dir.join("file")).unwrap();
        // SAFETY: what a program does that closes descriptors it did not open.
        unsafe { libc::dup2(file.as_raw_fd(), number) };
        assert!(!bell.ring());
        drop(bell);
        assert_eq!(file.metadata().unwrap().len(), 0);
        // SAFETY: asks only.
        assert_ne!(unsafe { libc::fcntl(number, libc::F_GETFD) }, -1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn moves_out_of_the_way() {
        let (dir, bell) = a_bell();
        let number = bell.descriptor();
        move_away(number);
        assert!(bell.descriptor() != number && bell.ring() && !is_ours(number));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
