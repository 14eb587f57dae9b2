//! An agent's process as one synchronous object without I/O: a node for each run that it takes part in, and the device that
//! they share. The driver feeds it from sockets and threads.
//!
//! ```text
//!                          ┌─ Run(run, ..) ──► AgentNode(run) ─┬─► Run(run, ..): link, store, unpacking
//!  Input ─► AgentHost ─────┤                                   └─► turns ─► Run(run, the maths' job)
//!                          ├─ Hold, Shutdown, Tick ──► every node
//!                          ├─ Listed, ListLost ──► Begin: store and node of a run ─► Begun
//!                          └─ Begun, NotBegun
//! ```
//!
//! | rule | |
//! |---|---|
//! | the joined run | is there from the start, and takes part whatever is listed |
//! | others | begin when they are listed; one that is listed no more hands over its finished work, and goes |
//! | a run that has ended here | does not begin again while it is listed |
//! | a run that cannot begin | is tried again, after a wait that doubles |
//! | device | whole jobs in turn, by weight and by the time that they took (`turns`) |
//! | the certificate | is renewed by one run's session, the joined one's while it lasts: the others have `u64::MAX` as their time. A session that is down when it is due hands over to one that is up |
//! | a stop | reaches the job that the device has; a waiting one is answered as if it had never been given |
//! | the end | that of the joined run; where runs are listed, a shutdown's, or that of the last run when no list can come, or when it failed and every listed run is over |
//! | what is left of runs | is swept when a list has lasted |

mod renewal;
mod retries;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anabranch_common::ids::RunId;
use anabranch_common::limits;
use anabranch_common::wire::runs::{RunInfo, RunsListed};

use crate::node::{self, AgentNode, Done, Job};
use crate::session::command::Ending;
use crate::session::event::{Event, Problem};
use retries::Retries;
use turns::Turns;

/// Something that happened outside.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and most are of a run")]
pub enum Input {
    /// To a run: what its link, its jobs and its threads tell.
    Run {
        /// The run.
        run: RunId,
        /// What happened.
        input: node::Input,
    },
    /// The time that [`AgentHost::deadline_ms`] asked for has come.
    Tick,
    /// The machine's owner needs it, or does not any more.
    Hold {
        /// Why, for people.
        reason: Option<String>,
    },
    /// Someone wants this process to stop.
    Shutdown,
    /// The runs that this agent may take part in, beside the joined one.
    Listed(RunsListed),
    /// The list of runs comes no more.
    ListLost(Problem),
    /// The store of a run is open.
    Begun {
        /// The run.
        run: RunId,
        /// Its node, which has done nothing yet.
        node: Box<AgentNode>,
    },
    /// A run cannot take part.
    NotBegun {
        /// The run.
        run: RunId,
        /// Why, for people.
        problem: String,
    },
}

/// Something to do.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and most are of a run")]
pub enum Output {
    /// For a run. Its maths' jobs come one at a time, over all runs.
    Run {
        /// The run.
        run: RunId,
        /// What to do; never [`node::Output::Exit`].
        output: node::Output,
    },
    /// Ask for the list of runs after a wait; answered by [`Input::Listed`] and [`Input::ListLost`].
    Subscribe {
        /// The wait, in milliseconds.
        after_ms: u64,
    },
    /// Open the store of a run and make its node; answered by [`Input::Begun`] or [`Input::NotBegun`].
    Begin(RunInfo),
    /// A run is over in this process: close its link and its store, and forget its trainer.
    Ended {
        /// The run.
        run: RunId,
        /// Why.
        ending: Ending,
    },
    /// Remove what there is of runs that are not listed and have nothing to hand over.
    Sweep,
    /// Leave. Nothing follows.
    Exit(Ending),
}

/// When what is left of unlisted runs is removed: once in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sweep {
    /// When a list comes, and lasts.
    Waits,
    /// At this time, if the stream of lists lasts until then.
    At(u64),
    /// It is done.
    Done,
}

