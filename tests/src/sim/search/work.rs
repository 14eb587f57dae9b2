//! What an agent says, stores and computes.

use anabranch_agent::host::Input;
use anabranch_agent::node::{self, Done, MathsJob, StoreJob};
use anabranch_agent::session::event::Event;
use anabranch_common::ids::{Digest, RunId};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::runs::RunsListed;
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_coordinator::search::record::TrialId;
use anabranch_coordinator::search::run_name;

use crate::sim::network::{Down, Parcel, Side};
use crate::sim::schedule::Machine;
use crate::sim::world::agent_id;

use super::coordinator::run_id;
use super::learner;
use super::plan::{Divergence, SEARCH};
use super::world::{Happening, Purpose, World};

/// How long a model is evaluated, and how long other maths take.
const EVALUATION_MS: u64 = 60;
const OTHER_MS: u64 = 5;

impl World {
    pub(super) fn say(&mut self, machine: Machine, run: RunId, message: AgentMessage) {
        if let Some(stream) = self.part_of(machine, run).and_then(|part| part.stream) {
            self.send_up(stream, Parcel::Message(message));
        }
    }

    pub(super) fn send_chunks(
        &mut self,
        machine: Machine,
        run: RunId,
        content: &[u8],
        transfer: &TransferManifest,
        missing: &Missing,
    ) {
        let mut arrived_ms = self.now_ms();
        let Some(stream) = self.part_of(machine, run).and_then(|part| part.stream) else { return };
        let id = transfer.id();
        for index in missing.indices(transfer.chunks.len()) {
            let Some(bytes) = transfer.range(index).and_then(|range| content.get(range)) else { continue };
            let chunk = Parcel::Chunk { transfer: id, index, bytes: bytes.to_vec() };
            arrived_ms = arrived_ms.max(self.send_up(stream, chunk));
        }
        let at_ms = self.agent(machine).line.arrival(Side::Agent, arrived_ms);
        self.agenda.at(at_ms, Happening::ChunksSent { stream, transfer: id });
    }

    /// The agent of a stream, its run and its number for it, as long as its end is open.
    fn agents_end(&self, stream: u64) -> Option<(Machine, RunId, u64)> {
        let stream = self.streams.get(&stream).filter(|stream| stream.conn.agent_up)?;
        match stream.purpose {
            Purpose::Run(run) => Some((stream.conn.machine, run, stream.conn.link)),
            Purpose::List => None,
        }
    }

    pub(super) fn chunks_sent(&mut self, stream: u64, transfer: Digest) {
        if let Some((machine, run, number)) = self.agents_end(stream) {
            self.link_event(machine, run, number, Event::ChunksSent { transfer });
        }
    }

    pub(super) fn arrived_down(&mut self, stream: u64, parcel: Down) {
        let Some((machine, run, number)) = self.agents_end(stream) else { return };
        let event = match parcel {
            Parcel::Chunk { transfer, index, bytes } => Event::Chunk { transfer, index, bytes },
            Parcel::Message(message) => {
                self.heard(machine, run, &message);
                Event::Message(message)
            }
        };
        self.link_event(machine, run, number, event);
    }

    fn heard(&mut self, machine: Machine, run: RunId, message: &CoordinatorMessage) {
        let Some(incarnation) = self.agent(machine).process.as_ref().map(|process| process.incarnation) else { return };
        let checked = match message {
            CoordinatorMessage::Verdict { key, verdict } => self.watch.heard(run, *key, verdict),
            CoordinatorMessage::Welcome(welcome) if welcome.model.is_some() => {
                self.watch.welcomed(run, welcome.agent, incarnation, welcome.epoch)
            }
            _ => Ok(()),
        };
        self.checked(checked);
    }

    pub(super) fn listed(&mut self, stream: u64, list: RunsListed) {
        let Some(stream) = self.streams.get(&stream).filter(|stream| stream.conn.agent_up) else { return };
        let machine = stream.conn.machine;
        self.agent_takes(machine, Input::Listed(list));
    }

    /// A job is done after a while.
    pub(super) fn done_in(&mut self, machine: Machine, run: RunId, takes_ms: u64, round: Option<u64>, done: Done) {
        let life = self.agent(machine).life;
        let input = Box::new(Input::Run { run, input: node::Input::Done(done) });
        self.after(takes_ms, Happening::AgentDone { machine, life, round, input });
    }

