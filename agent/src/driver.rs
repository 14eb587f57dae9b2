//! The only `select!` over everything: feeds the host and carries out what it says. Decides nothing.

mod certificates;
mod part;
mod runs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::{AgentId, Incarnation, RunId};
use anabranch_common::limits;
use anabranch_common::wire::message::AgentMessage;
use anabranch_common::wire::runs::RunsWanted;
use anabranch_io::chunks::Piece;
use anabranch_io::durable::StorageError;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::{AgentConfig, AgentDir};
use crate::device::memory;
use crate::host::{AgentHost, Input, Output};
use crate::identity::{AgentKey, IdentityError};
use crate::manners::Manners;
use crate::metrics::{Metrics, MetricsError};
use crate::node::{self, Done, Job};
use crate::pod::{LinkIdentity, Links, LinksError};
use crate::report::AgentReport;
use crate::session::SessionConfig;
use crate::session::command::Ending;
use crate::session::event::Event;
use crate::store::Ledger;
use crate::train::native::replicas::ReplicaMemory;
use crate::transport::{
    self, Credentials, Dialer, LinkName, NetEvent, NetReceiver, NetSender, Op, RunsEvent, RunsLink, Uplink,
};
use crate::worker::{
    self, Inputs, KilledNotes, LinkedPods, MathsSetup, MathsThread, Pace, PodSetup, Pods, Shards, StopSignal,
    TrainerFactory,
};
use certificates::OwnIdentity;
use part::{Opened, Part, Setting};

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
    /// What it offers to pods, if it joins them. Not together with `runs`.
    pub pod: Option<PodSetup>,
    /// The runs to take part in beside the joined one, if any.
    pub runs: Option<RunsWanted>,
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
    /// The joined run.
    home: RunId,
    identity: OwnIdentity,
    /// When the certificate wants renewal, as the host knows it.
    renew_at_ms: u64,
    /// The coordinator's address that has worked last.
    last_address: String,
    clock: Clock,
    host: AgentHost,
    /// What this process has of each run.
    parts: BTreeMap<RunId, Part>,
    /// What was opened for runs that are about to begin.
    opened: Opened,
    /// What it takes to open another run's part.
    setting: Setting,
    /// Stores that are being closed.
    closing: BTreeMap<RunId, tokio::task::JoinHandle<()>>,
    uplink: Arc<Uplink>,
    /// Number of the latest link of this process.
    links_opened: u64,
    /// Links that are to close in good order.
    parting: BTreeSet<LinkName>,
    net: NetSender,
    net_events: NetReceiver,
    /// Which runs are asked for, if any.
    wanted: Option<RunsWanted>,
    /// The stream on which runs are listed, and its number.
    subscription: (u64, Option<RunsLink>),
    lists: mpsc::Sender<(u64, RunsEvent)>,
    list_events: mpsc::Receiver<(u64, RunsEvent)>,
    /// What threads and tasks of this process tell.
    inputs: mpsc::Receiver<Input>,
    tell: mpsc::Sender<Input>,
    maths: MathsThread,
    stop: Arc<StopSignal>,
    /// Why no work is to be taken on from the start.
    hold: Option<String>,
    report: SharedReport,
    metrics: Option<Metrics>,
    /// The port for other members of pods.
    pod_links: Option<Arc<Links>>,
}

