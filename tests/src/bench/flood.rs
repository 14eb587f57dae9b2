//! `anabranch-lab bench flood`: what honest agents notice of strangers who flood the coordinator's port.
//!
//! The agents are those of the swarm, each with a round that takes a while. First nobody disturbs them, then datagrams
//! come in at a stated rate from many addresses, in equal parts true first packets of connections that never go on, and
//! garbage. They are sent from this machine, and share its cores with everyone else.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

use super::swarm::{self, Slice};
use crate::hostile::stranger;
use crate::report::Report;

/// Different datagrams, at most: beyond that they come again, from other addresses.
const DATAGRAMS: usize = 20_000;
/// Addresses they come from; not a divisor of their number.
const SOURCES: u16 = 251;
/// How much later than in quiet times a verdict may come.
const AIM: f64 = 1.1;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Hostile datagrams a second
    #[arg(long, value_name = "R", default_value_t = 1000)]
    pub rate: u32,
    /// Honest agents
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub agents: u32,
    /// How long an honest agent's round takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub round_ms: u64,
    /// Parameters of the model
    #[arg(long, value_name = "P", default_value_t = 100_000)]
    pub params: u64,
    /// How long is measured, in seconds: without the flood, and again under it
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    pub seconds: f64,
}

/// Measures.
///
/// # Errors
/// A process fails, or an honest agent is turned away.
pub fn run(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Report> {
    let swarm = swarm::Options {
        agents: options.agents,
        params: options.params,
        fraction: 0.01,
        buffer: 65_536,
        seconds: options.seconds,
        round_ms: options.round_ms,
    };
    swarm::with_swarm(lab, &swarm, seed, async |cluster, swarm| {
        let mut report = Report::new("anabranch-lab bench flood", seed);
        let (pid, port) = (cluster.coordinator()?.pid(), cluster.port());
        let datagrams = datagrams(swarm.stranger()?, options, seed).await?;
        let quiet = swarm.measure(pid, options.seconds).await;
        let over = AtomicBool::new(false);
        let (flooded, sent) = std::thread::scope(|scope| {
            let flood = scope.spawn(|| stranger::flood_until(port, &datagrams, SOURCES, options.rate, &over));
            let handle = tokio::runtime::Handle::current();
            let flooded = tokio::task::block_in_place(|| handle.block_on(swarm.measure(pid, options.seconds)));
            over.store(true, Ordering::Relaxed);
            (flooded, flood.join())
        });
        let sent = sent.ok().context("the flood panicked")??;
        let network = cluster.status()?.network.context("a coordinator that serves says who was turned away")?;
        describe(&mut report, "quiet", &quiet);
        describe(&mut report, "flood", &flooded);
        let ratio = |share| flooded.ack_ms(share) / quiet.ack_ms(share).max(f64::MIN_POSITIVE);
        report.metric("ack_p50_ratio", ratio(0.5));
        report.metric("ack_p99_ratio", ratio(0.99));
        report.metric("hostile_datagrams_per_s", sent as f64 / options.seconds);
        report.counts.insert("agents".to_owned(), u64::from(options.agents));
        report.counts.insert("hostile_datagrams".to_owned(), sent);
        report.counts.insert("asked_to_retry".to_owned(), network.asked_to_retry);
        report.counts.insert("handshakes_displaced".to_owned(), network.displaced);
        report.metric("connections_asked_to_retry", network.asked_to_retry as f64);
        report.aim(format!("Ack p99 under the flood at most {AIM} times the quiet one"), ratio(0.99) <= AIM);
        report.pass = flooded.disconnections == 0;
        Ok(report)
    })
}

fn describe(report: &mut Report, phase: &str, slice: &Slice) {
    report.metric(format!("{phase}_ack_p50_ms"), slice.ack_ms(0.5));
    report.metric(format!("{phase}_ack_p99_ms"), slice.ack_ms(0.99));
    report.metric(format!("{phase}_updates_per_s"), slice.updates_per_s);
    report.metric(format!("{phase}_coordinator_cpu_cores"), slice.coordinator_cores);
    report.metric(format!("{phase}_disconnections"), slice.disconnections as f64);
}

/// Opening packets and garbage in turn.
async fn datagrams(config: quinn::ClientConfig, options: &Options, seed: u64) -> anyhow::Result<Vec<Vec<u8>>> {
    let wanted = (f64::from(options.rate) * options.seconds * 1.1).ceil().min(DATAGRAMS as f64);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most DATAGRAMS")]
    let half = (wanted as usize).div_ceil(2);
    let initials = stranger::initials(&config, half).await?;
    Ok(initials.into_iter().zip(stranger::garbage(seed, half)).flat_map(<[_; 2]>::from).collect())
}
