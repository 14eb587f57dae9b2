//! What is done to a world, and how it is mended.

use anabranch_agent::node::Input;
use anabranch_agent::session::event::Event as AgentEvent;
use anabranch_common::wire::operator::RunRequest;
use anabranch_coordinator::host::Input as CoordinatorInput;

use crate::picture::MarkKind;

use super::disk::{Failure, Loss};
use super::network::{IDLE_MS, Side};
use super::schedule::{Fault, Machine};
use super::setting::Stopped;
use super::trace::Sign;
use super::world::{Happening, World};

/// What keeps a machine from working as it should, for a while.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hindrance {
    stopped_until_ms: u64,
    /// Until when, and by how much every sync is late.
    slow_disk: Option<(u64, u64)>,
    pub(super) hangs_until_ms: u64,
}

impl World {
    pub(super) fn fault(&mut self, index: usize) {
        if self.healed_at_ms.is_some() {
            return;
        }
        let fault = self.schedule.faults[index].fault.clone();
        let machine = fault.machine();
        if machine > self.agents.len() {
            return;
        }
        let needs = match &fault {
            Fault::Terminate { machine, .. } => Some(*machine),
            Fault::Pause { .. } | Fault::Rollback { .. } | Fault::Revoke { .. } => Some(0),
            _ => None,
        };
        if let Some(until_ms) = needs.and_then(|machine| self.stopped_until(machine)) {
            return self.agenda.at(until_ms, Happening::Fault(index));
        }
        self.faults += 1;
        self.note(machine, Sign::Mark(MarkKind::Fault), || format!("fault: {fault:?}"));
        let now_ms = self.now_ms();
        match fault {
            Fault::Kill { power, down_ms, .. } => self.kill(machine, power, Some(down_ms)),
            Fault::Disk { operations, failure, down_ms, .. } => self.burn(machine, operations, failure, down_ms),
            Fault::Terminate { down_ms, .. } => self.terminate(machine, down_ms),
            Fault::Wipe { .. } => {
                self.kill(machine, false, Some(1_000));
                self.agent(machine).wipe();
            }
            Fault::Leave { .. } => {
                self.kill(machine, false, None);
                self.agent(machine).gone = true;
            }
            Fault::Cut { up, down, for_ms, .. } => self.cut(machine, up, down, now_ms + for_ms),
            Fault::Sever { other, for_ms, .. } => self.pods.network.sever(machine, other, now_ms + for_ms),
            Fault::Rebind { .. } => self.cut(machine, true, true, now_ms + 700),
            Fault::Clock { by_ms } => self.coordinator.clock_off_ms += by_ms,
            Fault::Pause { for_ms } => {
                self.operate(RunRequest::Pause);
                self.after(for_ms, Happening::Resume);
            }
            Fault::Rollback { versions } => {
                self.coordinator.roll_back_by = Some(versions);
                self.terminate(0, 500);
            }
            Fault::Revoke { .. } => self.revoke(machine),
            Fault::Flip { seed, .. } => self.flip(machine, seed),
            Fault::SlowDisk { extra_ms, for_ms, .. } => {
                self.hindrances[machine].slow_disk = Some((now_ms + for_ms, extra_ms));
            }
            Fault::Stop { for_ms, .. } => self.stop(machine, for_ms),
            Fault::Hang { for_ms, .. } => {
                self.hindrances[machine].hangs_until_ms = (now_ms + for_ms).min(self.schedule.length_ms)
            }
        }
    }

    /// What lies there is noticed when it is read, or is what was written: looked at now, and again whenever it is read.
    fn flip(&mut self, machine: Machine, seed: u64) {
        let disk = if machine == 0 { &self.coordinator.disk } else { &self.agents[machine - 1].disk };
        if let Some(place) = disk.flip(seed) {
            self.note(machine, Sign::Plain, || place);
            let audited = if machine == 0 { self.audit_damaged() } else { Ok(()) };
            self.checked(audited);
        }
    }

    fn stop(&mut self, machine: Machine, for_ms: u64) {
        let now_ms = self.now_ms();
        let until_ms = (now_ms + for_ms).min(self.schedule.length_ms);
        // Never earlier than what already waits: it would be overtaken.
        let before_ms = self.hindrances[machine].stopped_until_ms;
        let until_ms = until_ms.max(before_ms);
        if machine > 0 && self.setting.stopped == Stopped::StandsStill {
            self.agent(machine).delay_training(until_ms - before_ms.max(now_ms));
        }
        self.hindrances[machine].stopped_until_ms = until_ms;
        if until_ms > now_ms + IDLE_MS {
            self.after(IDLE_MS, Happening::Silent { machine, until_ms });
        }
    }

