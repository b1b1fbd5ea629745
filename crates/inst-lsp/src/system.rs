//! The calls: the catalog by documented WSC* functions, the DLL in the system directory, the registry key.

use std::io;
use std::path::{Path, PathBuf};
use std::{fs, ptr};

use spi::registry::{Key, absent};
use spi::{WSAPROTOCOL_INFOW, ids, lower, wide};
use windows_sys::Win32::Foundation::{WAIT_ABANDONED, WAIT_OBJECT_0};
use windows_sys::Win32::Networking::WinSock::{
    LSP_REDIRECTOR, ProviderInfoLspCategories, WSAEACCES, WSANO_RECOVERY,
    WSAPROTOCOL_INFOW as Info, WSCDeinstallProvider, WSCInstallProvider, WSCWriteProviderOrder,
    WSPUPCALLTABLE,
};
use windows_sys::Win32::Storage::FileSystem::{MOVEFILE_DELAY_UNTIL_REBOOT, MoveFileExW};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
use windows_sys::Win32::System::SystemInformation::GetSystemDirectoryW;
use windows_sys::Win32::System::Threading::{CreateMutexW, WaitForSingleObject};
use windows_sys::core::GUID;

use crate::{Exit, Report};

/// The fall-through's name beside `inst_lsp`.
const PLAIN_NAME: &str = "plain_lsp.dll";

fn wsa(what: &str, error: i32) -> Report {
    let text = match error {
        WSANO_RECOVERY => "the registry refused (administrator rights?)".to_owned(),
        code => io::Error::from_raw_os_error(code).to_string(),
    };
    let exit = if error == WSAEACCES {
        Exit::NoRights
    } else {
        Exit::Failed
    };
    Report::new(exit, format!("{what}: {text} (error {error})"))
}

/// A refusal for a file or registry error.
pub fn io_error(what: &str, error: &io::Error) -> Report {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Report::new(
            Exit::NoRights,
            format!("{what}: no rights; run inst_lsp as administrator"),
        ),
        _ => Report::new(Exit::Failed, format!("{what}: {error}")),
    }
}

/// Waits for another `inst_lsp` that is at work: the steps of two must not mix. The turn lasts as long as this process.
pub fn take_turn() -> Result<(), Report> {
    const PATIENCE_MS: u32 = 30_000;
    let name = wide::wide(r"Global\Sockets-GM.inst_lsp");
    // SAFETY: default security, a name that ends with a zero; the handle is left to the end of the process.
    let turn =
        unsafe { WaitForSingleObject(CreateMutexW(ptr::null(), 0, name.as_ptr()), PATIENCE_MS) };
    match turn {
        WAIT_OBJECT_0 | WAIT_ABANDONED => Ok(()),
        _ => Err(Report::new(Exit::Failed, "another inst_lsp is at work")),
    }
}

pub fn catalog() -> Result<Vec<Info>, Report> {
    lower::catalog().map_err(|e| wsa("reading the catalog", e))
}

/// A provider's DLL path; empty if it can't be had.
pub fn provider_path(provider: &GUID) -> String {
    lower::provider_path(provider, &WSPUPCALLTABLE::default()).unwrap_or_default()
}

/// Installs entries under one GUID, all with the bare name of the DLL as their path.
pub fn install(provider: &GUID, entries: &[WSAPROTOCOL_INFOW]) -> Result<(), Report> {
    let path = wide::wide(ids::DLL_NAME);
    let count = entries.len() as u32;
    let mut errno = 0;
    // SAFETY: living values, a string that ends with a zero, a list as long as said.
    match unsafe {
        WSCInstallProvider(provider, path.as_ptr(), entries.as_ptr(), count, &mut errno)
    } {
        0 => Ok(()),
        _ => Err(wsa("WSCInstallProvider", errno)),
    }
}

pub fn deinstall(provider: &GUID) -> Result<(), Report> {
    let mut errno = 0;
    // SAFETY: living values.
    match unsafe { WSCDeinstallProvider(provider, &mut errno) } {
        0 => Ok(()),
        _ => Err(wsa("WSCDeinstallProvider", errno)),
    }
}

pub fn write_order(mut ids: Vec<u32>) -> Result<(), Report> {
    // SAFETY: a list as long as said.
    match unsafe { WSCWriteProviderOrder(ids.as_mut_ptr(), ids.len() as u32) } {
        0 => Ok(()),
        error => Err(wsa("WSCWriteProviderOrder", error)),
    }
}

