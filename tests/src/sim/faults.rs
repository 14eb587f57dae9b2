//! What is done to a world, and how it is mended.

use anabranch_agent::core::event::Event as AgentEvent;
use anabranch_common::wire::operator::OperatorRequest;
use anabranch_coordinator::core::event::Event as CoordinatorEvent;

use crate::picture::MarkKind;

use super::disk::{Failure, Loss};
use super::network::{IDLE_MS, Side};
use super::schedule::{Fault, Machine};
use super::trace::Sign;
use super::world::{Happening, World};

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
            Fault::Rebind { .. } => self.cut(machine, true, true, now_ms + 700),
            Fault::Clock { by_ms } => self.coordinator.clock_off_ms += by_ms,
            Fault::Pause { for_ms } => {
                self.operate(OperatorRequest::Pause);
                self.after(for_ms, Happening::Resume);
            }
            Fault::Rollback { versions } => {
                self.coordinator.roll_back_by = Some(versions);
                self.terminate(0, 500);
            }
            Fault::Revoke { .. } => self.revoke(machine),
        }
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
        let running = if machine == 0 {
            self.coordinator.disk.crash(loss);
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
            self.coordinator_handles(CoordinatorEvent::Park);
        } else {
            self.agent(machine).restart_after_ms = Some(down_ms);
            self.agent_handles(machine, AgentEvent::Shutdown);
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
        self.coordinator.disk.mend();
        for agent in &mut self.agents {
            agent.disk.mend();
            agent.heal(now_ms);
        }
        for machine in 0..=self.agents.len() {
            self.after(100, Happening::Start(machine));
        }
        self.after(1_000, Happening::Resume);
        self.after(2_000, Happening::Look);
    }
}
