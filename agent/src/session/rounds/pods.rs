//! Rounds that a pod computes: the lease is this agent's, and other agents help (docs/adr/0031-pods.md).
//!
//! ```text
//!  Lease ──► Awaited ── Pod ──► Ready ──► Training ──► banking
//!               ▲                 ▲           ├─ a later attempt: stopped, and begun again from the same base
//!               │                 └───────────┤
//!               └──── the attempt failed ─────┘
//! ```
//! Every attempt begins at the lease's base. What has not begun when the connection is lost, and lacks its base or its pod, is
//! forgotten: the coordinator gives the same lease again.

use std::sync::Arc;

use anabranch_common::ids::LeaseId;
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodRound};

use super::{Grant, Next, Rounds, Stage, Training};

/// Who computes a round.
#[derive(Debug)]
pub(in crate::session) enum Company {
    /// This agent.
    Alone,
    /// A pod that is being formed. Without one by then, a lease is requested again.
    Awaited {
        /// On the clock of `now_ms`.
        until_ms: u64,
    },
    /// This pod.
    Pod(Box<PodRound>),
}

impl Company {
    /// A pod that the coordinator forms from now on.
    pub(in crate::session) fn awaited(now_ms: u64) -> Self {
        Self::Awaited { until_ms: now_ms.saturating_add(limits::REQUEST_TIMEOUT_MS) }
    }

    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited { .. })
    }

    /// Returns the attempt of a pod that is known.
    pub(super) fn mark(&self) -> Option<PodMark> {
        match self {
            Self::Pod(round) => Some(round.mark),
            Self::Alone | Self::Awaited { .. } => None,
        }
    }

    pub(super) fn into_pod(self) -> Option<Box<PodRound>> {
        match self {
            Self::Pod(round) => Some(round),
            Self::Alone | Self::Awaited { .. } => None,
        }
    }
}

/// The pod of the round that is being computed.
#[derive(Debug, Clone, PartialEq)]
pub struct InPod {
    /// Who computes what.
    pub round: Box<PodRound>,
    /// The latest attempt that this agent was told of.
    newest: PodMark,
    /// The base, for another attempt.
    base: Arc<[f32]>,
    /// What becomes of the lease once the round has stopped.
    then: Then,
}

#[derive(Debug, Clone, PartialEq)]
enum Then {
    /// It is returned.
    GiveBack,
    /// Its round is computed again, by this pod.
    Again(Box<PodRound>),
    /// It does not count any more.
    Forget,
}

impl InPod {
    pub(super) fn new(round: Box<PodRound>, base: Arc<[f32]>) -> Self {
        Self { newest: round.mark, round, base, then: Then::GiveBack }
    }

    /// Returns the attempt that counts, unless the round is `stopping` for good.
    pub(super) fn at_work(&self, stopping: bool) -> Option<PodMark> {
        (!stopping || matches!(self.then, Then::Again(_))).then_some(self.newest)
    }

    pub(super) fn stop_for_good(&mut self) {
        if self.then != Then::Forget {
            self.then = Then::GiveBack;
        }
    }
}

/// What the pod of an own round led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum PodCame {
    /// It computes the round when the device is free.
    Taken,
    /// It computes the round once the attempt that is being computed has stopped, which has to be told.
    Stop,
    /// A later one is known, or this one is.
    Late,
    /// This agent has no such round to compute.
    Unknown,
}

/// What the end of an attempt led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum Over {
    /// The round had not begun. It and its lease are forgotten.
    Forgotten,
    /// The round has to be told to stop.
    Stop,
    /// The round was told to stop before.
    Stopping,
    /// No such attempt counts here.
    Unknown,
}

/// What becomes of a round that has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum Stopped {
    /// Its lease is returned; it ran in this attempt of a pod, if in one.
    GiveBack(Option<PodMark>),
    /// Another attempt begins from the same base.
    Again,
    /// Its lease does not count any more.
    Forget(PodMark),
}

