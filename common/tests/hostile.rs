//! Payloads that no encoder wrote, by the thousand: decoders neither panic nor allocate more than they state, and whatever
//! they read is well-formed. Guards P5 and fault 41.
//!
//! `corpus/` keeps payloads that a decoder once got wrong or could: codec, tensors, payload, and the answer (empty: it is
//! read). A payload that fails here is printed in that form. Every one of them is mutated as well.

mod allocator;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use allocator::peak;
use anabranch_common::codec::quantize::ValueBits;
use anabranch_common::codec::segments::Segmented;
use anabranch_common::codec::{Codec, CodecId, CodecSpec, DecodeError, Delta, decode, encoder, max_decoded_bytes};
use anabranch_common::downlink::chain::{self, ChainRule, ChainStep, ChainUpdate};
use anabranch_common::downlink::track::{self, TrackRecord};
use anabranch_common::downlink::{FormError, xor};
use anabranch_common::ids::ModelVersion;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::rng::SplitMix64;
use anabranch_testkit::codec::normal;
use serde::Deserialize;

/// Mutations of each seed, and payloads of noise for each codec and manifest.
const EXECUTIONS: usize = 6_000;
/// What a decoder may hold beside what it states.
const CONSTANT: u64 = 64 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    codec: u8,
    tensors: Vec<u64>,
    payload: String,
    /// Text of the error.
    answer: String,
}

/// A payload, and the model that it is for.
#[derive(Debug, Clone)]
struct Seed {
    name: String,
    codec: u8,
    tensors: Vec<u64>,
    payload: Vec<u8>,
}

fn manifest(tensors: &[u64]) -> ModelManifest {
    let tensor = |(nth, elements): (usize, &u64)| TensorSpec { name: format!("t{nth}"), shape: vec![*elements] };
    ModelManifest::new(tensors.iter().enumerate().map(tensor).collect()).expect("small")
}

fn specs() -> impl Iterator<Item = CodecSpec> {
    let top_k = |bits| [0.01, 0.3].map(|fraction| CodecSpec::TopK { fraction, bits });
    let dense = [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::Int8, CodecSpec::Int4];
    dense.into_iter().chain(ValueBits::ALL.into_iter().flat_map(top_k))
}

/// Every codec for a model of so many tensors: each alone, and tensors in several of them.
fn codecs(tensors: usize) -> impl Iterator<Item = Box<dyn Codec>> {
    let few = CodecSpec::top_k(0.05);
    let cycles = [[few, CodecSpec::Bf16], [CodecSpec::Int8, few], [CodecSpec::F32, CodecSpec::Int4]];
    let mixed = cycles.map(|cycle| Segmented::new(cycle.into_iter().cycle().take(tensors)));
    specs().map(encoder).chain(mixed.into_iter().map(|codec| Box::new(codec) as Box<dyn Codec>))
}

/// Honest payloads of every codec.
fn honest() -> Vec<Seed> {
    let models: [&[u64]; 3] = [&[3, 1_025], &[1_024, 7, 2_500], &[9_000]];
    let seeds = models.into_iter().flat_map(|tensors| {
        codecs(tensors.len()).zip(0u64..).map(|(codec, nth)| {
            let manifest = manifest(tensors);
            let payload = codec.encode(&manifest, &normal(manifest.params(), nth)).expect("finite");
            Seed { name: format!("{codec:?}"), codec: codec.id().0, tensors: tensors.to_vec(), payload }
        })
    });
    seeds.collect()
}

fn corpus() -> Vec<(Seed, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("the corpus").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("a file of the corpus");
        let Entry { codec, tensors, payload, answer } = toml::from_str(&text).expect("a corpus entry");
        let byte = |at: usize| u8::from_str_radix(&payload[at..at + 2], 16).expect("hexadecimal");
        let payload = (0..payload.len()).step_by(2).map(byte).collect();
        (Seed { name: path.display().to_string(), codec, tensors, payload }, answer)
    };
    files.iter().map(read).collect()
}

/// Decodes; panics with the payload as an entry of the corpus if that does harm.
fn execute(codec: u8, manifest: &ModelManifest, tensors: &[u64], payload: &[u8]) -> Result<Delta, DecodeError> {
    let (id, stated) = (CodecId(codec), max_decoded_bytes(CodecId(codec), manifest, payload.len() as u64));
    let harm = match catch_unwind(AssertUnwindSafe(|| peak(|| decode(id, manifest, payload)))) {
        Err(_) => "a panic".to_owned(),
        Ok((most, _)) if most as u64 > stated + CONSTANT => format!("{most} bytes held, {stated} stated"),
        Ok((_, Ok(delta))) if !well_formed(&delta, manifest.params()) => "a delta that is not well-formed".to_owned(),
        Ok((_, result)) => return result,
    };
    let hex = payload.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("memory");
        hex
    });
    panic!("{harm}:\ncodec = {codec}\ntensors = {tensors:?}\npayload = \"{hex}\"\nanswer = \"\"");
}

