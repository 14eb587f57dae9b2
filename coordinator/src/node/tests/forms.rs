//! The forms in which models are sent: what is made, for whom, and how much of it.

use anabranch_common::codec::quantize::ValueBits;
use anabranch_common::codec::{self, CodecId, CodecSpec};
use anabranch_common::downlink::{ModelForm, chain, track, xor};
use anabranch_common::ids::Position;
use anabranch_common::journal::{Close, CloseReason, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::TrackSpec;

use super::traffic::contribution;
use super::*;
use crate::core::command::ModelRequest;
use crate::merger::ModelState;
use crate::node::forms::{Bounds, Choice, Here};

const PARAMS: usize = 2_000;
const VECTOR_BYTES: u64 = 4 * PARAMS as u64;

/// The published versions of a run, and their forms.
struct Downlink {
    manifest: Arc<ModelManifest>,
    publisher: Publisher,
    forms: Forms,
    chain: Chain,
    sending_bytes: u64,
    rng: SplitMix64,
    model: Vec<f32>,
    version: u64,
}

impl Downlink {
    fn new(seed: u64, bounds: Bounds) -> Self {
        let tensor = TensorSpec { name: "w".into(), shape: vec![PARAMS as u64] };
        let manifest = Arc::new(ModelManifest::new(vec![tensor]).expect("valid"));
        let mut rng = SplitMix64::new(seed);
        let model: Vec<f32> = (0..PARAMS).map(|_| rng.next_signed_f32()).collect();
        let (publisher, forms) = (Publisher::default(), Forms::within(bounds));
        let chain = Chain::default();
        let mut downlink = Self { manifest, publisher, forms, chain, sending_bytes: 0, rng, model, version: 0 };
        downlink.publish();
        downlink
    }

    fn publish(&mut self) {
        let model = PublishedModel::of(ModelVersion(self.version), &self.manifest, &self.model).expect("finite");
        self.publisher.add(Arc::new(model));
    }

    /// Publishes a version in which so many of a hundred parameters have moved a little.
    fn step(&mut self, percent: u64) {
        for value in &mut self.model {
            if self.rng.below(100) < percent {
                *value += 0.001 * self.rng.next_signed_f32();
            }
        }
        self.version += 1;
        self.publish();
    }

    /// Publishes a version that has nothing to do with the one before.
    fn leap(&mut self) {
        for value in &mut self.model {
            let bits = u32::try_from(self.rng.next_u64() >> 32).expect("32 bits");
            *value = f32::from_bits(bits & 0xBFFF_FFFF);
        }
        self.version += 1;
        self.publish();
    }

    /// An agent that holds `held` asks for the newest version.
    fn ask(&mut self, peer: u64, held: Option<(u64, &[f32])>) -> Choice {
        let held = held.map(|(version, content)| (ModelVersion(version), Digest::of_f32(content)));
        let (version, digest) = (ModelVersion(self.version), Digest::of_f32(&self.model));
        let request = ModelRequest { version, digest, purpose: FetchPurpose::Train, held, missing: None };
        self.choose(peer, &request)
    }

    fn choose(&mut self, peer: u64, request: &ModelRequest) -> Choice {
        let Self { publisher, forms, chain, manifest, sending_bytes, .. } = self;
        forms.choose(PeerId(peer), request, Here { publisher, chain, manifest, sending_bytes: *sending_bytes })
    }

    /// Does a job. Returns what is made, and the connections that wait for it.
    fn make(&mut self, job: PackJob) -> (Option<Arc<PackedModel>>, Vec<u64>) {
        let Done::Packed { key, model } = job.run() else { panic!("a packer answers with a form") };
        let waiting = self.forms.made(key, model.clone());
        (model, waiting.into_iter().map(|(peer, _)| peer.0).collect())
    }

    /// Takes an agent that holds `held` to the newest version. Returns its model, and the form that was sent.
    fn fetch(&mut self, held: Option<(u64, &[f32])>) -> (Vec<f32>, ModelForm) {
        let packed = match self.ask(1, held) {
            Choice::Send(packed) => packed,
            Choice::Wait(job) => match self.make(job.expect("nobody else asks")).0 {
                Some(packed) => packed,
                None => return self.fetch(None),
            },
            Choice::Gone => panic!("the newest version is gone"),
        };
        let base = held.map_or(&[][..], |(_, content)| content);
        let model = match packed.form {
            ModelForm::Snapshot => {
                codec::decode(CodecId(0), &self.manifest, &packed.content).expect("a snapshot").into_dense()
            }
            ModelForm::Track { .. } => track::replay(&self.manifest, base, &packed.content).expect("records"),
            ModelForm::Chain { .. } => chain::replay(&self.manifest, base, &packed.content).expect("steps"),
            ModelForm::Xor { .. } => xor::apply(&self.manifest, base, &packed.content).expect("a difference"),
        };
        (model, packed.form)
    }
}

fn job(choice: Choice) -> PackJob {
    match choice {
        Choice::Wait(Some(job)) => job,
        other => panic!("expected a job, got {other:?}"),
    }
}

fn is_waiting(choice: &Choice) -> bool {
    matches!(choice, Choice::Wait(None))
}

fn sent(choice: Choice) -> ModelForm {
    match choice {
        Choice::Send(model) => model.form,
        other => panic!("expected a form, got {other:?}"),
    }
}

fn same_bits(one: &[f32], other: &[f32]) -> bool {
    one.iter().map(|value| value.to_bits()).eq(other.iter().map(|value| value.to_bits()))
}

#[test]
fn a_snapshot_is_made_when_the_first_agent_needs_it_and_once_for_all() {
    let mut downlink = Downlink::new(1, Bounds::default());
    let first = job(downlink.ask(1, None));
    assert!((2..5).all(|peer| is_waiting(&downlink.ask(peer, None))));
    let (made, waiting) = downlink.make(first);
    assert_eq!((made.expect("finite").form, waiting), (ModelForm::Snapshot, vec![1, 2, 3, 4]));
    assert_eq!(sent(downlink.ask(5, None)), ModelForm::Snapshot);
}

#[test]
fn what_differs_is_made_once_for_all_that_hold_the_same_version() {
    let mut downlink = Downlink::new(2, Bounds::default());
    let (held, from) = (downlink.model.clone(), ModelVersion(0));
    downlink.step(10);
    let first = job(downlink.ask(1, Some((0, &held))));
    assert!(is_waiting(&downlink.ask(2, Some((0, &held)))));
    let (made, waiting) = downlink.make(first);
    let made = made.expect("shorter than the whole");
    assert_eq!((made.form, waiting), (ModelForm::Xor { from }, vec![1, 2]));
    let applied = xor::apply(&downlink.manifest, &held, &made.content).expect("a difference");
    assert!(same_bits(&applied, &downlink.model));
    assert_eq!(sent(downlink.ask(3, Some((0, &held)))), ModelForm::Xor { from });
    job(downlink.ask(4, Some((0, &[0.5; PARAMS]))));
}

/// Versions that have nothing in common: it is tried once, and then remembered.
#[test]
fn a_difference_that_is_no_shorter_than_the_whole_is_not_sent() {
    let mut downlink = Downlink::new(3, Bounds::default());
    downlink.leap();
    let held = downlink.model.clone();
    downlink.leap();
    let first = job(downlink.ask(1, Some((1, &held))));
    let (made, waiting) = downlink.make(first);
    assert!(made.is_none() && waiting == [1]);
    let whole = job(downlink.ask(2, Some((1, &held))));
    assert_eq!(downlink.make(whole).0.expect("finite").form, ModelForm::Snapshot);
    assert_eq!(sent(downlink.ask(3, Some((1, &held)))), ModelForm::Snapshot);
}

/// An agent that comes back late, or from another branch, gets the whole.
#[test]
fn nothing_rests_on_a_version_that_is_gone_or_another() {
    let mut downlink = Downlink::new(4, Bounds::default());
    let held = downlink.model.clone();
    (0..limits::PUBLISHED_VERSIONS).for_each(|_| downlink.step(1));
    let (model, form) = downlink.fetch(Some((0, &held)));
    assert!(form == ModelForm::Snapshot && same_bits(&model, &downlink.model));
    let (_, form) = downlink.fetch(Some((downlink.version - 1, &held)));
    assert_eq!(form, ModelForm::Snapshot, "not what it was here");
    let request = ModelRequest {
        version: ModelVersion(0),
        digest: Digest::of_f32(&held),
        purpose: FetchPurpose::Train,
        held: None,
        missing: None,
    };
    assert!(matches!(downlink.choose(1, &request), Choice::Gone));
}

/// How versions are made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Run {
    /// Without anything that agents could go by.
    Plain,
    /// With a published track, which comes before the sharing of updates.
    Tracked,
    /// By a rule that agents can replay, with so many updates a version.
    Replayed(u32),
}

