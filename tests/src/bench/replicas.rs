//! `anabranch-lab bench replicas`: what replicas of a model send in a step, and how long a step takes.
//!
//! ```text
//!  member 0 ─ Links ─► member 1 ─ Links ─► ... ─► member 0    threads of one process, each with an agent's maths
//! ```
//! Members have real links, with certificates of one coordinator, and train a gpt on text of their own.
//!
//! | figure | held against |
//! |---|---|
//! | bytes of gradients that a member sends in a step | 2(N-1)/N times the bytes of the model: no all-reduce sends less |
//! | time of a step | that of as many members that train at the same time, each for itself: the same maths on the same cores |

use std::ops::ControlFlow;
use std::thread;

use anabranch_agent::pod::{Address, Attempt, ContentSizes, LinkWire, Parcel, ParcelSizes, Wire, WireError};
use anabranch_agent::shard::{Shard, Text};
use anabranch_agent::train::native::pipeline::Pipeline;
use anabranch_agent::train::native::replicas::{ReplicaMemory, ReplicaTask, serve, train_owned};
use anabranch_common::ids::{AgentId, Digest, LeaseId};
use anabranch_common::journal::Plan;
use anabranch_common::pod::{PodMark, PodPart, PodRound};
use anabranch_common::spec::{ModelSpec, OptimizerSpec, PodSpec, ReplicasSpec, TrainSpec};
use anabranch_testkit::lease::PLAN;
use anyhow::{Context as _, ensure};

use super::pipeline::member::Members;
use crate::clock::Stopwatch;
use crate::report::Report;
use crate::text::sentences;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Members of the ring
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=16))]
    members: u32,
    /// Steps of the round
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(3..=1_000))]
    steps: u32,
    /// Examples of each member's batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Threads for the maths of each member
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
    /// The gpt that is trained
    #[arg(long, value_name = "TOML", default_value = "context = 64\nlayers = 4\nheads = 4\nwidth = 128")]
    model: String,
}

/// How much more than the ideal a member may send: heads, and groups of unequal length.
const AIM: f64 = 1.01;
/// Silence after which a member counts as dead, in seconds; longer than a step takes anywhere here.
const DEADLINE_S: f64 = 60.0;
/// Sentences of each member's text.
const SENTENCES: usize = 400;

/// A member's links, with what goes over them.
struct Counted {
    wire: LinkWire,
    bytes: u64,
}

impl Wire for Counted {
    fn send(&mut self, address: Address, parcel: Parcel) -> Result<(), WireError> {
        if let Parcel::Chunk { values, .. } = &parcel {
            self.bytes += 4 * values.len() as u64;
        }
        self.wire.send(address, parcel)
    }

    fn receive(&mut self) -> Result<(Address, Parcel), WireError> {
        self.wire.receive()
    }
}

/// Stands where a member that trains for itself has nobody to send to.
struct NoWire;

impl Wire for NoWire {
    fn send(&mut self, _: Address, _: Parcel) -> Result<(), WireError> {
        Err(WireError::Over)
    }

    fn receive(&mut self) -> Result<(Address, Parcel), WireError> {
        Err(WireError::Over)
    }
}

/// What a round came to.
#[derive(Debug, Default)]
struct Found {
    /// Gradients that each member has sent in a step, in bytes.
    bytes: Vec<f64>,
    /// The same, if each sent as little as a ring can.
    ideal_bytes: f64,
    /// Time of a step, once all have begun.
    step_s: f64,
    /// The same of members that train for themselves.
    alone_s: f64,
}

/// Measures a round.
///
/// # Errors
/// The model is none, or a member fails.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let Options { members, steps, batch, threads, .. } = options;
    let command =
        format!("anabranch-lab bench replicas --members {members} --steps {steps} --batch {batch} --threads {threads}");
    let mut report = Report::new(&command, seed);
    let found = options.measure(seed)?;
    let most = found.bytes.iter().copied().fold(0.0, f64::max);
    let (of_ideal, of_alone) = (most / found.ideal_bytes, found.step_s / found.alone_s);
    println!(
        "{members} members with {threads} threads each: {:.3} MB of gradients a step, {of_ideal:.4} of the ideal; {:.1} ms a step, \
         {of_alone:.3} of {:.1} ms without a ring",
        most / 1e6,
        1e3 * found.step_s,
        1e3 * found.alone_s
    );
    report.metric("replicas_bytes_a_step", most);
    report.metric("replicas_ideal_bytes_a_step", found.ideal_bytes);
    report.metric("replicas_step_s", found.step_s);
    report.metric("replicas_step_alone_s", found.alone_s);
    report.aim(format!("at most {AIM} of the bytes that a ring takes"), of_ideal <= AIM);
    Ok(report)
}

