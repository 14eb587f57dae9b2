//! One agent of the swarm: the node and the transport of a real agent. Only what costs an agent and not its
//! coordinator is left out: the maths, the encoding (payloads are made once for all), and the disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anabranch_agent::clock::Clock;
use anabranch_agent::node::{self, AgentNode, Done, Input, Job, MathsJob, Output, StoreDone, StoreJob};
use anabranch_agent::session::command::{Bank, Ending};
use anabranch_agent::session::event::{Event, Kept, OutboxEntry, Outcome};
use anabranch_agent::session::{Session, SessionConfig};
use anabranch_agent::transport::{self, Link, LinkName, NetSender, Op, Uplink};
use anabranch_common::codec::CodecId;
use anabranch_common::ids::{AgentId, Digest, Incarnation, RunId};
use anabranch_common::journal::Lease;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::{UpdateKey, UpdateMeta, Verdict};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::TransferManifest;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::Stopwatch;

/// An update as it travels.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) bytes: Arc<[u8]>,
    pub(super) transfer: TransferManifest,
    pub(super) digest: Digest,
}

/// What all agents share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) manifest: ModelManifest,
    /// Stands for every version: nobody trains on it.
    pub(super) model: Arc<[f32]>,
    pub(super) codec: CodecId,
    pub(super) payloads: Vec<Payload>,
    /// How long a round takes, in milliseconds.
    pub(super) round_ms: u64,
    pub(super) tally: Tally,
}

/// What has happened to all of them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) disconnected: AtomicU64,
    /// Whether latencies are kept.
    pub(super) measuring: AtomicBool,
    /// From the offer to the verdict, in milliseconds.
    pub(super) latencies_ms: Mutex<Vec<f64>>,
}

/// Who an agent is.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) number: u64,
    pub(super) run: RunId,
    pub(super) agent: AgentId,
    pub(super) uplink: Arc<Uplink>,
}

/// Works until it is dropped, or until the session ends.
pub(super) async fn work(member: Member, shared: Arc<Shared>) -> Ending {
    let (net, mut net_events) = transport::queue();
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&(member.number + 1).to_le_bytes());
    let config = SessionConfig {
        run: member.run,
        agent: member.agent,
        incarnation: Incarnation(seed),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        train_examples: 1_000,
        eval_examples: 0,
        device: "swarm".to_owned(),
        pod: None,
        renew_at_ms: u64::MAX,
        backoff_seed: member.number,
        overlap: true,
    };
    // No payload is taken from memory by itself: all are the swarm's.
    let node = AgentNode::new(Session::new(config, Kept::default()), Arc::default());
    let (clock, waiting) = (Clock::start(), BTreeMap::new());
    let mut agent = Agent { member, shared, clock, node, link: None, net, waiting, training: None };
    let mut ending = agent.step(Input::Event(Event::Started));
    loop {
        if let Some(ending) = ending {
            return ending;
        }
        let at = |at_ms| Instant::from_std(agent.clock.instant(at_ms));
        let (deadline, trained_at) =
            (agent.node.session().deadline_ms().map(at), agent.training.as_ref().map(|round| at(round.0)));
        let input = tokio::select! {
            Some((link, event)) = net_events.recv() => Input::Link { number: link.number, event: event.into() },
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Input::Event(Event::Tick),
            () = tokio::time::sleep_until(trained_at.unwrap_or_else(Instant::now)), if trained_at.is_some() => {
                let Some((_, lease)) = agent.training.take() else { continue };
                Input::Done(Done::Maths(trained(&lease)))
            }
        };
        ending = agent.step(input);
    }
}

struct Agent {
    member: Member,
    shared: Arc<Shared>,
    clock: Clock,
    node: AgentNode,
    link: Option<Link>,
    net: NetSender,
    waiting: BTreeMap<UpdateKey, (Stopwatch, usize)>,
    /// The round under way, and when it ends.
    training: Option<(u64, Box<Lease>)>,
}

impl Agent {
    fn step(&mut self, input: Input) -> Option<Ending> {
        let mut inputs = VecDeque::from([input]);
        let mut ending = None;
        while let Some(input) = inputs.pop_front() {
            if let Input::Link { number, event } = &input
                && self.link.as_ref().is_some_and(|link| link.name.number == *number)
            {
                self.count(event);
            }
            for output in self.node.handle(self.clock.now_ms(), input) {
                match output {
                    Output::Exit(why) => ending = Some(why),
                    output => inputs.extend(self.execute(output)),
                }
            }
        }
        ending
    }

