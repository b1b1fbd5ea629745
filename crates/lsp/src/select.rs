//! WSPSelect: three sets of our handles, carried and not.

use std::collections::HashMap;

use sockets::Ready;
use windows_sys::Win32::Networking::WinSock::{self as ws, FD_SET, SOCKET, TIMEVAL};

use crate::answer::{Code, tell};
use crate::provider::Lower;
use crate::slot::enter;
use crate::wait::{self, Member};

/// The handles of a set. `fd_count` alone counts: the array's size is the program's choice (FD_SETSIZE).
///
/// # Safety
/// Null, or a set whose array holds `fd_count` handles.
unsafe fn handles<'a>(set: *const FD_SET) -> &'a [SOCKET] {
    if set.is_null() {
        return &[];
    }
    // SAFETY: by the caller; `fd_array` is reached by address, since its declared size means nothing.
    unsafe {
        let first = (&raw const (*set).fd_array).cast::<SOCKET>();
        std::slice::from_raw_parts(first, (*set).fd_count as usize)
    }
}

/// Keeps the handles of a set for which `keep` says so, each once if there may be `doubles`. Returns how many.
///
/// # Safety
/// As [`handles`], writable, and not null.
unsafe fn retain(set: *mut FD_SET, doubles: bool, keep: impl Fn(SOCKET) -> bool) -> i32 {
    // SAFETY: by the caller; at most as many are written as were there.
    unsafe {
        let first = (&raw mut (*set).fd_array).cast::<SOCKET>();
        let mut kept = 0;
        for i in 0..(*set).fd_count as usize {
            let s = *first.add(i);
            let again = doubles && (0..kept).any(|k| *first.add(k) == s);
            if keep(s) && !again {
                *first.add(kept) = s;
                kept += 1;
            }
        }
        (*set).fd_count = kept as u32;
        kept as i32
    }
}

/// The answers, from ready states to the three sets' rules.
fn readable(r: Ready) -> bool {
    r.intersects(Ready::IN | Ready::RDHUP | Ready::HUP | Ready::ERR)
}

pub unsafe extern "system" fn select(
    _nfds: i32,
    read: *mut FD_SET,
    write: *mut FD_SET,
    except: *mut FD_SET,
    timeout: *const TIMEVAL,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the caller's sets and time-out.
    match unsafe { select_sets(read, write, except, timeout) } {
        Ok(n) => n,
        Err(code) => {
            // SAFETY: the caller's place for the code.
            unsafe { tell(code, errno) };
            ws::SOCKET_ERROR
        }
    }
}

/// # Safety
/// As for select.
pub unsafe fn select_sets(
    read: *mut FD_SET,
    write: *mut FD_SET,
    except: *mut FD_SET,
    timeout: *const TIMEVAL,
) -> Result<i32, Code> {
    // SAFETY: the caller's sets and time-out.
    let (sets, limit) = unsafe {
        let limit = timeout
            .as_ref()
            .map(|t| (t.tv_sec.max(0) as u64) * 1_000_000 + t.tv_usec.max(0) as u64);
        ([handles(read), handles(write), handles(except)], limit)
    };
    let mut at = HashMap::new();
    let mut doubles = false;
    let mut members: Vec<Member> = Vec::new();
    for (set, want) in sets.into_iter().zip([Ready::IN, Ready::OUT, Ready::PRI]) {
        for &s in set {
            match at.get(&s) {
                Some(&i) => {
                    let m: &mut Member = &mut members[i];
                    doubles |= m.want.intersects(want);
                    m.want |= want;
                }
                None => {
                    at.insert(s, members.len());
                    members.push(wait::member(enter(s)?, want));
                }
            }
        }
    }
    let Some(first) = members.first() else {
        return Err(ws::WSAEINVAL);
    };
    let lower = first.socket.body().lower;
    let deadline = wait::after_us(limit);
    let mut below = |m: &mut [Member], limit_us| ask_lower(lower, m, limit_us);
    if members.iter().any(Member::is_carried) {
        wait::wait(&mut members, deadline, &mut below)?;
    } else {
        members.iter_mut().for_each(|m| m.ask = m.want);
        ask_lower(lower, &mut members, limit)?;
        members.iter_mut().for_each(|m| m.got = m.below);
    }
    let got = |s: SOCKET| {
        at.get(&s)
            .and_then(|i| members.get(*i))
            .map_or(Ready::NONE, |m| m.got)
    };
    // Another thread closed it meanwhile: Wine calls it readable.
    if !gm::os::raw::is_wine() && members.iter().any(|m| m.socket.body().is_closing()) {
        return Err(ws::WSAENOTSOCK);
    }
    let rules: [fn(Ready) -> bool; 3] = [
        readable,
        |r| r.intersects(Ready::OUT),
        |r| r.intersects(Ready::PRI),
    ];
    let sets = [read, write, except];
    let mut count = 0;
    for (i, set) in sets.iter().enumerate() {
        if set.is_null() || sets[..i].contains(set) {
            continue;
        }
        // One set may stand for several.
        let keep = |s| (i..3).any(|j| sets[j] == *set && rules[j](got(s)));
        // SAFETY: the caller's sets.
        count += unsafe { retain(*set, doubles, keep) };
    }
    Ok(count)
}

/// A set of base sockets, laid out as FD_SET but of any size.
fn base_set(handles: Vec<SOCKET>) -> Vec<usize> {
    // fd_count is a u32 with 4 bytes of padding after it.
    let mut words = vec![handles.len()];
    words.extend(handles);
    words
}

/// Asks the lower provider's select about what each member asks.
pub fn ask_lower(lower: &Lower, members: &mut [Member], limit_us: Option<u64>) -> Result<(), Code> {
    let of = |want: Ready| {
        let asked = members.iter().filter(|m| m.ask.intersects(want));
        base_set(asked.map(|m| m.socket.body().base).collect())
    };
    let mut sets = [of(Ready::IN | Ready::RDHUP), of(Ready::OUT), of(Ready::PRI)];
    let limit = limit_us.map(|us| TIMEVAL {
        tv_sec: (us / 1_000_000).min(i32::MAX as u64) as i32,
        tv_usec: (us % 1_000_000) as i32,
    });
    let mut pointers = sets.iter_mut().map(|set| match set[0] {
        0 => std::ptr::null_mut(),
        _ => set.as_mut_ptr().cast::<FD_SET>(),
    });
    let mut next = || pointers.next().unwrap_or(std::ptr::null_mut());
    let (r, w, e) = (next(), next(), next());
    if r.is_null() && w.is_null() && e.is_null() {
        // Nothing that the kernel could tell: only time passes.
        std::thread::sleep(std::time::Duration::from_micros(limit_us.unwrap_or(1000)));
        return Ok(());
    }
    let mut code = 0;
    // SAFETY: sets of the layout that select expects, a time-out of our own.
    let n = unsafe {
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        (lower.select)(0, r, w, e, limit, &mut code)
    };
    if n < 0 {
        return Err(code);
    }
    for (set, ready) in sets.iter().zip([Ready::IN, Ready::OUT, Ready::PRI]) {
        let count = set[0] as u32 as usize;
        let answered: std::collections::HashSet<_> = match n {
            0 => Default::default(),
            _ => set.iter().skip(1).take(count).copied().collect(),
        };
        for m in members.iter_mut() {
            if answered.contains(&m.socket.body().base) {
                m.below |= ready;
            }
        }
    }
    Ok(())
}
