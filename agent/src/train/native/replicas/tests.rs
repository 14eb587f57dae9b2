//! Members of a ring have one machine's model after a step of the joined batch, the same bits each, and name the member that fails
//! them.

use std::thread;

use anabranch_common::ids::LeaseId;
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodPart};
use anabranch_common::spec::ModelKind;
use anabranch_testkit::lease::PLAN;

use super::*;
use crate::pod::{Parcel, WireError};
use crate::shard::draw::{Draw, Purpose};
use crate::shard::{Examples, Inputs, Text};
use crate::train::NativeOptions;
use crate::train::native::Native;
use crate::train::native::architecture::Architecture;
use crate::train::native::pipeline::tests::hub::{Conduct, Hub, agent};
use crate::train::native::pipeline::tests::{ADAMW, SGD, cnn, gpt, mlp, plan};
use crate::train::optimizer::Optimizer;

const SEED: u64 = 4;
/// Several stages also of small models.
const SMALL: StageSize = StageSize(1);

/// Examples, of text windows, that each member has.
const EACH: usize = 40;

/// Noise that the model takes, for so many members: each one's, and all of it.
fn shards(spec: &ModelSpec, members: usize) -> (Vec<Box<dyn Shard>>, Box<dyn Shard>) {
    let mut draw = Draw::new(3, Purpose::Split);
    let mut byte = || u8::try_from(draw.below(256)).expect("a byte");
    if spec.kind == ModelKind::Gpt {
        let each = EACH * to_usize(spec.context);
        let all: Vec<u8> = (0..=members * each).map(|_| byte()).collect();
        let text = |bytes: &[u8]| Box::new(Text::new(bytes.to_vec()).expect("long enough")) as Box<dyn Shard>;
        let parts = (0..members).map(|member| text(&all[member * each..=(member + 1) * each])).collect();
        return (parts, text(&all));
    }
    let values = usize::try_from(spec.input.iter().product::<u64>()).expect("small");
    let labels: Vec<u32> = (0..members * EACH).map(|_| u32::from(byte()) % 3).collect();
    let inputs: Vec<u8> = (0..members * EACH * values).map(|_| byte()).collect();
    let part = |from: usize, to: usize| {
        let inputs = Inputs::Bytes(inputs[from * values..to * values].to_vec());
        let examples = Examples::new(inputs, labels[from..to].to_vec(), spec.input.clone());
        Box::new(examples.expect("the lengths agree")) as Box<dyn Shard>
    };
    let parts = (0..members).map(|member| part(member * EACH, (member + 1) * EACH)).collect();
    (parts, part(0, members * EACH))
}

fn round(members: usize) -> PodRound {
    let parts = (0..members).map(|member| PodPart { end: 1, agent: agent(member) }).collect();
    let mark = PodMark { lease: LeaseId(1), attempt: 1 };
    PodRound { mark, owner: agent(0), parts, peers: Vec::new(), plan: PLAN, spec: Digest([0; 32]) }
}

fn memory() -> ReplicaMemory {
    ReplicaMemory::of_process(None)
}

/// A round to compute.
#[derive(Clone, Copy)]
struct Case<'a> {
    spec: &'a ModelSpec,
    plan: &'a TrainSpec,
    members: usize,
    size: StageSize,
    /// The last step.
    until: u32,
}

impl<'a> Case<'a> {
    fn new(spec: &'a ModelSpec, plan: &'a TrainSpec, members: usize) -> Self {
        Self { spec, plan, members, size: SMALL, until: u32::MAX }
    }

    fn base(&self) -> Vec<f32> {
        Architecture::new(self.spec).expect("valid").initial(1)
    }
}

/// What the members of a ring came to, each on a thread of its own.
struct Ended {
    owner: Result<Trained, PipelineError>,
    helpers: Vec<Result<(), PipelineError>>,
}

