//! An agent that takes part in further runs, as real processes on loopback.
//!
//! | test | guards |
//! |---|---|
//! | an agent that asks for runs | it trains as without that, goes on when its run has ended, and stops in order |
//! | one agent in two runs | both go on after a kill of the coordinator, and finish with journals that hold |
//! | `--runs` beside `--pod-listen` | is refused with what to do |

use std::ffi::OsStr;
use std::path::Path;

use anabranch_common::status::{StatusReport, VerifyReport};
use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example};
use anyhow::Context as _;
use nix::sys::signal::Signal;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

#[test]
fn an_agent_that_asks_for_runs_goes_on_when_its_run_has_ended() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    let (train, test) = (example("data/digits-train.csv.gz"), example("data/digits-test.csv.gz"));
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let args = ["--shard".as_ref(), train.as_os_str(), "--eval-shard".as_ref(), test.as_os_str()];
    let args = [&args[..], &["--threads=1".as_ref(), "--runs".as_ref(), "all".as_ref()]].concat();
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    cluster.agent("one")?.wait_for_log("a run is over here", PATIENCE)?;
    let report = cluster.agent_status("one")?;
    assert!(report.running && report.runs.is_empty() && report.outbox.is_empty(), "{report:?}");
    let live = report.live.expect("what was known of the joined run");
    assert!(live.verdicts.len() > 4 && live.busy_ms > 0, "{live:?}");

    let agent = cluster.agent("one")?;
    assert!(agent.exited()?.is_none(), "it waits for further runs: {}", agent.log_tail());
    agent.signal(Signal::SIGTERM)?;
    assert_eq!(agent.wait(PATIENCE)?, 0, "{}", agent.log_tail());
    Ok(())
}

/// Waits until a run that is served has merged that many updates.
fn wait_for_updates(cluster: &Cluster, run: &str, updates: u64) -> anyhow::Result<StatusReport> {
    let found = poll(PATIENCE, || {
        // It may be opened just now.
        let Ok(ended) = cluster.coordinate(&["status"], &["--run", run, "--json"])?.code(0) else { return Ok(None) };
        let status: StatusReport = serde_json::from_str(&ended.stdout)?;
        Ok(Some(status).filter(|status| status.serving && status.updates_accepted >= updates))
    })?;
    found.with_context(|| format!("run {run} has no {updates} updates\n{}", cluster.logs()))
}

#[test]
fn one_agent_trains_in_two_runs_and_both_go_on_after_a_kill_of_the_coordinator() -> anyhow::Result<()> {
    let runs = ["digits", "wards"];
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    let (train, test) = (example("data/digits-train.csv.gz"), example("data/digits-test.csv.gz"));
    cluster.start_coordinator()?;
    let config = cluster.path().join("wards.toml");
    std::fs::write(&config, DIGITS.replace("seed = 3", "seed = 4"))?;
    cluster.coordinate(&["runs", "create"], &["wards", "--config", &config.display().to_string()])?.code(0)?;
    cluster.join("one")?;
    // Rounds that are no quicker leave time to kill the coordinator before either run has ended.
    let args = ["--shard".as_ref(), train.as_os_str(), "--eval-shard".as_ref(), test.as_os_str()];
    let args = [&args[..], &["--threads=1", "--runs=all", "--min-round=100"].map(OsStr::new)].concat();
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    for run in runs {
        wait_for_updates(&cluster, run, 6)?;
    }
    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()?;
    // It ends when both runs have.
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    for run in runs {
        let verified = cluster.coordinate(&["checkpoint", "verify"], &["--run", run, "--json"])?.code(0)?;
        let report: VerifyReport = serde_json::from_str(&verified.stdout)?;
        assert!(report.holds && report.version.0 == 40, "{run}: {}", verified.stdout);
    }
    let agent = cluster.agent("one")?;
    assert!(agent.exited()?.is_none(), "it waits for further runs: {}", agent.log_tail());
    agent.signal(Signal::SIGTERM)?;
    assert_eq!(agent.wait(PATIENCE)?, 0, "{}", agent.log_tail());
    Ok(())
}

#[test]
fn an_agent_of_pods_takes_part_in_one_run() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let (dir, train) = (cluster.agent_dir("one"), example("data/digits-train.csv.gz"));
    let mut args: Vec<&OsStr> = vec!["run".as_ref(), "--dir".as_ref(), dir.as_os_str()];
    args.extend([OsStr::new("--shard"), train.as_os_str()]);
    args.extend(["--runs=all", "--pod-listen=127.0.0.1:0"].map(OsStr::new));
    cluster
        .call(Role::Agent, &args)?
        .code(2)?
        .says(&["takes part in the run that it has joined", "leave out --runs"])?;
    Ok(())
}
