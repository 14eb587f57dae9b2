//! The best of twelve configurations for the price of a few runs: `cargo run --example search`.
//!
//! A search over learning rate, batch size and hidden layer trains on three agents, as real processes. Every configuration
//! is a run of one coordinator. Trials are compared after few contributions, and the best third goes on. The coordinator is
//! killed with SIGKILL on the way and started again: the search goes on with the same decisions.
//!
//! ```text
//!  setup ──► coordinator ──► search start ──► join, run x 3 ──► watch ─┬─► kill the coordinator, start it again
//!                                                                      └─► a winner ──► export, report, plot
//! ```

mod report;
mod setup;
mod trials;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anabranch_coordinator::search::report::{SearchPhase, SearchReport};
use anabranch_examples::daemon::{self, now};
use anabranch_examples::fleet::Fleet;
use anabranch_examples::view::View;
use clap::Parser;

use report::Outcome;
use setup::{AGENTS, Setup};
use trials::Trials;

/// The coordinator is killed after this many measurements, and is away for so long.
const KILL_AFTER: usize = 5;
const DEAD_FOR: Duration = Duration::from_secs(1);
/// The search is given up after this.
const PATIENCE: Duration = Duration::from_secs(300);

/// Finds the best of twelve configurations with three agents on this machine.
#[derive(Debug, Parser)]
#[command(name = "search", version)]
struct Args {
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Directory for the search; an earlier one of this example is replaced
    #[arg(long, value_name = "DIR", default_value = "target/search")]
    dir: PathBuf,
    /// Seed of everything that is drawn at random
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Plain lines even on a terminal
    #[arg(long)]
    plain: bool,
}

fn main() -> ExitCode {
    daemon::or_daemon(|| search(&Args::parse()))
}

fn search(args: &Args) -> anyhow::Result<bool> {
    let started = now();
    let setup = Setup::prepare(&args.dir, args.seed)?;
    let mut view = View::open(Trials, args.plain);
    view.say(&format!("digits cut into {AGENTS} shards; starting a coordinator, a search, and {AGENTS} agents"));
    let mut fleet = Fleet::start(setup.run(), view, started, PATIENCE)?;
    setup.start_search()?;
    fleet.agents = setup.join_and_start_agents()?;

    fleet.until("trials were measured", |report| measurements(report) >= KILL_AFTER)?;
    let before = fleet.last().map(|(report, _)| report.clone());
    let news =
        ["coordinator killed with SIGKILL", "coordinator started again; the search goes on where its journal ends"];
    fleet.kill_coordinator(DEAD_FOR, news)?;
    fleet.until("the search had a winner", |report| report.state != SearchPhase::Running)?;
    fleet.stop()?;

    let wall_s = started.elapsed().as_secs_f64();
    let outcome = Outcome::collect(&setup, before.as_ref(), wall_s)?;
    report::print(&outcome);
    if let Some(path) = &args.json {
        report::write_json(&outcome, path)?;
    }
    Ok(outcome.pass())
}

/// Returns how often trials were measured.
fn measurements(report: &SearchReport) -> usize {
    report.trials.iter().map(|trial| trial.measured.len()).sum()
}
