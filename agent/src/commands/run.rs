//! `run`: the daemon.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::wire::runs::RunsWanted;
use anabranch_io::durable::{LockHolder, StorageError};
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::signals::{self, OnSignal, Signals};
use anabranch_io::{control, durable};
use anyhow::Context as _;
use clap::ValueEnum as _;
use tokio::sync::mpsc;

use super::device::{choose, refuse_for_programs};
use super::{config_fail, identity_fail, pod, process_fail, shard_fail, start_fail, status};
use crate::arenas;
use crate::cli::{MannersArgs, RunArgs};
use crate::config::{AgentConfig, AgentDir, RunsChoice};
use crate::device::{self, Choice, GpuId};
use crate::driver::{Driver, Setup, SharedReport};
use crate::identity::{self, AgentKey};
use crate::manners::{Manners, MannersConfig};
use crate::session::command::Ending;
use crate::shard::{self, Shard, ShardOptions};
use crate::size::Size;
use crate::store::Ledger;
use crate::train::NativeOptions;
use crate::train::native::{Held, native_for};
use crate::train::process::{self, ProcessError, ProcessOptions, TrainerProcess};
use crate::worker::{Pace, Shards, TrainerFactory};

/// Rest between two attempts to open the store.
const PAUSE: Duration = Duration::from_millis(250);

/// Runs `run`.
pub(super) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let signals = Signals::install().context("no signal handler")?;
    // Before the shards, which can be large: a second process on the same directory is told at once.
    let mut home = Home::open(&args.dir.dir)?;
    if args.manners.max_memory.or(home.config.manners.max_memory).is_some() && arenas::are_many() {
        // Lock and store are for the program that takes the place of this one.
        drop(home);
        let error = arenas::start_anew();
        tracing::warn!(%error, "cannot start anew with one arena for memory: more than --max-memory may stay in use");
        home = Home::open(&args.dir.dir)?;
    }
    let Home { dir, mut config, key, ledger } = home;
    config.checkpoint_s = args.checkpoint_s.or(config.checkpoint_s);
    config.overlap = if args.no_overlap { Some(false) } else { config.overlap };
    config.metrics = args.metrics.or(config.metrics);
    let drop_columns = if args.drop_columns.is_empty() { &config.drop_columns } else { &args.drop_columns };
    let columns =
        shard_options(args.label_column.clone().or_else(|| config.label_column.clone()), drop_columns.clone());
    let path = |given: &Option<PathBuf>, configured: &Option<PathBuf>| {
        given.clone().or_else(|| configured.as_ref().map(|path| dir.path().join(path)))
    };
    let (shard, eval_shard) = (path(&args.shard, &config.shard), path(&args.eval_shard, &config.eval_shard));
    let choice = args.device.unwrap_or(config.device);
    let manners = manners(&args.manners, config.manners.clone());
    let threads = manners.config.bounded(args.threads.map(usize::from).or(config.threads));
    let max_memory_bytes = manners.config.max_memory.map(Size::bytes);
    if let Some(nice) = manners.config.nice {
        let now = nice.lower().context("the priority cannot be lowered")?;
        tracing::info!(nice = now, "working with a lower priority");
    }
    if let Some(most) = manners.config.max_threads {
        // The trainer has a pool of its own; this one is for whatever of the maths runs outside of it.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(most.get()).min(threads.unwrap_or(1)));
        pool.build_global().context("the pool of threads exists already")?;
    }
    let pace = Pace {
        min_round: Duration::from_millis(args.experiment.min_round),
        slow_factor: args.experiment.simulate_slow,
    };
    let (mut process, work_dir) = (None, dir.path().to_owned());
    let mut device = device::processor().to_string();
    let pod_address = pod::address(&args.pod, &config)?;
    let runs = runs(args.runs.as_ref(), &config, pod_address.is_some())?;
    // From here on processes are started, which must not stay behind.
    signals.set(OnSignal::Tell);
    let program = command(args, &config, &columns, choice)?;
    if let (Some(program), Some(_)) = (&program, &pod_address)
        && !program.is_of_user
    {
        return Err(pod::refuse_processes(program.gpu).into());
    }
    if signals::is_stop_asked() {
        return stopped_early();
    }
    let (shards, factory) = match program {
        None => {
            // Reading shards can take minutes, and leaves nothing behind.
            signals.set(OnSignal::Exit);
            let shards = open_shards(shard.as_deref(), eval_shard.as_deref(), columns)?;
            if pod_address.is_none() {
                refuse_nothing_to_do(&shards)?;
            }
            let factory =
                native_factory_with(NativeOptions { threads, max_memory_bytes, ..NativeOptions::default() }, &shards);
            (shards, factory)
        }
        Some(Program { command, at_home, gpu, .. }) => {
            let patience = Duration::from_secs(config.trainer_timeout_s.unwrap_or(limits::TRAINER_PATIENCE_S));
            let options = ProcessOptions {
                command,
                work_dir: at_home.then(|| work_dir.clone()),
                home: work_dir,
                agent: config.name.clone(),
                shard,
                eval_shard,
                threads,
                max_memory_bytes,
                patience,
            };
            let trainer = match TrainerProcess::start(options) {
                Err(ProcessError::Stopped) => return stopped_early(),
                started => started.map_err(process_fail)?,
            };
            let name = &trainer.hello().name;
            device = match gpu {
                Some(_) => format!("{name}, in a process of its own"),
                None => format!("{name} in a process of its own on {device}"),
            };
            let work = (trainer.shards(), trainer.factory());
            process = Some(trainer);
            work
        }
    };
    if let Some(most) = manners.config.max_memory {
        device = format!("{device}, with at most {most} of memory");
    }
    let pod = pod_address.map(|address| address.offered(max_memory_bytes, threads)).transpose()?;
    let setup = Setup { dir, config, key, shards, factory, device, pace, manners, ledger, pod, runs };
    let abandoned = process.clone();
    let abandon = move || {
        if let Some(process) = &abandoned {
            process.abandon();
        }
    };
    let ending = serve_here(setup, signals, abandon);
    if let Some(process) = process {
        process.close();
    }
    finish(ending?)
}

