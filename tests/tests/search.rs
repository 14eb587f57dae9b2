//! A search over configurations as real processes on loopback.
//!
//! | test | guards |
//! |---|---|
//! | a search runs to its winner, and its coordinator is killed on the way | ADR 37: trials, rungs, measurements, the journal's decisions, and the export |
//! | a population copies its best trials, and its coordinator is killed meanwhile | ADR 37: copies, each once in its run's journal |

use std::ffi::OsStr;
use std::path::Path;

use anabranch_coordinator::recovery;
use anabranch_coordinator::runs::{self, searches};
use anabranch_coordinator::search::report::{SearchPhase, SearchReport, TrialPhase};
use anabranch_coordinator::search::{journal, verify};
use anabranch_coordinator::store::Store as _;
use anabranch_io::model_file;
use anabranch_tests::clock::poll;
use anabranch_tests::invariants::on_a_copy;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// Four learning rates.
const SEARCH: &str = r#"
config = "coordinator/run.toml"

[search]
trials = 4
eta = 2
r = 6
max = 24
parallel = 2
seed = 5

[space]
train.optimizer.lr = { log = [0.05, 0.5] }
"#;

fn report(cluster: &Cluster) -> anyhow::Result<SearchReport> {
    let ended = cluster.coordinate(&["search", "status"], &["lr", "--json"])?.code(0)?;
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Waits until the search is as wanted.
fn wait_until(cluster: &Cluster, what: &str, wanted: impl Fn(&SearchReport) -> bool) -> anyhow::Result<SearchReport> {
    let mut last = String::new();
    let found = poll(PATIENCE, || {
        Ok(match report(cluster) {
            Ok(report) if wanted(&report) => Some(report),
            Ok(report) => {
                last = report.text();
                None
            }
            // It may be starting.
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        })
    })?;
    found.with_context(|| format!("not within {PATIENCE:?}: {what}\n{last}\n{}", cluster.logs()))
}

/// Two agents with half of the digits each, which take part in every run; the first one evaluates too.
fn start_agents(cluster: &mut Cluster) -> anyhow::Result<()> {
    let (shards, test) = cluster.split_digits(2)?;
    let names = ["one", "two"];
    // Before one of them has ended the run of `init`: the token would not say which of the others to join.
    names.iter().try_for_each(|name| cluster.join(name))?;
    for (index, name) in names.into_iter().enumerate() {
        let shard = shards.join(format!("agent-{index}"));
        let mut args: Vec<&OsStr> = vec!["--shard".as_ref(), shard.as_os_str()];
        args.extend(["--threads=1", "--runs=all"].map(OsStr::new));
        if index == 0 {
            args.extend([OsStr::new("--eval-shard"), test.as_os_str()]);
        }
        cluster.start_agent(Role::Agent, name, &args, &[])?;
    }
    Ok(())
}

/// The decisions of a search follow from what was measured, by the second implementation of the rules.
fn verify_decisions(cluster: &Cluster) -> anyhow::Result<()> {
    on_a_copy(&searches::dir_of(&cluster.coordinator_dir(), "lr"), |store| {
        let records = journal::read(store.journal())?;
        assert_eq!(verify::verify(&records), Ok(None), "{records:#?}");
        Ok(())
    })
}

fn measured(report: &SearchReport) -> usize {
    report.trials.iter().map(|trial| trial.measured.len()).sum()
}

#[test]
fn a_search_runs_to_its_winner_although_its_coordinator_is_killed_twice() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 4"))?;
    let file = cluster.path().join("lr.toml");
    std::fs::write(&file, SEARCH)?;
    cluster.start_coordinator()?;
    // Before there are agents: the run of `init` is soon over, and a process without runs and searches ends.
    let started = cluster.coordinate(&["search", "start"], &[&file.display().to_string()])?.code(0)?;
    assert!(started.stdout.contains("started search lr of 4 trials"), "{}", started.stdout);
    assert!(started.stderr.contains("full runs of 24 contributions"), "{}", started.stderr);
    cluster.coordinate(&["search", "start"], &[&file.display().to_string()])?.code(0)?;
    std::fs::write(&file, SEARCH.replace("seed = 5", "seed = 6"))?;
    let again = cluster.coordinate(&["search", "start"], &[&file.display().to_string()])?.code(4)?;
    assert!(again.stderr.contains("there is a search lr already"), "{}", again.stderr);

    start_agents(&mut cluster)?;
    for measurements in [1, 4] {
        wait_until(&cluster, "measurements", |report| measured(report) >= measurements)?;
        cluster.coordinator()?.kill()?;
        cluster.start_coordinator()?;
    }
    let report = wait_until(&cluster, "a winner", |report| report.state == SearchPhase::Finished)?;
    assert_eq!((report.trials.len(), report.rungs.as_slice()), (4, [6, 12, 24].as_slice()), "{}", report.text());
    let winner = report.leader.and_then(|leader| report.trials.iter().find(|trial| trial.trial == leader));
    let winner = winner.context("a winner")?;
    let last = winner.measured.last().context("it was measured")?;
    assert_eq!((last.rung, winner.state), (2, TrialPhase::Waiting), "{}", report.text());
    assert!(last.contributions >= 24 && last.metric > 0.15, "it learns: {}", report.text());
    assert!(report.trials.iter().all(|trial| trial.closed.is_none()), "{}", report.text());

    // Every run has ended, and so the process and its agents.
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let (model, config) = (cluster.path().join("best.safetensors"), cluster.path().join("best.toml"));
    let (out, toml) = (model.display().to_string(), config.display().to_string());
    cluster.coordinate(&["search", "export"], &["--out", &out, "--config", &toml])?.code(0)?;
    let (_, values) = model_file::read(&model, None)?;
    assert!(values.iter().all(|value| value.is_finite()) && values.len() == 64 * 32 + 32 + 32 * 10 + 10);
    let settings: toml::Table = std::fs::read_to_string(&config)?.parse()?;
    let lr = settings["train"]["optimizer"]["lr"].as_float();
    assert_eq!(lr, winner.overrides["train.optimizer.lr"].as_f64(), "{settings}");
    let listed = cluster.coordinate(&["search", "list"], &[])?.code(0)?;
    assert!(listed.stdout.contains("finished") && listed.stdout.contains(&winner.run), "{}", listed.stdout);

    verify_decisions(&cluster)?;
    // What was measured is what the export is worth: the run's own journal says the same figures.
    cluster.coordinate(&["checkpoint", "verify"], &["--run", &winner.run])?.code(0)?;
    Ok(())
}

