//! Real agents under leases with plans of their own: sizes, and learning rates.

use std::ffi::OsStr;
use std::path::Path;

use anabranch_common::status::StatusReport;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example};

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// The steps of an agent's newest lease, and how many of its updates were merged.
fn lease_of(status: &StatusReport, name: &str) -> Option<(u32, u64)> {
    let agent = status.agents.iter().find(|agent| agent.name == name)?;
    Some((agent.lease_steps?, agent.updates_accepted))
}

/// A thousand times as slow: its leases have few steps, those of the other one the most there may be, and a coordinator that
/// was killed knows that still.
#[test]
fn an_agent_gets_leases_of_as_many_steps_as_its_speed_allows() -> anyhow::Result<()> {
    let sized = "local_steps = 5\ntarget_round_s = 0.5\nmax_local_steps = 60\n";
    let settings = DIGITS.replace("local_steps = 5\n", sized).replace("versions = 40", "versions = 1000000");
    let mut cluster = Cluster::new(Path::new(LAB), &settings)?;
    cluster.start_coordinator()?;
    let shard = example("data/digits-train.csv.gz");
    for (name, slowness) in [("fast", "--simulate-slow=1"), ("slow", "--simulate-slow=1000")] {
        cluster.join(name)?;
        let args = ["--threads=1", slowness, "--shard"].map(OsStr::new);
        let args: Vec<&OsStr> = args.into_iter().chain([shard.as_os_str()]).collect();
        cluster.start_agent(Role::Agent, name, &args, &[])?;
    }
    let apart = |status: &StatusReport, updates: u64| {
        let (fast, slow) = (lease_of(status, "fast"), lease_of(status, "slow"));
        fast.is_some_and(|(steps, _)| steps == 60) && slow.is_some_and(|(steps, of)| steps < 30 && of >= updates)
    };
    let status = cluster.wait_until("sizes that lie apart", PATIENCE, |status| apart(status, 2))?;
    let before = lease_of(&status, "slow").map_or(0, |(_, updates)| updates);
    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()?;
    cluster.wait_until("the same sizes after a kill", PATIENCE, |status| apart(status, before + 2))?;
    cluster.park_agents()
}

/// Where a schedule has come to 0 nothing moves the model any more, in a new process of the
/// coordinator either; the number of the rounds goes on.
#[test]
fn a_schedule_that_has_ended_at_nothing_leaves_the_model_as_it_is() -> anyhow::Result<()> {
    let schedule = "local_steps = 5\nschedule = { kind = \"cosine\", length = 6, final_fraction = 0.0 }\n";
    let settings = DIGITS
        .replace("local_steps = 5\n", schedule)
        .replace("codec = { kind = \"top-k\", fraction = 0.05 }", "codec = { kind = \"f32\" }")
        .replace("versions = 40", "versions = 1000000")
        .replace("every_versions = 10\n", "every_versions = 10\nretention = \"all\"\n");
    let mut cluster = Cluster::new(Path::new(LAB), &settings)?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let shard = example("data/digits-train.csv.gz");
    let args: Vec<&OsStr> = ["--threads=1", "--shard"].map(OsStr::new).into_iter().chain([shard.as_os_str()]).collect();
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    cluster.wait_for_updates(20)?;
    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()?;
    let updates = cluster.status()?.updates_accepted;
    cluster.wait_for_updates(updates + 10)?;
    cluster.park_agents()?;
    cluster.park_coordinator()?;
    let digest = |version: u64| -> anyhow::Result<String> {
        let out = cluster.path().join(format!("version-{version}"));
        let rest = ["--version", &version.to_string(), "--out", &out.display().to_string()];
        let told = cluster.coordinate(&["checkpoint", "export"], &rest)?.code(0)?.stdout;
        Ok(told.rsplit("digest ").next().unwrap_or_default().trim().to_owned())
    };
    // Up to three updates from before the end are merged after it: what was under way, and one
    // lease taken ahead.
    let (earlier, settled, newest) = (digest(4)?, digest(9)?, digest(15)?);
    assert_ne!(earlier, settled, "the model was trained until then");
    assert_eq!(settled, newest, "a rate of 0 changes nothing");
    Ok(())
}
