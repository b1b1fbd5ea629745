//! A port: one process family's opening on the node, a file `port-<pid>-<start>` with an [`End`] per socket.
//!
//! Forked children go on using the file of the process that made it (they inherit the mapping), so an end that is
//! shared over fork has one state. The file outlives its family only until somebody notices: its users' pids and
//! start times are in the header.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::os::{self, Mapping, ProcessId};
use crate::segment::Side;
use crate::{End, Error, Reason, Role, Segment, State};

const MAGIC: u64 = u64::from_le_bytes(*b"SGMPRT01");
/// Ends per port. The file is sparse: only pages with ends in use take memory.
pub const ENDS_MAX: usize = 1 << 16;
/// Processes of a family that are remembered one by one.
pub const FAMILY_MAX: usize = 256;
/// From this many ends on, those of dead processes are looked for, a few at each allocation.
const RECLAIM_FROM: u32 = 256;
const RECLAIM_LOOKS: usize = 4;
const ENDS_OFFSET: usize = 16 * 1024;
/// So long a port without a living process waits for those that are on their way: programs just started, children of fork,
/// messages. One that was killed before it came is waited for in vain.
pub(crate) const AWAITED_NS: u64 = 10_000_000_000;
const FILE_BYTES: usize = ENDS_OFFSET + ENDS_MAX * size_of::<End>();

/// Sums over ends that are gone, plus what never had an end.
#[repr(C)]
#[derive(Default)]
pub struct Totals {
    pub seen: AtomicU64,
    pub carried: AtomicU64,
    pub stayed: AtomicU64,
    pub tx_bytes: AtomicU64,
    pub rx_bytes: AtomicU64,
    pub tx_messages: AtomicU64,
    pub rx_messages: AtomicU64,
    pub bells_sent: AtomicU64,
    pub sleeps: AtomicU64,
    pub port_bells: AtomicU64,
    pub tcp_tx: AtomicU64,
    pub tcp_rx: AtomicU64,
    pub reasons: [AtomicU64; 32],
}

#[repr(C, align(128))]
pub struct PortHeader {
    pub magic: AtomicU64,
    pub version: AtomicU32,
    pub capacity: AtomicU32,
    /// `sgm run --report` gathers the ports of one run by this number and removes them; 0: nobody will.
    pub run: AtomicU64,
    /// Ends below this index have been used.
    pub high_water: AtomicU32,
    /// Children of fork that have not put their names down yet.
    pub born: AtomicU32,
    pub totals: Totals,
    pub family: [FamilySlot; FAMILY_MAX],
    /// Since when, on the monotonic clock, nobody of the family is known to live, but somebody is on the way; 0: not so.
    pub left_ns: AtomicU64,
}

#[repr(C)]
pub struct FamilySlot {
    pub start: AtomicU64,
    pub pid: AtomicU32,
    _pad: AtomicU32,
}

const _: () = assert!(size_of::<PortHeader>() <= ENDS_OFFSET);

/// An open port (our own, or another's for reading).
pub struct Port {
    map: Mapping,
    path: PathBuf,
    /// Who made it.
    maker: ProcessId,
    /// Where the next look for ends of dead processes starts.
    cursor: AtomicU32,
    /// This process made it before an exec.
    is_old: bool,
}

impl Port {
    fn file(dir: &Path, maker: ProcessId) -> PathBuf {
        dir.join(format!("port-{}-{}", maker.pid, maker.start))
    }

    /// Whose port is the file of that name?
    pub fn maker_of(path: &Path) -> Option<ProcessId> {
        let name = path.file_name()?.to_str()?.strip_prefix("port-")?;
        let (pid, start) = name.split_once('-')?;
        Some(ProcessId {
            pid: pid.parse().ok()?,
            start: start.parse().ok()?,
        })
    }

    /// Makes this process's port, or opens the one that it made before an exec. `run`: see [`PortHeader::run`].
    pub fn create(dir: &Path, me: ProcessId, run: u64) -> Result<Self, Error> {
        let path = Self::file(dir, me);
        if let Ok(port) = Self::open(&path) {
            let port = Self {
                is_old: true,
                ..port
            };
            port.join(me);
            port.free_closed(me.pid);
            return Ok(port);
        }
        // Another version's, or half of one.
        os::remove(&path);
        let map =
            os::create_mapped(&path, FILE_BYTES).map_err(|e| Error::os("create", &path, e))?;
        if let Err(e) = map.populate(0, ENDS_OFFSET) {
            os::remove(&path);
            return Err(Error::os("populate", &path, e));
        }
        let port = Self {
            map,
            path,
            maker: me,
            cursor: AtomicU32::new(0),
            is_old: false,
        };
        let h = port.header();
        h.version.store(ring::VERSION, Relaxed);
        h.capacity.store(ENDS_MAX as u32, Relaxed);
        h.run.store(run, Relaxed);
        port.join(me);
        h.magic.store(MAGIC, Release);
        Ok(port)
    }

