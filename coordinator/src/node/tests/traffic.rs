//! What agents are sent of each other's updates, by reading all that leaves a node.

use anabranch_common::codec::{self, CodecId, CodecSpec};
use anabranch_common::downlink::{ModelForm, chain};
use anabranch_common::ids::{Epoch, LeaseId, UpdateSeq};
use anabranch_common::journal::{Contribution, Lease};
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::rng::SplitMix64;
use anabranch_common::schema;
use anabranch_common::transfer::Received;
use anabranch_common::update::{UpdateKey, UpdateMeta};
use anabranch_common::wire::transfer::TransferManifest;

use super::*;

const OTHER_PEER: PeerId = PeerId(2);
const OTHER_AGENT: AgentId = AgentId([2; 16]);
const PARAMS: usize = 2_000;

fn meta(lease: LeaseId, codec: CodecId) -> UpdateMeta {
    let key = UpdateKey { run: RunId([1; 16]), agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(lease.0) };
    UpdateMeta {
        key,
        branch: BranchId([2; 16]),
        lease,
        base_version: ModelVersion(0),
        base_digest: Digest::default(),
        codec,
        payload_bytes: 0,
        payload_digest: Digest::default(),
        num_examples: 8,
        local_steps: 1,
        train_loss: 0.5,
        compute_ms: 10,
        base_dot: None,
        residual_ratio: None,
        memory: None,
    }
}

/// A contribution as it is journalled.
pub(super) fn contribution(codec: CodecId) -> Contribution {
    let meta = meta(LeaseId(1), codec);
    let (credited_examples, staleness, weight, norm) = (8, 0, 0.3, 1.0);
    Contribution {
        meta,
        credited_examples,
        staleness,
        weight,
        mean_weight: 0,
        norm,
        recall: None,
        memory: None,
        transfer_ms: None,
    }
}

/// All that has left a node for one connection.
#[derive(Default)]
struct Sent {
    messages: Vec<CoordinatorMessage>,
    models: Vec<Arc<PackedModel>>,
}

impl Sent {
    /// Whether these bytes have left in a message or in a model.
    fn shows(&self, needle: &[u8]) -> bool {
        let has = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        let encode = |message| schema::encode(message, limits::CONTROL_MESSAGE_BYTES).expect("short");
        self.messages.iter().any(|message| has(&encode(message))) || self.models.iter().any(|model| has(&model.content))
    }

    fn lease(&self) -> Lease {
        let lease = |message: &CoordinatorMessage| match message {
            CoordinatorMessage::Lease { lease, .. } => Some(lease.clone()),
            _ => None,
        };
        self.messages.iter().rev().find_map(lease).expect("a lease was granted")
    }
}

impl World {
    /// Does everything that is out, and returns what has left since the last call for a connection.
    fn sent_to(&mut self, peer: PeerId) -> Sent {
        self.work();
        let mut sent = Sent::default();
        for output in &self.outputs {
            match output {
                Output::ToPeer(ToPeer::Send { peer: to, message }) if *to == peer => {
                    sent.messages.push((**message).clone());
                }
                Output::ToPeer(ToPeer::SendChunks { peer: to, model, .. }) if *to == peer => {
                    sent.models.push(Arc::clone(model));
                }
                _ => {}
            }
        }
        sent
    }

    fn say_as(&mut self, peer: PeerId, message: AgentMessage) {
        self.handle(Input::Event(Event::Message { peer, message }));
    }

    /// The first agent asks for a lease, and delivers this update under it.
    fn deliver(&mut self, payload: &[u8]) {
        self.say(AgentMessage::RequestLease);
        let lease = self.sent_to(PEER).lease();
        let meta = UpdateMeta {
            base_version: lease.base_version,
            base_digest: lease.base_digest,
            payload_bytes: payload.len() as u64,
            payload_digest: Digest::of(payload),
            ..meta(lease.id, lease.plan.codec.id())
        };
        self.say(AgentMessage::OfferUpdate { meta, transfer: TransferManifest::of(payload), sections: None });
        let sink = self.outputs.iter().rev().find_map(|output| match output {
            Output::ToPeer(ToPeer::Receive { sink, .. }) => Some(Arc::clone(sink)),
            _ => None,
        });
        let sink = sink.expect("it is asked for");
        let put = sink.put(0, payload).expect("its only chunk");
        let (upload, bytes) = (sink.upload(), payload.len() as u64);
        self.handle(Input::Received(Received { upload, bytes, is_whole: put.is_whole, is_kept: true }));
        self.work();
    }
}

/// Two agents: the second one holds version 0, and fetches version 3, which is made of updates of the first one. Returns
/// these, and all that the second one was sent.
fn exchange(share_updates: bool) -> (Vec<Vec<u8>>, Sent, [Vec<f32>; 2]) {
    let mut rng = SplitMix64::new(3);
    let mut world = World::configured(|spec| {
        spec.merge = MergeSpec::FedAsync { alpha: 0.6, staleness: Staleness::Constant, participation: false };
        (spec.downlink.track, spec.downlink.share_updates) = (None, share_updates);
        spec.upload.codec = CodecSpec::top_k(0.05);
        spec.model.kind = ModelKind::Custom;
    });
    world.connect(PEER, AGENT);
    world.connect(OTHER_PEER, OTHER_AGENT);
    let base: Vec<f32> = (0..PARAMS).map(|_| rng.next_signed_f32()).collect();
    world.begin(base.clone());
    let manifest = world.node.core().state().expect("it has begun").manifest.clone();
    let mut payloads = Vec::new();
    for _ in 0..3 {
        let delta: Vec<f32> = (0..PARAMS).map(|_| 0.01 * rng.next_signed_f32()).collect();
        let payload = codec::encoder(CodecSpec::top_k(0.05)).encode(&manifest, &delta).expect("finite");
        world.deliver(&payload);
        payloads.push(payload);
    }
    world.say_as(OTHER_PEER, AgentMessage::RequestLease);
    let lease = world.sent_to(OTHER_PEER).lease();
    assert_eq!(lease.base_version, ModelVersion(3));
    let held = Some((ModelVersion(0), Digest::of_f32(&base)));
    let (version, digest, purpose) = (lease.base_version, lease.base_digest, FetchPurpose::Train);
    world.say_as(OTHER_PEER, AgentMessage::FetchModel { version, digest, purpose, held, missing: None });
    let sent = world.sent_to(OTHER_PEER);
    let model = world.merger.model().expect("finite").model().to_vec();
    (payloads, sent, [base, model])
}

#[test]
fn updates_are_shown_to_other_agents_only_where_that_is_configured() {
    let (payloads, sent, [base, model]) = exchange(true);
    let [replay] = &sent.models[..] else { panic!("expected one model, got {:?}", sent.models) };
    assert_eq!(replay.form, ModelForm::Chain { from: ModelVersion(0) });
    assert!(payloads.iter().all(|payload| sent.shows(payload)), "the whole of each update");
    let manifest =
        ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![PARAMS as u64] }]).expect("valid");
    let replayed = chain::replay(&manifest, &base, &replay.content).expect("steps");
    assert_eq!(Digest::of_f32(&replayed), Digest::of_f32(&model));

    let (payloads, sent, _) = exchange(false);
    let [difference] = &sent.models[..] else { panic!("expected one model, got {:?}", sent.models) };
    assert_eq!(difference.form, ModelForm::Xor { from: ModelVersion(0) });
    for payload in payloads {
        assert!(!payload.windows(16).any(|part| sent.shows(part)), "no part of an update leaves for another agent");
    }
}
