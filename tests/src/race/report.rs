//! What races came to: medians and spreads over seeds, as a table, as JSON, and as a page.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::report::{Report, quantile};

use super::{Entrant, Finish, Options, Participation, page, strategy};

/// Everything that was raced. `--json` writes it.
#[derive(Debug, Clone, Serialize)]
pub struct RaceReport {
    /// Command, seed, host; its figures are the medians of the first strategy.
    #[serde(flatten)]
    pub report: Report,
    /// Of which kind times are.
    pub clock: &'static str,
    /// Name of the workload.
    pub workload: String,
    /// What it is.
    pub about: String,
    /// Time of a race, in seconds.
    pub seconds: f64,
    /// Accuracies whose times were taken.
    pub targets: Vec<f64>,
    /// Every strategy, in the order in which they were named.
    pub runs: Vec<StrategyReport>,
}

/// The races of one strategy.
#[derive(Debug, Clone, Serialize)]
pub struct StrategyReport {
    /// Its name.
    pub strategy: String,
    /// The sections of run.toml that decide on updates.
    pub configuration: String,
    /// Median over seeds. A target that most seeds did not reach has none.
    pub metrics: BTreeMap<String, f64>,
    /// Least and most over seeds; the most is null where a seed did not reach the target.
    pub spread: BTreeMap<String, [f64; 2]>,
    /// Medians over seeds of each agent's part, the first agent first.
    pub agents: Vec<Participation>,
    /// Medians over seeds of each class's accuracy at the end.
    pub accuracy_by_class: Vec<f64>,
    /// Updates that were refused, by reason, of all seeds together.
    pub refused: BTreeMap<String, u64>,
    /// Every race, by seed.
    pub races: Vec<Finish>,
}

impl StrategyReport {
    pub(super) fn new(entrant: &Entrant, races: Vec<Finish>) -> Self {
        let mut names: Vec<&String> = races.iter().flat_map(|race| race.metrics.keys()).collect();
        names.sort();
        names.dedup();
        let (mut metrics, mut spread) = (BTreeMap::new(), BTreeMap::new());
        for name in names {
            let values = sorted(races.iter().map(|race| race.metrics.get(name).copied().unwrap_or(f64::INFINITY)));
            let median = quantile(&values, 0.5);
            if median.is_finite() {
                metrics.insert(name.clone(), median);
            }
            spread.insert(name.clone(), [quantile(&values, 0.0), quantile(&values, 1.0)]);
        }
        let median = |of: &dyn Fn(&Finish) -> f64| quantile(&sorted(races.iter().map(of)), 0.5);
        let agents = races.first().map_or(0, |race| race.agents.len());
        let agents = (0..agents).map(|agent| {
            let mut updates: Vec<u64> = races.iter().map(|race| race.agents[agent].updates).collect();
            updates.sort_unstable();
            Participation {
                updates: updates[updates.len() / 2],
                share: median(&|race| race.agents[agent].share),
                pull: median(&|race| race.agents[agent].pull),
            }
        });
        let agents = agents.collect();
        let classes = races.first().map_or(0, |race| race.accuracy_by_class.len());
        let class = |class: usize| median(&|race| race.accuracy_by_class.get(class).copied().unwrap_or(0.0));
        let accuracy_by_class = (0..classes).map(class).collect();
        let mut refused = BTreeMap::new();
        for (reason, updates) in races.iter().flat_map(|race| &race.refused) {
            *refused.entry(reason.clone()).or_default() += updates;
        }
        let configuration = strategy::in_words(&entrant.config.spec);
        let strategy = entrant.name.clone();
        Self { strategy, configuration, metrics, spread, agents, accuracy_by_class, refused, races }
    }

