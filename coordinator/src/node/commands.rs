//! The core's commands, carried out.

use std::sync::Arc;

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::transfer::{Expected, UploadName};
use anabranch_common::wire::message::CoordinatorMessage;
use anabranch_common::wire::transfer::Missing;

use super::downloads::Sending;
use super::forms::{Choice, Here};
use super::merge::MergeJob;
use super::write::WriteJob;
use super::{Basis, FormKey, Job, Node, Output, PackedModel, Phase, ToPeer};
use crate::core::command::{Command, ModelRequest};
use crate::core::content::Content;
use crate::core::event::{Now, PeerId};

impl Node {
    pub(super) fn carry_out(&mut self, now: Now, commands: Vec<Command>) {
        let mut exit = None;
        for command in commands {
            match command {
                Command::AppendModel { record, model, parent } => {
                    let Some(manifest) = self.manifest() else { continue };
                    self.writer.push(WriteJob::Model { record, manifest, model, parent });
                }
                Command::Append { record } => self.writer.push(WriteJob::Append(record)),
                Command::Merge { record, content } => self.merge(record, content),
                Command::Publish { served } => self.merger.push(MergeJob::Publish { served }),
                Command::Checkpoint(order) => self.merger.push(MergeJob::Checkpoint(order)),
                Command::Renew { peer, agent, csr_der } => self.out.push(Output::Renew { peer, agent, csr_der }),
                Command::Revoked { request } => self.out.push(Output::Revoked { request }),
                Command::Reply { request, answer } => {
                    let uploads = self.uploads.status();
                    self.out.push(Output::Reply { request, answer, uploads });
                }
                Command::Replaced { request, outcome } => self.out.push(Output::Replaced { request, outcome }),
                Command::Send { peer, message } => {
                    self.forget_half(peer, &message);
                    self.send(peer, message);
                }
                Command::Close { peer } => self.close(now, peer),
                Command::SendModel { peer, request } => self.send_model(peer, &request),
                Command::ReceiveUpdate { peer, meta, transfer, helpers } => {
                    let Some(manifest) = self.manifest() else { continue };
                    let what = Expected::Update { meta: Box::new(meta), manifest };
                    self.upload_offered(now, peer, what, (transfer, helpers));
                }
                Command::PartNotThere { peer, transfer } => self.uploads.not_there(now, peer, transfer),
                Command::ReceiveModel { peer, manifest, digest, transfer } => {
                    let what = Expected::Model { manifest: Arc::new(manifest), digest };
                    self.upload_offered(now, peer, what, (transfer, Vec::new()));
                }
                Command::Trial(news) => self.out.push(Output::Trial(news)),
                Command::Exit(reason) => exit = Some(reason),
            }
        }
        if let Some(reason) = exit {
            self.phase = Phase::Leaving(reason);
            self.out.extend(self.agents.keys().map(|peer| Output::ToPeer(ToPeer::Close { peer: *peer })));
        }
    }

    fn merge(&mut self, record: Arc<Record>, content: Option<Arc<Content>>) {
        self.chain.merged(&record);
        let job = match (brought_version(&record.body), content, self.manifest()) {
            (Some(version), Some(model), Some(manifest)) => {
                let (merge, track) = (self.spec.merge.clone(), self.spec.downlink.track.clone());
                MergeJob::Replace { manifest, merge, track, model, version }
            }
            (_, content, _) => MergeJob::Merge { record, content },
        };
        self.merger.push(job);
    }

    /// What is half here of a decided update, or of the model that became version 0, is not needed any more.
    fn forget_half(&mut self, peer: PeerId, message: &CoordinatorMessage) {
        match message {
            CoordinatorMessage::Verdict { key, .. } => self.uploads.decided(UploadName::of_update(key)),
            CoordinatorMessage::ModelReady { .. } => {
                if let Some(agent) = self.agents.get(&peer) {
                    self.uploads.decided(UploadName::of_model(*agent));
                }
            }
            _ => {}
        }
    }

    fn manifest(&mut self) -> Option<Arc<ModelManifest>> {
        if self.manifest.is_none() {
            self.manifest = self.core.state().map(|state| Arc::new(state.manifest.clone()));
        }
        self.manifest.clone()
    }

    /// Sends a version in the smallest form that its agent can use.
    fn send_model(&mut self, peer: PeerId, request: &ModelRequest) {
        let Some(manifest) = self.manifest() else { return self.model_gone(peer, request) };
        let sending_bytes = self.downloads.bytes();
        let here = Here { publisher: &self.publisher, chain: &self.chain, manifest: &manifest, sending_bytes };
        match self.forms.choose(peer, request, here) {
            Choice::Send(model) => self.send_packed(peer, request, model),
            Choice::Wait(job) => self.out.extend(job.map(|job| Output::Run(Job::Pack(job)))),
            Choice::Gone => self.model_gone(peer, request),
        }
    }

    /// A form is made, and sent to all that wait for it. Where none that rests on what they hold is shorter than the whole
    /// model, they get that. Requests for which there was no room are looked at again.
    pub(super) fn packed(&mut self, key: FormKey, model: Option<Arc<PackedModel>>) {
        for (peer, request) in self.forms.made(key, model.clone()) {
            match (&model, key.basis) {
                (Some(model), _) => self.send_packed(peer, &request, Arc::clone(model)),
                (None, Basis::Held(..)) => self.send_model(peer, &ModelRequest { held: None, ..request }),
                (None, Basis::Nothing) => self.model_gone(peer, &request),
            }
        }
        for (peer, request) in self.forms.take_deferred() {
            self.send_model(peer, &request);
        }
    }

    fn model_gone(&mut self, peer: PeerId, request: &ModelRequest) {
        let ModelRequest { version, digest, .. } = *request;
        self.send(peer, CoordinatorMessage::ModelGone { version, digest });
    }

    fn send_packed(&mut self, peer: PeerId, request: &ModelRequest, model: Arc<PackedModel>) {
        let PackedModel { version, digest, form, transfer, .. } = &*model;
        let (version, digest, form, transfer) = (*version, *digest, *form, transfer.clone());
        let missing = request.missing.clone().unwrap_or_else(|| Missing::all(transfer.chunks.len()));
        match self.downloads.start(peer, &transfer, &missing, request.purpose) {
            Sending::New(download) => {
                self.send(peer, CoordinatorMessage::Model { version, digest, form, transfer });
                self.tell(ToPeer::SendChunks { peer, download, model, missing });
            }
            // An agent that has dropped what it was told, because it had begun with another form, must be told again.
            Sending::OnItsWay if request.missing.is_none() => {
                self.send(peer, CoordinatorMessage::Model { version, digest, form, transfer });
            }
            Sending::OnItsWay | Sending::NotConnected => {}
        }
    }
}

/// The version of the model that a record brings, if it brings one.
fn brought_version(body: &RecordBody) -> Option<ModelVersion> {
    match body {
        RecordBody::Genesis { .. } => Some(ModelVersion(0)),
        RecordBody::Imported { version, .. } | RecordBody::Branched { version, .. } => Some(*version),
        _ => None,
    }
}
