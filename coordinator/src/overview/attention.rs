//! What needs the operator, with its reason.

use anabranch_common::limits;
use anabranch_common::status::{RunStanding, StatusReport};
use serde::Serialize;

use super::agents::{Doing, Usual, verdict};
use super::history::Page;
use super::words::health;
use crate::commands::{count, date};
use crate::host::{Health, RunView};

/// Names that a line lists.
const NAMED: usize = 3;

/// What needs the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Note {
    /// Whether work stands still for it.
    pub(crate) urgent: bool,
    pub(crate) run: Option<String>,
    pub(crate) search: Option<String>,
    pub(crate) text: String,
}

/// Returns what needs the operator: the urgent first.
pub(crate) fn notes(page: &Page) -> Vec<Note> {
    let view = &page.snapshot.view;
    let mut notes = Vec::new();
    let plain = |urgent, text| Note { urgent, run: None, search: None, text };
    if !matches!(view.health, Health::Serving) {
        notes.push(plain(true, health(&view.health)));
    }
    for run in &view.runs {
        let name = &run.summary.name;
        let of_run = |(urgent, text)| Note { urgent, run: Some(name.clone()), search: None, text };
        notes.extend(of_view(run, page).into_iter().map(of_run));
    }
    for search in &view.searches {
        let problem = search.summary.problem.clone();
        let problem = problem.or_else(|| search.report.as_ref().and_then(|report| report.problem.clone()));
        let of_search = |text| Note { urgent: true, run: None, search: Some(search.summary.name.clone()), text };
        notes.extend(problem.map(of_search));
    }
    let now_s = i64::try_from(page.snapshot.at_ms / 1_000).unwrap_or(i64::MAX);
    for certificate in &page.snapshot.certificates {
        if certificate.expires_at_s.saturating_sub(now_s) < limits::PAGE_CERTIFICATE_S {
            let at_ms = u64::try_from(certificate.expires_at_s).unwrap_or(0).saturating_mul(1_000);
            let text = format!(
                "the certificate tls/{}.crt expires at {}; see \"Enrolment and certificates\" in docs/operating.md",
                certificate.name,
                date(at_ms)
            );
            notes.push(plain(false, text));
        }
    }
    notes.sort_by_key(|note| !note.urgent);
    notes.truncate(limits::PAGE_NOTES);
    notes
}

/// What needs the operator of a run, and whether work stands still for it.
fn of_view(view: &RunView, page: &Page) -> Vec<(bool, String)> {
    let mut notes: Vec<(bool, String)> = view.summary.problem.iter().map(|problem| (true, problem.clone())).collect();
    let Some(report) = view.report.as_ref().filter(|report| report.serving) else { return notes };
    let reported = [&report.quota_problem, &report.target_problem];
    let reported = reported.into_iter().flatten().filter(|problem| view.summary.problem.as_ref() != Some(problem));
    notes.extend(reported.map(|problem| (true, problem.clone())));
    if !matches!(view.summary.state, RunStanding::Running | RunStanding::Pending) {
        return notes;
    }
    let pods = report.pods.as_ref().filter(|pods| pods.waiting > 0).and_then(|pods| pods.problem.as_ref());
    notes.extend(pods.map(|problem| (true, format!("no pod can be formed: {problem}"))));
    notes.extend(agents(report));
    if let Some(rate) = page.rates.get(&view.summary.name).filter(|rate| rate.refused > rate.accepted) {
        let text = format!(
            "{} updates were refused in the latest minute and {} accepted",
            count(rate.refused),
            count(rate.accepted)
        );
        notes.push((false, text));
    }
    notes
}