fn run(case: Case<'_>, silent: &[usize], mut conduct: impl FnMut(usize) -> Conduct) -> Ended {
    let Case { spec, plan, members, size, until } = case;
    let (round, (shards, _), base) = (round(members), shards(spec, members), case.base());
    let hub = Hub::new((0..members).collect(), silent);
    let task = |member: usize| ReplicaTask {
        model: spec,
        plan,
        round: &round,
        me: agent(member),
        shard: shards[member].as_ref(),
        threads: 1,
    };
    // All wires are there before a member leaves.
    let wires = (0..members).filter(|member| !silent.contains(member));
    let mut wires: Vec<_> = wires.map(|member| (member, hub.wire(member, conduct(member)))).collect();
    let (_, mut owners) = wires.remove(0);
    thread::scope(|scope| {
        let task = &task;
        let helpers: Vec<_> = wires
            .into_iter()
            .map(|(member, mut wire)| {
                scope.spawn(move || Replica::new(&task(member), &mut memory(), size)?.serve(&mut wire))
            })
            .collect();
        let mut watch = |report: StepReport, _: &[f32]| {
            if report.step == until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let task = task(0);
        let owner = Replica::new(&task, &mut memory(), size)
            .and_then(|replica| replica.train_owned(&base, SEED, &mut owners, &mut watch));
        drop(owners);
        Ended { owner, helpers: helpers.into_iter().map(|helper| helper.join().expect("no panic")).collect() }
    })
}

/// The end of a round of which every helper has the owner's model.
fn trained(case: Case<'_>) -> Trained {
    let Ended { owner, helpers } = run(case, &[], |_| Conduct::Honest);
    assert!(helpers.iter().all(Result::is_ok), "{helpers:?}");
    owner.expect("trained")
}

/// One machine that computes the joined batches: the model, and the losses.
fn on_one_machine(case: Case<'_>) -> Trained {
    let Case { spec, plan, members, .. } = case;
    let options = NativeOptions { threads: Some(1), ..NativeOptions::default() };
    let native = Native::new(spec, options).expect("valid");
    let (_, shard) = shards(spec, members);
    let (count, labels_each) = native.extent(shard.as_ref());
    assert_eq!(count, members * EACH);
    let mut draws: Vec<Draw> =
        (0..members).map(|place| Draw::new(member_seed(SEED, place), Purpose::Batches)).collect();
    let (base, mut end) = (case.base(), case.base());
    let mut optimizer = Optimizer::new(&plan.optimizer, base.len()).expect("valid");
    let (mut sums, mut losses) = (super::super::Sums::default(), Vec::new());
    for _ in 0..plan.local_steps {
        let of_member = |(member, draw): (usize, &mut Draw)| {
            (0..plan.batch_size).map(|_| member * EACH + draw.below(EACH)).collect::<Vec<_>>()
        };
        let batch: Vec<usize> = draws.iter_mut().enumerate().flat_map(of_member).collect();
        let loss = native.backward(&end, shard.as_ref(), &batch, batch.len(), &mut sums);
        #[expect(clippy::cast_possible_truncation, reason = "losses are told as f32")]
        losses.push((loss / (batch.len() * labels_each) as f64) as f32);
        super::super::pull_back(plan.proximal_mu, &mut sums.gradient, &end, &base);
        optimizer.step(&mut end, &sums.gradient);
    }
    Trained { end, losses, stopped: false }
}

/// How far a model is from another one, of the way that was trained.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let mut apart = found.iter().zip(expected).map(|(found, expected)| f64::from(found - expected));
    norm(&mut apart) / norm(&mut expected.iter().copied().map(f64::from))
}

/// Issue 19, 4: "equal to one machine with the joined batch to 1e-6 (relative, after one step)".
#[test]
fn a_step_is_that_of_one_machine_with_the_joined_batch() {
    for spec in [mlp(&[20, 16, 12]), cnn(), gpt()] {
        for optimizer in [&SGD, &ADAMW] {
            let plan = plan(1, 7, optimizer);
            for members in [1, 2, 3, 5] {
                let case = Case::new(&spec, &plan, members);
                let (found, expected) = (trained(case), on_one_machine(case));
                let apart = distance(&found.end, &expected.end);
                assert!(apart <= 1e-6, "{:?} {optimizer:?}, {members} members: {apart:e}", spec.kind);
                let [loss, expected] = [found.losses[0], expected.losses[0]];
                assert!((loss - expected).abs() <= 1e-6 * expected, "{loss} and {expected}");
            }
        }
    }
}

#[test]
fn several_steps_stay_near_to_those_of_one_machine_and_have_the_same_bits_every_time() {
    for spec in [mlp(&[20, 16, 12]), gpt()] {
        let plan = plan(6, 8, &SGD);
        let case = Case::new(&spec, &plan, 3);
        let (found, expected) = (trained(case), on_one_machine(case));
        assert!(distance(&found.end, &expected.end) <= 1e-5);
        assert!(found.losses.iter().zip(&expected.losses).all(|(loss, expected)| (loss - expected).abs() < 1e-4));
        assert!(trained(case) == found, "the same round gives other bits");
    }
}

