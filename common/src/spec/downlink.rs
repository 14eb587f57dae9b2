//! What agents are sent.

use serde::{Deserialize, Serialize};

use super::RunSpec;
use crate::codec::CodecSpec;
use crate::ids::ModelVersion;

/// What agents are sent. The keys that are off are not written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DownlinkSpec {
    /// The published track that agents train from; without it they train from the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track: Option<TrackSpec>,
    /// Whether agents may be sent the updates of others: see [`crate::downlink::chain`].
    #[serde(skip_serializing_if = "is_off")]
    pub share_updates: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_off(switch: &bool) -> bool {
    !switch
}

/// A published track: see [`crate::downlink::track`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackSpec {
    /// Versions from one record of the track to the next, at least 1. When absent, the distance follows the number of agents
    /// at work: see [`distance`](Self::distance).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// How a record is encoded.
    pub codec: CodecSpec,
}

impl DownlinkSpec {
    /// Returns whether every key has its default.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl TrackSpec {
    /// Returns how many versions lie between two records while `agents` are at work and `contributions` make a version. Never
    /// more than `most`.
    ///
    /// Without `every` it is half of the updates that the agents make in one round each, so that an agent misses two records a
    /// round. Beyond eight agents it grows with the square root of their number: what many agents change between
    /// two records is not sparse, and a sparse record leaves most of it out.
    #[must_use]
    pub fn distance(&self, agents: u64, contributions: u32, most: u64) -> u64 {
        let updates = (agents / 2).min(agents.saturating_mul(2).isqrt());
        self.every.unwrap_or(updates / u64::from(contributions.max(1))).min(most).max(1)
    }
}

impl RunSpec {
    /// Returns whether updates of agents that train from `base` are welcome while `newest` is the newest version: behind a
    /// barrier of that version alone, else of those within `admit.max_staleness`. A track whose base no longer is begins anew.
    #[must_use]
    pub fn reaches(&self, base: ModelVersion, newest: ModelVersion) -> bool {
        let is_recent = || newest.staleness_of(base) <= self.admit.max_staleness;
        base == newest || (self.merge.barrier().is_none() && is_recent())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_records_follows_the_agents_at_work() {
        let track = |every| TrackSpec { every, codec: CodecSpec::Int8 };
        let follows = |agents, contributions| track(None).distance(agents, contributions, 1_000);
        assert_eq!([0, 1, 3, 4, 6, 8, 10].map(|agents| follows(agents, 1)), [1, 1, 1, 2, 3, 4, 4]);
        assert_eq!([13, 20, 100, 255].map(|agents| follows(agents, 1)), [5, 6, 14, 22]);
        assert_eq!([1, 2, 4, 5].map(|contributions| follows(10, contributions)), [4, 2, 1, 1]);
        assert_eq!(
            [follows(u64::MAX, 1), track(None).distance(10, 1, 3), track(None).distance(10, 0, 0)],
            [1_000, 3, 1]
        );
        assert_eq!([track(Some(7)).distance(1, 1, 1_000), track(Some(7)).distance(100, 9, 1_000)], [7, 7]);
    }
}