fn agents(report: &StatusReport) -> Vec<(bool, String)> {
    let known = report.agents.iter().filter(|agent| !agent.revoked).count();
    if !report.agents.iter().any(|agent| agent.connected) {
        let text = match known {
            0 => "no agent has taken part yet: `token create` makes a token for one".to_owned(),
            1 => "its agent is not connected".to_owned(),
            _ => format!("none of {} agents is connected", count(known as u64)),
        };
        return vec![(true, text)];
    }
    let usual = Usual::of(report);
    let verdicts: Vec<_> = report.agents.iter().map(|agent| (verdict(agent, usual), agent)).collect();
    let mut notes = Vec::new();
    for (wanted, are, is) in [
        (Doing::Failing, "fail to evaluate", "fails to evaluate"),
        (Doing::Refused, "are mostly refused", "is mostly refused"),
        (Doing::Away, "are away", "is away"),
        (Doing::Slow, "are slow", "is slow"),
    ] {
        let found: Vec<_> = verdicts.iter().filter(|((doing, _), _)| *doing == wanted).collect();
        let text = match found[..] {
            [] => continue,
            [((_, why), agent)] => {
                format!("{} {is}: {}", agent.name, why.as_deref().unwrap_or_default())
            }
            _ => {
                let names: Vec<&str> = found.iter().take(NAMED).map(|(_, agent)| agent.name.as_str()).collect();
                let more = if found.len() > NAMED { ", ..." } else { "" };
                format!("{} of {known} agents {are}: {}{more}", found.len(), names.join(", "))
            }
        };
        notes.push((false, text));
    }
    notes
}

#[cfg(test)]
mod tests {
    use anabranch_common::status::AgentStatus;

    use super::super::history::Rate;
    use super::super::tests::{agent, page, run};
    use super::*;
    use crate::web::Certificate;

    fn texts(page: &Page) -> Vec<(bool, String)> {
        notes(page).into_iter().map(|note| (note.urgent, note.text)).collect()
    }

    #[test]
    fn a_process_that_does_its_work_needs_nobody() {
        assert_eq!(texts(&page(vec![run("digits", vec![agent(1)])])), []);
    }

    #[test]
    fn what_stands_still_comes_first_and_everything_has_a_reason() {
        let away = |number| AgentStatus { connected: false, last_seen_ms: Some(5_000), ..agent(number) };
        let mut wards = run("wards", vec![agent(1), away(2), away(3), away(4), away(5)]);
        wards.report.as_mut().expect("a report").target_problem = Some("no evaluator is connected".to_owned());
        let mut old = run("old", Vec::new());
        (old.report, old.summary.state) = (None, RunStanding::Failed);
        old.summary.problem = Some("its store is damaged".to_owned());
        let mut page = page(vec![wards, run("empty", Vec::new()), run("alone", vec![away(1)]), old]);
        page.rates.insert("wards".to_owned(), Rate { over_ms: 60_000, accepted: 2, refused: 7 });
        let expected = [
            (true, "no evaluator is connected"),
            (true, "no agent has taken part yet: `token create` makes a token for one"),
            (true, "its agent is not connected"),
            (true, "its store is damaged"),
            (false, "4 of 5 agents are away: agent-2, agent-3, agent-4, ..."),
            (false, "7 updates were refused in the latest minute and 2 accepted"),
        ];
        let expected: Vec<_> = expected.map(|(urgent, text)| (urgent, text.to_owned())).into();
        assert_eq!(texts(&page), expected);
    }

    #[test]
    fn a_certificate_that_soon_expires_and_a_process_that_leaves_are_noted() {
        let mut page = page(Vec::new());
        let snapshot = std::sync::Arc::make_mut(&mut page.snapshot);
        snapshot.view.health = Health::Leaving("the process is about to exit".to_owned());
        let now_s = i64::try_from(snapshot.at_ms / 1_000).expect("small");
        snapshot.certificates = vec![
            Certificate { name: "ca", expires_at_s: now_s + limits::PAGE_CERTIFICATE_S },
            Certificate { name: "server", expires_at_s: now_s + limits::PAGE_CERTIFICATE_S - 1 },
        ];
        let texts = texts(&page);
        assert_eq!(texts[0], (true, "the process is about to exit".to_owned()));
        assert!(!texts[1].0 && texts[1].1.starts_with("the certificate tls/server.crt expires at "), "{texts:?}");
        assert_eq!(texts.len(), 2);
    }
}