fn stopped_early() -> anyhow::Result<()> {
    tracing::info!("stopped while starting");
    Ok(())
}

/// Runs an agent of the directory `dir` whose trainer is made by `factory`, until its session ends: for programs that
/// bring a trainer of their own. Signals, logging and the store are seen to; `device` is what people read in `status`.
///
/// # Errors
/// It cannot start, or ends as nobody asked it to; with the exit code that `run` has for it.
pub fn run_with(dir: &Path, shards: Shards, factory: TrainerFactory, device: &str, pace: Pace) -> anyhow::Result<()> {
    let signals = Signals::install().context("no signal handler")?;
    let Home { dir, config, key, ledger } = Home::open(dir)?;
    let manners = Manners::of_this_machine(config.manners.clone());
    let device = device.to_owned();
    if config.pod_listen.is_some() {
        return Err(pod::refuse_processes(None).into());
    }
    let runs = runs(None, &config, false)?;
    let setup = Setup { dir, config, key, shards, factory, device, pace, manners, ledger, pod: None, runs };
    finish(serve_here(setup, signals, || ())?)
}

/// Returns which runs to take part in beside the joined one, if any.
///
/// # Errors
/// The agent joins pods too.
fn runs(given: Option<&RunsChoice>, config: &AgentConfig, joins_pods: bool) -> Result<Option<RunsWanted>, Fail> {
    let runs = given.or(config.runs.as_ref()).map(|choice| choice.0.clone());
    if runs.is_some() && joins_pods {
        let problem = "an agent that joins pods takes part in the run that it has joined, and in no other";
        let help =
            "leave out --runs (`runs` in agent.toml), or --pod-listen (`pod_listen`); or join with a second agent";
        return Err(Fail::new(ExitCode::Usage, problem).help(help));
    }
    Ok(runs)
}

/// What was asked for on the command line and in `agent.toml`.
fn manners(args: &MannersArgs, config: MannersConfig) -> Manners {
    let config = MannersConfig {
        max_threads: args.max_threads.or(config.max_threads),
        max_memory: args.max_memory.or(config.max_memory),
        nice: args.nice.or(config.nice),
        quiet_hours: args.quiet_hours.or(config.quiet_hours),
        pause_on_battery: args.pause_on_battery || config.pause_on_battery,
        max_load: args.max_load.or(config.max_load),
    };
    Manners { config, power_supplies: args.power_supplies.clone(), loadavg: args.loadavg.clone() }
}

/// What an agent has in its directory, open.
struct Home {
    dir: AgentDir,
    config: AgentConfig,
    key: AgentKey,
    ledger: Ledger,
}

impl Home {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        durable::install_panic_policy();
        let dir = AgentDir::new(dir);
        let config = AgentConfig::read(&dir.config()).map_err(config_fail)?;
        let ledger = open_store(&dir.store())?;
        identity::settle(&dir).map_err(|error| identity_fail(&error))?;
        let key = AgentKey::read(&dir).map_err(|error| identity_fail(&error))?;
        // The store is locked: what is left of a trainer in this directory is an agent's that was killed.
        process::sweep(dir.path());
        Ok(Self { dir, config, key, ledger })
    }
}