impl Driver {
    /// Starts the threads and makes the host, in a tokio runtime. Nothing is sent before [`Self::run`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn new(setup: Setup) -> Result<Self, StartError> {
        let Setup { dir, config, key, shards, factory, device, pace, manners, ledger, pod, runs } = setup;
        let metrics = config.metrics.map(Metrics::serve).transpose()?;
        let clock = Clock::start();
        let identity = OwnIdentity::open(&dir, key)?;
        let renew_at_ms = identity.renew_at_ms(clock)?;
        let last_address = std::fs::read_to_string(dir.last_address()).unwrap_or_default().trim().to_owned();
        let dialer = Dialer::new(config.address.as_slice().to_vec(), identity.credentials())?.preferring(&last_address);
        let pod_links = pod.as_ref().map(|pod| {
            let Credentials { authorities, certificate_der, key_der } = identity.credentials().clone();
            let identity = LinkIdentity { run: config.run, authorities, certificate_der, key_der };
            Links::bind(pod.listen, identity).map(Arc::new)
        });
        let pod_links = pod_links.transpose()?;
        let offer = pod.as_ref().zip(pod_links.as_ref());
        let session = SessionConfig {
            device,
            pod: offer.and_then(|(pod, links)| Some(pod.offer(links.local_address()?))),
            renew_at_ms,
            ..session_config(&config, identity.agent(), &shards)?
        };
        let (home, agent) = (config.run, session.agent);
        let report =
            AgentReport { address: dialer.address().to_owned(), ..part::first_report(&config, &session, &ledger) };
        let (tell, inputs) = mpsc::channel(limits::AGENT_QUEUE_EVENTS);
        let (lists, list_events) = mpsc::channel(limits::WORKER_JOBS);
        let (net, net_events) = transport::queue();
        let keep_s = config.checkpoint_s.unwrap_or(limits::ROUND_KEEP_S);
        let killed = KilledNotes::open(dir.memory(), memory::kills);
        let setting = Setting { dir: dir.clone(), session, keep_s, killed, tell: tell.clone() };
        let (node, part, of_run) = setting.part_of(home, &dir, ledger)?;
        let stop = Arc::new(StopSignal::default());
        let setup = MathsSetup {
            pace,
            stop: Arc::clone(&stop),
            rounds: of_run.rounds,
            micro_batch: of_run.micro_batch,
            killed: of_run.killed,
            // A trainer that encodes has the state of one run's ledger.
            feedback: runs.is_none().then(|| part.store.feedback()),
            pods: pod.as_ref().zip(pod_links.clone()).map(|(pod, links)| linked_pods(pod, links, agent)),
            ..MathsSetup::new(factory, shards)
        };
        let maths = MathsThread::spawn(home, setup, Inputs::Host(home, tell.clone()))?;
        let hold = manners.watch(tell.clone())?;
        Ok(Self {
            dir,
            home,
            identity,
            renew_at_ms,
            last_address,
            clock,
            host: AgentHost::new(home, node, runs.is_some()),
            parts: BTreeMap::from([(home, part)]),
            opened: Opened::default(),
            setting,
            closing: BTreeMap::new(),
            uplink: Uplink::new(dialer),
            links_opened: 0,
            parting: BTreeSet::new(),
            net,
            net_events,
            wanted: runs,
            subscription: (0, None),
            lists,
            list_events,
            inputs,
            tell,
            maths,
            stop,
            hold,
            report: SharedReport(Arc::new(Mutex::new(report))),
            metrics,
            pod_links,
        })
    }

    /// What `status` shows.
    #[must_use]
    pub fn report(&self) -> SharedReport {
        self.report.clone()
    }

    /// Runs until the host leaves. Each message on `shutdown` asks for an orderly stop; the first one counts.
    pub async fn run(mut self, mut shutdown: mpsc::Receiver<()>) -> Ending {
        let outputs = self.host.start(self.clock.now_ms());
        let mut ending = self.carry_out(outputs);
        if let Some(reason) = self.hold.take() {
            self.step(Input::Hold { reason: Some(reason) });
        }
        let mut may_shut_down = true;
        let mut looks = tokio::time::interval(Duration::from_millis(limits::CERTIFICATE_LOOK_MS));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while ending.is_none() {
            let deadline = self.host.deadline_ms().map(|at_ms| Instant::from_std(self.clock.instant(at_ms)));
            let input = tokio::select! {
                asked = shutdown.recv(), if may_shut_down => {
                    may_shut_down = false;
                    match asked {
                        Some(()) => Input::Shutdown,
                        None => continue,
                    }
                }
                Some(input) = self.inputs.recv() => input,
                Some((link, event)) = self.net_events.recv() => match self.heard(link, event) {
                    Some(input) => input,
                    None => continue,
                },
                Some((number, event)) = self.list_events.recv() => match self.listed(number, event) {
                    Some(input) => input,
                    None => continue,
                },
                _ = looks.tick() => match self.look_at_certificate() {
                    Some(input) => input,
                    None => continue,
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Input::Tick,
            };
            ending = self.step(input);
        }
        self.farewell().await;
        ending.unwrap_or(Ending::Parked)
    }

    /// One input, and all that follows from it at once.
    fn step(&mut self, input: Input) -> Option<Ending> {
        if let Input::Begun { run, .. } = &input {
            self.take_opened(*run);
        }
        let run = match &input {
            Input::Run { run, .. } => Some(*run),
            _ => None,
        };
        let outputs = self.host.handle(self.clock.now_ms(), input);
        let ending = self.carry_out(outputs);
        self.publish(run);
        ending
    }

    fn carry_out(&mut self, mut outputs: Vec<Output>) -> Option<Ending> {
        let mut inputs = VecDeque::new();
        let mut ending = None;
        loop {
            for output in outputs {
                match output {
                    Output::Exit(why) => ending = Some(why),
                    output => inputs.extend(self.execute(output)),
                }
            }
            match inputs.pop_front() {
                Some(input) => outputs = self.host.handle(self.clock.now_ms(), input),
                None => return ending,
            }
        }
    }

    /// Carries out an output; what is known at once of its outcome comes back.
    fn execute(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Run { run, output } => self.execute_for(run, output).map(|input| Input::Run { run, input }),
            Output::Subscribe { after_ms } => {
                let number = self.subscription.0 + 1;
                let (uplink, after) = (Arc::clone(&self.uplink), Duration::from_millis(after_ms));
                let link = self
                    .wanted
                    .clone()
                    .map(|wanted| transport::subscribe(uplink, wanted, after, (number, self.lists.clone())));
                self.subscription = (number, link);
                None
            }
            Output::Begin(info) => {
                self.begin(info);
                None
            }
            Output::Ended { run, ending } => {
                self.end(run, &ending);
                None
            }
            Output::Sweep => {
                self.sweep();
                None
            }
            Output::Exit(_) => None,
        }
    }

    fn execute_for(&mut self, run: RunId, output: node::Output) -> Option<node::Input> {
        match output {
            node::Output::Open { number, after_ms } => {
                self.links_opened += 1;
                let (uplink, after) = (Arc::clone(&self.uplink), Duration::from_millis(after_ms));
                let name = LinkName { run, number: self.links_opened };
                let link = transport::open(uplink, name, after, self.net.clone());
                self.parts.get_mut(&run)?.link = Some((link, number));
                None
            }
            node::Output::Close { why } => {
                tracing::info!(why, run = %run.short(), "disconnecting");
                self.parts.get_mut(&run)?.link = None;
                None
            }
            node::Output::Send(message) => self.op(run, Op::Send(Box::new(message))),
            node::Output::SendChunks { content, transfer, missing } => {
                self.op(run, Op::SendChunks { content, transfer, missing })
            }
            node::Output::SendPart { content, transfer, first, missing } => {
                self.op(run, Op::SendPart { piece: Piece { transfer, first, content }, missing })
            }
            node::Output::Run(job) => self.run_job(run, job),
            node::Output::StopTraining => {
                self.stop.set(true);
                None
            }
            node::Output::Renew(renewal) => {
                let csr_der = self.request_certificate(renewal)?;
                self.op(run, Op::Send(Box::new(AgentMessage::Renew { csr_der })))
            }
            node::Output::StoreCertificate(renewed) => self.store_certificate(&renewed),
            node::Output::Exit(_) => None,
        }
    }

    fn run_job(&self, run: RunId, job: Job) -> Option<node::Input> {
        let (is_given, ending) = match job {
            Job::Store(job) => {
                let is_given = self.parts.get(&run)?.store.run(job);
                (is_given, Ending::Storage("the store's thread has ended".to_owned()))
            }
            Job::Maths(job) => {
                self.stop.set(false);
                let is_given = self.maths.run(run, job);
                (is_given, Ending::Trainer("the trainer's thread has ended".to_owned()))
            }
            Job::Unpack(job) => {
                let tell = self.tell.clone();
                tokio::task::spawn_blocking(move || {
                    let input = node::Input::Done(Done::Unpack(worker::unpack(job)));
                    // The loop has ended: the model is for nobody.
                    let _ = tell.blocking_send(Input::Run { run, input });
                });
                return None;
            }
        };
        (!is_given).then_some(node::Input::Event(Event::Failed(ending)))
    }

    fn op(&mut self, run: RunId, op: Op) -> Option<node::Input> {
        let part = self.parts.get_mut(&run)?;
        let (link, _) = part.link.as_ref()?;
        if link.ops.try_send(op).is_ok() {
            return None;
        }
        // Either the link has ended, and says so in a moment, or it has taken nothing for 256 messages.
        part.link = None;
        self.host.node(run).map(node::AgentNode::link_is_full)
    }

    /// What a link tells, for its run's node. What an earlier link tells counts no more.
    fn heard(&mut self, name: LinkName, event: NetEvent) -> Option<Input> {
        if matches!(event, NetEvent::Disconnected(_)) {
            self.parting.remove(&name);
        }
        if matches!(event, NetEvent::Connected) {
            self.note_coordinator();
        }
        let part = self.parts.get_mut(&name.run)?;
        let (link, number) = part.link.as_ref()?;
        let number = (link.name == name).then_some(*number)?;
        match &event {
            NetEvent::Chunk { bytes, .. } => part.traffic.downlink_bytes += bytes.len() as u64,
            NetEvent::ChunksSent { bytes, .. } => part.traffic.uplink_bytes += bytes,
            // There is nothing left to close.
            NetEvent::Disconnected(_) => part.link = None,
            NetEvent::Connected | NetEvent::Message(_) => {}
        }
        Some(Input::Run { run: name.run, input: node::Input::Link { number, event: event.into() } })
    }
}