/// What becomes of a round whose attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum Failed {
    /// It waits for another attempt.
    Waits,
    /// It had been told to stop.
    Stopped(LeaseId, Stopped),
}

impl Rounds {
    /// Returns until when the pod of the next round is waited for.
    pub(in crate::session) fn pod_until_ms(&self) -> Option<u64> {
        self.next.as_ref()?.pod_until_ms()
    }

    /// Returns the attempt of the round under this lease that is being computed or stored: the latest one that is known.
    pub(in crate::session) fn mark_of(&self, lease: LeaseId) -> Option<PodMark> {
        if let Some(banking) = self.banking.iter().find(|banking| banking.lease == lease) {
            return banking.pod;
        }
        let training = self.current.as_ref().filter(|training| training.lease.id == lease)?;
        training.pod.as_ref().map(|pod| pod.newest)
    }

    /// Returns the attempt that is being computed or stored, or that begins without any other message of the coordinator.
    pub(in crate::session) fn at_work(&self) -> Option<PodMark> {
        if let Some(Training { pod: Some(pod), stopping, .. }) = &self.current {
            return pod.at_work(*stopping);
        }
        let storing = self.banking.iter().find_map(|banking| banking.pod);
        storing.or_else(|| self.next.as_ref().filter(|next| next.is_complete())?.grant()?.company.mark())
    }

    /// Whether a round is being computed, or stored after a pod has computed it, or the lease of one has come.
    pub(in crate::session) fn have_work(&self) -> bool {
        let stores = self.banking.iter().any(|banking| banking.pod.is_some());
        stores || self.current.is_some() || self.next.as_ref().is_some_and(|next| next.grant().is_some())
    }

    /// Forgets the next round if a pod is to compute it and its base or its pod is missing.
    pub(in crate::session) fn forget_incomplete_pod(&mut self) {
        self.next.take_if(|next| {
            let of_pod = next.grant().is_some_and(|grant| !matches!(grant.company, Company::Alone));
            of_pod && !next.is_complete()
        });
    }

    /// Takes a lease that was granted before: its pod follows. Returns whether this is one.
    pub(in crate::session) fn granted_again(&mut self, now_ms: u64, lease: &Lease) -> bool {
        if let Some(training) = self.current_of(lease.id) {
            return training.pod.is_some() && training.lease.branch == lease.branch;
        }
        match self.next.as_mut().and_then(|next| next.grant_of(lease.id)) {
            Some(grant) if !matches!(grant.company, Company::Alone) => {
                grant.company = Company::awaited(now_ms);
                true
            }
            _ => false,
        }
    }

    /// Takes the pod of an own round.
    pub(in crate::session) fn pod_came(&mut self, round: Box<PodRound>) -> PodCame {
        let mark = round.mark;
        if let Some(grant) = self.next.as_mut().and_then(|next| next.grant_of(mark.lease)) {
            if grant.company.mark().is_some_and(|known| known >= mark) {
                return PodCame::Late;
            }
            grant.company = Company::Pod(round);
            return PodCame::Taken;
        }
        // It is told once the update is durable that this one is over too.
        if let Some(banking) = self.banking.iter_mut().find(|banking| banking.lease == mark.lease) {
            banking.pod = banking.pod.max(Some(mark));
            return PodCame::Late;
        }
        let Some(Training { pod: Some(pod), stopping, .. }) = self.current_of(mark.lease) else {
            return PodCame::Unknown;
        };
        if pod.newest >= mark {
            return PodCame::Late;
        }
        if *stopping && pod.then == Then::GiveBack {
            return PodCame::Unknown;
        }
        (pod.newest, pod.then) = (mark, Then::Again(round));
        if std::mem::replace(stopping, true) { PodCame::Taken } else { PodCame::Stop }
    }

