//! Cuts a model into the stages of a pod: consecutive layers, so that the slowest stage is as fast as it can be within the memory
//! of every member.
//!
//! A dynamic program over cuts (the partitioning of PipeDream, Narayanan et al. 2019, section 3.1, without replication): T(k, i) =
//! min over j of max(time of layers i..j at member k, T(k + 1, j)). Among the cuts with the same slowest stage the one is taken over
//! which the fewest bytes pass, and among these the earliest.

use std::num::NonZeroU64;
use std::ops::Range;

use super::{Schedule, Weights};
use crate::limits;
use crate::spec::{LayerCost, Layers, ModelError, ModelSpec};

/// Bytes of a value.
const VALUE: u64 = 4;
/// Passes of a training step in units of a forward pass: the backward pass has about twice its work.
const PASSES: u64 = 3;

/// A row of a layer table: what a layer costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The layer's name.
    pub name: String,
    /// Parameters of its own, and those of an earlier layer that it uses too.
    pub params: u64,
    /// What it costs for one example.
    pub cost: LayerCost,
}

/// Returns the layer table of a native model.
#[must_use]
pub fn table(model: &Layers) -> Vec<Row> {
    let elements = |index: usize| model.manifest.tensors().get(index).and_then(|tensor| tensor.elements());
    let tied = |index: Option<usize>| index.and_then(elements).unwrap_or(0) as u64;
    let row = |layer: &crate::spec::Layer| Row {
        name: layer.name.clone(),
        params: layer.params.saturating_add(tied(layer.tied)),
        cost: layer.cost(),
    };
    model.layers.iter().map(row).collect()
}

/// What is known of the layers of a model, whoever computes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// A row for each layer; of a custom model, for each of its modules.
    pub rows: Vec<Row>,
    /// Parameters of the model.
    pub params: u64,
}

impl Table {
    /// Returns the table of the model that `model` describes, or `None` of a custom one without `model.modules`.
    ///
    /// # Errors
    /// A key of `[model]` has a value that no model can be made of.
    pub fn of(model: &ModelSpec) -> Result<Option<Self>, ModelError> {
        let modules = model.modules()?;
        if let Some(layers) = model.layers()? {
            let params = layers.manifest.params() as u64;
            return Ok(Some(Self { rows: table(&layers), params }));
        }
        let row = |(index, module): (usize, &crate::spec::ModuleSpec)| Row {
            name: format!("module {index}"),
            params: module.parameters,
            cost: module.cost(),
        };
        let rows: Vec<Row> = modules.iter().enumerate().map(row).collect();
        let params = rows.iter().map(|row| row.params).sum();
        Ok((!rows.is_empty()).then_some(Self { rows, params }))
    }
}

/// A member of a pod, in the order of the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// How fast it computes.
    pub flops_per_s: NonZeroU64,
    /// What it may use, in bytes.
    pub memory_bytes: u64,
}

/// What the plan of a round costs, whatever the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The schedule, which decides what is in flight.
    pub schedule: Schedule,
    /// Micro-batches of a step.
    pub micro_batches: u32,
    /// Examples of a micro-batch.
    pub micro_batch_examples: u32,
    /// Bytes of a member's memory whatever it computes.
    pub fixed_bytes: u64,
    /// Vectors as long as a stage's parameters: base, model, gradient and the like, and the state of the optimizer.
    pub vectors: u32,
    /// Bits of what a parameter comes to, once it is encoded: a helper keeps these payloads, and may still send those of the round
    /// before, for the update's upload.
    pub payload_bits: u32,
}

/// A stage as it was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its layers.
    pub layers: Range<usize>,
    /// Time that a micro-batch takes, forward and backward, in nanoseconds.
    pub time_ns: u64,
    /// Memory that it takes, in bytes.
    pub memory_bytes: u64,
}

