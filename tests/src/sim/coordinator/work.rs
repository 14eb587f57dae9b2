//! The node's jobs, each run as a whole when its time has come, and what a storage error does.

use anabranch_common::ids::{Digest, Position};
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::event::Event;
use anabranch_coordinator::host::{Input, Output};
use anabranch_coordinator::node::checkpoint::{CheckpointJob, Keep};
use anabranch_coordinator::node::merge::{MergeJob, Merged, ServedVector};
use anabranch_coordinator::node::write::{self, WriteJob};
use anabranch_coordinator::node::{DecodeJob, Done, Job, JobError, Node, PublishedModel};
use anabranch_coordinator::registry;
use anabranch_coordinator::registry::save::{self, SaveJob};
use anabranch_coordinator::store::Store as _;

use crate::picture::MarkKind;

use crate::sim::disk::Failure;
use crate::sim::schedule::Schedule;
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, RUN, World};

fn keep(schedule: &Schedule) -> Keep {
    let retention = if schedule.keep_journal { Retention::All } else { Retention::SinceSnapshot };
    Keep { checkpoints: 2, retention }
}

/// The jobs that are out, one of each kind.
#[derive(Default)]
pub(super) struct Jobs {
    write: Option<Vec<WriteJob>>,
    merge: Option<Vec<MergeJob>>,
    checkpoint: Option<Box<CheckpointJob>>,
    save: Option<Vec<SaveJob>>,
}

