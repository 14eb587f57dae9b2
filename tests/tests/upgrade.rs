//! What the version before has written, under this one: directories that its daemons have left behind, as files.
//!
//! `tests/fixtures/schema-6.tar.gz` has the directory of a coordinator (`c`) that was killed after fourteen updates of the
//! digits, and that of its agent (`a`), which has trained a fifteenth that it could not send any more. Schema 6, development
//! profile, 2026-12-01. `schema-6-session.txt` is what that agent then said to that coordinator: it delivered the fifteenth,
//! trained a sixteenth, delivered that, and left.
//!
//! | test | guards |
//! |---|---|
//! | the stopped directories | are read as they were: version, chain, journal, model, outbox |
//! | the run | goes on, the update that had waited is merged once, and the journal of both versions holds |
//! | a session of that agent, byte for byte | is answered as then: the update that waited, a lease, another update |
//! | the way back | a copy from before the upgrade is served again, also to an agent that has gone on since |

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anabranch_agent::report::AgentReport;
use anabranch_common::journal::Lease;
use anabranch_common::status::{StatusReport, VerifyReport};
use anabranch_common::update::Verdict;
use anabranch_common::wire::message::CoordinatorMessage;
use anabranch_tests::chaos::NO_COMPILER;
use anabranch_tests::chaos::shim::{Setting, Shim};
use anabranch_tests::clock::{poll, unix_ms};
use anabranch_tests::hostile::member::Identity;
use anabranch_tests::process::{Answers, Cluster, PATIENCE, Recording, Role, example};
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// When the directories were written, in seconds since 1970: their certificates hold then.
const WRITTEN_S: i64 = 1_796_106_400;
/// The port of the coordinator that wrote them.
const PORT: u16 = 47_211;
/// The served model then.
const MODEL: &str = "54af8b3f8afac9a19667a5094c53bd860541d853953333b5412081743c5f242e";
/// The digest over its journal.
const CHAIN: &str = "4e273f4a42095d26a95d9707c36dce8118578729dc5a01b94afe190fdb1605cc";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn restored() -> anyhow::Result<Cluster> {
    Cluster::restore(Path::new(LAB), &fixture("schema-6.tar.gz"), PORT, "one")
}

/// Asserts that everything is as the version before has left it.
fn assert_as_written(cluster: &Cluster) -> anyhow::Result<()> {
    let status = cluster.status()?;
    assert!(!status.serving && status.version.0 == 7 && status.updates_accepted == 14, "{status:?}");
    assert_eq!(status.chain.to_string(), CHAIN);
    let report = cluster.verify()?;
    assert!(report.holds && report.version.0 == 7 && report.records == 24, "{report:?}");
    assert_eq!(report.model.to_string(), MODEL, "{report:?}");
    let agent = cluster.agent_status("one")?;
    assert!(!agent.running && agent.outbox.len() == 1, "{agent:?}");
    assert_eq!((agent.outbox[0].base_version.0, agent.outbox[0].payload_bytes), (7, 218), "{agent:?}");
    Ok(())
}

#[test]
fn directories_of_the_version_before_are_read_as_they_were() -> anyhow::Result<()> {
    assert_as_written(&restored()?)
}