/// Opens the store. A `status` that reads it ends soon.
pub(crate) fn open_store(dir: &Path) -> Result<Ledger, StorageError> {
    for _ in 1..limits::LOCK_ATTEMPTS {
        match Ledger::open(dir) {
            Err(StorageError::Locked { holder: LockHolder::Readers, .. }) => std::thread::sleep(PAUSE),
            opened => return opened,
        }
    }
    Ledger::open(dir)
}

/// A program that trains.
struct Program {
    command: Vec<OsString>,
    /// Whether it is started in the agent's directory.
    at_home: bool,
    /// Whether it is a trainer of the user's, and not this program again.
    is_of_user: bool,
    /// The GPU that it is told to use.
    gpu: Option<GpuId>,
}

/// The program that trains, if it is not this one.
fn command(
    args: &RunArgs,
    config: &AgentConfig,
    columns: &ShardOptions,
    choice: Choice,
) -> anyhow::Result<Option<Program>> {
    if let Some((command, at_home)) = program_of_the_user(args, config) {
        refuse_for_programs(choice)?;
        refuse_columns_for_programs(args, config)?;
        return Ok(Some(Program { command, at_home, is_of_user: true, gpu: None }));
    }
    let gpu = choose(choice);
    // A sick driver must not take the agent with it.
    if !args.isolate && !config.isolate && gpu.is_none() {
        return Ok(None);
    }
    // This program again, with whatever stood before the verb: an agent may be a part of a larger program.
    let mut command = vec![std::env::current_exe().context("cannot find this program's file")?.into_os_string()];
    command.extend(std::env::args_os().skip(1).take_while(|arg| arg != "run"));
    command.push("trainer".into());
    command.push(format!("--label-column={}", columns.label_column).into());
    command.extend(columns.drop_columns.iter().map(|name| format!("--drop-column={name}").into()));
    if let Some(id) = gpu {
        command.extend(["--device".into(), id.to_string().into()]);
    }
    let encoder = args.encoder.unwrap_or(config.encoder);
    if let Some(value) = encoder.to_possible_value() {
        command.extend(["--encoder".into(), value.get_name().into()]);
    }
    Ok(Some(Program { command, at_home: false, is_of_user: false, gpu }))
}

/// The user's own program, and whether it is started in the agent's directory: that of the command line before that of
/// agent.toml.
fn program_of_the_user(args: &RunArgs, config: &AgentConfig) -> Option<(Vec<OsString>, bool)> {
    if !args.trainer.is_empty() {
        return Some((args.trainer.clone(), false));
    }
    let configured = config.trainer.as_ref().filter(|_| !args.isolate)?;
    Some((configured.iter().map(Into::into).collect(), true))
}

/// Refuses settings that name columns where a program of the user's reads the shards: it would train on a column that its
/// owner leaves out.
fn refuse_columns_for_programs(args: &RunArgs, config: &AgentConfig) -> anyhow::Result<()> {
    let given = [
        (!args.drop_columns.is_empty(), "--drop-column"),
        (args.label_column.is_some(), "--label-column"),
        (!config.drop_columns.is_empty(), "`drop_columns` in agent.toml"),
        (config.label_column.is_some(), "`label_column` in agent.toml"),
    ];
    let Some((_, name)) = given.into_iter().find(|(is_given, _)| *is_given) else { return Ok(()) };
    let problem = format!("{name} is for the native models, and a program of your own reads the shards here");
    let help = format!(
        "name the columns in the program, like anabranch.data.csv(path, label=\"label\", drop=[\"id\"]), and leave out {name}"
    );
    Err(Fail::new(ExitCode::Usage, problem).help(help).into())
}

/// Returns how CSV columns are read, as far as the user says it.
pub(super) fn shard_options(label_column: Option<String>, drop_columns: Vec<String>) -> ShardOptions {
    let options = ShardOptions::default().drop_columns(drop_columns);
    match label_column {
        Some(name) => options.label_column(name),
        None => options,
    }
}

/// Opens what the native trainer trains and evaluates on. Features of the evaluation shard are read by the names that
/// those of the training shard have.
pub(super) fn open_shards(
    shard: Option<&Path>,
    eval_shard: Option<&Path>,
    mut options: ShardOptions,
) -> anyhow::Result<Shards> {
    let train = shard.map(|path| open_shard(path, eval_shard, &options)).transpose()?;
    if let Some(train) = &train {
        options = options.columns_of(train.as_ref());
    }
    Ok(Shards { train, eval: eval_shard.map(|path| open_shard(path, shard, &options)).transpose()? })
}

