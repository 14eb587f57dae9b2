//! `anabranch-lab bench ledger`: an agent's ledger on a real disk, with its blobs in files and in sled.
//!
//! Two ledgers take the same updates in turn, so that whatever else the machine does slows both down: one keeps long
//! blobs in files, as agents do, the other keeps everything in sled, as agents did before.

use std::path::{Path, PathBuf};

use anabranch_agent::encode;
use anabranch_agent::session::command::{Bank, Settlement};
use anabranch_agent::session::event::Outcome;
use anabranch_agent::store::{FILE_BYTES, Ledger};
use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::{self, CodecSpec};
use anabranch_common::ids::{AgentId, BranchId, Epoch, LeaseId, RunId, UpdateSeq};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::spec::TensorPolicy;
use anabranch_common::update::UpdateKey;
use anabranch_io::durable::{DbOptions, DurableDb};
use clap::Args;

use super::store::noise;
use crate::clock::Stopwatch;
use crate::report::{Report, quantile};

/// The run of the updates made here.
pub(crate) const RUN: RunId = RunId([1; 16]);
/// Who makes them.
pub(crate) const AGENT: AgentId = AgentId([2; 16]);
const BRANCH: BranchId = BranchId([3; 16]);
/// Deltas that are made beforehand, and banked again and again.
const DELTAS: usize = 2;

/// What is measured.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Parameters of the model
    #[arg(long, default_value_t = 10_000_000)]
    params: usize,
    /// Updates that are banked, each settled when the next one is
    #[arg(long, default_value_t = 20)]
    updates: u64,
    /// Share of the entries that an update sends
    #[arg(long, default_value_t = 0.01)]
    fraction: f32,
    /// Bytes from which on a blob is a file
    #[arg(long, default_value_t = FILE_BYTES)]
    files_from: usize,
    /// A directory on the disk to measure; the system's temporary one when absent
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Measures.
///
/// # Errors
/// The store fails.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let Options { params, updates, fraction, files_from, .. } = *options;
    let folder = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let command = format!(
        "anabranch-lab bench ledger --params {params} --updates {updates} --fraction {fraction} --files-from {files_from}"
    );
    let mut report = Report::new(&command, seed);
    let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![params as u64] }])?;
    let deltas: Vec<Vec<f32>> = (0..DELTAS as u64).map(|nth| noise(params, seed + nth)).collect();
    let codec = CodecSpec::top_k(fraction);
    let mut sides = [Side::open("files", &folder, files_from)?, Side::open("sled", &folder, usize::MAX)?];
    let mut encode_ms = Vec::new();
    let mut feedback = Feedback::new(1.0);
    for (seq, delta) in (0..updates).zip(deltas.iter().cycle()) {
        let watch = Stopwatch::start();
        feedback.encode(&*codec::encoder(codec), &manifest, delta)?;
        encode_ms.push(watch.seconds() * 1e3);
        // Each is the first one every other time.
        sides.reverse();
        for side in &mut sides {
            side.update(&manifest, bank(seq, BRANCH, codec, delta.clone()))?;
        }
    }
    encode_ms.sort_by(f64::total_cmp);
    report.metric("encode_p50_ms", quantile(&encode_ms, 0.5));
    for side in sides {
        side.report(&mut report, updates)?;
    }
    Ok(report)
}

/// One ledger, and what it took.
struct Side {
    name: &'static str,
    file_bytes: usize,
    dir: tempfile::TempDir,
    ledger: Ledger,
    bank_ms: Vec<f64>,
    settle_ms: Vec<f64>,
    written_bytes: u64,
    most_disk_bytes: u64,
}

impl Side {
    fn open(name: &'static str, folder: &Path, file_bytes: usize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(folder)?;
        if file_bytes == usize::MAX {
            // With segments as they were then: a ledger keeps those that it was created with.
            drop(DurableDb::open(dir.path(), DbOptions::default())?);
        }
        let mut ledger = Ledger::open_with_files_from(dir.path(), file_bytes)?;
        ledger.adopt(BRANCH)?;
        let (bank_ms, settle_ms) = (Vec::new(), Vec::new());
        Ok(Self { name, file_bytes, dir, ledger, bank_ms, settle_ms, written_bytes: 0, most_disk_bytes: 0 })
    }

