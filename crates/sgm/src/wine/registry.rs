//! The registry of a prefix: the text that `regedit` imports to put us in and take us out, and a look at user.reg.

/// Wine loads our Winsock DLL instead of its own where a prefix says so.
pub const PUT_IN: &str = r#"REGEDIT4

[HKEY_CURRENT_USER\Software\Wine\DllOverrides]
"ws2_32"="native,builtin"
"#;

/// Takes back what PUT_IN, the catalog in our ws2_32.dll and inst_lsp have written. Wine itself makes only the empty key
/// `Catalog_Entries` here and never reads it.
pub const TAKE_OUT: &str = r#"REGEDIT4

[HKEY_CURRENT_USER\Software\Wine\DllOverrides]
"ws2_32"=-

[-HKEY_LOCAL_MACHINE\Software\Sockets-GM]

[-HKEY_LOCAL_MACHINE\System\CurrentControlSet\Services\Winsock2\Parameters\Protocol_Catalog9\Catalog_Entries64]

[HKEY_LOCAL_MACHINE\System\CurrentControlSet\Services\Winsock2\Parameters\Protocol_Catalog9]
"Journal"=-
"Next_Catalog_Entry_ID"=-
"Num_Catalog_Entries64"=-
"Serial_Access_Num"=-
"#;

/// Windows that nobody looks at need no X server; only in a prefix of our own.
pub const NO_DISPLAY: &str = r#"REGEDIT4

[HKEY_CURRENT_USER\Software\Wine\Drivers]
"Graphics"="null"
"#;

/// What user.reg says about ws2_32: `"ws2_32"="..."` or `"*ws2_32"="..."` in the section of the overrides.
pub fn winsock_override(user_reg: &str) -> Option<&str> {
    let section = r"[Software\\Wine\\DllOverrides]";
    let lines = user_reg
        .lines()
        .skip_while(|line| !line.starts_with(section))
        .skip(1)
        .take_while(|line| !line.starts_with('['));
    for line in lines {
        if let Some((name, value)) = line.split_once('=') {
            let name = name.trim_matches('"').trim_start_matches('*');
            if name.eq_ignore_ascii_case("ws2_32") {
                return Some(value.trim_matches('"'));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_is_found_in_its_section_only() {
        let reg = |body: &str| {
            format!(
                "WINE REGISTRY Version 2\n\n[Software\\\\Wine\\\\DllOverrides] 17955\n#time=1dd\n{body}\n\n\
                 [Software\\\\Other]\n\"ws2_32\"=\"other\"\n"
            )
        };
        assert_eq!(winsock_override(&reg("\"atl\"=\"native\"")), None);
        let ours = reg("\"atl\"=\"native\"\n\"*WS2_32\"=\"native\"");
        assert_eq!(winsock_override(&ours), Some("native"));
        assert_eq!(winsock_override(""), None);
    }
}
