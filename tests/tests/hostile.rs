//! Hostile peers against a real coordinator (promises P1, P5, P8, P9, P10). In each of these the honest agents make
//! progress while the attack lasts, the coordinator stays below a ceiling of memory, and afterwards the audit holds.
//!
//! | test | faults |
//! |---|---|
//! | a flood of handshakes | 42: garbage, first packets from many sources that never go on, silent connections |
//! | slow streams and lies | 41, 43: 1,000 slow streams, oversized and lying frames, bombs, truncations |
//! | somebody else's identity | another agent's updates, operator's verbs, revoked and expired certificates, one certificate twice |
//! | a replay across a restart | 40: the same update, another one under its key, forged leases |
//! | numbers | 38, 39: NaN, infinities, 10^6 norms and sign flips from 3 of 10 agents |

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_agent::config::AgentDir;
use anabranch_agent::identity::AgentKey;
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::journal::FinishReason;
use anabranch_common::limits;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::update::{RefusalReason, Verdict};
use anabranch_common::wire::frame::{self, FrameKind};
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::message::AgentMessage;
use anabranch_common::wire::transfer::TransferManifest;
use anabranch_coordinator::identity::Identity as Authority;
use anabranch_io::{frames, tls};
use anabranch_tests::clock::unix_ms;
use anabranch_tests::hostile::member::{ANSWER, Session};
use anabranch_tests::hostile::{Identity, Member, payloads, stranger};
use anabranch_tests::invariants::{exactly_once, on_a_copy, same_bits};
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, PATIENCE};
use anabranch_tests::report::proc_kib;
use anyhow::Context as _;
use tokio::runtime::Runtime;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
/// Memory of a coordinator with a tiny model, whatever is done to it.
const CEILING_MIB: u64 = 128;
const COORDINATES: u64 = 1 << 15;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// A coordinator of the ledger task with an honest agent, `honest`, at work.
struct Scene {
    cluster: Cluster,
    runtime: Runtime,
}

impl Scene {
    fn new(hostile: &[&str]) -> anyhow::Result<Self> {
        let settings = Settings { coordinates: COORDINATES, ..Settings::default() };
        let mut cluster = Cluster::new(Path::new(LAB), &settings.run_toml())?;
        cluster.start_coordinator()?;
        for name in ["honest"].iter().chain(hostile) {
            cluster.join(name)?;
        }
        cluster.start_ledger_agent("honest", &[])?;
        cluster.wait_for_updates(5)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self { cluster, runtime })
    }

    fn identity(&self, name: &str) -> anyhow::Result<Identity> {
        Identity::read(&self.cluster.agent_dir(name))
    }

    fn member(&self, name: &str, incarnation: u8) -> anyhow::Result<Member> {
        let identity = self.identity(name)?;
        self.runtime.block_on(Member::connect(self.cluster.port(), &identity, incarnation))
    }

    fn accepted(&self, name: &str) -> anyhow::Result<u64> {
        let status = self.cluster.status()?;
        let agent = status.agents.iter().find(|agent| agent.name == name);
        Ok(agent.context("it has joined")?.updates_accepted)
    }

    /// `name` gets that many more updates merged.
    fn progress(&mut self, name: &str, updates: u64) -> anyhow::Result<()> {
        let before = self.accepted(name)?;
        self.cluster.wait_until("progress of an honest agent", PATIENCE, |status| {
            status.agents.iter().any(|agent| agent.name == name && agent.updates_accepted >= before + updates)
        })?;
        Ok(())
    }

    /// P5 of the coordinator's memory, then P1 and P2.
    fn audit(mut self, honest: &[&str]) -> anyhow::Result<()> {
        self.progress("honest", 20)?;
        below_the_ceiling(&mut self.cluster)?;
        self.cluster.park_agents()?;
        assert_eq!(self.cluster.park_coordinator()?, 0, "{}", self.cluster.logs());
        let logs: Vec<_> = honest.iter().map(|name| self.cluster.log_path(name)).collect();
        let acknowledged = exactly_once::acknowledged(logs.iter().map(std::path::PathBuf::as_path))?;
        on_a_copy(&self.cluster.coordinator_dir(), |store| {
            exactly_once::check(same_bits::check(store)?.as_ref(), &acknowledged)
        })?;
        Ok(())
    }
}

