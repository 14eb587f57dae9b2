//! Pods as real processes on loopback.
//!
//! | test | guards |
//! |---|---|
//! | members, the owner and the coordinator are killed | P2 for pods: a round that is computed again has the same bits |
//! | two pods and a single agent | a hybrid: each pod is one contributor beside agents that train alone |
//! | a pod without helpers | the reason is in `status`; it is formed when a helper comes |
//! | a helper is stopped in its tracks | silence counts as death, and a spare takes its place |
//! | replicas of a site, one of which is killed | the others go on, and it takes part again when it is back |
//! | a gpt that is too large for every member | what one agent of their bound refuses they train together, within it |
//! | helpers upload what they have computed, and one is killed before | members send their ranges; the owner sends what is missing |

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anabranch_common::journal::FinishReason;
use anabranch_common::limits::POD_SECTION_BYTES;
use anabranch_common::status::StatusReport;
use anabranch_io::faults::KILL_ENV;
use anabranch_io::model_file;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role};
use anabranch_tests::report::proc_kib;
use anabranch_tests::text::sentences;
use anyhow::Context as _;
use nix::sys::signal::Signal;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// DIGITS with a deeper model, merged without time in it, in pods of two whose rounds take a moment.
fn settings(versions: u64, pod: &str) -> String {
    format!("{}\n[pod]\nkind = \"stages\"\nstages = 2\n{pod}", rounds(versions))
}

fn rounds(versions: u64) -> String {
    let fedbuff = "\"fedbuff\"\nbuffer_size = 2\nserver_lr = 1.0\nstaleness = { fn = \"polynomial\", a = 0.5 }\n";
    let fedasync = "\"fedasync\"\nalpha = 1.0\nstaleness = { fn = \"constant\" }\n";
    DIGITS
        .replace(fedbuff, fedasync)
        .replace("hidden = [32]", "hidden = [64, 64, 64]")
        .replace("local_steps = 5", "local_steps = 40")
        .replace("versions = 40", &format!("versions = {versions}"))
}

/// Starts an agent that joins pods: an owner where it has a shard.
fn start_member(cluster: &mut Cluster, name: &str, shard: Option<&Path>) -> anyhow::Result<()> {
    let mut args: Vec<&OsStr> = vec!["--pod-listen=127.0.0.1:0".as_ref(), "--threads=1".as_ref()];
    if let Some(shard) = shard {
        args.extend([OsStr::new("--shard"), shard.as_os_str()]);
    }
    cluster.start_agent(Role::Agent, name, &args, &[])?;
    Ok(())
}

