//! This process's node and port, opened at the first TCP socket; without them everything is plain.

use std::sync::OnceLock;

use gm::os::ProcessId;
use gm::{Node, Port};

pub struct Ctx {
    pub node: Node,
    pub port: Port,
}

static CTX: OnceLock<Option<Ctx>> = OnceLock::new();

/// The context, if the node can be used.
pub fn get() -> Option<&'static Ctx> {
    CTX.get_or_init(open).as_ref()
}

fn open() -> Option<Ctx> {
    if std::env::var_os("SGM_DISABLE").is_some_and(|v| v != "0" && !v.is_empty()) {
        return None;
    }
    let run = std::env::var("SGM_RUN")
        .ok()
        .and_then(|v| u64::from_str_radix(&v, 16).ok());
    let node = Node::open(&Node::dir_from_env()).ok()?;
    let port = Port::create(node.dir(), ProcessId::me(), run.unwrap_or(0)).ok()?;
    Some(Ctx { node, port })
}
