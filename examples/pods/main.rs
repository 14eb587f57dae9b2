//! A model in pods: `cargo run --example pods`.
//!
//! One binary that starts itself again as a coordinator and five agents: real processes on this machine. Two agents have text and
//! join pods: each computes its rounds together with a helper, which holds the middle of the model and no text. A fifth agent has
//! text of its own and trains alone. All three contribute to one asynchronous run. A helper is killed with SIGKILL and started
//! again, then the coordinator.
//!
//! ```text
//!  owner-1 ◄─ activations, gradients ─► helper ─┐ (whichever is free)
//!     │                                         │
//!  owner-2 ◄─ activations, gradients ─► helper ─┘
//!     │
//!     └─ updates ─► coordinator ◄─ updates ─ alone
//! ```

mod fleet;
mod report;
mod setup;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anabranch_examples::daemon::{self, now};
use anabranch_examples::view::{Measure, Subject, View};
use clap::Parser;

use fleet::{Fleet, Merged, pods_contributed};
use report::Outcome;
use setup::{AGENTS, Setup};

/// The run ends at this version.
const VERSIONS: u64 = 200;
/// The largest loss at the end that counts as a success, in nats a byte.
const LOSS: f64 = 2.7;
/// The agent that is killed, by its index in [`AGENTS`].
const KILLED: usize = 1;
/// Versions after which the helper and the coordinator are killed, and how long each is away.
const KILL_HELPER_AFTER: u64 = VERSIONS / 4;
const KILL_COORDINATOR_AFTER: u64 = VERSIONS / 2;
const DEAD_FOR: Duration = Duration::from_secs(3);
/// The run is given up after this.
const PATIENCE: Duration = Duration::from_secs(300);

/// Trains a language model on this machine: two pods of two agents each, and a single agent.
#[derive(Debug, Parser)]
#[command(name = "pods", version)]
struct Args {
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Directory for the run; an earlier one of this example is replaced
    #[arg(long, value_name = "DIR", default_value = "target/pods")]
    dir: PathBuf,
    /// Seed of everything that is drawn at random
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Plain lines even on a terminal
    #[arg(long)]
    plain: bool,
}

fn main() -> ExitCode {
    daemon::or_daemon(|| pods(&Args::parse()))
}

fn pods(args: &Args) -> anyhow::Result<bool> {
    let started = now();
    let setup = Setup::prepare(&args.dir, args.seed)?;
    let roles = AGENTS.iter().map(|(name, part)| ((*name).to_owned(), part.name().to_owned())).collect();
    let mut view = View::open(Subject { title: "pods", measure: Measure::Loss, roles }, args.plain);
    view.say("text cut into three shards; starting a coordinator, two owners with helpers, and a single agent");
    let mut fleet = Fleet::start(setup, view, started)?;

    fleet.until("both pods had contributed", |report| {
        report.version.0 >= KILL_HELPER_AFTER && pods_contributed(report, &Merged::new())
    })?;
    let helper = fleet.kill_agent(KILLED, DEAD_FOR)?;

    let before = fleet.merged();
    fleet.until("both pods had contributed again", |report| {
        report.version.0 >= KILL_COORDINATOR_AFTER && pods_contributed(report, &before)
    })?;
    let coordinator = fleet.kill_coordinator(DEAD_FOR)?;

    let before = fleet.merged();
    let (setup, last) = fleet.end()?;
    let wall_s = started.elapsed().as_secs_f64();
    let outages = vec![helper, coordinator];
    let (model, report) = (setup.run().export()?, setup.run().last_status(&last)?);
    let plot = setup.run().path().join("loss.svg");
    report::curve(&report, &outages).write(&plot)?;
    let pods_contributed = pods_contributed(&report, &before);
    let outcome = Outcome { report, wall_s, outages, pods_contributed, seed: setup.seed, model, plot };
    report::print(&outcome);
    if let Some(path) = &args.json {
        report::write_json(&outcome, path)?;
    }
    Ok(outcome.pass())
}
