//! What goes wrong between two daemons: each case has its exit code, says what to do, and loses nothing (the run goes on
//! when the cause is gone). What one daemon can get wrong by itself stands in the tests of its own crate.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anabranch_agent::config::AgentDir;
use anabranch_agent::identity::{AgentKey, read_certificate, write_certificate};
use anabranch_common::status::TokenStatus;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::{Agree, MAX_PROTOCOL, MIN_PROTOCOL, Propose, Purpose};
use anabranch_coordinator::identity::Identity;
use anabranch_io::{frames, tls};
use anabranch_tests::clock::{poll, unix_ms};
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, DIGITS, Ended, PATIENCE, Role, example};

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const SECOND: Duration = Duration::from_secs(1);
const DAY_MS: u64 = 24 * 3600 * 1000;

fn serving() -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    cluster.start_coordinator()?;
    Ok(cluster)
}

/// The same of a run whose model the agents build themselves.
fn native() -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 1000000"))?;
    cluster.start_coordinator()?;
    Ok(cluster)
}

/// The run of an agent to its end, natively.
fn run_agent(cluster: &Cluster, name: &str, shard: &Path) -> anyhow::Result<Ended> {
    let dir = cluster.agent_dir(name);
    let args = ["run".as_ref(), "--dir".as_ref(), dir.as_os_str(), "--shard".as_ref(), shard.as_os_str()];
    cluster.call(Role::Agent, &args)
}

fn shard(cluster: &Cluster) -> anyhow::Result<std::path::PathBuf> {
    let path = cluster.path().join("shard.csv");
    std::fs::write(&path, "a,b,c,label\n1,2,3,0\n4,5,6,1\n")?;
    Ok(path)
}

/// Starts an agent of the ledger, and sees that it gets work done.
fn goes_on(cluster: &mut Cluster, name: &str) -> anyhow::Result<()> {
    let before = cluster.status()?.updates_accepted;
    cluster.start_ledger_agent(name, &[])?;
    cluster.wait_for_updates(before + 3)?;
    Ok(())
}

/// Starts an agent of such a run, and sees that it gets work done.
fn learns(cluster: &mut Cluster, name: &str) -> anyhow::Result<()> {
    let shard = example("data/digits-train.csv.gz");
    cluster.start_agent(Role::Agent, name, &["--shard".as_ref(), shard.as_os_str()], &[])?;
    cluster.wait_for_updates(3)?;
    Ok(())
}

#[test]
fn tokens_that_are_used_up_expired_revoked_or_mistyped_are_told_apart() -> anyhow::Result<()> {
    let mut cluster = serving()?;
    let token = cluster.token(&["--name", "one"])?;
    let mut mistyped = token.clone().into_bytes();
    let middle = mistyped.len() / 2;
    mistyped[middle] = if mistyped[middle] == b'a' { b'b' } else { b'a' };
    let mistyped = String::from_utf8(mistyped)?;
    cluster.join_with(&mistyped, "mistyped")?.code(5)?.says(&["mistyped", "help: copy the whole line"])?;
    assert!(!cluster.agent_dir("mistyped").exists(), "nothing is made for a token that was mistyped");
    cluster.join_with(&token[..token.len() - 10], "cut")?.code(5)?.says(&["join token"])?;

    cluster.join_with(&token, "one")?.code(0)?;
    cluster.join_with(&token, "one")?.code(0)?;
    cluster.join_with(&token, "two")?.code(5)?.says(&["used up", "token create"])?;

    let revoked = cluster.token(&["--name", "revoked"])?;
    let tokens: Vec<TokenStatus> =
        serde_json::from_str(&cluster.coordinate(&["token", "list"], &["--json"])?.code(0)?.stdout)?;
    let id = tokens.iter().find(|token| token.name.as_deref() == Some("revoked")).map(|token| token.id.clone());
    cluster.coordinate(&["token", "revoke"], &[&id.expect("it is listed")])?.code(0)?;
    cluster.join_with(&revoked, "two")?.code(5)?.says(&["does not know this token", "token create"])?;

    let expired = cluster.token(&["--ttl", "1s"])?;
    let until = unix_ms() + 1_000;
    poll(10 * SECOND, || Ok((unix_ms() > until).then_some(())))?.expect("a second passes");
    cluster.join_with(&expired, "two")?.code(5)?.says(&["expired", "token create"])?;

    let fresh = cluster.token(&["--name", "two"])?;
    cluster.join_with(&fresh, "two")?.code(0)?;
    goes_on(&mut cluster, "two")
}

