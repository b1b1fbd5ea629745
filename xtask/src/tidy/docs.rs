//! Rules about the documents: every relative link leads to a file, and to a heading where it names one.

use super::{File, Finding, failure};

/// Checks the links of every Markdown file. `exists` answers for a path relative to the root.
pub fn links(files: &[File], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.name.ends_with(".md")) {
        for (line, target) in targets(&file.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            let wanted = if path.is_empty() {
                Some(file.name.clone())
            } else {
                resolve(&file.name, path)
            };
            let Some(wanted) = wanted.filter(|path| exists(path)) else {
                findings.push(failure(
                    &file.name,
                    line,
                    format!("the link to `{path}` leads nowhere"),
                ));
                continue;
            };
            let page = files
                .iter()
                .find(|file| file.name == wanted && wanted.ends_with(".md"));
            if !anchor.is_empty()
                && page.is_some_and(|page| !headings(&page.text).any(|slug| slug == anchor))
            {
                findings.push(failure(
                    &file.name,
                    line,
                    format!("`{wanted}` has no heading `#{anchor}`"),
                ));
            }
        }
    }
    findings
}

/// The link targets outside code, each with its line counted from 1: `[text](target)` and `[name]: target`.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in outside_fences(text) {
        let line = without_code(line);
        let mut rest = line.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let (target, tail) = after.split_once(')').unwrap_or((after, ""));
            found.extend(
                target
                    .split_whitespace()
                    .next()
                    .map(|target| (index, target.to_owned())),
            );
            rest = tail;
        }
        if let Some((_, target)) = line
            .strip_prefix('[')
            .and_then(|line| line.split_once("]: "))
        {
            found.extend(
                target
                    .split_whitespace()
                    .next()
                    .map(|target| (index, target.to_owned())),
            );
        }
    }
    found
}

/// Lines that are not within ``` fences, with their numbers from 1.
fn outside_fences(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        (!inside && !fence).then_some((index + 1, line))
    })
}

/// The line without its `code` spans.
fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return line.to_owned(); // an odd backtick is plain text
    }
    parts.into_iter().step_by(2).collect()
}

/// The anchors that the headings get where Markdown is shown: lower case, punctuation dropped, spaces to hyphens.
fn headings(text: &str) -> impl Iterator<Item = String> {
    outside_fences(text).filter_map(|(_, line)| {
        let title = line
            .starts_with('#')
            .then(|| line.trim_start_matches('#'))?;
        let kept = title
            .trim()
            .chars()
            .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        Some(
            kept.map(|c| {
                if c == ' ' {
                    '-'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect(),
        )
    })
}

/// `target` as seen from the file `from`, relative to the root; None when it leaves the repository.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Vec<Finding> {
        let files = [
            File {
                name: "docs/a.md".into(),
                text: text.into(),
            },
            File {
                name: "docs/b.md".into(),
                text: "# The title\n## What, and `why`?\n```\n# code\n```\n".into(),
            },
        ];
        links(&files, |path| {
            ["docs/a.md", "docs/b.md", "README.md", "crates/ring"].contains(&path)
        })
    }

    #[test]
    fn good_links_pass() {
        let text = "# Here\n[a](b.md) ![i](./b.md \"title\") [up](../README.md) [dir](../crates/ring/)\n\
                    [web](https://example.org/x) [self](#here) [h](b.md#what-and-why)\n\n[ref]: ../README.md\n";
        assert_eq!(check(text), []);
    }

    #[test]
    fn broken_links_are_found_with_their_line() {
        let findings = check("text\n[a](c.md) and [b](../../outside)\n[ref]: gone.md\n");
        assert_eq!(findings.len(), 3);
        assert_eq!(
            findings[0],
            failure("docs/a.md", 2, "the link to `c.md` leads nowhere")
        );
    }

    #[test]
    fn anchors_must_be_headings() {
        assert_eq!(check("[a](b.md#code)").len(), 1);
        assert_eq!(check("[a](#nowhere)").len(), 1);
        assert_eq!(check("[a](b.md#the-title)"), []);
    }

    #[test]
    fn code_holds_no_links() {
        assert_eq!(check("`[a](c.md)`\n```\n[a](c.md)\n```\n"), []);
        assert_eq!(check("`code` [a](c.md) `more`").len(), 1);
    }
}
