//! What an agent that has joined may do: its certificate, and whether it would be let in.

use anabranch_common::wire::message::{Rejection, RunPhase};
use anabranch_common::wire::probe::{Facts, FactsWanted, RunFacts};
use anabranch_io::doctor::certificate::{Life, Remedies};
use anabranch_io::doctor::line::{Credential, Line, LineError};
use anabranch_io::doctor::{Finding, Report};
use anabranch_io::exit::ExitCode;
use anabranch_io::tls;

use super::{Known, Member, Target};
use crate::clock;

const CERTIFICATE: &str = "certificate";
const MEMBERSHIP: &str = "membership";
const JOIN_AGAIN: &str = "ask the operator for a new token, and join from another directory";
const EXPIRED: &str =
    "ask the operator for a new token, and join again into this directory: identity and finished work stay";

/// Makes both checks.
pub(super) async fn check(target: &Target, report: &mut Report, known: &mut Known) {
    let Some(member) = &target.member else {
        for check in [CERTIFICATE, MEMBERSHIP] {
            report.add(Finding::skipped(check, "this machine has not joined yet"));
        }
        return;
    };
    let certificate = judge_certificate(member, known.ahead_ms, clock::unix_ms());
    let has_expired = certificate.has_failed();
    report.add(certificate);
    let finding = match (known.ahead_ms, has_expired) {
        (None, _) => Finding::skipped(MEMBERSHIP, "needs a coordinator that answers"),
        (Some(_), true) => Finding::skipped(MEMBERSHIP, format!("needs `{CERTIFICATE}`")),
        (Some(_), false) => match ask(target, member).await {
            Ok(Facts::Run(facts)) => {
                let finding = welcome(member, &facts);
                known.run = Some(*facts);
                finding
            }
            Ok(Facts::Rejected(why)) => rejected(&why),
            Err(error) => unanswered(&error),
        },
    };
    report.add(finding);
}

/// Judges the certificate at the coordinator's clock where that is known: it decides there.
fn judge_certificate(member: &Member, ahead_ms: Option<i64>, here_ms: u64) -> Finding {
    let Ok(life) = Life::of(&member.certificate_der) else {
        let advice = "restore tls/ from a backup, or join again with a new token in another directory";
        return Finding::failure(CERTIFICATE, ExitCode::Config, "it cannot be read", advice);
    };
    let (now_ms, whose) = match ahead_ms {
        Some(ahead_ms) => (here_ms.saturating_add_signed(ahead_ms.saturating_neg()), "the coordinator's"),
        None => (here_ms, "this machine's"),
    };
    let remedies =
        Remedies { expired: EXPIRED, ends_soon: "start the agent: it renews its certificate while it is connected" };
    life.judge(CERTIFICATE, now_ms, whose, remedies)
}

async fn ask(target: &Target, member: &Member) -> Result<Facts, LineError> {
    let endpoint = tls::client_endpoint()?;
    let own = Credential { certificate_der: &member.certificate_der, key_der: &member.key_der };
    let line = Line::open(&endpoint, &target.address, &target.cas, Some(own)).await?;
    let facts = line.facts(FactsWanted { run: member.run }).await;
    line.close().await;
    facts
}

fn welcome(member: &Member, facts: &RunFacts) -> Finding {
    let (name, run) = (&member.name, &facts.spec.name);
    let finding = match facts.state {
        RunPhase::Running => Finding::ok(MEMBERSHIP, format!("{name} may take part in run {run}, which gives work")),
        RunPhase::Pending => {
            Finding::ok(MEMBERSHIP, format!("{name} may take part in run {run}, which waits for its first model"))
        }
        RunPhase::Paused => {
            let measured = format!("{name} may take part in run {run}, which is paused");
            Finding::warning(
                MEMBERSHIP,
                measured,
                "start the agent all the same: it works when the operator resumes the run",
            )
        }
        RunPhase::Finished => {
            let measured = format!("run {run} has ended");
            Finding::warning(
                MEMBERSHIP,
                measured,
                "there is nothing to do for this agent, unless the operator starts it again",
            )
        }
    };
    finding.figure("run", run.as_str())
}

fn rejected(why: &Rejection) -> Finding {
    let fail = |code, measured: String, advice: &str| Finding::failure(MEMBERSHIP, code, measured, advice);
    match why {
        Rejection::Revoked => fail(ExitCode::Identity, "this agent was revoked".into(), JOIN_AGAIN),
        Rejection::Unknown | Rejection::WrongRun { .. } => {
            let measured =
                "the coordinator does not know this agent in this run: its directory was replaced, or the run deleted";
            fail(ExitCode::Identity, measured.into(), JOIN_AGAIN)
        }
        Rejection::Busy => Finding::warning(
            MEMBERSHIP,
            "the coordinator cannot say yet",
            "try again in a minute; if it stays so, ask the operator for `anabranch-coordinator runs list`",
        ),
        Rejection::OldCertificate => {
            fail(ExitCode::Identity, "the certificate in this directory was replaced by a newer one".into(), JOIN_AGAIN)
        }
        Rejection::Replaced | Rejection::Protocol(_) | Rejection::OtherModel(_) => {
            fail(ExitCode::Protocol, format!("turned away: {why:?}"), "run versions that fit each other")
        }
    }
}

fn unanswered(error: &LineError) -> Finding {
    let (code, help) = match error {
        LineError::Connect(problem) => (problem.exit_code(), problem.help()),
        LineError::Handshake(error) => (error.exit_code().unwrap_or(ExitCode::Protocol), error.help()),
        LineError::Frame(error) => (error.exit_code().unwrap_or(ExitCode::Protocol), None),
        LineError::Bind(_) => (ExitCode::Address, None),
        LineError::Tls(_) => (ExitCode::Config, Some("restore tls/ from a backup, or join again".to_owned())),
    };
    let help = help.unwrap_or_else(|| "ask the operator whether this agent was revoked".to_owned());
    Finding::failure(MEMBERSHIP, code, format!("refused: {error}"), help)
}

#[cfg(test)]
mod tests {
    use anabranch_io::doctor::Outcome;

    use super::*;

    #[test]
    fn each_reason_to_turn_an_agent_away_has_its_code() {
        let code = |why: Rejection| rejected(&why).exit_code;
        let gone = [Rejection::Revoked, Rejection::Unknown, Rejection::OldCertificate];
        assert_eq!(gone.map(code), [Some(5); 3]);
        assert_eq!((rejected(&Rejection::Busy).outcome, code(Rejection::Replaced)), (Outcome::Warning, Some(9)));
    }

    #[test]
    fn a_certificate_is_judged_at_the_clock_that_decides() {
        const DAY: i64 = 86_400_000;
        let mut params = rcgen::CertificateParams::default();
        (params.not_before, params.not_after) =
            (time::macros::datetime!(2026-01-01 0:00 UTC), time::macros::datetime!(2026-01-31 0:00 UTC));
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate_der = params.self_signed(&key).expect("signed").der().to_vec();
        let member = Member {
            run: anabranch_common::ids::RunId([1; 16]),
            name: "clinic".into(),
            certificate_der,
            key_der: vec![],
        };
        let tenth_of_january = 1_768_003_200_000;
        assert_eq!(judge_certificate(&member, None, tenth_of_january).outcome, Outcome::Ok);
        assert!(judge_certificate(&member, Some(-40 * DAY), tenth_of_january).has_failed(), "it is February there");
        let late = judge_certificate(&member, Some(-15 * DAY), tenth_of_january);
        assert_eq!(late.outcome, Outcome::Warning, "{late:?}");
    }
}
