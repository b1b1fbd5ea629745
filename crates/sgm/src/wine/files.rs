//! Files that a prefix gets: compared by what is in them, replaced in one step.

use std::hash::Hasher;
use std::path::Path;

use anyhow::{Context, Result};

/// Machine numbers of a PE image (PE format, "Machine Types").
pub const I386: u16 = 0x14c;

/// The machine that a PE image is for.
pub fn machine(image: &[u8]) -> Option<u16> {
    let header = u32::from_le_bytes(image.get(0x3c..0x40)?.try_into().ok()?) as usize;
    let fields = image.get(header..header.checked_add(6)?)?;
    let machine = fields.strip_prefix(b"PE\0\0")?;
    Some(u16::from_le_bytes(machine.try_into().ok()?))
}

/// Is this a DLL that Wine put into the prefix, and not one that somebody installed over it? Wine marks its own.
pub fn is_wines(image: &[u8]) -> bool {
    image.get(0x40..).is_some_and(|rest| {
        rest.starts_with(b"Wine builtin DLL") || rest.starts_with(b"Wine placeholder DLL")
    })
}

/// A number for what is in a file. `None`: it can't be read.
pub fn fingerprint(path: &Path) -> Option<u64> {
    let bytes = std::fs::read(path).ok()?;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(&bytes);
    Some(hasher.finish())
}

/// Puts a copy of `from` at `to`. Programs that have the old one mapped keep it.
pub fn place(from: &Path, to: &Path) -> Result<()> {
    let copy = || -> std::io::Result<()> {
        if let Some(dir) = to.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let draft = to.with_extension(format!("new-{}", std::process::id()));
        std::fs::copy(from, &draft)?;
        std::fs::rename(&draft, to).inspect_err(|_| {
            let _ = std::fs::remove_file(&draft);
        })
    };
    copy().with_context(|| format!("can't put {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(machine: u16) -> Vec<u8> {
        let mut image = vec![0; 0x80];
        image[0x3c] = 0x80;
        image.extend(b"PE\0\0");
        image.extend(machine.to_le_bytes());
        image
    }

    #[test]
    fn the_machine_of_an_image_and_of_what_is_none() {
        assert_eq!(machine(&image(I386)), Some(I386));
        assert_eq!(machine(&image(0x8664)), Some(0x8664));
        assert_eq!(machine(&image(I386)[..0x84]), None);
        assert_eq!(machine(b"MZ"), None);
        let mut wild = image(I386);
        wild[0x3c..0x40].fill(0xff);
        assert_eq!(machine(&wild), None);
    }

    #[test]
    fn wines_own_dlls_are_known_by_their_mark() {
        let mut dll = image(0x8664);
        assert!(!is_wines(&dll));
        dll[0x40..0x50].copy_from_slice(b"Wine builtin DLL");
        assert!(is_wines(&dll));
        assert!(!is_wines(b"MZ"));
    }
}
