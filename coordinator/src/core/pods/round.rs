//! The round of a pod: the attempts at one lease.

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::pod::PodPart;

use super::form::{NoPod, SOUND_MS, wait_ms};

/// Attempts at the round of a lease.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) owner: AgentId,
    pub(super) stage: Stage,
    /// The largest attempt that was heard of.
    pub(super) newest: u32,
    /// Members of the newest attempt if this process began it, or empty. Of other attempts only the owner is known ...
    members: Vec<AgentId>,
    /// ... and who was a member of the attempt before, likewise.
    members_before: Vec<AgentId>,
    /// Who computes which part of the model in it, likewise.
    parts: Vec<PodPart>,
    /// Why there is no other attempt yet.
    pub(super) problem: Option<NoPod>,
    /// Whether a helper misses the owner: its own word or its absence decides what follows.
    awaits_owner: bool,
    /// Whether nothing that is computed of the newest attempt may count, even where no other attempt can begin.
    pub(super) is_void: bool,
    begun_ms: u64,
    /// Attempts in a row that failed at once.
    failures: u32,
    /// Attempts that a member could not compute, as it says of itself: how many, and the latest one.
    own_failures: (u32, u32),
    retry_at_ms: u64,
    /// Whether another attempt was tried since something has changed.
    pub(super) tried: bool,
}

/// How far a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// This attempt is computed.
    AtWork(u32),
    /// The owner holds the lease and waits for another attempt.
    Broken,
    /// The owner does not hold the lease any more, and has to ask for it.
    Dropped,
    /// It is computed; the update is on its way.
    Complete,
}

impl Round {
    /// A round of which this process has not heard before.
    pub(super) fn new(owner: AgentId, stage: Stage, newest: u32) -> Self {
        Self {
            owner,
            stage,
            newest,
            members: Vec::new(),
            members_before: Vec::new(),
            parts: Vec::new(),
            problem: None,
            awaits_owner: false,
            is_void: false,
            begun_ms: 0,
            failures: 0,
            own_failures: (0, 0),
            retry_at_ms: 0,
            tried: false,
        }
    }

    /// The attempt that is computed.
    pub(super) fn current(&self) -> Option<u32> {
        match self.stage {
            Stage::AtWork(attempt) => Some(attempt),
            Stage::Broken | Stage::Dropped | Stage::Complete => None,
        }
    }

    /// How many members compute the current attempt, if this process began it.
    pub(super) fn size(&self) -> Option<u64> {
        let size = self.current().map(|_| self.members.len() as u64);
        size.filter(|size| *size > 0)
    }

    /// Whether its owner holds the lease and has not delivered.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.stage, Stage::AtWork(_) | Stage::Broken)
    }

    /// Whether this process began none of the attempts.
    pub(super) fn is_inherited(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether what an agent says of the newest attempt counts.
    pub(super) fn has(&self, agent: AgentId) -> bool {
        agent == self.owner || self.members.contains(&agent)
    }

    /// Returns the members of the newest attempt, if this process began it.
    pub(super) fn members(&self) -> &[AgentId] {
        &self.members
    }

    /// Returns who has computed a part of the model in an attempt, if this process began it and no other one since.
    pub(super) fn helper(&self, attempt: u32, part: u32) -> Option<AgentId> {
        let part = self.parts.get(part as usize).filter(|_| attempt == self.newest)?;
        Some(part.agent).filter(|agent| *agent != self.owner)
    }

    /// Returns the parts of the newest attempt, if this process began it.
    pub(super) fn parts(&self) -> &[PodPart] {
        &self.parts
    }

    /// Its owner says that it is at work on this attempt. That counts where this process has begun none.
    pub(super) fn claimed(&mut self, attempt: u32) {
        if self.is_inherited() {
            self.newest = self.newest.max(attempt);
        }
    }

    /// Begins the attempt of this number.
    pub(super) fn begin(&mut self, attempt: u32, members: Vec<AgentId>, parts: &[PodPart], now_ms: u64) {
        self.newest = attempt;
        (self.stage, self.begun_ms, self.problem) = (Stage::AtWork(attempt), now_ms, None);
        self.members_before = std::mem::replace(&mut self.members, members);
        (self.awaits_owner, self.is_void) = (false, false);
        self.parts = parts.to_vec();
    }

    /// A member says that it could not compute its part of an attempt, the newest one or the one before. Returns how many attempts
    /// have failed so, unless this one was counted before, or the agent is no member of it.
    pub(super) fn failed_by_itself(&mut self, agent: AgentId, attempt: u32) -> Option<u32> {
        let is_member = match self.newest.checked_sub(attempt)? {
            0 => self.has(agent),
            1 => self.members_before.contains(&agent),
            _ => false,
        };
        let (count, last) = self.own_failures;
        if !is_member || attempt <= last || self.stage == Stage::Complete {
            return None;
        }
        self.own_failures = (count.saturating_add(1), attempt);
        Some(self.own_failures.0)
    }

    /// Whether its members have failed at it too often, and none computes it now.
    pub(super) fn is_given_up(&self) -> bool {
        self.own_failures.0 >= limits::POD_OWN_FAILURES && matches!(self.stage, Stage::Broken | Stage::Dropped)
    }

    /// The attempt came to nothing, and the owner waits for another one.
    pub(super) fn broke(&mut self) {
        (self.stage, self.tried) = (Stage::Broken, false);
    }

    /// A helper misses the owner. There is no other attempt before the owner says what it is at work on.
    pub(super) fn misses_owner(&mut self) {
        self.broke();
        self.awaits_owner = true;
    }

    /// The owner says that its part of the newest attempt is over.
    pub(super) fn heard_owner(&mut self) {
        self.awaits_owner = false;
    }

    /// Another member that can help: there is no need to wait.
    pub(super) fn retries_at_once(&mut self) {
        self.retry_at_ms = 0;
    }

    /// A member has started again: there is no need to wait for longer than this.
    pub(super) fn retries_by(&mut self, at_ms: u64) {
        self.retry_at_ms = self.retry_at_ms.min(at_ms);
    }

    /// Whether another attempt was tried in vain.
    pub(super) fn is_stuck(&self) -> bool {
        self.stage == Stage::Broken && self.tried && self.problem.is_some()
    }

    /// The attempt failed. The next one begins at once, unless several have failed at once.
    pub(super) fn failed(&mut self, now_ms: u64) {
        let at_once = now_ms.saturating_sub(self.begun_ms) < SOUND_MS;
        self.failures = if at_once { self.failures.saturating_add(1) } else { 1 };
        if self.failures > 1 {
            self.retry_at_ms = now_ms.saturating_add(wait_ms(limits::POD_RETRY_MS, self.failures - 1));
        }
        self.broke();
    }

    /// Whether another attempt is to be tried, or the round was given up.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        let is_time = now_ms >= self.retry_at_ms || self.is_given_up();
        self.stage == Stage::Broken && !self.awaits_owner && !self.tried && is_time
    }
}