/// A run that this process takes part in.
#[derive(Debug)]
struct Member {
    node: AgentNode,
    /// Whether it is listed no more, and hands over what it has.
    leaving: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct AgentHost {
    home: RunId,
    members: BTreeMap<RunId, Member>,
    turns: Turns,
    /// The latest list; nothing where runs are not listed.
    listed: Option<BTreeMap<RunId, RunInfo>>,
    /// Runs whose store is being opened.
    beginning: BTreeSet<RunId>,
    /// Runs that could not begin.
    retries: Retries,
    /// Runs that are over here and were listed when that happened.
    over: BTreeSet<RunId>,
    hold: Option<String>,
    /// The run whose session renews the certificate, which all share, and when.
    renewer: (RunId, u64),
    /// Attempts to get a list that came to nothing, in a row.
    lost_lists: u32,
    /// Whether no list comes any more.
    lists_ended: bool,
    stopping: bool,
    /// How the joined run has ended.
    home_ended: Option<Ending>,
    /// How the run that ended last has failed, if it has.
    failure: Option<Ending>,
    /// Whether a list has come.
    has_list: bool,
    sweep: Sweep,
    has_exited: bool,
    out: Vec<Output>,
}

impl AgentHost {
    /// A process that has done nothing yet: with the joined run, and with others as they are listed if `lists`.
    #[must_use]
    pub fn new(home: RunId, mut node: AgentNode, lists: bool) -> Self {
        if lists {
            node.share_device();
        }
        let renewer = (home, node.session().config().renew_at_ms);
        let mut turns = Turns::default();
        turns.add(home, 1);
        Self {
            home,
            members: BTreeMap::from([(home, Member { node, leaving: false })]),
            turns,
            listed: lists.then(BTreeMap::new),
            beginning: BTreeSet::new(),
            retries: Retries::default(),
            over: BTreeSet::new(),
            hold: None,
            renewer,
            lost_lists: 0,
            lists_ended: !lists,
            stopping: false,
            home_ended: None,
            failure: None,
            has_list: false,
            sweep: Sweep::Waits,
            has_exited: false,
            out: Vec::new(),
        }
    }

    /// Begins with the joined run. Returns what is to be done first.
    pub fn start(&mut self, now_ms: u64) -> Vec<Output> {
        if self.listed.is_some() {
            self.out.push(Output::Subscribe { after_ms: 0 });
        }
        self.tell(now_ms, self.home, Event::Started);
        self.outputs(now_ms)
    }

    /// Takes one input and returns what to do, in this order.
    pub fn handle(&mut self, now_ms: u64, input: Input) -> Vec<Output> {
        if self.has_exited {
            return Vec::new();
        }
        match input {
            Input::Run { run, input } => {
                if let node::Input::Event(Event::CertificateStored { renew_at_ms }) = &input {
                    self.certificate_stored(now_ms, run, *renew_at_ms);
                }
                let is_done = matches!(input, node::Input::Done(Done::Maths(_)));
                if is_done {
                    self.turns.done(now_ms, run);
                }
                self.give(now_ms, run, input);
                if is_done {
                    self.begin_listed(now_ms);
                }
            }
            Input::Tick => {
                self.tell_all(now_ms, || Event::Tick);
                self.begin_listed(now_ms);
                self.sweep(now_ms);
            }
            Input::Hold { reason } => {
                self.hold.clone_from(&reason);
                self.tell_all(now_ms, || Event::Hold { reason: reason.clone() });
            }
            Input::Shutdown => {
                self.stopping = true;
                self.tell_all(now_ms, || Event::Shutdown);
            }
            Input::Listed(list) => self.take_list(now_ms, list),
            Input::ListLost(problem) => self.list_lost(problem),
            Input::Begun { run, node } => self.begun(now_ms, run, *node),
            Input::NotBegun { run, problem } => {
                self.beginning.remove(&run);
                let wait_ms = self.retries.failed(now_ms, run);
                tracing::error!(run = %run.short(), problem, wait_ms, "this agent cannot take part in a run; trying again");
                self.begin_listed(now_ms);
            }
        }
        self.outputs(now_ms)
    }

    /// The runs that take part, by id.
    pub fn nodes(&self) -> impl Iterator<Item = (RunId, &AgentNode)> {
        self.members.iter().map(|(run, member)| (*run, &member.node))
    }

