//! Real daemons under fire (docs/faults.md): every scenario file is valid, some are run, and the page shows what happened.
//!
//! All of them: `anabranch-lab chaos tests/scenarios/chaos/*.toml`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anabranch_tests::chaos::{self, Options, Promise, Scorecard};

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
/// The longest a scenario may be, in seconds of faults; soak is started with a length of its own.
const LONGEST_S: f64 = 30.0;
/// Scenarios that ship, at least.
const SHIPPED: usize = 25;

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/chaos");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("scenarios").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files
}

fn run(name: &str, seed: u64) -> anyhow::Result<Scorecard> {
    let file = files().into_iter().find(|file| chaos::name_of(file) == name).expect("a scenario that ships");
    let command = format!("anabranch-lab chaos tests/scenarios/chaos/{name}.toml --seed {seed}");
    let options = Options {
        lab: LAB.into(),
        scenario: chaos::read(&file)?,
        name: name.to_owned(),
        seed,
        command,
        verbose: false,
    };
    let card = chaos::run(&options)?;
    card.print();
    let broken: Vec<_> = card.promises.iter().filter(|(_, promise)| **promise != Promise::Kept).collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert!(card.report.pass, "{:?}", card.report.metrics);
    assert!(card.report.metrics["faults_injected"] > 0.0, "nothing was done to it");
    Ok(card)
}

/// The catalogue of docs/faults.md is covered, by files that say which fault and that are short enough to be run often.
#[test]
fn scenarios_are_valid_and_cover_the_catalogue() -> anyhow::Result<()> {
    let mut covered = BTreeSet::new();
    let files = files();
    for file in &files {
        let scenario = chaos::read(file)?;
        covered.extend(scenario.faults.iter().copied());
        let name = chaos::name_of(file);
        assert!(name == "soak" || scenario.seconds <= LONGEST_S, "{name} takes too long");
        assert!(!scenario.timeline(1).is_empty(), "nothing happens in {name}");
    }
    assert!(files.len() > SHIPPED, "{} scenarios", files.len());
    let wanted =
        [1, 2, 3, 4, 5, 11, 12, 13, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 37, 38, 39, 45];
    let missing: Vec<u32> = wanted.into_iter().filter(|fault| !covered.contains(fault)).collect();
    assert!(missing.is_empty(), "no scenario for {missing:?}");
    Ok(())
}

/// Whether there is a compiler for the bad disk; in CI there must be.
fn without_compiler() -> bool {
    let none = Command::new("cc").arg("--version").output().is_err();
    if none {
        assert!(std::env::var_os("CI").is_none(), "{}", chaos::NO_COMPILER);
        println!("not done: {}", chaos::NO_COMPILER);
    }
    none
}

#[test]
fn both_daemons_are_killed_and_stopped() -> anyhow::Result<()> {
    let card = run("churn", 3)?;
    assert_eq!((card.report.metrics["updates_lost"], card.report.metrics["updates_duplicated"]), (0.0, 0.0));
    Ok(())
}

#[test]
fn a_full_disk_stops_a_daemon_and_loses_nothing() -> anyhow::Result<()> {
    if !without_compiler() {
        run("disk-full", 3)?;
    }
    Ok(())
}

#[test]
fn clocks_jump() -> anyhow::Result<()> {
    if !without_compiler() {
        run("clock-coordinator", 3)?;
    }
    Ok(())
}

#[test]
fn one_way_cuts_and_new_addresses() -> anyhow::Result<()> {
    run("cut-up", 3)?;
    let card = run("rebind-1s", 3)?;
    assert!(card.report.metrics["addresses_changed"] > 10.0, "{:?}", card.report.metrics);
    Ok(())
}

/// The helper of a pod is killed in the middle of rounds. That the model has the bits of the run without faults is part of P2,
/// and that the pod goes on soon enough of P6.
#[test]
fn kills_of_a_pods_helper_leave_no_trace_in_the_model() -> anyhow::Result<()> {
    let card = run("pod-kill-helper", 3)?;
    let metrics = &card.report.metrics;
    assert_eq!((metrics["same_bits_after_kills"], metrics["faults_injected"]), (1.0, 3.0), "{metrics:?}");
    assert!(metrics["pod_recovery_s"] > 0.0, "{metrics:?}");
    Ok(())
}

/// The scorecard as a page, as a browser draws it.
#[test]
fn a_bad_network_and_its_page() -> anyhow::Result<()> {
    let card = run("bad-network", 3)?;
    assert!(card.report.metrics["datagrams_dropped"] > 50.0, "{:?}", card.report.metrics);
    let folder = tempfile::tempdir()?;
    let (json, html) = (folder.path().join("card.json"), folder.path().join("card.html"));
    card.write(Some(&json), Some(&html))?;
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    assert_eq!((&figures["pass"], &figures["promises"]["P1"]), (&true.into(), &"kept".into()), "{figures}");
    assert!(figures["command"].as_str().is_some_and(|command| command.contains("--seed 3")), "{figures}");
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|browser| Command::new(browser).arg("--version").output().is_ok())
    else {
        assert!(std::env::var_os("CI").is_none(), "there is no chromium: install it to test the page");
        println!("not done: there is no chromium to open the page with");
        return Ok(());
    };
    let page = format!("file://{}", html.display());
    let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
    let args =
        ["--headless", "--no-sandbox", "--disable-gpu", &profile, "--virtual-time-budget=2000", "--dump-dom", &page];
    let drawn = Command::new(browser).args(args).output()?;
    let drawn = String::from_utf8_lossy(&drawn.stdout);
    // Drawn by the script: lanes, the lines of versions and accuracy, and the list of events.
    for wanted in ["coordinator", "agent-2", "test accuracy", "<rect", "<path", "promises kept", "connected"] {
        assert!(drawn.contains(wanted), "the page does not show {wanted:?}");
    }
    let rows = drawn.matches("<li").count();
    assert!(rows > 50, "{rows} events are listed");
    Ok(())
}
