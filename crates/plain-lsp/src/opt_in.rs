//! Who gets the real provider: a program started with `SGM_LSP=1`, and one that `programs.txt` names.
//!
//! `%ProgramData%\Sockets-GM\programs.txt` has one program a line: a file name (`node.exe`, wherever it lies) or a path,
//! which may use `%variables%`. `#` starts a comment. `SGM_LSP=0` keeps a named program on the fall-through.

/// What `SGM_LSP` says; anything but 0 and 1 says nothing.
fn by_environment(value: Option<&str>) -> Option<bool> {
    match value? {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

/// Whether a line of `list` names the program at `path`. `expand` fills in a line's `%variables%`.
fn named(path: &str, list: &str, expand: impl Fn(&str) -> String) -> bool {
    let path = plain(path);
    let file = path.rsplit('\\').next().unwrap_or_default();
    let names_it = |line: &str| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let line = plain(&expand(line));
        !line.is_empty() && (line == file || line == path)
    };
    list.trim_start_matches('\u{FEFF}').lines().any(names_it)
}

/// One spelling for all that Windows takes for the same path.
fn plain(path: &str) -> String {
    let path = path.strip_prefix(r"\\?\").unwrap_or(path);
    path.replace('/', r"\").to_lowercase()
}

#[cfg(windows)]
pub use windows::real_provider;

#[cfg(windows)]
mod windows {
    use std::ffi::c_void;
    use std::io::Read;
    use std::path::Path;
    use std::sync::OnceLock;

    use spi::lower::Module;
    use spi::registry::Key;
    use spi::{ids, wide};
    use windows_sys::Win32::Networking::WinSock::{
        WSAPROTOCOL_INFOW, WSPPROC_TABLE, WSPUPCALLTABLE,
    };

    use super::{by_environment, named};

    /// More than any list needs, so that a wrong file costs no memory.
    const LIST_BYTES: u64 = 1 << 20;

    /// The table of the real provider, started for `info`; `None` if the program is not opted in, or if it fails.
    pub fn real_provider(
        info: &WSAPROTOCOL_INFOW,
        upcalls: &WSPUPCALLTABLE,
    ) -> Option<WSPPROC_TABLE> {
        static REAL: OnceLock<Option<Module>> = OnceLock::new();
        let real = REAL.get_or_init(|| if wanted() { load() } else { None });
        real.as_ref()?.start(info, upcalls).ok()
    }

    fn wanted() -> bool {
        let value = std::env::var("SGM_LSP").ok();
        by_environment(value.as_deref()).unwrap_or_else(|| listed().unwrap_or(false))
    }

    fn listed() -> Option<bool> {
        let program = std::env::current_exe().ok()?;
        let data = std::env::var_os("ProgramData")?;
        let list = Path::new(&data).join("Sockets-GM").join("programs.txt");
        let mut bytes = Vec::new();
        let file = std::fs::File::open(list).ok()?;
        file.take(LIST_BYTES).read_to_end(&mut bytes).ok()?;
        let expand = |line: &str| wide::text(&wide::expand(line));
        let list = String::from_utf8_lossy(&bytes);
        Some(named(program.to_str()?, &list, expand))
    }

    /// The real `lsp.dll` from the directory that `inst_lsp` registered.
    fn load() -> Option<Module> {
        let key = Key::open_machine(ids::REGISTRY_KEY).ok()?;
        let dir = key.get_text(ids::INSTALL_DIR)?;
        let path = Path::new(&dir).join(ids::DLL_NAME);
        // A relative path would be looked for in whatever directory the program is in.
        if !path.is_absolute() {
            return None;
        }
        let real = Module::load(&wide::wide(path.to_str()?)).ok()?;
        // Registered is the system directory, and the "real" one is ourselves: starting it would come back here.
        let this: fn() -> Option<Module> = load;
        (!real.holds(this as *const c_void)).then_some(real)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> bool {
        named(r"C:\Tools\Echo.exe", list, |line| {
            line.replace("%T%", r"c:\tools")
        })
    }

    #[test]
    fn by_file_name_or_path() {
        assert!(names("echo.exe"));
        assert!(names("node.exe\r\n  ECHO.EXE  # ours\r\n"));
        assert!(names(r"c:\tools\echo.exe"));
        assert!(names("C:/Tools/Echo.exe"));
        assert!(names(r"%T%\echo.exe"));
        assert!(names("\u{FEFF}echo.exe"));
    }

    #[test]
    fn nobody_else() {
        assert!(!names(""));
        assert!(!names("\n\n#echo.exe\n"));
        assert!(!names("echo"));
        assert!(!names(r"tools\echo.exe"));
        assert!(!names(r"d:\tools\echo.exe"));
        assert!(!named("", "#\n\n", str::to_owned));
    }

    #[test]
    fn the_environment_decides_first() {
        assert_eq!(by_environment(Some("1")), Some(true));
        assert_eq!(by_environment(Some("0")), Some(false));
        assert_eq!(by_environment(Some("yes")), None);
        assert_eq!(by_environment(None), None);
    }
}
