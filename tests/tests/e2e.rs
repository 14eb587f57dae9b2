//! The whole system as real processes on loopback.
//!
//! | test | guards |
//! |---|---|
//! | two agents on real data | the main job: shards, joining, training, evaluation, a target, export; exit codes of an end |
//! | two agents on real data, merged by `recall` | what is said of the result is what its export is worth |
//! | a killed coordinator, a killed agent | P1 exactly once, P2 the same bits, P6 progress resumes |
//! | an agent without its counter | fault 32: a new epoch, no collision |
//! | agents stopped in their tracks | fault 13: a lease runs out, the work is still welcome, others go on (P8) |
//! | pause, resume, stop, SIGTERM, revoke | what an operator is promised |

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anabranch_agent::shard::{self, ShardOptions};
use anabranch_agent::train::{NativeOptions, native_with};
use anabranch_common::journal::FinishReason;
use anabranch_common::wire::message::RunPhase;
use anabranch_coordinator::config::Config;
use anabranch_io::model_file;
use anabranch_tests::invariants::{exactly_once, on_a_copy, same_bits};
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, python_has};
use anyhow::Context as _;
use nix::sys::signal::Signal;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

fn ledger(settings: Settings, agents: &[&str]) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(Path::new(LAB), &settings.run_toml())?;
    cluster.start_coordinator()?;
    for name in agents {
        cluster.join(name)?;
        cluster.start_ledger_agent(name, &[])?;
    }
    Ok(cluster)
}

/// Stops everyone, then P1 and P2. Returns how many updates were merged.
fn audit(cluster: &mut Cluster, agents: &[&str]) -> anyhow::Result<u64> {
    cluster.park_agents()?;
    assert_eq!(cluster.park_coordinator()?, 0, "{}", cluster.logs());
    let logs: Vec<PathBuf> = agents.iter().map(|name| cluster.log_path(name)).collect();
    let acknowledged = exactly_once::acknowledged(logs.iter().map(PathBuf::as_path))?;
    assert!(!acknowledged.leases.is_empty(), "nothing was acknowledged: {}", cluster.logs());
    on_a_copy(&cluster.coordinator_dir(), |store| {
        let recovered = same_bits::check(store)?;
        exactly_once::check(recovered.as_ref(), &acknowledged)
    })
}

