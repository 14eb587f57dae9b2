//! The stores of searches, and jobs for searches.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_common::ids::{ModelVersion, RunId};
use tokio::sync::mpsc;

use crate::host::{CopiedModel, Input, SearchTexts, SearchesDone, SearchesJob};
use crate::node::PublishedModel;
use crate::recovery::{self, RecoveryError};
use crate::runs::searches;
use crate::search::journal;
use crate::search::record::TrialId;
use crate::store::{StorageError, Store};

/// Stores by the name of their search: open once its directory is.
type Stores = Arc<parking_lot::Mutex<BTreeMap<String, Arc<dyn Store>>>>;

/// The searches of a process.
#[derive(Debug)]
pub(super) struct SearchStores {
    dir: PathBuf,
    stores: Stores,
    answers: mpsc::Sender<Input>,
}

impl SearchStores {
    /// Searches below the directory `dir` of the process, whose jobs are answered on `answers`.
    pub(super) fn new(dir: PathBuf, answers: mpsc::Sender<Input>) -> Self {
        Self { dir, stores: Stores::default(), answers }
    }

    /// Does a job beside the loop. `run` is the store of the run that it concerns, if it concerns one.
    pub(super) fn start(&self, job: SearchesJob, run: Option<Arc<dyn Store>>) {
        let (dir, stores, answers) = (self.dir.clone(), Arc::clone(&self.stores), self.answers.clone());
        let failed = failure(&job);
        tokio::spawn(async move {
            let done = tokio::task::spawn_blocking(move || carry_out(&dir, &stores, job, run)).await;
            let done = done.unwrap_or_else(|error| failed(error.to_string()));
            answers.send(Input::Searches(done)).await.ok();
        });
    }
}

/// The answer to a job whose thread has panicked.
fn failure(job: &SearchesJob) -> impl FnOnce(String) -> SearchesDone + Send + use<> {
    enum Kind {
        Open,
        Write,
        Rebuild(TrialId, RunId, ModelVersion),
        Copy(TrialId, RunId, ModelVersion),
    }
    let (name, kind) = match job {
        SearchesJob::Create { name, .. } | SearchesJob::Open { name } => (name.clone(), Kind::Open),
        SearchesJob::Write { name, .. } => (name.clone(), Kind::Write),
        SearchesJob::Rebuild { search, trial, run, version } => (search.clone(), Kind::Rebuild(*trial, *run, *version)),
        SearchesJob::Copy { search, trial, run, version } => (search.clone(), Kind::Copy(*trial, *run, *version)),
    };
    move |why| match kind {
        Kind::Open => SearchesDone::NotOpened { name, is_there: true, why },
        Kind::Write => SearchesDone::Written { name, result: Err(why) },
        Kind::Rebuild(trial, run, version) => {
            SearchesDone::Rebuilt { search: name, trial, run, version, model: Err(why) }
        }
        Kind::Copy(trial, run, version) => SearchesDone::Copied { search: name, trial, run, version, model: Err(why) },
    }
}

fn carry_out(dir: &Path, stores: &Stores, job: SearchesJob, run: Option<Arc<dyn Store>>) -> SearchesDone {
    match job {
        SearchesJob::Create { name, texts } => match create(dir, &name, texts) {
            Ok((store, texts)) => {
                stores.lock().insert(name.clone(), store);
                SearchesDone::Opened { name, records: Vec::new(), texts: Some(texts) }
            }
            Err(why) => SearchesDone::NotOpened { name, is_there: false, why },
        },
        SearchesJob::Open { name } => open(dir, stores, name),
        SearchesJob::Write { name, records } => {
            let store = stores.lock().get(&name).map(Arc::clone);
            let written = store.map(|store| journal::write(store.journal(), &records));
            let result = match written {
                Some(Ok(Some(position))) => Ok(position),
                Some(Ok(None)) | None => Err("there was nothing to write to".to_owned()),
                Some(Err(error)) => Err(error.to_string()),
            };
            SearchesDone::Written { name, result }
        }
        SearchesJob::Rebuild { search, trial, run: id, version } => {
            let store = run.ok_or_else(|| "its run is not open".to_owned());
            let model = store.and_then(|store| rebuild(store.as_ref(), id, version));
            SearchesDone::Rebuilt { search, trial, run: id, version, model }
        }
        SearchesJob::Copy { search, trial, run: id, version } => {
            let problem = |why: String| format!("version {version} of run {id} cannot be copied: {why}");
            let store = run.ok_or_else(|| problem("its run is not open".to_owned()));
            let model = store.and_then(|store| {
                let exported = recovery::export(store.as_ref(), Some(version));
                let model = exported.map(|exported| Box::new(CopiedModel::of(exported)));
                model.map_err(|error| problem(error.to_string()))
            });
            SearchesDone::Copied { search, trial, run: id, version, model }
        }
    }
}

fn create(dir: &Path, name: &str, texts: SearchTexts) -> Result<(Arc<dyn Store>, SearchTexts), String> {
    let SearchTexts { path, search, base } = texts;
    let checked = searches::check_texts((Path::new(&path), &search), &base).map_err(|error| error.to_string())?;
    let (_, base, _) = checked;
    let store = searches::create(dir, name).map_err(|error| with_help(&error))?;
    Ok((Arc::new(store), SearchTexts { path, search, base: base.text() }))
}

fn open(dir: &Path, stores: &Stores, name: String) -> SearchesDone {
    let not_opened = |name: String, why: String| SearchesDone::NotOpened { name, is_there: true, why };
    let store = match searches::open(dir, &name) {
        Ok(store) => store,
        Err(error) => return not_opened(name, with_help(&error)),
    };
    match journal::read(store.journal()) {
        Ok(records) if records.is_empty() => {
            drop(store);
            tracing::info!(search = %name, "removing a search whose start was never answered");
            match searches::remove(dir, &name) {
                Ok(()) => {
                    let why = "its start was never answered; start it again".to_owned();
                    SearchesDone::NotOpened { name, is_there: false, why }
                }
                Err(error) => not_opened(name, with_help(&error)),
            }
        }
        Ok(records) => {
            stores.lock().insert(name.clone(), Arc::new(store));
            SearchesDone::Opened { name, records, texts: None }
        }
        Err(error) => not_opened(name, error.to_string()),
    }
}

/// Rebuilds what users are given of a version of a run.
fn rebuild(store: &dyn Store, run: RunId, version: ModelVersion) -> Result<Arc<PublishedModel>, String> {
    let problem = |error: RecoveryError| format!("version {version} of run {run} cannot be measured: {error}");
    let exported = recovery::export(store, Some(version)).map_err(problem)?;
    Ok(Arc::new(PublishedModel { version, digest: exported.digest, values: exported.model.into() }))
}

fn with_help(error: &StorageError) -> String {
    error.help().map_or_else(|| error.to_string(), |help| format!("{error}; {help}"))
}