/// Says that the provider is a redirector, so that programs with a list of permitted categories can tell. Windows has
/// this since Vista; nothing depends on it, so a failure is none of ours.
pub fn categorize(provider: &GUID) {
    type Set = unsafe extern "system" fn(*const GUID, i32, *const u8, usize, u32, *mut i32) -> i32;
    type Found = unsafe extern "system" fn() -> isize;
    let name = wide::wide("ws2_32.dll");
    // SAFETY: names that end with a zero; the module is loaded, because this program imports it.
    let found = unsafe {
        GetProcAddress(
            GetModuleHandleW(name.as_ptr()),
            c"WSCSetProviderInfo".as_ptr().cast(),
        )
    };
    if let Some(found) = found {
        // SAFETY: ws2spi.h's signature of the function of that name.
        let set = unsafe { std::mem::transmute::<Found, Set>(found) };
        let bits = LSP_REDIRECTOR.to_ne_bytes();
        // SAFETY: living values; four bytes of categories.
        unsafe {
            set(
                provider,
                ProviderInfoLspCategories,
                bits.as_ptr(),
                4,
                0,
                &mut 0,
            )
        };
    }
}

/// Where programs find the fall-through.
pub fn system_dll() -> PathBuf {
    let mut dir = [0u16; 260];
    // SAFETY: the buffer is as long as said.
    unsafe { GetSystemDirectoryW(dir.as_mut_ptr(), dir.len() as u32) };
    Path::new(&wide::text(&dir)).join(ids::DLL_NAME)
}

/// The directory of this program.
pub fn own_dir() -> Result<PathBuf, Report> {
    let exe = std::env::current_exe().map_err(|e| io_error("inst_lsp's own path", &e))?;
    Ok(exe.parent().map(Path::to_owned).unwrap_or_default())
}

/// What lies at the fall-through's place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    Nothing,
    Ours,
    /// Ours, but not the one beside this program: an older one, or cut short.
    Other,
    Foreign,
}

pub fn installed_dll() -> Installed {
    let Ok(there) = fs::read(system_dll()) else {
        return Installed::Nothing;
    };
    let beside = own_dir()
        .ok()
        .and_then(|dir| fs::read(dir.join(PLAIN_NAME)).ok());
    // Every build of ours has its name in it; another's lsp.dll has not.
    let named = there
        .windows(ids::LSP_NAME.len())
        .any(|w| w == ids::LSP_NAME.as_bytes());
    match beside {
        Some(beside) if beside == there => Installed::Ours,
        Some(_) if named => Installed::Other,
        None if named => Installed::Ours,
        _ => Installed::Foreign,
    }
}

/// Copies the fall-through to its place; written beside it first, so that nobody loads half a DLL.
pub fn copy_dll() -> Result<(), Report> {
    let from = own_dir()?.join(PLAIN_NAME);
    let to = system_dll();
    let aside = to.with_extension("new");
    let copied = fs::copy(&from, &aside).and_then(|_| fs::rename(&aside, &to));
    copied.map_err(|error| {
        // Of no interest if it is not there.
        let _ = fs::remove_file(&aside);
        let what = format!("copying {} to {}", from.display(), to.display());
        io_error(&what, &error)
    })
}

/// Deletes the fall-through; `false` if a program has it loaded, and Windows will delete it at its next start.
pub fn delete_dll() -> Result<bool, Report> {
    let path = system_dll();
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => {
            let name = wide::wide(&path.to_string_lossy());
            // SAFETY: a string that ends with a zero; no new name means "delete".
            match unsafe { MoveFileExW(name.as_ptr(), ptr::null(), MOVEFILE_DELAY_UNTIL_REBOOT) } {
                0 => Err(io_error(&format!("deleting {}", path.display()), &error)),
                _ => Ok(false),
            }
        }
    }
}

pub fn install_dir() -> Option<String> {
    Key::open_machine(ids::REGISTRY_KEY)
        .ok()?
        .get_text(ids::INSTALL_DIR)
}

pub fn set_install_dir(dir: &Path) -> Result<(), Report> {
    let set = || {
        Key::create_machine(ids::REGISTRY_KEY)?.set_text(ids::INSTALL_DIR, &dir.to_string_lossy())
    };
    set().map_err(|e| io_error(r"writing HKLM\Software\Sockets-GM", &e))
}

pub fn delete_registry() -> Result<(), Report> {
    let delete = || match Key::open_machine("Software") {
        Ok(software) => software.delete_tree("Sockets-GM"),
        Err(e) if absent(&e) => Ok(()),
        Err(e) => Err(e),
    };
    delete().map_err(|e| io_error(r"deleting HKLM\Software\Sockets-GM", &e))
}
