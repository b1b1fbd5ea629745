//! The registry of a prefix: the text that `regedit` imports to put us in and take us out.

/// Where a prefix says which DLLs to load instead of Wine's own.
pub const OVERRIDES: &str = r"HKCU\Software\Wine\DllOverrides";

/// Wine loads our Winsock DLL instead of its own where a prefix says so.
pub const PUT_IN: &str = r#"REGEDIT4

[HKEY_CURRENT_USER\Software\Wine\DllOverrides]
"ws2_32"="native,builtin"
"#;

/// Takes back what PUT_IN, the catalogs in our ws2_32.dll and inst_lsp have written. Wine itself makes only the empty key
/// `Catalog_Entries` here and never reads it.
pub const TAKE_OUT: &str = r#"REGEDIT4

[HKEY_CURRENT_USER\Software\Wine\DllOverrides]
"ws2_32"=-

[-HKEY_LOCAL_MACHINE\Software\Sockets-GM]

[-HKEY_LOCAL_MACHINE\Software\Wow6432Node\Sockets-GM]

[-HKEY_LOCAL_MACHINE\System\CurrentControlSet\Services\Winsock2\Parameters\Protocol_Catalog9\Catalog_Entries64]

[-HKEY_LOCAL_MACHINE\System\CurrentControlSet\Services\Winsock2\Parameters\Protocol_Catalog9\Catalog_Entries]

[HKEY_LOCAL_MACHINE\System\CurrentControlSet\Services\Winsock2\Parameters\Protocol_Catalog9\Catalog_Entries]

[HKEY_LOCAL_MACHINE\System\CurrentControlSet\Services\Winsock2\Parameters\Protocol_Catalog9]
"Journal"=-
"Journal32"=-
"Next_Catalog_Entry_ID"=-
"Num_Catalog_Entries"=-
"Num_Catalog_Entries64"=-
"Serial_Access_Num"=-
"#;

/// Windows that nobody looks at need no X server; only in a prefix of our own.
pub const NO_DISPLAY: &str = r#"REGEDIT4

[HKEY_CURRENT_USER\Software\Wine\Drivers]
"Graphics"="null"
"#;
