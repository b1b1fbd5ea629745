//! The names under which Sockets-GM stands in the catalog and in the registry: who installs and who loads agree on these.

use windows_sys::core::GUID;

/// The hidden layered-protocol entry (`ChainLen` 0): its catalog id is *our* id in every chain.
pub const DUMMY_PROVIDER: GUID = GUID::from_u128(0x5f2b_6a01_93c7_4c0e_8f3d_1d8c_52ae_7701);

/// All protocol chains of ours. One GUID for all of them, so that one documented call installs or removes them at once.
pub const CHAIN_PROVIDER: GUID = GUID::from_u128(0x5f2b_6a01_93c7_4c0e_8f3d_1d8c_52ae_7702);

/// The DLL path in the catalog. A bare name: `LoadLibrary` looks in the program's own directory first, so a copy of
/// `lsp.dll` beside a program opts that program in; everybody else gets the fall-through in the system directory.
pub const DLL_NAME: &str = "lsp.dll";

/// Protocol name of the hidden entry, and prefix of the chains' names.
pub const LSP_NAME: &str = "Sockets-GM";

/// Registry key under HKEY_LOCAL_MACHINE, and the value in it that names the directory of the real `lsp.dll`.
pub const REGISTRY_KEY: &str = r"Software\Sockets-GM";
pub const INSTALL_DIR: &str = "InstallDir";

/// Whether two GUIDs are the same; windows-sys gives GUID no `PartialEq`.
pub fn same_guid(a: &GUID, b: &GUID) -> bool {
    (a.data1, a.data2, a.data3, a.data4) == (b.data1, b.data2, b.data3, b.data4)
}
