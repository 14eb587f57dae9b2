//! The loop that owns the core: the only `select!` over what can happen. It carries commands out and decides nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_common::ids::{AgentId, BranchId, RunId};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::RunSpec;
use anabranch_common::wire::message::{CoordinatorMessage, JoinRefusal, JoinResponse};
use anabranch_common::wire::operator::OperatorResponse;
use anabranch_io::exit::{ExitCode, Fail, storage_fail};
use anabranch_io::signals::{OnSignal, Signals};
use anabranch_io::{faults, tls};
use anyhow::Context;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::commands::{mismatch_fail, recovery_fail};
use crate::config::Config;
use crate::core::command::{Command, ExitReason};
use crate::core::content::Content;
use crate::core::event::{Event, Now, PeerId, RequestId};
use crate::core::roster::{MEMBER_KEYS, Roster, TOKEN_KEYS};
use crate::core::{Core, ModelMismatch, Options};
use crate::identity::{self, Identity};
use crate::merger::ModelState;
use crate::publish::Publisher;
use crate::recovery::{self, OTHER_VERSION_HELP, Recovered, RecoveryError};
use crate::store::{Catalogue, SledStore, Store};
use crate::transport::{self, Input, PeerOp, Shared};
use crate::workers::{self, Answer, Keep, MergeJob, Worker, WorkerError, WriteJob};

/// Directory of the store below the coordinator's.
pub const STORE_DIR: &str = "store";
/// Directory of half-received uploads below the coordinator's. It may be deleted while no coordinator runs.
pub const UPLOADS_DIR: &str = "uploads";

/// What `run` is given.
#[derive(Debug)]
pub struct RunOptions {
    /// The coordinator's directory.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: Config,
    /// Its certificates.
    pub identity: Identity,
}

/// Items in which builds before schema version 5 kept all members and all tokens.
const EARLIER_ROSTER_KEYS: [&str; 2] = ["members", "tokens"];

/// Reads tokens and members.
///
/// # Errors
/// The store fails, an item is damaged, or an earlier build wrote them in another form.
pub fn roster(catalogue: &dyn Catalogue) -> anyhow::Result<Roster> {
    for key in EARLIER_ROSTER_KEYS {
        if !catalogue.list(key).map_err(storage_fail)?.is_empty() {
            return Err(Fail::new(
                ExitCode::Storage,
                "an earlier build wrote the tokens and members of this directory",
            )
            .help(OTHER_VERSION_HELP)
            .into());
        }
    }
    let mut roster = Roster::default();
    for prefix in [TOKEN_KEYS, MEMBER_KEYS] {
        for key in catalogue.list(prefix).map_err(storage_fail)? {
            let Some(value) = catalogue.get(&key).map_err(storage_fail)? else { continue };
            roster.restore(&key, &value).context("a token or a member in the store is damaged")?;
        }
    }
    Ok(roster)
}

/// What the core is told at its start: the run's identifiers, and what run.toml says.
#[must_use]
pub fn options((run, first_branch): (RunId, BranchId), config: &Config) -> Options {
    Options {
        run,
        first_branch,
        lease_ttl_ms: milliseconds(config.schedule.lease_ttl_s),
        checkpoint_every_versions: config.checkpoint.every_versions,
        checkpoint_every_ms: milliseconds(config.checkpoint.every_s),
    }
}

/// Whole milliseconds; validated durations are finite and not negative.
#[expect(clippy::cast_possible_truncation, reason = "a float that is out of range saturates")]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}

/// Serves a run until it ends, or until a signal parks it. Until it serves, signals do what they did before.
///
/// # Errors
/// Whatever keeps the coordinator from starting or going on; each with its exit code.
pub fn run(options: RunOptions, signals: &mut Signals) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(options, signals));
    runtime.shutdown_timeout(Duration::from_millis(limits::EXIT_MS));
    result
}

