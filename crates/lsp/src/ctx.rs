//! This process's node and port, opened at the first TCP socket; without them everything is plain.

use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;

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

/// The process ends: nobody but `sgm run` and `sgm wine`, which gather reports, wants its port's file any more. Other threads
/// are gone by now, with whatever locks they held, so this takes none.
fn leave() {
    let Some(Some(ctx)) = CTX.get() else { return };
    crate::overlapped::at_exit(ctx);
    if ctx.port.header().run.load(Relaxed) == 0 {
        gm::os::remove(ctx.port.path());
    }
}

unsafe extern "system" fn dll_main(_module: *mut c_void, reason: u32, at_exit: *mut c_void) -> i32 {
    const DLL_PROCESS_DETACH: u32 = 0;
    if reason == DLL_PROCESS_DETACH && !at_exit.is_null() {
        leave();
    }
    1
}

// The C runtime's entry point calls DllMain. A Rust function of this name would be exported.
#[cfg(target_pointer_width = "64")]
core::arch::global_asm!(".text", ".globl DllMain", "DllMain:", "jmp {}", sym dll_main);
#[cfg(target_pointer_width = "32")]
core::arch::global_asm!(".text", ".globl _DllMain@12", "_DllMain@12:", "jmp {}", sym dll_main);

fn open() -> Option<Ctx> {
    if std::env::var_os("SGM_DISABLE").is_some_and(|v| v != "0" && !v.is_empty()) {
        return None;
    }
    if let Some(calls) = gm::node::promote_calls_from_env() {
        sockets::promote_after(calls);
    }
    let run = std::env::var("SGM_RUN")
        .ok()
        .and_then(|v| u64::from_str_radix(&v, 16).ok());
    let node = Node::open(&Node::dir_from_env()).ok()?;
    let port = Port::create(node.dir(), ProcessId::me(), run.unwrap_or(0)).ok()?;
    Some(Ctx { node, port })
}
