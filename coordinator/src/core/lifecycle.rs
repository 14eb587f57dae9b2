//! How a run ends: the last evaluation comes in, everybody hears of the end, the process goes. And how a run is parked.
//!
//! An agent that is away knocks again and again, at the longest every `RECONNECT_MS.1`, and would do so for ever if
//! nobody were there to tell it. So the process stays for as long as an agent may be away between two attempts, and
//! leaves at once when every agent has said goodbye.

use anabranch_common::ids::{AgentId, Epoch, ModelVersion};
use anabranch_common::journal::{FinishReason, RecordBody};
use anabranch_common::limits;
use anabranch_common::wire::message::{CoordinatorMessage, RunPhase};
use std::collections::BTreeMap;

use super::Core;
use super::command::{Command, ExitReason};
use super::event::{Now, PeerId};

/// Agents that have not said goodbye are awaited for this long: the longest wait between two attempts to connect, and
/// what an attempt may take.
pub(super) const HEARING_MS: u64 = limits::RECONNECT_MS.1 + limits::HANDSHAKE_TIMEOUT_MS;

/// The run has ended, and the process not yet.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// The result is being evaluated; nobody was told, since agents leave when they are.
    Measuring { since_ms: u64 },
    /// Everybody who is here was told; whoever comes is.
    Telling { since_ms: u64 },
}

/// How far the process is on its way out.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    ending: Option<Ending>,
    /// Agents that said goodbye, each with the connection that it said it on.
    goodbyes: BTreeMap<AgentId, PeerId>,
    parking: bool,
    exited: bool,
}

impl Lifecycle {
    /// Begins to wait for the evaluation of the result, unless the end is under way already.
    pub(super) fn end(&mut self, now: Now) {
        self.ending.get_or_insert(Ending::Measuring { since_ms: now.mono_ms });
    }

    /// Forgets a goodbye that was said on an earlier connection.
    pub(super) fn forget(&mut self, agent: AgentId, peer: PeerId) {
        self.goodbyes.retain(|said_by, said_on| *said_by != agent || *said_on == peer);
    }

    /// Returns true once: the process may go.
    fn exits(&mut self) -> bool {
        !std::mem::replace(&mut self.exited, true)
    }
}

impl Core {
    pub(super) fn finish(&mut self, reason: FinishReason, result: ModelVersion) {
        if self.state.as_ref().is_none_or(|state| state.finished.is_some()) {
            return;
        }
        self.append(RecordBody::Finished { reason, result });
        self.lifecycle.ending = Some(Ending::Measuring { since_ms: self.now.mono_ms });
        self.measure_result(result);
        if self.evaluators.is_measuring() {
            // An agent that is asked for the result shall not begin another round before that.
            self.tell_everyone(RunPhase::Paused);
        }
        if reason != FinishReason::NonFinite {
            self.order_checkpoint();
        }
    }

    /// The model overflowed: everything up to the last finite version stays.
    pub(super) fn non_finite(&mut self, version: ModelVersion) {
        self.checkpoints.abandon();
        let (reason, result) = (FinishReason::NonFinite, ModelVersion(version.0.saturating_sub(1)));
        match self.state.as_ref().and_then(|state| state.finished) {
            // The update that reached the target is the one that overflowed: the target's version is no result.
            Some((_, target)) if target >= version => {
                self.evaluators.cancel_unless(None);
                self.append(RecordBody::Finished { reason, result });
            }
            Some(_) => {}
            None => self.finish(reason, result),
        }
    }

    /// The run's state as told to those who ask for a lease. Who hears that the run has ended leaves, and whoever is
    /// asked for the last evaluation must not: until it is in, there are just no leases.
    pub(super) fn lease_phase(&self) -> RunPhase {
        match self.lifecycle.ending {
            Some(Ending::Measuring { .. }) => RunPhase::Paused,
            _ => self.held_phase(),
        }
    }

    pub(super) fn tell_everyone(&mut self, state: RunPhase) {
        let peers: Vec<PeerId> = self.peers.all().map(|(peer, _)| peer).collect();
        for peer in peers {
            self.send(peer, CoordinatorMessage::StateChanged { state });
        }
    }

    pub(super) fn said_goodbye(&mut self, peer: PeerId, agent: AgentId) {
        self.lifecycle.goodbyes.insert(agent, peer);
    }

    pub(super) fn pace_ending(&mut self) {
        let elapsed_ms = |since_ms| self.now.mono_ms.saturating_sub(since_ms);
        match self.lifecycle.ending {
            None => {}
            Some(Ending::Measuring { since_ms }) => self.pace_measuring(elapsed_ms(since_ms)),
            Some(Ending::Telling { since_ms }) => self.pace_telling(elapsed_ms(since_ms)),
        }
    }

    fn pace_measuring(&mut self, elapsed_ms: u64) {
        if self.evaluators.is_measuring() && elapsed_ms < limits::FINAL_EVALUATION_MS {
            return;
        }
        self.evaluators.cancel_unless(None);
        self.lifecycle.ending = Some(Ending::Telling { since_ms: self.now.mono_ms });
        self.tell_everyone(RunPhase::Finished);
        let (here, away) = self.awaited();
        tracing::info!(here, away, at_most_s = HEARING_MS / 1000, "agents are told that the run has ended");
    }

    fn pace_telling(&mut self, elapsed_ms: u64) {
        let (here, away) = self.awaited();
        if (here, away) != (0, 0) {
            if elapsed_ms < HEARING_MS {
                return;
            }
            tracing::warn!(
                here,
                away,
                "agents have not said goodbye; they hear of the end when a coordinator runs here again"
            );
        }
        if let Some((reason, result)) = self.state.as_ref().and_then(|state| state.finished) {
            self.exit(ExitReason::Finished { reason, result });
        }
    }

    /// How many agents took part in this run and have not said goodbye: connected ones, and others.
    fn awaited(&self) -> (usize, usize) {
        let took_part =
            self.state.iter().flat_map(|state| state.agents.iter()).filter(|(_, known)| known.epoch > Epoch(0));
        let (mut here, mut away) = (0, 0);
        for (agent, known) in took_part {
            match (self.peers.peer_of(*agent), self.lifecycle.goodbyes.get(agent)) {
                (Some(peer), goodbye) if goodbye != Some(&peer) => here += 1,
                (None, None) if !known.revoked => away += 1,
                _ => {}
            }
        }
        (here, away)
    }

    /// SIGTERM: a last checkpoint, unless a search holds the run, then the process may end; the run goes on at the next start.
    pub(super) fn park(&mut self) {
        self.lifecycle.parking = true;
        let is_due = !self.checkpoints.is_outstanding() && self.lifecycle.ending.is_none() && !self.is_held();
        if self.state.is_some() && is_due {
            self.order_checkpoint();
        }
        self.pace_parking();
    }

    pub(super) fn pace_parking(&mut self) {
        if self.lifecycle.parking {
            let finished = self.state.as_ref().and_then(|state| state.finished);
            let reason = finished.map(|(reason, result)| ExitReason::Finished { reason, result });
            self.exit(reason.unwrap_or(ExitReason::Parked));
        }
    }

    /// Ends the process, once, when no checkpoint is being written.
    fn exit(&mut self, reason: ExitReason) {
        if !self.checkpoints.is_outstanding() && self.lifecycle.exits() {
            self.record_models_sent();
            self.gated(Command::Exit(reason));
        }
    }
}