/// Daemons of this build in directories of the version before, at the time when these were written.
struct Upgraded {
    cluster: Cluster,
    coordinator_env: Vec<(&'static str, String)>,
    agent_env: Vec<(&'static str, String)>,
}

impl Upgraded {
    fn new() -> anyhow::Result<Self> {
        let cluster = restored()?;
        let shim = Shim::new(cluster.path())?.context(NO_COMPILER)?;
        let now_s = i64::try_from(unix_ms() / 1000)?;
        let environment = |node: &str, dir: &Path| -> anyhow::Result<Vec<(&'static str, String)>> {
            let switches = shim.switches(node, dir)?;
            switches.set(Setting { offset_s: WRITTEN_S - now_s, ..Setting::default() })?;
            Ok(switches.environment())
        };
        let coordinator_env = environment("coordinator", &cluster.coordinator_dir())?;
        let agent_env = environment("one", &cluster.agent_dir("one"))?;
        Ok(Self { cluster, coordinator_env, agent_env })
    }

    fn start_coordinator(&mut self) -> anyhow::Result<()> {
        self.cluster.spawn_coordinator(&borrowed(&self.coordinator_env))?.wait_for_log(" serving", PATIENCE)
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        let (train, test) = (example("data/digits-train.csv.gz"), example("data/digits-test.csv.gz"));
        let args = ["--shard".as_ref(), train.as_os_str(), "--eval-shard".as_ref(), test.as_os_str()];
        let args = [&args[..], &["--threads=1", "--min-round=50"].map(OsStr::new)].concat();
        self.cluster.start_agent(Role::Agent, "one", &args, &borrowed(&self.agent_env))?;
        Ok(())
    }

    /// Waits for the end of the run, and asserts that its journal holds.
    fn end(&mut self) -> anyhow::Result<StatusReport> {
        let cluster = &mut self.cluster;
        assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
        assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 0, "{}", cluster.logs());
        let report: VerifyReport = cluster.verify()?;
        assert!(report.holds && report.version.0 == 30, "{report:?}");
        assert!(cluster.agent_status("one")?.outbox.is_empty());
        cluster.status()
    }
}

fn borrowed<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    env.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

#[test]
fn a_run_of_the_version_before_goes_on_and_what_had_waited_is_merged_once() -> anyhow::Result<()> {
    let mut upgraded = Upgraded::new()?;
    upgraded.start_coordinator()?;
    upgraded.start_agent()?;
    // Two updates make a version. None is merged twice or refused: version 30 takes sixty.
    let status = upgraded.end()?;
    assert_eq!((status.version.0, status.updates_accepted), (30, 60), "{status:?}");
    assert!(status.updates_refused.is_empty(), "{status:?}");
    Ok(())
}

#[test]
fn a_copy_from_before_the_upgrade_is_the_way_back_though_agents_are_further() -> anyhow::Result<()> {
    let mut upgraded = Upgraded::new()?;
    let copy = upgraded.cluster.path().join("copy");
    copy_directory(&upgraded.cluster.coordinator_dir(), &copy)?;
    upgraded.start_coordinator()?;
    upgraded.start_agent()?;
    let judged = poll(PATIENCE, || {
        // It answers once it has started.
        let Ok(AgentReport { live, .. }) = upgraded.cluster.agent_status("one") else { return Ok(None) };
        Ok(live.is_some_and(|live| live.verdicts.len() > 4).then_some(()))
    })?;
    judged.with_context(|| format!("no verdicts\n{}", upgraded.cluster.logs()))?;
    upgraded.cluster.agent("one")?.signal(Signal::SIGTERM)?;
    assert_eq!(upgraded.cluster.agent("one")?.wait(PATIENCE)?, 0, "{}", upgraded.cluster.logs());
    upgraded.cluster.park_coordinator()?;
    let further = upgraded.cluster.status()?;
    assert!(further.updates_accepted > 14, "{further:?}");

    fs::remove_dir_all(upgraded.cluster.coordinator_dir())?;
    copy_directory(&copy, &upgraded.cluster.coordinator_dir())?;
    let status = upgraded.cluster.status()?;
    assert_eq!((status.version.0, status.chain.to_string().as_str()), (7, CHAIN), "{status:?}");
    upgraded.start_coordinator()?;
    upgraded.start_agent()?;
    let status = upgraded.end()?;
    assert_eq!((status.version.0, status.updates_accepted), (30, 60), "{status:?}");
    Ok(())
}

/// The agent of the version before is the bytes that it said; everything else is of this build.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_the_version_before_is_answered_as_it_was_then() -> anyhow::Result<()> {
    let recording = Recording::read(&fixture("schema-6-session.txt"), 6)?;
    let mut upgraded = Upgraded::new()?;
    upgraded.start_coordinator()?;
    let identity = Identity::read(&upgraded.cluster.agent_dir("one"))?;
    let Answers { now, then } = recording.replay(upgraded.cluster.port(), &identity).await?;
    assert_eq!(now.len(), then.len());
    let mut verdicts = 0;
    for (now, then) in now.iter().zip(&then) {
        match (now, then) {
            (CoordinatorMessage::Welcome(now), CoordinatorMessage::Welcome(then)) => {
                assert_eq!((now.run, now.branch, now.epoch), (then.run, then.branch, then.epoch));
                assert_eq!(now.spec, then.spec);
            }
            // All but when it ends.
            (CoordinatorMessage::Lease { lease: now, .. }, CoordinatorMessage::Lease { lease: then, .. }) => {
                assert_eq!(Lease { expires_at_ms: then.expires_at_ms, ..now.clone() }, *then);
            }
            (CoordinatorMessage::Verdict { key: now, verdict }, CoordinatorMessage::Verdict { key: then, .. }) => {
                assert_eq!(now, then);
                assert!(matches!(verdict, Verdict::Accepted { .. }), "{verdict:?}");
                verdicts += 1;
            }
            _ => assert_eq!(now, then),
        }
    }
    assert_eq!(verdicts, 2);
    let status = upgraded.cluster.status()?;
    assert_eq!((status.version.0, status.updates_accepted), (8, 16), "{status:?}");
    upgraded.cluster.park_coordinator()?;
    let report = upgraded.cluster.verify()?;
    assert!(report.holds && report.version.0 == 8, "{report:?}");
    Ok(())
}

/// Copies a directory with all that is in it, and its permissions.
fn copy_directory(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}