/// Computes with other members of pods over `links`.
fn linked_pods(pod: &PodSetup, links: Arc<Links>, agent: AgentId) -> Box<dyn Pods> {
    let memory = ReplicaMemory::of_process(Some(pod.memory_bytes));
    Box::new(LinkedPods::new(links, agent, pod.threads, memory))
}

/// What the session of the joined run is told, but for its device, its pods and its certificate.
fn session_config(config: &AgentConfig, agent: AgentId, shards: &Shards) -> std::io::Result<SessionConfig> {
    let (mut incarnation, mut seed) = ([0; 16], [0; 8]);
    getrandom::fill(&mut incarnation).map_err(std::io::Error::other)?;
    getrandom::fill(&mut seed).map_err(std::io::Error::other)?;
    let len = |shard: &Option<Box<dyn crate::shard::Shard>>| shard.as_ref().map_or(0, |shard| shard.len() as u64);
    Ok(SessionConfig {
        run: config.run,
        agent,
        incarnation: Incarnation(incarnation),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        train_examples: len(&shards.train),
        eval_examples: len(&shards.eval),
        device: String::new(),
        pod: None,
        renew_at_ms: u64::MAX,
        backoff_seed: u64::from_le_bytes(seed),
        overlap: config.overlap.unwrap_or(true),
    })
}
