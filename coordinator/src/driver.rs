//! The loop that owns the host: the only `select!` over what can happen. Sockets, signals and threads are here, and no
//! decision is.
//!
//! | file | what is in it |
//! |---|---|
//! | `driver/jobs.rs` | the jobs of runs, on threads that all of them share |
//! | `driver/directories.rs` | what is open of each run, and jobs on their directories |
//! | `driver/publish.rs` | snapshots of the process for those who watch it, and the HTTP server |
//! | `driver/searches.rs` | the stores of searches, and jobs for searches |

mod directories;
mod jobs;
mod publish;
mod searches;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_common::limits;
use anabranch_common::wire::message::JoinResponse;
use anabranch_common::wire::probe::Facts;
use anabranch_io::exit::{self, ExitCode, Fail, storage_fail};
use anabranch_io::signals::{OnSignal, Signals};
use anabranch_io::{faults, tls};
use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::commands::{mismatch_fail, recovery_fail};
use crate::config::Config;
use crate::core::command::ExitReason;
use crate::core::event::{Now, PeerId, RequestId};
use crate::core::status::Answer;
use crate::host::{self, Host, Output};
use crate::identity::Identity;
use crate::node::{JobError, ToPeer};
use crate::recovery::OTHER_VERSION_HELP;
use crate::registry::certificates::Authorities;
use crate::registry::roster::{MEMBER_KEYS, PAGE_TOKEN_KEYS, Roster, TOKEN_KEYS};
use crate::registry::{self, Registry, Signer};
use crate::runs::{self, OpenError};
use crate::store::{Catalogue, Store};
use crate::transport::{self, Input, PeerOp, Shared, Shown};
use crate::workers::{RegistryWorkers, RunWorkers};

use directories::Directories;
use publish::Publisher;
pub use publish::WatchOptions;
use searches::SearchStores;

/// What `run` is given.
#[derive(Debug)]
pub struct RunOptions {
    /// The coordinator's directory.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: Config,
    /// Its certificates.
    pub identity: Identity,
    /// Whether the process stays when every run has ended.
    pub stay: bool,
    /// How the process can be watched.
    pub watch: WatchOptions,
}

/// Items in which builds before schema version 5 kept all members and all tokens.
const EARLIER_ROSTER_KEYS: [&str; 2] = ["members", "tokens"];

/// Reads tokens, members and page tokens.
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
    for prefix in [TOKEN_KEYS, MEMBER_KEYS, PAGE_TOKEN_KEYS] {
        for key in catalogue.list(prefix).map_err(storage_fail)? {
            let Some(value) = catalogue.get(&key).map_err(storage_fail)? else { continue };
            roster.restore(&key, &value).context("a token or a member in the store is damaged")?;
        }
    }
    Ok(Registry::new(roster))
}

/// Serves the runs of a directory until they end, or until a signal parks them. Until it serves, signals do what they did before.
///
/// # Errors
/// Whatever keeps the coordinator from starting or going on; each with its exit code.
pub fn run(options: RunOptions, signals: &mut Signals) -> anyhow::Result<()> {
    allow_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(options, signals));
    runtime.shutdown_timeout(Duration::from_millis(limits::EXIT_MS));
    result
}

/// Raises the number of files that this process may open to what the system allows: each run has a store.
fn allow_open_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!(%error, "the number of open files cannot be raised");
    }
}

