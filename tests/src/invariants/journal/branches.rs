//! Branches: nothing that was computed on another branch is merged into this one.

use anabranch_common::ids::BranchId;
use anabranch_common::journal::{Record, RecordBody};

use super::{Checked, ensure};

pub(super) fn check(branch: Option<BranchId>, record: &Record) -> Checked {
    let of = match &record.body {
        RecordBody::Contribution(update) => Some(update.meta.branch),
        RecordBody::LeaseGranted(lease) => Some(lease.branch),
        _ => return Ok(()),
    };
    ensure(of == branch, "branches", || {
        format!("record {} is of branch {of:?}, the run of {branch:?}", record.position)
    })
}
