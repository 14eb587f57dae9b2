//! No payload makes a decoder allocate more than its manifest and its own length warrant. Guards P5 and fault 41 (zstd
//! bombs, length bombs).

mod allocator;

use allocator::peak;
use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::quantize::ValueBits;
use anabranch_common::codec::segments::{self, Segment, Segmented};
use anabranch_common::codec::{
    Codec as _, CodecId, DecodeError, decode, encoder, max_decoded_bytes, max_payload_bytes,
};
use anabranch_common::codec::{CodecSpec, Delta, sparse};
use anabranch_common::downlink::{FormError, track, xor};
use anabranch_common::ids::Digest;
use anabranch_common::limits::CONTROL_MESSAGE_BYTES;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::schema;
use anabranch_common::wire::message::AgentMessage;
use anabranch_common::wire::transfer::{Assembly, TransferManifest};
use anabranch_testkit::codec::normal;

fn manifest(params: u64) -> ModelManifest {
    ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![params] }]).expect("valid")
}

/// Bytes a parameter that `Codec::decode` promises, and the constant beside them.
const A_PARAMETER: usize = 12;
const CONSTANT: usize = 64 << 10;

fn every_spec() -> impl Iterator<Item = CodecSpec> {
    let dense = [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::Int8, CodecSpec::Int4];
    let top_k = |bits| [0.05, 1.0].map(|fraction| CodecSpec::TopK { fraction, bits });
    dense.into_iter().chain(ValueBits::ALL.into_iter().flat_map(top_k))
}

#[test]
fn honest_payloads_stay_within_the_promise() {
    let params = 300_000;
    let (manifest, values) = (manifest(params), normal(300_000, 1));
    for spec in every_spec() {
        let codec = encoder(spec);
        let bytes = codec.encode(&manifest, &values).expect("finite");
        let (most, delta) = peak(|| codec.decode(&manifest, &bytes));
        assert_eq!(delta.map(|delta| delta.len()), Ok(300_000));
        assert!(most <= 300_000 * A_PARAMETER + CONSTANT, "{spec:?} held {most} bytes");
        let stated = max_decoded_bytes(codec.id(), &manifest, bytes.len() as u64);
        assert!(most as u64 <= stated + CONSTANT as u64, "{spec:?} held {most} bytes, more than {stated}");
    }
}

/// Segments beside each other take what they decode to, and one of them at a time what its codec takes.
#[test]
fn honest_segments_stay_within_the_promise() {
    let tensors = [200_000, 3_000, 90_000, 7_000];
    let tensor = |(nth, elements): (usize, &u64)| TensorSpec { name: format!("t{nth}"), shape: vec![*elements] };
    let manifest = ModelManifest::new(tensors.iter().enumerate().map(tensor).collect()).expect("valid");
    let values = normal(300_000, 1);
    let (few, all) = (CodecSpec::top_k(0.05), CodecSpec::top_k(1.0));
    for codecs in [
        [few, CodecSpec::Bf16, few, CodecSpec::F32],
        [CodecSpec::F32, all, CodecSpec::Bf16, CodecSpec::Int8],
        [all, CodecSpec::Int4, all, all],
        [few, all, few, CodecSpec::top_k(0.5)],
    ] {
        let codec = Segmented::new(codecs);
        let bytes = codec.encode(&manifest, &values).expect("finite");
        let (most, delta) = peak(|| codec.decode(&manifest, &bytes));
        assert_eq!(delta.map(|delta| delta.len()), Ok(300_000));
        let stated = max_decoded_bytes(codec.id(), &manifest, bytes.len() as u64);
        println!("{codecs:?}: {most} bytes held, {stated} stated");
        assert!(stated == 300_000 * A_PARAMETER as u64, "{stated} stated");
        assert!(most <= 300_000 * A_PARAMETER + CONSTANT, "{codecs:?} held {most} bytes");
    }
}

