//! Which SOCKET belongs to which provider: only handles of layered providers are in here.
//!
//! A table in two levels, indexed by handle / 4 as the kernel numbers them; pages are made on demand and never freed. A
//! handle that isn't in it costs one load (two where its page exists): that is all a program without providers pays.
//!
//! 1. `owner` is published last and cleared first: who sees it sees the other words of the same registration.
//! 2. Owners are never freed, so a reader may use what it read even if the handle is closed meanwhile; a program that closes a
//!    socket under another thread's call gets what it gets from Windows: an error, or the next owner of the number.
//! 3. An entry is cleared *before* its handle is closed, so that the number can't come back to a stale entry.

use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

const PAGE: usize = 1024;
const PAGES: usize = 4096;

/// One handle. `P`: the owner, a provider. `X`: what else there is to know of a handle.
pub struct Slot<P: 'static, X: 'static> {
    owner: AtomicPtr<P>,
    /// The provider's word for a handle of `WPUCreateSocketHandle`.
    context: AtomicUsize,
    /// Made by `WPUCreateSocketHandle`: no kernel object of the provider's stands behind it.
    non_ifs: AtomicBool,
    /// What else belongs to the handle's number; made when it is asked for, and never freed.
    extra: AtomicPtr<X>,
}

impl<P, X> Slot<P, X> {
    const fn new() -> Self {
        Self {
            owner: AtomicPtr::new(ptr::null_mut()),
            context: AtomicUsize::new(0),
            non_ifs: AtomicBool::new(false),
            extra: AtomicPtr::new(ptr::null_mut()),
        }
    }

    pub fn owner(&self) -> Option<&'static P> {
        // SAFETY: null, or from a `&'static P` (`Handles::set`).
        unsafe { self.owner.load(Acquire).as_ref() }
    }

    pub fn context(&self) -> usize {
        self.context.load(Relaxed)
    }

    pub fn is_non_ifs(&self) -> bool {
        self.non_ifs.load(Relaxed)
    }

    pub fn extra(&self) -> &'static X
    where
        X: Default,
    {
        let mut extra = self.extra.load(Acquire);
        if extra.is_null() {
            let fresh = Box::into_raw(Box::default());
            extra = match self.extra.compare_exchange(extra, fresh, AcqRel, Acquire) {
                Ok(_) => fresh,
                Err(first) => {
                    // SAFETY: nobody else has seen it.
                    drop(unsafe { Box::from_raw(fresh) });
                    first
                }
            };
        }
        // SAFETY: never freed.
        unsafe { &*extra }
    }
}

/// What a registration says of a handle.
pub struct Registration<P: 'static> {
    pub owner: &'static P,
    pub context: usize,
    pub non_ifs: bool,
}

pub struct Handles<P: 'static, X: 'static> {
    pages: [AtomicPtr<[Slot<P, X>; PAGE]>; PAGES],
}

impl<P, X> Handles<P, X> {
    pub const fn new() -> Self {
        Self {
            pages: [const { AtomicPtr::new(ptr::null_mut()) }; PAGES],
        }
    }

    #[inline]
    fn slot(&self, handle: usize) -> Option<&Slot<P, X>> {
        let index = handle / 4;
        let page = self.pages.get(index / PAGE)?.load(Acquire);
        // SAFETY: null, or a page that is never freed.
        unsafe { page.as_ref() }?.get(index % PAGE)
    }

    /// The slot of a registered handle.
    #[inline]
    pub fn get(&self, handle: usize) -> Option<&Slot<P, X>> {
        self.slot(handle)
            .filter(|slot| !slot.owner.load(Acquire).is_null())
    }

