//! `anabranch-lab bench recovery`: a real coordinator, killed and started again.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use anabranch_coordinator::recovery;
use anyhow::Context as _;

use super::store::noise;
use crate::clock::Stopwatch;
use crate::invariants;
use crate::ledger::Settings;
use crate::process::Cluster;
use crate::report::{Report, proc_kib, quantile};

/// Values of the small and of the large model: 1 MB and 100 MB.
const MODELS: [(&str, u64); 2] = [("recovery_1mb_s", 262_144), ("recovery_s", 26_214_400)];
/// How often each coordinator is killed.
const KILLS: usize = 5;
/// Updates before the first kill.
const UPDATES: u64 = 6;
/// Updates of the run whose replay is measured.
const REPLAYED: u64 = 600;
/// How long a large model may take from agent to agent.
const SLOW: Duration = Duration::from_secs(300);

/// Measures.
///
/// # Errors
/// A process fails.
pub fn run(lab: &Path, seed: u64) -> anyhow::Result<Report> {
    let mut report = Report::new("anabranch-lab bench recovery", seed);
    for (name, coordinates) in MODELS {
        kill_and_serve(lab, &mut report, name, coordinates, seed)?;
    }
    replay(lab, &mut report)?;
    report.aim("serving again within 1 s with a model of 1 MB", report.metrics["recovery_1mb_s"] <= 1.0);
    report.aim("serving again within 5 s with a model of 100 MB", report.metrics["recovery_s"] <= 5.0);
    report.aim("replay at 20 times the rate of the run or more", report.metrics["replay_to_live_ratio"] >= 20.0);
    let model_bytes = MODELS[1].1 * 4;
    let memory = report.metrics["peak_rss_bytes"];
    let bound = 4.0 * model_bytes as f64 + 128e6;
    report.aim("resident memory with 100 MB of model at most 4 models + 128 MB", memory <= bound);
    Ok(report)
}

/// The median time from the start after a kill until the coordinator serves.
fn kill_and_serve(lab: &Path, report: &mut Report, name: &str, coordinates: u64, seed: u64) -> anyhow::Result<()> {
    let settings = Settings { coordinates, checkpoint_every: 4, ..Settings::default() };
    let mut cluster = Cluster::new(lab, &settings.run_toml())?;
    // Values as a trained model has them: the ledger's zeros would be compressed to nothing.
    let file = cluster.path().join("model.safetensors");
    write_model(&file, &noise(usize::try_from(coordinates)?, seed))?;
    cluster.coordinate(&["checkpoint", "import"], &[&file.display().to_string()])?.code(0)?;
    std::fs::remove_file(&file)?;
    cluster.start_coordinator()?;
    cluster.join("agent")?;
    cluster.start_ledger_agent("agent", &[])?;
    cluster.wait_until("the first updates", SLOW, |status| status.updates_accepted >= UPDATES)?;
    let mut seconds = Vec::new();
    for _ in 0..KILLS {
        cluster.coordinator()?.kill()?;
        let watch = Stopwatch::start();
        cluster.start_coordinator()?;
        seconds.push(watch.seconds());
        let before = cluster.status()?.updates_accepted;
        cluster.wait_until("updates again", SLOW, |status| status.updates_accepted > before)?;
    }
    seconds.sort_by(f64::total_cmp);
    report.metric(name, quantile(&seconds, 0.5));
    report.metric(name.replace("_s", "_worst_s"), quantile(&seconds, 1.0));
    let status = format!("/proc/{}/status", cluster.coordinator()?.pid());
    // The last one stands: that of the larger model.
    report.metric("peak_rss_bytes", (proc_kib(&status, "VmHWM:").unwrap_or(0) << 10) as f64);
    Ok(())
}

/// The ledger's tensor as a safetensors file: length of the header, header, data.
fn write_model(path: &Path, values: &[f32]) -> anyhow::Result<()> {
    let (shape, end) = (values.len(), 4 * values.len());
    let header = format!("{{\"ledger\":{{\"dtype\":\"F32\",\"shape\":[{shape}],\"data_offsets\":[0,{end}]}}}}");
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for value in values {
        file.write_all(&value.to_le_bytes())?;
    }
    Ok(file.flush()?)
}

/// How much faster a journal is replayed than it came in.
fn replay(lab: &Path, report: &mut Report) -> anyhow::Result<()> {
    let settings =
        Settings { coordinates: 1 << 14, checkpoint_every: 1_000_000, keep_journal: true, ..Settings::default() };
    let mut cluster = Cluster::new(lab, &settings.run_toml())?;
    cluster.start_coordinator()?;
    for name in ["one", "two", "three", "four"] {
        cluster.join(name)?;
        cluster.start_ledger_agent(name, &[])?;
    }
    let watch = Stopwatch::start();
    let start = cluster.wait_for_updates(20)?;
    let started_s = watch.seconds();
    let end = cluster.wait_until("the updates to be replayed", SLOW, |status| status.updates_accepted >= REPLAYED)?;
    let live_per_s = (end.updates_accepted - start.updates_accepted) as f64 / (watch.seconds() - started_s);
    cluster.coordinator()?.kill()?;
    let (records, seconds) = invariants::on_a_copy(&cluster.coordinator_dir(), |store| {
        let watch = Stopwatch::start();
        let recovered = recovery::recover(store)?;
        Ok((recovered.state.totals.accepted, watch.seconds()))
    })
    .context("the journal cannot be replayed")?;
    let replay_per_s = records as f64 / seconds;
    report.metric("live_updates_per_s", live_per_s);
    report.metric("replay_updates_per_s", replay_per_s);
    report.metric("replay_to_live_ratio", replay_per_s / live_per_s);
    Ok(())
}
