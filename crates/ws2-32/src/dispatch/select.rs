//! select over sockets of any providers.
//!
//! As on Windows the provider of the first layered socket is asked with the whole sets; a provider that covers all families
//! and knows how to wait for foreign sockets does the rest. One that refuses them (WSAENOTSOCK) gets only its own: each
//! owner's sockets are then asked in turn without waiting, and between rounds the last owner waits for a short slice.

use std::time::{Duration, Instant};

use windows_sys::Win32::Networking::WinSock::*;

use super::{fail, layered};
use crate::builtin;
use crate::fdset::{self, Set};
use crate::provider::Provider;

/// Slices between the rounds, from the first to the longest.
const FIRST_SLICE: Duration = Duration::from_millis(1);
const LONGEST_SLICE: Duration = Duration::from_millis(8);

#[unsafe(no_mangle)]
pub unsafe extern "system" fn select(
    n: i32,
    read: *mut FD_SET,
    write: *mut FD_SET,
    except: *mut FD_SET,
    timeout: *const TIMEVAL,
) -> i32 {
    let sets = [read, write, except];
    // SAFETY: the program's own sets, which nobody changes before the builtin or a provider is called.
    let members = sets.map(|set| unsafe { fdset::members(set) });
    let mut all = members.iter().copied().flatten();
    let Some(first) = all.find_map(|s| layered(*s)) else {
        // SAFETY: the program's own arguments.
        return unsafe { builtin::select(n, read, write, except, timeout) };
    };
    let alone = members
        .iter()
        .copied()
        .flatten()
        .all(|s| layered(*s).is_some_and(|p| std::ptr::eq(p, first)));
    let before = if alone {
        [const { Vec::new() }; 3]
    } else {
        members.map(<[SOCKET]>::to_vec)
    };
    // SAFETY: as above.
    match unsafe { ask(Some(first), n, sets, timeout) } {
        Ok(count) => count,
        Err(WSAENOTSOCK) if !alone => {
            // SAFETY: null or the program's own.
            let result = each_by_itself(&before, wait_of(unsafe { timeout.as_ref() }));
            let (count, kept) = match result {
                Ok(kept) => (kept.iter().map(Vec::len).sum::<usize>() as i32, kept),
                Err(error) => {
                    fail(error);
                    return SOCKET_ERROR;
                }
            };
            for (set, kept) in sets.into_iter().zip(&kept) {
                // SAFETY: no more than were in it.
                unsafe { fdset::rewrite(set, kept) };
            }
            count
        }
        Err(error) => {
            fail(error);
            SOCKET_ERROR
        }
    }
}

/// One call of an owner's select; `None`: the builtin's. The error is a WSA code.
///
/// # Safety
/// As `select`.
unsafe fn ask(
    owner: Option<&'static Provider>,
    n: i32,
    [read, write, except]: [*mut FD_SET; 3],
    timeout: *const TIMEVAL,
) -> Result<i32, i32> {
    let mut error = 0;
    let result = match owner {
        None => {
            // SAFETY: by the caller.
            let result = unsafe { builtin::select(n, read, write, except, timeout) };
            // SAFETY: reads the thread's own word.
            error = unsafe { WSAGetLastError() };
            result
        }
        Some(p) => match p.table().lpWSPSelect {
            // SAFETY: by the caller.
            Some(f) => unsafe { f(n, read, write, except, timeout, &mut error) },
            None => SOCKET_ERROR,
        },
    };
    if result == SOCKET_ERROR {
        Err(error)
    } else {
        Ok(result)
    }
}

/// `None`: for ever.
fn wait_of(timeout: Option<&TIMEVAL>) -> Option<Duration> {
    timeout.map(|t| {
        Duration::from_secs(t.tv_sec.max(0) as u64) + Duration::from_micros(t.tv_usec.max(0) as u64)
    })
}

/// One owner's part of the three sets.
struct Part {
    owner: Option<&'static Provider>,
    wanted: [Vec<SOCKET>; 3],
}

impl Part {
    /// Those of its sockets that are ready within `wait`.
    fn ready(&self, wait: Duration) -> Result<[Vec<SOCKET>; 3], i32> {
        let mut sets = self
            .wanted
            .each_ref()
            .map(|set| Set::new(set.iter().copied()));
        let timeout = TIMEVAL {
            tv_sec: wait.as_secs() as i32,
            tv_usec: wait.subsec_micros() as i32,
        };
        let pointers = sets.each_mut().map(Set::as_ptr);
        // SAFETY: sets of our own with true counts.
        match unsafe { ask(self.owner, 0, pointers, &timeout)? } {
            0 => Ok([const { Vec::new() }; 3]),
            _ => Ok(sets.map(|set| set.members().to_vec())),
        }
    }
}

fn parts(sets: &[Vec<SOCKET>; 3]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        for s in set {
            let owner = layered(*s);
            let same = |p: &Part| p.owner.map(std::ptr::from_ref) == owner.map(std::ptr::from_ref);
            let at = parts.iter().position(same).unwrap_or_else(|| {
                parts.push(Part {
                    owner,
                    wanted: [const { Vec::new() }; 3],
                });
                parts.len() - 1
            });
            if let Some(wanted) = parts.get_mut(at).and_then(|p| p.wanted.get_mut(i)) {
                wanted.push(*s);
            }
        }
    }
    parts
}

/// The sockets that became ready, in the program's order; none if the time is over.
fn each_by_itself(
    sets: &[Vec<SOCKET>; 3],
    wait: Option<Duration>,
) -> Result<[Vec<SOCKET>; 3], i32> {
    let parts = parts(sets);
    let start = Instant::now();
    let mut slice = FIRST_SLICE;
    loop {
        let mut ready = [const { Vec::new() }; 3];
        for part in &parts {
            for (all, some) in ready.iter_mut().zip(part.ready(Duration::ZERO)?) {
                all.extend(some);
            }
        }
        let left = wait.map(|w| w.saturating_sub(start.elapsed()));
        if left.is_some_and(|l| l.is_zero()) || ready.iter().any(|r| !r.is_empty()) {
            let mut kept = sets.clone();
            for (set, ready) in kept.iter_mut().zip(&ready) {
                set.retain(|s| ready.contains(s));
            }
            return Ok(kept);
        }
        if let Some(last) = parts.last() {
            last.ready(slice.min(left.unwrap_or(slice)))?;
        }
        slice = (2 * slice).min(LONGEST_SLICE);
    }
}
