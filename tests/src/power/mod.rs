//! P3 below sled: what a power loss leaves of the stores, at every sync and at moments drawn at random.
//!
//! ```text
//!  a process that uses the real store ── record.c (LD_PRELOAD) ──► a log of every change, sync and acknowledgement
//!  the log ── disk.rs ──► what was durable at a moment, and some of what was not ──► the real store opens it ──► audit
//! ```
//! At each sync two states are opened: all that was not synced is lost, and all of it is there. In between, states in
//! which it is there in part, torn by sectors and in any order. Every one must open: they are what an honest disk may
//! leave. The recorder is shown to be complete first: its log, replayed, gives the directory byte for byte.

mod agent;
mod disk;
mod log;
mod recorder;
mod store;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anabranch_common::rng::SplitMix64;
use anabranch_io::durable::StorageError;
use anabranch_io::exit;
use anyhow::{Context as _, ensure};
use clap::Parser;

use crate::clock::Stopwatch;
use crate::process::{Process, Role};
use crate::report::Report;
use disk::{Disk, Left};
use log::{Log, Operation};
pub use recorder::Recorder;

/// Why nothing was done.
pub const NO_COMPILER: &str = "the recorder needs a C compiler, and there is no cc";
/// How long a recorded process may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Of so many states one is used further, and opened once more.
const THOROUGH: u64 = 4;

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The coordinator's store.
    Store,
    /// The agent's ledger.
    Ledger,
}

/// Arguments of a recorded process.
#[derive(Debug, Parser)]
struct Args {
    /// Directory of the store
    #[arg(long)]
    dir: PathBuf,
    /// Where to write down what is durable
    #[arg(long)]
    acks: PathBuf,
    /// Seed of the contents
    #[arg(long)]
    seed: u64,
    /// Rounds of work
    #[arg(long)]
    rounds: u64,
}

/// Be a process that is recorded.
pub fn main(subject: Subject, args: impl Iterator<Item = OsString>) -> ExitCode {
    anabranch_io::durable::install_panic_policy();
    let Args { dir, acks, seed, rounds } = Args::parse_from(std::iter::once("recorded".into()).chain(args));
    let done = match subject {
        Subject::Store => store::Script::new(seed).and_then(|script| script.drive(&dir, &acks, rounds)),
        Subject::Ledger => agent::Script::new(seed, 0).and_then(|script| script.drive(&dir, &acks, rounds)),
    };
    let coded = done.map_err(|error| match error.downcast::<StorageError>() {
        Ok(error) => exit::storage_fail(error).into(),
        Err(error) => error,
    });
    match coded {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error).into(),
    }
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// This binary, to be started as what is recorded.
    pub lab: PathBuf,
    /// States drawn at random, half of each subject.
    pub states: u64,
    /// Rounds of work.
    pub rounds: u64,
    /// Seed of contents and states.
    pub seed: u64,
    /// The disk says that it has synced, and has not: then the audit must find something, or it finds nothing ever.
    pub lying: bool,
}

/// Records, and opens every state; none when there is no C compiler.
///
/// # Errors
/// The recording does not work. What an audit finds stands in the report, which then does not pass.
pub fn run(options: &Options) -> anyhow::Result<Option<Report>> {
    let Some(recorder) = Recorder::new()? else { return Ok(None) };
    let command = format!("anabranch-lab power --states {} --rounds {}", options.states, options.rounds);
    let mut report = Report::new(&command, options.seed);
    for (subject, role) in [(Subject::Store, Role::RecordedStore), (Subject::Ledger, Role::RecordedLedger)] {
        let log = record(&recorder, options, role)?;
        Replay::new(subject, options)?.run(&log, &mut report)?;
        std::fs::remove_dir_all(recorder.dir())?;
        std::fs::remove_file(recorder.acks())?;
    }
    Ok(Some(report))
}

fn record(recorder: &Recorder, options: &Options, role: Role) -> anyhow::Result<Log> {
    let (dir, acks) = (recorder.dir(), recorder.acks());
    let (seed, rounds) = (options.seed.to_string(), options.rounds.to_string());
    let words = ["--dir", &dir.display().to_string(), "--acks", &acks.display().to_string()].map(OsString::from);
    let rest = ["--seed", &seed, "--rounds", &rounds].map(OsString::from);
    let args: Vec<&OsStr> = words.iter().chain(&rest).map(OsString::as_os_str).collect();
    let environment = recorder.environment(&dir, None);
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let output = recorder.log().with_extension("output");
    let mut process = Process::start(&options.lab, role, &args, &environment, output, role.arg())?;
    let code = process.wait(PATIENCE)?;
    ensure!(code == 0, "{} ended with {code}:\n{}", role.arg(), process.log_tail());
    let log = Log::read(&recorder.log())?;
    is_complete(&log, &dir)?;
    Ok(log)
}

