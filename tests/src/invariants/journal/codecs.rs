//! Codecs: a lease names the one that follows from the records before it, and an update that
//! counts was encoded with its lease's, or by the policy for tensors.

use std::collections::BTreeMap;

use anabranch_common::codec::{CodecSpec, segments};
use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::journal::{Contribution, Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{PodSpec, RunSpec, UpdateSizes, UploadSpec};
use anabranch_common::update::RefusalReason;

use super::{Checked, ensure};

const NAME: &str = "codecs";

#[derive(Debug, Default)]
pub(super) struct Codecs {
    /// What each lease has asked for.
    asked: BTreeMap<LeaseId, CodecSpec>,
    /// The run's tensors, of which some may have codecs of their own.
    manifest: Option<ModelManifest>,
    agents: BTreeMap<AgentId, Known>,
}

/// What is known of an agent: nothing but its level where codecs do not follow lines.
#[derive(Debug, Default)]
struct Known {
    level: usize,
    /// Milliseconds, as moving means: a round beside its upload, and a byte.
    round: Option<f64>,
    byte: Option<f64>,
    /// Milliseconds that an upload takes whatever its size.
    latency: f64,
    /// Bytes and milliseconds of the latest upload.
    latest: Option<[f64; 2]>,
    accepted_ms: Option<u64>,
    residual: Option<f64>,
}

impl Codecs {
    /// `spec` is the configuration before the record.
    pub(super) fn apply(&mut self, spec: Option<&RunSpec>, record: &Record) -> Checked {
        let upload = spec.map(|spec| &spec.upload);
        let adaptive = upload.filter(|upload| upload.adaptive.is_some());
        match &record.body {
            RecordBody::Genesis { manifest, .. } => self.manifest = Some(manifest.clone()),
            RecordBody::LeaseGranted(lease) => {
                let codec = lease.plan.codec;
                self.asked.insert(lease.id, codec);
                let level = self.agents.get(&lease.agent).map_or(0, |known| known.level);
                let expected = upload.map(|upload| upload.level(level));
                return ensure(expected == Some(codec), NAME, || {
                    format!("lease {:?} names {codec:?}, and {expected:?} follows from the records", lease.id)
                });
            }
            RecordBody::Contribution(update) => {
                let (lease, used) = (update.meta.lease, update.meta.codec);
                let asked = self.asked.get(&lease).copied();
                let policy = upload.map(|upload| &upload.policy);
                // A pod encodes every layer by itself.
                let of_pod =
                    used == segments::ID && spec.is_some_and(|spec| matches!(spec.pod, Some(PodSpec::Stages(_))));
                let is_allowed = of_pod || asked.zip(policy).is_some_and(|(asked, policy)| policy.allows(&asked, used));
                ensure(is_allowed, NAME, || {
                    format!("an update under lease {lease:?} is encoded with {used:?}, and {asked:?} was asked for")
                })?;
                if let (Some(upload), Some(asked)) = (adaptive, asked) {
                    let known = self.agents.entry(update.meta.key.agent).or_default();
                    let sizes = self.manifest.as_ref().map(|manifest| upload.policy.sizes(manifest));
                    known.observe(update, (asked, sizes.unwrap_or_default()), record.at_ms, upload);
                }
            }
            RecordBody::Refused { key, reason: RefusalReason::Stale, .. } => {
                if let Some(upload) = adaptive {
                    let known = self.agents.entry(key.agent).or_default();
                    known.level = (known.level + 1).min(upload.levels() - 1);
                }
            }
            RecordBody::EpochStarted { agent, .. } => {
                self.agents.entry(*agent).and_modify(|known| known.accepted_ms = None);
            }
            RecordBody::AgentRevoked { agent } => _ = self.agents.remove(agent),
            RecordBody::ConfigChanged { spec: new }
                if spec.is_some_and(|spec| spec.upload != new.upload || spec.model != new.model) =>
            {
                self.agents.clear();
            }
            _ => {}
        }
        Ok(())
    }
}

impl Known {
    fn observe(
        &mut self,
        update: &Contribution,
        (asked, sizes): (CodecSpec, UpdateSizes),
        at_ms: u64,
        upload: &UploadSpec,
    ) {
        let meta = &update.meta;
        let before = self.residual;
        let ratio = meta.residual_ratio.map(f64::from);
        self.residual = ratio.map(|ratio| mean(before.or(Some(ratio)), ratio, f64::INFINITY)).or(before);
        let grows = before.is_some_and(|before| ratio.is_some_and(|ratio| ratio > 1.05 * before));
        let since_ms = self.accepted_ms.filter(|before| *before <= at_ms).map(|before| at_ms - before);
        self.accepted_ms = Some(at_ms);
        let Some(transfer_ms) = update.transfer_ms else { return };
        let (bytes, ms) = (meta.payload_bytes.max(1) as f64, transfer_ms as f64);
        if let Some([other, took]) = self.latest {
            let slope = (ms - took) / (bytes - other);
            if bytes.max(other) > 1.25 * bytes.min(other) && slope > 0.0 {
                self.latency = (ms - slope * bytes).max(0.0);
            }
        }
        (self.latest, self.latency) = (Some([bytes, ms]), self.latency.min(0.9 * ms));
        let byte = mean(self.byte, (ms - self.latency) / bytes, 4.0);
        self.byte = Some(byte);
        let Some(since_ms) = since_ms else { return };
        let beside_ms = since_ms.saturating_sub(transfer_ms);
        self.round = Some(mean(self.round, meta.compute_ms.max(beside_ms).max(1) as f64, 4.0));
        let per_bit = byte * bytes / sizes.with(&asked);
        let allowed =
            upload.adaptive.as_ref().map_or(0.0, |adaptive| adaptive.transfer_share) * self.round.unwrap_or(0.0);
        let fits = |level: usize, allowed: f64| per_bit * sizes.with(&upload.level(level)) <= allowed;
        let levels = 0..upload.levels();
        let mildest = |allowed| levels.clone().find(|level| fits(*level, allowed)).unwrap_or(levels.end - 1);
        match self.level {
            level if level > mildest(allowed / 1.5) => self.level = mildest(allowed / 1.5),
            level if level < mildest(allowed) && !(grows && level > 0) => self.level = mildest(allowed),
            _ => {}
        }
    }
}

/// The newest figure counts for a quarter, and for no more than `trust` times the mean, or its
/// `trust`-th part.
fn mean(mean: Option<f64>, newest: f64, trust: f64) -> f64 {
    match mean {
        None => newest,
        Some(mean) if mean > 0.0 => mean + 0.25 * (newest.max(mean / trust).min(mean * trust) - mean),
        Some(mean) => mean + 0.25 * (newest - mean),
    }
}
