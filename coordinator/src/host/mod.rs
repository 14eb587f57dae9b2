//! The process as one synchronous object without I/O: its runs, and the registry that they share. The driver feeds it
//! from sockets and threads, the simulation from a virtual network and disk.
//!
//! ```text
//!                    ┌─ Hello ──────────► Registry: a member? ─► the node of the run that it names
//!  Input ─► Host ────┼─ Message, Sent, Received, Disconnected ─► the node of the connection's run ─► ToPeer, Run
//!    ▲               ├─ Subscribe ──────► Registry: a member? ─► List, again whenever a run starts or ends
//!    │               ├─ Facts ──────────► Registry: a member? ─► Facts, of a run that is served
//!    │               ├─ Operator, for a run ───────────────────► that node ─► Reply, completed with the members
//!    │               ├─ Operator, Join ─► Registry ─► lanes: saver, signer ─► Save, Sign ─► Reply, JoinReply
//!    │               └─ Tick, Park ────────────────────────────► every node
//!    │                                            ▲         │
//!    │       Registry ─► Revoke ──► every node ───┘         └─► Renew ─► Registry
//!    └── Done of a run, Done of the registry
//! ```
//! A run that ends or fails leaves the others alone: it is told with [`Output::Ended`]. When the last one has ended and
//! the registry has nothing left to do, [`Output::Exit`] follows; where the last run has failed, it follows at once. A job
//! of the registry that fails ends the process. What an operator has asked of a run that ends is answered `Failed`.
//! `runs` has what operators do with whole runs, `searches` the searches over configurations.

mod answer;
mod certificates;
mod facts;
mod greeting;
mod input;
mod output;
mod runs;
mod searches;
mod subscriptions;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::lane::Lane;
use anabranch_common::status::{RunSummary, StatusReport};
use anabranch_common::transfer::Half;
use anabranch_common::wire::message::{JoinRefusal, JoinResponse};
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RegistryRequest};

pub use answer::{Candidate, choose};
pub use input::Input;
pub use output::Output;
pub use runs::{About, OpenedRun, RunsDone, RunsJob};
use runs::{ConnectionEnd, Opening, Unserved};
pub use searches::{CopiedModel, SearchTexts, SearchView, SearchesDone, SearchesJob};
use searches::{News, Searches};
pub use view::{Health, HostView, MemberView, RunQueues, RunView};

use crate::core::ModelMismatch;
use crate::core::command::ExitReason;
use crate::core::event::{Event, Now, PeerId, RequestId};
use crate::node::{self, JobError, Node, Settings, ToPeer};
use crate::recovery::Recovered;
use crate::registry::save::{self, SaveJob};
use crate::registry::{self, Registry, Signed, SignerJob};
use certificates::welcomed;
use greeting::{Admitted, Caller};
use subscriptions::Subscriptions;

/// `agents revoke`, saved, while runs have to hear of it.
#[derive(Debug)]
struct Revocation {
    runs: BTreeSet<RunId>,
    response: OperatorResponse,
}

/// Whether the process goes on.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The last run has failed: nothing is waited for.
    Failed,
    /// [`Output::Exit`] was returned.
    Gone,
}

