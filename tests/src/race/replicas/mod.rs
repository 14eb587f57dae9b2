//! Replicas in a race: all agents of a workload as one synchronous group, whose members sum their gradients over a ring in every
//! step (docs/adr/0035-replicas.md). Such a race has no coordinator.
//!
//! ```text
//!  member 0, the owner   the product's `train_watched` ── Wire ─┐   real batches, real gradients, real sums
//!  member k              the product's `serve` ────────── Wire ─┤
//!                                                               ▼
//!  wire    parcels with the virtual time at which they are there
//!  pace    a member's maths: how long a step takes, and when each of its gradients is there
//!  lines   rate, delay and loss of each member's line, in ns
//!                                                               ▼
//!  scoreboard ◄── the model after each step, at the virtual time of the owner
//! ```
//! Rounds have `train.local_steps` steps, as leases have: each begins with its model on its way along the ring and with a fresh
//! optimizer, and ends when every member has told the owner the digest of its model.

mod lines;
mod pace;
mod wire;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anabranch_agent::shard::Shard;
use anabranch_agent::train::native::pipeline::PipelineError;
use anabranch_agent::train::native::replicas::{ReplicaMemory, ReplicaTask, serve, train_watched};
use anabranch_agent::train::{TrainError, native_with};
use anabranch_common::ids::{AgentId, Digest, LeaseId};
use anabranch_common::journal::Plan;
use anabranch_common::pod::{PodMark, PodPart, PodRound};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::RunSpec;
use anabranch_coordinator::core::lease_seed;
use anabranch_testkit::lease::PLAN;
use anyhow::{Context as _, bail, ensure};

use crate::invariants::journal::Journal;
use crate::ring::Hub;
use crate::sim::{Outcome, Traffic, agent_id};

use super::Clock;
use super::finish::{Finish, Participation};
use super::learner::OPTIONS;
use super::scoreboard::Scoreboard;
use super::workload::Workload;

use lines::{Line, NS_PER_MS};
use pace::Pace;
use wire::{Member, RingWire};

const NS_PER_S: f64 = 1e9;

/// Checks that a workload can be raced by replicas.
///
/// # Errors
/// It has something that a group without a coordinator does not have.
pub(super) fn check(workload: &Workload, spec: &RunSpec, clock: &Clock) -> anyhow::Result<()> {
    let name = &workload.name;
    ensure!(*clock == Clock::Virtual, "replicas race without --real; `anabranch-lab bench replicas` has real links");
    ensure!(
        !workload.kills(),
        "the workload {name} kills processes, and a race of replicas has no coordinator that forms them anew: see `anabranch-lab sim --pods`"
    );
    let honest = workload.each_agent().all(|group| group.hostile.is_none());
    ensure!(honest, "the workload {name} has attackers, and a ring takes every gradient: race it without replicas");
    let (train, key) = (&spec.train, "the leases of a coordinator say so, and replicas race without one: leave it out");
    ensure!(train.schedule.is_none(), "train.schedule: {key}");
    ensure!(train.target_round_s.is_none(), "train.target_round_s: {key}");
    Ok(())
}

/// A race of one group.
pub(super) struct RingRace<'a, S> {
    pub(super) workload: &'a Workload,
    /// The run's configuration, with the race's seed.
    pub(super) spec: &'a RunSpec,
    /// What each member trains on.
    pub(super) shards: &'a [S],
}

/// The model after a step, and when that was over.
type Step = (u64, Vec<f32>);

/// What the members of a group have come to.
struct Group {
    members: Vec<Member>,
    ids: Vec<AgentId>,
    /// When the next round begins.
    now_ns: u64,
}

