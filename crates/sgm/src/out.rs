//! Printing that a closed pipe or a full disk does not turn into a panic: who reads no more wants no more, and the exit status
//! is what counts. The macros take the place of the standard library's in this whole crate.

use std::fmt::Arguments;
use std::io::Write;

pub fn to_output(text: Arguments<'_>) {
    let _ = std::io::stdout().write_fmt(text);
}

pub fn to_errors(text: Arguments<'_>) {
    let _ = std::io::stderr().write_fmt(text);
}

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
