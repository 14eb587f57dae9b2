//! Resumable transfer, both ways, through real processes and an update of many chunks.
//!
//! | test | guards |
//! |---|---|
//! | a coordinator that dies in mid-upload (`--features faults`) | fault 31: only the missing chunks are sent again, merged once |
//! | a line that is cut in mid-upload | the same without a restart, from another address |
//! | a line that is cut in mid-download | the agent asks only for the chunks of the model that it lacks |

use std::ffi::OsStr;
use std::path::Path;

use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, Line, PATIENCE, Role, Way, example, numbers};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
/// About 9.7 million parameters: an update of codec 0 has more than twelve chunks.
const LARGE: &str = r#"
[run]
name = "large"
seed = 3

[model]
kind = "mlp"
input = [64]
classes = 10
hidden = [3072, 3072]
input_scale = 0.0625

[train]
local_steps = 1
batch_size = 16
optimizer = { kind = "sgd", lr = 0.01 }

[upload]
codec = { kind = "f32" }
feedback_decay = 0.0

[merge]
strategy = "fedasync"
alpha = 0.5
staleness = { fn = "constant" }

[admit]
max_staleness = 1000
max_examples = 100000
max_norm_ratio = 0.0

[evaluate]
every_versions = 1000000
every_s = 1000000.0

[target]

[schedule]
tick_ms = 50

[checkpoint]
every_versions = 50
"#;

/// Milliseconds of a round that does not end within a test.
const ENDLESS_ROUND_MS: u64 = 3_600_000;

fn start_agent(cluster: &mut Cluster, name: &str, min_round_ms: u64) -> anyhow::Result<()> {
    let shard = example("data/digits-train.csv.gz");
    let min_round = format!("--min-round={min_round_ms}");
    let args: [&OsStr; 4] = ["--shard".as_ref(), shard.as_os_str(), "--threads=1".as_ref(), min_round.as_ref()];
    cluster.start_agent(Role::Agent, name, &args, &[])?;
    Ok(())
}

fn log_of(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(cluster.log_path(name))?).into_owned())
}

/// Each update that was acknowledged is in the model once: as many versions as updates, as many as the agents heard of.
fn merged_once(cluster: &mut Cluster, agents: &[&str]) -> anyhow::Result<()> {
    cluster.park_agents()?;
    let status = cluster.status()?;
    cluster.verify()?;
    assert_eq!(status.version.0, status.updates_accepted, "every update made a version");
    let mut unheard = status.updates_accepted;
    for agent in agents {
        let mut heard = numbers(&log_of(cluster, agent)?, "update accepted", "seq");
        let all = heard.len();
        heard.sort_unstable();
        heard.dedup();
        assert_eq!(heard.len(), all, "no update was accepted twice");
        unheard -= all as u64;
    }
    assert!(unheard <= agents.len() as u64, "{unheard} updates were merged that {agents:?} never heard of");
    Ok(())
}

/// What went on, as (chunks that were there, chunks that were missing).
fn resumed(cluster: &Cluster) -> anyhow::Result<(u64, u64)> {
    let log = log_of(cluster, "coordinator")?;
    let goes_on = "an upload goes on where it was cut";
    let kept = numbers(&log, goes_on, "kept").first().copied().context("no upload went on")?;
    let missing = numbers(&log, goes_on, "missing").first().copied().context("nothing was missing")?;
    Ok((kept, missing))
}

/// The agent sent exactly what the coordinator lacked.
fn only_the_rest_was_sent(cluster: &Cluster, agent: &str) -> anyhow::Result<()> {
    let (kept, missing) = resumed(cluster)?;
    let log = log_of(cluster, agent)?;
    let sent = numbers(&log, "sending chunks", "chunks");
    let all = numbers(&log, "sending chunks", "of");
    let parts: Vec<(u64, u64)> = sent.into_iter().zip(all).filter(|(sent, all)| sent < all).collect();
    assert_eq!(parts.first(), Some(&(missing, kept + missing)), "{parts:?}");
    assert!(kept >= 2 && kept + missing > 12, "{kept} were there, {missing} were missing");
    Ok(())
}

