//! What the messages hold, so that a lost, repeated, reordered or foreign byte cannot pass for a fast one.
//!
//! A message is cut into strides of at most 4 KiB. Each stride begins with its number in the connection's stream (up
//! to 8 bytes, little-endian); the rest is a fixed body that depends on the offset in the stride. Checking the numbers
//! costs a load and a compare per stride, little enough for the timed part; warm-up and last message are checked whole.

use anyhow::{Result, ensure};

const MAX_STRIDE: usize = 4096;

/// The layout for one message size, and the name of the connection it belongs to.
#[derive(Clone, Copy)]
pub struct Pattern {
    size: usize,
    stride: usize,
    width: usize,
    base: u64,
}

impl Pattern {
    /// `size` must be at most 4 KiB or a multiple of it. `connection` is mixed into the numbers, so that a message which
    /// turns up on the wrong connection is noticed.
    pub fn new(size: usize, connection: u64) -> Self {
        let stride = size.min(MAX_STRIDE);
        assert!(
            size > 0 && size.is_multiple_of(stride),
            "size {size} is not a whole number of strides"
        );
        Self {
            size,
            stride,
            width: size.min(8),
            base: connection << 40,
        }
    }

    /// A message buffer with its body; `stamp` makes it a particular message.
    pub fn message(&self) -> Vec<u8> {
        (0..self.size).map(|i| body(i % self.stride)).collect()
    }

    /// Writes the numbers of message `index` (counted from 0) into `message`.
    #[inline]
    pub fn stamp(&self, message: &mut [u8], index: u64) {
        let first = index * (self.size / self.stride) as u64;
        for (stride, number) in message.chunks_exact_mut(self.stride).zip(first..) {
            stride[..self.width].copy_from_slice(&self.number(number)[..self.width]);
        }
    }

    #[inline]
    fn number(&self, stride: u64) -> [u8; 8] {
        self.base.wrapping_add(stride).to_le_bytes()
    }
}

fn body(offset: usize) -> u8 {
    ((offset as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// Follows one direction of a connection and knows which byte comes next.
pub struct Checker {
    pattern: Pattern,
    position: u64,
}

impl Checker {
    pub fn new(pattern: Pattern) -> Self {
        Self {
            pattern,
            position: 0,
        }
    }

    /// Checks the numbers in the next bytes of the stream, however they were cut.
    #[inline]
    pub fn numbers(&mut self, chunk: &[u8]) -> Result<()> {
        let Pattern { stride, width, .. } = self.pattern;
        let within = (self.position % stride as u64) as usize;
        let mut number = self.position / stride as u64;
        // Where the stride that holds the first byte began, relative to the chunk: zero or negative.
        let mut start = -(within as isize);
        while start < chunk.len() as isize {
            let from = start.max(0) as usize;
            let to = chunk.len().min((start + width as isize).max(0) as usize);
            if from < to {
                let skip = (from as isize - start) as usize;
                let expected = &self.pattern.number(number)[skip..skip + (to - from)];
                ensure!(
                    &chunk[from..to] == expected,
                    "wrong bytes at {} of the stream: {:02x?} instead of {expected:02x?}",
                    self.position + from as u64,
                    &chunk[from..to]
                );
            }
            start += stride as isize;
            number += 1;
        }
        self.position += chunk.len() as u64;
        Ok(())
    }

    /// Checks every byte.
    pub fn whole(&mut self, chunk: &[u8]) -> Result<()> {
        let Pattern { stride, width, .. } = self.pattern;
        for (&byte, position) in chunk.iter().zip(self.position..) {
            let offset = (position % stride as u64) as usize;
            if offset >= width {
                ensure!(
                    byte == body(offset),
                    "wrong byte at {position} of the stream: {byte:02x}"
                );
            }
        }
        self.numbers(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pattern: Pattern, messages: u64) -> Vec<u8> {
        let mut message = pattern.message();
        (0..messages)
            .flat_map(|i| {
                pattern.stamp(&mut message, i);
                message.clone()
            })
            .collect()
    }

    #[test]
    fn accepts_its_own_stream_however_it_is_cut() {
        for (size, cut) in [
            (1, 3),
            (64, 1),
            (64, 63),
            (64, 1000),
            (1024, 4096),
            (16384, 4095),
        ] {
            let pattern = Pattern::new(size, 5);
            let mut checker = Checker::new(pattern);
            for chunk in stream(pattern, 20).chunks(cut) {
                checker.whole(chunk).unwrap();
            }
        }
    }

    #[test]
    fn refuses_any_changed_byte() {
        let pattern = Pattern::new(64, 1);
        let good = stream(pattern, 4);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(
                Checker::new(pattern).whole(&bad).is_err(),
                "byte {at} changed and nothing was noticed"
            );
        }
    }

    #[test]
    fn numbers_notice_loss_repetition_and_the_wrong_connection() {
        let pattern = Pattern::new(8192, 1);
        let good = stream(pattern, 3);
        let mut repeated = good.clone();
        repeated.copy_within(0..4096, 4096);
        assert!(Checker::new(pattern).numbers(&repeated).is_err());
        assert!(Checker::new(pattern).numbers(&good[8..]).is_err());
        assert!(Checker::new(Pattern::new(8192, 2)).numbers(&good).is_err());
        assert!(Checker::new(pattern).numbers(&good).is_ok());
    }
}
