//! The rounds of an agent: one is computed, one is prepared meanwhile, and at most two deltas wait for the store.
//!
//! ```text
//!  next                                       current
//!  Asking ──► Fetching ──► Ready ──► (device free) ──► Training ──► banking ──► outbox
//!     lease      base        │           ▲
//!                            └─ base evaluated, if asked
//! ```
//! A round passes through the same stages whether the device is free or computes the round before. Only the time at which
//! its lease is requested differs. A round that a pod computes is ready when its pod is known too (`pods`).

mod pods;

use std::sync::Arc;

use anabranch_common::ids::{BranchId, LeaseId};
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodRound};

use super::command::{Lead, StartedFrom};
use super::event::Outcome;
use super::replica::{Replica, Wanted};
use super::tempo::{Spent, Tempo, Waits};

pub use pods::InPod;
pub(super) use pods::{Company, Failed, Over, PodCame, Stopped};

/// The round that is being computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Its lease.
    pub lease: Lease,
    /// When it began.
    pub since_ms: u64,
    /// Steps that the lease asks for.
    pub all_steps: u32,
    /// Steps done,
    pub steps: u32,
    /// as of then.
    pub moved_ms: u64,
    /// Examples a second, lately.
    pub examples_per_s: f32,
    /// Whether it was told to stop.
    pub stopping: bool,
    /// What it started from, where its plan asks for it.
    pub started_from: Option<StartedFrom>,
    /// The pod that computes it, if one does.
    pub pod: Option<InPod>,
}

/// The round that is being prepared.
#[derive(Debug)]
struct Next {
    stage: Stage,
    /// The round that was computed when the lease was requested.
    asked_during: Option<LeaseId>,
    /// The delta of that round, once it is complete: the base does not have it.
    lacks: Option<Arc<[f32]>>,
}

/// How far the preparation of a round is.
#[derive(Debug)]
enum Stage {
    /// Its lease is requested. Without an answer by then, the connection is given up.
    Asking { until_ms: u64 },
    /// Its base is being fetched.
    Fetching(Grant),
    /// It can begin from this base, whatever else is fetched meanwhile.
    Ready(Grant, Arc<[f32]>),
}

#[derive(Debug)]
struct Grant {
    lease: Lease,
    /// Whether to evaluate the base first.
    evaluate: bool,
    /// Who computes the round.
    company: Company,
}

/// A round whose delta is being made durable.
#[derive(Debug)]
struct Banking {
    lease: LeaseId,
    ended_ms: u64,
    /// The attempt of the pod that computed it, until its end is told: what is not durable is still at work.
    pod: Option<PodMark>,
}

/// What a request for a lease depends on beside the rounds themselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions {
    /// Whether the agent can train for this run at present.
    pub(super) may_work: bool,
    /// Which rounds and updates of this agent a request may overtake.
    pub(super) overlap: Overlap,
    /// Whether an evaluation or another agent's round has the device, or is about to have it.
    pub(super) busy: bool,
    /// Whether the link brings a model that is to be evaluated: a base would have to wait for it.
    pub(super) fetches_to_evaluate: bool,
    /// Whether a verdict is worth waiting for.
    pub(super) awaits_verdict: bool,
    /// Updates in the outbox,
    pub(super) outbox: usize,
    /// and those of them that are not sent as a whole.
    pub(super) unsent: usize,
    /// Whether the present round waits for the device, which other runs use too.
    pub(super) awaits_turn: bool,
}

/// What may still be under way when the next lease is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlap {
    /// A round that is being computed, and updates.
    Rounds,
    /// Updates: a round begins after the one before has ended.
    Updates,
    /// Nothing: versions are closed behind a barrier, which takes one update of each agent, or updates are differences against
    /// a memory that each of them moves.
    Nothing,
}

/// What to do with the prepared round, with the device free.
#[derive(Debug, PartialEq)]
pub(super) enum Start {
    /// Compute it.
    Train(Beginning),
    /// Evaluate its base first.
    Evaluate { wanted: Wanted, content: Arc<[f32]> },
}

