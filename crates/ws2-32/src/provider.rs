//! Layered providers: loading their DLLs, starting and stopping them.
//!
//! One provider per GUID in the catalog, as on Windows: all chains that an installer registered under one GUID share it, and
//! WSPStartup is called with the entry that was needed first. Providers are made on demand and never freed; their DLLs stay
//! loaded over WSACleanup, because a thread of the provider may still be returning through its code (without [`extras`] they
//! are unloaded, as the documentation allows).

use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicBool, AtomicPtr,
    Ordering::{Acquire, Release},
};

use spi::lower;
use windows_sys::Win32::Networking::WinSock::{WSAEINVALIDPROCTABLE, WSPDATA, WSPPROC_TABLE};
use windows_sys::core::GUID;

use crate::carrier::Carrier;
use crate::catalog::{self, Entry};
use crate::handles::Handles;
use crate::lock::lock;
use crate::{extras, upcalls};

pub struct Provider {
    id: GUID,
    state: Mutex<State>,
    /// To be unloaded after the last WSACleanup.
    module: Mutex<Option<lower::Module>>,
    /// The table of the last successful start, never freed; [`EMPTY`] before the first.
    table: AtomicPtr<WSPPROC_TABLE>,
}

#[derive(Clone, Copy)]
enum State {
    Stopped,
    Started,
    /// Why it did not start; not tried again before the next WSAStartup.
    Failed(i32),
}

/// The table of a provider that has not started.
static EMPTY: WSPPROC_TABLE = {
    // SAFETY: thirty functions, none of them there.
    unsafe { std::mem::zeroed() }
};

pub static HANDLES: Handles<Provider, Carrier> = Handles::new();

static PROVIDERS: Mutex<Vec<&'static Provider>> = Mutex::new(Vec::new());

/// The provider of a catalog entry, started; or a WSA error.
pub fn start(entry: &Entry) -> Result<&'static Provider, i32> {
    let provider = of_guid(&entry.info.ProviderId);
    let mut state = lock(&provider.state);
    match *state {
        State::Started => Ok(provider),
        State::Failed(error) => Err(error),
        State::Stopped => match load(entry) {
            Ok((table, module)) => {
                *lock(&provider.module) = module;
                provider.publish(table);
                *state = State::Started;
                Ok(provider)
            }
            Err(error) => {
                *state = State::Failed(error);
                Err(error)
            }
        },
    }
}

/// The provider that a catalog id in an upcall stands for; only one that has been started makes upcalls.
pub fn of_entry(id: u32) -> Option<&'static Provider> {
    let catalog = catalog::current();
    let entry = catalog
        .entries
        .iter()
        .find(|e| e.info.dwCatalogEntryId == id)?;
    let provider = of_guid(&entry.info.ProviderId);
    spi::types::complete(provider.table()).then_some(provider)
}

/// Handles of one socket share a completion port, as they share the file of a kernel that has one: calls `f` with each handle of the same owner
/// and context. Only where a program has duplicated sockets (WSADuplicateSocket) can there be more than the one.
pub fn each_twin(s: usize, f: impl Fn(&'static Carrier)) {
    if !DUPLICATED.load(Acquire) {
        return;
    }
    let Some(own) = HANDLES.get(s).filter(|slot| slot.is_non_ifs()) else {
        return;
    };
    let context = own.context();
    HANDLES.each(|slot| {
        if !ptr::eq(slot, own) && slot.is_non_ifs() && slot.context() == context {
            f(slot.extra());
        }
    });
}

/// A program has made a socket after a structure, as duplicates are made.
pub static DUPLICATED: AtomicBool = AtomicBool::new(false);

/// The last WSACleanup: every started provider is told, once per its WSPStartup.
pub fn stop_all() {
    let all = lock(&PROVIDERS).clone();
    for provider in &all {
        let was = std::mem::replace(&mut *lock(&provider.state), State::Stopped);
        if let (State::Started, Some(cleanup)) = (was, provider.table().lpWSPCleanup) {
            let mut error = 0;
            // SAFETY: an entry of a started provider's table.
            unsafe { cleanup(&mut error) };
        }
    }
    crate::pool::empty();
    HANDLES.clear_all(|slot| {
        if slot.is_non_ifs() {
            slot.extra().reset();
        }
    });
    for provider in all {
        if let Some(module) = lock(&provider.module).take() {
            provider
                .table
                .store(ptr::from_ref(&EMPTY).cast_mut(), Release);
            drop(module);
        }
    }
}

fn of_guid(id: &GUID) -> &'static Provider {
    let mut all = lock(&PROVIDERS);
    if let Some(found) = all.iter().find(|p| spi::ids::same_guid(&p.id, id)) {
        return found;
    }
    let fresh: &'static Provider = Box::leak(Box::new(Provider {
        id: *id,
        state: Mutex::new(State::Stopped),
        module: Mutex::new(None),
        table: AtomicPtr::new(ptr::from_ref(&EMPTY).cast_mut()),
    }));
    all.push(fresh);
    fresh
}

/// Loads the entry's DLL and calls its WSPStartup.
fn load(entry: &Entry) -> Result<(WSPPROC_TABLE, Option<lower::Module>), i32> {
    let path = spi::wide::expand(&entry.path);
    let module = lower::Module::load(&path)?;
    let mut table = WSPPROC_TABLE::default();
    module.startup(
        &entry.info,
        &upcalls::table(),
        &mut WSPDATA::default(),
        &mut table,
    )?;
    if extras::are_on() || !spi::types::complete(&table) {
        // It ran: it may have threads and pointers out there, whatever we think of its table.
        module.keep();
        extras::tell(&table);
        return match spi::types::complete(&table) {
            true => Ok((table, None)),
            false => Err(WSAEINVALIDPROCTABLE),
        };
    }
    Ok((table, Some(module)))
}

impl Provider {
    /// Its thirty functions, none of them missing. For providers that have been started once.
    #[inline]
    pub fn table(&self) -> &'static WSPPROC_TABLE {
        // SAFETY: the empty one, or a table that is never freed.
        unsafe { &*self.table.load(Acquire) }
    }

    /// A provider started again mostly has the table it had.
    fn publish(&self, table: WSPPROC_TABLE) {
        if spi::types::addresses(self.table()) != spi::types::addresses(&table) {
            self.table.store(Box::into_raw(Box::new(table)), Release);
        }
    }
}
