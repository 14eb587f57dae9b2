//! Two runs in one coordinator, each with an agent: a kill, and the end of one of them.

use std::path::Path;

use anabranch_common::status::{RunStanding, RunSummary, StatusReport, VerifyReport};
use anabranch_common::wire::message::RunPhase;
use anabranch_tests::clock::poll;
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, PATIENCE};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const RUNS: [&str; 2] = ["ledger", "wards"];

fn status(cluster: &Cluster, run: &str) -> anyhow::Result<StatusReport> {
    let ended = cluster.coordinate(&["status"], &["--run", run, "--json"])?.code(0)?;
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Waits until a run is served and has merged that many updates.
fn wait_for(cluster: &Cluster, run: &str, updates: u64) -> anyhow::Result<StatusReport> {
    let found = poll(PATIENCE, || {
        // It may be opened just now.
        Ok(status(cluster, run).ok().filter(|status| status.serving && status.updates_accepted >= updates))
    })?;
    found.with_context(|| format!("run {run} has no {updates} updates"))
}

#[test]
fn every_run_goes_on_after_a_kill_and_one_that_ends_leaves_the_other_alone() -> anyhow::Result<()> {
    let settings = Settings { checkpoint_every: 7, ..Settings::default() };
    let mut cluster = Cluster::new(Path::new(LAB), &settings.run_toml())?;
    cluster.start_coordinator()?;
    let config = cluster.path().join("wards.toml");
    std::fs::write(&config, settings.run_toml())?;
    cluster.coordinate(&["runs", "create"], &["wards", "--config", &config.display().to_string()])?.code(0)?;
    for (agent, run) in ["one", "two"].into_iter().zip(RUNS) {
        // An agent takes part in the run that its token is for.
        let token = cluster.token(&["--name", agent, "--runs", run])?;
        cluster.join_with(&token, agent)?.code(0)?;
        cluster.start_ledger_agent(agent, &[])?;
    }
    let before = RUNS.map(|run| wait_for(&cluster, run, 20));
    let [own, wards] = before;
    let (own, wards) = (own?, wards?);
    assert_ne!(own.run, wards.run);
    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()?;
    for (run, before) in RUNS.into_iter().zip([&own, &wards]) {
        let after = wait_for(&cluster, run, before.updates_accepted + 20)?;
        assert_eq!(after.run, before.run);
        assert!(after.version > before.version, "{after:?}");
        let verified = cluster.coordinate(&["checkpoint", "verify"], &["--run", run, "--json"])?.code(0)?;
        assert!(serde_json::from_str::<VerifyReport>(&verified.stdout)?.holds, "{}", verified.stdout);
    }

    cluster.coordinate(&["runs", "stop"], &["wards"])?.code(0)?;
    assert_eq!(cluster.agent("two")?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let ended = poll(PATIENCE, || Ok(Some(status(&cluster, "wards")?).filter(|status| !status.serving)))?;
    let ended = ended.context("the run does not end")?;
    assert_eq!((ended.state, ended.agents.len()), (RunPhase::Finished, 2));
    wait_for(&cluster, "ledger", status(&cluster, "ledger")?.updates_accepted + 20)?;
    let listed = cluster.coordinate(&["runs", "list"], &["--json"])?.code(0)?.stdout;
    let states: Vec<_> = serde_json::from_str::<Vec<RunSummary>>(&listed)?.into_iter().map(|run| run.state).collect();
    assert_eq!(states, [RunStanding::Running, RunStanding::Finished]);
    cluster.coordinate(&["runs", "delete"], &["wards", "--confirm", "wards"])?.code(0)?;
    assert!(!cluster.coordinator_dir().join("runs/wards").exists());
    assert_eq!(cluster.park_coordinator()?, 0, "{}", cluster.logs());
    Ok(())
}
