//! Opening a run: its store, what the store holds of it, and half-received uploads.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anabranch_common::ids::{BranchId, RunId};
use anabranch_common::transfer::{Budgets, Half};
use anabranch_io::durable::StorageError;

use super::{Submission, UPLOADS_DIR, stores};
use crate::clock;
use crate::config::{Config, ConfigError, FILE_NAME};
use crate::core::Options;
use crate::host::{About, OpenedRun};
use crate::identity;
use crate::node::Settings;
use crate::node::checkpoint::Keep;
use crate::recovery::{self, RecoveryError};
use crate::store::Store;
use crate::transport::Spool;

/// Why a run cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its store cannot be opened or used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What its store holds cannot be taken up.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

impl OpenError {
    /// Returns the problem and what to do about it, as a sentence for `runs list`.
    #[must_use]
    pub fn reason(&self) -> String {
        let help = match self {
            Self::Config(_) => Some("correct that line, then start the coordinator again".to_owned()),
            Self::Storage(error) => error.help(),
            Self::Recovery(error) => error.help(),
        };
        help.map_or_else(|| self.to_string(), |help| format!("{self}; {help}"))
    }
}

/// What the jobs of a run work on.
#[derive(Debug, Clone)]
pub struct Files {
    /// Its name.
    pub name: String,
    /// What its core was told.
    pub options: Options,
    /// Its store.
    pub store: Arc<dyn Store>,
    /// Halves of uploads.
    pub spool: Arc<Spool>,
    /// What checkpoints keep.
    pub keep: Keep,
}

/// A run that can be started.
#[derive(Debug)]
pub struct Open {
    /// For its jobs.
    pub files: Files,
    /// For the host.
    pub run: OpenedRun,
}

/// Opens the run `name` below the directory `dir` of the process. Blocks: recovery may take long.
///
/// # Errors
/// See [`OpenError`].
pub fn open(dir: &Path, name: &str) -> Result<Open, OpenError> {
    let dir = super::dir_of(dir, name);
    let config = Config::load_run(&dir.join(FILE_NAME), name)?;
    let store = stores::open(&dir, config.store.url.as_deref())?;
    open_with(&dir, &config, store, false)
}

/// Opens a run again whose store is open: with its configuration as it is now, and the uploads that are half there.
///
/// # Errors
/// See [`OpenError`].
pub fn reopen(dir: &Path, name: &str, store: Arc<dyn Store>) -> Result<Open, OpenError> {
    let dir = super::dir_of(dir, name);
    let config = Config::load_run(&dir.join(FILE_NAME), name)?;
    open_with(&dir, &config, store, false)
}

/// The same for a run whose configuration was read, and whose store is open.
///
/// # Errors
/// See [`OpenError`].
pub(crate) fn open_with(dir: &Path, config: &Config, store: Arc<dyn Store>, is_own: bool) -> Result<Open, OpenError> {
    let started = clock::monotonic();
    let (spool, halves) = Spool::open(dir.join(UPLOADS_DIR));
    let mut options = options(identity::run::identifiers(store.catalogue())?, config);
    options.starts = identity::run::count_start(store.catalogue())?;
    let recovered = recover(store.as_ref(), &config.spec.name, started)?;
    let decoders = std::thread::available_parallelism().map_or(1, usize::from);
    let name = config.spec.name.clone();
    let about = About {
        name: name.clone(),
        weight: config.weight,
        is_own,
        submission: Submission::read(dir),
        disk_quota_bytes: config.quota.disk_bytes,
    };
    let settings =
        Settings { options: options.clone(), spec: config.spec.clone(), budgets: Budgets::with_decoders(decoders) };
    let keep = Keep { checkpoints: config.checkpoint.keep, retention: config.checkpoint.retention };
    let halves: Vec<Half> = halves;
    Ok(Open {
        files: Files { name, options, store, spool: Arc::new(spool), keep },
        run: OpenedRun { about, settings, recovered, halves },
    })
}

/// Reads what the store holds of a run; none before its first model.
fn recover(store: &dyn Store, run: &str, started: Instant) -> Result<Option<recovery::Recovered>, RecoveryError> {
    match recovery::recover(store) {
        Ok(recovered) => {
            recovery::release(store)?;
            recovered.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            let (version, position, replayed) = (recovered.state.version, recovered.position, recovered.replayed);
            tracing::info!(run, %version, %position, replayed, took_ms = started.elapsed().as_millis(), "recovered");
            Ok(Some(recovered))
        }
        Err(RecoveryError::Empty) => {
            tracing::info!(run, "no model yet: the first agent makes it from the run's seed");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What the core is told at its start: the run's identifiers, and what run.toml says. No start is counted yet.
#[must_use]
pub fn options((run, first_branch): (RunId, BranchId), config: &Config) -> Options {
    Options {
        run,
        first_branch,
        starts: 0,
        lease_ttl_ms: milliseconds(config.schedule.lease_ttl_s),
        checkpoint_every_versions: config.checkpoint.every_versions,
        checkpoint_every_ms: milliseconds(config.checkpoint.every_s),
    }
}

/// Whole milliseconds; validated durations are finite and not negative.
#[expect(clippy::cast_possible_truncation, reason = "a float that is out of range saturates")]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}
