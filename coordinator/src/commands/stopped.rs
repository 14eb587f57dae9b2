//! A stopped coordinator: the store answers what a running one would.

mod authority;
mod many;
mod searches;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_common::ids::{BranchId, ModelVersion, RunId};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::status::{AgentStatus, StatusReport};
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RegistryRequest, RunRequest};
use anabranch_io::durable::{LockHolder, StorageError};
use anabranch_io::exit::{ExitCode, Fail};
use anyhow::Context as _;

use crate::clock;
use crate::config::Config;
use crate::core::ModelMismatch;
use crate::core::replacement::{ReplaceError, Replaced};
use crate::core::state::RunState;
use crate::core::status;
use crate::driver;
use crate::identity::{Identity, run};
use crate::node::JobError;
use crate::recovery::{self, Recovered, RecoveryError};
use crate::registry::Registry;
use crate::registry::certificates::Authorities;
use crate::rest::{Rest, RestError, RolledBack};
use crate::runs;
use crate::store::Store;

use many::Place;

/// How the store of a run is opened: by its directory, and by the address of its bucket if it is in one.
pub(super) type OpenStore = fn(&Path, Option<&str>) -> Result<Arc<dyn Store>, StorageError>;

/// The store of a coordinator that is not running, held exclusively.
#[derive(Debug)]
pub(crate) struct Stopped {
    dir: PathBuf,
    open: OpenStore,
    /// Of the process, and of the run that shares its directory with it.
    config: Config,
    store: Arc<dyn Store>,
    /// The run that verbs are about, where it is another one.
    selected: Option<(Config, Arc<dyn Store>)>,
}

impl Stopped {
    pub(super) fn new(dir: &Path, config: Config, store: Arc<dyn Store>, open: OpenStore) -> Self {
        Self { dir: dir.to_owned(), open, config, store, selected: None }
    }

