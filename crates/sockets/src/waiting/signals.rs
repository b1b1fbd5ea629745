//! A send that waits, and signals. The kernel's own send is ended by a handler that runs at any moment of its wait:
//! always if a part was taken, else as the handler wants it (SA_RESTART or EINTR). Here a wait is many steps, and a
//! handler that ran between two of them would go unnoticed. So they are held back from the first sleep to the end of the
//! call, and let run after each step.

use crate::call::Call;
use crate::{Fault, Kernel};

/// One call's waiting.
pub(crate) struct Waiting<'k, K: Kernel> {
    k: &'k K,
    begun: bool,
    held: Option<u64>,
    pub(crate) call: Call,
}

impl<'k, K: Kernel> Waiting<'k, K> {
    pub(crate) fn new(k: &'k K) -> Self {
        Self {
            k,
            begun: false,
            held: None,
            call: Call::default(),
        }
    }

    /// Before the first sleep. It may be called again.
    pub(crate) fn begin(&mut self) {
        if !self.begun {
            self.begun = true;
            self.held = self.k.hold_signals();
        }
    }

    /// What a sleep's outcome means for a call that has moved bytes (`moved`) or not.
    pub(crate) fn after(&self, slept: Result<(), Fault>, moved: bool) -> Result<(), Fault> {
        let interrupted = slept == Err(Fault::Interrupted);
        if (interrupted || self.held.is_some()) && self.k.signal_ends(self.held, moved) {
            return Err(Fault::Interrupted);
        }
        if interrupted { Ok(()) } else { slept }
    }
}

impl<K: Kernel> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        if let Some(held) = self.held {
            self.k.release_signals(held);
        }
    }
}
