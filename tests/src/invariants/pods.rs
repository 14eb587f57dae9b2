//! Pods: what the coordinator names, attempt by attempt, and what comes of a round.
//!
//! | name | what must hold |
//! |---|---|
//! | pod parts | the parts of a round cover the model and are disjoint; the first one is the owner's, and where labels stay the last one too; every member has the parts that a pod of this run has, and can be reached. Replicas have the whole model each, are of their owner's site, and have data |
//! | pod attempts | attempts at a lease only grow, over all processes of the coordinator and within each of an agent; an attempt is one round, of the holder of the lease and with its plan |
//! | pod members | an agent that is at work for one round is named in no other |
//! | pod leases | an owner that asks again gets the lease that it has, unless its round was computed or an update would not count; no lease is held for long after its end while nobody computes its round |
//! | pod whole | what a pod has computed has the bits that its owner computes alone; of replicas those of the same ring without links, and every member has told the owner the digest of that model |

use std::collections::{BTreeMap, BTreeSet};

use anabranch_agent::session::event::PodContent;
use anabranch_agent::train::native::pipeline::Contribution;
use anabranch_common::ids::{AgentId, Digest, LeaseId};
use anabranch_common::journal::{Lease, LeaseEnd};
use anabranch_common::pod::{PodMark, PodRound};
use anabranch_common::spec::{Labels, PodSpec, ReplicasSpec, StageCount, StagesSpec};
use anabranch_coordinator::core::event::PeerId;

use super::journal::{Checked, EndedLease, broken, ensure};

const PARTS: &str = "pod parts";
const ATTEMPTS: &str = "pod attempts";
const MEMBERS: &str = "pod members";
const LEASES: &str = "pod leases";
const WHOLE: &str = "pod whole";
/// How long after its end a lease may be held whose owner does not compute: until the silence of a process that is gone is
/// noticed, and a while.
const OVERDUE_MS: u64 = 40_000;

/// What pods of a run look like.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// `[pod]`.
    pub spec: &'a PodSpec,
    /// Layers of the model.
    pub layers: usize,
    /// Of replicas: the agents of the owner's site that have data.
    pub site: &'a BTreeSet<AgentId>,
}

/// To whom a round is named.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// Which process of the coordinator says so.
    pub life: u64,
    /// On which connection.
    pub peer: PeerId,
    /// Whose connection that is.
    pub agent: AgentId,
}

/// Watches the pods of one run.
#[derive(Debug, Default)]
pub struct Pods {
    /// The newest attempt at each lease, and the process of the coordinator that named it.
    named: BTreeMap<LeaseId, (u64, PodRound)>,
    /// The first attempt at each lease.
    first: BTreeMap<LeaseId, u32>,
    /// What the agent at a connection is at work on, as the coordinator has to see it.
    at_work: BTreeMap<PeerId, PodMark>,
    /// The latest attempt at each lease that a process of an agent has begun.
    begun: BTreeMap<(AgentId, u64, LeaseId), u32>,
    /// Leases that are over and whose owners do not compute, and since when, in one process of the coordinator.
    idle: (u64, BTreeMap<LeaseId, u64>),
    /// Of replicas: what each member of an attempt has told the owner of its model.
    ends: BTreeMap<(PodMark, AgentId), Digest>,
    /// Leases whose rounds came to their end.
    computed: BTreeSet<LeaseId>,
    /// Rounds that came to their end, and those of later attempts than the first.
    completed: (u64, u64),
}