#[test]
fn an_agent_of_another_coordinator_is_told_whom_it_belongs_to() -> anyhow::Result<()> {
    let (mut ours, mut theirs) = (serving()?, serving()?);
    ours.join("one")?;
    let config = ours.agent_dir("one").join("agent.toml");
    let right = std::fs::read_to_string(&config)?;
    std::fs::write(&config, right.replace(&ours.port().to_string(), &theirs.port().to_string()))?;
    let shard = shard(&ours)?;
    run_agent(&ours, "one", &shard)?.code(5)?.says(&["CA"])?;
    // A token of the one does not open the other either, and the directory of an agent keeps its run.
    let token = theirs.token(&[])?;
    ours.join_with(&token, "one")?.code(3)?.says(&["another coordinator", "help: "])?;
    let astray = theirs.token(&["--address", &format!("127.0.0.1:{}", ours.port())])?;
    let said = ["the token is from another coordinator than the one at 127.0.0.1:", "new token"];
    ours.join_with(&astray, "two")?.code(5)?.says(&said)?;
    std::fs::write(&config, right)?;
    goes_on(&mut ours, "one")?;
    assert_eq!(theirs.park_coordinator()?, 0);
    Ok(())
}

/// An operator cannot "join again": the help is another than an agent's.
#[test]
fn an_operator_is_told_what_an_operator_can_do() -> anyhow::Result<()> {
    let cluster = serving()?;
    let other = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    let file = |name: &str| other.coordinator_dir().join("tls").join(name).display().to_string();
    let (address, certificate) = (format!("127.0.0.1:{}", cluster.port()), file("operator.crt"));
    let (key, ca) = (file("operator.key"), file("ca.crt"));
    let args = ["status", "--connect", &address, "--cert", &certificate, "--key", &key, "--ca", &ca];
    let args = args.map(AsRef::as_ref);
    cluster.call(Role::Coordinator, &args)?.code(5)?.says(&[&format!("help: the coordinator at {address}"), "tls/"])?;
    let out = cluster.path().join("nowhere/model.safetensors").display().to_string();
    let said = ["nowhere does not exist", "help: make it with `mkdir -p "];
    cluster.coordinate(&["checkpoint", "export"], &["--out", &out])?.code(2)?.says(&said)?;
    Ok(())
}

#[test]
fn a_shard_that_does_not_fit_the_model_is_refused_before_anything_is_trained() -> anyhow::Result<()> {
    let mut cluster = native()?;
    cluster.join("one")?;
    let shard = shard(&cluster)?;
    run_agent(&cluster, "one", &shard)?.code(8)?.says(&["[3]", "shard inspect"])?;
    let missing = cluster.path().join("nowhere.csv");
    run_agent(&cluster, "one", &missing)?.code(8)?.says(&["nowhere.csv", "help: "])?;
    assert_eq!(cluster.status()?.updates_accepted, 0);
    learns(&mut cluster, "one")
}

#[test]
fn an_agents_directory_serves_one_process_at_a_time() -> anyhow::Result<()> {
    let mut cluster = serving()?;
    cluster.join("one")?;
    goes_on(&mut cluster, "one")?;
    let shard = shard(&cluster)?;
    run_agent(&cluster, "one", &shard)?.code(7)?.says(&["in use by process"])?;
    let before = cluster.status()?.updates_accepted;
    cluster.wait_for_updates(before + 3)?;
    Ok(())
}

#[test]
fn one_identity_in_two_directories_is_noticed() -> anyhow::Result<()> {
    let mut cluster = serving()?;
    cluster.join("one")?;
    goes_on(&mut cluster, "one")?;
    let (from, to) = (cluster.agent_dir("one"), cluster.agent_dir("copy"));
    std::fs::create_dir_all(to.join("tls"))?;
    for file in ["agent.toml", "tls/agent.crt", "tls/agent.key", "tls/ca.crt"] {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    cluster.start_ledger_agent("copy", &[])?;
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 5, "{}", cluster.logs());
    assert!(cluster.agent("one")?.log()?.contains("another process"), "{}", cluster.logs());
    Ok(())
}

