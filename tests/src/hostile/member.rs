//! An enrolled agent's side of a connection, message by message.

use std::path::Path;
use std::time::Duration;

use anabranch_agent::config::{AgentConfig, AgentDir};
use anabranch_agent::identity::{AgentKey, read_certificate};
use anabranch_common::codec::{CodecId, decode};
use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::{AgentId, Digest, Incarnation, RunId, UpdateSeq};
use anabranch_common::journal::Lease;
use anabranch_common::limits::CONTROL_MESSAGE_BYTES;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::{UpdateKey, UpdateMeta, Verdict};
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage, Welcome};
use anabranch_common::wire::transfer::{Assembly, Missing, TransferManifest};
use anabranch_io::chunks::{Route, recv_chunk, send_chunks};
use anabranch_io::frames::{self, FrameReader, FrameWriter};
use anabranch_io::tls;
use anyhow::{Context as _, bail};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};

/// QUIC id of the first stream of a connection: its control stream.
pub const SESSION: u64 = 0;
/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(20);

/// What an agent's directory holds, for whoever got hold of it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name for itself.
    pub agent: AgentId,
    /// Its run.
    pub run: RunId,
    /// The CA's certificate.
    pub ca_der: Vec<u8>,
    /// Its certificate.
    pub certificate_der: Vec<u8>,
    /// Its private key.
    pub key_der: Vec<u8>,
}

impl Identity {
    /// From the directory of an agent that has joined.
    ///
    /// # Errors
    /// It has not.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let dir = AgentDir::new(dir);
        let config = AgentConfig::read(&dir.config())?;
        Ok(Self {
            agent: config.agent,
            run: config.run,
            ca_der: read_certificate(&dir.ca())?.to_vec(),
            certificate_der: read_certificate(&dir.certificate())?.to_vec(),
            key_der: AgentKey::read(&dir)?.to_der(),
        })
    }

    /// For TLS.
    ///
    /// # Errors
    /// Certificate and key do not fit.
    pub fn config(&self) -> anyhow::Result<ClientConfig> {
        Ok(tls::client(&self.ca_der, &self.certificate_der, &self.key_der)?)
    }
}

/// A connection that was welcomed.
#[derive(Debug)]
pub struct Member {
    /// The connection.
    pub connection: Connection,
    /// What the coordinator said first.
    pub welcome: Welcome,
    /// Who it is.
    pub identity: Identity,
    writer: FrameWriter<AgentMessage>,
    reader: FrameReader<CoordinatorMessage>,
    seq: u64,
    _endpoint: Endpoint,
}

/// A connection on which hello was said; whatever follows is the test's.
#[derive(Debug)]
pub struct Session {
    /// Lives as long as the connection is wanted.
    pub endpoint: Endpoint,
    /// The connection.
    pub connection: Connection,
    /// The control stream, up.
    pub send: SendStream,
    /// The control stream, down.
    pub recv: RecvStream,
}

impl Session {
    /// To the coordinator at `port` of the loopback interface.
    ///
    /// # Errors
    /// It is refused before it can say hello.
    pub async fn open(port: u16, identity: &Identity, incarnation: u8) -> anyhow::Result<Self> {
        Self::open_with(port, identity, incarnation, "none").await
    }

    /// The same with a device that is called so.
    async fn open_with(port: u16, identity: &Identity, incarnation: u8, device: &str) -> anyhow::Result<Self> {
        let endpoint = tls::client_endpoint()?;
        let connection = tls::connect(&endpoint, &format!("127.0.0.1:{port}"), identity.config()?).await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        frames::propose(&mut send, &mut recv, Purpose::Agent, ANSWER).await?;
        let hello = AgentMessage::Hello(AgentHello {
            run: identity.run,
            branch: None,
            incarnation: Incarnation([incarnation; 16]),
            software: "hostile".to_owned(),
            train_examples: 1_000,
            eval_examples: 0,
            device: device.to_owned(),
            pod: None,
        });
        frames::send(&mut send, FrameKind::Agent, &hello, CONTROL_MESSAGE_BYTES, ANSWER).await?;
        Ok(Self { endpoint, connection, send, recv })
    }
}

/// An offer that can be made again, word for word.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What is said.
    pub meta: UpdateMeta,
    /// What is sent.
    pub payload: Vec<u8>,
}

impl Member {
    /// Connects to the coordinator at `port` of the loopback interface and says hello.
    ///
    /// # Errors
    /// It is not welcomed; the error has the coordinator's answer.
    pub async fn connect(port: u16, identity: &Identity, incarnation: u8) -> anyhow::Result<Self> {
        Self::connect_with(port, identity, incarnation, "none").await
    }

