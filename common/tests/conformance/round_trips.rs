//! Whatever is written is read as it was written, and whatever is read does no harm. Guards P5 (memory stays under its
//! ceiling whatever peers send) together with `tests/allocations.rs`, and fault 41.

use anabranch_common::codec::quantize::{SMALLEST, ValueBits};
use anabranch_common::codec::segments::{self, Segmented};
use anabranch_common::codec::{Codec as _, CodecId, CodecSpec, Delta, decode, encoder};
use anabranch_common::ids::{AgentId, Digest, ModelVersion, Position};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::limits::{CHUNK_BYTES, CONTROL_MESSAGE_BYTES, FRAME_HEADER_BYTES};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::schema;
use anabranch_common::wire::frame::{self, FrameKind};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, JoinRequest};
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse};
use anabranch_common::wire::transfer::{Assembly, Missing, TransferManifest};
use proptest::prelude::*;

fn manifests() -> impl Strategy<Value = ModelManifest> {
    let shape = prop_oneof![
        prop::collection::vec(1u64..12, 1..4),
        (1_000u64..1_100).prop_map(|extent| vec![extent]),
        (1_024u64..5_000).prop_map(|extent| vec![extent]),
    ];
    prop::collection::vec(shape, 1..5).prop_map(|shapes| {
        let tensor = |(index, shape)| TensorSpec { name: format!("layer.{index}"), shape };
        ModelManifest::new(shapes.into_iter().enumerate().map(tensor).collect()).expect("small and named apart")
    })
}

/// A manifest and as many values, most of them ordinary, some of any finite bits.
fn vectors() -> impl Strategy<Value = (ModelManifest, Vec<f32>)> {
    manifests().prop_flat_map(|manifest| {
        let any_finite = any::<f32>().prop_filter("finite", |value| value.is_finite());
        let value = prop_oneof![8 => -1.0f32..1.0, 1 => Just(0.0f32), 1 => any_finite];
        let values = prop::collection::vec(value, manifest.params());
        (Just(manifest), values)
    })
}

fn largest_left_out(values: &[f32], delta: &Delta) -> f32 {
    let back = delta.clone().into_dense();
    values.iter().zip(back).filter(|(_, back)| *back == 0.0).map(|(value, _)| value.abs()).fold(0.0, f32::max)
}

