//! What an attempt allows: which parcels go from whom to whom, how large they are, and how many can wait.

use std::time::Duration;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
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
    /// Layers of the model.
    pub layers: usize,
    /// Values of the largest activations of a micro-batch between two layers; labels are no more.
    pub activations: usize,
    /// Values of the tied tensor; 0 for a model without one.
    pub tied: usize,
}

impl ParcelSizes {
    /// Values of the largest parcel.
    fn parcel(&self) -> usize {
        let tied = self.tied.saturating_mul(2);
        self.params.saturating_mul(2).saturating_add(tied).max(self.activations)
    }

    /// Parcels of one member that can wait here in a round of so many parts.
    fn parcels_ahead(&self, parts: usize) -> usize {
        // Activations, gradients, labels, losses, sums and copies of the tied tensor; weights before, and after: what layers come to.
        (6 * limits::POD_PARCELS_AHEAD + 1).saturating_mul(parts).saturating_add(self.layers)
    }

    /// Their values.
    fn values_ahead(&self, parts: usize) -> usize {
        let each = self.activations.saturating_add(self.tied).saturating_mul(3 * limits::POD_PARCELS_AHEAD);
        let weights = self.params.saturating_mul(4);
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
            // What is left out, and a payload, which in the worst case is a little longer than its values.
            ParcelContent::Layer { .. } => {
                let params = params(address.from);
                params.saturating_mul(2).saturating_add(params / 64).saturating_add(16)
            }
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