impl Options {
    fn measure(&self, seed: u64) -> anyhow::Result<Found> {
        let model: ModelSpec = toml::from_str(&format!("kind = \"gpt\"\n{}", self.model)).context("--model")?;
        let plan = self.plan();
        let layers = Pipeline::layers(&model)?;
        let base = Pipeline::new(&model, &[layers], 1)?.initial(seed);
        let texts: Vec<Text> = (0..self.members)
            .map(|member| Text::new(sentences(SENTENCES, seed ^ u64::from(member)).into_bytes()).context("a text"))
            .collect::<anyhow::Result<_>>()?;
        let pod = Members::new(self.members as usize)?;
        let ids = pod.ids();
        let mut round = self.round(&ids, u32::try_from(layers)?);
        round.peers = pod.peers(&pod.ports()?);
        let task = |round, member: usize| ReplicaTask {
            model: &model,
            plan: &plan,
            round,
            me: ids[member],
            shard: &texts[member] as &dyn Shard,
            threads: self.threads.into(),
        };
        let spec = PodSpec::Replicas(ReplicasSpec { members: self.members, deadline_s: DEADLINE_S });
        let sizes = ParcelSizes { params: base.len(), contents: ContentSizes::default(), activations: 0, tied: 0 };
        let wires = pod.open(Attempt { round: &round, spec: &spec, sizes, part_params: &[] })?;
        let mut wires: Vec<Counted> = wires.into_iter().map(|wire| Counted { wire, bytes: 0 }).collect();
        let step_s = thread::scope(|scope| {
            let (first, others) = wires.split_first_mut().context("a pod without members")?;
            let (round, task) = (&round, &task);
            let helpers: Vec<_> = (1..)
                .zip(others)
                .map(|(member, wire)| {
                    scope.spawn(move || serve(&task(round, member), &mut ReplicaMemory::of_process(None), wire))
                })
                .collect();
            let step_s = steps_s(&task(round, 0), &base, seed, first)?;
            for helper in helpers {
                helper.join().expect("a member does not panic")?;
            }
            anyhow::Ok(step_s)
        })?;
        let bytes = wires.iter().map(|counted| counted.bytes as f64 / f64::from(self.steps)).collect();
        let rounds: Vec<PodRound> = ids.iter().map(|id| self.round(&[*id], 1)).collect();
        let alone = thread::scope(|scope| {
            let (base, task, rounds) = (&base, &task, &rounds);
            let training: Vec<_> = (0..ids.len())
                .map(|member| scope.spawn(move || steps_s(&task(&rounds[member], member), base, seed, &mut NoWire)))
                .collect();
            let ended = training.into_iter().map(|thread| thread.join().expect("a member does not panic"));
            ended.collect::<anyhow::Result<Vec<f64>>>()
        })?;
        let members = f64::from(self.members);
        Ok(Found {
            bytes,
            ideal_bytes: 2.0 * (members - 1.0) / members * 4.0 * base.len() as f64,
            step_s,
            alone_s: alone.iter().sum::<f64>() / members,
        })
    }

    fn plan(&self) -> TrainSpec {
        TrainSpec {
            local_steps: self.steps,
            batch_size: self.batch,
            optimizer: OptimizerSpec::Sgd { lr: 0.01, momentum: 0.9 },
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        }
    }

    fn round(&self, ids: &[AgentId], layers: u32) -> PodRound {
        PodRound {
            mark: PodMark { lease: LeaseId(1), attempt: 1 },
            owner: ids[0],
            parts: ids.iter().map(|agent| PodPart { end: layers, agent: *agent }).collect(),
            peers: Vec::new(),
            plan: Plan { local_steps: self.steps, ..PLAN },
            spec: Digest::default(),
        }
    }
}

/// Trains a round, and returns the time of a step after the first one.
fn steps_s(task: &ReplicaTask<'_>, base: &[f32], seed: u64, wire: &mut dyn Wire) -> anyhow::Result<f64> {
    let watch = Stopwatch::start();
    let mut ends_s = Vec::new();
    let trained = train_owned(task, &mut ReplicaMemory::of_process(None), base, seed, wire, &mut |_| {
        ends_s.push(watch.seconds());
        ControlFlow::Continue(())
    })?;
    ensure!(!trained.stopped && ends_s.len() > 1, "a round of {} steps has no time of a step", ends_s.len());
    Ok((ends_s[ends_s.len() - 1] - ends_s[0]) / (ends_s.len() - 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real links: every member sends what the ring takes, and all end with one model.
    #[test]
    fn members_send_the_least_that_a_ring_can_over_real_links() {
        let model = "context = 8\nlayers = 2\nheads = 2\nwidth = 16".to_owned();
        let options = Options { members: 3, steps: 3, batch: 2, threads: 1, model };
        let found = options.measure(1).expect("measured");
        assert_eq!(found.bytes.len(), 3);
        for bytes in found.bytes {
            assert!((bytes / found.ideal_bytes - 1.0).abs() < 0.01, "{bytes} of {}", found.ideal_bytes);
        }
        assert!(found.step_s > 0.0 && found.alone_s > 0.0);
    }
}