impl World {
    /// Shows the journal's watcher the records that the node has made, whether they are being written or wait.
    pub(super) fn see_records(&mut self, outputs: &[Output]) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let groups = outputs.iter().filter_map(|output| match output {
            Output::Run { job: Job::Write(group), .. } => Some(group),
            _ => None,
        });
        let given: Vec<_> = groups.flatten().map(WriteJob::record).collect();
        let unwritten = process.host.node(RUN).into_iter().flat_map(Node::unwritten);
        let records = (process.next_write.0..).map(Position).zip(given.iter().copied().chain(unwritten));
        let seen = records.into_iter().try_for_each(|(at, record)| self.journal.made(at, record));
        process.next_write.0 += given.len() as u64;
        self.checked(seen);
    }

    pub(super) fn set_to_work(&mut self, job: Job) {
        let life = self.coordinator.life;
        let job = match job {
            Job::Decode(job) => return self.decode(*job),
            Job::Spool(job) => {
                let unix_ms = self.unix_ms();
                let Some(done) = self.coordinator.spool.run(job, unix_ms) else { return };
                let wait_ms = self.setting.overhead.of(self.rng.below(20));
                return self.after(wait_ms, Happening::Coordinator(life, Box::new(Input::Done { run: RUN, done })));
            }
            Job::Pack(job) => {
                let wait_ms = self.setting.overhead.of(self.rng.below(5));
                let input = Input::Done { run: RUN, done: job.run() };
                return self.after(wait_ms, Happening::Coordinator(life, Box::new(input)));
            }
            job => job,
        };
        let stall_ms = if self.rng.below(100) == 0 { 3_000 } else { 0 } + self.sync_delay_ms(0);
        let (ms, what) = match &job {
            Job::Write(_) => (1 + self.rng.below(20) + stall_ms, Happening::Write(life)),
            Job::Merge(_) => (self.rng.below(10), Happening::Merge(life)),
            Job::Checkpoint(_) => (5 + self.rng.below(200) + stall_ms, Happening::Checkpoint(life)),
            Job::Decode(_) | Job::Spool(_) | Job::Pack(_) => return,
        };
        let ms = self.setting.overhead.of(ms);
        let Some(process) = self.coordinator.process.as_mut() else { return };
        match job {
            Job::Write(group) => process.jobs.write = Some(group),
            Job::Merge(batch) => process.jobs.merge = Some(batch),
            Job::Checkpoint(job) => process.jobs.checkpoint = Some(job),
            Job::Decode(_) | Job::Spool(_) | Job::Pack(_) => {}
        }
        self.after(ms, what);
    }

    pub(super) fn save_later(&mut self, group: Vec<SaveJob>) {
        let ms = self.setting.overhead.of(1 + self.rng.below(20) + self.sync_delay_ms(0));
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.jobs.save = Some(group);
        self.after(ms, Happening::Save(self.coordinator.life));
    }

    pub(in crate::sim) fn save(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        let Some(group) = process.jobs.save.take() else { return };
        let done = save::save(process.store.catalogue(), group);
        self.coordinator_takes(Input::Registry(registry::Done::Saved(done)));
    }

    /// Decoding takes a while, in which the connection may end.
    fn decode(&mut self, job: DecodeJob) {
        let busy_ms = if self.rng.below(8) == 0 { 3_000 } else { 50 };
        let (life, wait_ms) = (self.coordinator.life, self.setting.overhead.of(self.rng.below(busy_ms)));
        self.after(wait_ms, Happening::Coordinator(life, Box::new(Input::Done { run: RUN, done: job.run() })));
    }

    pub(in crate::sim) fn write(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        let Some(group) = process.jobs.write.take() else { return };
        let done = write::write(&*process.store, group);
        for event in done.iter().flatten() {
            if let Event::Journalled { upto } = event
                && self.coordinator.disk.burnt().is_none()
            {
                self.journal.synced(*upto);
            }
        }
        self.coordinator_takes(Input::Done { run: RUN, done: Done::Write(done) });
    }

    pub(in crate::sim) fn merge(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        let Some(batch) = process.jobs.merge.take() else { return };
        let done = process.merger.run(batch);
        for merged in done.iter().flatten() {
            if let Merged::Published { model, served, .. } = merged {
                self.published(model, served);
            }
        }
        self.coordinator_takes(Input::Done { run: RUN, done: Done::Merge(done) });
    }

    /// A batch ends with its publication: the merger has that version's model.
    fn published(&mut self, base: &PublishedModel, given: &ServedVector) {
        let Some(process) = self.coordinator.process.as_ref() else { return };
        let Some(state) = process.merger.model() else { return };
        let (newest, model, served) = (state.version(), state.model().to_vec(), Digest::of_f32(state.served().1));
        let published = self.journal.published((base.version, base.digest), state.base().1, newest, &model);
        self.checked(published);
        let given = match given {
            ServedVector::Same => Some((base.version, base.digest)),
            ServedVector::Other => None,
            ServedVector::Ready(model) => Some((model.version, model.digest)),
        };
        let served = self.journal.served(newest, served, given);
        self.checked(served);
        self.checked_ledger(newest, &model);
        self.coordinator.newest_version = newest;
        self.trace.version(self.agenda.now_ms(), newest.0);
    }

    pub(in crate::sim) fn checkpoint(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        let Some(job) = process.jobs.checkpoint.take() else { return };
        let done = job.run(&*process.store, keep(&self.schedule));
        if done.is_ok() {
            self.note(0, Sign::Mark(MarkKind::Checkpoint), || "checkpoint".into());
        }
        self.coordinator_takes(Input::Done { run: RUN, done: Done::Checkpoint(done) });
    }

    /// kill -9 comes in the middle of what the writer, the checkpointer and the saver are doing: a part of it has happened.
    pub(in crate::sim) fn cut_short(&mut self) {
        let operations = [self.rng.below(12), self.rng.below(12), self.rng.below(4)];
        let keep = keep(&self.schedule);
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let disk = &self.coordinator.disk;
        if disk.burnt().is_some() {
            return;
        }
        if let Some(group) = process.jobs.write.take() {
            disk.light(operations[0], Failure::Killed);
            _ = write::write(&*process.store, group);
            disk.mend();
        }
        if let Some(group) = process.jobs.save.take() {
            disk.light(operations[2], Failure::Killed);
            _ = save::save(process.store.catalogue(), group);
            disk.mend();
        }
        if let Some(job) = process.jobs.checkpoint.take() {
            disk.light(operations[1], Failure::Killed);
            _ = job.run(&*process.store, keep);
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
    pub(in crate::sim) fn job_failed(&mut self, error: &JobError) {
        if matches!(error, JobError::Merge(_) | JobError::Encode(_)) {
            return self.violate("P4", format!("the merger fails: {error}"));
        }
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
