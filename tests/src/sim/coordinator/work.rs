//! The three workers, one job at a time, and what a storage error does.

use anabranch_common::limits;
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::event::Event;
use anabranch_coordinator::workers::{self, Keep, Merged, WorkerError, WriteJob};

use crate::picture::MarkKind;

use crate::sim::disk::Failure;
use crate::sim::schedule::Schedule;
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, World};

fn keep(schedule: &Schedule) -> Keep {
    let retention = if schedule.keep_journal { Retention::All } else { Retention::SinceSnapshot };
    Keep { checkpoints: 2, retention }
}

impl World {
    pub(in crate::sim) fn set_to_work(&mut self) {
        let life = self.coordinator.life;
        let draw = [self.rng.below(20), self.rng.below(10), self.rng.below(200), self.rng.below(100)];
        let stall_ms = if draw[3] == 0 { 3_000 } else { 0 } + self.sync_delay_ms(0);
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let mut due = Vec::new();
        if !process.busy.0 && !process.writing.is_empty() {
            process.busy.0 = true;
            due.push((1 + draw[0] + stall_ms, Happening::Write(life)));
        }
        if !process.busy.1 && !process.merging.is_empty() {
            process.busy.1 = true;
            due.push((draw[1], Happening::Merge(life)));
        }
        if !process.busy.2 && !process.checkpoints.is_empty() {
            process.busy.2 = true;
            due.push((5 + draw[2] + stall_ms, Happening::Checkpoint(life)));
        }
        due.into_iter().for_each(|(ms, what)| self.after(ms, what));
    }

    pub(in crate::sim) fn write(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        process.busy.0 = false;
        let group = process.writing.len().min(limits::GROUP_COMMIT_RECORDS);
        let jobs: Vec<WriteJob> = process.writing.drain(..group).collect();
        match workers::write(&*process.store, jobs) {
            Ok(events) => {
                for event in events {
                    if let Event::Journalled { upto } = &event
                        && self.coordinator.disk.burnt().is_none()
                    {
                        self.journal.synced(*upto);
                    }
                    self.coordinator_handles(event);
                }
                self.set_to_work();
            }
            Err(error) => self.storage_failed(&error),
        }
    }

    pub(in crate::sim) fn merge(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        process.busy.1 = false;
        let Some(job) = process.merging.pop_front() else { return };
        match process.merger.handle(job) {
            Ok(Merged::Nothing) => {}
            Ok(Merged::NonFinite(version)) => self.coordinator_handles(Event::NonFinite { version }),
            Ok(Merged::Published(snapshot)) => {
                let (version, digest, transfer) = (snapshot.version, snapshot.digest, snapshot.transfer.clone());
                let model = process.merger.model().map(|state| state.model().to_vec()).unwrap_or_default();
                process.publisher.add(snapshot);
                let published = self.journal.published(version, digest, &model);
                self.checked(published);
                self.checked_ledger(version, &model);
                self.coordinator.newest_version = version;
                self.trace.version(self.agenda.now_ms(), version.0);
                self.coordinator_handles(Event::Published { version, digest, transfer });
            }
            Ok(Merged::Checkpoint(job)) => process.checkpoints.push_back(job),
            Err(error) => return self.violate("P4", format!("the merger fails: {error}")),
        }
        self.set_to_work();
    }

    pub(in crate::sim) fn checkpoint(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        process.busy.2 = false;
        let Some(job) = process.checkpoints.pop_front() else { return };
        match workers::write_checkpoint(&*process.store, keep(&self.schedule), *job) {
            Ok(event) => {
                self.note(0, Sign::Mark(MarkKind::Checkpoint), || "checkpoint".into());
                self.coordinator_handles(event);
                self.set_to_work();
            }
            Err(error) => self.storage_failed(&error),
        }
    }

    /// kill -9 comes in the middle of what the writer and the checkpointer are doing: a part of it has happened.
    pub(in crate::sim) fn cut_short(&mut self) {
        let operations = [self.rng.below(12), self.rng.below(12)];
        let keep = keep(&self.schedule);
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let disk = &self.coordinator.disk;
        if disk.burnt().is_some() {
            return;
        }
        if process.busy.0 {
            disk.light(operations[0], Failure::Killed);
            let group = process.writing.len().min(limits::GROUP_COMMIT_RECORDS);
            _ = workers::write(&*process.store, process.writing.drain(..group).collect());
            disk.mend();
        }
        if process.busy.2
            && let Some(job) = process.checkpoints.pop_front()
        {
            disk.light(operations[1], Failure::Killed);
            _ = workers::write_checkpoint(&*process.store, keep, *job);
        }
    }

    /// The process refuses what is damaged and ends; the operator puts it back.
    pub(in crate::sim) fn restore_coordinator(&mut self, problem: &str) {
        self.note(0, Sign::Plain, || format!("what is damaged is refused, and restored from a copy: {problem}"));
        self.coordinator.disk.restore();
        let repair_ms = self.coordinator.repair_ms;
        if self.coordinator.process.is_none() {
            self.after(repair_ms, Happening::Start(0));
        }
        self.kill(0, false, Some(repair_ms));
    }

    /// P7: a storage error ends the process, and nobody is told anything more.
    pub(in crate::sim) fn storage_failed(&mut self, error: &WorkerError) {
        let repair_ms = self.coordinator.repair_ms;
        match self.coordinator.disk.burnt() {
            None if self.coordinator.disk.is_damaged() => self.restore_coordinator(&error.to_string()),
            None => self.violate("P7", format!("the storage fails without a fault: {error:?}")),
            Some(failure) => {
                self.note(0, Sign::Plain, || format!("the storage fails ({failure:?}): {error}"));
                let power = self.rng.below(2) == 0;
                if self.coordinator.process.is_none() {
                    self.coordinator.disk.mend();
                    self.after(repair_ms, Happening::Start(0));
                }
                self.kill(0, power, Some(repair_ms));
            }
        }
    }
}
