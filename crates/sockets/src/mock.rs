//! For tests: two ends of a carried connection in one process, over a TCP stream that is two queues, on a clock that stands
//! still unless it is moved.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::AtomicU16;

use gm::held::Place;
use gm::{Node, Path, Port, Role};
use ring::sync::{AtomicU32, Ordering::Relaxed};

use crate::{Buffers, Conn, Fault, Host, Kernel, Peeked, Ready, RecvOptions, SendOptions, Stream};

/// The number of a thread that is gone.
pub(crate) const DEAD_THREAD: u32 = u32::MAX - 1;

/// What goes from one side to the other.
#[derive(Default)]
struct Queue {
    bytes: RefCell<VecDeque<u8>>,
    sent: Cell<u64>,
    read: Cell<u64>,
    over: Cell<bool>,
    /// It takes nothing more.
    full: Cell<bool>,
}

type Act = Box<dyn Fn()>;

/// One side's socket.
#[derive(Clone)]
pub(crate) struct Socket {
    out: Rc<Queue>,
    inn: Rc<Queue>,
    pub(crate) now_ns: Rc<Cell<u64>>,
    port: u16,
    peer_port: u16,
    place: Rc<NodeDir>,
    /// What happens while somebody sleeps on this socket, which blocks then. It moves the clock.
    meanwhile: Rc<RefCell<Option<Act>>>,
    /// What happens when somebody gives the CPU away.
    yielding: Rc<RefCell<Option<Act>>>,
    /// O_NONBLOCK.
    pub(crate) nonblocking: Rc<Cell<bool>>,
    pub(crate) buffers: Rc<Cell<Buffers>>,
}

impl Socket {
    fn pair(place: &Rc<NodeDir>) -> (Self, Self) {
        static PORTS: AtomicU16 = AtomicU16::new(1);
        let (a, b) = (Rc::<Queue>::default(), Rc::<Queue>::default());
        let one = PORTS.fetch_add(2, Relaxed);
        let two = one + 1;
        let client = Self {
            out: a.clone(),
            inn: b.clone(),
            now_ns: place.now_ns.clone(),
            port: one,
            peer_port: two,
            place: place.clone(),
            meanwhile: Rc::default(),
            yielding: Rc::default(),
            nonblocking: Rc::default(),
            buffers: Rc::default(),
        };
        let server = Self {
            out: b,
            inn: a,
            now_ns: place.now_ns.clone(),
            port: two,
            peer_port: one,
            place: place.clone(),
            meanwhile: Rc::default(),
            yielding: Rc::default(),
            nonblocking: Rc::default(),
            buffers: Rc::default(),
        };
        (client, server)
    }

    /// All bytes that ever came; their end counts as one more.
    pub(crate) fn came(&self) -> u64 {
        self.inn.sent.get() + u64::from(self.inn.over.get())
    }

    pub(crate) fn pass_ns(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get() + ns);
    }

    pub(crate) fn meanwhile(&self, happens: impl Fn() + 'static) {
        *self.meanwhile.borrow_mut() = Some(Box::new(happens));
    }

    pub(crate) fn as_it_yields(&self, happens: impl Fn() + 'static) {
        *self.yielding.borrow_mut() = Some(Box::new(happens));
    }

    /// The kernel's buffers are full from now on, or are not.
    pub(crate) fn fill_up(&self, full: bool) {
        self.out.full.set(full);
    }

    fn blocks_for_ever(&self) -> bool {
        self.meanwhile.borrow().is_none()
    }

    fn happen(&self) {
        if let Some(happens) = &*self.meanwhile.borrow() {
            happens();
        }
    }
}

impl Kernel for Socket {
    fn recv(&self, buf: &mut [u8], peek: bool) -> Result<usize, Fault> {
        let mut bytes = self.inn.bytes.borrow_mut();
        let n = buf.len().min(bytes.len());
        if n == 0 && !self.inn.over.get() {
            return Err(Fault::WouldBlock);
        }
        for (to, from) in buf.iter_mut().zip(bytes.iter()) {
            *to = *from;
        }
        if !peek {
            bytes.drain(..n);
            self.inn.read.set(self.inn.read.get() + n as u64);
        }
        Ok(n)
    }