fn well_formed(delta: &Delta, params: usize) -> bool {
    let positions = match delta {
        Delta::Dense(values) => values.len() == params,
        Delta::Sparse { indices, values, .. } => {
            indices.len() == values.len()
                && indices.is_sorted_by(|one, other| one < other)
                && indices.last().is_none_or(|last| (*last as usize) < params)
        }
    };
    positions && delta.len() == params
}

fn below(rng: &mut SplitMix64, end: usize) -> usize {
    usize::try_from(rng.below(end as u64)).expect("below a usize")
}

/// One of the ways in which a payload goes wrong.
fn mutate(rng: &mut SplitMix64, payload: &mut Vec<u8>, other: &[u8]) {
    let byte = |rng: &mut SplitMix64| rng.next_u64().to_le_bytes()[7];
    let at = below(rng, payload.len().max(1));
    let span = below(rng, 16) + 1;
    let end = (at + span).min(payload.len());
    match below(rng, 8) {
        0 if at < payload.len() => payload[at] ^= 1 << below(rng, 8),
        1 if at < payload.len() => payload[at] = [0, 1, 0x7F, 0x80, 0xFF][below(rng, 5)],
        2 => payload[at.min(end)..end].iter_mut().for_each(|slot| *slot = byte(rng)),
        3 => payload.truncate(at),
        4 => drop(payload.drain(at.min(end)..end)),
        5 => {
            let inserted: Vec<u8> = (0..span).map(|_| byte(rng)).collect();
            payload.splice(at.min(end)..at.min(end), inserted);
        }
        // The start of this one, the end of another.
        6 => {
            payload.truncate(at);
            payload.extend_from_slice(&other[at.min(other.len())..]);
        }
        // A word that may be a count, a length or a scale.
        _ => {
            let word = [0, 1, 255, 257, 1 << 18, 0x7F80_0000, 0x7FC0_0000, 0x0080_0000, u32::MAX][below(rng, 9)];
            for (slot, byte) in payload.iter_mut().skip(at).zip(u32::to_le_bytes(word)) {
                *slot = byte;
            }
        }
    }
}

