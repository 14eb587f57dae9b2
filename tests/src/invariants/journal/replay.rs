//! P2: a version of a branch is one model, whoever computes it and however often.

use std::collections::BTreeMap;

use anabranch_common::ids::{BranchId, Digest, ModelVersion};
use anabranch_common::journal::Record;

use super::{Checked, Violation, ensure};

#[derive(Debug, Default)]
pub(super) struct Models(BTreeMap<(Option<BranchId>, ModelVersion), Digest>);

impl Models {
    pub(super) fn seen(&mut self, branch: Option<BranchId>, version: ModelVersion, digest: Digest) -> Checked {
        let first = *self.0.entry((branch, version)).or_insert(digest);
        same(first, version, digest)
    }

    /// The digest of every version of a branch.
    pub(super) fn of(&self, branch: Option<BranchId>) -> BTreeMap<u64, Digest> {
        let of_branch = self.0.iter().filter(|((of, _), _)| *of == branch);
        of_branch.map(|((_, version), digest)| (version.0, *digest)).collect()
    }

    /// Says nothing of a version that nobody has seen.
    pub(super) fn is(&self, branch: BranchId, version: ModelVersion, digest: Digest) -> Checked {
        self.0.get(&(Some(branch), version)).map_or(Ok(()), |first| same(*first, version, digest))
    }
}

fn same(first: Digest, version: ModelVersion, digest: Digest) -> Checked {
    ensure(first == digest, "P2", || format!("version {version} was {}, and later {}", first.short(), digest.short()))
}

pub(super) fn unreadable(record: &Record, error: &dyn std::fmt::Display) -> Violation {
    Violation { invariant: "P2", what: format!("record {} has no digest: {error}", record.position) }
}