/// A round that begins.
#[derive(Debug, PartialEq)]
pub(super) struct Beginning {
    pub(super) lease: Lease,
    pub(super) base: Arc<[f32]>,
    /// What to start ahead of the base by.
    pub(super) lead: Option<Lead>,
    /// The pod that computes it, if one does.
    pub(super) pod: Option<Box<PodRound>>,
}

/// What the coordinator had granted of a round that was given up before it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Its lease.
    pub(super) lease: LeaseId,
    /// The attempt of its pod, if one was formed.
    pub(super) pod: Option<PodMark>,
}

/// The rounds on their way, and when the next lease may be requested.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    current: Option<Training>,
    next: Option<Next>,
    banking: Vec<Banking>,
    /// The lease and base of a round that a crash has cut off: it is computed before another lease is requested.
    cut_off: Option<(Lease, Arc<[f32]>)>,
    tempo: Tempo,
    /// Until when the time is accounted for.
    accounted_ms: u64,
    /// Set while the coordinator has no lease: when to ask again unasked.
    no_lease_until_ms: Option<u64>,
    /// Set while a failed round rests before the next one begins.
    rest_until_ms: Option<u64>,
}

impl Rounds {
    /// Returns the round that is being computed.
    pub(super) fn current(&self) -> Option<&Training> {
        self.current.as_ref()
    }

    /// Whether deltas are still being computed or stored.
    pub(super) fn are_busy(&self) -> bool {
        self.current.is_some() || !self.banking.is_empty()
    }

    /// Returns the base that is being fetched.
    pub(super) fn fetching(&self) -> Option<Wanted> {
        match &self.next.as_ref()?.stage {
            Stage::Fetching(grant) => Some(base_of(&grant.lease)),
            Stage::Asking { .. } | Stage::Ready(..) => None,
        }
    }

    /// Returns how long the coordinator has for its answer to a request for a lease.
    pub(super) fn asking_until_ms(&self) -> Option<u64> {
        match self.next.as_ref()?.stage {
            Stage::Asking { until_ms } => Some(until_ms),
            Stage::Fetching(_) | Stage::Ready(..) => None,
        }
    }

    /// Returns when to request the next lease, if nothing happens before.
    pub(super) fn ask_at_ms(&self, conditions: &Conditions) -> Option<u64> {
        let waits = self.next.is_some() || self.no_lease_until_ms.is_some() || self.rest_until_ms.is_some();
        if !conditions.may_work || conditions.fetches_to_evaluate || waits {
            return None;
        }
        match &self.current {
            Some(training) => {
                let banking = self.banking.len();
                let room = conditions.outbox + banking + 1 < limits::OUTBOX_UPDATES
                    && conditions.unsent + banking < limits::UNSENT_UPDATES;
                let Training { since_ms, moved_ms, steps, all_steps, stopping, .. } = *training;
                (conditions.overlap == Overlap::Rounds && !stopping && room && !conditions.awaits_turn)
                    .then(|| self.tempo.ask_at_ms(since_ms, moved_ms, steps, all_steps))?
            }
            None => {
                let most = if conditions.overlap == Overlap::Nothing { 1 } else { limits::OUTBOX_UPDATES };
                let room =
                    conditions.outbox < most && conditions.unsent < limits::UNSENT_UPDATES && self.banking.is_empty();
                (room && !conditions.busy && !conditions.awaits_verdict).then_some(0)
            }
        }
    }

    /// Marks a lease as requested.
    pub(super) fn ask(&mut self, now_ms: u64) {
        self.tempo.asked(now_ms);
        let stage = Stage::Asking { until_ms: now_ms.saturating_add(limits::REQUEST_TIMEOUT_MS) };
        self.next = Some(Next { stage, asked_during: self.current_lease(), lacks: None });
    }

