//! Members of a pod have the bits of one process, and name the member that fails them.

use std::thread;

use anabranch_common::codec::{self, CodecSpec, segments};
use anabranch_common::ids::{Digest, LeaseId};
use anabranch_common::pod::{PodMark, PodPart, PodRound};
use anabranch_common::spec::{Activations, Labels, ScheduleKind, StageCount, StagesSpec, TensorCodec, TensorPolicy};
use anabranch_testkit::lease::PLAN;

use super::hub::{Conduct, Hub, agent};
use super::*;
use crate::pod::{LayerContent, Parcel, WireError};

/// A fifth of each layer's weights, and its biases as they are, with what was left out before.
fn encoding() -> Encoding {
    let policy = TensorPolicy::new(vec![TensorCodec { tensors: "*bias".into(), codec: CodecSpec::F32 }]);
    Encoding { codec: CodecSpec::top_k(0.2), policy, held: Held::LeftOut { decay: 0.9 }, base_dot: true }
}

/// What was left out before.
fn held(range: Range<usize>) -> Vec<f32> {
    range.map(|index| (index % 7) as f32 * 1e-3).collect()
}

/// A pod of so many members.
fn pod(members: usize, labels: Labels) -> StagesSpec {
    StagesSpec {
        stages: StageCount::Exactly(u32::try_from(members).expect("few")),
        schedule: ScheduleKind::Flush,
        weights: None,
        micro_batches: Some(4),
        activations: Activations::F32,
        labels,
        deadline_s: 10.0,
    }
}

fn members(pod: &StagesSpec) -> usize {
    let StageCount::Exactly(members) = pod.stages else { panic!("a number of members") };
    members as usize
}

/// A cut into as many parts as the pod has, as even as it goes.
fn even(spec: &ModelSpec, pod: &StagesSpec) -> Vec<usize> {
    let (layers, parts) = (Pipeline::layers(spec).expect("valid"), pod.parts().expect("a number of members") as usize);
    assert!(layers >= parts, "{layers} layers for {parts} parts");
    (1..=parts).map(|part| layers * part / parts).collect()
}

/// Member 0 is the owner. Where labels stay it has the last part too.
fn round(pod: &StagesSpec, ends: &[usize]) -> (PodRound, Vec<usize>) {
    let members: Vec<usize> = (0..ends.len()).map(|part| part % members(pod)).collect();
    let end = |end: usize| u32::try_from(end).expect("few");
    let parts = ends.iter().zip(&members).map(|(at, member)| PodPart { end: end(*at), agent: agent(*member) });
    let (mark, parts) = (PodMark { lease: LeaseId(1), attempt: 1 }, parts.collect());
    (PodRound { mark, owner: agent(0), parts, peers: Vec::new(), plan: PLAN, spec: Digest([0; 32]) }, members)
}

/// What the members of a pod came to, each on a thread of its own.
struct Ended {
    owner: Result<Owned, PipelineError>,
    helpers: Vec<Result<(), PipelineError>>,
    /// What the parts of those that are through came to.
    kept: Vec<(u32, Vec<u8>)>,
    /// What went from member to member, with whom it was for.
    carried: Vec<(usize, Parcel)>,
}

impl Ended {
    /// The end of the round, of which every helper is through.
    fn trained(self) -> Owned {
        assert!(self.helpers.iter().all(Result::is_ok), "{:?}", self.helpers);
        self.owner.expect("trained")
    }
}

