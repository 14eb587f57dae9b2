//! The connection: when it is opened, greeted on and given up, and when the certificate is renewed over it.

use anabranch_common::backoff::Backoff;
use anabranch_common::limits;

/// State of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// None, and none is being opened.
    Down,
    /// Being opened, perhaps after a wait.
    Connecting,
    /// Open; `Hello` is sent and not answered.
    Greeting {
        /// When to give it up.
        until_ms: u64,
    },
    /// Open, and the coordinator has welcomed this agent.
    Up,
}

/// The connection, and what survives it.
#[derive(Debug)]
pub(super) struct Connection {
    link: Link,
    backoff: Backoff,
    /// When the certificate wants renewal.
    renew_at_ms: u64,
    /// Whether a renewal was requested on this connection.
    renewing: bool,
}

impl Connection {
    /// No connection yet. `seed` is that of the jitter between attempts.
    pub(super) fn new(renew_at_ms: u64, seed: u64) -> Self {
        let (first_ms, max_ms) = limits::RECONNECT_MS;
        Self { link: Link::Down, backoff: Backoff::new(first_ms, max_ms, seed), renew_at_ms, renewing: false }
    }

    pub(super) fn link(&self) -> Link {
        self.link
    }

    pub(super) fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// Whether the greeting is not answered yet.
    pub(super) fn is_greeting(&self) -> bool {
        matches!(self.link, Link::Greeting { .. })
    }

    /// The connection is being opened from now on.
    pub(super) fn connecting(&mut self) {
        self.link = Link::Connecting;
    }

    /// The connection is open and the greeting is sent.
    pub(super) fn greeting(&mut self, now_ms: u64) {
        self.link = Link::Greeting { until_ms: now_ms.saturating_add(limits::HANDSHAKE_TIMEOUT_MS) };
    }

    /// The coordinator has answered the greeting.
    pub(super) fn welcomed(&mut self) {
        self.link = Link::Up;
        self.backoff.reset();
    }

    /// The connection is gone, and what was requested on it.
    pub(super) fn lost(&mut self) {
        self.link = Link::Down;
        self.renewing = false;
    }

    /// Returns how long to wait before the next attempt.
    pub(super) fn next_wait_ms(&mut self) -> u64 {
        self.backoff.next_ms()
    }

    /// Returns when the greeting is answered too late.
    pub(super) fn greeting_until_ms(&self) -> Option<u64> {
        match self.link {
            Link::Greeting { until_ms } => Some(until_ms),
            Link::Down | Link::Connecting | Link::Up => None,
        }
    }

    /// Returns when to request a renewal on this connection.
    pub(super) fn renewal_ms(&self) -> Option<u64> {
        (self.is_up() && !self.renewing).then_some(self.renew_at_ms)
    }

    /// A renewal was requested.
    pub(super) fn renewing(&mut self) {
        self.renewing = true;
    }

    /// The renewed certificate is in its file; it wants renewal at `renew_at_ms` in turn.
    pub(super) fn renewed(&mut self, renew_at_ms: u64) {
        self.renewing = false;
        self.renew_at_ms = renew_at_ms;
    }
}
