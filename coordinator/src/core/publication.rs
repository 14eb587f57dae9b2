//! Publication: which version agents can fetch from this process, and when the next one is asked for.

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::journal::{Publication, PublicationForm, RecordBody};

use super::Core;
use super::command::Command;

/// The versions that this process has made ready.
#[derive(Debug, Default)]
pub(super) struct Publications {
    /// The newest version was asked for, and there is no answer yet.
    asked: bool,
    /// The newest version that can be fetched from this process. The journal may name a newer one, of a process before.
    ready: Option<Publication>,
}

/// What a request for a published version leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The newest version is on its way.
    Wait,
    /// The newest version is to be made ready.
    Ask,
    /// The newest version is ready.
    Ready(Publication),
}

impl Publications {
    /// Takes a request for the version `newest`.
    fn want(&mut self, newest: ModelVersion) -> Step {
        match self.ready {
            _ if self.asked => Step::Wait,
            Some(ready) if ready.version == newest => Step::Ready(ready),
            _ => {
                self.asked = true;
                Step::Ask
            }
        }
    }

    /// Notes that a version is ready.
    fn is_ready(&mut self, publication: Publication) {
        (self.asked, self.ready) = (false, Some(publication));
    }
}

impl Core {
    /// Asks for the newest version when an agent or a round of evaluation waits for one. Grants at once when it is ready.
    pub(super) fn pace_publication(&mut self) {
        let Some(state) = &self.state else { return };
        if !self.leases.is_wanted() && !self.evaluators.wants_a_version() {
            return;
        }
        match self.publications.want(state.version) {
            Step::Wait => {}
            Step::Ask => self.gated(Command::Publish),
            Step::Ready(publication) => self.hand_out(publication),
        }
    }

    pub(super) fn published(&mut self, version: ModelVersion, digest: Digest) {
        let publication = Publication { version, form: PublicationForm::Snapshot, digest };
        self.publications.is_ready(publication);
        let Some(state) = &self.state else { return };
        // A process that was started again makes the newest version ready once more.
        if state.published != Some(publication) {
            self.append(RecordBody::Published(publication));
        }
        self.hand_out(publication);
    }

    fn hand_out(&mut self, Publication { version, digest, .. }: Publication) {
        self.open_wanted_round(version, digest);
        self.grant_waiting(version, digest);
        // After the leases: whoever evaluates the base of its lease need not fetch this version by itself.
        if self.evaluators.take_changed() {
            self.settle_round();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_asked_for_once_and_ready_until_the_next_one_is_made() {
        let publication = |version| Publication {
            version: ModelVersion(version),
            form: PublicationForm::Snapshot,
            digest: Digest([1; 32]),
        };
        let mut publications = Publications::default();
        assert_eq!([0, 0].map(|newest| publications.want(ModelVersion(newest))), [Step::Ask, Step::Wait]);
        publications.is_ready(publication(0));
        assert_eq!(publications.want(ModelVersion(0)), Step::Ready(publication(0)));
        assert_eq!([1, 2].map(|newest| publications.want(ModelVersion(newest))), [Step::Ask, Step::Wait]);
    }
}
