//! Connections and what is known of agents while this process lives. Nothing here is durable, and nothing here changes
//! what merging does.

use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::{AgentId, Epoch};
use anabranch_common::journal::{ModelsSent, RecordBody};
use anabranch_common::limits;
use anabranch_common::pod::PodOffer;
use anabranch_common::wire::message::{AgentHello, CoordinatorMessage, Rejection, Welcome};
use std::collections::{BTreeMap, BTreeSet};

use super::Core;
use super::allowance::Allowance;
use super::command::Command;
use super::evaluators::Duty;
use super::event::{Now, PeerId};

/// What is known of an agent since this process started.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    /// What it is called; empty until it has connected.
    name: String,
    /// When it was last heard of.
    pub(super) last_seen_ms: u64,
    /// What it said last when it connected.
    pub(super) hello: Option<AgentHello>,
    /// Its speed by its own account.
    pub(super) examples_per_s: Option<f32>,
    /// Payload bytes sent to it, as far as the journal does not say so yet.
    pub(super) downlink_bytes: u64,
    /// Payload bytes sent to it to be evaluated, likewise.
    pub(super) evaluation_downlink_bytes: u64,
    /// Models sent to it to train from, likewise.
    pub(super) models_sent: u64,
    /// Incarnations seen before there is a journal to count them.
    unjournalled_epoch: Epoch,
    allowance: Allowance,
}

/// Connections by number, and agents by identity.
#[derive(Debug, Default)]
pub(super) struct Peers {
    connected: BTreeMap<PeerId, AgentId>,
    /// The same by agent; each has one connection.
    by_agent: BTreeMap<AgentId, PeerId>,
    live: BTreeMap<AgentId, Live>,
    /// Connections whose offer of an initial model came too late, and that were told so.
    told_of_model: BTreeSet<PeerId>,
}

impl Peers {
    /// `agent` has no other connection: an older one was removed.
    fn insert(&mut self, peer: PeerId, agent: AgentId) {
        self.connected.insert(peer, agent);
        self.by_agent.insert(agent, peer);
    }

    /// Forgets a connection; whose it was.
    fn remove(&mut self, peer: PeerId) -> Option<AgentId> {
        let agent = self.connected.remove(&peer)?;
        self.by_agent.remove(&agent);
        self.told_of_model.remove(&peer);
        Some(agent)
    }

    /// Notes that `peer` is told that there is a model. Returns false if it was told before.
    pub(super) fn tell_of_model(&mut self, peer: PeerId) -> bool {
        self.told_of_model.insert(peer)
    }

    pub(super) fn heard(&mut self, peer: PeerId, now: Now) -> Option<AgentId> {
        let agent = *self.connected.get(&peer)?;
        self.live.entry(agent).or_default().last_seen_ms = now.mono_ms;
        Some(agent)
    }

    pub(super) fn sent(&mut self, peer: PeerId, bytes: u64, purpose: FetchPurpose) {
        let Some(agent) = self.connected.get(&peer) else { return };
        let live = self.live.entry(*agent).or_default();
        match purpose {
            FetchPurpose::Train => {
                live.downlink_bytes += bytes;
                live.models_sent += 1;
            }
            FetchPurpose::Evaluate => live.evaluation_downlink_bytes += bytes,
        }
    }

    pub(super) fn progress(&mut self, agent: AgentId, examples_per_s: f32) {
        if examples_per_s.is_finite() {
            self.live.entry(agent).or_default().examples_per_s = Some(examples_per_s);
        }
    }

    /// Takes a record from what `agent` may cause; false when it has caused too many lately.
    pub(super) fn pay(&mut self, agent: AgentId, now: Now) -> bool {
        self.live.entry(agent).or_default().allowance.take(now)
    }

    /// What `agent` has paid for has led to a merge.
    pub(super) fn pay_back(&mut self, agent: AgentId) {
        self.live.entry(agent).or_default().allowance.give_back();
    }

    pub(super) fn peer_of(&self, agent: AgentId) -> Option<PeerId> {
        self.by_agent.get(&agent).copied()
    }

    pub(super) fn agent_of(&self, peer: PeerId) -> Option<AgentId> {
        self.connected.get(&peer).copied()
    }

