//! The agents of a fold, in pages that its clones share until one of them changes a page.
//!
//! ```text
//!   id  0…                0/1 = the next bit of the id
//!       ├─ 0…  ── page    a page that would hold more than FOLD_PAGE_AGENTS agents becomes two: those whose next bit
//!       └─ 1…             is 0, and those whose next bit is 1
//!          ├─ 10… ── page
//!          └─ 11… ── page
//! ```
//! Which agent lies in which page follows from the set of agents alone, never from the order in which they joined. Agents
//! are never removed. A join therefore changes one page, or cuts it in two.

use std::collections::BTreeMap;
use std::ops::Index;
use std::sync::{Arc, OnceLock};

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;

use super::agent::AgentState;

/// Agents by identity. A clone costs one reference count a page; the first change of an agent after that copies the agent
/// and its page's list.
#[derive(Clone)]
pub struct Agents {
    /// Every id belongs to one of these, in ascending order. Some may be empty.
    pages: Vec<Arc<Page>>,
}

/// Some agents whose ids begin with the same bits.
#[derive(Debug)]
pub struct Page {
    /// The smallest id that belongs here.
    first: AgentId,
    /// How many bits its ids share, from the left.
    bits: u32,
    agents: Vec<(AgentId, Arc<AgentState>)>,
    /// Digest of the page as it is saved, once it has been saved like this.
    digest: OnceLock<Digest>,
}

impl Clone for Page {
    /// A copy is made to be changed, so it does not keep the digest.
    fn clone(&self) -> Self {
        Self { first: self.first, bits: self.bits, agents: self.agents.clone(), digest: OnceLock::new() }
    }
}

impl Page {
    /// Its agents by identity.
    pub fn agents(&self) -> impl ExactSizeIterator<Item = (AgentId, &Arc<AgentState>)> {
        self.agents.iter().map(|(agent, state)| (*agent, state))
    }

    /// The digest of its saved form, if that is known.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest.get().copied()
    }

    /// Remembers the digest of its saved form, until the page changes.
    pub fn remember(&self, digest: Digest) {
        self.digest.get_or_init(|| digest);
    }

    fn find(&self, agent: AgentId) -> Result<usize, usize> {
        self.agents.binary_search_by_key(&agent, |(id, _)| *id)
    }

    /// Takes the agents away whose next bit is 1, into a page of their own.
    fn split(&mut self) -> Self {
        let mask = 1u128 << (u128::BITS - 1 - self.bits);
        let at = self.agents.partition_point(|(agent, _)| number(*agent) & mask == 0);
        self.bits += 1;
        let first = AgentId((number(self.first) | mask).to_be_bytes());
        Self { first, bits: self.bits, agents: self.agents.split_off(at), digest: OnceLock::new() }
    }
}

/// An id as a number whose highest bit is the id's first.
fn number(agent: AgentId) -> u128 {
    u128::from_be_bytes(agent.0)
}

impl Default for Agents {
    fn default() -> Self {
        let everything = Page { first: AgentId([0; 16]), bits: 0, agents: Vec::new(), digest: OnceLock::new() };
        Self { pages: vec![Arc::new(everything)] }
    }
}

