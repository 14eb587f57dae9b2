//! Parcels in every order that links allow give the same bits, and parcels that nobody should send are refused.

use std::collections::{BTreeMap, VecDeque};
use std::sync::LazyLock;

use anabranch_common::codec::{self, CodecSpec};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::TensorPolicy;
use anabranch_common::wire::pod::LayerFigures;
use proptest::prelude::*;

use super::*;
use crate::pod::{Address, LayerContent, Parcel};

const MICRO_BATCHES: u32 = 3;

fn encoding() -> Encoding {
    let policy = TensorPolicy::default();
    Encoding { codec: CodecSpec::F32, policy, held: Held::LeftOut { decay: 0.0 }, base_dot: false }
}

/// The member that computes each part: the owner has the first and the last one.
const MEMBERS: [usize; 4] = [0, 1, 2, 0];
/// The same where labels travel.
const TRAVEL: [usize; 4] = [0, 1, 2, 3];

/// A small gpt in four parts, whose tied tensor is used by the first and the last one.
static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| {
    let (context, layers, heads, width) = (3, 1, 1, 2);
    let spec = ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() };
    Pipeline::new(&spec, &[1, 2, 3, 4], 1).expect("valid")
});
static SHARD: LazyLock<Box<dyn Shard>> =
    LazyLock::new(|| shard(&ModelSpec { kind: ModelKind::Gpt, ..ModelSpec::default() }));

fn rounds_plan() -> TrainSpec {
    plan(3, 7, &SGD)
}

/// Members whose links carry parcels when they are told to.
struct Links<'a> {
    members: Vec<Stages<'a>>,
    of_part: [usize; 4],
    /// Between two parts, parcels keep their order.
    links: BTreeMap<(usize, usize), VecDeque<Parcel>>,
    losses: Vec<f64>,
}

impl<'a> Links<'a> {
    fn new(plan: &TrainSpec, schedule: Schedule, of_part: [usize; 4]) -> Self {
        let pipeline: &'a Pipeline = &PIPELINE;
        let turns = Turns::new(schedule, 4, MICRO_BATCHES, plan.local_steps).expect("valid");
        let count = of_part.iter().max().map_or(0, |last| last + 1);
        let members = (0..count).map(|member| {
            let feed = Feed::new(&pipeline.architecture, SHARD.as_ref(), plan, MICRO_BATCHES, 4).expect("valid");
            let parts: Vec<_> = (0..4).filter(|part| of_part[*part] == member).map(|part| (part, turns)).collect();
            let batches = feed.batches();
            Stages::new(pipeline, &parts, plan, batches, (member == 0).then_some(feed), Some(&encoding()))
                .expect("valid")
        });
        let mut all = Self { members: members.collect(), of_part, links: BTreeMap::new(), losses: Vec::new() };
        let base = pipeline.initial(1);
        for part in 0..4 {
            let parcels = all.members[0].begin(&base, &mut |_| Vec::new(), part).expect("the lengths agree");
            all.send(parcels);
        }
        all
    }

    fn send(&mut self, parcels: Vec<(Address, Parcel)>) {
        for (Address { from, to }, parcel) in parcels {
            self.links.entry((from, to)).or_default().push_back(parcel);
        }
    }

    fn is_through(&self) -> bool {
        self.members.iter().all(Stages::is_through)
    }

    /// Lets a member work or a link carry a parcel, whichever `draw` says. A refusal is an error.
    fn step(&mut self, draw: &mut SplitMix64) -> Result<(), PipelineError> {
        let choices = (self.members.len() + self.links.len()) as u64;
        let choice = usize::try_from(draw.next_u64() % choices).expect("few");
        if choice < self.members.len() {
            let parcels = self.members[choice].work()?;
            self.send(parcels.unwrap_or_default());
        } else if let Some((&(from, to), link)) = self.links.iter_mut().nth(choice - self.members.len())
            && let Some(parcel) = link.pop_front()
        {
            self.members[self.of_part[to]].deliver(Address { from, to }, parcel)?;
        }
        self.losses.extend(self.members[0].loss());
        Ok(())
    }

    fn end(self) -> (Option<Contribution>, Vec<f64>) {
        let mut owner = self.members.into_iter().next().expect("the owner");
        (owner.contribution(), self.losses)
    }
}

/// One process has the end of a round.
fn expected(plan: &TrainSpec, schedule: Schedule) -> Option<Contribution> {
    let base = PIPELINE.initial(1);
    let go_on = &mut |_: StepReport| ControlFlow::Continue(());
    let end = PIPELINE.train(&base, plan, (schedule, MICRO_BATCHES), 4, SHARD.as_ref(), go_on).expect("trains").end;
    PIPELINE.contribution([&base, &end], &[], &encoding()).ok()
}

