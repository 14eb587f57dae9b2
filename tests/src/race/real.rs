//! A race with real processes: the product's daemons with mutual TLS and real sockets, on the same workload.
//!
//! ```text
//!  workload ──► shards as files, run.toml ──► TimedRun ──► coordinator, agents (rounds take `round_s` at least)
//!      │                                         │ SIGKILL, SIGSTOP, restarts, as the course says; lines by a relay
//!      └──► scoreboard ◄── models of the journal, replayed when everything has ended
//! ```
//! The harness evaluates nothing while the clock runs: every record has the time at which the coordinator decided on it, and
//! the journal is kept whole. A model is looked at as it was served at the time of the look. An agent evaluates as agents of
//! users do where that is part of what is measured.

use std::path::Path;

use anabranch_common::ids::{AgentId, ModelVersion};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_coordinator::recovery;
use anabranch_coordinator::store::{SledStore, Store as _};
use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use toml::{Table, Value};

use crate::chaos::link::Conditions;
use crate::chaos::proxy::{Proxy, Shape};
use crate::clock::{Stopwatch, unix_ms};
use crate::invariants::journal::Journal;
use crate::invariants::{on_a_copy, told};
use crate::process::{AgentStart, Counted, LOOK, PATIENCE, TimedRun, Usage, agent_name};
use crate::report::quantile;
use crate::sim::{Outcome, Traffic};

use super::course::{Hit, Kills, hits, ms};
use super::data::DataSet;
use super::finish::Finish;
use super::scoreboard::Scoreboard;
use super::strategy::put;
use super::workload::{LinePlan, Way, Workload};

/// Milliseconds between two looks at what the coordinator has counted, and at memory and processor time.
const COUNT_MS: u64 = 500;
/// Its name in figures.
const COORDINATOR: &str = "coordinator";
/// How much later than a look a count may have been taken that is its.
const COUNT_LATE_MS: u64 = COUNT_MS / 2;

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Revive,
    Stop,
    Continue,
}

/// One race.
pub(super) struct RealRace<'a> {
    /// The binary that is every daemon.
    pub(super) lab: &'a Path,
    pub(super) workload: &'a Workload,
    pub(super) data: &'a DataSet,
    pub(super) kills: Kills,
    pub(super) seed: u64,
    /// The agent that evaluates, counted from 0, if one does.
    pub(super) evaluator: Option<usize>,
}

/// Writes what each agent trains on, and says how it is started.
fn prepare(workload: &Workload, data: &DataSet, folder: &Path) -> anyhow::Result<Vec<AgentStart>> {
    let mut agents = Vec::new();
    for (number, (group, rows)) in workload.each_agent().zip(&data.shards).enumerate() {
        let shard = folder.join(format!("shard-{number}"));
        rows.write(&shard).with_context(|| format!("cannot write {}", shard.display()))?;
        let options = if workload.overlap { vec![] } else { vec!["--no-overlap"] };
        agents.push(AgentStart { shard, eval_shard: None, min_round_ms: ms(group.round_s), options });
    }
    Ok(agents)
}

/// Returns run.toml as [`TimedRun`] takes it: with the whole journal kept, without an address.
pub(crate) fn run_toml(table: &Table, seed: u64) -> String {
    let mut table = table.clone();
    table.remove("server");
    put(&mut table, "run", "seed", Value::Integer(seed.cast_signed()));
    put(&mut table, "checkpoint", "retention", "all".into());
    table.to_string()
}

/// What the clock saw.
struct Watched {
    /// Unix time at which all processes were started.
    began_ms: u64,
    startup_s: Option<f64>,
    /// What the coordinator had counted, and when.
    counts: Vec<(u64, Traffic)>,
    /// All that it had counted at last.
    counted: Counted,
    usage: Usage,
    /// When there was no coordinator, from and to.
    down: Vec<(u64, u64)>,
    recoveries: u64,
    faults: u64,
}

