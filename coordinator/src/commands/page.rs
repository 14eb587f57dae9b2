//! `page token create|list|revoke`.

use anabranch_common::ids::Digest;
use anabranch_common::status::PageTokenStatus;
use anabranch_common::token::{PagePermission, PageToken};
use anabranch_common::wire::operator::RegistryRequest;
use anabranch_io::cli::OutputArgs;

use super::output::{self, Align, Table};
use super::reach::Coordinator;
use super::token::{new_secret, whole_ms};
use crate::cli::{PageTokenVerb, ReportArgs, TargetArgs};
use crate::clock;

pub(super) fn token(verb: PageTokenVerb) -> anyhow::Result<()> {
    match verb {
        PageTokenVerb::Create { target, name, operate, expires, output } => {
            let ttl_ms = whole_ms(expires);
            let permission = if operate { PagePermission::Operate } else { PagePermission::View };
            create(&target, Wanted { name, ttl_ms, permission }, output)
        }
        PageTokenVerb::List(args) => list(&args),
        PageTokenVerb::Revoke { target, id } => {
            let done = Coordinator::reach(&target)?.ask_done(RegistryRequest::PageTokenRevoke { id })?;
            output::print_line(&done)
        }
    }
}

struct Wanted {
    name: Option<String>,
    ttl_ms: u64,
    permission: PagePermission,
}

/// The secret is made here and leaves this process in the printed token only: the coordinator gets its digest, and has saved it
/// when the token is printed.
fn create(target: &TargetArgs, wanted: Wanted, output: OutputArgs) -> anyhow::Result<()> {
    let Wanted { name, ttl_ms, permission } = wanted;
    let secret = new_secret()?;
    let (token, secret_digest) = (PageToken { secret }.to_string(), Digest::of(&secret).0);
    let request = RegistryRequest::PageTokenCreate { name, ttl_ms, permission, secret_digest };
    let id = Coordinator::reach(target)?.ask_done(request)?;
    let expires_at_ms = clock::unix_ms().saturating_add(ttl_ms);
    if output.json {
        let object = serde_json::json!({
            "id": id, "token": token, "expires_at_ms": expires_at_ms, "permission": permission,
        });
        return output::print_line(&object.to_string());
    }
    output::print_line(&token)?;
    let may = match permission {
        PagePermission::View => "see the page and download models",
        PagePermission::Operate => "see the page, download models, and pause, resume and stop runs",
    };
    output::hint(&format!(
        "page token {id}, good until {}; whoever has it may {may}\n\
         the page asks for it: `run --page PORT` serves it",
        output::date(expires_at_ms)
    ));
    Ok(())
}

fn list(ReportArgs { target, output }: &ReportArgs) -> anyhow::Result<()> {
    let json = Coordinator::look(target)?.ask_json(RegistryRequest::PageTokenList)?;
    let none = "no page tokens; make one with `anabranch-coordinator page token create`";
    output::print_list(&json, *output, ("the list of page tokens", none), |tokens| table(tokens, clock::unix_ms()))
}

fn table(tokens: &[PageTokenStatus], now_ms: u64) -> String {
    let columns = ["id", "name", "may", "state", "expires", "last used"].map(|name| (name, Align::Left));
    let mut table = Table::new(&columns);
    for token in tokens {
        let state = match token {
            PageTokenStatus { revoked: true, .. } => "revoked",
            PageTokenStatus { expires_at_ms, .. } if now_ms >= *expires_at_ms => "expired",
            _ => "good",
        };
        table.row(vec![
            token.id.clone(),
            token.name.clone().unwrap_or_else(|| "-".to_owned()),
            token.permission.word().to_owned(),
            state.to_owned(),
            output::date(token.expires_at_ms),
            token.last_used_at_ms.map_or_else(|| "never".to_owned(), output::date),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_that_is_over_says_why() {
        let token = |name: &str, expires_at_ms, last_used_at_ms, revoked| PageTokenStatus {
            id: "0a0b0c0d".into(),
            name: Some(name.into()),
            permission: PagePermission::View,
            created_at_ms: 0,
            expires_at_ms,
            last_used_at_ms,
            revoked,
        };
        let tokens = [token("a", 100, None, false), token("b", 0, Some(1_000), false), token("c", 100, None, true)];
        let table = table(&tokens, 50);
        let states: Vec<_> = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3)).collect();
        assert_eq!(states, ["good", "expired", "revoked"]);
        assert!(table.contains("view") && table.contains("never") && table.contains("1970-01-01 00:00:01Z"), "{table}");
    }
}
