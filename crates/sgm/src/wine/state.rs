//! What `sgm doctor` says about Wine; nothing where there is no Wine.

use super::files;
use super::places::{Programs, Width, Wine};
use super::prefix::{Prefix, Standing};
use crate::doctor::{Check, bad, good};

pub fn checks() -> Vec<Check> {
    let Ok(wine) = Wine::find() else {
        return Vec::new();
    };
    let mut checks = vec![loader(&wine)];
    match Programs::find() {
        Err(e) => checks.push(Check {
            // Who runs Linux programs alone has none.
            ok: true,
            ..bad("windows", e.to_string(), "cargo xtask build --windows")
        }),
        Ok(programs) => {
            checks.push(dlls(&programs));
            checks.push(prefix(&wine, &programs));
        }
    }
    checks
}

fn loader(wine: &Wine) -> Check {
    let shown = wine.loader.display();
    match (wine.version(), wine.winsock(Width::Bits64)) {
        (Some(version), Ok(_)) => good("wine", format!("{version}, {shown}")),
        (None, _) => bad(
            "wine",
            format!("{shown} does not start"),
            "install wine64 anew, or name another loader in WINELOADER",
        ),
        (_, Err(e)) => bad("wine", e.to_string(), "apt-get install wine64"),
    }
}

fn dlls(programs: &Programs) -> Check {
    let numbers: Vec<String> = Programs::FILES
        .iter()
        .filter(|file| file.ends_with(".dll"))
        .map(
            |file| match files::fingerprint(&programs.file(Width::Bits64, file)) {
                Some(number) => format!("{file} {:08x}", number >> 32),
                None => format!("{file} unreadable"),
            },
        )
        .collect();
    let narrow = match programs.are_for(Width::Bits32) {
        true => "32-bit ones in x86",
        false => "none for 32-bit programs",
    };
    let dir = programs.dir().display();
    good(
        "windows",
        format!("{dir}: {}; {narrow}", numbers.join(", ")),
    )
}

fn prefix(wine: &Wine, programs: &Programs) -> Check {
    let standing = Prefix::choose(None).and_then(|prefix| {
        let standing = prefix.standing(wine, programs)?;
        Ok((prefix.dir().display().to_string(), standing))
    });
    match standing {
        Err(e) => bad(
            "prefix",
            format!("{e:#}"),
            "sgm wine --prefix DIR -- PROGRAM",
        ),
        Ok((dir, standing)) => good(
            "prefix",
            match standing {
                Standing::Absent => format!("{dir} will be made by the first `sgm wine`"),
                Standing::Untouched => format!("{dir} has nothing of ours yet"),
                Standing::Outdated => {
                    format!("{dir} has other versions: the next `sgm wine` renews them")
                }
                Standing::Ready => format!("{dir} is ready"),
            },
        ),
    }
}