    /// Connects as an agent whose device is called so.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(port: u16, identity: &Identity, incarnation: u8, device: &str) -> anyhow::Result<Self> {
        let session = Session::open_with(port, identity, incarnation, device).await?;
        let Session { endpoint, connection, send, recv } = session;
        let writer = FrameWriter::new(send, FrameKind::Agent, ANSWER);
        let mut reader = FrameReader::new(recv, FrameKind::Coordinator, ANSWER);
        let welcome = match tokio::time::timeout(ANSWER, reader.next()).await?? {
            Some(CoordinatorMessage::Welcome(welcome)) => *welcome,
            answer => bail!("not welcomed: {answer:?}"),
        };
        let identity = identity.clone();
        Ok(Self { connection, welcome, identity, writer, reader, seq: 0, _endpoint: endpoint })
    }

    /// Where chunks of its transfers go.
    #[must_use]
    pub fn route(&self) -> Route {
        Route { connection: self.connection.clone(), session: SESSION }
    }

    /// Says something.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn say(&mut self, message: &AgentMessage) -> anyhow::Result<()> {
        Ok(self.writer.send(message).await?)
    }

    /// Hears until `wanted` finds something.
    ///
    /// # Errors
    /// The connection ends, or nothing of the kind is said in time.
    pub async fn hear<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(CoordinatorMessage) -> Option<T>,
    ) -> anyhow::Result<T> {
        let hearing = async {
            loop {
                let message = self.reader.next().await?.with_context(|| format!("the end instead of {what}"))?;
                if let CoordinatorMessage::Rejected(why) = &message {
                    bail!("rejected: {why:?}");
                }
                if let Some(found) = wanted(message) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(ANSWER, hearing).await.with_context(|| format!("no {what} within {ANSWER:?}"))?
    }

    /// Waits for a lease.
    ///
    /// # Errors
    /// None is given.
    pub async fn lease(&mut self) -> anyhow::Result<Lease> {
        self.say(&AgentMessage::RequestLease).await?;
        self.hear("lease", |message| match message {
            CoordinatorMessage::Lease { lease, .. } => Some(lease),
            _ => None,
        })
        .await
    }

    /// Offers the initial model, and waits until there is one.
    ///
    /// # Errors
    /// It is refused.
    pub async fn begin(&mut self, manifest: &ModelManifest, model: &[f32]) -> anyhow::Result<()> {
        let content = super::payloads::planes(model);
        let transfer = TransferManifest::of(&content);
        let digest = Digest::of_f32(model);
        self.say(&AgentMessage::OfferModel { manifest: manifest.clone(), digest, transfer: transfer.clone() }).await?;
        loop {
            let missing = self
                .hear("answer to a model", |message| match message {
                    CoordinatorMessage::NeedChunks { missing, .. } => Some(Some(missing)),
                    CoordinatorMessage::ModelReady { .. } => Some(None),
                    _ => None,
                })
                .await?;
            let Some(missing) = missing else { return Ok(()) };
            send_chunks(&self.route(), &transfer, content.clone().into(), &missing, ANSWER).await?;
        }
    }

    /// The content of a lease's base.
    ///
    /// # Errors
    /// It does not come.
    pub async fn fetch(&mut self, manifest: &ModelManifest, lease: &Lease) -> anyhow::Result<Vec<f32>> {
        let (version, digest) = (lease.base_version, lease.base_digest);
        self.say(&AgentMessage::FetchModel {
            version,
            digest,
            purpose: FetchPurpose::Train,
            held: None,
            missing: None,
        })
        .await?;
        let transfer = self
            .hear("model", |message| match message {
                CoordinatorMessage::Model { transfer, .. } => Some(transfer),
                _ => None,
            })
            .await?;
        let mut assembly = Assembly::new(transfer, u64::MAX)?;
        let mut whole = assembly.missing().is_empty();
        while !whole {
            let stream = tokio::time::timeout(ANSWER, self.connection.accept_uni()).await??;
            let (header, chunk) = recv_chunk(stream, ANSWER).await?;
            whole = header.transfer == assembly.manifest().id() && assembly.put(header.index, &chunk)?;
        }
        let content = assembly.finish().context("nothing is missing")?;
        Ok(decode(CodecId(0), manifest, &content)?.into_dense())
    }

    /// An offer under `lease`, with the next number, of a payload of codec 0.
    pub fn offer(&mut self, lease: &Lease, payload: Vec<u8>) -> Offer {
        let key = UpdateKey {
            run: self.identity.run,
            agent: self.identity.agent,
            epoch: self.welcome.epoch,
            seq: UpdateSeq(self.seq),
        };
        self.seq += 1;
        let meta = UpdateMeta {
            key,
            branch: lease.branch,
            lease: lease.id,
            base_version: lease.base_version,
            base_digest: lease.base_digest,
            codec: CodecId(0),
            payload_bytes: payload.len() as u64,
            payload_digest: Digest::of(&payload),
            num_examples: 1,
            local_steps: 1,
            train_loss: 0.5,
            compute_ms: 1,
            base_dot: None,
            residual_ratio: None,
            memory: None,
        };
        Offer { meta, payload }
    }

    /// Makes an offer and sends what is asked for, until there is a verdict.
    ///
    /// # Errors
    /// There is none.
    pub async fn submit(&mut self, offer: &Offer) -> anyhow::Result<Verdict> {
        let transfer = TransferManifest::of(&offer.payload);
        self.say(&AgentMessage::OfferUpdate { meta: offer.meta.clone(), transfer: transfer.clone(), sections: None })
            .await?;
        loop {
            let answer: Result<Missing, Verdict> = self
                .hear("verdict", |message| match message {
                    CoordinatorMessage::NeedChunks { transfer: id, missing } if id == transfer.id() => {
                        Some(Ok(missing))
                    }
                    CoordinatorMessage::Verdict { key, verdict } if key == offer.meta.key => Some(Err(verdict)),
                    _ => None,
                })
                .await?;
            match answer {
                Ok(missing) => {
                    let content = offer.payload.clone().into();
                    send_chunks(&self.route(), &transfer, content, &missing, ANSWER).await?;
                }
                Err(verdict) => return Ok(verdict),
            }
        }
    }
}
