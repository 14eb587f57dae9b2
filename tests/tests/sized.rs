//! Real agents of very different speeds under leases of different sizes.

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
