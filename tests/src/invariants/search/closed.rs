//! A trial is closed for what has happened to it: it comes to nothing, or an operator stops its run. Nothing else goes wrong in
//! worlds whose disks do not fail: another trial that is closed as failed was told of something that was lost.

use anabranch_coordinator::search::record::CloseReason;

use crate::invariants::journal::{Checked, ensure};

pub(super) fn check(why: CloseReason, reason: &str, expected: Option<CloseReason>, was_stopped: bool) -> Checked {
    let holds = expected == Some(why) || (why == CloseReason::Gone && was_stopped);
    ensure(holds, "search closed", || format!("a trial is closed as {why:?}: {reason}"))
}