fn below_the_ceiling(cluster: &mut Cluster) -> anyhow::Result<()> {
    let status = format!("/proc/{}/status", cluster.coordinator()?.pid());
    let peak = proc_kib(&status, "VmHWM:").context("the kernel says how much a process uses")? >> 10;
    assert!(peak < CEILING_MIB, "the coordinator used {peak} MiB");
    eprintln!("peak memory of the coordinator: {peak} MiB");
    Ok(())
}

#[test]
fn a_flood_of_handshakes_keeps_nobody_out() -> anyhow::Result<()> {
    let mut scene = Scene::new(&[])?;
    let port = scene.cluster.port();
    let config = stranger::config(&scene.identity("honest")?.ca_der)?;
    stranger::flood(port, &stranger::garbage(1, 4000), 64, 0)?;
    let initials = scene.runtime.block_on(stranger::initials(&config, 600))?;
    stranger::flood(port, &initials, 200, 2000)?;
    // These have shown that their addresses are their own, come from many of them, send what they can and say nothing.
    let held = scene.runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..400_u16 {
            let config = config.clone();
            tasks.spawn(async move {
                let (endpoint, connection) = stranger::silent(port, &config, stranger::source(number % 40)).await?;
                let (mut send, _recv) = connection.open_bi().await?;
                let stuffed = send.write_all(&[0x55; 1 << 20]);
                let stuffed = tokio::time::timeout(Duration::from_millis(200), stuffed).await;
                anyhow::Ok((endpoint, connection, stuffed.is_ok()))
            });
        }
        tasks.join_all().await
    });
    let held: Vec<_> = held.into_iter().filter_map(Result::ok).collect();
    assert!(held.len() > 150, "only {} got through TLS: nothing was tested", held.len());
    let network = scene.cluster.status()?.network.context("a coordinator that serves says who was turned away")?;
    assert!(network.asked_to_retry > 100 && network.displaced > 10, "{network:?}");
    assert!(network.handshakes <= limits::PENDING_HANDSHAKES as u64, "{network:?}");
    // Whoever comes now is through before its turn to go.
    scene.cluster.join("late")?;
    scene.cluster.start_ledger_agent("late", &[])?;
    scene.progress("late", 20)?;
    drop(held);
    scene.audit(&["honest", "late"])
}

#[test]
fn slow_streams_lying_frames_and_bombs_cost_nothing_but_their_sender() -> anyhow::Result<()> {
    let mut scene = Scene::new(&["evil"])?;
    let port = scene.cluster.port();
    let identity = scene.identity("evil")?;
    let opened = scene.runtime.block_on(slow_streams(port, &identity))?;
    assert!(opened >= 1000, "{opened} slow streams");
    scene.progress("honest", 20)?;
    scene.runtime.block_on(async {
        for (what, bytes) in lying_frames()? {
            let mut session = Session::open(port, &identity, 1).await?;
            session.send.write_all(&bytes).await?;
            let closed = tokio::time::timeout(ANSWER, session.connection.closed()).await;
            closed.with_context(|| format!("{what} did not end the connection"))?;
        }
        anyhow::Ok(())
    })?;
    scene.progress("honest", 20)?;
    scene.runtime.block_on(bombs(port, &identity))?;
    let refused = scene.cluster.status()?.updates_refused;
    assert!(refused["malformed"] >= 8 && refused["non_finite"] >= 2, "{refused:?}");
    scene.audit(&["honest"])
}

/// Streams that begin a chunk and never go on, as many on each connection as the coordinator gives.
async fn slow_streams(port: u16, identity: &Identity) -> anyhow::Result<usize> {
    let mut opened = 0;
    let mut held = Vec::new();
    while opened < 1000 {
        let evil = Member::connect(port, identity, 1).await?;
        let mut streams = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(50), evil.connection.open_uni()).await {
            let mut stream = stream?;
            stream.write_all(b"ANBR").await?;
            streams.push(stream);
        }
        assert!(streams.len() <= limits::CHUNK_STREAMS as usize, "{} streams at a time", streams.len());
        opened += streams.len();
        held.push((evil, streams));
    }
    Ok(opened)
}

