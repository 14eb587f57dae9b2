//! A stopped coordinator: the store answers what a running one would.

use std::path::Path;

use anabranch_common::ids::{AgentId, BranchId, ModelVersion, Position, RunId};
use anabranch_common::journal::Chain;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::status::AgentStatus;
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RegistryRequest, RunRequest};
use anabranch_io::durable::{LockHolder, StorageError};
use anabranch_io::exit::{ExitCode, Fail, storage_fail};
use anyhow::Context as _;

use crate::clock;
use crate::config::Config;
use crate::core::command::Command;
use crate::core::event::{Event, Now, RequestId};
use crate::core::state::RunState;
use crate::core::status;
use crate::core::{Core, ModelMismatch};
use crate::driver;
use crate::host;
use crate::identity::run;
use crate::node::write::{self, WriteJob};
use crate::recovery::{self, ImportError, NewRun, Recovered, RecoveryError};
use crate::registry::{self, Registry, save};
use crate::store::{SledStore, Store as _};

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
            StorageError::Locked { holder: LockHolder::Readers, .. } => error.into(),
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
            OperatorRequest::Registry(request) => self.operate(request),
            OperatorRequest::Run { run, request } => {
                let known = run::known(self.store.catalogue())?.map(|(run, _)| run);
                match run.filter(|run| known != Some(*run)) {
                    Some(_) => Ok(host::choose(known, run).expect_err("another run")),
                    None => self.answer_for_run(request),
                }
            }
        }
    }

    fn answer_for_run(&mut self, request: RunRequest) -> anyhow::Result<OperatorResponse> {
        match request {
            RunRequest::Status => Ok(status::json(&self.status()?)),
            RunRequest::AgentsList => {
                let recovered = self.recover()?;
                Ok(status::json(&self.agents(recovered.as_ref().map(|recovered| &recovered.state))?))
            }
            RunRequest::CheckpointList => {
                Ok(status::json(&recovery::checkpoint::list(&self.store).map_err(recovery_fail)?))
            }
            RunRequest::CheckpointVerify => Ok(status::json(&recovery::verify(&self.store).map_err(recovery_fail)?)),
            RunRequest::CheckpointExport { .. } => {
                Ok(OperatorResponse::Failed("an export from the store needs no answer".to_owned()))
            }
            RunRequest::Pause | RunRequest::Resume | RunRequest::Stop => Ok(OperatorResponse::Conflict(
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
        let options = driver::options(self.known_identifiers()?, &self.config);
        let state = recovered.as_ref().map(|recovered| &recovered.state);
        let chain = recovered.as_ref().map_or_else(Chain::default, |recovered| recovered.chain);
        let name = &self.config.spec.name;
        let mut report = status::report(&options, name, state, chain, self.agents(state)?, clock::unix_ms());
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

    /// The run's identifiers; zeros for a run that has never started, since this does not draw them.
    fn known_identifiers(&self) -> anyhow::Result<(RunId, BranchId)> {
        Ok(run::known(self.store.catalogue())?.unwrap_or((RunId([0; 16]), BranchId([0; 16]))))
    }

    fn identifiers(&self) -> anyhow::Result<(RunId, BranchId)> {
        Ok(run::identifiers(self.store.catalogue())?)
    }

    fn registry(&self) -> anyhow::Result<Registry> {
        driver::registry(self.store.catalogue())
    }

    /// Every member, with what the run's journal says of it.
    fn agents(&self, state: Option<&RunState>) -> anyhow::Result<Vec<AgentStatus>> {
        let mut agents = status::agents_of(state);
        self.registry()?.complete(&mut agents);
        Ok(agents)
    }

    /// Answers with the registry of a running coordinator, and carries out what it orders.
    fn operate(&self, operation: RegistryRequest) -> anyhow::Result<OperatorResponse> {
        let now = Now { unix_ms: clock::unix_ms(), mono_ms: 0 };
        let mut registry = self.registry()?;
        let mut command = registry.handle(now, registry::Event::Operator { request: RequestId(0), operation });
        while let Some(registry::Command::Save(job)) = command {
            let tickets = save::save(self.store.catalogue(), vec![job]).map_err(storage_fail)?;
            let saved = tickets.into_iter().map(|ticket| registry::Event::Saved { ticket });
            command = saved.filter_map(|event| registry.handle(now, event)).next();
        }
        match command {
            Some(registry::Command::Reply { response, .. }) => Ok(response),
            Some(registry::Command::Revoke { agent, response, .. }) => {
                self.journal_revocation(agent, now)?;
                Ok(response)
            }
            _ => anyhow::bail!("the registry gave no answer"),
        }
    }

    /// Tells the run that a member was revoked, with the core of a running coordinator.
    fn journal_revocation(&self, agent: AgentId, now: Now) -> anyhow::Result<()> {
        let Some(Recovered { state, chain, oldest, checkpoint_version, .. }) = self.recover()? else { return Ok(()) };
        let options = driver::options(self.known_identifiers()?, &self.config);
        // With the journalled configuration: a change of run.toml counts from the next start on.
        let spec = state.spec.clone();
        let resumed = Core::resume(options, spec, (state, chain), (oldest, checkpoint_version), now);
        let (mut core, mut commands) = resumed.map_err(mismatch_fail)?;
        commands.extend(core.handle_at_rest(now, Event::AgentRevoked { agent, request: None }));
        // No agent is connected, and the next start merges what was appended.
        let records = commands.into_iter().filter_map(|command| match command {
            Command::Append { record } => Some(WriteJob::Append(record)),
            _ => None,
        });
        write::write(&self.store, records.collect()).map_err(driver::job_fail)?;
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{AgentId, Digest};
    use anabranch_common::journal::{FinishReason, Record, RecordBody};
    use anabranch_common::manifest::TensorSpec;

    use super::*;
    use crate::config::TemplateOptions;
    use crate::registry::roster::Roster;
    use crate::registry::tokens::NewToken;

    const AGENT: AgentId = AgentId([7; 16]);

    /// A run that one agent joined and that has ended at version 0.
    fn finished(dir: &Path) -> Stopped {
        let listen = ([127, 0, 0, 1], 4433).into();
        let options = TemplateOptions { name: "test".into(), seed: 1, listen, names: Vec::new() };
        let config = Config::parse(Path::new("run.toml"), &Config::template(&options)).expect("what `init` writes");
        let store = SledStore::open_dir(&dir.join(driver::STORE_DIR)).expect("a new store");
        let (mut roster, secret) = (Roster::default(), [9; 32]);
        let secret_digest = Digest::of(&secret).0;
        let token = NewToken { secret_digest, name: Some("clinic".into()), ttl_ms: 1_000, uses: 1 };
        roster.create_token(token, 0).expect("a token");
        roster.join(&secret, AGENT, 1).expect("the first use");
        save::put(store.catalogue(), roster.take_changes().expect("short")).expect("saved");
        let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![2] }]).expect("valid");
        let stopped = Stopped::new(config, store);
        stopped.import(&manifest, &[0.5, -0.5]).expect("a first model");
        let bodies = [
            RecordBody::AgentJoined { agent: AGENT, name: "clinic".into() },
            RecordBody::Finished { reason: FinishReason::Stopped, result: ModelVersion(0) },
        ];
        for (position, body) in (1..).map(Position).zip(bodies) {
            let record = Record::new(position, 1, body, [].into());
            stopped.store.journal().append(&[(position, record.to_bytes().expect("short"))]).expect("appended");
        }
        stopped.store.journal().sync().expect("committed");
        stopped
    }

    #[test]
    fn an_agent_is_revoked_in_the_journal_even_after_the_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut stopped = finished(dir.path());
        for positions in [3, 3] {
            let done =
                stopped.answer(RegistryRequest::AgentRevoke { agent: "clinic".into() }.into()).expect("an answer");
            assert!(matches!(&done, OperatorResponse::Done(text) if text.starts_with("revoked clinic")), "{done:?}");
            let recovered = stopped.recover().expect("it recovers").expect("a run");
            assert!(recovered.state.agents.get(&AGENT).is_some_and(|agent| agent.revoked));
            assert_eq!(recovered.position, Position(positions), "one record, and none for a second call");
            assert!(
                stopped.registry().expect("a registry").roster().member(AGENT).is_some_and(|member| member.revoked)
            );
        }
    }

    #[test]
    fn a_directory_of_an_earlier_build_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let stopped = finished(dir.path());
        let at = Position(3);
        let record = Record::new(at, 1, RecordBody::Paused, [].into());
        let mut bytes = record.to_bytes().expect("short");
        bytes[4] = 3;
        stopped.store.journal().append(&[(at, bytes)]).expect("appended");
        stopped.store.journal().sync().expect("committed");
        let error = recovery::recover(&stopped.store).expect_err("an old record");
        assert_eq!(
            error.to_string(),
            "record 3 cannot be read: record of schema version 3; this program reads version 5"
        );
        assert!(error.help().is_some_and(|help| help.contains("checkpoint export")), "{:?}", error.help());
    }

    #[test]
    fn tokens_are_made_and_revoked_without_a_record() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut stopped = finished(dir.path());
        let create = RegistryRequest::TokenCreate { name: None, ttl_ms: 1_000, uses: 2, secret_digest: [3; 32] };
        let OperatorResponse::Done(id) = stopped.answer(create.into()).expect("an answer") else { panic!("a token") };
        let revoke = || RegistryRequest::TokenRevoke { id: id.clone() };
        assert_eq!(
            stopped.answer(revoke().into()).expect("an answer"),
            OperatorResponse::Done(format!("revoked token {id}"))
        );
        let listed = stopped.answer(RegistryRequest::TokenList.into()).expect("an answer");
        assert!(matches!(&listed, OperatorResponse::Json(text) if text.contains(&id)), "{listed:?}");
        assert_eq!(stopped.recover().expect("it recovers").expect("a run").position, Position(2));
    }
}