impl Run {
    fn spec(self) -> RunSpec {
        let mut spec = run_spec();
        let (staleness, participation) = (Staleness::Constant, false);
        spec.merge = match self {
            Self::Plain | Self::Tracked | Self::Replayed(1) => {
                MergeSpec::FedAsync { alpha: 0.6, staleness, participation }
            }
            Self::Replayed(buffer_size) => MergeSpec::FedBuff { buffer_size, server_lr: 1.0, staleness, participation },
        };
        spec.downlink.share_updates = self != Self::Plain;
        spec.downlink.track =
            (self == Self::Tracked).then(|| TrackSpec { every: Some(1), codec: CodecSpec::top_k(0.02) });
        spec
    }
}

/// A coordinator that makes versions by records, of which the node's parts hear as the node tells them.
struct Coordinator {
    downlink: Downlink,
    state: ModelState,
    run: Run,
    position: u64,
}

impl Coordinator {
    fn new(run: Run) -> Self {
        let mut downlink = Downlink::new(5, Bounds::default());
        let spec = run.spec();
        downlink.chain = Chain::of(&spec);
        let (manifest, model) = ((*downlink.manifest).clone(), downlink.model.clone());
        let state = ModelState::new(manifest, spec.merge.clone(), model, ModelVersion(0)).expect("it fits");
        let state = state.tracked(spec.downlink.track.as_ref());
        let mut coordinator = Self { downlink, state, run, position: 0 };
        let (run, branch, manifest) = (RunId([1; 16]), BranchId([2; 16]), coordinator.state.manifest().clone());
        let model = Digest::of_f32(coordinator.state.model());
        let genesis = RecordBody::Genesis { run, branch, spec: Box::new(spec), manifest, model, norm: 1.0 };
        coordinator.downlink.chain.merged(&Record::new(Position(0), 0, genesis, Arc::default()));
        coordinator
    }