/// A segment that is too short for its tensors takes nothing, whatever stands before it.
#[test]
fn segments_that_lie_about_their_tensors_allocate_next_to_nothing() {
    let tensor = |name: &str, elements| TensorSpec { name: name.into(), shape: vec![elements] };
    let manifest = ModelManifest::new(vec![tensor("small", 4), tensor("large", (1 << 30) - 4)]).expect("valid");
    for codec in [0, 1, 3, 4] {
        let segment = |codec, bytes| Segment { tensors: 1, codec: CodecId(codec), bytes };
        let payload = [segments::header(&[segment(3, 8), segment(codec, 64)]), vec![0; 72]].concat();
        let (most, refused) = peak(|| decode(segments::ID, &manifest, &payload).map(|delta| delta.len()));
        assert_eq!(refused, Err(DecodeError::Truncated("a segment")), "codec {codec}");
        assert!(most <= CONSTANT, "codec {codec} held {most} bytes");
    }
}

/// An encoder that works chunk by chunk holds its payload and the buffers of one chunk: positions and keys of all its
/// elements at most, what is read of them, whatever the length of the model. Guards the memory of agents.
#[test]
fn encoding_takes_the_payload_and_the_buffers_of_one_chunk() {
    let params = 16 * sparse::CHUNK;
    let (manifest, values) = (manifest(params as u64), normal(params, 1));
    let top_k = |bits| [0.01, 0.05].map(|fraction| CodecSpec::TopK { fraction, bits });
    let specs = ValueBits::ALL.into_iter().flat_map(top_k).chain([CodecSpec::Int8, CodecSpec::Int4]);
    for spec in specs {
        let codec = encoder(spec);
        let mut feedback = Feedback::restore(0.9, normal(params, 2));
        let (alone, payload) = peak(|| codec.encode(&manifest, &values).expect("finite").len());
        let (with_feedback, _) = peak(|| feedback.encode(&*codec, &manifest, &values).expect("finite"));
        for (name, most) in [("alone", alone), ("with feedback", with_feedback)] {
            let extra = most.saturating_sub(payload);
            println!("{spec:?} {name}: {extra} bytes beside a payload of {payload}, for {params} parameters");
            // The payload's own buffer is a little longer than the payload.
            let chunk = 4 * sparse::CHUNK + payload / 4 + 2 * CONSTANT;
            assert!(extra <= chunk, "{spec:?} {name} held {extra} bytes beside its payload of {payload}");
        }
    }
}

/// Room for the decoded form is also room for a second copy of the payload, which the coordinator
/// makes on the way.
#[test]
fn the_decoded_form_is_never_stated_smaller_than_its_payload() {
    for params in [1, 1_000, 3_000_000, 1 << 30] {
        let manifest = manifest(params);
        let longest = max_payload_bytes(&manifest);
        for (id, bytes) in (0..8).flat_map(|id| [(id, 1), (id, params.min(longest)), (id, longest)]) {
            let stated = max_decoded_bytes(CodecId(id), &manifest, bytes);
            assert!(stated + CONSTANT as u64 >= bytes, "codec {id}: {stated} bytes for a payload of {bytes}");
        }
    }
}

#[test]
fn a_few_bytes_allocate_next_to_nothing_whatever_they_claim() {
    // A model of 2^30 parameters: any allocation by the manifest alone would take gigabytes.
    let manifest = manifest(1 << 30);
    let zstd_bomb = {
        let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0xE0];
        frame.extend_from_slice(&(4u64 << 30).to_le_bytes());
        frame.extend_from_slice(&[1, 0, 0]);
        frame
    };
    let count_bomb = [&u32::to_le_bytes(1 << 30)[..], &[0xFF; 600]].concat();
    for bytes in [vec![], vec![0; 64], vec![0xFF; 4_096], zstd_bomb, count_bomb] {
        for id in 0..9 {
            let (most, delta) = peak(|| decode(CodecId(id), &manifest, &bytes).map(|delta| delta.len()));
            assert!(delta.is_err(), "codec {id} read {} bytes", bytes.len());
            // A byte holds four entries of 8 bytes at most: signs beside each other.
            let most_of_these = 32 * bytes.len() + CONSTANT;
            assert!(most <= most_of_these, "codec {id} held {most} bytes for {} bytes", bytes.len());
        }
    }
    // That nothing was selected is the one thing that so few bytes can say of so large a tensor: a count for each chunk.
    let counts = vec![0; 4 * (1 << 30) / sparse::CHUNK];
    for id in [2, 5, 6] {
        let (most, delta) = peak(|| decode(CodecId(id), &manifest, &counts));
        assert_eq!(delta, Ok(Delta::Sparse { len: 1 << 30, indices: vec![], values: vec![] }));
        assert!(most <= 8 * counts.len() * 4 + CONSTANT, "codec {id} held {most} bytes");
    }
}

