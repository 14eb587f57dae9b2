//! `anabranch-lab bench store`: the coordinator's writer on a real disk.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, mpsc};

use anabranch_common::codec::{CodecId, CodecSpec, dense::Planes32, euclidean_norm};
use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion, Position, RunId, UpdateSeq};
use anabranch_common::journal::{Chain, Close, CloseReason, Contribution, Record, RecordBody};
use anabranch_common::lane::Lane;
use anabranch_common::limits;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::RunSpec;
use anabranch_common::update::{UpdateKey, UpdateMeta};
use anabranch_coordinator::config::{Config, Retention};
use anabranch_coordinator::core::event::Event;
use anabranch_coordinator::core::state::RunState;
use anabranch_coordinator::merger::ModelState;
use anabranch_coordinator::node::write::{self, WriteJob};
use anabranch_coordinator::recovery::{self, checkpoint};
use anabranch_coordinator::store::{SledStore, Store};
use anyhow::Context as _;

use crate::clock::Stopwatch;
use crate::ledger::Settings;
use crate::report::{Report, proc_kib, quantile};

/// Payload sizes, and how many updates of each are written.
const SIZES: [(&str, usize, usize); 3] = [("10kb", 10_000, 2_000), ("200kb", 200_000, 400), ("4mb", 4_000_000, 40)];
/// Updates on their way at the same time: so many agents that each wait for their verdict.
const IN_FLIGHT: usize = 16;
/// Values of the snapshots of which [`SNAPSHOTS`] are written. sled's file grows by segments of 16 MiB, of which it keeps
/// about five: that is what small models take, however small they are.
const SNAPSHOT_PARAMS: [(&str, usize); 2] = [("4mb", 1_000_000), ("20mb", 5_000_000)];
/// Snapshots, of which two are kept.
const SNAPSHOTS: u64 = 200;
/// From here on the disk must be flat.
const SETTLED: u64 = 40;

/// Measures.
///
/// # Errors
/// The store fails.
pub fn run(folder: &Path, seed: u64) -> anyhow::Result<Report> {
    let mut report = Report::new("anabranch-lab bench store", seed);
    for (name, bytes, updates) in SIZES {
        updates_per_second(folder, &mut report, name, bytes, updates, seed)?;
    }
    for (name, params) in SNAPSHOT_PARAMS {
        snapshots(folder, &mut report, name, params, seed)?;
    }
    report.metric("peak_rss_bytes", (proc_kib("/proc/self/status", "VmHWM:").unwrap_or(0) << 10) as f64);
    Ok(report)
}

fn updates_per_second(
    folder: &Path,
    report: &mut Report,
    name: &str,
    bytes: usize,
    updates: usize,
    seed: u64,
) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(folder)?;
    let store: Arc<dyn Store> = Arc::new(SledStore::open_dir(dir.path())?);
    let run = TestRun::new(1, seed)?;
    store.journal().append(&[(Position(0), run.genesis.to_bytes()?)])?;
    store.journal().sync()?;
    let (jobs, groups) = mpsc::sync_channel(limits::WORKER_JOBS);
    let (answers_in, answers) = mpsc::sync_channel(limits::WORKER_JOBS);
    let writer = std::thread::spawn(move || {
        groups.into_iter().try_for_each(|group| answers_in.send(write::write(store.as_ref(), group)))
    });
    let mut lane = Lane::default();
    let payloads: Vec<Arc<[u8]>> = (0..8).map(|index| noise_bytes(bytes, seed + index)).collect();
    let watch = Stopwatch::start();
    let mut waiting: VecDeque<(Position, f64)> = VecDeque::new();
    let mut latencies_ms = Vec::with_capacity(updates);
    let mut sent = 0;
    while latencies_ms.len() < updates {
        while sent < updates && waiting.len() < IN_FLIGHT {
            sent += 1;
            let records = run.update(sent as u64, Arc::clone(&payloads[sent % payloads.len()]));
            waiting.push_back((records[1].position, watch.seconds()));
            records.into_iter().for_each(|record| lane.push(WriteJob::Append(Arc::new(record))));
        }
        if let Some(group) = lane.next(write::group) {
            jobs.send(group)?;
        }
        for event in answers.recv().context("the writer has ended")?? {
            if let Event::Journalled { upto } = event {
                while let Some((_, since)) = waiting.pop_front_if(|(position, _)| *position <= upto) {
                    latencies_ms.push((watch.seconds() - since) * 1e3);
                }
            }
        }
        lane.done();
    }
    let wall_s = watch.seconds();
    drop(jobs);
    writer.join().ok().context("the writer panicked")??;
    latencies_ms.sort_by(f64::total_cmp);
    report.metric(format!("updates_per_s_{name}"), updates as f64 / wall_s);
    report.metric(format!("ack_p50_ms_{name}"), quantile(&latencies_ms, 0.5));
    report.metric(format!("ack_p99_ms_{name}"), quantile(&latencies_ms, 0.99));
    Ok(())
}

