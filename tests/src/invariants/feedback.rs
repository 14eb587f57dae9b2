//! Error feedback: the content of an update that came at the wrong time returns to the residual, the content of one that
//! was merged or must not be does not, and a branch begins without any.

use anabranch_agent::store::Ledger;
use anabranch_common::codec;
use anabranch_common::ids::BranchId;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::{UpdateKey, Verdict};

use super::journal::{Checked, Violation, ensure};

const NAME: &str = "feedback";

/// What settling an update should leave in the residual.
#[derive(Debug)]
pub struct Expected {
    key: UpdateKey,
    residual: Vec<f32>,
}

impl Expected {
    /// Looks at a ledger before it settles an update on which `verdict` was heard. `None` when the update is not there
    /// any more.
    #[must_use]
    pub fn of(ledger: &Ledger, manifest: &ModelManifest, key: UpdateKey, verdict: &Verdict) -> Option<Self> {
        let meta = ledger.outbox().find(|meta| meta.key == key)?.clone();
        let payload = ledger.payload(key).ok()??;
        let mut residual = ledger.residual().map_or_else(|| vec![0.0; manifest.params()], <[f32]>::to_vec);
        // A difference against a memory never returns: the memory is as it was.
        let returns =
            matches!(verdict, Verdict::Refused { reason } if reason.content_returns() && meta.memory.is_none());
        if returns && ledger.branch() == Some(meta.branch) {
            codec::decode(meta.codec, manifest, &payload).ok()?.add_scaled_to(&mut residual, 1.0);
        }
        Some(Self { key, residual })
    }

    /// Compares with what is there.
    ///
    /// # Errors
    /// Something was lost, or came from nowhere.
    pub fn compare(&self, ledger: &Ledger) -> Checked {
        let zeros = vec![0.0; self.residual.len()];
        let found = ledger.residual().unwrap_or(&zeros);
        ensure(found == self.residual, NAME, || format!("settling {:?} left another residual than it should", self.key))
    }
}

/// A ledger has just adopted a branch; `before` was its branch until then.
///
/// # Errors
/// Something of another branch is left.
pub fn adopted(ledger: &Ledger, before: Option<BranchId>, branch: BranchId) -> Checked {
    let left = before != Some(branch) && ledger.residual().is_some_and(|left| left.iter().any(|value| *value != 0.0));
    if left {
        Err(Violation { invariant: NAME, what: "the residual of another branch is kept".into() })
    } else {
        Ok(())
    }
}
