//! The loop that owns the host: the only `select!` over what can happen. Sockets, signals and threads are here, and no
//! decision is.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_common::ids::{BranchId, RunId};
use anabranch_common::limits;
use anabranch_common::transfer::{Budgets, Half};
use anabranch_common::wire::message::JoinResponse;
use anabranch_io::exit::{ExitCode, Fail, storage_fail};
use anabranch_io::signals::{OnSignal, Signals};
use anabranch_io::{faults, tls};
use anyhow::Context;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::commands::{mismatch_fail, recovery_fail};
use crate::config::Config;
use crate::core::Options;
use crate::core::command::ExitReason;
use crate::core::event::{Now, PeerId, RequestId};
use crate::core::status::Answer;
use crate::host::{self, Host, Output};
use crate::identity::{self, Identity};
use crate::node::checkpoint::Keep;
use crate::node::{Job, JobError, Settings, ToPeer};
use crate::recovery::{self, OTHER_VERSION_HELP, RecoveryError};
use crate::registry::Registry;
use crate::registry::roster::{MEMBER_KEYS, Roster, TOKEN_KEYS};
use crate::store::{Catalogue, SledStore, Store};
use crate::transport::{self, Input, PeerOp, RunFiles, Shared, Spool};
use crate::workers::{RegistryWorkers, RunWorkers};

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
pub fn registry(catalogue: &dyn Catalogue) -> anyhow::Result<Registry> {
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
    Ok(Registry::new(roster))
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
    let started = clock::monotonic();
    let (spool, halves) = Spool::open(dir.join(UPLOADS_DIR));
    let spool = Arc::new(spool);
    let mut host = Host::new(registry(store.catalogue())?);
    let (run, outputs) = start(&mut host, store.as_ref(), &config, &halves)?;
    let endpoint = endpoint(&config, &identity)?;
    let (answers_in, answers) = mpsc::channel(limits::COORDINATOR_WORKERS);
    let keep = Keep { checkpoints: config.checkpoint.keep, retention: config.checkpoint.retention };
    let workers = RunWorkers::start(run, Arc::clone(&store), keep, &answers_in)?;
    let days = config.server.agent_certificate_days;
    let registry_workers = RegistryWorkers::start(Arc::clone(&store), Arc::new(identity), days, &answers_in)?;
    let (inputs_in, inputs) = mpsc::channel(limits::COORDINATOR_QUEUE_EVENTS);
    let files = RunFiles { store, spool: Arc::clone(&spool) };
    let shared = Shared::new(inputs_in, BTreeMap::from([(run, files)]));
    faults::point("recovered");
    signals.set(OnSignal::Tell);
    tracing::info!(listen = %endpoint.local_addr()?, run = %config.spec.name, "serving");
    let accepting = tokio::spawn(transport::accept(endpoint.clone(), shared));
    let driver = Driver {
        tick: Duration::from_millis(config.schedule.tick_ms.max(10)),
        started,
        host,
        runs: BTreeMap::from([(run, RunMeans { workers, spool, ended: None })]),
        registry_workers,
        answers: answers_in,
        peers: BTreeMap::new(),
        requests: BTreeMap::new(),
        joins: BTreeMap::new(),
        answered: VecDeque::new(),
        next_request: 0,
    };
    let ended = driver.work(outputs, inputs, answers, signals).await;
    accepting.abort();
    endpoint.close(0u32.into(), b"coordinator is going away");
    tokio::time::timeout(Duration::from_millis(limits::EXIT_MS), endpoint.wait_idle()).await.ok();
    ended.map(|reason| say_goodbye(reason, &dir))
}