/// Why a model cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// Nobody computes.
    #[error("a pod has at least one member")]
    NoMembers,
    /// More than `limits::POD_MEMBERS`.
    #[error("a pod has at most {most} members, not {0}", most = limits::POD_MEMBERS)]
    TooManyMembers(usize),
    /// Each stage has at least one layer.
    #[error("{stages} stages are more than the {layers} layers of the model")]
    TooManyStages {
        /// Members.
        stages: usize,
        /// Rows of the table.
        layers: usize,
    },
    /// A layer is too large for every member that it could lie at.
    #[error(
        "layer {name} fits at no member: stage {stage} comes closest, where it takes {needed_bytes} bytes of {memory_bytes}"
    )]
    LayerTooLarge {
        /// The layer.
        name: String,
        /// The stage whose member lacks the least memory for it, from 0.
        stage: usize,
        /// What it takes there.
        needed_bytes: u64,
        /// What that member may use.
        memory_bytes: u64,
    },
    /// The model fits in no cut.
    #[error(
        "the model takes at least {needed_bytes} bytes in {stages} stages, and no cut fits: members have {memory_bytes} bytes"
    )]
    TooLarge {
        /// Members.
        stages: usize,
        /// What all stages take together, at the least.
        needed_bytes: u64,
        /// What all members may use together.
        memory_bytes: u64,
    },
}

/// Cuts the model of `table` into one stage for each of `members`, in their order.
///
/// # Errors
/// See [`CutError`].
pub fn cut(table: &[Row], members: &[Member], load: &Load) -> Result<Vec<Stage>, CutError> {
    if members.is_empty() {
        return Err(CutError::NoMembers);
    }
    if members.len() > limits::POD_MEMBERS {
        return Err(CutError::TooManyMembers(members.len()));
    }
    if members.len() > table.len() {
        return Err(CutError::TooManyStages { stages: members.len(), layers: table.len() });
    }
    let program = Program::new(table, members, load);
    let Some(slowest_ns) = program.slowest_ns() else { return Err(program.why_nothing_fits()) };
    Ok(program.stages_within(slowest_ns))
}

/// The dynamic program.
struct Program<'a> {
    table: &'a [Row],
    members: &'a [Member],
    load: &'a Load,
    /// Sums over the layers before each index.
    flops: Vec<u64>,
    params: Vec<u64>,
    activations: Vec<u64>,
}

impl<'a> Program<'a> {
    fn new(table: &'a [Row], members: &'a [Member], load: &'a Load) -> Self {
        let sums = |of: &dyn Fn(&Row) -> u64| {
            let sums = table.iter().scan(0u64, |sum, row| {
                *sum = sum.saturating_add(of(row));
                Some(*sum)
            });
            [0].into_iter().chain(sums).collect()
        };
        let flops = sums(&|row| row.cost.forward_flops);
        let params = sums(&|row| row.params);
        let activations = sums(&|row| row.cost.activation_bytes);
        Self { table, members, load, flops, params, activations }
    }

    /// Stages at the end of which layer `end` may be the next one, after stage `stage`: each later one has a layer.
    fn last_end(&self, stage: usize) -> usize {
        self.table.len() - (self.members.len() - 1 - stage)
    }

