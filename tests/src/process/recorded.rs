//! An agent's session as bytes, and a client that says them again.
//!
//! ```text
//!  > 0 414e4252...   the agent wrote these bytes on the stream with this QUIC id
//!  . 2               it ended that stream
//!  < 0 414e4252...   it received this frame there
//! ```
//! Lines are in the order in which things happened. The client writes what the agent wrote, and before that waits for
//! answers of the kinds that the agent had received by then. What the coordinator says unasked (its pace, the state of the
//! run) is not waited for, and the content of models, on streams of the coordinator's own, is read and thrown away.

use std::collections::BTreeMap;
use std::path::Path;

use anabranch_common::ids::Digest;
use anabranch_common::limits::{CONTROL_MESSAGE_BYTES, FRAME_HEADER_BYTES};
use anabranch_common::schema;
use anabranch_common::wire::frame::{self, FrameKind};
use anabranch_common::wire::handshake::Agree;
use anabranch_common::wire::message::CoordinatorMessage;
use anabranch_io::frames::{Format, recv_one};
use anabranch_io::tls;
use anyhow::{Context as _, bail, ensure};
use quinn::{Connection, RecvStream, SendStream};

use crate::hostile::member::{ANSWER, Identity};

/// One line of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Wrote(u64, Vec<u8>),
    Ended(u64),
    Received(u64, Vec<u8>),
}

/// A session that was recorded.
#[derive(Debug, Clone)]
pub struct Recording {
    steps: Vec<Step>,
    version: u16,
}

/// What was said in answer to a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// What the coordinator answered now, of the kinds that are waited for.
    pub now: Vec<CoordinatorMessage>,
    /// What it had answered then.
    pub then: Vec<CoordinatorMessage>,
}

impl Recording {
    /// From a file, of a session in which both sides had agreed on `version` of the schema.
    ///
    /// # Errors
    /// It cannot be read, or a line is none.
    pub fn read(path: &Path, version: u16) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let steps = text.lines().enumerate().map(|(at, line)| {
            step(line).with_context(|| format!("{}:{}: not a line of a recording", path.display(), at + 1))
        });
        Ok(Self { steps: steps.collect::<anyhow::Result<_>>()?, version })
    }

    /// Says it again to the coordinator at `port` of the loopback interface, as `identity`, whose certificate may have
    /// expired by this machine's clock.
    ///
    /// # Errors
    /// The connection breaks, or an answer does not come or cannot be read as one of the recorded version.
    pub async fn replay(&self, port: u16, identity: &Identity) -> anyhow::Result<Answers> {
        let endpoint = tls::client_endpoint()?;
        let own = Some((&identity.certificate_der[..], &identity.key_der[..]));
        let config = tls::client_probe(&[Digest::of(&identity.ca_der)], own)?;
        let connection = tls::connect(&endpoint, &format!("127.0.0.1:{port}"), config).await?;
        let models = connection.clone();
        let reading = tokio::spawn(async move {
            while let Ok(mut stream) = models.accept_uni().await {
                let _ = stream.read_to_end(usize::MAX).await;
            }
        });
        let mut client = Client { connection, version: self.version, up: BTreeMap::new(), down: BTreeMap::new() };
        let mut answers = Answers { now: Vec::new(), then: Vec::new() };
        for (at, step) in self.steps.iter().enumerate() {
            let done = tokio::time::timeout(ANSWER, client.take(step, &mut answers)).await;
            done.with_context(|| format!("no answer within {ANSWER:?}"))
                .flatten()
                .with_context(|| format!("step {}: {}", at + 1, short(step)))?;
        }
        client.connection.close(0u32.into(), b"done");
        tokio::time::timeout(ANSWER, endpoint.wait_idle()).await.context("the connection does not end")?;
        reading.await?;
        Ok(answers)
    }
}

