//! The kernels' algorithm and the kernels' text, each against the CPU's encoder: payload and feedback state, bit for bit.

use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anabranch_agent::encode::cuda::device::CudaEngine;
use anabranch_agent::encode::cuda::encoder::{Order, RoundEncoder};
use anabranch_agent::encode::cuda::topk::GpuTopK;
use anabranch_agent::encode::cuda::{Buffer, Engine, GpuError, KERNELS, Kernel};
use anabranch_agent::session::event::FeedbackState;
use anabranch_common::codec::EncodeError;
use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::sparse::{CHUNK, TopK};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::rng::SplitMix64;
use anabranch_testkit::codec::normal;
use proptest::prelude::*;

use super::Emulator;

/// `kernels.cu` compiled by the system's C++ compiler, in a process of its own.
#[derive(Debug)]
struct Compiled {
    child: Child,
    input: BufWriter<ChildStdin>,
    output: BufReader<ChildStdout>,
    buffers: usize,
    _folder: tempfile::TempDir,
}

impl Compiled {
    /// None where there is no compiler, which only a machine of a developer may lack.
    fn new(backwards: bool) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let (source, program) = (folder.path().join("host.cpp"), folder.path().join("host"));
        std::fs::write(&source, include_str!("host.cpp")).expect("written");
        std::fs::write(folder.path().join("kernels.cu"), KERNELS).expect("written");
        let mut compiler = Command::new("c++");
        compiler.args([
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
            "-D_GLIBCXX_ASSERTIONS",
        ]);
        let Ok(ended) = compiler.arg(&source).arg("-o").arg(&program).output() else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI has no C++ compiler (c++): install g++ or clang");
            eprintln!("there is no C++ compiler (c++): the text of the kernels was not run");
            return None;
        };
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let mut command = Command::new(program);
        command.args(backwards.then_some("backwards")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("what was compiled starts");
        let input = BufWriter::new(child.stdin.take().expect("piped"));
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Some(Self { child, input, output, buffers: 0, _folder: folder })
    }

    fn send(&mut self, words: impl IntoIterator<Item = u32>) {
        for word in words {
            self.input.write_all(&word.to_ne_bytes()).expect("the kernels' process reads");
        }
    }
}

fn word(number: usize) -> u32 {
    u32::try_from(number).expect("small")
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // It ends by itself at the end of its input; a test that failed does not wait for it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Engine for Compiled {
    fn alloc(&mut self, words: usize) -> Result<Buffer, GpuError> {
        self.send([0, word(words)]);
        self.buffers += 1;
        Ok(Buffer(self.buffers - 1))
    }

    fn write(&mut self, buffer: Buffer, at: usize, words: &[u32]) -> Result<(), GpuError> {
        self.send([1, word(buffer.0), word(at), word(words.len())]);
        self.send(words.iter().copied());
        Ok(())
    }

    fn read(&mut self, buffer: Buffer, at: usize, words: &mut [u32]) -> Result<(), GpuError> {
        self.send([2, word(buffer.0), word(at), word(words.len())]);
        self.input.flush().expect("the kernels' process reads");
        for word in words {
            let mut bytes = [0; 4];
            self.output.read_exact(&mut bytes).expect("the kernels' process answers");
            *word = u32::from_ne_bytes(bytes);
        }
        Ok(())
    }

    fn launch(&mut self, kernel: Kernel, grid: usize, buffers: &[Buffer], scalars: &[u32]) -> Result<(), GpuError> {
        self.send([3, kernel as u32, word(grid), word(buffers.len())]);
        self.send(buffers.iter().map(|buffer| word(buffer.0)));
        self.send([word(scalars.len())]);
        self.send(scalars.iter().copied());
        Ok(())
    }

    fn finish(&mut self) -> Result<(), GpuError> {
        Ok(())
    }
}