/// The exported model of a run that has ended, in bits.
fn result(cluster: &mut Cluster) -> anyhow::Result<Vec<u32>> {
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let status = cluster.status()?;
    assert_eq!(status.finished, Some(FinishReason::Versions), "{status:?}");
    let path = cluster.path().join("model.safetensors");
    cluster.coordinate(&["checkpoint", "export"], &["--out", &path.display().to_string()])?.code(0)?;
    cluster.verify()?;
    let (_, values) = model_file::read(&path, None)?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

const VERSIONS: u64 = 12;

/// A pod of an owner and a helper; `disturb` does what it likes while they train.
fn trained(pod: &str, disturb: impl FnOnce(&mut Cluster, &Path) -> anyhow::Result<()>) -> anyhow::Result<Vec<u32>> {
    let mut cluster = Cluster::new(Path::new(LAB), &settings(VERSIONS, pod))?;
    let (shards, _) = cluster.split_digits(1)?;
    let shard = shards.join("agent-0");
    cluster.start_coordinator()?;
    for name in ["owner", "helper"] {
        cluster.join(name)?;
    }
    start_member(&mut cluster, "owner", Some(&shard))?;
    start_member(&mut cluster, "helper", None)?;
    disturb(&mut cluster, &shard)?;
    result(&mut cluster)
}

#[test]
fn kills_of_members_and_of_the_coordinator_leave_no_trace_in_the_result() -> anyhow::Result<()> {
    let undisturbed = trained("labels = \"travel\"", |_, _| Ok(()))?;
    let disturbed = trained("labels = \"travel\"", |cluster, shard| {
        cluster.wait_for_updates(2)?;
        cluster.agent("helper")?.kill()?;
        start_member(cluster, "helper", None)?;
        cluster.wait_for_updates(5)?;
        cluster.agent("owner")?.kill()?;
        start_member(cluster, "owner", Some(shard))?;
        cluster.wait_for_updates(8)?;
        cluster.coordinator()?.kill()?;
        cluster.start_coordinator()
    })?;
    assert!(undisturbed == disturbed, "kills have changed bits");
    // Where labels are changes no bit either: only what is computed where does.
    let stayed = trained("micro_batches = 2\nlabels = \"stay\"", |_, _| Ok(()))?;
    assert!(undisturbed == stayed, "another cut has changed bits");
    Ok(())
}

#[test]
fn pods_and_a_single_agent_train_one_model() -> anyhow::Result<()> {
    let settings = settings(60, "schedule = \"pipelined\"\n");
    let mut cluster = Cluster::new(Path::new(LAB), &settings)?;
    let (shards, test) = cluster.split_digits(3)?;
    cluster.start_coordinator()?;
    for name in ["owner-0", "owner-1", "helper-0", "helper-1", "alone"] {
        cluster.join(name)?;
    }
    for number in 0..2 {
        let shard = shards.join(format!("agent-{number}"));
        start_member(&mut cluster, &format!("owner-{number}"), Some(&shard))?;
        start_member(&mut cluster, &format!("helper-{number}"), None)?;
    }
    let shard = shards.join("agent-2");
    let args =
        ["--shard".as_ref(), shard.as_os_str(), "--eval-shard".as_ref(), test.as_os_str(), "--threads=1".as_ref()];
    cluster.start_agent(Role::Agent, "alone", &args, &[])?;
    result(&mut cluster)?;
    let status = cluster.status()?;
    for agent in &status.agents {
        let contributes = !agent.name.starts_with("helper");
        assert_eq!(agent.updates_accepted > 0, contributes, "{status:?}");
    }
    let reached = status.aggregates.last().context("it was measured")?.aggregate.accuracy;
    assert!(reached > 0.8, "{reached}");
    Ok(())
}

#[test]
fn a_pod_waits_for_a_helper_and_says_so_and_a_spare_takes_the_place_of_a_silent_one() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &settings(10_000, "deadline_s = 2.0\nlabels = \"travel\""))?;
    let (shards, _) = cluster.split_digits(1)?;
    cluster.start_coordinator()?;
    for name in ["owner", "helper", "spare"] {
        cluster.join(name)?;
    }
    start_member(&mut cluster, "owner", Some(&shards.join("agent-0")))?;
    let said = cluster
        .wait_until("a reason", PATIENCE, |status| status.pods.as_ref().is_some_and(|pods| pods.problem.is_some()))?;
    assert_eq!(said.updates_accepted, 0);
    start_member(&mut cluster, "helper", None)?;
    cluster.wait_for_updates(2)?;
    start_member(&mut cluster, "spare", None)?;
    cluster.agent("helper")?.signal(Signal::SIGSTOP)?;
    let before = cluster.status()?.updates_accepted;
    cluster.wait_for_updates(before + 3)?;
    cluster.agent("helper")?.signal(Signal::SIGCONT)?;
    cluster.coordinate(&["stop"], &[])?.code(0)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    cluster.verify()?;
    Ok(())
}

/// Rounds of pods of three whose updates are large. The first and the last layer are the owner's, so that each helper has at least one
/// of those between, which come to more than `limits::POD_SECTION_BYTES` each, however fast the members are.
fn large(versions: u64) -> String {
    settings(versions, "labels = \"stay\"\ndeadline_s = 20.0\n")
        .replace("stages = 2", "stages = 3")
        .replace("local_steps = 40", "local_steps = 2")
        .replace("hidden = [64, 64, 64]", "hidden = [768, 768, 768, 768, 768]")
        .replace("codec = { kind = \"top-k\", fraction = 0.05 }", "codec = { kind = \"f32\" }")
}

const HELPERS: [&str; 2] = ["helper-0", "helper-1"];

/// An owner and two helpers; the first one is killed when it is asked for what its part came to, if `dies`.
fn uploading(settings: &str, dies: bool) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(Path::new(LAB), settings)?;
    let (shards, _) = cluster.split_digits(1)?;
    cluster.start_coordinator()?;
    for name in ["owner"].into_iter().chain(HELPERS) {
        cluster.join(name)?;
    }
    start_member(&mut cluster, "owner", Some(&shards.join("agent-0")))?;
    let args = ["--pod-listen=127.0.0.1:0".as_ref(), "--threads=1".as_ref()];
    let death: &[(&str, &str)] = if dies { &[(KILL_ENV, "update-before-chunks")] } else { &[] };
    cluster.start_agent(Role::Agent, HELPERS[0], &args, death)?;
    start_member(&mut cluster, HELPERS[1], None)?;
    Ok(cluster)
}

