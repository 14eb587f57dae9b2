//! A stopped coordinator: the store answers what a running one would.

use std::path::Path;

use anabranch_common::ids::{BranchId, ModelVersion, Position, RunId};
use anabranch_common::journal::{Chain, Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse};
use anabranch_io::durable::StorageError;
use anabranch_io::exit::{ExitCode, Fail};
use anyhow::Context as _;

use crate::clock;
use crate::config::Config;
use crate::core::ModelMismatch;
use crate::core::roster::Roster;
use crate::core::status;
use crate::driver;
use crate::identity::run;
use crate::identity::tokens::NewToken;
use crate::recovery::{self, ImportError, NewRun, Recovered, RecoveryError};
use crate::store::{SledStore, Store as _};
use crate::workers;

/// The store of a coordinator that is not running, held exclusively.
#[derive(Debug)]
pub(crate) struct Stopped {
    config: Config,
    store: SledStore,
}

impl Stopped {
    pub(super) fn new(config: Config, store: SledStore) -> Self {
        Self { config, store }
    }

    /// Opens the store in `dir`, which no coordinator may be using. Root does so as its owner.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        anabranch_io::durable::act_as_owner(dir)?;
        Self::open_with(dir, SledStore::open_dir)
    }

    /// The same to read: nothing in the directory is changed.
    pub(super) fn look(dir: &Path) -> anyhow::Result<Self> {
        Self::open_with(dir, SledStore::open_copy)
    }

    fn open_with(dir: &Path, open: fn(&Path) -> Result<SledStore, StorageError>) -> anyhow::Result<Self> {
        let config = super::reach::load_config(dir)?;
        let store = open(&dir.join(driver::STORE_DIR)).map_err(|error| match error {
            StorageError::Locked { .. } => anyhow::Error::new(
                Fail::new(ExitCode::Locked, error.to_string())
                    .help("this needs a stopped coordinator: end `run` with SIGTERM first, then start it again"),
            ),
            other => other.into(),
        })?;
        Ok(Self::new(config, store))
    }

    /// Answers as a running coordinator would; what needs one is a conflict.
    pub(super) fn answer(&mut self, request: OperatorRequest) -> anyhow::Result<OperatorResponse> {
        match request {
            OperatorRequest::Status => json(&self.status()?),
            OperatorRequest::AgentsList => {
                let recovered = self.recover()?;
                json(&status::agents_of(recovered.as_ref().map(|recovered| &recovered.state), &self.roster()?))
            }
            OperatorRequest::TokenList => json(&self.roster()?.tokens().list()),
            OperatorRequest::TokenCreate { name, ttl_ms, uses, secret_digest } => {
                self.create_token(NewToken { secret_digest, name, ttl_ms, uses })
            }
            OperatorRequest::TokenRevoke { id } => self.revoke_token(&id),
            OperatorRequest::AgentRevoke { agent } => self.revoke_agent(&agent),
            OperatorRequest::CheckpointList => json(&recovery::checkpoint::list(&self.store).map_err(recovery_fail)?),
            OperatorRequest::CheckpointVerify => json(&recovery::verify(&self.store).map_err(recovery_fail)?),
            OperatorRequest::CheckpointExport { .. } => {
                Ok(OperatorResponse::Failed("an export from the store needs no answer".to_owned()))
            }
            OperatorRequest::Pause | OperatorRequest::Resume | OperatorRequest::Stop => Ok(OperatorResponse::Conflict(
                "no coordinator is running in this directory; start one with `anabranch-coordinator run`".to_owned(),
            )),
        }
    }

    /// Takes a model out of the store: see [`recovery::export`].
    pub(super) fn export(&self, version: Option<ModelVersion>) -> anyhow::Result<recovery::Exported> {
        recovery::export(&self.store, version).map_err(recovery_fail)
    }

    /// The run's identifier.
    pub(super) fn run(&self) -> anyhow::Result<RunId> {
        Ok(self.identifiers()?.0)
    }

    /// Brings a model in: see [`recovery::import`].
    pub(super) fn import(&self, manifest: &ModelManifest, model: &[f32]) -> anyhow::Result<(Position, ModelVersion)> {
        let (run, branch) = self.identifiers()?;
        let new_run = NewRun { run, branch, spec: self.config.spec.clone() };
        recovery::import(&self.store, manifest, model, Some(new_run), clock::unix_ms()).map_err(import_fail)
    }

    /// Goes back to an earlier version, on a new branch: see [`recovery::rollback`].
    pub(super) fn rollback(&self, version: ModelVersion) -> anyhow::Result<recovery::RolledBack> {
        recovery::rollback(&self.store, version, run::fresh_branch()?, clock::unix_ms()).map_err(recovery_fail)
    }

    /// Whether run.toml still has the model of the run, if there is one.
    pub(super) fn check_model(&self) -> anyhow::Result<()> {
        let recovered = self.recover()?;
        let journalled = recovered.as_ref().map(|recovered| &recovered.state.spec);
        journalled.map_or(Ok(()), |spec| ModelMismatch::check(spec, &self.config.spec).map_err(mismatch_fail))
    }

    /// The manifest of the run, once there is one.
    pub(super) fn manifest(&self) -> anyhow::Result<Option<ModelManifest>> {
        Ok(self.recover()?.map(|recovered| recovered.state.manifest))
    }

    /// Returns the manifest that follows from `[model]` in run.toml, or `None` where the model is `custom`.
    pub(super) fn native_manifest(&self) -> anyhow::Result<Option<ModelManifest>> {
        let layers = self.config.spec.model.layers().context("run.toml describes no model")?;
        Ok(layers.map(|layers| layers.manifest))
    }

    fn status(&self) -> anyhow::Result<anabranch_common::status::StatusReport> {
        let recovered = self.recover()?;
        let roster = self.roster()?;
        // A run that has never started has none, and looking does not draw them.
        let identifiers = run::known(&self.store)?.unwrap_or((RunId([0; 16]), BranchId([0; 16])));
        let options = driver::options(identifiers, &self.config);
        let state = recovered.as_ref().map(|recovered| &recovered.state);
        let chain = recovered.as_ref().map_or_else(Chain::default, |recovered| recovered.chain);
        let name = &self.config.spec.name;
        let mut report = status::report(&options, name, state, chain, &roster, clock::unix_ms());
        report.checkpoint_version = recovered.as_ref().and_then(|recovered| recovered.checkpoint_version);
        Ok(report)
    }

    /// The run as its journal leaves it; none before the first model.
    fn recover(&self) -> anyhow::Result<Option<Recovered>> {
        match recovery::recover(&self.store) {
            Ok(recovered) => Ok(Some(recovered)),
            Err(RecoveryError::Empty) => Ok(None),
            Err(error) => Err(recovery_fail(error)),
        }
    }

    fn identifiers(&self) -> anyhow::Result<(RunId, BranchId)> {
        Ok(run::identifiers(&self.store)?)
    }

    fn roster(&self) -> anyhow::Result<Roster> {
        driver::roster(&self.store)
    }

    fn save(&self, roster: &mut Roster) -> anyhow::Result<()> {
        let items = roster.take_changes().context("the token or member does not fit an item of the store")?;
        workers::save_items(&self.store, items)?;
        Ok(self.store.commit()?)
    }

    fn create_token(&self, new: NewToken) -> anyhow::Result<OperatorResponse> {
        let mut roster = self.roster()?;
        match roster.create_token(new, clock::unix_ms()) {
            Ok(token) => {
                self.save(&mut roster)?;
                Ok(OperatorResponse::Done(token.id))
            }
            Err(why) => Ok(OperatorResponse::Failed(why.to_string())),
        }
    }

    fn revoke_token(&self, id: &str) -> anyhow::Result<OperatorResponse> {
        let mut roster = self.roster()?;
        if !roster.revoke_token(id) {
            return Ok(OperatorResponse::NotFound(format!("no token {id}; see `token list`")));
        }
        self.save(&mut roster)?;
        Ok(OperatorResponse::Done(format!("revoked token {id}")))
    }

    /// The journal is told as well, as a running coordinator would: what it says about agents must not differ.
    fn revoke_agent(&self, who: &str) -> anyhow::Result<OperatorResponse> {
        let mut roster = self.roster()?;
        let agent = match roster.revoke(who) {
            Ok(agent) => agent,
            Err(why) => return Ok(OperatorResponse::NotFound(why)),
        };
        let recovered = self.recover()?;
        let known = recovered
            .as_ref()
            .is_some_and(|recovered| recovered.state.agents.get(&agent).is_some_and(|agent| !agent.revoked));
        if let Some(recovered) = recovered.filter(|recovered| known && recovered.state.finished.is_none()) {
            let body = RecordBody::AgentRevoked { agent };
            let position = recovered.position.next();
            let record = Record::new(position, clock::unix_ms(), body, [].into());
            self.store.append(&[(position, record.to_bytes().context("the record does not fit")?)])?;
        }
        self.save(&mut roster)?;
        let name = roster.name(agent).unwrap_or_default();
        Ok(OperatorResponse::Done(format!("revoked {name} ({agent})")))
    }
}

fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<OperatorResponse> {
    Ok(OperatorResponse::Json(serde_json::to_string(value).context("the report cannot be written as JSON")?))
}

/// A recovery error with its exit code and what to do.
pub(crate) fn recovery_fail(error: RecoveryError) -> anyhow::Error {
    let code = match &error {
        RecoveryError::Storage(error) => error.exit_code(),
        RecoveryError::Empty | RecoveryError::Version { .. } => ExitCode::Unavailable,
        _ => ExitCode::Storage,
    };
    let fail = Fail::new(code, error.to_string());
    match error.help() {
        Some(help) => fail.help(help).into(),
        None => fail.into(),
    }
}

/// A configuration that is not the run's, with its exit code and what to do.
pub(crate) fn mismatch_fail(error: ModelMismatch) -> anyhow::Error {
    let help = "put these keys back as they were, or start a new run in a new directory";
    Fail::new(ExitCode::Model, error.to_string()).help(help).into()
}

fn import_fail(error: ImportError) -> anyhow::Error {
    let message = error.to_string();
    let (code, help) = match error {
        ImportError::Recovery(error) => return recovery_fail(error),
        ImportError::OtherManifest | ImportError::WrongLength { .. } => (
            ExitCode::Model,
            "only a model with the same tensors can replace the run's; for another one make a new run",
        ),
        ImportError::NoRun => (ExitCode::Unavailable, "start a run first"),
        ImportError::Finished(_) => (ExitCode::Unavailable, "make a new run with `init` and import the model there"),
    };
    Fail::new(code, message).help(help).into()
}
