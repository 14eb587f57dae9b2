//! How many steps an agent's next lease has, so that agents of any speed report at similar periods.
//!
//! A part of the fold: a lease's size follows from records alone, so that a coordinator that was killed grants the same
//! ones. Only `+ - * /` in f64, for the same bits on any machine.
//!
//! ```text
//!   time of a step  t = (1 - BLEND) t + BLEND observed       observed: compute_ms / steps of an accepted update, at most
//!                                                            TRUST times more or less than t
//!   steps           target_round_s / t, within 1 and the most
//! ```
//! # What an agent can gain by lying
//! It changes its own number of steps and nobody else's, within 1 and the most. It cannot say that it was slower than the
//! coordinator's own clock between grant and update, nor that it took more steps than it was granted.

use std::collections::BTreeMap;

use anabranch_common::ids::LeaseId;
use anabranch_common::limits;
use anabranch_common::spec::TrainSpec;
use anabranch_common::update::UpdateMeta;

/// What the newest update counts for in the time of a step.
const BLEND: f64 = 0.25;
/// An update that says that steps take this many times more or less time than before is taken to say just that.
const TRUST: f64 = 4.0;

/// What is known of an agent's speed. Only where leases have sizes of their own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pace {
    /// Milliseconds that a step takes, once an update has shown it.
    pub(crate) step_ms: Option<f64>,
    /// Steps of the newest lease.
    pub(crate) steps: u32,
    /// Steps and time of the leases under which nothing was decided yet, newest last.
    pub(crate) granted: BTreeMap<LeaseId, (u32, u64)>,
}

/// The steps of the next lease of an agent with this pace; none where leases have no sizes of their own.
#[must_use]
pub fn steps(pace: Option<&Pace>, train: &TrainSpec) -> Option<u32> {
    let target_ms = 1000.0 * train.target_round_s?;
    let step_ms = pace.and_then(|pace| pace.step_ms);
    Some(step_ms.map_or(train.local_steps, |step_ms| whole_steps(target_ms / step_ms)).clamp(1, train.most_steps()))
}

/// Whether [`change`] has anything to do.
pub(super) fn differ(before: &TrainSpec, after: &TrainSpec) -> bool {
    after.target_round_s.is_none() || before.batch_size != after.batch_size
}

/// Steps have another size, or leases none of their own any more.
pub(super) fn change(pace: &mut Option<Pace>, before: &TrainSpec, after: &TrainSpec) {
    if after.target_round_s.is_none() {
        *pace = None;
    } else if before.batch_size != after.batch_size
        && let Some(pace) = pace
    {
        pace.step_ms = None;
    }
}

impl Pace {
    /// The steps of the newest lease.
    #[must_use]
    pub fn newest(&self) -> u32 {
        self.steps
    }

    /// A lease of so many steps was granted at a Unix time in milliseconds.
    pub(super) fn granted(&mut self, lease: LeaseId, steps: u32, at_ms: u64) {
        self.steps = steps;
        self.granted.insert(lease, (steps, at_ms));
        // One that is outstanding, and those that ended and are remembered.
        while self.granted.len() > limits::ENDED_LEASES_KEPT + 1 {
            self.granted.pop_first();
        }
    }

    /// An update was accepted at a Unix time in milliseconds. The steps of its lease, if it has a size of its own.
    pub(super) fn accepted(&mut self, meta: &UpdateMeta, at_ms: u64) -> Option<u32> {
        let (steps, granted_ms) = self.granted.remove(&meta.lease)?;
        // A clock that was set back says nothing.
        let passed_ms = at_ms.checked_sub(granted_ms).map_or(u64::MAX, |ms| ms.max(1));
        let observed = meta.compute_ms.clamp(1, passed_ms) as f64 / f64::from(meta.local_steps.clamp(1, steps.max(1)));
        self.step_ms = Some(match self.step_ms {
            None => observed,
            Some(step_ms) => {
                let observed = observed.clamp(step_ms / TRUST, step_ms * TRUST);
                step_ms + BLEND * (observed - step_ms)
            }
        });
        Some(steps)
    }

    /// An update under this lease was refused: nothing else comes of it.
    pub(super) fn refused(&mut self, lease: LeaseId) {
        self.granted.remove(&lease);
    }