fn manifest(sizes: &[usize]) -> ModelManifest {
    let tensor = |(nth, size): (usize, &usize)| TensorSpec { name: format!("t{nth}"), shape: vec![*size as u64] };
    ModelManifest::new(sizes.iter().enumerate().map(tensor).collect()).expect("valid")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Rounds of updates through an engine and through the CPU's encoder.
fn same<E: Engine>(engine: E, manifest: &ModelManifest, fraction: f32, decay: f32, rounds: &[(Vec<f32>, Vec<f32>)]) {
    let mut gpu = GpuTopK::new(engine, manifest, fraction).expect("memory");
    let (mut cpu, codec) = (Feedback::new(decay), TopK::new(fraction));
    for (round, (base, end)) in rounds.iter().enumerate() {
        let delta: Vec<f32> = end.iter().zip(base).map(|(end, base)| end - base).collect();
        let wanted = cpu.encode(&codec, manifest, &delta);
        match (gpu.encode(base, end, decay), wanted) {
            (Ok(found), Ok(wanted)) => assert!(found == wanted, "round {round}: another payload than the CPU's"),
            (Err(GpuError::Encode(found)), Err(wanted)) => assert_eq!(found, wanted),
            (found, wanted) => panic!("round {round}: {found:?} instead of {wanted:?}"),
        }
        gpu.commit();
        let left_out = gpu.left_out().expect("read");
        assert!(bits(&left_out) == bits(cpu.left_out()), "round {round}: another state than the CPU's");
    }
}

/// Vectors in which an encoder can go wrong, as base and end; `params` long.
fn rounds(params: usize, seed: u64) -> Vec<(Vec<f32>, Vec<f32>)> {
    let mut rng = SplitMix64::new(seed);
    let mut any =
        |mask: u32| -> Vec<f32> { (0..params).map(|_| f32::from_bits((rng.next_u64() >> 32) as u32 & mask)).collect() };
    let mut spike = vec![0.0; params];
    spike[params - 1] = f32::MAX;
    let zeros = vec![0.0; params];
    let few: Vec<f32> = (0..params).map(|at| [0.5, -0.5, 0.25, -0.0][at % 7 % 4]).collect();
    let near =
        (0..params).map(|at| if at % 1_000 == 999 { f32::from_bits((8 << 23) - 1 + word(at / 1_000)) } else { 0.0 });
    // Halves up to 127: scales of 1, values in the middle between two steps, and thresholds that many share.
    let mut rng = SplitMix64::new(seed);
    let middles = (0..params).map(|_| (rng.below(509) as f32 - 254.0) / 2.0).collect();
    let mut bad = normal(params, seed);
    bad[params / 2] = f32::NAN;
    bad[params - 1] = f32::INFINITY;
    vec![
        // First, where no feedback moves them.
        (zeros.clone(), middles),
        (normal(params, seed + 1), normal(params, seed + 2)),
        (zeros.clone(), zeros.clone()),
        (zeros.clone(), vec![-0.0; params]),
        (zeros.clone(), vec![-2.5; params]),
        (zeros.clone(), few),
        (zeros.clone(), any(0x80FF_FFFF)),
        (zeros.clone(), bad),
        (zeros.clone(), any(0xFF7F_FFFF)),
        (normal(params, seed + 3), normal(params, seed + 4)),
        (zeros.clone(), near.collect()),
        (zeros.clone(), spike),
        (zeros.clone(), vec![f32::MAX; params]),
        (zeros.clone(), vec![f32::MAX; params]),
        (zeros, any(0x8000_0003)),
    ]
}

/// Tensors of any size in one chunk, whose end lies in the middle of a tile.
const SIZES: [usize; 8] = [1, 10, 1_023, 1_024, 4_096, 4_097, 257, 30_000];

#[test]
fn the_retold_kernels_give_the_cpus_bits() {
    let manifest = manifest(&SIZES);
    for fraction in [1e-9, 0.01, 0.25, 1.0] {
        for decay in [0.0, 0.95, 1.0] {
            same(Emulator::default(), &manifest, fraction, decay, &rounds(manifest.params(), 7));
        }
    }
}

/// Guards the text that a GPU compiles: the same calls and bits, with threads and blocks in either order.
#[test]
fn the_kernels_own_text_gives_the_cpus_bits_in_any_order_of_threads() {
    let manifest = manifest(&SIZES);
    for (backwards, fraction, decay) in
        [(false, 0.01, 0.95), (true, 0.01, 0.95), (true, 1e-9, 1.0), (false, 1.0, 1.0), (true, 0.25, 0.0)]
    {
        let Some(engine) = Compiled::new(backwards) else { return };
        same(engine, &manifest, fraction, decay, &rounds(manifest.params(), 11));
    }
}

/// The same on a GPU, where there is one: the only test here that a GPU takes part in.
#[test]
fn a_gpu_gives_the_cpus_bits() {
    let manifest = manifest(&SIZES);
    for (fraction, decay) in [(0.01, 0.95), (1e-9, 1.0), (1.0, 1.0), (0.25, 0.0)] {
        match CudaEngine::new(0) {
            Ok(engine) => same(engine, &manifest, fraction, decay, &rounds(manifest.params(), 13)),
            Err(error) => {
                // tests/gpu/run.sh looked for a GPU before; elsewhere there need not be one.
                assert!(std::env::var_os("ANABRANCH_GPU_TESTS").is_none(), "{error}");
                return;
            }
        }
    }
}

/// Several chunks, the last of which has few elements and more than one tensor.
#[test]
fn a_vector_of_several_chunks_is_selected_chunk_by_chunk() {
    let manifest = manifest(&[2 * CHUNK + 5, 2_000]);
    let all = rounds(manifest.params(), 3);
    let rounds = [all[0].clone(), all[5].clone(), all[4].clone()];
    same(Emulator::default(), &manifest, 0.01, 0.95, &rounds);
    if let Some(engine) = Compiled::new(true) {
        same(engine, &manifest, 0.01, 0.95, &rounds);
    }
}

#[test]
fn every_kernel_is_in_the_text_once() {
    for kernel in Kernel::ALL {
        let head = format!("KERNEL {}(", kernel.name());
        assert_eq!(KERNELS.matches(&head).count(), 1, "{head}");
    }
    assert!(Kernel::ALL.iter().enumerate().all(|(nth, kernel)| *kernel as usize == nth));
}

/// Guards the feedback state against an update that was never stored.
#[test]
fn an_update_that_was_not_committed_leaves_the_state_before() {
    let manifest = manifest(&[5_000]);
    let (zeros, one, other) = (vec![0.0; 5_000], normal(5_000, 1), normal(5_000, 2));
    let mut gpu = GpuTopK::new(Emulator::default(), &manifest, 0.01).expect("memory");
    let first = gpu.encode(&zeros, &one, 1.0).expect("finite");
    gpu.commit();
    let lost = gpu.encode(&zeros, &other, 1.0).expect("finite");
    assert_eq!(gpu.encode(&zeros, &other, 1.0).expect("finite"), lost, "the state moved without a commit");
    gpu.restore(&[]).expect("dropped");
    assert_eq!(gpu.encode(&zeros, &one, 1.0).expect("finite"), first);
    assert!(matches!(
        gpu.encode(&zeros[1..], &one, 1.0),
        Err(GpuError::Encode(EncodeError::WrongLength { expected: 5_000, found: 4_999 }))
    ));
}

/// An engine that fails for good after some launches.
#[derive(Debug)]
struct Failing {
    inner: Emulator,
    launches: usize,
}

impl Engine for Failing {
    fn alloc(&mut self, words: usize) -> Result<Buffer, GpuError> {
        self.inner.alloc(words)
    }

    fn write(&mut self, buffer: Buffer, at: usize, words: &[u32]) -> Result<(), GpuError> {
        self.inner.write(buffer, at, words)
    }

    fn read(&mut self, buffer: Buffer, at: usize, words: &mut [u32]) -> Result<(), GpuError> {
        self.inner.read(buffer, at, words)
    }

    fn launch(&mut self, kernel: Kernel, grid: usize, buffers: &[Buffer], scalars: &[u32]) -> Result<(), GpuError> {
        match self.launches.checked_sub(1) {
            Some(left) => self.launches = left,
            None => return Err(GpuError::Failed { what: kernel.name(), detail: "illegal address".to_owned() }),
        }
        self.inner.launch(kernel, grid, buffers, scalars)
    }

    fn finish(&mut self) -> Result<(), GpuError> {
        self.inner.finish()
    }
}

/// Guards a run against a GPU that dies in the middle of an update: there is no payload then, the device is not tried
/// again, and what was made before has the CPU's bits.
#[test]
fn an_encoder_whose_gpu_failed_makes_nothing_and_does_not_try_again() {
    let manifest = manifest(&[100, 5_000]);
    let params = manifest.params();
    let updates: Vec<Vec<f32>> = (0..4).map(|seed| normal(params, seed)).collect();
    let zeros = vec![0.0; params];
    let (mut feedback, codec) = (Feedback::new(0.9), TopK::new(0.02));
    let cpu: Vec<_> = updates.iter().map(|end| feedback.encode(&codec, &manifest, end).ok()).collect();
    // Eleven launches an update: it fails in each of those of the second one and of the third, and never in the last case.
    for launches in (11..=33).chain([44]) {
        let opened = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = std::rc::Rc::clone(&opened);
        let mut encoder = RoundEncoder::new(Box::new(move || {
            count.set(count.get() + 1);
            Ok(Box::new(Failing { inner: Emulator::default(), launches }) as Box<dyn Engine>)
        }))
        .expect("opens");
        let made: Vec<_> = (0..)
            .zip(&updates)
            .map(|(nth, end)| {
                let (from, made) = (FeedbackState(nth), FeedbackState(nth + 1));
                let order = Order { fraction: 0.02, feedback_decay: 0.9, from, left_out: None, made };
                encoder.encode(&manifest, order, &zeros, end)
            })
            .collect();
        let whole = launches / 11;
        assert!(made[..whole] == cpu[..whole], "another result with {launches} launches");
        assert!(made[whole..].iter().all(Option::is_none), "a device that had failed was used, {launches} launches");
        assert_eq!(opened.get(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Few different magnitudes, so that thresholds are full of ties, in tensors of any size.
    #[test]
    fn ties_are_broken_as_on_the_cpu(
        sizes in prop::collection::vec(1usize..9_000, 1..4),
        kinds in 1u32..40,
        shift in 0u32..31,
        fraction in 0.0001f32..1.0,
        seed in any::<u64>(),
    ) {
        let manifest = manifest(&sizes);
        let mut rng = SplitMix64::new(seed);
        let mut value = || {
            let sign = (rng.next_u64() >> 63) as u32;
            let key = (u32::try_from(rng.below(u64::from(kinds))).expect("below a u32")).wrapping_shl(shift) & 0x7F7F_FFFF;
            Some(f32::from_bits(sign << 31 | key)).filter(|value| value.is_finite()).unwrap_or(1.0)
        };
        let end: Vec<f32> = (0..manifest.params()).map(|_| value()).collect();
        let zeros = vec![0.0; end.len()];
        same(Emulator::default(), &manifest, fraction, 0.95, &[(zeros.clone(), end.clone()), (zeros, end)]);
    }

    /// Any finite bits in both models, over several rounds of feedback.
    #[test]
    fn any_bits_give_the_cpus_bits(len in 1_000usize..20_000, fraction in 0.0001f32..1.0, seed in any::<u64>()) {
        let mut rng = SplitMix64::new(seed);
        let mut model = || -> Vec<f32> {
            (0..len).map(|_| f32::from_bits((rng.next_u64() >> 32) as u32 & 0xFF7F_FFFF)).collect()
        };
        let rounds = [(model(), model()), (model(), model()), (model(), model())];
        same(Emulator::default(), &manifest(&[len]), fraction, 0.9, &rounds);
    }
}
