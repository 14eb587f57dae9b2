//! The bytes of every layout, as they were when it was fixed. A difference here means that an old peer, an old journal
//! or an old outbox can no longer be read: raise a version instead (docs/protocol.md, "Versions").
//!
//! Guards fault 44 (another protocol version) and, with the journal, recovery across an upgrade.

mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write as _};

use anabranch_common::codec::blocks::{Int4, Int8};
use anabranch_common::codec::dense::{Planes16, Planes32};
use anabranch_common::codec::quantize::ValueBits;
use anabranch_common::codec::segments::Segmented;
use anabranch_common::codec::sparse::TopK;
use anabranch_common::codec::{Codec, CodecId, CodecSpec, Delta, decode, encoder};
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::journal::{Chain, Record};
use anabranch_common::limits::CONTROL_MESSAGE_BYTES;
use anabranch_common::merge::participation::Participation;
use anabranch_common::schema::{self, Layout};
use anabranch_common::token::{JoinToken, PageToken};
use anabranch_common::wire::frame::{self, FrameKind};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("hexadecimal");
    digits.chunks(2).map(byte).collect()
}

/// The variant's name and those directly inside of it.
fn title(sample: &impl Debug) -> String {
    let text = format!("{sample:?}");
    text.split([' ', '{']).next().unwrap_or_default().chars().take(40).collect()
}

/// A line for each sample, having checked that it is read as it was written.
fn listing<T: Layout + Debug + PartialEq>(kind: FrameKind, samples: &[T]) -> String {
    samples.iter().fold(String::new(), |mut lines, sample| {
        let bytes = schema::encode(sample, CONTROL_MESSAGE_BYTES).expect("small");
        assert_eq!(schema::decode::<T>(&bytes, CONTROL_MESSAGE_BYTES).as_ref(), Ok(sample));
        for len in 0..bytes.len() {
            let cut = schema::decode::<T>(&bytes[..len], CONTROL_MESSAGE_BYTES);
            assert!(cut.is_err(), "{} was read from {len} of its {} bytes", title(sample), bytes.len());
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xFF;
            let read = schema::decode::<T>(&damaged, CONTROL_MESSAGE_BYTES);
            assert_ne!(read.as_ref(), Ok(sample), "byte {at} of {} does not matter", title(sample));
        }
        let framed = frame::encode(kind, &bytes).expect("small");
        writeln!(lines, "{}\n  {}\n  {}", title(sample), hex(&framed[..16]), hex(&framed[16..])).expect("memory");
        lines
    })
}

/// Checks that `samples` has every variant of an enum: their tags are 0, 1, ... and the one after them is not known.
fn every_variant_is_there<T: Layout>(samples: &[T]) {
    let tag = |sample: &T| {
        let bytes = schema::encode(sample, CONTROL_MESSAGE_BYTES).expect("small");
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    };
    let tags: BTreeSet<u32> = samples.iter().map(tag).collect();
    let count = u32::try_from(tags.len()).expect("few");
    assert_eq!(tags, (0..count).collect(), "a variant has no sample");
    let next = [&count.to_le_bytes()[..], &[0; 1_000]].concat();
    let Err(error) = schema::decode::<T>(&next, CONTROL_MESSAGE_BYTES) else { panic!("variant {count} has no sample") };
    assert!(error.to_string().contains("has no variant"), "variant {count} has no sample: {error}");
}

#[test]
fn handshake() {
    every_variant_is_there(&samples::agreements());
    let proposals = listing(FrameKind::Propose, &samples::proposals());
    let agreements = listing(FrameKind::Agree, &samples::agreements());
    insta::assert_snapshot!(proposals + &agreements);
}

