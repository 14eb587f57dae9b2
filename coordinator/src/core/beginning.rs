//! How a run begins: an initial model is offered, received one at a time, and becomes record 0. So does an imported one.

use std::sync::Arc;

use anabranch_common::codec;
use anabranch_common::ids::{AgentId, Digest, ModelVersion, Position};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::message::{CoordinatorMessage, Rejection};

use super::Core;
use super::command::Command;
use super::content::Content;
use super::event::PeerId;
use super::offers::{self, ModelOffer, Offers};
use super::replacement::{self, ReplaceError, Replaced};
use super::state::RunState;

/// The order that the tensors of a first model must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TensorOrder {
    /// That of the model's layers: agents train in this one.
    Layers,
    /// Any: the model's own becomes the run's.
    Any,
}

impl Core {
    pub(super) fn model_offered(&mut self, peer: PeerId, agent: AgentId, offer: ModelOffer) {
        if let Some(state) = &self.state {
            // An offer may have crossed the news; the description is too long to be sent for each of many.
            if !self.peers.tell_of_model(peer) {
                return self.violated(peer, "a second offer of an initial model that is in place");
            }
            let ready = CoordinatorMessage::ModelReady { manifest: state.manifest.clone(), digest: state.initial };
            return self.send(peer, ready);
        }
        let fits = offer.transfer.bytes <= codec::max_payload_bytes(&offer.manifest);
        if !fits || offer.transfer.validate(u64::MAX).is_err() {
            return self.violated(peer, "a model whose chunks do not fit its length, or its length its tensors");
        }
        if let Some(problem) = self.other_tensors(&offer.manifest, TensorOrder::Layers) {
            tracing::warn!(agent = %agent.short(), problem, "an offered initial model is not that of [model]");
            return self.turn_away(peer, Rejection::OtherModel(problem));
        }
        self.offers.add(peer, agent, offer);
        self.receive_next_offer();
    }

    /// What is wrong with the tensors of a first model. Those of a native model follow from the configuration; of a custom
    /// one everything within bounds goes to which the configured codecs of tensors fit.
    pub(super) fn other_tensors(&self, offered: &ModelManifest, order: TensorOrder) -> Option<String> {
        let policy = || self.spec.upload.policy.check(offered).err();
        let expected = match self.spec.model.layers() {
            Ok(None) => return policy().map(|error| format!("upload.policy of run.toml: {error}")),
            Ok(Some(layers)) => layers.manifest,
            Err(error) => return Some(error.to_string()),
        };
        match order {
            TensorOrder::Layers => offers::first_difference(&expected, offered),
            TensorOrder::Any => offers::first_difference(&by_name(&expected), &by_name(offered)),
        }
    }

    fn receive_next_offer(&mut self) {
        if self.state.is_some() {
            return;
        }
        if let Some((peer, ModelOffer { manifest, digest, transfer })) = self.offers.next(self.now.mono_ms) {
            self.gate.pass(Command::ReceiveModel { peer, manifest, digest, transfer });
        }
    }

    /// An agent that offered a model and does not send it makes way for the next one.
    pub(super) fn expire_offer(&mut self) {
        if let Some(peer) = self.offers.overdue(self.now.mono_ms) {
            self.cut_off(peer, "did not send the initial model that it offered in time");
        }
    }

    pub(super) fn model_failed(&mut self, peer: PeerId, why: String) {
        self.violated(peer, why);
        self.drop_offer(peer);
    }

    pub(super) fn drop_offer(&mut self, peer: PeerId) {
        self.offers.drop_peer(peer);
        self.receive_next_offer();
    }

    pub(super) fn begin(&mut self, peer: PeerId, manifest: ModelManifest, digest: Digest, model: Arc<Content>) {
        // An agent that was revoked, or has gone, while its model was decoded begins nothing.
        if self.state.is_some() || self.peers.agent_of(peer).is_none() {
            return;
        }
        if let Err(error) = self.begin_run(manifest, digest, model) {
            self.model_failed(peer, format!("an initial model that cannot be the run's: {error}"));
        }
    }

    /// The initial model is here: record 0, then what is known of the agents.
    pub(super) fn begin_run(
        &mut self,
        manifest: ModelManifest,
        digest: Digest,
        model: Arc<Content>,
    ) -> Result<Replaced, ReplaceError> {
        replacement::check(&manifest, &model)?;
        let (run, branch) = (self.options.run, self.options.first_branch);
        let spec = Box::new(self.spec.clone());
        let norm = model.norm();
        let body = RecordBody::Genesis { run, branch, spec, manifest: manifest.clone(), model: digest, norm };
        let (position, version) = (Position(0), ModelVersion(0));
        let record = Arc::new(Record::new(position, self.now.unix_ms, body, Arc::from([])));
        let chain = self.chained(&record, Digest::of(&[]), version)?;
        let state = RunState::genesis(&record).expect("a genesis record at position 0");
        (self.state, self.chain) = (Some(state), chain);
        self.order_model(record, model, None);
        self.offers = Offers::default();
        for (peer, agent, hello) in self.peers.hellos() {
            self.start_epoch(agent, &hello);
            self.send(peer, CoordinatorMessage::ModelReady { manifest: manifest.clone(), digest });
        }
        Ok(Replaced { position, version, before: None })
    }
}

fn by_name(manifest: &ModelManifest) -> ModelManifest {
    let mut tensors = manifest.tensors().to_vec();
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    ModelManifest::new(tensors).expect("the same tensors are within the same bounds")
}