    pub(super) fn agent_done(&mut self, machine: Machine, life: u64, round: Option<u64>, input: Input) {
        let agent = self.agent(machine);
        let Some(process) = agent.process.as_mut().filter(|_| agent.life == life) else { return };
        // A round that was stopped in the meantime has been answered.
        if round.is_some() && process.round.take_if(|(current, ..)| Some(*current) == round).is_none() {
            return;
        }
        self.agent_takes(machine, input);
    }

    /// The maths: what a job leads to, and how long it takes.
    pub(super) fn compute(&mut self, machine: Machine, run: RunId, job: MathsJob) {
        let is_run = |trial: &u32| run_id(&run_name(SEARCH, TrialId(*trial))) == run;
        let divergence = self.plan.diverging.iter().find(|(trial, _)| is_run(trial)).map(|(_, kind)| *kind);
        let agent = self.agent(machine);
        let (takes_ms, event) = match job {
            MathsJob::Prepare(spec) => (OTHER_MS, Event::Prepared { manifest: learner::manifest(&spec.model) }),
            MathsJob::Reorder(manifest) => (OTHER_MS, Event::Prepared { manifest: *manifest }),
            MathsJob::MakeInitial { .. } => {
                let manifest = learner::manifest(&self.coordinator.directories[super::plan::OWN].config.spec.model);
                (OTHER_MS, learner::initial(&manifest))
            }
            MathsJob::Train { lease, spec, start, .. } => {
                agent.rounds += 1;
                let overflows = divergence == Some(Divergence::Overflows);
                let mut outcome = learner::train(machine, &lease, &spec, &start.model(), overflows);
                outcome.compute_ms = agent.plan.round_ms;
                let takes_ms = agent.plan.round_ms;
                let Some(process) = agent.process.as_mut() else { return };
                process.next_round += 1;
                let round = process.next_round;
                process.round = Some((round, run, lease.id));
                let event = if divergence == Some(Divergence::GivesNoUpdate) {
                    Event::Discarded { lease: lease.id, problem: "its delta is not finite".to_owned() }
                } else {
                    Event::Trained(Box::new(outcome))
                };
                let done = Done::Maths(event);
                return self.done_in(machine, run, takes_ms, Some(round), done);
            }
            MathsJob::Serve { .. } => return self.violate("P6", "there are no pods here"),
            MathsJob::Evaluate { version, content } => {
                let evaluations = agent.evaluations.entry(run).or_default();
                *evaluations += 1;
                let (evaluations, every) = (*evaluations, agent.plan.evaluation_fails_every);
                let examples = agent.plan.eval_examples;
                let is_finite = divergence != Some(Divergence::CannotBeEvaluated);
                let event = if every > 0 && evaluations.is_multiple_of(every) {
                    Event::EvaluationFailed { version, problem: "it fails by plan".to_owned() }
                } else {
                    learner::judge(machine, version, &content, examples, is_finite)
                };
                let evaluated = self.watch.evaluates(run, version, Digest::of_f32(&content));
                self.checked(evaluated);
                (EVALUATION_MS, event)
            }
        };
        self.done_in(machine, run, takes_ms, None, Done::Maths(event));
    }

    /// The round that is computed for a run is stopped.
    pub(super) fn stop_training(&mut self, machine: Machine, run: RunId) {
        let Some(process) = self.agent(machine).process.as_mut() else { return };
        if let Some((_, _, lease)) = process.round.take_if(|(_, of, _)| *of == run) {
            self.done_in(machine, run, OTHER_MS, None, Done::Maths(Event::TrainingStopped { lease }));
        }
    }

    /// The store's thread takes a job.
    pub(super) fn store(&mut self, machine: Machine, run: RunId, job: StoreJob) {
        let agent = self.agent(machine);
        let (takes_ms, life) = (1 + agent.rng.below(10), agent.life);
        self.after(takes_ms, Happening::AgentStore { machine, life, run, job: Box::new(job) });
    }

    pub(super) fn agent_stores(&mut self, machine: Machine, life: u64, run: RunId, job: StoreJob) {
        if self.agent(machine).life != life {
            return;
        }
        let Some(part) = self.part_of(machine, run) else { return };
        let done = match job.run(&mut part.ledger, run, agent_id(machine)) {
            Ok(done) => done,
            Err(error) => return self.violate("P7", format!("agent {machine}'s store fails without a fault: {error}")),
        };
        self.tell_run(machine, run, node::Input::Done(Done::Store(done)));
    }
}
