//! Verdicts: which are worth waiting for, how long they take, and the latest ones.

use std::collections::VecDeque;

use anabranch_common::limits;
use anabranch_common::update::{UpdateKey, Verdict};

/// The verdicts of this process.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// The verdict that the next request for a lease waits for, and until when.
    awaited: Option<(UpdateKey, u64)>,
    /// Updates without a verdict on this connection, and when their rounds ended.
    unjudged: VecDeque<(UpdateKey, u64)>,
    /// The weight of the latest merged update.
    merged_with: Option<f32>,
    /// The latest ones, oldest first.
    latest: VecDeque<(UpdateKey, Verdict)>,
}

impl Verdicts {
    /// An update is durable and offered. Its round ended at `ended_ms`, if it ran in this process.
    pub(super) fn offered(&mut self, now_ms: u64, key: UpdateKey, ended_ms: Option<u64>) {
        self.unjudged.extend(ended_ms.map(|ended_ms| (key, ended_ms)));
        self.awaited = Some((key, now_ms.saturating_add(limits::VERDICT_PATIENCE_MS)));
    }

    /// Takes a verdict. Returns how long after the end of its round it came, if that is known.
    pub(super) fn decided(&mut self, now_ms: u64, key: UpdateKey, verdict: Verdict) -> Option<u64> {
        self.awaited.take_if(|(awaited, _)| *awaited == key);
        if let Verdict::Accepted { weight, .. } = verdict {
            self.merged_with = Some(weight);
        }
        if self.latest.len() == limits::AGENT_VERDICTS_SHOWN {
            self.latest.pop_front();
        }
        self.latest.push_back((key, verdict));
        let at = self.unjudged.iter().position(|(unjudged, _)| *unjudged == key)?;
        let (_, ended_ms) = self.unjudged.drain(..=at).next_back()?;
        Some(now_ms.saturating_sub(ended_ms))
    }

    /// The connection is gone: none is expected on it any more.
    pub(super) fn disconnected(&mut self) {
        self.awaited = None;
        self.unjudged.clear();
    }

    /// Whether a verdict is worth waiting for.
    pub(super) fn are_awaited(&self) -> bool {
        self.awaited.is_some()
    }

    /// Returns until when a verdict is worth waiting for.
    pub(super) fn awaited_until_ms(&self) -> Option<u64> {
        self.awaited.map(|(_, until_ms)| until_ms)
    }

    /// Ends the wait, if it is over.
    pub(super) fn tick(&mut self, now_ms: u64) {
        self.awaited.take_if(|(_, until_ms)| *until_ms <= now_ms);
    }

    /// Returns the weight of the latest merged update.
    pub(super) fn merged_with(&self) -> Option<f32> {
        self.merged_with
    }

    /// The latest verdicts, oldest first.
    pub(super) fn latest(&self) -> impl Iterator<Item = &(UpdateKey, Verdict)> {
        self.latest.iter()
    }
}