    fn update(&mut self, manifest: &ModelManifest, bank: Bank) -> anyhow::Result<()> {
        let seq = bank.seq;
        let before = written_bytes();
        let watch = Stopwatch::start();
        encode::bank(&mut self.ledger, RUN, AGENT, manifest, bank)?;
        self.bank_ms.push(watch.seconds() * 1e3);
        self.most_disk_bytes = self.most_disk_bytes.max(disk_bytes(self.dir.path())?);
        if let Some(before) = seq.0.checked_sub(1) {
            let watch = Stopwatch::start();
            self.ledger.settle(key(before), Settlement::Drop)?;
            self.settle_ms.push(watch.seconds() * 1e3);
        }
        self.written_bytes += written_bytes() - before;
        Ok(())
    }

    fn report(self, report: &mut Report, updates: u64) -> anyhow::Result<()> {
        let Self { name, file_bytes, dir, ledger, mut bank_ms, mut settle_ms, .. } = self;
        let payloads: u64 = ledger.outbox().map(|meta| meta.payload_bytes).sum();
        let live_bytes = payloads + size_of_val::<[f32]>(ledger.residual().unwrap_or_default()) as u64;
        let disk_bytes = disk_bytes(dir.path())?;
        drop(ledger);
        let watch = Stopwatch::start();
        drop(Ledger::open_with_files_from(dir.path(), file_bytes)?);
        let open_ms = watch.seconds() * 1e3;
        bank_ms.sort_by(f64::total_cmp);
        settle_ms.sort_by(f64::total_cmp);
        report.metric(format!("{name}_bank_p50_ms"), quantile(&bank_ms, 0.5));
        report.metric(format!("{name}_bank_worst_ms"), quantile(&bank_ms, 1.0));
        report.metric(format!("{name}_settle_p50_ms"), quantile(&settle_ms, 0.5));
        report.metric(format!("{name}_open_ms"), open_ms);
        report.metric(format!("{name}_written_bytes_an_update"), self.written_bytes as f64 / updates.max(1) as f64);
        report.metric(format!("{name}_live_bytes"), live_bytes as f64);
        report.metric(format!("{name}_disk_bytes"), disk_bytes as f64);
        report.metric(format!("{name}_disk_worst_bytes"), self.most_disk_bytes as f64);
        report.metric(format!("{name}_disk_to_live_ratio"), disk_bytes as f64 / live_bytes.max(1) as f64);
        Ok(())
    }
}

/// Key of the update with this number.
pub(crate) fn key(seq: u64) -> UpdateKey {
    UpdateKey { run: RUN, agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(seq) }
}

/// An update to bank.
pub(crate) fn bank(seq: u64, branch: BranchId, codec: CodecSpec, delta: Vec<f32>) -> Bank {
    let lease = LeaseId(seq);
    Bank {
        lease: anabranch_testkit::lease::lease(lease, AGENT, branch),
        epoch: Epoch(1),
        seq: UpdateSeq(seq),
        codec,
        policy: TensorPolicy::default(),
        feedback_decay: 1.0,
        outcome: Outcome {
            lease,
            delta: delta.into(),
            num_examples: 1,
            local_steps: 1,
            train_loss: 0.0,
            compute_ms: 1,
            encoded: None,
            pod: None,
        },
        started_from: None,
    }
}

/// Bytes that this process has given to the disk, as the kernel counts them; 0 where it does not.
fn written_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Bytes that the blocks of a folder's files take.
fn disk_bytes(folder: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut total = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        total += match entry.metadata() {
            Ok(found) if found.is_dir() => disk_bytes(&entry.path())?,
            Ok(found) => found.blocks() * 512,
            // sled removes files in the background.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(total)
}