async fn serve(options: RunOptions, signals: &mut Signals) -> anyhow::Result<()> {
    let RunOptions { dir, config, identity, stay, watch } = options;
    let started = clock::monotonic();
    let store = runs::stores::open(&dir, config.store.url.as_deref()).map_err(storage_fail)?;
    let authorities = Authorities::of(&identity.authorities());
    let mut host = Host::new(registry(store.catalogue())?.with_authorities(authorities));
    if stay {
        host.stay();
    }
    runs::sweep(&dir).map_err(storage_fail)?;
    let others = runs::names(&dir).map_err(storage_fail)?;
    let (inputs_in, inputs) = mpsc::channel(limits::COORDINATOR_QUEUE_EVENTS);
    let shared = Shared::new(inputs_in, BTreeMap::new());
    let (done_in, done) = mpsc::channel(limits::COORDINATOR_ANSWERS);
    let grants = Arc::clone(host.registry().page_grants());
    let publisher = Publisher::start(watch, &config, &identity, (Arc::clone(&shared), grants))?;
    let mut directories =
        Directories::new(dir.clone(), Arc::clone(&shared), done_in, publisher.as_ref().map(Publisher::events));
    let mut outputs = match start(&mut host, &mut directories, &config, &store) {
        Ok(outputs) => outputs,
        // Other runs do not depend on it; with none there is nothing to serve.
        Err(error) if others.is_empty() => return Err(error),
        Err(error) => {
            let why = exit::render(&error).trim_end().replace('\n', "; ");
            tracing::error!(run = %config.spec.name, why, "this run is not served");
            host.cannot_serve(&config.spec.name, true, why);
            directories.cannot_serve_own(&config.spec.name, error);
            Vec::new()
        }
    };
    let endpoint = endpoint(&config, &identity)?;
    let (answers_in, answers) = mpsc::channel(limits::COORDINATOR_ANSWERS);
    let (lifetime_days, names) = (config.server.agent_certificate_days, config.server.certificate_names());
    let signer = Signer { identity, lifetime_days, names };
    let registry_workers = RegistryWorkers::start(store, signer, &answers_in)?;
    others.into_iter().for_each(|name| outputs.extend(host.open(name)));
    let searches = runs::searches::names(&dir).map_err(storage_fail)?;
    searches.into_iter().for_each(|name| outputs.extend(host.open_search(name)));
    faults::point("recovered");
    signals.set(OnSignal::Tell);
    tracing::info!(listen = %endpoint.local_addr()?, run = %config.spec.name, "serving");
    let accepting = tokio::spawn(transport::accept(endpoint.clone(), Arc::clone(&shared)));
    let driver = Driver {
        tick: Duration::from_millis(config.schedule.tick_ms.max(10)),
        started,
        host,
        directories,
        endpoint: endpoint.clone(),
        searches: SearchStores::new(dir, answers_in.clone()),
        run_workers: RunWorkers::new(&answers_in),
        registry_workers,
        answers: answers_in,
        peers: BTreeMap::new(),
        requests: BTreeMap::new(),
        joins: BTreeMap::new(),
        facts: BTreeMap::new(),
        answered: VecDeque::new(),
        next_request: 0,
        publisher,
    };
    let ended = driver.work(outputs, inputs, (answers, done), signals).await;
    accepting.abort();
    // What was asked for may have ended the process.
    tokio::time::timeout(Duration::from_millis(limits::EXIT_MS), shared.answered()).await.ok();
    endpoint.close(0u32.into(), b"coordinator is going away");
    tokio::time::timeout(Duration::from_millis(limits::EXIT_MS), endpoint.wait_idle()).await.ok();
    ended
}

/// Reads what the store holds of the run that shares its directory with the process, and starts it.
fn start(
    host: &mut Host,
    directories: &mut Directories,
    config: &Config,
    store: &Arc<dyn Store>,
) -> anyhow::Result<Vec<Output>> {
    let opened = runs::open_with(directories.root(), config, Arc::clone(store), true).map_err(open_fail)?;
    let now = Now { unix_ms: clock::unix_ms(), mono_ms: 0 };
    let outputs = host.start_opened(opened.run, now).map_err(mismatch_fail)?;
    directories.add(opened.files);
    Ok(outputs)
}

fn open_fail(error: OpenError) -> anyhow::Error {
    match error {
        OpenError::Storage(error) => storage_fail(error).into(),
        OpenError::Recovery(error) => recovery_fail(error),
        OpenError::Config(error) => anyhow::Error::new(error),
    }
}

fn endpoint(config: &Config, identity: &Identity) -> anyhow::Result<quinn::Endpoint> {
    let server = identity.server();
    let tls = tls::server(identity.authorities(), &server.certificate_der, &server.key_der)?;
    Ok(tls::lasting_server_endpoint(config.server.listen, tls, &server.key_der)?)
}

/// Logs how a run has ended.
fn say_goodbye(reason: ExitReason, run: &str, is_alone: bool, dir: &Path) {
    match reason {
        ExitReason::Parked => tracing::info!(run, "parked; `run` goes on from here"),
        ExitReason::Finished { reason, result } => {
            let dir = dir.display();
            let which = if is_alone { String::new() } else { format!(" --run {run}") };
            let export = format!("checkpoint export --dir {dir}{which} --out model.safetensors");
            tracing::info!(run, %reason, %result, "the run has finished; `{export}` writes its model");
        }
    }
}

