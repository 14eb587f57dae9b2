//! Staleness and weight: counted in versions, bounded, and exactly what the rule says where the rule is simple.

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::spec::RunSpec;
use anabranch_common::update::RefusalReason;

use super::closes::Closes;
use super::leases::Leases;
use super::{Checked, ensure};

const NAME: &str = "staleness";
/// Participation weights, and those of the rescaled rule, are clipped to [1/8, 8].
const PARTICIPATION_MAX: f32 = 8.0;

/// A refusal as stale must be true: work under a lease that is still outstanding is welcome while its base is, and behind a
/// barrier while the round is open and has no other update of the agent.
pub(super) fn refused(
    spec: Option<&RunSpec>,
    version: ModelVersion,
    record: &Record,
    leases: &Leases,
    closes: &Closes,
) -> Checked {
    let (Some(spec), RecordBody::Refused { key, lease, reason: RefusalReason::Stale, .. }) = (spec, &record.body)
    else {
        return Ok(());
    };
    let Some(base) = leases.outstanding(*lease) else { return Ok(()) };
    let is_old = version.0.saturating_sub(base.0) > spec.admit.max_staleness;
    ensure(is_old || closes.is_late(spec, version, key.agent, base), NAME, || {
        format!("record {} refuses version {base} as stale at {version}", record.position)
    })
}

pub(super) fn check(spec: Option<&RunSpec>, version: ModelVersion, record: &Record) -> Checked {
    let (Some(spec), RecordBody::Contribution(update)) = (spec, &record.body) else { return Ok(()) };
    let (position, base) = (record.position, update.meta.base_version);
    let behind = version.0.checked_sub(base.0);
    ensure(behind == Some(update.staleness), NAME, || {
        format!("record {position}: base {base}, version {version}, staleness said to be {}", update.staleness)
    })?;
    ensure(update.staleness <= spec.admit.max_staleness, NAME, || {
        format!("record {position} is {} versions behind, more than {}", update.staleness, spec.admit.max_staleness)
    })?;
    let largest = match spec.merge.unaveraged() {
        // Scaling of large updates and fast agents only ever takes something away.
        MergeSpec::FedAsync { alpha, staleness: Staleness::Constant, participation: false } => {
            let scales = spec.admit.clip_norm_ratio > 0.0 || spec.admit.max_influence > 0.0;
            let as_ruled = update.weight == *alpha || (scales && (0.0..*alpha).contains(&update.weight));
            return ensure(as_ruled, NAME, || format!("record {position} has weight {}", update.weight));
        }
        MergeSpec::FedAsync { alpha, .. } | MergeSpec::Rescaled { alpha, .. } => *alpha,
        MergeSpec::FedBuff { server_lr, .. } | MergeSpec::DelayedNesterov { server_lr, .. } => *server_lr,
        MergeSpec::Fadas { .. }
        | MergeSpec::Recall { .. }
        | MergeSpec::FedAvg { .. }
        | MergeSpec::FedProx { .. }
        | MergeSpec::SyncSgd { .. }
        | MergeSpec::FedAvgM { .. }
        | MergeSpec::FedAdam { .. }
        | MergeSpec::Ef21 { .. }
        | MergeSpec::Averaged(_) => {
            let bounded = (0.0..=1.0).contains(&update.weight);
            return ensure(bounded, NAME, || format!("record {position} has weight {}", update.weight));
        }
    };
    let bounded = update.weight.is_finite() && update.weight >= 0.0 && update.weight <= largest * PARTICIPATION_MAX;
    ensure(bounded, NAME, || format!("record {position} has weight {}, of at most {largest}", update.weight))
}
