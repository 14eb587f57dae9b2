//! What must hold after anything that a test does, one file a promise (docs/faults.md).
//!
//! | file | promise |
//! |---|---|
//! | [`exactly_once`] | P1: an acknowledged update is merged once |
//! | [`feedback`] | what a refusal gives back is in the residual, and nothing of another branch is |
//! | [`journal`] | P1 to P4, leases, epochs, branches, staleness: every record of a simulated run, as it is written |
//! | [`members`] | who was revoked is revoked in the registry and in the journal, whenever the process was killed |
//! | [`pods`] | parts, attempts and members of pods, and what comes of their rounds |
//! | [`progress`] | P8: nobody is held up by the slow, the broken or the hostile |
//! | [`same_bits`] | P2: the model is what an independent replay of the journal gives |
//! | [`search`] | a search decides as its journal says, its trials give the leases that it allows, and it ends with a winner |
//! | [`told`] | P1: what agents were told is in the journal once, record by record |
//! | [`verdicts`] | an offer gets the same verdict before and after a restart of the coordinator |

pub mod exactly_once;
pub mod feedback;
pub mod journal;
pub mod members;
pub mod pods;
pub mod progress;
pub mod same_bits;
pub mod search;
pub mod told;
pub mod verdicts;

use std::path::Path;

use anyhow::Context as _;

/// Looks at a copy of a coordinator's store, so that the one who is audited next starts from what the fault left. Nobody may be
/// writing to it.
///
/// # Errors
/// The copy cannot be made or opened, or `look` fails.
pub fn on_a_copy<T>(
    coordinator_dir: &Path,
    look: impl FnOnce(&anabranch_coordinator::store::SledStore) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let copy = tempfile::Builder::new().prefix("anabranch-audit-").tempdir()?;
    let to = copy.path().join("store");
    copy_folder(&coordinator_dir.join(anabranch_coordinator::runs::STORE_DIR), &to)
        .context("the store cannot be copied")?;
    let store = anabranch_coordinator::store::SledStore::open_dir(&to)?;
    let found = look(&store);
    drop(store);
    found
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
