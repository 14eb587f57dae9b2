//! How much memory a round takes, and the largest micro-batch that fits.
//!
//! ```text
//!  Needs::of(model, plan) ──► bytes for parameters, bytes for each example of a micro-batch
//!        │  times what real steps took (the peak of resident memory)
//!        ▼
//!  Budget: --max-memory, free memory, the cgroup's limit; what an out-of-memory kill taught
//!        ▼
//!  micro-batch: the batch, or half of it, or a quarter ...
//! ```

use anabranch_common::pod::memory::{MODEL_VECTORS, OVERHEAD_BYTES};
use anabranch_common::spec::TrainSpec;

use super::architecture::Architecture;
use crate::device::memory;
use crate::size;
use crate::train::TrainError;

/// Bytes of a value.
const VALUE: u64 = 4;
/// How far a measurement may correct the model of memory, down and up.
const FACTORS: (f64, f64) = (0.5, 16.0);
/// How many times what is computed an example takes on a GPU, where operations are put together from smaller ones, each of
/// which keeps its input, and where memory is taken in pages.
const DEVICE_FACTOR: f64 = 4.0;

/// What a round takes, in bytes, as computed from the model and the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// Whatever the batch.
    pub(super) fixed_bytes: u64,
    /// For each example (of text: each window) that is computed together.
    pub(super) example_bytes: u64,
}

impl Needs {
    /// Parameters, gradient and optimizer; activations and their gradients.
    pub(super) fn of(architecture: &Architecture, plan: &TrainSpec) -> Self {
        let vectors = u64::from(MODEL_VECTORS + plan.optimizer.state_vectors());
        let params = architecture.manifest.params() as u64;
        let layers = architecture.whole.layers.iter();
        let example_bytes = layers.fold(0u64, |sum, layer| sum.saturating_add(layer.cost().activation_bytes));
        Self { fixed_bytes: OVERHEAD_BYTES + VALUE * params * vectors, example_bytes }
    }

    /// Bytes of a step with micro-batches of `examples`, each of which takes `factor` times what was computed.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate of a positive number")]
    fn with(&self, examples: u32, factor: f64) -> u64 {
        let activations = self.example_bytes as f64 * f64::from(examples) * factor;
        self.fixed_bytes.saturating_add(activations as u64)
    }

    /// How many times what was computed an example has taken, if the whole has taken `bytes`.
    fn factor(&self, examples: u32, bytes: u64) -> f64 {
        let computed = self.example_bytes as f64 * f64::from(examples);
        bytes.saturating_sub(self.fixed_bytes) as f64 / computed.max(1.0)
    }
}

/// Whose memory a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// This process's.
    Process,
    /// A GPU's, of which so many bytes were free before anything was trained, where it tells.
    Device(Option<u64>),
}

impl Room {
    /// The same where somebody else takes so many bytes of a GPU.
    pub(super) fn without(self, bytes: u64) -> Self {
        match self {
            Self::Device(Some(free)) => Self::Device(Some(free.saturating_sub(bytes))),
            other => other,
        }
    }
}

/// What a process that trains may take, and what its rounds took.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    /// What the user allows this process, in bytes.
    max_bytes: Option<u64>,
    /// Whose memory it is about.
    room: Room,
    /// What it had in memory before anything was trained.
    before_bytes: u64,
    /// How many times what was computed an example takes, once a step was measured.
    factor: Option<f64>,
    /// The most examples at once, since larger micro-batches ran out of memory.
    most: Option<u32>,
    /// Micro-batch and batch as logged last.
    told: Option<(u32, u32)>,
}

impl Budget {
    /// For a process that may have `max_bytes` in memory, and takes them from `room`. Made before anything is trained.
    pub(super) fn new(max_bytes: Option<u64>, room: Room) -> Self {
        let before_bytes = memory::resident_bytes().unwrap_or(0);
        let factor = matches!(room, Room::Device(_)).then_some(DEVICE_FACTOR);
        Self { max_bytes, room, before_bytes, factor, most: None, told: None }
    }

    /// For a trainer beside others of this process: what all of them had found in memory is `before_bytes`. What a trainer
    /// finds itself would count what rounds of the others have left, although it is used again.
    pub(super) fn beside(self, before_bytes: Option<u64>) -> Self {
        Self { before_bytes: before_bytes.unwrap_or(self.before_bytes), ..self }
    }

    /// Never more than that many examples at once from now on.
    pub(super) fn limit(&mut self, most: Option<u32>) {
        self.most = most;
    }

    /// Bytes that may be had here and now, and how many of them are had by what is not training. Of this process: what the
    /// user allows, and of free memory all but an eighth; what earlier rounds have left is used again. Of a GPU: all but an
    /// eighth of what was free there.
    fn bytes(&self) -> (Option<u64>, u64) {
        let most = |free: u64| free - free / 8;
        if let Room::Device(free) = self.room {
            return (free.map(most), 0);
        }
        let held = memory::resident_bytes().unwrap_or(0).max(self.before_bytes);
        let free = memory::available_bytes().map(|free| held + most(free));
        (self.max_bytes.into_iter().chain(free).min(), self.before_bytes)
    }