    fn time_ns(&self, stage: usize, layers: &Range<usize>) -> u64 {
        let flops = u128::from(self.flops[layers.end] - self.flops[layers.start]);
        let work = flops * u128::from(PASSES) * u128::from(self.load.micro_batch_examples) * 1_000_000_000;
        let time = work.div_ceil(u128::from(self.members[stage].flops_per_s.get()));
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    fn memory_bytes(&self, stage: usize, layers: &Range<usize>) -> u64 {
        self.held_bytes(stage, layers).saturating_add(self.queued_bytes(stage, layers.start))
    }

    /// Inputs that may lie at a stage before their forward pass: the stage before has more in flight.
    fn queued_bytes(&self, stage: usize, start: usize) -> u64 {
        let (Some(before), Some(layer)) = (stage.checked_sub(1), start.checked_sub(1)) else { return 0 };
        let Load { schedule, micro_batches, micro_batch_examples, .. } = *self.load;
        let in_flight = |stage| schedule.in_flight(to_u32(stage), to_u32(self.members.len()), micro_batches);
        let queued = u64::from(in_flight(before).saturating_sub(in_flight(stage)));
        queued.saturating_mul(micro_batch_examples.into()).saturating_mul(self.table[layer].cost.output_bytes)
    }

    /// What a stage takes without inputs that wait.
    fn held_bytes(&self, stage: usize, layers: &Range<usize>) -> u64 {
        let (index, stages) = (to_u32(stage), to_u32(self.members.len()));
        let Load { schedule, micro_batches, micro_batch_examples, fixed_bytes, vectors, payload_bits } = *self.load;
        // The newest is one of the load's vectors. Weights that are moved on are computed beside those that they are made of.
        let versions = schedule.versions(index, stages, micro_batches).saturating_sub(1);
        let moved_on = schedule == Schedule::Pipelined(Weights::Predict) && index + 1 < stages;
        let vectors = u64::from(vectors).saturating_add(versions.into()).saturating_add(moved_on.into());
        let params = self.params[layers.end] - self.params[layers.start];
        let examples =
            u64::from(schedule.in_flight(index, stages, micro_batches)).saturating_mul(micro_batch_examples.into());
        let activations = self.activations[layers.end] - self.activations[layers.start];
        let params_bytes = params.saturating_mul(VALUE).saturating_mul(vectors);
        // Longer payloads are not kept.
        let kept_bytes = (params.saturating_mul(payload_bits.into()) / 8).min(limits::POD_KEPT_BYTES as u64);
        let held_bytes = params_bytes.saturating_add(kept_bytes).saturating_add(activations.saturating_mul(examples));
        fixed_bytes.saturating_add(held_bytes)
    }

    fn fits(&self, stage: usize, layers: &Range<usize>) -> bool {
        self.memory_bytes(stage, layers) <= self.members[stage].memory_bytes
    }

    /// The time of the slowest stage of the best cut, if there is a cut that fits.
    fn slowest_ns(&self) -> Option<u64> {
        let layers = self.table.len();
        // Of the layers from each index on, at the stages after the current one.
        let mut after: Vec<Option<u64>> = vec![None; layers + 1];
        after[layers] = Some(0);
        for stage in (0..self.members.len()).rev() {
            let is_start = |start: &usize| (stage..self.last_end(stage)).contains(start);
            let best = |start: usize| Some(start).filter(is_start).and_then(|start| self.best_ns(stage, start, &after));
            after = (0..=layers).map(best).collect();
        }
        after[0]
    }

    /// The same of the layers from `start` on at the stages from `stage` on, given the times of those after it.
    fn best_ns(&self, stage: usize, start: usize, after: &[Option<u64>]) -> Option<u64> {
        let mut best: Option<u64> = None;
        for (end, rest) in after.iter().enumerate().take(self.last_end(stage) + 1).skip(start + 1) {
            let time = self.time_ns(stage, &(start..end));
            // Both grow with the end.
            if !self.fits(stage, &(start..end)) || best.is_some_and(|best| time >= best) {
                break;
            }
            if let Some(rest) = rest {
                let slowest = time.max(*rest);
                best = Some(best.map_or(slowest, |best| best.min(slowest)));
            }
        }
        best
    }

    /// The cut over which the fewest bytes pass, of those whose stages take at most `slowest_ns`.
    fn stages_within(&self, slowest_ns: u64) -> Vec<Stage> {
        let (layers, count) = (self.table.len(), self.members.len());
        // Bytes over all later cuts, and where the stage ends, by stage and start.
        let mut best: Vec<Vec<Option<(u64, usize)>>> = vec![vec![None; layers + 1]; count + 1];
        best[count][layers] = Some((0, layers));
        for stage in (0..count).rev() {
            for start in stage..self.last_end(stage) {
                for end in start + 1..=self.last_end(stage) {
                    if !self.fits(stage, &(start..end)) || self.time_ns(stage, &(start..end)) > slowest_ns {
                        break;
                    }
                    let Some((rest, _)) = best[stage + 1][end] else { continue };
                    let crossing = if end < layers { self.table[end - 1].cost.output_bytes } else { 0 };
                    let bytes = rest.saturating_add(crossing);
                    if best[stage][start].is_none_or(|(known, _)| bytes < known) {
                        best[stage][start] = Some((bytes, end));
                    }
                }
            }
        }
        let mut start = 0;
        let stage = |(stage, ends): (usize, &Vec<Option<(u64, usize)>>)| {
            let (_, end) = ends[start].expect("a cut whose slowest stage takes that long was found");
            let layers = std::mem::replace(&mut start, end)..end;
            let (time_ns, memory_bytes) = (self.time_ns(stage, &layers), self.memory_bytes(stage, &layers));
            Stage { layers, time_ns, memory_bytes }
        };
        best[..count].iter().enumerate().map(stage).collect()
    }

    fn why_nothing_fits(&self) -> CutError {
        let held = |stage: usize, layer: usize| self.held_bytes(stage, &(layer..layer + 1));
        // Each stage before and behind has a layer of its own.
        let stages = |layer: usize| (0..self.members.len()).filter(move |s| *s <= layer && layer < self.last_end(*s));
        for (layer, row) in self.table.iter().enumerate() {
            let lacks = |stage: &usize| held(*stage, layer).saturating_sub(self.members[*stage].memory_bytes);
            let Some(stage) = stages(layer).min_by_key(lacks).filter(|stage| lacks(stage) > 0) else { continue };
            return CutError::LayerTooLarge {
                name: row.name.clone(),
                stage,
                needed_bytes: held(stage, layer),
                memory_bytes: self.members[stage].memory_bytes,
            };
        }
        let least = |layer: usize| stages(layer).map(|stage| held(stage, layer)).min();
        let fixed = self.load.fixed_bytes;
        let of_layers = (0..self.table.len()).map(|layer| least(layer).unwrap_or(0).saturating_sub(fixed));
        let needed = of_layers.fold(fixed.saturating_mul(self.members.len() as u64), u64::saturating_add);
        let all = self.members.iter().map(|member| member.memory_bytes).fold(0, u64::saturating_add);
        CutError::TooLarge { stages: self.members.len(), needed_bytes: needed, memory_bytes: all }
    }
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{ModelKind, ModelSpec};

    fn row(forward_flops: u64, params: u64, activation_bytes: u64, output_bytes: u64) -> Row {
        let cost = LayerCost { forward_flops, activation_bytes, output_bytes };
        Row { name: format!("layer of {forward_flops}"), params, cost }
    }

    fn member(flops_per_s: u64, memory_bytes: u64) -> Member {
        Member { flops_per_s: NonZeroU64::new(flops_per_s).expect("above 0"), memory_bytes }
    }

    const LOAD: Load = Load {
        schedule: Schedule::Flush,
        micro_batches: 4,
        micro_batch_examples: 1,
        fixed_bytes: 100,
        vectors: 2,
        payload_bits: 0,
    };

    fn ends(table: &[Row], members: &[Member], load: &Load) -> Vec<usize> {
        cut(table, members, load).expect("it fits").into_iter().map(|stage| stage.layers.end).collect()
    }

    #[test]
    fn a_custom_model_has_a_row_for_each_module_and_none_without_them() {
        let table = |text: &str| Table::of(&toml::from_str(text).expect("complete")).expect("sound");
        assert_eq!(table("kind = \"custom\""), None);
        let two =
            table("kind = \"custom\"\nmodules = [{ parameters = 6, output = [2] }, { parameters = 3, output = [1] }]");
        let two = two.expect("a table");
        assert_eq!((two.params, two.rows[1].name.as_str(), two.rows[1].params), (9, "module 1", 3));
        assert_eq!(two.rows[0].cost, LayerCost { forward_flops: 12, activation_bytes: 16, output_bytes: 8 });
        let mlp = table("kind = \"mlp\"\ninput = [4]\nclasses = 2\nhidden = [3]").expect("native");
        assert_eq!((mlp.params, mlp.rows.len()), (4 * 3 + 3 + 3 * 2 + 2, 2));
    }

    #[test]
    fn equal_members_get_equal_work_and_mismatched_ones_unequal() {
        let table: Vec<Row> = (0..8).map(|_| row(10, 1, 1, 1)).collect();
        let roomy = |speed| member(speed, 1 << 30);
        assert_eq!(ends(&table, &[roomy(5), roomy(5)], &LOAD), [4, 8]);
        assert_eq!(ends(&table, &[roomy(15), roomy(5)], &LOAD), [6, 8]);
        assert_eq!(ends(&table, &[roomy(5), roomy(5), roomy(10)], &LOAD), [2, 4, 8]);
        assert_eq!(ends(&table, &[roomy(1)], &LOAD), [8]);
        let stages = cut(&table, &[roomy(15), roomy(5)], &LOAD).expect("it fits");
        // 3 passes of 6 layers of 10 at 15 a second; at the first of two stages two micro-batches are in flight.
        assert_eq!((stages[0].time_ns, stages[0].memory_bytes), (12_000_000_000, 100 + 6 * 4 * 2 + 2 * 6));
        // One is in flight at the last one, and the input of one more waits there.
        assert_eq!((stages[1].time_ns, stages[1].memory_bytes), (12_000_000_000, 100 + 2 * 4 * 2 + 2 + 1));
    }

    #[test]
    fn memory_moves_a_cut_and_what_does_not_fit_says_the_numbers() {
        let table: Vec<Row> = (0..4).map(|_| row(10, 100, 0, 1)).collect();
        assert_eq!(ends(&table, &[member(1, 900), member(1, 3000)], &LOAD), [1, 4]);
        let refused = |members: &[Member]| cut(&table, members, &LOAD).expect_err("it does not fit");
        assert_eq!(refused(&[]), CutError::NoMembers);
        let small = refused(&[member(1, 899), member(1, 800)]).to_string();
        let told = "layer layer of 10 fits at no member: stage 0 comes closest, where it takes 900 bytes of 899";
        assert_eq!(small, told);
        let together = refused(&[member(1, 900), member(1, 1700)]);
        assert_eq!(together, CutError::TooLarge { stages: 2, needed_bytes: 3400, memory_bytes: 2600 });
        let many = refused(&[member(1, 1 << 20); 5]).to_string();
        assert_eq!(many, "5 stages are more than the 4 layers of the model");
        let crowd = refused(&[member(1, 1 << 20); limits::POD_MEMBERS + 1]);
        assert_eq!(crowd, CutError::TooManyMembers(limits::POD_MEMBERS + 1));
    }

    #[test]
    fn the_deepest_model_is_cut_for_as_many_members_as_there_may_be() {
        let table: Vec<Row> = (0..2 * limits::HIDDEN_LAYERS + 1).map(|_| row(10, 1, 1, 1)).collect();
        let stages = cut(&table, &[member(1, 1 << 30); limits::POD_MEMBERS], &LOAD).expect("it fits");
        let longest = stages.iter().map(|stage| stage.layers.len()).max();
        assert_eq!(longest, Some(table.len().div_ceil(limits::POD_MEMBERS)));
    }

    #[test]
    fn of_equally_fast_cuts_the_one_with_the_smallest_activations_is_taken() {
        let table = [row(5, 1, 1, 900), row(0, 1, 1, 7), row(0, 1, 1, 800), row(5, 1, 1, 1)];
        assert_eq!(ends(&table, &[member(1, 1 << 20); 2], &LOAD), [2, 4]);
    }

    #[test]
    fn stashed_weights_count() {
        let table: Vec<Row> = (0..4).map(|_| row(10, 100, 0, 1)).collect();
        let load = Load { schedule: Schedule::Pipelined(Weights::Stash), micro_batches: 1, ..LOAD };
        let stages = cut(&table, &[member(1, 1 << 20); 4], &load).expect("it fits");
        let memory: Vec<u64> = stages.iter().map(|stage| stage.memory_bytes).collect();
        // At the stages behind the first one the input of one more micro-batch waits.
        assert_eq!(memory, [(5, 0), (4, 1), (3, 1), (2, 1)].map(|(vectors, waits)| 100 + 100 * 4 * vectors + waits));
        let load = Load { schedule: Schedule::Pipelined(Weights::Predict), ..load };
        let stages = cut(&table, &[member(1, 1 << 20); 4], &load).expect("it fits");
        let memory: Vec<u64> = stages.iter().map(|stage| stage.memory_bytes).collect();
        // The last update, and but for the last stage the weights moved on by it.
        assert_eq!(memory, [(4, 0), (4, 1), (4, 1), (3, 1)].map(|(vectors, waits)| 100 + 100 * 4 * vectors + waits));
        // The first stage stashes more than the last one: a member with more memory may be further from fitting.
        let load = Load { schedule: Schedule::Pipelined(Weights::Stash), micro_batches: 1, fixed_bytes: 0, ..LOAD };
        let told = cut(&table[..2], &[member(1, 1000), member(1, 700)], &load).expect_err("too large").to_string();
        assert_eq!(
            told,
            "layer layer of 10 fits at no member: stage 0 comes closest, where it takes 1200 bytes of 1000"
        );
        let told = cut(&table[..2], &[member(1, 1200), member(1, 700)], &load).expect_err("too large").to_string();
        assert_eq!(told, "layer layer of 10 fits at no member: stage 1 comes closest, where it takes 800 bytes of 700");
    }

    #[test]
    fn a_gpt_is_cut_between_its_blocks() {
        let (context, layers, heads, width) = (64, 8, 4, 64);
        let spec = ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() };
        let model = spec.layers().expect("valid").expect("native");
        let table = table(&model);
        assert_eq!(table.len(), 2 + 2 * 8);
        let all: u64 = table.iter().map(|row| row.params).sum();
        assert_eq!(all, model.manifest.params() as u64 + 256 * 64, "the head counts the embedding again");
        let members = [member(1_000_000_000, 1 << 30); 8];
        let stages = cut(&table, &members, &LOAD).expect("it fits");
        let [fastest, slowest] = [stages.iter().map(|s| s.time_ns).min(), stages.iter().map(|s| s.time_ns).max()];
        assert!(slowest < fastest.map(|time| 2 * time), "{stages:?}");
    }

