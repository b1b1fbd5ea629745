//! The message layer: nodes, ports, segments.
//!
//! * A **node** is a directory on tmpfs, one per trust domain. Its registry file says who listens and which
//!   connections are offered for promotion ([`node`]).
//! * A **port** is a process's (and its forked children's) opening on the node: one file with an [`End`] per socket,
//!   its state and its counters ([`port`]).
//! * A **segment** is the shared memory of one promoted connection: two rings ([`segment`]).
//! * An **event queue** says which ends of one waiter have news ([`events`]).
//!
//! Rule of this crate: it uses `ring` and the operating system through [`os`], nothing above. Everything read from
//! shared files is checked; a broken file means "no node" and so plain TCP, never a failure of the host program.

#![allow(unsafe_code)] // Overlays on mapped files; every block says why the overlay is sound.

pub mod clock;
pub mod end;
pub mod events;
pub mod held;
pub mod name;
pub mod node;
pub mod note;
pub mod os;
pub mod port;
pub mod reason;
pub mod segment;
pub mod sweep;
pub mod trust;

pub use end::{End, Path, Role, State};
pub use events::EventQueue;
pub use node::Node;
pub use note::{Asked, Note};
pub use port::Port;
pub use reason::Reason;
pub use segment::Segment;
pub use trust::Distrust;

/// Why something of the node could not be used. Never shown by the front, always by `sgm doctor`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {path}: {error}")]
    Os {
        what: &'static str,
        path: String,
        error: std::io::Error,
    },
    #[error("{path}: {what}")]
    Unsound { path: String, what: &'static str },
    #[error("the table of {0} is full")]
    Full(&'static str),
    #[error("the node directory is out of reach")]
    OutOfReach,
}

impl Error {
    /// Why a connection for which this stood in the way is on plain TCP.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Os { error, .. } if os::is_limit(error) => Reason::Limit,
            Self::Os { error, .. } if os::is_out_of_reach(error) => Reason::NoNode,
            Self::Os { error, .. } if Distrust::of(error).is_some() => Reason::NoNode,
            Self::OutOfReach => Reason::NoNode,
            _ => Reason::NoMemory,
        }
    }

    /// Does it say that there is no such file, or nonsense in its place? Other errors tell of who asks.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Os { error, .. } => matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidInput
            ),
            Self::Unsound { .. } => true,
            Self::Full(_) | Self::OutOfReach => false,
        }
    }

    fn os(what: &'static str, path: &std::path::Path, error: std::io::Error) -> Self {
        Self::Os {
            what,
            path: path.display().to_string(),
            error,
        }
    }

    fn unsound(path: &std::path::Path, what: &'static str) -> Self {
        Self::Unsound {
            path: path.display().to_string(),
            what,
        }
    }
}
