//! What is run: fetched and built by `tests/suites/prepare.sh`, kept in `target/suites`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};
use sgm_tests::paths::target_dir;

/// The directory that all of it is in.
pub fn cache() -> PathBuf {
    target_dir().join("suites")
}

/// Scripts and expectations of the repository.
pub fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("suites")
        .join(name)
}

/// The directory of one item of prepare.sh. The first call prepares all items, in parallel; later ones find them.
pub fn item(name: &str) -> PathBuf {
    static PREPARED: OnceLock<File> = OnceLock::new();
    PREPARED.get_or_init(prepare);
    let directory = cache().join("bin").join(name);
    assert!(directory.is_dir(), "prepare.sh knows no item {name}");
    directory
}

/// The lock is held as long as this process lives: two runs at once would take each other's prefixes away.
fn prepare() -> File {
    fs::create_dir_all(cache()).unwrap();
    let lock = File::create(cache().join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let status = Command::new("sh")
        .arg(repository("prepare.sh"))
        .arg(cache())
        .status()
        .unwrap();
    assert!(
        status.success(),
        "tests/suites/prepare.sh failed: its message is above"
    );
    lock
}