/// Each rung copies one trial of four. The first kill comes when a copy was decided, the second one when it was measured.
#[test]
fn a_population_goes_on_from_copies_although_its_coordinator_is_killed_meanwhile() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 4"))?;
    let file = cluster.path().join("lr.toml");
    let population = SEARCH.replace("[search]\n", "[search]\nmethod = \"pbt\"\n").replace("eta = 2\n", "");
    std::fs::write(&file, population.replace("max = 24", "max = 18"))?;
    cluster.start_coordinator()?;
    cluster.coordinate(&["search", "start"], &[&file.display().to_string()])?.code(0)?;
    start_agents(&mut cluster)?;
    let copies = |report: &SearchReport| report.trials.iter().map(|trial| trial.copies.len()).sum::<usize>();
    for wanted in [(1, 4), (1, 7)] {
        wait_until(&cluster, "a copy", |report| (copies(report), measured(report)) >= wanted)?;
        cluster.coordinator()?.kill()?;
        cluster.start_coordinator()?;
    }
    let report = wait_until(&cluster, "a winner", |report| report.state == SearchPhase::Finished)?;
    assert_eq!((report.rungs.as_slice(), copies(&report)), ([6, 12, 18].as_slice(), 2), "{}", report.text());
    assert!(report.trials.iter().all(|trial| trial.measured.len() == 3), "{}", report.text());
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    verify_decisions(&cluster)?;
    for trial in &report.trials {
        cluster.coordinate(&["checkpoint", "verify"], &["--run", &trial.run])?.code(0)?;
        let state = on_a_copy(&runs::dir_of(&cluster.coordinator_dir(), &trial.run), |store| {
            Ok(recovery::recover(store)?.state)
        })?;
        assert_eq!(state.copied, trial.copies.last().map(|copy| copy.rung), "{}", cluster.logs());
        let lr = trial.overrides["train.optimizer.lr"].to_string();
        assert!(format!("{:?}", state.spec.train.optimizer).contains(&lr), "{lr}: {:?}", state.spec.train);
    }
    Ok(())
}
