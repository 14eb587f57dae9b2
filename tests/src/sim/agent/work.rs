//! How the jobs of an agent's node are carried out in virtual time: the maths by the world's learner, those of the store on
//! the simulated disk.

use anabranch_agent::node::{self, Done, Input, MathsJob, StoreDone, StoreJob};
use anabranch_agent::session::event::{Encoded, Event};
use anabranch_common::codec::{self, CodecSpec, feedback::Feedback};
use anabranch_common::ids::Digest;

use crate::invariants::feedback::{self, Expected};
use crate::picture::SpanKind;

use crate::sim::disk::Failure;
use crate::sim::schedule::Machine;
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, RUN, World, agent_id};

use super::Training;
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
            process.training = Some(Training { job, lease: outcome.lease, ends_ms: at_ms });
        }
        self.agenda.at(at_ms, Happening::AgentDone { machine, life, job, done: Box::new(done) });
    }

    pub(in crate::sim) fn agent_done(&mut self, machine: Machine, life: u64, job: u64, done: Done) {
        if !self.agent(machine).is_life(life) {
            return;
        }
        if let Done::Maths(Event::Trained(outcome)) = &done {
            let now_ms = self.now_ms();
            let Some(process) = self.agent(machine).process.as_mut() else { return };
            // It was stopped in the meantime.
            let Some(training) = process.training.filter(|training| training.job == job) else { return };
            // It stood still in the meantime.
            if training.ends_ms > now_ms {
                let what = Happening::AgentDone { machine, life, job, done: Box::new(done) };
                return self.agenda.at(training.ends_ms, what);
            }
            process.training = None;
            let lease = outcome.lease;
            self.note(machine, Sign::End(SpanKind::Train), || format!("trained under lease {}", lease.0));
        }
        self.agent_handles(machine, Input::Done(done));
    }

    /// The maths: what a job leads to, and how long it takes.
    pub(in crate::sim) fn compute(&mut self, machine: Machine, job: MathsJob) {
        let overhead = self.setting.overhead;
        let (takes_ms, event) = match &job {
            MathsJob::Train { pod: Some(_), .. } | MathsJob::Serve { .. } => return self.pod_begins(machine, job),
            MathsJob::Train { .. } => self.train(machine, job),
            MathsJob::Evaluate { .. } => (overhead.of(200), self.evaluate(machine, job)),
            _ => (overhead.of(5), self.setting.learner.work(machine, job)),
        };
        self.done_in(machine, takes_ms, Done::Maths(event));
    }

    fn evaluate(&mut self, machine: Machine, job: MathsJob) -> Event {
        let agent = self.agent(machine);
        agent.evaluations += 1;
        let (every, held) = (agent.plan.evaluation_fails_every, agent.plan.eval_examples);
        let fails = every > 0 && agent.evaluations.is_multiple_of(every);
        if let MathsJob::Evaluate { version, content } = &job {
            let evaluates = self.journal.evaluates(*version, Digest::of_f32(content));
            self.checked(evaluates);
        }
        if let MathsJob::Evaluate { version, .. } = job
            && fails
        {
            return Event::EvaluationFailed { version, problem: "it fails by plan".to_owned() };
        }
        match self.setting.learner.work(machine, job) {
            Event::Evaluated { version, accuracy, loss, .. } => {
                Event::Evaluated { version, accuracy, loss, num_examples: held }
            }
            other => other,
        }
    }

    fn train(&mut self, machine: Machine, job: MathsJob) -> (u64, Event) {
        let MathsJob::Train { lease, spec, .. } = &job else { return (0, self.setting.learner.work(machine, job)) };
        let (id, base, steps) = (lease.id, lease.base_version, spec.train.local_steps);
        let codec = spec.upload.codec;
        let agent = self.agent(machine);
        agent.rounds += 1;
        let fails = agent.plan.round_fails_every > 0 && agent.rounds.is_multiple_of(agent.plan.round_fails_every);
        let (round_ms, hostile) = (agent.plan.round_ms, agent.plan.hostile);
        // `round_ms` is for as many steps as are configured.
        let takes_ms = round_ms * u64::from(steps) / u64::from(self.setting.spec.train.local_steps);
        self.note(machine, Sign::Begin(SpanKind::Train), || format!("trains from version {base} under lease {}", id.0));
        let event = match self.setting.learner.work(machine, job) {
            Event::Trained(_) if fails => Event::Discarded { lease: id, problem: "out of memory".into() },
            Event::Trained(mut outcome) => {
                outcome.compute_ms = takes_ms;
                if hostile.is_some() {
                    let mut delta = outcome.delta.to_vec();
                    distort(hostile, &mut delta);
                    outcome.delta = delta.into();
                }
                if self.setting.learner.encodes(machine) {
                    outcome.encoded = self.encoded(machine, codec, &outcome.delta);
                }
                Event::Trained(outcome)
            }
            other => other,
        };
        let now_ms = self.now_ms();
        let waits_ms = self.setting.devices.as_ref().map_or(0, |devices| devices.wait_ms(machine, now_ms, takes_ms));
        (waits_ms + takes_ms, event)
    }

    /// What a trainer makes that encodes, from the state that the ledger has when the round starts: what happens to that
    /// until the round is over is for the ledger to notice.
    fn encoded(&mut self, machine: Machine, codec: CodecSpec, delta: &[f32]) -> Option<Encoded> {
        let feedback_decay = self.setting.spec.upload.feedback_decay;
        let process = self.agents[machine - 1].process.as_ref()?;
        let states = process.ledger.states();
        let mut feedback = Feedback::restore(feedback_decay, process.ledger.residual().unwrap_or_default().to_vec());
        let payload = feedback.encode(&*codec::encoder(codec), self.setting.learner.manifest(), delta).ok()?;
        Some(Encoded { codec, feedback_decay, from: states.current(), made: states.fresh(), payload })
    }

    /// The store's thread takes a job.
    pub(in crate::sim) fn store(&mut self, machine: Machine, job: StoreJob) {
        let late_ms = self.sync_delay_ms(machine);
        let agent = self.agent(machine);
        let (drawn_ms, life) = (1 + agent.rng.below(15) + late_ms, agent.life);
        let takes_ms = self.setting.overhead.of(drawn_ms);
        self.after(takes_ms, Happening::AgentStore { machine, life, job: Box::new(job) });
    }

    pub(in crate::sim) fn agent_stores(&mut self, machine: Machine, life: u64, job: StoreJob) {
        let now_ms = self.now_ms();
        let agent = &mut self.agents[machine - 1];
        let Some(process) = agent.process.as_mut().filter(|_| agent.life == life) else { return };
        let (ledger, manifest) = (&mut process.ledger, self.setting.learner.manifest());
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
        // A job that fails may have taken the memory out.
        let remembered = ledger.memory().filter(|_| done.is_ok());
        let remembered = remembered.map(|(mark, values)| self.journal.remembers(mark, values));
        let compared = expected.filter(|_| done.is_ok()).map(|expected| expected.compare(ledger));
        adopted
            .into_iter()
            .filter(|_| done.is_ok())
            .chain(compared)
            .chain(remembered)
            .for_each(|check| self.checked(check));
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
