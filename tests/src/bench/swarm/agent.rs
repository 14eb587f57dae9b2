//! One agent of the swarm: the session and the transport of a real agent. Only what costs an agent and not its
//! coordinator is left out: the maths, the encoding (payloads are made once for all), and the disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anabranch_agent::clock::Clock;
use anabranch_agent::session::command::{Bank, ChunkSource, Command, Ending};
use anabranch_agent::session::event::{Event, Kept, OutboxEntry, Outcome, Problem};
use anabranch_agent::session::{Session, SessionConfig};
use anabranch_agent::transport::{self, Dialer, Link, NetEvent, Op};
use anabranch_agent::worker;
use anabranch_common::codec::CodecId;
use anabranch_common::ids::{AgentId, Digest, Incarnation, RunId};
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::{UpdateKey, UpdateMeta, Verdict};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::TransferManifest;
use parking_lot::Mutex;
use tokio::sync::mpsc;
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
    pub(super) dialer: Arc<Dialer>,
}

/// Works until it is dropped, or until the session ends.
pub(super) async fn work(member: Member, shared: Arc<Shared>) -> Ending {
    let (net, mut net_events) = mpsc::channel(limits::AGENT_QUEUE_EVENTS);
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
        renew_at_ms: u64::MAX,
        backoff_seed: member.number,
        overlap: true,
    };
    let session = Session::new(config, Kept::default());
    let (clock, waiting) = (Clock::start(), BTreeMap::new());
    let mut agent = Agent { member, shared, clock, session, link: None, links: 0, net, waiting, training: None };
    let mut ending = agent.step(Event::Started);
    loop {
        if let Some(ending) = ending {
            return ending;
        }
        let at = |at_ms| Instant::from_std(agent.clock.instant(at_ms));
        let (deadline, trained_at) =
            (agent.session.deadline_ms().map(at), agent.training.as_ref().map(|round| at(round.0)));
        let event = tokio::select! {
            Some((number, event)) = net_events.recv() => match agent.translate(number, event) {
                Some(event) => event,
                None => continue,
            },
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Event::Tick,
            () = tokio::time::sleep_until(trained_at.unwrap_or_else(Instant::now)), if trained_at.is_some() => {
                let Some((_, lease)) = agent.training.take() else { continue };
                trained(&lease)
            }
        };
        ending = agent.step(event);
    }
}

struct Agent {
    member: Member,
    shared: Arc<Shared>,
    clock: Clock,
    session: Session,
    link: Option<Link>,
    links: u64,
    net: mpsc::Sender<(u64, NetEvent)>,
    waiting: BTreeMap<UpdateKey, (Stopwatch, usize)>,
    /// The round under way, and when it ends.
    training: Option<(u64, Box<Lease>)>,
}

impl Agent {
    fn step(&mut self, event: Event) -> Option<Ending> {
        let mut events = VecDeque::from([event]);
        let mut ending = None;
        while let Some(event) = events.pop_front() {
            self.count(&event);
            for command in self.session.handle(self.clock.now_ms(), event) {
                match command {
                    Command::Exit(why) => ending = Some(why),
                    command => events.extend(self.execute(command)),
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

    /// As a real agent's driver does, without its threads.
    fn execute(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Connect { after_ms } => {
                self.links += 1;
                let (dialer, after) = (Arc::clone(&self.member.dialer), Duration::from_millis(after_ms));
                self.link = Some(transport::open(dialer, self.links, after, self.net.clone()));
                None
            }
            Command::Disconnect { .. } => {
                self.link = None;
                None
            }
            Command::Send(message) => {
                if let AgentMessage::OfferUpdate { meta, .. } = &message
                    && let Some((since, _)) = self.waiting.get_mut(&meta.key)
                {
                    *since = Stopwatch::start();
                }
                self.op(Op::Send(message))
            }
            Command::SendChunks { source, transfer, missing } => {
                let content = match source {
                    ChunkSource::Initial(content) => content,
                    ChunkSource::Update(key) => Arc::clone(&self.shared.payloads[self.waiting.get(&key)?.1].bytes),
                };
                self.op(Op::SendChunks { content, transfer, missing })
            }
            Command::Prepare(_) | Command::Reorder(_) => {
                Some(Event::Prepared { manifest: self.shared.manifest.clone() })
            }
            Command::MakeInitial { .. } => {
                Some(worker::initial_model(&self.shared.manifest, Arc::clone(&self.shared.model)))
            }
            Command::Unpack { version, digest, .. } => {
                Some(Event::Unpacked { version, digest, content: Arc::clone(&self.shared.model) })
            }
            Command::Train { lease, .. } if self.shared.round_ms == 0 => Some(trained(&lease)),
            Command::Train { lease, .. } => {
                self.training = Some((self.clock.now_ms() + self.shared.round_ms, lease));
                None
            }
            Command::StopTraining => {
                self.training = None;
                None
            }
            Command::Bank(bank) => Some(Event::Banked(self.bank(&bank))),
            Command::Settle { key, .. } => {
                self.waiting.remove(&key);
                Some(Event::Settled { key })
            }
            // Nothing of these is there: a shard to evaluate on, a store, a certificate that ages.
            Command::Evaluate { .. }
            | Command::AdoptBranch { .. }
            | Command::Renew
            | Command::StoreCertificate { .. }
            | Command::Exit(_) => None,
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
        };
        OutboxEntry { meta, transfer: payload.transfer.clone() }
    }

    fn op(&mut self, op: Op) -> Option<Event> {
        let link = self.link.as_ref()?;
        if link.ops.try_send(op).is_ok() {
            return None;
        }
        self.link = None;
        Some(Event::Disconnected(Problem::Transient("the connection takes no more messages".to_owned())))
    }

    fn translate(&mut self, number: u64, event: NetEvent) -> Option<Event> {
        if self.link.as_ref().map(|link| link.number) != Some(number) {
            return None;
        }
        Some(match event {
            NetEvent::Connected => Event::Connected,
            NetEvent::Message(message) => Event::Message(message),
            NetEvent::Chunk { transfer, index, bytes } => Event::Chunk { transfer, index, bytes },
            NetEvent::ChunksSent { transfer, .. } => Event::ChunksSent { transfer },
            NetEvent::Disconnected(problem) => {
                self.link = None;
                Event::Disconnected(problem)
            }
        })
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
    }))
}
