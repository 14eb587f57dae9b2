//! What is open of each run, and jobs on the directories of runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_common::ids::RunId;
use anabranch_common::journal::FinishReason;
use anabranch_common::limits;
use anabranch_io::durable::StorageError;
use anabranch_io::exit::{ExitCode, Fail};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::{job_fail, say_goodbye};
use crate::config::{Config, FILE_NAME};
use crate::core::Options;
use crate::core::command::ExitReason;
use crate::host::{RunsDone, RunsJob};
use crate::node::JobError;
use crate::node::merge::Merger;
use crate::runs::{self, Files, Open, OpenError};
use crate::transport::{RunFiles, Shared, Spool};
use crate::web::Events;
use crate::workers::Tools;

/// A job on a directory has ended; with what is open of the run, if it is.
#[derive(Debug)]
pub(super) struct Done {
    done: RunsDone,
    files: Option<Files>,
    /// What is still open of a run that could not be deleted.
    in_use: Option<OpenFiles>,
}

/// What is open of a run.
#[derive(Debug)]
pub(super) struct OpenFiles {
    pub(super) name: String,
    pub(super) options: Options,
    pub(super) spool: Arc<Spool>,
    pub(super) tools: Tools,
}

/// The directories of the runs.
#[derive(Debug)]
pub(super) struct Directories {
    dir: PathBuf,
    open: BTreeMap<RunId, OpenFiles>,
    /// The run that shares its directory with the process.
    own: Option<RunId>,
    /// Why that run is not served.
    own_problem: Option<anyhow::Error>,
    /// Runs that are closed and were not deleted, because others still use their stores, by name.
    in_use: BTreeMap<String, OpenFiles>,
    /// How runs have ended.
    ended: BTreeMap<RunId, Result<ExitReason, JobError>>,
    shared: Arc<Shared>,
    done: mpsc::Sender<Done>,
    /// Jobs that are done at the same time.
    openers: Arc<Semaphore>,
    /// Whether runs that wait to be opened are left for the next start.
    parking: Arc<AtomicBool>,
    /// Where what happens is noted, if anywhere.
    events: Option<Arc<Events>>,
}

impl Directories {
    pub(super) fn new(
        dir: PathBuf,
        shared: Arc<Shared>,
        done: mpsc::Sender<Done>,
        events: Option<Arc<Events>>,
    ) -> Self {
        let openers = Arc::new(Semaphore::new(limits::RUN_OPENERS));
        let (open, in_use, ended) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let parking = Arc::default();
        Self { dir, open, own: None, own_problem: None, in_use, ended, shared, done, openers, parking, events }
    }

    /// The directory of the process.
    pub(super) fn root(&self) -> &Path {
        &self.dir
    }

    /// Takes up what is open of the run that shares its directory with the process.
    pub(super) fn add(&mut self, files: Files) {
        self.own = Some(files.options.run);
        self.insert(files);
    }

    /// Notes why the run that shares its directory with the process is not served.
    pub(super) fn cannot_serve_own(&mut self, name: &str, problem: anyhow::Error) {
        self.shared.add_unopened(name);
        self.own_problem = Some(problem);
    }

    fn insert(&mut self, Files { name, options, store, spool, keep }: Files) {
        let run = options.run;
        // Only the run that shares its directory with the process can have the name of another one.
        let is_taken = self.own != Some(run) && self.open.values().any(|files| files.name == name);
        let label = if is_taken { format!("{name} ({run})") } else { name.clone() };
        let events = self.events.as_ref().map(|events| events.of_run(&label));
        self.shared.add_run(
            run,
            RunFiles {
                name: name.clone(),
                is_served: true,
                store: Arc::clone(&store),
                spool: Arc::clone(&spool),
                events: events.clone(),
            },
        );
        let tools = Tools { store, keep, merger: Arc::new(Mutex::new(Merger::default())), events };
        self.open.insert(run, OpenFiles { name, options, spool, tools });
    }

