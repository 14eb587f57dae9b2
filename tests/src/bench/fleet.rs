//! `anabranch-lab bench fleet`: checkpoints and recovery of a run with as many agents as there may be, each with as many
//! verdicts as are kept.

use std::path::Path;

use anabranch_common::ids::{AgentId, Digest, Epoch, Position, UpdateSeq};
use anabranch_common::journal::Chain;
use anabranch_common::limits;
use anabranch_common::update::Verdict;
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::agent::EpochLog;
use anabranch_coordinator::core::state::RunState;
use anabranch_coordinator::merger::ModelState;
use anabranch_coordinator::recovery::{self, checkpoint};
use anabranch_coordinator::store::{SledStore, Store};
use anyhow::{Context as _, ensure};

use super::store::{TestRun, noise};
use crate::clock::Stopwatch;
use crate::report::{Report, proc_kib};

/// Parameters of the model: it is not what is measured.
const PARAMS: usize = 1_000;

/// Measures, with this many agents, on the disk below `folder`.
///
/// # Errors
/// The store fails, or what is recovered differs.
pub fn run(folder: &Path, agents: usize, seed: u64) -> anyhow::Result<Report> {
    ensure!((1..=limits::AGENTS).contains(&agents), "agents must be 1 to {}, not {agents}", limits::AGENTS);
    let mut report = Report::new("anabranch-lab bench fleet", seed);
    report.counts.insert("agents".to_owned(), agents as u64);
    let dir = tempfile::tempdir_in(folder)?;
    let run = TestRun::new(PARAMS, seed)?;
    let mut state = run.state.clone();
    fill(&mut state, agents)?;
    let model = ModelState::new(run.manifest.clone(), run.spec.merge.clone(), noise(PARAMS, seed), state.version)?;
    let store = SledStore::open_dir(dir.path())?;
    recovery::put_model(&store, &run.manifest, model.model())?;
    store.journal().append(&[(Position(0), run.genesis.to_bytes()?)])?;
    store.journal().sync()?;

    let mut live_bytes = 0;
    let mut write = |report: &mut Report, store: &dyn Store, name: &str, state: &RunState| -> anyhow::Result<Digest> {
        let watch = Stopwatch::start();
        let taken = state.clone();
        report.metric(format!("{name}_taken_s"), watch.seconds());
        let watch = Stopwatch::start();
        let checkpoint = checkpoint::write(store, &taken, Chain::default(), &model, 0)?;
        report.metric(format!("{name}_s"), watch.seconds());
        let before = std::mem::replace(&mut live_bytes, store.usage()?.live_bytes);
        report.metric(format!("{name}_bytes"), live_bytes.saturating_sub(before) as f64);
        Ok(checkpoint.state)
    };
    write(&mut report, &store, "first", &state)?;
    change(&mut state, agents / 2)?;
    let second = write(&mut report, &store, "second", &state)?;
    let watch = Stopwatch::start();
    checkpoint::prune(&store, 1, Retention::SinceSnapshot)?;
    report.metric("prune_s", watch.seconds());
    report.metric("disk_bytes", store.usage()?.disk_bytes as f64);
    drop(store);
    drop(state);

    let watch = Stopwatch::start();
    let store = SledStore::open_dir(dir.path())?;
    report.metric("open_s", watch.seconds());
    let watch = Stopwatch::start();
    let recovered = recovery::recover(&store)?;
    report.metric("recover_s", watch.seconds());
    ensure!(
        recovered.from_checkpoint == Some(Position(0)) && recovered.warnings.is_empty(),
        "{:?}",
        recovered.warnings
    );
    report.metric("live_bytes", store.usage()?.live_bytes as f64);
    let again = write(&mut report, &store, "unchanged", &recovered.state)?;
    report.metric("peak_rss_bytes", (proc_kib("/proc/self/status", "VmHWM:").unwrap_or(0) << 10) as f64);
    report.aim("the recovered fold has the same bytes", again == second);
    report.aim("one changed agent costs less than 2 MB", report.metrics["second_bytes"] < 2e6);
    report.aim("taking the state holds the loop for less than 100 ms", report.metrics["second_taken_s"] < 0.1);
    Ok(report)
}

fn agent(number: usize) -> anyhow::Result<AgentId> {
    let digest = Digest::of(&number.to_le_bytes());
    Ok(AgentId(digest.0[..16].try_into()?))
}

/// Agents with full histories.
fn fill(state: &mut RunState, agents: usize) -> anyhow::Result<()> {
    let verdict = Verdict::Accepted { position: Position(7), version: Default::default(), weight: 0.5, staleness: 3 };
    let verdicts =
        (0..limits::VERDICTS_KEPT as u64).map(|seq| (UpdateSeq(seq), (Digest::of(&seq.to_le_bytes()), verdict)));
    let log = EpochLog { verdicts: verdicts.collect(), forgotten_below: UpdateSeq(0) };
    for number in 0..agents {
        let id = agent(number)?;
        let agent = state.agents.get_or_insert(id);
        agent.name = format!("agent-{}", id.short());
        let epochs = (1..).map(Epoch).take(limits::EPOCHS_KEPT);
        agent.epochs = epochs.map(|epoch| (epoch, log.clone())).collect();
        agent.accepted = 1_000;
        state.participation.observe(id, 100, 10, 10);
    }
    Ok(())
}

/// One more verdict for one agent.
fn change(state: &mut RunState, number: usize) -> anyhow::Result<()> {
    let agent = state.agents.get_mut(&agent(number)?).context("it was put there")?;
    agent.accepted += 1;
    Ok(())
}