async fn serve(RunOptions { dir, config, identity }: RunOptions, signals: &mut Signals) -> anyhow::Result<()> {
    let store: Arc<dyn Store> = Arc::new(SledStore::open_dir(&dir.join(STORE_DIR)).map_err(storage_fail)?);
    let (answers_in, answers) = mpsc::channel(limits::COORDINATOR_ANSWERS);
    let keep = Keep { checkpoints: config.checkpoint.keep, retention: config.checkpoint.retention };
    let writer = workers::writer(Arc::clone(&store), answers_in.clone())?;
    let merger = workers::merger(Arc::clone(&store), keep, answers_in)?;
    let (core, commands) = start(store.as_ref(), &config, &merger)?;
    let endpoint = endpoint(&config, &identity)?;
    let (inputs_in, inputs) = mpsc::channel(limits::COORDINATOR_QUEUE_EVENTS);
    let shared = Shared::new(inputs_in, Arc::clone(&store), dir.join(UPLOADS_DIR));
    faults::point("recovered");
    signals.set(OnSignal::Tell);
    tracing::info!(listen = %endpoint.local_addr()?, run = %config.spec.name, "serving");
    let accepting = tokio::spawn(transport::accept(endpoint.clone(), shared));
    let driver = Driver {
        merge: config.spec.merge.clone(),
        agent_certificate_days: config.server.agent_certificate_days,
        tick: Duration::from_millis(config.schedule.tick_ms.max(10)),
        started: clock::monotonic(),
        core,
        identity,
        writer,
        merger,
        manifest: None,
        publisher: Publisher::default(),
        peers: BTreeMap::new(),
        requests: BTreeMap::new(),
        joins: BTreeMap::new(),
        next_request: 0,
    };
    let ended = driver.work(commands, inputs, answers, signals).await;
    accepting.abort();
    endpoint.close(0u32.into(), b"coordinator is going away");
    tokio::time::timeout(Duration::from_millis(limits::EXIT_MS), endpoint.wait_idle()).await.ok();
    ended.map(|reason| say_goodbye(reason, &dir))
}

fn start(store: &dyn Store, config: &Config, merger: &Worker<MergeJob>) -> anyhow::Result<(Core, Vec<Command>)> {
    let options = options(identity::run::identifiers(store.catalogue()).map_err(storage_fail)?, config);
    let roster = roster(store.catalogue())?;
    let started = clock::monotonic();
    let now = Now { unix_ms: clock::unix_ms(), mono_ms: 0 };
    let recovered = match recovery::recover(store) {
        Ok(recovered) => {
            recovery::release(store).map_err(recovery_fail)?;
            recovered
        }
        Err(RecoveryError::Empty) => {
            tracing::info!("no model yet: the first agent makes it from the run's seed");
            return Ok((Core::new(options, config.spec.clone(), roster, now), Vec::new()));
        }
        Err(error) => return Err(recovery_fail(error)),
    };
    recovered.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let (version, position, replayed) = (recovered.state.version, recovered.position, recovered.replayed);
    tracing::info!(%version, %position, replayed, took_ms = started.elapsed().as_millis(), "recovered");
    let (core, commands, model) =
        resume(recovered, options, config.spec.clone(), roster, now).map_err(mismatch_fail)?;
    if let Some(model) = model {
        merger.send(MergeJob::Start(Box::new(model)));
    }
    Ok((core, commands))
}

/// Goes on from a recovered run: the core, what it wants done first, and the model that the merger begins with; none when
/// it had overflowed.
///
/// # Errors
/// The configured model is not the run's.
pub fn resume(
    recovered: Recovered,
    options: Options,
    spec: RunSpec,
    roster: Roster,
    now: Now,
) -> Result<(Core, Vec<Command>, Option<ModelState>), ModelMismatch> {
    let Recovered { state, model, chain, checkpoint_version, oldest, .. } = recovered;
    let (mut core, mut commands) =
        Core::resume(options, spec, roster, (state, chain), (oldest, checkpoint_version), now)?;
    core.take_up_the_end(now);
    // Killed between the record that made it overflow and the record that ends the run: end it now.
    let Some(version) = model.overflowed() else { return Ok((core, commands, Some(model))) };
    commands.extend(core.handle(now, Event::NonFinite { version }));
    Ok((core, commands, None))
}

fn endpoint(config: &Config, identity: &Identity) -> anyhow::Result<quinn::Endpoint> {
    let server = identity.server();
    let tls = tls::server(identity.ca_der(), &server.certificate_der, &server.key_der)?;
    Ok(tls::lasting_server_endpoint(config.server.listen, tls, &server.key_der)?)
}

fn say_goodbye(reason: ExitReason, dir: &Path) {
    match reason {
        ExitReason::Parked => tracing::info!("parked; `run` goes on from here"),
        ExitReason::Finished { reason, result } => {
            let dir = dir.display();
            let export = format!("checkpoint export --dir {dir} --out model.safetensors");
            tracing::info!(%reason, %result, "the run has finished; `{export}` writes its model");
        }
    }
}

struct Driver {
    merge: MergeSpec,
    agent_certificate_days: u32,
    tick: Duration,
    started: Instant,
    core: Core,
    identity: Identity,
    writer: Worker<WriteJob>,
    merger: Worker<MergeJob>,
    manifest: Option<Arc<ModelManifest>>,
    publisher: Publisher,
    peers: BTreeMap<PeerId, mpsc::Sender<PeerOp>>,
    requests: BTreeMap<RequestId, oneshot::Sender<OperatorResponse>>,
    joins: BTreeMap<RequestId, (Vec<u8>, oneshot::Sender<JoinResponse>)>,
    next_request: u64,
}