/// How a model is cut into stages of a process changes what is summed when, and no sum.
#[test]
fn stages_of_a_replica_change_no_bit() {
    for spec in [mlp(&[20, 16, 12]), cnn(), gpt()] {
        let plan = plan(3, 6, &ADAMW);
        let staged = Case::new(&spec, &plan, 3);
        let whole = Case { size: StageSize(usize::MAX / 2), ..staged };
        let stages = |case: Case<'_>| Staged::new(&spec, case.size, 1).expect("valid").stages();
        assert!(stages(staged) > 1 && stages(whole) == 1);
        // Groups of a vector are others, and so is the order in which members are added.
        assert!(distance(&trained(staged).end, &trained(whole).end) <= 1e-6, "{:?}", spec.kind);
        let alone = Case { members: 1, ..staged };
        assert!(trained(alone) == trained(Case { members: 1, ..whole }), "{:?}", spec.kind);
    }
}

/// Asserts that an error names a member, and returns why.
fn reason<T: std::fmt::Debug>(result: Result<T, PipelineError>, member: usize) -> String {
    match result {
        Err(PipelineError::Wire(WireError::Member { agent: named, reason })) if named == agent(member) => reason,
        other => panic!("expected member {member} to be named, found {other:?}"),
    }
}

#[test]
fn a_member_that_leaves_ends_the_round_of_all() {
    let (spec, plan) = (mlp(&[20, 16, 12]), plan(2, 8, &SGD));
    let case = Case::new(&spec, &plan, 3);
    for leaver in 1..3 {
        let mut left = 0;
        for after in 0.. {
            let conduct = |member| if member == leaver { Conduct::Leaves(after) } else { Conduct::Honest };
            let Ended { owner, helpers } = run(case, &[], conduct);
            if owner.is_ok() {
                assert!(helpers.iter().all(Result::is_ok), "{helpers:?}");
                break;
            }
            assert_eq!(helpers[leaver - 1], Err(WireError::Over.into()));
            // A neighbour that has given up may be heard of before.
            assert!(matches!(owner, Err(PipelineError::Wire(WireError::Member { .. }))), "{owner:?}");
            left += 1;
        }
        assert!(left > 10, "member {leaver} sends {left} parcels");
    }
}

#[test]
fn a_member_that_gives_no_sign_of_life_is_named() {
    let (spec, plan) = (mlp(&[20, 16, 12]), plan(2, 8, &SGD));
    for silent in 1..3 {
        let Ended { owner, helpers } = run(Case::new(&spec, &plan, 3), &[silent], |_| Conduct::Honest);
        assert_eq!(reason(owner, silent), "it is gone");
        assert!(helpers.len() == 1 && helpers[0].is_err(), "{helpers:?}");
    }
}

/// What each other member says of one that changes what it sends.
fn tampered(sender: usize, tamper: fn(&mut Parcel)) -> Vec<Result<(), PipelineError>> {
    let (spec, plan) = (mlp(&[20, 16, 12]), plan(1, 8, &SGD));
    let conduct = |member| if member == sender { Conduct::Tampers(tamper) } else { Conduct::Honest };
    let Ended { owner, helpers } = run(Case::new(&spec, &plan, 3), &[], conduct);
    [owner.map(|_| ())].into_iter().chain(helpers).collect()
}

