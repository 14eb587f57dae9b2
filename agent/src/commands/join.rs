//! `join`: enrolment with a token.

use std::fs;
use std::time::Duration;

use anabranch_common::backoff::Backoff;
use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::token::JoinToken;
use anabranch_common::wire::message::{JoinRefusal, JoinResponse};
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::tls::{Authorities, ConnectProblem};
use anyhow::Context as _;

use super::{config_fail, dial_fail, identity_fail};
use crate::cli::JoinArgs;
use crate::clock::Clock;
use crate::config::{Addresses, AgentConfig, AgentDir};
use crate::device;
use crate::files::{self, PUBLIC};
use crate::identity::{self, AgentKey};
use crate::transport::{self, DialError};

/// Runs `join`.
pub(super) fn join(args: &JoinArgs) -> anyhow::Result<()> {
    let dir = AgentDir::new(&args.dir);
    if args.if_missing && dir.config().exists() {
        return super::print(&format!("{} has an agent already: nothing is changed\n", dir.path().display()));
    }
    let Some(token) = &args.token else {
        let help = "give --token, or set ANABRANCH_TOKEN; `anabranch-coordinator token create` prints a token";
        let text = format!("{} has no agent yet, and no token was given to join with", dir.path().display());
        return Err(Fail::new(ExitCode::Usage, text).help(help).into());
    };
    let token = read_token(token)?;
    check_dir(&dir, &token)?;
    identity::settle(&dir).map_err(|error| identity_fail(&error))?;
    let key = AgentKey::read_or_make(&dir).map_err(|error| identity_fail(&error))?;
    let csr_der = key.signing_request()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(ask(&token, &csr_der))? {
        JoinResponse::Refused(refusal) => Err(refused(refusal).into()),
        JoinResponse::Enrolled { run, agent, name, certificate_der, ca_der, next_ca_der } => {
            check_answer(&token, &key, &ca_der, &certificate_der)?;
            let ca_fingerprint = Digest::of(&ca_der);
            let authorities = Authorities::new(std::iter::once(ca_der).chain(next_ca_der).collect());
            identity::write_authorities(&dir.ca(), &authorities)?;
            identity::write_certificate(&dir.certificate(), &certificate_der)?;
            let config = AgentConfig {
                address: Addresses::new(token.addresses.clone()),
                run,
                agent,
                name,
                ca_fingerprint,
                shard: None,
                eval_shard: None,
                label_column: None,
                drop_columns: Vec::new(),
                device: device::Choice::Auto,
                encoder: crate::encode::cuda::EncoderPlace::Auto,
                threads: None,
                trainer: None,
                trainer_timeout_s: None,
                isolate: false,
                checkpoint_s: None,
                overlap: None,
                metrics: None,
                pod_listen: None,
                pod_advertise: None,
                site: None,
                runs: None,
                manners: crate::manners::MannersConfig::default(),
            };
            // Last, because its being there is what says that the directory is complete. A file that people may have
            // edited is left as it is.
            if !dir.config().exists() {
                files::write_atomic(&dir.config(), config.to_commented_toml().as_bytes(), PUBLIC)
                    .with_context(|| format!("{} cannot be written", dir.config().display()))?;
            }
            let shown = dir.path().display();
            super::print(&format!(
                "joined run {} as {} ({})\nnext: anabranch-agent run --dir {shown} --shard PATH\n",
                config.run.short(),
                config.name,
                config.agent.short(),
            ))
        }
    }
}

/// Reads a join token.
pub(super) fn read_token(text: &str) -> Result<JoinToken, Fail> {
    text.parse().map_err(|error: anabranch_common::token::TokenError| {
        Fail::new(ExitCode::Identity, error.to_string())
            .help("copy the whole line that `anabranch-coordinator token create` printed")
    })
}

/// A directory that is empty, or that holds this enrolment or the beginning of one.
fn check_dir(dir: &AgentDir, token: &JoinToken) -> anyhow::Result<()> {
    let shown = dir.path().display();
    let other = |what: String| {
        Fail::new(ExitCode::Config, what).help("choose a directory that does not exist; one directory holds one agent")
    };
    if dir.config().exists() {
        let config = AgentConfig::read(&dir.config()).map_err(config_fail)?;
        let trusted = identity::read_authorities(&dir.ca()).map_or_else(|_| Vec::new(), |cas| cas.fingerprints());
        let is_ours = |pinned: &Digest| *pinned == config.ca_fingerprint || trusted.contains(pinned);
        if !token.ca_fingerprints.iter().any(is_ours) {
            return Err(other(format!("{shown} is enrolled with another coordinator, as {}", config.name)).into());
        }
        return Ok(());
    }
    let entries = match fs::read_dir(dir.path()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(other(format!("{shown} cannot be used as a directory")).because(error).into()),
    };
    // A join that broke off leaves tls/ behind.
    let foreign = entries.flatten().map(|entry| entry.file_name()).find(|name| name != "tls");
    match foreign {
        Some(name) => Err(other(format!("{shown} is not empty: it holds {}", name.display())).into()),
        None => Ok(()),
    }
}

