//! What an attempt allows: which parcels go from whom to whom, how large they are, and how many can wait.

use std::time::Duration;

use anabranch_common::codec;
use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::pod::PodMark;
use anabranch_common::spec::{Activations, PodSpec};
use anabranch_common::wire::pod::{ParcelContent, ParcelHead};

use super::frame::{self, ParcelError};
use super::{Address, Attempt, Parcel, WireError};

/// How large parcels of a round can be, from its model and its plan, whatever the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParcelSizes {
    /// Parameters of the model: no part has more.
    pub params: usize,
    /// What its layers come to.
    pub contents: ContentSizes,
    /// Values of the largest activations of a micro-batch between two layers; labels are no more.
    pub activations: usize,
    /// Values of the tied tensor; 0 for a model without one.
    pub tied: usize,
}

/// How long the payloads of a model's layers can be. Four bytes count as one value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContentSizes {
    /// Layers with tensors of their own.
    layers: usize,
    /// Values of the longest payload of one of them.
    largest: usize,
    /// Values of the longest payloads of all of them.
    all: usize,
}

impl ContentSizes {
    /// Returns the sizes for layers of these tensors, whatever codec each tensor has: [`codec::max_payload_bytes`].
    #[must_use]
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a ModelManifest>) -> Self {
        layers.into_iter().fold(Self::default(), |sizes, layer| {
            let bytes = usize::try_from(codec::max_payload_bytes(layer)).unwrap_or(usize::MAX);
            let values = bytes.div_ceil(frame::BYTES_PER_VALUE);
            Self { layers: sizes.layers + 1, largest: sizes.largest.max(values), all: sizes.all.saturating_add(values) }
        })
    }
}

impl ParcelSizes {
    /// Values of the largest parcel.
    fn parcel(&self) -> usize {
        let tied = self.tied.saturating_mul(2);
        let content = self.params.saturating_add(self.contents.largest);
        self.params.saturating_mul(2).saturating_add(tied).max(content).max(self.activations)
    }

    /// Parcels of one member that can wait here in a round of so many parts.
    fn parcels_ahead(&self, parts: usize) -> usize {
        // Activations, gradients, labels, losses, sums and copies of the tied tensor; weights before, and after: what layers come to.
        (6 * limits::POD_PARCELS_AHEAD + 1).saturating_mul(parts).saturating_add(self.contents.layers)
    }

    /// Their values.
    fn values_ahead(&self, parts: usize) -> usize {
        let each = self.activations.saturating_add(self.tied).saturating_mul(3 * limits::POD_PARCELS_AHEAD);
        // Weights before and what is held of them; what is left out after, and the payloads.
        let weights = self.params.saturating_mul(3).saturating_add(self.contents.all);
        each.saturating_add(self.tied).saturating_mul(parts).saturating_add(weights)
    }

    /// Parcels of one of so many replicas that can wait here, and their values. Sums follow each other, and each takes all members:
    /// a neighbour is at most half a sum ahead, with the other half of the one before, or the model to start from, on its way.
    fn ahead_of_replicas(&self, members: usize) -> (usize, usize) {
        // A group of each member can end with a smaller chunk.
        let chunks = (self.params / limits::REPLICA_CHUNK_VALUES).saturating_add(members);
        // And the end; the loss behind each of two gradients.
        (chunks.saturating_mul(2).saturating_add(1), self.params.saturating_add(1).saturating_mul(2))
    }
}

/// What the members have agreed on for an attempt.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) me: AgentId,
    pub(super) mark: PodMark,
    /// Whose round it is.
    pub(super) owner: AgentId,
    /// Who computes each part: of replicas, who is at each place of the ring.
    parts: Vec<AgentId>,
    /// Parameters of each part.
    part_params: Vec<usize>,
    sizes: ParcelSizes,
    pub(super) form: Activations,
    /// Values that may wait to be sent to a member: those of the largest parcel that a round could have with one part.
    pub(super) most: usize,
    pub(super) parcels_ahead: usize,
    pub(super) values_ahead: usize,
    /// How long a member may keep another one waiting.
    pub(super) patience: Duration,
}

impl Terms {
    pub(super) fn new(me: AgentId, attempt: &Attempt<'_>) -> Self {
        let &Attempt { round, spec, sizes, part_params } = attempt;
        let parts: Vec<AgentId> = round.parts.iter().map(|part| part.agent).collect();
        let (parcels_ahead, values_ahead) = match spec {
            PodSpec::Stages(_) => (sizes.parcels_ahead(parts.len()), sizes.values_ahead(parts.len())),
            PodSpec::Replicas(_) => sizes.ahead_of_replicas(parts.len()),
        };
        Self {
            me,
            mark: round.mark,
            owner: round.owner,
            form: spec.activations(),
            most: sizes.parcel(),
            parcels_ahead,
            values_ahead,
            // The run's configuration was checked; whatever it says here is a time.
            patience: Duration::try_from_secs_f64(spec.deadline_s()).unwrap_or(Duration::MAX),
            part_params: part_params.to_vec(),
            sizes,
            parts,
        }
    }

    /// Returns the most values that a parcel with this content has between two parts.
    fn most_values(&self, address: Address, content: &ParcelContent) -> usize {
        let params = |part: usize| self.part_params.get(part).copied().unwrap_or(0);
        let ParcelSizes { activations, tied, .. } = self.sizes;
        match content {
            ParcelContent::Weights { .. } => params(address.to).saturating_mul(2).saturating_add(tied),
            // What is left out, and a payload.
            ParcelContent::Layer { .. } => params(address.from).saturating_add(self.sizes.contents.largest),
            ParcelContent::Activations { .. } | ParcelContent::Gradient { .. } | ParcelContent::Labels { .. } => {
                activations
            }
            ParcelContent::TiedSum { .. } => tied,
            ParcelContent::Tied { .. } => tied.saturating_mul(2),
            ParcelContent::Base { .. } | ParcelContent::Chunk { .. } => self.sizes.params,
            ParcelContent::Loss { .. } | ParcelContent::Ended { .. } => 0,
        }
    }

