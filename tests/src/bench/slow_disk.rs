//! `anabranch-lab bench slow-disk`: the memory of a coordinator whose disk cannot keep up with
//! its agents.
//!
//! The agents are those of the swarm. Every one of them uploads as fast as it gets leases, while
//! each sync of the coordinator's disk takes seconds. Updates then wait between the network and
//! the model: received, decoded, and not yet durable. The peak of the process's resident memory
//! must stay below the ceiling that docs/operating.md states.

use std::path::Path;

use anabranch_common::limits;
use anyhow::{Context as _, bail};

use super::swarm::{self, MEMORY};
use crate::chaos::shim::{NO_COMPILER, Setting, Shim};
use crate::process::{Cluster, PATIENCE};
use crate::report::{Report, proc_kib};

/// The heap of a process for what it holds in buffers of some megabytes: the allocator keeps a
/// part of what was freed.
const HEAP: f64 = 1.25;
/// Vectors as long as the model that a coordinator holds at once.
const MODELS: u64 = 8;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Agents, each with a connection
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub agents: u32,
    /// Parameters of the model; an update sends all of them as int8, about 1.14 bytes each
    #[arg(long, value_name = "P", default_value_t = 3_600_000)]
    pub params: u64,
    /// How much longer every sync of the coordinator's disk takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 4_000)]
    pub sync_ms: u64,
    /// How long the disk is slow, in seconds
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    pub seconds: f64,
}

/// Measures.
///
/// # Errors
/// A process fails, an agent is turned away, or there is no C compiler.
pub fn run(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Report> {
    let swarm = swarm::Options {
        agents: options.agents,
        params: options.params,
        fraction: 1.0,
        buffer: 65_536,
        seconds: options.seconds,
        round_ms: 0,
    };
    let mut cluster = Cluster::new(lab, &swarm.run_toml(seed))?;
    let Some(shim) = Shim::new(cluster.path())? else { bail!(NO_COMPILER) };
    let disk = shim.switches("coordinator", &cluster.coordinator_dir())?;
    let environment = disk.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    cluster.spawn_coordinator(&environment)?.wait_for_log(" serving", PATIENCE)?;
    swarm::with_cluster(cluster, &swarm, seed, async |cluster, swarm| {
        let mut report = Report::new("anabranch-lab bench slow-disk", seed);
        let pid = cluster.coordinator()?.pid();
        disk.set(Setting { sync_ms: options.sync_ms, ..Setting::default() })?;
        let slice = swarm.measure(pid, options.seconds).await;
        disk.set(Setting::default())?;
        let status = format!("/proc/{pid}/status");
        let peak_bytes = (proc_kib(&status, "VmHWM:").context("the coordinator has gone")? << 10) as f64;
        let ceiling_bytes = ceiling_bytes(options);
        report.metric("peak_rss_bytes", peak_bytes);
        report.metric("ceiling_bytes", ceiling_bytes);
        report.metric("payload_bytes", swarm.payload_bytes() as f64);
        report.metric("updates_per_s", slice.updates_per_s);
        report.metric("ack_p50_ms", slice.ack_ms(0.5));
        report.metric("ack_p99_ms", slice.ack_ms(0.99));
        report.metric("disconnections", slice.disconnections as f64);
        report.counts.insert("agents".to_owned(), u64::from(options.agents));
        report.counts.insert("params".to_owned(), options.params);
        report.pass = peak_bytes <= ceiling_bytes;
        Ok(report)
    })
}

/// The ceiling that docs/operating.md states, "Memory".
fn ceiling_bytes(options: &Options) -> f64 {
    let budgets = limits::UPLOADS_IN_FLIGHT_BYTES + limits::DECODED_UPLOADS_BYTES + limits::GROUP_COMMIT_BYTES as u64;
    let forms = (limits::PUBLISHED_BYTES + limits::FORMS_BYTES) as u64 + limits::PACKING_BYTES + limits::SENDING_BYTES;
    let models = MODELS * 4 * options.params;
    HEAP * budgets as f64 + (forms + models) as f64 + MEMORY.0 + MEMORY.1 * f64::from(options.agents)
}