impl Pods {
    /// A round is named to an agent. `lease` is the one that it is of.
    ///
    /// # Errors
    /// It breaks an invariant.
    pub fn named(&mut self, told: Told, round: &PodRound, lease: Option<&Lease>, shape: Shape<'_>) -> Checked {
        let mark = round.mark;
        match shape.spec {
            PodSpec::Stages(spec) => parts(round, spec, shape.layers)?,
            PodSpec::Replicas(spec) => replicas(round, spec, shape)?,
        }
        let Some(lease) = lease else {
            return broken(ATTEMPTS, format!("{mark:?} is of a lease that was never granted"));
        };
        ensure((lease.agent, lease.plan) == (round.owner, round.plan), ATTEMPTS, || {
            format!("{mark:?} is named as a round of {}, and is of {}", round.owner.short(), lease.agent.short())
        })?;
        self.first.entry(mark.lease).or_insert(mark.attempt);
        match self.named.get(&mark.lease) {
            Some((life, known)) if known.mark.attempt == mark.attempt => {
                ensure(*life == told.life && known == round, ATTEMPTS, || format!("{mark:?} stands for two attempts"))?;
            }
            Some((_, known)) if known.mark.attempt > mark.attempt => {
                return broken(ATTEMPTS, format!("{mark:?} after attempt {}", known.mark.attempt));
            }
            _ => _ = self.named.insert(mark.lease, (told.life, round.clone())),
        }
        let before = self.at_work.insert(told.peer, mark).filter(|before| before.lease != mark.lease);
        let is_own =
            |before: &PodMark| self.named.get(&before.lease).is_some_and(|(_, round)| round.owner == told.agent);
        match before.filter(|before| !is_own(before)) {
            None => Ok(()),
            Some(before) => {
                broken(MEMBERS, format!("{} is at work on {before:?}, and is named in {mark:?}", told.agent.short()))
            }
        }
    }

    /// An agent has greeted the coordinator on a connection.
    pub fn greeted(&mut self, peer: PeerId, at_work: Option<PodMark>) {
        match at_work {
            Some(mark) => _ = self.at_work.insert(peer, mark),
            None => _ = self.at_work.remove(&peer),
        }
    }

    /// The agent at a connection has said that its part of an attempt is over.
    pub fn ended(&mut self, peer: PeerId, mark: PodMark) {
        if self.at_work.get(&peer) == Some(&mark) {
            self.at_work.remove(&peer);
        }
    }

    /// A process of an agent begins its part of an attempt.
    ///
    /// # Errors
    /// It has begun that attempt before, or a later one.
    pub fn begins(&mut self, agent: AgentId, life: u64, mark: PodMark) -> Checked {
        let before = self.begun.insert((agent, life, mark.lease), mark.attempt);
        ensure(before.is_none_or(|before| before < mark.attempt), ATTEMPTS, || {
            format!("{} begins {mark:?} after attempt {before:?}", agent.short())
        })
    }

    /// A lease has ended without an update.
    ///
    /// # Errors
    /// Another one took its place, and it would have been of use to its owner, who joins pods.
    pub fn ended_lease(&self, ended: &EndedLease, max_staleness: u64) -> Checked {
        let EndedLease { lease, why, stale_by, is_of_branch } = ended;
        let was_of_use = *is_of_branch && *stale_by <= max_staleness && !self.computed.contains(&lease.id);
        ensure(*why != LeaseEnd::Superseded || !was_of_use, LEASES, || {
            format!("lease {} of {} is not given to it again, and was not computed", lease.id, lease.agent.short())
        })
    }

    /// The coordinator's process `life` has looked at what is due. `idle`: leases that are over, and whose owners compute nothing
    /// under them.
    ///
    /// # Errors
    /// One of them has been held for too long.
    pub fn looked(&mut self, life: u64, now_ms: u64, idle: &BTreeSet<LeaseId>) -> Checked {
        let (of, since) = &mut self.idle;
        if std::mem::replace(of, life) != life {
            since.clear();
        }
        since.retain(|lease, _| idle.contains(lease));
        for lease in idle {
            let since_ms = *since.entry(*lease).or_insert(now_ms);
            ensure(now_ms - since_ms <= OVERDUE_MS, LEASES, || {
                format!("lease {lease} is over and held, and nobody has computed its round since {since_ms} ms")
            })?;
        }
        Ok(())
    }

    /// The owner of a round has what it computed with its pod.
    pub fn came_to_its_end(&mut self, mark: PodMark) {
        self.computed.insert(mark.lease);
    }

    /// A pod has computed a round. `alone` is what its owner would send.
    ///
    /// # Errors
    /// It is something else.
    pub fn computed(&mut self, mark: PodMark, found: &PodContent, alone: &Contribution) -> Checked {
        self.completes(mark);
        let is_same = found.payload == alone.payload && bits(&found.left_out) == bits(&alone.left_out);
        ensure(is_same, WHOLE, || format!("what {mark:?} gave is not what its owner would have computed alone"))
    }

