//! The suite of the codecs, for each codec.

use anabranch_common::codec::dense::{Planes16, Planes32};
use anabranch_common::codec::sparse::TopK;
use anabranch_common::codec::{CodecSpec, decode, encoder};
use anabranch_testkit::codec;

#[test]
fn planes_conform() {
    codec::conformance(&Planes32);
    codec::conformance(&Planes16);
}

#[test]
fn top_k_conforms() {
    for fraction in [0.002, 0.05, 0.5, 1.0] {
        codec::conformance(&TopK::new(fraction));
    }
}

#[test]
fn every_spec_gives_the_encoder_whose_byte_decodes_it() {
    let manifest = codec::manifest();
    let values = codec::normal(manifest.params(), 5);
    for spec in [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::TopK { fraction: 0.1 }] {
        let codec = encoder(spec);
        let bytes = codec.encode(&manifest, &values).expect("finite");
        assert_eq!(decode(codec.id(), &manifest, &bytes), codec.decode(&manifest, &bytes));
    }
}
