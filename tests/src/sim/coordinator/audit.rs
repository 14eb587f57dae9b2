//! What can be seen of the promises from outside the process.

use anabranch_common::ids::ModelVersion;
use anabranch_coordinator::driver;
use anabranch_coordinator::recovery::{self, RecoveryError};
use anabranch_coordinator::store::{Engine, StorageError, Store as _};

use crate::invariants::journal::{Checked, broken, ensure};
use crate::invariants::members::Members;

use crate::sim::disk::SimDisk;
use crate::sim::schedule::Task;
use crate::sim::world::World;

impl World {
    /// P1, where it can be seen: coordinate L is 1 if the update of lease L is part of this version, else 0.
    pub(in crate::sim) fn checked_ledger(&mut self, version: ModelVersion, model: &[f32]) {
        if self.schedule.task == Task::Ledger {
            let found = ledger(self.journal.merged(), version, model);
            self.coordinator.duplicated += model.iter().filter(|value| **value > 1.0).count() as u64;
            self.checked(found);
        }
    }

    /// P2 and P4 where a bit has changed by itself: the store is refused, or says what was written.
    pub(in crate::sim) fn audit_damaged(&self) -> Checked {
        let store = match Engine::open(self.coordinator.disk.copy()) {
            Ok(store) => store,
            Err(StorageError::Corrupt { .. }) => return Ok(()),
            Err(error) => return broken("P7", format!("a damaged store: {error}")),
        };
        let holds = recovery::verify(&store).is_ok_and(|report| report.holds);
        match recovery::recover(&store) {
            Ok(found) => self.journal.is_as_written(
                found.position,
                found.chain,
                found.state.branch,
                found.state.version,
                found.model.model(),
            ),
            Err(error) => ensure(!holds, "P2", || format!("a store that holds cannot be recovered: {error}")),
        }
    }

    /// P2 once more at every start, by the second implementation: whatever killed the process has left nothing half done.
    pub(in crate::sim) fn verified(&self, store: &Engine<SimDisk>) -> Checked {
        if self.coordinator.disk.is_damaged() {
            return Ok(());
        }
        holds(store)
    }

    /// After everything: the store as it lies there holds, and says what agents were told.
    pub(in crate::sim) fn audit(&mut self) -> Checked {
        self.journal.audit()?;
        self.agents.iter().try_for_each(|agent| agent.audit(&self.journal))?;
        let broken_by = |error: &dyn std::fmt::Display| broken("P2", format!("the audit: {error}"));
        let store = match Engine::open(self.coordinator.disk.copy()) {
            Ok(store) => store,
            Err(error) => return broken_by(&error),
        };
        let found = match recovery::recover(&store) {
            Ok(found) => found,
            Err(RecoveryError::Empty) => return self.journal.recovered_nothing(),
            Err(error) => return broken_by(&error),
        };
        holds(&store)?;
        self.journal.recovered(found.position, found.chain, found.state.version, found.model.model())?;
        self.journal.recovered_base(found.model.base())?;
        self.checked_ledger(found.state.version, found.model.model());
        self.setting.learner.learned(found.state.version, found.model.model())?;
        match driver::registry(store.catalogue()) {
            Ok(registry) => {
                self.coordinator.members.recovered(&registry, Some(&found.state))?;
                Members::settled(&registry, Some(&found.state))?;
            }
            Err(error) => return broken("P2", format!("the audit: {error:#}")),
        }
        self.journal.audit()
    }
}

/// The second implementation agrees with all that is stored.
fn holds(store: &Engine<SimDisk>) -> Checked {
    match recovery::verify(store) {
        Ok(report) => ensure(report.holds, "P2", || format!("the store does not hold: {:?}", report.problem)),
        Err(error) => broken("P2", format!("the store cannot be verified: {error}")),
    }
}

fn ledger(merged: &[crate::invariants::journal::Merged], version: ModelVersion, model: &[f32]) -> Checked {
    let mut expected = vec![0.0_f32; model.len()];
    for merged in merged.iter().filter(|merged| merged.version <= version) {
        if let Some(value) = usize::try_from(merged.lease.0).ok().and_then(|lease| expected.get_mut(lease)) {
            *value += 1.0;
        }
    }
    let differs = expected.iter().zip(model).position(|(expected, found)| expected != found);
    let Some(lease) = differs else { return Ok(()) };
    broken("P1", format!("version {version}: lease {lease} counts {}, and should {}", model[lease], expected[lease]))
}