fn lying_frames() -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let sound = frame::encode(FrameKind::Agent, &[0; 64])?;
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = sound.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    Ok(vec![
        ("a frame of 4 GiB", with(8, &u32::MAX.to_le_bytes())),
        ("a frame just over the limit", with(8, &(u32::try_from(limits::CONTROL_MESSAGE_BYTES)? + 1).to_le_bytes())),
        ("a frame shorter than it says", with(8, &32_u32.to_le_bytes())),
        ("another protocol", with(0, b"HTTP")),
        ("a frame of another layout", with(4, &9_u16.to_le_bytes())),
        ("a frame of another kind", frame::encode(FrameKind::OperatorRequest, &[0; 64])?),
        ("a message that is none", frame::encode(FrameKind::Agent, &[0xFF; 64])?),
        (
            "a list longer than its message",
            frame::encode(FrameKind::Agent, &[1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])?,
        ),
        ("a damaged frame", with(20, &[1])),
    ])
}

async fn bombs(port: u16, identity: &Identity) -> anyhow::Result<()> {
    let mut evil = Member::connect(port, identity, 1).await?;
    let bytes = 4 * u32::try_from(COORDINATES)?;
    let sound = payloads::planes(&vec![0.0; usize::try_from(COORDINATES)?]);
    let malformed = [
        payloads::bomb(bytes, 64 << 20, 0),
        payloads::bomb(u32::MAX, 1 << 20, 0),
        payloads::bomb(bytes, bytes - 1, 0),
        payloads::bomb(bytes + 4, bytes + 4, 0),
        sound[..sound.len() / 2].to_vec(),
        sound[..sound.len() - 1].to_vec(),
        sound[..9].to_vec(),
        vec![0xFF; 1000],
    ];
    for payload in malformed {
        let lease = evil.lease().await?;
        let offer = evil.offer(&lease, payload);
        let verdict = evil.submit(&offer).await?;
        assert_eq!(verdict, Verdict::Refused { reason: RefusalReason::Malformed });
    }
    let mut infinite = vec![0.0; usize::try_from(COORDINATES)?];
    infinite[3] = f32::NEG_INFINITY;
    for payload in [payloads::bomb(bytes, bytes, 0xFF), payloads::planes(&infinite)] {
        let lease = evil.lease().await?;
        let offer = evil.offer(&lease, payload);
        assert_eq!(evil.submit(&offer).await?, Verdict::Refused { reason: RefusalReason::NonFinite });
    }
    // A digest that is another content's, and a list of chunks that does not fit the length.
    let lease = evil.lease().await?;
    let mut offer = evil.offer(&lease, sound);
    offer.meta.payload_digest = Digest::default();
    assert_eq!(evil.submit(&offer).await?, Verdict::Refused { reason: RefusalReason::Malformed });
    let lease = evil.lease().await?;
    let offer = evil.offer(&lease, vec![0; 100]);
    let transfer = TransferManifest { bytes: 100, chunks: vec![Digest::default(); 20_000], sections: vec![] };
    evil.say(&AgentMessage::OfferUpdate { meta: offer.meta.clone(), transfer, sections: None }).await?;
    assert_eq!(evil.submit(&offer).await?, Verdict::Refused { reason: RefusalReason::Malformed });
    Ok(())
}

