//! The accepted updates between two versions: the agent merges them as the coordinator did.
//!
//! Only for rules whose state beside the model is empty after every close: what an agent needs is the model that it holds,
//! and what was merged since. Nothing is encoded again, so the form costs what the updates have cost on their way up. It
//! shows an agent the updates of others, which is why `[downlink] share_updates` must allow it.
//!
//! ```text
//!  ┌──────┐   ┌───────┬────────┬─────────┬─────────┐           ┌──────┐
//!  │ rule │   │ codec │ weight │ length  │ payload │ ...       │ 0xFF │ ...
//!  │ u8   │   │ u8    │ f32 le │ u32 le  │         │           │ u8   │
//!  └──────┘   └───────┴────────┴─────────┴─────────┘           └──────┘
//!              a contribution                                   a close
//! ```
//! The weight is the one that the journal holds: staleness, clipping and participation are in it.

use std::sync::Arc;

use super::FormError;
use crate::codec::{self, CodecId};
use crate::ids::{AgentId, ModelVersion};
use crate::limits;
use crate::manifest::ModelManifest;
use crate::merge::fedasync::FedAsync;
use crate::merge::fedbuff::FedBuff;
use crate::merge::{Arrival, MergeRule, MergeSpec};

/// Byte of a close, where a contribution has its codec.
const CLOSE: u8 = 0xFF;
/// Bytes of a contribution before its codec's payload.
pub const HEADER_BYTES: usize = 9;

/// A rule that agents can replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainRule {
    /// x += w * delta.
    FedAsync,
    /// b += w * delta; at a close, x += b.
    FedBuff,
}

impl ChainRule {
    /// Returns the rule by which a run merges, if agents can replay it. They train from the model also where its average
    /// is served.
    #[must_use]
    pub fn of(spec: &MergeSpec) -> Option<Self> {
        match spec.unaveraged() {
            MergeSpec::FedAsync { .. } => Some(Self::FedAsync),
            MergeSpec::FedBuff { .. } => Some(Self::FedBuff),
            _ => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::FedAsync => 0,
            Self::FedBuff => 1,
        }
    }

    fn of_byte(byte: u8) -> Option<Self> {
        [Self::FedAsync, Self::FedBuff].into_iter().find(|rule| rule.byte() == byte)
    }

    fn merge(self, params: usize) -> Box<dyn MergeRule> {
        match self {
            Self::FedAsync => Box::new(FedAsync::new(params)),
            Self::FedBuff => Box::new(FedBuff::new(params)),
        }
    }

    /// Contributions of one version, at most: those of the first rule wait as they came.
    fn most(self) -> usize {
        match self {
            Self::FedAsync => 1,
            Self::FedBuff => limits::CHAIN_UPDATES,
        }
    }
}

/// An accepted update, as far as its merging needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChainUpdate {
    /// How its payload is encoded.
    pub codec: CodecId,
    /// The factor it is merged with.
    pub weight: f32,
    /// Its content.
    pub payload: Arc<[u8]>,
}

/// The updates that make a version.
#[derive(Debug, Clone, PartialEq)]
pub struct ChainStep {
    /// The version that they follow.
    pub from: ModelVersion,
    /// The version that they make.
    pub version: ModelVersion,
    /// The updates, in the order in which they are merged.
    pub updates: Vec<ChainUpdate>,
}

impl ChainStep {
    /// Returns how many bytes it takes in a transfer.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        1 + self.updates.iter().map(|update| HEADER_BYTES + update.payload.len()).sum::<usize>()
    }
}

