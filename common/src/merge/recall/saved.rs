//! The bytes of the rule's state beside its vectors: one part for the figures, and one for each memory, so that a memory that
//! did not change is the same blob in every checkpoint.

use std::sync::Arc;

use super::memories::{Memories, Memory};
use crate::codec::Delta;
use crate::ids::AgentId;
use crate::limits;
use crate::merge::RestoreError;
use crate::schema::{self, Layout, Reader, SchemaError, Writer};

layout! {
    struct Figures { arrivals, sigma, lag, beta_1_power, beta_2_power, active, pending, used }
    struct SavedMemory { agent, content, origin, square, relevance }
}

/// The figures.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// n: arrivals since the state was empty.
    pub arrivals: u64,
    /// Moving mean of the updates' root mean square.
    pub sigma: f64,
    /// Moving mean of the updates' staleness, in versions.
    pub lag: f64,
    /// beta1^n, as a running product.
    pub beta_1_power: f64,
    /// The product of every beta2.
    pub beta_2_power: f64,
    /// C at the latest arrival.
    pub active: u32,
    /// Whether an arrival waits for its close.
    pub pending: bool,
    /// When each memory was used last, by agent in ascending order.
    pub used: Vec<u64>,
}

/// A memory without what changes at every arrival.
#[derive(Debug)]
struct SavedMemory {
    agent: AgentId,
    content: Content,
    origin: f64,
    square: f64,
    relevance: f64,
}

/// A vector as raw bytes: tag u32 (0 dense, 1 sparse), length u64; sparse: count u64, positions u32 each; values f32 each.
#[derive(Debug)]
struct Content(Arc<Delta>);

impl Layout for Content {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        let tag = u32::from(matches!(&*self.0, Delta::Sparse { .. }));
        tag.write(out)?;
        (self.0.len() as u64).write(out)?;
        if let Delta::Sparse { indices, .. } = &*self.0 {
            (indices.len() as u64).write(out)?;
            indices.iter().for_each(|index| out.raw(&index.to_le_bytes()));
        }
        self.0.values().iter().for_each(|value| out.raw(&value.to_le_bytes()));
        Ok(())
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let tag = u32::read(input)?;
        let len = size(u64::read(input)?)?;
        let delta = match tag {
            0 => Delta::Dense(words(input, len)?.into_iter().map(f32::from_bits).collect()),
            1 => {
                let count = size(u64::read(input)?)?;
                let indices = words(input, count)?;
                let values = words(input, count)?.into_iter().map(f32::from_bits).collect();
                Delta::Sparse { len, indices, values }
            }
            tag => return Err(SchemaError::UnknownVariant { kind: "Content", tag }),
        };
        Ok(Self(Arc::new(delta)))
    }
}

fn size(claimed: u64) -> Result<usize, SchemaError> {
    usize::try_from(claimed).map_err(|_| SchemaError::Truncated("a vector"))
}

