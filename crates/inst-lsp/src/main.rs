//! `inst_lsp`: installs, removes, lists and repairs the layered service provider.

fn main() {
    eprintln!("inst_lsp: not built yet");
    std::process::exit(1);
}
