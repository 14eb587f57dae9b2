//! Certificates over their life, with real processes: keys are rotated, the CA is replaced, certificates expire under a clock
//! that is set forward, and a member is revoked, all of it in mid-run.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anabranch_agent::config::AgentDir;
use anabranch_agent::identity::{AgentKey, own_certificate, read_authorities};
use anabranch_common::status::{AgentStatus, CaStatus};
use anabranch_common::token::JoinToken;
use anabranch_tests::chaos::shim::{NO_COMPILER, Setting, Shim, Switches};
use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, Ended, PATIENCE, Role, example, http_get, series};
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const DAY_S: i64 = 24 * 3600;

/// A run that does not end by itself.
fn endless() -> anyhow::Result<Cluster> {
    Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 1000000"))
}

fn start_agent(cluster: &mut Cluster, name: &str, env: &[(&str, &str)]) -> anyhow::Result<()> {
    let data = example("data/digits-train.csv.gz");
    let args = ["--shard".as_ref(), data.as_os_str(), "--threads=1".as_ref(), "--min-round=50".as_ref()];
    cluster.start_agent(Role::Agent, name, &args, env)?;
    Ok(())
}

/// Waits until so many more updates were merged: those of the past may have been on their way.
fn wait_for_more(cluster: &mut Cluster, more: u64) -> anyhow::Result<()> {
    let before = cluster.status()?.updates_accepted;
    cluster.wait_for_updates(before + more).map(drop)
}