impl PartialEq for Agents {
    fn eq(&self, other: &Self) -> bool {
        let same = |(mine, theirs): (&Arc<Page>, &Arc<Page>)| Arc::ptr_eq(mine, theirs) || mine.agents == theirs.agents;
        self.pages.len() == other.pages.len() && self.pages.iter().zip(&other.pages).all(same)
    }
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Index<&AgentId> for Agents {
    type Output = AgentState;

    fn index(&self, agent: &AgentId) -> &AgentState {
        self.get(agent).expect("an agent that is indexed has joined")
    }
}

impl Agents {
    fn page_of(&self, agent: AgentId) -> usize {
        self.pages.partition_point(|page| page.first <= agent) - 1
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.iter().map(|page| page.agents.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.iter().all(|page| page.agents.is_empty())
    }

    /// Returns an agent's state.
    #[must_use]
    pub fn get(&self, agent: &AgentId) -> Option<&AgentState> {
        let page = &self.pages[self.page_of(*agent)];
        page.find(*agent).ok().map(|at| page.agents[at].1.as_ref())
    }

    /// Whether an agent has joined.
    #[must_use]
    pub fn contains_key(&self, agent: &AgentId) -> bool {
        self.get(agent).is_some()
    }

    /// Returns an agent's state to be changed. Its page counts as changed from here on.
    pub fn get_mut(&mut self, agent: &AgentId) -> Option<&mut AgentState> {
        let page = self.page_of(*agent);
        let at = self.pages[page].find(*agent).ok()?;
        Some(state_at(&mut self.pages[page], at))
    }

    /// Returns an agent's state to be changed, a new one when the agent is not there.
    pub fn get_or_insert(&mut self, agent: AgentId) -> &mut AgentState {
        let mut page = self.page_of(agent);
        if let Err(at) = self.pages[page].find(agent) {
            let changed = Arc::make_mut(&mut self.pages[page]);
            changed.digest.take();
            changed.agents.insert(at, (agent, Arc::default()));
            self.split(page);
            page = self.page_of(agent);
        }
        let at = self.pages[page].find(agent).expect("it is there, or was put there");
        state_at(&mut self.pages[page], at)
    }

    /// Cuts a page until each part holds no more agents than a page may.
    fn split(&mut self, mut page: usize) {
        // Ids differ in some bit, so that no page is cut more often than an id has bits.
        while self.pages[page].agents.len() > limits::FOLD_PAGE_AGENTS {
            let upper = Arc::make_mut(&mut self.pages[page]).split();
            self.pages.insert(page + 1, Arc::new(upper));
            page += usize::from(self.pages[page].agents.len() <= limits::FOLD_PAGE_AGENTS);
        }
    }

    /// Forgets the digest of every page: what is saved beside the agents has changed for all of them.
    pub fn forget_digests(&mut self) {
        // Also a page without one: a checkpoint on its way may share it, and would remember a digest in it.
        for page in &mut self.pages {
            Arc::make_mut(page).digest.take();
        }
    }

    /// Changes the agents for which `concerns` holds, and no page without any of them.
    pub fn change(&mut self, concerns: impl Fn(&AgentState) -> bool, change: impl Fn(&mut AgentState)) {
        for page in &mut self.pages {
            for at in 0..page.agents.len() {
                if concerns(&page.agents[at].1) {
                    change(state_at(page, at));
                }
            }
        }
    }

    /// Every agent by identity, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (&AgentId, &AgentState)> {
        self.pages.iter().flat_map(|page| page.agents.iter().map(|(agent, state)| (agent, state.as_ref())))
    }

    /// Every agent's identity, in ascending order.
    pub fn keys(&self) -> impl Iterator<Item = &AgentId> {
        self.iter().map(|(agent, _)| agent)
    }

    /// Every agent's state, by identity in ascending order.
    pub fn values(&self) -> impl Iterator<Item = &AgentState> {
        self.iter().map(|(_, state)| state)
    }

    /// The pages with agents in them, in ascending order.
    pub fn pages(&self) -> impl Iterator<Item = &Page> {
        self.pages.iter().map(AsRef::as_ref).filter(|page| !page.agents.is_empty())
    }

    /// Remembers digests of pages that were loaded: by the smallest id that lies in one, how many agents do, and its digest.
    pub fn remember(&self, loaded: &BTreeMap<AgentId, (usize, Digest)>) {
        for page in self.pages() {
            let smallest = page.agents.first().and_then(|(agent, _)| loaded.get(agent));
            if let Some((_, digest)) = smallest.filter(|(agents, _)| *agents == page.agents.len()) {
                page.remember(*digest);
            }
        }
    }
}

fn state_at(page: &mut Arc<Page>, at: usize) -> &mut AgentState {
    let page = Arc::make_mut(page);
    page.digest.take();
    Arc::make_mut(&mut page.agents[at].1)
}

#[cfg(test)]
mod tests {
    use anabranch_common::rng::SplitMix64;