#[test]
fn payloads_of_the_corpus_are_answered_as_noted() {
    let corpus = corpus();
    assert!(corpus.len() >= 25, "the corpus has {} entries", corpus.len());
    let mut wrong = String::new();
    for (Seed { name, codec, tensors, payload }, answer) in corpus {
        let found = execute(codec, &manifest(&tensors), &tensors, &payload).err().map(|error| error.to_string());
        let found = found.unwrap_or_default();
        if found != answer {
            writeln!(wrong, "{name}: {found:?} instead of {answer:?}").expect("memory");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn mutated_payloads_do_no_harm() {
    let seeds: Vec<Seed> = honest().into_iter().chain(corpus().into_iter().map(|(seed, _)| seed)).collect();
    let mut rng = SplitMix64::new(0xC0DEC);
    let mut counts: BTreeMap<u8, [usize; 2]> = BTreeMap::new();
    for (nth, seed) in seeds.iter().enumerate() {
        let manifest = manifest(&seed.tensors);
        let other = &seeds[(nth * 7 + 3) % seeds.len()].payload;
        // Long models take long: fewer of them.
        let executions = if manifest.params() > 100_000 { EXECUTIONS / 10 } else { EXECUTIONS };
        for _ in 0..executions {
            let mut payload = seed.payload.clone();
            (0..=below(&mut rng, 3)).for_each(|_| mutate(&mut rng, &mut payload, other));
            let read = execute(seed.codec, &manifest, &seed.tensors, &payload).is_ok();
            counts.entry(seed.codec).or_default()[usize::from(read)] += 1;
        }
    }
    print(&counts, "mutations");
    assert!(counts.values().all(|[refused, _]| *refused > EXECUTIONS), "a codec refuses next to nothing");
}

#[test]
fn noise_and_every_prefix_do_no_harm() {
    let mut rng = SplitMix64::new(0x0DD);
    let mut counts: BTreeMap<u8, [usize; 2]> = BTreeMap::new();
    for seed in honest() {
        let manifest = manifest(&seed.tensors);
        for len in (0..seed.payload.len()).step_by(1 + seed.payload.len() / 400) {
            let read = execute(seed.codec, &manifest, &seed.tensors, &seed.payload[..len]);
            assert!(read.is_err(), "{}: a prefix of {len} of {} bytes was read", seed.name, seed.payload.len());
            counts.entry(seed.codec).or_default()[0] += 1;
        }
        for _ in 0..EXECUTIONS {
            let noise: Vec<u8> = (0..below(&mut rng, 2_000)).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
            let read = execute(seed.codec, &manifest, &seed.tensors, &noise).is_ok();
            counts.entry(seed.codec).or_default()[usize::from(read)] += 1;
        }
    }
    print(&counts, "prefixes and payloads of noise");
    assert_eq!(counts.len(), 8, "a codec was left out");
}

/// How an agent makes a model from a form.
type Apply = fn(&ModelManifest, &[f32], &[u8]) -> Result<Vec<f32>, FormError>;

/// Every form that rests on a base: its name, how it is applied, and honest bytes of it.
fn honest_forms(manifest: &ModelManifest, base: &[f32]) -> Vec<(&'static str, Apply, Vec<u8>)> {
    let (params, from, version) = (manifest.params(), ModelVersion(0), ModelVersion(1));
    let (mut records, mut updates) = (Vec::new(), Vec::new());
    for (encoder, nth) in codecs(manifest.tensors().len()).zip(0u64..) {
        let payload: Arc<[u8]> = encoder.encode(manifest, &normal(params, nth)).expect("finite").into();
        records.push(TrackRecord { from, version, codec: encoder.id(), payload: Arc::clone(&payload) });
        updates.push(ChainUpdate { codec: encoder.id(), weight: 0.5, payload });
    }
    let alone = updates.iter().map(|update| ChainStep { from, version, updates: vec![update.clone()] });
    let one_by_one: Vec<ChainStep> = alone.collect();
    let together = [ChainStep { from, version, updates }];
    vec![
        ("track", track::replay, track::pack(&records)),
        ("difference", xor::apply, xor::pack(base, &normal(params, 99))),
        ("replay by FedAsync", chain::replay, chain::pack(ChainRule::FedAsync, &one_by_one)),
        ("replay by FedBuff", chain::replay, chain::pack(ChainRule::FedBuff, &together)),
    ]
}

/// What leads an agent from its base to a model does no more harm than a payload: it holds the model, the buffer of the rule,
/// and what decoding one payload takes.
#[test]
fn mutated_forms_do_no_harm() {
    let (manifest, mut rng) = (manifest(&[1_024, 7, 500]), SplitMix64::new(0xF0125));
    let (params, base) = (manifest.params(), normal(manifest.params(), 50));
    let forms = honest_forms(&manifest, &base);
    for (name, apply, honest) in &forms {
        let model = apply(&manifest, &base, honest).expect("an honest form");
        assert!(model.len() == params && model != base, "{name} leads nowhere");
        let [mut refused, mut read] = [0; 2];
        for nth in 0..4 * EXECUTIONS {
            let mut bytes = honest.clone();
            (0..=below(&mut rng, 3)).for_each(|_| mutate(&mut rng, &mut bytes, &forms[nth % forms.len()].2));
            let stated = (4 + 4 + 12) * params as u64 + bytes.len() as u64 + CONSTANT;
            let applied = catch_unwind(AssertUnwindSafe(|| peak(|| apply(&manifest, &base, &bytes))));
            let Ok((most, applied)) = applied else { panic!("{name} panics over {bytes:02x?}") };
            assert!(most as u64 <= stated, "{name}: {most} bytes held, {stated} stated, over {bytes:02x?}");
            match applied {
                Ok(model) => {
                    assert_eq!(model.len(), params, "{name} over {bytes:02x?}");
                    read += 1;
                }
                Err(_) => refused += 1,
            }
        }
        println!("{name}: {} mutations, {refused} refused, {read} read", refused + read);
        assert!(refused > EXECUTIONS, "{name} refuses next to nothing");
    }
}

fn print(counts: &BTreeMap<u8, [usize; 2]>, what: &str) {
    for (codec, [refused, read]) in counts {
        println!("codec {codec}: {} {what}, {refused} refused, {read} read", refused + read);
    }
    println!("{} executions", counts.values().flatten().sum::<usize>());
}
