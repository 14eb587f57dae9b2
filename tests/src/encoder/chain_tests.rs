//! A whole agent's worth of feedback states: ledger, chain and encoder together.

use std::ops::Range;
use std::sync::Arc;

use anabranch_agent::encode::chain::{Chain, Origin};
use anabranch_agent::encode::cuda::Engine;
use anabranch_agent::encode::cuda::encoder::{Order, RoundEncoder};
use anabranch_agent::encode::{self, FeedbackSource, States};
use anabranch_agent::session::command::{Bank, Settlement};
use anabranch_agent::session::event::{Encoded, FeedbackState, Outcome};
use anabranch_agent::store::Ledger;
use anabranch_common::codec::CodecSpec;
use anabranch_common::ids::{AgentId, BranchId, Epoch, LeaseId, RunId, UpdateSeq};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::spec::TensorPolicy;
use anabranch_common::update::{MemoryMark, UpdateKey};
use anabranch_testkit::codec::normal;
use anabranch_testkit::lease::lease;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::Emulator;

const PARAMS: usize = 3_000;
const CODEC: CodecSpec = CodecSpec::top_k(0.02);
const DECAY: f32 = 0.95;

/// An agent whose child encodes, and one that encodes everything itself.
struct Pair {
    there: Arc<Mutex<Ledger>>,
    here: Ledger,
    manifest: ModelManifest,
    /// Rounds that are on their way to the ledger, oldest first.
    queue: Arc<Mutex<Vec<Bank>>>,
    source: Source,
    chain: Chain,
    encoder: RoundEncoder,
    branch: BranchId,
    seq: u64,
    outbox: Vec<u64>,
    _dirs: [tempfile::TempDir; 2],
}

/// Waits for what was handed in before, as the store's thread does.
#[derive(Debug, Clone)]
struct Source {
    ledger: Arc<Mutex<Ledger>>,
    states: Arc<States>,
    queue: Arc<Mutex<Vec<Bank>>>,
    manifest: ModelManifest,
}

const RUN: RunId = RunId([1; 16]);
const AGENT: AgentId = AgentId([2; 16]);

impl Source {
    fn bank_all(&self) {
        for bank in std::mem::take(&mut *self.queue.lock()) {
            encode::bank(&mut self.ledger.lock(), RUN, AGENT, &self.manifest, bank).expect("banked");
        }
    }
}

impl FeedbackSource for Source {
    fn current(&self) -> FeedbackState {
        self.states.current()
    }

    fn fresh(&self) -> FeedbackState {
        self.states.fresh()
    }

    fn fetch(&self) -> Option<(FeedbackState, Vec<f32>)> {
        self.bank_all();
        let ledger = self.ledger.lock();
        Some((ledger.states().current(), ledger.residual().unwrap_or_default().to_vec()))
    }

    fn held(&self, branch: BranchId, memory: Option<MemoryMark>, range: Range<usize>) -> Option<Vec<f32>> {
        self.bank_all();
        Some(self.ledger.lock().held(branch, memory, range).to_vec())
    }
}

fn encoder() -> RoundEncoder {
    RoundEncoder::new(Box::new(|| Ok(Box::new(Emulator::default()) as Box<dyn Engine>))).expect("opens")
}

impl Pair {
    fn new() -> Self {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let [there, mut here] = [0, 1].map(|nth: usize| Ledger::open(dirs[nth].path()).expect("opens"));
        let (there, queue) = (Arc::new(Mutex::new(there)), Arc::<Mutex<Vec<Bank>>>::default());
        let tensors = vec![TensorSpec { name: "w".into(), shape: vec![PARAMS as u64] }];
        let manifest = ModelManifest::new(tensors).expect("valid");
        let branch = BranchId([3; 16]);
        here.adopt(branch).expect("adopts");
        there.lock().adopt(branch).expect("adopts");
        let states = there.lock().states();
        let source =
            Source { ledger: Arc::clone(&there), states, queue: Arc::clone(&queue), manifest: manifest.clone() };
        let (chain, encoder) = (Chain::default(), encoder());
        Self { there, here, manifest, queue, source, chain, encoder, branch, seq: 0, outbox: Vec::new(), _dirs: dirs }
    }

    /// The child trains and encodes; what it made, as `Host` tells it.
    fn encode(&mut self, base: &[f32], end: &[f32]) -> Option<Encoded> {
        let (from, left_out) = match self.chain.origin(&self.source)? {
            Origin::Kept(from) => (from, None),
            Origin::Given(from, left_out) => (from, Some(left_out)),
        };
        let made = self.source.fresh();
        let order = Order { fraction: 0.02, feedback_decay: DECAY, from, left_out, made };
        let payload = self.encoder.encode(&self.manifest, order, base, end)?;
        self.chain.went_on(from, made);
        Some(Encoded { codec: CODEC, feedback_decay: DECAY, from, made, payload })
    }