#[test]
fn a_model_that_is_not_the_runs_is_refused_on_resume() -> anyhow::Result<()> {
    let mut cluster = serving()?;
    cluster.join("one")?;
    goes_on(&mut cluster, "one")?;
    assert_eq!(cluster.park_coordinator()?, 0);
    let before = cluster.status()?;
    cluster.edit("input = [16384]", "input = [100]")?;
    let said = ["model.input is [100] in run.toml and [16384] in the run", "help: put these keys back"];
    cluster.coordinate(&["config", "check"], &[])?.code(10)?.says(&said)?;
    cluster.coordinate(&["run"], &[])?.code(10)?.says(&said)?;
    cluster.edit("input = [100]", "input = [16384]")?;
    cluster.start_coordinator()?;
    let status = cluster.wait_for_updates(before.updates_accepted + 3)?;
    assert_eq!(status.run, before.run);
    Ok(())
}

#[test]
fn an_agent_whose_trainer_builds_another_model_is_refused() -> anyhow::Result<()> {
    let mut cluster = native()?;
    cluster.join("one")?;
    cluster.join("ledger")?;
    learns(&mut cluster, "one")?;
    let dir = cluster.agent_dir("ledger");
    let other = cluster.call(Role::LedgerAgent, &["--dir".as_ref(), dir.as_os_str()])?;
    other.code(10)?.says(&["it lacks fc1.weight [32, 64]", "the run has no ledger [64]", "help: "])?;
    let before = cluster.status()?.updates_accepted;
    cluster.wait_for_updates(before + 3)?;
    Ok(())
}

#[test]
fn a_certificate_that_is_not_valid_now_names_the_clock() -> anyhow::Result<()> {
    let mut cluster = serving()?;
    cluster.join("one")?;
    let dir = AgentDir::new(cluster.agent_dir("one"));
    let good = read_certificate(&dir.certificate())?;
    let csr = AgentKey::read(&dir)?.signing_request()?;
    let identity = Identity::load(&cluster.coordinator_dir())?;
    let shard = shard(&cluster)?;
    for at_ms in [unix_ms() - 100 * DAY_MS, unix_ms() + 100 * DAY_MS] {
        let issued = identity.issue_agent(&csr, "one", 30, at_ms)?;
        write_certificate(&dir.certificate(), &issued.certificate_der)?;
        run_agent(&cluster, "one", &shard)?.code(12)?.says(&["clock"])?;
    }
    write_certificate(&dir.certificate(), &good)?;
    goes_on(&mut cluster, "one")
}

/// What one end of another version says, over real TLS.
#[test]
fn protocol_versions_that_do_not_match_are_told_by_number() -> anyhow::Result<()> {
    let mut cluster = serving()?;
    cluster.join("one")?;
    let dir = AgentDir::new(cluster.agent_dir("one"));
    let (certificate, ca) = (read_certificate(&dir.certificate())?, read_certificate(&dir.ca())?);
    let key = AgentKey::read(&dir)?.to_der();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;

    // A newer agent at our coordinator.
    let address = format!("127.0.0.1:{}", cluster.port());
    let config = tls::client(&ca, &certificate, &key)?;
    let answer: Agree = runtime.block_on(async {
        let endpoint = tls::client_endpoint()?;
        let connection = tls::connect(&endpoint, &address, config).await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        let propose = Propose { min: 9, max: 9, purpose: Purpose::Agent };
        frames::send(&mut send, FrameKind::Propose, &propose, 64, 10 * SECOND).await?;
        anyhow::Ok(frames::recv_one(&mut recv, FrameKind::Agree, 64, 10 * SECOND).await?)
    })?;
    assert_eq!(answer, Agree::Unsupported { min: MIN_PROTOCOL, max: MAX_PROTOCOL });

    // Our agent at a newer coordinator, which has the right certificates.
    assert_eq!(cluster.park_coordinator()?, 0);
    let identity = Identity::load(&cluster.coordinator_dir())?;
    let server = tls::server(identity.ca_der(), &identity.server().certificate_der, &identity.server().key_der)?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, cluster.port()));
    let endpoint = runtime.block_on(async { tls::server_endpoint(listen, server) })?;
    let newer = endpoint.clone();
    let serving = runtime.spawn(async move {
        while let Some(incoming) = newer.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let Ok((mut send, mut recv)) = connection.accept_bi().await else { continue };
            let _: Propose = frames::recv_one(&mut recv, FrameKind::Propose, 64, 10 * SECOND).await?;
            let answer = Agree::Unsupported { min: 7, max: 8 };
            frames::send(&mut send, FrameKind::Agree, &answer, 64, 10 * SECOND).await?;
            connection.closed().await;
        }
        anyhow::Ok(())
    });
    let shard = shard(&cluster)?;
    run_agent(&cluster, "one", &shard)?.code(9)?.says(&["7", "8", "help: "])?;
    serving.abort();
    endpoint.close(0u32.into(), b"");
    runtime.shutdown_timeout(SECOND);
    drop(endpoint);
    cluster.start_coordinator()?;
    goes_on(&mut cluster, "one")
}

