//! kill -9 at every named point, in turn, and at random moments; after each kill an audit.
//!
//! ```text
//!  ledger run: coordinator + 2 agents ──► for each kill:
//!     start the victim with ANABRANCH_KILL_AT ──► it dies ──► audit of a copy of the store (P1, P2) ──► next
//!     another victim: start the last one again without ──► updates must come again within a deadline (P6)
//! ```
//! A point that is not reached in time is tried again in a later round; one that never was fails the run.

mod points;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch_common::rng::SplitMix64;
use anabranch_io::faults;
use anyhow::{Context as _, bail};

use crate::clock::{Stopwatch, poll};
use crate::invariants::{self, exactly_once, same_bits};
use crate::ledger::Settings;
use crate::process::Cluster;
use crate::report::{Report, quantile};
pub use points::{AGENT, COORDINATOR, GENESIS, Kill, Moment, Point, RECOVERY, RECOVERY_BURST, Victim, round};

/// Agents of the run.
const AGENTS: usize = 2;
/// Coordinates of the model, at least: the agents' residuals are files of two pieces.
const MIN_COORDINATES: u64 = 1 << 15;
/// How long a point is waited for.
const REACH: Duration = Duration::from_secs(15);
/// How long after the last kill of a victim updates must be merged again (P6).
const RESUME: Duration = Duration::from_secs(30);
/// So many updates count as "service resumed".
const RESUMED_UPDATES: u64 = 4;
/// Whether this build has the points in it.
pub const HAS_POINTS: bool = cfg!(feature = "faults");

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// This binary, to be started as the daemons.
    pub lab: PathBuf,
    /// Kills, at least: rounds are finished.
    pub count: u64,
    /// Seed of the order and of the passages.
    pub seed: u64,
    /// Print a line for each group of kills.
    pub verbose: bool,
}

/// Kills and audits.
///
/// # Errors
/// A promise was broken, or the run does not go on. What happened stands in the error.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut killer = Killer::new(options)?;
    killer.first_model()?;
    let mut rng = SplitMix64::new(options.seed);
    while killer.kills < options.count {
        for kill in round(&mut rng, AGENTS, HAS_POINTS) {
            killer.kill(kill).with_context(|| format!("seed {}, kill {}: {kill:?}", options.seed, killer.kills))?;
        }
        killer.resume()?;
    }
    killer.report(options)
}

struct Killer {
    cluster: Cluster,
    watch: Stopwatch,
    verbose: bool,
    /// Who is dead, or was started to die.
    victim: Option<Victim>,
    kills: u64,
    hits: BTreeMap<String, u64>,
    missed: u64,
    audits: u64,
    merged: u64,
    serving_s: Vec<f64>,
    resume_s: Vec<f64>,
}

fn agent_name(number: usize) -> String {
    format!("agent-{number}")
}

impl Killer {
    fn new(options: &Options) -> anyhow::Result<Self> {
        // Leases are numbered on through every kill: some are lost with each.
        let coordinates = (options.count * 64).clamp(MIN_COORDINATES, 1 << 20);
        let settings = Settings { coordinates, checkpoint_every: 5, feedback: true, ..Settings::default() };
        let mut cluster = Cluster::new(&options.lab, &settings.run_toml())?;
        cluster.start_coordinator()?;
        for number in 0..AGENTS {
            cluster.join(&agent_name(number))?;
        }
        Ok(Self {
            cluster,
            watch: Stopwatch::start(),
            verbose: options.verbose,
            victim: None,
            kills: 0,
            hits: BTreeMap::new(),
            missed: 0,
            audits: 0,
            merged: 0,
            serving_s: Vec::new(),
            resume_s: Vec::new(),
        })
    }

    /// The one point that exists only before there is a model.
    fn first_model(&mut self) -> anyhow::Result<()> {
        for number in 0..AGENTS {
            self.cluster.start_ledger_agent(&agent_name(number), &[])?;
        }
        if HAS_POINTS {
            self.cluster.coordinator()?.kill()?;
            self.kill(Kill { victim: Victim::Coordinator, moment: Moment::At(GENESIS, 1) })?;
        }
        self.resume()
    }

