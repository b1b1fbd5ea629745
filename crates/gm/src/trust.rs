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
    #[error(
        "its owner can't be told: this user namespace has no numbers for some users, and user {0} stands for all of them"
    )]
    Anybody(u32),
    #[error("it is not a plain file")]
    NotFile,
}

const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const OTHERS: u32 = 0o077;
const ROOT: u32 = 0;

/// Has each user a number of its own in the user namespace of this `/proc/PID/uid_map`? Else one number stands for all who
/// have none, and who has that one can't tell what is his from what is theirs.
pub fn maps_all(uid_map: &str) -> bool {
    uid_map
        .split_ascii_whitespace()
        .eq(["0", "0", "4294967295"])
}

impl Distrust {
    /// Judges a directory of owner `owner` and mode `mode` for user `me`. Root may own it, because root gets at everything.
    /// `is_anybody`: may this number be that of all users who have none here?
    pub fn judge(
        me: u32,
        owner: u32,
        mode: u32,
        is_anybody: impl FnOnce(u32) -> bool,
    ) -> Result<(), Self> {
        if mode & TYPE != DIRECTORY {
            return Err(Self::NotDirectory);
        }
        Self::judge_access(me, owner, mode, is_anybody)
    }

    /// The same of a file in it that is going to be mapped.
    pub fn judge_file(
        me: u32,
        owner: u32,
        mode: u32,
        is_anybody: impl FnOnce(u32) -> bool,
    ) -> Result<(), Self> {
        if mode & TYPE != FILE {
            return Err(Self::NotFile);
        }
        Self::judge_access(me, owner, mode, is_anybody)
    }

    fn judge_access(
        me: u32,
        owner: u32,
        mode: u32,
        is_anybody: impl FnOnce(u32) -> bool,
    ) -> Result<(), Self> {
        if owner != ROOT && is_anybody(owner) {
            return Err(Self::Anybody(owner));
        }
        if owner != me && owner != ROOT {
            return Err(Self::Owner(owner));
        }
        if mode & OTHERS != 0 {
            return Err(Self::Mode(mode & 0o7777));
        }
        Ok(())
    }

    /// The error of a file that is not to be trusted, in a directory that is: nonsense in its place, not a place out of reach.
    pub(crate) fn of_file(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, self)
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
            Self::NotDirectory => format!("remove {dir}, {other}"),
            // In a sticky directory, as /dev/shm, nobody else can remove it.
            Self::Owner(who) => format!(
                "set SGM_DIR to a directory of yours with mode 700, or have user {who} or root remove {dir}"
            ),
            // A sticky one is everybody's for a purpose.
            Self::Mode(mode) if mode & 0o1000 != 0 => other.trim_start_matches("or ").into(),
            // What others have put there meanwhile stays dangerous.
            Self::Mode(_) => format!("if nobody else has written there: chmod 700 {dir}, {other}"),
            Self::Anybody(_) => {
                "start the programs where every user has a number: outside of that user namespace, or in one whose uid_map \
                 names their user (unshare --map-current-user)"
                    .into()
            }
            Self::NotFile => format!("remove {dir}"),
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
        let judge = |me, owner, mode| Distrust::judge(me, owner, mode, |_| false);
        assert_eq!(judge(1000, 1000, dir | 0o700), Ok(()));
        assert_eq!(judge(1000, 0, dir | 0o700), Ok(()));
        for (owner, mode, why) in [
            (1001, dir | 0o700, Distrust::Owner(1001)),
            (1000, dir | 0o701, Distrust::Mode(0o701)),
            (1000, dir | 0o710, Distrust::Mode(0o710)),
            (0, dir | 0o2770, Distrust::Mode(0o2770)),
            (1000, 0o100_600, Distrust::NotDirectory),
            (1000, 0o120_700, Distrust::NotDirectory),
        ] {
            assert_eq!(judge(1000, owner, mode), Err(why));
            assert_eq!(Distrust::of(&why.into()), Some(why));
        }
        assert_eq!(judge(0, 1000, dir | 0o700), Err(Distrust::Owner(1000)));
    }

    #[test]
    fn a_number_that_stands_for_many_is_nobodys() {
        const ANYBODY: u32 = 65534;
        let is_anybody = |uid| uid == ANYBODY;
        for (me, owner, judged) in [
            (ANYBODY, ANYBODY, Err(Distrust::Anybody(ANYBODY))),
            (1000, ANYBODY, Err(Distrust::Anybody(ANYBODY))),
            (ANYBODY, 0, Ok(())),
            (1000, 1000, Ok(())),
        ] {
            let dir = Distrust::judge(me, owner, 0o040_700, is_anybody);
            assert_eq!(dir, judged, "{me} {owner}");
            let file = Distrust::judge_file(me, owner, 0o100_600, is_anybody);
            assert_eq!(file, judged, "{me} {owner}");
        }
    }

    #[test]
    fn a_file_is_judged_like_its_directory() {
        let judge = |owner, mode| Distrust::judge_file(1000, owner, mode, |_| false);
        assert_eq!(judge(1000, 0o100_600), Ok(()));
        assert_eq!(judge(0, 0o100_600), Ok(()));
        assert_eq!(judge(1001, 0o100_600), Err(Distrust::Owner(1001)));
        assert_eq!(judge(1000, 0o100_640), Err(Distrust::Mode(0o640)));
        assert_eq!(judge(1000, 0o100_602), Err(Distrust::Mode(0o602)));
        assert_eq!(judge(1000, 0o010_600), Err(Distrust::NotFile));
    }

    #[test]
    fn only_the_whole_range_maps_all() {
        assert!(maps_all("         0          0 4294967295\n"));
        for map in [
            "",
            "         0       1000          1\n",
            "         0       1000          1\n         1     100000      65536\n",
            "         0          0      65536\n",
        ] {
            assert!(!maps_all(map), "{map}");
        }
    }
}
