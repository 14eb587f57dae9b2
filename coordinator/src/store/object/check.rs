//! Whether an object store may be used: writers race for keys, and each key must have one winner.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::time::Duration;

use anabranch_common::limits;

use super::bucket::{self, Bucket, BucketError, Created};
use crate::clock;
use crate::store::StorageError;

/// How an object store is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckPlan {
    /// Writers that race for each key: at least 2, at most `limits::OBJECT_RACERS`.
    pub writers: u32,
    /// Keys that they race for: at least 1, at most `limits::OBJECT_RACES`.
    pub races: u32,
}

impl CheckPlan {
    /// What `run` does at each start.
    pub const SHORT: Self = Self { writers: 4, races: 3 };
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The plan is out of bounds.
    #[error("a check has 2 to {writers} writers and 1 to {races} races", writers = limits::OBJECT_RACERS, races = limits::OBJECT_RACES)]
    Plan,
    /// The store cannot be used at all.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What was found out about an object store.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct CheckReport {
    /// Writers that raced for each key.
    pub writers: u32,
    /// Keys that they raced for.
    pub races: u32,
    /// Races that more than one writer was told to have won.
    pub several_winners: u32,
    /// Races after which the object was not the winner's.
    pub overwritten: u32,
    /// Keys that could be created again.
    pub created_again: u32,
    /// Objects that were still there after they had been deleted.
    pub undeleted: u32,
    /// Requests without an answer. They count neither for nor against the store.
    pub unanswered: u32,
    /// Races after which a listing did not show the key. The store does not depend on listings.
    pub listings_behind: u32,
    /// Half of the puts took at most so long, in milliseconds.
    pub put_ms_median: f64,
    /// All of the puts took at most so long, in milliseconds.
    pub put_ms_longest: f64,
}

impl CheckReport {
    /// Whether a run may be stored there.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.several_winners == 0 && self.overwritten == 0 && self.created_again == 0 && self.undeleted == 0
    }
}

/// Lets writers race for keys below `check/` and the nonce, and deletes these keys. Blocks.
///
/// # Errors
/// See [`CheckError`].
pub fn check(bucket: &dyn Bucket, plan: CheckPlan, nonce: [u8; 16]) -> Result<CheckReport, CheckError> {
    let CheckPlan { writers, races } = plan;
    if !(2..=limits::OBJECT_RACERS).contains(&writers) || !(1..=limits::OBJECT_RACES).contains(&races) {
        return Err(CheckError::Plan);
    }
    let folder: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut report = CheckReport { writers, races, ..CheckReport::default() };
    let mut took = Vec::new();
    for number in 0..races {
        let key = format!("check/{folder}/{number:010}");
        race(bucket, &key, &folder, &mut report, &mut took)?;
        bucket::delete(bucket, &key)?;
        report.undeleted += u32::from(bucket::exists(bucket, &key)?);
    }
    took.sort();
    let milliseconds = |at: usize| took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1000.0);
    report.put_ms_median = milliseconds(took.len() / 2);
    report.put_ms_longest = milliseconds(took.len().saturating_sub(1));
    Ok(report)
}

/// One race for one key.
fn race(
    bucket: &dyn Bucket,
    key: &str,
    folder: &str,
    report: &mut CheckReport,
    took: &mut Vec<Duration>,
) -> Result<(), StorageError> {
    let content = |writer: u32| format!("{key} of writer {writer}").into_bytes();
    let line = Barrier::new(report.writers as usize);
    let put = |writer: u32| {
        line.wait();
        let began = clock::monotonic();
        let answer = bucket.create(key, &content(writer));
        (writer, answer, began.elapsed())
    };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..report.writers).map(|writer| scope.spawn(move || put(writer))).collect();
        racers.into_iter().filter_map(|racer| racer.join().ok()).collect()
    });
    let (mut winners, mut doubtful) = (BTreeSet::new(), BTreeSet::new());
    for (writer, answer, elapsed) in answers {
        took.push(elapsed);
        match answer {
            Ok(Created::Created) => _ = winners.insert(content(writer)),
            Ok(Created::Exists) => {}
            Err(BucketError::Transient(_)) => _ = doubtful.insert(content(writer)),
            Err(BucketError::Refused(detail)) => {
                return Err(StorageError::Remote { path: bucket::path(bucket), detail });
            }
        }
    }
    report.unanswered += u32::try_from(doubtful.len()).unwrap_or(u32::MAX);
    report.several_winners += u32::from(winners.len() > 1);
    let found = bucket::get(bucket, key)?;
    let possible = if winners.is_empty() { &doubtful } else { &winners };
    let is_of_a_winner = found.as_ref().is_some_and(|found| possible.contains(found));
    // Where nobody has won, all requests may have been lost on the way.
    let is_as_told = is_of_a_winner || (found.is_none() && winners.is_empty());
    report.overwritten += u32::from(!is_as_told);
    // Once more, when nobody else writes: a store that ignores the condition shows it here for certain.
    let again = content(u32::MAX);
    let answer = bucket.create(key, &again);
    let replaced = found.is_some() && bucket::get(bucket, key)? == Some(again);
    report.created_again += u32::from(found.is_some() && (replaced || answer == Ok(Created::Created)));
    let listed = bucket::list(bucket, &format!("check/{folder}/"))?;
    report.listings_behind += u32::from(!listed.iter().any(|listed| listed.key == key));
    Ok(())
}