    /// Opens the port that `maker` made, for what of it a process holds that got it from there.
    pub fn open_of(dir: &Path, maker: ProcessId) -> Result<Self, Error> {
        Self::open(&Self::file(dir, maker))
    }

    /// Opens a port file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let map = os::open_mapped(path, FILE_BYTES, FILE_BYTES)
            .map_err(|e| Error::os("open", path, e))?;
        let port = Self {
            map,
            path: path.to_owned(),
            maker: Self::maker_of(path).unwrap_or_default(),
            cursor: AtomicU32::new(0),
            is_old: false,
        };
        let h = port.header();
        let sound = h.magic.load(Acquire) == MAGIC
            && h.version.load(Relaxed) == ring::VERSION
            && h.capacity.load(Relaxed) == ENDS_MAX as u32;
        if sound {
            Ok(port)
        } else {
            Err(Error::unsound(path, "not a port of this version"))
        }
    }

    /// All port files of a node.
    pub fn list(dir: &Path) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return Vec::new();
        };
        let is_port = |p: &PathBuf| {
            p.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with("port-"))
        };
        entries
            .flatten()
            .map(|e| e.path())
            .filter(is_port)
            .collect()
    }

    pub fn header(&self) -> &PortHeader {
        // SAFETY: the file is larger than the header (made so, or refused in `open`), page-aligned, all atomics.
        unsafe { &*self.map.base().cast::<PortHeader>() }
    }

    /// Is it this process's own, from before an exec?
    pub fn is_old(&self) -> bool {
        self.is_old
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn maker(&self) -> ProcessId {
        self.maker
    }

    pub fn ends(&self) -> &[End] {
        // SAFETY: `End` is all atomics.
        unsafe { self.map.table(ENDS_OFFSET, ENDS_MAX) }.unwrap_or_default()
    }

    /// Ends that have ever been used, live or free.
    pub fn used_ends(&self) -> &[End] {
        let n = (self.header().high_water.load(Acquire) as usize).min(ENDS_MAX);
        &self.ends()[..n]
    }

    /// A process of the family (the maker, a forked child) puts its name down.
    pub fn join(&self, me: ProcessId) {
        let family = &self.header().family;
        let free = |s: &&FamilySlot| s.pid.compare_exchange(0, me.pid, AcqRel, Relaxed).is_ok();
        let slot = family.iter().find(free).or_else(|| {
            // Full: take the place of one that is gone.
            let gone = |s: &&FamilySlot| !s.process().alive();
            family
                .iter()
                .find(gone)
                .inspect(|s| s.pid.store(me.pid, Relaxed))
        });
        if let Some(slot) = slot {
            slot.start.store(me.start, Release);
        }
        self.header().left_ns.store(0, Relaxed);
    }

    /// A process of the family forks: there will be one more.
    pub fn expect_child(&self) {
        self.header().born.fetch_add(1, Relaxed);
    }

    /// It is there, or was never born.
    pub fn child_came(&self) {
        let one_less = |n: u32| n.checked_sub(1);
        let _ = self.header().born.fetch_update(Relaxed, Relaxed, one_less);
    }

    pub fn leave(&self, me: ProcessId) {
        for slot in &self.header().family {
            if slot.pid.load(Relaxed) == me.pid && slot.start.load(Relaxed) == me.start {
                slot.start.store(0, Relaxed);
                slot.pid.store(0, Release);
            }
        }
    }

    /// Does any process of the family live?
    pub fn alive(&self) -> bool {
        self.header().family.iter().any(|s| s.process().alive())
    }

    /// Is somebody counted who has not come yet?
    pub fn is_awaited(&self) -> bool {
        self.header().born.load(Acquire) != 0 || self.used_ends().iter().any(End::is_awaited)
    }

    /// Does no process of the family live, and will none come any more?
    pub fn is_dead(&self) -> bool {
        if self.alive() {
            return false;
        }
        if !self.is_awaited() {
            return true;
        }
        let (left, now) = (&self.header().left_ns, os::monotonic_ns());
        let since = left.load(Relaxed);
        // A time to come is nonsense, or of another boot.
        if since == 0 || since > now {
            left.store(now, Relaxed);
            return false;
        }
        now - since > AWAITED_NS
    }

    /// Does no process of the family live? Where a number is another process's by now, this says no: cheaper than `alive`.
    pub fn is_left(&self) -> bool {
        let family = self.header().family.iter();
        !family
            .map(|s| s.pid.load(Acquire))
            .any(|pid| pid != 0 && os::process_exists(pid))
    }

    /// Takes a free end. `hint`: an index that was free lately.
    pub fn allocate(&self, hint: Option<u32>, role: Role, pid: u32) -> Result<u32, Error> {
        let ends = self.ends();
        let take = |i: u32| ends[i as usize].take_from(State::Free as u32);
        let index = hint
            .filter(|i| (*i as usize) < ends.len() && take(*i))
            .or_else(|| {
                loop {
                    let next = self.header().high_water.load(Relaxed);
                    if next as usize >= ends.len() {
                        let free = (0..ends.len() as u32).find(|i| take(*i));
                        return free.or_else(|| self.reclaim(ENDS_MAX));
                    }
                    // A child that ends without closing leaves its end behind.
                    if next >= RECLAIM_FROM
                        && let Some(i) = self.reclaim(RECLAIM_LOOKS)
                    {
                        return Some(i);
                    }
                    self.map
                        .populate(
                            ENDS_OFFSET + next as usize * size_of::<End>(),
                            size_of::<End>(),
                        )
                        .ok()?;
                    let claimed =
                        self.header()
                            .high_water
                            .compare_exchange(next, next + 1, AcqRel, Relaxed);
                    if claimed.is_ok() && take(next) {
                        return Some(next);
                    }
                }
            });
        let index = index.ok_or(Error::Full("sockets of a port"))?;
        let end = &ends[index as usize];
        end.reset(role, pid);
        end.set_state(State::Plain);
        self.header().totals.seen.fetch_add(1, Relaxed);
        Ok(index)
    }

    /// Takes an end whose only holder is gone. Looks at `looks` of them.
    fn reclaim(&self, looks: usize) -> Option<u32> {
        let used = self.used_ends();
        (0..looks.min(used.len())).find_map(|_| {
            let i = self.cursor.fetch_add(1, Relaxed) % used.len() as u32;
            let end = &used[i as usize];
            let state = end.state.load(Acquire);
            let taken = state != State::Free as u32 && end.is_deserted() && end.take_from(state);
            taken.then(|| {
                self.bury(end);
                i
            })
        })
    }

    /// What an end leaves behind whose holders did not close it: counters, and its half of a segment.
    fn bury(&self, end: &End) {
        fold(&self.header().totals, end);
        let id = end.segment.load(Relaxed);
        if id != 0
            && let Some(dir) = self.path.parent()
            && let Ok(segment) = Segment::look(dir, id)
        {
            let side = if end.role() == Role::Server {
                Side::Server
            } else {
                Side::Client
            };
            segment.end_side(dir, id, side, true);
        }
    }

    /// After an exec of its maker: ends that had no other holder, and were closed by it.
    fn free_closed(&self, pid: u32) {
        for end in self.used_ends() {
            let state = end.state.load(Acquire);
            if state != State::Free as u32
                && end.refs.load(Acquire) == 0
                && end.pid.load(Relaxed) == pid
                && end.take_from(state)
            {
                self.bury(end);
                end.set_state(State::Free);
            }
        }
    }

    /// Gives an end back and adds its counters to the totals.
    pub fn free(&self, index: u32) {
        let Some(end) = self.ends().get(index as usize) else {
            return;
        };
        fold(&self.header().totals, end);
        end.set_state(State::Free);
    }
}

