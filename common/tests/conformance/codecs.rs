//! The suite of the codecs, for each codec.

use anabranch_common::codec::blocks::{Int4, Int8};
use anabranch_common::codec::dense::{Planes16, Planes32};
use anabranch_common::codec::quantize::ValueBits;
use anabranch_common::codec::segments::Segmented;
use anabranch_common::codec::sparse::TopK;
use anabranch_common::codec::{CodecSpec, decode, encoder};
use anabranch_testkit::codec::{self, Closeness};

#[test]
fn planes_conform() {
    codec::conformance(&Planes32, Closeness::EachEntry);
    codec::conformance(&Planes16, Closeness::EachEntry);
}

#[test]
fn blocks_conform() {
    codec::conformance(&Int8, Closeness::EachEntry);
    codec::conformance(&Int4, Closeness::EachEntry);
}

#[test]
fn top_k_conforms() {
    for fraction in [0.002, 0.05, 0.5, 1.0] {
        codec::conformance(&TopK::new(fraction), Closeness::EachEntry);
        codec::conformance(&TopK::with_bits(fraction, ValueBits::Four), Closeness::EachEntry);
        codec::conformance(&TopK::with_bits(fraction, ValueBits::One), Closeness::Norm);
    }
}

/// Of the suite's six tensors some in one codec and some in another.
#[test]
fn segments_conform() {
    let top_k = |fraction| CodecSpec::top_k(fraction);
    for codecs in [
        [CodecSpec::F32; 6],
        [CodecSpec::F32, CodecSpec::F32, top_k(0.05), top_k(0.05), CodecSpec::Bf16, top_k(0.05)],
        [CodecSpec::Int8, top_k(0.5), CodecSpec::Int4, CodecSpec::Bf16, top_k(1.0), CodecSpec::F32],
        [top_k(0.002), CodecSpec::Bf16, top_k(0.002), CodecSpec::Bf16, top_k(0.3), CodecSpec::Bf16],
    ] {
        codec::conformance(&Segmented::new(codecs), Closeness::EachEntry);
    }
    let signs = CodecSpec::TopK { fraction: 0.1, bits: ValueBits::One };
    let mixed = [signs, CodecSpec::F32, signs, signs, CodecSpec::F32, signs];
    codec::conformance(&Segmented::new(mixed), Closeness::Norm);
}

#[test]
fn every_spec_gives_the_encoder_whose_byte_decodes_it() {
    let manifest = codec::manifest();
    let values = codec::normal(manifest.params(), 5);
    let top_k = ValueBits::ALL.map(|bits| CodecSpec::TopK { fraction: 0.1, bits });
    for spec in [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::Int8, CodecSpec::Int4].into_iter().chain(top_k) {
        let codec = encoder(spec);
        let bytes = codec.encode(&manifest, &values).expect("finite");
        let decoded = decode(codec.id(), &manifest, &bytes);
        assert!(decoded.is_ok(), "{spec:?}: {decoded:?}");
        assert_eq!(decoded, codec.decode(&manifest, &bytes));
    }
}
