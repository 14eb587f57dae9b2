//! The connection: when it is opened, greeted on and given up, and when the certificate is renewed over it.

use anabranch_common::backoff::Backoff;
use anabranch_common::limits;
use anabranch_common::wire::message::RenewalKey;

use super::command::Renewal;

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
    /// The key for which the coordinator has asked for a renewal on this connection, and which was not requested yet.
    asked: Option<RenewalKey>,
    /// When the outage began, if this is one.
    lost_at_ms: Option<u64>,
    /// The time of the latest event.
    now_ms: u64,
}

impl Connection {
    /// No connection yet. `seed` is that of the jitter between attempts.
    pub(super) fn new(renew_at_ms: u64, seed: u64) -> Self {
        let (first_ms, max_ms) = limits::RECONNECT_MS;
        let backoff = Backoff::new(first_ms, max_ms, seed);
        Self { link: Link::Down, backoff, renew_at_ms, renewing: false, asked: None, lost_at_ms: None, now_ms: 0 }
    }

    /// Something happens at this time.
    pub(super) fn at(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
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
        self.lost_at_ms = None;
    }

    /// The connection is gone, and what was requested on it.
    pub(super) fn lost(&mut self) {
        self.link = Link::Down;
        (self.renewing, self.asked) = (false, None);
        self.lost_at_ms.get_or_insert(self.now_ms);
    }

    /// Returns how long to wait before the next attempt: not long while the outage has only begun.
    pub(super) fn next_wait_ms(&mut self) -> u64 {
        let wait_ms = self.backoff.next_ms();
        let outage_ms = self.lost_at_ms.map_or(0, |lost_at_ms| self.now_ms.saturating_sub(lost_at_ms));
        if outage_ms < limits::OUTAGE_MS { wait_ms.min(limits::OUTAGE_RECONNECT_MS) } else { wait_ms }
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
        (self.is_up() && !self.renewing).then_some(if self.asked.is_some() { 0 } else { self.renew_at_ms })
    }

    /// The coordinator asks for a renewal. An earlier request that is not answered gives way: its answer may be lost.
    pub(super) fn renew_now(&mut self, key: RenewalKey) {
        (self.renewing, self.asked) = (false, Some(key));
    }

    /// A renewal is being requested from now on. Returns why.
    pub(super) fn renewing(&mut self) -> Renewal {
        self.renewing = true;
        self.asked.take().map_or(Renewal::Due, Renewal::Asked)
    }

    /// The renewed certificate is in its file; it wants renewal at `renew_at_ms` in turn.
    pub(super) fn renewed(&mut self, renew_at_ms: u64) {
        self.renewing = false;
        self.renew_at_ms = renew_at_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_close_together_in_the_first_minute_of_an_outage() {
        let mut connection = Connection::new(u64::MAX, 7);
        let mut now_ms = 5_000;
        connection.at(now_ms);
        connection.lost();
        while now_ms < 5_000 + limits::OUTAGE_MS {
            let wait_ms = connection.next_wait_ms();
            assert!(wait_ms <= limits::OUTAGE_RECONNECT_MS, "{wait_ms} ms after {now_ms} ms");
            now_ms += wait_ms;
            connection.at(now_ms);
            connection.lost();
        }
        let later = connection.next_wait_ms();
        assert!(later >= limits::RECONNECT_MS.1 / 2, "{later} ms");
        connection.welcomed();
        connection.lost();
        assert!(connection.next_wait_ms() <= limits::RECONNECT_MS.0);
    }

    #[test]
    fn a_renewal_that_is_asked_for_comes_at_once_and_before_one_that_is_due() {
        let mut connection = Connection::new(900, 7);
        connection.welcomed();
        assert_eq!(connection.renewal_ms(), Some(900));
        assert_eq!(connection.renewing(), Renewal::Due);
        assert_eq!(connection.renewal_ms(), None, "it was requested");
        connection.renew_now(RenewalKey::New);
        assert_eq!(connection.renewal_ms(), Some(0));
        assert_eq!(connection.renewing(), Renewal::Asked(RenewalKey::New));
        connection.renew_now(RenewalKey::New);
        connection.lost();
        connection.welcomed();
        assert_eq!(connection.renewing(), Renewal::Due, "it was asked for on another connection");
    }
}