fn agents(cluster: &Cluster) -> anyhow::Result<Vec<AgentStatus>> {
    let ended = cluster.coordinate(&["agents", "list"], &["--json"])?.code(0)?;
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Waits until no agent is to have a new key any more.
fn wait_until_rotated(cluster: &Cluster) -> anyhow::Result<Vec<AgentStatus>> {
    let rotated = poll(PATIENCE, || {
        let agents = agents(cluster)?;
        Ok((!agents.iter().any(|agent| agent.rotates)).then_some(agents))
    })?;
    rotated.with_context(|| format!("an agent has no new key\n{}", cluster.logs()))
}

fn ca_status(cluster: &Cluster) -> anyhow::Result<CaStatus> {
    let ended = cluster.coordinate(&["ca", "status"], &["--json"])?.code(0)?;
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Waits until these agents alone have not moved to the next CA.
fn wait_until_left(cluster: &Cluster, names: &[&str]) -> anyhow::Result<()> {
    let left = poll(PATIENCE, || {
        let CaStatus { waiting, .. } = ca_status(cluster)?;
        Ok(waiting.iter().map(|member| member.name.as_str()).eq(names.iter().copied()).then_some(()))
    })?;
    left.with_context(|| format!("not only {names:?} are left: {:?}\n{}", ca_status(cluster), cluster.logs()))
}

/// The id of the key that counts in an agent's directory.
fn key(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    Ok(AgentKey::read(&AgentDir::new(cluster.agent_dir(name)))?.id().to_string())
}

fn certificate(cluster: &Cluster, name: &str) -> anyhow::Result<Vec<u8>> {
    Ok(own_certificate(&AgentDir::new(cluster.agent_dir(name)))?.to_vec())
}

/// Copies what says who an agent is, and nothing of its work.
fn steal(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(to)?;
    let copied = Command::new("cp").arg("-a").args([from.join("tls"), from.join("agent.toml")]).arg(to).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}

/// SIGTERM to an agent, which ends with 0.
fn park(cluster: &mut Cluster, name: &str) -> anyhow::Result<()> {
    cluster.agent(name)?.signal(Signal::SIGTERM)?;
    let code = cluster.agent(name)?.wait(PATIENCE)?;
    ensure!(code == 0, "{name} ended with {code}\n{}", cluster.logs());
    Ok(())
}

fn kill_and_restart(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()
}

/// Starts an agent that is not let in. Returns what it has logged.
fn turned_away(cluster: &mut Cluster, name: &str, env: &[(&str, &str)], code: i32) -> anyhow::Result<String> {
    start_agent(cluster, name, env)?;
    let agent = cluster.agent(name)?;
    let ended = agent.wait(PATIENCE)?;
    let log = agent.log()?;
    ensure!(ended == code, "exit code {ended} instead of {code}:\n{log}");
    Ok(log)
}

#[test]
fn keys_are_rotated_in_mid_run_and_the_old_ones_are_refused() -> anyhow::Result<()> {
    let mut cluster = endless()?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    cluster.join("away")?;
    start_agent(&mut cluster, "one", &[])?;
    cluster.wait_for_updates(2)?;
    let (id, first) = (cluster.agent_id("one")?, key(&cluster, "one")?);
    assert_eq!(first, id.to_string());
    steal(&cluster.agent_dir("one"), &cluster.agent_dir("stolen"))?;

    cluster.coordinate(&["agents", "rotate"], &["--all"])?.code(0)?;
    let rotated = poll(PATIENCE, || {
        let left: Vec<_> =
            agents(&cluster)?.into_iter().filter(|agent| agent.rotates).map(|agent| agent.name).collect();
        Ok((left == ["away"]).then_some(()))
    })?;
    rotated.with_context(|| format!("not only `away` is left\n{}", cluster.logs()))?;
    assert_ne!(key(&cluster, "one")?, first);
    wait_for_more(&mut cluster, 3)?;
    let status = cluster.agent_status("one")?;
    assert_eq!((status.agent, cluster.status()?.agents.len()), (id, 2), "it is the same agent");
    let log = turned_away(&mut cluster, "stolen", &[], 5)?;
    assert!(log.contains("was replaced by a newer one"), "{log}");

    // A restart of either side changes nothing, and who was away is asked when it comes back.
    kill_and_restart(&mut cluster)?;
    start_agent(&mut cluster, "away", &[])?;
    let agents = wait_until_rotated(&cluster)?;
    assert!(agents.iter().all(|agent| agent.certificate_expires_at_ms.is_some()), "{agents:?}");
    park(&mut cluster, "one")?;
    start_agent(&mut cluster, "one", &[])?;
    wait_for_more(&mut cluster, 2)?;
    // A further token is for the same member.
    park(&mut cluster, "one")?;
    let token = cluster.token(&["--name", "again"])?;
    cluster.join_with(&token, "one")?.code(0)?;
    start_agent(&mut cluster, "one", &[])?;
    wait_for_more(&mut cluster, 2)?;
    assert_eq!(cluster.status()?.agents.len(), 2);
    cluster.coordinate(&["agents", "rotate"], &["nobody"])?.code(1)?.says(&["no agent is called"])?;
    ["one", "away"].into_iter().try_for_each(|name| park(&mut cluster, name))
}

#[test]
fn the_ca_is_replaced_while_agents_go_on() -> anyhow::Result<()> {
    let mut cluster = endless()?;
    let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    cluster.serve_with(&["--metrics", &metrics]);
    cluster.start_coordinator()?;
    for name in ["one", "away", "lost"] {
        cluster.join(name)?;
    }
    start_agent(&mut cluster, "one", &[])?;
    cluster.wait_for_updates(2)?;
    let old = ca_status(&cluster)?.current.fingerprint;
    let early = cluster.token(&["--name", "early"])?;

    cluster.coordinate(&["ca", "rotate"], &[])?.code(0)?;
    wait_until_left(&cluster, &["away", "lost"])?;
    cluster.coordinate(&["ca", "rotate"], &[])?.code(4)?.says(&["a rollover is under way"])?;
    let next = ca_status(&cluster)?.next.context("a next CA")?.fingerprint;
    let text = http_get(&metrics, "/metrics")?;
    for certificate in ["ca", "server", "next/ca", "next/server"] {
        let name = format!("anabranch_certificate_expiry_time_seconds{{certificate=\"{certificate}\"}}");
        assert!(series(&text, &name).is_some(), "no {name} in\n{text}");
    }
    let report: Value = serde_json::from_str(&cluster.coordinate(&["doctor"], &["--json"])?.code(0)?.stdout)?;
    let findings = report["findings"].as_array().context("findings")?;
    assert!(findings.iter().any(|finding| finding["check"] == "next-ca-certificate" && finding["outcome"] == "ok"));

    // Both are trusted after a kill too: an agent that knows the old one alone comes back, and tokens of either time join.
    kill_and_restart(&mut cluster)?;
    start_agent(&mut cluster, "away", &[])?;
    wait_until_left(&cluster, &["lost"])?;
    cluster.join_with(&early, "early")?.code(0)?;
    let token = cluster.token(&["--name", "late"])?;
    assert_eq!(token.parse::<JoinToken>()?.ca_fingerprints, [old, next]);
    cluster.coordinate(&["ca", "finish"], &[])?.code(4)?.says(&["early, lost", "--force"])?;
    wait_for_more(&mut cluster, 3)?;

    cluster.coordinate(&["ca", "finish"], &["--force"])?.code(0)?;
    wait_for_more(&mut cluster, 3)?;
    assert_eq!(ca_status(&cluster)?.current.fingerprint, next);
    kill_and_restart(&mut cluster)?;
    wait_for_more(&mut cluster, 3)?;
    let trusted = |name: &str| read_authorities(&AgentDir::new(cluster.agent_dir(name)).ca());
    for name in ["one", "away"] {
        let forgotten = poll(PATIENCE, || Ok((trusted(name)?.fingerprints() == [next]).then_some(())))?;
        forgotten.with_context(|| format!("{name} trusts the old CA\n{}", cluster.logs()))?;
    }
    let log = turned_away(&mut cluster, "lost", &[], 5)?;
    assert!(log.contains("join again"), "{log}");
    cluster.join_with(&token, "late")?.code(0)?;
    start_agent(&mut cluster, "late", &[])?;
    start_agent(&mut cluster, "early", &[])?;
    wait_for_more(&mut cluster, 3)?;
    for name in ["one", "away", "early", "late"] {
        park(&mut cluster, name)?;
    }
    assert_eq!(cluster.park_coordinator()?, 0);
    cluster.coordinate(&["ca", "rotate"], &[])?.code(0)?;
    assert!(ca_status(&cluster)?.next.is_some(), "the same without a process");
    Ok(())
}

#[test]
fn a_revoked_agent_that_is_connected_is_closed_out() -> anyhow::Result<()> {
    let mut cluster = endless()?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    start_agent(&mut cluster, "one", &[])?;
    cluster.wait_for_updates(2)?;
    cluster.coordinate(&["agents", "revoke"], &["one"])?.code(0)?;
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 5);
    let log = cluster.agent("one")?.log()?;
    assert!(log.contains("was revoked"), "{log}");
    cluster.wait_until("it is gone", PATIENCE, |status| {
        status.agents.iter().all(|agent| agent.revoked && !agent.connected)
    })?;
    turned_away(&mut cluster, "one", &[], 5).map(drop)
}

/// Daemons with a clock that can be set.
struct Shifted {
    cluster: Cluster,
    switches: [Switches; 2],
}

impl Shifted {
    fn new() -> anyhow::Result<Option<Self>> {
        let cluster = endless()?;
        let Some(shim) = Shim::new(cluster.path())? else {
            ensure!(std::env::var_os("CI").is_none(), "CI needs a C compiler");
            eprintln!("not checked: {NO_COMPILER}");
            return Ok(None);
        };
        let dirs: [(&str, PathBuf); 2] =
            [("coordinator", cluster.coordinator_dir()), ("one", cluster.agent_dir("one"))];
        let [coordinator, one] = dirs.map(|(node, dir)| shim.switches(node, &dir));
        Ok(Some(Self { cluster, switches: [coordinator?, one?] }))
    }

    /// Sets both clocks so many days forward.
    fn set(&self, days: i64) -> anyhow::Result<()> {
        let setting = Setting { offset_s: days * DAY_S, ..Setting::default() };
        self.switches.iter().try_for_each(|switches| switches.set(setting))
    }

    fn start_coordinator(&mut self) -> anyhow::Result<()> {
        let env = self.switches[0].environment();
        self.cluster.spawn_coordinator(&borrowed(&env))?.wait_for_log(" serving listen=", PATIENCE)
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        let env = self.switches[1].environment();
        start_agent(&mut self.cluster, "one", &borrowed(&env))
    }

    /// A verb under the clock of the daemons.
    fn call(&self, role: Role, args: &[&OsStr]) -> anyhow::Result<Ended> {
        let mut command = Command::new(LAB);
        command.arg(role.arg()).args(args).envs(self.switches[0].environment()).stdin(Stdio::null());
        let ended = command.output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ended { code: ended.status.code(), stdout: text(&ended.stdout), stderr: text(&ended.stderr) })
    }

    fn coordinate(&self, verb: &[&str], rest: &[&str]) -> anyhow::Result<Ended> {
        let dir = self.cluster.coordinator_dir();
        let verb = verb.iter().map(OsStr::new);
        let args: Vec<&OsStr> =
            verb.chain(["--dir".as_ref(), dir.as_os_str()]).chain(rest.iter().map(OsStr::new)).collect();
        self.call(Role::Coordinator, &args)
    }

    fn updates(&self) -> anyhow::Result<u64> {
        let ended = self.coordinate(&["status"], &["--json"])?.code(0)?;
        let status: Value = serde_json::from_str(&ended.stdout)?;
        status["updates_accepted"].as_u64().context("a number of updates")
    }

    fn wait_for_more(&self) -> anyhow::Result<()> {
        let before = self.updates()?;
        let more = poll(PATIENCE, || Ok((self.updates()? > before + 2).then_some(())))?;
        more.with_context(|| format!("no updates\n{}", self.cluster.logs()))
    }

    fn join(&self) -> anyhow::Result<()> {
        let token = self.coordinate(&["token", "create"], &["--name", "one"])?.code(0)?.stdout;
        let dir = self.cluster.agent_dir("one");
        let args = ["join".as_ref(), "--token".as_ref(), token.trim().as_ref(), "--dir".as_ref(), dir.as_os_str()];
        self.call(Role::Agent, &args)?.code(0).map(drop)
    }
}

