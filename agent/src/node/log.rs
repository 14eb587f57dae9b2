//! What is logged of an agent's life, and the moments at which tests kill it.

use anabranch_common::ids::Digest;
use anabranch_common::update::{UpdateKey, Verdict};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage as Said};
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_io::faults;

use crate::session::event::{Event, Problem};

pub(super) fn message(message: &AgentMessage) {
    if let AgentMessage::FetchModel { version, missing: Some(missing), .. } = message {
        let chunks = missing.indices(usize::MAX).count();
        tracing::debug!(version = version.0, chunks, "asking for the rest of a model");
    }
    if let AgentMessage::EvaluationFailed { version, reason } = message {
        tracing::debug!(version = version.0, reason, "telling the coordinator of a failed evaluation");
    }
    if let AgentMessage::OfferUpdate { meta, .. } = message {
        tracing::debug!(lease = meta.lease.0, epoch = meta.key.epoch.0, seq = meta.key.seq.0, "offering an update");
        faults::point("update-offered");
    }
}

pub(super) fn chunks(key: UpdateKey, transfer: &TransferManifest, missing: &Missing) {
    let (all, chunks) = (transfer.chunks.len(), missing.indices(transfer.chunks.len()).count());
    tracing::debug!(epoch = key.epoch.0, seq = key.seq.0, chunks, of = all, "sending chunks");
}

pub(super) fn event(event: &Event) {
    match event {
        Event::Disconnected(Problem::Transient(why)) => tracing::warn!(why, "not connected; trying again"),
        Event::Message(Said::Welcome(welcome)) => tracing::info!(
            run = %welcome.run.short(), epoch = welcome.epoch.0, state = ?welcome.state, "connected as {}", welcome.name
        ),
        Event::Message(Said::Model { version, transfer, .. }) => {
            tracing::debug!(version = version.0, chunks = transfer.chunks.len(), "a model is announced");
        }
        Event::Message(Said::Lease { lease, .. }) => {
            tracing::debug!(lease = lease.id.0, base = lease.base_version.0, "lease");
        }
        Event::Message(Said::Pod(round)) => {
            let (lease, attempt, owner) = (round.mark.lease.0, round.mark.attempt, round.owner.short());
            tracing::info!(lease, attempt, %owner, members = round.members().len(), "member of a pod");
        }
        Event::Message(Said::PodOver { mark }) => {
            tracing::info!(lease = mark.lease.0, attempt = mark.attempt, "this attempt of a pod is over");
        }
        Event::PodFailed { mark, problem } | Event::Served { mark, problem: Some(problem), .. } => {
            let (lease, attempt, reason) = (mark.lease.0, mark.attempt, &problem.reason);
            tracing::warn!(lease, attempt, reason, "this attempt of a pod came to nothing");
        }
        Event::Served { mark, problem: None, .. } => {
            tracing::debug!(lease = mark.lease.0, attempt = mark.attempt, "the part of a pod's round is over");
        }
        Event::Message(Said::Verdict { key, verdict: Verdict::Refused { reason } }) => {
            tracing::warn!(epoch = key.epoch.0, seq = key.seq.0, reason = reason.as_str(), "update refused");
        }
        Event::Message(Said::Verdict { key, verdict: Verdict::Accepted { version, staleness, .. } }) => {
            tracing::debug!(epoch = key.epoch.0, seq = key.seq.0, version = version.0, staleness, "update accepted");
            faults::point("verdict-received");
        }
        Event::Message(Said::StateChanged { state }) => tracing::info!(?state, "the run's state has changed"),
        Event::Trained(outcome) => tracing::debug!(
            lease = outcome.lease.0,
            steps = outcome.local_steps,
            loss = outcome.train_loss,
            ms = outcome.compute_ms,
            "trained"
        ),
        Event::Discarded { problem, .. } => tracing::warn!(problem, "this round gave nothing to send"),
        Event::UnpackFailed { problem, .. } => tracing::warn!(problem, "the model that came cannot be used"),
        Event::EvaluationFailed { version, problem } => {
            tracing::warn!(version = version.0, problem, "this version cannot be evaluated here");
        }
        Event::Evaluated { version, accuracy, loss, .. } => {
            tracing::info!(version = version.0, accuracy, loss, "evaluated");
        }
        Event::Hold { reason: Some(reason) } => tracing::info!(reason, "taking on no new work"),
        Event::Hold { reason: None } => tracing::debug!("work may be taken on"),
        Event::Shutdown => tracing::info!("stopping; finished work is kept"),
        _ => {}
    }
}

/// What a helper sends of another agent's update.
pub(super) fn part(bytes: usize, transfer: Digest) {
    tracing::info!(bytes, transfer = %transfer.short(), "sending a part of another agent's update");
}
