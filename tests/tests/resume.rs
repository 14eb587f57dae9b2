//! A long local round survives SIGKILL: the agent goes on where it was, in its own process and with `--isolate`, and the
//! update counts once.

use std::ffi::OsStr;
use std::path::Path;

use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example, numbers};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// `DIGITS` with one round that takes some seconds (well over the second after which it is kept), after which the run ends.
fn one_long_round() -> String {
    let long = DIGITS.replace("hidden = [32]", "hidden = [512]").replace("versions = 40", "versions = 1");
    let long = long.replace("buffer_size = 2", "buffer_size = 1").replace("lr = 0.1", "lr = 0.01");
    long.replace("batch_size = 16", "batch_size = 128").replace("local_steps = 5", "local_steps = 6000")
}

fn resumes(more: &[&str]) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &one_long_round())?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let data = example("data/digits-train.csv.gz");
    let mut args: Vec<&OsStr> = ["--threads=1", "--checkpoint-s=1", "--shard"].map(OsStr::new).to_vec();
    args.push(data.as_os_str());
    args.extend(more.iter().map(OsStr::new));
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    let round = cluster.agent_dir("one").join("round");
    poll(PATIENCE, || Ok(round.exists().then_some(())))?.context("no round was kept")?;
    cluster.agent("one")?.kill()?;
    assert_eq!(cluster.status()?.updates_accepted, 0, "the round was over before it was cut off");
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    cluster.agent("one")?.wait_for_log("a round was cut off; it will be resumed", PATIENCE)?;
    cluster.agent("one")?.wait_for_log("resuming a round", PATIENCE)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let log = cluster.agent("one")?.log()?;
    let from = *numbers(&log, "resuming a round", "step").first().context("a step")?;
    assert!((1..6000).contains(&from), "{log}");
    // Under the lease that was granted before the kill, and no other.
    let cut_off = numbers(&log, "a round was cut off", "lease");
    assert_eq!(numbers(&log, "offering an update", "lease").first(), cut_off.first(), "{log}");
    assert!(!round.exists(), "a round that is over is not kept");
    assert_eq!(cluster.status()?.updates_accepted, 1);
    assert!(cluster.verify()?.holds);
    Ok(())
}

#[test]
fn a_killed_agent_goes_on_with_its_round_and_the_update_counts_once() -> anyhow::Result<()> {
    resumes(&[])
}

#[test]
fn so_does_one_whose_trainer_is_a_process_of_its_own() -> anyhow::Result<()> {
    resumes(&["--isolate"])
}