    /// Checks the head of a parcel from `sender`. Returns its address and its values.
    pub(super) fn check(&self, sender: AgentId, head: &ParcelHead) -> Result<(Address, usize), ParcelError> {
        let owner = |part: u32| self.parts.get(part as usize).copied();
        if owner(head.from) != Some(sender) || owner(head.to) != Some(self.me) {
            return Err(ParcelError::Route { from: head.from, to: head.to });
        }
        if frame::form_of(&head.content).is_some_and(|form| form != self.form) {
            return Err(ParcelError::Form);
        }
        let address = Address { from: head.from as usize, to: head.to as usize };
        let (found, most) = (frame::values_behind(&head.content), self.most_values(address, &head.content));
        match usize::try_from(found) {
            Ok(values) if values <= most => Ok((address, values)),
            _ => Err(ParcelError::TooLarge { found, most }),
        }
    }

    /// Checks a parcel of this member. Returns whom it is for, and its values.
    pub(super) fn check_own(&self, address: Address, parcel: &Parcel) -> Result<(AgentId, usize), WireError> {
        let owner = |part: usize| self.parts.get(part).copied();
        let values = frame::values_of(parcel);
        let most = self.most_values(address, &frame::content_of(parcel, self.form));
        let reason = match (owner(address.from), owner(address.to)) {
            (Some(from), Some(to)) if from == self.me && to != self.me && values <= most => {
                return Ok((to, values));
            }
            (Some(from), Some(to)) if from == self.me && to != self.me => {
                ParcelError::TooLarge { found: values as u64, most }.to_string()
            }
            _ => format!("no parcel goes from part {} to part {}", address.from, address.to),
        };
        Err(WireError::Member { agent: self.me, reason })
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::codec::feedback::Feedback;
    use anabranch_common::codec::segments::Segmented;
    use anabranch_common::codec::{Codec as _, CodecSpec};
    use anabranch_common::ids::{Digest, LeaseId};
    use anabranch_common::manifest::TensorSpec;
    use anabranch_common::pod::{PodPart, PodRound};
    use anabranch_common::rng::SplitMix64;
    use anabranch_common::wire::pod::LayerFigures;
    use anabranch_testkit::lease::PLAN;

    use super::*;
    use crate::pod::LayerContent;

    fn tensors(elements: &[u64]) -> ModelManifest {
        let tensor = |(at, elements): (usize, &u64)| TensorSpec { name: format!("t{at}"), shape: vec![*elements] };
        ModelManifest::new(elements.iter().enumerate().map(tensor).collect()).expect("valid")
    }

    fn agent(n: u8) -> AgentId {
        AgentId([n; 16])
    }

    /// The terms of a helper that computes the second of two parts, which is one layer of these tensors.
    fn terms(layer: &ModelManifest) -> Terms {
        let part = |end, n| PodPart { end, agent: agent(n) };
        let mark = PodMark { lease: LeaseId(1), attempt: 1 };
        let parts = vec![part(1, 1), part(2, 2)];
        let round = PodRound { mark, owner: agent(1), parts, peers: Vec::new(), plan: PLAN, spec: Digest([0; 32]) };
        let spec: PodSpec = toml::from_str("kind = \"stages\"\nstages = 2").expect("complete");
        let params = layer.params();
        let sizes = ParcelSizes { params, contents: ContentSizes::of([layer]), activations: 1, tied: 0 };
        Terms::new(agent(2), &Attempt { round: &round, spec: &spec, sizes, part_params: &[0, params] })
    }

    fn content(payload: Vec<u8>, left_out: Vec<f32>) -> Parcel {
        Parcel::Layer(LayerContent { layer: 1, payload, left_out, figures: LayerFigures::default() })
    }

    /// Every tensor is a segment with a header, which is more than its values: noise in two codecs in turn.
    #[test]
    fn a_layer_of_many_tiny_tensors_in_mixed_codecs_has_room_and_not_a_value_more() {
        let mut rng = SplitMix64::new(8);
        for elements in [&[1; 300][..], &[1, 2, 3, 60_000, 1], &[7]] {
            let layer = tensors(elements);
            let word = |_| f32::from_bits((rng.next_u64() >> 33) as u32 & 0xFF7F_FFFF);
            let noise: Vec<f32> = (0..layer.params()).map(word).collect();
            let codecs = [CodecSpec::F32, CodecSpec::Bf16];
            let codec = Segmented::new((0..elements.len()).map(|at| codecs[at % 2]));
            let mut feedback = Feedback::new(1.0);
            let payload = feedback.encode(&codec, &layer, &noise).expect("finite");
            assert!(codec.decode(&layer, &payload).is_ok());
            let (terms, back) = (terms(&layer), Address { from: 1, to: 0 });
            let found = terms.check_own(back, &content(payload, feedback.into_left_out()));
            assert!(found.is_ok_and(|(to, _)| to == agent(1)), "{} tensors", elements.len());
            let most = usize::try_from(codec::max_payload_bytes(&layer)).expect("small");
            let left_out = vec![0.0; layer.params()];
            let (_, values) =
                terms.check_own(back, &content(vec![0; most], left_out.clone())).expect("the longest one");
            assert!(values <= terms.values_ahead && values <= terms.most);
            let longer = content(vec![0; most.next_multiple_of(4) + 1], left_out);
            assert!(terms.check_own(back, &longer).is_err(), "{} tensors", elements.len());
        }
    }
}