/// Starts a run and gives it a model. No update was sent, so that the next upload is an update from its first chunk on.
fn with_model(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.start_coordinator()?;
    cluster.join("first")?;
    start_agent(cluster, "first", ENDLESS_ROUND_MS)?;
    cluster.wait_until("a model", PATIENCE, |status| status.params.is_some())?;
    cluster.park_agents()?;
    assert_eq!(cluster.status()?.updates_accepted, 0);
    Ok(())
}

#[cfg(feature = "faults")]
#[test]
fn a_coordinator_that_dies_in_mid_upload_asks_only_for_the_missing_chunks() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), LARGE)?;
    with_model(&mut cluster)?;
    cluster.join("one")?;
    cluster.coordinator()?.kill()?;
    // The first upload that this process takes is an update, and no upload was cut before.
    cluster.spawn_coordinator(&[(anabranch_io::faults::KILL_ENV, "upload-chunk:12")])?;
    start_agent(&mut cluster, "one", 300)?;
    let dies = cluster.coordinator()?;
    poll(PATIENCE, || Ok(dies.was_killed()?.then_some(())))?.context("no upload came")?;
    assert_eq!(cluster.status()?.updates_accepted, 0, "the first update was cut");
    assert!(std::fs::read_dir(cluster.coordinator_dir().join("uploads"))?.count() >= 1);
    cluster.start_coordinator()?;
    let after = cluster.wait_for_updates(2)?;
    let uploads = after.uploads.context("a coordinator that serves says what comes in")?;
    assert!(uploads.chunks_kept >= 2, "{uploads:?}");
    only_the_rest_was_sent(&cluster, "one")?;
    merged_once(&mut cluster, &["one"])?;
    assert_eq!(cluster.status()?.uploads.context("serving")?.partial, 0, "what was decided is not kept");
    Ok(())
}

#[test]
fn a_line_that_is_cut_in_mid_upload_costs_only_the_missing_chunks() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), LARGE)?;
    let line = Line::to(cluster.port())?;
    with_model(&mut cluster)?;

    // What this one sends first is an update: the cut is in the middle of it.
    cluster.join("one")?;
    cluster.reroute("one", line.port())?;
    line.cut_after(Way::Up, 8 << 20);
    start_agent(&mut cluster, "one", 300)?;
    poll(PATIENCE, || Ok((line.cuts() == 1).then_some(())))?.context("no upload came")?;
    cluster.agent("one")?.wait_for_log("update accepted", PATIENCE)?;
    only_the_rest_was_sent(&cluster, "one")?;
    merged_once(&mut cluster, &["one"])
}

#[test]
fn a_line_that_is_cut_in_mid_download_costs_only_the_missing_chunks() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), LARGE)?;
    let line = Line::to(cluster.port())?;
    // Agents make version 0 themselves: the first one that is sent is a later one.
    cluster.start_coordinator()?;
    cluster.join("first")?;
    start_agent(&mut cluster, "first", 300)?;
    cluster.wait_for_updates(1)?;
    cluster.park_agents()?;

    cluster.join("one")?;
    cluster.reroute("one", line.port())?;
    line.cut_after(Way::Down, 8 << 20);
    // The agent gets one model: its round does not end, so that no version follows.
    start_agent(&mut cluster, "one", ENDLESS_ROUND_MS)?;
    poll(PATIENCE, || Ok((line.cuts() == 1).then_some(())))?.context("no model was fetched")?;
    let at_the_cut = line.carried(Way::Down);
    let held = || Ok(cluster.agent_status("one")?.live.and_then(|live| live.version).filter(|held| held.0 > 0));
    poll(PATIENCE, held)?.context("the model did not arrive")?;
    let log = log_of(&cluster, "one")?;
    let all = numbers(&log, "a model is announced", "chunks").first().copied().context("no model")?;
    let rest = numbers(&log, "asking for the rest of a model", "chunks").first().copied().context("no rest")?;
    assert!(rest + 2 <= all && rest >= 1, "{rest} of {all} chunks were asked for again");
    // Datagrams carry a few percent more than chunks, and the whole model would be above this bound.
    let after = line.carried(Way::Down) - at_the_cut;
    assert!(after < all << 20, "{after} bytes for {rest} of {all} chunks");
    Ok(())
}
