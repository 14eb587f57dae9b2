//! The only `select!` over everything: feeds events to the session and carries out its commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use anabranch_common::ids::{Incarnation, RunId};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::message::AgentMessage;
use anabranch_io::durable::StorageError;
use anabranch_io::faults;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock::{self, Clock};
use crate::config::{AgentConfig, AgentDir};
use crate::device::memory;
use crate::identity::{self, AgentKey, IdentityError};
use crate::manners::Manners;
use crate::metrics::{Metrics, MetricsError};
use crate::report::{AgentReport, LiveReport, Traffic, WaitingUpdate};
use crate::session::command::{ChunkSource, Command, Ending};
use crate::session::event::{Event, Problem};
use crate::session::{Session, SessionConfig};
use crate::store::Ledger;
use crate::train::Rounds;
use crate::transport::{self, Dialer, Link, NetEvent, Op};
use crate::worker::{
    self, KilledNote, MathsJob, MathsSetup, Pace, Shards, Start, StopSignal, StoreJob, StoreThread, TrainerFactory,
};

/// How long the last words may take before the process ends anyway.
const FAREWELL: Duration = Duration::from_millis(limits::EXIT_MS);

/// Everything a process needs to be an agent.
pub struct Setup {
    /// Its directory.
    pub dir: AgentDir,
    /// `agent.toml`.
    pub config: AgentConfig,
    /// Its key.
    pub key: AgentKey,
    /// What it trains and evaluates on.
    pub shards: Shards,
    /// Makes its trainer.
    pub factory: TrainerFactory,
    /// Device, for people.
    pub device: String,
    /// Artificial slowness.
    pub pace: Pace,
    /// When it leaves the machine to its owner.
    pub manners: Manners,
    /// Its store, open.
    pub ledger: Ledger,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("dir", &self.dir).field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// No thread, no entropy, no signals.
    #[error("the system refuses what an agent needs: {0}")]
    System(#[from] std::io::Error),
    /// The certificate or the address cannot be used for a connection.
    #[error(transparent)]
    Dial(#[from] transport::DialError),
    /// The address for metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// The report that `status` asks for, kept up to date by the driver.
#[derive(Debug, Clone)]
pub struct SharedReport(Arc<Mutex<AgentReport>>);

impl SharedReport {
    /// The newest report.
    #[must_use]
    pub fn get(&self) -> AgentReport {
        self.0.lock().clone()
    }

    fn change(&self, change: impl FnOnce(&mut AgentReport)) {
        change(&mut self.0.lock());
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Driver {
    dir: AgentDir,
    run: RunId,
    key: AgentKey,
    clock: Clock,
    session: Session,
    dialer: Arc<Dialer>,
    link: Option<Link>,
    links: u64,
    net: mpsc::Sender<(u64, NetEvent)>,
    net_events: mpsc::Receiver<(u64, NetEvent)>,
    work_events: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
    maths: SyncSender<MathsJob>,
    store: StoreThread,
    stop: Arc<StopSignal>,
    manifest: Option<Arc<ModelManifest>>,
    traffic: Traffic,
    /// Examples that the latest round computed at once; 0 where that is not known.
    micro_batch: Arc<AtomicU32>,
    /// Why no work is to be taken on from the start.
    hold: Option<String>,
    report: SharedReport,
    metrics: Option<Metrics>,
}

impl Driver {
    /// Starts the threads and makes the session, in a tokio runtime. Nothing is sent before [`Self::run`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn new(setup: Setup) -> Result<Self, StartError> {
        let Setup { dir, config, key, shards, factory, device, pace, manners, ledger } = setup;
        let metrics = config.metrics.map(Metrics::serve).transpose()?;
        let clock = Clock::start();
        let certificate = identity::read_certificate(&dir.certificate())?;
        let ca = identity::read_certificate(&dir.ca())?;
        let validity = identity::validity_ms(&certificate)?;
        let dialer = Dialer::new(config.address.clone(), &ca, &certificate, &key.to_der())?;
        let (mut incarnation, mut seed) = ([0; 16], [0; 8]);
        getrandom::fill(&mut incarnation).map_err(std::io::Error::other)?;
        getrandom::fill(&mut seed).map_err(std::io::Error::other)?;
        let len = |shard: &Option<Box<dyn crate::shard::Shard>>| shard.as_ref().map_or(0, |shard| shard.len() as u64);
        let session = SessionConfig {
            run: config.run,
            agent: key.agent(),
            incarnation: Incarnation(incarnation),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            train_examples: len(&shards.train),
            eval_examples: len(&shards.eval),
            device,
            renew_at_ms: renewal(clock, validity),
            backoff_seed: u64::from_le_bytes(seed),
            overlap: config.overlap.unwrap_or(true),
        };
        let report = AgentReport {
            software: session.software.clone(),
            running: true,
            run: config.run,
            agent: session.agent,
            name: config.name.clone(),
            address: config.address,
            outbox: ledger.outbox().map(WaitingUpdate::of).collect(),
            branch: ledger.branch(),
            live: None,
        };
        let (run, agent) = (config.run, session.agent);
        let mut session = Session::new(session, ledger.kept()?);
        let rounds = Rounds::new(dir.round(), config.checkpoint_s.unwrap_or(limits::ROUND_KEEP_S));
        if let Some((lease, base)) = rounds.as_ref().and_then(Rounds::pending) {
            tracing::info!(lease = lease.id.0, base = lease.base_version.0, "a round was cut off; it will be resumed");
            session.resume(lease, base);
        }
        let (events, work_events) = mpsc::channel(limits::AGENT_QUEUE_EVENTS);
        let (net, net_events) = mpsc::channel(limits::AGENT_QUEUE_EVENTS);
        let stop = Arc::new(StopSignal::default());
        let micro_batch = Arc::new(AtomicU32::new(0));
        let store = StoreThread::spawn(ledger, run, agent, events.clone())?;
        let setup = MathsSetup {
            factory,
            shards,
            pace,
            stop: Arc::clone(&stop),
            rounds,
            micro_batch: Arc::clone(&micro_batch),
            killed: Some(KilledNote::open(dir.memory(), memory::kills)),
            feedback: Some(store.feedback()),
        };
        let maths = worker::spawn_maths(setup, events.clone())?;
        let hold = manners.watch(events.clone())?;
        Ok(Self {
            dir,
            run,
            key,
            clock,
            session,
            dialer: Arc::new(dialer),
            link: None,
            links: 0,
            net,
            net_events,
            work_events,
            events,
            maths,
            store,
            stop,
            manifest: None,
            traffic: Traffic::default(),
            micro_batch,
            hold,
            report: SharedReport(Arc::new(Mutex::new(report))),
            metrics,
        })
    }

    /// What `status` shows.
    #[must_use]
    pub fn report(&self) -> SharedReport {
        self.report.clone()
    }

    /// Runs until the session ends. Each message on `shutdown` asks for an orderly stop; the first one counts.
    pub async fn run(mut self, mut shutdown: mpsc::Receiver<()>) -> Ending {
        let mut ending = self.step(Event::Started);
        if let Some(reason) = self.hold.take() {
            self.step(Event::Hold { reason: Some(reason) });
        }
        let mut may_shut_down = true;
        while ending.is_none() {
            let deadline = self.session.deadline_ms().map(|at_ms| Instant::from_std(self.clock.instant(at_ms)));
            let event = tokio::select! {
                asked = shutdown.recv(), if may_shut_down => {
                    may_shut_down = false;
                    match asked {
                        Some(()) => Event::Shutdown,
                        None => continue,
                    }
                }
                Some(event) = self.work_events.recv() => event,
                Some((number, event)) = self.net_events.recv() => match self.translate(number, event) {
                    Some(event) => event,
                    None => continue,
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Event::Tick,
            };
            ending = self.step(event);
        }
        self.farewell().await;
        ending.unwrap_or(Ending::Parked)
    }

    /// One event, and all that follows from it at once.
    fn step(&mut self, event: Event) -> Option<Ending> {
        if let Event::Prepared { manifest } = &event {
            self.manifest = Some(Arc::new(manifest.clone()));
        }
        log(&event);
        let mut events = std::collections::VecDeque::from([event]);
        let mut ending = None;
        while let Some(event) = events.pop_front() {
            for command in self.session.handle(self.clock.now_ms(), event) {
                match command {
                    Command::Exit(why) => ending = Some(why),
                    command => events.extend(self.execute(command)),
                }
            }
        }
        self.publish();
        ending
    }

    /// Carries out a command; what is known at once of its outcome comes back.
    fn execute(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Connect { after_ms } => {
                self.links += 1;
                let dialer = Arc::clone(&self.dialer);
                let after = Duration::from_millis(after_ms);
                self.link = Some(transport::open(dialer, self.links, after, self.net.clone()));
                None
            }
            Command::Disconnect { why } => {
                tracing::info!(why, "disconnecting");
                self.link = None;
                None
            }
            Command::Send(message) => {
                log_offer(&message);
                self.op(Op::Send(message))
            }
            Command::SendChunks { source: ChunkSource::Initial(content), transfer, missing } => {
                self.op(Op::SendChunks { content, transfer, missing })
            }
            Command::SendChunks { source: ChunkSource::Update(key), transfer, missing } => {
                let (all, chunks) = (transfer.chunks.len(), missing.indices(transfer.chunks.len()).count());
                tracing::debug!(epoch = key.epoch.0, seq = key.seq.0, chunks, of = all, "sending chunks");
                let link = self.link.as_ref()?;
                let (ops, payloads) = (link.ops.clone(), self.store.payloads());
                tokio::spawn(async move {
                    if let Some(content) = payloads.get(key).await {
                        faults::point("update-before-chunks");
                        // A link that is gone is offered this update again.
                        let _ = ops.send(Op::SendChunks { content, transfer, missing }).await;
                    }
                });
                None
            }
            Command::Prepare(spec) => self.maths(MathsJob::Prepare(spec)),
            Command::Reorder(manifest) => self.maths(MathsJob::Reorder(manifest)),
            Command::MakeInitial { seed } => self.maths(MathsJob::MakeInitial { seed }),
            Command::Unpack { version, digest, encoded } => {
                // Beside the maths: a round may be running.
                let (manifest, events) = (self.manifest(), self.events.clone());
                tokio::task::spawn_blocking(move || {
                    let event = worker::unpack_guarded(&manifest, version, digest, &encoded);
                    // The loop has ended: the model is for nobody.
                    let _ = events.blocking_send(event);
                });
                None
            }
            Command::Train { lease, spec, base, lead } => {
                self.stop.set(false);
                self.maths(MathsJob::Train { lease, spec, start: Start { base, lead } })
            }
            Command::StopTraining => {
                self.stop.set(true);
                None
            }
            Command::Evaluate { version, content } => self.maths(MathsJob::Evaluate { version, content }),
            Command::Bank(bank) => {
                let manifest = self.manifest();
                self.store_job(StoreJob::Bank { bank, manifest })
            }
            Command::Settle { key, content } => self.store_job(StoreJob::Settle { key, content }),
            Command::AdoptBranch { branch } => self.store_job(StoreJob::Adopt(branch)),
            Command::Renew => match self.key.signing_request() {
                Ok(csr_der) => self.op(Op::Send(AgentMessage::Renew { csr_der })),
                Err(error) => {
                    tracing::warn!(%error, "the certificate cannot be renewed");
                    None
                }
            },
            Command::StoreCertificate { certificate_der } => self.store_certificate(certificate_der),
            Command::Exit(_) => None,
        }
    }

    fn manifest(&self) -> Arc<ModelManifest> {
        Arc::clone(self.manifest.as_ref().expect("models and rounds come after Prepared"))
    }

    fn op(&mut self, op: Op) -> Option<Event> {
        let link = self.link.as_ref()?;
        if link.ops.try_send(op).is_ok() {
            return None;
        }
        // Either the connection has ended, and says so in a moment, or it has taken nothing for 256 messages.
        self.link = None;
        Some(Event::Disconnected(Problem::Transient("the connection takes no more messages".to_owned())))
    }

    fn maths(&self, job: MathsJob) -> Option<Event> {
        let failed = |_| Event::Failed(Ending::Trainer("the trainer's thread has ended".to_owned()));
        self.maths.try_send(job).map_err(failed).err()
    }

    fn store_job(&self, job: StoreJob) -> Option<Event> {
        let failed = |_| Event::Failed(Ending::Storage("the store's thread has ended".to_owned()));
        self.store.jobs().try_send(job).map_err(failed).err()
    }

    fn store_certificate(&mut self, der: Vec<u8>) -> Option<Event> {
        let stored = identity::validity_ms(&der)
            .and_then(|validity| identity::write_certificate(&self.dir.certificate(), &der).map(|()| validity));
        let validity = match stored {
            Ok(validity) => validity,
            Err(error) => {
                tracing::warn!(%error, "the renewed certificate cannot be used");
                return None;
            }
        };
        let replaced = self.dialer.with_certificate(&der, &self.key.to_der());
        match replaced {
            Ok(dialer) => self.dialer = Arc::new(dialer),
            Err(error) => tracing::warn!(%error, "the renewed certificate cannot be used"),
        }
        tracing::info!("the certificate was renewed");
        Some(Event::CertificateStored { renew_at_ms: renewal(self.clock, validity) })
    }

    /// What a connection says, for the session; nothing if it is not the one that counts.
    fn translate(&mut self, number: u64, event: NetEvent) -> Option<Event> {
        if self.link.as_ref().map(|link| link.number) != Some(number) {
            return None;
        }
        Some(match event {
            NetEvent::Connected => Event::Connected,
            NetEvent::Message(message) => Event::Message(message),
            NetEvent::Chunk { transfer, index, bytes } => {
                self.traffic.downlink_bytes += bytes.len() as u64;
                Event::Chunk { transfer, index, bytes }
            }
            NetEvent::ChunksSent { transfer, bytes } => {
                self.traffic.uplink_bytes += bytes;
                Event::ChunksSent { transfer }
            }
            NetEvent::Disconnected(problem) => {
                self.link = None;
                Event::Disconnected(problem)
            }
        })
    }

    fn publish(&self) {
        let micro_batch = self.micro_batch.load(Ordering::Relaxed);
        let traffic = Traffic {
            micro_batch: (micro_batch > 0).then_some(micro_batch),
            encoded_by_trainer: self.store.encoded_there(),
            ..self.traffic.clone()
        };
        let live = LiveReport::of(&self.session, &traffic);
        if let Some(metrics) = &self.metrics {
            metrics.publish(&live, self.session.outbox().len());
        }
        let outbox = self.session.outbox().entries().map(|entry| WaitingUpdate::of(&entry.meta)).collect();
        self.report.change(|report| {
            report.live = Some(live);
            report.outbox = outbox;
            report.branch = self.session.branch();
        });
    }

    /// Lets the last words out, then closes the store.
    async fn farewell(self) {
        let Self { dir, link, mut net_events, work_events, store, stop, run, .. } = self;
        stop.set(true);
        // An end in order says nothing about memory. Where none was left there is none to remove.
        let _ = std::fs::remove_file(dir.memory());
        if let Some(link) = link {
            let number = link.number;
            let _ = link.ops.try_send(Op::Close);
            let gone = async {
                while let Some((of, event)) = net_events.recv().await {
                    if of == number && matches!(event, NetEvent::Disconnected(_)) {
                        return;
                    }
                }
            };
            if tokio::time::timeout(FAREWELL, gone).await.is_err() {
                tracing::debug!(run = %run.short(), "the connection did not close in time");
            }
        }
        // Events that the store's thread still has to say are for nobody: its queue is closed with this receiver.
        drop(work_events);
        let finished = tokio::task::spawn_blocking(move || store.finish());
        if tokio::time::timeout(FAREWELL, finished).await.is_err() {
            tracing::debug!("the store did not close in time; what it acknowledged is durable all the same");
        }
    }
}

fn log_offer(message: &AgentMessage) {
    if let AgentMessage::FetchModel { version, missing: Some(missing) } = message {
        let chunks = missing.indices(usize::MAX).count();
        tracing::debug!(version = version.0, chunks, "asking for the rest of a model");
    }
    if let AgentMessage::EvaluationFailed { version, reason } = message {
        tracing::debug!(version = version.0, reason, "telling the coordinator of a failed evaluation");
    }
    if let AgentMessage::OfferUpdate { meta, .. } = message {
        tracing::debug!(lease = meta.lease.0, epoch = meta.key.epoch.0, seq = meta.key.seq.0, "offering an update");
        faults::point("update-offered");
    }
}

fn renewal(clock: Clock, validity: (u64, u64)) -> u64 {
    clock.now_ms() + identity::renew_at_ms(validity).saturating_sub(clock::unix_ms())
}

fn log(event: &Event) {
    use anabranch_common::update::Verdict;
    use anabranch_common::wire::message::CoordinatorMessage as Said;
    match event {
        Event::Disconnected(Problem::Transient(why)) => tracing::warn!(why, "not connected; trying again"),
        Event::Message(Said::Welcome(welcome)) => tracing::info!(
            run = %welcome.run.short(), epoch = welcome.epoch.0, state = ?welcome.state, "connected as {}", welcome.name
        ),
        Event::Message(Said::Model { version, transfer, .. }) => {
            tracing::debug!(version = version.0, chunks = transfer.chunks.len(), "a model is announced");
        }
        Event::Message(Said::Lease { lease, .. }) => {
            tracing::debug!(lease = lease.id.0, base = lease.base_version.0, "lease");
        }
        Event::Message(Said::Verdict { key, verdict: Verdict::Refused { reason } }) => {
            tracing::warn!(epoch = key.epoch.0, seq = key.seq.0, reason = reason.as_str(), "update refused");
        }
        Event::Message(Said::Verdict { key, verdict: Verdict::Accepted { version, staleness, .. } }) => {
            tracing::debug!(epoch = key.epoch.0, seq = key.seq.0, version = version.0, staleness, "update accepted");
            faults::point("verdict-received");
        }
        Event::Message(Said::StateChanged { state }) => tracing::info!(?state, "the run's state has changed"),
        Event::Trained(outcome) => tracing::debug!(
            lease = outcome.lease.0,
            steps = outcome.local_steps,
            loss = outcome.train_loss,
            ms = outcome.compute_ms,
            "trained"
        ),
        Event::Discarded { problem, .. } => tracing::warn!(problem, "this round gave nothing to send"),
        Event::UnpackFailed { problem, .. } => tracing::warn!(problem, "the model that came cannot be used"),
        Event::EvaluationFailed { version, problem } => {
            tracing::warn!(version = version.0, problem, "this version cannot be evaluated here");
        }
        Event::Evaluated { version, accuracy, loss, .. } => {
            tracing::info!(version = version.0, accuracy, loss, "evaluated");
        }
        Event::Hold { reason: Some(reason) } => tracing::info!(reason, "taking on no new work"),
        Event::Hold { reason: None } => tracing::debug!("work may be taken on"),
        Event::Shutdown => tracing::info!("stopping; finished work is kept"),
        _ => {}
    }
}
