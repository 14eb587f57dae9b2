//! Guards P3 and P7 (docs/faults.md) below sled: what was acknowledged survives a power loss at every sync and at moments
//! drawn at random, with unsynced writes lost, torn and reordered; after a failed sync nothing is acknowledged. The longer
//! command is `anabranch-lab power --states 5000`.

use std::path::Path;

use anabranch_tests::invariants::{self, exactly_once, same_bits};
use anabranch_tests::ledger::Settings;
use anabranch_tests::power::{self, Recorder};
use anabranch_tests::process::{Cluster, PATIENCE};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// Whether there is a recorder; in CI there must be.
fn without_compiler<T>(found: Option<T>) -> Option<T> {
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{}", power::NO_COMPILER);
        println!("not done: {}", power::NO_COMPILER);
    }
    found
}

#[test]
fn what_was_acknowledged_survives_power_loss() -> anyhow::Result<()> {
    let options = power::Options { lab: Path::new(LAB).into(), states: 200, rounds: 12, seed: 5, lying: false };
    let Some(report) = without_compiler(power::run(&options)?) else { return Ok(()) };
    report.finish(None)?;
    assert!(report.metrics["store_states_count"] > 200.0, "{report:?}");
    assert!(report.metrics["ledger_states_count"] > 150.0, "{report:?}");
    assert!(report.pass, "{report:?}");
    Ok(())
}

/// The audit itself bites: a disk that lies about its syncs loses what was acknowledged, and that is found.
#[test]
fn a_disk_that_lies_is_found_out() -> anyhow::Result<()> {
    let options = power::Options { lab: Path::new(LAB).into(), states: 20, rounds: 6, seed: 6, lying: true };
    let Some(report) = without_compiler(power::run(&options)?) else { return Ok(()) };
    assert!(!report.pass && report.metrics["store_broken_count"] > 5.0, "{report:?}");
    assert!(report.metrics["ledger_broken_count"] > 5.0, "{report:?}");
    Ok(())
}

/// Fault 19: one sync of a running coordinator fails, once. It stops with the code of storage errors, and everything that
/// agents were told is there when it starts again.
#[test]
fn a_failed_sync_stops_the_coordinator_and_nothing_is_lost() -> anyhow::Result<()> {
    let Some(recorder) = without_compiler(Recorder::new()?) else { return Ok(()) };
    let mut cluster = Cluster::new(Path::new(LAB), &Settings { keep_journal: true, ..Settings::default() }.run_toml())?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    cluster.start_ledger_agent("one", &[])?;
    let mut before = cluster.wait_for_updates(5)?.updates_accepted;
    for fail in [40, 71, 112] {
        assert_eq!(cluster.park_coordinator()?, 0);
        let environment = recorder.environment(&cluster.coordinator_dir().join("store"), Some(fail));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        cluster.spawn_coordinator(&environment)?;
        let ended = cluster.coordinator()?.wait(PATIENCE).with_context(|| cluster.logs())?;
        assert_eq!(ended, 6, "{}", cluster.logs());
        let log = cluster.coordinator()?.log()?;
        assert!(log.contains("Input/output error") && log.contains("help: "), "{log}");
        let log = cluster.log_path("one");
        let acknowledged = exactly_once::acknowledged([log.as_path()])?;
        invariants::on_a_copy(&cluster.coordinator_dir(), |store| {
            exactly_once::check(same_bits::check(store)?.as_ref(), &acknowledged)
        })?;
        cluster.start_coordinator()?;
        before = cluster.wait_for_updates(before + 3)?.updates_accepted;
    }
    cluster.park_agents()?;
    assert_eq!(cluster.park_coordinator()?, 0);
    Ok(())
}
