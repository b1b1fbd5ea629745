//! What is run: fetched and built by `tests/suites/prepare.sh`, kept in `target/suites`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

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

/// The directory of one item of prepare.sh. The first call prepares all items.
pub fn item(name: &str) -> PathBuf {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        let mut script = Command::new("sh");
        script.arg(repository("prepare.sh")).arg(cache());
        let good = script.status().is_ok_and(|status| status.success());
        assert!(good, "tests/suites/prepare.sh failed: its message is above");
    });
    let directory = cache().join("bin").join(name);
    assert!(directory.is_dir(), "prepare.sh knows no item {name}");
    directory
}