#[test]
fn nobody_gets_far_with_an_identity_that_is_not_its_own() -> anyhow::Result<()> {
    let mut scene = Scene::new(&["evil", "twin"])?;
    let port = scene.cluster.port();
    let (evil, honest, twin) = (scene.identity("evil")?, scene.identity("honest")?, scene.identity("twin")?);

    // An update in another agent's name, under a lease of one's own.
    let rejected = scene.runtime.block_on(async {
        let mut member = Member::connect(port, &evil, 1).await?;
        let lease = member.lease().await?;
        let mut offer = member.offer(&lease, vec![0; 100]);
        offer.meta.key.agent = honest.agent;
        anyhow::Ok(member.submit(&offer).await.expect_err("it is not the agent's to say"))
    })?;
    assert!(format!("{rejected:#}").contains("another agent's"), "{rejected:#}");

    // An operator's verb with an agent's certificate.
    let forbidden = scene.runtime.block_on(async {
        let endpoint = tls::client_endpoint()?;
        let connection = tls::connect(&endpoint, &format!("127.0.0.1:{port}"), evil.config()?).await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        anyhow::Ok(frames::propose(&mut send, &mut recv, Purpose::Operator, ANSWER).await)
    })?;
    assert!(matches!(forbidden, Err(frames::HandshakeError::Forbidden(_))), "{forbidden:?}");

    // Two processes with one certificate take turns in throwing each other out, as fast as they can.
    scene.runtime.block_on(async {
        let mut older = None;
        for round in 0..100 {
            let mut newer = Member::connect(port, &twin, 1 + round % 2).await?;
            newer.lease().await?;
            if let Some(mut older) = older.replace(newer) {
                let told = older.hear("a rejection", |_| None::<()>).await.expect_err("the newer one stays");
                assert!(format!("{told:#}").contains("Replaced"), "{told:#}");
            }
        }
        anyhow::Ok(())
    })?;
    let log = scene.cluster.coordinator()?.log()?;
    let told = log.matches("two processes use one certificate").count();
    assert!((1..=100).contains(&told), "said {told} times");
    assert!(log.contains("twin"), "it says whose");
    scene.progress("honest", 20)?;

    // A certificate that is over.
    let dir = AgentDir::new(scene.cluster.agent_dir("evil"));
    let csr = AgentKey::read(&dir)?.signing_request()?;
    let expired =
        Authority::load(&scene.cluster.coordinator_dir())?.issue_agent(&csr, "evil", 1, unix_ms() - 3 * DAY_MS)?;
    let expired = Identity { certificate_der: expired.certificate_der, ..evil.clone() };
    let refused = scene.runtime.block_on(Member::connect(port, &expired, 1)).expect_err("it has expired");
    assert!(format!("{refused:#}").to_lowercase().contains("expired"), "{refused:#}");

    // A certificate that was revoked: the connection that is open ends, and there is no other.
    let open = scene.member("evil", 1)?;
    scene.cluster.coordinate(&["agents", "revoke"], &["evil"])?.code(0)?;
    scene.runtime.block_on(async { tokio::time::timeout(ANSWER, open.connection.closed()).await })?;
    for _ in 0..50 {
        let refused = scene.runtime.block_on(Member::connect(port, &evil, 1)).expect_err("it was revoked");
        assert!(format!("{refused:#}").contains("Revoked"), "{refused:#}");
    }
    scene.audit(&["honest"])
}

