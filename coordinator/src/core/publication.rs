//! Publication: which version agents can fetch from this process, and when the next one is asked for.

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::journal::{Publication, PublicationForm, RecordBody};

use super::Core;
use super::command::Command;

/// What users are given, beside what agents train from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedModel {
    /// The same vector.
    Same,
    /// Another vector, which cannot be fetched yet.
    Other,
    /// Another vector: the one of this version, with this digest.
    Ready(ModelVersion, Digest),
}

/// The versions that this process has made ready.
#[derive(Debug, Default)]
pub(super) struct Publications {
    /// The newest version was asked for, and there is no answer yet.
    asked: bool,
    /// The newest version that can be fetched from this process. The journal may name a newer one, of a process before.
    ready: Option<Ready>,
}

/// A version that can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ready {
    publication: Publication,
    served: ServedModel,
}

impl Ready {
    /// Version and digest of what users are given, if that can be fetched.
    fn served(&self) -> Option<(ModelVersion, Digest)> {
        match self.served {
            ServedModel::Same => Some((self.publication.version, self.publication.digest)),
            ServedModel::Other => None,
            ServedModel::Ready(version, digest) => Some((version, digest)),
        }
    }
}

/// What a request for a published version leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The newest version is on its way.
    Wait,
    /// The newest version is to be made ready.
    Ask,
    /// The newest version is ready.
    Ready(Ready),
}

impl Publications {
    /// Takes a request for the version `base`, and for what users are given of the version `served`.
    fn want(&mut self, base: ModelVersion, served: Option<ModelVersion>) -> Step {
        let is_served = |ready: &Ready| ready.served().map(|(version, _)| version);
        let is_enough = |ready: &Ready| {
            ready.publication.version == base && served.is_none_or(|served| is_served(ready) == Some(served))
        };
        match self.ready {
            _ if self.asked => Step::Wait,
            Some(ready) if is_enough(&ready) => Step::Ready(ready),
            _ => {
                self.asked = true;
                Step::Ask
            }
        }
    }

    /// Notes that a version is ready.
    fn is_ready(&mut self, ready: Ready) {
        (self.asked, self.ready) = (false, Some(ready));
    }

    /// What users are given of the newest version that is ready.
    pub(super) fn served(&self) -> ServedModel {
        self.ready.map_or(ServedModel::Same, |ready| ready.served)
    }
}

impl Core {
    /// Asks for the newest version when an agent or a round of evaluation waits for one. Grants at once when it is ready. A
    /// round waits for what users are given: that is what agents evaluate.
    pub(super) fn pace_publication(&mut self) {
        let Some(state) = &self.state else { return };
        if !self.leases.is_wanted() && !self.pods.requests.are_wanted() && !self.evaluators.wants_a_version() {
            return;
        }
        let served = self.evaluators.wants_a_version();
        match self.publications.want(state.base, served.then_some(state.version)) {
            Step::Wait => {}
            Step::Ask => self.gated(Command::Publish { served }),
            Step::Ready(ready) => self.hand_out(ready),
        }
    }

    pub(super) fn published(&mut self, version: ModelVersion, digest: Digest, served: ServedModel) {
        let tracked = self.state.as_ref().is_some_and(|state| state.spec.downlink.track.is_some());
        let form = if tracked { PublicationForm::Track } else { PublicationForm::Snapshot };
        let publication = Publication { version, form, digest };
        let ready = Ready { publication, served };
        self.publications.is_ready(ready);
        self.open_round.published(version, self.now.mono_ms);
        let Some(state) = &self.state else { return };
        // A process that was started again makes the newest version ready once more.
        if state.published != Some(publication) {
            self.append(RecordBody::Published(publication));
        }
        self.hand_out(ready);
    }

    fn hand_out(&mut self, ready: Ready) {
        let Publication { version, digest, .. } = ready.publication;
        if let Some((of, served)) = ready.served() {
            self.open_wanted_round(of, served);
        }
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
        let mut publications = Publications::default();
        assert_eq!([0, 0].map(|newest| want(&mut publications, newest, true)), [Step::Ask, Step::Wait]);
        let same = ready(0, ServedModel::Same);
        publications.is_ready(same);
        assert_eq!([true, false].map(|served| want(&mut publications, 0, served)), [Step::Ready(same); 2]);
        assert_eq!([1, 2].map(|newest| want(&mut publications, newest, false)), [Step::Ask, Step::Wait]);
    }

    #[test]
    fn what_users_are_given_is_asked_for_where_it_is_wanted_and_another_vector() {
        let mut publications = Publications::default();
        let other = ready(0, ServedModel::Other);
        publications.is_ready(other);
        assert_eq!(want(&mut publications, 0, false), Step::Ready(other));
        assert_eq!([true, false].map(|served| want(&mut publications, 0, served)), [Step::Ask, Step::Wait]);
        let both = ready(0, ServedModel::Ready(ModelVersion(0), Digest([2; 32])));
        publications.is_ready(both);
        assert_eq!([true, false].map(|served| want(&mut publications, 0, served)), [Step::Ready(both); 2]);
        assert_eq!(want(&mut publications, 1, true), Step::Ask, "of the next version again");
    }

    /// With a published track, users are given a newer version than the one that agents train from.
    #[test]
    fn what_users_are_given_may_be_of_a_newer_version() {
        let mut publications = Publications::default();
        let both = ready(4, ServedModel::Ready(ModelVersion(6), Digest([2; 32])));
        publications.is_ready(both);
        let want = |publications: &mut Publications, served| publications.want(ModelVersion(4), served);
        assert_eq!(want(&mut publications, None), Step::Ready(both));
        assert_eq!(want(&mut publications, Some(ModelVersion(6))), Step::Ready(both));
        assert_eq!(want(&mut publications, Some(ModelVersion(7))), Step::Ask);
    }

    fn want(publications: &mut Publications, newest: u64, served: bool) -> Step {
        let newest = ModelVersion(newest);
        publications.want(newest, served.then_some(newest))
    }

    fn ready(version: u64, served: ServedModel) -> Ready {
        let (version, digest) = (ModelVersion(version), Digest([1; 32]));
        Ready { publication: Publication { version, form: PublicationForm::Snapshot, digest }, served }
    }
}
