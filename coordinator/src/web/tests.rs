//! The server over real TCP, and the figures of made-up processes.

use std::collections::BTreeSet;
use std::sync::Arc;

use anabranch_common::ids::{AgentId, BranchId, RunId};
use anabranch_common::journal::Chain;
use anabranch_common::limits;
use anabranch_common::status::{AgentStatus, RunStanding, RunSummary, StatusReport};
use anabranch_io::web::{Bounds, Hosts, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::figures::Figures;
use super::{Certificate, Kind, Name, Snapshot, names, router};
use crate::core::Options;
use crate::core::status::{report, unseen};
use crate::host::{Health, RunQueues, RunView};

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::starting(vec![Certificate { name: "server", expires_at_s: 1_900_000_000 }]);
    snapshot.view.health = Health::Serving;
    snapshot
}

/// A server of snapshots, and where it listens.
fn serve() -> (watch::Sender<Arc<Snapshot>>, String) {
    let (out, snapshots) = watch::channel(Arc::new(snapshot()));
    let server = Server::bind(([127, 0, 0, 1], 0).into(), Bounds::default()).expect("a free port");
    let hosts = Hosts::new(server.address(), ["trainer.example.org".to_owned()]);
    let address = server.address().to_string();
    tokio::spawn(server.serve(router(snapshots, Arc::default(), hosts)));
    (out, address)
}

async fn get(address: &str, path: &str) -> String {
    ask(address, path, &format!("Host: {address}\r\n")).await
}

/// Gets a path, with these lines about the name that is asked.
async fn ask(address: &str, path: &str, hosts: &str) -> String {
    let mut client = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("answered");
    text
}

#[tokio::test]
async fn figures_and_health_are_those_of_the_newest_snapshot() {
    let (out, address) = serve();
    let text = get(&address, "/healthz").await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nok\n"), "{text}");
    let text = get(&address, "/metrics").await;
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("\nanabranch_healthy 1\n"), "{text}");
    let mut failed = snapshot();
    failed.view.health = Health::Failed("run wards has failed: no space left".to_owned());
    out.send_replace(Arc::new(failed));
    let text = get(&address, "/healthz").await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    assert!(text.ends_with("\r\n\r\nrun wards has failed: no space left\n"), "{text}");
    let text = get(&address, "/healthz/live").await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "the others are served: {text}");
    assert!(get(&address, "/metrics").await.contains("\nanabranch_healthy 0\n"));
    let text = get(&address, "/nowhere").await;
    assert!(text.starts_with("HTTP/1.1 404 ") && text.contains("see /metrics and /healthz"), "{text}");
}

#[tokio::test]
async fn figures_are_for_known_names_and_addresses() {
    let (_out, address) = serve();
    for path in ["/metrics", "/healthz", "/healthz/live", "/nowhere"] {
        for host in ["evil.example", "evil.example:9464", "trainer.example.org.evil.example", "localhost\r\nHost: evil"]
        {
            let text = ask(&address, path, &format!("Host: {host}\r\n")).await;
            assert!(text.starts_with("HTTP/1.1 403 ") && !text.contains("trainer.example.org"), "{host}: {text}");
        }
    }
    for host in ["localhost:9464", "10.1.2.3:9464", "[fd00::7]", "Trainer.example.org"] {
        let text = ask(&address, "/healthz", &format!("Host: {host}\r\n")).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{host}: {text}");
    }
    let text = ask(&address, "/healthz", "").await;
    assert!(!text.starts_with("HTTP/1.1 403 "), "a probe without a name: {text}");
}

/// Options of a run that is only reported of.
pub(crate) fn options(run: RunId) -> Options {
    Options {
        run,
        first_branch: BranchId([1; 16]),
        starts: 1,
        lease_ttl_ms: 1,
        checkpoint_every_versions: 1,
        checkpoint_every_ms: 1,
    }
}

fn run_report(run: RunId, name: &str, agents: Vec<AgentStatus>) -> StatusReport {
    let options = options(run);
    let accepted = agents.iter().map(|agent| agent.updates_accepted).sum();
    StatusReport {
        serving: true,
        updates_accepted: accepted,
        ..report(&options, name, None, Chain::default(), agents, 0)
    }
}

