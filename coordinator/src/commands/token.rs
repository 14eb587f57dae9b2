//! `token create|list|revoke`.

use std::time::Duration;

use anabranch_common::ids::{Digest, RunId};
use anabranch_common::status::{CaStatus, TokenStatus};
use anabranch_common::token::JoinToken;
use anabranch_common::wire::operator::RegistryRequest;
use anabranch_io::cli::OutputArgs;
use anabranch_io::exit::{ExitCode, Fail};
use anyhow::Context as _;

use super::output::{self, Align, Table};
use super::reach::{self, Coordinator};
use crate::cli::{ReportArgs, TargetArgs, TokenVerb};
use crate::clock;
use crate::identity;

pub(super) fn token(verb: TokenVerb) -> anyhow::Result<()> {
    match verb {
        TokenVerb::Create { target, name, ttl, uses, addresses, runs, output } => {
            let ttl_ms = whole_ms(ttl);
            create(&target, Wanted { name, ttl_ms, uses, addresses, runs }, output)
        }
        TokenVerb::List(args) => list(&args),
        TokenVerb::Revoke { target, id } => {
            let done = Coordinator::reach(&target)?.ask_done(RegistryRequest::TokenRevoke { id })?;
            output::print_line(&done)
        }
    }
}

struct Wanted {
    name: Option<String>,
    ttl_ms: u64,
    uses: u32,
    addresses: Vec<String>,
    runs: Vec<String>,
}

/// The secret of a token of either kind.
pub(super) fn new_secret() -> anyhow::Result<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("the system gives no random numbers")?;
    Ok(secret)
}

/// How long a token is good for, as requests have it.
pub(super) fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The secret is made here and leaves this process in the printed token only: the coordinator gets its digest.
fn create(target: &TargetArgs, wanted: Wanted, output: OutputArgs) -> anyhow::Result<()> {
    let Wanted { name, ttl_ms, uses, addresses, runs } = wanted;
    let mut coordinator = Coordinator::reach(target)?;
    let (ca_fingerprints, default_addresses) = whereabouts(target, &mut coordinator)?;
    let addresses = if addresses.is_empty() { default_addresses } else { addresses };
    let secret = new_secret()?;
    let token = JoinToken { addresses, ca_fingerprints, secret }.to_string();
    let readable = token.parse::<JoinToken>();
    readable.map_err(|error| Fail::new(ExitCode::Usage, error.to_string()).help("give --address as HOST:PORT"))?;
    let secret_digest = Digest::of(&secret).0;
    let request = RegistryRequest::TokenCreate { name, ttl_ms, uses, secret_digest, runs };
    let id = coordinator.ask_done(request)?;
    let expires_at_ms = clock::unix_ms().saturating_add(ttl_ms);
    if output.json {
        let object = serde_json::json!({ "id": id, "token": token, "expires_at_ms": expires_at_ms, "uses": uses });
        return output::print_line(&object.to_string());
    }
    output::print_line(&token)?;
    let agents = if uses == 1 { "one agent".to_owned() } else { format!("{uses} agents") };
    output::hint(&format!(
        "token {id}, good for {agents} until {}; whoever has it can join, so hand it over on a channel you trust\n\
         on the agent: anabranch-agent join --token TOKEN --dir DIR",
        output::date(expires_at_ms)
    ));
    Ok(())
}

/// The CAs that the token pins and the addresses that it carries unless told otherwise.
fn whereabouts(target: &TargetArgs, coordinator: &mut Coordinator) -> anyhow::Result<(Vec<Digest>, Vec<String>)> {
    if let (Some(address), Some(ca)) = (&target.connect, &target.ca) {
        let pinned = identity::read_authorities(ca).map_err(reach::identity_fail)?.fingerprints();
        // A copy of ca.crt from before a rollover lacks the next CA. A coordinator that has no answer has no rollover.
        let cas = coordinator.ask_json(RegistryRequest::CaStatus).ok();
        let cas = cas.map(|json| output::read_report::<CaStatus>(&json, "the CAs")).transpose()?;
        let known = cas.map(|CaStatus { current, next, .. }| {
            std::iter::once(current).chain(next).map(|ca| ca.fingerprint).collect()
        });
        return Ok((known.unwrap_or(pinned), vec![address.clone()]));
    }
    let dir = target.dir.as_deref().context("neither --dir nor --connect")?;
    let config = reach::load_config(dir)?;
    Ok((reach::load_identity(dir)?.authorities().fingerprints(), config.server.advertised()))
}

fn list(ReportArgs { target, output }: &ReportArgs) -> anyhow::Result<()> {
    let json = Coordinator::look(target)?.ask_json(RegistryRequest::TokenList)?;
    let none = "no tokens; make one with `anabranch-coordinator token create`";
    output::print_list(&json, *output, ("the list of tokens", none), |tokens| table(tokens, clock::unix_ms()))
}

fn table(tokens: &[TokenStatus], now_ms: u64) -> String {
    let columns = [
        ("id", Align::Left),
        ("name", Align::Left),
        ("state", Align::Left),
        ("left", Align::Right),
        ("expires", Align::Left),
        ("runs", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for token in tokens {
        let state = match token {
            TokenStatus { revoked: true, .. } => "revoked",
            TokenStatus { uses_left: 0, .. } => "used",
            TokenStatus { expires_at_ms, .. } if now_ms >= *expires_at_ms => "expired",
            _ => "good",
        };
        table.row(vec![
            token.id.clone(),
            token.name.clone().unwrap_or_else(|| "-".to_owned()),
            state.to_owned(),
            token.uses_left.to_string(),
            output::date(token.expires_at_ms),
            if token.runs.is_empty() { "all".to_owned() } else { runs(&token.runs) },
        ]);
    }
    table.render()
}

/// The first characters of each id.
fn runs(runs: &[RunId]) -> String {
    runs.iter().map(|run| run.short()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_over_says_why() {
        let token = |name: &str, expires_at_ms, uses_left, revoked| TokenStatus {
            id: "0a0b0c0d".into(),
            name: Some(name.into()),
            expires_at_ms,
            uses_left,
            revoked,
            runs: Vec::new(),
        };
        let tokens =
            [token("a", 100, 1, false), token("b", 100, 0, false), token("c", 0, 1, false), token("d", 100, 1, true)];
        let table = table(&tokens, 50);
        let states: Vec<_> = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2)).collect();
        assert_eq!(states, ["good", "used", "expired", "revoked"]);
    }
}
