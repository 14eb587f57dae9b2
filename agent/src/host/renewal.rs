//! Which run's session renews the certificate that all share.

use anabranch_common::ids::RunId;

use super::AgentHost;
use crate::session::Link;
use crate::session::event::Event;

impl AgentHost {
    /// Lets another run renew the certificate when the run that did has ended, or when its session is down although the
    /// renewal is due: the coordinator may serve that run no more.
    pub(super) fn hand_on_renewal(&mut self, now_ms: u64) {
        let (of, renew_at_ms) = self.renewer;
        let is_here = self.members.contains_key(&of);
        if is_here && (self.is_up(of) || renew_at_ms > now_ms) {
            return;
        }
        let up = self.members.keys().copied().find(|run| self.is_up(*run));
        // One that only waits for its connection is no better than the present one.
        let Some(next) = up.or_else(|| self.members.keys().next().copied().filter(|_| !is_here)) else { return };
        self.renewer.0 = next;
        if is_here {
            self.tell(now_ms, of, Event::CertificateStored { renew_at_ms: u64::MAX });
        }
        self.tell(now_ms, next, Event::CertificateStored { renew_at_ms });
    }

    /// The run whose session renews the certificate.
    #[must_use]
    pub fn renewer(&self) -> RunId {
        self.renewer.0
    }

    /// A run has a renewed certificate: the coordinator may have asked that run for it. It renews the next one, too.
    pub(super) fn certificate_stored(&mut self, now_ms: u64, run: RunId, renew_at_ms: u64) {
        let before = self.renewer.0;
        self.renewer = (run, renew_at_ms);
        if before != run && self.members.contains_key(&before) {
            self.tell(now_ms, before, Event::CertificateStored { renew_at_ms: u64::MAX });
        }
    }

    /// When the renewal is to be handed on, if its session is down and another one is up.
    pub(super) fn handover_ms(&self) -> Option<u64> {
        let (of, renew_at_ms) = self.renewer;
        let is_up = self.members.keys().any(|run| self.is_up(*run));
        (is_up && !self.is_up(of)).then_some(renew_at_ms)
    }

    fn is_up(&self, run: RunId) -> bool {
        self.members.get(&run).is_some_and(|member| member.node.session().link() == Link::Up)
    }
}