/// What a block is read as, one value after another: the quotient by the scale, rounded half to even, times the scale.
#[expect(clippy::cast_possible_truncation, reason = "a mean of finite f32 is one")]
fn plain(bits: ValueBits, block: &[f32]) -> Vec<f32> {
    let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if largest < SMALLEST {
        return vec![0.0; block.len()];
    }
    let levels = match bits {
        ValueBits::Eight => 127.0,
        ValueBits::Four => 7.0,
        ValueBits::One => {
            let mean = block.iter().map(|value| f64::from(value.abs())).sum::<f64>() / block.len() as f64;
            return block.iter().map(|value| (mean as f32).copysign(*value)).collect();
        }
    };
    let scale = if (largest / levels * levels).is_finite() { largest / levels } else { (largest / levels).next_down() };
    block.iter().map(|value| (value / scale).round_ties_even() * scale).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn f32_planes_are_lossless((manifest, values) in vectors()) {
        let bytes = encoder(CodecSpec::F32).encode(&manifest, &values).expect("finite");
        let back = decode(CodecId(0), &manifest, &bytes).expect("as encoded").into_dense();
        prop_assert_eq!(Digest::of_f32(&back), Digest::of_f32(&values));
    }

    #[test]
    fn bf16_planes_are_exact_the_second_time((manifest, values) in vectors()) {
        let codec = encoder(CodecSpec::Bf16);
        let once = codec.decode(&manifest, &codec.encode(&manifest, &values).expect("finite")).expect("as encoded");
        prop_assert!(once.is_finite());
        let once = once.into_dense();
        let twice = codec.decode(&manifest, &codec.encode(&manifest, &once).expect("finite")).expect("as encoded");
        prop_assert_eq!(twice.into_dense(), once);
    }

    #[test]
    fn top_k_keeps_the_largest_and_no_more((manifest, values) in vectors(), fraction in 0.001f32..1.0) {
        let codec = encoder(CodecSpec::top_k(fraction));
        let delta = codec.decode(&manifest, &codec.encode(&manifest, &values).expect("finite")).expect("as encoded");
        prop_assert!(delta.is_finite());
        let Delta::Sparse { indices, .. } = &delta else { panic!("top-k gives sparse deltas") };
        let sent: Vec<usize> = indices.iter().map(|index| *index as usize).collect();
        let most = (values.len() as f64 * f64::from(fraction)).round().max(1.0);
        prop_assert!(sent.len() as f64 <= most, "{} of {} entries sent, {} allowed", sent.len(), values.len(), most);
        let smallest_sent = sent.iter().map(|index| values[*index].abs()).fold(f32::INFINITY, f32::min);
        let unsent = (0..values.len()).filter(|index| sent.binary_search(index).is_err());
        let largest_unsent = unsent.map(|index| values[index].abs()).fold(0.0, f32::max);
        prop_assert!(sent.is_empty() || largest_unsent <= smallest_sent);
    }

    #[test]
    fn top_k_of_everything_leaves_out_only_what_is_tiny_beside_its_block((manifest, values) in vectors()) {
        let codec = encoder(CodecSpec::top_k(1.0));
        let delta = codec.decode(&manifest, &codec.encode(&manifest, &values).expect("finite")).expect("as encoded");
        let largest = values.iter().map(|value| value.abs()).fold(0.0, f32::max);
        prop_assert!(largest_left_out(&values, &delta) <= largest / 254.0 * 1.001 + 1e-35);
    }

    #[test]
    fn quantized_values_are_those_of_the_plain_rule((manifest, values) in vectors(), fraction in 0.001f32..1.0) {
        let top_k = ValueBits::ALL.map(|bits| (CodecSpec::TopK { fraction, bits }, bits, 256));
        let dense = [(CodecSpec::Int8, ValueBits::Eight, 256), (CodecSpec::Int4, ValueBits::Four, 128)];
        for (spec, bits, block) in top_k.into_iter().chain(dense) {
            let codec = encoder(spec);
            let delta = codec.decode(&manifest, &codec.encode(&manifest, &values).expect("finite")).expect("as encoded");
            // What is rounded, and what it is read as: the entries that are sent, or a tensor with blocks.
            let parts: Vec<(Vec<f32>, Vec<f32>)> = match &delta {
                Delta::Sparse { indices, values: sent, .. } => {
                    vec![(indices.iter().map(|at| values[*at as usize]).collect(), sent.clone())]
                }
                Delta::Dense(sent) => {
                    let tensors = manifest.ranges().map(|(_, range)| range).filter(|range| range.len() >= 1_024);
                    tensors.map(|range| (values[range.clone()].to_vec(), sent[range].to_vec())).collect()
                }
            };
            for (picked, sent) in parts {
                let wanted: Vec<f32> = picked.chunks(block).flat_map(|block| plain(bits, block)).collect();
                prop_assert_eq!(&sent, &wanted, "{:?}", spec);
            }
        }
    }

    /// Whatever codecs the tensors have: each is read as its codec alone would be, top-k of several as one of them together.
    #[test]
    fn segments_round_trip((manifest, values) in vectors(), picks in prop::collection::vec(0usize..4, 5), fraction in 0.001f32..1.0) {
        let choices = [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::Int8, CodecSpec::top_k(fraction)];
        let tensors = manifest.tensors().len();
        let codecs: Vec<CodecSpec> = picks.iter().take(tensors).map(|pick| choices[*pick]).collect();
        let payload = Segmented::new(codecs.clone()).encode(&manifest, &values).expect("finite");
        let back = decode(segments::ID, &manifest, &payload).expect("as encoded").into_dense();
        let mut sent = 0;
        for ((nth, codec), (_, range)) in codecs.iter().enumerate().zip(manifest.ranges()) {
            let (values, back) = (&values[range.clone()], &back[range]);
            if let CodecSpec::TopK { .. } = codec {
                sent += back.iter().filter(|value| **value != 0.0).count();
                continue;
            }
            let alone = manifest.slice(nth..nth + 1).expect("one tensor");
            let payload = encoder(*codec).encode(&alone, values).expect("finite");
            let wanted = decode(codec.id(), &alone, &payload).expect("as encoded").into_dense();
            prop_assert_eq!(Digest::of_f32(back), Digest::of_f32(&wanted), "tensor {}", nth);
        }
        let sparse = codecs.iter().zip(manifest.ranges()).filter(|(codec, _)| matches!(codec, CodecSpec::TopK { .. }));
        let elements: usize = sparse.map(|(_, (_, range))| range.len()).sum();
        let most = (elements as f64 * f64::from(fraction)).round().max(1.0);
        prop_assert!(sent as f64 <= most, "{} of {} entries sent, {} allowed", sent, elements, most);
    }

    /// Any header in front of any bytes.
    #[test]
    fn any_segments_are_a_payload_or_refused(manifest in manifests(), parts in prop::collection::vec((0usize..4, 0u8..8, 0u64..80), 0..5), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let described: Vec<_> = parts
            .iter()
            .map(|(tensors, codec, bytes)| segments::Segment { tensors: *tensors, codec: CodecId(*codec), bytes: *bytes })
            .collect();
        let payload = [segments::header(&described), bytes].concat();
        if let Ok(parts) = segments::split(&manifest, &payload) {
            prop_assert_eq!(parts.len(), described.len());
            prop_assert_eq!(parts.last().map(|part| part.values.end), Some(manifest.params()));
        }
        if let Ok(delta) = decode(segments::ID, &manifest, &payload) {
            prop_assert_eq!(delta.len(), manifest.params());
        }
    }

    #[test]
    fn any_bytes_are_a_payload_or_refused(manifest in manifests(), id in 0u8..9, bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(delta) = decode(CodecId(id), &manifest, &bytes) {
            prop_assert_eq!(delta.len(), manifest.params());
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), tag in 0u32..16) {
        let tagged = [&tag.to_le_bytes()[..], &bytes].concat();
        for bytes in [&bytes, &tagged] {
            // What is read is what would be written: there is one form for each message.
            macro_rules! canonical {
                ($($message:ty),*) => {$(
                    if let Ok(read) = schema::decode::<$message>(bytes, CONTROL_MESSAGE_BYTES) {
                        prop_assert_eq!(&schema::encode(&read, CONTROL_MESSAGE_BYTES).expect("small"), bytes);
                    }
                )*};
            }
            canonical!(AgentMessage, CoordinatorMessage, JoinRequest, OperatorRequest, OperatorResponse);
            prop_assert!(Record::from_bytes(bytes).is_err());
        }
    }

    #[test]
    fn frames_round_trip_and_notice_damage(payload in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let parse = |bytes: &[u8]| {
            let (head, payload) = bytes.split_at(FRAME_HEADER_BYTES);
            let header = frame::header(head.try_into().expect("16 bytes"), CONTROL_MESSAGE_BYTES)?;
            header.check(payload).map(|()| (header.kind, payload.to_vec()))
        };
        let mut bytes = frame::encode(FrameKind::Coordinator, &payload).expect("small");
        prop_assert_eq!(parse(&bytes), Ok((FrameKind::Coordinator, payload)));
        *at.get_mut(&mut bytes) ^= flip;
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn records_round_trip_and_notice_damage(name in ".{0,40}", payload in prop::collection::vec(any::<u8>(), 0..300), position: u64, at_ms: u64, at in any::<prop::sample::Index>(), flip in 1u8..) {
        let body = RecordBody::AgentJoined { agent: AgentId([3; 16]), name };
        let record = Record::new(Position(position), at_ms, body, payload.into());
        let mut bytes = record.to_bytes().expect("small");
        prop_assert_eq!(Record::from_bytes(&bytes), Ok(record));
        *at.get_mut(&mut bytes) ^= flip;
        prop_assert!(Record::from_bytes(&bytes).is_err());
    }

    #[test]
    fn manifests_round_trip(manifest in manifests()) {
        let bytes = schema::encode(&manifest, CONTROL_MESSAGE_BYTES).expect("small");
        let back: ModelManifest = schema::decode(&bytes, CONTROL_MESSAGE_BYTES).expect("as encoded");
        prop_assert_eq!(&back, &manifest);
        prop_assert_eq!(back.digest(), manifest.digest());
        let json = serde_json::to_string(&manifest).expect("serializable");
        prop_assert_eq!(serde_json::from_str::<ModelManifest>(&json).expect("as written"), manifest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn transfers_arrive_in_any_order(len in 0usize..4 * CHUNK_BYTES, order in Just((0u32..4).collect::<Vec<_>>()).prop_shuffle(), seed: u8) {
        let content: Vec<u8> = (0..251u8).cycle().take(len).map(|byte| byte ^ seed).collect();
        let manifest = TransferManifest::of(&content);
        let mut assembly = Assembly::new(manifest.clone(), u64::MAX).expect("its own manifest");
        prop_assert_eq!(assembly.missing(), &Missing::all(manifest.chunks.len()));
        let mut left = manifest.chunks.len();
        for index in order {
            let Some(range) = manifest.range(index) else { continue };
            left -= 1;
            prop_assert_eq!(assembly.put(index, &content[range]), Ok(left == 0));
        }
        prop_assert_eq!(assembly.finish(), Some(content));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Chunks cover the content in order, each within one section, and none but the last one of a section is short.
    #[test]
    fn sections_are_covered_by_chunks_of_their_own(
        len in 1usize..3 * CHUNK_BYTES,
        cuts in prop::collection::btree_set(1usize..3 * CHUNK_BYTES, 0..6),
    ) {
        let content: Vec<u8> = (0..251u8).cycle().take(len).collect();
        let starts: Vec<u64> = cuts.into_iter().filter(|start| *start < len).map(|start| start as u64).collect();
        let manifest = TransferManifest::in_sections(&content, starts.clone());
        prop_assert_eq!(manifest.validate(u64::MAX), Ok(()));
        prop_assert_eq!(manifest.sections().skip(1).map(|section| section.bytes.start).collect::<Vec<_>>(), starts);
        let mut at = 0;
        for section in manifest.sections() {
            prop_assert_eq!(section.bytes.start, at as u64);
            for index in section.chunks.clone() {
                let range = manifest.range(index).expect("it exists");
                prop_assert_eq!(range.start, at);
                prop_assert!(range.len() == CHUNK_BYTES || (index + 1 == section.chunks.end && !range.is_empty()));
                prop_assert_eq!(manifest.matches(index, &content[range.clone()]), Ok(()));
                at = range.end;
            }
            prop_assert_eq!(section.bytes.end, at as u64);
        }
        prop_assert_eq!(at, len);
        let chunks = u32::try_from(manifest.chunks.len()).expect("few");
        prop_assert_eq!((manifest.range(chunks), manifest.sections().last().map(|last| last.chunks.end)), (None, Some(chunks)));
        let bytes = schema::encode(&manifest, CONTROL_MESSAGE_BYTES).expect("short");
        prop_assert_eq!(schema::decode::<TransferManifest>(&bytes, CONTROL_MESSAGE_BYTES).expect("as written"), manifest);
    }
}

/// A version is what staleness is counted in: equal, older and (from a broken peer) newer bases.
#[test]
fn staleness_never_goes_below_zero() {
    let now = ModelVersion(5);
    assert_eq!([5, 3, 9].map(|base| now.staleness_of(ModelVersion(base))), [0, 2, 0]);
}