/// A file system of its own; unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path, size: &str) -> anyhow::Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"])
            .arg(at)
            .output();
        Ok(mounted.is_ok_and(|output| output.status.success()).then_some(Self(at)))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lazily: a process that has just been killed may still hold it for a moment.
        let unmounted = Command::new("umount").arg("-l").arg(self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.display());
        }
    }
}

#[test]
fn a_full_disk_stops_the_coordinator_with_its_code_and_nothing_is_lost() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    let store = cluster.coordinator_dir().join("store");
    let Some(disk) = SmallDisk::mount(&store, "8k")? else {
        assert!(std::env::var_os("CI").is_none(), "CI runs as a user that may mount a tmpfs");
        eprintln!("not checked: this user may not mount a small file system");
        return Ok(());
    };
    cluster.coordinate(&["run"], &[])?.code(6)?.says(&["no space", "help: "])?;
    drop(disk);
    cluster.start_coordinator()?;
    cluster.join("one")?;
    goes_on(&mut cluster, "one")
}

#[test]
fn a_disk_that_fills_up_in_mid_run_stops_the_coordinator_and_what_was_acknowledged_stays() -> anyhow::Result<()> {
    use anabranch_tests::invariants::{exactly_once, same_bits};
    let settings = Settings { coordinates: 1 << 18, keep_journal: true, ..Settings::default() };
    let mut cluster = Cluster::new(Path::new(LAB), &settings.run_toml())?;
    let store = cluster.coordinator_dir().join("store");
    let Some(disk) = SmallDisk::mount(&store, "48m")? else {
        assert!(std::env::var_os("CI").is_none(), "CI runs as a user that may mount a tmpfs");
        eprintln!("not checked: this user may not mount a small file system");
        return Ok(());
    };
    cluster.start_coordinator()?;
    cluster.join("one")?;
    goes_on(&mut cluster, "one")?;
    // Somebody else's file takes all the room there is but a little.
    let filler = store.join("somebody-elses-file");
    let filled =
        Command::new("dd").arg("if=/dev/zero").arg(format!("of={}", filler.display())).arg("bs=64k").output()?;
    assert!(!filled.status.success(), "the disk is full");
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 6, "{}", cluster.logs());
    let log = cluster.coordinator()?.log()?;
    assert!(log.contains("no space") && log.contains("help: "), "{log}");
    std::fs::remove_file(&filler)?;
    let log = cluster.log_path("one");
    let acknowledged = exactly_once::acknowledged([log.as_path()])?;
    anabranch_tests::invariants::on_a_copy(&cluster.coordinator_dir(), |store| {
        exactly_once::check(same_bits::check(store)?.as_ref(), &acknowledged)
    })?;
    cluster.start_coordinator()?;
    let before = cluster.status()?.updates_accepted;
    cluster.wait_for_updates(before + 3)?;
    cluster.park_agents()?;
    assert_eq!(cluster.park_coordinator()?, 0);
    drop(disk);
    Ok(())
}
