//! `anabranch-lab bench page`: what it takes to watch a coordinator with many agents.
//!
//! A real coordinator serves figures; the agents of a [`super::swarm`] are connected and at work. Scrapes come over
//! HTTP, a connection each. The first scrape of each snapshot has the figures written, later ones get the same text. The
//! operator's page is loaded after each scrape: its files, and its state with the run in detail.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
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
    let [address, page] = [free_address()?, free_address()?];
    cluster.serve_with(&["--metrics", &address, "--page", &page]);
    cluster.start_coordinator()?;
    swarm::with_cluster(cluster, &fleet, seed, async |cluster, _| {
        let pid = cluster.coordinator()?.pid();
        let used = || cpu_s(pid).context("the coordinator has ended");
        let (cpu_before, watch) = (used()?, Stopwatch::start());
        let (mut new, mut again, mut bytes, mut before) = (Vec::new(), Vec::new(), 0, 0.0);
        let mut listed = 0;
        let mut loads = Vec::new();
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
            loads.push(load(&page)?);
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
        let of_loads = |value: fn(&Load) -> f64| {
            let mut values: Vec<f64> = loads.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let first = of_loads(|load| load.first_byte_ms);
        report.metric("page_ttfb_ms", quantile(&first, 0.5));
        report.metric("page_ttfb_p99_ms", quantile(&first, 0.99));
        report.metric("page_state_ms", quantile(&of_loads(|load| load.state_ms), 0.5));
        report.metric("page_bytes", quantile(&of_loads(|load| load.bytes), 1.0));
        report.metric("page_state_bytes", quantile(&of_loads(|load| load.state_bytes), 1.0));
        report.counts.insert("agents".to_owned(), agents.into());
        report.counts.insert("snapshots".to_owned(), new.len() as u64);
        report.pass = listed == usize::try_from(agents)?;
        Ok(report)
    })
}

fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// What it took to load the page once.
struct Load {
    /// Until the first byte of the document.
    first_byte_ms: f64,
    /// All files, with their heads.
    bytes: f64,
    /// Until the whole state with the run in detail.
    state_ms: f64,
    /// The state, with its head.
    state_bytes: f64,
}

/// Loads the files of the page and what they name, and the state of the first run.
fn load(address: &str) -> anyhow::Result<Load> {
    let watch = Stopwatch::start();
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut document = vec![0];
    stream.read_exact(&mut document)?;
    let first_byte_ms = watch.seconds() * 1e3;
    stream.read_to_end(&mut document)?;
    let document = String::from_utf8(document)?;
    let (mut files, mut found) = (vec![document], vec!["/".to_owned()]);
    let mut next = 0;
    while let Some(text) = files.get(next) {
        // Scripts, styles and pictures are named in quotes, from the root.
        let named = text.split('"').filter(|name| name.starts_with('/') && name.contains('.') && !name.contains(' '));
        for name in named.map(String::from).collect::<Vec<_>>() {
            if !found.contains(&name) {
                let file = http_get(address, &name)?;
                anyhow::ensure!(file.starts_with("HTTP/1.1 200 OK"), "{name}: {file}");
                files.push(file);
                found.push(name);
            }
        }
        next += 1;
    }
    let overview = http_get(address, "/api/state")?;
    let name = overview.split("\"runs\":[").nth(1).and_then(|runs| runs.split("\"name\":\"").nth(1)?.split('"').next());
    let watch = Stopwatch::start();
    let state = http_get(address, &format!("/api/state?run={}", name.context("no run in the state")?))?;
    Ok(Load {
        first_byte_ms,
        bytes: files.iter().map(|file| file.len() as f64).sum(),
        state_ms: watch.seconds() * 1e3,
        state_bytes: state.len() as f64,
    })
}
