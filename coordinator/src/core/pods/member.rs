//! An agent that joins pods, as it says itself and as attempts with it went.

use std::num::NonZeroU64;

use anabranch_common::ids::{Incarnation, LeaseId};
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodOffer};

use super::form::{NoPod, wait_ms};

/// An agent that joins pods.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) address: String,
    pub(super) flops_per_s: NonZeroU64,
    pub(super) memory_bytes: u64,
    /// Where it is.
    pub(super) site: String,
    /// Whether it has rounds of its own.
    pub(super) trains: bool,
    /// Since when it has no connection.
    pub(super) away_since_ms: Option<u64>,
    /// The attempt that it was told of last, until it says that its part is over.
    pub(super) at_work: Option<PodMark>,
    /// Whether that is a round of its own.
    pub(super) is_own: bool,
    /// Whether it was told that this attempt is over.
    pub(super) told_over: bool,
    /// Which of its processes has connected last.
    pub(super) incarnation: Incarnation,
    /// Attempts in a row that failed over it.
    failures: u32,
    /// Whether it was to blame for the last one: as another member said, or as it said itself.
    accused: bool,
    rests_until_ms: u64,
    /// Own rounds in a row that were given up: how many.
    given_up: u32,
    /// Why the last one was, while this agent begins no other one, and until when.
    owner_rests: Option<(NoPod, u64)>,
}

impl Member {
    /// Returns an agent that has connected. `is_own`: whether it is at work on a round of its own; `before`: what was known of
    /// it.
    pub(super) fn connected(
        offer: &PodOffer,
        incarnation: Incarnation,
        trains: bool,
        is_own: bool,
        before: Option<&Self>,
    ) -> Self {
        Self {
            incarnation,
            accused: before.is_some_and(|before| before.accused),
            address: offer.address.clone(),
            // An offer without speed is refused.
            flops_per_s: NonZeroU64::new(offer.flops_per_s).unwrap_or(NonZeroU64::MIN),
            memory_bytes: offer.memory_bytes,
            site: offer.site.clone(),
            trains,
            away_since_ms: None,
            at_work: offer.at_work,
            is_own,
            told_over: false,
            failures: before.map_or(0, |before| before.failures),
            rests_until_ms: before.map_or(0, |before| before.rests_until_ms),
            given_up: before.map_or(0, |before| before.given_up),
            owner_rests: before.and_then(|before| before.owner_rests.clone()),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.away_since_ms.is_none()
    }

    /// Whether it is left out of pods for a while, if others are free.
    pub(super) fn rests(&self, now_ms: u64) -> bool {
        now_ms < self.rests_until_ms
    }

    /// Whether it is left out where others can take its place: it rests, and was to blame.
    pub(super) fn is_left_out(&self, now_ms: u64) -> bool {
        self.accused && self.rests(now_ms)
    }

    /// Returns its place among helpers, smallest first: of those that rest the ones that failed most often come last. Who of
    /// accuser and accused has failed is unknown; a machine that died is more frequent than a lie.
    pub(super) fn reputation(&self, now_ms: u64) -> (u32, bool) {
        if self.rests(now_ms) { (self.failures, self.accused) } else { (0, false) }
    }

    /// Begins its part of an attempt at a round of its own, or of another agent.
    pub(super) fn begin(&mut self, mark: PodMark, is_own: bool) {
        (self.at_work, self.is_own, self.told_over) = (Some(mark), is_own, false);
    }

    /// Whether it can take part in an attempt at `lease`: its part in an earlier one is given up for it.
    pub(super) fn is_free_for(&self, lease: Option<LeaseId>) -> bool {
        self.is_connected() && self.at_work.is_none_or(|mark| Some(mark.lease) == lease)
    }

    /// An attempt failed, and it was to blame (`accused`), or has said so of another member.
    pub(super) fn failed(&mut self, accused: bool, now_ms: u64) {
        self.accused = accused;
        self.failures = self.failures.saturating_add(1);
        self.rests_until_ms = now_ms.saturating_add(wait_ms(limits::POD_REST_MS, self.failures));
    }

    /// An attempt with it came to its end.
    pub(super) fn succeeded(&mut self) {
        (self.failures, self.accused, self.rests_until_ms) = (0, false, 0);
    }

    /// A round of its own was given up. It begins no other one for a while.
    pub(super) fn gives_up(&mut self, why: NoPod, now_ms: u64) {
        self.given_up = self.given_up.saturating_add(1);
        self.owner_rests = Some((why, now_ms.saturating_add(wait_ms(limits::POD_OWNER_REST_MS, self.given_up))));
    }

    /// Returns why it begins no round of its own, if it rests after one that was given up.
    pub(super) fn why_given_up(&self) -> Option<&NoPod> {
        self.owner_rests.as_ref().map(|(why, _)| why)
    }

    /// Ends the rest after a round that was given up, when its time is over. Returns whether it has ended now.
    pub(super) fn has_rested(&mut self, now_ms: u64) -> bool {
        self.owner_rests.take_if(|(_, until_ms)| now_ms >= *until_ms).is_some()
    }

    /// Ends that rest before its time.
    pub(super) fn trains_again(&mut self) {
        self.owner_rests = None;
    }

    /// A round of its own came to its end.
    pub(super) fn computed_its_round(&mut self) {
        (self.given_up, self.owner_rests) = (0, None);
    }
}
