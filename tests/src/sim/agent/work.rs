//! What an agent's two threads do, in virtual time: the maths, and the store.

use anabranch_agent::encode::{self, BankError};
use anabranch_agent::session::command::Ending;
use anabranch_agent::session::event::{Encoded, Event, Outcome};
use anabranch_common::codec::{self, feedback::Feedback};
use anabranch_common::journal::Lease;
use anabranch_common::spec::{TrainSpec, UploadSpec};

use crate::invariants::feedback::{self, Expected};
use crate::picture::SpanKind;

use crate::sim::disk::Failure;
use crate::sim::schedule::Machine;
use crate::sim::spec::{run_spec, takes_ms};
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, RUN, World, agent_id};

use super::Chore;
use super::hostile::distort;

impl World {
    pub(in crate::sim) fn maths(&mut self, machine: Machine, takes_ms: u64, event: Event) {
        let now_ms = self.now_ms();
        let agent = self.agent(machine);
        let life = agent.life;
        let Some(process) = agent.process.as_mut() else { return };
        process.next_job += 1;
        let job = process.next_job;
        process.maths_free_ms = process.maths_free_ms.max(now_ms) + takes_ms;
        if let Event::Trained(outcome) = &event {
            process.training = Some((job, outcome.lease));
        }
        let at_ms = process.maths_free_ms;
        self.agenda.at(at_ms, Happening::AgentDone { machine, life, job, event: Box::new(event) });
    }

    pub(in crate::sim) fn beside_the_maths(&mut self, machine: Machine, takes_ms: u64, event: Event) {
        let (at_ms, agent) = (self.now_ms() + takes_ms, self.agent(machine));
        let life = agent.life;
        let Some(process) = agent.process.as_mut() else { return };
        process.next_job += 1;
        let job = process.next_job;
        self.agenda.at(at_ms, Happening::AgentDone { machine, life, job, event: Box::new(event) });
    }

    pub(in crate::sim) fn agent_done(&mut self, machine: Machine, life: u64, job: u64, event: Event) {
        if !self.agent(machine).is_life(life) {
            return;
        }
        if let Event::Trained(outcome) = &event {
            let Some(process) = self.agent(machine).process.as_mut() else { return };
            // It was stopped in the meantime.
            if process.training.take_if(|(training, _)| *training == job).is_none() {
                return;
            }
            let lease = outcome.lease;
            self.note(machine, Sign::End(SpanKind::Train), || format!("trained under lease {}", lease.0));
        }
        self.agent_handles(machine, event);
    }

    pub(in crate::sim) fn train(&mut self, machine: Machine, lease: &Lease, plan: &TrainSpec, base: &[f32]) {
        let agent = self.agent(machine);
        agent.rounds += 1;
        let fails = agent.plan.round_fails_every > 0 && agent.rounds.is_multiple_of(agent.plan.round_fails_every);
        let takes_ms = takes_ms(&self.schedule, &self.agents[machine - 1].plan, plan.local_steps);
        self.note(machine, Sign::Begin(SpanKind::Train), || {
            format!("trains from version {} under lease {}", lease.base_version, lease.id.0)
        });
        let hostile = self.agent(machine).plan.hostile;
        let round = self.learner.train(machine, lease, plan, base).filter(|_| !fails);
        let event = match round {
            Some(mut round) => {
                distort(hostile, &mut round.delta);
                let encoded = self.encoded(machine, &round.delta);
                Event::Trained(Box::new(Outcome {
                    lease: lease.id,
                    delta: round.delta.into(),
                    num_examples: round.num_examples,
                    local_steps: round.local_steps,
                    train_loss: round.train_loss,
                    compute_ms: takes_ms,
                    encoded,
                }))
            }
            None => Event::Discarded { lease: lease.id, problem: "out of memory".into() },
        };
        self.maths(machine, takes_ms, event);
    }