    /// Nothing more comes of any lease.
    pub(super) fn forget_leases(&mut self) {
        self.granted.clear();
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is clamped by the caller")]
fn whole_steps(steps: f64) -> u32 {
    steps.round() as u32
}

#[cfg(test)]
mod tests {
    use anabranch_common::codec::CodecId;
    use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, ModelVersion, RunId, UpdateSeq};
    use anabranch_common::spec::OptimizerSpec;
    use anabranch_common::update::UpdateKey;

    use super::*;

    const AGENT: AgentId = AgentId([3; 16]);

    fn train() -> TrainSpec {
        let optimizer = OptimizerSpec::Sgd { lr: 0.1, momentum: 0.0 };
        let (target_round_s, max_local_steps) = (Some(2.0), Some(100));
        TrainSpec {
            local_steps: 10,
            batch_size: 8,
            optimizer,
            keep_optimizer_state: false,
            target_round_s,
            max_local_steps,
            schedule: None,
            proximal_mu: 0.0,
        }
    }

    fn meta(lease: u64, local_steps: u32, compute_ms: u64) -> UpdateMeta {
        UpdateMeta {
            key: UpdateKey { run: RunId([1; 16]), agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(lease) },
            branch: BranchId([2; 16]),
            lease: LeaseId(lease),
            base_version: ModelVersion(0),
            base_digest: Digest::default(),
            codec: CodecId(0),
            payload_bytes: 1,
            payload_digest: Digest::default(),
            num_examples: 8,
            local_steps,
            train_loss: 0.5,
            compute_ms,
            base_dot: None,
            residual_ratio: None,
            memory: None,
        }
    }

    /// The sizes of the leases of an agent whose steps take as long as `step_ms` says of each lease.
    fn sizes(leases: u64, step_ms: impl Fn(u64) -> u64) -> Vec<u32> {
        let (mut pace, mut now_ms) = (Pace::default(), 1_000_000);
        let mut sizes = Vec::new();
        for lease in 1..=leases {
            let steps = steps(Some(&pace), &train()).expect("sized");
            sizes.push(steps);
            pace.granted(LeaseId(lease), steps, now_ms);
            let compute_ms = u64::from(steps) * step_ms(lease);
            now_ms += compute_ms + 50;
            assert_eq!(pace.accepted(&meta(lease, steps, compute_ms), now_ms), Some(steps));
        }
        sizes
    }

    #[test]
    fn a_round_takes_the_target_whatever_the_speed() {
        assert_eq!(sizes(4, |_| 200), [10, 10, 10, 10]);
        assert_eq!(sizes(4, |_| 40), [10, 50, 50, 50]);
        assert_eq!(sizes(4, |_| 2_000), [10, 1, 1, 1]);
        assert_eq!(sizes(4, |_| 9_000), [10, 1, 1, 1], "a step is the least");
        assert_eq!(sizes(4, |_| 1), [10, 100, 100, 100], "and the configured most the most");
    }

    #[test]
    fn another_speed_is_found_and_one_round_alone_moves_little() {
        let slower = sizes(30, |lease| if lease < 5 { 40 } else { 160 });
        assert!(slower[4] == 50 && (12..=13).contains(&slower[29]), "{slower:?}");
        let once = sizes(8, |lease| if lease == 4 { 4_000 } else { 40 });
        assert_eq!((once[3], once[4]), (50, 29), "taken for four times as slow, and that for a quarter: {once:?}");
    }

    #[test]
    fn a_lie_is_bounded_by_the_clock_and_by_what_was_granted() {
        let said = |said_steps, compute_ms, passed_ms: u64| {
            let mut pace = Pace::default();
            pace.granted(LeaseId(1), 10, 1_000);
            pace.accepted(&meta(1, said_steps, compute_ms), 1_000 + passed_ms);
            steps(Some(&pace), &train())
        };
        assert_eq!(said(10, u64::MAX, 2_000), Some(10), "no slower than the clock says");
        assert_eq!(said(u32::MAX, 2_000, 2_000), Some(10), "no more steps than were granted");
        assert_eq!(said(10, 0, 2_000), Some(100), "the most");
    }

    #[test]
    fn what_is_forgotten_starts_from_the_configured_steps() {
        let mut pace = Some(Pace::default());
        let known = pace.as_mut().expect("just made");
        known.granted(LeaseId(1), 10, 0);
        known.accepted(&meta(1, 10, 400), 500);
        assert_eq!((steps(pace.as_ref(), &train()), pace.as_ref().map(Pace::newest)), (Some(50), Some(10)));
        let larger = TrainSpec { batch_size: 9, ..train() };
        assert!(differ(&train(), &larger) && !differ(&train(), &train()));
        change(&mut pace, &train(), &larger);
        assert_eq!(steps(pace.as_ref(), &train()), Some(10));
        let unsized_leases = TrainSpec { target_round_s: None, ..train() };
        change(&mut pace, &train(), &unsized_leases);
        assert_eq!((&pace, steps(pace.as_ref(), &unsized_leases)), (&None, None));
    }
}