    /// Opens no more runs: what waits for that is left for the next start.
    pub(super) fn park(&self) {
        self.parking.store(true, Ordering::Relaxed);
    }

    /// What is open of a run.
    pub(super) fn files(&self, run: RunId) -> Option<&OpenFiles> {
        self.open.get(&run)
    }

    /// Takes up what a job has opened. Returns the answer for the host.
    pub(super) fn take(&mut self, Done { done, files, in_use }: Done) -> RunsDone {
        self.in_use.extend(in_use.map(|files| (files.name.clone(), files)));
        // A copy of a run that is open already has the same id: the host refuses it.
        if let Some(files) = files.filter(|files| !self.open.contains_key(&files.options.run)) {
            tracing::info!(run = %files.name, "serving a run");
            self.shared.remove_unopened(&files.name);
            self.insert(files);
        }
        match &done {
            RunsDone::NotOpened { name, why, is_there } => {
                if !self.parking.load(Ordering::Relaxed) {
                    tracing::error!(run = %name, why, "this run is not served");
                }
                if !is_there {
                    self.shared.remove_unopened(name);
                }
            }
            RunsDone::InUse { name } => self.shared.add_unopened(name),
            RunsDone::Opened(_) | RunsDone::Deleted { .. } => {}
        }
        done
    }

    /// Closes what is open of a run, unless a run of another directory has its id.
    pub(super) fn forget(&mut self, run: RunId) {
        if let Some(files) = self.open.remove(&run) {
            self.shared.add_unopened(&files.name);
        }
        self.shared.remove_run(run);
    }

    /// Notes how a run has ended, and keeps its store for those who ask.
    pub(super) fn ended(&mut self, run: RunId, ended: Result<ExitReason, JobError>) {
        self.shared.run_ended(run);
        // The process ends with the error of its own run, unless others go on.
        let others = self.own != Some(run) || self.open.len() > 1 || self.shared.has_unopened();
        let is_alone = self.own == Some(run) && runs::names(&self.dir).is_ok_and(|others| others.is_empty());
        if let Some(files) = self.open.get_mut(&run) {
            // Its model is in no use any more.
            files.tools.merger = Arc::default();
            match &ended {
                Ok(reason) => say_goodbye(*reason, &files.name, is_alone, &self.dir),
                Err(error) if others => tracing::error!(run = %files.name, %error, "the run has failed"),
                Err(_) => {}
            }
        }
        self.ended.insert(run, ended);
    }

    /// Does a job beside the loop.
    pub(super) fn start(&mut self, job: RunsJob) {
        let (dir, openers, done) = (self.dir.clone(), Arc::clone(&self.openers), self.done.clone());
        let name = job.name().to_owned();
        let is_delete = matches!(job, RunsJob::Delete { .. });
        let open = match &job {
            RunsJob::Delete { run: Some(run), .. } => {
                self.shared.remove_run(*run);
                self.ended.remove(run);
                self.open.remove(run)
            }
            RunsJob::Reopen { run, .. } => {
                self.shared.add_unopened(&name);
                self.shared.remove_run(*run);
                self.open.remove(run)
            }
            RunsJob::Delete { run: None, .. } => {
                self.shared.remove_unopened(&name);
                self.in_use.remove(&name)
            }
            RunsJob::Create { .. } | RunsJob::Open { .. } => {
                self.shared.add_unopened(&name);
                None
            }
        };
        let parking = Arc::clone(&self.parking);
        let may_wait = matches!(job, RunsJob::Open { .. });
        tokio::spawn(async move {
            let Ok(_room) = openers.acquire_owned().await else { return };
            if may_wait && parking.load(Ordering::Relaxed) {
                let why = "the coordinator is going away; its next start opens the run".to_owned();
                done.send(not_opened(name, true, why)).await.ok();
                return;
            }
            let answer = tokio::task::spawn_blocking(move || carry_out(&dir, job, open)).await;
            let answer = answer.unwrap_or_else(|error| Done {
                done: if is_delete {
                    RunsDone::Deleted { name, left: Some(error.to_string()) }
                } else {
                    RunsDone::NotOpened { name, is_there: true, why: error.to_string() }
                },
                files: None,
                in_use: None,
            });
            done.send(answer).await.ok();
        });
    }

