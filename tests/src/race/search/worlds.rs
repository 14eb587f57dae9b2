//! The trials of a search in virtual time: a world a trial, with devices that all of them share.
//!
//! ```text
//!  trial 0 ── World ─┐                        ┌─ device of agent 1: one round at a time, in the order in which they began
//!  trial 3 ── World ─┼─ earliest event first ─┼─ device of agent 2
//!  trial 7 ── World ─┘                        └─ ...
//! ```
//! A trial that has the contributions that it was to have is paused, as an operator pauses a run. Lines are not shared: each
//! world has its own.

use std::collections::BTreeMap;

use anabranch_common::ids::ModelVersion;
use anabranch_common::wire::operator::RunRequest;
use anabranch_coordinator::search::record::TrialId;

use crate::sim::{Devices, Traffic, World};

/// One trial.
struct Trial {
    world: World,
    /// When its world began, in milliseconds since the first one did.
    began_ms: u64,
    /// Contributions at which it is held; absent while it is.
    until: Option<u64>,
}

/// Every trial that was begun.
#[derive(Default)]
pub(super) struct Worlds {
    devices: Devices,
    now_ms: u64,
    trials: BTreeMap<TrialId, Trial>,
}

/// What became of the trial whose event came next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Came {
    /// It has the contributions that it was to have, and is held.
    Reached { contributions: u64, version: ModelVersion },
    /// It cannot go on.
    Broken { reason: String },
}

impl Worlds {
    /// Virtual time since the first trial began, in milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Returns the devices for the world of a trial that begins now.
    pub(super) fn devices(&self) -> Devices {
        self.devices.from(self.now_ms)
    }

    /// Adds a trial that begins now.
    pub(super) fn make(&mut self, trial: TrialId, world: World) {
        self.trials.insert(trial, Trial { world, began_ms: self.now_ms, until: None });
    }

    /// Lets a trial go on until it has so many contributions.
    pub(super) fn go_on(&mut self, trial: TrialId, until: u64) {
        let now_ms = self.now_ms;
        let Some(trial) = self.trials.get_mut(&trial) else { return };
        // Its time is not behind that of the others.
        trial.world.advance(now_ms - trial.began_ms);
        trial.until = Some(until);
        trial.world.asks(RunRequest::Resume);
    }

    /// Lets things happen until a trial comes to something. Nothing comes where every trial is held.
    pub(super) fn next(&mut self) -> Option<(TrialId, Came)> {
        while self.trials.values().any(|trial| trial.until.is_some()) {
            let (at_ms, number) = self.trials.iter().filter_map(|(number, trial)| trial.next_ms(*number)).min()?;
            self.now_ms = self.now_ms.max(at_ms);
            let Some(trial) = self.trials.get_mut(&number) else { continue };
            if let Some(came) = trial.step(at_ms) {
                return Some((number, came));
            }
        }
        None
    }

    /// kill -9 of the coordinator of every trial, which starts again at once.
    pub(super) fn kill_coordinator(&mut self) {
        let now_ms = self.now_ms;
        for trial in self.trials.values_mut().filter(|trial| !trial.world.is_broken()) {
            trial.world.advance(now_ms - trial.began_ms);
            trial.world.kill_coordinator();
            // It starts again at the same time.
            trial.world.advance(now_ms - trial.began_ms);
        }
    }

    /// Lets a trial give no more leases.
    pub(super) fn hold(&mut self, trial: TrialId) {
        if let Some(trial) = self.trials.get_mut(&trial).filter(|trial| !trial.world.is_broken()) {
            trial.until = None;
            trial.world.asks(RunRequest::Pause);
        }
    }

    /// Returns the model that a trial serves.
    pub(super) fn model(&self, trial: TrialId) -> Option<&[f32]> {
        self.trials.get(&trial)?.world.served_model()
    }

    /// Returns the contributions of all trials together.
    pub(super) fn contributions(&self) -> u64 {
        self.trials.values().map(|trial| trial.world.merged()).sum()
    }

    /// Returns what all trials together have sent.
    pub(super) fn traffic(&self) -> Traffic {
        self.trials.values().map(|trial| trial.world.traffic()).fold(Traffic::default(), |all, one| Traffic {
            up_bytes: all.up_bytes + one.up_bytes,
            down_bytes: all.down_bytes + one.down_bytes,
        })
    }

    /// Returns promises that were broken, once no trial goes on: what is stored is audited too.
    pub(super) fn finish(self) -> Vec<(TrialId, String)> {
        let broken = |(number, trial): (TrialId, Trial)| {
            let (outcome, _) = trial.world.finish();
            outcome.violation.map(|(_, violation)| (number, violation.to_string()))
        };
        self.trials.into_iter().filter_map(broken).collect()
    }
}

impl Trial {
    /// When its next event is, in milliseconds since the first trial began.
    fn next_ms(&self, number: TrialId) -> Option<(u64, TrialId)> {
        let next_ms = self.world.next_ms().filter(|_| !self.world.is_broken())?;
        Some((self.began_ms + next_ms, number))
    }

    /// Lets happen what happens at this time.
    fn step(&mut self, at_ms: u64) -> Option<Came> {
        self.world.advance(at_ms - self.began_ms);
        let until = self.until?;
        if self.world.is_broken() {
            self.until = None;
            let reason = self.world.outcome().violation.map(|(_, violation)| violation.to_string());
            return Some(Came::Broken { reason: reason.unwrap_or_default() });
        }
        let contributions = self.world.merged();
        (contributions >= until).then(|| {
            self.until = None;
            self.world.asks(RunRequest::Pause);
            Came::Reached { contributions, version: self.world.version() }
        })
    }
}
