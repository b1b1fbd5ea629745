//! One line on a terminal that says what is being measured, gone before anything else is printed.

use std::io::{IsTerminal, Write};

pub struct Progress {
    on: bool,
}

impl Progress {
    /// Silent unless standard error is a terminal.
    pub fn new() -> Self {
        Self {
            on: std::io::stderr().is_terminal(),
        }
    }

    pub fn show(&self, text: &str) {
        if self.on {
            // To the start of the line, erase it, write.
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
        }
    }

    pub fn clear(&self) {
        self.show("");
    }
}