    /// A member of replicas tells the owner what it has ended with.
    pub fn ends_with(&mut self, mark: PodMark, member: AgentId, end: Digest) {
        self.ends.insert((mark, member), end);
    }

    /// Replicas have computed a round: the difference `found`. `expected` is the model that the same ring has without links, and
    /// the difference that it makes.
    ///
    /// # Errors
    /// It is something else, or a member has not told the owner that it has this model.
    pub fn computed_in_a_ring(&mut self, round: &PodRound, found: &[f32], expected: (Digest, &[f32])) -> Checked {
        let (mark, (end, delta)) = (round.mark, expected);
        self.completes(mark);
        ensure(bits(found) == bits(delta), WHOLE, || {
            format!("what {mark:?} gave is not what its ring computes without links")
        })?;
        let others = round.members().into_iter().filter(|member| *member != round.owner);
        for member in others {
            let told = self.ends.remove(&(mark, member));
            ensure(told == Some(end), WHOLE, || {
                format!("{mark:?} is whole although {} has told {told:?} of its model, which is {end}", member.short())
            })?;
        }
        Ok(())
    }

    fn completes(&mut self, mark: PodMark) {
        self.completed.0 += 1;
        self.completed.1 += u64::from(self.first.get(&mark.lease).is_none_or(|first| mark.attempt > *first));
    }

