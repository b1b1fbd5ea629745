//! The provider catalog in the registry keys where Windows keeps it, and this process's copy of it.
//!
//! ```text
//! HKLM\SYSTEM\CurrentControlSet\Services\WinSock2\Parameters\Protocol_Catalog9
//!     Next_Catalog_Entry_ID, Num_Catalog_Entries64, Serial_Access_Num     numbers
//!     Catalog_Entries64\000000000001 ...                                  PackedCatalogItem, LspCategories
//!     Journal                                                             the old catalog, while a write is under way
//! ```
//!
//! Rules:
//! 1. While `Journal` is there, it is the catalog, and what lies in the entries counts for nothing. A writer sets it
//!    first and deletes it last, so a write that fails or dies half-way has not happened.
//! 2. A writer holds the mutex and raises `Serial_Access_Num` after setting the journal and again after deleting it. A
//!    reader that sees the same serial before and after has read one catalog.
//! 3. Entries that make no sense are skipped, and the builtin's protocols are always there: what is missing of them is
//!    put back. So nothing that is written into the registry leaves a prefix without TCP.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spi::chain::is_base;
use spi::registry::Key;
use spi::wide::wide;
use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, WAIT_ABANDONED, WAIT_OBJECT_0};
use windows_sys::Win32::Networking::WinSock::{WSANO_RECOVERY, WSAPROTOCOL_INFOW, WSATRY_AGAIN};
use windows_sys::Win32::System::Threading::{CreateMutexW, ReleaseMutex, WaitForSingleObject};

pub use spi::catalog::{Catalog, Entry};

use crate::lock::lock;

const KEY: &str = r"SYSTEM\CurrentControlSet\Services\WinSock2\Parameters\Protocol_Catalog9";
/// 32-bit programs have a catalog of their own beside the other.
const NAMES: (&str, &str, &str) = match cfg!(target_pointer_width = "64") {
    true => ("Catalog_Entries64", "Num_Catalog_Entries64", "Journal"),
    false => ("Catalog_Entries", "Num_Catalog_Entries", "Journal32"),
};
const ENTRIES: &str = NAMES.0;
const COUNT: &str = NAMES.1;
const NEXT_ID: &str = "Next_Catalog_Entry_ID";
const SERIAL: &str = "Serial_Access_Num";
const JOURNAL: &str = NAMES.2;
const ITEM: &str = "PackedCatalogItem";
const CATEGORIES: &str = "LspCategories";

/// The base provider's DLL: this one, at its usual place.
const BASE_PATH: &str = r"%SystemRoot%\system32\ws2_32.dll";

/// How long this process's copy is good without asking the registry. An installation is noticed that much later; asking
/// at every `socket` would cost half of what `socket` itself costs.
const TRUSTED: Duration = Duration::from_millis(250);

/// How long a write waits for another process's.
const WRITERS_TURN_MS: u32 = 10_000;

struct Copy {
    catalog: Arc<Catalog>,
    serial: u32,
    checked: Instant,
}

static COPY: Mutex<Option<Copy>> = Mutex::new(None);

/// The catalog, at most [`TRUSTED`] old.
pub fn current() -> Arc<Catalog> {
    let mut copy = lock(&COPY);
    match &mut *copy {
        Some(c) if c.checked.elapsed() < TRUSTED => return c.catalog.clone(),
        Some(c) if serial() == c.serial => {
            c.checked = Instant::now();
            return c.catalog.clone();
        }
        _ => {}
    }
    refresh(&mut copy)
}

/// The catalog as it is now.
pub fn fresh() -> Arc<Catalog> {
    refresh(&mut lock(&COPY))
}

fn refresh(copy: &mut Option<Copy>) -> Arc<Catalog> {
    let (catalog, serial) = load().unwrap_or_else(seed);
    let catalog = Arc::new(catalog);
    *copy = Some(Copy {
        catalog: catalog.clone(),
        serial,
        checked: Instant::now(),
    });
    catalog
}

/// Changes the catalog: `edit` works on a copy of what the registry holds now, and the result is stored as a whole.
/// The error is `edit`'s, or WSATRY_AGAIN if somebody else keeps writing, or WSANO_RECOVERY if the registry refuses.
pub fn change(edit: impl FnOnce(&mut Catalog) -> Result<(), i32>) -> Result<(), i32> {
    let _turn = Turn::take().ok_or(WSATRY_AGAIN)?;
    let old = load().map_or_else(untouched, |(catalog, _)| catalog);
    let mut new = old.clone();
    edit(&mut new)?;
    let stored = store(&old, &new);
    refresh(&mut lock(&COPY));
    stored.map_err(|_| WSANO_RECOVERY)
}

/// Puts the base protocols into a registry that has no catalog yet. If that can't be (no rights), this process goes on
/// with them all the same.
fn seed() -> (Catalog, u32) {
    let catalog = untouched();
    if let Some(_turn) = Turn::take() {
        if let Some(loaded) = load() {
            return loaded;
        }
        // Failed or not, the serial is what a reader would find now.
        let _ = store(&catalog, &catalog);
    }
    (catalog, serial())
}

/// The catalog of a system where nobody installed anything.
fn untouched() -> Catalog {
    let mut catalog = Catalog::new([], 0);
    catalog.complete(&base_protocols(), BASE_PATH);
    catalog
}