    fn send(&self, buf: &[u8]) -> Result<usize, Fault> {
        if self.out.full.get() {
            return Err(Fault::WouldBlock);
        }
        self.out.bytes.borrow_mut().extend(buf);
        self.out.sent.set(self.out.sent.get() + buf.len() as u64);
        Ok(buf.len())
    }

    fn is_nonblocking(&self) -> bool {
        self.nonblocking.get() || self.blocks_for_ever()
    }

    fn sleep_readable(&self, timeout_us: u64) -> Result<Peeked, Fault> {
        assert!(!self.blocks_for_ever(), "a sleep for ever");
        let over_us = self.now_us() + timeout_us;
        loop {
            self.happen();
            match self.recv(&mut [0], true) {
                Ok(0) => return Ok(Peeked::EndOfFile),
                Ok(n) => return Ok(Peeked::Bytes(n)),
                Err(_) if timeout_us > 0 && self.now_us() >= over_us => {
                    return Err(Fault::WouldBlock);
                }
                Err(_) => {}
            }
        }
    }

    fn sleep_writable(&self, timeout_us: u64) -> Result<(), Fault> {
        self.pass_ns(timeout_us * 1000);
        self.happen();
        match self.out.full.get() {
            true => Err(Fault::WouldBlock),
            false => Ok(()),
        }
    }

    fn sleep_word(&self, _word: &AtomicU32, _seq: u32, timeout_us: u64) -> Result<(), Fault> {
        self.pass_ns(timeout_us * 1000);
        self.happen();
        Ok(())
    }

    fn wake_word(&self, _word: &AtomicU32) {}

    fn list(&self, queue: u64, entry: u32) -> Option<bool> {
        let told = gm::events::tell(self.place.node.dir(), queue, entry, true);
        if told == Some(true) {
            self.place.rung.borrow_mut().push(queue);
        }
        told
    }

    fn poll(&self) -> Ready {
        let mut ready = match self.out.full.get() {
            true => Ready::NONE,
            false => Ready::OUT,
        };
        if self.inn.over.get() {
            ready |= Ready::IN | Ready::RDHUP;
        }
        if self.queued() > 0 {
            ready |= Ready::IN;
        }
        ready
    }

    fn take_error(&self) -> Option<Fault> {
        None
    }

    fn queued(&self) -> usize {
        self.inn.bytes.borrow().len()
    }

    fn positions(&self) -> Option<(u64, u64)> {
        Some((self.out.sent.get(), self.inn.read.get()))
    }

    fn network(&self) -> Option<u32> {
        Some(1)
    }

    fn stream(&self) -> Option<Stream> {
        let loopback = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        Some(Stream {
            local: (loopback, self.port),
            peer: (loopback, self.peer_port),
        })
    }

    fn abort_on_close(&self) {}

    fn shutdown(&self, _read: bool, write: bool) -> Result<(), Fault> {
        self.out.over.set(self.out.over.get() || write);
        Ok(())
    }

    fn yield_now(&self) {
        if let Some(happens) = &*self.yielding.borrow() {
            happens();
        }
    }

    fn thread(&self) -> u32 {
        u32::from(self.port)
    }

    fn thread_gone(&self, thread: u32) -> bool {
        thread == DEAD_THREAD
    }

    fn buffers(&self) -> Buffers {
        self.buffers.get()
    }

    fn now_us(&self) -> u64 {
        self.now_ns.get() / 1000
    }

    fn cpus(&self) -> u32 {
        2
    }
}

impl Host for Socket {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn yield_now(&self) {}

    fn cpus(&self) -> u32 {
        2
    }
}

/// One end of a carried connection.
pub(crate) struct End {
    pub(crate) conn: Conn,
    pub(crate) socket: Socket,
}