    fn kill(&mut self, kill: Kill) -> anyhow::Result<()> {
        if self.victim.is_some_and(|victim| victim != kill.victim) {
            self.resume()?;
        }
        self.victim = Some(kill.victim);
        let armed = match kill.moment {
            Moment::At(point, passage) => format!("{}:{passage}", point.name),
            Moment::AfterMs(_) => String::new(),
        };
        let env: &[(&str, &str)] = if armed.is_empty() { &[] } else { &[(faults::KILL_ENV, &armed)] };
        match kill.victim {
            Victim::Coordinator => self.cluster.spawn_coordinator(env)?,
            Victim::Agent(number) => self.cluster.start_ledger_agent(&agent_name(number), env)?,
        };
        if matches!(kill.moment, Moment::At(point, _) if point.needs_an_operator()) {
            self.cluster.coordinator()?.wait_for_log(" serving", RESUME)?;
            // It has no answer where the coordinator dies of it.
            self.cluster.coordinate(&["token", "create"], &[])?;
        }
        let process = match kill.victim {
            Victim::Coordinator => self.cluster.coordinator()?,
            Victim::Agent(number) => self.cluster.agent(&agent_name(number))?,
        };
        let patience = match kill.moment {
            Moment::At(..) => REACH,
            Moment::AfterMs(ms) => Duration::from_millis(ms),
        };
        let died = poll(patience, || Ok(process.was_killed()?.then_some(())))?.is_some();
        if !died {
            process.kill()?;
        }
        self.kills += 1;
        match kill.moment {
            Moment::At(point, _) if died => *self.hits.entry(point.name.to_owned()).or_default() += 1,
            Moment::At(..) => self.missed += 1,
            Moment::AfterMs(_) => *self.hits.entry("any-moment".to_owned()).or_default() += 1,
        }
        if kill.victim == Victim::Coordinator { self.audit() } else { Ok(()) }
    }

    /// P1 and P2, while the coordinator is dead.
    fn audit(&mut self) -> anyhow::Result<()> {
        let logs: Vec<PathBuf> = (0..AGENTS).map(|number| self.cluster.log_path(&agent_name(number))).collect();
        // Before the store is looked at: what is acknowledged meanwhile would not be in the copy, but nobody can be.
        let acknowledged = exactly_once::acknowledged(logs.iter().map(PathBuf::as_path))?;
        self.merged = invariants::on_a_copy(&self.cluster.coordinator_dir(), |store| {
            let recovered = same_bits::check(store)?;
            exactly_once::check(recovered.as_ref(), &acknowledged)
        })?;
        self.audits += 1;
        Ok(())
    }

    /// Starts the last victim for good, and waits until updates are merged again.
    fn resume(&mut self) -> anyhow::Result<()> {
        let watch = Stopwatch::start();
        match self.victim.take() {
            Some(Victim::Coordinator) | None => {
                if self.cluster.coordinator()?.exited()?.is_some() {
                    self.cluster.start_coordinator()?;
                    self.serving_s.push(watch.seconds());
                }
            }
            Some(Victim::Agent(number)) => {
                self.cluster.start_ledger_agent(&agent_name(number), &[])?;
            }
        }
        let before = self.cluster.status()?.updates_accepted;
        let wanted = before + RESUMED_UPDATES;
        let status = self.cluster.wait_until("updates again", RESUME, |status| status.updates_accepted >= wanted)?;
        self.resume_s.push(watch.seconds());
        if self.verbose {
            let (updates, missed) = (status.updates_accepted, self.missed);
            println!("{:6.0} s: {:5} kills, {updates} updates, {missed} not reached", self.watch.seconds(), self.kills);
        }
        Ok(())
    }

    fn report(mut self, options: &Options) -> anyhow::Result<Report> {
        self.cluster.park_agents()?;
        let code = self.cluster.park_coordinator()?;
        if code != 0 {
            bail!("the coordinator ended with {code}:\n{}", self.cluster.logs());
        }
        self.audit()?;
        let mut report = Report::new(&format!("anabranch-lab kills --count {}", options.count), options.seed);
        for resumed in [&mut self.serving_s, &mut self.resume_s] {
            resumed.sort_by(f64::total_cmp);
        }
        let figures = [
            ("kills_count", self.kills as f64),
            ("kills_not_reached_count", self.missed as f64),
            ("audits_count", self.audits as f64),
            ("updates_accepted", self.merged as f64),
            ("updates_lost", 0.0),
            ("updates_duplicated", 0.0),
            ("serving_again_p50_s", quantile(&self.serving_s, 0.5)),
            ("serving_again_max_s", quantile(&self.serving_s, 1.0)),
            ("updates_again_p50_s", quantile(&self.resume_s, 0.5)),
            ("updates_again_max_s", quantile(&self.resume_s, 1.0)),
            ("wall_s", self.watch.seconds()),
        ];
        figures.into_iter().for_each(|(name, value)| report.metric(name, value));
        report.counts = self.hits;
        let points = COORDINATOR.iter().chain(&RECOVERY).chain(&AGENT).chain([&GENESIS]).filter(|_| HAS_POINTS);
        for point in points {
            report.counts.entry(point.name.to_owned()).or_default();
        }
        report.pass = report.counts.values().all(|hits| *hits > 0);
        Ok(report)
    }
}

/// The lab's binary, as seen from itself.
///
/// # Errors
/// The system does not say.
pub fn this_binary() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// Kills with the lab at `lab`, for tests.
///
/// # Errors
/// As [`run`].
pub fn run_for_test(lab: &Path, count: u64, seed: u64) -> anyhow::Result<Report> {
    run(&Options { lab: lab.to_owned(), count, seed, verbose: true })
}