/// Reads so many words of 4 bytes. Nothing is allocated for words that are not there.
fn words(input: &mut Reader<'_>, count: usize) -> Result<Vec<u32>, SchemaError> {
    let bytes = count.checked_mul(4).ok_or(SchemaError::Truncated("a vector"))?;
    Ok(input.raw(bytes, "a vector")?.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

/// Returns the parts: the figures, and each memory.
pub(super) fn parts(figures: &Figures, memories: &Memories) -> Vec<Vec<u8>> {
    let used = memories.iter().map(|(_, memory)| memory.used).collect();
    let mut parts = vec![bytes(&Figures { used, ..figures.clone() })];
    parts.extend(memories.iter().map(|(agent, memory)| {
        let Memory { content, origin, square, relevance, .. } = memory.clone();
        bytes(&SavedMemory { agent, content: Content(content), origin, square, relevance })
    }));
    parts
}

fn bytes<T: Layout>(part: &T) -> Vec<u8> {
    schema::encode(part, usize::MAX).expect("a part has no bound of its own, and no variant that is too new")
}

/// Reads the parts, for a model of `params` parameters, and checks all of them.
///
/// # Errors
/// A part does not decode, or holds what the rule never makes.
pub fn read(parts: &[Vec<u8>], params: usize) -> Result<(Figures, Vec<(AgentId, Memory)>), RestoreError> {
    let Some((head, rest)) = parts.split_first() else {
        return Err(RestoreError::Part("the figures are missing".into()));
    };
    let figures: Figures = decode(head)?;
    let powers = [figures.beta_1_power, figures.beta_2_power];
    let means = [figures.sigma, figures.lag];
    let sound =
        means.iter().all(|mean| mean.is_finite() && *mean >= 0.0) && powers.iter().all(|p| (0.0..=1.0).contains(p));
    check(sound, "a figure is out of range")?;
    check(
        rest.len() == figures.used.len() && rest.len() <= limits::RECALL_MEMORIES,
        "the number of memories is wrong",
    )?;
    let mut memories: Vec<(AgentId, Memory)> = Vec::with_capacity(rest.len());
    for (part, used) in rest.iter().zip(&figures.used) {
        let SavedMemory { agent, content, origin, square, relevance } = decode(part)?;
        let Content(content) = content;
        check(memories.last().is_none_or(|(before, _)| *before < agent), "the memories are out of order")?;
        check(fits(&content, params), "a memory is not of this model")?;
        let sound = origin.is_finite() && square.is_finite() && square > 0.0 && (0.0..=1.0).contains(&relevance);
        check(sound && *used <= figures.arrivals, "a memory's figure is out of range")?;
        memories.push((agent, Memory { content, origin, square, relevance, used: *used }));
    }
    Ok((figures, memories))
}

fn decode<T: Layout>(part: &[u8]) -> Result<T, RestoreError> {
    schema::decode(part, usize::MAX).map_err(|error| RestoreError::Part(error.to_string()))
}

fn check(holds: bool, what: &str) -> Result<(), RestoreError> {
    if holds { Ok(()) } else { Err(RestoreError::Part(what.to_owned())) }
}

fn fits(content: &Delta, params: usize) -> bool {
    let placed = match content {
        Delta::Dense(_) => true,
        Delta::Sparse { indices, .. } => {
            indices.is_sorted_by(|a, b| a < b) && indices.last().is_none_or(|last| (*last as usize) < params)
        }
    };
    content.len() == params && placed && content.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> (Figures, Memories) {
        let mut memories = Memories::default();
        let contents = [
            Delta::Dense(vec![1.0, -2.0, 0.5]),
            Delta::Sparse { len: 3, indices: vec![0, 2], values: vec![4.0, -0.25] },
        ];
        for (number, content) in (1..).zip(contents) {
            let square = content.norm() * content.norm();
            let memory = Memory { content: Arc::new(content), origin: -0.5, square, relevance: 0.75, used: 8 };
            memories.insert(AgentId([number; 16]), memory);
        }
        let figures = Figures {
            arrivals: 9,
            sigma: 0.25,
            lag: 1.5,
            beta_1_power: 0.125,
            beta_2_power: 0.5,
            active: 2,
            pending: true,
            used: vec![8, 8],
        };
        (figures, memories)
    }

    #[test]
    fn what_was_saved_is_read_back() {
        let (figures, memories) = saved();
        let (read_figures, read_memories) = read(&parts(&figures, &memories), 3).expect("whole");
        assert_eq!(read_figures, figures);
        assert!(read_memories.iter().map(|(agent, memory)| (*agent, memory)).eq(memories.iter()));
    }

    #[test]
    fn what_the_rule_never_makes_is_refused() {
        let (figures, memories) = saved();
        let whole = parts(&figures, &memories);
        assert!(read(&[], 3).is_err(), "no figures");
        assert!(read(&whole, 4).is_err(), "memories of another model");
        assert!(read(&whole[..2], 3).is_err(), "a memory is missing");
        assert!(read(&[whole[0].clone(), whole[2].clone(), whole[1].clone()], 3).is_err(), "out of order");
        for (at, part) in whole.iter().enumerate() {
            for len in 0..part.len() {
                let mut cut = whole.clone();
                cut[at].truncate(len);
                assert!(read(&cut, 3).is_err(), "part {at} was read from {len} bytes");
            }
        }
        for mean in [f64::NAN, f64::INFINITY, -1.0] {
            let wrong = [Figures { sigma: mean, ..figures.clone() }, Figures { lag: mean, ..figures.clone() }];
            assert!(wrong.iter().all(|figures| read(&parts(figures, &memories), 3).is_err()), "a mean of {mean}");
        }
        for (relevance, square) in [(1.5, 1.0), (f64::NAN, 1.0), (0.5, 0.0), (0.5, f64::INFINITY)] {
            let content = Arc::new(Delta::Dense(vec![0.0; 3]));
            let mut memories = Memories::default();
            memories.insert(AgentId([1; 16]), Memory { content, origin: 0.0, square, relevance, used: 1 });
            assert!(read(&parts(&figures, &memories), 3).is_err(), "relevance {relevance}, square {square}");
        }
        for (indices, values) in [(vec![2, 0], vec![1.0; 2]), (vec![3], vec![1.0]), (vec![0], vec![f32::NAN])] {
            let content = Arc::new(Delta::Sparse { len: 3, indices, values });
            let mut memories = Memories::default();
            memories.insert(AgentId([1; 16]), Memory { content, origin: 0.0, square: 1.0, relevance: 1.0, used: 1 });
            assert!(read(&parts(&figures, &memories), 3).is_err());
        }
    }
}