    /// Returns the newest attempt at every lease.
    pub fn newest(&self) -> impl Iterator<Item = PodMark> + '_ {
        self.named.values().map(|(_, round)| round.mark)
    }

    /// Returns how many rounds came to their end and were compared, and how many of them took more than one attempt.
    #[must_use]
    pub fn completed(&self) -> (u64, u64) {
        self.completed
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every part is the whole model, of another member that could be one; the first one is the owner's.
fn replicas(round: &PodRound, spec: &ReplicasSpec, Shape { layers, site, .. }: Shape<'_>) -> Checked {
    let PodRound { mark, owner, parts, .. } = round;
    let (members, most) = (round.members(), spec.members as usize);
    ensure(round.ends().iter().all(|end| *end == layers) && members.len() == parts.len(), PARTS, || {
        format!("the parts of {mark:?} are not the whole model of each member: {parts:?}")
    })?;
    ensure(members.first() == Some(owner) && (2..=most).contains(&members.len()), PARTS, || {
        format!("{mark:?} has {} members, of 2 to {most}, or another one than its owner comes first", members.len())
    })?;
    let is_right = |member: &AgentId| {
        let is_reached = round.address_of(*member).is_some_and(|address| !address.is_empty());
        site.contains(member) && (member == owner || is_reached)
    };
    ensure(members.iter().all(is_right), PARTS, || {
        format!("{mark:?} names a member of another site, without data, or without an address")
    })
}

/// The parts cover the model, are disjoint, and are of as many members as there are to be.
fn parts(round: &PodRound, spec: &StagesSpec, layers: usize) -> Checked {
    let PodRound { mark, owner, parts, .. } = round;
    let stay = spec.labels == Labels::Stay;
    let ends = round.ends();
    let is_ordered = ends.first().is_some_and(|end| *end > 0) && ends.windows(2).all(|pair| pair[0] < pair[1]);
    ensure(is_ordered && ends.last() == Some(&layers), PARTS, || {
        format!("the parts of {mark:?} end at {ends:?} of {layers} layers")
    })?;
    let helpers = match parts.as_slice() {
        [first, helpers @ .., last] if stay && first.agent == *owner && last.agent == *owner => helpers,
        [first, helpers @ ..] if !stay && first.agent == *owner => helpers,
        _ => return broken(PARTS, format!("the ends of {mark:?} are not its owner's")),
    };
    let members = round.members().len();
    let as_many = match spec.stages {
        StageCount::Exactly(stages) => members == stages as usize,
        StageCount::Auto => members >= 2,
    };
    ensure(members == helpers.len() + 1 && as_many, PARTS, || {
        format!("{mark:?} has {members} members and {} parts for helpers", helpers.len())
    })?;
    let is_reached = |agent: AgentId| round.address_of(agent).is_some_and(|address| !address.is_empty());
    ensure(helpers.iter().all(|part| is_reached(part.agent)), PARTS, || {
        format!("{mark:?} names a helper without an address")
    })
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::Digest;
    use anabranch_common::pod::{PodPart, PodPeer};

    use super::*;

    fn round(parts: &[(u32, u8)]) -> PodRound {
        let agent = |number: u8| AgentId([number; 16]);
        PodRound {
            mark: PodMark { lease: LeaseId(1), attempt: 1 },
            owner: agent(1),
            parts: parts.iter().map(|(end, number)| PodPart { end: *end, agent: agent(*number) }).collect(),
            peers: vec![PodPeer { agent: agent(2), address: "there:1".to_owned() }],
            plan: anabranch_testkit::lease::lease(LeaseId(1), agent(1), anabranch_common::ids::BranchId([0; 16])).plan,
            spec: Digest([0; 32]),
        }
    }

    #[test]
    fn parts_cover_the_model_once_and_the_ends_are_the_owners() {
        let spec: StagesSpec = toml::from_str("stages = 2").expect("complete");
        let check = |found: &[(u32, u8)]| parts(&round(found), &spec, 4);
        assert!(check(&[(1, 1), (3, 2), (4, 1)]).is_ok());
        for wrong in [
            &[(1, 1), (3, 2), (3, 1)][..],
            &[(1, 1), (1, 2), (4, 1)],
            &[(0, 1), (3, 2), (4, 1)],
            &[(1, 1), (3, 2), (5, 1)],
            &[(1, 2), (3, 1), (4, 1)],
            &[(1, 1), (4, 2)],
            &[(1, 1), (3, 3), (4, 1)],
            &[(1, 1), (2, 2), (3, 2), (4, 1)],
            &[],
        ] {
            assert_eq!(check(wrong).expect_err("wrong parts").invariant, PARTS, "{wrong:?}");
        }
    }

    #[test]
    fn replicas_hold_the_whole_model_each_and_are_of_one_site() {
        let agent = |number: u8| AgentId([number; 16]);
        let spec: ReplicasSpec = toml::from_str("members = 3").expect("complete");
        let (pod, site) = (PodSpec::Replicas(spec.clone()), [1, 2, 3, 4].map(agent).into());
        let check = |found: &[(u32, u8)]| {
            let mut round = round(found);
            round.peers =
                (2..=5).map(|number| PodPeer { agent: agent(number), address: "there:1".to_owned() }).collect();
            replicas(&round, &spec, Shape { spec: &pod, layers: 4, site: &site })
        };
        assert!(check(&[(4, 1), (4, 3)]).is_ok() && check(&[(4, 1), (4, 4), (4, 2)]).is_ok());
        for wrong in [
            &[(4, 1)][..],
            &[(4, 2), (4, 1)],
            &[(4, 1), (3, 2)],
            &[(4, 1), (4, 2), (4, 2)],
            &[(4, 1), (4, 5)],
            &[(4, 1), (4, 2), (4, 3), (4, 4)],
        ] {
            assert_eq!(check(wrong).expect_err("wrong members").invariant, PARTS, "{wrong:?}");
        }
    }

    #[test]
    fn replicas_are_whole_when_all_have_told_the_owner_of_the_same_model() {
        let round = round(&[(4, 1), (4, 2)]);
        let (member, [end, other]) = (AgentId([2; 16]), [1, 2].map(|byte| Digest([byte; 32])));
        let found = |told: Option<Digest>, delta: &[f32]| {
            let mut pods = Pods::default();
            told.iter().for_each(|told| pods.ends_with(round.mark, member, *told));
            pods.computed_in_a_ring(&round, delta, (end, &[1.0, 0.0])).map_err(|violation| violation.invariant)
        };
        assert_eq!(found(Some(end), &[1.0, 0.0]), Ok(()));
        for (told, delta) in [(Some(end), [1.0, -0.0]), (Some(other), [1.0, 0.0]), (None, [1.0, 0.0])] {
            assert_eq!(found(told, &delta), Err(WHOLE));
        }
    }
}
