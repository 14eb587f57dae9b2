//! Agents that hear which runs there are: each is sent a list at once, and again whenever its list changes.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::limits;
use anabranch_common::wire::runs::{RunInfo, RunsListed, RunsWanted};

use super::Caller;
use crate::core::event::PeerId;
use crate::registry::roster::Certificate;

/// Who hears of runs, and of which.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    runs: BTreeMap<RunId, RunInfo>,
    /// At most one for each agent.
    subscribers: BTreeMap<PeerId, Subscriber>,
    /// Whether everybody's list may have changed.
    changed: bool,
    /// Those whose own list may have changed.
    fresh: BTreeSet<PeerId>,
}

#[derive(Debug)]
struct Subscriber {
    agent: AgentId,
    /// None in a simulation.
    certificate: Option<Certificate>,
    wanted: Wanted,
    /// What it was sent last.
    told: Option<RunsListed>,
}

/// The runs that an agent wants, read once.
#[derive(Debug)]
enum Wanted {
    All,
    Named { names: BTreeSet<String>, ids: BTreeSet<RunId> },
}

impl From<RunsWanted> for Wanted {
    fn from(wanted: RunsWanted) -> Self {
        match wanted {
            RunsWanted::All => Self::All,
            RunsWanted::Named(names) => {
                let ids = names.iter().filter_map(|name| name.parse().ok()).collect();
                Self::Named { names: names.into_iter().collect(), ids }
            }
        }
    }
}

impl Wanted {
    fn wants(&self, info: &RunInfo) -> bool {
        match self {
            Self::All => true,
            Self::Named { names, ids } => names.contains(&info.name) || ids.contains(&info.run),
        }
    }
}

impl Subscriptions {
    /// A run is served from now on, or has another name or weight.
    pub(super) fn started(&mut self, run: RunId, name: &str, weight: u32) {
        let name = match &name[..name.floor_char_boundary(limits::NAME_BYTES)] {
            "" => run.to_string(),
            name => name.to_owned(),
        };
        let weight = weight.clamp(1, limits::RUN_WEIGHT);
        self.runs.insert(run, RunInfo { run, name, weight });
        self.changed = true;
    }

    /// A run is over in this process.
    pub(super) fn ended(&mut self, run: RunId) {
        self.runs.remove(&run);
        self.changed = true;
    }

    /// A member has asked. Returns its earlier stream, which is to be closed.
    pub(super) fn opened(&mut self, peer: PeerId, caller: Caller, wanted: RunsWanted) -> Option<PeerId> {
        let Caller { agent, certificate } = caller;
        let before = self.stream_of(agent);
        before.into_iter().for_each(|before| self.closed(before));
        self.subscribers.insert(peer, Subscriber { agent, certificate, wanted: wanted.into(), told: None });
        self.fresh.insert(peer);
        before
    }

    /// A stream has ended.
    pub(super) fn closed(&mut self, peer: PeerId) {
        self.subscribers.remove(&peer);
        self.fresh.remove(&peer);
    }

    /// An agent may take part in further runs.
    pub(super) fn may_enter_more(&mut self, agent: AgentId) {
        self.fresh.extend(self.stream_of(agent));
    }

    /// An agent is a member no more. Returns its stream, which is to be closed.
    pub(super) fn revoked(&mut self, agent: AgentId) -> Option<PeerId> {
        let peer = self.stream_of(agent)?;
        self.closed(peer);
        Some(peer)
    }

    /// The certificates of some connections do not count any more. Returns their streams, which are to be closed.
    pub(super) fn close_where(&mut self, is_replaced: impl Fn(AgentId, Option<&Certificate>) -> bool) -> Vec<PeerId> {
        let replaced = self.subscribers.iter().filter(|(_, of)| is_replaced(of.agent, of.certificate.as_ref()));
        let replaced: Vec<PeerId> = replaced.map(|(peer, _)| *peer).collect();
        replaced.iter().for_each(|peer| self.closed(*peer));
        replaced
    }

    fn stream_of(&self, agent: AgentId) -> Option<PeerId> {
        self.subscribers.iter().find(|(_, subscriber)| subscriber.agent == agent).map(|(peer, _)| *peer)
    }