    /// Opens the store in `dir`, which no coordinator may be using. Root does so as its owner.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        anabranch_io::durable::act_as_owner(dir)?;
        Self::open_with(dir, runs::stores::open)
    }

    /// The same to read: nothing in the directory is changed.
    pub(super) fn look(dir: &Path) -> anyhow::Result<Self> {
        Self::open_with(dir, runs::stores::open_copy)
    }

    fn open_with(dir: &Path, open: OpenStore) -> anyhow::Result<Self> {
        let config = super::reach::load_config(dir)?;
        let store = open(dir, config.store.url.as_deref()).map_err(|error| match error {
            StorageError::Locked { holder: LockHolder::Readers, .. } => error.into(),
            StorageError::Locked { .. } => anyhow::Error::new(
                Fail::new(ExitCode::Locked, error.to_string())
                    .help("this needs a stopped coordinator: end `run` with SIGTERM first, then start it again"),
            ),
            other => other.into(),
        })?;
        Ok(Self::new(dir, config, store, open))
    }

    /// Lets what follows be about the run of this name or id; about the only one without a name.
    pub(super) fn select(&mut self, run: Option<&str>) -> anyhow::Result<()> {
        match self.place_of(run)? {
            Place::Own => {
                self.selected = None;
                Ok(())
            }
            Place::Other(name) => self.select_other(&name),
        }
    }

    fn select_other(&mut self, name: &str) -> anyhow::Result<()> {
        let (home, config) = super::reach::load_other_config(&self.dir, name)?;
        let store = (self.open)(&home, config.store.url.as_deref())?;
        self.selected = Some((config, store));
        Ok(())
    }

    /// Whether there are runs beside the one that shares its directory with the process.
    pub(super) fn has_others(&self) -> anyhow::Result<bool> {
        Ok(!runs::names(&self.dir)?.is_empty())
    }

    /// Answers as a running coordinator would; what needs one is a conflict.
    pub(super) fn answer(&mut self, request: OperatorRequest) -> anyhow::Result<OperatorResponse> {
        match request {
            OperatorRequest::Registry(request) => self.operate(request),
            OperatorRequest::Runs(request) => self.operate_runs(request),
            OperatorRequest::Search(request) => self.operate_searches(request),
            OperatorRequest::Run { run, request } => {
                self.select(run.as_deref())?;
                self.answer_for_run(request)
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
                Ok(status::json(&recovery::checkpoint::list(self.run_store()).map_err(recovery_fail)?))
            }
            RunRequest::CheckpointVerify => {
                Ok(status::json(&recovery::verify(self.run_store()).map_err(recovery_fail)?))
            }
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
        recovery::export(self.run_store(), version).map_err(recovery_fail)
    }

    /// The run's identifier.
    pub(super) fn run(&self) -> anyhow::Result<RunId> {
        Ok(self.identifiers()?.0)
    }

    /// Brings a model in: see [`Rest::import`].
    pub(super) fn import(&self, manifest: &ModelManifest, model: Vec<f32>) -> anyhow::Result<Replaced> {
        let (identifiers, recovered) = (self.identifiers()?, self.recover()?);
        self.rest(identifiers, recovered, Registry::default())?.import(manifest.clone(), model).map_err(rest_fail)
    }

    /// Goes back to an earlier version, on a new branch: see [`Rest::roll_back`].
    pub(super) fn rollback(&self, version: ModelVersion) -> anyhow::Result<RolledBack> {
        let (identifiers, recovered) = (self.known_identifiers()?, self.recover()?);
        let mut rest = self.rest(identifiers, recovered, Registry::default())?;
        rest.roll_back(version, run::fresh_branch()?).map_err(rest_fail)
    }

    /// Whether run.toml still has the model of the run, if there is one, and fits its tensors.
    pub(super) fn check_model(&self) -> anyhow::Result<()> {
        let Some(recovered) = self.recover()? else { return Ok(()) };
        let state = &recovered.state;
        ModelMismatch::check(&state.spec, &state.manifest, &self.run_config().spec).map_err(mismatch_fail)
    }

    /// The manifest of the run, once there is one.
    pub(super) fn manifest(&self) -> anyhow::Result<Option<ModelManifest>> {
        Ok(self.recover()?.map(|recovered| recovered.state.manifest))
    }

    /// Returns the manifest that follows from `[model]` in run.toml, or `None` where the model is `custom`.
    pub(super) fn native_manifest(&self) -> anyhow::Result<Option<ModelManifest>> {
        let layers = self.run_config().spec.model.layers().context("run.toml describes no model")?;
        Ok(layers.map(|layers| layers.manifest))
    }

    fn status(&self) -> anyhow::Result<StatusReport> {
        let config = self.run_config();
        let options = runs::options(self.known_identifiers()?, config);
        let mut report =
            runs::status(self.run_store(), &options, &config.spec.name, clock::unix_ms()).map_err(recovery_fail)?;
        self.registry()?.complete(&mut report.agents);
        Ok(report)
    }

    /// Configuration of the run that this is about.
    fn run_config(&self) -> &Config {
        self.selected.as_ref().map_or(&self.config, |(config, _)| config)
    }

    /// Store of the run that this is about.
    fn run_store(&self) -> &dyn Store {
        self.selected.as_ref().map_or(self.store.as_ref(), |(_, store)| store.as_ref())
    }

    /// The run as its journal leaves it; none before the first model.
    fn recover(&self) -> anyhow::Result<Option<Recovered>> {
        match recovery::recover(self.run_store()) {
            Ok(recovered) => Ok(Some(recovered)),
            Err(RecoveryError::Empty) => Ok(None),
            Err(error) => Err(recovery_fail(error)),
        }
    }

    /// The run's identifiers; zeros for a run that has never started, since this does not draw them.
    fn known_identifiers(&self) -> anyhow::Result<(RunId, BranchId)> {
        Ok(run::known(self.run_store().catalogue())?.unwrap_or((RunId([0; 16]), BranchId([0; 16]))))
    }

    fn identifiers(&self) -> anyhow::Result<(RunId, BranchId)> {
        Ok(run::identifiers(self.run_store().catalogue())?)
    }

    fn registry(&self) -> anyhow::Result<Registry> {
        // Members and tokens do not depend on keys that cannot be read.
        let authorities = Identity::load(&self.dir).ok().and_then(|own| Authorities::of(&own.authorities()));
        Ok(driver::registry(self.store.catalogue())?.with_authorities(authorities))
    }

    /// Every member, with what the run's journal says of it.
    fn agents(&self, state: Option<&RunState>) -> anyhow::Result<Vec<AgentStatus>> {
        let mut agents = status::agents_of(state);
        self.registry()?.complete(&mut agents);
        Ok(agents)
    }

    /// Answers with the registry of a running coordinator. Tokens do not depend on the journal, whose replay may take long.
    fn operate(&mut self, operation: RegistryRequest) -> anyhow::Result<OperatorResponse> {
        let operation = match operation {
            RegistryRequest::CaRotate => return self.begin_rollover(),
            RegistryRequest::CaFinish { force } => return self.finish_rollover(force),
            operation => self.with_ids(operation)?,
        };
        // Members and tokens are in the store of the process.
        self.selected = None;
        let recovered = match operation {
            RegistryRequest::AgentRevoke { .. } => self.recover()?,
            _ => None,
        };
        self.rest(self.known_identifiers()?, recovered, self.registry()?)?.operate(operation).map_err(rest_fail)
    }

    /// Models do not depend on members and tokens: import and rollback pass an empty `registry`, so that a damaged item
    /// does not keep a run from going back.
    fn rest(
        &self,
        identifiers: (RunId, BranchId),
        recovered: Option<Recovered>,
        registry: Registry,
    ) -> anyhow::Result<Rest<'_>> {
        let config = self.run_config();
        let (options, spec) = (runs::options(identifiers, config), config.spec.clone());
        Rest::start(self.run_store(), options, spec, registry, recovered, clock::unix_ms()).map_err(rest_fail)
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
    let help = match error {
        ModelMismatch::Differs { .. } => "put these keys back as they were, or start a new run in a new directory",
        ModelMismatch::Policy(_) => "change this entry in run.toml, or take it out",
    };
    Fail::new(ExitCode::Model, error.to_string()).help(help).into()
}