impl RealRace<'_> {
    pub(super) fn run(&self, table: &Table, mut board: Scoreboard, params: usize) -> anyhow::Result<Finish> {
        ensure!(
            self.workload.each_agent().all(|group| group.hostile.is_none()),
            "attackers are simulated only: race {} without --real",
            self.workload.name
        );
        let prepared = |folder: &Path| {
            let mut agents = prepare(self.workload, self.data, folder)?;
            if let Some(agent) = self.evaluator.and_then(|evaluator| agents.get_mut(evaluator)) {
                let test = folder.join("test");
                self.data.all_test.write(&test).with_context(|| format!("cannot write {}", test.display()))?;
                agent.eval_shard = Some(test);
            }
            Ok(agents)
        };
        let mut run = TimedRun::new(self.lab, &run_toml(table, self.seed), prepared)?;
        let (runtime, proxies) = self.lines(&run)?;
        let watched = self.watch(&mut run)?;
        drop((proxies, runtime));
        run.cluster.verify()?;
        let ids = (0..run.agents()).map(|agent| run.cluster.agent_id(&agent_name(agent)));
        let ids: Vec<AgentId> = ids.collect::<anyhow::Result<_>>()?;
        let told = told::keys(&run.cluster, &run.seen)?;
        let (found, journal) = on_a_copy(&run.cluster.coordinator_dir(), |store| {
            let found = told::audit(store.journal(), &told)?;
            self.look_back(store, &watched, &mut board)?;
            Ok((found, journal_until(store, watched.began_ms + ms(self.workload.seconds))?))
        })?;
        let outcome = Outcome {
            seed: self.seed,
            lost: found.lost,
            duplicated: found.duplicated,
            versions: closes(&journal),
            recoveries: watched.recoveries,
            faults: watched.faults,
            violation: found.problem.map(|violation| (0, violation)),
            ..Outcome::default()
        };
        let mut finish = Finish::new(self.workload, board.into_looks(), &outcome, &journal, params, &ids);
        let evaluation_bytes = run.cluster.status()?.evaluation_downlink_bytes;
        let figures = watched.figures().into_iter().chain(self.rhythm(&journal, &ids));
        let figures = figures.chain([
            ("updates_duplicated", found.duplicated as f64),
            ("evaluations", evaluations(&journal) as f64),
            ("evaluation_downlink_bytes", evaluation_bytes as f64),
        ]);
        finish.metrics.extend(figures.map(|(name, value)| (name.to_owned(), value)));
        Ok(finish)
    }

    /// Returns how long the rounds of the quickest agents took, and how long it was from the end of one to the end of the
    /// next: what is between is not computing. Medians, in milliseconds.
    fn rhythm(&self, journal: &Journal, ids: &[AgentId]) -> Vec<(&'static str, f64)> {
        let least_s = self.workload.each_agent().map(|group| group.round_s).fold(f64::INFINITY, f64::min);
        let quickest = self.workload.each_agent().zip(ids).filter(|(group, _)| group.round_s <= least_s);
        let (mut rounds_ms, mut periods_ms) = (Vec::new(), Vec::new());
        for (_, id) in quickest {
            let mut last_ms = None;
            for record in journal.records() {
                if let RecordBody::Contribution(update) = &record.body
                    && update.meta.key.agent == *id
                {
                    rounds_ms.push(update.meta.compute_ms as f64);
                    periods_ms.extend(last_ms.map(|last_ms| record.at_ms.saturating_sub(last_ms) as f64));
                    last_ms = Some(record.at_ms);
                }
            }
        }
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            quantile(&values, 0.5)
        };
        vec![("quick_round_p50_ms", median(rounds_ms)), ("quick_period_p50_ms", median(periods_ms))]
    }

    /// A relay for every agent whose line is not a free one.
    fn lines(&self, run: &TimedRun) -> anyhow::Result<(Runtime, Vec<Proxy>)> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut proxies = Vec::new();
        for (agent, group) in self.workload.each_agent().enumerate() {
            let line = group.line.as_ref().unwrap_or(&self.workload.line);
            if line.is_free() {
                continue;
            }
            let LinePlan { up, down } = line;
            let shape = Shape { up: conditions(up), down: conditions(down), rebind_ms: 0 };
            let seed = self.seed ^ (agent as u64).rotate_left(32);
            let proxy = Proxy::start(runtime.handle(), run.cluster.port(), seed, shape)?;
            run.cluster.reroute(&agent_name(agent), proxy.port())?;
            proxies.push(proxy);
        }
        Ok((runtime, proxies))
    }

    fn watch(&self, run: &mut TimedRun) -> anyhow::Result<Watched> {
        let (end_ms, mut due) = (ms(self.workload.seconds), actions(&hits(self.workload, self.seed, self.kills)));
        let (watch, began_ms) = (Stopwatch::start(), unix_ms());
        let mut watched = Watched::new(began_ms);
        let mut idle = vec![None; 1 + run.agents()];
        run.start()?;
        loop {
            let now_ms = elapsed_ms(watch);
            run.listen()?;
            if watched.startup_s.is_none() && run.has_leased() {
                watched.startup_s = Some(watch.seconds());
            }
            while let Some((at_ms, machine, action)) =
                due.last().copied().filter(|(at_ms, ..)| *at_ms <= now_ms.min(end_ms))
            {
                due.pop();
                watched.look_at_processes(run)?;
                watched.act(run, at_ms, machine, action)?;
                idle[machine] = Some(action).filter(|action| matches!(action, Action::Kill | Action::Stop));
            }
            let last_ms = watched.counts.last().map_or(0, |(at_ms, _)| *at_ms);
            if idle[0].is_none() && (now_ms >= last_ms + COUNT_MS || now_ms >= end_ms) {
                watched.look_at_processes(run)?;
                watched.counted = run.count();
                let Counted { updates: up_bytes, models: down_bytes, .. } = watched.counted;
                watched.counts.push((now_ms, Traffic { up_bytes, down_bytes }));
            }
            if now_ms >= end_ms || ended(run, &idle)? {
                break;
            }
            std::thread::sleep(LOOK);
        }
        rest(run, &idle)?;
        Ok(watched)
    }

    /// Shows the scoreboard what was served at the time of each look.
    fn look_back(&self, store: &SledStore, watched: &Watched, board: &mut Scoreboard) -> anyhow::Result<()> {
        let journal = journal_until(store, u64::MAX)?;
        let mut last: Option<(u64, Vec<f32>)> = None;
        while let Some(at_ms) = board.next_ms() {
            let until = |record: &Record| record.at_ms <= watched.began_ms + at_ms;
            let records = || journal.records().iter().map(|record| &**record).filter(|record| until(record));
            let closed = records().filter(|record| matches!(record.body, RecordBody::Closed(_))).count() as u64;
            let merged = records().filter(|record| matches!(record.body, RecordBody::Contribution(_))).count() as u64;
            let is_served = records().next().is_some() && !watched.is_down(at_ms);
            if is_served && last.as_ref().is_none_or(|(version, _)| *version != closed) {
                let exported = recovery::export(store, Some(ModelVersion(closed)));
                let exported = exported.with_context(|| format!("version {closed} cannot be replayed"))?;
                last = Some((closed, exported.model));
            }
            let model = last.as_ref().filter(|_| is_served).map(|(_, model)| model.as_slice());
            board.look(at_ms, model, merged, watched.traffic(at_ms));
        }
        Ok(())
    }
}