#[test]
fn helpers_upload_what_they_have_computed() -> anyhow::Result<()> {
    let mut cluster = uploading(&large(10_000), false)?;
    let sent = |cluster: &Cluster, name| -> anyhow::Result<u64> {
        Ok(cluster.agent_status(name)?.live.context("it runs")?.uplink_bytes)
    };
    // Bytes of the owner's updates, and those that it has sent itself, while no pod computes.
    let paused_after = |cluster: &mut Cluster, updates| -> anyhow::Result<[u64; 2]> {
        cluster.wait_for_updates(updates)?;
        cluster.coordinate(&["pause"], &[])?.code(0)?;
        let is_still = |status: &StatusReport| status.pods.as_ref().is_some_and(|pods| pods.computing == 0);
        let status = cluster.wait_until("no pod computes", PATIENCE, is_still)?;
        let owner = status.agents.iter().find(|agent| agent.name == "owner").context("it takes part")?;
        Ok([owner.uplink_bytes, sent(cluster, "owner")?])
    };
    // Version 0 may be the owner's too.
    let before = paused_after(&mut cluster, 1)?;
    cluster.coordinate(&["resume"], &[])?.code(0)?;
    let after = paused_after(&mut cluster, 8)?;
    for helper in HELPERS {
        // Three updates, each with its part.
        assert!(sent(&cluster, helper)? >= 3 * POD_SECTION_BYTES, "{}", cluster.logs());
    }
    let [of_the_owner, owner] = [after[0] - before[0], after[1] - before[1]];
    let is_less = owner + 2 * POD_SECTION_BYTES <= of_the_owner;
    assert!(owner > 0 && is_less, "the owner has sent {owner} bytes of its updates' {of_the_owner}");
    cluster.coordinate(&["stop"], &[])?.code(0)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    cluster.verify()?;
    Ok(())
}

#[cfg(feature = "faults")]
#[test]
fn an_update_comes_whole_though_a_helper_dies_before_it_has_sent_its_part() -> anyhow::Result<()> {
    let mut dying = uploading(&large(1), true)?;
    let disturbed = result(&mut dying)?;
    assert!(dying.agent(HELPERS[0])?.was_killed()?, "it was asked for its part: {}", dying.logs());
    assert!(disturbed == result(&mut uploading(&large(1), false)?)?, "the owner has sent something else");
    Ok(())
}

/// Starts an agent of a site that has data.
fn start_replica(cluster: &mut Cluster, name: &str, shard: &Path) -> anyhow::Result<()> {
    let args = ["--pod-listen=127.0.0.1:0", "--threads=1", "--site=clinic", "--shard"].map(OsStr::new);
    let args: Vec<&OsStr> = args.into_iter().chain([shard.as_os_str()]).collect();
    cluster.start_agent(Role::Agent, name, &args, &[])?;
    Ok(())
}

#[test]
fn replicas_of_a_site_go_on_without_one_that_is_killed_and_with_it_when_it_is_back() -> anyhow::Result<()> {
    let pod = "\n[pod]\nkind = \"replicas\"\nmembers = 3\ndeadline_s = 2.0\n";
    let mut cluster = Cluster::new(Path::new(LAB), &format!("{}{pod}", rounds(10_000)))?;
    let (shards, test) = cluster.split_digits(3)?;
    let shard = |number: usize| shards.join(format!("agent-{number}"));
    cluster.start_coordinator()?;
    let names = ["replica-0", "replica-1", "replica-2"];
    for name in names.iter().chain(&["judge"]) {
        cluster.join(name)?;
    }
    for (number, name) in names.iter().enumerate() {
        start_replica(&mut cluster, name, &shard(number))?;
    }
    let args = ["--eval-shard".as_ref(), test.as_os_str(), "--threads=1".as_ref()];
    cluster.start_agent(Role::Agent, "judge", &args, &[])?;
    let at_work = |cluster: &mut Cluster, members: u64| {
        let what = format!("{members} members at work");
        let is_there = |status: &StatusReport| {
            status.pods.as_ref().is_some_and(|pods| pods.computing == 1 && pods.at_work == members)
        };
        cluster.wait_until(&what, PATIENCE, is_there)
    };
    at_work(&mut cluster, 3)?;
    cluster.agent("replica-2")?.kill()?;
    at_work(&mut cluster, 2)?;
    let before = cluster.status()?.updates_accepted;
    cluster.wait_for_updates(before + 2)?;
    start_replica(&mut cluster, "replica-2", &shard(2))?;
    at_work(&mut cluster, 3)?;
    // Each of them owns rounds in its turn, and the model learns from all.
    cluster.wait_until("updates of every replica and an accuracy of 0.8", PATIENCE, |status| {
        let replicas = status.agents.iter().filter(|agent| agent.name != "judge");
        let reached = status.aggregates.last().map_or(0.0, |last| last.aggregate.accuracy);
        replicas.map(|agent| agent.updates_accepted).min() > Some(0) && reached > 0.8
    })?;
    cluster.coordinate(&["stop"], &[])?.code(0)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    cluster.verify()?;
    Ok(())
}

