//! Real daemons under fire: `anabranch-lab chaos SCENARIO.toml`.
//!
//! ```text
//!  scenario (TOML, seed) ─► timeline of faults
//!        │
//!        ▼
//!  drive ──► fleet: coordinator and agents as processes, real mTLS
//!    │         ├── proxy ── link: a bad line for each agent, over UDP
//!    │         ├── shim: a bad disk, a wrong clock, inside the daemons
//!    │         ├── signals, damaged shards, poisoned agents
//!    │         └── helpers of pods, each behind a line that members of its pod use
//!    ▼
//!  record ◄── watch: what agents say, in their logs
//!    │
//!    └─► judge: promises ─► scorecard: table, JSON, one HTML page
//! ```
//! A scenario is run twice: without faults for a while, to compare with, and as it is written.

pub mod drive;
pub mod fault;
mod fleet;
pub mod judge;
pub mod link;
mod must;
mod pod;
mod poisoned;
pub mod proxy;
pub mod scenario;
mod scorecard;
mod settings;
pub mod shim;
pub mod soak;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use drive::{Course, Record, drive, ms};
use fleet::Fleet;

pub use fault::Fault;
pub use judge::Promise;
pub use poisoned::main as poisoned_main;
pub use scenario::{Scenario, Task, parse, read};
pub use scorecard::Scorecard;
pub use shim::NO_COMPILER;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// This binary, to be started as the daemons.
    pub lab: PathBuf,
    /// The scenario.
    pub scenario: Scenario,
    /// Its name: the file's, without its ending.
    pub name: String,
    /// Decides all that is drawn.
    pub seed: u64,
    /// The command that runs the same again.
    pub command: String,
    /// Say each fault as it happens.
    pub verbose: bool,
}

/// Runs a scenario.
///
/// # Errors
/// Something cannot be run at all, or a daemon ends to which nothing was done. Broken promises are in the scorecard.
pub fn run(options: &Options) -> anyhow::Result<Scorecard> {
    Ok(measure(options)?.0)
}

/// The scorecard, and what it was made from.
fn measure(options: &Options) -> anyhow::Result<(Scorecard, Record)> {
    let Options { lab, scenario, seed, .. } = options;
    let events = scenario.timeline(*seed);
    let needs_shim = events.iter().any(|event| event.fault.needs_shim());
    let mut say = |line: &str| {
        if options.verbose {
            println!("{line}");
        }
    };
    let must = &scenario.must;
    let quiet = Course {
        events: &[],
        length_ms: ms(if must.accuracy.is_some() { scenario.seconds } else { scenario.clean_seconds }),
        until_accuracy: must.accuracy,
        resume_ms: ms(must.resume_s),
        to_end: scenario.versions.is_some(),
        exits: &must.exits,
    };
    say("without faults, to compare with");
    let mut fleet = Fleet::new(lab, scenario, *seed, false).context("the run without faults")?;
    let clean = drive(&mut fleet, quiet, &mut say).context("the run without faults")?;
    let undisturbed = must.same_bits.then(|| pod::finished_model(&fleet)).transpose()?;
    drop(fleet);
    say(&format!("with {} faults, seed {seed}", events.len()));
    let mut fleet = Fleet::new(lab, scenario, *seed, needs_shim)?;
    let course = Course { events: &events, length_ms: ms(scenario.seconds), until_accuracy: None, ..quiet };
    let record = drive(&mut fleet, course, &mut say).with_context(|| format!("again: {}", options.command))?;
    let mut audit = judge::audit(&fleet, scenario, &record)?;
    judge::observe(scenario, &record, &clean, &mut audit);
    if let Some(undisturbed) = undisturbed {
        audit.compare_bits(&undisturbed, &pod::finished_model(&fleet)?);
    }
    Ok((Scorecard::new(options, &record, &clean, &audit), record))
}

/// The name of a scenario file.
#[must_use]
pub fn name_of(file: &Path) -> String {
    file.file_stem().map_or_else(|| "scenario".to_owned(), |stem| stem.to_string_lossy().into_owned())
}