/// The process.
#[derive(Debug)]
pub struct Host {
    registry: Registry,
    nodes: BTreeMap<RunId, Node>,
    /// Runs that are served, or were.
    about: BTreeMap<RunId, About>,
    /// The last words on runs that are over in this process.
    ended: BTreeMap<RunId, RunSummary>,
    /// The last reports of those that have not failed.
    last_reports: BTreeMap<RunId, Box<StatusReport>>,
    /// Runs that cannot be served, by name.
    unserved: BTreeMap<String, Unserved>,
    /// Runs whose directories are being made or opened, by name: with the others at most `limits::RUNS`.
    opening: BTreeMap<String, Opening>,
    /// Runs that are being deleted, by name, and who waits for that.
    deleting: BTreeMap<String, RequestId>,
    /// Whether the process stays when every run has ended.
    stays: bool,
    /// Whether the process was asked to park its runs.
    parking: bool,
    /// Deleted runs of which files are left: at most `limits::RUNS`.
    left_over: BTreeSet<String>,
    /// Runs whose stores are being measured.
    measuring: BTreeSet<RunId>,
    /// Requests for which stores of ended runs are being read: at most `limits::RUN_LOOKS`.
    looking: usize,
    /// Monotonic time in milliseconds at which stores with a quota are measured next.
    measure_at_ms: u64,
    /// Each control stream whose agent was let in.
    peers: BTreeMap<PeerId, Admitted>,
    /// The stream on which each member was asked to renew its certificate.
    asked_to_renew: BTreeMap<AgentId, PeerId>,
    /// At most `limits::JOINS_WAITING` joins and `limits::REGISTRY_CHANGES_WAITING` changes of operators: the registry
    /// counts them.
    saver: Lane<SaveJob>,
    /// The same joins, and one renewal of each control stream: at most `limits::CONTROL_STREAMS` of each connection.
    signer: Lane<SignerJob>,
    revocations: BTreeMap<RequestId, Revocation>,
    /// Agents that hear which runs there are.
    subscriptions: Subscriptions,
    /// The run of each operator's request that a run has still to answer.
    asked: BTreeMap<RequestId, RunId>,
    searches: Searches,
    /// Jobs of runs that are not answered, by run.
    jobs_out: BTreeMap<RunId, usize>,
    phase: Phase,
    out: Vec<Output>,
}