/// Refuses an agent that has no shard: a helper of pods needs none.
pub(super) fn refuse_nothing_to_do(shards: &Shards) -> anyhow::Result<()> {
    if shards.train.is_none() && shards.eval.is_none() {
        return Err(Fail::new(ExitCode::Shard, "there is nothing to train or evaluate on")
            .help("give --shard PATH or --eval-shard PATH, or set `shard` in agent.toml; with --pod-listen an agent needs none")
            .into());
    }
    Ok(())
}

fn serve_here(setup: Setup, signals: Signals, abandon: impl Fn() + Send + 'static) -> anyhow::Result<Ending> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ending = runtime.block_on(serve_until(setup, signals, abandon));
    // The maths may be in the middle of a step; nothing of it is wanted any more.
    runtime.shutdown_timeout(Duration::ZERO);
    ending
}

/// Runs an agent until its session ends: control socket, signals, driver. For programs that bring their own trainer.
///
/// # Errors
/// The agent could not start.
pub async fn serve(setup: Setup) -> anyhow::Result<Ending> {
    serve_until(setup, Signals::install().context("no signal handler")?, || ()).await
}

/// The first signal stops the driver; at the second one `abandon` ends what the process has started, and it exits.
async fn serve_until(
    setup: Setup,
    mut signals: Signals,
    abandon: impl Fn() + Send + 'static,
) -> anyhow::Result<Ending> {
    signals.set(OnSignal::Tell);
    let socket = setup.dir.socket();
    let driver = Driver::new(setup).map_err(start_fail)?;
    let _control = serve_control(&socket, driver.report())?;
    let (ask, shutdown) = mpsc::channel(1);
    let listening = tokio::spawn(async move {
        let mut asked = false;
        loop {
            let name = signals.recv().await;
            if asked {
                tracing::warn!("{name} again: stopping at once; finished work is kept");
                abandon();
                std::process::exit(i32::from(ExitCode::Other.as_u8()));
            }
            asked = true;
            // The driver has ended by itself: there is nobody to tell.
            let _ = ask.send(()).await;
        }
    });
    let ending = driver.run(shutdown).await;
    listening.abort();
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
    native_factory_with(NativeOptions { threads, ..NativeOptions::default() }, shards)
}

/// The same with all that can be said of how the machine is used.
#[must_use]
pub fn native_factory_with(options: NativeOptions, shards: &Shards) -> TrainerFactory {
    let held: Vec<Held> = shards.train.iter().chain(&shards.eval).map(|shard| Held::of(shard.as_ref())).collect();
    // Each run has a trainer of its own, and all of them one budget.
    let options =
        NativeOptions { before_bytes: options.before_bytes.or_else(device::memory::resident_bytes), ..options };
    Box::new(move |spec| native_for(&spec.model, options, &held))
}

fn open_shard(path: &Path, other: Option<&Path>, options: &ShardOptions) -> anyhow::Result<Box<dyn Shard>> {
    let opened = shard::open_beside(path, other, options).map_err(shard_fail)?;
    for name in shard::index_columns(opened.columns().unwrap_or_default()) {
        tracing::warn!(shard = %path.display(), "{}", shard::index_warning(name));
    }
    Ok(opened)
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
        Ending::WrongRun { .. } | Ending::Unknown | Ending::OldCertificate => (ExitCode::Identity, Some(rejoin)),
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
            let help = "names and shapes have to be the run's, in any order; compare the trainer's model with [model] in \
                        run.toml, where a trainer that brings tensors of its own takes `kind = \"custom\"`";
            (ExitCode::Model, Some(help))
        }
        Ending::ModelBounds(_) => (
            ExitCode::Model,
            Some(
                "change the trainer's model, or [model] in run.toml; docs/trainer-protocol.md lists the bounds under `prepare`",
            ),
        ),
        Ending::Shard(_) => {
            (ExitCode::Shard, Some("`anabranch-agent shard inspect PATH` shows shape and classes of a shard"))
        }
        Ending::Storage(_) => (ExitCode::Storage, None),
        Ending::Trainer(_) => (ExitCode::Trainer, None),
    };
    let fail = Fail::new(code, ending.to_string());
    Err(match help {
        Some(help) => fail.help(help),
        None => fail,
    }
    .into())
}