    fn current_lease(&self) -> Option<LeaseId> {
        self.current.as_ref().map(|training| training.lease.id)
    }

    /// Whether a lease is of use: one was requested, or the device is free and nothing is being prepared.
    pub(super) fn wants_lease(&self, device_free: bool) -> bool {
        match &self.next {
            Some(next) => matches!(next.stage, Stage::Asking { .. }),
            None => device_free,
        }
    }

    /// Takes a lease. Returns the base to fetch, if `replica` does not hold it.
    pub(super) fn granted(
        &mut self,
        now_ms: u64,
        lease: Lease,
        evaluate: bool,
        company: Company,
        replica: &Replica,
    ) -> Option<Wanted> {
        let wanted = base_of(&lease);
        let grant = Grant { lease, evaluate, company };
        let held = replica.content(wanted);
        let fetch = held.is_none().then_some(wanted);
        let stage = match held {
            Some(base) => {
                self.tempo.obtained(now_ms, false);
                Stage::Ready(grant, base)
            }
            None => Stage::Fetching(grant),
        };
        let (asked_during, lacks) = self.next.take().map_or((None, None), |next| (next.asked_during, next.lacks));
        self.next = Some(Next { stage, asked_during, lacks });
        fetch
    }

    /// Takes over the base from `replica`, if it has come.
    pub(super) fn arrived(&mut self, now_ms: u64, replica: &Replica) {
        let Some(Next { stage, asked_during, lacks }) = self.next.take() else { return };
        let stage = match stage {
            Stage::Fetching(grant) => match replica.content(base_of(&grant.lease)) {
                Some(base) => {
                    self.tempo.obtained(now_ms, true);
                    Stage::Ready(grant, base)
                }
                None => Stage::Fetching(grant),
            },
            stage @ (Stage::Asking { .. } | Stage::Ready(..)) => stage,
        };
        self.next = Some(Next { stage, asked_during, lacks });
    }

    /// The coordinator has taken the request in, and a lease or a pod comes later.
    pub(super) fn request_stands(&mut self, now_ms: u64) {
        let until_ms = match self.next.as_mut().map(|next| &mut next.stage) {
            Some(Stage::Asking { until_ms }) => until_ms,
            Some(Stage::Fetching(grant) | Stage::Ready(grant, _)) => match &mut grant.company {
                Company::Awaited { until_ms } => until_ms,
                Company::Alone | Company::Pod(_) => return,
            },
            None => return,
        };
        *until_ms = now_ms.saturating_add(limits::REQUEST_TIMEOUT_MS);
    }

    /// Forgets a request that will not be answered, or was answered without a lease.
    pub(super) fn forget_request(&mut self) {
        self.next.take_if(|next| matches!(next.stage, Stage::Asking { .. }));
    }

    /// The connection is gone, and with it requests and refusals.
    pub(super) fn disconnected(&mut self) {
        self.forget_request();
        self.forget_incomplete_pod();
        self.may_be_leased();
    }

    /// Gives up the round that is being prepared. Returns what the coordinator has granted of it.
    pub(super) fn drop_next(&mut self) -> Option<Dropped> {
        self.next.take()?.dropped()
    }

    /// Gives up the round that is being prepared, if its lease has come. Returns what the coordinator has granted of it.
    pub(super) fn drop_granted(&mut self) -> Option<Dropped> {
        self.next.take_if(|next| next.grant().is_some())?.dropped()
    }

    /// Whether the model that an evaluation needs may be fetched: the fetch of a base must not be lost over it.
    pub(super) fn leaves_link_free(&self) -> bool {
        self.next.as_ref().is_none_or(|next| matches!(next.stage, Stage::Ready(..)))
    }

    /// Whether the base of the prepared round is to be evaluated before the round begins.
    pub(super) fn evaluates_first(&self) -> bool {
        matches!(&self.next, Some(Next { stage: Stage::Ready(Grant { evaluate: true, .. }, _), .. }))
    }

