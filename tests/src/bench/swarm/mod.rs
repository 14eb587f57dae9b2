//! `anabranch-lab bench swarm`: many agents that train nothing, in this process, against a real coordinator.
//!
//! Each agent is the session and the transport of a real one, with a connection, a certificate and a lease of its own, and
//! one update on its way at a time. What is measured is what a coordinator takes in: an update counts when its verdict has
//! come, and a verdict is sent when the record is durable.

mod agent;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_agent::config::AgentDir;
use anabranch_agent::identity::AgentKey;
use anabranch_agent::session::command::Ending;
use anabranch_agent::transport::{self, Credentials, Dialer, Uplink};
use anabranch_common::codec::{self, CodecSpec};
use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::token::JoinToken;
use anabranch_common::wire::message::JoinResponse;
use anabranch_common::wire::transfer::TransferManifest;
use anabranch_io::tls;
use anyhow::{Context as _, bail};
use quinn::Endpoint;
use tokio::task::JoinSet;

use super::store::noise;
use crate::clock::Stopwatch;
use crate::process::{Cluster, PATIENCE, Usage, cpu_s};
use crate::report::{Report, proc_kib, quantile};

use agent::{Member, Payload, Shared, Tally};

/// Different payloads.
const PAYLOADS: usize = 8;
/// Agents that enrol at the same time.
const JOINING: usize = 32;
/// Sockets that all agents share: each takes some megabytes.
const SOCKETS: u32 = 250;
/// From the moment when everyone has had a verdict to the first one that is measured.
const SETTLE: Duration = Duration::from_secs(2);
/// Memory that a coordinator may take whatever the number of its agents, and beside that for each of them.
pub(super) const MEMORY: (f64, f64) = (256.0 * 1024.0 * 1024.0, 100.0 * 1024.0);

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Agents, each with a connection
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub agents: u32,
    /// Parameters of the model
    #[arg(long, value_name = "P", default_value_t = 100_000)]
    pub params: u64,
    /// Share of the parameters in an update
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub fraction: f32,
    /// Updates in a version: each agent downloads each version
    #[arg(long, value_name = "K", default_value_t = 65_536)]
    pub buffer: u32,
    /// How long is measured
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    pub seconds: f64,
    /// How long an agent's round takes in milliseconds; 0: no time at all
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub round_ms: u64,
}

impl Options {
    pub(super) fn run_toml(&self, seed: u64) -> String {
        let Self { params, fraction, buffer, .. } = self;
        format!(
            r#"[run]
name = "swarm"
seed = {seed}

[model]
kind = "custom"
input = [{params}]
classes = 2

[train]
local_steps = 20
batch_size = 32
optimizer = {{ kind = "sgd", lr = 0.05 }}

[upload]
codec = {{ kind = "top-k", fraction = {fraction:?} }}
feedback_decay = 1.0

[merge]
strategy = "fedbuff"
buffer_size = {buffer}
server_lr = 1.0

[admit]
max_staleness = 1000000
max_examples = 1000000
max_norm_ratio = 0.0

[evaluate]
every_versions = 1000000
every_s = 1000000.0

[target]

[checkpoint]
every_versions = 200
every_s = 60.0
keep = 2
retention = "since_snapshot"
"#
        )
    }

    fn shared(&self, seed: u64) -> anyhow::Result<Shared> {
        let tensor = TensorSpec { name: "swarm".to_owned(), shape: vec![self.params] };
        let manifest = ModelManifest::new(vec![tensor])?;
        let params = usize::try_from(self.params)?;
        let encoder = codec::encoder(CodecSpec::top_k(self.fraction));
        let payload = |number: usize| {
            let bytes: Arc<[u8]> = encoder.encode(&manifest, &noise(params, seed + number as u64))?.into();
            anyhow::Ok(Payload { transfer: TransferManifest::of(&bytes), digest: Digest::of(&bytes), bytes })
        };
        let payloads = (0..PAYLOADS).map(payload).collect::<anyhow::Result<_>>()?;
        let model = vec![0.0; params].into();
        let (codec, round_ms) = (encoder.id(), self.round_ms);
        Ok(Shared { codec, payloads, model, manifest, round_ms, tally: Tally::default() })
    }
}

