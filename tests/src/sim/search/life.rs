//! Kills of the coordinator, and what happens to agents.

use anabranch_common::limits;
use anabranch_coordinator::host::{Output, SearchesJob};
use anabranch_coordinator::node::{Job, write};
use anabranch_coordinator::search::journal;
use anabranch_coordinator::store::Store as _;

use crate::sim::disk::{Failure, Loss};
use crate::sim::network::Side;

use super::plan::{Disturbance, KillAt};
use super::world::{Happening, World};

impl World {
    /// Something that a search has wanted is about to happen, or has happened. Returns whether the process was killed here.
    pub(super) fn step(&mut self, what: impl FnOnce() -> String) -> bool {
        let step = self.coordinator.steps;
        self.coordinator.steps += 1;
        self.note(0, || format!("step {step}: {}", what()));
        let due = self.kills.iter().find(|(_, at)| **at == KillAt::Step(step)).map(|(index, _)| *index);
        match due {
            Some(index) => {
                self.kills.remove(&index);
                self.kill_coordinator(index);
                true
            }
            None => false,
        }
    }

    /// kill -9 of the coordinator, with or without the power of its machine.
    pub(super) fn kill_coordinator(&mut self, index: usize) {
        let kill = self.plan.kills[index];
        if self.coordinator.process.is_none() {
            return;
        }
        self.faults += 1;
        self.note(0, || format!("is killed: {kill:?}"));
        self.coordinator.replaced_at_ms = (kill.down_ms == 0).then_some(self.now_ms());
        self.cut_short();
        for disk in self.coordinator.disks().cloned().collect::<Vec<_>>() {
            let loss = if kill.power { Loss::Power { seed: self.rng.next_u64() } } else { Loss::Nothing };
            disk.crash(loss);
        }
        if kill.power {
            for directory in self.coordinator.directories.values_mut() {
                directory.spool.lose_power(self.rng.next_u64());
            }
        }
        self.coordinator.process = None;
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        for id in streams {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.conn.coordinator_up = false;
            }
            self.after(limits::IDLE_TIMEOUT_MS, Happening::Lost(id, Side::Agent));
        }
        self.after(kill.down_ms, Happening::Start(0));
    }

    /// kill -9 comes in the middle of what is written: a part of it has happened.
    fn cut_short(&mut self) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        for (_, job) in std::mem::take(&mut process.jobs) {
            let operations = self.rng.below(12);
            match job {
                Output::Run { run, job } => {
                    let Some(open) = process.runs.get(&run) else { continue };
                    let Some(directory) = self.coordinator.directories.get(&open.name) else { continue };
                    directory.disk.light(operations, Failure::Killed);
                    match job {
                        Job::Write(group) => _ = write::write(&*open.store, group),
                        Job::Checkpoint(job) => _ = job.run(&*open.store, open.keep),
                        Job::Merge(_) | Job::Decode(_) | Job::Spool(_) | Job::Pack(_) => {}
                    }
                    directory.disk.mend();
                }
                Output::Searches(SearchesJob::Write { records, .. }) => {
                    let (Some(store), Some(disk)) = (&process.search, &self.coordinator.search) else { continue };
                    disk.light(operations, Failure::Killed);
                    _ = journal::write(store.journal(), &records);
                    disk.mend();
                }
                _ => {}
            }
        }
    }

    /// A new process answers what is left of old connections with a reset, once something comes on them: for all streams of an
    /// agent at the same time. After an outage of length zero that is at once.
    pub(super) fn reset_stale_streams(&mut self) {
        let at_once = self.coordinator.replaced_at_ms == Some(self.now_ms());
        for machine in 1..=self.agents.len() {
            let wait_ms = if at_once { 0 } else { self.rng.below(limits::KEEP_ALIVE_MS) };
            let stale = self.streams.iter().filter(|(_, stream)| stream.conn.machine == machine);
            let stale: Vec<u64> = stale.filter(|(_, stream)| !stream.conn.coordinator_up).map(|(id, _)| *id).collect();
            stale.into_iter().for_each(|stream| self.after(wait_ms, Happening::Lost(stream, Side::Agent)));
        }
    }

    /// What the plan does to an agent.
    pub(super) fn trouble(&mut self, index: usize) {
        let trouble = self.plan.troubles[index];
        let (now_ms, machine) = (self.now_ms(), trouble.machine);
        if self.is_healed || machine > self.agents.len() {
            return;
        }
        self.faults += 1;
        self.note(machine, || format!("trouble: {:?}", trouble.what));
        match trouble.what {
            Disturbance::Kill { down_ms } => {
                if self.agent_dies(machine) {
                    self.after(down_ms, Happening::Start(machine));
                }
            }
            Disturbance::Leave => {
                self.agent(machine).gone = true;
                self.agent_dies(machine);
            }
            Disturbance::Cut { for_ms } => {
                self.agent(machine).line.cut(true, true, now_ms + for_ms);
                let streams = self.streams.iter().filter(|(_, stream)| stream.conn.machine == machine);
                let streams: Vec<u64> = streams.map(|(id, _)| *id).collect();
                // Both ends give it up when they have heard nothing for so long.
                for stream in streams.into_iter().filter(|_| for_ms >= limits::IDLE_TIMEOUT_MS) {
                    self.after(limits::IDLE_TIMEOUT_MS, Happening::Lost(stream, Side::Agent));
                    self.after(limits::IDLE_TIMEOUT_MS, Happening::Lost(stream, Side::Coordinator));
                }
            }
        }
    }

    /// Every trouble is over: what is down starts.
    pub(super) fn heal(&mut self) {
        self.note(0, || "all troubles are over".into());
        self.is_healed = true;
        let now_ms = self.now_ms();
        for machine in 1..=self.agents.len() {
            self.agent(machine).heal(now_ms);
            self.after(100, Happening::Start(machine));
        }
    }
}
