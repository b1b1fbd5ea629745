//! Where things are: the built front, the sources of the test programs, scratch directories.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

/// The workspace's target directory: test binaries live in `target/<profile>/deps`.
pub fn target_dir() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own path");
    test.ancestors()
        .nth(3)
        .expect("a test binary is three levels below the target directory")
        .to_path_buf()
}

/// The sources of the test programs.
pub fn program_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

/// The built `sgm`, with the front beside it; `SGM_BIN` names another one, such as an installed one. Fails when it is not
/// there: a front that is silently missing proves nothing.
pub fn sgm() -> PathBuf {
    let sgm = env::var_os("SGM_BIN")
        .map(PathBuf::from)
        .unwrap_or_else(|| target_dir().join("release/sgm"));
    assert!(
        sgm.exists() && sgm.with_file_name("libsockets_gm.so").exists(),
        "no sgm or libsockets_gm.so in {}: cargo build --release -p sgm -p sgm-preload",
        sgm.parent().unwrap_or(&sgm).display()
    );
    sgm
}

/// A program of the system, or a failure that names the Debian package it comes in.
pub fn installed(name: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        // Version managers put shell scripts first in the path; the tests mean the system's own interpreter.
        .filter(|directory| !directory.ends_with("shims"))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: install the Debian package {package}"))
}

/// A directory that goes away with its owner.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A fresh directory below `parent`.
    pub fn below(parent: &Path) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = parent.join(format!("sgm-test-{}-{number}", std::process::id()));
        // A leftover of an earlier run whose process had the same number.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        Scratch(directory)
    }

    /// A fresh directory for files.
    pub fn new() -> Scratch {
        Scratch::below(&env::temp_dir())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tmpfs of a given size, unmounted at the end. Only root can mount one.
pub struct Tmpfs(Scratch);

impl Tmpfs {
    pub fn new(size: &str) -> Tmpfs {
        let small = Tmpfs(Scratch::new());
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "sgm-test"]);
        let status = mount.arg(small.path()).status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "mount -t tmpfs"
        );
        small
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
