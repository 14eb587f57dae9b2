//! Work that fits the machine, with the real daemons.
//!
//! | test | guards |
//! |---|---|
//! | a batch that is too large | a trainer's process under `--max-memory` trains it in parts, stays within its bound, and the run ends |
//! | a model that is too large | the lease goes back with the figures, and the agent stays |

use std::ffi::OsStr;
use std::path::Path;

use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example, numbers};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const MAX_MIB: u64 = 64;

/// `DIGITS` with a layer of 1024 and batches with which a process takes about 90 MiB.
fn large_batches() -> String {
    let wide = DIGITS.replace("hidden = [32]", "hidden = [1024]").replace("versions = 40", "versions = 2");
    wide.replace("batch_size = 16", "batch_size = 8192").replace("local_steps = 5", "local_steps = 2")
}

#[test]
fn a_batch_that_is_too_large_for_the_bound_is_trained_in_parts_and_the_run_ends() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &large_batches())?;
    cluster.start_coordinator()?;
    cluster.join("small")?;
    let (data, bound) = (example("data/digits-train.csv.gz"), format!("--max-memory={MAX_MIB}M"));
    let args: [&OsStr; 5] =
        ["--isolate".as_ref(), "--threads=2".as_ref(), bound.as_ref(), "--shard".as_ref(), data.as_os_str()];
    cluster.start_agent(Role::Agent, "small", &args, &[])?;
    // The first round's peak can be read while the second one is trained.
    cluster.wait_for_updates(1)?;
    let report = cluster.agent_status("small")?;
    let live = report.live.clone().context("it runs")?;
    assert_eq!(live.batch_size, Some(8192));
    assert!(live.micro_batch.is_some_and(|micro| micro < 8192), "{live:?}");
    assert!(report.to_text().contains("of 8192 examples at once"), "{}", report.to_text());
    let log = cluster.agent("small")?.log()?;
    let trainer = *numbers(&log, "trainer started", "pid").last().context("a trainer was started")?;
    if let Ok(status) = std::fs::read_to_string(format!("/proc/{trainer}/status")) {
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).context("a peak")?;
        let peak: u64 = peak.split_whitespace().nth(1).context("a figure")?.parse()?;
        assert!(peak >> 10 <= MAX_MIB * 5 / 4, "{peak} KiB at the peak, {MAX_MIB} MiB were allowed");
    }
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    assert_eq!(cluster.agent("small")?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let log = cluster.agent("small")?.log()?;
    let micro = numbers(&log, "memory for training", "micro_batch");
    assert!(!micro.is_empty() && micro.iter().all(|micro| (1..8192).contains(micro)), "{micro:?}\n{log}");
    assert!(cluster.verify()?.holds);
    Ok(())
}

#[test]
fn a_model_that_does_not_fit_gives_the_lease_back_with_the_figures_and_the_agent_stays() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    cluster.join("small")?;
    let data = example("data/digits-train.csv.gz");
    let args: [&OsStr; 3] = ["--max-memory=4M".as_ref(), "--shard".as_ref(), data.as_os_str()];
    let agent = cluster.start_agent(Role::Agent, "small", &args, &[])?;
    agent.wait_for_log("training takes about", PATIENCE)?;
    let log = agent.log()?;
    assert!(log.contains("with one example at a time") && log.contains("4.0 MiB may be used"), "{log}");
    cluster.wait_until("the lease to be given back", PATIENCE, |status| status.leases_outstanding == 0)?;
    assert!(cluster.agent("small")?.exited()?.is_none(), "{log}");
    assert_eq!(cluster.status()?.updates_accepted, 0);
    cluster.park_agents()
}
