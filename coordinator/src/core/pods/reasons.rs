//! Why no pod can be formed, as the log names it.

use std::collections::BTreeSet;

use anabranch_common::limits;

use super::form::NoPod;

/// The reason that holds now, and the kinds of reasons that the log has named.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    /// The reason, and since when one of its kind holds.
    present: Option<(NoPod, u64)>,
    logged: BTreeSet<&'static str>,
}

impl Reasons {
    /// Takes the reason that holds now. Returns it when one of its kind has held for a while: of each kind the first.
    pub(super) fn news(&mut self, why: Option<NoPod>, now_ms: u64) -> Option<String> {
        let Some(why) = why else {
            self.present = None;
            return None;
        };
        let since_ms = match &self.present {
            Some((known, since_ms)) if known.kind() == why.kind() => *since_ms,
            _ => now_ms,
        };
        let is_news = now_ms.saturating_sub(since_ms) >= limits::POD_PROBLEM_MS && self.logged.insert(why.kind());
        let news = is_news.then(|| why.to_string());
        self.present = Some((why, since_ms));
        news
    }
}
