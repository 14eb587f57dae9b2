//! The line between one agent and the coordinator, or to a helper of pods: a relay for UDP that does what [`Conditions`]
//! say.
//!
//! ```text
//!  agent ─► listen ─► flow (one for each address of the agent) ─► socket of its own ─► coordinator
//!                      └ what is late waits in a heap, both directions
//! ```
//! A new address for the agent, as its NAT would give it, is a new socket towards the coordinator.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::link::{Channel, Conditions};
use crate::clock::Stopwatch;

/// Datagrams that wait for a flow before more are dropped.
const WAITING: usize = 1024;
/// The largest datagram there is.
const DATAGRAM: usize = 65_535;
/// How soon new conditions are noticed on a line on which nothing passes.
const NOTICE: Duration = Duration::from_millis(10);

/// What a line is like at the moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shape {
    /// From the agent.
    pub up: Conditions,
    /// To the agent.
    pub down: Conditions,
    /// Milliseconds from one address of the agent to the next; 0 for never.
    pub rebind_ms: u64,
}

/// What has passed.
#[derive(Debug, Default)]
struct Counters {
    passed: AtomicU64,
    dropped: AtomicU64,
    rebound: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    shape: Mutex<Shape>,
    counters: Counters,
    target: SocketAddr,
    watch: Stopwatch,
}

impl Shared {
    fn shape(&self) -> Shape {
        self.shape.lock().clone()
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.watch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// The relay; ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    listener: AbortHandle,
}

impl Proxy {
    /// To the process at `port` of the loopback interface, on the runtime of `handle`.
    ///
    /// # Errors
    /// There is no socket.
    pub fn start(handle: &Handle, port: u16, seed: u64, shape: Shape) -> anyhow::Result<Self> {
        let _inside = handle.enter();
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let own = socket.local_addr()?.port();
        let shared = Arc::new(Shared {
            shape: Mutex::new(shape),
            counters: Counters::default(),
            target: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            watch: Stopwatch::start(),
        });
        let listener = handle.spawn(listen(socket, Arc::clone(&shared), seed)).abort_handle();
        Ok(Self { port: own, shared, listener })
    }

    /// Where the agent finds it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on the line is like this.
    pub fn shape(&self, shape: Shape) {
        *self.shared.shape.lock() = shape;
    }

    /// Datagrams that passed, that were dropped, and new addresses.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let Counters { passed, dropped, rebound } = &self.shared.counters;
        (passed.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed), rebound.load(Ordering::Relaxed))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn listen(socket: Arc<UdpSocket>, shared: Arc<Shared>, seed: u64) {
    let mut flows: BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>> = BTreeMap::new();
    // Flows end with this.
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An error here is the agent's closed port: it has nothing to say to that.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let number = flows.len() as u64;
        let flow = flows.entry(from).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(WAITING);
            let seed = seed ^ number.rotate_left(17);
            tasks.spawn(flow(Arc::clone(&socket), from, receiver, Arc::clone(&shared), seed));
            sender
        });
        if flow.try_send(buffer[..length].to_vec()).is_err() {
            shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A datagram on its way: when it arrives, in which order it was sent, whether it goes up, and its bytes.
type OnItsWay = Reverse<(u64, u64, bool, Vec<u8>)>;

struct Flow {
    shared: Arc<Shared>,
    up: Channel,
    down: Channel,
    waiting: BinaryHeap<OnItsWay>,
    sent: u64,
}

impl Flow {
    fn send(&mut self, up: bool, bytes: &[u8], shape: &Shape) {
        let now_us = self.shared.now_us();
        let arrivals = match up {
            true => self.up.send(now_us, bytes.len(), &shape.up),
            false => self.down.send(now_us, bytes.len(), &shape.down),
        };
        if arrivals[0].is_none() {
            self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
        for at_us in arrivals.into_iter().flatten() {
            self.sent += 1;
            self.waiting.push(Reverse((at_us, self.sent, up, bytes.to_vec())));
        }
    }

    /// What is due now.
    fn due(&mut self) -> Option<(bool, Vec<u8>)> {
        let Reverse((at_us, ..)) = self.waiting.peek()?;
        if *at_us > self.shared.now_us() {
            return None;
        }
        let Reverse((_, _, up, bytes)) = self.waiting.pop()?;
        self.shared.counters.passed.fetch_add(1, Ordering::Relaxed);
        Some((up, bytes))
    }

    /// How long nothing is due.
    fn rest(&self) -> Duration {
        let next = self.waiting.peek().map(|Reverse((at_us, ..))| at_us.saturating_sub(self.shared.now_us()));
        next.map_or(NOTICE, |us| Duration::from_micros(us).min(NOTICE))
    }
}

async fn onward(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

async fn flow(
    agent_side: Arc<UdpSocket>,
    agent: SocketAddr,
    mut from_agent: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
    seed: u64,
) {
    let mut buffer = vec![0; DATAGRAM];
    let Ok(mut socket) = onward(shared.target).await else { return };
    let mut bound_us = shared.now_us();
    let (up, down) = (Channel::new(seed), Channel::new(!seed));
    let mut flow = Flow { shared: Arc::clone(&shared), up, down, waiting: BinaryHeap::new(), sent: 0 };
    loop {
        let shape = shared.shape();
        tokio::select! {
            datagram = from_agent.recv() => match datagram {
                Some(bytes) => flow.send(true, &bytes, &shape),
                None => return,
            },
            came = socket.recv(&mut buffer) => {
                // An error is a coordinator that is not there at the moment.
                if let Ok(length) = came {
                    flow.send(false, &buffer[..length], &shape);
                }
            }
            () = tokio::time::sleep(flow.rest()) => {}
        }
        let now_us = shared.now_us();
        if shape.rebind_ms > 0
            && now_us.saturating_sub(bound_us) >= shape.rebind_ms * 1000
            && let Ok(new) = onward(shared.target).await
        {
            (socket, bound_us) = (new, now_us);
            shared.counters.rebound.fetch_add(1, Ordering::Relaxed);
        }
        while let Some((up, bytes)) = flow.due() {
            // What a socket does not take is lost, as on any line.
            let _ = if up { socket.send(&bytes).await } else { agent_side.send_to(&bytes, agent).await };
        }
    }
}
