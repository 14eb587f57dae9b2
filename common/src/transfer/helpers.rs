//! Who sends sections of an update beside its agent: members of the pod that has computed it (docs/adr/0032-ranges.md).
//!
//! ```text
//!  asked for its section ─► chunks ─► all of them here
//!            └─ a wrong chunk, "not here", silence, gone: the agent of the update is asked for what is missing
//! ```
//! A helper opens no buffer: its chunks go into the sink of the update, and what is received of it counts for that.

use std::ops::Range;

use crate::ids::PeerId;
use crate::limits;
use crate::pod::PodMark;
use crate::wire::transfer::{Missing, Section};

/// A connection that has a section of an update, as its coordinator knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// Which connection.
    pub peer: PeerId,
    /// The attempt in which its agent has computed the section.
    pub mark: PodMark,
    /// The part of the model that the section is the content of.
    pub part: u32,
    /// The section.
    pub section: Section,
}

/// A helper that was asked for chunks.
#[derive(Debug)]
pub(super) struct Helping {
    pub(super) helper: Helper,
    /// Chunks that were missing at the last look, and ...
    left: usize,
    /// ... looks since one of them came.
    silent_looks: u64,
}

impl Helping {
    /// Was asked for what is missing of its section.
    pub(super) fn new(helper: Helper, missing: &Missing) -> Self {
        let left = left(&helper, missing);
        Self { helper, left, silent_looks: 0 }
    }

    pub(super) fn chunks(&self) -> Range<u32> {
        self.helper.section.chunks.clone()
    }

    /// Another look: returns whether it is not awaited any longer.
    pub(super) fn is_silent(&mut self, missing: &Missing) -> bool {
        let left = left(&self.helper, missing);
        self.silent_looks = if left < self.left { 0 } else { self.silent_looks + 1 };
        self.left = left;
        left > 0 && self.silent_looks * limits::TRANSFER_LOOK_MS >= limits::POD_SECTION_SILENCE_MS
    }
}

fn left(helper: &Helper, missing: &Missing) -> usize {
    helper.section.chunks.clone().filter(|index| missing.contains(*index)).count()
}