/// Runs a round whose members behave as they are told, of which `silent` ones do nothing. `until` is the last step.
fn run_pod(
    (spec, plan, pod): (&ModelSpec, &TrainSpec, &StagesSpec),
    silent: &[usize],
    mut conduct: impl FnMut(usize) -> Conduct,
    until: u32,
) -> Ended {
    let (round, members) = round(pod, &even(spec, pod));
    let hub = Hub::new(members, silent);
    let task = |member| PodTask {
        model: spec,
        plan,
        pod,
        round: &round,
        encoding: encoding(),
        me: agent(member),
        threads: 1,
        modules: None,
    };
    let base = Pipeline::new(spec, &round.ends(), 1).expect("valid").initial(1);
    // All wires are there before a member leaves.
    let mut wires: Vec<_> = (0..self::members(pod))
        .filter(|member| !silent.contains(member))
        .map(|member| (member, hub.wire(member, conduct(member))))
        .collect();
    let (_, mut owners) = wires.remove(0);
    thread::scope(|scope| {
        let task = &task;
        let helpers: Vec<_> =
            wires.into_iter().map(|(member, mut wire)| scope.spawn(move || serve(&task(member), &mut wire))).collect();
        let shard = shard(spec);
        let mut control = |report: StepReport| {
            if report.step == until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let owner = train_owned(&task(0), (&base, &mut held), 4, shard.as_ref(), &mut owners, &mut control);
        drop(owners);
        let mut kept = Vec::new();
        let ended = helpers.into_iter().map(|helper| helper.join().expect("no panic").map(|parts| kept.extend(parts)));
        let helpers = ended.collect();
        Ended { owner, helpers, kept, carried: hub.carried() }
    })
}

fn honest(case: (&ModelSpec, &TrainSpec, &StagesSpec)) -> Owned {
    run_pod(case, &[], |_| Conduct::Honest, u32::MAX).trained()
}

/// What a round comes to whose owner computes all of it.
fn sent(spec: &ModelSpec, trained: Trained) -> Owned {
    let all = Pipeline::new(spec, &[Pipeline::layers(spec).expect("valid")], 1).expect("valid");
    let base = all.initial(1);
    let contribution = all.contribution([&base, &trained.end], &held(0..base.len()), &encoding());
    Owned { contribution: contribution.ok(), losses: trained.losses }
}

/// The same as trained weights, in one process.
fn in_process(spec: &ModelSpec, plan: &TrainSpec, pod: &StagesSpec) -> Trained {
    let pipeline = Pipeline::new(spec, &even(spec, pod), 1).expect("valid").with_activations(pod.activations);
    let (base, turns) = (pipeline.initial(1), (pod.schedule(), pod.micro_batches()));
    pipeline.train(&base, plan, turns, 4, shard(spec).as_ref(), &mut |_| ControlFlow::Continue(())).expect("trains")
}

fn deep() -> ModelSpec {
    mlp(&[20, 16, 12, 10])
}

/// pods.md, "What is measured", 1, over links: 3, 3, 3 and 1 of 10 examples.
#[test]
fn pods_that_flush_have_the_bits_of_one_machine() {
    for spec in [deep(), cnn(), gpt()] {
        for optimizer in [&SGD, &ADAMW] {
            let plan = plan(3, 10, optimizer);
            let expected = sent(&spec, on_one_machine(&spec, &plan, 3));
            for members in 2..=4 {
                for labels in [Labels::Stay, Labels::Travel] {
                    let found = honest((&spec, &plan, &pod(members, labels)));
                    assert!(found == expected, "{:?} {optimizer:?}, {members} members, labels {labels:?}", spec.kind);
                }
            }
        }
    }
}

#[test]
fn pods_of_every_schedule_have_the_bits_of_one_process() {
    let weights = [Weights::Stale, Weights::Stash, Weights::TwoVersions, Weights::Predict];
    let schedules = weights.map(|weights| (ScheduleKind::Pipelined, Some(weights)));
    for spec in [deep(), gpt()] {
        for (schedule, weights) in schedules.into_iter().chain([(ScheduleKind::Sequential, None)]) {
            for labels in [Labels::Stay, Labels::Travel] {
                let (plan, pod) = (plan(5, 10, &SGD), StagesSpec { schedule, weights, ..pod(3, labels) });
                let expected = sent(&spec, in_process(&spec, &plan, &pod));
                assert!(honest((&spec, &plan, &pod)) == expected, "{:?} {weights:?} labels {labels:?}", spec.kind);
            }
        }
    }
}

#[test]
fn rounded_activations_give_the_same_bits_whoever_computes() {
    for spec in [deep(), cnn(), gpt()] {
        let plan = plan(3, 10, &SGD);
        let exact = pod(3, Labels::Stay);
        for activations in [Activations::Bf16, Activations::Int8] {
            let rounded = StagesSpec { activations, ..exact.clone() };
            let expected = in_process(&spec, &plan, &rounded);
            assert_ne!(expected.end, in_process(&spec, &plan, &exact).end, "{:?}", spec.kind);
            assert!(honest((&spec, &plan, &rounded)) == sent(&spec, expected), "{:?}", spec.kind);
        }
    }
}

/// What is sent and what is left out are what was trained and what was left out before.
#[test]
fn nothing_is_lost_between_what_is_sent_and_what_is_left_out() {
    let (spec, plan) = (gpt(), plan(3, 10, &ADAMW));
    let trained = on_one_machine(&spec, &plan, 3);
    let all = Pipeline::new(&spec, &[Pipeline::layers(&spec).expect("valid")], 1).expect("valid");
    let (base, manifest) = (all.initial(1), &all.architecture.manifest);
    let Owned { contribution, .. } = honest((&spec, &plan, &pod(3, Labels::Stay)));
    let Contribution { payload, layers: _, left_out, base_dot, residual_ratio } = contribution.expect("not stopped");
    let content = codec::decode(segments::ID, manifest, &payload).expect("valid").into_dense();
    let (mut dot, mut squares) = (0.0, [0.0; 2]);
    for (at, base) in base.iter().enumerate() {
        let delta = trained.end[at] - base;
        let all = delta + 0.9 * held(at..at + 1)[0];
        assert!((all - content[at] - left_out[at]).abs() < 1e-6, "lost at {at}");
        dot += f64::from(*base) * f64::from(content[at]);
        squares = [squares[0] + f64::from(delta).powi(2), squares[1] + f64::from(left_out[at]).powi(2)];
    }
    let ratio = (squares[1] / squares[0]).sqrt();
    assert!((base_dot.expect("asked for") - dot).abs() < 1e-9 * dot.abs());
    assert!((f64::from(residual_ratio.expect("some is left out")) - ratio).abs() < 1e-5 * ratio);
}

/// It can send that part of the update.
#[test]
fn what_a_helper_keeps_stands_in_its_owners_payload() {
    for spec in [deep(), gpt()] {
        for labels in [Labels::Stay, Labels::Travel] {
            let (plan, pod) = (plan(2, 10, &SGD), pod(3, labels));
            let ended = run_pod((&spec, &plan, &pod), &[], |_| Conduct::Honest, u32::MAX);
            let mut kept = ended.kept.clone();
            kept.sort();
            let Contribution { payload, layers, .. } = ended.trained().contribution.expect("not stopped");
            let (ends, members) = (even(&spec, &pod), round(&pod, &even(&spec, &pod)).1);
            let part_of = |layer: u32| ends.iter().position(|end| (layer as usize) < *end).expect("it is in a part");
            let mut expected: Vec<(u32, Vec<u8>)> = Vec::new();
            let layers: Vec<(u32, usize)> =
                layers.into_iter().map(|(layer, bytes)| (layer, usize::try_from(bytes).expect("few"))).collect();
            let mut at = payload.len() - layers.iter().map(|(_, bytes)| bytes).sum::<usize>();
            for (layer, bytes) in layers {
                let (part, content) = (part_of(layer), &payload[at..at + bytes]);
                at += bytes;
                let number = u32::try_from(part).expect("few");
                match expected.last_mut() {
                    _ if members[part] == 0 => {}
                    Some((before, bytes)) if *before == number => bytes.extend(content),
                    _ => expected.push((number, content.to_vec())),
                }
            }
            assert!(!expected.is_empty() && kept == expected, "{:?} labels {labels:?}", spec.kind);
        }
    }
}

/// Asserts that an error names a member, and returns why.
fn reason<T: std::fmt::Debug>(result: Result<T, PipelineError>, member: usize) -> String {
    match result {
        Err(PipelineError::Wire(WireError::Member { agent: named, reason })) if named == agent(member) => reason,
        other => panic!("expected member {member} to be named, found {other:?}"),
    }
}

/// After whatever it has sent, and also in the middle of a tied tensor's way.
#[test]
fn a_member_that_leaves_is_named_by_the_owner_and_nobody_hangs() {
    for (spec, labels) in [(deep(), Labels::Stay), (gpt(), Labels::Travel)] {
        let (plan, pod) = (plan(2, 8, &SGD), StagesSpec { micro_batches: Some(2), ..pod(3, labels) });
        for leaver in 1..3 {
            let mut left = 0;
            for after in 0.. {
                let conduct = |member| if member == leaver { Conduct::Leaves(after) } else { Conduct::Honest };
                let Ended { owner, helpers, .. } = run_pod((&spec, &plan, &pod), &[], conduct, u32::MAX);
                if owner.is_ok() {
                    assert!(helpers.iter().all(Result::is_ok));
                    break;
                }
                assert_eq!(reason(owner, leaver), "it is gone");
                assert_eq!(helpers[leaver - 1], Err(WireError::Over.into()));
                // The other one may have been through, or wait for the owner alone.
                for (helper, result) in (1..).zip(helpers).filter(|(helper, _)| *helper != leaver) {
                    match result {
                        Err(PipelineError::Wire(WireError::Member { agent: named, .. })) => {
                            assert!(named == agent(leaver) || named == agent(0), "{helper} names {named:?}");
                        }
                        other => assert_eq!(other, Ok(())),
                    }
                }
                left += 1;
            }
            assert!(left > 5, "member {leaver} sends {left} parcels");
        }
    }
}

#[test]
fn a_member_that_gives_no_sign_of_life_is_named() {
    let told = |silent: usize, members: usize, labels| {
        let (spec, plan) = (deep(), plan(2, 8, &SGD));
        run_pod((&spec, &plan, &pod(members, labels)), &[silent], |_| Conduct::Honest, u32::MAX)
    };
    for (silent, members, labels) in [(1, 2, Labels::Stay), (2, 3, Labels::Stay), (1, 3, Labels::Travel)] {
        let Ended { owner, helpers, .. } = told(silent, members, labels);
        assert_eq!(reason(owner, silent), "it is gone");
        // The other helper may hear of the owner first.
        assert_eq!(helpers.len(), members - 2);
        for helper in helpers {
            match helper {
                Err(PipelineError::Wire(WireError::Member { agent: named, .. })) => {
                    assert!(named == agent(silent) || named == agent(0), "{named:?} is named");
                }
                other => panic!("expected a member to be named, found {other:?}"),
            }
        }
    }
}

/// Changes the size of every parcel of a kind, and returns what is told of the sender.
fn tampered(spec: &ModelSpec, sender: usize, labels: Labels, tamper: fn(&mut Parcel)) -> Vec<String> {
    let (plan, pod) = (plan(2, 8, &SGD), StagesSpec { micro_batches: Some(2), ..pod(2, labels) });
    let conduct = |member| if member == sender { Conduct::Tampers(tamper) } else { Conduct::Honest };
    let Ended { owner, helpers, .. } = run_pod((spec, &plan, &pod), &[], conduct, u32::MAX);
    let all = [owner.map(|_| ())].into_iter().chain(helpers);
    all.enumerate().filter(|(member, _)| *member != sender).map(|(_, result)| reason(result, sender)).collect()
}

#[test]
fn a_parcel_that_the_receiver_has_no_use_for_names_its_sender() {
    let (mlp, gpt, stay, travel) = (deep(), gpt(), Labels::Stay, Labels::Travel);
    let told = |spec, sender, labels, tamper| tampered(spec, sender, labels, tamper).join(", ");
    let text = told(&mlp, 1, stay, |parcel| {
        if let Parcel::Activations { shape, .. } = parcel {
            shape.swap(0, 1);
        }
    });
    assert_eq!(text, "activations of shape [4, 12], expected [12, 4]");
    let text = told(&mlp, 0, stay, |parcel| {
        if let Parcel::Activations { values, .. } = parcel {
            values.pop();
        }
    });
    assert_eq!(text, "79 values of activations, expected 80");
    let text = told(&mlp, 0, stay, |parcel| {
        if let Parcel::Gradient { values, .. } = parcel {
            values.clear();
        }
    });
    assert_eq!(text, "0 values of a gradient, expected 48");
    let text = told(&mlp, 0, travel, |parcel| {
        if let Parcel::Labels(labels) = parcel {
            labels[1] = 3;
        }
    });
    assert_eq!(text, "label 3 of a model of 3 classes");
    let text = told(&gpt, 0, travel, |parcel| {
        if let Parcel::Labels(labels) = parcel {
            labels.push(0);
        }
    });
    assert_eq!(text, "65 values of labels, expected 64");
    let text = told(&gpt, 0, travel, |parcel| {
        if let Parcel::Weights { tied, .. } = parcel {
            tied.pop();
        }
    });
    assert_eq!(text, "4095 values of a tied tensor, expected 4096");
    let text = told(&mlp, 0, stay, |parcel| {
        if let Parcel::Weights { own, .. } = parcel {
            own.push(0.0);
        }
    });
    assert_eq!(text, "541 values of weights, expected 540");
    let text = told(&gpt, 0, travel, |parcel| {
        if let Parcel::Tied { version, .. } = parcel {
            *version += 1;
        }
    });
    assert_eq!(text, "a tied tensor arrived out of turn");
    let text = told(&gpt, 1, travel, |parcel| {
        if let Parcel::TiedSum(values) = parcel {
            values.push(0.0);
        }
    });
    assert_eq!(text, "4097 values of a tied tensor's gradient, expected 4096");
    let text = told(&mlp, 1, travel, |parcel| {
        if let Parcel::Layer(content) = parcel {
            content.left_out.pop();
        }
    });
    assert_eq!(text, "203 values of what is left out of a layer, expected 204");
    let text = told(&mlp, 1, travel, |parcel| {
        if let Parcel::Layer(content) = parcel {
            content.left_out.clear();
        }
    });
    assert_eq!(text, "0 values of what is left out of a layer, expected 204");
    let text = told(&mlp, 1, travel, |parcel| {
        if let Parcel::Layer(content) = parcel {
            content.layer += 1;
        }
    });
    assert_eq!(text, "a layer's content arrived out of turn");
    let text = told(&mlp, 1, travel, |parcel| {
        if let Parcel::Layer(content) = parcel {
            content.payload.pop();
        }
    });
    assert!(text.starts_with("the content of layer 2: "), "{text}");
    let text = told(&mlp, 1, travel, |parcel| {
        if let Parcel::Layer(content) = parcel {
            content.figures.delta_square = -1.0;
        }
    });
    assert_eq!(text, "the content of layer 2: it is not finite");
    let text = told(&mlp, 1, travel, |parcel| {
        if let Parcel::Loss(_) = parcel {
            *parcel = Parcel::TiedSum(vec![0.0]);
        }
    });
    assert_eq!(text, "a tied tensor's gradient from part 1 for part 0");
}

/// The owner cannot tell a helper that lies from a round that has diverged there. What it computes itself it can.
#[test]
fn values_that_are_not_finite_name_their_sender_unless_the_owner_computed_them() {
    let (spec, plan) = (deep(), plan(2, 8, &SGD));
    let tamper: fn(&mut Parcel) = |parcel| {
        if let Parcel::Activations { values, .. } = parcel {
            values.fill(f32::NAN);
        }
    };
    let conduct = |member| if member == 1 { Conduct::Tampers(tamper) } else { Conduct::Honest };
    let ended = run_pod((&spec, &plan, &pod(2, Labels::Stay)), &[], conduct, u32::MAX);
    assert_eq!(ended.owner, Err(PipelineError::NotFinite { agent: agent(1), what: "activations", step: 1 }));
    ended.helpers.into_iter().for_each(|helper| assert_eq!(reason(helper, 0), "it is gone"));
    // As a helper says that its last update has led to such values.
    let tamper: fn(&mut Parcel) = |parcel| {
        if let Parcel::Layer(content) = parcel {
            content.figures.delta_square = f64::NAN;
        }
    };
    let conduct = |member| if member == 1 { Conduct::Tampers(tamper) } else { Conduct::Honest };
    let ended = run_pod((&spec, &plan, &pod(2, Labels::Stay)), &[], conduct, u32::MAX);
    let said = "a layer's content";
    assert!(
        matches!(ended.owner, Err(PipelineError::NotFinite { agent: of, what, .. }) if of == agent(1) && what == said)
    );
    let steep = TrainSpec { optimizer: OptimizerSpec::Sgd { lr: 1e30, momentum: 0.0 }, ..plan };
    let ended = run_pod((&spec, &steep, &pod(2, Labels::Stay)), &[], |_| Conduct::Honest, u32::MAX);
    let diverged = TrainError::Diverged { step: 2 };
    let has_diverged = match ended.owner {
        Err(PipelineError::Train(error)) => error == diverged,
        Err(PipelineError::NotFinite { step, .. }) => step == 2,
        _ => false,
    };
    assert!(has_diverged, "it is said in which step");
}

#[test]
fn an_owner_that_stops_has_the_losses_so_far_and_its_helpers_end() {
    let (spec, plan, pod) = (deep(), plan(6, 10, &SGD), pod(3, Labels::Stay));
    let ended = run_pod((&spec, &plan, &pod), &[], |_| Conduct::Honest, 2);
    let stopped = ended.owner.expect("no error");
    assert_eq!((stopped.losses.len(), stopped.contribution), (2, None));
    assert_eq!(stopped.losses, in_process(&spec, &plan, &pod).losses[..2]);
    assert!(ended.helpers.iter().all(Result::is_err), "{:?}", ended.helpers);
}

#[test]
fn a_round_that_gives_a_member_a_wrong_part_is_refused_before_anything_is_sent() {
    let (spec, plan, stay, travel) = (deep(), plan(1, 8, &SGD), pod(2, Labels::Stay), pod(2, Labels::Travel));
    let (round, members) = round(&travel, &even(&spec, &travel));
    let hub = Hub::new(members, &[]);
    let mut wire = hub.wire(0, Conduct::Leaves(0));
    let task = |pod, me| PodTask {
        model: &spec,
        plan: &plan,
        pod,
        round: &round,
        encoding: encoding(),
        me,
        threads: 1,
        modules: None,
    };
    let base = Pipeline::new(&spec, &round.ends(), 1).expect("valid").initial(1);
    let mut owned = |pod, me| {
        let go_on = &mut |_: StepReport| ControlFlow::Continue(());
        train_owned(&task(pod, me), (&base, &mut held), 4, shard(&spec).as_ref(), &mut wire, go_on)
            .expect_err("refused")
    };
    let stays = PipelineError::Round("labels stay, and the last part belongs to another member");
    assert_eq!(owned(&stay, agent(0)), stays);
    let first = PipelineError::Round("the first part belongs to the owner of the data");
    assert_eq!(owned(&travel, agent(1)), first);
    assert_eq!(serve(&task(&travel, agent(0)), &mut wire), Err(first));
    let none = PipelineError::Round("no part of the model is computed here");
    assert_eq!(serve(&task(&travel, agent(5)), &mut wire), Err(none));
}

/// What the owner computes with in a round: each micro-batch's examples, one by one, and its labels.
fn secrets(spec: &ModelSpec, plan: &TrainSpec, pod: &StagesSpec) -> (Vec<Vec<f32>>, Vec<Vec<u32>>) {
    let (pipeline, shard) = (Pipeline::new(spec, &even(spec, pod), 1).expect("valid"), shard(spec));
    let mut feed = Feed::new(&pipeline.architecture, shard.as_ref(), plan, pod.micro_batches(), 4).expect("valid");
    let (mut examples, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..plan.local_steps * pod.micro_batches() {
        let Input::Examples { values, .. } = feed.next() else { panic!("the first part reads examples") };
        let of_micro_batch = feed.labels();
        let each = match spec.kind {
            ModelKind::Gpt => spec.context as usize,
            _ => values.len() / of_micro_batch.len(),
        };
        examples.extend(values.chunks(each).map(<[f32]>::to_vec));
        labels.push(of_micro_batch);
    }
    (examples, labels)
}

/// The words of each vector of a parcel, as a link carries them.
fn words(parcel: &Parcel) -> Vec<Vec<u32>> {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    match parcel {
        Parcel::Weights { own, tied, held } => vec![bits(own), bits(tied), bits(held)],
        Parcel::Tied { values, moved, .. } => vec![bits(values), bits(moved)],
        Parcel::Activations { values, .. }
        | Parcel::Gradient { values, .. }
        | Parcel::TiedSum(values)
        | Parcel::Base { values, .. }
        | Parcel::Chunk { values, .. }
        | Parcel::Layer(LayerContent { left_out: values, .. }) => vec![bits(values)],
        Parcel::Labels(labels) => vec![labels.clone()],
        Parcel::Loss(_) | Parcel::Ended(_) => Vec::new(),
    }
}

/// Whether a parcel holds these numbers one after another, as integers or as floating-point numbers, scaled or not.
fn holds(parcel: &Parcel, numbers: &[f32], scale: f32) -> bool {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "labels and tokens")]
    let forms = [
        numbers.iter().map(|number| number.to_bits()).collect::<Vec<u32>>(),
        numbers.iter().map(|number| (number / scale).round().to_bits()).collect(),
        numbers.iter().map(|number| (number / scale).round() as u32).collect(),
    ];
    words(parcel).iter().any(|words| forms.iter().any(|form| words.windows(form.len()).any(|window| window == form)))
}