    pub(super) fn live(&self, agent: AgentId) -> Option<&Live> {
        self.live.get(&agent)
    }

    /// Agents that have connected since this process started.
    pub(super) fn seen(&self) -> impl Iterator<Item = (AgentId, &str)> {
        let seen = self.live.iter().filter(|(_, live)| live.hello.is_some());
        seen.map(|(agent, live)| (*agent, live.name.as_str()))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (PeerId, AgentId)> {
        self.connected.iter().map(|(peer, agent)| (*peer, *agent))
    }

    /// What every connected agent said when it connected.
    pub(super) fn hellos(&self) -> Vec<(PeerId, AgentId, AgentHello)> {
        self.all().filter_map(|(peer, agent)| Some((peer, agent, self.live.get(&agent)?.hello.clone()?))).collect()
    }

    /// Models sent since this was last asked: by agent, without those that were sent none.
    fn take_models_sent(&mut self) -> Vec<ModelsSent> {
        let is_new = |live: &Live| live.models_sent > 0 || live.evaluation_downlink_bytes > 0;
        let sent = self.live.iter_mut().filter(|(_, live)| is_new(live));
        sent.map(|(agent, live)| {
            let (models, bytes) = (std::mem::take(&mut live.models_sent), std::mem::take(&mut live.downlink_bytes));
            let evaluation_bytes = std::mem::take(&mut live.evaluation_downlink_bytes);
            ModelsSent { agent: *agent, models, bytes, evaluation_bytes }
        })
        .collect()
    }
}

fn clip(text: &mut String) {
    text.truncate(text.floor_char_boundary(limits::AGENT_WORDS_BYTES));
}

impl Core {
    pub(super) fn connected(&mut self, peer: PeerId, agent: AgentId, name: String, mut hello: AgentHello) {
        // It is kept for as long as this process lives, for every agent, and shown.
        clip(&mut hello.software);
        clip(&mut hello.device);
        if let Some(problem) = hello.pod.as_ref().and_then(PodOffer::problem) {
            return self.reject(peer, Rejection::Protocol(format!("an offer to join pods {problem}")));
        }
        if self.is_new_incarnation(agent, &hello) && !self.pay(agent) {
            return self.reject(peer, Rejection::Busy);
        }
        self.replace_older_connection(agent, &hello);
        self.peers.insert(peer, agent);
        let live = self.peers.live.entry(agent).or_default();
        live.last_seen_ms = self.now.mono_ms;
        live.name.clone_from(&name);
        if live.hello.as_ref().is_none_or(|before| before.incarnation != hello.incarnation) {
            live.unjournalled_epoch = live.unjournalled_epoch.next();
        }
        live.hello = Some(hello.clone());
        let unjournalled = live.unjournalled_epoch;
        let epoch = if self.state.is_some() { self.start_epoch(agent, &hello) } else { unjournalled };
        self.pod_offered(agent, &hello);
        match (hello.eval_examples, hello.train_examples) {
            (0, _) => self.evaluators.forget(agent),
            (_, 0) => self.evaluators.arrived(agent, Duty::EvaluatesOnly, self.now.mono_ms),
            (_, _) => self.evaluators.arrived(agent, Duty::Trains, self.now.mono_ms),
        }
        let welcome = Welcome {
            run: self.options.run,
            branch: self.state.as_ref().map_or(self.options.first_branch, |state| state.branch),
            agent,
            name,
            epoch,
            spec: self.spec.for_agents(),
            model: self.state.as_ref().map(|state| (state.manifest.clone(), state.initial)),
            state: self.held_phase(),
        };
        self.send(peer, CoordinatorMessage::Welcome(Box::new(welcome)));
        self.pod_welcomed(peer, &hello);
    }

    /// Two processes must not share an identity: the newer connection stays. The same process may have moved to another
    /// address while its old connection still looks alive; that one is closed without a word.
    fn replace_older_connection(&mut self, agent: AgentId, hello: &AgentHello) {
        let Some(older) = self.peers.peer_of(agent) else { return };
        let before = self.peers.live(agent).and_then(|live| live.hello.as_ref());
        if before.is_some_and(|before| before.incarnation != hello.incarnation) {
            // At most as often as there are records for new processes.
            let name = self.name(agent);
            tracing::warn!(agent = %agent.short(), name, "two processes use one certificate; the newer one stays");
            self.reject(older, Rejection::Replaced);
        } else {
            self.gated(Command::Close { peer: older });
        }
        self.disconnected(older);
    }