impl Watched {
    fn new(began_ms: u64) -> Self {
        Self {
            began_ms,
            startup_s: None,
            counts: vec![(0, Traffic::default())],
            counted: Counted::default(),
            usage: Usage::default(),
            down: Vec::new(),
            recoveries: 0,
            faults: 0,
        }
    }

    fn look_at_processes(&mut self, run: &mut TimedRun) -> anyhow::Result<()> {
        let pid = run.cluster.coordinator()?.pid();
        self.usage.look(COORDINATOR, pid);
        let mut pids = Vec::new();
        for agent in (0..run.agents()).map(agent_name) {
            let pid = run.cluster.agent(&agent)?.pid();
            self.usage.look(&agent, pid);
            pids.push(pid);
        }
        self.usage.look_together(pids.into_iter());
        Ok(())
    }

    /// Returns what the processes took.
    fn figures(&self) -> Vec<(&'static str, f64)> {
        let (coordinator, agents) = (|name: &str| name == COORDINATOR, |name: &str| name != COORDINATOR);
        let mut figures = vec![
            ("uplink_ip_bytes", self.counted.received.ip_bytes() as f64),
            ("downlink_ip_bytes", self.counted.sent.ip_bytes() as f64),
            ("coordinator_peak_rss_bytes", self.usage.peak_bytes(coordinator)),
            ("agents_peak_rss_bytes", self.usage.peak_bytes(agents)),
            ("agents_peak_pss_bytes", self.usage.together_bytes()),
            ("coordinator_cpu_s", self.usage.cpu_s(coordinator)),
            ("agents_cpu_s", self.usage.cpu_s(agents)),
        ];
        figures.extend(self.startup_s.map(|startup_s| ("startup_s", startup_s)));
        figures
    }

    fn act(&mut self, run: &mut TimedRun, at_ms: u64, machine: usize, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Kill => {
                self.faults += 1;
                if machine == 0 {
                    self.down.push((at_ms, u64::MAX));
                }
                run.kill(machine)
            }
            Action::Revive => {
                if let Some((_, to_ms)) = self.down.last_mut().filter(|_| machine == 0) {
                    *to_ms = at_ms;
                    self.recoveries += 1;
                }
                run.revive(machine)
            }
            Action::Stop => {
                self.faults += 1;
                run.signal(machine, Signal::SIGSTOP)
            }
            Action::Continue => run.signal(machine, Signal::SIGCONT),
        }
    }

    fn is_down(&self, at_ms: u64) -> bool {
        self.down.iter().any(|(from_ms, to_ms)| (*from_ms..*to_ms).contains(&at_ms))
    }

    fn traffic(&self, at_ms: u64) -> Traffic {
        let seen = self.counts.iter().rfind(|(seen_ms, _)| *seen_ms <= at_ms + COUNT_LATE_MS);
        seen.map_or_else(Traffic::default, |(_, traffic)| *traffic)
    }
}

