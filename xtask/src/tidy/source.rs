//! Rules about source text: words, length, headers, conditions on the operating system, permission to use unsafe.

use super::{File, Finding, failure};

/// Words that may stand nowhere. One that starts with a slash is an absolute path and counts only where a path can
/// start: `/x/` is found in `see /x/y` but not in `a/x/y`.
pub fn forbidden_words(file: &File, words: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for (word, reason) in words {
            let found = line.match_indices(word).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !word.starts_with('/')
                    || !before.is_some_and(|c| c.is_alphanumeric() || "/._-~}$".contains(c))
            });
            if found {
                findings.push(failure(
                    &file.name,
                    index + 1,
                    format!("`{word}`: {reason}"),
                ));
            }
        }
    }
    findings
}

/// A Rust file over `fail` lines fails, over `warn` lines warns.
pub fn length(file: &File, warn: usize, fail: usize) -> Option<Finding> {
    let lines = file.text.lines().count();
    let text = format!("{}: {lines} lines; split it (limit {fail})", file.name);
    match lines {
        _ if lines > fail => Some(Finding::Failure(text)),
        _ if lines > warn => Some(Finding::Warning(text)),
        _ => None,
    }
}

/// A Rust file begins with `//!` text, after inner attributes at most; one that is only ever `included`, with `//` text.
pub fn header(file: &File, included: bool) -> Option<Finding> {
    let mark = if included { "//" } else { "//!" };
    let mut lines = file.text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with("#!["));
    let says_something = first
        .and_then(|line| line.strip_prefix(mark))
        .is_some_and(|text| !text.trim().is_empty());
    (!says_something).then(|| {
        failure(
            &file.name,
            1,
            format!("no `{mark}` header that says the file's purpose"),
        )
    })
}

/// A crate must take the workspace's lints; otherwise `unsafe_code = deny` does not reach it.
pub fn manifest(file: &File) -> Vec<Finding> {
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let has = |wanted: &[&str]| lines.windows(wanted.len()).any(|window| window == wanted);
    let mut findings = Vec::new();
    if file.name == "Cargo.toml" {
        if !lines.contains(&"unsafe_code = \"deny\"") {
            findings.push(failure(
                &file.name,
                1,
                "the workspace must say `unsafe_code = \"deny\"`",
            ));
        }
    } else if !has(&["[lints]", "workspace = true"]) {
        findings.push(failure(
            &file.name,
            1,
            "no `[lints] workspace = true`: the workspace's denials do not reach it",
        ));
    }
    findings
}

/// Unsafe code may be allowed in the listed places only.
pub fn unsafe_permission(file: &File, places: &[(&str, &str)]) -> Vec<Finding> {
    if places.iter().any(|(place, _)| file.name.starts_with(place)) {
        return Vec::new();
    }
    allows_unsafe(file)
        .map(|line| {
            failure(
                &file.name,
                line,
                "allows unsafe code, but is not in tidy's list of places that may",
            )
        })
        .collect()
}

/// The lines that allow unsafe code, counted from 1.
pub fn allows_unsafe(file: &File) -> impl Iterator<Item = usize> {
    file.text.lines().enumerate().filter_map(|(index, line)| {
        let line = without_comment(line);
        let allows = ["allow(", "expect("].iter().any(|start| {
            line.match_indices(start)
                .any(|(at, _)| parenthesised(&line[at + start.len()..]).contains("unsafe_code"))
        });
        (allows && line.trim_start().starts_with("#")).then_some(index + 1)
    })
}

/// Conditions on the operating system, in attributes, in `cfg!` and in a manifest's target tables.
pub fn os_conditions(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    let text: String = file
        .text
        .lines()
        .map(|line| without_comment(line).to_owned() + "\n")
        .collect();
    for start in ["cfg(", "cfg!(", "cfg_attr("] {
        for (at, _) in text.match_indices(start) {
            let condition = parenthesised(&text[at + start.len()..]);
            let words = condition.split(|c: char| !c.is_alphanumeric() && c != '_');
            for word in words
                .filter(|word| matches!(*word, "windows" | "unix" | "target_os" | "target_family"))
            {
                let line = text[..at].lines().count().max(1);
                findings.push(failure(
                    &file.name,
                    line,
                    format!("`{word}`: this layer knows no operating system"),
                ));
            }
        }
    }
    findings
}