#[test]
fn a_parcel_that_the_receiver_has_no_use_for_names_its_sender() {
    let told = |sender: usize, receiver: usize, tamper| {
        let mut results = tampered(sender, tamper);
        reason(results.swap_remove(receiver), sender)
    };
    let text = told(1, 2, |parcel| {
        if let Parcel::Chunk { values, .. } = parcel {
            values.push(0.0);
        }
    });
    assert!(text.contains("values of a gradient's chunk, expected"), "{text}");
    let text = told(2, 0, |parcel| {
        if let Parcel::Chunk { values, .. } = parcel {
            values.clear();
        }
    });
    assert!(text.starts_with("0 values of a gradient's chunk, expected"), "{text}");
    let text = told(1, 2, |parcel| {
        if let Parcel::Chunk { number, .. } = parcel {
            *number += 1;
        }
    });
    assert_eq!(text, "a gradient's chunk arrived out of turn");
    let text = told(0, 1, |parcel| {
        if let Parcel::Base { values, .. } = parcel {
            values.pop();
        }
    });
    assert!(text.contains("values of a model's chunk, expected"), "{text}");
    let text = told(1, 2, |parcel| {
        if let Parcel::Chunk { values, .. } = parcel {
            *parcel = Parcel::Base { seed: SEED, values: std::mem::take(values) };
        }
    });
    assert_eq!(text, "a model arrived out of turn");
    let text = told(1, 2, |parcel| {
        if let Parcel::Chunk { .. } = parcel {
            *parcel = Parcel::Loss(1.0);
        }
    });
    assert_eq!(text, "a loss from part 1 for part 2");
}

#[test]
fn a_member_that_passes_on_other_sums_is_seen_at_the_end() {
    let mut results = tampered(1, |parcel| {
        if let Parcel::Ended(digest) = parcel {
            digest.0[0] ^= 1;
        }
    });
    assert!(reason(results.swap_remove(0), 1).contains("ended the round with another model than its owner"));
    // What it adds to a chunk on its way reaches some of the others only.
    let results = tampered(1, |parcel| {
        if let Parcel::Chunk { values, .. } = parcel {
            values[0] += 1.0;
        }
    });
    assert!(matches!(results[0], Err(PipelineError::Wire(WireError::Member { .. }))), "{:?}", results[0]);
}

/// A NaN is what training can come to: no member is blamed for it, and all end.
#[test]
fn values_that_are_not_finite_are_a_diverged_round_at_every_member() {
    let results = tampered(1, |parcel| {
        if let Parcel::Chunk { values, .. } = parcel {
            values.fill(f32::NAN);
        }
    });
    assert_eq!(results[0], Err(TrainError::Diverged { step: 1 }.into()));
    // The owner may be gone before the last one has its sums.
    let is_of_owner = |error: &WireError| matches!(error, WireError::Member { agent: named, .. } if *named == agent(0));
    match &results[2] {
        Err(PipelineError::Wire(error)) => assert!(is_of_owner(error), "{error}"),
        other => assert_eq!(*other, Err(TrainError::Diverged { step: 1 }.into())),
    }
}

#[test]
fn an_owner_that_stops_has_the_losses_so_far_and_its_helpers_end() {
    let (spec, plan) = (mlp(&[20, 16, 12]), plan(6, 8, &SGD));
    let case = Case { until: 2, ..Case::new(&spec, &plan, 3) };
    let Ended { owner, helpers } = run(case, &[], |_| Conduct::Honest);
    let stopped = owner.expect("no error");
    assert_eq!((stopped.losses.len(), stopped.stopped, stopped.end), (2, true, Vec::new()));
    assert!(helpers.iter().all(Result::is_err), "{helpers:?}");
}

#[test]
fn micro_batches_of_a_member_change_the_last_bits_only() {
    let (spec, plan) = (gpt(), plan(2, 8, &SGD));
    let staged = Staged::new(&spec, SMALL, 1).expect("valid");
    let (shards, _) = shards(&spec, 1);
    let (round, base) = (round(1), Case::new(&spec, &plan, 1).base());
    let hub = Hub::new(vec![0], &[]);
    let at_most = |micro_batch: usize| {
        let shard = shards[0].as_ref();
        let task = ReplicaTask { model: &spec, plan: &plan, round: &round, me: agent(0), shard, threads: 1 };
        let steps = Steps { staged: &staged, task: &task, members: 1, micro_batch };
        let (members, mut wire) = ([agent(0)], hub.wire(0, Conduct::Honest));
        let mut exchange = Exchange::new(&mut wire, &members, 0, base.len());
        steps.train(&base, SEED, &mut exchange, &mut |_, _| ControlFlow::Continue(())).expect("trains")
    };
    let (whole, cut) = (at_most(8), at_most(3));
    assert!(distance(&cut.end, &whole.end) <= 1e-6);
    assert!(whole.losses.iter().zip(&cut.losses).all(|(whole, cut)| (whole - cut).abs() < 1e-5));
}