impl Driver {
    async fn work(
        mut self,
        commands: Vec<Command>,
        mut inputs: mpsc::Receiver<Input>,
        mut answers: mpsc::Receiver<Answer>,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitReason> {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut exit = self.carry_out(commands);
        while exit.is_none() {
            let event = tokio::select! {
                biased;
                Some(answer) = answers.recv() => self.answered(answer)?,
                _ = signals.recv() => Some(Event::Park),
                _ = ticks.tick() => Some(Event::Tick),
                Some(input) = inputs.recv() => self.input(input),
            };
            if let Some(event) = event {
                let commands = self.core.handle(self.now(), event);
                exit = self.carry_out(commands);
            }
        }
        for (_, ops) in std::mem::take(&mut self.peers) {
            ops.try_send(PeerOp::Close).ok();
        }
        let (writer, merger) = (self.writer, self.merger);
        tokio::task::spawn_blocking(move || {
            writer.finish();
            merger.finish();
        })
        .await?;
        // Whatever failed in the last moments still counts.
        while let Ok(answer) = answers.try_recv() {
            if let Answer::Failed(error) = answer {
                return Err(worker_fail(error));
            }
        }
        finite(exit.context("the loop ends with a reason")?)
    }

    fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { unix_ms: clock::unix_ms(), mono_ms }
    }

    fn answered(&mut self, answer: Answer) -> anyhow::Result<Option<Event>> {
        match answer {
            Answer::Event(event) => Ok(Some(event)),
            Answer::Published(snapshot) => {
                let (version, digest, transfer) = (snapshot.version, snapshot.digest, snapshot.transfer.clone());
                self.publisher.add(snapshot);
                Ok(Some(Event::Published { version, digest, transfer }))
            }
            Answer::Failed(error) => Err(worker_fail(error)),
        }
    }