    /// Returns the lists that differ from what was sent before, by stream. `may_enter` tells which runs a member may take part
    /// in.
    pub(super) fn news(&mut self, may_enter: impl Fn(AgentId, RunId) -> bool) -> Vec<(PeerId, RunsListed)> {
        let (all, fresh) = (std::mem::take(&mut self.changed), std::mem::take(&mut self.fresh));
        if !all && fresh.is_empty() {
            return Vec::new();
        }
        let mut news = Vec::new();
        for (peer, subscriber) in self.subscribers.iter_mut().filter(|(peer, _)| all || fresh.contains(peer)) {
            let list = subscriber.list(&self.runs, &may_enter);
            if subscriber.told.as_ref() != Some(&list) {
                subscriber.told = Some(list.clone());
                news.push((*peer, list));
            }
        }
        news
    }
}

impl Subscriber {
    /// The runs that it hears of: those that it was told of as long as they are served, then others by id.
    fn list(&self, runs: &BTreeMap<RunId, RunInfo>, may_enter: impl Fn(AgentId, RunId) -> bool) -> RunsListed {
        let most = limits::RUNS_PER_CONNECTION as usize;
        let is_listed = |info: &&RunInfo| self.wanted.wants(info) && may_enter(self.agent, info.run);
        let told = self.told.iter().flat_map(|told| &told.runs).map(|info| info.run);
        let kept: BTreeSet<RunId> = told.filter(|run| runs.get(run).as_ref().is_some_and(is_listed)).collect();
        let others = runs.values().filter(is_listed).map(|info| info.run).filter(|run| !kept.contains(run));
        let listed: BTreeSet<RunId> = kept.iter().copied().chain(others.take(most - kept.len())).collect();
        RunsListed { runs: listed.iter().filter_map(|run| runs.get(run).cloned()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RunId = RunId([1; 16]);
    const B: RunId = RunId([2; 16]);
    const AGENT: AgentId = AgentId([7; 16]);
    const OTHER: AgentId = AgentId([8; 16]);

    fn of(agent: AgentId) -> Caller {
        Caller { agent, certificate: None }
    }

    fn anybody(_: AgentId, _: RunId) -> bool {
        true
    }

    fn list(runs: &[(RunId, &str, u32)]) -> RunsListed {
        let info =
            |(run, name, weight): &(RunId, &str, u32)| RunInfo { run: *run, name: (*name).into(), weight: *weight };
        RunsListed { runs: runs.iter().map(info).collect() }
    }

    #[test]
    fn a_list_is_sent_at_once_and_when_it_changes() {
        let (all, some) = (PeerId(1), PeerId(2));
        let mut subscriptions = Subscriptions::default();
        subscriptions.started(A, "digits", 1);
        subscriptions.opened(all, of(AGENT), RunsWanted::All);
        subscriptions.opened(some, of(OTHER), RunsWanted::Named(vec!["text".into()]));
        assert_eq!(subscriptions.news(anybody), [(all, list(&[(A, "digits", 1)])), (some, list(&[]))]);
        assert_eq!(subscriptions.news(anybody), []);

        subscriptions.started(B, "text", 3);
        let both = list(&[(A, "digits", 1), (B, "text", 3)]);
        assert_eq!(subscriptions.news(anybody), [(all, both), (some, list(&[(B, "text", 3)]))]);
        subscriptions.changed = true;
        let news = subscriptions.news(|_, run| run == A);
        assert_eq!(news, [(all, list(&[(A, "digits", 1)])), (some, list(&[]))], "what it may not enter is not listed");
        subscriptions.changed = true;
        subscriptions.news(anybody);
        subscriptions.ended(A);
        assert_eq!(subscriptions.news(anybody), [(all, list(&[(B, "text", 3)]))], "the other's list is as it was");
        subscriptions.closed(all);
        assert_eq!((subscriptions.revoked(AGENT), subscriptions.revoked(OTHER)), (None, Some(some)));
        subscriptions.ended(B);
        assert_eq!(subscriptions.news(anybody), []);
    }

    /// A member that asks again and again costs one list each time, and has one stream.
    #[test]
    fn an_agent_has_one_stream_and_only_its_own_list_is_made_when_it_asks() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.started(A, "digits", 1);
        assert_eq!(subscriptions.opened(PeerId(1), of(OTHER), RunsWanted::All), None);
        assert_eq!(subscriptions.opened(PeerId(2), of(AGENT), RunsWanted::All), None);
        assert_eq!(subscriptions.news(anybody).len(), 2);
        let again = RunsWanted::Named(vec![A.to_string(), "text".into()]);
        assert_eq!(subscriptions.opened(PeerId(3), of(AGENT), again), Some(PeerId(2)));
        let asked = std::cell::RefCell::new(Vec::new());
        let news = subscriptions.news(|agent, run| {
            asked.borrow_mut().push((agent, run));
            true
        });
        assert_eq!(news, [(PeerId(3), list(&[(A, "digits", 1)]))], "by its id");
        assert_eq!(asked.into_inner(), [(AGENT, A)]);
        assert_eq!(subscriptions.revoked(AGENT), Some(PeerId(3)));
    }

    #[test]
    fn an_agent_hears_of_the_runs_of_a_further_token() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.started(A, "digits", 1);
        subscriptions.opened(PeerId(1), of(AGENT), RunsWanted::All);
        assert_eq!(subscriptions.news(|_, _| false), [(PeerId(1), list(&[]))]);
        subscriptions.may_enter_more(OTHER);
        assert_eq!(subscriptions.news(anybody), []);
        subscriptions.may_enter_more(AGENT);
        assert_eq!(subscriptions.news(anybody), [(PeerId(1), list(&[(A, "digits", 1)]))]);
    }

    /// An agent gives up its rounds in a run that is listed no more.
    #[test]
    fn a_run_that_was_listed_stays_listed_however_many_others_come() {
        let run = |number: u8| RunId([number; 16]);
        let mut subscriptions = Subscriptions::default();
        let most = u8::try_from(limits::RUNS_PER_CONNECTION).expect("few");
        (100..100 + most).for_each(|number| subscriptions.started(run(number), "old", 1));
        subscriptions.opened(PeerId(1), of(AGENT), RunsWanted::All);
        assert_eq!(subscriptions.news(anybody).len(), 1);
        (0..10).for_each(|number| subscriptions.started(run(number), "new", 1));
        assert_eq!(subscriptions.news(anybody), [], "there is no room for them");
        (100..103).for_each(|number| subscriptions.ended(run(number)));
        let [(_, listed)] = &subscriptions.news(anybody)[..] else { panic!("expected a list") };
        let runs: Vec<RunId> = listed.runs.iter().map(|info| info.run).collect();
        let expected: Vec<RunId> = (0..3).chain(103..100 + most).map(run).collect();
        assert_eq!((runs, listed.validate()), (expected, Ok(())));
    }

    #[test]
    fn what_is_sent_is_a_sound_list() {
        let mut subscriptions = Subscriptions::default();
        let most = u8::try_from(limits::RUNS_PER_CONNECTION).expect("few");
        for number in 0..=most {
            subscriptions.started(RunId([number; 16]), &"\u{e4}".repeat(usize::from(number)), u32::from(number) * 100);
        }
        subscriptions.opened(PeerId(1), of(AGENT), RunsWanted::All);
        let [(_, list)] = &subscriptions.news(anybody)[..] else { panic!("expected a list") };
        assert_eq!((list.runs.len(), list.validate()), (usize::from(most), Ok(())));
    }

    #[test]
    fn streams_of_replaced_certificates_are_closed() {
        let mut subscriptions = Subscriptions::default();
        let by = |key| Certificate { key, authority: None, expires_at_ms: 9, version: 7 };
        subscriptions.opened(PeerId(1), Caller { agent: AGENT, certificate: Some(by(AGENT)) }, RunsWanted::All);
        subscriptions.opened(PeerId(2), Caller { agent: OTHER, certificate: Some(by(OTHER)) }, RunsWanted::All);
        let is_replaced = |_, certificate: Option<&Certificate>| certificate.is_some_and(|shown| shown.key == AGENT);
        assert_eq!(subscriptions.close_where(is_replaced), [PeerId(1)]);
        assert_eq!((subscriptions.stream_of(AGENT), subscriptions.stream_of(OTHER)), (None, Some(PeerId(2))));
    }
}
