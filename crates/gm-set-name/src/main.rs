//! `gm_set_name --host-name=NAME`: gives this node its name, as in GM.

fn main() {
    eprintln!("gm_set_name: not built yet");
    std::process::exit(1);
}
