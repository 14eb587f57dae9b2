//! Members are asked to renew their certificates, connections with replaced ones are closed, and the CA changes.

use std::collections::btree_map::Entry;

use anabranch_common::ids::AgentId;
use anabranch_common::wire::message::{CoordinatorMessage, Rejection};

use super::{Admitted, Host, Output};
use crate::core::event::{Now, PeerId, RequestId};
use crate::node::ToPeer;
use crate::registry::roster::Certificate;
use crate::registry::{self, Renewal, Stepped};

/// Returns the stream on which an agent is welcomed, if it is: what it is asked for comes after that.
pub(super) fn welcomed(what: &ToPeer) -> Option<PeerId> {
    match what {
        ToPeer::Send { peer, message } if matches!(**message, CoordinatorMessage::Welcome(_)) => Some(*peer),
        _ => None,
    }
}

impl Host {
    /// A run has welcomed an agent.
    pub(super) fn note_welcome(&mut self, peer: PeerId) {
        if let Some(admitted) = self.peers.get_mut(&peer) {
            admitted.is_welcomed = true;
            self.ask_to_renew(peer);
        }
    }

    /// Asks the member on a stream to renew its certificate, if it is to: on one of its streams.
    fn ask_to_renew(&mut self, peer: PeerId) {
        let Some(Admitted { agent, certificate: Some(certificate), .. }) = self.peers.get(&peer) else { return };
        let Some(key) = self.registry.renewal_wanted(*agent, certificate) else { return };
        if let Entry::Vacant(vacant) = self.asked_to_renew.entry(*agent) {
            vacant.insert(peer);
            let message = Box::new(CoordinatorMessage::RenewNow { key });
            self.out.push(Output::ToPeer(ToPeer::Send { peer, message }));
        }
    }

    /// Asks every member that is connected and was not asked since an operator has wanted something. Those whose streams are
    /// not welcomed yet are asked when they are.
    pub(super) fn ask_all_to_renew(&mut self) {
        let peers: Vec<PeerId> =
            self.peers.iter().filter(|(_, admitted)| admitted.is_welcomed).map(|(peer, _)| *peer).collect();
        peers.into_iter().for_each(|peer| self.ask_to_renew(peer));
    }

    /// Notes that a stream is over on which a member may have been asked.
    pub(super) fn not_asked(&mut self, agent: AgentId, peer: PeerId) {
        if self.asked_to_renew.get(&agent) == Some(&peer) {
            self.asked_to_renew.remove(&agent);
        }
    }

    /// A member requests a renewal. One that is refused may be asked for again.
    pub(super) fn renew(&mut self, now: Now, peer: PeerId, agent: AgentId, csr_der: Vec<u8>) {
        match self.registry.handle(now, registry::Event::Renew { peer, agent, csr_der }) {
            Some(command) => self.obey(now, command),
            None => _ = self.asked_to_renew.remove(&agent),
        }
    }

    /// Sends a renewed certificate, where its owner is still connected.
    pub(super) fn send_renewed(&mut self, renewal: Renewal) {
        let Renewal { peer, certificate_der, ca_ders } = renewal;
        if self.peers.contains_key(&peer) {
            let message = Box::new(CoordinatorMessage::Renewed { certificate_der, ca_ders });
            self.out.push(Output::ToPeer(ToPeer::Send { peer, message }));
        }
    }

    /// Closes the streams of a member whose connections have shown a certificate that does not count any more.
    pub(super) fn close_replaced(&mut self, agent: AgentId) {
        let has_another_key = self.registry.roster().member(agent).is_some_and(|member| member.key.is_some());
        if has_another_key {
            self.close_where(|of| of == agent);
        }
    }

    /// Closes those of such streams that are meant.
    fn close_where(&mut self, is_meant: impl Fn(AgentId) -> bool) {
        let is_replaced = |agent: AgentId, certificate: Option<&Certificate>| {
            is_meant(agent) && matches!(self.registry.greet(agent, certificate), Err(Rejection::OldCertificate))
        };
        let of_runs = self.peers.iter().filter(|(_, peer)| is_replaced(peer.agent, peer.certificate.as_ref()));
        let of_runs: Vec<PeerId> = of_runs.map(|(peer, _)| *peer).collect();
        let lists = self.subscriptions.close_where(is_replaced);
        of_runs.into_iter().for_each(|peer| self.reject(peer, Rejection::OldCertificate));
        self.out.extend(lists.into_iter().map(|peer| Output::ToPeer(ToPeer::Close { peer })));
    }

    /// The CA has changed, or could not be changed.
    pub(super) fn stepped(&mut self, now: Now, request: RequestId, outcome: Result<Stepped, String>) {
        let outcome = outcome.map(|Stepped { step, authorities, shown }| {
            // Before anything is sent that rests on it.
            self.out.push(Output::Show(shown));
            (step, authorities)
        });
        self.tell_registry(now, registry::Event::AuthorityDone { request, outcome });
        self.close_where(|_| true);
    }
}
