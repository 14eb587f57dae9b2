//! The bytes of the fold, as checkpoints keep them.

use super::state::RunState;

anabranch_common::layout! {
    struct RunState {
    run,
    branch,
    spec,
    manifest,
    initial,
    started_at_ms,
    position,
    version,
    buffered,
    agents,
    leases,
    next_lease,
    participation,
    recent,
    totals,
    evaluations,
    aggregates,
    paused,
    finished,
    reference_norm,
    examples,
    buffered_examples,
    sizing,
    }
}