/// The text up to the parenthesis that closes one opened just before it.
fn parenthesised(text: &str) -> &str {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    text
}

/// The line up to `//`. A `//` inside a string cuts too much, which no rule here minds.
fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> File {
        File {
            name: name.into(),
            text: text.into(),
        }
    }

    #[test]
    fn absolute_paths_count_only_where_a_path_starts() {
        let words = [("/secret/", "a path"), ("registry.example", "a host")];
        let count = |text: &str| forbidden_words(&file("a.md", text), &words).len();
        assert_eq!(count("cat /secret/x"), 1);
        assert_eq!(count("(`/secret/x`)"), 1);
        assert_eq!(
            count("PATH=/secret/x:/secret/y"),
            1,
            "one finding for a line"
        );
        assert_eq!(count("a/secret/x ./secret/x $HOME/secret/x"), 0);
        assert_eq!(
            count("https://registry.example/x\nhttps://registry.example"),
            2
        );
    }

    #[test]
    fn length_warns_before_it_fails() {
        let check = |lines: usize| length(&file("a.rs", &"x\n".repeat(lines)), 6, 8);
        assert_eq!(check(6), None);
        assert!(matches!(check(7), Some(Finding::Warning(_))));
        assert!(matches!(check(8), Some(Finding::Warning(_))));
        assert!(matches!(check(9), Some(Finding::Failure(_))));
    }

    #[test]
    fn a_header_comes_first_and_says_something() {
        let missing = |text: &str| header(&file("a.rs", text), false).is_some();
        assert!(!missing("//! Purpose.\nfn f() {}"));
        assert!(!missing("#![no_main]\n\n//! Purpose.\n"));
        assert!(missing("fn f() {}\n//! Late."));
        assert!(missing("//!\nfn f() {}"));
        assert!(missing(""));
        assert!(missing("// Purpose.\n"));
        assert_eq!(header(&file("a.rs", "// Purpose.\n"), true), None);
    }

    #[test]
    fn every_crate_takes_the_workspace_lints() {
        assert!(
            manifest(&file(
                "crates/a/Cargo.toml",
                "[package]\n[lints]\nworkspace = true\n"
            ))
            .is_empty()
        );
        assert_eq!(
            manifest(&file("crates/a/Cargo.toml", "[package]\n")).len(),
            1
        );
        assert!(
            manifest(&file(
                "Cargo.toml",
                "[workspace.lints.rust]\nunsafe_code = \"deny\"\n"
            ))
            .is_empty()
        );
        assert_eq!(manifest(&file("Cargo.toml", "[workspace]\n")).len(), 1);
    }

    #[test]
    fn unsafe_is_allowed_in_listed_places_only() {
        let places = [("crates/ring/", "atomics")];
        let count = |name: &str, text: &str| unsafe_permission(&file(name, text), &places).len();
        let text = "//! H\n#![allow(unsafe_code)] // why\n#[expect(dead_code, unsafe_code)]\n";
        assert_eq!(count("crates/ring/src/a.rs", text), 0);
        assert_eq!(count("crates/sgm/src/a.rs", text), 2);
        assert_eq!(
            count(
                "crates/sgm/src/a.rs",
                "#![deny(unsafe_code)]\n// #[allow(unsafe_code)]\n"
            ),
            0
        );
    }

    #[test]
    fn os_conditions_are_found_in_every_form() {
        let count = |text: &str| os_conditions(&file("a.rs", text)).len();
        assert_eq!(count("#[cfg(unix)]"), 1);
        assert_eq!(
            count("#[cfg(all(not(loom),\n    target_os = \"linux\"))]"),
            1
        );
        assert_eq!(count("if cfg!(windows) {}"), 1);
        assert_eq!(count("#[cfg_attr(unix, path = \"a.rs\")]"), 1);
        assert_eq!(count("[target.'cfg(windows)'.dependencies]"), 1);
        assert_eq!(
            count("#[cfg(loom)] mod windows; // cfg(unix) says nothing here"),
            0
        );
    }
}
