//! The round after the one that is being computed: its lease is asked for and its base fetched meanwhile, where waiting for
//! them afterwards would leave the device idle.

use std::sync::Arc;

use anabranch_common::ids::LeaseId;
use anabranch_common::journal::{Lease, Plan};
use anabranch_common::limits;
use anabranch_common::wire::message::{AgentMessage, RunPhase};

use super::command::{Command, Lead};
use super::replica::Wanted;
use super::tempo::{Spent, Waits};
use super::work::{Next, Work, return_lease};
use super::{Session, Trainer};

/// How far the next round is.
#[derive(Debug, Default)]
pub(super) enum Ahead {
    /// It was not asked for.
    #[default]
    Nothing,
    /// Its lease was.
    Asking {
        /// When to give up the connection.
        until_ms: u64,
    },
    /// Its base is being fetched.
    Fetching {
        /// Which.
        wanted: Wanted,
        /// The lease.
        lease: Lease,
        /// Whether to evaluate the base first.
        evaluate: bool,
    },
    /// It can begin.
    Ready {
        /// What it starts from.
        wanted: Wanted,
        /// That model's content: another one may be fetched and evaluated before.
        base: Arc<[f32]>,
        /// The lease.
        lease: Lease,
        /// Whether to evaluate the base first.
        evaluate: bool,
    },
}

impl Ahead {
    fn lease(&self) -> Option<LeaseId> {
        match self {
            Self::Fetching { lease, .. } | Self::Ready { lease, .. } => Some(lease.id),
            Self::Nothing | Self::Asking { .. } => None,
        }
    }
}

impl Session {
    /// When the lease of the next round is to be asked for, if no event comes before.
    pub(super) fn ask_ahead_ms(&self) -> Option<u64> {
        let Work::Training { since_ms, all_steps, moved_ms, steps, stopping: false, .. } = self.work else {
            return None;
        };
        let room = self.outbox.len() + self.banking.len() + 1 < limits::OUTBOX_UPDATES;
        let may = self.config.overlap
            && self.is_up()
            && self.phase == RunPhase::Running
            && self.hold.is_none()
            && self.stopping.is_none()
            && self.no_lease_until_ms.is_none()
            && self.rest_until_ms.is_none()
            && room
            && matches!(self.ahead, Ahead::Nothing)
            && matches!(self.trainer, Trainer::Ready(_));
        may.then(|| self.tempo.ask_at_ms(since_ms, moved_ms, steps, all_steps))?
    }

    /// Goes on with the next round beside the present one.
    pub(super) fn go_ahead(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.ask_ahead_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            self.ahead = Ahead::Asking { until_ms: now_ms + limits::REQUEST_TIMEOUT_MS };
            self.ask(now_ms, out);
            self.asked_in = self.training();
        }
        if let Ahead::Fetching { wanted, .. } = self.ahead
            && let Some(base) = self.replica.content(wanted)
            && let Ahead::Fetching { wanted, lease, evaluate } = std::mem::take(&mut self.ahead)
        {
            self.tempo.obtained(now_ms, true);
            self.ahead = Ahead::Ready { wanted, base, lease, evaluate };
        }
    }

    pub(super) fn ask(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        self.tempo.asked(now_ms);
        self.asked_in = None;
        self.lacking = None;
        out.push(Command::Send(AgentMessage::RequestLease));
    }

    /// The lease of the round that runs.
    fn training(&self) -> Option<LeaseId> {
        match &self.work {
            Work::Training { lease, .. } => Some(lease.id),
            _ => None,
        }
    }

    /// A round is complete: its delta is kept where the next base does not have it.
    pub(super) fn keep_lead(&mut self, lease: LeaseId, delta: &Arc<[f32]>) {
        self.lacking = (self.asked_in.take() == Some(lease)).then(|| Arc::clone(delta));
    }

    /// Returns what to start the next round, which has `plan`, ahead of its base by.
    pub(super) fn lead(&mut self, plan: &Plan) -> Option<Lead> {
        let delta = self.lacking.take()?;
        let weight = self.merged_with.filter(|weight| weight.is_finite()).unwrap_or(plan.weight);
        weight.is_finite().then_some(Lead { delta, weight })
    }

    /// A lease came for the round after the present one.
    pub(super) fn leased_ahead(&mut self, now_ms: u64, lease: Lease, evaluate: bool, out: &mut Vec<Command>) {
        let wanted = Wanted { version: lease.base_version, digest: lease.base_digest };
        if let Some(base) = self.replica.content(wanted) {
            self.tempo.obtained(now_ms, false);
            self.ahead = Ahead::Ready { wanted, base, lease, evaluate };
            return;
        }
        self.ahead = Ahead::Fetching { wanted, lease, evaluate };
        if let Some(ask) = self.replica.ask(now_ms, wanted) {
            out.push(Command::Send(ask));
        }
    }

    /// With nothing being computed, what was ahead is what is to be done.
    pub(super) fn catch_up(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        match std::mem::take(&mut self.ahead) {
            Ahead::Nothing => {}
            Ahead::Asking { until_ms } => self.work = Work::Asking { until_ms },
            Ahead::Fetching { wanted, lease, evaluate } => {
                self.work = Work::Fetching { wanted, then: Next::Train { lease, evaluate } };
            }
            Ahead::Ready { lease, .. } if self.hold.is_some() => {
                if self.is_up() {
                    out.push(return_lease(lease.id));
                }
            }
            // A second delta that waits for the store would be one too many in memory.
            ready @ Ahead::Ready { .. } if self.rest_until_ms.is_some() || self.banking.len() > 1 => self.ahead = ready,
            Ahead::Ready { wanted, base, lease, evaluate } => {
                self.replica.hold(wanted, base);
                self.fetched(now_ms, wanted, Next::Train { lease, evaluate }, out);
            }
        }
    }

    /// Gives up the next round; its lease goes back where it still counts.
    pub(super) fn drop_ahead(&mut self, give_back: bool, out: &mut Vec<Command>) {
        if let Some(lease) = std::mem::take(&mut self.ahead).lease().filter(|_| give_back && self.is_up()) {
            out.push(return_lease(lease));
        }
    }

    /// The model that is being fetched, for this round or the next.
    pub(super) fn fetching(&self) -> Option<Wanted> {
        match (&self.work, &self.ahead) {
            (Work::Fetching { wanted, .. }, _) | (_, Ahead::Fetching { wanted, .. }) => Some(*wanted),
            _ => None,
        }
    }

    /// How long the coordinator has for its answer to a request for a lease.
    pub(super) fn asking_until_ms(&self) -> Option<u64> {
        match (&self.work, &self.ahead) {
            (Work::Asking { until_ms }, _) | (_, Ahead::Asking { until_ms }) => Some(*until_ms),
            _ => None,
        }
    }

    /// How the time until now was spent.
    pub(super) fn account(&mut self, now_ms: u64) {
        let ms = now_ms.saturating_sub(self.now_ms);
        self.now_ms = now_ms;
        let wanted = self.config.train_examples > 0 && self.phase == RunPhase::Running;
        let how = match self.work {
            Work::Training { .. } | Work::Evaluating { .. } => Spent::Busy,
            _ if wanted && self.hold.is_none() && self.stopping.is_none() => Spent::Waiting,
            _ => Spent::Off,
        };
        self.tempo.spent(ms, how);
    }

    /// What the time since the first round went into.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.tempo.waits()
    }
}
