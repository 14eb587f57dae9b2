//! `anabranch-lab bench page`: what it takes to watch a coordinator with many agents.
//!
//! A real coordinator serves figures; the agents of a [swarm](super::swarm) are connected and at work. Scrapes come over
//! HTTP, a connection each. The first scrape of each snapshot has the figures written, later ones get the same text.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::swarm;
use crate::clock::Stopwatch;
use crate::process::{Cluster, cpu_s, http_get, series};
use crate::report::{Report, quantile};

/// Between two scrapes.
const REST: Duration = Duration::from_millis(200);

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Agents, each with a connection
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub agents: u32,
    /// How long the coordinator is scraped, in seconds
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    pub seconds: f64,
    /// How long an agent's round takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    pub round_ms: u64,
}

/// Measures.
///
/// # Errors
/// A process fails, an agent is turned away, or a scrape is not answered.
pub fn run(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Report> {
    let Options { agents, seconds, round_ms } = *options;
    let fleet = swarm::Options { agents, params: 1_000, fraction: 0.1, buffer: 65_536, seconds, round_ms };
    let mut cluster = Cluster::new(lab, &fleet.run_toml(seed))?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    cluster.serve_with(&["--metrics", &address]);
    cluster.start_coordinator()?;
    swarm::with_cluster(cluster, &fleet, seed, async |cluster, _| {
        let pid = cluster.coordinator()?.pid();
        let used = || cpu_s(pid).context("the coordinator has ended");
        let (cpu_before, watch) = (used()?, Stopwatch::start());
        let (mut new, mut again, mut bytes, mut before) = (Vec::new(), Vec::new(), 0, 0.0);
        let mut listed = 0;
        while watch.seconds() < seconds {
            let scrape = Stopwatch::start();
            let text = http_get(&address, "/metrics")?;
            let took_ms = scrape.seconds() * 1e3;
            let taken = series(&text, "anabranch_snapshot_time_seconds").context("no time in the figures")?;
            if taken == before {
                again.push(took_ms)
            } else {
                new.push(took_ms)
            }
            // Connected or not: a busy machine may lose a connection.
            let of_agent = |line: &&str| line.starts_with("anabranch_run_agent_connected{");
            (before, bytes, listed) = (taken, text.len(), text.lines().filter(of_agent).count());
            std::thread::sleep(REST);
        }
        let cores = (used()? - cpu_before) / watch.seconds();
        new.sort_by(f64::total_cmp);
        again.sort_by(f64::total_cmp);
        let mut report = Report::new("anabranch-lab bench page", seed);
        report.metric("metrics_scrape_ms", quantile(&new, 0.5));
        report.metric("metrics_scrape_p99_ms", quantile(&new, 0.99));
        report.metric("metrics_scrape_again_ms", quantile(&again, 0.5));
        report.metric("metrics_scrape_bytes", bytes as f64);
        report.metric("coordinator_cpu_cores", cores);
        report.counts.insert("agents".to_owned(), agents.into());
        report.counts.insert("snapshots".to_owned(), new.len() as u64);
        report.pass = listed == usize::try_from(agents)?;
        Ok(report)
    })
}