#[test]
fn a_frame_around_more_than_expected_is_not_unpacked() {
    let bomb = encoder(CodecSpec::F32).encode(&manifest(8 << 20), &vec![0.0; 8 << 20]).expect("finite");
    assert!(bomb.len() < 8 << 10, "32 MiB of zeros take {} bytes", bomb.len());
    let (most, refused) = peak(|| decode(CodecId(0), &manifest(1_000), &bomb));
    assert!(matches!(refused, Err(DecodeError::TooLarge { .. })), "{refused:?}");
    assert!(most <= CONSTANT, "{most} bytes were held");
}

/// What leads an agent from one version to a later one holds the model, and beside it what a decoder may hold.
#[test]
fn forms_that_rest_on_a_base_allocate_by_the_manifest_alone() {
    let params = 300_000;
    let (manifest, base, model) = (manifest(params as u64), normal(params, 1), normal(params, 2));
    let difference = xor::pack(&base, &model);
    let (most, applied) = peak(|| xor::apply(&manifest, &base, &difference));
    assert!(applied.is_ok_and(|applied| applied == model) && most <= 8 * params + CONSTANT, "{most} bytes were held");
    let bomb = xor::pack(&vec![0.0; 8 << 20], &vec![0.0; 8 << 20]);
    let records = [&[0][..], &u32::to_le_bytes(u32::try_from(bomb.len()).expect("short")), &bomb].concat();
    let by_difference = peak(|| xor::apply(&manifest, &base, &bomb));
    let by_records = peak(|| track::replay(&manifest, &base, &records));
    for ((most, refused), copies) in [(by_difference, 0), (by_records, 4 * params)] {
        assert!(matches!(refused, Err(FormError::Decode(DecodeError::TooLarge { .. }))), "{refused:?}");
        assert!(most <= copies + CONSTANT, "{most} bytes were held");
    }
}

#[test]
fn messages_that_lie_about_lengths_allocate_next_to_nothing() {
    // Renew { csr_der } and OfferModel { manifest }, each with a length of 2^40.
    for tag in [1u32, 8] {
        let lie = [&tag.to_le_bytes()[..], &(1u64 << 40).to_le_bytes(), &[7; 100]].concat();
        let (most, read) = peak(|| schema::decode::<AgentMessage>(&lie, CONTROL_MESSAGE_BYTES).is_ok());
        assert!(!read, "a message with a length of 2^40 was read");
        assert!(most <= CONSTANT, "{most} bytes were held");
    }
    // A length within the limit of a message but beyond its bytes.
    let lie = [&8u32.to_le_bytes()[..], &(60u64 << 20).to_le_bytes(), &[7; 100]].concat();
    let (most, read) = peak(|| schema::decode::<AgentMessage>(&lie, CONTROL_MESSAGE_BYTES).is_ok());
    assert!(!read && most <= CONSTANT, "{most} bytes were held for {} bytes that claim 60 MiB", lie.len());
}

#[test]
fn a_transfer_is_checked_before_its_buffer_exists() {
    let lie = TransferManifest { bytes: 1 << 40, chunks: vec![], sections: vec![] };
    let (most, refused) = peak(|| Assembly::new(lie, u64::MAX).is_err());
    assert!(refused && most <= CONSTANT, "{most} bytes were held");
    // Each section of its own would have one chunk.
    let lie = TransferManifest { bytes: 1 << 30, chunks: vec![Digest::default(); 2], sections: vec![1 << 29, 1 << 28] };
    let (most, refused) = peak(|| Assembly::new(lie, u64::MAX).is_err());
    assert!(refused && most <= CONSTANT, "{most} bytes were held");
}