    fn round(&mut self, lost: bool) {
        self.seq += 1;
        let (base, end) = (normal(PARAMS, self.seq), normal(PARAMS, 1_000 + self.seq));
        let encoded = self.encode(&base, &end);
        assert!(encoded.is_some(), "the child made nothing");
        if lost {
            return;
        }
        let lease = lease(LeaseId(self.seq), AGENT, self.branch);
        let outcome = Outcome {
            lease: lease.id,
            delta: end.iter().zip(&base).map(|(end, base)| end - base).collect(),
            num_examples: 1,
            local_steps: 1,
            train_loss: 0.5,
            compute_ms: 1,
            encoded,
            pod: None,
        };
        let seq = UpdateSeq(self.seq);
        let (epoch, codec, policy, feedback_decay) = (Epoch(1), CODEC, TensorPolicy::default(), DECAY);
        let bank = Bank { lease, epoch, seq, codec, policy, feedback_decay, outcome, started_from: None };
        let plain = Bank { outcome: Outcome { encoded: None, ..bank.outcome.clone() }, ..bank.clone() };
        encode::bank(&mut self.here, RUN, AGENT, &self.manifest, plain).expect("banked");
        self.queue.lock().push(bank);
        self.outbox.push(self.seq);
    }

    fn settle(&mut self, content: Settlement) {
        if self.outbox.is_empty() {
            return;
        }
        let key = UpdateKey { run: RUN, agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(self.outbox.remove(0)) };
        self.source.bank_all();
        self.there.lock().settle(key, content).expect("settled");
        self.here.settle(key, content).expect("settled");
    }

    fn adopt(&mut self, to: u8) {
        self.source.bank_all();
        self.branch = BranchId([to; 16]);
        self.there.lock().adopt(self.branch).expect("adopts");
        self.here.adopt(self.branch).expect("adopts");
    }

    fn check(&self) {
        self.source.bank_all();
        let there = self.there.lock();
        let bits = |ledger: &Ledger| ledger.residual().map(|all| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        assert!(bits(&there) == bits(&self.here), "another residual than the CPU's");
        for seq in &self.outbox {
            let key = UpdateKey { run: RUN, agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(*seq) };
            let [there, here] = [&*there, &self.here].map(|ledger| ledger.payload(key).expect("reads"));
            assert!(there.is_some() && there == here, "update {seq}: another payload than the CPU's");
        }
    }

    fn encoded_there(&self) -> u64 {
        self.source.states.encoded_there()
    }
}

#[derive(Debug, Clone)]
enum Happening {
    /// A round; the one before it may still be on its way to the ledger.
    Round,
    /// A round that the session throws away.
    Lost,
    /// Everything on its way arrives.
    Banked,
    Returned,
    Dropped,
    FreshChild,
    OtherBranch(u8),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens between the rounds, payloads and residual have the CPU's bits; and an undisturbed child's work is
    /// taken from the third round at the latest.
    #[test]
    fn whatever_happens_the_bits_are_those_of_an_agent_that_encodes(
        happenings in prop::collection::vec(
            prop_oneof![
                6 => Just(Happening::Round),
                1 => Just(Happening::Lost),
                3 => Just(Happening::Banked),
                1 => Just(Happening::Returned),
                1 => Just(Happening::Dropped),
                1 => Just(Happening::FreshChild),
                1 => (3u8..5).prop_map(Happening::OtherBranch),
            ],
            1..24,
        )
    ) {
        let mut pair = Pair::new();
        for happening in happenings {
            match happening {
                Happening::Round => pair.round(false),
                Happening::Lost => pair.round(true),
                Happening::Banked => pair.check(),
                Happening::Returned => pair.settle(Settlement::Return),
                Happening::Dropped => pair.settle(Settlement::Drop),
                Happening::FreshChild => (pair.chain, pair.encoder) = (Chain::default(), encoder()),
                Happening::OtherBranch(to) => pair.adopt(to),
            }
        }
        pair.check();
        pair.round(false);
        pair.round(false);
        pair.check();
        let before = pair.encoded_there();
        // The next round goes on before this one is banked.
        pair.round(false);
        pair.round(false);
        pair.round(false);
        pair.check();
        prop_assert_eq!(pair.encoded_there(), before + 3, "the child's work is not taken");
    }
}