    fn append(&mut self, body: RecordBody, payload: Arc<[u8]>) {
        self.position += 1;
        let record = Record::new(Position(self.position), 0, body, payload);
        self.downlink.chain.merged(&record);
        self.state.apply(&record).expect("it decodes");
    }

    /// Makes the next version and publishes it.
    fn step(&mut self) {
        let updates = if let Run::Replayed(updates) = self.run { updates } else { 1 };
        let share = [0.01, 0.1, 1.0][usize::try_from(self.downlink.version % 3).expect("small")];
        for _ in 0..updates {
            let rng = &mut self.downlink.rng;
            let delta: Vec<f32> = (0..PARAMS).map(|_| 0.001 * rng.next_signed_f32()).collect();
            let encoder = codec::encoder(CodecSpec::TopK { fraction: share, bits: ValueBits::Four });
            let payload = encoder.encode(&self.downlink.manifest, &delta).expect("finite");
            self.append(RecordBody::Contribution(Box::new(contribution(encoder.id()))), payload.into());
        }
        let version = self.state.version().next();
        self.append(
            RecordBody::Closed(Close { version, contributions: updates, why: CloseReason::Filled, is_base: true }),
            Arc::default(),
        );
        self.downlink.forms.add(self.state.take_records());
        let (version, base) = self.state.base();
        (self.downlink.version, self.downlink.model) = (version.0, base.to_vec());
        self.downlink.publish();
    }
}

/// Agents that miss random numbers of versions are where the coordinator is, bit for bit, in whatever form they come there.
#[test]
fn replicas_are_the_coordinators_over_thousands_of_versions() {
    for run in [Run::Plain, Run::Tracked, Run::Replayed(1), Run::Replayed(4)] {
        let mut coordinator = Coordinator::new(run);
        let mut replicas = vec![(0, coordinator.downlink.model.clone()); 6];
        let [mut whole, mut track, mut replay, mut xor] = [0; 4];
        for version in 1..=1_500 {
            coordinator.step();
            let downlink = &mut coordinator.downlink;
            for (nth, (held, replica)) in (0u32..).zip(&mut replicas) {
                // From an agent that misses nothing to one that misses more than is kept.
                if downlink.rng.below(3u64.pow(nth)) > 0 {
                    continue;
                }
                let (model, form) = downlink.fetch(Some((*held, &*replica)));
                assert!(same_bits(&model, &downlink.model), "{run:?}: {form:?} at version {version}");
                *match form {
                    ModelForm::Snapshot => &mut whole,
                    ModelForm::Track { .. } => &mut track,
                    ModelForm::Chain { .. } => &mut replay,
                    ModelForm::Xor { .. } => &mut xor,
                } += 1;
                (*held, *replica) = (version, model);
            }
        }
        println!("{run:?}: {whole} snapshots, {track} tracks, {replay} replays, {xor} differences");
        let [has_track, has_replay] = [run == Run::Tracked, matches!(run, Run::Replayed(_))];
        assert!(whole > 0, "{run:?}: an agent has missed more than is kept");
        assert_eq!((track > 1_000, replay > 1_000), (has_track, has_replay), "{run:?}: {track}, {replay}");
        assert_eq!((track > 0, replay > 0), (has_track, has_replay), "{run:?}: {track}, {replay}");
        assert!(xor > 10 || run == Run::Tracked, "{run:?}: {xor} differences");
    }
}

