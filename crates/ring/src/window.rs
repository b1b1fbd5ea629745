//! How much may be unread in a ring: less than it holds, where programs chose the sizes of their buffers.

use crate::stream::{Rx, Tx};
use crate::sync::Ordering::Relaxed;

impl Tx<'_> {
    /// How many bytes may be unread in the ring.
    #[inline]
    pub fn window(&self) -> u64 {
        self.direction.window(self.bytes.capacity())
    }

    /// The sending program chose this size for its buffer; 0: it did not.
    pub fn set_send_buffer(&self, bytes: u32) {
        self.direction.writer.send_buffer.store(bytes, Relaxed);
    }
}

impl Rx<'_> {
    /// The size of this end's receive buffer: what a writer with a buffer of its own may count on as well. It sees that
    /// when it next runs out of room.
    pub fn set_receive_buffer(&self, bytes: u32) {
        self.direction.wait.receive_buffer.store(bytes, Relaxed);
    }

    pub fn receive_buffer(&self) -> u32 {
        self.direction.wait.receive_buffer.load(Relaxed)
    }

    /// Has the writer a buffer of its own?
    #[inline]
    pub fn has_chosen_window(&self) -> bool {
        self.direction.writer.send_buffer.load(Relaxed) != 0
    }
}
