//! The jobs of runs, each carried out where it belongs: in the loop, on a thread of its kind, or on one of the runtime's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anabranch_common::ids::RunId;
use anabranch_common::wire::operator::{OperatorResponse, RunRequest};

use super::Driver;
use crate::clock;
use crate::core::event::RequestId;
use crate::host::{self, SearchesJob};
use crate::node::Job;
use crate::runs;

impl Driver {
    /// Has a job done. Returns its answer if it is done already, or if the worker does not take it.
    pub(super) fn run(&mut self, run: RunId, job: Job) -> Option<host::Input> {
        let files = self.directories.files(run)?;
        let (answers, spool) = (self.answers.clone(), Arc::clone(&files.spool));
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
            job => return self.run_workers.run(run, job, &files.tools).map(answer),
        }
        None
    }

    /// Counts what the store of a run takes on the disk.
    pub(super) fn measure(&self, run: RunId) {
        let Some(files) = self.directories.files(run) else { return };
        let (store, answers) = (Arc::clone(&files.tools.store), self.answers.clone());
        tokio::spawn(async move {
            let usage = tokio::task::spawn_blocking(move || store.usage()).await;
            let disk_bytes = usage.ok().and_then(Result::ok).map(|usage| usage.disk_bytes);
            answers.send(host::Input::Measured { run, disk_bytes }).await.ok();
        });
    }

    /// Does a job for a search.
    pub(super) fn start_search_job(&mut self, job: SearchesJob) {
        let run = match &job {
            SearchesJob::Rebuild { run, .. } | SearchesJob::Copy { run, .. } => {
                self.directories.files(*run).map(|files| Arc::clone(&files.tools.store))
            }
            _ => None,
        };
        self.searches.start(job, run);
    }

    /// Reads the store of a run that has ended.
    pub(super) fn look(&mut self, request: RequestId, run: RunId, what: RunRequest) {
        let Some(files) = self.directories.files(run) else {
            let answer = OperatorResponse::Conflict("the run is not here any more".into()).into();
            self.answered.push_back(host::Input::Looked { request, answer });
            return;
        };
        let (store, options, name) = (Arc::clone(&files.tools.store), files.options.clone(), files.name.clone());
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let look = move || runs::answer(store.as_ref(), &options, &name, &what, clock::unix_ms());
            let failed = || OperatorResponse::Failed("the store of the run could not be read".into()).into();
            let answer = tokio::task::spawn_blocking(look).await.unwrap_or_else(|_| failed());
            answers.send(host::Input::Looked { request, answer }).await.ok();
        });
    }
}