#[test]
fn join() {
    every_variant_is_there(&samples::join_responses());
    let requests = listing(FrameKind::JoinRequest, &[samples::join_request()]);
    let responses = listing(FrameKind::JoinResponse, &samples::join_responses());
    let addresses = vec!["coordinator.example:7700".to_owned()];
    let token = JoinToken { addresses, ca_fingerprints: vec![samples::DIGEST], secret: [0x99; 32] };
    let of_several = JoinToken {
        addresses: vec!["coordinator.example:7700".into(), "10.0.0.7:7700".into()],
        ca_fingerprints: vec![samples::DIGEST, samples::DIGEST],
        ..token.clone()
    };
    for token in [&token, &of_several] {
        assert_eq!(token.to_string().parse().as_ref(), Ok(token));
    }
    let page = PageToken { secret: [0x99; 32] };
    assert_eq!(page.to_string().parse(), Ok(page.clone()));
    insta::assert_snapshot!(format!("{requests}{responses}{token}\n{of_several}\n{page}\n"));
}

#[test]
fn agent_messages() {
    every_variant_is_there(&samples::agent_messages());
    insta::assert_snapshot!(listing(FrameKind::Agent, &samples::agent_messages()));
}

#[test]
fn coordinator_messages() {
    every_variant_is_there(&samples::coordinator_messages());
    insta::assert_snapshot!(listing(FrameKind::Coordinator, &samples::coordinator_messages()));
}

#[test]
fn operator_messages() {
    every_variant_is_there(&samples::operator_requests());
    every_variant_is_there(&samples::run_requests());
    every_variant_is_there(&samples::registry_requests());
    every_variant_is_there(&samples::runs_requests());
    every_variant_is_there(&samples::search_requests());
    every_variant_is_there(&samples::operator_responses());
    let requests = listing(FrameKind::OperatorRequest, &samples::operator_requests());
    let responses = listing(FrameKind::OperatorResponse, &samples::operator_responses());
    insta::assert_snapshot!(requests + &responses);
}

#[test]
fn chunks() {
    let header = listing(FrameKind::Chunk, &[samples::chunk_header()]);
    let part = frame::encode(FrameKind::Part, b"part").expect("small");
    let transfer = samples::transfer().id();
    insta::assert_snapshot!(format!("{header}Part\n  {}\ntransfer id\n  {transfer}\n", hex(&part)));
}

#[test]
fn lists_of_runs() {
    every_variant_is_there(&samples::runs_wanted());
    let wanted = listing(FrameKind::RunsWanted, &samples::runs_wanted());
    insta::assert_snapshot!(wanted + &listing(FrameKind::RunsListed, &[samples::runs_listed()]));
}

#[test]
fn probes() {
    every_variant_is_there(&samples::probe::facts());
    let answer = listing(FrameKind::ProbeAnswer, &[samples::probe::answer()]);
    let wanted = listing(FrameKind::FactsWanted, &[samples::probe::facts_wanted()]);
    insta::assert_snapshot!(answer + &wanted + &listing(FrameKind::Facts, &samples::probe::facts()));
}

#[test]
fn links_between_members() {
    every_variant_is_there(&samples::parcels::pod_answers());
    every_variant_is_there(&samples::parcels::parcel_contents());
    let greeting = listing(FrameKind::PodGreeting, &[samples::parcels::pod_greeting()]);
    let answers = listing(FrameKind::PodAnswer, &samples::parcels::pod_answers());
    insta::assert_snapshot!(greeting + &answers + &listing(FrameKind::Parcel, &samples::parcels::parcel_heads()));
}

#[test]
fn records_and_the_chain_over_them() {
    every_variant_is_there(&samples::record_bodies());
    let mut chain = Chain::default();
    let mut version = ModelVersion(0);
    let lines = samples::records().iter().fold(String::new(), |mut lines, record| {
        let bytes = record.to_bytes().expect("small");
        assert_eq!(Record::from_bytes(&bytes).as_ref(), Ok(record));
        let (weight, after) = record.chain_inputs(version);
        version = after;
        chain = chain.extend(record.digest().expect("small"), weight, after);
        writeln!(lines, "{}\n  {}\n  chain {}", record.body.kind(), hex(&bytes), chain.0).expect("memory");
        lines
    });
    insta::assert_snapshot!(lines);
}

