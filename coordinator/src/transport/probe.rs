//! What `doctor` asks. A stranger is told the time and sent back its own bytes; an agent is told about a run that it may
//! take part in. Neither changes anything here.

use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::probe::{FactsWanted, ProbeAnswer};
use anabranch_io::frames::{self, Format};
use quinn::{Connection, VarInt};
use tokio::sync::oneshot;

use super::{Control, HANDSHAKE, Input, Shared, Shown, linger};
use crate::clock;

const PROBE: Duration = Duration::from_millis(limits::doctor::PROBE_MS);
/// Code with which a stream is ended that sends more than is returned.
const TOO_LONG: VarInt = VarInt::from_u32(3);

/// Answers one probing stream after another, at most `limits::doctor::PROBES`.
pub(super) async fn serve(connection: &Connection, first: Control) -> anyhow::Result<()> {
    let mut next = Some(first);
    for _ in 0..limits::doctor::PROBES {
        let served = async {
            let control = match next.take() {
                Some(first) => first,
                None => accept(connection).await?,
            };
            answer(connection, control).await
        };
        tokio::time::timeout(PROBE, served).await??;
    }
    // The peer closes when it has read the last answer.
    linger(connection).await;
    Ok(())
}

async fn accept(connection: &Connection) -> anyhow::Result<Control> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let allowed = |purpose| purpose == Purpose::Probe;
    let (purpose, version) = frames::accept(&mut send, &mut recv, allowed, HANDSHAKE).await?;
    Ok(Control { purpose, version, send, recv })
}

