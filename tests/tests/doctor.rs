//! `doctor` of both daemons against real processes: each fault of the way or of the machine is told apart from the others,
//! has its exit code, and says what to do; nothing is changed by looking.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anabranch_agent::config::AgentDir;
use anabranch_agent::identity::{AgentKey, read_certificate, write_certificate};
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::{Agree, Propose};
use anabranch_coordinator::identity::Identity;
use anabranch_io::{frames, tls};
use anabranch_tests::chaos::link::Conditions;
use anabranch_tests::chaos::proxy::{Proxy, Shape};
use anabranch_tests::chaos::shim::{NO_COMPILER, Setting, Shim};
use anabranch_tests::clock::unix_ms;
use anabranch_tests::process::{Cluster, DIGITS, Ended, Role};
use anyhow::{Context as _, ensure};
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const DAY_S: i64 = 24 * 3600;
const SECOND: Duration = Duration::from_secs(1);

/// What `doctor --json` has printed.
struct Report(Value);

impl Report {
    fn of(ended: &Ended) -> anyhow::Result<Self> {
        let unreadable = || format!("no report; standard error:\n{}", ended.stderr);
        Ok(Self(serde_json::from_str(&ended.stdout).with_context(unreadable)?))
    }

    fn finding(&self, check: &str) -> anyhow::Result<&Value> {
        let findings = self.0["findings"].as_array().context("a list of findings")?;
        findings.iter().find(|finding| finding["check"] == check).with_context(|| format!("no {check} in {}", self.0))
    }

    /// Checks the outcome of a check, and that its line has these words.
    fn says(&self, check: &str, outcome: &str, words: &str) -> anyhow::Result<&Self> {
        let finding = self.finding(check)?;
        let measured = finding["measured"].as_str().unwrap_or_default();
        ensure!(finding["outcome"] == outcome && measured.contains(words), "{check}: {finding}");
        let needs_advice = ["warning", "failure"].contains(&outcome);
        ensure!(finding["advice"].is_string() == needs_advice, "{check} says what to do: {finding}");
        Ok(self)
    }
}

/// `doctor --json` of the agent, with these options; its exit code must be `code`.
fn doctor(cluster: &Cluster, options: &[&str], code: i32) -> anyhow::Result<Report> {
    let args: Vec<&OsStr> = ["doctor", "--json"].iter().chain(options).map(OsStr::new).collect();
    Report::of(&cluster.call(Role::Agent, &args)?.code(code)?)
}

/// The same of the coordinator.
fn doctor_of_coordinator(cluster: &Cluster, code: i32) -> anyhow::Result<Report> {
    Report::of(&cluster.coordinate(&["doctor"], &["--json"])?.code(code)?)
}

/// A daemon's command with further variables in its environment.
fn call_with(role: Role, args: &[&str], env: &[(&str, String)]) -> anyhow::Result<Ended> {
    let mut command = Command::new(LAB);
    command.arg(role.arg()).args(args).envs(env.iter().map(|(key, value)| (key, value))).stdin(Stdio::null());
    let ended = command.output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { code: ended.status.code(), stdout: text(&ended.stdout), stderr: text(&ended.stderr) })
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path in UTF-8")
}

/// A coordinator that serves a run of native models.
fn serving() -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    Ok(cluster)
}

/// A file with a token that leads to this port of the loopback interface.
fn token_file(cluster: &Cluster, port: u16) -> anyhow::Result<PathBuf> {
    let token = cluster.token(&["--address", &format!("127.0.0.1:{port}")])?;
    let path = cluster.path().join(format!("token-{port}"));
    std::fs::write(&path, format!("{token}\n"))?;
    Ok(path)
}

fn shim(cluster: &Cluster) -> anyhow::Result<Option<Shim>> {
    let shim = Shim::new(cluster.path())?;
    if shim.is_none() {
        ensure!(std::env::var_os("CI").is_none(), "CI needs a C compiler");
        eprintln!("not checked: {NO_COMPILER}");
    }
    Ok(shim)
}