    /// What an agent is called that has connected or that the journal knows.
    pub(super) fn name(&self, agent: AgentId) -> &str {
        let live = self.peers.live(agent).map(|live| live.name.as_str()).filter(|name| !name.is_empty());
        let known = || Some(self.state.as_ref()?.agents.get(&agent)?.name.as_str());
        live.or_else(known).unwrap_or_default()
    }

    /// Whether a connection will cost an `EpochStarted` record, now or when there is a model.
    fn is_new_incarnation(&self, agent: AgentId, hello: &AgentHello) -> bool {
        let journalled = self.state.as_ref().and_then(|state| state.agents.get(&agent));
        let said = self.peers.live(agent).and_then(|live| live.hello.as_ref()).map(|before| before.incarnation);
        journalled.map(|agent| agent.incarnation).or(said) != Some(hello.incarnation)
    }

    /// The journal's number for this incarnation, which is journalled when it is new.
    pub(super) fn start_epoch(&mut self, agent: AgentId, hello: &AgentHello) -> Epoch {
        let cap = self.spec.admit.max_examples;
        let known = self.state.as_ref().and_then(|state| state.agents.get(&agent));
        if let Some(known) = known
            && known.epoch > Epoch(0)
            && known.incarnation == hello.incarnation
        {
            return known.epoch;
        }
        let unjournalled = self.peers.live(agent).map_or(Epoch(1), |live| live.unjournalled_epoch);
        let epoch = match known {
            Some(known) if known.epoch > Epoch(0) => known.epoch.next(),
            _ => unjournalled.max(Epoch(1)),
        };
        if known.is_none() {
            let name = self.name(agent).to_owned();
            self.append(RecordBody::AgentJoined { agent, name });
        }
        let examples_held = hello.train_examples.min(cap);
        let eval_examples = hello.eval_examples.min(limits::SHARD_EXAMPLES as u64);
        let incarnation = hello.incarnation;
        let body = RecordBody::EpochStarted { agent, epoch, incarnation, examples_held, eval_examples };
        self.append(body);
        epoch
    }

    pub(super) fn disconnected(&mut self, peer: PeerId) {
        self.forget_peer(peer);
        self.drop_offer(peer);
    }

    fn forget_peer(&mut self, peer: PeerId) {
        self.leases.forget(peer);
        let agent = self.peers.remove(peer);
        self.open_round.forget(peer, agent);
        let Some(agent) = agent else { return };
        self.lifecycle.forget(agent, peer);
        self.pods.left(agent, peer, self.now.mono_ms);
        if let Some(version) = self.evaluators.left(agent, self.now.mono_ms) {
            self.evaluation_failed(agent, version, "the connection was lost before an answer came");
        }
    }

    pub(super) fn reject(&mut self, peer: PeerId, rejection: Rejection) {
        self.send(peer, CoordinatorMessage::Rejected(rejection));
        self.gated(Command::Close { peer });
    }

    pub(super) fn violated(&mut self, peer: PeerId, what: impl Into<String>) {
        self.turn_away(peer, Rejection::Protocol(what.into()));
    }

    /// Rejects a connected agent and hears nothing more of this connection.
    pub(super) fn turn_away(&mut self, peer: PeerId, rejection: Rejection) {
        self.reject(peer, rejection);
        self.forget_peer(peer);
    }

    /// Moves the counts of models sent into the journal, so that they outlive this process: with each checkpoint, and at
    /// the end. What was sent since the latest record is lost with a process that is killed.
    pub(super) fn record_models_sent(&mut self) {
        if self.state.is_none() {
            return;
        }
        let sent = self.peers.take_models_sent();
        for some in sent.chunks(limits::MODELS_SENT_ENTRIES) {
            self.append(RecordBody::ModelsSent(some.to_vec()));
        }
    }
}