    /// How the process ends.
    pub(super) fn into_result(mut self) -> anyhow::Result<()> {
        let own = self.own.and_then(|run| self.ended.remove(&run));
        result(own, self.own_problem, self.ended.into_values())
    }
}

/// How the process ends: as the run that shares its directory with it; where that has not failed, as the first other one
/// that has.
fn result(
    own: Option<Result<ExitReason, JobError>>,
    own_problem: Option<anyhow::Error>,
    mut others: impl Iterator<Item = Result<ExitReason, JobError>>,
) -> anyhow::Result<()> {
    own.map_or(Ok(()), |own| own.map_err(job_fail).and_then(finite))?;
    own_problem.map_or(Ok(()), Err)?;
    match others.find(Result::is_err) {
        Some(failed) => failed.map(drop).map_err(job_fail),
        None => Ok(()),
    }
}

/// A run that ended because its model overflowed has an exit code of its own.
fn finite(reason: ExitReason) -> anyhow::Result<()> {
    match reason {
        ExitReason::Finished { reason: FinishReason::NonFinite, result } => {
            let message = format!("the model stopped being finite; version {result} is the last one that is");
            let help = "export that version with `checkpoint export`, and try a smaller learning rate or step";
            Err(Fail::new(ExitCode::NotFinite, message).help(help).into())
        }
        _ => Ok(()),
    }
}

fn carry_out(dir: &Path, job: RunsJob, open: Option<OpenFiles>) -> Done {
    match job {
        RunsJob::Create { name, config, submission } => {
            // As the operator's file: its path is not known here.
            if let Err(error) = Config::parse_run(Path::new(FILE_NAME), &config, &name) {
                return not_opened(name, false, error.to_string());
            }
            match runs::create(dir, &name, &config, submission) {
                Ok(()) => open_run(dir, name),
                Err(error) => not_opened(name, false, with_help(&error)),
            }
        }
        RunsJob::Open { name } => open_run(dir, name),
        RunsJob::Reopen { name, config, .. } => reopen_run(dir, name, &config, open),
        RunsJob::Delete { name, .. } => {
            if let Some(in_use) = open.and_then(|open| released(open, limits::RUN_RELEASES)) {
                return Done { done: RunsDone::InUse { name }, files: None, in_use: Some(in_use) };
            }
            let left = runs::delete(dir, &name).err().map(|error| with_help(&error));
            Done { done: RunsDone::Deleted { name, left }, files: None, in_use: None }
        }
    }
}

fn open_run(dir: &Path, name: String) -> Done {
    let open = runs::open(dir, &name);
    opened(name, open)
}

fn opened(name: String, open: Result<Open, OpenError>) -> Done {
    match open {
        Ok(open) => Done { done: RunsDone::Opened(Box::new(open.run)), files: Some(open.files), in_use: None },
        Err(error) => not_opened(name, true, error.reason()),
    }
}

/// Gives a run whose node is gone another configuration. Its store stays open, for others may read it.
fn reopen_run(dir: &Path, name: String, config: &str, open: Option<OpenFiles>) -> Done {
    let Some(open) = open else { return not_opened(name, true, "it is not open".to_owned()) };
    if !becomes_true(limits::RUN_RELEASES, || Arc::strong_count(&open.spool) == 1) {
        let why = "its half-received uploads are still in use; start the coordinator again".to_owned();
        return not_opened(name, true, why);
    }
    if let Err(error) = Config::parse_run(Path::new(FILE_NAME), config, &name) {
        return not_opened(name, true, error.to_string());
    }
    if let Err(error) = runs::set_config(dir, &name, config) {
        return not_opened(name, true, with_help(&error));
    }
    let open = runs::reopen(dir, &name, Arc::clone(&open.tools.store));
    opened(name, open)
}

