//! From nothing to a trained model in a minute: `cargo run --example quickstart`.
//!
//! One binary that starts itself again as a coordinator and four agents: real processes, mutual TLS, QUIC on loopback,
//! a journal on disk. Agents 1 to 3 are equally fast, agent 4 takes ten times as long a round; agent 3 is killed with
//! SIGKILL half-way and started again. The data are real (`examples/data`), cut one-sidedly by a Dirichlet
//! distribution, so that no agent could reach the target alone.
//!
//! ```text
//!  setup ──► coordinator ──► join x 4 ──► run x 4 ──► watch ─┬─► kill agent 3, start it again
//!                                                            └─► target reached ──► export, report, plot
//! ```

mod report;
mod setup;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anabranch_common::status::StatusReport;
use anabranch_examples::daemon::{self, now};
use anabranch_examples::view::{Measure, Subject, View};
use anabranch_examples::watch::Watch;
use anyhow::{Context, bail};
use clap::Parser;

use setup::Setup;

/// Agents that train.
const AGENTS: usize = 4;
/// The agent that is killed, and the one that is slow (counted from 1).
const KILLED: usize = 3;
const SLOW: usize = 4;
/// Killed after this many updates were merged, and started again this much later.
const KILL_AFTER_UPDATES: u64 = 30;
const DEAD_FOR: Duration = Duration::from_secs(2);
/// The run is given up after this.
const PATIENCE: Duration = Duration::from_secs(300);

/// Trains a model on handwritten digits with four agents on this machine.
#[derive(Debug, Parser)]
#[command(name = "quickstart", version)]
struct Args {
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Directory for the run; an earlier quickstart's is replaced
    #[arg(long, value_name = "DIR", default_value = "target/quickstart")]
    dir: PathBuf,
    /// Seed of everything that is drawn at random
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Plain lines even on a terminal
    #[arg(long)]
    plain: bool,
}

fn main() -> ExitCode {
    daemon::or_daemon(|| quickstart(&Args::parse()))
}

fn quickstart(args: &Args) -> anyhow::Result<bool> {
    let started = now();
    let setup = Setup::prepare(&args.dir, args.seed)?;
    let subject = Subject { title: "quickstart", measure: Measure::Accuracy, roles: BTreeMap::new() };
    let mut view = View::open(subject, args.plain);
    view.say("data cut into four one-sided shards; starting a coordinator and four agents");
    let mut coordinator = setup.run().start_coordinator()?;
    let mut agents = setup.join_and_start_agents()?;
    let mut watch: Watch<Subject> = Watch::start(&setup.run().coordinator())?;
    let mut killed_at = None;
    let mut last: Option<StatusReport> = None;
    while coordinator.try_wait()?.is_none() {
        if started.elapsed() > PATIENCE {
            bail!(
                "the target was not reached in {} s; logs are in {}",
                PATIENCE.as_secs(),
                setup.run().logs().display()
            );
        }
        if let Some(report) = watch.next(Duration::from_millis(200)) {
            if killed_at.is_none() && report.updates_accepted >= KILL_AFTER_UPDATES {
                agents[KILLED - 1].kill()?;
                killed_at = Some(now());
                view.say(&format!("agent-{KILLED} killed with SIGKILL"));
            }
            view.show(&report);
            last = Some(report);
        }
        // Even if the run has ended meanwhile: the coordinator waits for agents that have not heard of it.
        if killed_at.is_some_and(|at| at.elapsed() >= DEAD_FOR) && agents[KILLED - 1].was_killed() {
            agents[KILLED - 1] = setup.start_agent(KILLED)?;
            view.say(&format!("agent-{KILLED} started again; it goes on where its store says"));
        }
    }
    let code = coordinator.wait()?;
    if code != Some(0) {
        bail!("the coordinator ended with exit code {code:?}; its log is {}", coordinator.log().display());
    }
    let wall_s = started.elapsed().as_secs_f64();
    view.close();
    agents.iter_mut().try_for_each(|agent| agent.end(Duration::from_secs(10)))?;
    let last = last.context("the run ended before its first status")?;
    let outcome = setup.collect(&last, wall_s, killed_at.is_some())?;
    report::print(&outcome);
    if let Some(path) = &args.json {
        report::write_json(&outcome, path)?;
    }
    Ok(outcome.pass())
}
