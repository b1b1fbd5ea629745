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
#[inline]
pub fn get() -> Option<&'static Ctx> {
    match CTX.get() {
        Some(c) => c.as_ref(),
        None => open(),
    }
}

/// The context, if it was opened before.
pub fn opened() -> Option<&'static Ctx> {
    CTX.get().and_then(Option::as_ref)
}

#[cold]
fn open() -> Option<&'static Ctx> {
    let saved = crate::errno();
    let ctx = CTX.get_or_init(|| {
        if std::env::var_os("SGM_DISABLE").is_some_and(|v| v != "0" && !v.is_empty()) {
            return None;
        }
        let dir = Node::dir_from_env();
        if let Some(calls) = gm::node::promote_calls_from_env() {
            sockets::promote_after(calls);
        }
        let run = std::env::var("SGM_RUN")
            .ok()
            .and_then(|v| u64::from_str_radix(&v, 16).ok());
        let node = Node::open(&dir).ok()?;
        let port = Port::create(&dir, ProcessId::me(), run.unwrap_or(0)).ok()?;
        crate::process::at_first_socket();
        Some(Ctx { node, port })
    });
    crate::set_errno(saved);
    ctx.as_ref()
}
