//! The rules of a search, by the product's second implementation: a scan over the journal.

use anabranch_coordinator::search::record::Record;
use anabranch_coordinator::search::verify::{self, Due};

use crate::invariants::journal::Violation;

/// Returns what is due after the records.
pub(super) fn check(records: &[Record]) -> Result<Option<Due>, Violation> {
    verify::verify(records).map_err(|violation| Violation { invariant: "search verify", what: violation.to_string() })
}
