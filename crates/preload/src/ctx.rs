//! This process's node and ports, opened at the first TCP socket; without a node everything is plain.
//!
//! The own port is where the ends of sockets are that this process makes. Ends of sockets that it got from elsewhere are in
//! the ports of those that made them.

use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32};

use gm::os::ProcessId;
use gm::{Node, Port};

use crate::once::Once;
use crate::process::FileId;

pub struct Ctx {
    pub node: Node,
    /// What brought the front here, to be put back into an environment that lost it.
    pub kept: Kept,
    /// The registry's file: who can't open it shares no node with us.
    pub registry: CString,
    /// This library's file.
    pub library: FileId,
    run: u64,
    own: Once<Port>,
}

/// `NAME=value`, as they were when the context was opened.
pub struct Kept {
    pub preload: CString,
    pub dir: Option<CString>,
    pub run: Option<CString>,
    pub calls: Option<CString>,
}

/// A port in use here; never dropped.
struct Known {
    port: Port,
    next: AtomicPtr<Known>,
}

static CTX: Once<Ctx> = Once::new();
/// Ports in use, the last one first: a list that only grows, so that handlers and exits need no lock.
static PORTS: AtomicPtr<Known> = AtomicPtr::new(std::ptr::null_mut());

/// Where the process is: what comes before the library's start or after its end is none of our business.
static PHASE: AtomicU32 = AtomicU32::new(BEFORE);
const BEFORE: u32 = 0;
const RUNNING: u32 = 1;
const OVER: u32 = 2;

/// The context, if the node can be used, for taking one more socket in. In a call that interrupted its opening (an allocator's
/// own socket, say) there is none.
#[inline]
pub fn get() -> Option<&'static Ctx> {
    if PHASE.load(Relaxed) != RUNNING {
        return None;
    }
    CTX.get().or_else(open)
}

/// The context, if it was opened before.
pub fn opened() -> Option<&'static Ctx> {
    CTX.get()
}

/// Does something watch this program for data races? It knows send and receive for what orders the work of threads; of bytes that go
/// through rings it would tell races that are none.
static RACES: AtomicBool = AtomicBool::new(false);

pub fn looks_for_races() -> bool {
    RACES.load(Relaxed)
}

// A weak reference: to ask dlsym for what is not there costs 25 µs of every start, for the text of an error.
std::arch::global_asm!(
    ".weak __tsan_init",
    ".pushsection .data.rel.ro.sgm_tsan, \"aw\"",
    ".balign 8",
    ".hidden sgm_tsan_init",
    ".globl sgm_tsan_init",
    "sgm_tsan_init: .quad __tsan_init",
    ".popsection",
);

unsafe extern "C" {
    static sgm_tsan_init: *const libc::c_void;
}

fn is_watched() -> bool {
    // SAFETY: a word of ours; the dynamic linker has put the address there, or left it null.
    let sanitized = unsafe { sgm_tsan_init };
    let preload = std::env::var_os("LD_PRELOAD").map(|v| v.into_encoded_bytes());
    let has = |name: &[u8]| {
        let preload = preload.as_deref().unwrap_or_default();
        preload.windows(name.len()).any(|w| w == name)
    };
    !sanitized.is_null() || has(b"vgpreload_helgrind") || has(b"vgpreload_drd")
}

/// The library has all that it needs from the C library.
pub fn begin() {
    RACES.store(is_watched(), Relaxed);
    PHASE.store(RUNNING, Relaxed);
}

/// No more sockets.
pub fn end() {
    PHASE.store(OVER, Relaxed);
}

/// In a forked child.
pub fn after_fork() {
    CTX.after_fork();
    if let Some(ctx) = CTX.get() {
        ctx.own.after_fork();
    }
}

#[cold]
fn open() -> Option<&'static Ctx> {
    CTX.get_or_make(|| {
        if std::env::var_os("SGM_DISABLE").is_some_and(|v| v != "0" && !v.is_empty()) {
            return None;
        }
        if let Some(calls) = gm::node::promote_calls_from_env() {
            sockets::promote_after(calls);
        }
        let run = std::env::var("SGM_RUN")
            .ok()
            .and_then(|v| u64::from_str_radix(&v, 16).ok());
        let node = Node::open_from_env().ok()?;
        Some(Box::leak(Box::new(Ctx {
            registry: CString::new(node.file().into_os_string().into_encoded_bytes()).ok()?,
            node,
            kept: Kept::from_env()?,
            library: FileId::of(&own_path()?)?,
            run: run.unwrap_or(0),
            own: Once::new(),
        })))
    })
}

impl Ctx {
    /// This process's own port, made when it is first wanted.
    #[inline]
    pub fn port(&self) -> Option<&'static Port> {
        self.own.get().or_else(|| self.make_port())
    }

    #[cold]
    fn make_port(&self) -> Option<&'static Port> {
        let mut fresh = false;
        let port = self.own.get_or_make(|| {
            let port = Port::create(self.node.dir(), self.node.me(), self.run).ok()?;
            if port.is_old() {
                // What it listened at before an exec.
                self.node.unlisten_mine();
            }
            fresh = true;
            Some(remember(port))
        });
        if fresh {
            let _quiet = crate::quiet::begin();
            self.node.sweep_if_due();
        }
        port
    }

    /// The port that `maker` made, with this process in its family.
    pub fn port_of(&self, maker: ProcessId) -> Option<&'static Port> {
        if maker == self.node.me() {
            return self.port();
        }
        if let Some(p) = ports().find(|p| p.maker() == maker) {
            return Some(p);
        }
        let port = Port::open_of(self.node.dir(), maker).ok()?;
        port.join(self.node.me());
        Some(remember(port))
    }
}

fn remember(port: Port) -> &'static Port {
    let known = Box::leak(Box::new(Known {
        port,
        next: AtomicPtr::default(),
    }));
    let mut head = PORTS.load(Acquire);
    loop {
        known.next.store(head, Relaxed);
        match PORTS.compare_exchange(head, known, AcqRel, Acquire) {
            Ok(_) => return &known.port,
            Err(other) => head = other,
        }
    }
}

/// Every port in which this process has, or had, ends.
pub fn ports() -> impl Iterator<Item = &'static Port> {
    let mut at = PORTS.load(Acquire);
    std::iter::from_fn(move || {
        // SAFETY: list members are never dropped.
        let known: &'static Known = unsafe { at.as_ref() }?;
        at = known.next.load(Acquire);
        Some(&known.port)
    })
}

impl Kept {
    fn from_env() -> Option<Self> {
        let pair = |name: &str, value: Vec<u8>| {
            CString::new([name.as_bytes(), b"=", value.as_slice()].concat()).ok()
        };
        let known = |name: &str| pair(name, std::env::var_os(name)?.into_encoded_bytes()).map(Some);
        let preload = std::env::var_os("LD_PRELOAD").map(|v| v.into_encoded_bytes());
        let loads = |v: &Vec<u8>| crate::process::names_library(v);
        let preload = preload.filter(loads).or_else(own_path)?;
        Some(Self {
            preload: pair("LD_PRELOAD", preload)?,
            dir: known("SGM_DIR").flatten(),
            run: known("SGM_RUN").flatten(),
            calls: known("SGM_PROMOTE_CALLS").flatten(),
        })
    }
}

/// The file that the loader has this library from.
fn own_path() -> Option<Vec<u8>> {
    // SAFETY: an address in this library, an out-pointer to a local; the name is the loader's, and stays.
    unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        let here = std::ptr::from_ref(&CTX).cast();
        if libc::dladdr(here, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(CStr::from_ptr(info.dli_fname).to_bytes().to_vec())
    }
}