fn step(line: &str) -> Option<Step> {
    let mut words = line.split(' ');
    let (kind, stream, bytes) = (words.next()?, words.next()?.parse().ok()?, words.next());
    Some(match (kind, bytes) {
        (">", Some(bytes)) => Step::Wrote(stream, unhex(bytes)?),
        ("<", Some(bytes)) => Step::Received(stream, unhex(bytes)?),
        (".", None) => Step::Ended(stream),
        _ => return None,
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn short(step: &Step) -> String {
    match step {
        Step::Wrote(stream, bytes) => format!("{} bytes on stream {stream}", bytes.len()),
        Step::Ended(stream) => format!("the end of stream {stream}"),
        Step::Received(stream, bytes) => format!("a frame of {} bytes from stream {stream}", bytes.len()),
    }
}

struct Client {
    connection: Connection,
    version: u16,
    up: BTreeMap<u64, SendStream>,
    down: BTreeMap<u64, RecvStream>,
}

impl Client {
    async fn take(&mut self, step: &Step, answers: &mut Answers) -> anyhow::Result<()> {
        match step {
            Step::Wrote(stream, bytes) => {
                if !self.up.contains_key(stream) {
                    self.open(*stream).await?;
                }
                let up = self.up.get_mut(stream).context("opened above")?;
                Ok(up.write_all(bytes).await?)
            }
            Step::Ended(stream) => Ok(self.up.get_mut(stream).context("a stream that was written to")?.finish()?),
            // The coordinator opened it.
            Step::Received(stream, _) if stream & 1 == 1 => Ok(()),
            Step::Received(stream, bytes) => self.hear(*stream, bytes, answers).await,
        }
    }

    /// Opens the stream with this id: the next one of its direction.
    async fn open(&mut self, stream: u64) -> anyhow::Result<()> {
        let up = if stream & 2 == 0 {
            let (up, down) = self.connection.open_bi().await?;
            self.down.insert(stream, down);
            up
        } else {
            self.connection.open_uni().await?
        };
        let opened = u64::from(quinn::VarInt::from(up.id()));
        ensure!(opened == stream, "stream {opened} was opened in place of {stream}");
        self.up.insert(stream, up);
        Ok(())
    }

    /// Waits for a frame of the kind of `recorded`, if it is one that is waited for.
    async fn hear(&mut self, stream: u64, recorded: &[u8], answers: &mut Answers) -> anyhow::Result<()> {
        let down = self.down.get_mut(&stream).context("a stream that was written to")?;
        let (head, payload) = recorded.split_first_chunk::<FRAME_HEADER_BYTES>().context("a frame")?;
        let header = frame::header(head, CONTROL_MESSAGE_BYTES)?;
        header.check(payload)?;
        if header.kind == FrameKind::Agree {
            let agreed: Agree = recv_one(down, FrameKind::Agree, CONTROL_MESSAGE_BYTES, ANSWER).await?;
            ensure!(agreed == Agree::Version(self.version), "{agreed:?} in place of version {}", self.version);
            return Ok(());
        }
        ensure!(header.kind == FrameKind::Coordinator, "a frame of kind {:?}", header.kind);
        let then: CoordinatorMessage = schema::decode_as(self.version, payload, CONTROL_MESSAGE_BYTES)?;
        if !is_answer(&then) {
            return Ok(());
        }
        loop {
            let format = Format { kind: FrameKind::Coordinator, version: self.version };
            let now: CoordinatorMessage = recv_one(down, format, CONTROL_MESSAGE_BYTES, ANSWER).await?;
            if std::mem::discriminant(&now) == std::mem::discriminant(&then) {
                answers.now.push(now);
                answers.then.push(then);
                return Ok(());
            }
            if is_answer(&now) || matches!(now, CoordinatorMessage::Rejected(_)) {
                bail!("{now:?} in place of {then:?}");
            }
        }
    }
}

/// Whether the agent had asked for it.
fn is_answer(message: &CoordinatorMessage) -> bool {
    matches!(
        message,
        CoordinatorMessage::Welcome(_)
            | CoordinatorMessage::NeedChunks { .. }
            | CoordinatorMessage::Lease { .. }
            | CoordinatorMessage::Model { .. }
            | CoordinatorMessage::Verdict { .. }
    )
}