    fn input(&mut self, input: Input) -> Option<Event> {
        match input {
            Input::Event(Event::Disconnected { peer }) => {
                self.peers.remove(&peer);
                Some(Event::Disconnected { peer })
            }
            Input::Event(event) => Some(event),
            // Nothing of it waits any more: its room ends here.
            Input::Message { peer, message, room: _ } => Some(Event::Message { peer, message }),
            Input::Connected { peer, agent, hello, ops } => {
                self.peers.insert(peer, ops);
                Some(Event::Connected { peer, agent, hello })
            }
            Input::Join { secret, csr_der, reply } => self.join(secret, csr_der, reply),
            Input::Operator { operation, reply } => {
                let request = self.request();
                self.requests.insert(request, reply);
                Some(Event::Operator { request, operation })
            }
        }
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// The request must be for a key that its sender holds before its token is looked at.
    fn join(&mut self, secret: [u8; 32], csr_der: Vec<u8>, reply: oneshot::Sender<JoinResponse>) -> Option<Event> {
        let Ok(agent) = identity::requester(&csr_der) else {
            reply.send(JoinResponse::Refused(JoinRefusal::BadRequest)).ok();
            return None;
        };
        let request = self.request();
        self.joins.insert(request, (csr_der, reply));
        Some(Event::Join { request, secret, agent })
    }

    fn carry_out(&mut self, commands: Vec<Command>) -> Option<ExitReason> {
        let mut exit = None;
        for command in commands {
            match command {
                Command::Begin { record, model } => self.begin(record, model),
                Command::Append { record } => self.writer.send(WriteJob::Append(record)),
                Command::SaveItems { ticket, items } => self.writer.send(WriteJob::Items { ticket, items }),
                Command::Merge { record, content } => self.merger.send(MergeJob::Merge { record, content }),
                Command::Publish => self.merger.send(MergeJob::Publish),
                Command::Checkpoint(order) => self.merger.send(MergeJob::Checkpoint(order)),
                Command::Joined { request, outcome } => self.joined(request, outcome),
                Command::Renew { peer, agent, name, csr_der } => self.renew(peer, agent, &name, &csr_der),
                Command::Reply { request, response } => {
                    if let Some(reply) = self.requests.remove(&request) {
                        reply.send(response).ok();
                    }
                }
                Command::Exit(reason) => exit = Some(reason),
                rest => self.tell_peer(rest),
            }
        }
        exit
    }

    fn tell_peer(&mut self, command: Command) {
        let (peer, op) = match command {
            Command::Send { peer, message } => (peer, PeerOp::Send(Box::new(message))),
            Command::Close { peer } => (peer, PeerOp::Close),
            Command::SendModel { peer, version, missing } => match self.publisher.get(version) {
                Some(snapshot) => (peer, PeerOp::SendModel { snapshot, missing }),
                None => (peer, PeerOp::Send(Box::new(CoordinatorMessage::ModelGone { version }))),
            },
            Command::ReceiveUpdate { peer, meta, transfer } => {
                let Some(manifest) = self.manifest() else { return };
                let what = transport::Expected::Update { meta: Box::new(meta), manifest };
                (peer, PeerOp::Receive { what, transfer })
            }
            Command::ReceiveModel { peer, manifest, digest, transfer } => {
                let what = transport::Expected::Model { manifest: Arc::new(manifest), digest };
                (peer, PeerOp::Receive { what, transfer })
            }
            _ => return,
        };
        match self.peers.get(&peer).map(|ops| ops.try_send(op)) {
            // A peer that does not read what it is sent is cut off: dropping its queue ends its connection.
            Some(Err(TrySendError::Full(_))) => {
                tracing::warn!(peer = peer.0, "a peer does not read its messages and is cut off");
                self.peers.remove(&peer);
            }
            // It has gone, and the loop will hear so when it has read what came before.
            Some(Err(TrySendError::Closed(_))) => {
                tracing::debug!(peer = peer.0, "a peer has gone before it could be told");
                self.peers.remove(&peer);
            }
            None | Some(Ok(())) => {}
        }
    }

    fn manifest(&mut self) -> Option<Arc<ModelManifest>> {
        if self.manifest.is_none() {
            self.manifest = self.core.state().map(|state| Arc::new(state.manifest.clone()));
        }
        self.manifest.clone()
    }

    fn begin(&mut self, record: Arc<anabranch_common::journal::Record>, model: Arc<Content>) {
        let Some(manifest) = self.manifest() else { return };
        let values = model.delta().values().to_vec();
        let first = ModelState::new((*manifest).clone(), self.merge.clone(), values, Default::default());
        match first {
            Ok(state) => self.merger.send(MergeJob::Start(Box::new(state))),
            Err(error) => tracing::error!(%error, "the core has checked the initial model"),
        }
        self.writer.send(WriteJob::Begin { record, model });
    }

    fn joined(&mut self, request: RequestId, outcome: Result<(AgentId, String), JoinRefusal>) {
        let Some((csr_der, reply)) = self.joins.remove(&request) else { return };
        let response = outcome.and_then(|(agent, name)| {
            let days = self.agent_certificate_days;
            let issued = self.identity.issue_agent(&csr_der, &name, days, clock::unix_ms());
            let certificate_der = issued.map_err(|_| JoinRefusal::BadRequest)?.certificate_der;
            tracing::info!(%agent, name, "an agent has joined");
            let (run, ca_der) = (self.core.run(), self.identity.ca_der().to_vec());
            Ok(JoinResponse::Enrolled { run, agent, name, certificate_der, ca_der })
        });
        reply.send(response.unwrap_or_else(JoinResponse::Refused)).ok();
    }

    fn renew(&mut self, peer: PeerId, agent: AgentId, name: &str, csr_der: &[u8]) {
        match self.identity.issue_agent(csr_der, name, self.agent_certificate_days, clock::unix_ms()) {
            Ok(issued) if issued.agent == agent => {
                let message = CoordinatorMessage::Renewed { certificate_der: issued.certificate_der };
                self.tell_peer(Command::Send { peer, message });
            }
            Ok(_) => tracing::warn!(%agent, "an agent asked for a certificate for another key"),
            Err(error) => tracing::warn!(%agent, %error, "a certificate was not renewed"),
        }
    }
}

pub(crate) fn worker_fail(error: WorkerError) -> anyhow::Error {
    match error {
        WorkerError::Storage(error) => storage_fail(error).into(),
        WorkerError::Recovery(error) => recovery_fail(error),
        error => anyhow::Error::new(error),
    }
}

/// A run that ended because its model overflowed has an exit code of its own.
fn finite(reason: ExitReason) -> anyhow::Result<ExitReason> {
    use anabranch_common::journal::FinishReason;
    match reason {
        ExitReason::Finished { reason: FinishReason::NonFinite, result } => {
            let message = format!("the model stopped being finite; version {result} is the last one that is");
            let help = "export that version with `checkpoint export`, and try a smaller learning rate or step";
            Err(Fail::new(ExitCode::NotFinite, message).help(help).into())
        }
        reason => Ok(reason),
    }
}