/// Bytes on disk against live bytes while snapshots come and go.
fn snapshots(folder: &Path, report: &mut Report, name: &str, params: usize, seed: u64) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(folder)?;
    let store = SledStore::open_dir(dir.path())?;
    let run = TestRun::new(params, seed)?;
    let first = noise(params, seed);
    recovery::put_model(&store, &run.manifest, &first)?;
    store.journal().append(&[(Position(0), run.genesis.to_bytes()?)])?;
    let (mut worst, mut settled_bytes, mut disk_bytes, mut live_bytes) = (0.0f64, 0, 0, 0);
    let watch = Stopwatch::start();
    for round in 1..=SNAPSHOTS {
        let position = Position(round);
        let record = Record::new(position, round, RecordBody::Paused, Arc::from([]));
        store.journal().append(&[(position, record.to_bytes()?)])?;
        store.journal().sync()?;
        let state = RunState { position, ..run.state.clone() };
        let content = noise(params, seed + round);
        let model = ModelState::new(run.manifest.clone(), run.spec.merge.clone(), content, state.version)?;
        checkpoint::write(&store, &state, Chain::default(), &model, round)?;
        checkpoint::prune(&store, 2, Retention::SinceSnapshot)?;
        let usage = store.usage()?;
        (disk_bytes, live_bytes) = (usage.disk_bytes, usage.live_bytes);
        if round > SETTLED {
            worst = worst.max(disk_bytes as f64 / live_bytes as f64);
        }
        if round == SETTLED {
            settled_bytes = disk_bytes;
        }
    }
    let growth = disk_bytes as f64 / settled_bytes.max(1) as f64;
    report.metric(format!("snapshot_write_s_{name}"), watch.seconds() / SNAPSHOTS as f64);
    report.metric(format!("disk_bytes_{name}"), disk_bytes as f64);
    report.metric(format!("live_bytes_{name}"), live_bytes as f64);
    report.metric(format!("disk_to_live_worst_ratio_{name}"), worst);
    report.metric(format!("disk_growth_from_40_to_200_snapshots_ratio_{name}"), growth);
    report.aim(format!("{name}: at most 5 times the live bytes on disk after 200 snapshots"), worst <= 5.0);
    report.aim(format!("{name}: disk use is flat from 40 to 200 snapshots (within 50 %)"), growth <= 1.5);
    Ok(())
}

/// A run as its first record leaves it.
#[derive(Debug)]
pub(crate) struct TestRun {
    pub(crate) spec: RunSpec,
    pub(crate) manifest: ModelManifest,
    pub(crate) genesis: Record,
    pub(crate) state: RunState,
}

impl TestRun {
    pub(crate) fn new(params: usize, seed: u64) -> anyhow::Result<Self> {
        let text = format!("{}\n[server]\nlisten = \"127.0.0.1:4433\"\n", Settings::default().run_toml());
        let mut spec = Config::parse(Path::new("run.toml"), &text)?.spec;
        spec.merge = MergeSpec::FedAsync { alpha: 1.0, staleness: Staleness::Constant, participation: false };
        spec.upload.codec = CodecSpec::F32;
        let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![params as u64] }])?;
        let body = RecordBody::Genesis {
            run: RunId([1; 16]),
            branch: BranchId([2; 16]),
            spec: Box::new(spec.clone()),
            manifest: manifest.clone(),
            model: Digest::of_f32(&noise(params, seed)),
            norm: euclidean_norm(&noise(params, seed)),
        };
        let genesis = Record::new(Position(0), 0, body, Arc::from([]));
        let state = RunState::genesis(&genesis)?;
        Ok(Self { spec, manifest, genesis, state })
    }

    /// The `number`-th update from 1, and the close of its version.
    fn update(&self, number: u64, payload: Arc<[u8]>) -> [Record; 2] {
        let key = UpdateKey { run: RunId([1; 16]), agent: AgentId([3; 16]), epoch: Epoch(1), seq: UpdateSeq(number) };
        let meta = UpdateMeta {
            key,
            branch: BranchId([2; 16]),
            lease: LeaseId(number),
            base_version: ModelVersion(number - 1),
            base_digest: Digest::default(),
            codec: CodecId(Planes32::ID.0),
            payload_bytes: payload.len() as u64,
            payload_digest: Digest::default(),
            num_examples: 1,
            local_steps: 1,
            train_loss: 0.0,
            compute_ms: 1,
            base_dot: None,
            residual_ratio: None,
            memory: None,
        };
        let contribution = Contribution {
            meta,
            credited_examples: 1,
            staleness: 0,
            weight: 1.0,
            mean_weight: 0,
            norm: 1.0,
            recall: None,
            memory: None,
            transfer_ms: None,
        };
        let close = Close { version: ModelVersion(number), contributions: 1, why: CloseReason::Filled, is_base: true };
        let record = |position, body, payload| Record::new(Position(position), number, body, payload);
        [
            record(2 * number - 1, RecordBody::Contribution(Box::new(contribution)), payload),
            record(2 * number, RecordBody::Closed(close), Arc::from([])),
        ]
    }
}

pub(crate) fn noise_bytes(bytes: usize, seed: u64) -> Arc<[u8]> {
    let mut rng = SplitMix64::new(seed);
    (0..bytes.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).take(bytes).collect()
}

/// Finite values whose bytes do not compress.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed);
    (0..len).map(|_| rng.next_signed_f32()).collect()
}
