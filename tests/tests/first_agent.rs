//! A hostile first agent against a real coordinator: it connects before any honest one, and a run that has no model yet waits
//! for what it offers (promises P5, P6, P8).
//!
//! | test | what the hostile agent offers |
//! |---|---|
//! | a trickler | other tensors than `[model]` describes; then the right ones, of which it sends half and holds the rest |
//! | a description | one that fills a message: it used to end the coordinator when it became a record |

use std::ffi::OsStr;
use std::path::Path;

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::manifest::{ManifestError, ModelManifest, TensorSpec};
use anabranch_common::spec::{ModelKind, ModelSpec};
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, RunPhase};
use anabranch_common::wire::transfer::{ChunkHeader, Missing, TransferManifest};
use anabranch_io::frames;
use anabranch_tests::clock::Stopwatch;
use anabranch_tests::hostile::member::{ANSWER, SESSION, Session};
use anabranch_tests::hostile::{Identity, Member, payloads};
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example};
use anyhow::Context as _;
use quinn::SendStream;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// The tensors of the native model that `DIGITS` describes, with another hidden layer if wanted.
fn tensors(hidden: u64) -> anyhow::Result<ModelManifest> {
    let (kind, input, hidden) = (ModelKind::Mlp, vec![64], vec![hidden]);
    let model = ModelSpec { kind, input, classes: 10, hidden, input_scale: 0.0625, ..ModelSpec::default() };
    Ok(model.layers()?.context("a native model")?.manifest)
}

/// Offers a model and begins to send it: half of its only chunk, on a stream that stays open.
async fn trickle(evil: &mut Member, manifest: &ModelManifest) -> anyhow::Result<SendStream> {
    let model = vec![1e3; manifest.params()];
    let content = payloads::planes(&model);
    let transfer = TransferManifest::of(&content);
    let digest = Digest::of_f32(&model);
    let id = transfer.id();
    evil.say(&AgentMessage::OfferModel { manifest: manifest.clone(), digest, transfer }).await?;
    let missing: Missing = evil
        .hear("request for chunks", |message| match message {
            CoordinatorMessage::NeedChunks { missing, .. } => Some(missing),
            _ => None,
        })
        .await?;
    assert!(missing.contains(0));
    let mut stream = evil.connection.open_uni().await?;
    frames::send(&mut stream, FrameKind::Chunk, &ChunkHeader { transfer: id, index: 0, session: SESSION }, 64, ANSWER)
        .await?;
    stream.write_all(&content[..content.len() / 2]).await?;
    Ok(stream)
}

#[test]
fn a_first_agent_that_chooses_other_tensors_or_trickles_does_not_keep_the_run_from_beginning() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 1000000"))?;
    cluster.start_coordinator()?;
    ["evil", "honest"].into_iter().try_for_each(|name| cluster.join(name))?;
    let (port, runtime) = (cluster.port(), runtime()?);
    let identity = Identity::read(&cluster.agent_dir("evil"))?;

    // Other tensors: refused with the first one that differs, before a byte is asked for.
    let refusal = runtime.block_on(async {
        let mut evil = Member::connect(port, &identity, 1).await?;
        trickle(&mut evil, &tensors(33)?).await
    });
    let refusal = format!("{:#}", refusal.err().context("other tensors were accepted")?);
    assert!(
        refusal.contains("OtherModel") && refusal.contains("[33, 64]") && refusal.contains("[32, 64]"),
        "{refusal}"
    );
    cluster.coordinator()?.wait_for_log("is not that of [model]", PATIENCE)?;

    // The right ones, but they do not come. The honest agent is behind it.
    let mut evil = runtime.block_on(Member::connect(port, &identity, 2))?;
    let _held = runtime.block_on(trickle(&mut evil, &tensors(32)?))?;
    let shard = example("data/digits-train.csv.gz");
    cluster.start_agent(Role::Agent, "honest", &["--shard".as_ref(), shard.as_os_str()] as &[&OsStr], &[])?;
    let since = Stopwatch::start();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, evil.connection.closed()).await })?;
    // It is back before anyone can be asked, and is not asked.
    let mut again = runtime.block_on(Member::connect(port, &identity, 3))?;
    let manifest = tensors(32)?;
    let model = vec![1e3; manifest.params()];
    let offer = AgentMessage::OfferModel {
        manifest: manifest.clone(),
        digest: Digest::of_f32(&model),
        transfer: TransferManifest::of(&payloads::planes(&model)),
    };
    runtime.block_on(again.say(&offer))?;
    let begun = runtime.block_on(again.hear("answer to the second offer", |message| match message {
        CoordinatorMessage::ModelReady { digest, .. } => Some(Some(digest)),
        CoordinatorMessage::NeedChunks { .. } => Some(None),
        _ => None,
    }))?;
    let begun = begun.context("the trickler was asked again")?;
    assert_ne!(begun, Digest::of_f32(&model), "the honest agent's model began the run");
    eprintln!("the run began {:.1} s after the honest agent was started", since.seconds());
    let status = cluster.wait_for_updates(5)?;
    assert_eq!(status.state, RunPhase::Running);
    cluster.park_agents()?;
    assert_eq!(cluster.park_coordinator()?, 0, "{}", cluster.logs());
    cluster.verify()?;
    Ok(())
}

/// 4,096 tensors of one element, 3,912 names of 232 bytes and 184 of 231: with the rest of an offer 1,048,484 bytes.
fn description() -> Vec<TensorSpec> {
    let name = |index: usize| format!("{index:0width$}", width = if index < 3_912 { 232 } else { 231 });
    (0..4_096).map(|index| TensorSpec { name: name(index), shape: vec![1] }).collect()
}

#[test]
fn a_description_that_fills_a_message_ends_its_senders_connection_and_nothing_else() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    cluster.start_coordinator()?;
    ["evil", "honest"].into_iter().try_for_each(|name| cluster.join(name))?;
    let (port, runtime) = (cluster.port(), runtime()?);
    let identity = Identity::read(&cluster.agent_dir("evil"))?;
    let content = payloads::planes(&vec![0.5; 4_096]);
    let transfer = TransferManifest::of(&content);
    let tensors = description();
    assert!(matches!(ModelManifest::new(tensors.clone()), Err(ManifestError::TooLong(_))));
    // An offer with its tag, word for word: the type itself does not hold such a description any more.
    let offer = (1_u32, tensors, Digest::of_f32(&vec![0.5; 4_096]), transfer);
    runtime.block_on(async {
        let mut session = Session::open(port, &identity, 1).await?;
        let most = limits::CONTROL_MESSAGE_BYTES;
        frames::send(&mut session.send, FrameKind::Agent, &offer, most, ANSWER).await?;
        let closed = tokio::time::timeout(ANSWER, session.connection.closed()).await;
        closed.context("the offer did not end the connection")?;
        anyhow::Ok(())
    })?;
    cluster.start_ledger_agent("honest", &[])?;
    cluster.wait_for_updates(5)?;
    cluster.park_agents()?;
    assert_eq!(cluster.park_coordinator()?, 0, "{}", cluster.logs());
    Ok(())
}