/// What the builtin offers.
fn base_protocols() -> Vec<WSAPROTOCOL_INFOW> {
    type Enum = unsafe extern "system" fn(*const i32, *mut WSAPROTOCOL_INFOW, *mut u32) -> i32;
    type Found = unsafe extern "system" fn() -> isize;
    const ROOM: usize = 64;
    let Some(found) = crate::builtin::address(c"WSAEnumProtocolsW") else {
        return Vec::new();
    };
    // SAFETY: the function of that name has this signature (winsock2.h).
    let enumerate = unsafe { std::mem::transmute::<Found, Enum>(found) };
    let mut infos = vec![WSAPROTOCOL_INFOW::default(); ROOM];
    let mut bytes = (ROOM * size_of::<WSAPROTOCOL_INFOW>()) as u32;
    // SAFETY: the buffer is as long as said; null asks for every protocol.
    let count = unsafe { enumerate(std::ptr::null(), infos.as_mut_ptr(), &mut bytes) };
    infos.truncate(usize::try_from(count).unwrap_or(0));
    infos.retain(is_base);
    infos
}

/// Changes whenever the catalog may have; 0 where there is none.
fn serial() -> u32 {
    Key::open_machine(KEY)
        .ok()
        .and_then(|k| k.get_u32(SERIAL))
        .unwrap_or(0)
}

/// What the registry holds, made complete, with its serial; `None` if there is no catalog.
fn load() -> Option<(Catalog, u32)> {
    let key = Key::open_machine(KEY).ok()?;
    let mut loaded = None;
    // A writer is between its two serials for a few milliseconds; one that died there left its journal.
    for _ in 0..8 {
        let serial = key.get_u32(SERIAL).unwrap_or(0);
        let journal = key.get_binary(JOURNAL);
        let catalog = journal.and_then(|j| Catalog::from_bytes(&j));
        loaded = catalog.or_else(|| entries(&key)).map(|c| (c, serial));
        if key.get_u32(SERIAL).unwrap_or(0) == serial {
            break;
        }
    }
    let (mut catalog, serial) = loaded?;
    catalog.complete(&base_protocols(), BASE_PATH);
    Some((catalog, serial))
}

/// The entries' keys in order, up to the count if there is one.
fn entries(key: &Key) -> Option<Catalog> {
    let entries = key.open(ENTRIES).ok()?;
    let count = key.get_u32(COUNT).unwrap_or(u32::MAX);
    let counted = |name: &String| name.parse::<u32>().is_ok_and(|n| (1..=count).contains(&n));
    let read = |name: String| {
        let entry = entries.open(&name).ok()?;
        Entry::unpack(
            &entry.get_binary(ITEM)?,
            entry.get_u32(CATEGORIES).unwrap_or(0),
        )
    };
    let found = entries.subkeys().ok()?.into_iter().filter(counted);
    Some(Catalog::new(
        found.filter_map(read),
        key.get_u32(NEXT_ID).unwrap_or(0),
    ))
}

/// Replaces `old` by `new`; on failure `old` is what everybody reads. The caller holds the mutex.
fn store(old: &Catalog, new: &Catalog) -> io::Result<()> {
    let key = Key::create_machine(KEY)?;
    let journal = old.to_bytes().ok_or(io::ErrorKind::InvalidData)?;
    key.set_binary(JOURNAL, &journal)?;
    let serial = key.get_u32(SERIAL).unwrap_or(0).wrapping_add(1);
    key.set_u32(SERIAL, serial)?;
    let mut written = write(&key, new);
    if written.is_err() && write(&key, old).is_err() {
        return written; // the journal stays and speaks for the old catalog
    }
    // From here on the entries count. If even this fails, the old catalog does, by the journal.
    written = key.delete_value(JOURNAL).and(written);
    key.set_u32(SERIAL, serial.wrapping_add(1))?;
    written
}

fn write(key: &Key, catalog: &Catalog) -> io::Result<()> {
    let entries = key.create(ENTRIES)?;
    let name = |number: usize| format!("{number:012}");
    for (at, entry) in catalog.entries.iter().enumerate() {
        let item = spi::catalog_item::PackedCatalogItem::new(&entry.path, entry.info)
            .ok_or(io::ErrorKind::InvalidData)?;
        let key = entries.create(&name(at + 1))?;
        key.set_binary(ITEM, &item.to_bytes())?;
        match entry.categories {
            0 => key.delete_value(CATEGORIES)?,
            bits => key.set_u32(CATEGORIES, bits)?,
        }
    }
    let kept = name(catalog.entries.len());
    for surplus in entries.subkeys()?.iter().filter(|n| **n > kept) {
        entries.delete_tree(surplus)?;
    }
    let count = u32::try_from(catalog.entries.len()).map_err(io::Error::other)?;
    key.set_u32(COUNT, count)?;
    key.set_u32(NEXT_ID, catalog.next_id)
}

/// The right to write: a mutex that all processes share. A holder that died leaves a journal, so its turn just ends.
struct Turn(HANDLE);

impl Turn {
    fn take() -> Option<Self> {
        let name = wide(r"Global\Sockets-GM.Protocol_Catalog9");
        // SAFETY: default security, a name that ends with a zero.
        let mutex = unsafe { CreateMutexW(std::ptr::null(), 0, name.as_ptr()) };
        if mutex.is_null() {
            return None;
        }
        // SAFETY: our own handle.
        match unsafe { WaitForSingleObject(mutex, WRITERS_TURN_MS) } {
            WAIT_OBJECT_0 | WAIT_ABANDONED => Some(Self(mutex)),
            _ => {
                // SAFETY: our own handle, closed once.
                unsafe { CloseHandle(mutex) };
                None
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // SAFETY: held by this thread since `take`; the handle is our own, closed once.
        unsafe {
            ReleaseMutex(self.0);
            CloseHandle(self.0);
        }
    }
}