    /// The micro-batch for a round: the batch, or as many halvings of it as it takes to fit.
    ///
    /// # Errors
    /// [`TrainError::Memory`]: not even one example fits.
    pub(super) fn micro_batch(&mut self, needs: &Needs, batch: u32) -> Result<u32, TrainError> {
        self.check_host(needs)?;
        let (budget, before) = self.bytes();
        let left = budget.map(|budget| budget.saturating_sub(before));
        let micro = fitting(needs, batch, self.factor.unwrap_or(1.0), left, self.most);
        let micro = micro.map_err(|needed| TrainError::Memory {
            needed_bytes: before.saturating_add(needed),
            budget_bytes: budget.unwrap_or(u64::MAX),
        })?;
        if self.told.replace((micro, batch)) != Some((micro, batch)) && (micro < batch || self.max_bytes.is_some()) {
            let known = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), size::text);
            let needed = size::text(before + needs.with(micro, self.factor.unwrap_or(1.0)));
            tracing::info!(
                micro_batch = micro,
                batch_size = batch,
                needed,
                budget = known(budget),
                "memory for training"
            );
        }
        Ok(micro)
    }

    /// Beside a GPU the process keeps what does not depend on the batch: vectors as long as the model.
    fn check_host(&self, needs: &Needs) -> Result<(), TrainError> {
        let needed_bytes = self.before_bytes.saturating_add(needs.fixed_bytes);
        match (self.room, self.max_bytes) {
            (Room::Device(_), Some(budget_bytes)) if needed_bytes > budget_bytes => {
                Err(TrainError::Memory { needed_bytes, budget_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Before the first step of a round.
    pub(super) fn measure(&self) {
        if self.room == Room::Process {
            memory::reset_peak();
        }
    }

    /// After the first step of a round: what it really took. Later measurements only raise what the first one gave, since
    /// memory that is used again does not show.
    pub(super) fn measured(&mut self, needs: &Needs, micro: u32) {
        let Some(peak) = memory::peak_bytes().filter(|_| self.room == Room::Process) else { return };
        let found = needs.factor(micro, peak.saturating_sub(self.before_bytes)).clamp(FACTORS.0, FACTORS.1);
        self.factor = Some(self.factor.map_or(found, |known| known.max(found)));
        tracing::debug!(micro_batch = micro, factor = found, "a step was measured");
    }
}

/// The micro-batch that takes at most `budget` bytes, or how many one example takes.
fn fitting(needs: &Needs, batch: u32, factor: f64, budget: Option<u64>, most: Option<u32>) -> Result<u32, u64> {
    let mut micro = batch;
    while most.is_some_and(|most| micro > most.max(1)) {
        micro = micro.div_ceil(2);
    }
    let Some(budget) = budget else { return Ok(micro) };
    loop {
        let needed = needs.with(micro, factor);
        if needed <= budget {
            return Ok(micro);
        }
        if micro == 1 {
            return Err(needed);
        }
        micro = micro.div_ceil(2);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::process::Command;

    use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec};

    use super::*;
    use crate::shard::{Examples, Inputs, Shard, Text};
    use crate::train::native;
    use crate::train::{Round, StepReport};

    /// Says in a child process of a test which model is to be measured.
    const CHILD: &str = "ANABRANCH_TEST_MEASURE";
    const MIB: u64 = 1 << 20;

    fn plan(batch_size: u32) -> TrainSpec {
        let optimizer = OptimizerSpec::Sgd { lr: 0.1, momentum: 0.9 };
        TrainSpec {
            local_steps: 1,
            batch_size,
            optimizer,
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        }
    }

    #[test]
    fn the_micro_batch_is_halved_until_it_fits_and_one_that_cannot_fit_says_what_it_takes() {
        let needs = Needs { fixed_bytes: 100, example_bytes: 10 };
        let fit = |budget, most| fitting(&needs, 100, 1.0, budget, most);
        assert_eq!(fit(None, None), Ok(100));
        assert_eq!((fit(Some(1100), None), fit(Some(1099), None), fit(Some(350), None)), (Ok(100), Ok(50), Ok(25)));
        assert_eq!((fit(Some(110), None), fit(None, Some(30)), fit(None, Some(0))), (Ok(1), Ok(25), Ok(1)));
        assert_eq!(fit(Some(109), None), Err(110));
        assert_eq!(fitting(&needs, 100, 2.0, Some(1100), None), Ok(50), "a step took twice what was computed");
    }

    /// Issue 6: any `batch_size` times any `context` is made to fit or refused.
    #[test]
    fn an_absurd_plan_for_a_gpt_is_refused_with_figures_and_not_tried() {
        let (context, width) = (1 << 14, 1 << 10);
        let spec = ModelSpec { kind: ModelKind::Gpt, context, layers: 48, heads: 16, width, ..ModelSpec::default() };
        let needs = Needs::of(&Architecture::new(&spec).expect("valid"), &plan(65_536));
        let needed = fitting(&needs, 65_536, 1.0, Some(8 << 30), None).expect_err("no such memory");
        assert!(needed > 500 << 30, "48 blocks keep 16 rows of 16384 for each of 16384 bytes: {}", size::text(needed));
        let mut budget = Budget::new(Some(8 << 30), Room::Process);
        let error = budget.micro_batch(&needs, 65_536).expect_err("no such memory").to_string();
        assert!(error.contains("one example at a time") && error.contains("GiB may be used"), "{error}");
    }

    /// On a GPU its own free memory decides, as far as it is known; what the user allows is this process's.
    #[test]
    fn a_gpus_memory_bounds_the_micro_batch_and_the_hosts_bounds_the_model() {
        let needs = Needs { fixed_bytes: 1000, example_bytes: 100 };
        let micro = |max, room| Budget::new(max, room).micro_batch(&needs, 64);
        assert_eq!(micro(None, Room::Device(None)), Ok(64), "only an out-of-memory error will tell");
        // 7/8 of 16,000 are 14,000: 32 examples at four times 100 take 13,800 with what is fixed.
        assert_eq!(micro(None, Room::Device(Some(16_000))), Ok(32));
        assert!(matches!(
            micro(None, Room::Device(Some(1_200))),
            Err(TrainError::Memory { needed_bytes: 1_400, budget_bytes: 1_050 })
        ));
        assert!(matches!(micro(Some(1), Room::Device(None)), Err(TrainError::Memory { budget_bytes: 1, .. })));
        assert_eq!(micro(Some(1 << 50), Room::Device(Some(16_000))), Ok(32));
        // The encoder's 2,000 bytes leave 7/8 of 14,000.
        assert_eq!(micro(None, Room::Device(Some(16_000)).without(2_000)), Ok(16));
        assert_eq!(Room::Device(Some(1)).without(2), Room::Device(Some(0)));
        assert_eq!(Room::Process.without(2), Room::Process);
    }

    fn gpt(context: u32, layers: u32, width: u32) -> ModelSpec {
        ModelSpec { kind: ModelKind::Gpt, context, layers, heads: 4, width, ..ModelSpec::default() }
    }

    /// Trains one step of a model that takes some hundred megabytes; says what was computed and what it took, in MiB.
    fn measure(kind: &str) -> String {
        let (spec, batch, shard): (_, _, Box<dyn Shard>) = match kind {
            "gpt" => (gpt(128, 4, 128), 32, Box::new(Text::new(vec![7; 4096]).expect("text"))),
            "gpt of long texts" => (gpt(512, 2, 64), 16, Box::new(Text::new(vec![7; 4096]).expect("text"))),
            kind => {
                let (kind, input, hidden, batch) = match kind {
                    "mlp" => (ModelKind::Mlp, vec![784], vec![2048, 1024], 8192),
                    _ => (ModelKind::Cnn, vec![1, 28, 28], vec![], 1024),
                };
                let values = input.iter().product::<u64>();
                let inputs = Inputs::Bytes(vec![1; usize::try_from(values).expect("small")]);
                let shard = Examples::new(inputs, vec![0], input.clone()).expect("one example");
                (ModelSpec { kind, input, hidden, classes: 10, ..ModelSpec::default() }, batch, Box::new(shard))
            }
        };
        let plan = plan(batch);
        let architecture = Architecture::new(&spec).expect("valid");
        let computed = Needs::of(&architecture, &plan).with(batch, 1.0);
        let mut trainer = native(&spec).expect("valid");
        let before = memory::resident_bytes().unwrap_or(0);
        let base = trainer.initial(1).expect("made");
        let mut go_on = |_: StepReport| ControlFlow::Continue(());
        trainer.train(Round::new(&base, &plan, 1, shard.as_ref(), &mut go_on)).expect("trains");
        let taken = memory::peak_bytes().unwrap_or(0).saturating_sub(before);
        format!("measured: {} {}", computed / MIB, taken / MIB)
    }

    /// The model of memory is within a factor of 2 of the truth before any step was measured. In processes of their own,
    /// since nothing else may be in their peak.
    #[test]
    fn what_is_computed_is_near_to_what_a_step_takes() {
        if let Some(kind) = std::env::var_os(CHILD) {
            println!("{}", measure(&kind.to_string_lossy()));
            return;
        }
        if memory::peak_bytes().is_none() {
            return;
        }
        let name = "train::native::memory::tests::what_is_computed_is_near_to_what_a_step_takes";
        for kind in ["mlp", "cnn", "gpt", "gpt of long texts"] {
            let test = std::env::current_exe().expect("this test has a file");
            let output = Command::new(test).args(["--exact", name, "--nocapture"]).env(CHILD, kind).output();
            let text = String::from_utf8_lossy(&output.expect("it runs").stdout).into_owned();
            let figures = text.split_once("measured: ").unwrap_or_else(|| panic!("{kind}: {text}")).1;
            let mut figures = figures.split_whitespace().map_while(|figure| figure.parse::<f64>().ok());
            let (computed, taken) = figures.next().zip(figures.next()).expect("two figures");
            println!("{kind}: {computed} MiB computed, {taken} MiB taken");
            assert!((0.5..2.0).contains(&(computed / taken)), "{kind}: {computed} MiB computed, {taken} MiB taken");
        }
    }
}
