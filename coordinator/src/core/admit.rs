//! Admission: what becomes of an update, and why. A pure function of the journal's state and of the update.

use anabranch_common::codec::{self, DecodeError};
use anabranch_common::ids::AgentId;
use anabranch_common::journal::Contribution;
use anabranch_common::limits;
use anabranch_common::merge::WeightInputs;
use anabranch_common::merge::ef21::MemoryInputs;
use anabranch_common::merge::recall::RecallInputs;
use anabranch_common::merge::shares::Admitted;
use anabranch_common::spec::PodSpec;
use anabranch_common::update::{RefusalReason, UpdateMeta, Verdict};

use super::content::Content;
use super::state::{RunState, norm_per_rate};

/// What becomes of an update.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It was decided before; this is what was said then, and nothing is journalled.
    Repeat(Verdict),
    /// Journal it and merge it.
    Accept(Box<Contribution>),
    /// Journal the refusal.
    Refuse(RefusalReason),
    /// Nothing speaks against it so far: ask for its content.
    Fetch,
}

/// Decides on an update. Without `content` the answer is what can be said before the payload is here; `Fetch` then
/// stands for "send it".
#[must_use]
pub fn admit(state: &RunState, meta: &UpdateMeta, content: Option<&Result<&Content, DecodeError>>) -> Decision {
    if let Some(decision) = decided_before(state, meta) {
        return decision;
    }
    if let Some(reason) = refuse_by_meta(state, meta) {
        return Decision::Refuse(reason);
    }
    match content {
        None => Decision::Fetch,
        Some(Err(_)) => Decision::Refuse(RefusalReason::Malformed),
        Some(Ok(content)) => decide_by_content(state, meta, content),
    }
}

fn decided_before(state: &RunState, meta: &UpdateMeta) -> Option<Decision> {
    let refused = |reason| Some(Decision::Repeat(Verdict::Refused { reason }));
    let agent = state.agents.get(&meta.key.agent)?;
    let Some(epoch) = agent.epochs.get(&meta.key.epoch) else {
        let past = agent.epochs.first_key_value().is_some_and(|(oldest, _)| meta.key.epoch < *oldest);
        return if past { refused(RefusalReason::Duplicate) } else { refused(RefusalReason::UnknownBase) };
    };
    if let Some((payload, verdict)) = epoch.verdicts.get(&meta.key.seq) {
        let same = *payload == meta.payload_digest;
        return if same { Some(Decision::Repeat(*verdict)) } else { refused(RefusalReason::KeyConflict) };
    }
    if meta.key.seq < epoch.forgotten_below { refused(RefusalReason::Duplicate) } else { None }
}

fn refuse_by_meta(state: &RunState, meta: &UpdateMeta) -> Option<RefusalReason> {
    let Some(agent) = state.agents.get(&meta.key.agent) else { return Some(RefusalReason::UnknownBase) };
    if agent.revoked {
        return Some(RefusalReason::Revoked);
    }
    if state.finished.is_some() {
        return Some(RefusalReason::Finished);
    }
    if meta.branch != state.branch {
        return Some(RefusalReason::WrongBranch);
    }
    let Some(lease) = state.lease(meta.key.agent, meta.lease) else {
        let forgotten = meta.lease < state.next_lease && meta.base_version <= state.version;
        let forgotten = forgotten && state.holder(meta.lease).is_none();
        return Some(if forgotten { RefusalReason::Stale } else { RefusalReason::UnknownBase });
    };
    let same_base = lease.base_version == meta.base_version && lease.base_digest == meta.base_digest;
    if !same_base {
        return Some(RefusalReason::UnknownBase);
    }
    if !state.spec.reaches(meta.base_version, state.version) || state.has_delivered(meta.key.agent) {
        return Some(RefusalReason::Stale);
    }
    if !state.holds_memory(meta.key.agent, meta.memory) {
        return Some(RefusalReason::UnknownMemory);
    }
    if meta.payload_bytes > codec::max_payload_bytes(&state.manifest).min(limits::TRANSFER_BYTES) {
        return Some(RefusalReason::OverLimit);
    }
    let product = meta.base_dot.is_none_or(f64::is_finite);
    let residual = meta.residual_ratio.is_none_or(|ratio| ratio.is_finite() && ratio >= 0.0);
    let figures = meta.train_loss.is_finite() && product && residual;
    // A pod encodes every layer by itself.
    let of_pod = matches!(state.spec.pod, Some(PodSpec::Stages(_))) && meta.codec == codec::segments::ID;
    let codec = of_pod || state.spec.upload.policy.allows(&lease.plan.codec, meta.codec);
    let sound = meta.num_examples > 0 && meta.local_steps > 0 && figures && codec;
    if sound { None } else { Some(RefusalReason::Malformed) }
}

