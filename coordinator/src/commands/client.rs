//! Asking a running coordinator, over QUIC with the operator certificate: one request a stream.

use std::future::Future;
use std::time::Duration;

use anabranch_common::codec::dense::Planes32;
use anabranch_common::codec::{self, CodecId};
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RunRequest, RunsRequest};
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::frames::{self, Format};
use anabranch_io::tls::{self, Authorities, ConnectProblem};
use anyhow::Context as _;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::runtime::Runtime;

use super::reach;
use crate::identity::Credential;
use crate::recovery::Exported;

/// How long an answer may take that needs nothing but the coordinator's memory.
const PROMPT: Duration = Duration::from_millis(limits::REQUEST_TIMEOUT_MS);
/// How long an answer may take for which the coordinator reads its journal.
const SLOW: Duration = Duration::from_millis(limits::JOURNAL_REQUEST_MS);
/// How long the coordinator gets to hear that we are done.
const GOODBYE: Duration = Duration::from_millis(limits::GOODBYE_MS);

/// A connection to a running coordinator.
#[derive(Debug)]
pub(super) struct Client {
    runtime: Runtime,
    endpoint: Endpoint,
    connection: Connection,
}

impl Client {
    /// How long connecting may take when there is no doubt that a coordinator is meant to answer.
    pub(super) const PATIENCE: Duration = Duration::from_millis(
        limits::HANDSHAKE_TIMEOUT_MS + limits::CONNECT_ADDRESSES as u64 * limits::CONNECT_ATTEMPT_DELAY_MS,
    );

    /// Connects to `address` (`host:port`) as an operator.
    pub(super) fn connect(
        address: &str,
        authorities: Authorities,
        operator: &Credential,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = tls::client(authorities, &operator.certificate_der, &operator.key_der).map_err(|error| {
            let fail = Fail::new(ExitCode::Config, error.to_string());
            fail.help("use operator.crt, operator.key and ca.crt of the same coordinator")
        })?;
        let (endpoint, connection) = runtime.block_on(async {
            let endpoint = tls::client_endpoint()?;
            let connecting = tls::connect(&endpoint, address, config);
            let connection = tokio::time::timeout(patience, connecting)
                .await
                .unwrap_or_else(|_| Err(ConnectProblem::Unreachable(address.to_owned())))
                .map_err(|problem| connect_fail(problem, address))?;
            anyhow::Ok((endpoint, connection))
        })?;
        Ok(Self { runtime, endpoint, connection })
    }

    /// Asks; whatever the answer says is returned as it is.
    pub(super) fn ask(&mut self, request: &OperatorRequest) -> anyhow::Result<OperatorResponse> {
        let deadline = if may_be_slow(request) { SLOW } else { PROMPT };
        let connection = &self.connection;
        run(&self.runtime, async { Ok(exchange(connection, request, deadline).await?.0) })
    }

    /// Fetches the content of a model; the result or the newest version when none is named.
    pub(super) fn export(&mut self, of: Option<String>, version: Option<ModelVersion>) -> anyhow::Result<Exported> {
        let connection = &self.connection;
        run(&self.runtime, fetch(connection, of, version))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.close(0u32.into(), b"done");
        let idle = self.endpoint.wait_idle();
        // Without a goodbye the coordinator would notice by its idle timeout: a courtesy, not a need.
        let _ = self.runtime.block_on(async { tokio::time::timeout(GOODBYE, idle).await });
    }
}

/// Whether the coordinator may have to read a journal for the answer, or to make or delete the directory of a run. It alone
/// knows which runs have ended: of one that is served it answers promptly, or ends the stream.
fn may_be_slow(request: &OperatorRequest) -> bool {
    match request {
        OperatorRequest::Run { request, .. } => {
            !matches!(request, RunRequest::Pause | RunRequest::Resume | RunRequest::Stop)
        }
        OperatorRequest::Runs(request) => !matches!(request, RunsRequest::List),
        OperatorRequest::Search(_) | OperatorRequest::Registry(_) => false,
    }
}