    fn print(&self) {
        println!("\n{}\n  {}", self.strategy, self.configuration);
        for (name, [least, most]) in &self.spread {
            let median = self.metrics.get(name).map_or("not reached".to_owned(), |median| figure(*median));
            let spread = if self.races.len() > 1 {
                let most = if most.is_finite() { figure(*most) } else { "not reached".to_owned() };
                format!("  ({} to {most})", figure(*least))
            } else {
                String::new()
            };
            println!("  {name:<26} {median:>14}{spread}");
        }
        let list = |values: &mut dyn Iterator<Item = f64>| {
            values.map(|value| format!("{value:.3}")).collect::<Vec<_>>().join(" ")
        };
        println!("  accuracy by class          {}", list(&mut self.accuracy_by_class.iter().copied()));
        println!("  share of updates by agent  {}", list(&mut self.agents.iter().map(|agent| agent.share)));
        println!("  share of pull by agent     {}", list(&mut self.agents.iter().map(|agent| agent.pull)));
        let refused = self.refused.iter().map(|(reason, updates)| format!("{reason} {updates}"));
        let refused = refused.collect::<Vec<_>>().join(", ");
        println!("  refused, of all seeds      {}", if refused.is_empty() { "none" } else { &refused });
        for race in &self.races {
            println!("  seed {}: journal {} of {} records", race.seed, race.journal, race.records);
            if let Some(broken) = &race.broken {
                println!("  seed {}: {broken}", race.seed);
            }
        }
    }
}

impl RaceReport {
    pub(super) fn new(options: &Options, runs: Vec<StrategyReport>) -> Self {
        let mut report = Report::new(&options.command, options.seed);
        report.pass = runs.iter().flat_map(|run| &run.races).all(Finish::holds);
        if let Some(first) = runs.first() {
            report.metrics.clone_from(&first.metrics);
        }
        let workload = &options.workload;
        Self {
            report,
            clock: options.clock.name(),
            workload: workload.name.clone(),
            about: workload.about.clone(),
            seconds: workload.seconds,
            targets: workload.targets.clone(),
            runs,
        }
    }

    /// Prints a table for each strategy.
    pub fn print(&self) {
        println!("{}: {}, {} s of {} time", self.workload, self.about, self.seconds, self.clock);
        self.runs.iter().for_each(StrategyReport::print);
        println!("{}", if self.report.pass { "pass" } else { "FAIL" });
    }

    /// Writes JSON and page where they are wanted.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, json: Option<&Path>, html: Option<&Path>) -> anyhow::Result<()> {
        let put = |file: &Path, text: String| {
            std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        if let Some(file) = json {
            put(file, format!("{}\n", serde_json::to_string_pretty(self)?))?;
        }
        html.map_or(Ok(()), |file| put(file, page::page(self)))
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// A figure for people: whole numbers without a point.
pub(super) fn figure(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn race(seed: u64, metrics: &[(&str, f64)], share: f64) -> Finish {
        Finish {
            seed,
            journal: String::new(),
            records: 0,
            broken: None,
            metrics: metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            accuracy_by_class: vec![share],
            refused: BTreeMap::new(),
            agents: vec![Participation { updates: 10 * seed, share, pull: share }],
            agents_downlink_bytes: Vec::new(),
            looks: Vec::new(),
        }
    }

    #[test]
    fn a_target_counts_as_reached_when_most_seeds_reach_it() {
        let entrant = strategy::tests::entrant();
        let time = "time_to_90_s";
        let races = vec![race(1, &[(time, 4.0)], 0.1), race(2, &[], 0.3), race(3, &[(time, 6.0)], 0.2)];
        let report = StrategyReport::new(&entrant, races);
        assert_eq!((report.metrics.get(time), report.spread[time]), (Some(&6.0), [4.0, f64::INFINITY]));
        assert_eq!(report.agents, [Participation { updates: 20, share: 0.2, pull: 0.2 }]);
        assert_eq!(report.accuracy_by_class, [0.2]);
        let races = vec![race(1, &[(time, 4.0)], 0.1), race(2, &[], 0.3), race(3, &[], 0.2)];
        let report = StrategyReport::new(&entrant, races);
        assert_eq!(report.metrics.get(time), None, "most seeds did not reach it");
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["spread"][time], serde_json::json!([4.0, null]));
    }

    #[test]
    fn a_race_that_broke_a_promise_or_lost_an_update_does_not_hold() {
        let sound = race(1, &[("updates_lost", 0.0)], 0.0);
        assert!(sound.holds());
        assert!(!Finish { broken: Some("P1".to_owned()), ..sound.clone() }.holds());
        assert!(!race(1, &[("updates_lost", 1.0)], 0.0).holds());
    }
}