    /// The owner of a registered handle.
    #[inline]
    pub fn owner(&self, handle: usize) -> Option<&'static P> {
        self.slot(handle)?.owner()
    }

    /// Registers a handle, or changes what is registered. `false`: no handle has such a number.
    pub fn set(&self, handle: usize, r: Registration<P>) -> bool {
        let Some(page) = self.pages.get(handle / 4 / PAGE) else {
            return false;
        };
        if page.load(Acquire).is_null() {
            let fresh = Box::into_raw(Box::new([const { Slot::new() }; PAGE]));
            if page
                .compare_exchange(ptr::null_mut(), fresh, AcqRel, Acquire)
                .is_err()
            {
                // SAFETY: nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
        let Some(slot) = self.slot(handle) else {
            return false;
        };
        slot.owner.store(ptr::null_mut(), Release);
        slot.context.store(r.context, Relaxed);
        slot.non_ifs.store(r.non_ifs, Relaxed);
        slot.owner.store(ptr::from_ref(r.owner).cast_mut(), Release);
        true
    }

    /// Forgets a handle; `true` if it was registered. Also called for handles fresh from the builtin, whose number may have
    /// been a socket's that was closed behind our back.
    #[inline]
    pub fn clear(&self, handle: usize) -> bool {
        match self.get(handle) {
            Some(slot) => !slot.owner.swap(ptr::null_mut(), AcqRel).is_null(),
            None => false,
        }
    }

    /// Every registered handle.
    pub fn each(&self, f: impl Fn(&'static Slot<P, X>))
    where
        Self: 'static,
    {
        for page in &self.pages {
            // SAFETY: null, or a page that is never freed.
            if let Some(page) = unsafe { page.load(Acquire).as_ref() } {
                let used = |slot: &&Slot<P, X>| !slot.owner.load(Acquire).is_null();
                page.iter().filter(used).for_each(&f);
            }
        }
    }

    /// Forgets all handles, and tells of each that was registered.
    pub fn clear_all(&self, forgotten: impl Fn(&Slot<P, X>)) {
        for page in &self.pages {
            // SAFETY: null, or a page that is never freed.
            if let Some(page) = unsafe { page.load(Acquire).as_ref() } {
                let was = |slot: &&Slot<P, X>| !slot.owner.swap(ptr::null_mut(), AcqRel).is_null();
                page.iter().filter(was).for_each(&forgotten);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static A: u32 = 1;
    static B: u32 = 2;

    fn registration(owner: &'static u32, context: usize) -> Registration<u32> {
        Registration {
            owner,
            context,
            non_ifs: true,
        }
    }

    #[test]
    fn registered_handles_are_found_and_no_others() {
        let t: Box<Handles<u32, std::cell::Cell<u32>>> = Box::new(Handles::new());
        assert!(t.get(0x40).is_none());
        assert!(t.set(0x40, registration(&A, 7)));
        let slot = t.get(0x40).unwrap();
        assert_eq!((slot.owner(), slot.context()), (Some(&A), 7));
        assert!(slot.is_non_ifs());
        assert!(t.get(0x44).is_none(), "the next one on the same page");
        assert!(t.get(0x3c).is_none());
        assert_eq!(t.owner(0x43), Some(&A), "the low bits are the kernel's");
    }

    #[test]
    fn a_number_that_comes_back_has_its_new_owner() {
        let t: Box<Handles<u32, std::cell::Cell<u32>>> = Box::new(Handles::new());
        t.set(0x80, registration(&A, 1));
        assert!(t.clear(0x80));
        assert!(!t.clear(0x80), "once");
        assert_eq!(t.owner(0x80), None);
        t.set(0x80, registration(&B, 2));
        assert_eq!(t.owner(0x80), Some(&B));
        t.clear_all(|_| ());
        assert_eq!(t.owner(0x80), None);
    }

    #[test]
    fn what_belongs_to_a_number_stays() {
        let t: Box<Handles<u32, std::cell::Cell<u32>>> = Box::new(Handles::new());
        t.set(0x80, registration(&A, 1));
        t.get(0x80).unwrap().extra().set(7);
        let seen = std::cell::Cell::new(0);
        t.clear_all(|slot| seen.set(seen.get() + slot.extra().get()));
        assert_eq!(seen.get(), 7, "the registered one, and no other");
        t.set(0x80, registration(&B, 1));
        assert_eq!(t.get(0x80).unwrap().extra().get(), 7);
    }

    #[test]
    fn numbers_out_of_range_are_nobodys() {
        let t: Box<Handles<u32, std::cell::Cell<u32>>> = Box::new(Handles::new());
        for handle in [usize::MAX, 4 * PAGE * PAGES] {
            assert!(!t.set(handle, registration(&A, 0)));
            assert!(t.get(handle).is_none());
            assert!(!t.clear(handle));
        }
        assert!(t.set(4 * PAGE * PAGES - 4, registration(&A, 0)));
    }
}
