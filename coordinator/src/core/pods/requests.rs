//! Owners' requests for leases that stand until pods can be formed.

use std::collections::BTreeMap;

use anabranch_common::limits;

use super::form::NoPod;
use crate::core::event::PeerId;

/// An owner's request for a lease that stands.
#[derive(Debug)]
struct Request {
    /// Requests are served in this order.
    number: u64,
    /// When the owner last heard of it.
    told_ms: u64,
    problem: Option<NoPod>,
}

/// The requests that stand, by connection.
#[derive(Debug, Default)]
pub(in crate::core) struct Requests {
    standing: BTreeMap<PeerId, Request>,
    next: u64,
    /// Whether they are to be tried again.
    is_due: bool,
}

impl Requests {
    /// Lets an owner's request wait for a pod.
    pub(in crate::core) fn wait(&mut self, peer: PeerId, now_ms: u64) {
        let number = self.next;
        self.next += 1;
        self.standing.entry(peer).or_insert(Request { number, told_ms: now_ms, problem: None });
        self.is_due = true;
    }

    /// Whether a connection's request for a lease waits for a pod.
    pub(in crate::core) fn waits(&self, peer: PeerId) -> bool {
        self.standing.contains_key(&peer)
    }

    /// Whether a request may be granted now, if there is a version to train from.
    pub(in crate::core) fn are_wanted(&self) -> bool {
        self.is_due && !self.standing.is_empty()
    }

    /// Forgets the request of a connection.
    pub(in crate::core) fn forget(&mut self, peer: PeerId) {
        self.standing.remove(&peer);
    }

    /// Takes every request.
    pub(super) fn take(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.standing).into_keys().collect()
    }

    /// Returns the requests that are to be tried now, in their order.
    pub(super) fn due(&mut self) -> Vec<PeerId> {
        if !std::mem::take(&mut self.is_due) {
            return Vec::new();
        }
        let mut requests: Vec<(u64, PeerId)> =
            self.standing.iter().map(|(peer, request)| (request.number, *peer)).collect();
        requests.sort_unstable();
        requests.into_iter().map(|(_, peer)| peer).collect()
    }

    /// Returns the connections that have waited without a word for a while, and marks them as told.
    pub(super) fn due_news(&mut self, now_ms: u64) -> Vec<PeerId> {
        let is_due = |request: &Request| now_ms.saturating_sub(request.told_ms) >= limits::LEASE_DEFERRED_MS;
        let due = self.standing.iter_mut().filter(|(_, request)| is_due(request));
        due.map(|(peer, request)| {
            request.told_ms = now_ms;
            *peer
        })
        .collect()
    }

    /// Notes why a request is not granted.
    pub(super) fn cannot_grant(&mut self, peer: PeerId, why: NoPod) {
        if let Some(request) = self.standing.get_mut(&peer) {
            request.problem = Some(why);
        }
    }

    /// Something has changed that pods may be formed from.
    pub(super) fn try_again(&mut self) {
        self.is_due = true;
    }

    /// Returns why the oldest request is not granted.
    pub(super) fn problem(&self) -> Option<&NoPod> {
        self.standing.values().min_by_key(|request| request.number)?.problem.as_ref()
    }

    /// Returns how many requests stand.
    pub(super) fn len(&self) -> usize {
        self.standing.len()
    }

    /// Whether none stands.
    pub(super) fn is_empty(&self) -> bool {
        self.standing.is_empty()
    }
}
