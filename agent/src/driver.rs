//! The only `select!` over everything: feeds the node and carries out what it says. Decides nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use anabranch_common::ids::{Incarnation, RunId};
use anabranch_common::limits;
use anabranch_common::wire::message::AgentMessage;
use anabranch_io::chunks::Piece;
use anabranch_io::durable::StorageError;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock::{self, Clock};
use crate::config::{AgentConfig, AgentDir};
use crate::device::memory;
use crate::identity::{self, AgentKey, IdentityError};
use crate::manners::Manners;
use crate::metrics::{Metrics, MetricsError};
use crate::node::{AgentNode, Done, Input, Job, MathsJob, Output};
use crate::pod::{LinkIdentity, Links, LinksError};
use crate::report::{AgentReport, LiveReport, Traffic, WaitingUpdate};
use crate::session::command::Ending;
use crate::session::event::Event;
use crate::session::{Session, SessionConfig};
use crate::store::Ledger;
use crate::train::Rounds;
use crate::train::native::replicas::ReplicaMemory;
use crate::transport::{self, Dialer, Link, NetEvent, NetReceiver, NetSender, Op};
use crate::worker::{
    self, KilledNote, LinkedPods, MathsSetup, Pace, PodSetup, Pods, Shards, StopSignal, StoreThread, TrainerFactory,
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
    /// What it offers to pods, if it joins them.
    pub pod: Option<PodSetup>,
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
    /// The address for other members of pods.
    #[error(transparent)]
    Links(#[from] LinksError),
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
    node: AgentNode,
    dialer: Arc<Dialer>,
    link: Option<Link>,
    net: NetSender,
    net_events: NetReceiver,
    /// What threads and tasks of this process tell.
    inputs: mpsc::Receiver<Input>,
    tell: mpsc::Sender<Input>,
    maths: SyncSender<MathsJob>,
    store: StoreThread,
    stop: Arc<StopSignal>,
    traffic: Traffic,
    /// Examples that the latest round computed at once; 0 where that is not known.
    micro_batch: Arc<AtomicU32>,
    /// Why no work is to be taken on from the start.
    hold: Option<String>,
    report: SharedReport,
    metrics: Option<Metrics>,
    /// The port for other members of pods.
    links: Option<Arc<Links>>,
}

impl Driver {
    /// Starts the threads and makes the session, in a tokio runtime. Nothing is sent before [`Self::run`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn new(setup: Setup) -> Result<Self, StartError> {
        let Setup { dir, config, key, shards, factory, device, pace, manners, ledger, pod } = setup;
        let metrics = config.metrics.map(Metrics::serve).transpose()?;
        let clock = Clock::start();
        let certificate = identity::read_certificate(&dir.certificate())?;
        let ca = identity::read_certificate(&dir.ca())?;
        let validity = identity::validity_ms(&certificate)?;
        let dialer = Dialer::new(config.address.clone(), &ca, &certificate, &key.to_der())?;
        let links = pod.as_ref().map(|pod| {
            let (ca_der, certificate_der) = (ca.to_vec(), certificate.to_vec());
            let identity = LinkIdentity { run: config.run, ca_der, certificate_der, key_der: key.to_der() };
            Links::bind(pod.listen, identity).map(Arc::new)
        });
        let links = links.transpose()?;
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
            pod: pod.as_ref().zip(links.as_ref()).and_then(|(pod, links)| Some(pod.offer(links.local_address()?))),
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
        let node = AgentNode::new(session, ledger.fresh());
        let (tell, inputs) = mpsc::channel(limits::AGENT_QUEUE_EVENTS);
        let (net, net_events) = transport::queue();
        let stop = Arc::new(StopSignal::default());
        let micro_batch = Arc::new(AtomicU32::new(0));
        let store = StoreThread::spawn(ledger, run, agent, tell.clone())?;
        let setup = MathsSetup {
            factory,
            shards,
            pace,
            stop: Arc::clone(&stop),
            rounds,
            micro_batch: Arc::clone(&micro_batch),
            killed: Some(KilledNote::open(dir.memory(), memory::kills)),
            feedback: Some(store.feedback()),
            pods: pod.as_ref().zip(links.clone()).map(|(pod, links)| -> Box<dyn Pods> {
                let memory = ReplicaMemory::of_process(Some(pod.memory_bytes));
                Box::new(LinkedPods::new(links, agent, pod.threads, memory))
            }),
        };
        let maths = worker::spawn_maths(setup, tell.clone())?;
        let hold = manners.watch(tell.clone())?;
        Ok(Self {
            dir,
            run,
            key,
            clock,
            node,
            dialer: Arc::new(dialer),
            link: None,
            net,
            net_events,
            inputs,
            tell,
            maths,
            store,
            stop,
            traffic: Traffic::default(),
            micro_batch,
            hold,
            report: SharedReport(Arc::new(Mutex::new(report))),
            metrics,
            links,
        })
    }

    /// What `status` shows.
    #[must_use]
    pub fn report(&self) -> SharedReport {
        self.report.clone()
    }

    /// Runs until the session ends. Each message on `shutdown` asks for an orderly stop; the first one counts.
    pub async fn run(mut self, mut shutdown: mpsc::Receiver<()>) -> Ending {
        let mut ending = self.step(Input::Event(Event::Started));
        if let Some(reason) = self.hold.take() {
            self.step(Input::Event(Event::Hold { reason: Some(reason) }));
        }
        let mut may_shut_down = true;
        while ending.is_none() {
            let deadline = self.node.session().deadline_ms();
            let deadline = deadline.map(|at_ms| Instant::from_std(self.clock.instant(at_ms)));
            let input = tokio::select! {
                asked = shutdown.recv(), if may_shut_down => {
                    may_shut_down = false;
                    match asked {
                        Some(()) => Input::Event(Event::Shutdown),
                        None => continue,
                    }
                }
                Some(input) = self.inputs.recv() => input,
                Some((number, event)) = self.net_events.recv() => self.heard(number, event),
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    Input::Event(Event::Tick)
                }
            };
            ending = self.step(input);
        }
        self.farewell().await;
        ending.unwrap_or(Ending::Parked)
    }

    /// One input, and all that follows from it at once.
    fn step(&mut self, input: Input) -> Option<Ending> {
        let mut inputs = VecDeque::from([input]);
        let mut ending = None;
        while let Some(input) = inputs.pop_front() {
            for output in self.node.handle(self.clock.now_ms(), input) {
                match output {
                    Output::Exit(why) => ending = Some(why),
                    output => inputs.extend(self.execute(output)),
                }
            }
        }
        self.publish();
        ending
    }

    /// Carries out an output; what is known at once of its outcome comes back.
    fn execute(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Open { number, after_ms } => {
                let (dialer, after) = (Arc::clone(&self.dialer), Duration::from_millis(after_ms));
                self.link = Some(transport::open(dialer, number, after, self.net.clone()));
                None
            }
            Output::Close { why } => {
                tracing::info!(why, "disconnecting");
                self.link = None;
                None
            }
            Output::Send(message) => self.op(Op::Send(Box::new(message))),
            Output::SendChunks { content, transfer, missing } => self.op(Op::SendChunks { content, transfer, missing }),
            Output::SendPart { content, transfer, first, missing } => {
                self.op(Op::SendPart { piece: Piece { transfer, first, content }, missing })
            }
            Output::Run(job) => self.run_job(job),
            Output::StopTraining => {
                self.stop.set(true);
                None
            }
            Output::Renew => match self.key.signing_request() {
                Ok(csr_der) => self.op(Op::Send(Box::new(AgentMessage::Renew { csr_der }))),
                Err(error) => {
                    tracing::warn!(%error, "the certificate cannot be renewed");
                    None
                }
            },
            Output::StoreCertificate(certificate_der) => self.store_certificate(&certificate_der),
            Output::Exit(_) => None,
        }
    }

    fn run_job(&self, job: Job) -> Option<Input> {
        let (is_given, ending) = match job {
            Job::Store(job) => (self.store.run(job), Ending::Storage("the store's thread has ended".to_owned())),
            Job::Maths(job) => {
                self.stop.set(false);
                let is_given = self.maths.try_send(job).is_ok();
                (is_given, Ending::Trainer("the trainer's thread has ended".to_owned()))
            }
            Job::Unpack(job) => {
                let tell = self.tell.clone();
                tokio::task::spawn_blocking(move || {
                    // The loop has ended: the model is for nobody.
                    let _ = tell.blocking_send(Input::Done(Done::Unpack(worker::unpack(job))));
                });
                return None;
            }
        };
        (!is_given).then_some(Input::Event(Event::Failed(ending)))
    }

    fn op(&mut self, op: Op) -> Option<Input> {
        let link = self.link.as_ref()?;
        if link.ops.try_send(op).is_ok() {
            return None;
        }
        // Either the connection has ended, and says so in a moment, or it has taken nothing for 256 messages.
        self.link = None;
        Some(self.node.link_is_full())
    }

    fn store_certificate(&mut self, der: &[u8]) -> Option<Input> {
        let stored = identity::validity_ms(der)
            .and_then(|validity| identity::write_certificate(&self.dir.certificate(), der).map(|()| validity));
        let validity = match stored {
            Ok(validity) => validity,
            Err(error) => {
                tracing::warn!(%error, "the renewed certificate cannot be used");
                return None;
            }
        };
        let replaced = self.dialer.with_certificate(der, &self.key.to_der());
        match replaced {
            Ok(dialer) => self.dialer = Arc::new(dialer),
            Err(error) => tracing::warn!(%error, "the renewed certificate cannot be used"),
        }
        if let Some(Err(error)) = self.links.as_ref().map(|links| links.replace_certificate(der)) {
            tracing::warn!(%error, "the renewed certificate cannot be shown to other members of pods");
        }
        tracing::info!("the certificate was renewed");
        Some(Input::Event(Event::CertificateStored { renew_at_ms: renewal(self.clock, validity) }))
    }

    /// What a connection tells, for the node.
    fn heard(&mut self, number: u64, event: NetEvent) -> Input {
        match &event {
            NetEvent::Chunk { bytes, .. } => self.traffic.downlink_bytes += bytes.len() as u64,
            NetEvent::ChunksSent { bytes, .. } => self.traffic.uplink_bytes += bytes,
            // There is nothing left to close.
            NetEvent::Disconnected(_) => _ = self.link.take_if(|link| link.number == number),
            NetEvent::Connected | NetEvent::Message(_) => {}
        }
        Input::Link { number, event: event.into() }
    }

    fn publish(&self) {
        let micro_batch = self.micro_batch.load(Ordering::Relaxed);
        let traffic = Traffic {
            micro_batch: (micro_batch > 0).then_some(micro_batch),
            encoded_by_trainer: self.store.encoded_there(),
            ..self.traffic.clone()
        };
        let session = self.node.session();
        let live = LiveReport::of(session, &traffic);
        if let Some(metrics) = &self.metrics {
            metrics.publish(&live, session.outbox().len());
        }
        let outbox = session.outbox().entries().map(|entry| WaitingUpdate::of(&entry.meta)).collect();
        self.report.change(|report| {
            report.live = Some(live);
            report.outbox = outbox;
            report.branch = session.branch();
        });
    }

    /// Lets the last words out, then closes the store.
    async fn farewell(self) {
        let Self { dir, link, mut net_events, inputs, store, stop, run, .. } = self;
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
        // What the store's thread still has to tell is for nobody: it must not wait for room in this queue.
        drop(inputs);
        let finished = tokio::task::spawn_blocking(move || store.finish());
        if tokio::time::timeout(FAREWELL, finished).await.is_err() {
            tracing::debug!("the store did not close in time; what it acknowledged is durable all the same");
        }
    }
}

fn renewal(clock: Clock, validity: (u64, u64)) -> u64 {
    clock.now_ms() + identity::renew_at_ms(validity).saturating_sub(clock::unix_ms())
}