fn not_opened(name: String, is_there: bool, why: String) -> Done {
    Done { done: RunsDone::NotOpened { name, is_there, why }, files: None, in_use: None }
}

/// Closes what is open of a run, once jobs and operators use it no more. Returns it if they still do after so many looks.
fn released(open: OpenFiles, looks: u32) -> Option<OpenFiles> {
    let is_free = || Arc::strong_count(&open.tools.store) == 1 && Arc::strong_count(&open.spool) == 1;
    (!becomes_true(looks, is_free)).then_some(open)
}

/// Looks whether something is true, so many times.
fn becomes_true(looks: u32, is_true: impl Fn() -> bool) -> bool {
    (0..looks).any(|look| {
        if look > 0 {
            std::thread::sleep(runs::REST);
        }
        is_true()
    })
}

fn with_help(error: &StorageError) -> String {
    error.help().map_or_else(|| error.to_string(), |help| format!("{error}; {help}"))
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{BranchId, ModelVersion};
    use anabranch_io::exit::code_of;

    use super::*;
    use crate::config::Retention;
    use crate::node::checkpoint::Keep;
    use crate::store::Store;
    use crate::store::for_tests::MapStore;

    fn failed() -> Result<ExitReason, JobError> {
        Err(JobError::NotTaken("writer"))
    }

    fn finished(reason: FinishReason) -> Result<ExitReason, JobError> {
        Ok(ExitReason::Finished { reason, result: ModelVersion(1) })
    }

    /// An operator who reads checkpoints, or a job, would go on in the files of a run that is made anew under the same name.
    #[test]
    fn a_run_is_closed_when_nobody_uses_its_store_any_more() {
        let dir = tempfile::tempdir().expect("a folder");
        let store: Arc<dyn Store> = Arc::new(MapStore::new());
        let options = Options {
            run: RunId([1; 16]),
            first_branch: BranchId([1; 16]),
            starts: 0,
            lease_ttl_ms: 1,
            checkpoint_every_versions: 1,
            checkpoint_every_ms: 1,
        };
        let keep = Keep { checkpoints: 2, retention: Retention::SinceSnapshot };
        let tools = Tools { store: Arc::clone(&store), keep, merger: Arc::default(), events: None };
        let spool = Arc::new(Spool::open(dir.path().join("uploads")).0);
        let open = OpenFiles { name: "wards".into(), options, spool: Arc::clone(&spool), tools };
        let open = released(open, 1).expect("its store is in use");
        drop(store);
        let open = released(open, 1).expect("its uploads are");
        drop(spool);
        assert!(released(open, 1).is_none());
    }

    #[test]
    fn the_process_ends_as_its_own_run_unless_only_another_has_failed() {
        let problem = || Fail::new(ExitCode::Config, "run.toml is refused").into();
        let code = |own, problem, others: Vec<_>| result(own, problem, others.into_iter()).as_ref().err().map(code_of);
        let other = failed().map_err(job_fail).as_ref().err().map(code_of);
        assert_eq!(code(Some(finished(FinishReason::NonFinite)), None, vec![failed()]), Some(ExitCode::NotFinite));
        assert_eq!(code(Some(failed()), None, vec![]), other);
        assert_eq!(code(Some(finished(FinishReason::Stopped)), None, vec![Ok(ExitReason::Parked), failed()]), other);
        assert_eq!(code(None, Some(problem()), vec![failed()]), Some(ExitCode::Config));
        assert_eq!(code(None, Some(problem()), vec![finished(FinishReason::Stopped)]), Some(ExitCode::Config));
        assert_eq!(code(Some(finished(FinishReason::Stopped)), None, vec![Ok(ExitReason::Parked)]), None);
    }
}