    /// A process has stood still for so long that those at the other end give it up.
    pub(super) fn silent(&mut self, machine: Machine, until_ms: u64) {
        if self.stopped_until(machine).is_none_or(|later_ms| later_ms < until_ms) {
            return;
        }
        let other = if machine == 0 { Side::Agent } else { Side::Coordinator };
        let conns = self.conns.iter().filter(|(_, conn)| machine == 0 || conn.machine == machine);
        let conns: Vec<u64> = conns.map(|(id, _)| *id).collect();
        conns.into_iter().for_each(|conn| self.lost(conn, other));
    }

    /// Until when a process stands still.
    pub(super) fn stopped_until(&self, machine: Machine) -> Option<u64> {
        Some(self.hindrances[machine].stopped_until_ms).filter(|until_ms| *until_ms > self.now_ms())
    }

    /// How much longer a sync takes.
    pub(super) fn sync_delay_ms(&self, machine: Machine) -> u64 {
        let slow = self.hindrances[machine].slow_disk.filter(|(until_ms, _)| *until_ms > self.now_ms());
        slow.map_or(0, |(_, extra_ms)| extra_ms)
    }

    fn burn(&mut self, machine: Machine, operations: u64, failure: Failure, down_ms: u64) {
        let disk = if machine == 0 { &self.coordinator.disk } else { &self.agents[machine - 1].disk };
        disk.light(operations, failure);
        if machine == 0 {
            self.coordinator.repair_ms = down_ms;
        } else {
            self.agent(machine).repair_ms = down_ms;
        }
    }

    /// kill -9, with or without the machine's power. Without `down_ms` it does not start again.
    pub(super) fn kill(&mut self, machine: Machine, power: bool, down_ms: Option<u64>) {
        let loss = if power { Loss::Power { seed: self.rng.next_u64() } } else { Loss::Nothing };
        self.hindrances[machine].stopped_until_ms = 0;
        let running = if machine == 0 {
            self.coordinator.replaced_at_ms = (down_ms == Some(0)).then_some(self.agenda.now_ms());
            self.cut_short();
            self.coordinator.disk.crash(loss);
            if let Loss::Power { seed } = loss {
                self.coordinator.spool.lose_power(seed);
            }
            self.coordinator_died()
        } else {
            self.agents[machine - 1].disk.crash(loss);
            self.agent_died(machine)
        };
        if let Some(down_ms) = down_ms.filter(|_| running) {
            self.after(down_ms, Happening::Start(machine));
        }
    }

    fn terminate(&mut self, machine: Machine, down_ms: u64) {
        if machine == 0 {
            self.coordinator.restart_after_ms = Some(down_ms);
            self.coordinator_takes(CoordinatorInput::Park);
        } else {
            self.agent(machine).restart_after_ms = Some(down_ms);
            self.agent_handles(machine, Input::Event(AgentEvent::Shutdown));
        }
    }

    fn cut(&mut self, machine: Machine, up: bool, down: bool, until_ms: u64) {
        let now_ms = self.now_ms();
        self.agent(machine).line.cut(up, down, until_ms);
        let conns: Vec<u64> =
            self.conns.iter().filter(|(_, conn)| conn.machine == machine).map(|(id, _)| *id).collect();
        for conn in conns {
            for side in [Side::Agent, Side::Coordinator] {
                if self.agent(machine).line.is_deaf(side, now_ms) {
                    self.after(IDLE_MS, Happening::Idle(conn, side));
                }
            }
        }
    }

    /// Every fault is over: what is broken is mended, what is down starts.
    pub(super) fn heal(&mut self) {
        let now_ms = self.now_ms();
        self.note(0, Sign::Plain, || "all faults are over".into());
        self.healed_at_ms = Some(now_ms);
        self.hindrances.fill(Hindrance::default());
        self.coordinator.disk.repair();
        self.pods.network.heal();
        for agent in &mut self.agents {
            agent.disk.repair();
            agent.heal(now_ms);
        }
        for machine in 0..=self.agents.len() {
            self.after(100, Happening::Start(machine));
        }
        self.after(1_000, Happening::Resume);
        self.after(2_000, Happening::Look);
    }
}
