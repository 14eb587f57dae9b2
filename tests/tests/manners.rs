//! A real agent that leaves its machine to the owner: it takes on no work, says why, and goes on afterwards.

use std::ffi::OsStr;
use std::path::Path;

use anabranch_agent::report::LiveReport;
use anabranch_common::wire::message::RunPhase;
use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// Waits until the agent says of itself what is wanted.
fn agent_says(cluster: &Cluster, what: &str, wanted: impl Fn(&LiveReport) -> bool) -> anyhow::Result<LiveReport> {
    let mut last = String::new();
    let found = poll(PATIENCE, || {
        let report = cluster.agent_status("one")?;
        last = report.to_text();
        Ok(report.live.filter(&wanted))
    })?;
    found.with_context(|| format!("waited for {what}; the agent says {last}\n{}", cluster.logs()))
}

#[test]
fn an_agent_on_hold_takes_no_lease_says_why_and_goes_on_when_the_reason_is_gone() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 1000000"))?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let loadavg = cluster.path().join("loadavg");
    let load = |load: &str| std::fs::write(&loadavg, format!("{load} 0.00 0.00 1/100 1\n"));
    load("9.00")?;
    let shard = example("data/digits-train.csv.gz");
    let mut args = ["--threads=1", "--min-round=100", "--max-load=1.5", "--loadavg"].map(OsStr::new).to_vec();
    args.extend([loadavg.as_os_str(), "--shard".as_ref(), shard.as_os_str()]);
    cluster.start_agent(Role::Agent, "one", &args, &[])?;

    let reason = "the machine's load is above 1.5";
    // From here on the agent has its store, which `status` would open if it had not.
    cluster.agent("one")?.wait_for_log("taking on no new work", PATIENCE)?;
    let held = agent_says(&cluster, "a connected agent on hold", |live| {
        live.connection == "connected" && live.phase == RunPhase::Running && live.waits_for.is_some()
    })?;
    assert_eq!((held.waits_for.as_deref(), held.work.as_str()), (Some(reason), "idle"));
    // An agent that may ask does it as soon as it hears that a run goes on.
    cluster.coordinate(&["pause"], &[])?.code(0)?;
    agent_says(&cluster, "the pause", |live| live.phase == RunPhase::Paused)?;
    cluster.coordinate(&["resume"], &[])?.code(0)?;
    agent_says(&cluster, "the run to go on", |live| live.phase == RunPhase::Running)?;
    let status = cluster.status()?;
    assert_eq!((status.leases_outstanding, status.updates_accepted), (0, 0), "{}", cluster.logs());
    let dir = cluster.agent_dir("one");
    let text = [OsStr::new("status"), OsStr::new("--dir"), dir.as_os_str()];
    let text = cluster.call(Role::Agent, &text)?.code(0)?.stdout;
    assert!(text.contains(&format!("takes on no new work: {reason}")), "{text}");

    load("0.10")?;
    cluster.wait_for_updates(3)?;
    // The reason comes back in the middle of the work: what is under way is finished and merged.
    load("9.00")?;
    agent_says(&cluster, "the hold", |live| live.waits_for.is_some() && live.work == "idle")?;
    let held = cluster.wait_until("nothing under way", PATIENCE, |status| status.leases_outstanding == 0)?;
    load("0.10")?;
    cluster.wait_for_updates(held.updates_accepted + 2)?;
    cluster.park_agents()
}
