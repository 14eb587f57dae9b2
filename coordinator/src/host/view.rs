//! One look at the whole process, for those who watch it: figures, health, pages.

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::limits;
use anabranch_common::status::{RunStanding, RunSummary, StatusReport};

use super::Host;
use super::searches::SearchView;
use crate::node::Node;

/// What the process does and knows at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostView {
    /// Whether it does its work.
    pub health: Health,
    /// Every run: the process's own first, the others by name.
    pub runs: Vec<RunView>,
    /// Every search, by name.
    pub searches: Vec<SearchView>,
    /// Every member, by identity.
    pub members: Vec<MemberView>,
    /// Joins that are not answered yet: at most `limits::JOINS_WAITING`.
    pub joins_waiting: usize,
}

/// Whether the process does its work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Health {
    /// It reads what is stored, and serves nothing yet.
    #[default]
    Starting,
    /// It serves its runs.
    Serving,
    /// It serves no longer, for this reason.
    Leaving(String),
    /// A run has failed while it was served, or the process has, for this reason.
    Failed(String),
}

/// A run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunView {
    /// What `runs list` says of it.
    pub summary: RunSummary,
    /// What `status` says of it, without the members that it has not seen. Of a run that has ended without its agents and
    /// its evaluations, and with its newest `limits::ENDED_MEASUREMENTS_KEPT` measurements. None of a run that cannot be opened or has failed.
    pub report: Option<Box<StatusReport>>,
    /// What waits in it, while it is served.
    pub queues: Option<RunQueues>,
}

/// What waits in a run that is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunQueues {
    /// Journal records that are not durable: agents cause no more from `limits::UNWRITTEN_RECORDS` on.
    pub undurable_records: u64,
    /// Uploads that wait for memory.
    pub uploads_waiting: u64,
    /// Bytes of payloads in memory: at most `limits::UPLOADS_IN_FLIGHT_BYTES`.
    pub payload_bytes: u64,
    /// Bytes of decoded updates in memory: at most `limits::DECODED_UPLOADS_BYTES`, or one larger update.
    pub decoded_bytes: u64,
    /// Bytes of models on their way to agents: no differences are made beyond `limits::SENDING_BYTES`.
    pub sending_bytes: u64,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Its identity.
    pub agent: AgentId,
    /// Its name.
    pub name: String,
    /// Whether its certificate was revoked.
    pub revoked: bool,
    /// Unix time in milliseconds at which it joined.
    pub joined_at_ms: u64,
}

impl RunQueues {
    fn of(node: &Node) -> Self {
        let (payloads_free, decoded_free) = node.uploads().free_bytes();
        Self {
            undurable_records: node.core().undurable_records(),
            uploads_waiting: node.uploads().status().waiting,
            payload_bytes: limits::UPLOADS_IN_FLIGHT_BYTES.saturating_sub(payloads_free),
            decoded_bytes: limits::DECODED_UPLOADS_BYTES.saturating_sub(decoded_free),
            sending_bytes: node.sending_bytes(),
        }
    }
}

impl Host {
    /// Returns what the process does and knows now. Takes time that grows with its runs, agents and members.
    #[must_use]
    pub fn view(&self) -> HostView {
        let runs = self.summaries().into_iter().map(|summary| self.run_view(summary));
        let members = self.registry.roster().members().map(|(agent, member)| MemberView {
            agent,
            name: member.name.clone(),
            revoked: member.revoked,
            joined_at_ms: member.joined_at_ms,
        });
        HostView {
            health: self.health(),
            runs: runs.collect(),
            searches: self.search_views(),
            members: members.collect(),
            joins_waiting: self.registry.joins_waiting(),
        }
    }

    fn run_view(&self, summary: RunSummary) -> RunView {
        let node = summary.run.and_then(|run| self.nodes.get(&run));
        let report = match node {
            Some(node) => {
                let mut report = StatusReport { uploads: Some(node.uploads().status()), ..node.core().status() };
                self.registry.name(&mut report.agents);
                Some(Box::new(report))
            }
            None => summary.run.and_then(|run| self.last_reports.get(&run)).cloned(),
        };
        RunView { summary, report, queues: node.map(RunQueues::of) }
    }

    /// Whether the process does its work. A run that could not be opened leaves the others alone; one that has failed while it
    /// was served had its journal, its merger or a checkpoint fail.
    fn health(&self) -> Health {
        if self.parking {
            return Health::Leaving("the process is shutting down; its runs are being parked".to_owned());
        }
        let failed = self.ended.values().find(|ended| ended.state == RunStanding::Failed);
        if let Some(RunSummary { name, problem, .. }) = failed {
            let why = problem.as_deref().unwrap_or("see the log");
            return Health::Failed(format!("run {name} has failed: {why}"));
        }
        if self.is_leaving() {
            return Health::Leaving("every run has ended; the process is about to exit".to_owned());
        }
        Health::Serving
    }

    /// Keeps what is said last of a run that is over in this process. Little of it, since ended runs add up.
    pub(super) fn keep_last_report(&mut self, run: RunId) {
        let Some(node) = self.nodes.get(&run) else { return };
        let mut report = node.core().status();
        report.serving = false;
        report.agents = Vec::new();
        report.evaluations = Vec::new();
        let old = report.aggregates.len().saturating_sub(limits::ENDED_MEASUREMENTS_KEPT);
        report.aggregates.drain(..old);
        self.last_reports.insert(run, Box::new(report));
    }
}
