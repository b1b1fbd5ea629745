//! Printing that a closed pipe or a full disk does not turn into a panic: who reads no more wants no more, and the exit status
//! is what counts. The macros take the place of the standard library's in this whole crate.

use std::fmt::Arguments;
use std::io::{ErrorKind, Result, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

macro_rules! print {
    ($($text:tt)*) => { $crate::out::to_output(format_args!($($text)*)) };
}
macro_rules! println {
    ($($text:tt)*) => { $crate::out::to_output(format_args!("{}\n", format_args!($($text)*))) };
}
macro_rules! eprint {
    ($($text:tt)*) => { $crate::out::to_errors(format_args!($($text)*)) };
}
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::out::to_errors(format_args!("{}\n", format_args!($($text)*))) };
}

/// Something was to be read, and could not be written.
static LOST: AtomicBool = AtomicBool::new(false);

fn note(written: Result<()>) {
    if written.is_err_and(|e| e.kind() != ErrorKind::BrokenPipe) {
        LOST.store(true, Relaxed);
    }
}

pub fn to_output(text: Arguments<'_>) {
    note(std::io::stdout().write_fmt(text));
}

/// The exit status of a command that would have this one.
pub fn finish(code: ExitCode) -> ExitCode {
    note(std::io::stdout().flush());
    if LOST.load(Relaxed) && code == ExitCode::SUCCESS {
        eprintln!("sgm: can't write what was asked for");
        return ExitCode::FAILURE;
    }
    code
}

/// A text in which names may be that others have given to files and programs: none of it moves a terminal's cursor, or begins a line.
pub fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| match c.is_control() {
            true => c.escape_default().to_string(),
            false => c.to_string(),
        })
        .collect()
}

pub fn to_errors(text: Arguments<'_>) {
    let _ = std::io::stderr().write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn control_characters_are_shown() {
        let text = harmless("node-v\u{1b}]0;x\u{7}\nok \u{9b}2J Zürich");
        assert_eq!(text, "node-v\\u{1b}]0;x\\u{7}\\nok \\u{9b}2J Zürich");
    }
}
