//! Where things lie: Wine's loader, its own Winsock DLL, and the Windows programs of this project.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::missing;

/// How wide the addresses of a Windows program are. Wine serves both, from one prefix, where its 32-bit part is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Bits64,
    Bits32,
}

/// Wine as it is installed here.
pub struct Wine {
    pub loader: PathBuf,
}

impl Wine {
    /// The one that WINELOADER names, else Debian's 64-bit loader, else what PATH has.
    pub fn find() -> Result<Wine> {
        let named = std::env::var_os("WINELOADER").map(PathBuf::from);
        let debian = Some(PathBuf::from("/usr/lib/wine/wine64"));
        let found = [named, debian, on_path("wine64"), on_path("wine")]
            .into_iter()
            .flatten()
            .find(|file| file.is_file());
        match found {
            Some(loader) => Ok(Wine { loader }),
            None => missing(
                "Wine is not installed",
                "install it (Debian, Ubuntu: apt-get install wine64), or name its loader in WINELOADER",
            ),
        }
    }

    /// A command that runs Wine on a prefix, quietly unless the user wants its messages.
    pub fn command(&self, prefix: &Path) -> Command {
        let mut command = Command::new(&self.loader);
        command.env("WINEPREFIX", prefix);
        if std::env::var_os("WINEDEBUG").is_none() {
            command.env("WINEDEBUG", "-all");
        }
        command
    }

    /// The program that ends a prefix's processes: the one that WINESERVER names, else the loader's neighbour, else PATH's.
    pub fn server(&self) -> Option<PathBuf> {
        let named = std::env::var_os("WINESERVER").map(PathBuf::from);
        let beside = |name| Some(self.loader.with_file_name(name));
        [
            named,
            beside("wineserver64"),
            beside("wineserver"),
            on_path("wineserver"),
        ]
        .into_iter()
        .flatten()
        .find(|file| file.is_file())
    }

    /// As `wine --version` says it.
    pub fn version(&self) -> Option<String> {
        let output = Command::new(&self.loader)
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    }

    /// Wine's own ws2_32.dll.
    pub fn winsock(&self, width: Width) -> Result<PathBuf> {
        let candidates = winsock_candidates(&self.loader, width);
        if let Some(file) = candidates.iter().find(|file| file.is_file()) {
            return Ok(file.clone());
        }
        let loader = self.loader.display();
        let (bits, package) = match width {
            Width::Bits64 => (64, "wine64"),
            Width::Bits32 => (32, "wine32"),
        };
        missing(
            &format!("{loader} has no {bits}-bit ws2_32.dll near it"),
            &format!(
                "install Wine's {bits}-bit part (Debian, Ubuntu: {package}), or name another loader in WINELOADER"
            ),
        )
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Every layout that distributions use, by the loader's place: `<p>/bin/wine64` or `<p>/lib/wine/wine64`.
fn winsock_candidates(loader: &Path, width: Width) -> Vec<PathBuf> {
    let real = loader.canonicalize().unwrap_or_else(|_| loader.into());
    let (libs, dll) = match width {
        Width::Bits64 => (
            ["lib64/wine", "lib/x86_64-linux-gnu/wine"],
            "x86_64-windows/ws2_32.dll",
        ),
        Width::Bits32 => (
            ["lib32/wine", "lib/i386-linux-gnu/wine"],
            "i386-windows/ws2_32.dll",
        ),
    };
    let mut found = Vec::new();
    for tree in real.ancestors().skip(1).take(3) {
        for lib in libs.into_iter().chain(["lib/wine", "wine"]) {
            found.push(tree.join(lib).join(dll));
        }
    }
    found
}

/// The Windows programs of this project: a directory `windows` beside `sgm`, or in the lib directory next to it; in `x86` below it
/// those for 32-bit programs, if they were built.
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// The files that a prefix gets.
    pub const FILES: [&str; 5] = [
        "ws2_32.dll",
        "lsp.dll",
        "plain_lsp.dll",
        "inst_lsp.exe",
        "gm_set_name.exe",
    ];

    pub fn find() -> Result<Programs> {
        let exe = std::env::current_exe().context("where am I?")?;
        let bin = exe.parent().unwrap_or(Path::new("."));
        let places = [bin.join("windows"), bin.join("../lib/sockets-gm/windows")];
        match places.iter().find(|dir| is_whole(dir)) {
            Some(dir) => Ok(Programs {
                dir: dir.canonicalize()?,
            }),
            None => missing(
                &format!(
                    "{} or others are not in {}",
                    Self::FILES[0],
                    places[0].display()
                ),
                "build them with `cargo xtask build --windows`",
            ),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Are there those for programs of this width?
    pub fn are_for(&self, width: Width) -> bool {
        is_whole(&self.dir_for(width))
    }

    fn dir_for(&self, width: Width) -> PathBuf {
        match width {
            Width::Bits64 => self.dir.clone(),
            Width::Bits32 => self.dir.join("x86"),
        }
    }

    pub fn file(&self, width: Width, name: &str) -> PathBuf {
        self.dir_for(width).join(name)
    }
}

fn is_whole(dir: &Path) -> bool {
    Programs::FILES.iter().all(|file| dir.join(file).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn winsock_is_looked_for_in_every_known_layout() {
        let reaches = |loader: &str, dll: &str| {
            let width = match dll.contains("i386-windows") {
                true => Width::Bits32,
                false => Width::Bits64,
            };
            winsock_candidates(Path::new(loader), width).contains(&PathBuf::from(dll))
        };
        for (loader, dll) in [
            (
                "/nowhere/lib/wine/wine64",
                "/nowhere/lib/x86_64-linux-gnu/wine/x86_64-windows/ws2_32.dll",
            ),
            (
                "/nowhere/lib/wine/wine64",
                "/nowhere/lib/i386-linux-gnu/wine/i386-windows/ws2_32.dll",
            ),
            (
                "/nowhere/bin/wine64",
                "/nowhere/lib64/wine/x86_64-windows/ws2_32.dll",
            ),
            (
                "/nowhere/bin/wine",
                "/nowhere/lib/wine/x86_64-windows/ws2_32.dll",
            ),
            (
                "/opt/wine-none/bin/wine64",
                "/opt/wine-none/lib64/wine/x86_64-windows/ws2_32.dll",
            ),
        ] {
            assert!(reaches(loader, dll), "{loader} does not lead to {dll}");
        }
    }
}
