//! What a member waits for in virtual time: its own maths, beside what its line brings.
//!
//! ```text
//!  maths    forward │ backward: last layers │ backward: first layers │ next step: forward ...
//!  carrier           waits ─────────────────► sum of the last layers ─► sum of the first layers ─┘
//! ```
//! The sum of some layers begins when their gradient is there and the sum before it is over, as the product's carrier has it. The next
//! step begins when every sum is there. A backward pass takes twice as long as a forward pass.

use anabranch_agent::train::native::replicas;
use anabranch_common::spec::ModelSpec;
use anyhow::Context as _;

/// Passes of a step in units of a forward pass, and those of them that are backward.
const PASSES: [f64; 2] = [3.0, 2.0];

/// One sum of each step.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Summed {
    sends: usize,
    receives: usize,
    /// When its gradient is there, since the step began.
    ready_ns: u64,
}

/// How far a member has come in its steps.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    sums: Vec<Summed>,
    step_ns: u64,
    /// The sum that comes next.
    next: usize,
    /// Values of the present sum that are still to be sent, and received.
    left: (usize, usize),
    /// When the present step began.
    begun_ns: Option<u64>,
}

impl Pace {
    /// The pace of the member at `place` of a ring that computes a step in so much time.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a time")]
    pub(super) fn new(model: &ModelSpec, place: usize, members: usize, step_ns: u64) -> anyhow::Result<Self> {
        let layers = model.layers()?.context("the model is not a native one")?.layers;
        let flops: Vec<f64> = layers.iter().map(|layer| layer.cost().forward_flops as f64).collect();
        let (all, [passes, backward]) = (flops.iter().sum::<f64>(), PASSES);
        let mut behind = 0.0;
        let summed = |sum: replicas::Sum| {
            behind += flops[sum.layers].iter().sum::<f64>();
            let share = (all + backward * behind) / (passes * all);
            Summed { sends: sum.sends, receives: sum.receives, ready_ns: (step_ns as f64 * share).round() as u64 }
        };
        let sums = replicas::sums(model, place, members)?.into_iter().map(summed).collect();
        Ok(Self { sums, step_ns, next: 0, left: (0, 0), begun_ns: None })
    }

    /// A round begins: its first step does when its first gradient is waited for.
    pub(super) fn begin_round(&mut self) {
        (self.next, self.left, self.begun_ns) = (0, (0, 0), None);
    }

    /// Returns when the carrier, which has come to `now_ns`, sends so many values.
    pub(super) fn sends(&mut self, now_ns: u64, values: usize) -> u64 {
        let now_ns = self.waits(now_ns);
        self.left.0 = self.left.0.saturating_sub(values);
        now_ns
    }

    /// Returns from when on the carrier, which has come to `now_ns`, can receive so many values.
    pub(super) fn receives(&mut self, now_ns: u64, values: usize) -> u64 {
        let now_ns = self.waits(now_ns);
        self.left.1 = self.left.1.saturating_sub(values);
        now_ns
    }

    /// Returns when a step is over whose sums are there at `now_ns`.
    pub(super) fn step_ends(&self, now_ns: u64) -> u64 {
        now_ns.max(self.begun_ns.unwrap_or(now_ns) + self.step_ns)
    }

    /// Waits for the gradient of the next sum, if the present one is over.
    fn waits(&mut self, now_ns: u64) -> u64 {
        let mut now_ns = now_ns;
        // A member takes no part in the sum of fewer values than there are members, if it is none of theirs.
        while self.left == (0, 0) && !self.sums.is_empty() {
            if self.next == 0 {
                self.begun_ns = Some(if self.begun_ns.is_none() { now_ns } else { self.step_ends(now_ns) });
            }
            let Summed { sends, receives, ready_ns } = self.sums[self.next];
            self.left = (sends, receives);
            self.next = (self.next + 1) % self.sums.len();
            now_ns = now_ns.max(self.begun_ns.unwrap_or(now_ns) + ready_ns);
        }
        now_ns
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::spec::ModelKind;

    use super::*;

    /// Two sums a step: the last layer's, of 512 * 600 values and the head, and the first one's.
    fn model() -> ModelSpec {
        let (kind, input, hidden) = (ModelKind::Mlp, vec![512], vec![512, 600]);
        ModelSpec { kind, input, hidden, classes: 3, ..ModelSpec::default() }
    }

    #[test]
    fn a_sum_waits_for_its_gradient_and_for_the_sum_before_it() -> anyhow::Result<()> {
        let pace = Pace::new(&model(), 0, 2, 3_000)?;
        let [last, first] = [pace.sums[0], pace.sums[1]];
        // A third of the step is forward, and of the rest the larger part is that of the wider layers.
        assert_eq!((pace.sums.len(), first.ready_ns), (2, 3_000));
        assert!((2_000..2_200).contains(&last.ready_ns), "{last:?}");
        // Of two members each sends, and receives, half of a vector twice.
        assert_eq!((last.sends, first.sends), (512 * 600 + 600 + 600 * 3 + 3 + 1, 512 * 512 + 512));

        // Free lines: sums take no time, and a step is its maths.
        let mut free = pace.clone();
        let mut now_ns = free.sends(100, last.sends);
        assert_eq!((now_ns, free.receives(now_ns, last.receives)), (100 + last.ready_ns, now_ns));
        now_ns = free.sends(now_ns, first.sends);
        assert_eq!((now_ns, free.receives(now_ns, first.receives)), (3_100, 3_100));
        assert_eq!(free.step_ends(3_100), 3_100);
        assert_eq!(free.sends(3_100, last.sends), 3_100 + last.ready_ns, "the second step");

        // A slow line: the second sum begins when the first one is over, and its gradient was there long before.
        let mut slow = pace;
        now_ns = slow.sends(0, last.sends);
        now_ns = slow.receives(now_ns, last.receives) + 5_000;
        assert_eq!(slow.sends(now_ns, first.sends), now_ns, "it overlaps with nothing that is left to compute");
        now_ns = slow.receives(now_ns, first.receives) + 4_000;
        assert_eq!(slow.step_ends(now_ns), last.ready_ns + 9_000);
        assert_eq!(slow.sends(now_ns, last.sends), now_ns + last.ready_ns);
        Ok(())
    }

    #[test]
    fn a_round_begins_when_its_model_is_there() -> anyhow::Result<()> {
        let mut pace = Pace::new(&model(), 1, 3, 3_000)?;
        pace.sends(0, 1);
        pace.begin_round();
        assert_eq!(pace.sends(70_000, 1), 70_000 + pace.sums[0].ready_ns);
        Ok(())
    }
}
