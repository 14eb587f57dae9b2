//! Enrolment: the only request that is read without a certificate (promise P9).

use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{JoinRefusal, JoinRequest, JoinResponse};
use anabranch_io::frames::{self, Format};
use anyhow::Context;
use quinn::Connection;
use tokio::sync::oneshot;

use super::{Control, HANDSHAKE, Input, Shared, linger};
use crate::identity;

pub(super) async fn serve(
    connection: &Connection,
    Control { mut send, mut recv, version, .. }: Control,
    shared: &Shared,
) -> anyhow::Result<()> {
    let format = |kind| Format { kind, version };
    let request: JoinRequest =
        frames::recv(&mut recv, format(FrameKind::JoinRequest), limits::JOIN_MESSAGE_BYTES, HANDSHAKE)
            .await?
            .context("the stream ended before the join request")?;
    let JoinRequest { token_secret, csr_der } = request;
    // The request must be for a key that its sender holds before its token is looked at.
    let response = match identity::requester(&csr_der) {
        Ok(agent) => {
            let (reply, answer) = oneshot::channel();
            shared.tell(Input::Join { secret: token_secret, agent, csr_der, reply }).await;
            match tokio::time::timeout(Duration::from_millis(limits::REQUEST_TIMEOUT_MS), answer).await? {
                Ok(response) => response,
                // The agent reads the reason, and tries again.
                Err(_) => {
                    connection.close(0u32.into(), b"the coordinator can take no further join now");
                    return Ok(());
                }
            }
        }
        Err(_) => JoinResponse::Refused(JoinRefusal::BadRequest),
    };
    frames::send(&mut send, format(FrameKind::JoinResponse), &response, limits::CONTROL_MESSAGE_BYTES, HANDSHAKE)
        .await?;
    send.finish()?;
    linger(connection).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anabranch_common::wire::handshake::Purpose;
    use anabranch_io::frames::FrameIoError;
    use anabranch_io::tls::{self, ConnectProblem};
    use tokio::sync::mpsc;

    use super::*;
    use crate::clock;
    use crate::identity::Identity;
    use crate::transport::accept;

    /// An agent tells this from a refusal: it tries again, as where nobody answers.
    #[tokio::test]
    async fn a_join_that_is_let_go_reads_why_and_may_try_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let identity = Identity::create(dir.path(), &[], clock::unix_ms()).expect("certificates");
        let server = identity.server();
        let config = tls::server(identity.ca_der(), &server.certificate_der, &server.key_der).expect("they fit");
        let listen = ([127, 0, 0, 1], 0).into();
        let endpoint = tls::lasting_server_endpoint(listen, config, &server.key_der).expect("a free port");
        let address = endpoint.local_addr().expect("bound").to_string();
        let (inputs_in, mut inputs) = mpsc::channel(1);
        tokio::spawn(accept(endpoint, Shared::new(inputs_in, BTreeMap::new())));

        let client = tls::client_endpoint().expect("binds");
        let pinned = tls::client_pinned(&[identity.ca_fingerprint()]).expect("configures");
        let connection = tls::connect(&client, &address, pinned).await.expect("it listens");
        let (mut send, mut recv) = connection.open_bi().await.expect("open");
        let version = frames::propose(&mut send, &mut recv, Purpose::Join, HANDSHAKE).await.expect("this version");
        let format = |kind| Format { kind, version };
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("signed");
        let request = JoinRequest { token_secret: [7; 32], csr_der: csr.der().to_vec() };
        let kind = format(FrameKind::JoinRequest);
        frames::send(&mut send, kind, &request, limits::JOIN_MESSAGE_BYTES, HANDSHAKE).await.expect("sent");
        let Some(Input::Join { reply, .. }) = inputs.recv().await else { panic!("expected a join") };
        drop(reply);

        let kind = format(FrameKind::JoinResponse);
        let answer = frames::recv_one::<JoinResponse>(&mut recv, kind, limits::CONTROL_MESSAGE_BYTES, HANDSHAKE).await;
        let Err(FrameIoError::Connection(problem)) = answer else { panic!("{answer:?}") };
        assert!(matches!(&problem, ConnectProblem::Closed { reason, .. } if reason.contains("no further join")));
        assert!(problem.is_transient(), "{problem}");
    }
}