impl End {
    /// As much of it as is taken without waiting.
    pub(crate) fn send(&self, bytes: &[u8]) -> usize {
        let bufs = [std::io::IoSlice::new(bytes)];
        let sent = self
            .conn
            .send(&self.socket, &bufs, SendOptions { dont_wait: true });
        sent.unwrap_or(0)
    }

    pub(crate) fn recv(&self, most: usize) -> usize {
        let mut buf = vec![0; most];
        let mut bufs = [std::io::IoSliceMut::new(&mut buf)];
        let options = RecvOptions {
            dont_wait: true,
            ..Default::default()
        };
        self.conn
            .recv(&self.socket, &mut bufs, options)
            .unwrap_or(0)
    }
}

/// A node that is gone with its last connection.
pub(crate) struct NodeDir {
    pub(crate) node: Node,
    port: &'static Port,
    dir: PathBuf,
    now_ns: Rc<Cell<u64>>,
    /// Event queues whose bell was rung, and not heard yet.
    rung: RefCell<Vec<u64>>,
}

impl NodeDir {
    fn new() -> Rc<Self> {
        let name = format!("sgm-sockets-{:016x}", gm::os::random());
        let dir = std::env::temp_dir().join(name);
        let node = Node::open(&dir).unwrap();
        let port = Port::create(&dir, node.me(), 0).unwrap();
        Rc::new(Self {
            node,
            port: Box::leak(Box::new(port)),
            dir,
            now_ns: Rc::default(),
            rung: RefCell::default(),
        })
    }

    /// Was the bell of this event queue rung since it was last heard?
    pub(crate) fn hear(&self, queue: u64) -> bool {
        let mut rung = self.rung.borrow_mut();
        let before = rung.len();
        rung.retain(|id| *id != queue);
        rung.len() != before
    }
}

impl Drop for NodeDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A connection, both of whose ends know that it is carried.
pub(crate) struct Pair {
    pub(crate) client: End,
    pub(crate) server: End,
    pub(crate) place: Rc<NodeDir>,
}

impl Pair {
    /// Both directions are in rings.
    pub(crate) fn carried() -> Self {
        Self::at(NodeDir::new())
    }

    /// Another one of the same node.
    pub(crate) fn beside(&self) -> Self {
        Self::at(self.place.clone())
    }

    fn at(place: Rc<NodeDir>) -> Self {
        let pair = Self::with_unread_at(place, b"");
        let (client, server) = (&pair.client, &pair.server);
        // The switches are passed by reading.
        assert_eq!((client.send(b"a"), server.recv(1)), (1, 1));
        assert_eq!((server.send(b"b"), client.recv(1)), (1, 1));
        for conn in [&client.conn, &server.conn] {
            assert_eq!(
                (conn.end.rx_path(), conn.end.tx_path()),
                (Path::Ring, Path::Ring)
            );
        }
        pair
    }

    /// The server sent `unread` before; what it sends from now on is in the ring.
    pub(crate) fn with_unread(unread: &[u8]) -> Self {
        Self::with_unread_at(NodeDir::new(), unread)
    }

    fn with_unread_at(place: Rc<NodeDir>, unread: &[u8]) -> Self {
        let (one, two) = Socket::pair(&place);
        let (node, port) = (&place.node, place.port);
        let end = |role, socket| {
            let index = port.allocate(None, role, node.me().pid).unwrap();
            let at = Place {
                port: node.me(),
                index,
            };
            let end = &port.ends()[index as usize];
            end.set(gm::end::flag::LISTENED);
            End {
                conn: Conn::new(end, at),
                socket,
            }
        };
        let (client, server) = (end(Role::Client, one), end(Role::Server, two));
        server.socket.send(unread).unwrap();
        server.conn.count_plain(unread.len(), 0);
        // Offer, claim, confirm.
        assert!(!client.conn.step(node, &client.socket));
        assert!(server.conn.step(node, &server.socket));
        assert!(client.conn.step(node, &client.socket));
        server.conn.ready(&server.socket, None);
        client.conn.ready(&client.socket, None);
        Self {
            client,
            server,
            place,
        }
    }
}
