//! Enrolment: the only request that is read without a certificate (promise P9).

use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{JoinRefusal, JoinRequest, JoinResponse};
use anabranch_io::frames::{self, Format};
use anyhow::Context;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::oneshot;

use super::{HANDSHAKE, Input, Shared, linger};
use crate::identity;

pub(super) async fn serve(
    connection: &Connection,
    mut send: SendStream,
    mut recv: RecvStream,
    version: u16,
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