/// Opens an exported model with the reference implementation of its format.
fn check_with_python(path: &Path) -> anyhow::Result<()> {
    if !python_has("numpy, safetensors") {
        return Ok(());
    }
    let script = "
import sys, numpy
from safetensors.numpy import load_file
model = load_file(sys.argv[1])
shapes = sorted(value.shape for value in model.values())
assert shapes == [(10,), (10, 32), (32,), (32, 64)] or shapes == [(10,), (32,), (32, 10), (64, 32)], shapes
assert all(numpy.isfinite(value).all() and value.any() for value in model.values())
";
    let output = Command::new("python3").args(["-c", script]).arg(path).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn two_agents_on_real_shards_reach_the_target_and_everyone_ends_with_zero() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    let (shards, test) = begin_on_digits(&mut cluster)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let log = cluster.coordinator()?.log()?;
    assert!(
        log.contains("the run has finished") && log.contains("the last version was reached"),
        "it does not say why:\n{log}"
    );
    assert!(!log.contains("have not said goodbye"), "a goodbye was not heard:\n{log}");
    for name in ["one", "two"] {
        assert_eq!(cluster.agent(name)?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    }
    let status = cluster.status()?;
    assert_eq!((status.state, status.finished), (RunPhase::Finished, Some(FinishReason::Versions)));
    assert!(status.version.0 >= 40 && status.updates_accepted >= 80, "{status:?}");
    assert!(status.agents.iter().all(|agent| agent.updates_accepted > 0), "both took part: {:?}", status.agents);
    assert!(status.raw_f32_uplink_bytes > 3 * status.uplink_bytes, "updates are compressed: {status:?}");
    let best = status.evaluations.iter().map(|one| one.evaluation.accuracy).fold(0.0, f64::max);
    assert!(best > 0.5, "it learns: {:?}", status.evaluations);
    cluster.verify()?;
    let model = cluster.path().join("model.safetensors");
    cluster.coordinate(&["checkpoint", "export"], &["--out", &model.display().to_string()])?.code(0)?;
    check_with_python(&model)?;
    // What people read belongs to the journal: the directory is read here, no coordinator runs.
    let stopped = cluster.status()?;
    assert!(!stopped.serving, "{stopped:?}");
    let sent: Vec<u64> = stopped.agents.iter().map(|agent| agent.downlink_bytes).collect();
    assert!(sent.iter().all(|bytes| *bytes > 0) && sent.iter().sum::<u64>() == stopped.downlink_bytes, "{stopped:?}");
    assert!(stopped.raw_f32_downlink_bytes > stopped.downlink_bytes, "{stopped:?}");
    let held: Vec<u64> = stopped.agents.iter().map(|agent| agent.eval_examples).collect();
    assert_eq!(held, [360, 0], "the first one evaluates: {:?}", stopped.agents);
    let result = stopped.aggregates.last().context("the result was measured")?.aggregate;
    assert_eq!((Some(result.version), result.covered_examples), (stopped.result_version, 360), "{stopped:?}");
    // Started again it tells agents that look for it, and ends when all have heard.
    cluster.start_coordinator()?;
    start_both(&mut cluster, &shards, &test)?;
    for name in ["one", "two"] {
        assert_eq!(cluster.agent(name)?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    }
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    // With a higher target it goes on, without a rollback.
    cluster.edit("\nversions = 40", "\nversions = 60")?;
    cluster.start_coordinator()?;
    start_both(&mut cluster, &shards, &test)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let log = cluster.coordinator()?.log()?;
    assert!(log.contains("the run goes on"), "it does not say so:\n{log}");
    let status = cluster.status()?;
    assert_eq!((status.branch, status.finished), (stopped.branch, Some(FinishReason::Versions)));
    assert!(status.version.0 >= 60, "{status:?}");
    cluster.verify()?;
    Ok(())
}

/// Agents used to evaluate the model that they train from, and the export was the average of the models.
#[test]
fn what_is_said_of_the_result_is_what_its_export_is_worth_also_where_that_is_an_average() -> anyhow::Result<()> {
    let fedbuff = "\"fedbuff\"\nbuffer_size = 2\nserver_lr = 1.0\nstaleness = { fn = \"polynomial\", a = 0.5 }\n";
    let settings = DIGITS.replace(fedbuff, "\"recall\"\n");
    assert_ne!(settings, DIGITS);
    let mut cluster = Cluster::new(Path::new(LAB), &settings)?;
    let (_, test) = begin_on_digits(&mut cluster)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    for name in ["one", "two"] {
        assert_eq!(cluster.agent(name)?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    }
    let status = cluster.status()?;
    assert_eq!(status.finished, Some(FinishReason::Versions));
    let said = status.aggregates.last().context("the result was measured")?.aggregate;
    assert_eq!(Some(said.version), status.result_version, "{status:?}");
    let path = cluster.path().join("model.safetensors");
    let exported = cluster.coordinate(&["checkpoint", "export"], &["--out", &path.display().to_string()])?;
    let said_of_it = exported.code(0)?.stdout;
    assert!(said_of_it.contains("the average that is served"), "{said_of_it}");
    let model = Config::parse(Path::new("run.toml"), &settings)?.spec.model;
    let options = NativeOptions { threads: Some(1), ..NativeOptions::default() };
    let mut trainer = native_with(&model, options)?;
    let (_, values) = model_file::read(&path, Some(trainer.manifest()))?;
    let found = trainer.evaluate(&values, &*shard::open(&test, &ShardOptions::for_model(&model))?)?;
    assert_eq!(said.num_examples, found.num_examples);
    // What is said is a mean over evaluators, and rounds: accuracy by 1e-16 where the examples are 360.
    let differ = [said.accuracy - found.accuracy, said.loss - found.loss].map(f64::abs);
    assert!(differ.iter().all(|by| *by < 1e-9), "{said:?} {found:?}");
    cluster.verify()?;
    Ok(())
}

/// Starts a coordinator and two agents, each with half of the digits. Returns where the halves and the test examples are.
fn begin_on_digits(cluster: &mut Cluster) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (shards, test) = cluster.split_digits(2)?;
    cluster.start_coordinator()?;
    for name in ["one", "two"] {
        cluster.join(name)?;
    }
    start_both(cluster, &shards, &test)?;
    Ok((shards, test))
}

/// Two agents that have joined, each with half of the digits; the first one evaluates too.
fn start_both(cluster: &mut Cluster, shards: &Path, test: &Path) -> anyhow::Result<()> {
    for (index, name) in ["one", "two"].into_iter().enumerate() {
        let shard = shards.join(format!("agent-{index}"));
        let mut args: Vec<&OsStr> = vec!["--shard".as_ref(), shard.as_os_str(), "--threads=1".as_ref()];
        if index == 0 {
            args.extend([OsStr::new("--eval-shard"), test.as_os_str()]);
        }
        cluster.start_agent(Role::Agent, name, &args, &[])?;
    }
    Ok(())
}

#[test]
fn a_run_goes_on_after_its_coordinator_was_killed() -> anyhow::Result<()> {
    let agents = ["one", "two"];
    let mut cluster = ledger(Settings::default(), &agents)?;
    let before = cluster.wait_for_updates(60)?;
    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()?;
    let after = cluster.wait_for_updates(before.updates_accepted + 60)?;
    assert_eq!((after.run, after.branch), (before.run, before.branch));
    assert!(after.version > before.version && after.position > before.position);
    cluster.verify()?;
    assert!(audit(&mut cluster, &agents)? >= 120);
    let epochs: Vec<u32> = cluster.status()?.agents.iter().map(|agent| agent.epoch.0).collect();
    assert_eq!(epochs, [1, 1], "the agents never started anew");
    Ok(())
}

#[test]
fn an_agent_that_was_killed_or_lost_its_counter_comes_back_in_a_new_epoch() -> anyhow::Result<()> {
    let agents = ["one"];
    let mut cluster = ledger(Settings::default(), &agents)?;
    cluster.wait_for_updates(20)?;
    for epoch in [2, 3] {
        cluster.agent("one")?.kill()?;
        if epoch == 3 {
            std::fs::remove_dir_all(cluster.agent_dir("one").join("store")).context("its store")?;
        }
        let before = cluster.status()?.updates_accepted;
        cluster.start_ledger_agent("one", &[])?;
        let status = cluster.wait_for_updates(before + 20)?;
        assert_eq!(status.agents[0].epoch.0, epoch);
        assert!(!status.updates_refused.contains_key("key_conflict"), "{:?}", status.updates_refused);
    }
    assert!(audit(&mut cluster, &agents)? >= 60);
    Ok(())
}

#[test]
fn work_that_comes_after_its_lease_ran_out_is_merged_and_nobody_waits_for_it() -> anyhow::Result<()> {
    let agents = ["one", "two"];
    let mut cluster = ledger(Settings { lease_ttl_s: 0.5, ..Settings::default() }, &agents)?;
    cluster.wait_until("both agents at work", PATIENCE, |status| {
        status.agents.len() == 2 && status.agents.iter().all(|agent| agent.updates_accepted > 5)
    })?;
    cluster.agent("one")?.signal(Signal::SIGSTOP)?;
    let before = cluster.status()?;
    // The other one goes on, and after a while only its own lease is outstanding.
    cluster.wait_until("the other agent to go on", PATIENCE, |status| {
        status.updates_accepted >= before.updates_accepted + 60 && status.leases_outstanding <= 1
    })?;
    let stopped = cluster.status()?.agents.iter().find(|agent| agent.name == "one").map(|one| one.updates_accepted);
    cluster.agent("one")?.signal(Signal::SIGCONT)?;
    cluster.wait_until("the stopped agent to go on", PATIENCE, |status| {
        status.agents.iter().any(|one| one.name == "one" && Some(one.updates_accepted) > stopped.map(|n| n + 10))
    })?;
    audit(&mut cluster, &agents)?;
    Ok(())
}

#[test]
fn pause_resume_and_stop_do_what_they_say() -> anyhow::Result<()> {
    let mut cluster = ledger(Settings::default(), &["one"])?;
    cluster.wait_for_updates(5)?;
    cluster.coordinate(&["pause"], &[])?.code(0)?;
    let paused = cluster.wait_until("nothing outstanding", PATIENCE, |status| {
        status.state == RunPhase::Paused && status.leases_outstanding == 0
    })?;
    // A restart does not forget that the run is paused.
    assert_eq!(cluster.park_coordinator()?, 0, "{}", cluster.logs());
    cluster.start_coordinator()?;
    let still = cluster
        .wait_until("the agent to be back", PATIENCE, |status| status.agents.iter().any(|agent| agent.connected))?;
    assert_eq!((still.state, still.updates_accepted), (RunPhase::Paused, paused.updates_accepted));
    cluster.coordinate(&["resume"], &[])?.code(0)?;
    let resumed = cluster.wait_for_updates(paused.updates_accepted + 5)?;
    assert_eq!(resumed.state, RunPhase::Running);
    cluster.coordinate(&["stop"], &[])?.code(0)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    assert_eq!(cluster.status()?.finished, Some(FinishReason::Stopped));
    Ok(())
}

#[test]
fn sigterm_parks_both_daemons_and_the_run_goes_on_from_there() -> anyhow::Result<()> {
    let agents = ["one"];
    let mut cluster = ledger(Settings::default(), &agents)?;
    cluster.wait_for_updates(20)?;
    cluster.agent("one")?.signal(Signal::SIGTERM)?;
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    assert_eq!(cluster.park_coordinator()?, 0, "{}", cluster.logs());
    assert!(cluster.coordinator()?.log()?.contains("parked"), "{}", cluster.logs());
    let parked = cluster.status()?;
    assert_eq!((parked.state, parked.serving), (RunPhase::Running, false));
    cluster.start_coordinator()?;
    cluster.start_ledger_agent("one", &[])?;
    cluster.wait_for_updates(parked.updates_accepted + 20)?;
    assert!(audit(&mut cluster, &agents)? >= 40);
    Ok(())
}

#[test]
fn a_revoked_agent_ends_with_its_code_and_the_others_go_on() -> anyhow::Result<()> {
    let mut cluster = ledger(Settings::default(), &["one", "two"])?;
    cluster.wait_until("both agents at work", PATIENCE, |status| {
        status.agents.len() == 2 && status.agents.iter().all(|agent| agent.updates_accepted > 0)
    })?;
    cluster.coordinate(&["agents", "revoke"], &["one"])?.code(0)?;
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 5, "{}", cluster.logs());
    assert!(cluster.agent("one")?.log()?.contains("revoked"), "{}", cluster.logs());
    assert_eq!(cluster.start_ledger_agent("one", &[])?.wait(PATIENCE)?, 5, "it is told again");
    let status = cluster.status()?;
    assert!(status.agents.iter().any(|agent| agent.name == "one" && agent.revoked && !agent.connected));
    cluster.wait_for_updates(status.updates_accepted + 10)?;
    Ok(())
}
