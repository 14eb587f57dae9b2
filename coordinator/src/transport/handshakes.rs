//! Connections that have not said yet who they are and what they want: a bounded room in which the newest has the right
//! of way.
//!
//! Whoever has not finished its handshake costs memory and says nothing true about itself. When the room is full, the
//! oldest one of the source that holds most of it is thrown out: an honest handshake takes a moment and is through before
//! its turn comes, whatever a flood of half-open ones does. A source is an IPv4 address or an IPv6 network of 64 bits.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::status::{NetworkStatus, Traffic};
use parking_lot::Mutex;
use quinn::Connection;
use tokio::sync::oneshot;

/// Everyone who is being greeted.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    table: Mutex<Table>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    pending: BTreeMap<u64, (IpAddr, oneshot::Sender<()>)>,
}

#[derive(Debug, Default)]
struct Counters {
    asked_to_retry: AtomicU64,
    refused: AtomicU64,
    displaced: AtomicU64,
    surplus: AtomicU64,
}

/// A place in the room; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    handshakes: Arc<Handshakes>,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

impl Handshakes {
    /// Whether so many are being greeted that an address has to show first that it is its own.
    pub(super) fn is_busy(&self) -> bool {
        self.table.lock().pending.len() >= limits::PENDING_HANDSHAKES / 2
    }

    /// Takes a place; when there is none left, somebody else's.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Place {
        let (end, displaced) = oneshot::channel();
        let mut table = self.table.lock();
        while table.pending.len() >= limits::PENDING_HANDSHAKES && table.displace_one() {
            self.counters.displaced.fetch_add(1, Ordering::Relaxed);
        }
        let number = table.next;
        table.next += 1;
        table.pending.insert(number, (source_of(from), end));
        drop(table);
        Place { handshakes: Arc::clone(self), number, displaced }
    }

    pub(super) fn asked_to_retry(&self) {
        self.counters.asked_to_retry.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed_as_surplus(&self) {
        self.counters.surplus.fetch_add(1, Ordering::Relaxed);
    }

    /// What became of connections; nothing is known here of what went through them.
    pub(super) fn status(&self) -> NetworkStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetworkStatus {
            handshakes: self.table.lock().pending.len() as u64,
            asked_to_retry: count(&self.counters.asked_to_retry),
            displaced: count(&self.counters.displaced),
            refused: count(&self.counters.refused),
            surplus: count(&self.counters.surplus),
            ..NetworkStatus::default()
        }
    }
}

impl Table {
    /// Throws out the oldest of the source that holds most.
    fn displace_one(&mut self) -> bool {
        let mut held: BTreeMap<IpAddr, usize> = BTreeMap::new();
        self.pending.values().for_each(|(source, _)| *held.entry(*source).or_default() += 1);
        let most = held.into_iter().max_by_key(|(_, held)| *held).map(|(source, _)| source);
        let oldest = self.pending.iter().find(|(_, (source, _))| Some(*source) == most).map(|(number, _)| *number);
        oldest.is_some_and(|number| self.pending.remove(&number).is_some())
    }
}

impl Place {
    /// Does `work` unless the place is lost over it.
    pub(super) async fn hold<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            _ = &mut self.displaced => anyhow::bail!("made way for a newer connection"),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshakes.table.lock().pending.remove(&self.number);
    }
}

fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The connections of each agent: one is the rule, a few during reconnects. Beyond `limits::CONNECTIONS_PER_AGENT` the
/// oldest is closed.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Opened>);

#[derive(Debug, Default)]
struct Opened {
    agents: BTreeMap<AgentId, Vec<Connection>>,
    /// What went through connections that are closed: received, sent.
    gone: (Traffic, Traffic),
}

impl Connections {
    /// Takes note of a connection. Returns how many older ones were closed for it.
    pub(super) fn opened(&self, agent: AgentId, connection: &Connection) -> usize {
        let mut guard = self.0.lock();
        let opened = &mut *guard;
        let of_agent = opened.agents.entry(agent).or_default();
        let surplus = (of_agent.len() + 1).saturating_sub(limits::CONNECTIONS_PER_AGENT);
        let older: Vec<Connection> = of_agent.drain(..surplus).collect();
        of_agent.push(connection.clone());
        for connection in older {
            connection.close(0u32.into(), b"too many connections");
            count(&mut opened.gone, &connection);
        }
        surplus
    }

    pub(super) fn closed(&self, agent: AgentId, connection: &Connection) {
        let mut guard = self.0.lock();
        let opened = &mut *guard;
        let Some(of_agent) = opened.agents.get_mut(&agent) else { return };
        let held = of_agent.len();
        of_agent.retain(|other| other.stable_id() != connection.stable_id());
        let was_held = of_agent.len() < held;
        if of_agent.is_empty() {
            opened.agents.remove(&agent);
        }
        if was_held {
            count(&mut opened.gone, connection);
        }
    }

    /// What went through agents' connections so far: received, sent.
    pub(super) fn traffic(&self) -> (Traffic, Traffic) {
        let opened = self.0.lock();
        let mut all = opened.gone;
        opened.agents.values().flatten().for_each(|connection| count(&mut all, connection));
        all
    }
}

fn count((received, sent): &mut (Traffic, Traffic), connection: &Connection) {
    let stats = connection.stats();
    *received += Traffic { datagrams: stats.udp_rx.datagrams, bytes: stats.udp_rx.bytes };
    *sent += Traffic { datagrams: stats.udp_tx.datagrams, bytes: stats.udp_tx.bytes };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[tokio::test]
    async fn a_full_room_loses_the_oldest_of_whoever_holds_most_of_it() {
        let handshakes = Arc::new(Handshakes::default());
        let mut honest = handshakes.enter(address(1));
        let mut flood: Vec<Place> = (1..limits::PENDING_HANDSHAKES).map(|_| handshakes.enter(address(2))).collect();
        assert!(handshakes.is_busy());
        flood.push(handshakes.enter(address(2)));
        let pending = std::future::pending::<anyhow::Result<()>>;
        assert!(flood[0].hold(pending()).await.is_err(), "the flood's oldest made way");
        honest.hold(std::future::ready(Ok(()))).await.expect("the honest one stays, though it is older");
        assert_eq!((handshakes.status().handshakes, handshakes.status().displaced), (256, 1));
        drop((honest, flood));
        assert_eq!(handshakes.status().handshakes, 0);
    }

    #[test]
    fn a_source_is_an_address_or_a_network() {
        let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(source_of(parse("2001:db8:1:2:3:4:5:6")), source_of(parse("2001:db8:1:2::9")));
        assert_ne!(source_of(parse("2001:db8:1:2::1")), source_of(parse("2001:db8:1:3::1")));
        assert_eq!(source_of(parse("::ffff:192.0.2.1")), parse("192.0.2.1"));
    }
}
