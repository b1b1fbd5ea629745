//! Which directory is trusted with a node. Whoever may write to its files reads and changes what its user's programs say to
//! each other, and can cut a mapped file short under them; so it must be out of everybody else's reach.

use std::io;
use std::path::Path;

/// Why a directory is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    #[error("it is not a directory (links are not followed)")]
    NotDirectory,
    #[error("it belongs to user {0}")]
    Owner(u32),
    #[error("its mode {0:o} lets others in")]
    Mode(u32),
    #[error("it has an access control list")]
    AccessList,
}

impl Distrust {
    /// Judges a directory of owner `owner` and mode `mode` for user `me`. Root may own it, because root gets at everything.
    pub fn judge(me: u32, owner: u32, mode: u32) -> Result<(), Self> {
        const TYPE: u32 = 0o170_000;
        const DIRECTORY: u32 = 0o040_000;
        const OTHERS: u32 = 0o077;
        if mode & TYPE != DIRECTORY {
            return Err(Self::NotDirectory);
        }
        if owner != me && owner != 0 {
            return Err(Self::Owner(owner));
        }
        if mode & OTHERS != 0 {
            return Err(Self::Mode(mode & 0o7777));
        }
        Ok(())
    }

    /// The reason in an error of the operating system layer, if it is one of these.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// What its user can do about it.
    pub fn way_out(self, dir: &Path) -> String {
        let dir = dir.display();
        let other = "or set SGM_DIR to a directory of yours with mode 700";
        match self {
            Self::NotDirectory | Self::Owner(_) => format!("remove {dir}, {other}"),
            // A sticky one is everybody's for a purpose.
            Self::Mode(mode) if mode & 0o1000 != 0 => other.trim_start_matches("or ").into(),
            // What others have put there meanwhile stays dangerous.
            Self::Mode(_) => format!("if nobody else has written there: chmod 700 {dir}, {other}"),
            Self::AccessList => format!("setfacl -b {dir} && chmod 700 {dir}, {other}"),
        }
    }
}

impl From<Distrust> for io::Error {
    fn from(why: Distrust) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_or_roots_and_nobody_else_let_in() {
        let dir = 0o040_000;
        assert_eq!(Distrust::judge(1000, 1000, dir | 0o700), Ok(()));
        assert_eq!(Distrust::judge(1000, 0, dir | 0o700), Ok(()));
        for (owner, mode, why) in [
            (1001, dir | 0o700, Distrust::Owner(1001)),
            (1000, dir | 0o701, Distrust::Mode(0o701)),
            (1000, dir | 0o710, Distrust::Mode(0o710)),
            (0, dir | 0o2770, Distrust::Mode(0o2770)),
            (1000, 0o100_600, Distrust::NotDirectory),
            (1000, 0o120_700, Distrust::NotDirectory),
        ] {
            assert_eq!(Distrust::judge(1000, owner, mode), Err(why));
            assert_eq!(Distrust::of(&why.into()), Some(why));
        }
        assert_eq!(
            Distrust::judge(0, 1000, dir | 0o700),
            Err(Distrust::Owner(1000))
        );
    }
}
