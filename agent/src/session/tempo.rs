//! How long the parts of a round take here: from that follows when to ask for the next lease, and how long the device
//! waits.

/// A wait of less than this share of a round is not worth an older base: one in 33.
const WORTH: u64 = 33;
/// Nor is one of less than this, in milliseconds: on a quick line the newest base makes up for it (docs/adr/0007).
const QUICK_MS: u64 = 100;
/// What is left of an older, longer figure when a shorter one comes: one quick answer is not the rule.
const FADE: (u64, u64) = (3, 4);

/// Measured times, in milliseconds unless said otherwise.
#[derive(Debug, Default)]
pub(super) struct Tempo {
    /// Of a step in the latest complete round, in microseconds.
    step_us: Option<u64>,
    /// From asking for a lease to having its base, where that had to be fetched.
    obtain_ms: Option<u64>,
    /// From the end of a round to its verdict.
    verdict_ms: Option<u64>,
    asked_ms: Option<u64>,
    waits: Waits,
}

/// What the time since the first round went into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waits {
    /// The device trained, evaluated or helped a pod, in milliseconds.
    pub busy_ms: u64,
    /// There was a run to work for, and the device had nothing to compute, in milliseconds: it waited for a verdict, a
    /// lease, a model or a connection.
    pub waiting_ms: u64,
}

impl Waits {
    /// The share of time that the device waited, 0..1; nothing before the first round.
    #[must_use]
    pub fn share(self) -> Option<f64> {
        let all = self.busy_ms + self.waiting_ms;
        (all > 0).then(|| self.waiting_ms as f64 / all as f64)
    }
}

/// What the device did in a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spent {
    /// It computed.
    Busy,
    /// It could have.
    Waiting,
    /// There was nothing to do for it, or its owner needed it.
    Off,
}

impl Tempo {
    /// A stretch of time is over.
    pub(super) fn spent(&mut self, ms: u64, how: Spent) {
        match how {
            Spent::Busy => self.waits.busy_ms += ms,
            // What comes before the first round is the start, not a wait between rounds.
            Spent::Waiting if self.waits.busy_ms > 0 => self.waits.waiting_ms += ms,
            Spent::Waiting | Spent::Off => {}
        }
    }

    pub(super) fn waits(&self) -> Waits {
        self.waits
    }

    /// A lease was asked for.
    pub(super) fn asked(&mut self, now_ms: u64) {
        self.asked_ms = Some(now_ms);
    }

    /// The base of the lease that was asked for is here.
    pub(super) fn obtained(&mut self, now_ms: u64, fetched: bool) {
        let took_ms = self.asked_ms.take().map(|asked_ms| now_ms.saturating_sub(asked_ms));
        // A base that was here already says nothing about the next one.
        if let Some(took_ms) = took_ms.filter(|_| fetched || self.obtain_ms.is_none()) {
            self.obtain_ms = Some(faded(self.obtain_ms, took_ms));
        }
    }

    /// A round is complete.
    pub(super) fn trained(&mut self, steps: u32, compute_ms: u64) {
        self.step_us = Some(compute_ms.saturating_mul(1_000) / u64::from(steps.max(1)));
    }

    /// The verdict on a round came so long after its end.
    pub(super) fn judged(&mut self, took_ms: u64) {
        self.verdict_ms = Some(faded(self.verdict_ms, took_ms));
    }

    /// When to ask for the lease after the present round, so that its base is here when this round ends; nothing where
    /// that cannot be known yet, or is not worth it. The round has been running since `since_ms`, and `done` of its
    /// `steps` were through at `now_ms`.
    pub(super) fn ask_at_ms(&self, since_ms: u64, at_ms: u64, done: u32, steps: u32) -> Option<u64> {
        let ran_us = at_ms.saturating_sub(since_ms).saturating_mul(1_000);
        // The slower of this round and the last one: asked too late costs a wait, too early an older base.
        let step_us = self.step_us.max(ran_us.checked_div(u64::from(done)))?;
        let round_ms = step_us.saturating_mul(u64::from(steps)) / 1_000;
        let obtain_ms = self.obtain_ms?;
        let gap_ms = obtain_ms.saturating_add(self.verdict_ms.unwrap_or(0));
        if gap_ms < QUICK_MS || gap_ms.saturating_mul(WORTH) < round_ms {
            return None;
        }
        // A quarter more, for what varies.
        let lead_ms = obtain_ms + obtain_ms / 4 + 1;
        Some(since_ms.saturating_add(round_ms.saturating_sub(lead_ms)))
    }
}

fn faded(before: Option<u64>, now: u64) -> u64 {
    before.map_or(now, |before| now.max(before / FADE.1 * FADE.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tempo(step_us: u64, obtain_ms: u64, verdict_ms: u64) -> Tempo {
        Tempo { step_us: Some(step_us), obtain_ms: Some(obtain_ms), verdict_ms: Some(verdict_ms), ..Tempo::default() }
    }

    #[test]
    fn the_next_lease_is_asked_for_as_early_as_its_base_takes_to_come() {
        assert_eq!(tempo(100_000, 400, 0).ask_at_ms(5_000, 5_000, 0, 10), Some(5_000 + 1_000 - 501));
        let never_asked = Tempo { obtain_ms: None, ..tempo(100_000, 0, 0) };
        assert_eq!(never_asked.ask_at_ms(5_000, 5_000, 0, 10), None);
        let first_round = Tempo { step_us: None, ..tempo(0, 400, 0) };
        assert_eq!(first_round.ask_at_ms(5_000, 5_000, 0, 10), None, "its length is unknown");
        assert_eq!(first_round.ask_at_ms(5_000, 5_400, 2, 10), Some(5_000 + 2_000 - 501), "steps tell it");
        assert_eq!(tempo(1_000, 9_999, 0).ask_at_ms(5_000, 5_000, 0, 10), Some(5_000), "at once, on a slow link");
    }

    #[test]
    fn a_wait_that_is_short_beside_the_round_is_not_worth_an_older_base() {
        assert_eq!(tempo(100_000, 200, 100).ask_at_ms(0, 0, 0, 100), None, "300 of 10,000 ms");
        assert!(tempo(100_000, 200, 110).ask_at_ms(0, 0, 0, 100).is_some(), "310 of 10,000 ms");
        assert_eq!(tempo(10_000, 80, 19).ask_at_ms(0, 0, 0, 10), None, "99 of 100 ms: a quick line");
    }

    #[test]
    fn one_quick_answer_does_not_make_a_link_quick() {
        let mut tempo = tempo(0, 400, 400);
        tempo.asked(0);
        tempo.obtained(10, false);
        assert_eq!(tempo.obtain_ms, Some(400), "nothing was fetched");
        tempo.asked(0);
        tempo.obtained(10, true);
        tempo.judged(10);
        assert_eq!((tempo.obtain_ms, tempo.verdict_ms), (Some(300), Some(300)));
        tempo.asked(0);
        tempo.obtained(900, true);
        assert_eq!(tempo.obtain_ms, Some(900));
    }

    #[test]
    fn waits_are_counted_from_the_first_round_on() {
        let mut tempo = Tempo::default();
        tempo.spent(500, Spent::Waiting);
        assert_eq!(tempo.waits().share(), None);
        tempo.spent(90, Spent::Busy);
        tempo.spent(10, Spent::Waiting);
        tempo.spent(1_000, Spent::Off);
        assert_eq!(tempo.waits(), Waits { busy_ms: 90, waiting_ms: 10 });
        assert_eq!(tempo.waits().share(), Some(0.1));
    }
}
