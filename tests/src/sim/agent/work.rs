//! How the jobs of an agent's node are carried out in virtual time: the maths by a stand-in, those of the store on the
//! simulated disk.

use anabranch_agent::node::{self, Done, Input, MathsJob, StoreDone, StoreJob};
use anabranch_agent::session::event::{Encoded, Event, Outcome};
use anabranch_agent::train::Metrics;
use anabranch_common::codec::{self, feedback::Feedback};
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::Lease;
use anabranch_common::spec::{TrainSpec, UploadSpec};

use crate::invariants::feedback::{self, Expected};
use crate::picture::SpanKind;

use crate::sim::disk::Failure;
use crate::sim::schedule::Machine;
use crate::sim::spec::{run_spec, takes_ms};
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, RUN, World, agent_id};

use super::hostile::distort;

impl World {
    /// A job is done after a while.
    pub(in crate::sim) fn done_in(&mut self, machine: Machine, takes_ms: u64, done: Done) {
        let (at_ms, agent) = (self.now_ms() + takes_ms, self.agent(machine));
        let life = agent.life;
        let Some(process) = agent.process.as_mut() else { return };
        process.next_job += 1;
        let job = process.next_job;
        if let Done::Maths(Event::Trained(outcome)) = &done {
            process.training = Some((job, outcome.lease));
        }
        self.agenda.at(at_ms, Happening::AgentDone { machine, life, job, done: Box::new(done) });
    }

    pub(in crate::sim) fn agent_done(&mut self, machine: Machine, life: u64, job: u64, done: Done) {
        if !self.agent(machine).is_life(life) {
            return;
        }
        if let Done::Maths(Event::Trained(outcome)) = &done {
            let Some(process) = self.agent(machine).process.as_mut() else { return };
            // It was stopped in the meantime.
            if process.training.take_if(|(training, _)| *training == job).is_none() {
                return;
            }
            let lease = outcome.lease;
            self.note(machine, Sign::End(SpanKind::Train), || format!("trained under lease {}", lease.0));
        }
        self.agent_handles(machine, Input::Done(done));
    }

    /// The maths: what a job leads to, and how long it takes.
    pub(in crate::sim) fn compute(&mut self, machine: Machine, job: MathsJob) {
        let (takes_ms, event) = match job {
            MathsJob::Prepare(_) => (5, Event::Prepared { manifest: self.learner.manifest.clone() }),
            MathsJob::Reorder(manifest) => (5, Event::Prepared { manifest: *manifest }),
            MathsJob::MakeInitial { .. } => {
                let initial = self.learner.initial();
                (5, node::initial_model(&self.learner.manifest, initial.into()))
            }
            MathsJob::Train { lease, spec, start } => self.train(machine, &lease, &spec.train, &start.model()),
            MathsJob::Evaluate { version, content } => (200, self.evaluate(machine, version, &content)),
        };
        self.done_in(machine, takes_ms, Done::Maths(event));
    }

    fn evaluate(&mut self, machine: Machine, version: ModelVersion, content: &[f32]) -> Event {
        let agent = self.agent(machine);
        agent.evaluations += 1;
        let (every, num_examples) = (agent.plan.evaluation_fails_every, agent.plan.eval_examples);
        if every > 0 && agent.evaluations.is_multiple_of(every) {
            return Event::EvaluationFailed { version, problem: "it fails by plan".to_owned() };
        }
        node::judged(version, Metrics { num_examples, ..self.learner.judge(machine, content) })
    }

    fn train(&mut self, machine: Machine, lease: &Lease, plan: &TrainSpec, base: &[f32]) -> (u64, Event) {
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
        (takes_ms, event)
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

    /// The store's thread takes a job.
    pub(in crate::sim) fn store(&mut self, machine: Machine, job: StoreJob) {
        let late_ms = self.sync_delay_ms(machine);
        let agent = self.agent(machine);
        let (takes_ms, life) = (1 + agent.rng.below(15) + late_ms, agent.life);
        self.after(takes_ms, Happening::AgentStore { machine, life, job: Box::new(job) });
    }

    pub(in crate::sim) fn agent_stores(&mut self, machine: Machine, life: u64, job: StoreJob) {
        let now_ms = self.now_ms();
        let agent = &mut self.agents[machine - 1];
        let Some(process) = agent.process.as_mut().filter(|_| agent.life == life) else { return };
        let (ledger, manifest) = (&mut process.ledger, &self.learner.manifest);
        let expected = match &job {
            StoreJob::Settle { key, .. } => {
                self.journal.verdict(*key).and_then(|verdict| Expected::of(ledger, manifest, *key, verdict))
            }
            _ => None,
        };
        let adopting = match &job {
            StoreJob::Adopt(branch) => Some((ledger.branch(), *branch)),
            _ => None,
        };
        let done = job.run(ledger, RUN, agent_id(machine));
        if let Ok(StoreDone::Event(Event::Banked(entry))) = &done {
            agent.banked.insert(entry.meta.key, now_ms);
        }
        let adopted = adopting.map(|(before, branch)| feedback::adopted(ledger, before, branch));
        let compared = expected.filter(|_| done.is_ok()).map(|expected| expected.compare(ledger));
        adopted.into_iter().filter(|_| done.is_ok()).chain(compared).for_each(|check| self.checked(check));
        let agent = &mut self.agents[machine - 1];
        let failed = |error| Input::Done(Done::Store(StoreDone::Event(node::storage_failed(error))));
        match (done, agent.disk.burnt()) {
            (Ok(done), _) => self.agent_handles(machine, Input::Done(Done::Store(done))),
            (Err(error), None) if agent.disk.is_damaged() => self.agent_handles(machine, failed(&error)),
            (Err(error), None) => self.violate("P7", format!("agent {machine}'s store fails without a fault: {error}")),
            (Err(_), Some(Failure::Killed | Failure::KilledInSync)) => {
                let (repair_ms, power) = (agent.repair_ms, agent.rng.below(2) == 0);
                self.kill(machine, power, Some(repair_ms));
            }
            (Err(error), Some(_)) => self.agent_handles(machine, failed(&error)),
        }
    }
}