    /// Returns what to do with the prepared round, with the device free. The last update was merged with `merged_with`.
    /// `evaluates`: whether this agent can evaluate.
    pub(super) fn start(&mut self, merged_with: Option<f32>, evaluates: bool) -> Option<Start> {
        // A second delta that waits for the store would be one too many in memory.
        if self.rest_until_ms.is_some() || self.banking.len() > 1 {
            return None;
        }
        if let Stage::Ready(grant, base) = &mut self.next.as_mut()?.stage
            && std::mem::take(&mut grant.evaluate)
            && evaluates
        {
            return Some(Start::Evaluate { wanted: base_of(&grant.lease), content: Arc::clone(base) });
        }
        let next = self.next.take_if(|next| next.is_complete())?;
        let Stage::Ready(Grant { lease, company, .. }, base) = next.stage else { return None };
        let pod = company.into_pod();
        let weight = merged_with.filter(|weight| weight.is_finite()).unwrap_or(lease.plan.weight);
        // Every attempt of a pod starts from the base itself.
        let lacks = next.lacks.filter(|_| weight.is_finite() && pod.is_none());
        let lead = lacks.map(|delta| Lead { delta, weight });
        Some(Start::Train(Beginning { lease, base, lead, pod }))
    }

    /// Keeps a round that a crash has cut off.
    pub(super) fn resume(&mut self, lease: Lease, base: Arc<[f32]>) {
        self.cut_off = Some((lease, base));
    }

    /// Takes the round that a crash has cut off, if it is still of the run's branch.
    pub(super) fn take_cut_off(&mut self, branch: Option<BranchId>) -> Option<(Lease, Arc<[f32]>)> {
        self.cut_off.take().filter(|(lease, _)| Some(lease.branch) == branch)
    }

    /// A round begins, in this pod if there is one.
    pub(super) fn begin(
        &mut self,
        now_ms: u64,
        lease: Lease,
        all_steps: u32,
        from: StartedFrom,
        pod: Option<Box<PodRound>>,
    ) {
        let pod = pod.map(|round| InPod::new(round, Arc::clone(&from.base)));
        let started_from = lease.plan.base_dot.then_some(from);
        self.current = Some(Training {
            pod,
            lease,
            started_from,
            since_ms: now_ms,
            all_steps,
            steps: 0,
            moved_ms: now_ms,
            examples_per_s: 0.0,
            stopping: false,
        });
    }

    /// A round that had to wait for the device has it: its time counts from now on.
    pub(super) fn turn_came(&mut self, now_ms: u64) {
        if let Some(training) = self.current.as_mut().filter(|training| training.steps == 0) {
            (training.since_ms, training.moved_ms) = (now_ms, now_ms);
        }
    }

    /// Notes how far the round is. Returns whether it is the current one.
    pub(super) fn progress(&mut self, now_ms: u64, id: LeaseId, steps: u32, examples_per_s: f32) -> bool {
        let Some(training) = self.current.as_mut().filter(|training| training.lease.id == id) else { return false };
        (training.steps, training.moved_ms, training.examples_per_s) = (steps, now_ms, examples_per_s);
        true
    }

    /// Ends the current round with its result. Returns its lease and what it started from, for a delta that is to be stored:
    /// nothing if the round is not the current one, or not of this branch.
    pub(super) fn trained(
        &mut self,
        now_ms: u64,
        branch: Option<BranchId>,
        outcome: &Outcome,
    ) -> Option<(Lease, Option<StartedFrom>)> {
        let Training { lease, started_from, pod, stopping, .. } = self.take_current(outcome.lease)?;
        if Some(lease.branch) != branch {
            return None;
        }
        self.tempo.trained(outcome.local_steps, outcome.compute_ms);
        self.banking.push(Banking {
            lease: lease.id,
            ended_ms: now_ms,
            pod: pod.and_then(|pod| pod.at_work(stopping)),
        });
        if let Some(next) = self.next.as_mut().filter(|next| next.asked_during == Some(lease.id)) {
            next.lacks = Some(Arc::clone(&outcome.delta));
        }
        Some((lease, started_from))
    }