    /// The coordinator says that an attempt is over.
    pub(in crate::session) fn pod_over(&mut self, mark: PodMark) -> Over {
        let counts = |grant: &Grant| grant.lease.id == mark.lease && grant.company.is_over_with(mark);
        if self.next.take_if(|next| next.grant().is_some_and(counts)).is_some() {
            return Over::Forgotten;
        }
        // Whoever says that it is over is answered now, and not again once the update is durable.
        self.banking.iter_mut().filter(|banking| banking.lease == mark.lease).for_each(|banking| {
            banking.pod.take_if(|pod| *pod <= mark);
        });
        let Some(Training { pod: Some(pod), stopping, .. }) = self.current_of(mark.lease) else {
            return Over::Unknown;
        };
        if pod.newest > mark {
            return Over::Unknown;
        }
        pod.newest = mark;
        if !*stopping || pod.then != Then::GiveBack {
            pod.then = Then::Forget;
        }
        if std::mem::replace(stopping, true) { Over::Stopping } else { Over::Stop }
    }

    /// Ends the current round without a result. Returns what becomes of it, if it was the current one.
    pub(in crate::session) fn stopped(&mut self, id: LeaseId) -> Option<Stopped> {
        let Training { lease, pod, .. } = self.take_current(id)?;
        let Some(InPod { newest, base, then, .. }) = pod else { return Some(Stopped::GiveBack(None)) };
        Some(match then {
            Then::GiveBack => Stopped::GiveBack(Some(newest)),
            Then::Forget => Stopped::Forget(newest),
            Then::Again(round) => {
                self.try_again(lease, base, Company::Pod(round));
                Stopped::Again
            }
        })
    }

    /// An attempt at the current round came to nothing. Returns what becomes of the round, if that was the attempt.
    pub(in crate::session) fn pod_failed(&mut self, now_ms: u64, mark: PodMark) -> Option<Failed> {
        let training = self.current_of(mark.lease)?;
        if training.pod.as_ref()?.round.mark != mark {
            return None;
        }
        if training.stopping {
            return self.stopped(mark.lease).map(|stopped| Failed::Stopped(mark.lease, stopped));
        }
        let Training { lease, pod, since_ms, .. } = self.take_current(mark.lease)?;
        // Attempts that fail at once do not follow each other at the speed of the link.
        let next_ms = since_ms.saturating_add(limits::AGENT_RETRY_MS);
        self.rest_until_ms = (next_ms > now_ms).then_some(next_ms).or(self.rest_until_ms);
        self.try_again(lease, pod?.base, Company::awaited(now_ms));
        Some(Failed::Waits)
    }

    /// While a pod computes a round no other one is prepared, so that nothing is lost over this.
    fn try_again(&mut self, lease: Lease, base: Arc<[f32]>, company: Company) {
        let stage = Stage::Ready(Grant { lease, evaluate: false, company }, base);
        self.next = Some(Next { stage, asked_during: None, lacks: None });
    }

    fn current_of(&mut self, lease: LeaseId) -> Option<&mut Training> {
        self.current.as_mut().filter(|training| training.lease.id == lease)
    }
}

impl Company {
    /// Whether the end of this attempt is that of the round.
    fn is_over_with(&self, mark: PodMark) -> bool {
        match self {
            Self::Alone => false,
            Self::Awaited { .. } => true,
            Self::Pod(round) => round.mark <= mark,
        }
    }
}

impl Next {
    pub(super) fn pod_until_ms(&self) -> Option<u64> {
        match self.grant()?.company {
            Company::Awaited { until_ms } => Some(until_ms),
            Company::Alone | Company::Pod(_) => None,
        }
    }

    fn grant_of(&mut self, lease: LeaseId) -> Option<&mut Grant> {
        match &mut self.stage {
            Stage::Fetching(grant) | Stage::Ready(grant, _) => Some(grant).filter(|grant| grant.lease.id == lease),
            Stage::Asking { .. } => None,
        }
    }
}
