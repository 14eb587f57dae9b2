//! Finding the coordinator that a verb is meant for: a running one, or the store of a stopped one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse};
use anabranch_io::durable::LockHolder;
use anabranch_io::exit::{ExitCode, Fail};

use super::client::Client;
use super::stopped::{OpenStore, Stopped};
use crate::cli::TargetArgs;
use crate::config::{self, Config, ConfigError};
use crate::identity::{self, Identity, IdentityError};
use crate::runs;
use crate::store::StorageError;

/// How long one attempt to connect may take while it is not clear who holds the directory: a coordinator, or a verb
/// that is about to finish.
const ATTEMPT: Duration = Duration::from_millis(limits::REACH_ATTEMPT_MS);
/// Rest between two attempts: a coordinator that is ending refuses at once, and lets go of its store soon after.
const REST: Duration = Duration::from_millis(700);

/// Who answers.
#[derive(Debug)]
pub(super) enum Coordinator {
    /// A running coordinator.
    Running(Client),
    /// The store of a stopped one, held exclusively.
    Stopped(Box<Stopped>),
}

impl Coordinator {
    /// Finds the coordinator that `target` names, to change something.
    pub(super) fn reach(target: &TargetArgs) -> anyhow::Result<Self> {
        match &target.dir {
            Some(dir) if target.connect.is_none() => Self::of_dir(dir),
            _ => Self::elsewhere(target),
        }
    }

    /// Finds the coordinator that `target` names, to read: nothing in the directory of a stopped one is changed.
    pub(super) fn look(target: &TargetArgs) -> anyhow::Result<Self> {
        match &target.dir {
            Some(dir) if target.connect.is_none() => Self::find(dir, runs::stores::open_copy),
            _ => Self::elsewhere(target),
        }
    }

    fn elsewhere(target: &TargetArgs) -> anyhow::Result<Self> {
        let TargetArgs { connect: Some(address), cert: Some(cert), key: Some(key), ca: Some(ca), .. } = target else {
            let fail = Fail::new(ExitCode::Usage, "--connect needs --cert, --key and --ca");
            return Err(fail.help("or name a directory with --dir").into());
        };
        let operator = identity::read_pair(cert, key).map_err(identity_fail)?;
        let authorities = identity::read_authorities(ca).map_err(identity_fail)?;
        Ok(Self::Running(Client::connect(address, authorities, &operator, Client::PATIENCE)?))
    }

    /// The coordinator of a directory, to change something: root does so as the directory's owner.
    pub(super) fn of_dir(dir: &Path) -> anyhow::Result<Self> {
        anabranch_io::durable::act_as_owner(dir)?;
        Self::find(dir, runs::stores::open)
    }

    /// Whoever holds the lock of the store is the one to ask; with nobody there it is opened.
    fn find(dir: &Path, open: OpenStore) -> anyhow::Result<Self> {
        let config = load_config(dir)?;
        let mut holder = None;
        for _ in 0..limits::REACH_ATTEMPTS {
            let locked = match open(dir, config.store.url.as_deref()) {
                Ok(store) => return Ok(Self::Stopped(Box::new(Stopped::new(dir, config, store, open)))),
                // Verbs that read answer nobody, and end soon.
                Err(locked @ StorageError::Locked { holder: LockHolder::Readers, .. }) => {
                    holder = Some((locked, None));
                    std::thread::sleep(REST);
                    continue;
                }
                Err(locked @ StorageError::Locked { .. }) => locked,
                Err(error) => return Err(error.into()),
            };
            let identity = load_identity(dir)?;
            let address = config.server.local().to_string();
            match Client::connect(&address, identity.authorities(), identity.operator(), ATTEMPT) {
                Ok(client) => return Ok(Self::Running(client)),
                // Worth another try: the one that holds the directory may be starting, or may have just finished.
                Err(error) if anabranch_io::exit::code_of(&error) == ExitCode::Unavailable => {
                    holder = Some((locked, Some(error)));
                    std::thread::sleep(REST);
                }
                Err(error) => return Err(error),
            }
        }
        let (locked, silent) = match holder {
            Some((locked, None)) => return Err(locked.into()),
            Some((locked, silent)) => (Some(locked), silent),
            None => (None, None),
        };
        let what = locked.map_or_else(|| "the directory is in use".to_owned(), |locked| locked.to_string());
        let fail = Fail::new(ExitCode::Locked, format!("{what}, which does not answer at {}", config.server.local()))
            .help("if that is a coordinator, compare `listen` in run.toml with what it was started with, or stop it");
        Err(match silent {
            Some(error) => fail.because(error).into(),
            None => fail.into(),
        })
    }

    /// Asks, and returns whatever the answer says.
    pub(super) fn exchange(&mut self, request: impl Into<OperatorRequest>) -> anyhow::Result<OperatorResponse> {
        let request = request.into();
        match self {
            Self::Running(client) => client.ask(&request),
            Self::Stopped(stopped) => stopped.answer(request),
        }
    }

    /// Asks; an answer that says no is an error with its exit code.
    pub(super) fn ask(&mut self, request: impl Into<OperatorRequest>) -> anyhow::Result<OperatorResponse> {
        accepted(self.exchange(request)?)
    }