    fn take_current(&mut self, id: LeaseId) -> Option<Training> {
        self.current.take_if(|training| training.lease.id == id)
    }

    /// Marks the current round as told to stop, for its lease to be returned. Returns whether it has to be told.
    pub(super) fn stop(&mut self) -> bool {
        let Some(training) = &mut self.current else { return false };
        if let Some(pod) = &mut training.pod {
            pod.stop_for_good();
        }
        !std::mem::replace(&mut training.stopping, true)
    }

    /// A round gave nothing to send, in the trainer or in the store: the next one rests first.
    pub(super) fn discarded(&mut self, now_ms: u64, id: LeaseId) {
        if self.take_banking(id).is_none() {
            self.take_current(id);
        }
        self.rest(now_ms);
    }

    /// Lets what failed rest before it is tried again.
    pub(super) fn rest(&mut self, now_ms: u64) {
        self.rest_until_ms = Some(now_ms.saturating_add(limits::AGENT_RETRY_MS));
    }

    /// Marks the delta of a lease as stored. Returns when its round ended, if it was pending.
    pub(super) fn banked(&mut self, lease: LeaseId) -> Option<u64> {
        Some(self.take_banking(lease)?.ended_ms)
    }

    fn take_banking(&mut self, lease: LeaseId) -> Option<Banking> {
        let at = self.banking.iter().position(|banking| banking.lease == lease)?;
        Some(self.banking.remove(at))
    }

    /// The coordinator has no lease at present.
    pub(super) fn no_lease(&mut self, now_ms: u64) {
        self.no_lease_until_ms = Some(now_ms.saturating_add(limits::REQUEST_TIMEOUT_MS));
    }

    /// A lease may be there again.
    pub(super) fn may_be_leased(&mut self) {
        self.no_lease_until_ms = None;
    }

    /// Returns when a wait before the next request or round ends.
    pub(super) fn wait_ends_ms(&self) -> Option<u64> {
        [self.no_lease_until_ms, self.rest_until_ms].into_iter().flatten().min()
    }

    /// Ends the waits that are over.
    pub(super) fn tick(&mut self, now_ms: u64) {
        self.no_lease_until_ms.take_if(|until_ms| *until_ms <= now_ms);
        self.next.take_if(|next| next.pod_until_ms().is_some_and(|until_ms| until_ms <= now_ms));
        self.rest_until_ms.take_if(|until_ms| *until_ms <= now_ms);
    }

    /// The verdict on a round came so long after its end.
    pub(super) fn judged(&mut self, took_ms: u64) {
        self.tempo.judged(took_ms);
    }

    /// Returns how much time is not accounted for.
    pub(super) fn unaccounted_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.accounted_ms)
    }

    /// Accounts for the time until now.
    pub(super) fn spent(&mut self, now_ms: u64, how: Spent) {
        self.tempo.spent(self.unaccounted_ms(now_ms), how);
        self.accounted_ms = now_ms;
    }

    /// Returns what the time since the first round went into.
    pub(super) fn waits(&self) -> Waits {
        self.tempo.waits()
    }
}

impl Next {
    fn grant(&self) -> Option<&Grant> {
        match &self.stage {
            Stage::Fetching(grant) | Stage::Ready(grant, _) => Some(grant),
            Stage::Asking { .. } => None,
        }
    }

    fn dropped(&self) -> Option<Dropped> {
        let Grant { lease, company, .. } = self.grant()?;
        Some(Dropped { lease: lease.id, pod: company.mark() })
    }

    /// Whether nothing more has to come for it to begin.
    fn is_complete(&self) -> bool {
        matches!(&self.stage, Stage::Ready(grant, _) if !grant.company.is_awaited())
    }
}

fn base_of(lease: &Lease) -> Wanted {
    Wanted { version: lease.base_version, digest: lease.base_digest }
}