    /// The node of a run that takes part.
    #[must_use]
    pub fn node(&self, run: RunId) -> Option<&AgentNode> {
        self.members.get(&run).map(|member| &member.node)
    }

    /// What a run is called, as it is listed.
    #[must_use]
    pub fn info(&self, run: RunId) -> Option<&RunInfo> {
        self.listed.as_ref()?.get(&run)
    }

    /// When a [`Input::Tick`] is wanted, if nothing happens before.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        let sessions = self.members.values().filter_map(|member| member.node.session().deadline_ms()).min();
        let sweep = match self.sweep {
            Sweep::At(at_ms) => Some(at_ms),
            Sweep::Waits | Sweep::Done => None,
        };
        let own = [sessions, sweep, self.handover_ms(), self.retry_ms()];
        own.into_iter().flatten().min()
    }

    fn tell(&mut self, now_ms: u64, run: RunId, event: Event) {
        self.give(now_ms, run, node::Input::Event(event));
    }

    fn tell_all(&mut self, now_ms: u64, event: impl Fn() -> Event) {
        let runs: Vec<RunId> = self.members.keys().copied().collect();
        runs.into_iter().for_each(|run| self.tell(now_ms, run, event()));
    }

    /// Gives a node one input, and all that follows from it at once.
    fn give(&mut self, now_ms: u64, run: RunId, input: node::Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(member) = self.members.get_mut(&run) else { return };
            let mut ending = None;
            for output in member.node.handle(now_ms, input) {
                match output {
                    node::Output::Run(Job::Maths(job)) => self.turns.push(run, job),
                    node::Output::StopTraining if !self.turns.has_device(run) => {
                        if let Some(stopped) = self.turns.take_back(run) {
                            inputs.push_back(node::Input::Event(Event::TurnCame));
                            inputs.push_back(node::Input::Done(Done::Maths(stopped)));
                        }
                    }
                    node::Output::Exit(why) => ending = Some(why),
                    output => self.out.push(Output::Run { run, output }),
                }
            }
            if let Some(ending) = ending {
                return self.run_ended(now_ms, run, ending);
            }
        }
    }

    /// A run's session has ended.
    fn run_ended(&mut self, now_ms: u64, run: RunId, ending: Ending) {
        let leaving = self.members.remove(&run).is_some_and(|member| member.leaving);
        if self.turns.remove(run) {
            self.out.push(Output::Run { run, output: node::Output::StopTraining });
        }
        if !leaving {
            self.over.insert(run);
        }
        self.failure = (!matches!(ending, Ending::Finished | Ending::Parked)).then(|| ending.clone());
        if run == self.home {
            self.home_ended = Some(ending.clone());
        }
        // Whoever is no member is sent no list.
        if matches!(ending, Ending::Revoked | Ending::Unknown) {
            self.lists_ended = true;
        }
        self.out.push(Output::Ended { run, ending });
        self.begin_listed(now_ms);
    }

    fn take_list(&mut self, now_ms: u64, RunsListed { runs }: RunsListed) {
        if self.listed.is_none() {
            return;
        }
        self.lost_lists = 0;
        self.has_list = true;
        if self.sweep == Sweep::Waits {
            self.sweep = Sweep::At(now_ms.saturating_add(limits::RUN_UNLISTED_MS));
        }
        let listed: BTreeMap<RunId, RunInfo> = runs.into_iter().map(|info| (info.run, info)).collect();
        self.over.retain(|run| *run == self.home || listed.contains_key(run));
        self.retries.retain(|run| listed.contains_key(&run));
        for info in listed.values().filter(|info| self.members.contains_key(&info.run)) {
            self.turns.add(info.run, info.weight);
        }
        let gone =
            |(run, member): &(&RunId, &mut Member)| **run != self.home && !member.leaving && !listed.contains_key(run);
        let mut leaving = Vec::new();
        for (run, member) in self.members.iter_mut().filter(gone) {
            member.leaving = true;
            leaving.push(*run);
        }
        self.listed = Some(listed);
        leaving.into_iter().for_each(|run| self.tell(now_ms, run, Event::Shutdown));
        self.begin_listed(now_ms);
    }

    /// Begins the listed runs that do not take part yet. One that has ended here begins when its last job is done, one that
    /// could not begin when its wait is over.
    fn begin_listed(&mut self, now_ms: u64) {
        if self.stopping {
            return;
        }
        let Some(listed) = &self.listed else { return };
        for (run, info) in listed {
            let may_begin = self.may_begin(*run) && !self.over.contains(run) && self.retries.is_due(now_ms, *run);
            if may_begin && self.beginning.insert(*run) {
                self.out.push(Output::Begin(info.clone()));
            }
        }
    }

    /// Whether nothing of a run is here, and there is room for it.
    fn may_begin(&self, run: RunId) -> bool {
        let is_here = self.members.contains_key(&run) || self.beginning.contains(&run) || self.turns.has_device(run);
        !is_here && self.members.len() + self.beginning.len() < limits::RUNS_PER_CONNECTION as usize
    }

    /// When to begin again with a run that could not begin.
    fn retry_ms(&self) -> Option<u64> {
        self.retries.next_ms(|run| !self.stopping && self.may_begin(run))
    }

    /// Removes what is left of unlisted runs, when it is time.
    fn sweep(&mut self, now_ms: u64) {
        if matches!(self.sweep, Sweep::At(at_ms) if at_ms <= now_ms) {
            self.sweep = Sweep::Done;
            self.out.push(Output::Sweep);
        }
    }

    fn list_lost(&mut self, problem: Problem) {
        if self.sweep != Sweep::Done {
            self.sweep = Sweep::Waits;
        }
        match problem {
            Problem::Transient(why) => {
                let after_ms = limits::RECONNECT_MS.0.saturating_mul(1 << self.lost_lists.min(20));
                self.lost_lists = self.lost_lists.saturating_add(1);
                tracing::debug!(why, "no list of runs; trying again");
                if !self.stopping && !self.lists_ended {
                    self.out.push(Output::Subscribe { after_ms: after_ms.min(limits::RECONNECT_MS.1) });
                }
            }
            Problem::Final(ending) => {
                tracing::error!(%ending, "no list of runs comes any more");
                self.lists_ended = true;
            }
        }
    }

    fn begun(&mut self, now_ms: u64, run: RunId, mut node: AgentNode) {
        self.beginning.remove(&run);
        self.retries.begun(run);
        let weight = self.info(run).map(|info| info.weight);
        let Some(weight) = weight.filter(|_| !self.stopping) else {
            // It is wanted no more, and has done nothing.
            self.out.push(Output::Ended { run, ending: Ending::Parked });
            return self.begin_listed(now_ms);
        };
        node.share_device();
        self.turns.add(run, weight);
        self.members.insert(run, Member { node, leaving: false });
        self.tell(now_ms, run, Event::Started);
        if let Some(reason) = self.hold.clone() {
            self.tell(now_ms, run, Event::Hold { reason: Some(reason) });
        }
    }

    fn outputs(&mut self, now_ms: u64) -> Vec<Output> {
        self.hand_on_renewal(now_ms);
        while let Some((run, job)) = self.turns.next(now_ms) {
            self.out.push(Output::Run { run, output: node::Output::Run(Job::Maths(job)) });
            if self.listed.is_some() {
                self.tell(now_ms, run, Event::TurnCame);
            }
        }
        self.leave();
        std::mem::take(&mut self.out)
    }

    /// Leaves when nothing is left to do, and nothing can come.
    fn leave(&mut self) {
        let is_over = if self.listed.is_some() {
            let is_idle = self.members.is_empty() && self.beginning.is_empty();
            is_idle && (self.stopping || self.lists_ended || self.have_all_failed())
        } else {
            self.home_ended.is_some()
        };
        if is_over {
            self.has_exited = true;
            let failed = self.failure.clone().filter(|_| self.have_all_failed() && !self.stopping && !self.lists_ended);
            let ending = failed.or_else(|| self.home_ended.clone()).unwrap_or(Ending::Parked);
            self.out.push(Output::Exit(ending));
        }
    }

    /// Whether the run that ended last has failed, and every listed run is over: another process may do better.
    fn have_all_failed(&self) -> bool {
        let mut listed = self.listed.iter().flat_map(BTreeMap::keys);
        self.failure.is_some() && self.has_list && listed.all(|run| self.over.contains(run))
    }
}