    /// Asks for JSON and returns it as it came.
    pub(super) fn ask_json(&mut self, request: impl Into<OperatorRequest>) -> anyhow::Result<String> {
        match self.ask(request)? {
            OperatorResponse::Json(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for something to be done and returns what was said about it.
    pub(super) fn ask_done(&mut self, request: impl Into<OperatorRequest>) -> anyhow::Result<String> {
        match self.ask(request)? {
            OperatorResponse::Done(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }
}

/// Turns an answer that says no into an error.
pub(super) fn accepted(response: OperatorResponse) -> anyhow::Result<OperatorResponse> {
    match response {
        OperatorResponse::Failed(why) | OperatorResponse::NotFound(why) => Err(Fail::new(ExitCode::Other, why).into()),
        OperatorResponse::Conflict(why) => Err(Fail::new(ExitCode::Unavailable, why).into()),
        yes => Ok(yes),
    }
}

pub(super) fn unexpected(response: &OperatorResponse) -> anyhow::Error {
    let kind = match response {
        OperatorResponse::Done(_) => "a confirmation",
        OperatorResponse::Json(_) => "a report",
        OperatorResponse::ModelFollows { .. } => "a model",
        OperatorResponse::Failed(_) | OperatorResponse::NotFound(_) | OperatorResponse::Conflict(_) => "a refusal",
    };
    let fail = Fail::new(ExitCode::Protocol, format!("the coordinator answered with {kind}, which was not asked for"));
    fail.help("use the same version of anabranch-coordinator on both sides").into()
}

/// `DIR/run.toml`.
pub(crate) fn load_config(dir: &Path) -> anyhow::Result<Config> {
    Config::load(&dir.join(config::FILE_NAME)).map_err(|error| {
        let missing = format!("make the directory with `anabranch-coordinator init --dir {}`", dir.display());
        config_fail(error, &missing, &format!("anabranch-coordinator config check --dir {}", dir.display()))
    })
}

/// Directory and configuration of a run by name: that of the process without a name.
pub(super) fn load_run_config(dir: &Path, run: Option<&str>) -> anyhow::Result<(PathBuf, Config)> {
    let own = load_config(dir)?;
    match run {
        Some(name) if name != own.spec.name => load_other_config(dir, name),
        _ => Ok((dir.to_owned(), own)),
    }
}

/// Directory and configuration of a run beside the one that shares its directory with the process.
pub(super) fn load_other_config(dir: &Path, name: &str) -> anyhow::Result<(PathBuf, Config)> {
    if let Err(problem) = runs::check_name(name) {
        return Err(Fail::new(ExitCode::Usage, problem).into());
    }
    let home = runs::dir_of(dir, name);
    let config = Config::load_run(&home.join(config::FILE_NAME), name).map_err(|error| {
        let missing = "`anabranch-coordinator runs list` shows the runs that there are";
        let check = format!("anabranch-coordinator config check --dir {} --run {name}", dir.display());
        config_fail(error, missing, &check)
    })?;
    Ok((home, config))
}

/// A refused configuration with its exit code and what to do: `missing` where there is no file, and `check` to check it.
pub(super) fn config_fail(error: ConfigError, missing: &str, check: &str) -> anyhow::Error {
    let fail = Fail::new(ExitCode::Config, error.to_string());
    let help = match &error {
        _ if error.is_missing() => missing.to_owned(),
        ConfigError::Unreadable { path, source } => source.help(path),
        ConfigError::Encoding { path, encoding } => encoding.help(path),
        ConfigError::Syntax { .. } | ConfigError::Value { .. } => {
            format!("correct that line, then check with `{check}`; docs/configuration.md describes every key")
        }
    };
    fail.help(help).into()
}

/// `DIR/tls`.
pub(crate) fn load_identity(dir: &Path) -> anyhow::Result<Identity> {
    Identity::load(dir).map_err(identity_fail)
}

/// An identity's error with its exit code and what to do.
pub(crate) fn identity_fail(error: IdentityError) -> anyhow::Error {
    let help = match &error {
        IdentityError::Exists(_) => {
            "agents trust these keys: `ca rotate` replaces them; for another coordinator choose another directory"
        }
        IdentityError::Unreadable { .. } | IdentityError::Damaged { .. } => {
            "restore the file from a backup of the directory, or check the path"
        }
        IdentityError::BadName(_) => "give a host name or an IP address, without a port",
        IdentityError::Unwritable { .. } => "check the path, its permissions and the free space",
        IdentityError::Clock { .. } => "set this machine's clock (NTP); agents check the certificates with theirs",
        IdentityError::NoRollover => "`anabranch-coordinator ca rotate` begins one",
        IdentityError::Certificate(_) => "",
    };
    let code = match &error {
        IdentityError::BadName(_) => ExitCode::Usage,
        IdentityError::Unwritable { .. } => ExitCode::Storage,
        IdentityError::Clock { .. } => ExitCode::Clock,
        IdentityError::NoRollover => ExitCode::Unavailable,
        _ => ExitCode::Config,
    };
    let fail = Fail::new(code, error.to_string());
    if help.is_empty() { fail.into() } else { fail.help(help).into() }
}