/// What a simulated line is told of a step in advance is what members send and receive in it.
#[test]
fn the_traffic_of_a_step_is_known_in_advance() {
    // Three stages: 144 * 2400 values and more each.
    let (spec, plan, members) = (mlp(&[2_400, 512, 600]), plan(2, 2, &SGD), 3);
    let case = Case { size: StageSize::default(), ..Case::new(&spec, &plan, members) };
    let (round, (shards, _), base) = (round(members), shards(&spec, members), case.base());
    let hub = Hub::new((0..members).collect(), &[]);
    let found: Vec<Vec<Sum>> = (0..members).map(|place| sums(&spec, place, members).expect("valid")).collect();
    assert_eq!(found[0].iter().map(|sum| sum.layers.clone()).collect::<Vec<_>>(), [2..4, 1..2, 0..1]);
    thread::scope(|scope| {
        for (member, shard) in shards.iter().enumerate() {
            let mut wire = hub.wire(member, Conduct::Honest);
            let (round, base, spec, plan, shard) = (&round, &base, &spec, &plan, shard.as_ref());
            scope.spawn(move || {
                let task = ReplicaTask { model: spec, plan, round, me: agent(member), shard, threads: 1 };
                match member {
                    0 => train_owned(&task, &mut memory(), base, SEED, &mut wire, &mut |_| ControlFlow::Continue(()))
                        .map(drop),
                    _ => serve(&task, &mut memory(), &mut wire),
                }
                .expect("trains");
            });
        }
    });
    let carried = hub.carried();
    for (member, sums) in found.iter().enumerate() {
        let to = |to: usize| {
            let chunks = carried.iter().filter(move |(receiver, _)| *receiver == to);
            chunks.map(|(_, parcel)| if let Parcel::Chunk { values, .. } = parcel { values.len() } else { 0 }).sum()
        };
        let steps = plan.local_steps as usize;
        let foreseen = |of: fn(&Sum) -> usize| steps * sums.iter().map(of).sum::<usize>();
        let (sent, received): (usize, usize) = (to((member + 1) % members), to(member));
        assert_eq!((sent, received), (foreseen(|sum| sum.sends), foreseen(|sum| sum.receives)), "member {member}");
    }
}

/// The model to start from goes along the ring in parts.
#[test]
fn a_large_model_reaches_every_member() {
    // 144 * 2000 weights and more: five parts of the base, and sums of several chunks.
    let (spec, plan) = (mlp(&[2_000]), plan(1, 2, &SGD));
    let case = Case { size: StageSize::default(), ..Case::new(&spec, &plan, 3) };
    assert!(case.base().len() > 4 * limits::REPLICA_CHUNK_VALUES);
    assert!(distance(&trained(case).end, &on_one_machine(case).end) <= 1e-6);
}

#[test]
fn what_cannot_be_computed_is_refused_before_anything_is_sent() {
    let (spec, plan) = (mlp(&[20]), plan(1, 2, &SGD));
    let (round, (shards, _)) = (round(2), shards(&spec, 2));
    let task = |me| ReplicaTask {
        model: &spec,
        plan: &plan,
        round: &round,
        me: agent(me),
        shard: shards[0].as_ref(),
        threads: 1,
    };
    let hub = Hub::new(vec![0, 1], &[]);
    let mut wire = hub.wire(0, Conduct::Leaves(0));
    let owner = PipelineError::Round("the first member of a ring is the owner of the round");
    assert_eq!(serve(&task(0), &mut memory(), &mut wire), Err(owner.clone()));
    let mut owned = |task: &ReplicaTask<'_>, base: &[f32], memory: &mut ReplicaMemory| {
        train_owned(task, memory, base, SEED, &mut wire, &mut |_| ControlFlow::Continue(())).expect_err("refused")
    };
    let base = Case::new(&spec, &plan, 2).base();
    assert_eq!(owned(&task(1), &base, &mut memory()), owner);
    let none = PipelineError::Round("no replica of the model is computed here");
    assert_eq!(owned(&task(7), &base, &mut memory()), none);
    let (expected, found) = (base.len(), 1);
    assert_eq!(owned(&task(0), &[0.0], &mut memory()), TrainError::Length { expected, found }.into());
    let small = owned(&task(0), &base, &mut ReplicaMemory::of_process(Some(1)));
    assert!(matches!(small, PipelineError::Train(TrainError::Memory { budget_bytes: 1, .. })), "{small}");
}
