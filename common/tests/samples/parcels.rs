//! Greetings and parcels between the members of a pod.

use anabranch_common::ids::LeaseId;
use anabranch_common::pod::PodMark;
use anabranch_common::spec::Activations;
use anabranch_common::wire::pod::{LayerFigures, ParcelContent, ParcelHead, PodAnswer, PodGreeting};

use super::{DIGEST, RUN};

pub(crate) fn parcel_contents() -> Vec<ParcelContent> {
    vec![
        ParcelContent::Weights { own: 300, tied: 40, held: 301 },
        ParcelContent::Activations { rows: 8, columns: 64, form: Activations::F32 },
        ParcelContent::Activations { rows: 8, columns: 64, form: Activations::Bf16 },
        ParcelContent::Gradient { rows: 16, columns: 32, form: Activations::Bf16 },
        ParcelContent::Gradient { rows: 16, columns: 32, form: Activations::Int8 },
        ParcelContent::Labels { labels: 7 },
        ParcelContent::Loss { sum: 2.5 },
        ParcelContent::TiedSum { values: 40 },
        ParcelContent::Tied { version: 3, values: 40, moved: 41 },
        ParcelContent::Layer {
            layer: 3,
            left_out: 300,
            bytes: 77,
            figures: LayerFigures { base_dot: -0.5, delta_square: 2.0, left_out_square: 1.25 },
        },
        ParcelContent::Base { seed: 0x0102_0304_0506_0708, values: 300 },
        ParcelContent::Chunk { number: 17, values: 64 },
        ParcelContent::Ended { digest: DIGEST },
    ]
}

pub(crate) fn parcel_heads() -> Vec<ParcelHead> {
    let contents = parcel_contents().into_iter();
    contents.map(|content| ParcelHead { from: 1, to: 2, content, checksum: 0xC0FF_EE00 }).collect()
}

pub(crate) fn pod_greeting() -> PodGreeting {
    PodGreeting { min: 5, max: 6, run: RUN, mark: PodMark { lease: LeaseId(9), attempt: 2 } }
}

pub(crate) fn pod_answers() -> Vec<PodAnswer> {
    vec![PodAnswer::Ready { version: 5 }, PodAnswer::NotYet, PodAnswer::Refused("that attempt is over".into())]
}