/// Adds an end's counters to `t`.
pub fn fold(t: &Totals, end: &End) {
    let counted = [
        (&t.tx_bytes, &end.tx_bytes),
        (&t.rx_bytes, &end.rx_bytes),
        (&t.tx_messages, &end.tx_messages),
        (&t.rx_messages, &end.rx_messages),
        (&t.bells_sent, &end.bells_sent),
        (&t.sleeps, &end.sleeps),
        (&t.port_bells, &end.port_bells),
        (&t.tcp_tx, &end.tcp_tx),
        (&t.tcp_rx, &end.tcp_rx),
    ];
    for (sum, part) in counted {
        sum.fetch_add(part.load(Relaxed), Relaxed);
    }
    let carried = end.has(crate::end::flag::WAS_CARRIED);
    t.carried.fetch_add(u64::from(carried), Relaxed);
    let stayed = matches!(end.role(), Role::Client | Role::Server) && !carried;
    t.stayed.fetch_add(u64::from(stayed), Relaxed);
    let why = match end.reason() {
        Reason::None if stayed => Reason::Short,
        // Its process was killed meanwhile.
        Reason::Offered => Reason::Ended,
        why => why,
    };
    // Of a listener it is its connections that count.
    if stayed || why != Reason::None && end.role() != Role::Listener {
        t.reasons[why as usize].fetch_add(1, Relaxed);
    }
}

impl FamilySlot {
    pub fn process(&self) -> ProcessId {
        ProcessId {
            pid: self.pid.load(Acquire),
            start: self.start.load(Acquire),
        }
    }
}
