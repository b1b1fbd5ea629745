//! UTF-16 strings as Windows wants them: ended by a zero, or in an array of fixed length.

/// `text` as UTF-16 with the terminating zero.
pub fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// The text before the first zero, or all of it if there is none; what is no UTF-16 becomes U+FFFD.
pub fn text(units: &[u16]) -> String {
    String::from_utf16_lossy(until_zero(units))
}

/// The units before the first zero.
pub fn until_zero(units: &[u16]) -> &[u16] {
    let end = units.iter().position(|u| *u == 0).unwrap_or(units.len());
    units.get(..end).unwrap_or(units)
}

/// Fills a fixed array with `text` and zeros; cut at a character if it is too long, so that the last unit stays zero.
pub fn fill(array: &mut [u16], text: &str) {
    array.fill(0);
    let mut room = array.len().saturating_sub(1);
    let mut at = 0;
    for c in text.chars() {
        if c.len_utf16() > room {
            return;
        }
        room -= c.len_utf16();
        let mut buf = [0; 2];
        for unit in c.encode_utf16(&mut buf) {
            if let Some(slot) = array.get_mut(at) {
                *slot = *unit;
            }
            at += 1;
        }
    }
}

/// `path` with `%SystemRoot%` and the like filled in, and a zero at the end; as it is if Windows can't.
#[cfg(windows)]
pub fn expand(path: &str) -> Vec<u16> {
    use windows_sys::Win32::System::Environment::ExpandEnvironmentStringsW;
    let path = wide(path);
    let mut room = 1024u32;
    for _ in 0..2 {
        let mut out = vec![0u16; room as usize];
        // SAFETY: `path` ends with a zero, `out` holds `room` characters.
        let used = unsafe { ExpandEnvironmentStringsW(path.as_ptr(), out.as_mut_ptr(), room) };
        if used == 0 {
            break;
        }
        if used <= room {
            out.truncate(used as usize);
            return out;
        }
        room = used;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        assert_eq!(text(&wide("lsp.dll")), "lsp.dll");
        assert_eq!(wide("")[..], [0]);
    }

    #[test]
    fn without_a_zero_all_of_it_counts() {
        assert_eq!(text(&[0x61, 0x62]), "ab");
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let mut array = [9u16; 4];
        fill(&mut array, "ab\u{1F600}");
        assert_eq!(array, [0x61, 0x62, 0, 0]);
        fill(&mut array, "a\u{1F600}b");
        assert_eq!(text(&array), "a\u{1F600}");
        fill(&mut [], "a");
    }
}