impl Host {
    /// A process that serves no run yet.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            nodes: BTreeMap::new(),
            about: BTreeMap::new(),
            ended: BTreeMap::new(),
            last_reports: BTreeMap::new(),
            unserved: BTreeMap::new(),
            opening: BTreeMap::new(),
            deleting: BTreeMap::new(),
            stays: false,
            parking: false,
            left_over: BTreeSet::new(),
            measuring: BTreeSet::new(),
            looking: 0,
            measure_at_ms: 0,
            peers: BTreeMap::new(),
            asked_to_renew: BTreeMap::new(),
            saver: Lane::default(),
            signer: Lane::default(),
            revocations: BTreeMap::new(),
            subscriptions: Subscriptions::default(),
            asked: BTreeMap::new(),
            searches: Searches::default(),
            jobs_out: BTreeMap::new(),
            phase: Phase::Serving,
            out: Vec::new(),
        }
    }

    /// Starts the run that shares its directory with the process: see [`Node::start`]. It is told of members that were
    /// revoked while its record of that was lost, or while it did not run. Returns what is to be done first.
    ///
    /// # Errors
    /// The configured model is not the run's. Nothing has changed then.
    pub fn start(
        &mut self,
        settings: Settings,
        recovered: Option<Recovered>,
        halves: &[Half],
        now: Now,
    ) -> Result<Vec<Output>, ModelMismatch> {
        let about = About::own(&settings.spec.name);
        self.start_opened(OpenedRun { about, settings, recovered, halves: halves.to_vec() }, now)
    }

    /// Starts a run whose store is open, likewise.
    ///
    /// # Errors
    /// The configured model is not the run's. Nothing has changed then.
    pub fn start_opened(&mut self, opened: OpenedRun, now: Now) -> Result<Vec<Output>, ModelMismatch> {
        let OpenedRun { about, settings, recovered, halves } = opened;
        self.begin(about, settings, recovered, &halves, now)?;
        Ok(self.outputs())
    }

    fn begin(
        &mut self,
        about: About,
        settings: Settings,
        recovered: Option<Recovered>,
        halves: &[Half],
        now: Now,
    ) -> Result<(), ModelMismatch> {
        let run = settings.options.run;
        let (node, outputs) = Node::start(settings, recovered, halves, now)?;
        self.subscriptions.started(run, &about.name, about.weight);
        let takes_part = |agent: &AgentId| {
            let known = node.core().state().and_then(|state| state.agents.get(agent));
            known.is_some_and(|known| !known.revoked)
        };
        let revoked: Vec<AgentId> = self.registry.revoked().filter(takes_part).collect();
        self.nodes.insert(run, node);
        self.about.insert(run, about);
        self.take(now, run, outputs);
        for agent in revoked {
            self.tell(now, run, node::Input::Event(Event::AgentRevoked { agent, request: None }));
        }
        self.trial_opened(now, run);
        Ok(())
    }

    /// Starts a run of a stopped coordinator: see [`Node::start_at_rest`]. Returns what is to be done first.
    pub fn start_at_rest(&mut self, settings: Settings, recovered: Option<Recovered>, now: Now) -> Vec<Output> {
        let (run, about) = (settings.options.run, About::own(&settings.spec.name));
        let (node, outputs) = Node::start_at_rest(settings, recovered, now);
        self.nodes.insert(run, node);
        self.about.insert(run, about);
        self.take(now, run, outputs);
        self.outputs()
    }

    /// Takes one input. `now` never goes back in its monotonic part.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        if self.phase == Phase::Gone {
            return Vec::new();
        }
        match input {
            Input::Message { peer, message } => {
                self.tell_peer_run(now, peer, node::Input::Event(Event::Message { peer, message }));
            }
            Input::Sent { peer, download, bytes } => {
                self.tell_peer_run(now, peer, node::Input::Sent { peer, download, bytes });
            }
            Input::Received { peer, chunk } => self.tell_peer_run(now, peer, node::Input::Received(chunk)),
            Input::Done { run, done } => {
                self.tell(now, run, node::Input::Done(done));
                self.note_done(run);
            }
            Input::Hello { peer, agent, certificate, hello } => {
                self.hello(now, Caller { agent, certificate }, peer, hello);
            }
            Input::Subscribe { peer, agent, certificate, wanted } => {
                self.subscribe(Caller { agent, certificate }, peer, wanted);
            }
            Input::Facts { request, agent, certificate, run } => {
                self.tell_facts(request, Caller { agent, certificate }, run);
            }
            Input::Disconnected { peer } => {
                self.subscriptions.closed(peer);
                self.signer.retain(|job| !job.renews_for(peer));
                if let Some(Admitted { run, agent, .. }) = self.peers.remove(&peer) {
                    self.not_asked(agent, peer);
                    self.tell(now, run, node::Input::Event(Event::Disconnected { peer }));
                }
            }
            Input::Replace { run, event } => self.tell(now, run, node::Input::Event(event)),
            Input::Tick => {
                self.measure(now);
                self.tell_all(now, || Event::Tick);
            }
            Input::Measured { run, disk_bytes } => self.measured(now, run, disk_bytes),
            Input::Park => {
                self.parking = true;
                // What is only being opened waits for the next start; what is being made must have its answer.
                self.opening.retain(|_, opening| opening.is_asked_for());
                self.tell_all(now, || Event::Park);
            }
            Input::Operator { .. } if self.is_leaving() => {}
            Input::Join { request, secret, agent, csr_der } => match self.joined_run(&secret) {
                Ok(run) => {
                    self.tell_registry(now, registry::Event::Join { request, run, secret, agent, csr_der });
                }
                Err(Some(refusal)) => {
                    self.out.push(Output::JoinReply { request, response: JoinResponse::Refused(refusal) });
                }
                Err(None) => self.out.push(Output::DeferJoin { request }),
            },
            Input::PageTokenUsed { id } => self.tell_registry(now, registry::Event::PageTokenUsed { id }),
            Input::Operator { request, operation } => self.operate(now, request, operation),
            Input::Runs(done) => self.runs_done(now, done),
            Input::Searches(done) => self.searches_done(now, done),
            Input::Looked { request, answer } => {
                self.looking = self.looking.saturating_sub(1);
                let answer = answer::with_members(answer, &self.registry);
                self.out.push(Output::Reply { request, answer });
            }
            Input::Registry(done) => self.registry_done(now, done),
        }
        self.settle_searches(now);
        self.outputs()
    }

    /// Members and tokens.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A run that is served.
    #[must_use]
    pub fn node(&self, run: RunId) -> Option<&Node> {
        self.nodes.get(&run)
    }

    /// Whether the process is about to end: nothing of what anybody asks for counts any more.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        let may_go = self.parking || !self.stays;
        may_go && self.opening.is_empty() && !self.searches_go_on() && self.nodes.values().all(Node::is_leaving)
    }

    /// Runs that still take something up. A run that is about to end would not answer.
    fn serving(&self) -> impl Iterator<Item = RunId> {
        self.nodes.iter().filter(|(_, node)| !node.is_leaving()).map(|(run, _)| *run)
    }

    /// The served run that is meant where none is named: the one that shares its directory with the process, if it may be
    /// that one.
    fn first_serving(&self, may_be: impl Fn(RunId) -> bool) -> Option<RunId> {
        let is_own = |run: &RunId| self.about.get(run).is_some_and(|about| about.is_own);
        self.serving().filter(|run| may_be(*run)).min_by_key(|run| (!is_own(run), *run))
    }

    /// The run that the answer to a join names: one that the token is for, whether it is served or not. With a token for all
    /// runs that of the process, else the only one.
    ///
    /// # Errors
    /// Several runs may be meant; or nobody can tell yet: the agent tries again.
    fn joined_run(&self, secret: &[u8; 32]) -> Result<RunId, Option<JoinRefusal>> {
        let any = self.first_serving(|_| true).ok_or(None)?;
        if let Some(runs) = self.registry.runs_of(secret) {
            let of_token = self.first_serving(|run| runs.contains(&run)).or_else(|| runs.first().copied());
            return of_token.ok_or(None);
        }
        let is_own = self.about.get(&any).is_some_and(|about| about.is_own);
        let is_known = self.registry.roster().tokens().of_secret(secret).is_some();
        match self.serving().count() {
            // Which run it would be is nothing to somebody whose token is refused.
            _ if is_own || !is_known => Ok(any),
            _ if !self.opening.is_empty() => Err(None),
            1 => Ok(any),
            _ => Err(Some(JoinRefusal::SeveralRuns)),
        }
    }

    fn tell_peer_run(&mut self, now: Now, peer: PeerId, input: node::Input) {
        if let Some(Admitted { run, .. }) = self.peers.get(&peer) {
            self.tell(now, *run, input);
        }
    }

    fn tell(&mut self, now: Now, run: RunId, input: node::Input) {
        if let Some(node) = self.nodes.get_mut(&run) {
            let outputs = node.handle(now, input);
            self.take(now, run, outputs);
        }
    }

    fn tell_all(&mut self, now: Now, event: impl Fn() -> Event) {
        let runs: Vec<RunId> = self.nodes.keys().copied().collect();
        for run in runs {
            self.tell(now, run, node::Input::Event(event()));
        }
    }

    fn take(&mut self, now: Now, run: RunId, outputs: Vec<node::Output>) {
        self.out.reserve(outputs.len());
        for output in outputs {
            match output {
                node::Output::ToPeer(what) => {
                    let welcomed = welcomed(&what);
                    self.out.push(Output::ToPeer(what));
                    welcomed.into_iter().for_each(|peer| self.note_welcome(peer));
                }
                node::Output::Run(job) => {
                    self.note_job(run, &job);
                    self.out.push(Output::Run { run, job });
                }
                node::Output::Renew { peer, agent, csr_der } => {
                    // One that the agent has asked for before on this connection is superseded.
                    self.signer.retain(|job| !job.renews_for(peer));
                    self.renew(now, peer, agent, csr_der);
                }
                node::Output::Revoked { request } => self.revoked_in(run, request),
                node::Output::Reply { request, answer, uploads } => {
                    self.asked.remove(&request);
                    let answer = answer::complete(answer, &self.registry, uploads);
                    self.out.push(Output::Reply { request, answer });
                }
                node::Output::Replaced { request, outcome } => self.out.push(Output::Replaced { request, outcome }),
                node::Output::Trial(news) => self.note_news(run, News::Trial(news)),
                node::Output::Exit(ended) => self.run_ended(run, ended),
            }
        }
    }

    fn operate(&mut self, now: Now, request: RequestId, operation: OperatorRequest) {
        match operation {
            OperatorRequest::Registry(operation) => match self.with_ids(operation) {
                Ok(operation) => {
                    if matches!(operation, RegistryRequest::CaStatus | RegistryRequest::CaFinish { .. }) {
                        self.registry.set_connected(self.peers.values().map(|peer| peer.agent).collect());
                    }
                    self.tell_registry(now, registry::Event::Operator { request, operation });
                }
                Err(response) => self.answer(request, response),
            },
            OperatorRequest::Runs(operation) => self.operate_runs(request, operation),
            OperatorRequest::Search(operation) => self.operate_search(now, request, operation),
            OperatorRequest::Run { run, request: operation } => match self.resolve(run.as_deref()) {
                Ok(run) if let Some(response) = self.refused_for_trial(run, &operation) => {
                    self.answer(request, response)
                }
                Ok(run) if self.serving().any(|served| served == run) => {
                    self.asked.insert(request, run);
                    self.tell(now, run, node::Input::Event(Event::Operator { request, operation }));
                }
                Ok(run) => self.answer_for_ended(request, run, operation),
                Err(response) => self.answer(request, response),
            },
        }
    }

    /// Puts the id in the place of each run's name: names may be used again. An id may be that of any run.
    fn with_ids(&self, operation: RegistryRequest) -> Result<RegistryRequest, OperatorResponse> {
        let RegistryRequest::TokenCreate { name, ttl_ms, uses, secret_digest, runs } = operation else {
            return Ok(operation);
        };
        let id_of = |run: String| match run.parse::<RunId>() {
            Ok(_) => Ok(run),
            Err(_) => self.resolve(Some(&run)).map(|run| run.to_string()),
        };
        let runs = runs.into_iter().map(id_of).collect::<Result<_, _>>()?;
        Ok(RegistryRequest::TokenCreate { name, ttl_ms, uses, secret_digest, runs })
    }

    fn tell_registry(&mut self, now: Now, event: registry::Event) {
        if let Some(command) = self.registry.handle(now, event) {
            self.obey(now, command);
        }
    }

    /// Does what the registry wants done.
    fn obey(&mut self, now: Now, command: registry::Command) {
        match command {
            registry::Command::Save(job) => self.saver.push(job),
            registry::Command::Sign(job) => {
                // A further token may be for further runs.
                job.agent().into_iter().for_each(|agent| self.subscriptions.may_enter_more(agent));
                self.signer.push(job);
            }
            registry::Command::AskToRenew { request, response } => {
                self.asked_to_renew.clear();
                self.ask_all_to_renew();
                self.out.push(Output::Reply { request, answer: response.into() });
            }
            registry::Command::SendRenewed { renewal, .. } => self.send_renewed(renewal),
            registry::Command::CloseReplaced { agent } => self.close_replaced(agent),
            registry::Command::DeferJoin { request } => self.out.push(Output::DeferJoin { request }),
            registry::Command::RefuseJoin { request, refusal } => {
                self.out.push(Output::JoinReply { request, response: JoinResponse::Refused(refusal) });
            }
            registry::Command::Reply { request, response } => {
                self.out.push(Output::Reply { request, answer: response.into() });
            }
            registry::Command::Revoke { request, agent, response } => {
                let streams = self.subscriptions.revoked(agent).into_iter();
                self.out.extend(streams.map(|peer| Output::ToPeer(ToPeer::Close { peer })));
                let runs = self.nodes.keys().copied().collect();
                self.revocations.insert(request, Revocation { runs, response });
                self.tell_all(now, || Event::AgentRevoked { agent, request: Some(request) });
            }
        }
    }

    fn registry_done(&mut self, now: Now, done: registry::Done) {
        match done {
            registry::Done::Saved(Ok(tickets)) => {
                self.saver.done();
                for ticket in tickets {
                    self.tell_registry(now, registry::Event::Saved { ticket });
                }
            }
            registry::Done::Saved(Err(error)) => self.fail(error.into()),
            registry::Done::Panicked(worker) => self.fail(JobError::Panicked(worker)),
            registry::Done::NotTaken(worker) => self.fail(JobError::NotTaken(worker)),
            registry::Done::Signed(signed) => {
                self.signer.done();
                for signed in signed {
                    match signed {
                        Signed::Join { request, response } => {
                            self.tell_registry(now, registry::Event::JoinAnswered);
                            self.out.push(Output::JoinReply { request, response });
                        }
                        Signed::Renewal { agent, until_ms, renewal } if self.peers.contains_key(&renewal.peer) => {
                            self.tell_registry(now, registry::Event::Issued { agent, until_ms, renewal });
                        }
                        Signed::Renewal { .. } => {}
                        Signed::Authority { request, outcome } => self.stepped(now, request, outcome),
                    }
                }
            }
        }
    }

    /// A run has heard of a revocation, or will at its next start. The last one lets the operator be answered.
    fn revoked_in(&mut self, run: RunId, request: RequestId) {
        if let Some(waiting) = self.revocations.get_mut(&request) {
            waiting.runs.remove(&run);
        }
    }

    fn run_ended(&mut self, run: RunId, ended: Result<ExitReason, JobError>) {
        if self.closed_for_copy(run, &ended) {
            return;
        }
        let last = self.last_summary(run, ended.as_ref().err());
        self.ended.extend(last.map(|last| (run, last)));
        if ended.is_ok() {
            self.keep_last_report(run);
        }
        if let Err(error) = &ended {
            self.note_news(run, News::Failed(format!("its run has failed: {error}")));
        }
        let why = format!("run {run} has ended before it could answer; see the log, and ask for its status");
        let connections = if ended.is_err() { ConnectionEnd::Close } else { ConnectionEnd::Closed };
        self.drop_node(run, &why, connections);
        if self.nodes.is_empty() && self.opening.is_empty() && !self.stays && ended.is_err() {
            self.phase = Phase::Failed;
        }
        self.out.push(Output::Ended { run, ended });
    }

    /// A job of the registry has failed: nobody is told anything more.
    fn fail(&mut self, error: JobError) {
        self.phase = Phase::Gone;
        self.out = vec![Output::Exit(Err(error))];
    }

    fn outputs(&mut self) -> Vec<Output> {
        if self.phase != Phase::Gone {
            self.answer_revocations();
            // An agent gives up its rounds in a run that is listed no more: one that is being opened is not known yet, and
            // one that is parked goes on.
            if self.opening.is_empty() && !self.parking {
                let lists = self.subscriptions.news(|agent, run| self.registry.may_enter(agent, run)).into_iter();
                self.out.extend(lists.map(|(peer, list)| Output::List { peer, list }));
            }
            self.write_searches();
            self.out.extend(self.saver.next(save::group).map(Output::Save));
            self.out.extend(self.signer.next(|waiting| waiting.drain(..).collect()).map(Output::Sign));
            self.leave();
        }
        std::mem::take(&mut self.out)
    }

    fn answer_revocations(&mut self) {
        for (request, Revocation { response, .. }) in
            self.revocations.extract_if(.., |_, waiting| waiting.runs.is_empty())
        {
            self.out.push(Output::Reply { request, answer: response.into() });
        }
    }

    fn leave(&mut self) {
        // A join whose token is used up must have its answer.
        let idle = self.saver.is_idle() && self.signer.is_idle();
        let is_over = self.nodes.is_empty() && self.opening.is_empty() && self.deleting.is_empty();
        let is_over = is_over && !self.searches_go_on();
        let may_go = self.parking || !self.stays;
        if is_over && ((may_go && idle) || self.phase == Phase::Failed) {
            self.phase = Phase::Gone;
            self.out.push(Output::Exit(Ok(())));
        }
    }
}