/// What a stopped coordinator could not do, with its exit code and what to do.
fn rest_fail(error: RestError) -> anyhow::Error {
    match error {
        RestError::Recovery(error) => recovery_fail(error),
        RestError::Job(error) => driver::job_fail(error),
        RestError::Refused(refused) => replace_fail(refused),
        RestError::NoCheckpoint { done, error } => {
            let code = match &error {
                JobError::Storage(error) | JobError::Recovery(RecoveryError::Storage(error)) => error.exit_code(),
                _ => ExitCode::Storage,
            };
            let (version, branch) = (done.version, done.branch);
            let message = format!("rolled back to version {version} on branch {branch}, but without a checkpoint");
            let help = "do not roll back again: the rollback counts; make room or mend the disk, then start `run`";
            Fail::new(code, message).help(help).because(error).into()
        }
        RestError::NoAnswer => anyhow::Error::new(error),
    }
}

fn replace_fail(refused: ReplaceError) -> anyhow::Error {
    let message = refused.to_string();
    let (code, help) = match refused {
        ReplaceError::NoRun => return recovery_fail(RecoveryError::Empty),
        ReplaceError::Version { version, oldest, newest } => {
            return recovery_fail(RecoveryError::Version { version, oldest, newest });
        }
        ReplaceError::TooLong(error) => return recovery_fail(RecoveryError::Message(error)),
        ReplaceError::OtherManifest | ReplaceError::WrongLength { .. } => (
            ExitCode::Model,
            "only a model with the same tensors can replace the run's; for another one make a new run",
        ),
        ReplaceError::OtherModel(_) => {
            (ExitCode::Model, "`[model]` in run.toml says which tensors the run's model has")
        }
        ReplaceError::NotFinite => (ExitCode::NotFinite, "a model with NaN or infinity cannot be trained any further"),
        ReplaceError::Finished(_) => (ExitCode::Unavailable, "make a new run with `init` and import the model there"),
        ReplaceError::BranchTaken(_) => (ExitCode::Unavailable, "try again: the next one is drawn at random too"),
        ReplaceError::Serving => (ExitCode::Unavailable, "end `run` with SIGTERM first"),
    };
    Fail::new(code, message).help(help).into()
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{AgentId, Digest, Position};
    use anabranch_common::journal::{FinishReason, Record, RecordBody};
    use anabranch_common::wire::operator::RunsRequest;

    use super::*;
    use crate::config::TemplateOptions;
    use crate::registry::roster::Roster;
    use crate::registry::save;
    use crate::registry::tokens::NewToken;

    const AGENT: AgentId = AgentId([7; 16]);

    /// A run that one agent joined and that has ended at version 0.
    fn finished(dir: &Path) -> Stopped {
        let listen = ([127, 0, 0, 1], 4433).into();
        let options = TemplateOptions { name: "test".into(), seed: 1, listen, names: Vec::new() };
        let config = Config::parse(Path::new("run.toml"), &Config::template(&options)).expect("what `init` writes");
        let store = runs::stores::open(dir, None).expect("a new store");
        let (mut roster, secret) = (Roster::default(), [9; 32]);
        let secret_digest = Digest::of(&secret).0;
        let runs = std::collections::BTreeSet::new();
        let token = NewToken { secret_digest, name: Some("clinic".into()), ttl_ms: 1_000, uses: 1, runs };
        roster.create_token(token, 0).expect("a token");
        roster.join(&secret, AGENT, 1).expect("the first use");
        save::put(store.catalogue(), roster.take_changes().expect("short")).expect("saved");
        let stopped = Stopped::new(dir, config, store, runs::stores::open);
        let manifest = stopped.native_manifest().expect("what `init` writes").expect("a native model");
        stopped.import(&manifest, vec![0.5; manifest.params()]).expect("a first model");
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
        for said in ["revoked clinic ", "was revoked already"] {
            let done =
                stopped.answer(RegistryRequest::AgentRevoke { agent: "clinic".into() }.into()).expect("an answer");
            assert!(matches!(&done, OperatorResponse::Done(text) if text.contains(said)), "{done:?}");
            let recovered = stopped.recover().expect("it recovers").expect("a run");
            assert!(recovered.state.agents.get(&AGENT).is_some_and(|agent| agent.revoked));
            assert_eq!(recovered.position, Position(3), "one record, and none for a second call");
            assert!(
                stopped.registry().expect("a registry").roster().member(AGENT).is_some_and(|member| member.revoked)
            );
        }
    }

    #[test]
    fn a_damaged_member_does_not_keep_a_run_from_going_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let stopped = finished(dir.path());
        stopped.store.catalogue().put(&format!("member/{AGENT}"), &[1, 2, 3]).expect("stored");
        assert!(stopped.registry().is_err());
        assert_eq!(stopped.rollback(ModelVersion(0)).expect("the journal is whole").version, ModelVersion(0));
        let manifest = stopped.manifest().expect("it recovers").expect("a run");
        let imported = stopped.import(&manifest, vec![0.25; manifest.params()]).expect("it goes on");
        assert_eq!(imported.version, ModelVersion(1));
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
        let error = recovery::recover(stopped.store.as_ref()).expect_err("an old record");
        assert_eq!(
            error.to_string(),
            "record 3 cannot be read: record of schema version 3; this program reads versions 6 to 7"
        );
        assert!(error.help().is_some_and(|help| help.contains("checkpoint export")), "{:?}", error.help());
    }

    #[test]
    fn tokens_are_made_and_revoked_without_a_record() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut stopped = finished(dir.path());
        let create = RegistryRequest::TokenCreate {
            name: None,
            ttl_ms: 1_000,
            uses: 2,
            secret_digest: [3; 32],
            runs: Vec::new(),
        };
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

    /// Even to look for the run of that name would make a directory, and hide the run of the process.
    #[test]
    fn the_name_of_the_process_s_own_run_is_taken_and_leaves_no_directory() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut stopped = finished(dir.path());
        let config = |name: &str| {
            let listen = ([127, 0, 0, 1], 4433).into();
            let options = TemplateOptions { name: name.into(), seed: 1, listen, names: Vec::new() };
            let text = Config::template(&options);
            let at = |table: &str| text.find(&format!("\n[{table}]")).expect("what `init` writes has it");
            // Without the tables of the process.
            format!("{}{}", &text[..at("server")], &text[at("schedule")..at("log")])
        };
        let create = |stopped: &mut Stopped, name: &str, submit_token: Option<&str>| {
            let (config, submit_token) = (config(name), submit_token.map(String::from));
            let request = RunsRequest::Create { name: name.into(), config, submit_token };
            stopped.answer(request.into()).expect("an answer")
        };
        for token in [None, Some("job 7")] {
            let taken = create(&mut stopped, "test", token);
            assert!(matches!(&taken, OperatorResponse::Conflict(why) if why.contains("another name")), "{taken:?}");
            assert!(!runs::dir_of(dir.path(), "test").exists());
        }
        let made = create(&mut stopped, "wards", Some("job 7"));
        assert!(matches!(made, OperatorResponse::Json(_)), "{made:?}");
        assert_eq!(create(&mut stopped, "wards", Some("job 7")), made, "the same request");
        assert!(matches!(create(&mut stopped, "wards", None), OperatorResponse::Conflict(_)));
    }
}
