//! Several runs of a stopped coordinator.

use anabranch_common::ids::RunId;
use anabranch_common::limits;
use anabranch_common::status::{RunCreated, RunSummary};
use anabranch_common::wire::operator::{OperatorResponse, RegistryRequest, RunsRequest};
use anabranch_io::exit::{self, ExitCode, Fail};

use super::super::reach;
use super::Stopped;
use crate::config::{Config, FILE_NAME};
use crate::core::status;
use crate::identity::run;
use crate::runs::{self, Submission};

/// Where a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In the directory of the process.
    Own,
    /// In a directory of this name below it.
    Other(String),
}

impl Stopped {
    /// Finds a run by name or id; the only one without.
    pub(super) fn place_of(&self, wanted: Option<&str>) -> anyhow::Result<Place> {
        let own = &self.config.spec.name;
        let others = runs::names(&self.dir)?;
        let not_found = |text: String| Err(Fail::new(ExitCode::Other, text).into());
        let list = || std::iter::once(own).chain(&others).map(String::as_str).collect::<Vec<_>>().join(", ");
        let Some(wanted) = wanted else {
            if others.is_empty() {
                return Ok(Place::Own);
            }
            let count = others.len() + 1;
            return not_found(format!("there are {count} runs here; name one of them with --run: {}", list()));
        };
        match (wanted == own, others.iter().any(|name| name == wanted)) {
            (true, false) => return Ok(Place::Own),
            (false, true) => return Ok(Place::Other(wanted.to_owned())),
            (true, true) => {
                let text = format!("two runs are called {wanted}; name one of them by its id, from `runs list`");
                return not_found(text);
            }
            (false, false) => {}
        }
        if let Ok(id) = wanted.parse::<RunId>() {
            if self.id_of(&Place::Own)? == Some(id) {
                return Ok(Place::Own);
            }
            for name in &others {
                let place = Place::Other(name.clone());
                // One that cannot be opened is not the one that is meant, as far as anybody can tell.
                if matches!(self.id_of(&place), Ok(Some(found)) if found == id) {
                    return Ok(place);
                }
            }
        }
        not_found(format!("there is no run {wanted} here; name one of: {}", list()))
    }

    /// The id of a run, once it was drawn.
    fn id_of(&self, place: &Place) -> anyhow::Result<Option<RunId>> {
        let known = match place {
            Place::Own => run::known(self.store.catalogue())?,
            Place::Other(name) => {
                let (home, config) = reach::load_other_config(&self.dir, name)?;
                run::known((self.open)(&home, config.store.url.as_deref())?.catalogue())?
            }
        };
        Ok(known.map(|(run, _)| run))
    }

    /// Puts the id in the place of each run's name.
    pub(super) fn with_ids(&self, operation: RegistryRequest) -> anyhow::Result<RegistryRequest> {
        let RegistryRequest::TokenCreate { name, ttl_ms, uses, secret_digest, runs } = operation else {
            return Ok(operation);
        };
        let id_of = |wanted: String| -> anyhow::Result<String> {
            let Some(run) = self.id_of(&self.place_of(Some(&wanted))?)? else {
                let fail = Fail::new(ExitCode::Unavailable, format!("run {wanted} has no id yet"));
                return Err(fail.help("its first start draws it: start `anabranch-coordinator run`").into());
            };
            Ok(run.to_string())
        };
        let runs = runs.into_iter().map(id_of).collect::<anyhow::Result<_>>()?;
        Ok(RegistryRequest::TokenCreate { name, ttl_ms, uses, secret_digest, runs })
    }

    pub(super) fn operate_runs(&mut self, request: RunsRequest) -> anyhow::Result<OperatorResponse> {
        match request {
            RunsRequest::List => Ok(status::json(&self.summaries()?)),
            RunsRequest::Create { name, config, submit_token } => self.create(&name, &config, submit_token.as_deref()),
            RunsRequest::Delete { run } => self.delete(&run),
        }
    }

    fn summaries(&mut self) -> anyhow::Result<Vec<RunSummary>> {
        let others = runs::names(&self.dir)?.into_iter().map(Place::Other);
        let places: Vec<Place> = std::iter::once(Place::Own).chain(others).collect();
        Ok(places.iter().map(|place| self.summary(place)).collect())
    }

    /// The line of a run; with its problem where it cannot be read.
    fn summary(&mut self, place: &Place) -> RunSummary {
        let (name, own) = match place {
            Place::Own => (self.config.spec.name.clone(), true),
            Place::Other(name) => (name.clone(), false),
        };
        self.selected = None;
        let read = match place {
            Place::Own => Ok(()),
            Place::Other(name) => self.select_other(name),
        };
        let read = read.and_then(|()| self.status());
        match read {
            Ok(report) => {
                let mut summary = runs::summary(&report, own, self.run_config().weight);
                summary.run = summary.run.filter(|run| *run != RunId([0; 16]));
                summary
            }
            Err(error) => {
                let problem = exit::render(&error).trim_end().replace('\n', "; ");
                let weight = self.run_config().weight;
                RunSummary { own, weight, ..runs::unreadable(name, Some(problem)) }
            }
        }
    }

    fn create(&self, name: &str, config: &str, submit_token: Option<&str>) -> anyhow::Result<OperatorResponse> {
        let submission = match Submission::of_request(name, config, submit_token) {
            Ok(submission) => submission,
            Err(problem) => return Ok(OperatorResponse::Failed(problem)),
        };
        let others = runs::names(&self.dir)?;
        let created = |run| Ok(status::json(&RunCreated { name: name.to_owned(), run }));
        let taken = || Ok(OperatorResponse::Conflict(runs::taken(name)));
        if name == self.config.spec.name {
            return taken();
        }
        if others.iter().any(|other| other == name) {
            // To look for its id opens a store: only where that is asked for.
            let is_same = submission.is_some() && Submission::read(&runs::dir_of(&self.dir, name)) == submission;
            return match is_same.then(|| self.id_of(&Place::Other(name.to_owned()))) {
                Some(Ok(Some(run))) => created(run),
                _ => taken(),
            };
        }
        if others.len() + 1 >= limits::RUNS {
            return Ok(OperatorResponse::Conflict(runs::too_many()));
        }
        let url = match Config::parse_run(FILE_NAME.as_ref(), config, name) {
            Ok(config) => config.store.url,
            Err(error) => return Ok(OperatorResponse::Failed(error.to_string())),
        };
        runs::create(&self.dir, name, config, submission)?;
        let store = (self.open)(&runs::dir_of(&self.dir, name), url.as_deref())?;
        created(run::identifiers(store.catalogue())?.0)
    }

    fn delete(&mut self, wanted: &str) -> anyhow::Result<OperatorResponse> {
        match self.place_of(Some(wanted))? {
            Place::Own => Ok(OperatorResponse::Conflict(runs::is_own(&self.config.spec.name))),
            Place::Other(name) => {
                self.selected = None;
                runs::delete(&self.dir, &name)?;
                Ok(OperatorResponse::Done(format!("deleted run {name}")))
            }
        }
    }
}
