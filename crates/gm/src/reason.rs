//! Why a connection is on plain TCP. Stable numbers and names: scripts and `docs/compatibility.md` quote them.

macro_rules! reasons {
    ($($name:ident = $n:literal, $word:literal, $text:literal;)*) => {
        /// See the table in `docs/compatibility.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason { $($name = $n),* }

        impl Reason {
            /// Every reason, in order of its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),*];

            pub fn from_number(n: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|r| *r as u32 == n)
            }

            /// The stable word, for scripts.
            pub fn word(self) -> &'static str {
                match self { $(Reason::$name => $word),* }
            }

            /// One sentence for people.
            pub fn text(self) -> &'static str {
                match self { $(Reason::$name => $text),* }
            }
        }
    };
}

reasons! {
    None = 0, "none", "Carried, or nothing to say yet.";
    Short = 1, "short", "Too few messages so far: promotion would cost more than it brings.";
    PeerNotOurs = 2, "peer-not-ours", "No process is known to listen at the peer's address with Sockets-GM and this node directory.";
    PeerNotLocal = 3, "peer-not-local", "The peer is on another host.";
    NotClaimed = 4, "not-claimed", "An offer was not taken for seconds and many calls: the server became another user, shares the connection among processes, or makes calls that Sockets-GM does not see.";
    NotOffered = 5, "not-offered", "The connecting end offered no ring: for it the connection was too short or not worth one, or it has no Sockets-GM or another node directory.";
    NoNode = 6, "no-node", "The node directory cannot be used (see `sgm doctor`), or not any more: the program became another user, or went into another root or mount namespace.";
    NoMemory = 7, "no-memory", "No shared memory for a ring: the tmpfs is full, or a 32-bit program has no addresses left.";
    TableFull = 8, "table-full", "Too many sockets for the port's or the node's tables.";
    Shared = 9, "shared", "Several processes hold this end, so it was not promoted.";
    UnseenCalls = 10, "unseen-calls", "Bytes went over the descriptor by calls that Sockets-GM did not see.";
    Unsupported = 11, "unsupported-call", "A call that is not carried was made on the connection, so it went back to TCP.";
    Corrupt = 12, "corrupt", "The peer's shared words contradict each other: the connection was reset.";
    Shutdown = 13, "shutdown", "A direction was shut down before promotion.";
    Option = 14, "option", "A socket option asks for kernel TCP (for example SO_RCVLOWAT, TCP_ULP, SO_ZEROCOPY).";
    Handed = 15, "handed-over", "The descriptor was given to another program (SCM_RIGHTS, exec).";
    Disabled = 16, "disabled", "Switched off by SGM_DISABLE.";
    Withdrawn = 17, "withdrawn", "The other end took the offer, and ended or went back to TCP before both had agreed.";
    Stalled = 18, "stalled", "The ring was full and the peer did not read for a while, so the direction went on over TCP's larger buffers.";
    Overlapped = 19, "overlapped", "An overlapped call was made that goes over TCP: TransmitPackets, DisconnectEx, or any where there is no Linux below (on Windows).";
    Stdio = 20, "stdio", "The connection lies on descriptor 2, where the C library's last words are not seen (or on 0 or 1 or behind a FILE, with another C library or SGM_STDIO=0).";
    Limit = 21, "limit", "A limit of the program left no place for a ring: descriptors, size of files, or address space (ulimit -n, -f, -v).";
    Offered = 22, "offered", "An offer stands: the other end has not come to take it yet.";
    Ended = 23, "ended", "The connection ended before both ends had agreed: the offer came late in its life.";
    HeldBack = 24, "held-back", "As `short`, but more is asked for: offers to this server brought nothing lately, for connections ended soon or it did not take them.";
    NoHooks = 25, "no-hooks", "Windows programs: functions of ntdll can't be hooked, because something else in the process has changed them, so its sockets are plain.";
    Races = 26, "races", "The program is watched for data races (thread sanitizer, helgrind, drd): they know that TCP orders what threads do, and nothing of rings.";
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn numbers_and_words_are_unique() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert_eq!(*a as usize, i);
            assert_eq!(Reason::from_number(i as u32), Some(*a));
            for b in &Reason::ALL[i + 1..] {
                assert_ne!(a.word(), b.word());
            }
        }
    }
}