fn elapsed_ms(watch: Stopwatch) -> u64 {
    u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The last one is the next.
fn actions(hits: &[Hit]) -> Vec<(u64, usize, Action)> {
    let of = |hit: &Hit| {
        let Hit { machine, at_s, down_s, kills } = *hit;
        let [first, second] = match kills {
            Kills::Kill => [Action::Kill, Action::Revive],
            Kills::Pause => [Action::Stop, Action::Continue],
        };
        [(ms(at_s), machine, first), (ms(at_s + down_s), machine, second)]
    };
    let mut actions: Vec<(u64, usize, Action)> = hits.iter().flat_map(of).collect();
    actions.sort_by_key(|(at_ms, machine, _)| std::cmp::Reverse((*at_ms, *machine)));
    actions
}

fn conditions(way: &Way) -> Conditions {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is checked to be at least 1")]
    let rate_kbit = way.kbit_s.map_or(0, |kbit_s| kbit_s.round() as u64);
    Conditions { loss: way.loss, delay_ms: way.delay_ms, rate_kbit, ..Conditions::default() }
}

/// Whether the run has ended by itself. A process that ends otherwise fails the race.
fn ended(run: &mut TimedRun, idle: &[Option<Action>]) -> anyhow::Result<bool> {
    for (machine, _) in idle.iter().enumerate().filter(|(_, idle)| idle.is_none()) {
        let process = match machine.checked_sub(1) {
            None => run.cluster.coordinator()?,
            Some(agent) => run.cluster.agent(&agent_name(agent))?,
        };
        match process.exited()? {
            None => {}
            Some(status) if status.success() => return Ok(true),
            Some(status) => bail!("{} ended ({status}):\n{}", process.name(), process.log_tail()),
        }
    }
    Ok(false)
}

/// Ends every process in order; those that are gone or stand still come back first.
fn rest(run: &mut TimedRun, idle: &[Option<Action>]) -> anyhow::Result<()> {
    for (machine, idle) in idle.iter().enumerate() {
        match idle {
            Some(Action::Kill) => run.revive(machine)?,
            Some(Action::Stop) => run.signal(machine, Signal::SIGCONT)?,
            _ => {}
        }
    }
    if run.cluster.coordinator()?.exited()?.is_none() {
        run.cluster.coordinator()?.wait_for_log(" serving", PATIENCE)?;
        run.cluster.park_coordinator()?;
    }
    run.cluster.park_agents()?;
    run.listen()
}

fn evaluations(journal: &Journal) -> u64 {
    journal.records().iter().filter(|record| matches!(record.body, RecordBody::Evaluated(_))).count() as u64
}

fn closes(journal: &Journal) -> u64 {
    journal.records().iter().filter(|record| matches!(record.body, RecordBody::Closed(_))).count() as u64
}

/// The records that were decided on until then.
fn journal_until(store: &SledStore, until_ms: u64) -> anyhow::Result<Journal> {
    let mut journal = Journal::default();
    while let Some(bytes) = store.journal().record(journal.next())? {
        let record = Record::from_bytes(&bytes)?;
        if record.at_ms > until_ms {
            break;
        }
        journal.appended(&std::sync::Arc::new(record))?;
    }
    Ok(journal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_come_in_the_order_of_time() {
        let hit = |machine, at_s, down_s, kills| Hit { machine, at_s, down_s, kills };
        let hits = |kills| [hit(0, 3.0, 2.0, kills), hit(2, 1.0, 3.0, kills)];
        let kinds = |kills| actions(&hits(kills)).into_iter().rev().collect::<Vec<_>>();
        let killed = [
            (1_000, 2, Action::Kill),
            (3_000, 0, Action::Kill),
            (4_000, 2, Action::Revive),
            (5_000, 0, Action::Revive),
        ];
        assert_eq!(kinds(Kills::Kill), killed);
        assert_eq!(kinds(Kills::Pause)[0], (1_000, 2, Action::Stop));
        assert_eq!(kinds(Kills::Pause)[3], (5_000, 0, Action::Continue));
    }

    #[test]
    fn a_run_of_real_processes_keeps_its_journal_and_finds_an_address_of_its_own() {
        let table: Table = "[run]\nname = \"a\"\nseed = 1\n[server]\nlisten = \"0.0.0.0:1\"".parse().expect("TOML");
        let text = run_toml(&table, 7);
        assert!(text.contains("seed = 7") && text.contains("retention = \"all\""), "{text}");
        assert!(!text.contains("server"), "{text}");
    }
}
