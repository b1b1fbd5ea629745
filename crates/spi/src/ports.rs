//! What our Winsock DLL for Wine and `lsp.dll` have agreed on about completion ports: the DLL sees a program wait at one, since
//! that comes through ntdll, and the provider can carry out what its sockets' operations wait for. Nothing of the SPI's; either
//! works without the other.

/// How a thread that waits at a port has the provider look.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct How(pub i32);

impl How {
    /// It may poll, as long as polling pays.
    pub const PATIENT: i32 = 1;
    /// Other threads of the program are asleep: whoever is awake for them must stay so.
    pub const OTHERS_SLEEP: i32 = 2;

    pub fn has(self, what: i32) -> bool {
        self.0 & what != 0
    }
}

/// The provider's functions.
#[repr(C)]
pub struct Progress {
    /// Carries out what can be, and completes it. How many sockets had news.
    pub look: unsafe extern "C" fn(How) -> i32,
    /// The thread goes to sleep in Wine's server: from now on the provider must notice news by itself.
    pub sleep: unsafe extern "C" fn(),
}

/// `SgmShowPorts` of the Winsock DLL: from now on it has the provider look. 0: it can't.
pub type Show = unsafe extern "C" fn(&'static Progress) -> i32;
