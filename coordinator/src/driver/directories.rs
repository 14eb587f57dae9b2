//! What is open of each run, and jobs on the directories of runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
use crate::runs::{self, Files};
use crate::transport::{RunFiles, Shared, Spool};
use crate::workers::Tools;

/// A job on a directory has ended; with what is open of the run, if it is.
#[derive(Debug)]
pub(super) struct Done {
    done: RunsDone,
    files: Option<Files>,
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
    /// How runs have ended.
    ended: BTreeMap<RunId, Result<ExitReason, JobError>>,
    shared: Arc<Shared>,
    done: mpsc::Sender<Done>,
    /// Jobs that are done at the same time.
    openers: Arc<Semaphore>,
}

impl Directories {
    pub(super) fn new(dir: PathBuf, shared: Arc<Shared>, done: mpsc::Sender<Done>) -> Self {
        let openers = Arc::new(Semaphore::new(limits::RUN_OPENERS));
        let (open, ended) = (BTreeMap::new(), BTreeMap::new());
        Self { dir, open, own: None, own_problem: None, ended, shared, done, openers }
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
    pub(super) fn cannot_serve_own(&mut self, problem: anyhow::Error) {
        self.own_problem = Some(problem);
    }

    fn insert(&mut self, Files { name, options, store, spool, keep }: Files) {
        let run = options.run;
        let (stored, name_there) = (Arc::clone(&store), name.clone());
        let files = RunFiles { name: name_there, is_served: true, store: stored, spool: Arc::clone(&spool) };
        self.shared.add_run(run, files);
        let tools = Tools { store, keep, merger: Arc::new(Mutex::new(Merger::default())) };
        self.open.insert(run, OpenFiles { name, options, spool, tools });
    }

    /// What is open of a run.
    pub(super) fn files(&self, run: RunId) -> Option<&OpenFiles> {
        self.open.get(&run)
    }

    /// Takes up what a job has opened. Returns the answer for the host.
    pub(super) fn take(&mut self, Done { done, files }: Done) -> RunsDone {
        // A copy of a run that is open already has the same id: the host refuses it.
        if let Some(files) = files.filter(|files| !self.open.contains_key(&files.options.run)) {
            tracing::info!(run = %files.name, "serving a run");
            self.insert(files);
        }
        if let RunsDone::NotOpened { name, why, .. } = &done {
            tracing::error!(run = %name, why, "this run is not served");
        }
        done
    }

    /// Closes what is open of a run, unless a run of another directory has its id.
    pub(super) fn forget(&mut self, run: RunId) {
        self.open.remove(&run);
        self.shared.remove_run(run);
    }

    /// Notes how a run has ended, and keeps its store for those who ask.
    pub(super) fn ended(&mut self, run: RunId, ended: Result<ExitReason, JobError>) {
        self.shared.run_ended(run);
        let others = self.open.len() > 1;
        if let Some(files) = self.open.get_mut(&run) {
            // Its model is in no use any more.
            files.tools.merger = Arc::default();
            match &ended {
                Ok(reason) => say_goodbye(*reason, &files.name, self.own == Some(run), &self.dir),
                Err(error) if others => tracing::error!(run = %files.name, %error, "the run has failed"),
                // The process ends with this error.
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
            _ => None,
        };
        tokio::spawn(async move {
            let Ok(_room) = openers.acquire_owned().await else { return };
            let answer = tokio::task::spawn_blocking(move || carry_out(&dir, job, open)).await;
            let answer = answer.unwrap_or_else(|error| Done {
                done: if is_delete {
                    RunsDone::Deleted { name, left: Some(error.to_string()) }
                } else {
                    RunsDone::NotOpened { name, is_there: true, why: error.to_string() }
                },
                files: None,
            });
            done.send(answer).await.ok();
        });
    }

    /// How the process ends: as the run that shares its directory with it, else as one that has failed. Where no run could be
    /// served at all: with the reason.
    pub(super) fn into_result(mut self) -> anyhow::Result<()> {
        if let Some(problem) = self.own_problem.filter(|_| self.ended.is_empty()) {
            return Err(problem);
        }
        let own = self.own.and_then(|run| self.ended.remove(&run));
        let failed = self.ended.into_values().find(Result::is_err);
        match own.or(failed) {
            None => Ok(()),
            Some(Err(error)) => Err(job_fail(error)),
            Some(Ok(reason)) => finite(reason),
        }
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
        RunsJob::Delete { name, .. } => {
            drop(open);
            let left = runs::delete(dir, &name).err().map(|error| with_help(&error));
            Done { done: RunsDone::Deleted { name, left }, files: None }
        }
    }
}

fn open_run(dir: &Path, name: String) -> Done {
    match runs::open(dir, &name) {
        Ok(open) => Done { done: RunsDone::Opened(Box::new(open.run)), files: Some(open.files) },
        Err(error) => not_opened(name, true, error.reason()),
    }
}

fn not_opened(name: String, is_there: bool, why: String) -> Done {
    Done { done: RunsDone::NotOpened { name, is_there, why }, files: None }
}

fn with_help(error: &StorageError) -> String {
    error.help().map_or_else(|| error.to_string(), |help| format!("{error}; {help}"))
}
