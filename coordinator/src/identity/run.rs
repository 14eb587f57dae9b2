//! The run's own identifiers: drawn once, when its store is first used, and kept in the catalogue ever since. Beside them the
//! catalogue counts how often the run was started.

use std::path::Path;

use anabranch_common::ids::{BranchId, RunId};
use anabranch_io::durable::StorageError;

use crate::store::Catalogue;

/// Key under which both lie in the store's catalogue.
pub const CATALOGUE_KEY: &str = "run";

/// Key under which the number of starts lies: eight bytes, little endian.
const STARTS_KEY: &str = "starts";

/// Counts a process that is about to serve the run, and returns its number, from 1. The number is durable when this returns, so
/// that no two processes have the same one. A process that only reads or mends a stopped run is not counted.
///
/// # Errors
/// The storage fails.
pub fn count_start(catalogue: &dyn Catalogue) -> Result<u64, StorageError> {
    let before = catalogue.get(STARTS_KEY)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let number = before.saturating_add(1);
    catalogue.put(STARTS_KEY, &number.to_le_bytes())?;
    catalogue.sync()?;
    Ok(number)
}

/// The run's identifier and that of its first branch, from the system's random numbers when there are none yet.
///
/// # Errors
/// The storage fails, or the system gives no random numbers.
pub fn identifiers(catalogue: &dyn Catalogue) -> Result<(RunId, BranchId), StorageError> {
    identifiers_from(catalogue, entropy)
}

/// The same where they have been drawn.
///
/// # Errors
/// The storage fails.
pub fn known(catalogue: &dyn Catalogue) -> Result<Option<(RunId, BranchId)>, StorageError> {
    Ok(catalogue.get(CATALOGUE_KEY)?.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).map(split))
}

/// A branch that no run has had before.
///
/// # Errors
/// The system gives no random numbers.
pub fn fresh_branch() -> Result<BranchId, StorageError> {
    entropy().map(BranchId)
}

fn entropy<const N: usize>() -> Result<[u8; N], StorageError> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes);
    filled.map(|()| bytes).map_err(|error| StorageError::of_io(Path::new("/dev/urandom"), error.into()))
}

fn identifiers_from(
    catalogue: &dyn Catalogue,
    fresh: impl FnOnce() -> Result<[u8; 32], StorageError>,
) -> Result<(RunId, BranchId), StorageError> {
    if let Some(known) = known(catalogue)? {
        return Ok(known);
    }
    let bytes = fresh()?;
    catalogue.put(CATALOGUE_KEY, &bytes)?;
    catalogue.sync()?;
    Ok(split(bytes))
}

fn split(bytes: [u8; 32]) -> (RunId, BranchId) {
    let (mut run, mut branch) = ([0; 16], [0; 16]);
    run.copy_from_slice(&bytes[..16]);
    branch.copy_from_slice(&bytes[16..]);
    (RunId(run), BranchId(branch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store as _;
    use crate::store::for_tests::MapStore;

    #[test]
    fn they_are_drawn_once() {
        let store = MapStore::new();
        let drawn = identifiers_from(store.catalogue(), || Ok(std::array::from_fn(|i| u8::try_from(i).unwrap_or(0))))
            .expect("works");
        assert_eq!(drawn.0.to_string(), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(drawn.1.to_string(), "101112131415161718191a1b1c1d1e1f");
        assert_eq!(identifiers_from(store.catalogue(), || panic!("drawn again")).expect("works"), drawn);
    }

    #[test]
    fn every_start_has_another_number() {
        let store = MapStore::new();
        let numbers = [(); 3].map(|()| count_start(store.catalogue()).expect("works"));
        assert_eq!(numbers, [1, 2, 3]);
        store.catalogue().put(STARTS_KEY, &u64::MAX.to_le_bytes()).expect("works");
        assert_eq!(count_start(store.catalogue()).expect("works"), u64::MAX, "it counts no further");
    }
}