#[test]
fn digests_and_saved_state() {
    let mut participation = Participation::default();
    participation.observe(samples::AGENT, 600, 640, 0);
    participation.observe(anabranch_common::ids::AgentId([1; 16]), 1_200, 320, 0);
    let agents = [samples::AGENT, anabranch_common::ids::AgentId([1; 16])];
    let parts: BTreeMap<_, _> = agents.map(|agent| (agent, participation.part(agent).expect("seen"))).into();
    let saved = schema::encode(&(parts, participation.sums()), CONTROL_MESSAGE_BYTES).expect("small");
    let model = Digest::of_f32(&samples::values());
    let manifest = samples::manifest().digest();
    insta::assert_snapshot!(format!("manifest {manifest}\nmodel {model}\nparticipation {}\n", hex(&saved)));
}

#[test]
fn the_bytes_of_a_top_k_payload() {
    let bytes = TopK::new(0.05).encode(&samples::manifest(), &samples::values()).expect("finite");
    insta::assert_snapshot!(hex(&bytes));
}

#[test]
fn the_bytes_of_other_quantized_payloads() {
    let (manifest, values) = (samples::manifest(), samples::values());
    let top_k = |bits| Box::new(TopK::with_bits(0.05, bits)) as Box<dyn Codec>;
    let codecs = [top_k(ValueBits::Four), top_k(ValueBits::One), Box::new(Int4), Box::new(Int8)];
    let lines = codecs.iter().fold(String::new(), |mut lines, codec| {
        let bytes = codec.encode(&manifest, &values).expect("finite");
        writeln!(lines, "codec {}, {} bytes\n  {}", codec.id().0, bytes.len(), hex(&bytes)).expect("memory");
        lines
    });
    insta::assert_snapshot!(lines);
}

#[test]
fn the_bytes_of_a_payload_with_segments() {
    let codec = Segmented::new([CodecSpec::TopK { fraction: 0.05, bits: ValueBits::Four }, CodecSpec::Int8]);
    let bytes = codec.encode(&samples::manifest(), &samples::values()).expect("finite");
    insta::assert_snapshot!(hex(&bytes));
}

/// zstd's output differs between its versions, so these are only read.
#[test]
fn payloads_from_an_older_zstd_are_read() {
    let (manifest, values) = (samples::manifest(), samples::values());
    let stored = |text| unhex(text);
    let planes32 = stored(include_str!("golden/planes32.hex"));
    let planes16 = stored(include_str!("golden/planes16.hex"));
    assert_eq!(decode(Planes32::ID, &manifest, &planes32), Ok(Delta::Dense(values.clone())));
    let rounded = Planes16.encode(&manifest, &values).map(|bytes| decode(CodecId(1), &manifest, &bytes));
    assert_eq!(decode(Planes16::ID, &manifest, &planes16), rounded.expect("finite"));
    // What was rounded once is not rounded again, and lies within 2^-8 of what was put in.
    let back = decode(Planes16::ID, &manifest, &planes16).expect("stored bytes").into_dense();
    assert!(values.iter().zip(&back).all(|(value, back)| (value - back).abs() <= value.abs() / 256.0));
}

#[test]
fn codec_bytes_and_names_never_change() {
    let top_k = ValueBits::ALL.map(|bits| CodecSpec::TopK { fraction: 0.5, bits });
    let dense = [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::Int8, CodecSpec::Int4];
    let known: Vec<_> = dense
        .into_iter()
        .chain(top_k)
        .map(|spec| (encoder(spec).id().0, serde_json::to_string(&spec).expect("serializable")))
        .collect();
    let wanted = [
        (0, r#"{"kind":"f32"}"#),
        (1, r#"{"kind":"bf16"}"#),
        (3, r#"{"kind":"int8"}"#),
        (4, r#"{"kind":"int4"}"#),
        (2, r#"{"kind":"top-k","fraction":0.5}"#),
        (5, r#"{"kind":"top-k","fraction":0.5,"bits":4}"#),
        (6, r#"{"kind":"top-k","fraction":0.5,"bits":1}"#),
    ];
    assert_eq!(known, wanted.map(|(id, name)| (id, name.to_owned())));
}