async fn ask(token: &JoinToken, csr_der: &[u8]) -> anyhow::Result<JoinResponse> {
    let clock = Clock::start();
    let mut backoff = Backoff::new(200, 2_000, u64::from_le_bytes(first_bytes(&token.secret)));
    loop {
        let left_ms = limits::JOIN_PATIENCE_MS.saturating_sub(clock.now_ms());
        let tried =
            tokio::time::timeout(Duration::from_millis(left_ms), transport::join(token, csr_der.to_vec())).await;
        let problem = match tried {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(error)) if !error.is_transient() => return Err(join_fail(error, &token.addresses.join(", "))),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        let wait_ms = backoff.next_ms();
        if clock.now_ms() + wait_ms >= limits::JOIN_PATIENCE_MS {
            let addresses = token.addresses.join(", ");
            let text = format!("the coordinator at {addresses} cannot be reached: {problem}");
            return Err(Fail::new(ExitCode::Unavailable, text)
                .help("check that it runs and that UDP to its port is open on the way, then join again with the same token")
                .into());
        }
        tracing::info!(problem, "trying again");
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}

/// A first join knows the CA from its token alone, so a coordinator with another CA is not one that
/// was joined before.
fn join_fail(error: DialError, address: &str) -> anyhow::Error {
    match error {
        DialError::Connect(problem) if matches!(problem.of_one(), ConnectProblem::UnknownCa) => {
            let text = format!("the token is from another coordinator than the one at {address}");
            let help = "ask the operator of the coordinator for a new token: anabranch-coordinator token create";
            Fail::new(ExitCode::Identity, text).help(help).because(problem).into()
        }
        error => dial_fail(error),
    }
}

fn first_bytes(secret: &[u8; 32]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&Digest::of(secret).0[..8]);
    bytes
}

/// The coordinator was authenticated, but what it says must fit what was asked.
fn check_answer(token: &JoinToken, key: &AgentKey, ca_der: &[u8], certificate_der: &[u8]) -> anyhow::Result<()> {
    if !token.ca_fingerprints.contains(&Digest::of(ca_der)) {
        return Err(Fail::new(ExitCode::Identity, "the coordinator sent another CA than the token names").into());
    }
    let of_certificate = anabranch_io::tls::agent_id(certificate_der).context("the certificate cannot be read")?;
    if of_certificate != key.id() {
        return Err(Fail::new(ExitCode::Identity, "the coordinator sent a certificate for another key").into());
    }
    Ok(())
}

fn refused(refusal: JoinRefusal) -> Fail {
    let new_token = "ask for a new token: anabranch-coordinator token create";
    let (text, help) = match refusal {
        JoinRefusal::UnknownToken => {
            ("the coordinator does not know this token: it was revoked, or is of another run", new_token)
        }
        JoinRefusal::UsedToken => ("this token was used up by another agent", new_token),
        JoinRefusal::ExpiredToken => ("this token has expired", new_token),
        JoinRefusal::BadRequest => {
            ("the coordinator cannot read the signing request", "remove the directory and join again")
        }
        JoinRefusal::Revoked => ("this agent's key was revoked", "join from another directory with a new token"),
        JoinRefusal::Full => ("the run has no room for another agent", "ask its operator"),
        JoinRefusal::SeveralRuns => (
            "the coordinator serves several runs, and this token does not say which one to join",
            "ask for a token for some of them: anabranch-coordinator token create --runs NAME",
        ),
    };
    Fail::new(ExitCode::Identity, text).help(help)
}

#[cfg(test)]
mod tests {
    use anabranch_io::exit;

    use super::*;

    #[test]
    fn a_token_of_another_coordinator_is_told_from_other_problems() {
        let told = |problem: ConnectProblem| exit::render(&join_fail(problem.into(), "ward:4433"));
        let outcomes = "[::1]:4433: refused".to_owned();
        let behind_a_name = ConnectProblem::Addresses { problem: Box::new(ConnectProblem::UnknownCa), outcomes };
        for text in [told(ConnectProblem::UnknownCa), told(behind_a_name)] {
            assert!(text.contains("from another coordinator than the one at ward:4433"), "{text}");
            assert!(text.contains("new token") && !text.contains("join again"), "{text}");
        }
        assert!(!told(ConnectProblem::WrongName).contains("another coordinator"));
    }
}