/// Sizes that parcels really have, and others.
fn size() -> impl Strategy<Value = usize> {
    let own = PIPELINE.cut.stages.iter().map(|stage| stage.params());
    let outputs = PIPELINE.cut.stages.iter().flat_map(|stage| [1, 3].map(|examples| stage.output_shape(examples)));
    let sizes: Vec<usize> =
        own.chain(outputs.map(|[rows, columns]| rows * columns)).chain([3, 9, 512, 0, 1, 2_000]).collect();
    prop::sample::select(sizes)
}

fn shape() -> impl Strategy<Value = [usize; 2]> {
    let extent = || prop::sample::select(vec![0, 1, 2, 3, 9, 256, usize::MAX]);
    [extent(), extent()]
}

/// What a layer of the model, which is a part here, may come to.
fn layer_of(part: usize) -> LayerContent {
    let architecture = &PIPELINE.architecture;
    let place = content::places(&architecture.whole.layers, &architecture.manifest).swap_remove(part);
    let payload =
        codec::encoder(encoding().codec).encode(&place.manifest, &vec![0.0; place.range.len()]).expect("finite");
    LayerContent { layer: place.layer, payload, left_out: Vec::new(), figures: LayerFigures::default() }
}

/// What nobody would send, and what somebody might.
fn parcel() -> impl Strategy<Value = Parcel> {
    let values = || (size(), any::<u32>()).prop_map(|(size, bits)| vec![f32::from_bits(bits); size]);
    let some_or_none = |values: Vec<f32>, is_some: bool| if is_some { values } else { Vec::new() };
    prop_oneof![
        (values(), values(), any::<bool>()).prop_map(move |(own, tied, is_tied)| {
            let held = some_or_none(own.clone(), !is_tied);
            Parcel::Weights { own, tied: some_or_none(tied, is_tied), held }
        }),
        (values(), shape()).prop_map(|(values, shape)| Parcel::Activations { values, shape }),
        (shape(), any::<u32>()).prop_map(|(shape, bits)| {
            let size = shape[0].saturating_mul(shape[1]).min(10_000);
            Parcel::Activations { values: vec![f32::from_bits(bits); size], shape }
        }),
        (values(), shape()).prop_map(|(values, shape)| Parcel::Gradient { values, shape }),
        (size(), 0u32..300).prop_map(|(size, label)| Parcel::Labels(vec![label; size])),
        any::<u64>().prop_map(|bits| Parcel::Loss(f64::from_bits(bits))),
        values().prop_map(Parcel::TiedSum),
        (values(), values(), any::<bool>(), 0u32..5).prop_map(move |(values, moved, has_moved, version)| {
            Parcel::Tied { version, values, moved: some_or_none(moved, has_moved) }
        }),
        (values(), 0u32..5, prop::collection::vec(any::<u8>(), 0..40), any::<f64>()).prop_map(
            |(left_out, layer, payload, figure)| {
                let figures = LayerFigures { base_dot: figure, delta_square: figure, left_out_square: 1.0 };
                Parcel::Layer(LayerContent { layer, payload, left_out, figures })
            }
        ),
    ]
}

fn address() -> impl Strategy<Value = Address> {
    let part = || prop_oneof![9 => 0usize..5, 1 => Just(usize::MAX)];
    (part(), part()).prop_map(|(from, to)| Address { from, to })
}

