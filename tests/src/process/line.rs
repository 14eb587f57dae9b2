//! A line between an agent and its coordinator that can be cut: a relay for UDP on loopback.
//!
//! A cut is for good, but only for the address that the agent had at that moment: when it comes back it has another one,
//! and gets through.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

/// How long the relay sleeps when nothing comes.
const NAP: Duration = Duration::from_micros(200);
/// Datagrams taken from one side before the other one is looked at.
const BATCH: usize = 64;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the agent.
    Up,
    /// To the agent.
    Down,
}

#[derive(Debug, Default)]
struct State {
    up: AtomicU64,
    down: AtomicU64,
    cuts: AtomicU64,
    /// Bytes that may still pass in this direction.
    armed: Mutex<Option<(Way, u64)>>,
    ended: AtomicBool,
}

impl State {
    /// Counts what wants to pass. Returns whether the line breaks under it.
    fn breaks(&self, way: Way, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let mut armed = self.armed.lock();
        if let Some((at, left)) = armed.as_mut()
            && *at == way
        {
            if *left < bytes {
                *armed = None;
                self.cuts.fetch_add(1, Ordering::SeqCst);
                return true;
            }
            *left -= bytes;
        }
        let counter = if way == Way::Up { &self.up } else { &self.down };
        counter.fetch_add(bytes, Ordering::SeqCst);
        false
    }
}

/// The relay; ends when it is dropped.
#[derive(Debug)]
pub struct Line {
    port: u16,
    state: Arc<State>,
    relay: Option<JoinHandle<()>>,
}

impl Line {
    /// To the coordinator at `port` of the loopback interface.
    ///
    /// # Errors
    /// There is no socket or no thread.
    pub fn to(port: u16) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        let (own, state) = (socket.local_addr()?.port(), Arc::new(State::default()));
        let shared = Arc::clone(&state);
        let coordinator = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let relay =
            std::thread::Builder::new().name("line".into()).spawn(move || relay(&socket, coordinator, &shared))?;
        Ok(Self { port: own, state, relay: Some(relay) })
    }

    /// Where the agent finds it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the line when `bytes` more have passed that way.
    pub fn cut_after(&self, way: Way, bytes: u64) {
        *self.state.armed.lock() = Some((way, bytes));
    }

    /// How often it was cut.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.state.cuts.load(Ordering::SeqCst)
    }

    /// Bytes that have passed that way.
    #[must_use]
    pub fn carried(&self, way: Way) -> u64 {
        let counter = if way == Way::Up { &self.state.up } else { &self.state.down };
        counter.load(Ordering::SeqCst)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        if let Some(relay) = self.relay.take() {
            // A panic in it was printed by its own thread.
            let _ = relay.join();
        }
    }
}

/// What one address of the agent has; nothing once its line is cut.
type Flows = BTreeMap<SocketAddr, Option<UdpSocket>>;

fn relay(socket: &UdpSocket, coordinator: SocketAddr, state: &State) {
    let mut flows = Flows::new();
    let mut buffer = vec![0; 1 << 16];
    while !state.ended.load(Ordering::SeqCst) {
        let mut idle = true;
        for _ in 0..BATCH {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
            idle = false;
            let flow = flows.entry(from).or_insert_with(|| onward(coordinator).ok());
            if flow.is_some() && state.breaks(Way::Up, length) {
                *flow = None;
            }
            if let Some(onward) = flow {
                // A datagram that does not get through is one that was lost.
                let _ = onward.send(&buffer[..length]);
            }
        }
        for (agent, flow) in &mut flows {
            idle &= !back(socket, *agent, flow, &mut buffer, state);
        }
        if idle {
            std::thread::sleep(NAP);
        }
    }
}

fn onward(coordinator: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(coordinator)?;
    Ok(socket)
}

/// Whether anything came back.
fn back(socket: &UdpSocket, agent: SocketAddr, flow: &mut Option<UdpSocket>, buffer: &mut [u8], state: &State) -> bool {
    let mut any = false;
    for _ in 0..BATCH {
        let Some(onward) = flow else { return any };
        match onward.recv(buffer) {
            Ok(length) if state.breaks(Way::Down, length) => *flow = None,
            Ok(length) => {
                let _ = socket.send_to(&buffer[..length], agent);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
            // The coordinator is not there at the moment.
            Err(_) => return any,
        }
        any = true;
    }
    any
}