/// "Labels stay" is read off what every helper was sent in a whole round. (What can be inferred of them from gradients is another
/// matter: docs/parallelism.md.)
#[test]
fn no_label_and_no_example_leaves_its_owner_unless_labels_travel() {
    for spec in [deep(), cnn(), gpt()] {
        let plan = plan(3, 12, &SGD);
        let scale = if spec.kind == ModelKind::Gpt { 1.0 } else { spec.input_scale };
        for (labels, members) in [(Labels::Stay, 2), (Labels::Stay, 3), (Labels::Travel, 3)] {
            let pod = pod(members, labels);
            let (examples, of_micro_batches) = secrets(&spec, &plan, &pod);
            let ended = run_pod((&spec, &plan, &pod), &[], |_| Conduct::Honest, u32::MAX);
            assert!(ended.owner.is_ok() && ended.helpers.iter().all(Result::is_ok));
            let to_helpers: Vec<&Parcel> =
                ended.carried.iter().filter(|(to, _)| *to != 0).map(|(_, parcel)| parcel).collect();
            assert!(to_helpers.len() > 12, "{} parcels", to_helpers.len());
            let is_told = |numbers: &[f32], scale| to_helpers.iter().any(|parcel| holds(parcel, numbers, scale));
            let what = format!("{:?}, {members} members, labels {labels:?}", spec.kind);
            // The labels of neighbouring windows of a text are the text.
            let are_examples = labels == Labels::Travel && spec.kind == ModelKind::Gpt;
            assert!(
                are_examples || !examples.iter().any(|example| is_told(example, scale)),
                "an example travels: {what}"
            );
            #[expect(clippy::cast_precision_loss, reason = "labels are small")]
            let as_numbers = |labels: &Vec<u32>| labels.iter().map(|label| *label as f32).collect::<Vec<_>>();
            // Zeros alone are what many activations are.
            let telling = of_micro_batches.iter().filter(|labels| labels.iter().any(|label| *label > 0));
            let told: Vec<bool> = telling.map(|labels| is_told(&as_numbers(labels), 1.0)).collect();
            assert!(told.len() > 6, "{what}");
            assert!(told.iter().all(|told| *told == (labels == Labels::Travel)), "{what}: {told:?}");
        }
    }
}

/// The search above finds what it looks for, in whatever parcel it is.
#[test]
fn an_example_among_other_values_is_found() {
    let (example, scale) = ([3.0f32 / 255.0, 7.0 / 255.0, 0.0, 9.0 / 255.0], 1.0 / 255.0);
    let among = |values: &[f32]| [&[0.5, -1.0], values, &[2.0]].concat();
    let raw: Vec<f32> = example.iter().map(|value| (value * 255.0).round()).collect();
    for parcel in [
        Parcel::Activations { values: among(&example), shape: [1, 7] },
        Parcel::Gradient { values: among(&raw), shape: [1, 7] },
        Parcel::Weights { own: Vec::new(), tied: among(&example), held: Vec::new() },
        Parcel::Labels(vec![1, 3, 7, 0, 9]),
    ] {
        assert!(holds(&parcel, &example, scale), "{parcel:?}");
    }
    assert!(!holds(&Parcel::TiedSum(among(&[1.0, 2.0])), &example, scale));
}
