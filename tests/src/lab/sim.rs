//! The verbs of the simulation.

use std::ops::Range;
use std::path::Path;

use anabranch_tests::picture;
use anabranch_tests::report::Report;
use anabranch_tests::sim::draw;
use anabranch_tests::sim::schedule::Schedule;
use anabranch_tests::sim::swarm::Worlds;
use anabranch_tests::sim::{Outcome, quiet_panics, run, scenario, shrink, swarm};
use anyhow::Context as _;

/// Seeds that `meta` runs twice.
const META_SEEDS: u64 = 25;

/// Reads `A..B`.
pub(crate) fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("`{text}` is not a range of seeds such as 0..300");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (from, to): (u64, u64) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
    if from < to { Ok(from..to) } else { Err(format!("`{text}` has no seeds: write the smaller number first")) }
}

/// Which worlds are run, and how to say so on a command line.
pub(crate) struct Chosen {
    worlds: Worlds,
    option: String,
}

/// Reads the world that was written down, if one is to be run.
pub(crate) fn worlds(file: Option<&Path>, pods: bool, searches: bool) -> anyhow::Result<Chosen> {
    Ok(match file {
        Some(file) => {
            let worlds = Worlds::Written(Box::new(scenario::read(file)?));
            Chosen { worlds, option: format!(" --scenario {}", file.display()) }
        }
        None if pods => Chosen { worlds: Worlds::WithPods, option: " --pods".to_owned() },
        None if searches => Chosen { worlds: Worlds::WithSearch, option: " --searches".to_owned() },
        None => Chosen { worlds: Worlds::Drawn, option: String::new() },
    })
}

pub(crate) fn swarm(seeds: Range<u64>, Chosen { worlds, option: of }: Chosen, jobs: Option<usize>) -> Report {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let command = format!("anabranch-lab sim --seeds {}..{}{of}", seeds.start, seeds.end);
    let options = swarm::Options { seeds, worlds, jobs: jobs.unwrap_or(cores) };
    quiet_panics();
    swarm::run_all(&options, &command, |outcome| {
        if let Some((at_ms, violation)) = &outcome.violation {
            println!("seed {}: {violation} (at {at_ms} ms)", outcome.seed);
            println!("  anabranch-lab replay {}{of} --trace", outcome.seed);
        }
    })
}

pub(crate) fn replay(
    seed: u64,
    Chosen { worlds, option: of }: &Chosen,
    trace: bool,
    html: Option<&Path>,
    smaller: bool,
) -> anyhow::Result<bool> {
    if smaller {
        quiet_panics();
        let schedule = worlds.draw(seed).context("--shrink writes scenarios: worlds with searches have none")?;
        return shrunk(seed, &schedule);
    }
    let outcome = worlds.run(seed, trace || html.is_some());
    if trace {
        print!("{}", outcome.trace);
    }
    summary(&outcome);
    if let Some(html) = html {
        let mut timeline = outcome.timeline.clone().context("the world did not come far enough for a picture")?;
        timeline.title = format!("Anabranch, simulated: seed {seed}");
        timeline.subtitle = format!("anabranch-lab replay {seed}{of} --trace");
        timeline.facts = facts(&outcome);
        std::fs::write(html, picture::page(&timeline)).with_context(|| format!("cannot write {}", html.display()))?;
        println!("picture: {}", html.display());
    }
    Ok(outcome.violation.is_none())
}

fn shrunk(seed: u64, schedule: &Schedule) -> anyhow::Result<bool> {
    let Some(found) = shrink::shrink(seed, schedule) else {
        println!("seed {seed} breaks nothing: there is nothing to reduce");
        return Ok(true);
    };
    let (faults, agents) = (schedule.faults.len(), schedule.agents.len());
    let smaller = &found.schedule;
    println!(
        "# {} worlds tried; faults {faults} to {}, agents {agents} to {}",
        found.tried,
        smaller.faults.len(),
        smaller.agents.len()
    );
    println!("# replay it with: anabranch-lab replay {seed} --scenario FILE --trace");
    print!("{}", scenario::to_toml(smaller)?);
    Ok(false)
}

fn facts(outcome: &Outcome) -> Vec<(String, String)> {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    vec![
        fact("promises", outcome.violation.as_ref().map_or("kept".into(), |(_, violation)| violation.to_string())),
        fact("agents", outcome.rounds.len().to_string()),
        fact("versions", outcome.versions.to_string()),
        fact("updates acknowledged", outcome.acknowledged.to_string()),
        fact("lost", outcome.lost.to_string()),
        fact("merged twice", outcome.duplicated.to_string()),
        fact("faults", outcome.faults.to_string()),
        fact("coordinator restarts", outcome.recoveries.to_string()),
        fact("virtual time", format!("{:.1} s", outcome.virtual_ms as f64 / 1000.0)),
    ]
}

fn summary(outcome: &Outcome) {
    let Outcome { versions, acknowledged, faults, recoveries, virtual_ms, .. } = outcome;
    let virtual_s = *virtual_ms as f64 / 1000.0;
    println!(
        "{versions} versions, {acknowledged} updates acknowledged, {faults} faults, {recoveries} restarts of the \
         coordinator, {virtual_s:.1} s of virtual time"
    );
    match &outcome.violation {
        Some((at_ms, violation)) => println!("{violation} (at {at_ms} ms)"),
        None => println!("every promise was kept"),
    }
}

pub(crate) fn meta(seed: u64) -> Report {
    let mut report = Report::new(&format!("anabranch-lab meta --seed {seed}"), seed);
    let mut bytes = 0;
    for seed in seed..seed + META_SEEDS {
        let [first, second] = [run(seed, &draw(seed), true), run(seed, &draw(seed), true)];
        bytes += first.trace.len();
        if first != second {
            println!("seed {seed}: two runs differ");
            report.pass = false;
        }
    }
    report.metric("seeds_run", META_SEEDS as f64);
    report.metric("trace_bytes", bytes as f64);
    report
}