/// Measures.
///
/// # Errors
/// A process fails, or an agent is turned away.
pub fn run(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Report> {
    with_swarm(lab, options, seed, async |cluster, swarm| {
        let mut report = Report::new("anabranch-lab bench swarm", seed);
        let pid = cluster.coordinator()?.pid();
        let slice = swarm.measure(pid, options.seconds).await;
        let resident = (proc_kib(&format!("/proc/{pid}/status"), "VmRSS:").unwrap_or(0) << 10) as f64;
        let mut usage = Usage::default();
        usage.look("coordinator", pid);
        let peak = usage.peak_bytes(|_| true);
        report.metric("enrol_s", swarm.enrol_s);
        report.metric("all_working_s", swarm.all_working_s);
        report.metric("updates_per_s", slice.updates_per_s);
        report.metric("updates_refused", slice.refused as f64);
        report.metric("disconnections", slice.disconnections as f64);
        report.metric("ack_p50_ms", slice.ack_ms(0.5));
        report.metric("ack_p99_ms", slice.ack_ms(0.99));
        report.metric("payload_bytes", swarm.payload_bytes() as f64);
        report.metric("coordinator_cpu_cores", slice.coordinator_cores);
        report.metric("swarm_cpu_cores", slice.swarm_cores);
        report.metric("rss_bytes", resident);
        report.metric("peak_rss_bytes", peak);
        report.counts.insert("agents".to_owned(), u64::from(options.agents));
        report.counts.insert("params".to_owned(), options.params);
        report.aim("2,000 durable updates a second", slice.updates_per_s >= 2_000.0);
        let most = MEMORY.0 + MEMORY.1 * f64::from(options.agents);
        report.aim("coordinator within 256 MB and 100 KB an agent", peak <= most);
        Ok(report)
    })
}

/// Starts a coordinator and a swarm, does `work` with them when everyone has had two verdicts, and looks that the
/// coordinator has counted at least as many updates as the swarm, and refused none.
pub(super) fn with_swarm(
    lab: &Path,
    options: &Options,
    seed: u64,
    work: impl AsyncFnOnce(&mut Cluster, &mut Swarm) -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    let mut cluster = Cluster::new(lab, &options.run_toml(seed))?;
    cluster.start_coordinator()?;
    with_cluster(cluster, options, seed, work)
}

/// Like [`with_swarm`], with a coordinator that serves already.
pub(super) fn with_cluster(
    mut cluster: Cluster,
    options: &Options,
    seed: u64,
    work: impl AsyncFnOnce(&mut Cluster, &mut Swarm) -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    let uses = options.agents.to_string();
    let token = cluster.token(&["--name", "swarm", "--uses", &uses])?;
    let token: JoinToken = token.parse().map_err(|error| anyhow::anyhow!("the token cannot be read: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let measured = runtime.block_on(async {
        let mut swarm = Swarm::start(&token, cluster.path(), options, seed).await?;
        tokio::time::sleep(SETTLE).await;
        let mut report = work(&mut cluster, &mut swarm).await?;
        swarm.agents.shutdown().await;
        let (accepted, refused) = (swarm.count().0, swarm.count().1);
        report.pass &= cluster.status()?.updates_accepted >= accepted && refused == 0;
        Ok(report)
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    measured
}

/// Agents at work.
#[derive(Debug)]
pub(super) struct Swarm {
    shared: Arc<Shared>,
    agents: JoinSet<Ending>,
    cas: Vec<Digest>,
    enrol_s: f64,
    all_working_s: f64,
}

/// What was seen in a while.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) updates_per_s: f64,
    pub(super) refused: u64,
    pub(super) disconnections: u64,
    pub(super) coordinator_cores: f64,
    pub(super) swarm_cores: f64,
    /// From the offer of an update to its verdict, sorted.
    latencies_ms: Vec<f64>,
}

impl Slice {
    /// From the offer of an update to its verdict, in milliseconds, at a share (0..1) of the updates.
    pub(super) fn ack_ms(&self, share: f64) -> f64 {
        quantile(&self.latencies_ms, share)
    }
}

impl Swarm {
    async fn start(token: &JoinToken, folder: &Path, options: &Options, seed: u64) -> anyhow::Result<Self> {
        let shared = Arc::new(options.shared(seed)?);
        let watch = Stopwatch::start();
        let members = enrol(token, folder, options.agents).await?;
        let enrol_s = watch.seconds();
        let watch = Stopwatch::start();
        let mut agents = JoinSet::new();
        for member in members {
            agents.spawn(agent::work(member, Arc::clone(&shared)));
        }
        until_all_work(&shared, &mut agents, options.agents).await?;
        Ok(Self { shared, agents, cas: token.ca_fingerprints.clone(), enrol_s, all_working_s: watch.seconds() })
    }

    /// Bytes of an update as it is sent.
    pub(super) fn payload_bytes(&self) -> usize {
        self.shared.payloads[0].bytes.len()
    }

    /// For TLS without a certificate, as a joining agent has it.
    pub(super) fn stranger(&self) -> anyhow::Result<quinn::ClientConfig> {
        Ok(tls::client_pinned(&self.cas)?)
    }

    /// Updates accepted, updates refused, connections lost.
    fn count(&self) -> (u64, u64, u64) {
        let tally = &self.shared.tally;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&tally.accepted), count(&tally.refused), count(&tally.disconnected))
    }

    /// Looks on for so many seconds. `pid` is the coordinator's.
    pub(super) async fn measure(&self, pid: u32, seconds: f64) -> Slice {
        let tally = &self.shared.tally;
        let cpu = || (cpu_s(pid).unwrap_or(0.0), cpu_s(std::process::id()).unwrap_or(0.0));
        let (before, cpu_before, watch) = (self.count(), cpu(), Stopwatch::start());
        tally.measuring.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        tally.measuring.store(false, Ordering::Relaxed);
        let (wall_s, after, cpu_after) = (watch.seconds(), self.count(), cpu());
        let mut latencies_ms = std::mem::take(&mut *tally.latencies_ms.lock());
        latencies_ms.sort_by(f64::total_cmp);
        Slice {
            updates_per_s: (after.0 - before.0) as f64 / wall_s,
            refused: after.1 - before.1,
            disconnections: after.2 - before.2,
            coordinator_cores: (cpu_after.0 - cpu_before.0) / wall_s,
            swarm_cores: (cpu_after.1 - cpu_before.1) / wall_s,
            latencies_ms,
        }
    }
}