/// The second one has to wait for the memory of the first, and is not forgotten.
#[test]
fn jobs_go_out_as_far_as_there_is_memory_for_them() {
    let bounds = Bounds { packing_bytes: 5 * VECTOR_BYTES, ..Bounds::default() };
    let mut downlink = Downlink::new(6, bounds);
    let held = downlink.model.clone();
    downlink.step(10);
    let first = job(downlink.ask(1, Some((0, &held))));
    assert!(is_waiting(&downlink.ask(2, None)) && is_waiting(&downlink.ask(3, None)));
    downlink.forms.forget(PeerId(3));
    assert_eq!(downlink.make(first).1, [1]);
    let deferred = downlink.forms.take_deferred();
    assert_eq!(deferred.keys().copied().collect::<Vec<_>>(), [PeerId(2)]);
    job(downlink.choose(2, &deferred[&PeerId(2)]));
}

#[test]
fn while_much_is_on_its_way_agents_share_the_snapshot() {
    let bounds = Bounds { sending_bytes: 3 * VECTOR_BYTES, ..Bounds::default() };
    let mut downlink = Downlink::new(7, bounds);
    let held = downlink.model.clone();
    downlink.step(10);
    downlink.sending_bytes = 2 * VECTOR_BYTES + 1;
    assert_eq!(downlink.fetch(Some((0, &held))).1, ModelForm::Snapshot);
    downlink.sending_bytes -= 1;
    assert_eq!(downlink.fetch(Some((0, &held))).1, ModelForm::Xor { from: ModelVersion(0) });
}

/// Differences go first: the whole serves everyone.
#[test]
fn forms_of_old_versions_make_room_for_new_ones() {
    let bounds = Bounds { made_bytes: 1, ..Bounds::default() };
    let mut downlink = Downlink::new(8, bounds);
    let held = downlink.model.clone();
    downlink.step(10);
    let older = (downlink.version, downlink.model.clone());
    downlink.fetch(None);
    downlink.fetch(Some((0, &held)));
    assert_eq!(sent(downlink.ask(1, Some((0, &held)))), ModelForm::Xor { from: ModelVersion(0) }, "two stay");
    downlink.step(10);
    downlink.fetch(None);
    assert_eq!(sent(downlink.ask(1, None)), ModelForm::Snapshot);
    (downlink.version, downlink.model) = older;
    assert_eq!(sent(downlink.ask(1, None)), ModelForm::Snapshot);
    job(downlink.ask(2, Some((0, &held))));
}

#[test]
fn the_number_of_forms_is_bounded() {
    let bounds = Bounds { forms: 3, ..Bounds::default() };
    let mut downlink = Downlink::new(9, bounds);
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(job(downlink.ask(1, None)));
        downlink.step(10);
    }
    assert!(is_waiting(&downlink.ask(7, None)), "all of them are being made");
    downlink.make(jobs.remove(0));
    assert_eq!(downlink.forms.take_deferred().len(), 1);
    job(downlink.ask(7, None));
}

/// Two agents fetch through the node: one job, and an announcement and chunks for each.
#[test]
fn a_node_makes_a_form_once_and_sends_it_to_all() {
    let mut world = World::started();
    world.say(AgentMessage::RequestLease);
    world.work();
    world.outputs.clear();
    let fetch = || AgentMessage::FetchModel {
        version: ModelVersion(0),
        digest: Digest::of_f32(&[0.5; 4]),
        purpose: FetchPurpose::Train,
        held: None,
        missing: None,
    };
    world.say(fetch());
    assert_eq!((world.kinds(), world.outputs.len()), (vec!["pack"], 0), "publication has packed nothing");
    world.work();
    let told = |output: &Output| match output {
        Output::ToPeer(ToPeer::Send { message, .. }) => {
            matches!(**message, CoordinatorMessage::Model { form: ModelForm::Snapshot, .. })
        }
        _ => false,
    };
    let [first, Output::ToPeer(ToPeer::SendChunks { download, model, .. })] = &world.outputs[..] else {
        panic!("expected an announcement and chunks, got {:?}", world.outputs)
    };
    assert!(told(first) && model.digest == Digest::of_f32(&[0.5; 4]));
    let download = *download;
    world.outputs.clear();
    // An agent that has dropped the announcement asks for all of it: it is told again, and sent nothing twice.
    world.say(fetch());
    assert!(matches!(&world.outputs[..], [again] if told(again)), "{:?}", world.outputs);
    world.outputs.clear();
    world.handle(Input::Sent { peer: PEER, download, bytes: None });
    world.say(fetch());
    assert_eq!((world.kinds(), world.outputs.len()), (vec![], 2), "it is made");
}
