//! Agents that hear which runs there are: each is sent a list at once, and again whenever its list changes.

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::limits;
use anabranch_common::wire::runs::{RunInfo, RunsListed, RunsWanted};

use crate::core::event::PeerId;

/// Who hears of runs, and of which.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    runs: BTreeMap<RunId, RunInfo>,
    /// At most one for each stream of a connection.
    subscribers: BTreeMap<PeerId, Subscriber>,
    /// Whether somebody's list may have changed.
    changed: bool,
}

#[derive(Debug)]
struct Subscriber {
    agent: AgentId,
    wanted: RunsWanted,
    /// What it was sent last.
    told: Option<RunsListed>,
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

    /// A member has asked.
    pub(super) fn opened(&mut self, peer: PeerId, agent: AgentId, wanted: RunsWanted) {
        self.subscribers.insert(peer, Subscriber { agent, wanted, told: None });
        self.changed = true;
    }

    /// A stream has ended.
    pub(super) fn closed(&mut self, peer: PeerId) {
        self.subscribers.remove(&peer);
    }

    /// An agent is a member no more. Returns its streams, which are to be closed.
    pub(super) fn revoked(&mut self, agent: AgentId) -> Vec<PeerId> {
        self.subscribers.extract_if(.., |_, subscriber| subscriber.agent == agent).map(|(peer, _)| peer).collect()
    }

    /// Returns the lists that differ from what was sent before, by stream. `may_enter` tells which runs a member may take part
    /// in.
    pub(super) fn news(&mut self, may_enter: impl Fn(AgentId, RunId) -> bool) -> Vec<(PeerId, RunsListed)> {
        if !std::mem::take(&mut self.changed) {
            return Vec::new();
        }
        let mut news = Vec::new();
        for (peer, subscriber) in &mut self.subscribers {
            let Subscriber { agent, wanted, .. } = &*subscriber;
            let is_listed = |info: &&RunInfo| wanted.wants(info.run, &info.name) && may_enter(*agent, info.run);
            let runs = self.runs.values().filter(is_listed);
            let list = RunsListed { runs: runs.take(limits::RUNS_PER_CONNECTION as usize).cloned().collect() };
            if subscriber.told.as_ref() != Some(&list) {
                subscriber.told = Some(list.clone());
                news.push((*peer, list));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RunId = RunId([1; 16]);
    const B: RunId = RunId([2; 16]);
    const AGENT: AgentId = AgentId([7; 16]);

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
        subscriptions.opened(all, AGENT, RunsWanted::All);
        subscriptions.opened(some, AGENT, RunsWanted::Named(vec!["text".into()]));
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
        assert_eq!(subscriptions.revoked(AGENT), [some]);
        subscriptions.ended(B);
        assert_eq!(subscriptions.news(anybody), []);
    }

    #[test]
    fn what_is_sent_is_a_sound_list() {
        let mut subscriptions = Subscriptions::default();
        let most = u8::try_from(limits::RUNS_PER_CONNECTION).expect("few");
        for number in 0..=most {
            subscriptions.started(RunId([number; 16]), &"\u{e4}".repeat(usize::from(number)), u32::from(number) * 100);
        }
        subscriptions.opened(PeerId(1), AGENT, RunsWanted::All);
        let [(_, list)] = &subscriptions.news(anybody)[..] else { panic!("expected a list") };
        assert_eq!((list.runs.len(), list.validate()), (usize::from(most), Ok(())));
    }
}
