//! The seat of a helper: the part of another agent's round that this agent computes (docs/adr/0031-pods.md).
//!
//! ```text
//!  Pod ──► waiting ── (device free) ──► serving ──► PodEnded
//!             │                            └─ a later attempt, or the end of this one: stopped first
//!             └─ the end of the attempt: PodEnded
//! ```

use anabranch_common::pod::{PodMark, PodRound};

/// What this agent computes for others: at most one attempt, and the one that takes its place.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// It begins when the device is free.
    waiting: Option<Box<PodRound>>,
    serving: Option<Serving>,
}

#[derive(Debug)]
struct Serving {
    round: Box<PodRound>,
    /// Why it was told to stop.
    stopping: Option<Why>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// The attempt is over.
    Over,
    /// A later one takes its place.
    Replaced,
    /// This agent gives it up for this reason.
    GivenUp(String),
}

/// What becomes of an attempt that this agent is to help with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seated {
    /// It begins when the device is free.
    Waits,
    /// It begins once the attempt before has stopped, which has to be told.
    Stop,
    /// It is known.
    Known,
    /// A later one is known.
    Late,
}

/// What becomes of an attempt that is over, or is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It had not begun.
    Waiting(PodMark),
    /// It has to be told to stop.
    Stop,
    /// It was told to stop before.
    Stopping,
    /// There is no such attempt here.
    Empty,
}

/// How this agent's part of an attempt has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself.
    Itself,
    /// Because the attempt is over.
    Over,
    /// Because a later one takes its place, which the coordinator knows.
    Replaced,
    /// Because this agent has given it up for this reason.
    GivenUp(String),
}

impl Seat {
    /// Whether an attempt is being computed, or waits for the device.
    pub(super) fn is_taken(&self) -> bool {
        self.waiting.is_some() || self.serving.is_some()
    }

    /// Returns the attempt that is being computed.
    pub(super) fn serving(&self) -> Option<&PodRound> {
        self.serving.as_ref().map(|serving| &*serving.round)
    }

    /// Returns the attempt that this agent has to compute.
    pub(super) fn at_work(&self) -> Option<PodMark> {
        let serving = || self.serving.as_ref().filter(|serving| serving.stopping.is_none());
        self.waiting.as_ref().or_else(|| serving().map(|serving| &serving.round)).map(|round| round.mark)
    }

    /// Takes an attempt.
    pub(super) fn take(&mut self, round: Box<PodRound>) -> Seated {
        match self.at_work() {
            Some(known) if known == round.mark => return Seated::Known,
            Some(known) if known > round.mark => return Seated::Late,
            _ => self.waiting = Some(round),
        }
        match &mut self.serving {
            Some(serving) if serving.stopping.is_none() => {
                serving.stopping = Some(Why::Replaced);
                Seated::Stop
            }
            _ => Seated::Waits,
        }
    }

    /// Begins with the attempt that waits, with the device free. Returns it.
    pub(super) fn begin(&mut self) -> Option<Box<PodRound>> {
        if self.serving.is_some() {
            return None;
        }
        let round = self.waiting.take()?;
        self.serving = Some(Serving { round: round.clone(), stopping: None });
        Some(round)
    }

    /// Takes the attempt that has not begun.
    pub(super) fn turn_down(&mut self) -> Option<PodMark> {
        self.waiting.take().map(|round| round.mark)
    }

    /// The coordinator says that an attempt is over, and with it those before.
    pub(super) fn over(&mut self, mark: PodMark) -> Left {
        let is_over = |round: &PodRound| round.mark.lease == mark.lease && round.mark <= mark;
        if let Some(round) = self.waiting.take_if(|round| is_over(round)) {
            return Left::Waiting(round.mark);
        }
        match &mut self.serving {
            Some(serving) if is_over(&serving.round) => serving.stop(Why::Over),
            _ => Left::Empty,
        }
    }

    /// Gives up the attempt that is being computed.
    pub(super) fn give_up(&mut self, reason: &str) -> Left {
        self.serving.as_mut().map_or(Left::Empty, |serving| serving.stop(Why::GivenUp(reason.to_owned())))
    }

    /// The attempt that was computed has ended. Returns how, if it was this one.
    pub(super) fn ended(&mut self, mark: PodMark) -> Option<Ended> {
        let serving = self.serving.take_if(|serving| serving.round.mark == mark)?;
        Some(match serving.stopping {
            None => Ended::Itself,
            Some(Why::Over) => Ended::Over,
            Some(Why::Replaced) => Ended::Replaced,
            Some(Why::GivenUp(reason)) => Ended::GivenUp(reason),
        })
    }
}

impl Serving {
    fn stop(&mut self, why: Why) -> Left {
        match self.stopping {
            None => {
                self.stopping = Some(why);
                Left::Stop
            }
            Some(Why::Replaced) => {
                self.stopping = Some(why);
                Left::Stopping
            }
            Some(Why::Over | Why::GivenUp(_)) => Left::Stopping,
        }
    }
}