struct Driver {
    tick: Duration,
    started: Instant,
    host: Host,
    directories: Directories,
    endpoint: quinn::Endpoint,
    searches: SearchStores,
    run_workers: RunWorkers,
    registry_workers: RegistryWorkers,
    answers: mpsc::Sender<host::Input>,
    peers: BTreeMap<PeerId, mpsc::Sender<PeerOp>>,
    requests: BTreeMap<RequestId, oneshot::Sender<Answer>>,
    joins: BTreeMap<RequestId, oneshot::Sender<JoinResponse>>,
    /// At most one for each connection that is being greeted.
    facts: BTreeMap<RequestId, oneshot::Sender<Facts>>,
    /// Answers that are here already.
    answered: VecDeque<host::Input>,
    next_request: u64,
    publisher: Option<Publisher>,
}

/// Answers of workers, and of jobs on directories.
type Answers = (mpsc::Receiver<host::Input>, mpsc::Receiver<directories::Done>);

impl Driver {
    async fn work(
        mut self,
        outputs: Vec<Output>,
        mut inputs: mpsc::Receiver<Input>,
        (mut answers, mut done): Answers,
        signals: &mut Signals,
    ) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut exit = self.carry_out(outputs);
        self.publish();
        while exit.is_none() {
            let input = match self.answered.pop_front() {
                Some(answer) => answer,
                None => tokio::select! {
                    biased;
                    Some(done) = answers.recv() => done,
                    Some(done) = done.recv() => host::Input::Runs(self.directories.take(done)),
                    _ = signals.recv() => {
                        self.directories.park();
                        self.publish_next();
                        host::Input::Park
                    }
                    _ = ticks.tick() => host::Input::Tick,
                    () = publish::due(self.publisher.as_ref()) => {
                        self.publish();
                        continue;
                    }
                    Some(input) = inputs.recv() => self.translate(input),
                },
            };
            let outputs = self.host.handle(self.now(), input);
            self.publish_grants();
            exit = self.carry_out(outputs);
        }
        let exit = exit.context("the loop ends with a reason")?;
        self.publish_end(exit.as_ref().err()).await;
        exit.map_err(job_fail)?;
        // Workers that wait for room for an answer would be waited for below; operators hear that there is none.
        drop((inputs, answers, done, self.requests, self.joins, self.facts));
        let ended = self.directories.into_result();
        let (run_workers, registry_workers) = (self.run_workers, self.registry_workers);
        if ended.is_ok() {
            tokio::task::spawn_blocking(move || run_workers.finish()).await?;
            tokio::task::spawn_blocking(move || registry_workers.finish()).await?;
        }
        ended
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
            Input::Connected { peer, shown: Shown { agent, certificate }, hello, ops, room: _ } => {
                self.peers.insert(peer, ops);
                host::Input::Hello { peer, agent, certificate: Some(certificate), hello }
            }
            Input::Subscribed { peer, shown: Shown { agent, certificate }, wanted, ops, room: _ } => {
                self.peers.insert(peer, ops);
                host::Input::Subscribe { peer, agent, certificate: Some(certificate), wanted }
            }
            Input::Join { secret, agent, csr_der, reply } => {
                let request = self.request();
                self.joins.insert(request, reply);
                host::Input::Join { request, secret, agent, csr_der }
            }
            Input::Facts { shown: Shown { agent, certificate }, run, reply } => {
                let request = self.request();
                self.facts.insert(request, reply);
                host::Input::Facts { request, agent, certificate: Some(certificate), run }
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
                Output::Show(shown) => self.show(&shown),
                Output::Reply { request, answer } => reply(self.requests.remove(&request), answer),
                Output::JoinReply { request, response } => reply(self.joins.remove(&request), response),
                Output::Facts { request, facts } => reply(self.facts.remove(&request), facts),
                Output::DeferJoin { request } => _ = self.joins.remove(&request),
                Output::Ended { run, ended } => self.directories.ended(run, ended),
                Output::Runs(job) => self.directories.start(job),
                Output::Searches(job) => self.start_search_job(job),
                Output::Close { run } => self.directories.forget(run),
                Output::Measure { run } => self.measure(run),
                Output::Look { request, run, what } => self.look(request, run, what),
                // Asked for by the verbs of a stopped coordinator alone: `rest`.
                Output::Replaced { .. } => {}
                Output::Exit(ended) => exit = Some(ended),
            }
        }
        exit
    }

    /// Shows another certificate to whoever connects from now on, and trusts other CAs.
    fn show(&mut self, shown: &registry::Shown) {
        let registry::Shown { authorities, server, .. } = shown;
        match tls::server(authorities, &server.certificate_der, &server.key_der) {
            Ok(config) => self.endpoint.set_server_config(Some(config)),
            Err(error) => tracing::error!(%error, "the new certificates cannot be used; start `run` again"),
        }
        if let Some(publisher) = &self.publisher {
            publisher.show_certificates(shown);
        }
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
