//! `docs/compatibility.md`, from the table of interposed functions and the reasons.

use std::process::ExitCode;

use gm::Reason;

include!("../../preload/src/table.rs");

struct Row {
    name: &'static str,
    class: &'static str,
    text: &'static str,
}

macro_rules! rows {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty, $class:ident, $text:literal);*) => {
        const ROWS: &[Row] = &[$(Row { name: stringify!($name), class: stringify!($class), text: $text }),*];
    };
}
for_each_hook!(rows);

pub fn main() -> anyhow::Result<ExitCode> {
    print!("{}", text());
    Ok(ExitCode::SUCCESS)
}

fn text() -> String {
    let mut out = String::from(
        "# Compatibility\n\n<!-- Written by `sgm compat` from the table in crates/preload/src/table.rs. Do not edit. -->\n\n\
         Every libc function that `libsockets_gm.so` interposes, and what it does when the socket is carried. A function that is\n\
         not listed goes to the kernel's TCP socket, which is always there.\n\n\
         | function | class | on a carried connection |\n| --- | --- | --- |\n",
    );
    for r in ROWS {
        out += &format!("| `{}` | {} | {} |\n", r.name, r.class, r.text);
    }
    out += "\n## Reasons for plain TCP\n\n`sgm status` and `sgm run --explain` name one of these for every connection that is not carried.\n\n\
            | number | reason | meaning |\n| --- | --- | --- |\n";
    for r in Reason::ALL {
        out += &format!("| {} | `{}` | {} |\n", *r as u32, r.word(), r.text());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::ROWS;

    #[test]
    fn every_hook_has_a_text_and_stands_once() {
        for (i, a) in ROWS.iter().enumerate() {
            assert!(!a.text.is_empty() && !a.class.is_empty(), "{}", a.name);
            assert!(
                ROWS[i + 1..].iter().all(|b| a.name != b.name),
                "{} twice",
                a.name
            );
        }
    }
}
