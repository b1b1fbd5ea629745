//! Programs that refuse to run as root, such as PostgreSQL: they, and whoever talks to them over rings, run as one other user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::paths;
use crate::process::Started;

/// Another user than root, to whom a world's directories belong.
pub struct OtherUser {
    name: String,
    /// Where the user can read the front: the repository may lie where only root gets in.
    front: PathBuf,
}

impl OtherUser {
    /// Gives `scratch` and `node` to the user, and puts a copy of the front into `scratch`.
    pub fn new(name: &str, scratch: &Path, node: Option<&Path>) -> OtherUser {
        let front = scratch.join("front");
        fs::create_dir(&front).unwrap();
        if node.is_some() {
            let sgm = paths::sgm();
            for file in [sgm.clone(), sgm.with_file_name("libsockets_gm.so")] {
                fs::copy(&file, front.join(file.file_name().unwrap())).unwrap();
            }
        }
        let status = Command::new("chown")
            .args(["-R", &format!("{name}:")])
            .arg(scratch)
            .args(node)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "no user {name}"
        );
        OtherUser {
            name: name.to_string(),
            front,
        }
    }

    /// `command`, run as the user.
    pub fn command(&self, command: &Command) -> Command {
        let mut changed = Started::command(paths::installed("setpriv", "util-linux"));
        let program = command.get_program();
        changed
            .args(["--reuid", &self.name, "--regid", &self.name])
            .args(["--init-groups", "--"]);
        if program == paths::sgm() {
            changed.arg(self.front.join("sgm"));
        } else {
            changed.arg(program);
        }
        Started::pass_on(command, &mut changed);
        changed
    }
}