/// Reads what the store holds of a run, and starts it.
fn start(host: &mut Host, store: &dyn Store, config: &Config, halves: &[Half]) -> anyhow::Result<(RunId, Vec<Output>)> {
    let options = options(identity::run::identifiers(store.catalogue()).map_err(storage_fail)?, config);
    let started = clock::monotonic();
    let recovered = match recovery::recover(store) {
        Ok(recovered) => {
            recovery::release(store).map_err(recovery_fail)?;
            recovered.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            let (version, position, replayed) = (recovered.state.version, recovered.position, recovered.replayed);
            tracing::info!(%version, %position, replayed, took_ms = started.elapsed().as_millis(), "recovered");
            Some(recovered)
        }
        Err(RecoveryError::Empty) => {
            tracing::info!("no model yet: the first agent makes it from the run's seed");
            None
        }
        Err(error) => return Err(recovery_fail(error)),
    };
    let now = Now { unix_ms: clock::unix_ms(), mono_ms: 0 };
    let decoders = std::thread::available_parallelism().map_or(1, usize::from);
    let run = options.run;
    let settings = Settings { options, spec: config.spec.clone(), budgets: Budgets::with_decoders(decoders) };
    let outputs = host.start(settings, recovered, halves, now).map_err(mismatch_fail)?;
    Ok((run, outputs))
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

/// What carries out the jobs of a run, and how it has ended.
struct RunMeans {
    workers: RunWorkers,
    spool: Arc<Spool>,
    ended: Option<Result<ExitReason, JobError>>,
}

struct Driver {
    tick: Duration,
    started: Instant,
    host: Host,
    runs: BTreeMap<RunId, RunMeans>,
    registry_workers: RegistryWorkers,
    answers: mpsc::Sender<host::Input>,
    peers: BTreeMap<PeerId, mpsc::Sender<PeerOp>>,
    requests: BTreeMap<RequestId, oneshot::Sender<Answer>>,
    joins: BTreeMap<RequestId, oneshot::Sender<JoinResponse>>,
    /// Answers that are here already.
    answered: VecDeque<host::Input>,
    next_request: u64,
}

impl Driver {
    async fn work(
        mut self,
        outputs: Vec<Output>,
        mut inputs: mpsc::Receiver<Input>,
        mut answers: mpsc::Receiver<host::Input>,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitReason> {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut exit = self.carry_out(outputs);
        while exit.is_none() {
            let input = match self.answered.pop_front() {
                Some(answer) => answer,
                None => tokio::select! {
                    biased;
                    Some(done) = answers.recv() => done,
                    _ = signals.recv() => host::Input::Park,
                    _ = ticks.tick() => host::Input::Tick,
                    Some(input) = inputs.recv() => self.translate(input),
                },
            };
            let outputs = self.host.handle(self.now(), input);
            exit = self.carry_out(outputs);
        }
        exit.context("the loop ends with a reason")?.map_err(job_fail)?;
        let (runs, registry_workers) = (self.runs, self.registry_workers);
        let mut reason = None;
        for (_, RunMeans { workers, ended, .. }) in runs {
            reason = Some(ended.context("the loop ends when its run has")?.map_err(job_fail)?);
            tokio::task::spawn_blocking(move || workers.finish()).await?;
        }
        tokio::task::spawn_blocking(move || registry_workers.finish()).await?;
        finite(reason.context("there is a run")?)
    }

    fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { unix_ms: clock::unix_ms(), mono_ms }
    }

    /// Keeps what is needed to answer, and tells the host the rest.
    fn translate(&mut self, input: Input) -> host::Input {
        match input {
            Input::Host(input) => {
                if let host::Input::Disconnected { peer } = &input {
                    self.peers.remove(peer);
                }
                input
            }
            // Nothing of it waits any more: its room ends here.
            Input::Message { peer, message, room: _ } => host::Input::Message { peer, message },
            Input::Connected { peer, agent, hello, ops } => {
                self.peers.insert(peer, ops);
                host::Input::Hello { peer, agent, hello }
            }
            Input::Subscribed { peer, agent, wanted, ops } => {
                self.peers.insert(peer, ops);
                host::Input::Subscribe { peer, agent, wanted }
            }
            Input::Join { secret, agent, csr_der, reply } => {
                let request = self.request();
                self.joins.insert(request, reply);
                host::Input::Join { request, secret, agent, csr_der }
            }
            Input::Operator { operation, reply } => {
                let request = self.request();
                self.requests.insert(request, reply);
                host::Input::Operator { request, operation }
            }
        }
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Carries out outputs. Returns how the process ends, if it does.
    fn carry_out(&mut self, outputs: Vec<Output>) -> Option<Result<(), JobError>> {
        let mut exit = None;
        for output in outputs {
            match output {
                Output::ToPeer(what) => self.tell_peer(what),
                Output::List { peer, list } => self.tell_op(peer, PeerOp::List(list)),
                Output::Run { run, job } => {
                    let answer = self.run(run, job);
                    self.answered.extend(answer);
                }
                Output::Save(group) => {
                    self.answered.extend(self.registry_workers.save(group).map(host::Input::Registry));
                }
                Output::Sign(jobs) => {
                    self.answered.extend(self.registry_workers.sign(jobs).map(host::Input::Registry));
                }
                Output::Reply { request, answer } => reply(self.requests.remove(&request), answer),
                Output::JoinReply { request, response } => reply(self.joins.remove(&request), response),
                Output::DeferJoin { request } => _ = self.joins.remove(&request),
                Output::Ended { run, ended } => {
                    if let Some(means) = self.runs.get_mut(&run) {
                        means.ended = Some(ended);
                    }
                }
                // Asked for by the verbs of a stopped coordinator alone: `rest`.
                Output::Replaced { .. } => {}
                Output::Exit(ended) => exit = Some(ended),
            }
        }
        exit
    }

    /// Has a job done. Returns its answer if it is done already, or if the worker does not take it.
    fn run(&self, run: RunId, job: Job) -> Option<host::Input> {
        let means = self.runs.get(&run)?;
        let (answers, spool) = (self.answers.clone(), Arc::clone(&means.spool));
        let answer = move |done| host::Input::Done { run, done };
        match job {
            // It takes less time than to be handed out and back, and then waits for none of the few decoders.
            Job::Decode(job) if job.is_short() => {
                let failure = job.failure();
                return Some(answer(catch_unwind(AssertUnwindSafe(|| job.run())).unwrap_or(failure)));
            }
            Job::Decode(job) => {
                tokio::spawn(async move {
                    let failure = job.failure();
                    let done = tokio::task::spawn_blocking(move || job.run()).await.unwrap_or(failure);
                    answers.send(answer(done)).await.ok();
                });
            }
            Job::Pack(job) if job.is_short() => {
                let failure = job.failure();
                return Some(answer(catch_unwind(AssertUnwindSafe(|| job.run())).unwrap_or(failure)));
            }
            Job::Pack(job) => {
                tokio::spawn(async move {
                    let failure = job.failure();
                    let done = tokio::task::spawn_blocking(move || job.run()).await.unwrap_or(failure);
                    answers.send(answer(done)).await.ok();
                });
            }
            Job::Spool(job) => {
                tokio::spawn(async move {
                    let failure = job.failure();
                    let done = tokio::task::spawn_blocking(move || spool.run(job)).await.unwrap_or(failure);
                    if let Some(done) = done {
                        answers.send(answer(done)).await.ok();
                    }
                });
            }
            job => return means.workers.run(job).map(answer),
        }
        None
    }

    fn tell_peer(&mut self, what: ToPeer) {
        let (peer, op) = match what {
            ToPeer::Send { peer, message } => (peer, PeerOp::Send(message)),
            ToPeer::SendChunks { peer, download, model, missing } => {
                (peer, PeerOp::SendChunks { download, model, missing })
            }
            ToPeer::Receive { peer, sink, on_disk } => (peer, PeerOp::Receive { sink, on_disk }),
            ToPeer::Forget { peer, transfer } => (peer, PeerOp::Forget { transfer }),
            ToPeer::Close { peer } => (peer, PeerOp::Close),
        };
        self.tell_op(peer, op);
    }

    fn tell_op(&mut self, peer: PeerId, op: PeerOp) {
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
}

/// Answers a request, unless its sender has given it up.
fn reply<T>(sender: Option<oneshot::Sender<T>>, answer: T) {
    if let Some(sender) = sender {
        sender.send(answer).ok();
    }
}

pub(crate) fn job_fail(error: JobError) -> anyhow::Error {
    match error {
        JobError::Storage(error) => storage_fail(error).into(),
        JobError::Recovery(error) => recovery_fail(error),
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