/// What is right but for its values, and perhaps for its time.
fn fitting() -> impl Strategy<Value = (Address, Parcel)> {
    let address = |from, to| Address { from, to };
    (0usize..8, 0usize..4, any::<u32>(), 1u32..3, any::<bool>()).prop_map(move |(kind, part, bits, version, short)| {
        let values = |count: usize| vec![f32::from_bits(bits); count];
        let (examples, stage) = (if short { 1 } else { 3 }, &PIPELINE.cut.stages[part]);
        let shape = stage.output_shape(examples);
        match kind {
            0 => {
                let tied = values(stage.borrowed().map_or(0, Range::len));
                let held = values(if short { 0 } else { stage.params() });
                (address(0, part), Parcel::Weights { own: values(stage.params()), tied, held })
            }
            1 => (address(part, part + 1), Parcel::Activations { values: values(shape[0] * shape[1]), shape }),
            2 => (address(part + 1, part), Parcel::Gradient { values: values(shape[0] * shape[1]), shape }),
            3 => (address(0, 3), Parcel::Labels(vec![bits % 256; 3 * examples])),
            4 => (address(3, 0), Parcel::TiedSum(values(512))),
            5 => {
                (address(0, 3), Parcel::Tied { version, values: values(512), moved: values(512 * usize::from(short)) })
            }
            6 => (address(3, 0), Parcel::Loss(f64::from(f32::from_bits(bits)))),
            _ => (address(part, 0), Parcel::Layer(layer_of(part))),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Weights may come after activations, labels before or after them: no order of arrival changes a bit.
    #[test]
    fn the_order_of_arrival_changes_no_bit(seed: u64, kind in 0usize..6, travel: bool) {
        let (plan, of_part) = (rounds_plan(), if travel { TRAVEL } else { MEMBERS });
        let (mut all, mut draw) = (Links::new(&plan, SCHEDULES[kind], of_part), SplitMix64::new(seed));
        let mut steps = 0;
        while !all.is_through() {
            prop_assert_eq!(all.step(&mut draw), Ok(()));
            steps += 1;
            prop_assert!(steps < 100_000, "it stalls: {:?}", all.members.iter().map(Stages::waiting).collect::<Vec<_>>());
        }
        prop_assert!((0..4).all(|part| !all.members[0].expects(part)));
        let (end, losses) = all.end();
        prop_assert_eq!(losses.len(), 3);
        prop_assert!(end == expected(&plan, SCHEDULES[kind]));
    }

    /// What a part refuses leaves it as it was. What it takes in place of the right thing is bounded by the order, and is at worst
    /// a wrong result or an error of the right thing.
    #[test]
    fn hostile_parcels_are_errors_and_never_panics(
        seed: u64,
        kind in 0usize..6,
        travel: bool,
        hostile in prop::collection::vec((0u64..300, prop_oneof![(address(), parcel()), fitting()]), 1..60),
        astray in 0usize..20,
    ) {
        let (plan, of_part) = (rounds_plan(), if travel { TRAVEL } else { MEMBERS });
        let (mut all, mut draw) = (Links::new(&plan, SCHEDULES[kind], of_part), SplitMix64::new(seed));
        let (mut was_taken, mut steps) = (false, 0u64);
        let most = usize::try_from(MICRO_BATCHES * 3).expect("few").max(4) + 1;
        while !all.is_through() && steps < 20_000 {
            for (_, (address, parcel)) in hostile.iter().filter(|(at, _)| *at == steps) {
                // Some are for a part of another member.
                let member = of_part.get(address.to).copied().unwrap_or(astray).min(astray) % all.members.len();
                was_taken |= all.members[member].deliver(*address, parcel.clone()).is_ok();
            }
            if all.step(&mut draw).is_err() {
                prop_assert!(was_taken, "a right parcel was refused");
                return Ok(());
            }
            let queued: Vec<_> = all.members.iter().flat_map(Stages::queued).collect();
            prop_assert!(queued.iter().flatten().all(|queued| *queued <= most), "{queued:?}");
            steps += 1;
        }
        if !was_taken {
            prop_assert!(all.end().0 == expected(&plan, SCHEDULES[kind]));
        }
    }
}

/// A peer that floods finds a bound at once, whatever it sends, and however little is done.
#[test]
fn a_flood_of_right_parcels_ends_at_what_the_order_has_in_flight() {
    let plan = plan(1_000, 9, &SGD);
    for (schedule, in_flight) in SCHEDULES.into_iter().zip([1, 3, 4, 4, 4, 4]) {
        let mut all = Links::new(&plan, schedule, TRAVEL);
        let taken = |stages: &mut Stages<'_>, from: usize, to: usize, parcel: &Parcel| {
            (0..200).take_while(|_| stages.deliver(Address { from, to }, parcel.clone()).is_ok()).count()
        };
        let rows = Parcel::Activations { values: vec![0.0; 18], shape: [9, 2] };
        assert_eq!(taken(&mut all.members[1], 0, 1, &rows), in_flight);
        assert_eq!(taken(&mut all.members[3], 0, 3, &Parcel::Labels(vec![0; 9])), in_flight);
        assert_eq!(taken(&mut all.members[1], 2, 1, &Parcel::Gradient { values: vec![0.0; 18], shape: [9, 2] }), 0);
        assert_eq!(taken(&mut all.members[0], 3, 0, &Parcel::TiedSum(vec![0.0; 512])), 0);
        assert_eq!(taken(&mut all.members[0], 3, 0, &Parcel::Loss(1.0)), 0);
        let tied = Parcel::Tied { version: 1, values: vec![0.0; 512], moved: Vec::new() };
        assert_eq!(taken(&mut all.members[3], 0, 3, &tied), 0);
        assert_eq!(taken(&mut all.members[0], 2, 0, &Parcel::Layer(layer_of(2))), 1);
        let own = vec![0.0; PIPELINE.cut.stages[1].params()];
        let weights = Parcel::Weights { own, tied: Vec::new(), held: Vec::new() };
        assert_eq!(taken(&mut all.members[1], 0, 1, &weights), 1);
    }
}