async fn answer(connection: &Connection, Control { version, mut send, mut recv, .. }: Control) -> anyhow::Result<()> {
    let path = connection.stats().path;
    let remote = connection.remote_address();
    let answer = ProbeAnswer {
        unix_ms: clock::unix_ms(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        remote: std::net::SocketAddr::new(remote.ip().to_canonical(), remote.port()).to_string(),
        sent: path.sent_packets,
        lost: path.lost_packets,
    };
    let format = Format { kind: FrameKind::ProbeAnswer, version };
    frames::send(&mut send, format, &answer, limits::doctor::ANSWER_BYTES, HANDSHAKE).await?;
    let mut left = limits::doctor::ECHO_BYTES;
    while let Some(chunk) = recv.read_chunk(limits::FRAME_READ_BYTES, true).await? {
        left = match left.checked_sub(chunk.bytes.len() as u64) {
            Some(left) => left,
            None => {
                recv.stop(TOO_LONG)?;
                send.reset(TOO_LONG)?;
                return Ok(());
            }
        };
        send.write_all(&chunk.bytes).await?;
    }
    send.finish()?;
    // Until it is acknowledged it takes memory: a stranger has one echo at a time here.
    send.stopped().await.ok();
    Ok(())
}

/// Answers an agent's question about a run.
pub(super) async fn facts(
    connection: &Connection,
    shown: Shown,
    Control { version, mut send, mut recv, .. }: Control,
    shared: &Shared,
) -> anyhow::Result<()> {
    let format = |kind| Format { kind, version };
    let wanted = format(FrameKind::FactsWanted);
    let FactsWanted { run } = frames::recv_one(&mut recv, wanted, limits::HANDSHAKE_MESSAGE_BYTES, HANDSHAKE).await?;
    let (reply, answer) = oneshot::channel();
    shared.tell(Input::Facts { shown, run, reply }).await;
    let facts = tokio::time::timeout(Duration::from_millis(limits::REQUEST_TIMEOUT_MS), answer).await??;
    let kind = format(FrameKind::Facts);
    frames::send(&mut send, kind, &facts, limits::CONTROL_MESSAGE_BYTES, HANDSHAKE).await?;
    send.finish()?;
    linger(connection).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anabranch_common::ids::RunId;
    use anabranch_common::wire::message::Rejection;
    use anabranch_common::wire::probe::Facts;
    use anabranch_io::doctor::line::{Credential, Line};
    use anabranch_io::tls;
    use quinn::{Endpoint, ReadError};
    use tokio::sync::mpsc;

    use super::*;
    use crate::identity::Identity;
    use crate::transport::accept as accept_connections;

    struct World {
        _dir: tempfile::TempDir,
        identity: Identity,
        address: String,
        inputs: mpsc::Receiver<Input>,
        client: Endpoint,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            let identity = Identity::create(dir.path(), &[], clock::unix_ms()).expect("certificates");
            let server = identity.server();
            let config = tls::server(identity.ca_der(), &server.certificate_der, &server.key_der).expect("they fit");
            let endpoint = tls::server_endpoint(([127, 0, 0, 1], 0).into(), config).expect("a free port");
            let address = endpoint.local_addr().expect("bound").to_string();
            let (inputs_in, inputs) = mpsc::channel(1);
            tokio::spawn(accept_connections(endpoint, Shared::new(inputs_in, BTreeMap::new())));
            Self { _dir: dir, identity, address, inputs, client: tls::client_endpoint().expect("binds") }
        }

        async fn open(&self, own: Option<Credential<'_>>) -> Line {
            let ca = self.identity.ca_fingerprint();
            Line::open(&self.client, &self.address, &[ca], own).await.expect("it listens")
        }
    }

    #[tokio::test]
    async fn a_stranger_hears_the_time_and_gets_its_bytes_back() {
        let world = World::new();
        let line = world.open(None).await;
        let sample = line.ask(clock::unix_ms).await.expect("an answer");
        let port = world.client.local_addr().expect("bound").port();
        assert_eq!(sample.answer.remote, format!("127.0.0.1:{port}"));
        assert_eq!(sample.answer.software, env!("CARGO_PKG_VERSION"));
        assert_eq!(line.echo().await.expect("all of it").0, limits::doctor::ECHO_BYTES);
        assert!(line.ask(clock::unix_ms).await.expect("another answer").answer.sent > sample.answer.sent);
    }

    /// What a stranger may cost is bounded: bytes of a stream, and streams of a connection.
    #[tokio::test]
    async fn a_stranger_that_sends_or_asks_too_much_is_cut_off() {
        let world = World::new();
        let config = tls::client_pinned(&[world.identity.ca_fingerprint()]).expect("configures");
        let connection = tls::connect(&world.client, &world.address, config).await.expect("it listens");
        let (mut send, mut recv) = connection.open_bi().await.expect("open");
        let version = frames::propose(&mut send, &mut recv, Purpose::Probe, HANDSHAKE).await.expect("this version");
        let kind = Format { kind: FrameKind::ProbeAnswer, version };
        let _: ProbeAnswer =
            frames::recv_one(&mut recv, kind, limits::doctor::ANSWER_BYTES, HANDSHAKE).await.expect("an answer");
        let sending = tokio::spawn(async move {
            let piece = [0; limits::FRAME_READ_BYTES];
            while send.write_all(&piece).await.is_ok() {}
        });
        let ended = loop {
            match recv.read_chunk(limits::FRAME_READ_BYTES, true).await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        assert!(matches!(&ended, Err(ReadError::Reset(code)) if *code == TOO_LONG), "{ended:?}");
        sending.await.expect("it was stopped");

        let line = world.open(None).await;
        for _ in 0..limits::doctor::PROBES {
            line.ask(clock::unix_ms).await.expect("an answer");
        }
        let refused = tokio::time::timeout(PROBE, line.ask(clock::unix_ms)).await.expect("it does not hang");
        assert!(refused.is_err(), "one stream more than there may be");
    }

    #[tokio::test]
    async fn a_run_is_told_to_agents_alone() {
        let mut world = World::new();
        let wanted = FactsWanted { run: RunId([3; 16]) };
        assert!(world.open(None).await.facts(wanted).await.is_err(), "without a certificate");
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("signed");
        let issued = world.identity.issue_agent(csr.der(), "one", 30, clock::unix_ms()).expect("issued");
        let key_der = key.serialize_der();
        let own = Credential { certificate_der: &issued.certificate_der, key_der: &key_der };
        let line = world.open(Some(own)).await;
        let answering = async {
            let Some(Input::Facts { shown: Shown { agent, .. }, run, reply }) = world.inputs.recv().await else {
                panic!("a question")
            };
            assert_eq!((agent, run), (issued.agent, wanted.run));
            reply.send(Facts::Rejected(Rejection::Unknown)).expect("it is waited for");
        };
        let (answer, ()) = tokio::join!(line.facts(wanted), answering);
        assert_eq!(answer.expect("an answer"), Facts::Rejected(Rejection::Unknown));
    }
}