/// Waits until as many verdicts have come as there are agents.
async fn until_all_work(shared: &Shared, agents: &mut JoinSet<Ending>, wanted: u32) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    while shared.tally.accepted.load(Ordering::Relaxed) < 2 * u64::from(wanted) {
        if let Some(ended) = agents.try_join_next() {
            bail!("an agent of the swarm has ended: {}", ended?);
        }
        if watch.elapsed() > 3 * PATIENCE {
            bail!("{} verdicts in {:?}", shared.tally.accepted.load(Ordering::Relaxed), watch.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn enrol(token: &JoinToken, folder: &Path, agents: u32) -> anyhow::Result<Vec<Member>> {
    let (mut joining, mut members) = (JoinSet::new(), Vec::new());
    let sockets: Vec<Endpoint> = (0..agents.min(SOCKETS)).map(|_| tls::client_endpoint()).collect::<Result<_, _>>()?;
    for (number, socket) in (0..u64::from(agents)).zip(sockets.iter().cycle()) {
        if joining.len() >= JOINING {
            members.push(joining.join_next().await.context("someone is joining")???);
        }
        let (token, dir) = (token.clone(), AgentDir::new(folder.join(format!("swarm-{number}"))));
        joining.spawn(join(token, dir, number, socket.clone()));
    }
    while let Some(member) = joining.join_next().await {
        members.push(member??);
    }
    Ok(members)
}

async fn join(token: JoinToken, dir: AgentDir, number: u64, socket: Endpoint) -> anyhow::Result<Member> {
    let key = tokio::task::spawn_blocking(move || AgentKey::read_or_make(&dir)).await??;
    let patience = Duration::from_millis(limits::REQUEST_TIMEOUT_MS);
    let answer = tokio::time::timeout(patience, transport::join(&token, key.signing_request()?)).await;
    match answer.context("no answer to a request to join")?? {
        JoinResponse::Enrolled { run, agent, certificate_der, ca_der, .. } => {
            let credentials = Credentials { authorities: (&ca_der).into(), certificate_der, key_der: key.to_der() };
            let dialer = Dialer::new(token.addresses, &credentials)?.through(socket);
            Ok(Member { number, run, agent, uplink: Uplink::new(dialer) })
        }
        JoinResponse::Refused(refusal) => bail!("an agent may not join: {refusal:?}"),
    }
}
