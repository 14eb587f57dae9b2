//! Guards what the native trainer gives. With AVX-512 its models have the bits of these digests; other instruction sets sum matrix
//! products in another order, and there the models only come close. Digests change only with an ADR that says so.

use std::ops::ControlFlow;

use anabranch_common::ids::Digest;
use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec, TrainSpec};
use burn_flex::Flex;
use burn_tensor::ops::FloatTensorOps as _;

use super::tensors::{random, values};
use super::{NativeOptions, native_with};
use crate::shard::draw::{Draw, Purpose};
use crate::shard::{Examples, Inputs, Shard, Text};
use crate::train::{MicroBatchBudget, Round, StepReport};

/// Digest of the matrix products that a model consists of, of the shapes that occur below.
fn products() -> String {
    let mut bits = Vec::new();
    for (rows, inner, columns) in [(128, 144, 30), (3, 128, 30), (144, 30, 128), (32, 1152, 144), (480, 16, 256)] {
        let (x, y) = (random([rows, inner], 1, 1.0), random([inner, columns], 2, 1.0));
        let transposed = Flex::float_transpose(random([columns, inner], 3, 1.0));
        for y in [y, transposed] {
            bits.extend_from_slice(values(&Flex::float_matmul(x.clone(), y).to_contiguous()));
        }
    }
    Digest::of_f32(&bits).short()
}

/// Images of noise, a text of noise: what is learned does not matter.
fn shards() -> (Examples, Text) {
    let mut draw = Draw::new(3, Purpose::Split);
    let mut byte = || u8::try_from(draw.below(256)).expect("a byte");
    let images = Inputs::Bytes((0..90 * 144).map(|_| byte()).collect());
    let labels = (0..90).map(|_| u32::from(byte()) % 3).collect();
    let text = (0..1_000).map(|_| byte()).collect();
    (Examples::new(images, labels, vec![12, 12]).expect("the lengths agree"), Text::new(text).expect("long enough"))
}

/// A model after two rounds of three steps of 30 examples, at most `most` of them at once: its digest, and its distance from the
/// initial model (L2).
fn trained(spec: &ModelSpec, optimizer: &OptimizerSpec, shard: &dyn Shard, most: Option<u32>) -> (String, f64) {
    let plan = TrainSpec {
        local_steps: 3,
        batch_size: 30,
        optimizer: optimizer.clone(),
        keep_optimizer_state: true,
        target_round_s: None,
        max_local_steps: None,
        schedule: None,
        proximal_mu: 0.01,
    };
    let options = NativeOptions { threads: Some(2), ..NativeOptions::default() };
    let mut trainer = native_with(spec, options).expect("valid");
    let initial = trainer.initial(1).expect("made");
    let mut model = initial.clone();
    let mut go_on = |_: StepReport| ControlFlow::Continue(());
    for seed in [4, 5] {
        let budget = Some(MicroBatchBudget { most, begins: &mut |_| {} });
        let round = Round { budget, ..Round::new(&model, &plan, seed, shard, &mut go_on) };
        model = trainer.train(round).expect("trains").end;
    }
    let squares = model.iter().zip(&initial).map(|(end, start)| f64::from(end - start).powi(2));
    (Digest::of_f32(&model).short(), squares.sum::<f64>().sqrt())
}

/// Whether the processor has the instruction set that the digests were taken with. Matrix products and our own loops select it at
/// run time. The order of a sum does not depend on the caches: gemm cuts it every 512 elements for all AVX-512 processors so far.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[test]
fn training_gives_the_bits_that_it_gave() {
    let (images, text) = shards();
    let image = |kind| {
        let input_scale = 1.0 / 255.0;
        ModelSpec { kind, input: vec![1, 12, 12], classes: 3, input_scale, ..ModelSpec::default() }
    };
    let (context, layers, heads, width) = (16, 2, 2, 16);
    let gpt = ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() };
    let sgd = OptimizerSpec::Sgd { lr: 0.05, momentum: 0.9 };
    let adamw = OptimizerSpec::AdamW { lr: 1e-3, weight_decay: 0.01, beta_1: 0.9, beta_2: 0.999 };
    let models: [(_, &dyn Shard); 3] =
        [(image(ModelKind::Mlp), &images), (image(ModelKind::Cnn), &images), (gpt, &text)];
    let (mut digests, mut distances) = (Vec::new(), Vec::new());
    for (spec, shard) in &models {
        for optimizer in [&sgd, &adamw] {
            for most in [None, Some(8)] {
                let (digest, distance) = trained(spec, optimizer, *shard, most);
                digests.push(digest);
                distances.push(distance);
            }
        }
    }
    // On every processor.
    for (case, found) in distances.iter().enumerate() {
        let expected = DISTANCES[case / 4][case % 4 / 2];
        let is_close = (found / expected - 1.0).abs() < CLOSE;
        assert!(is_close, "model {case} is {found} from the initial one, expected {expected}: all are {distances:?}");
    }
    let products = products();
    if has_avx512() {
        assert_eq!(products, PRODUCTS, "with AVX-512 matrix products have other bits: was gemm or burn-flex updated?");
    }
    if products == PRODUCTS {
        assert_eq!(digests, TRAINED.concat());
    }
}

/// What [`products`] gives with AVX-512, with which the digests below were taken.
const PRODUCTS: &str = "aad37f6b";
/// Of mlp, cnn and gpt: SGD whole and in micro-batches, AdamW likewise. The gpt's in micro-batches are those of ADR 30: each use of
/// its tied embedding is summed on its own.
const TRAINED: [[&str; 4]; 3] = [
    ["8f0a4113", "65c3eb3e", "00e0082e", "b21718de"],
    ["b8e9d8d5", "d6547a8a", "e5d28973", "9266577a"],
    ["788abaa1", "8da50260", "a3618159", "af580e77"],
];
/// Distances from the initial model of mlp, cnn and gpt: SGD and AdamW. Micro-batches change them by a part in ten million.
const DISTANCES: [[f64; 2]; 3] =
    [[0.238_202_35, 0.378_718_78], [0.152_510_79, 0.418_955_25], [0.195_335_43, 0.361_697_61]];
/// By what part distances may differ where sums are rounded in another order.
const CLOSE: f64 = 1e-4;
