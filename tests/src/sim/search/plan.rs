//! What happens to a world with a search: a plain value.

use std::collections::BTreeMap;

use anabranch_coordinator::search::spec::Method;

use crate::sim::schedule::Machine;

/// Name of the search.
pub(super) const SEARCH: &str = "lr";
/// Name of the run that shares its directory with the process.
pub(super) const OWN: &str = "own";

/// A world with a search, and everything that will happen to it.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchPlan {
    /// How trials are chosen: successive halving, or each of them runs to the end.
    pub method: Method,
    /// Trials.
    pub trials: u32,
    /// One in so many goes on.
    pub eta: u32,
    /// Contributions at the first rung.
    pub r: u64,
    /// Contributions of a full run.
    pub max: u64,
    /// Trials at a time.
    pub parallel: u32,
    /// Seed of the search.
    pub search_seed: u64,
    /// How updates are merged.
    pub merge: Merge,
    /// Versions of the process's own run.
    pub own_versions: u64,
    /// Trials that come to nothing.
    pub diverging: BTreeMap<u32, Divergence>,
    /// The agents. The first one trains, evaluates and never leaves.
    pub agents: Vec<SearchAgent>,
    /// Kills of the coordinator, in the order in which they come.
    pub kills: Vec<Kill>,
    /// What happens to agents, in any order.
    pub troubles: Vec<Trouble>,
    /// What an operator asks for, in any order.
    pub orders: Vec<(u64, Order)>,
    /// Until when agents have trouble, in milliseconds.
    pub length_ms: u64,
}

/// How a trial comes to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// Its updates are so large that its model overflows.
    Overflows,
    /// Its local rounds give nothing that can become an update.
    GivesNoUpdate,
    /// The figures of its evaluations are not finite.
    CannotBeEvaluated,
}

/// A merge rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// Each update makes a version.
    FedAsync,
    /// Two updates do.
    FedBuff,
    /// What `init` writes.
    Recall,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchAgent {
    /// When it first starts.
    pub start_ms: u64,
    /// How long its local round takes.
    pub round_ms: u64,
    /// Whether it trains.
    pub trains: bool,
    /// Examples that it holds to evaluate on.
    pub eval_examples: u64,
    /// One evaluation in so many fails, until its troubles are over (0: none).
    pub evaluation_fails_every: u64,
    /// Delay of its line, one way.
    pub delay_ms: u64,
}

/// A kill of the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// When.
    pub at: KillAt,
    /// Whether the power goes: what was not synced may be lost.
    pub power: bool,
    /// When the next process starts.
    pub down_ms: u64,
}

/// When a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KillAt {
    /// At the search's step with this number, over all processes.
    Step(u64),
    /// At this time.
    Ms(u64),
}

/// Something happens to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// When.
    pub at_ms: u64,
    /// To which machine, the first agent's being 1.
    pub machine: Machine,
    /// What.
    pub what: Disturbance,
}

/// What can happen to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// kill -9, and another process after a while.
    Kill {
        /// When it starts.
        down_ms: u64,
    },
    /// It never comes back.
    Leave,
    /// Nothing passes its line.
    Cut {
        /// For how long.
        for_ms: u64,
    },
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `runs stop` of a trial, if it is there.
    StopTrial(u32),
    /// `search stop`.
    StopSearch,
}

impl SearchPlan {
    /// Returns SEARCH.toml.
    pub(super) fn search_text(&self) -> String {
        let Self { trials, eta, r, max, parallel, search_seed, .. } = self;
        let rungs = match self.method {
            Method::Asha => format!("method = \"asha\"\neta = {eta}\nr = {r}\n"),
            _ => "method = \"random\"\n".to_owned(),
        };
        format!(
            "config = \"run.toml\"\n[search]\nname = \"{SEARCH}\"\n{rungs}trials = {trials}\nmax = {max}\n\
             parallel = {parallel}\nseed = {search_seed}\nmetric = \"accuracy\"\n[space]\n\
             \"train.optimizer.lr\" = {{ log = [0.01, 0.9] }}\n"
        )
    }

    /// Returns run.toml of the process's own run, which is the base of the search.
    pub(super) fn base_text(&self) -> String {
        let merge = match self.merge {
            Merge::FedAsync => "strategy = \"fedasync\"\nalpha = 1.0\nstaleness = { fn = \"constant\" }",
            Merge::FedBuff => {
                "strategy = \"fedbuff\"\nbuffer_size = 2\nserver_lr = 1.0\nstaleness = { fn = \"constant\" }"
            }
            Merge::Recall => "strategy = \"recall\"",
        };
        let versions = self.own_versions;
        format!(
            "[run]\nname = \"{OWN}\"\nseed = 3\n[model]\nkind = \"mlp\"\ninput = [2]\nclasses = 2\nhidden = []\n\
             input_scale = 1.0\n[train]\nlocal_steps = 1\nbatch_size = 1\noptimizer = {{ kind = \"sgd\", lr = 0.1 }}\n\
             [upload]\ncodec = {{ kind = \"f32\" }}\nfeedback_decay = 0.0\n[merge]\n{merge}\n[admit]\nmax_staleness = 1000\n\
             max_examples = 100000\nmax_norm_ratio = 0.0\nclip_norm_ratio = 0.0\nmax_influence = 0.0\n[evaluate]\n\
             every_versions = 5\nevery_s = 1.0\n[target]\nversions = {versions}\n[schedule]\ntick_ms = 50\n\
             [checkpoint]\nevery_versions = 4\n[server]\nlisten = \"127.0.0.1:4433\"\n"
        )
    }
}
