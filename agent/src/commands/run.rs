//! `run`: the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::{control, durable};
use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{config_fail, identity_fail, shard_fail, start_fail, status};
use crate::cli::RunArgs;
use crate::config::{AgentConfig, AgentDir};
use crate::core::command::Ending;
use crate::device;
use crate::driver::{Driver, Setup, SharedReport};
use crate::identity::AgentKey;
use crate::shard::{self, Shard, ShardOptions};
use crate::store::Ledger;
use crate::train::{NativeOptions, TrainError, native_with};
use crate::worker::{Pace, Shards, TrainerFactory};

/// Runs `run`.
pub(super) fn run(args: &RunArgs) -> anyhow::Result<()> {
    durable::install_panic_policy();
    let dir = AgentDir::new(&args.dir.dir);
    let config = AgentConfig::read(&dir.config()).map_err(config_fail)?;
    let key = AgentKey::read(&dir).map_err(|error| identity_fail(&error))?;
    // Before the shards, which can be large: a second process on the same directory is told at once.
    let ledger = Ledger::open(&dir.store())?;
    let label_column = args.label_column.clone().or_else(|| config.label_column.clone());
    let open = |given: &Option<PathBuf>, configured: &Option<PathBuf>| {
        let path = given.clone().or_else(|| configured.as_ref().map(|path| dir.path().join(path)));
        path.map(|path| open_shard(&path, label_column.as_deref())).transpose()
    };
    let shards = Shards { train: open(&args.shard, &config.shard)?, eval: open(&args.eval_shard, &config.eval_shard)? };
    if shards.train.is_none() && shards.eval.is_none() {
        return Err(Fail::new(ExitCode::Shard, "there is nothing to train or evaluate on")
            .help("give --shard PATH or --eval-shard PATH, or set `shard` in agent.toml")
            .into());
    }
    let device = device::detect(args.device.map_or(config.device, Into::into));
    let threads = args.threads.map(usize::from).or(config.threads);
    let pace = Pace {
        min_round: Duration::from_millis(args.experiment.min_round),
        slow_factor: args.experiment.simulate_slow,
    };
    let factory = native_factory(threads, &shards);
    let setup = Setup { dir, config, key, shards, factory, device: device.to_string(), pace, ledger };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ending = runtime.block_on(serve(setup));
    // The maths may be in the middle of a step; nothing of it is wanted any more.
    runtime.shutdown_timeout(Duration::ZERO);
    finish(ending?)
}

/// Runs an agent until its session ends: control socket, signals, driver. For programs that bring their own trainer.
///
/// # Errors
/// The agent could not start.
pub async fn serve(setup: Setup) -> anyhow::Result<Ending> {
    let socket = setup.dir.socket();
    let driver = Driver::new(setup).map_err(start_fail)?;
    let _control = serve_control(&socket, driver.report())?;
    let (ask, shutdown) = mpsc::channel(1);
    let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
    let signals = tokio::spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked {
                tracing::warn!("stopping at once; finished work is kept");
                std::process::exit(i32::from(ExitCode::Other.as_u8()));
            }
            asked = true;
            // The driver has ended by itself: there is nobody to tell.
            let _ = ask.send(()).await;
        }
    });
    let ending = driver.run(shutdown).await;
    signals.abort();
    Ok(ending)
}

fn serve_control(socket: &Path, report: SharedReport) -> anyhow::Result<Option<control::ControlSocket>> {
    let handler = move |line: String| {
        if line.trim() == status::REQUEST {
            serde_json::to_string(&report.get()).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
        } else {
            "{\"error\":\"unknown request\"}".to_owned()
        }
    };
    match control::serve(socket, handler) {
        Ok(socket) => Ok(Some(socket)),
        // A directory deep down has no room for a socket's name; training works without.
        Err(error @ control::ControlError::PathTooLong { .. }) => {
            tracing::warn!(%error, "`status` will not work");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes native trainers with that many threads (`None`: one a core), and refuses a run whose model these shards do not
/// fit, before anything is trained.
#[must_use]
pub fn native_factory(threads: Option<usize>, shards: &Shards) -> TrainerFactory {
    let shards = shards.train.iter().chain(&shards.eval);
    let held: Vec<(Vec<u64>, u32)> = shards.map(|shard| (shard.input_shape().to_vec(), shard.classes())).collect();
    Box::new(move |spec| {
        for (found, classes) in &held {
            if !shard::same_shape(found, &spec.model.input) {
                return Err(TrainError::Shape { expected: spec.model.input.clone(), found: found.clone() });
            }
            if *classes > spec.model.classes {
                return Err(TrainError::Classes { classes: spec.model.classes, largest: classes.saturating_sub(1) });
            }
        }
        native_with(&spec.model, NativeOptions { threads })
    })
}

fn open_shard(path: &Path, label_column: Option<&str>) -> anyhow::Result<Box<dyn Shard>> {
    let mut options = ShardOptions::default();
    if let Some(name) = label_column {
        options = options.label_column(name);
    }
    Ok(shard::open(path, &options).map_err(shard_fail)?)
}

/// What a session's end means for the process: an error has the exit code and the help that `run` has for it.
///
/// # Errors
/// Every end but the run's own, and SIGTERM.
pub fn finish(ending: Ending) -> anyhow::Result<()> {
    let rejoin = "ask the operator for a new token, and join from another directory";
    let (code, help) = match &ending {
        Ending::Finished | Ending::Parked => {
            tracing::info!("{ending}");
            return Ok(());
        }
        Ending::Revoked => (ExitCode::Identity, Some(rejoin)),
        Ending::WrongRun { .. } | Ending::Unknown => (ExitCode::Identity, Some(rejoin)),
        Ending::Replaced => (
            ExitCode::Identity,
            Some(
                "two processes must not share one identity: stop this one or the other, or give each a directory of its own (join again)",
            ),
        ),
        Ending::Protocol(_) | Ending::Version(_) => {
            (ExitCode::Protocol, Some("run versions of agent and coordinator that fit each other"))
        }
        Ending::Identity(_) => (ExitCode::Identity, None),
        Ending::Clock(_) => (ExitCode::Clock, None),
        Ending::Manifest(_) => {
            (ExitCode::Model, Some("this version of the agent builds another model; check [model] in run.toml"))
        }
        Ending::Shard(_) => {
            (ExitCode::Shard, Some("`anabranch-agent shard inspect PATH` shows shape and classes of a shard"))
        }
        Ending::Storage(_) => (ExitCode::Storage, None),
        Ending::Trainer(_) => (ExitCode::Other, None),
    };
    let fail = Fail::new(code, ending.to_string());
    Err(match help {
        Some(help) => fail.help(help),
        None => fail,
    }
    .into())
}