/// Returns steps as one transfer.
#[must_use]
pub fn pack<'a>(rule: ChainRule, steps: impl IntoIterator<Item = &'a ChainStep>) -> Vec<u8> {
    let mut out = vec![rule.byte()];
    for step in steps {
        for ChainUpdate { codec, weight, payload } in &step.updates {
            let len = u32::try_from(payload.len()).expect("a payload is no longer than a transfer may be");
            out.push(codec.0);
            out.extend_from_slice(&weight.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(payload);
        }
        out.push(CLOSE);
    }
    out
}

/// Returns the model that steps lead to from `base`. Its digest has to be checked: steps of another branch lead elsewhere.
/// Holds the model, the rule's buffer and one decoded update at a time.
///
/// # Errors
/// The bytes are no steps of this model.
pub fn replay(manifest: &ModelManifest, base: &[f32], packed: &[u8]) -> Result<Vec<f32>, FormError> {
    FormError::check_base(manifest, base)?;
    let (rule, mut rest) = packed.split_first().ok_or(FormError::Truncated)?;
    let rule = ChainRule::of_byte(*rule).ok_or(FormError::UnknownRule(*rule))?;
    let (mut merge, mut model) = (rule.merge(manifest.params()), base.to_vec());
    let (mut records, mut waiting) = (0, 0);
    while let Some((tag, after)) = rest.split_first() {
        records += 1;
        if records > limits::CHAIN_UPDATES {
            return Err(FormError::TooMany);
        }
        if *tag == CLOSE {
            merge.close(&mut model);
            (rest, waiting) = (after, 0);
            continue;
        }
        waiting += 1;
        if waiting > rule.most() {
            return Err(FormError::TooMany);
        }
        rest = contribute(manifest, &model, &mut *merge, rest)?;
    }
    if waiting == 0 { Ok(model) } else { Err(FormError::Truncated) }
}

/// Merges the contribution that `rest` begins with. Returns what follows it.
fn contribute<'a>(
    manifest: &ModelManifest,
    model: &[f32],
    merge: &mut dyn MergeRule,
    rest: &'a [u8],
) -> Result<&'a [u8], FormError> {
    let (header, rest) = rest.split_first_chunk::<HEADER_BYTES>().ok_or(FormError::Truncated)?;
    let [codec, w0, w1, w2, w3, len @ ..] = *header;
    let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(len) as usize).ok_or(FormError::Truncated)?;
    let delta = Arc::new(codec::decode(CodecId(codec), manifest, payload)?);
    let weight = f32::from_le_bytes([w0, w1, w2, w3]);
    // The rules that agents can replay read nothing but the weight.
    merge.contribute(model, &delta, &Arrival::of(AgentId::default(), weight));
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::quantize::ValueBits;
    use crate::codec::{CodecSpec, DecodeError, encoder};
    use crate::downlink::fixture::{PARAMS, bits, manifest, noise};
    use crate::merge::staleness::Staleness;
    use crate::rng::SplitMix64;

    fn specs() -> [(MergeSpec, u32); 2] {
        let (staleness, participation) = (Staleness::Constant, false);
        let fedbuff = MergeSpec::FedBuff { buffer_size: 3, server_lr: 1.0, staleness, participation };
        [(MergeSpec::FedAsync { alpha: 0.6, staleness, participation }, 1), (fedbuff, 3)]
    }

    /// What the coordinator does: its own rule and model, and the steps that it keeps.
    struct Coordinator {
        rule: Box<dyn MergeRule>,
        model: Vec<f32>,
        version: ModelVersion,
    }

    impl Coordinator {
        fn step(&mut self, manifest: &ModelManifest, rng: &mut SplitMix64, updates: u32) -> ChainStep {
            let dense = [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::Int8, CodecSpec::Int4];
            let sparse = ValueBits::ALL.map(|bits| CodecSpec::TopK { fraction: 0.05, bits });
            let codecs: Vec<CodecSpec> = dense.into_iter().chain(sparse).collect();
            let updates = (0..updates).map(|_| {
                let encoder = encoder(codecs[usize::try_from(rng.below(codecs.len() as u64)).expect("short")]);
                let payload = encoder.encode(manifest, &noise(rng, 0.01)).expect("finite");
                let delta = Arc::new(codec::decode(encoder.id(), manifest, &payload).expect("its own"));
                // The agent is told none of these but the weight.
                let (agent, weight) = (AgentId([7; 16]), rng.next_signed_f32());
                let (mean_weight, staleness, base_dot) = (3, rng.below(9), Some(0.5));
                let arrival = Arrival { agent, weight, mean_weight, staleness, base_dot, recall: None, memory: None };
                self.rule.contribute(&self.model, &delta, &arrival);
                ChainUpdate { codec: encoder.id(), weight, payload: payload.into() }
            });
            let updates = updates.collect();
            self.rule.close(&mut self.model);
            let from = self.version;
            self.version = from.next();
            ChainStep { from, version: self.version, updates }
        }
    }

    fn coordinator(spec: &MergeSpec, rng: &mut SplitMix64) -> Coordinator {
        Coordinator { rule: spec.rule(PARAMS), model: noise(rng, 1.0), version: ModelVersion(0) }
    }

    /// An agent that merges what it has missed, in pieces of random lengths, is where the coordinator is, over thousands of
    /// versions.
    #[test]
    fn a_replica_has_the_bits_of_the_model_whatever_it_has_missed() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(1));
        for (spec, size) in specs() {
            let rule = ChainRule::of(&spec).expect("it can be replayed");
            let mut coordinator = coordinator(&spec, &mut rng);
            let (mut replica, mut missed) = (coordinator.model.clone(), Vec::new());
            for version in 1..=2_000 {
                missed.push(coordinator.step(&manifest, &mut rng, size));
                if rng.below(10) == 0 {
                    let packed = pack(rule, &missed);
                    assert_eq!(packed.len(), 1 + missed.iter().map(ChainStep::packed_bytes).sum::<usize>());
                    replica = replay(&manifest, &replica, &packed).expect("its own steps");
                    assert_eq!(bits(&replica), bits(&coordinator.model), "{rule:?} at version {version}");
                    missed.clear();
                }
            }
        }
    }

    #[test]
    fn rules_with_a_state_of_their_own_cannot_be_replayed() {
        let rule = |text: &str| ChainRule::of(&toml::from_str(text).expect("a rule"));
        assert_eq!(rule("strategy = 'fedasync'\nalpha = 0.6"), Some(ChainRule::FedAsync));
        assert_eq!(rule("strategy = 'fedbuff'\nbuffer_size = 4\nserver_lr = 1.0"), Some(ChainRule::FedBuff));
        let others = ["'recall'", "'fedavg'", "'sync-sgd'", "'delayed-nesterov'\nbuffer_size = 4\nserver_lr = 1.0"];
        assert_eq!(others.map(|other| rule(&format!("strategy = {other}"))), [None; 4]);
    }

    /// Steps of a hostile coordinator never panic, and nothing is changed by those that are refused.
    #[test]
    fn broken_steps_are_refused() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(2));
        for (spec, size) in specs() {
            let rule = ChainRule::of(&spec).expect("it can be replayed");
            let mut coordinator = coordinator(&spec, &mut rng);
            let base = coordinator.model.clone();
            let steps = [0, 1].map(|_| coordinator.step(&manifest, &mut rng, size));
            let packed = pack(rule, &steps);
            let whole = [1, 1 + steps[0].packed_bytes()];
            for len in (0..packed.len()).filter(|len| !whole.contains(len)) {
                assert!(replay(&manifest, &base, &packed[..len]).is_err(), "{len} bytes were taken");
            }
            for _ in 0..500 {
                let (mut broken, at) = (packed.clone(), rng.below(packed.len() as u64));
                broken[usize::try_from(at).expect("short")] ^= 1 << rng.below(8);
                if let Ok(model) = replay(&manifest, &base, &broken) {
                    assert_eq!(model.len(), PARAMS);
                }
            }
            assert!(matches!(replay(&manifest, &base[1..], &packed), Err(FormError::Base { .. })));
            let unknown = [rule.byte(), 77, 0, 0, 0, 0, 0, 0, 0, 0, CLOSE];
            assert_eq!(replay(&manifest, &base, &unknown), Err(DecodeError::UnknownCodec(77).into()));
        }
        assert_eq!(replay(&manifest, &[0.0; PARAMS], &[2]), Err(FormError::UnknownRule(2)));
    }

    /// Updates of FedAsync wait decoded until their close: more than one would be memory that the bytes do not warrant.
    #[test]
    fn the_numbers_of_updates_are_bounded() {
        let (manifest, base) = (manifest(), vec![0.0; PARAMS]);
        let payload = encoder(CodecSpec::top_k(0.001)).encode(&manifest, &base).expect("finite");
        let update = ChainUpdate { codec: encoder(CodecSpec::top_k(0.001)).id(), weight: 1.0, payload: payload.into() };
        let step = |updates| ChainStep {
            from: ModelVersion(0),
            version: ModelVersion(1),
            updates: vec![update.clone(); updates],
        };
        let replay = |rule, step: ChainStep| replay(&manifest, &base, &pack(rule, [&step])).map(|_| ());
        assert_eq!(replay(ChainRule::FedAsync, step(1)), Ok(()));
        assert_eq!(replay(ChainRule::FedAsync, step(2)), Err(FormError::TooMany));
        assert_eq!(replay(ChainRule::FedBuff, step(limits::CHAIN_UPDATES - 1)), Ok(()), "with its close");
        assert_eq!(replay(ChainRule::FedBuff, step(limits::CHAIN_UPDATES)), Err(FormError::TooMany));
    }
}
