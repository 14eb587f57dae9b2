//! What members of a pod say to each other (docs/adr/0031-pods.md). One stream each way carries all of it:
//!
//! ```text
//!  dialing member:    PodGreeting ─►              then, both ways and for as long as the attempt lasts:
//!  awaiting member:              ◄─ PodAnswer      ParcelHead ─ values, unframed ─ ParcelHead ─ values ─ ...
//! ```
//! The values of a parcel follow its head without a frame, little endian: vectors as the head names them, one after the other, and
//! behind them bytes, where it has such. Their length follows from the head, and the head has their checksum.

use crate::ids::{Digest, RunId};
use crate::pod::PodMark;
use crate::schema;
use crate::spec::Activations;

/// The name under which members connect to each other (ALPN).
pub const ALPN: &[u8] = b"anabranch-pod";

/// The first frame of the member that dials. Its layout never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodGreeting {
    /// Oldest version of the schema that it speaks.
    pub min: u16,
    /// Newest version of the schema that it speaks.
    pub max: u16,
    /// The run.
    pub run: RunId,
    /// Which attempt the connection is for.
    pub mark: PodMark,
}

/// The answer to a greeting. Its layout never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodAnswer {
    /// Parcels may follow, with heads of this version of the schema.
    Ready {
        /// The version.
        version: u16,
    },
    /// This member does not know of such an attempt yet: the other one dials again.
    NotYet,
    /// The connection is not wanted; for people.
    Refused(String),
}

impl PodGreeting {
    /// Returns what this build says.
    #[must_use]
    pub fn new(run: RunId, mark: PodMark) -> Self {
        Self { min: schema::OLDEST, max: schema::VERSION, run, mark }
    }

    /// Returns the newest version that both members speak.
    #[must_use]
    pub fn common_version(&self) -> Option<u16> {
        let common = self.max.min(schema::VERSION);
        (common >= self.min && schema::is_readable(common)).then_some(common)
    }
}

/// What stands in front of the values of a parcel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParcelHead {
    /// The part of the model that sends it.
    pub from: u32,
    /// The part that it is for.
    pub to: u32,
    /// What it is.
    pub content: ParcelContent,
    /// CRC-32C over the bytes of its values.
    pub checksum: u32,
}

/// What a parcel is, and the lengths of its vectors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParcelContent {
    /// Weights to start from, f32.
    Weights {
        /// Values of the part.
        own: u64,
        /// Values of the tied tensor that another part owns.
        tied: u64,
        /// Values of what compression left out of the part before, or of its memory; 0 where there is nothing.
        held: u64,
    },
    /// Activations, row by row.
    Activations {
        /// Rows.
        rows: u64,
        /// Columns.
        columns: u64,
        /// Their form.
        form: Activations,
    },
    /// The gradient of activations, row by row.
    Gradient {
        /// Rows.
        rows: u64,
        /// Columns.
        columns: u64,
        /// Their form.
        form: Activations,
    },
    /// Labels, u32.
    Labels {
        /// How many.
        labels: u64,
    },
    /// A sum of losses.
    Loss {
        /// The sum.
        sum: f64,
    },
    /// A sum of gradients of the tied tensor, f32.
    TiedSum {
        /// Values.
        values: u64,
    },
    /// The tied tensor, f32.
    Tied {
        /// The number of updates.
        version: u32,
        /// Values.
        values: u64,
        /// Values of the last update.
        moved: u64,
    },
    /// What a layer comes to: what is left out of it, f32, and behind it the bytes of its payload.
    Layer {
        /// Number of the layer in the model.
        layer: u32,
        /// Values of what is left out.
        left_out: u64,
        /// Bytes of the payload.
        bytes: u64,
        /// What the owner adds up over the layers.
        figures: LayerFigures,
    },
    /// Of replicas: the next part of the model to start from, f32.
    Base {
        /// What the seeds of all members' batches follow from.
        seed: u64,
        /// Values.
        values: u64,
    },
    /// Of replicas: a part of a gradient that is summed over the members, f32.
    Chunk {
        /// How many of them came before over this link in this round.
        number: u64,
        /// Values.
        values: u64,
    },
    /// Of replicas: the end of the round at a member.
    Ended {
        /// Digest of its model.
        digest: Digest,
    },
}

/// Figures of a layer's content, of which the owner of the round tells the sum.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LayerFigures {
    /// The product of what was sent with what the round started from.
    pub base_dot: f64,
    /// The square of the norm of what training has changed.
    pub delta_square: f64,
    /// The square of the norm of what is left out now.
    pub left_out_square: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LeaseId;

    #[test]
    fn the_newest_common_version_is_spoken() {
        let greeting =
            |min, max| PodGreeting { min, max, run: RunId([1; 16]), mark: PodMark { lease: LeaseId(1), attempt: 1 } };
        assert_eq!(greeting(0, schema::VERSION + 2).common_version(), Some(schema::VERSION));
        assert_eq!(greeting(schema::VERSION + 1, schema::VERSION + 2).common_version(), None);
        assert_eq!(greeting(0, schema::OLDEST - 1).common_version(), None);
    }
}
