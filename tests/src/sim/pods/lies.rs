//! Members that lie: what they send is not what their code gave, and what they say is of attempts that are none of theirs.

use anabranch_agent::pod::{Address, LayerContent, Parcel};
use anabranch_common::ids::LeaseId;
use anabranch_common::pod::{PodMark, PodProblem};
use anabranch_common::wire::message::AgentMessage;

use crate::picture::MarkKind;

use crate::sim::network::Parcel as OnLine;
use crate::sim::schedule::{Lie, Machine};
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, World, agent_id};

/// A liar changes one parcel in so many.
const TAMPERED: u64 = 6;
/// Time between two things that a liar says, at most.
const SAYS_MS: u64 = 6_000;

impl World {
    /// The lie of a machine that is still to be told.
    fn lie(&self, machine: Machine) -> Option<Lie> {
        self.agents[machine - 1].plan.lie.filter(|_| self.healed_at_ms.is_none())
    }

    /// A parcel as it leaves its machine.
    pub(super) fn pod_tampers(&mut self, machine: Machine, address: Address, parcel: Parcel) -> Vec<(Address, Parcel)> {
        let lie = self.lie(machine).filter(|lie| *lie != Lie::Words);
        let Some(lie) = lie.filter(|_| self.pods.lies.below(TAMPERED) == 0) else { return vec![(address, parcel)] };
        self.note(machine, Sign::Mark(MarkKind::Fault), || format!("lies: {lie:?}"));
        match lie {
            Lie::Shape => vec![(address, reshaped(parcel))],
            Lie::Route => vec![(Address { from: address.from + 1, ..address }, parcel)],
            Lie::NotANumber => vec![(address, poisoned(parcel))],
            Lie::Range => vec![(address, shortened(parcel))],
            Lie::Twice => vec![(address, parcel.clone()), (address, parcel)],
            Lie::Words => vec![(address, parcel)],
        }
    }

    /// A liar says that an attempt is over, or that another member has spoilt it.
    pub(in crate::sim) fn pod_lies(&mut self, machine: Machine) {
        if self.lie(machine) != Some(Lie::Words) {
            return;
        }
        let wait_ms = 1 + self.pods.lies.below(SAYS_MS);
        self.after(wait_ms, Happening::PodLies { machine });
        let conn = self.agents[machine - 1].conn();
        let (Some(conn), Some(mark)) = (conn, self.false_mark()) else { return };
        let machines = self.agents.len() as u64;
        let problem = (self.pods.lies.below(2) == 0).then(|| {
            let other = usize::try_from(self.pods.lies.below(machines)).unwrap_or(0) + 1;
            PodProblem { member: Some(agent_id(other)), reason: "it is a liar".to_owned() }
        });
        self.note(machine, Sign::Mark(MarkKind::Fault), || format!("lies: {mark:?} is over, {problem:?}"));
        self.send_up(conn, OnLine::Message(AgentMessage::PodEnded { mark, problem }));
    }

    /// The greeting of a liar: it is at work on what is none of its business.
    pub(in crate::sim) fn pod_claims(&mut self, machine: Machine, message: AgentMessage) -> AgentMessage {
        if self.lie(machine) != Some(Lie::Words) {
            return message;
        }
        let mark = self.false_mark();
        match message {
            AgentMessage::Hello(mut hello) => {
                if let Some(offer) = &mut hello.pod {
                    offer.at_work = mark.or(offer.at_work);
                }
                AgentMessage::Hello(hello)
            }
            message => message,
        }
    }

    /// An attempt that was named, one that comes next, or one that never was.
    fn false_mark(&mut self) -> Option<PodMark> {
        let newest: Vec<PodMark> = self.pods.watched.newest().collect();
        let rng = &mut self.pods.lies;
        let at = usize::try_from(rng.below(newest.len().max(1) as u64)).unwrap_or(0);
        let PodMark { lease, attempt } = *newest.get(at)?;
        Some(match rng.below(6) {
            0 => PodMark { lease, attempt: attempt.saturating_add(1) },
            1 => PodMark { lease, attempt: u32::MAX },
            2 => PodMark { lease: LeaseId(lease.0 + rng.below(3)), attempt },
            _ => PodMark { lease, attempt },
        })
    }
}

fn reshaped(parcel: Parcel) -> Parcel {
    match parcel {
        Parcel::Activations { values, shape: [rows, columns] } => {
            Parcel::Activations { values, shape: [columns, rows + 1] }
        }
        Parcel::Gradient { mut values, shape } => {
            values.push(0.0);
            Parcel::Gradient { values, shape }
        }
        Parcel::Chunk { number, mut values } => {
            values.push(0.0);
            Parcel::Chunk { number, values }
        }
        Parcel::Base { seed, mut values } => {
            values.push(0.0);
            Parcel::Base { seed, values }
        }
        Parcel::Ended(mut digest) => {
            digest.0[0] ^= 1;
            Parcel::Ended(digest)
        }
        parcel => parcel,
    }
}

/// What belongs to another range than that of its part.
fn shortened(parcel: Parcel) -> Parcel {
    match parcel {
        Parcel::Layer(mut content) => {
            if content.left_out.pop().is_none() {
                content.layer += 1;
            }
            Parcel::Layer(content)
        }
        Parcel::Weights { mut own, tied, held } => {
            own.pop();
            Parcel::Weights { own, tied, held }
        }
        Parcel::Chunk { number, values } => Parcel::Chunk { number: number + 1, values },
        Parcel::Base { seed, mut values } => {
            values.pop();
            Parcel::Base { seed, values }
        }
        parcel => parcel,
    }
}

fn poisoned(parcel: Parcel) -> Parcel {
    let all = |values: Vec<f32>| vec![f32::NAN; values.len()];
    match parcel {
        Parcel::Activations { values, shape } => Parcel::Activations { values: all(values), shape },
        Parcel::Gradient { values, shape } => Parcel::Gradient { values: all(values), shape },
        Parcel::Layer(content) => Parcel::Layer(LayerContent { left_out: all(content.left_out), ..content }),
        Parcel::Loss(_) => Parcel::Loss(f64::NAN),
        Parcel::Chunk { number, values } => Parcel::Chunk { number, values: all(values) },
        parcel => parcel,
    }
}