/// The log gives what is there: nothing was written that the recorder did not see.
fn is_complete(log: &Log, dir: &Path) -> anyhow::Result<()> {
    let mut disk = Disk::default();
    for operation in &log.entries {
        disk.apply(operation, log);
    }
    let replayed = disk.after_power_loss(Left::Everything, log);
    let found = disk::read_image(dir)?;
    for path in replayed.keys().chain(found.keys()) {
        ensure!(replayed.get(path) == found.get(path), "{path} is not what the recording gives");
    }
    ensure!(found.len() > 3, "nothing was recorded");
    Ok(())
}

fn is_sync(operation: &Operation) -> bool {
    matches!(operation, Operation::Sync { .. } | Operation::SyncDir { .. })
}

struct Replay {
    subject: Subject,
    lying: bool,
    seed: u64,
    states: u64,
    store: store::Script,
    ledger: agent::Script,
    opened: u64,
}

impl Replay {
    fn new(subject: Subject, options: &Options) -> anyhow::Result<Self> {
        let steps = if subject == Subject::Ledger { options.rounds } else { 0 };
        Ok(Self {
            subject,
            lying: options.lying,
            seed: options.seed,
            states: options.states.div_ceil(2),
            store: store::Script::new(options.seed)?,
            ledger: agent::Script::new(options.seed, steps)?,
            opened: 0,
        })
    }

    fn run(&mut self, log: &Log, report: &mut Report) -> anyhow::Result<()> {
        let name = match self.subject {
            Subject::Store => "store",
            Subject::Ledger => "ledger",
        };
        let watch = Stopwatch::start();
        let mut rng = SplitMix64::new(self.seed);
        let moments = log.entries.len() as u64;
        let mut drawn: Vec<(usize, u64)> = Vec::new();
        for _ in 0..self.states {
            drawn.push((usize::try_from(rng.next_u64() % moments)?, rng.next_u64()));
        }
        drawn.sort_unstable();
        let mut disk = Disk::default();
        let (mut acked, mut done) = (store::Acked::default(), 0);
        let (mut boundaries, mut broken) = (0u64, 0u64);
        let mut drawn = drawn.into_iter().peekable();
        // Of a long recording not every sync is a state, but as many as are drawn.
        let every =
            (log.entries.iter().filter(|operation| is_sync(operation)).count() as u64 / self.states.max(1)).max(1);
        for (number, operation) in log.entries.iter().enumerate() {
            let mut lefts = Vec::new();
            if is_sync(operation) {
                boundaries += 1;
                if boundaries.is_multiple_of(every) {
                    lefts.extend([Left::Nothing, Left::Everything]);
                }
            }
            while let Some((_, seed)) = drawn.next_if(|(at, _)| *at == number) {
                lefts.push(Left::Some(seed));
            }
            for left in lefts {
                if let Err(error) = self.open(&disk, left, log, acked, done) {
                    broken += 1;
                    println!("{name}, seed {}, before operation {number}, {left:?}: {error:?}", self.seed);
                }
            }
            if !(self.lying && is_sync(operation)) {
                disk.apply(operation, log);
            }
            if let Operation::Ack { text } = operation {
                match self.subject {
                    Subject::Store => acked.add(text)?,
                    Subject::Ledger => done = text.trim().parse().context("an acknowledgement")?,
                }
            }
        }
        if let Err(error) = self.open(&disk, Left::Nothing, log, acked, done) {
            broken += 1;
            println!("{name}, at the end: {error:?}");
        }
        report.counts.insert(format!("{name}_operations"), moments);
        report.counts.insert(format!("{name}_syncs"), boundaries);
        report.counts.insert(format!("{name}_states"), self.opened);
        report.counts.insert(format!("{name}_broken"), broken);
        report.metric(format!("{name}_states_count"), self.opened as f64);
        report.metric(format!("{name}_broken_count"), broken as f64);
        report.metric(format!("{name}_seconds"), watch.seconds());
        report.pass &= broken == 0;
        Ok(())
    }

    fn open(&mut self, disk: &Disk, left: Left, log: &Log, acked: store::Acked, done: u64) -> anyhow::Result<()> {
        let folder = tempfile::Builder::new().prefix("anabranch-power-").tempdir()?;
        let dir = folder.path().join("store");
        disk::write_image(&disk.after_power_loss(left, log), &dir)?;
        self.opened += 1;
        let thorough = self.opened.is_multiple_of(THOROUGH);
        match self.subject {
            Subject::Store => self.store.audit(&dir, acked, thorough),
            Subject::Ledger => self.ledger.audit(&dir, done, thorough),
        }
    }
}