#[test]
fn a_healthy_machine_is_told_so_before_and_after_joining() -> anyhow::Result<()> {
    let cluster = serving()?;
    let dir = cluster.agent_dir("one");
    let token = token_file(&cluster, cluster.port())?;
    let options = ["--token-file", text(&token)?, "--dir", text(&dir)?];
    let report = doctor(&cluster, &options, 0)?;
    for check in ["address", "udp", "tls", "protocol", "clock", "server-certificate"] {
        report.says(check, "ok", "")?;
    }
    report.says("membership", "skipped", "not joined yet")?.says("first-update", "skipped", "join first")?;
    let rate = report.finding("line")?["figures"]["bits_per_s"].as_f64();
    assert!(rate.is_some_and(|rate| rate > 0.0), "{rate:?}");
    assert!(!dir.exists(), "looking makes no directory");

    // The token was not used up.
    cluster.join_with(std::fs::read_to_string(&token)?.trim(), "one")?.code(0)?;
    let position = cluster.status()?.position;
    let report = doctor(&cluster, &["--dir", text(&dir)?], 0)?;
    report.says("certificate", "ok", "of 30 days")?.says("membership", "ok", "may take part in run")?;
    report.says("first-update", "ok", "parameters: connect")?;
    assert!(report.finding("memory")?["figures"]["needed_bytes"].is_u64(), "the run's model is known");
    assert_eq!(cluster.status()?.position, position, "no record comes of looking");

    let table = cluster.call(Role::Agent, &["doctor".as_ref(), "--dir".as_ref(), dir.as_os_str()])?.code(0)?;
    assert!(table.stdout.starts_with("checked agent-") && table.stdout.contains("\nok       udp "), "{}", table.stdout);
    Ok(())
}

#[test]
fn what_is_wrong_with_the_way_is_told_apart() -> anyhow::Result<()> {
    let cluster = serving()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let both = |line: Conditions| Shape { up: line.clone(), down: line, rebind_ms: 0 };
    let cut = Conditions { cut: true, ..Conditions::default() };
    let proxy = Proxy::start(runtime.handle(), cluster.port(), 1, both(cut))?;
    let through = token_file(&cluster, proxy.port())?;
    let through = ["--token-file", text(&through)?];
    let report = doctor(&cluster, &through, 4)?;
    report.says("udp", "failure", "blocked")?.says("tls", "skipped", "needs `udp`")?;
    report.says("udp-rate", "skipped", "")?;

    // A line that takes the first train, and drops most of the last one.
    proxy.shape(both(Conditions { rate_kbit: 800, ..Conditions::default() }));
    let report = doctor(&cluster, &through, 0)?;
    report.says("udp", "ok", "")?.says("udp-rate", "warning", "limited to about")?;

    // A tunnel with the smallest datagrams, and a NAT that gives another address every second.
    let small = Conditions { mtu: 1_200, ..Conditions::default() };
    proxy.shape(Shape { rebind_ms: 1_000, ..both(small) });
    let report = doctor(&cluster, &[&through[..], &["--nat=5"]].concat(), 0)?;
    report.says("path", "warning", "datagrams of up to 1200 bytes")?.says("nat", "warning", "forgotten after 5 s")?;
    drop(proxy);

    let free = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let nobody = token_file(&cluster, free)?;
    doctor(&cluster, &["--token-file", text(&nobody)?], 4)?.says("udp", "failure", "nothing listens")?;
    runtime.shutdown_timeout(SECOND);
    Ok(())
}

#[test]
fn another_ca_and_other_versions_have_their_codes() -> anyhow::Result<()> {
    let mut cluster = serving()?;
    let address = format!("127.0.0.1:{}", cluster.port());
    let other = Cluster::new(Path::new(LAB), DIGITS)?;
    let [ours, theirs] = [&cluster, &other].map(|cluster| cluster.coordinator_dir().join("tls/ca.crt"));
    doctor(&cluster, &["--connect", &address, "--ca", text(&ours)?], 0)?.says("tls", "ok", "expected one")?;
    let report = doctor(&cluster, &["--connect", &address, "--ca", text(&theirs)?], 5)?;
    report.says("udp", "ok", "")?.says("tls", "failure", "not issued by the CA")?;

    assert_eq!(cluster.park_coordinator()?, 0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let identity = Identity::load(&cluster.coordinator_dir())?;
    let server = tls::server(identity.ca_der(), &identity.server().certificate_der, &identity.server().key_der)?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, cluster.port()));
    let endpoint = runtime.block_on(async { tls::server_endpoint(listen, server) })?;
    let newer = endpoint.clone();
    runtime.spawn(async move {
        while let Some(incoming) = newer.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let Ok((mut send, mut recv)) = connection.accept_bi().await else { continue };
            let _: Propose = frames::recv_one(&mut recv, FrameKind::Propose, 64, 10 * SECOND).await?;
            let answer = Agree::Unsupported { min: 70, max: 71 };
            frames::send(&mut send, FrameKind::Agree, &answer, 64, 10 * SECOND).await?;
            connection.closed().await;
        }
        anyhow::Ok(())
    });
    let report = doctor(&cluster, &["--connect", &address, "--ca", text(&ours)?], 9)?;
    report.says("protocol", "failure", "protocol 70 to 71")?.says("clock", "skipped", "")?;
    endpoint.close(0u32.into(), b"");
    runtime.shutdown_timeout(SECOND);
    Ok(())
}

