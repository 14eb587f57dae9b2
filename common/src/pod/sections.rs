//! Which bytes of the update of a pod its helpers can send (docs/adr/0032-ranges.md).
//!
//! ```text
//!  payload:   header, layers of part 0 │ layers of part 1 │ layers of part 2 │ layers of part 3
//!  sections:  the owner                │ a helper         │ the owner, as part 2 is too short
//! ```

use super::{PodMark, PodRound};
use crate::limits;

/// Who has which section of an update beside its owner, who has all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSections {
    /// The attempt that has computed it.
    pub mark: PodMark,
    /// For each section the part of the model that it is the content of, if a helper has computed that part.
    pub parts: Vec<Option<u32>>,
}

impl PodSections {
    /// Returns whether no part is named twice: a helper is asked for what it has once.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.parts.iter().flatten().is_sorted_by(|one, next| one < next)
    }
}

impl PodRound {
    /// Returns where the sections of a payload begin, without the first one, and whose they are. `layers` are the numbers of the
    /// layers with content, in their order, with the bytes that each has at the end of the payload. None: the owner sends all of it.
    #[must_use]
    pub fn sections(&self, payload_bytes: u64, layers: &[(u32, u64)]) -> Option<(Vec<u64>, PodSections)> {
        let mut start = payload_bytes.checked_sub(layers.iter().map(|(_, bytes)| bytes).sum())?;
        let (mut starts, mut parts) = (Vec::new(), vec![None]);
        let mut first = 0;
        for (number, part) in (0..).zip(&self.parts) {
            let own = layers.iter().filter(|(layer, _)| (first..part.end).contains(layer));
            let bytes: u64 = own.map(|(_, bytes)| bytes).sum();
            let helped = (part.agent != self.owner && bytes >= limits::POD_SECTION_BYTES).then_some(number);
            // Neighbours of the owner are one section.
            if bytes > 0 && (helped.is_some() || parts.last().is_some_and(Option::is_some)) {
                starts.push(start);
                parts.push(helped);
            }
            start += bytes;
            first = part.end;
        }
        let sections = PodSections { mark: self.mark, parts };
        (!starts.is_empty()).then_some((starts, sections))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::CodecSpec;
    use crate::ids::{AgentId, Digest, LeaseId};
    use crate::journal::Plan;
    use crate::pod::PodPart;

    const LONG: u64 = limits::POD_SECTION_BYTES;

    /// A round whose parts have a layer each, computed by these agents; 0 is the owner.
    fn round(agents: &[u8]) -> PodRound {
        let parts = (1..).zip(agents).map(|(end, agent)| PodPart { end, agent: AgentId([*agent; 16]) }).collect();
        let plan = Plan {
            local_steps: 1,
            lr_factor: 1.0,
            round: 0,
            progress: None,
            weight: 1.0,
            base_dot: false,
            codec: CodecSpec::F32,
            residual_ratio: false,
            memory: None,
        };
        let mark = PodMark { lease: LeaseId(1), attempt: 2 };
        PodRound { mark, owner: AgentId([0; 16]), parts, peers: Vec::new(), plan, spec: Digest::default() }
    }

    fn sections(agents: &[u8], bytes: &[u64]) -> Option<(Vec<u64>, Vec<Option<u32>>)> {
        let layers: Vec<(u32, u64)> = (0..).zip(bytes.iter().copied()).filter(|(_, bytes)| *bytes > 0).collect();
        let payload_bytes = 9 + bytes.iter().sum::<u64>();
        let (starts, sections) = round(agents).sections(payload_bytes, &layers)?;
        assert!(sections.is_in_order() && sections.parts.len() == starts.len() + 1);
        Some((starts, sections.parts))
    }

    #[test]
    fn helpers_have_what_is_long_enough_and_the_owner_has_the_rest() {
        let expected = (vec![19, 19 + LONG, 19 + 2 * LONG], vec![None, Some(1), Some(2), None]);
        assert_eq!(sections(&[0, 1, 2, 0], &[10, LONG, LONG, 5]), Some(expected));
        let expected = (vec![19 + LONG - 1], vec![None, Some(2)]);
        assert_eq!(
            sections(&[0, 1, 2], &[10, LONG - 1, LONG]),
            Some(expected),
            "a short part belongs to its neighbour"
        );
        let expected = (vec![9, 9 + LONG], vec![None, Some(1), None]);
        assert_eq!(sections(&[0, 1, 0], &[0, LONG, 7]), Some(expected), "the header is the owner's");
    }

    #[test]
    fn the_owner_sends_a_small_update_and_its_own_alone() {
        assert_eq!(sections(&[0, 1, 2], &[LONG, LONG - 1, LONG - 1]), None);
        assert_eq!(sections(&[0, 0], &[LONG, LONG]), None);
        assert_eq!(sections(&[0, 1], &[LONG, 0]), None);
        assert_eq!(round(&[0, 1]).sections(3, &[(0, 4)]), None, "there cannot be so many bytes");
    }

    #[test]
    fn a_part_that_is_named_twice_is_out_of_order() {
        let named = |parts: &[u32]| {
            let parts = parts.iter().copied().map(Some).chain([None]).collect();
            PodSections { mark: PodMark { lease: LeaseId(1), attempt: 1 }, parts }.is_in_order()
        };
        assert!(named(&[1, 2, 7]) && named(&[]));
        assert!(!named(&[1, 1]) && !named(&[2, 1]));
    }
}