    use super::*;

    const SOME: usize = 40 * limits::FOLD_PAGE_AGENTS;

    /// Ids of which some share their first 13 bytes.
    fn ids() -> Vec<AgentId> {
        let mut rng = SplitMix64::new(4);
        let id = |number: usize| {
            let mut id = [9; 16];
            let from = if number.is_multiple_of(3) { 13 } else { 0 };
            id[from..].fill_with(|| rng.next_u64().to_le_bytes()[0]);
            AgentId(id)
        };
        (0..SOME).map(id).collect()
    }

    fn joined(ids: &[AgentId]) -> Agents {
        let mut agents = Agents::default();
        for id in ids {
            agents.get_or_insert(*id).name = id.short();
        }
        agents
    }

    fn sizes(agents: &Agents) -> Vec<usize> {
        agents.pages().map(|page| page.agents().len()).collect()
    }

    #[test]
    fn pages_follow_from_the_agents_and_not_from_their_order() {
        let mut ids = ids();
        let agents = joined(&ids);
        ids.sort();
        assert!(agents.keys().eq(&ids), "every agent is there, in order");
        assert!(ids.iter().all(|id| agents[id].name == id.short()));
        assert_eq!(agents.len(), SOME);
        let sorted = joined(&ids);
        assert_eq!((sizes(&agents), &agents), (sizes(&sorted), &sorted));
        ids.reverse();
        assert_eq!(sizes(&agents), sizes(&joined(&ids)));
        assert!(sizes(&agents).iter().all(|size| (1..=limits::FOLD_PAGE_AGENTS).contains(size)));
        assert!(!agents.contains_key(&AgentId([0; 16])) && agents.get(&AgentId([0xff; 16])).is_none());
    }

    #[test]
    fn a_change_leaves_the_clone_and_every_other_page_alone() {
        let ids = ids();
        let mut agents = joined(&ids);
        let digest = |page: &Page| Digest::of(page.first.short().as_bytes());
        agents.pages().for_each(|page| page.remember(digest(page)));
        let clone = agents.clone();
        agents.get_mut(&ids[7]).expect("it joined").accepted = 3;
        assert_eq!((agents[&ids[7]].accepted, clone[&ids[7]].accepted), (3, 0));
        let changed = |before: &Agents, after: &Agents| {
            let pairs = before.pages.iter().zip(&after.pages);
            pairs.filter(|(before, after)| !Arc::ptr_eq(before, after)).count()
        };
        assert_eq!(changed(&clone, &agents), 1);
        assert_eq!(agents.pages().filter(|page| page.digest().is_none()).count(), 1);
        assert!(clone.pages().all(|page| page.digest() == Some(digest(page))), "the clone is as it was saved");
        assert!(agents.get_mut(&AgentId([0; 16])).is_none());
        let before = agents.clone();
        agents.change(|agent| agent.accepted == 3, |agent| agent.accepted = 4);
        assert_eq!((changed(&before, &agents), agents[&ids[7]].accepted), (1, 4));
        agents.change(|agent| agent.accepted == 3, |_| panic!("no agent has 3"));
    }

    #[test]
    fn a_changed_page_has_no_digest_even_when_no_clone_shares_it() {
        let ids = ids();
        let mut agents = joined(&ids[..3]);
        agents.pages().for_each(|page| page.remember(Digest([1; 32])));
        agents.get_mut(&ids[1]).expect("it joined").rounds = 1;
        assert!(agents.pages().all(|page| page.digest().is_none()));
        agents.pages().for_each(|page| page.remember(Digest([2; 32])));
        agents.get_or_insert(ids[4]);
        assert!(agents.pages().all(|page| page.digest().is_none()), "a join changes a page");
    }
}