/// Instead of the digits' `[model]`, `[train]` and codec: 7.5 million parameters, whose training takes 290 MiB.
const LARGE: &str = r#"
[model]
kind = "gpt"
context = 32
layers = 6
heads = 4
width = 320

[train]
local_steps = 2
batch_size = 4
optimizer = { kind = "adamw", lr = 0.001 }

[upload]
codec = { kind = "top-k", fraction = 0.01, bits = 4 }
"#;
/// What each member may use.
const MOST_MIB: u64 = 220;

#[test]
fn a_pod_trains_a_gpt_that_is_refused_to_one_agent_and_every_member_keeps_to_its_bound() -> anyhow::Result<()> {
    let (head, rest) = DIGITS.split_once("[model]").context("a section")?;
    let rest = rest.split_once("feedback_decay").context("a key")?.1;
    let versions = rest.replace("versions = 40", "versions = 5").replace("buffer_size = 2", "buffer_size = 1");
    let alone = format!("{head}{LARGE}feedback_decay{versions}");
    let pod = "\n[pod]\nkind = \"stages\"\nstages = 4\nlabels = \"travel\"\nmicro_batches = 4\ndeadline_s = 60.0\n";
    let most = format!("--max-memory={MOST_MIB}M");
    let text = |cluster: &Cluster| -> anyhow::Result<PathBuf> {
        let folder = cluster.path().join("text");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("book.txt"), sentences(200, 1))?;
        Ok(folder)
    };

    let mut cluster = Cluster::new(Path::new(LAB), &alone)?;
    let shard = text(&cluster)?;
    cluster.start_coordinator()?;
    cluster.join("alone")?;
    let args = [most.as_ref(), "--threads=1".as_ref(), "--shard".as_ref(), shard.as_os_str()];
    cluster.start_agent(Role::Agent, "alone", &args, &[])?.wait_for_log("training takes about", PATIENCE)?;
    drop(cluster);

    let mut cluster = Cluster::new(Path::new(LAB), &format!("{alone}{pod}"))?;
    let shard = text(&cluster)?;
    cluster.start_coordinator()?;
    let members = ["owner", "helper-0", "helper-1", "helper-2"];
    for name in members {
        cluster.join(name)?;
        let mut args: Vec<&OsStr> = vec!["--pod-listen=127.0.0.1:0".as_ref(), "--threads=1".as_ref(), most.as_ref()];
        if name == "owner" {
            args.extend([OsStr::new("--shard"), shard.as_os_str()]);
        }
        cluster.start_agent(Role::Agent, name, &args, &[])?;
    }
    // Whole rounds, and what follows them.
    cluster.wait_for_updates(3)?;
    for name in members {
        let peak = peak_mib(cluster.agent(name)?.pid())?;
        // docs/hardware.md, "Memory".
        assert!(peak <= MOST_MIB * 5 / 4, "{name}: {peak} MiB at the peak, {MOST_MIB} MiB were allowed");
        eprintln!("{name}: {peak} MiB at the peak, {MOST_MIB} MiB were allowed");
    }
    result(&mut cluster)?;
    Ok(())
}

/// The most memory that a process has had resident, in MiB.
fn peak_mib(pid: u32) -> anyhow::Result<u64> {
    let peak = proc_kib(&format!("/proc/{pid}/status"), "VmHWM:").context("the kernel says it")?;
    Ok(peak >> 10)
}
