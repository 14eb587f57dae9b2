//! The bytes of the rule's state beside its vector: one part for the figures, and one for each memory, so that a memory
//! that did not change is the same blob in every checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::AgentId;
use crate::limits;
use crate::merge::RestoreError;
use crate::schema::{self, Layout, Reader, SchemaError, Writer};

layout! {
    struct Figures { arrivals, active, step, pending, passing }
    struct SavedMemory { agent, examples, norm, counted, factor, values }
}

/// The figures.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// n: arrivals since the state was empty.
    pub arrivals: u64,
    /// C at the latest arrival.
    pub active: u32,
    /// s of the latest arrival.
    pub step: f32,
    /// Whether an arrival waits for its close.
    pub pending: bool,
    /// Its agent, where its memory is forgotten after the close.
    pub passing: Option<AgentId>,
}

/// The memory of an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// h: one value a parameter.
    pub values: Arc<Vec<f32>>,
    /// Examples that the agent held at its latest arrival.
    pub examples: u64,
    /// |h|.
    pub norm: f64,
    /// n: examples that count.
    pub counted: u64,
    /// f: what it counts for, in [0, 1].
    pub factor: f64,
}

impl Memory {
    /// A memory that is no part of the sum yet.
    pub(super) fn empty(params: usize) -> Self {
        Self { values: Arc::new(vec![0.0; params]), examples: 0, norm: 0.0, counted: 0, factor: 1.0 }
    }

    /// n f: what the memory is multiplied with in the sum.
    #[expect(clippy::cast_possible_truncation, reason = "the sum is f32")]
    pub(super) fn part(&self) -> f32 {
        (self.counted as f64 * self.factor) as f32
    }
}

#[derive(Debug)]
struct SavedMemory {
    agent: AgentId,
    examples: u64,
    norm: f64,
    counted: u64,
    factor: f64,
    values: Values,
}

/// A vector as raw bytes: length u64, values f32 each.
#[derive(Debug)]
struct Values(Arc<Vec<f32>>);

impl Layout for Values {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        (self.0.len() as u64).write(out)?;
        self.0.iter().for_each(|value| out.raw(&value.to_le_bytes()));
        Ok(())
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let truncated = || SchemaError::Truncated("a memory");
        let len = usize::try_from(u64::read(input)?).map_err(|_| truncated())?;
        let bytes = input.raw(len.checked_mul(4).ok_or_else(truncated)?, "a memory")?;
        Ok(Self(Arc::new(bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect())))
    }
}

/// Returns the parts: the figures, and each memory.
pub(super) fn parts(figures: &Figures, memories: &BTreeMap<AgentId, Memory>) -> Vec<Vec<u8>> {
    let saved = memories.iter().map(|(agent, memory)| {
        let Memory { values, examples, norm, counted, factor } = memory.clone();
        bytes(&SavedMemory { agent: *agent, examples, norm, counted, factor, values: Values(values) })
    });
    std::iter::once(bytes(figures)).chain(saved).collect()
}

fn bytes<T: Layout>(part: &T) -> Vec<u8> {
    schema::encode(part, usize::MAX).expect("a part has no bound of its own, and no variant that is too new")
}

/// Reads the parts, for a model of `params` parameters, and checks all of them.
///
/// # Errors
/// A part does not decode, or holds what the rule never makes.
pub fn read(parts: &[Vec<u8>], params: usize) -> Result<(Figures, BTreeMap<AgentId, Memory>), RestoreError> {
    let Some((head, rest)) = parts.split_first() else {
        return Err(RestoreError::Part("the figures are missing".into()));
    };
    let figures: Figures = decode(head)?;
    check((0.0..=1.0).contains(&figures.step), "a figure is out of range")?;
    // One more than there is room for may wait for its close.
    check(rest.len() <= limits::EF21_MEMORIES + 1, "there are too many memories")?;
    check(!rest.is_empty() || figures.arrivals == 0, "the memories are missing")?;
    let mut memories = BTreeMap::new();
    for part in rest {
        let SavedMemory { agent, examples, norm, counted, factor, values: Values(values) } = decode(part)?;
        check(memories.last_key_value().is_none_or(|(before, _)| *before < agent), "the memories are out of order")?;
        let fits = values.len() == params && values.iter().all(|value| value.is_finite());
        check(fits, "a memory is not of this model")?;
        let sound = norm.is_finite() && norm >= 0.0 && (0.0..=1.0).contains(&factor);
        check(sound, "a memory's figure is out of range")?;
        memories.insert(agent, Memory { values, examples, norm, counted, factor });
    }
    Ok((figures, memories))
}

fn decode<T: Layout>(part: &[u8]) -> Result<T, RestoreError> {
    schema::decode(part, usize::MAX).map_err(|error| RestoreError::Part(error.to_string()))
}

fn check(holds: bool, what: &str) -> Result<(), RestoreError> {
    if holds { Ok(()) } else { Err(RestoreError::Part(what.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> (Figures, BTreeMap<AgentId, Memory>) {
        let memory = |value: f32| Memory {
            values: Arc::new(vec![value, -1.0, 0.5]),
            examples: 7,
            norm: 1.5,
            counted: 5,
            factor: 0.75,
        };
        let memories = [1, 2].map(|number| (AgentId([number; 16]), memory(f32::from(number))));
        (Figures { arrivals: 9, active: 2, step: 0.5, pending: true, passing: Some(AgentId([2; 16])) }, memories.into())
    }

    #[test]
    fn what_was_saved_is_read_back() {
        let (figures, memories) = saved();
        assert_eq!(read(&parts(&figures, &memories), 3), Ok((figures, memories)));
    }

    #[test]
    fn what_the_rule_never_makes_is_refused() {
        let (figures, memories) = saved();
        let whole = parts(&figures, &memories);
        assert!(read(&[], 3).is_err(), "no figures");
        assert!(read(&whole, 4).is_err(), "memories of another model");
        assert!(read(&whole[..1], 3).is_err(), "no memories after arrivals");
        assert!(read(&[whole[0].clone(), whole[2].clone(), whole[1].clone()], 3).is_err(), "out of order");
        let many = [&whole[..1], &vec![whole[1].clone(); limits::EF21_MEMORIES + 2]].concat();
        assert!(read(&many, 3).is_err(), "more memories than there may be");
        for (at, part) in whole.iter().enumerate() {
            for len in 0..part.len() {
                let mut cut = whole.clone();
                cut[at].truncate(len);
                assert!(read(&cut, 3).is_err(), "part {at} was read from {len} bytes");
            }
        }
        let wrong =
            [(1.5, 1.0, 0.0), (f64::NAN, 1.0, 0.0), (0.5, -1.0, 0.0), (0.5, f64::NAN, 0.0), (0.5, 1.0, f32::NAN)];
        for (factor, norm, value) in wrong {
            let memory = Memory { values: Arc::new(vec![value; 3]), examples: 1, norm, counted: 1, factor };
            let parts = parts(&figures, &[(AgentId([1; 16]), memory)].into());
            assert!(read(&parts, 3).is_err(), "{factor} {norm} {value}");
        }
    }
}
