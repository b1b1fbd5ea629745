//! Gives the linker `exports.def`, and makes the list of thunks from it.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=exports.def");
    if env::var("CARGO_CFG_WINDOWS").is_err() {
        return;
    }
    let root = env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
    let out = env::var("OUT_DIR").expect("set by cargo");
    let def = Path::new(&root).join("exports.def");
    println!("cargo:rustc-cdylib-link-arg={}", def.display());
    let text = fs::read_to_string(&def).expect("exports.def is readable");
    let wide = env::var("CARGO_CFG_TARGET_POINTER_WIDTH").is_ok_and(|bits| bits == "64");
    fs::write(Path::new(&out).join("thunks.rs"), thunks(&text, wide)).expect("OUT_DIR is writable");
}

/// The names under "builtin", as a constant, and a jump through `TARGETS` for each. Symbols of 32-bit code have an underscore before
/// the name.
fn thunks(def: &str, wide: bool) -> String {
    let names: Vec<&str> = def
        .lines()
        .skip_while(|line| line.trim() != "; builtin")
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut rust = format!("const NAMES: [&std::ffi::CStr; {}] = [", names.len());
    for name in &names {
        write!(rust, "c\"{name}\", ").expect("writing to a string");
    }
    rust.push_str("];\ncore::arch::global_asm!(\n    \".text\",\n");
    for (i, name) in names.iter().enumerate() {
        let (symbol, jump) = match wide {
            true => (
                (*name).to_owned(),
                format!("qword ptr [rip + {{targets}} + {}]", 8 * i),
            ),
            false => (
                format!("_{name}"),
                format!("dword ptr [{{targets}} + {}]", 4 * i),
            ),
        };
        writeln!(
            rust,
            "    \".globl {symbol}\", \"{symbol}:\", \"jmp {jump}\","
        )
        .expect("writing to a string");
    }
    rust.push_str("    targets = sym TARGETS,\n);\n");
    rust
}
