//! Links the unwinder in. As a library of its own it is one more for the loader to find and map in every program that is
//! started under the front, which takes about as long as everything else that the front does there.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let linker = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let asked = std::process::Command::new(linker)
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    let Ok(output) = asked else { return };
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // A linker that has none answers with the bare name: then it stays a library.
    if let Some(dir) = std::path::Path::new(&name).parent()
        && dir.is_absolute()
    {
        println!("cargo:rustc-link-search=native={}", dir.display());
        println!("cargo:rustc-link-lib=static:+whole-archive=gcc_eh");
    }
}
