//! P4: what is served is whole and finite.

use anabranch_common::ids::{Digest, ModelVersion};

use super::{Checked, ensure};

pub(super) fn check(version: ModelVersion, digest: Digest, model: &[f32]) -> Checked {
    ensure(model.iter().all(|value| value.is_finite()), "P4", || format!("version {version} is not finite"))?;
    ensure(Digest::of_f32(model) == digest, "P4", || format!("version {version} is not what its digest says"))
}