impl<S: Shard> RingRace<'_, S> {
    pub(super) fn run(&self, mut board: Scoreboard) -> anyhow::Result<Finish> {
        let mut group = self.group()?;
        let mut model = native_with(&self.spec.model, OPTIONS)?.initial(self.spec.seed)?;
        let (params, end_ns) = (model.len(), super::course::ms(self.workload.seconds) * NS_PER_MS);
        let (mut steps, mut served) = (0, 0);
        let mut last_ns = 0;
        for number in 0.. {
            let round = self.round(&mut group, number, &model).with_context(|| format!("round {number}"))?;
            let until_ns = round.last().map_or(group.now_ns, |(at_ns, _)| *at_ns);
            let mut reached = round.iter().peekable();
            while let Some(at_ms) = board.next_ms().filter(|at_ms| at_ms * NS_PER_MS <= until_ns) {
                let at_ns = at_ms * NS_PER_MS;
                while let Some((ended_ns, after)) = reached.next_if(|(ended_ns, _)| *ended_ns <= at_ns) {
                    (steps, last_ns) = (steps + 1, *ended_ns);
                    model.clone_from(after);
                }
                board.look(at_ms, Some(&model), steps, group.traffic(at_ns));
            }
            if until_ns >= end_ns {
                break;
            }
            served += round.len() as u64;
            (steps, last_ns) = (served, until_ns);
            model = round.into_iter().next_back().context("a round has a step")?.1;
        }
        let down_bytes = group.down_bytes(end_ns);
        let outcome = Outcome { seed: self.spec.seed, versions: steps, ..Outcome::default() };
        let mut finish = Finish::new(self.workload, board.into_looks(), &outcome, &Journal::default(), params, &[]);
        finish.journal = Digest::of_f32(&model).to_string();
        // No update is offered to anybody.
        for of_updates in ["raw_f32_uplink_bytes", "updates_accepted", "updates_refused"] {
            finish.metrics.remove(of_updates);
        }
        finish.metrics.retain(|name, _| !name.starts_with("staleness_"));
        let share = 1.0 / group.ids.len() as f64;
        finish.agents = vec![Participation { updates: steps, share, pull: share }; group.ids.len()];
        finish.agents_downlink_bytes = down_bytes;
        finish.metrics.insert("steps".to_owned(), steps as f64);
        if steps > 0 {
            finish.metrics.insert("step_mean_s".to_owned(), last_ns as f64 / NS_PER_S / steps as f64);
        }
        Ok(finish)
    }

    fn group(&self) -> anyhow::Result<Group> {
        let (count, steps) = (self.workload.agent_count(), f64::from(self.spec.train.local_steps));
        let mut rng = SplitMix64::new(self.spec.seed ^ 0x5EED_0301);
        let member = |(place, group): (usize, &super::AgentGroup)| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time above 0")]
            let step_ns = (group.round_s / steps * NS_PER_S).round() as u64;
            let line = Line::new(group.line.as_ref().unwrap_or(&self.workload.line), &mut rng);
            let pace = Pace::new(&self.spec.model, place, count, step_ns)?;
            Ok(Member { line, pace, now_ns: 0, ended_ns: 0 })
        };
        let members = self.workload.each_agent().enumerate().map(member).collect::<anyhow::Result<_>>()?;
        Ok(Group { members, ids: (1..=count).map(agent_id).collect(), now_ns: 0 })
    }

    /// Trains a round from `base`. Returns every step of it.
    fn round(&self, group: &mut Group, number: u64, base: &[f32]) -> anyhow::Result<Vec<Step>> {
        let Group { members, ids, now_ns } = group;
        for member in members.iter_mut() {
            (member.now_ns, member.ended_ns) = (*now_ns, *now_ns);
        }
        let (hub, round, step_ns) = (Hub::new(ids), self.of_ring(ids, number), AtomicU64::new(*now_ns));
        let task = |place: usize| ReplicaTask {
            model: &self.spec.model,
            plan: &self.spec.train,
            round: &round,
            me: ids[place],
            shard: &self.shards[place],
            threads: 1,
        };
        let unbounded = || ReplicaMemory::of_process(None);
        let mut steps: Vec<Step> = Vec::new();
        let ended: Vec<Result<(), PipelineError>> = thread::scope(|scope| {
            let (task, hub, step_ns) = (&task, &hub, &step_ns);
            let mut wires: Vec<RingWire<'_>> = members
                .iter_mut()
                .enumerate()
                .map(|(place, member)| RingWire::new(hub, place, member, (place == 0).then_some(step_ns)))
                .collect();
            let mut owner = wires.remove(0);
            let serving: Vec<_> = (1..)
                .zip(wires)
                .map(|(place, mut wire)| scope.spawn(move || serve(&task(place), &mut unbounded(), &mut wire)))
                .collect();
            let mut watch = |_, model: &[f32]| {
                steps.push((step_ns.load(Ordering::SeqCst), model.to_vec()));
                ControlFlow::Continue(())
            };
            let seed = lease_seed(self.spec.seed, LeaseId(number));
            let trained = train_watched(&task(0), &mut unbounded(), base, seed, &mut owner, &mut watch);
            drop(owner);
            let served = serving.into_iter().map(|member| member.join().expect("a member does not panic"));
            [trained.map(drop)].into_iter().chain(served).collect()
        });
        // A member whose neighbour has seen it first hears that the neighbour is gone.
        let is_diverged = |error: &&PipelineError| matches!(error, PipelineError::Train(TrainError::Diverged { .. }));
        if let Some(error) = ended.iter().filter_map(|ended| ended.as_ref().err()).find(is_diverged) {
            bail!("{error}: try a smaller train.optimizer.lr");
        }
        ended.into_iter().collect::<Result<(), _>>()?;
        let owner = members.first().context("a ring has members")?;
        let last_ns = steps.last().map_or(0, |(at_ns, _)| *at_ns);
        *now_ns = owner.now_ns.max(owner.ended_ns).max(last_ns);
        Ok(steps)
    }

    /// Who computes: every agent, in the order of the workload.
    fn of_ring(&self, ids: &[AgentId], number: u64) -> PodRound {
        PodRound {
            mark: PodMark { lease: LeaseId(number), attempt: 1 },
            owner: ids[0],
            parts: ids.iter().map(|agent| PodPart { end: 1, agent: *agent }).collect(),
            peers: Vec::new(),
            plan: Plan { local_steps: self.spec.train.local_steps, ..PLAN },
            spec: Digest::default(),
        }
    }
}

impl Group {
    /// What members have sent each other by then: every byte crosses one line up and another one down.
    fn traffic(&mut self, now_ns: u64) -> Traffic {
        let up_bytes = self.members.iter_mut().map(|member| member.line.up.sent_bytes(now_ns)).sum();
        Traffic { up_bytes, down_bytes: self.down_bytes(now_ns).iter().sum() }
    }

    fn down_bytes(&mut self, now_ns: u64) -> Vec<u64> {
        self.members.iter_mut().map(|member| member.line.down.sent_bytes(now_ns)).collect()
    }
}

#[cfg(test)]
mod tests;