    /// Every way to cut `layers` layers into `stages` stages, as the ends of the stages.
    fn every_cut(layers: usize, stages: usize) -> Vec<Vec<usize>> {
        if stages == 1 {
            return vec![vec![layers]];
        }
        let first_cuts = 1..=layers.saturating_sub(stages - 1);
        let with = |first: usize| {
            let rest = every_cut(layers - first, stages - 1).into_iter();
            rest.map(move |rest| [first].into_iter().chain(rest.into_iter().map(|end| end + first)).collect())
        };
        first_cuts.flat_map(with).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// The cut is the best of all by trying each of them.
        #[test]
        fn no_cut_is_better(
            rows in prop::collection::vec((0u64..20, 0u64..20, 0u64..20, 0u64..20), 1..9),
            members in prop::collection::vec((1u64..5, 0u64..1200), 1..5),
            kind in 0usize..3,
            micro_batches in 1u32..5,
        ) {
            let table: Vec<Row> = rows.iter().map(|(f, p, a, o)| row(*f, *p, *a, *o)).collect();
            let members: Vec<Member> = members.iter().map(|(speed, memory)| member(*speed, *memory)).collect();
            let schedule =
                [Schedule::Sequential, Schedule::Flush, Schedule::Pipelined(Weights::Stash)][kind];
            let load = Load { schedule, micro_batches, ..LOAD };
            prop_assume!(members.len() <= table.len());
            let program = Program::new(&table, &members, &load);
            let worth = |ends: &[usize]| {
                let starts = [0].into_iter().chain(ends.iter().copied());
                let stages: Vec<_> = starts.zip(ends.iter().copied()).map(|(start, end)| start..end).enumerate().collect();
                let fits = stages.iter().all(|(stage, layers)| program.fits(*stage, layers));
                let slowest = stages.iter().map(|(stage, layers)| program.time_ns(*stage, layers)).max();
                let crossing: u64 = ends[..ends.len() - 1].iter().map(|end| table[end - 1].cost.output_bytes).sum();
                fits.then_some((slowest, crossing))
            };
            let best = every_cut(table.len(), members.len()).iter().filter_map(|ends| worth(ends)).min();
            match cut(&table, &members, &load) {
                Ok(stages) => {
                    let ends: Vec<usize> = stages.iter().map(|stage| stage.layers.end).collect();
                    prop_assert_eq!(worth(&ends), best);
                    prop_assert!(stages.iter().all(|stage| !stage.layers.is_empty()));
                    prop_assert_eq!(stages.first().map(|stage| stage.layers.start), Some(0));
                }
                Err(_) => prop_assert_eq!(best, None),
            }
        }
    }
}
