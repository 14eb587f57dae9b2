//! The workload file of a race between a search and the runs that it saves.

use std::path::{Path, PathBuf};

use anabranch_common::limits;
use anabranch_coordinator::config::Config;
use anabranch_coordinator::search::base::Base;
use anabranch_coordinator::search::spec::{Method, SearchSpec};
use anabranch_io::text_file;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use toml::{Table, Value};

use super::super::strategy::{self, Strategy};
use super::super::workload::{Workload, has_key};

/// Name of the configuration that trials vary, as SEARCH.toml has it.
const BASE_FILE: &str = "run.toml";

/// A workload file: who trains, and what a search looks for.
#[derive(Debug, Clone)]
pub struct SearchWorkload {
    /// What it is, in a sentence.
    pub about: String,
    /// The agents, the data and the model.
    pub(super) agents: Workload,
    /// Where the results of full runs are kept.
    pub(super) truth: PathBuf,
    /// Records of the search after which every coordinator is killed, in the race that compares.
    pub(super) kills_after: Vec<u64>,
    /// Where SEARCH.toml would be.
    pub(super) path: PathBuf,
    /// SEARCH.toml.
    pub(super) text: String,
    /// The same, checked.
    pub(super) spec: SearchSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    workload: PathBuf,
    truth: PathBuf,
    kills_after: Vec<u64>,
    search: Table,
    space: Table,
}

impl SearchWorkload {
    /// Returns whether a workload file is of this kind: it has `[search]`.
    #[must_use]
    pub fn is_at(path: &Path) -> bool {
        has_key(path, "search")
    }

    /// Reads and checks a workload file.
    ///
    /// # Errors
    /// The file cannot be read, has an unknown key, or a value that makes no sense.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = text_file::read(path, limits::CONFIG_FILE_BYTES);
        let text = text.with_context(|| format!("cannot read the workload {shown}"))?;
        let file: File = toml::from_str(&text).with_context(|| format!("{shown} makes no sense"))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let File { about, workload, truth, kills_after, search, space } = file;
        let sections = [("config", BASE_FILE.into()), ("search", Value::Table(search)), ("space", Value::Table(space))];
        let text = sections.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Table>().to_string();
        let spec = SearchSpec::parse(path, &text).map_err(|error| anyhow::anyhow!("{shown}: {error}"))?;
        ensure!(
            spec.method == Method::Asha,
            "{shown}: search.method must be asha: random search is worked out beside it"
        );
        let agents = Workload::read(&folder.join(workload))?;
        ensure!(!agents.kills(), "{shown}: a workload without kills is needed: kills_after says when to kill");
        let workload =
            Self { about, agents, truth: folder.join(truth), kills_after, path: path.to_owned(), text, spec };
        workload.base(0)?;
        Ok(workload)
    }

    /// Returns the configuration that trials vary.
    pub(super) fn base(&self, seed: u64) -> anyhow::Result<Base> {
        let table = strategy::table(&self.agents, &Strategy::init(), &[], seed);
        Ok(Base::parse(Path::new(BASE_FILE), &table.to_string())?)
    }

    /// Returns the workload of a trial with this configuration. Rounds take as long as their steps do.
    pub(super) fn of_trial(&self, config: &Config) -> anyhow::Result<Workload> {
        let (base, trial) = (&self.agents.train, &config.spec.train);
        if base.batch_size != trial.batch_size {
            bail!("a search over train.batch_size: the workload does not say how long a step of another batch takes");
        }
        let times = f64::from(trial.local_steps) / f64::from(base.local_steps);
        let mut agents = self.agents.clone();
        agents.agents.iter_mut().for_each(|group| group.round_s *= times);
        Ok(agents)
    }
}