/// What an operator can do about a connection that does not come about; agents are told to do other things.
fn connect_fail(problem: ConnectProblem, address: &str) -> anyhow::Error {
    let help = match problem.of_one() {
        ConnectProblem::UnknownCa | ConnectProblem::OurCaUnknown => format!(
            "the coordinator at {address} belongs to another directory: check the address, or use operator.crt, \
             operator.key and ca.crt from the tls/ of the directory it was started with, as they are now: `ca finish` \
             replaces them"
        ),
        ConnectProblem::Refused(_) => {
            "the certificate has to be an operator's: use operator.crt and operator.key from the coordinator's tls/".into()
        }
        ConnectProblem::Expired { .. } => {
            "check the clock (NTP); if it is right, start `run` again, which renews the operator's certificate, and take \
             a new copy of it"
                .into()
        }
        _ => return problem.into(),
    };
    Fail::new(problem.exit_code(), problem.to_string()).help(help).into()
}

fn run<T>(runtime: &Runtime, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    runtime.block_on(work)
}

/// One request on a stream of its own; the stream is returned for what follows the answer.
async fn exchange(
    connection: &Connection,
    request: &OperatorRequest,
    deadline: Duration,
) -> anyhow::Result<(OperatorResponse, RecvStream)> {
    let (mut send, mut recv): (SendStream, RecvStream) =
        connection.open_bi().await.map_err(|error| tls::explain(&error))?;
    let version = frames::propose(&mut send, &mut recv, Purpose::Operator, PROMPT).await?;
    let format = |kind| Format { kind, version };
    frames::send(&mut send, format(FrameKind::OperatorRequest), request, limits::CONTROL_MESSAGE_BYTES, PROMPT).await?;
    send.finish().context("the stream was closed early")?;
    let max = limits::OPERATOR_RESPONSE_BYTES;
    let response = frames::recv_one(&mut recv, format(FrameKind::OperatorResponse), max, deadline).await?;
    Ok((response, recv))
}

async fn fetch(
    connection: &Connection,
    run: Option<String>,
    version: Option<ModelVersion>,
) -> anyhow::Result<Exported> {
    let request = OperatorRequest::Run { run, request: RunRequest::CheckpointExport { version } };
    let (response, mut recv) = exchange(connection, &request, SLOW).await?;
    let (served, version, manifest_json, bytes) = match reach::accepted(response)? {
        OperatorResponse::ModelFollows { served, version, manifest_json, bytes } => {
            (served, version, manifest_json, bytes)
        }
        other => return Err(reach::unexpected(&other)),
    };
    if bytes > limits::TRANSFER_BYTES {
        return Err(broken(format!("it announces a model of {bytes} bytes")));
    }
    let manifest: ModelManifest =
        serde_json::from_str(&manifest_json).map_err(|error| broken(format!("its manifest is unreadable: {error}")))?;
    // Grown as it arrives: what is announced is not allocated before it is there.
    let mut content = Vec::new();
    while (content.len() as u64) < bytes {
        let part = frames::recv_part(&mut recv, FrameKind::Part, limits::CHUNK_BYTES, PROMPT).await?;
        content.extend_from_slice(&part.ok_or_else(|| broken("the model ends too early".to_owned()))?);
    }
    let id: CodecId = Planes32::ID;
    let delta = codec::decode(id, &manifest, &content).map_err(|error| broken(error.to_string()))?;
    let model = delta.into_dense();
    Ok(Exported { version, manifest, served, digest: Digest::of_f32(&model), model })
}

fn broken(what: String) -> anyhow::Error {
    let fail = Fail::new(ExitCode::Protocol, format!("the coordinator's answer makes no sense: {what}"));
    fail.help("use the same version of anabranch-coordinator on both sides").into()
}
