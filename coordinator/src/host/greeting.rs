//! Agents that open a stream: for a run, or to hear which runs there are.

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::wire::message::{AgentHello, CoordinatorMessage, Rejection};
use anabranch_common::wire::runs::RunsWanted;

use super::{Host, Output};
use crate::core::event::{Event, Now, PeerId};
use crate::node::{self, ToPeer};
use crate::registry;
use crate::registry::roster::Certificate;

/// Who speaks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) agent: AgentId,
    /// None in a simulation, where there are no certificates.
    pub(super) certificate: Option<Certificate>,
}

/// A control stream whose agent was let in.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) run: RunId,
    pub(super) agent: AgentId,
    pub(super) certificate: Option<Certificate>,
    /// Whether the run has welcomed the agent.
    pub(super) is_welcomed: bool,
}

impl Host {
    pub(super) fn hello(&mut self, now: Now, caller: Caller, peer: PeerId, hello: AgentHello) {
        let Caller { agent, certificate } = caller;
        // Until it is durable that the new key counts, the agent is told to come again.
        if let Some(certificate) = certificate.filter(|certificate| self.registry.switches(agent, certificate)) {
            self.tell_registry(now, registry::Event::Shown { agent, certificate });
        }
        match self.admit(caller, hello.run).map(str::to_owned) {
            Ok(name) => {
                self.peers.insert(peer, Admitted { run: hello.run, agent, certificate, is_welcomed: false });
                if let Some(certificate) = certificate {
                    self.tell_registry(now, registry::Event::Shown { agent, certificate });
                    self.close_replaced(agent);
                }
                self.tell(now, hello.run, node::Input::Event(Event::Connected { peer, agent, name, hello }));
            }
            Err(why) => self.reject(peer, why),
        }
    }

    pub(super) fn subscribe(&mut self, caller: Caller, peer: PeerId, wanted: RunsWanted) {
        match self.registry.greet(caller.agent, caller.certificate.as_ref()) {
            Ok(_) => {
                let before = self.subscriptions.opened(peer, caller, wanted);
                self.out.extend(before.map(|peer| Output::ToPeer(ToPeer::Close { peer })));
            }
            // The control streams of its runs say why.
            Err(_) => self.out.push(Output::ToPeer(ToPeer::Close { peer })),
        }
    }

    pub(super) fn reject(&mut self, peer: PeerId, why: Rejection) {
        let message = Box::new(CoordinatorMessage::Rejected(why));
        self.out.push(Output::ToPeer(ToPeer::Send { peer, message }));
        self.out.push(Output::ToPeer(ToPeer::Close { peer }));
    }
}
