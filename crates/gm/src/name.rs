//! The node's name, as `gm_set_name` gives it: one line of text in the file `name` of the node directory.
//!
//! It is for people and for other hosts; nothing on this host is found by it. The file is replaced in one step, so that a
//! reader sees the old name or the new one, and it is checked on reading like everything else in the directory.

use std::path::Path;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use crate::{Error, os};

/// As GM's GM_MAX_HOST_NAME_LEN (128), which counts the terminating zero.
pub const NAME_MAX: usize = 127;

const FILE: &str = "name";

/// A host name or an IP address holds visible ASCII characters, and so is fit for any terminal.
pub fn is_sound(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic)
}

/// Gives the node in `dir` its name, making the directory if it is missing.
pub fn set(dir: &Path, name: &str) -> Result<(), Error> {
    let path = dir.join(FILE);
    if !is_sound(name.as_bytes()) {
        return Err(Error::unsound(
            &path,
            "a name has 1 to 127 visible ASCII characters",
        ));
    }
    os::ensure_dir(dir).map_err(|e| Error::os("node directory", dir, e))?;
    // Written under another name first: see the header.
    let draft = dir.join(format!("new-{:016x}", os::random()));
    let replace = || {
        let map = os::create_mapped(&draft, name.len())?;
        map.populate(0, name.len())?;
        // SAFETY: bytes, whatever they are.
        let bytes: &[AtomicU8] = unsafe { map.table(0, name.len()) }.unwrap_or_default();
        for (to, from) in bytes.iter().zip(name.bytes()) {
            to.store(from, Relaxed);
        }
        // Windows renames no file that is mapped.
        drop(map);
        std::fs::rename(&draft, &path)
    };
    replace().map_err(|e| {
        os::remove(&draft);
        Error::os("write", &path, e)
    })
}

/// The name of the node in `dir`, if it has one.
pub fn get(dir: &Path) -> Result<Option<String>, Error> {
    os::check_dir(dir).map_err(|e| Error::os("node directory", dir, e))?;
    let path = dir.join(FILE);
    let unsound = || Error::unsound(&path, "not a node's name");
    let map = match os::open_mapped(&path, 1, NAME_MAX) {
        Ok(map) => map,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => return Err(unsound()),
        Err(e) => return Err(Error::os("open", &path, e)),
    };
    // SAFETY: bytes, whatever they are.
    let bytes: &[AtomicU8] = unsafe { map.table(0, map.bytes()) }.unwrap_or_default();
    let name: Vec<u8> = bytes.iter().map(|b| b.load(Relaxed)).collect();
    if !is_sound(&name) {
        return Err(unsound());
    }
    String::from_utf8(name).map(Some).map_err(|_| unsound())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node directory of its own.
    struct Dir(std::path::PathBuf);

    impl Dir {
        fn new() -> Self {
            let dir = Dir(std::env::temp_dir().join(format!("sgm-name-{:016x}", os::random())));
            os::ensure_dir(&dir.0).unwrap();
            dir
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_name_is_kept_and_replaced_whole() {
        let dir = Dir::new();
        assert_eq!(get(&dir.0).unwrap(), None);
        set(&dir.0, "a-much-longer-name.example").unwrap();
        set(&dir.0, "10.0.0.7").unwrap();
        assert_eq!(get(&dir.0).unwrap().as_deref(), Some("10.0.0.7"));
        assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1, "no drafts");
    }

    #[test]
    fn a_name_that_no_terminal_should_see_is_refused_both_ways() {
        let dir = Dir::new();
        let long = "x".repeat(NAME_MAX + 1);
        for name in ["", "two words", "esc\u{1b}[2J", "zoë", &long] {
            assert!(set(&dir.0, name).is_err(), "{name:?}");
            std::fs::write(dir.0.join(FILE), name).unwrap();
            assert!(get(&dir.0).is_err(), "{name:?}");
        }
        set(&dir.0, &long[1..]).unwrap();
        assert_eq!(get(&dir.0).unwrap().unwrap().len(), NAME_MAX);
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_its_owners_and_no_link_is_followed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = Dir::new();
        set(&dir.0, "node").unwrap();
        let file = dir.0.join(FILE);
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let elsewhere = dir.0.join("elsewhere");
        std::fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(get(&dir.0).is_err());
    }
}
