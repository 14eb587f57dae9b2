//! P2: the model is a pure function of the journal.
//!
//! | where it comes from | what is compared |
//! |---|---|
//! | `recovery::recover` | chain and model as the next start of the coordinator will have them |
//! | `recovery::verify` | the same, by a second implementation that shares only the reading of records |

use anabranch_common::ids::Digest;
use anabranch_coordinator::recovery::{self, Recovered, RecoveryError};
use anabranch_coordinator::store::Store;
use anyhow::ensure;

/// Recovers a run and compares it with what the independent checker says; none where there is no run yet.
///
/// # Errors
/// The run does not recover, or the two differ.
pub fn check(store: &dyn Store) -> anyhow::Result<Option<Recovered>> {
    let recovered = match recovery::recover(store) {
        Ok(recovered) => recovered,
        Err(RecoveryError::Empty) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let verified = recovery::verify(store)?;
    ensure!(verified.holds, "the journal does not hold: {:?}", verified.problem);
    let model = Digest::of_f32(recovered.model.model());
    ensure!(verified.chain == recovered.chain.0, "the chain is {} and {}", recovered.chain.0, verified.chain);
    ensure!(verified.model == model, "the model is {model} and {}", verified.model);
    ensure!(verified.version == recovered.state.version, "the version differs");
    ensure!(recovered.model.model().iter().all(|value| value.is_finite()), "the model is not finite");
    Ok(Some(recovered))
}