    fn count(&mut self, event: &Event) {
        let tally = &self.shared.tally;
        match event {
            Event::Message(CoordinatorMessage::Verdict { key, verdict }) => {
                let Some((since, _)) = self.waiting.get(key) else { return };
                match verdict {
                    Verdict::Accepted { .. } => tally.accepted.fetch_add(1, Ordering::Relaxed),
                    Verdict::Refused { .. } => tally.refused.fetch_add(1, Ordering::Relaxed),
                };
                if tally.measuring.load(Ordering::Relaxed) {
                    let mut latencies = tally.latencies_ms.lock();
                    latencies.push(since.seconds() * 1e3);
                }
            }
            Event::Disconnected(_) => {
                tally.disconnected.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Does what a real agent's driver does, without its threads.
    fn execute(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Open { number, after_ms } => {
                let (uplink, after) = (Arc::clone(&self.member.uplink), Duration::from_millis(after_ms));
                let name = LinkName { run: self.member.run, number };
                self.link = Some(transport::open(uplink, name, after, self.net.clone()));
                None
            }
            Output::Close { .. } => {
                self.link = None;
                None
            }
            Output::Send(message) => {
                if let AgentMessage::OfferUpdate { meta, .. } = &message
                    && let Some((since, _)) = self.waiting.get_mut(&meta.key)
                {
                    *since = Stopwatch::start();
                }
                self.op(Op::Send(Box::new(message)))
            }
            Output::SendChunks { content, transfer, missing } => self.op(Op::SendChunks { content, transfer, missing }),
            Output::SendPart { .. } => unreachable!("these agents help with no update"),
            Output::Run(Job::Store(job)) => Some(Input::Done(Done::Store(self.store(job)))),
            Output::Run(Job::Maths(job)) => self.compute(job),
            Output::Run(Job::Unpack(job)) => {
                let (version, digest, content) = (job.version(), job.digest(), Arc::clone(&self.shared.model));
                Some(Input::Done(Done::Unpack(Event::Unpacked { version, digest, content })))
            }
            Output::StopTraining => {
                let (_, lease) = self.training.take()?;
                Some(Input::Done(Done::Maths(Event::TrainingStopped { lease: lease.id })))
            }
            // No certificate ages here.
            Output::Renew(_) | Output::StoreCertificate(_) | Output::Exit(_) => None,
        }
    }

    fn compute(&mut self, job: MathsJob) -> Option<Input> {
        let event = match job {
            MathsJob::Prepare(_) | MathsJob::Reorder(_) => Event::Prepared { manifest: self.shared.manifest.clone() },
            MathsJob::MakeInitial { .. } => node::initial_model(&self.shared.manifest, Arc::clone(&self.shared.model)),
            MathsJob::Train { lease, .. } if self.shared.round_ms > 0 => {
                self.training = Some((self.clock.now_ms() + self.shared.round_ms, lease));
                return None;
            }
            MathsJob::Train { lease, .. } => trained(&lease),
            MathsJob::Serve { .. } => unreachable!("these agents offer themselves to no pod"),
            MathsJob::Evaluate { version, .. } => {
                Event::EvaluationFailed { version, problem: "there is no shard to evaluate on".to_owned() }
            }
        };
        Some(Input::Done(Done::Maths(event)))
    }

    fn store(&mut self, job: StoreJob) -> StoreDone {
        match job {
            StoreJob::Bank { bank, .. } => StoreDone::Event(Event::Banked(self.bank(&bank))),
            StoreJob::Settle { key, .. } => {
                self.waiting.remove(&key);
                StoreDone::Event(Event::Settled { key })
            }
            StoreJob::Adopt(_) => StoreDone::Adopted,
            StoreJob::Read { key, link, transfer, missing } => {
                let number = self.waiting.get(&key).map(|(_, number)| *number);
                let content = number.map(|number| Arc::clone(&self.shared.payloads[number].bytes));
                StoreDone::Read { link, content, transfer, missing }
            }
        }
    }

    fn bank(&mut self, bank: &Bank) -> OutboxEntry {
        let Bank { lease, epoch, seq, outcome, .. } = bank;
        let key = UpdateKey { run: self.member.run, agent: self.member.agent, epoch: *epoch, seq: *seq };
        let number = usize::try_from(self.member.number + seq.0).unwrap_or(0) % self.shared.payloads.len();
        self.waiting.insert(key, (Stopwatch::start(), number));
        let payload = &self.shared.payloads[number];
        let meta = UpdateMeta {
            key,
            branch: lease.branch,
            lease: lease.id,
            base_version: lease.base_version,
            base_digest: lease.base_digest,
            codec: self.shared.codec,
            payload_bytes: payload.bytes.len() as u64,
            payload_digest: payload.digest,
            num_examples: outcome.num_examples,
            local_steps: outcome.local_steps,
            train_loss: outcome.train_loss,
            compute_ms: outcome.compute_ms,
            base_dot: None,
            residual_ratio: None,
            memory: None,
        };
        OutboxEntry { meta, transfer: payload.transfer.clone(), sections: None }
    }

    fn op(&mut self, op: Op) -> Option<Input> {
        let link = self.link.as_ref()?;
        if link.ops.try_send(op).is_ok() {
            return None;
        }
        let full = self.node.link_is_full();
        if let Input::Link { event, .. } = &full {
            self.count(event);
        }
        self.link = None;
        Some(full)
    }
}

fn trained(lease: &Lease) -> Event {
    Event::Trained(Box::new(Outcome {
        lease: lease.id,
        delta: [].into(),
        num_examples: 640,
        local_steps: 20,
        train_loss: 1.0,
        compute_ms: 1,
        encoded: None,
        pod: None,
    }))
}
