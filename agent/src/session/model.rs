//! The trainer's tensors, and version 0 of the run: checked against the coordinator's, or made and offered here.

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{AgentSpec, ModelKind};
use anabranch_common::wire::message::AgentMessage;
use anabranch_common::wire::transfer::Missing;

use super::command::{ChunkSource, Command, Ending};
use super::event::InitialModel;
use super::membership::Terms;
use super::replica::{Replica, Wanted};
use super::tensors::{self, Compared};

/// How far the trainer is.
#[derive(Debug)]
enum Trainer {
    Unbuilt,
    Building,
    Ready(ModelManifest),
}

/// Which part this agent plays in making version 0.
#[derive(Debug)]
enum Initial {
    None,
    Making,
    Made(InitialModel),
}

/// What this agent's trainer trains.
#[derive(Debug)]
pub(super) struct Model {
    trainer: Trainer,
    initial: Initial,
    /// Whether version 0 is still to be made here, in place of being fetched.
    makes_version_0: bool,
}

impl Model {
    /// Before a trainer is built. `trains`: whether this agent holds examples to train on.
    pub(super) fn new(trains: bool) -> Self {
        Self { trainer: Trainer::Unbuilt, initial: Initial::None, makes_version_0: trains }
    }

    /// Whether a base can be asked for: the tensors are known, and version 0 is not being made.
    pub(super) fn is_ready(&self) -> bool {
        matches!((&self.trainer, &self.initial), (Trainer::Ready(_), Initial::None | Initial::Made(_)))
    }

    /// Returns the trainer's tensors, if it is ready.
    pub(super) fn manifest(&self) -> Option<&ModelManifest> {
        match &self.trainer {
            Trainer::Ready(manifest) => Some(manifest),
            Trainer::Unbuilt | Trainer::Building => None,
        }
    }

    /// Builds the trainer for `spec`, unless one is being built.
    pub(super) fn prepare(&mut self, spec: &AgentSpec) -> Option<Command> {
        if matches!(self.trainer, Trainer::Building) {
            return None;
        }
        self.trainer = Trainer::Building;
        Some(Command::Prepare(Box::new(spec.clone())))
    }

    /// The trainer is built.
    pub(super) fn prepared(&mut self, manifest: ModelManifest) {
        self.trainer = Trainer::Ready(manifest);
    }

    /// Version 0 is made.
    pub(super) fn made(&mut self, model: InitialModel) {
        self.initial = Initial::Made(model);
    }

    /// With the trainer built and the coordinator's terms known: compares the run's tensors with the trainer's, or makes and
    /// offers version 0. Returns what is to be done.
    ///
    /// # Errors
    /// The trainer does not fit the run.
    pub(super) fn settle(
        &mut self,
        terms: &Terms,
        is_up: bool,
        replica: &mut Replica,
    ) -> Result<Option<Command>, Ending> {
        let Trainer::Ready(manifest) = &self.trainer else { return Ok(None) };
        if let Some((theirs, digest)) = &terms.model {
            match tensors::compare(manifest, theirs) {
                Compared::Same => {}
                Compared::OtherOrder => {
                    self.trainer = Trainer::Building;
                    return Ok(Some(Command::Reorder(Box::new(theirs.clone()))));
                }
                Compared::Other(difference) => return Err(Ending::Manifest(difference)),
            }
            // The trainer of a native model makes the same version 0 from the same seed everywhere. Later versions may be
            // told from it in few bytes.
            if terms.spec.model.kind != ModelKind::Custom && replica.held().is_none() {
                match &self.initial {
                    Initial::None if std::mem::take(&mut self.makes_version_0) => {
                        self.initial = Initial::Making;
                        return Ok(Some(Command::MakeInitial { seed: terms.spec.seed }));
                    }
                    Initial::Making => return Ok(None),
                    Initial::None | Initial::Made(_) => {}
                }
            }
            self.hand_over(*digest, replica);
            return Ok(None);
        }
        Ok(match &self.initial {
            Initial::None => {
                self.initial = Initial::Making;
                Some(Command::MakeInitial { seed: terms.spec.seed })
            }
            Initial::Making => None,
            Initial::Made(model) => is_up.then(|| {
                let (digest, transfer) = (model.digest, model.transfer.clone());
                Command::Send(AgentMessage::OfferModel { manifest: manifest.clone(), digest, transfer })
            }),
        })
    }

    /// The run has a version 0. If it is the one made here, it need not be fetched.
    fn hand_over(&mut self, digest: Digest, replica: &mut Replica) {
        self.makes_version_0 = false;
        if let Initial::Made(model) = std::mem::replace(&mut self.initial, Initial::None)
            && model.digest == digest
            && replica.held().is_none()
        {
            replica.hold(Wanted { version: ModelVersion(0), digest }, model.content);
        }
    }

    /// Returns the chunks that the coordinator needs, if they are those of version 0 as made here.
    pub(super) fn need(&self, transfer: Digest, missing: Missing) -> Option<Command> {
        let Initial::Made(model) = &self.initial else { return None };
        let source = ChunkSource::Initial(model.encoded.clone());
        let wanted = model.transfer.id() == transfer;
        wanted.then(|| Command::SendChunks { source, transfer: model.transfer.clone(), missing })
    }
}
