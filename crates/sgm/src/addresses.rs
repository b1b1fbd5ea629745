//! Addresses of sockets that were not looked at for promotion: from the kernel's tables, by process and descriptor.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// The kernel's tables, each network namespace's read once.
#[derive(Default)]
pub struct Kernel {
    tables: HashMap<PathBuf, Table>,
}

/// Local and peer address by the socket's inode.
type Table = HashMap<u64, (SocketAddr, SocketAddr)>;

impl Kernel {
    /// Both addresses of the TCP socket at `fd` of process `pid`. `None`: it is none, is not connected, or is another
    /// user's.
    pub fn addresses(&mut self, pid: u32, fd: u32) -> Option<(SocketAddr, SocketAddr)> {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
        let name = link.to_str()?;
        let inode = name.strip_prefix("socket:[")?.strip_suffix(']')?;
        let namespace = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
        let table = self.tables.entry(namespace).or_insert_with(|| read(pid));
        let found = *table.get(&inode.parse().ok()?)?;
        (found.1.port() != 0).then_some(found)
    }
}

fn read(pid: u32) -> Table {
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|t| std::fs::read_to_string(format!("/proc/{pid}/net/{t}")).ok())
        .flat_map(|text| text.lines().skip(1).filter_map(line).collect::<Vec<_>>())
        .collect()
}

/// One line: number, local and peer address, ..., inode as the tenth word (proc(5)).
fn line(text: &str) -> Option<(u64, (SocketAddr, SocketAddr))> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = |i: usize| address(words.get(i)?);
    Some((words.get(9)?.parse().ok()?, (at(1)?, at(2)?)))
}

/// `0100007F:0050`: 32-bit words of the address as this machine stores them, in hexadecimal; the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .map(|i| u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok())
        .map(|w| w.map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let bytes = words.concat();
    let ip = match (
        <[u8; 4]>::try_from(&bytes[..]),
        <[u8; 16]>::try_from(&bytes[..]),
    ) {
        (Ok(v4), _) => IpAddr::V4(Ipv4Addr::from(v4)),
        (_, Ok(v6)) => {
            let v6 = Ipv6Addr::from(v6);
            v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Kernel, address};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn an_address_is_read_as_the_kernel_writes_it() {
        let text = |a: &str| address(a).map(|a| a.to_string());
        if cfg!(target_endian = "little") {
            assert_eq!(text("0100007F:1F90").as_deref(), Some("127.0.0.1:8080"));
            let mapped = "0000000000000000FFFF00000100007F:0050";
            assert_eq!(text(mapped).as_deref(), Some("127.0.0.1:80"));
            let six = "00000000000000000000000001000000:0050";
            assert_eq!(text(six).as_deref(), Some("[::1]:80"));
        }
        for broken in [
            "",
            ":",
            "0100007F",
            "01:0050",
            "0100007Z:0050",
            "é100007F:0050",
        ] {
            assert_eq!(text(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let me = std::process::id();
            let mut kernel = Kernel::default();
            assert_eq!(
                kernel.addresses(me, ours.as_raw_fd() as u32),
                Some((ours.local_addr().unwrap(), ours.peer_addr().unwrap()))
            );
            assert_eq!(kernel.addresses(me, listener.as_raw_fd() as u32), None);
            assert_eq!(kernel.addresses(me, u32::MAX), None);
        }
    }
}
