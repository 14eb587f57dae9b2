//! `ca rotate|status|finish`.

use anabranch_common::status::{CaInfo, CaMember, CaStatus};
use anabranch_common::wire::operator::RegistryRequest;

use super::output::{self, Align, Table};
use super::reach::Coordinator;
use crate::cli::{CaVerb, ReportArgs};

pub(super) fn ca(verb: CaVerb) -> anyhow::Result<()> {
    let (target, request) = match verb {
        CaVerb::Status(args) => return status(&args),
        CaVerb::Rotate { target } => (target, RegistryRequest::CaRotate),
        CaVerb::Finish { target, force } => (target, RegistryRequest::CaFinish { force }),
    };
    output::print_line(&Coordinator::reach(&target)?.ask_done(request)?)
}

fn status(ReportArgs { target, output }: &ReportArgs) -> anyhow::Result<()> {
    let json = Coordinator::look(target)?.ask_json(RegistryRequest::CaStatus)?;
    if output.json {
        return output::print_line(&json);
    }
    output::print(&text(&output::read_report(&json, "the CAs")?))
}

fn text(CaStatus { current, next, moved, waiting }: &CaStatus) -> String {
    let line = |CaInfo { fingerprint, expires_at_ms }: &CaInfo| {
        format!("{}, expires {}", fingerprint.short(), output::date(*expires_at_ms))
    };
    let Some(next) = next else {
        return format!("CA {}\nno rollover is under way; `ca rotate` begins one\n", line(current));
    };
    let mut text = format!("present CA {}\nnext CA    {}\n", line(current), line(next));
    text.push_str(&format!("{moved} agents have connected with a certificate of the next CA\n"));
    if waiting.is_empty() {
        text.push_str("no agent is left; `ca finish` ends the rollover\n");
        return text;
    }
    text.push('\n');
    text.push_str(&table(waiting));
    text
}

fn table(waiting: &[CaMember]) -> String {
    let columns = [("not moved", Align::Left), ("id", Align::Left), ("certificate expires", Align::Left)];
    let mut table = Table::new(&columns);
    for member in waiting {
        let expires = match member.certificate_expires_at_ms {
            Some(at_ms) if member.expired => format!("{}: has to join again", output::date(at_ms)),
            Some(at_ms) => output::date(at_ms),
            None => "has not connected".to_owned(),
        };
        table.row(vec![member.name.clone(), member.agent.to_string(), expires]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{AgentId, Digest};

    use super::*;

    #[test]
    fn who_has_not_moved_is_listed_with_what_to_expect() {
        let info = |byte| CaInfo { fingerprint: Digest([byte; 32]), expires_at_ms: 1_800_000_000_000 };
        let member = |name: &str, certificate_expires_at_ms, expired| CaMember {
            agent: AgentId([7; 16]),
            name: name.into(),
            certificate_expires_at_ms,
            expired,
        };
        let alone = CaStatus { current: info(1), next: None, moved: 3, waiting: vec![] };
        assert!(text(&alone).contains("no rollover is under way"), "{}", text(&alone));
        let done = CaStatus { next: Some(info(2)), ..alone.clone() };
        assert!(text(&done).contains("3 agents") && text(&done).contains("`ca finish` ends"), "{}", text(&done));
        let waiting = vec![
            member("away", None, false),
            member("late", Some(1_700_000_000_000), true),
            member("soon", Some(1_900_000_000_000), false),
        ];
        let text = text(&CaStatus { waiting, ..done });
        assert!(text.contains("has not connected") && text.contains("has to join again"), "{text}");
        assert!(!text.contains("`ca finish`"), "{text}");
    }
}