#[test]
fn a_wrong_clock_is_told_from_a_certificate_that_has_expired() -> anyhow::Result<()> {
    let cluster = serving()?;
    cluster.join("one")?;
    let dir = cluster.agent_dir("one");
    let agent = AgentDir::new(&dir);
    let valid = read_certificate(&agent.certificate())?;
    if let Some(shim) = shim(&cluster)? {
        let switches = shim.switches("one", &dir)?;
        let look = || call_with(Role::Agent, &["doctor", "--json", "--dir", text(&dir)?], &switches.environment());
        // The server's certificate lives for two years, the agent's for thirty days.
        switches.set(Setting { offset_s: 3 * 365 * DAY_S, ..Setting::default() })?;
        let report = Report::of(&look()?.code(12)?)?;
        report.says("clock", "failure", "1095 days ahead")?.says("server-certificate", "ok", "valid for another")?;
        report.says("certificate", "ok", "valid for another")?.says("membership", "ok", "")?;
        switches.set(Setting { offset_s: -90, ..Setting::default() })?;
        Report::of(&look()?.code(0)?)?.says("clock", "warning", "behind")?;
    }
    let identity = Identity::load(&cluster.coordinator_dir())?;
    let request = AgentKey::read(&agent)?.signing_request()?;
    let now_ms = unix_ms();
    let issue = |days_ago: u64| identity.issue_agent(&request, "one", 30, now_ms - days_ago * 86_400_000);
    write_certificate(&agent.certificate(), &issue(40)?.certificate_der)?;
    let report = doctor(&cluster, &["--dir", text(&dir)?], 12)?;
    report.says("clock", "ok", "")?.says("certificate", "failure", "expired")?;
    report.says("membership", "skipped", "needs `certificate`")?;
    write_certificate(&agent.certificate(), &issue(25)?.certificate_der)?;
    doctor(&cluster, &["--dir", text(&dir)?], 0)?.says("certificate", "warning", "valid for another")?;

    write_certificate(&agent.certificate(), &valid)?;
    cluster.coordinate(&["agents", "revoke"], &["one"])?.code(0)?;
    doctor(&cluster, &["--dir", text(&dir)?], 5)?.says("membership", "failure", "revoked")?;
    Ok(())
}

#[test]
fn disks_that_are_full_or_slow_are_told() -> anyhow::Result<()> {
    let cluster = serving()?;
    cluster.join("one")?;
    let dir = cluster.agent_dir("one");
    let Some(shim) = shim(&cluster)? else { return Ok(()) };
    let switches = shim.switches("one", &dir)?;
    let look = || call_with(Role::Agent, &["doctor", "--json", "--dir", text(&dir)?], &switches.environment());
    switches.set(Setting { full: true, ..Setting::default() })?;
    Report::of(&look()?.code(6)?)?.says("disk-space", "failure", "cannot be written")?;
    switches.set(Setting { sync_ms: 80, ..Setting::default() })?;
    let report = Report::of(&look()?.code(0)?)?;
    report.says("disk-sync", "warning", "median")?;
    let left = std::fs::read_dir(&dir)?.flatten().map(|entry| entry.file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().starts_with(".doctor")).count(), 0);
    Ok(())
}

#[test]
fn a_coordinators_directory_is_checked_beside_it_and_without_it() -> anyhow::Result<()> {
    let mut cluster = serving()?;
    let report = doctor_of_coordinator(&cluster, 0)?;
    report.says("config", "ok", "")?.says("keys", "ok", "")?.says("store", "ok", "in use by")?;
    report.says("port", "ok", "this directory's coordinator answers")?.says("software", "ok", "as the coordinator")?;
    for check in ["ca-certificate", "server-certificate", "operator-certificate"] {
        report.says(check, "ok", "valid for another")?;
    }
    assert_eq!(cluster.park_coordinator()?, 0);
    let report = doctor_of_coordinator(&cluster, 0)?;
    report.says("store", "ok", "readable: schema")?.says("port", "ok", "is free")?;
    for check in ["names", "socket-buffers", "clock", "open-files", "memory", "disk-space", "disk-speed", "disk-sync"] {
        report.finding(check)?;
    }

    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, cluster.port()))?;
    doctor_of_coordinator(&cluster, 13)?.says("port", "failure", "another program")?;
    drop(taken);
    if let Some(shim) = shim(&cluster)? {
        let dir = cluster.coordinator_dir();
        let switches = shim.switches("coordinator", &dir)?;
        switches.set(Setting { offset_s: -10 * DAY_S, ..Setting::default() })?;
        let args = ["doctor", "--json", "--dir", text(&dir)?];
        let report = Report::of(&call_with(Role::Coordinator, &args, &switches.environment())?.code(12)?)?;
        report.says("clock", "failure", "went back")?.says("server-certificate", "failure", "valid only in")?;
    }
    cluster.edit("[server]", "[servant]")?;
    doctor_of_coordinator(&cluster, 3)?.says("config", "failure", "servant")?.finding("disk-space")?;
    Ok(())
}