#[test]
fn what_was_decided_before_a_restart_is_not_decided_again() -> anyhow::Result<()> {
    let mut scene = Scene::new(&["evil"])?;
    let mut evil = scene.member("evil", 1)?;
    let (offer, lease, before) = scene.runtime.block_on(async {
        let lease = evil.lease().await?;
        let mut values = vec![0.0; usize::try_from(COORDINATES)?];
        values[usize::try_from(lease.id.0)?] = 1.0;
        let offer = evil.offer(&lease, payloads::planes(&values));
        let verdict = evil.submit(&offer).await?;
        anyhow::Ok((offer, lease, verdict))
    })?;
    assert!(matches!(before, Verdict::Accepted { .. }), "{before:?}");
    scene.cluster.coordinator()?.kill()?;
    scene.cluster.start_coordinator()?;
    let mut evil = scene.member("evil", 1)?;
    scene.runtime.block_on(async {
        for _ in 0..20 {
            assert_eq!(evil.submit(&offer).await?, before, "the verdict is the one that was given");
        }
        let mut other = offer.clone();
        other.payload = payloads::planes(&vec![0.5; usize::try_from(COORDINATES)?]);
        other.meta.payload_digest = Digest::of(&other.payload);
        other.meta.payload_bytes = other.payload.len() as u64;
        let refused = |reason| Verdict::Refused { reason };
        assert_eq!(evil.submit(&other).await?, refused(RefusalReason::KeyConflict));
        // Under a new key: the lease is used up.
        other.meta.key.seq = other.meta.key.seq.next();
        assert_eq!(evil.submit(&other).await?, refused(RefusalReason::Stale));
        let mut forged = |change: &dyn Fn(&mut anabranch_common::update::UpdateMeta)| {
            other.meta.key.seq = other.meta.key.seq.next();
            let mut forged = other.clone();
            change(&mut forged.meta);
            forged
        };
        let future = forged(&|meta| meta.base_version = ModelVersion(1 << 40));
        let unknown = forged(&|meta| meta.lease = anabranch_common::ids::LeaseId(1 << 40));
        let anothers = forged(&|meta| meta.lease = anabranch_common::ids::LeaseId(lease.id.0 - 1));
        for offer in [future, unknown] {
            assert_eq!(evil.submit(&offer).await?, refused(RefusalReason::UnknownBase));
        }
        let verdict = evil.submit(&anothers).await?;
        assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
        anyhow::Ok(())
    })?;
    assert_eq!(scene.accepted("evil")?, 1);
    scene.audit(&["honest"])
}

const POISON: &str = r#"
[run]
name = "poison"
seed = 1

[model]
kind = "custom"
input = [64]
classes = 2

[train]
local_steps = 1
batch_size = 1
optimizer = { kind = "sgd", lr = 0.3 }

[upload]
codec = { kind = "f32" }
feedback_decay = 0.0

[merge]
strategy = "fedbuff"
buffer_size = 4
server_lr = 1.0
staleness = { fn = "constant" }

[admit]
max_staleness = 1000
max_examples = 1000000
"#;
const POISON_REST: &str = "
[evaluate]
every_versions = 1000000
every_s = 1000000.0

[target]

[checkpoint]
every_versions = 50
";
const PARAMS: usize = 64;
/// Updates that each honest agent makes, one every `HONEST_ROUND`; the hostile ones are as fast as they can be.
const ROUNDS: usize = 60;
const HONEST_ROUND: Duration = Duration::from_millis(25);
/// The head start of the hostile ones: until then the honest ones are at work in their first round.
const FIRST_ROUND: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Poison {
    NotNumbers,
    Huge,
    SignFlip,
}

fn manifest() -> anyhow::Result<ModelManifest> {
    Ok(ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![PARAMS as u64] }])?)
}

/// Where agent number `agent` pulls the model: not all to the same place, and together to all ones.
fn optimum(agent: usize) -> Vec<f32> {
    (0..PARAMS).map(|index| if index % 7 == agent { 1.6 } else { 0.9 }).collect()
}

/// Squared distance from where the honest agents are at rest, 0.81 at the start.
fn loss(model: &[f32]) -> f64 {
    model.iter().map(|value| (f64::from(*value) - 1.0).powi(2)).sum::<f64>() / PARAMS as f64
}

async fn pull(
    port: u16,
    identity: Identity,
    agent: usize,
    wanted: Result<usize, Poison>,
    done: &AtomicBool,
) -> anyhow::Result<()> {
    let manifest = manifest()?;
    let mut member = Member::connect(port, &identity, 1).await?;
    let target = optimum(agent % 7);
    let mut round = 0;
    while !done.load(Ordering::Relaxed) && wanted.map_or(true, |rounds| round < rounds) {
        let lease = member.lease().await?;
        let base = member.fetch(&manifest, &lease).await?;
        let honest = || base.iter().zip(&target).map(|(value, target)| 0.3 * (target - value));
        let delta: Vec<f32> = match wanted {
            Ok(_) => {
                tokio::time::sleep(if round == 0 { FIRST_ROUND } else { HONEST_ROUND }).await;
                honest().collect()
            }
            Err(Poison::NotNumbers) if round % 2 == 0 => vec![f32::NAN; PARAMS],
            Err(Poison::NotNumbers) => vec![f32::INFINITY; PARAMS],
            Err(Poison::Huge) => honest().map(|value| -1e6 * value).collect(),
            // As large as it may be without being refused.
            Err(Poison::SignFlip) => honest().map(|value| -5.0 * value).collect(),
        };
        let offer = member.offer(&lease, payloads::planes(&delta));
        let verdict = member.submit(&offer).await?;
        if verdict == (Verdict::Refused { reason: RefusalReason::Finished }) {
            return Ok(());
        }
        let accepted = matches!(verdict, Verdict::Accepted { .. });
        assert!(wanted.is_err() || accepted, "an honest update was refused: {verdict:?}");
        round += 1;
    }
    Ok(())
}