    /// Every other machine has a trainer that encodes, from the state that the ledger has when the round starts: what happens
    /// to that until the round is over is for the ledger to notice.
    fn encoded(&mut self, machine: Machine, delta: &[f32]) -> Option<Encoded> {
        let UploadSpec { codec, feedback_decay } = run_spec(&self.schedule).upload;
        let process = self.agents[machine - 1].process.as_ref().filter(|_| machine.is_multiple_of(2))?;
        let states = process.ledger.states();
        let mut feedback = Feedback::restore(feedback_decay, process.ledger.residual().unwrap_or_default().to_vec());
        let payload = feedback.encode(&*codec::encoder(codec), &self.learner.manifest, delta).ok()?;
        Some(Encoded { codec, feedback_decay, from: states.current(), made: states.fresh(), payload })
    }

    pub(in crate::sim) fn chore(&mut self, machine: Machine, chore: Chore) {
        let (now_ms, late_ms) = (self.now_ms(), self.sync_delay_ms(machine));
        let agent = self.agent(machine);
        let takes_ms = 1 + agent.rng.below(15) + late_ms;
        let life = agent.life;
        let Some(process) = agent.process.as_mut() else { return };
        process.store_free_ms = process.store_free_ms.max(now_ms) + takes_ms;
        let at_ms = process.store_free_ms;
        self.agenda.at(at_ms, Happening::AgentChore { machine, life, chore: Box::new(chore) });
    }

    pub(in crate::sim) fn agent_chore(&mut self, machine: Machine, life: u64, chore: Chore) {
        let now_ms = self.now_ms();
        let agent = &mut self.agents[machine - 1];
        let Some(process) = agent.process.as_mut().filter(|_| agent.life == life) else { return };
        let (mut expected, mut checks) = (None, Vec::new());
        let done = match chore {
            Chore::Bank(bank) => {
                let lease = bank.lease.id;
                match encode::bank(&mut process.ledger, RUN, agent_id(machine), &self.learner.manifest, *bank) {
                    Ok(entry) => {
                        agent.banked.insert(entry.meta.key, now_ms);
                        Ok(Some(Event::Banked(entry)))
                    }
                    Err(BankError::Storage(error)) => Err(error),
                    Err(error @ BankError::Encode(_)) => {
                        Ok(Some(Event::Discarded { lease, problem: error.to_string() }))
                    }
                }
            }
            Chore::Settle { key, content } => {
                let verdict = self.journal.verdict(key);
                expected =
                    verdict.and_then(|verdict| Expected::of(&process.ledger, &self.learner.manifest, key, verdict));
                process.ledger.settle(key, content).map(|()| Some(Event::Settled { key }))
            }
            Chore::Adopt(branch) => {
                let before = process.ledger.branch();
                let adopted = process.ledger.adopt(branch);
                checks.push(feedback::adopted(&process.ledger, before, branch));
                adopted.map(|()| None)
            }
        };
        if done.is_ok() {
            checks.extend(expected.map(|expected| expected.compare(&process.ledger)));
            checks.into_iter().for_each(|check| self.checked(check));
        }
        let agent = &mut self.agents[machine - 1];
        match (done, agent.disk.burnt()) {
            (Ok(None), _) => {}
            (Ok(Some(event)), _) => self.agent_handles(machine, event),
            (Err(error), None) if agent.disk.is_damaged() => {
                self.agent_handles(machine, Event::Failed(Ending::Storage(error.to_string())));
            }
            (Err(error), None) => self.violate("P7", format!("agent {machine}'s store fails without a fault: {error}")),
            (Err(_), Some(Failure::Killed | Failure::KilledInSync)) => {
                let (repair_ms, power) = (agent.repair_ms, agent.rng.below(2) == 0);
                self.kill(machine, power, Some(repair_ms));
            }
            (Err(error), Some(_)) => self.agent_handles(machine, Event::Failed(Ending::Storage(error.to_string()))),
        }
    }
}
