//! Registry keys, as little as the catalog and the installer need.
//!
//! Errors are Win32 codes, in `io::Error`. A value of another type or a length that does not fit its type reads as
//! absent: whatever somebody else wrote there, the caller has one case to think of.

use std::io;
use std::ptr;

use windows_sys::Win32::Foundation::{ERROR_FILE_NOT_FOUND, ERROR_MORE_DATA, ERROR_NO_MORE_ITEMS};
use windows_sys::Win32::System::Registry::{
    HKEY, HKEY_LOCAL_MACHINE, KEY_READ, KEY_WRITE, REG_BINARY, REG_DWORD, REG_OPTION_NON_VOLATILE,
    REG_SZ, RegCloseKey, RegCreateKeyExW, RegDeleteKeyW, RegDeleteTreeW, RegDeleteValueW,
    RegEnumKeyExW, RegOpenKeyExW, RegQueryValueExW, RegSetValueExW,
};

use crate::wide::{text, wide};

/// An open key; closed when dropped.
pub struct Key(HKEY);

// SAFETY: a key handle belongs to the process; the registry serves calls from all threads.
unsafe impl Send for Key {}
// SAFETY: as above.
unsafe impl Sync for Key {}

fn check(code: u32) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code as i32)),
    }
}

/// Whether the error says that the key or value is not there.
pub fn absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_FILE_NOT_FOUND as i32)
}

impl Key {
    /// Opens a key under HKEY_LOCAL_MACHINE for reading.
    pub fn open_machine(path: &str) -> io::Result<Self> {
        Self::open_in(HKEY_LOCAL_MACHINE, path, KEY_READ)
    }

    /// Opens a key under HKEY_LOCAL_MACHINE for reading and writing, and makes it if it is not there.
    pub fn create_machine(path: &str) -> io::Result<Self> {
        Self::create_in(HKEY_LOCAL_MACHINE, path)
    }

    /// Opens a subkey for reading.
    pub fn open(&self, path: &str) -> io::Result<Self> {
        Self::open_in(self.0, path, KEY_READ)
    }

    /// Opens a subkey for reading and writing, and makes it if it is not there.
    pub fn create(&self, path: &str) -> io::Result<Self> {
        Self::create_in(self.0, path)
    }

    fn open_in(parent: HKEY, path: &str, access: u32) -> io::Result<Self> {
        let mut key = ptr::null_mut();
        // SAFETY: a valid parent, a path that ends with a zero, room for one handle.
        check(unsafe { RegOpenKeyExW(parent, wide(path).as_ptr(), 0, access, &mut key) })?;
        Ok(Self(key))
    }

    fn create_in(parent: HKEY, path: &str) -> io::Result<Self> {
        let mut key = ptr::null_mut();
        // SAFETY: as in `open_in`; no class, default security, and nobody asks whether it was made.
        check(unsafe {
            RegCreateKeyExW(
                parent,
                wide(path).as_ptr(),
                0,
                ptr::null(),
                REG_OPTION_NON_VOLATILE,
                KEY_READ | KEY_WRITE,
                ptr::null(),
                &mut key,
                ptr::null_mut(),
            )
        })?;
        Ok(Self(key))
    }

    /// The value's type and bytes.
    fn get(&self, name: &str) -> io::Result<(u32, Vec<u8>)> {
        let name = wide(name);
        let mut room = 1024u32;
        // A value may be changed between two calls; it is not changed for long.
        for _ in 0..8 {
            let mut bytes = vec![0u8; room as usize];
            let mut kind = 0;
            let mut len = room;
            // SAFETY: the name ends with a zero, the buffer holds `len` bytes.
            let code = unsafe {
                RegQueryValueExW(
                    self.0,
                    name.as_ptr(),
                    ptr::null(),
                    &mut kind,
                    bytes.as_mut_ptr(),
                    &mut len,
                )
            };
            if code == ERROR_MORE_DATA {
                room = len.max(room.saturating_mul(2));
                continue;
            }
            check(code)?;
            bytes.truncate(len as usize);
            return Ok((kind, bytes));
        }
        check(ERROR_MORE_DATA).map(|()| (0, Vec::new()))
    }

    pub fn get_u32(&self, name: &str) -> Option<u32> {
        match self.get(name).ok()? {
            (REG_DWORD, bytes) => Some(u32::from_le_bytes(bytes.try_into().ok()?)),
            _ => None,
        }
    }

    pub fn get_binary(&self, name: &str) -> Option<Vec<u8>> {
        match self.get(name).ok()? {
            (REG_BINARY, bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn get_text(&self, name: &str) -> Option<String> {
        match self.get(name).ok()? {
            (REG_SZ, bytes) => {
                let (pairs, _) = bytes.as_chunks::<2>();
                let units: Vec<u16> = pairs.iter().map(|p| u16::from_le_bytes(*p)).collect();
                Some(text(&units))
            }
            _ => None,
        }
    }

    fn set(&self, name: &str, kind: u32, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let name = wide(name);
        // SAFETY: the name ends with a zero, the data is as long as said.
        check(unsafe { RegSetValueExW(self.0, name.as_ptr(), 0, kind, bytes.as_ptr(), len) })
    }

    pub fn set_u32(&self, name: &str, value: u32) -> io::Result<()> {
        self.set(name, REG_DWORD, &value.to_le_bytes())
    }

    pub fn set_binary(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.set(name, REG_BINARY, bytes)
    }

    pub fn set_text(&self, name: &str, value: &str) -> io::Result<()> {
        let bytes: Vec<u8> = wide(value).iter().flat_map(|u| u.to_le_bytes()).collect();
        self.set(name, REG_SZ, &bytes)
    }

    /// Deletes a value; one that is not there is deleted already.
    pub fn delete_value(&self, name: &str) -> io::Result<()> {
        // SAFETY: the name ends with a zero.
        let done = check(unsafe { RegDeleteValueW(self.0, wide(name).as_ptr()) });
        done.or_else(|e| if absent(&e) { Ok(()) } else { Err(e) })
    }

    /// Deletes a subkey that has no subkeys itself; one that is not there is deleted already.
    pub fn delete_key(&self, path: &str) -> io::Result<()> {
        // SAFETY: the path ends with a zero.
        let done = check(unsafe { RegDeleteKeyW(self.0, wide(path).as_ptr()) });
        done.or_else(|e| if absent(&e) { Ok(()) } else { Err(e) })
    }

    /// Deletes a subkey with all that is below it.
    pub fn delete_tree(&self, path: &str) -> io::Result<()> {
        // SAFETY: the path ends with a zero.
        let done = check(unsafe { RegDeleteTreeW(self.0, wide(path).as_ptr()) });
        done.or_else(|e| if absent(&e) { Ok(()) } else { Err(e) })
    }

    /// Names of the subkeys, sorted as text.
    pub fn subkeys(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for index in 0.. {
            // 255 characters are the longest name of a key.
            let mut name = [0u16; 256];
            let mut len = 256;
            // SAFETY: the buffer holds `len` characters; class and time are not asked for.
            let code = unsafe {
                RegEnumKeyExW(
                    self.0,
                    index,
                    name.as_mut_ptr(),
                    &mut len,
                    ptr::null(),
                    ptr::null_mut(),
                    ptr::null_mut(),
                    ptr::null_mut(),
                )
            };
            if code == ERROR_NO_MORE_ITEMS {
                break;
            }
            check(code)?;
            names.push(text(&name));
        }
        names.sort();
        Ok(names)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: our own handle, closed once.
        unsafe { RegCloseKey(self.0) };
    }
}