fn decide_by_content(state: &RunState, meta: &UpdateMeta, content: &Content) -> Decision {
    let norm = content.norm();
    if !content.is_finite() {
        return Decision::Refuse(RefusalReason::NonFinite);
    }
    // Under a small learning rate updates are small, unless they are differences: what is usual is told at the full one.
    let lease = state.lease(meta.key.agent, meta.lease).filter(|lease| lease.plan.memory.is_none());
    let lr_factor = lease.map_or(1.0, |lease| lease.plan.lr_factor);
    let per_rate = norm_per_rate(norm, lr_factor);
    let newcomers = state.newcomers();
    let admitted = admitted(state, meta.key.agent);
    let allowed = admitted.as_ref().map_or(1.0, |admitted| allowance(state, admitted.rate));
    let median = state.recent.median_norm(newcomers).map(|median| allowed * median);
    let ratio = f64::from(state.spec.admit.max_norm_ratio);
    if ratio > 0.0 && median.is_some_and(|median| per_rate > ratio * median) {
        return Decision::Refuse(RefusalReason::NormOutlier);
    }
    let staleness = state.version.staleness_of(meta.base_version);
    let participation = admitted.as_ref().map_or_else(|| participation(state, meta.key.agent), |it| it.weight);
    let weight = state.spec.merge.weight(WeightInputs { staleness, participation });
    let (compared, measure) = median.map_or_else(|| (norm, first_measure(state)), |median| (per_rate, median));
    let clipped = clipped(state, compared, measure);
    let influence = influence(state, meta.key.agent, newcomers);
    let weight = weight * damped(clipped, influence);
    let memory = state.memory_inputs(meta.key.agent, meta.memory);
    let memory = memory.map(|inputs| MemoryInputs { step: inputs.step * damped(1.0, influence), ..inputs });
    let credited_examples = meta.num_examples.min(state.spec.admit.max_examples);
    let held = state.counted_examples(meta.key.agent);
    Decision::Accept(Box::new(Contribution {
        meta: meta.clone(),
        credited_examples,
        staleness,
        weight,
        mean_weight: state.spec.merge.mean_weight(held, credited_examples),
        norm,
        memory,
        recall: admitted.map(|admitted| RecallInputs { scale: damped(clipped, 1.0), ..admitted.inputs }),
        transfer_ms: None,
    }))
}

/// Returns what an update of an agent is admitted with where the merge rule uses shares.
fn admitted(state: &RunState, agent: AgentId) -> Option<Admitted> {
    let recalling = state.spec.merge.recalling()?;
    let held = state.agents.get(&agent).map_or(0, |known| known.examples_held);
    Some(state.shares.admit(agent, held, recalling))
}

/// Returns the participation that the weight of an agent's update is computed with, or what the rule has in its place.
fn participation(state: &RunState, agent: AgentId) -> f64 {
    if !state.spec.merge.rescales() {
        return state.participation.weight(agent);
    }
    let held = state.agents.get(&agent).map_or(0, |known| known.examples_held);
    state.shares.rescale(agent, held)
}

/// How many times the usual norm an update of an agent may have that reports at `rate` times the mean rate: agents that
/// report rarely have more to say at a time.
fn allowance(state: &RunState, rate: f64) -> f64 {
    let most = f64::from(state.spec.admit.rare_norm_ratio);
    if most > 1.0 { (1.0 / rate).clamp(1.0, most) } else { 1.0 }
}

/// Returns the measure of updates before enough agents have shown a norm: that of the model that the history began with.
///
/// Of a model of zeros it is a change of 1 in every parameter. Training stays far below it, and what is a million times too
/// large cannot carry the model away before three agents have shown what is usual.
fn first_measure(state: &RunState) -> f64 {
    if state.reference_norm > 0.0 { state.reference_norm } else { (state.manifest.params() as f64).sqrt() }
}

/// What an update is multiplied with so that its norm counts for no more than is configured. 1 where that is off, or
/// within bounds.
fn clipped(state: &RunState, norm: f64, usual_norm: f64) -> f64 {
    let clip = f64::from(state.spec.admit.clip_norm_ratio);
    if clip > 0.0 && norm > clip * usual_norm { clip * usual_norm / norm } else { 1.0 }
}

/// What the weight of an update is multiplied with so that how often its agent comes counts for no more than is configured.
fn influence(state: &RunState, agent: AgentId, newcomers: usize) -> f64 {
    let max_influence = f64::from(state.spec.admit.max_influence);
    if max_influence > 0.0 { state.recent.influence(agent, max_influence, newcomers) } else { 1.0 }
}

#[expect(clippy::cast_possible_truncation, reason = "a weight is journalled and applied as f32")]
fn damped(clipped: f64, influence: f64) -> f32 {
    (clipped * influence) as f32
}