fn borrowed<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    env.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

#[test]
fn certificates_are_renewed_before_they_expire_and_one_that_has_expired_says_what_to_do() -> anyhow::Result<()> {
    let Some(mut shifted) = Shifted::new()? else { return Ok(()) };
    shifted.start_coordinator()?;
    shifted.join()?;
    shifted.start_agent()?;
    shifted.wait_for_more()?;
    let id = shifted.cluster.agent_id("one")?;
    let first = certificate(&shifted.cluster, "one")?;

    // As on a machine that wakes up after three weeks: the certificate lives for nine more days.
    shifted.set(21)?;
    let renewed = poll(PATIENCE, || Ok((certificate(&shifted.cluster, "one")? != first).then_some(())))?;
    renewed.with_context(|| format!("not renewed\n{}", shifted.cluster.logs()))?;
    shifted.set(31)?;
    shifted.cluster.coordinator()?.kill()?;
    shifted.start_coordinator()?;
    shifted.wait_for_more()?;

    // One that sleeps for longer than its certificate lives.
    park(&mut shifted.cluster, "one")?;
    shifted.set(31 + 31)?;
    let env = shifted.switches[1].environment();
    let log = turned_away(&mut shifted.cluster, "one", &borrowed(&env), 12)?;
    assert!(log.contains("certificate has expired") && log.contains("join again with a new token"), "{log}");
    shifted.join()?;
    shifted.start_agent()?;
    shifted.wait_for_more()?;
    assert_eq!(shifted.cluster.agent_id("one")?, id, "it is the same agent");

    // The server's certificate lives for two years; a start after two thirds of that renews it.
    park(&mut shifted.cluster, "one")?;
    shifted.cluster.coordinator()?.signal(Signal::SIGTERM)?;
    assert_eq!(shifted.cluster.coordinator()?.wait(PATIENCE)?, 0);
    shifted.set(500)?;
    shifted.start_coordinator()?;
    let log = shifted.cluster.coordinator()?.log()?;
    assert!(log.contains("renewed the server's certificate"), "{log}");
    shifted.set(800)?;
    shifted.join()?;
    shifted.start_agent()?;
    shifted.wait_for_more()?;
    park(&mut shifted.cluster, "one")
}
