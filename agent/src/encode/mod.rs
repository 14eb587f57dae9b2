//! How an update is encoded: by the agent, or where it was trained.
//!
//! ```text
//!  Outcome { delta, encoded } ─► bank ─► cpu: left out before + delta ──► payload, left out now
//!                                 │        (or the trainer's payload, if the ledger agrees)
//!                                 │        with a memory: delta - memory ──► payload
//!                                 │        (or what a pod has encoded, if the ledger agrees)
//!                                 └────► Ledger::bank: stores both in one step
//! ```
//!
//! | file | content |
//! |---|---|
//! | `cpu` | the encoder of the agent's own process |
//! | `order` | what a trainer with an encoder of its own is told |
//! | `states` | the ledger's feedback state by number |
//! | `chain` | the feedback states that a child's encoder has |
//! | `cuda` | the top-k encoder on a GPU |
//!
//! How a child is asked to encode is part of the trainer protocol (`train/process`).

pub mod chain;
mod cpu;
pub mod cuda;
mod order;
mod states;

use anabranch_common::codec::{self, Delta, EncodeError};
use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::UpdateKey;
use anabranch_io::durable::StorageError;

use crate::session::command::Bank;
use crate::session::event::{OutboxEntry, PodContent};
use crate::store::Ledger;

pub use cpu::{Memory, Origin, Update};
pub use order::{EncodeOrder, FeedbackSource};
pub use states::States;

/// Why an update cannot be banked.
#[derive(Debug, thiserror::Error)]
pub enum BankError {
    /// The store cannot be used any more. The process must stop.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The delta cannot be encoded: it is not finite, or not of the model's size. Nothing was stored.
    #[error("the delta cannot be sent: {0}")]
    Encode(#[from] EncodeError),
    /// What was left out before is not what the pod went on from. Nothing was stored.
    #[error("what compression left out before has changed while a pod computed the round")]
    Changed,
}

/// Encodes what `ledger` left out before and the delta of `bank`, and stores the payload with what
/// it leaves out now, in one step.
///
/// # Errors
/// The delta cannot be encoded (nothing has changed), or the store fails.
pub fn bank(
    ledger: &mut Ledger,
    run: RunId,
    agent: AgentId,
    manifest: &ModelManifest,
    mut bank: Bank,
) -> Result<OutboxEntry, BankError> {
    let key = UpdateKey { run, agent, epoch: bank.epoch, seq: bank.seq };
    if let Some(content) = bank.outcome.pod.take() {
        return bank_of_pod(ledger, key, manifest, &bank, content);
    }
    let origin = ledger.take_origin(bank.lease.branch, manifest, bank.lease.plan.memory);
    match cpu::encode(manifest, &mut bank, origin, &ledger.states()) {
        Ok(update) => {
            let started_from = bank.started_from.take();
            let base_dot = started_from.map(|from| from.product(&sent(manifest, &update)));
            let base_dot = base_dot.filter(|product| product.is_finite());
            let residual_ratio = bank.lease.plan.residual_ratio.then(|| residual_ratio(&bank, &update)).flatten();
            Ok(ledger.bank(key, manifest, &bank, update, Measured { base_dot, residual_ratio })?)
        }
        Err(error) => {
            ledger.restore_residual()?;
            Err(error.into())
        }
    }
}

/// Stores what a pod has encoded. What it leaves out takes the place of what it went on from.
fn bank_of_pod(
    ledger: &mut Ledger,
    key: UpdateKey,
    manifest: &ModelManifest,
    bank: &Bank,
    content: PodContent,
) -> Result<OutboxEntry, BankError> {
    let expected = manifest.params();
    if !content.left_out.is_empty() && content.left_out.len() != expected {
        return Err(EncodeError::WrongLength { expected, found: content.left_out.len() }.into());
    }
    if content.from != ledger.states().current() {
        return Err(BankError::Changed);
    }
    let origin = ledger.take_origin(bank.lease.branch, manifest, bank.lease.plan.memory);
    let residual_ratio = content.residual_ratio.filter(|_| bank.lease.plan.residual_ratio);
    let measured = Measured { base_dot: content.base_dot, residual_ratio };
    let update = cpu::of_pod(content, origin, &ledger.states());
    Ok(ledger.bank(key, manifest, bank, update, measured)?)
}

/// What the coordinator wants to know of an update beside the trainer's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// The product of its content with the model that its round started from.
    pub base_dot: Option<f64>,
    /// Norm of what is left out now over the norm of the delta.
    pub residual_ratio: Option<f32>,
}

/// Returns the norm of what `update` leaves out over the norm of the delta, if there is a delta.
#[expect(clippy::cast_possible_truncation, reason = "a ratio that is told")]
fn residual_ratio(bank: &Bank, update: &Update) -> Option<f32> {
    let left_out = update.left_out.as_deref().map_or(0.0, codec::euclidean_norm);
    let ratio = (left_out / codec::euclidean_norm(&bank.outcome.delta)) as f32;
    ratio.is_finite().then_some(ratio)
}

/// What a payload decodes to, wherever it was encoded.
fn sent(manifest: &ModelManifest, update: &Update) -> Delta {
    let sent = codec::decode(update.codec, manifest, &update.payload);
    sent.expect("what was encoded here, or was checked here, decodes")
}