fn run_view(own: bool, report: StatusReport) -> RunView {
    let summary = RunSummary {
        name: report.name.clone(),
        run: Some(report.run),
        own,
        weight: 1,
        state: RunStanding::Running,
        version: None,
        updates_accepted: report.updates_accepted,
        agents: report.agents.len() as u64,
        connected: 0,
        problem: None,
    };
    RunView { summary, report: Some(Box::new(report)), queues: Some(RunQueues::default()) }
}

fn agent(number: usize) -> AgentStatus {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    let agent = AgentId(id);
    AgentStatus {
        name: format!("agent-{number}"),
        connected: true,
        updates_accepted: number as u64,
        lag_versions: Some(number as u64),
        ..unseen(agent)
    }
}

/// The value of a series.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Prometheus refuses a scrape with a repeated series, or with a line that is no sample.
#[test]
fn every_line_is_a_series_of_its_own_with_a_described_name() {
    let mut snapshot = snapshot();
    let own = run_report(RunId([1; 16]), "a \"name\"\nof two\\lines", vec![agent(1), agent(2)]);
    let same = run_report(RunId([2; 16]), &own.name, vec![agent(1)]);
    snapshot.view.runs = vec![run_view(true, own), run_view(false, same)];
    let text = Figures::new(Arc::default()).text(&Arc::new(snapshot));
    let (mut series, mut described) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.split(' ');
            let (kind, name) = (words.next(), words.next().expect("a name"));
            assert!(matches!(kind, Some("HELP" | "TYPE")), "{line}");
            assert!(described.insert((kind, name)), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect("a series and its value");
        value.parse::<f64>().expect("a number");
        assert!(series.insert(name), "{line}");
        let name = name.split('{').next().expect("a name");
        assert!(described.contains(&(Some("HELP"), name)) && described.contains(&(Some("TYPE"), name)), "{line}");
    }
    let served: BTreeSet<&str> = series.iter().filter_map(|series| series.split('{').next()).collect();
    for name in ["anabranch_run_agent_lag_versions", "anabranch_queue_bytes_limit", "anabranch_runs"] {
        assert!(served.contains(name), "{name} is not in\n{text}");
    }
}

#[test]
fn names_say_their_unit_and_whether_they_only_grow() {
    let all: Vec<&str> = names().map(|name| name.name).collect();
    let unique: BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(unique.len(), all.len(), "a name twice");
    for Name { name, kind, help } in names() {
        assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        assert!(
            name.starts_with("anabranch_") && !name.starts_with("anabranch_agent_"),
            "{name} may be an agent's own"
        );
        let is_plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(is_plain && !help.is_empty() && !help.ends_with('.'), "{name}: {help}");
    }
}

#[test]
fn agents_beyond_the_bound_share_series_and_those_with_series_keep_them() {
    let many = limits::METRICS_AGENTS + 10;
    let of = |agents: Vec<AgentStatus>| {
        let mut snapshot = snapshot();
        snapshot.view.runs = vec![run_view(true, run_report(RunId([1; 16]), "digits", agents))];
        Arc::new(snapshot)
    };
    let mut figures = Figures::new(Arc::default());
    let text = figures.text(&of((0..many).map(agent).collect()));
    let of_agent = |text: &str, name: &str, agent: &str, id: &str| {
        value(text, &format!("{name}{{run=\"digits\",agent=\"{agent}\",agent_id=\"{id}\"}}"))
    };
    let accepted = "anabranch_run_agent_updates_accepted_total";
    // The ten with the fewest updates: 0 to 9.
    assert_eq!(of_agent(&text, accepted, "other", ""), Some(45.0));
    assert_eq!(of_agent(&text, "anabranch_run_agent_lag_versions", "other", ""), Some(9.0));
    assert_eq!(of_agent(&text, "anabranch_run_agent_connected", "other", ""), Some(10.0));
    let lines = text.lines().filter(|line| line.starts_with(accepted)).count();
    assert_eq!(lines, limits::METRICS_AGENTS + 1);

    // One of the ten overtakes all, and stays where it was counted.
    let mut later: Vec<AgentStatus> = (0..many).map(agent).collect();
    later[3].updates_accepted += 1_000_000;
    let text = figures.text(&of(later));
    assert_eq!(of_agent(&text, accepted, "other", ""), Some(1_000_045.0));
    let id = agent(10).agent.to_string();
    assert_eq!(of_agent(&text, accepted, "agent-10", &id), Some(10.0));
}