/// Seven honest agents and these; the loss at the end.
fn poisoned(admit: &str, hostile: &[Poison]) -> anyhow::Result<f64> {
    let mut cluster = Cluster::new(Path::new(LAB), &format!("{POISON}{admit}{POISON_REST}"))?;
    cluster.start_coordinator()?;
    let names: Vec<String> = (0..7 + hostile.len()).map(|number| format!("agent-{number}")).collect();
    let token = cluster.token(&["--uses", "20"])?;
    for name in &names {
        cluster.join_with(&token, name)?.code(0)?;
    }
    let identities = names.iter().map(|name| Identity::read(&cluster.agent_dir(name)));
    let identities = identities.collect::<anyhow::Result<Vec<_>>>()?;
    let port = cluster.port();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let end: Vec<f32> = runtime.block_on(async {
        Member::connect(port, &identities[0], 1).await?.begin(&manifest()?, &[0.1; PARAMS]).await?;
        let done = std::sync::Arc::new(AtomicBool::new(false));
        let (mut honest, mut evil) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
        for (number, identity) in identities.iter().cloned().enumerate() {
            let done = std::sync::Arc::clone(&done);
            let wanted = if number < 7 { Ok(ROUNDS) } else { Err(hostile[number - 7]) };
            let set = if number < 7 { &mut honest } else { &mut evil };
            set.spawn(async move { pull(port, identity, number, wanted, &done).await });
        }
        let ended = honest.join_all().await;
        done.store(true, Ordering::Relaxed);
        // A hostile agent that was cut off over its refusals has got what it asked for.
        evil.join_all().await;
        if cluster.status()?.finished == Some(FinishReason::NonFinite) {
            return Ok(vec![f32::INFINITY]);
        }
        ended.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
        let mut last = Member::connect(port, &identities[0], 1).await?;
        let lease = last.lease().await?;
        last.fetch(&manifest()?, &lease).await
    })?;
    if end == [f32::INFINITY] {
        return Ok(f64::INFINITY);
    }
    below_the_ceiling(&mut cluster)?;
    cluster.verify()?;
    Ok(loss(&end))
}

/// What `init` writes.
const DEFENDED: &str = "max_norm_ratio = 10.0\nclip_norm_ratio = 1.0\nmax_influence = 1.5\n";
const OPEN: &str = "max_norm_ratio = 0.0\n";

#[test]
fn three_hostile_agents_of_ten_move_the_loss_by_a_bounded_amount() -> anyhow::Result<()> {
    let clean = poisoned(DEFENDED, &[])?;
    let numbers = poisoned(DEFENDED, &[Poison::NotNumbers, Poison::Huge, Poison::Huge])?;
    let flipped = poisoned(DEFENDED, &[Poison::SignFlip, Poison::SignFlip, Poison::SignFlip])?;
    let open = poisoned(OPEN, &[Poison::SignFlip, Poison::SignFlip, Poison::SignFlip])?;
    eprintln!("loss: clean {clean:.4}, NaN and 1e6 norms {numbers:.4}, sign flips {flipped:.4}, undefended {open:.4}");
    assert!(clean < 0.05, "{clean}: the honest agents alone get there");
    assert!(numbers < 0.1, "{numbers} against {clean}");
    assert!(flipped < 0.3, "{flipped} against {clean}");
    assert!(open.is_nan() || open > 1.0, "{open}: undefended, these attackers would have won");
    Ok(())
}
