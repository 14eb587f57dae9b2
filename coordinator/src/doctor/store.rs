//! Who has the store, and whether this program can read it.

use std::path::Path;

use anabranch_common::journal::Record;
use anabranch_common::schema;
use anabranch_io::doctor::{Finding, Report};
use anabranch_io::durable::LockHolder;
use anabranch_io::exit::{self, ExitCode};

use crate::driver;
use crate::recovery::OTHER_VERSION_HELP;
use crate::runs;
use crate::store::{StorageError, Store};

const STORE: &str = "store";

/// Who has the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Held {
    /// Nobody.
    Free,
    /// A process that writes, most likely a coordinator: `in use by process 7`.
    By(String),
}

/// Checks the store of the run that shares its directory with the process.
pub(super) fn check(dir: &Path, url: Option<&str>, report: &mut Report) -> Held {
    let path = dir.join(runs::STORE_DIR);
    if url.is_none() && !path.exists() {
        report.add(Finding::ok(STORE, "there is none yet: the first `run` makes it"));
        return Held::Free;
    }
    match runs::stores::open_copy(dir, url) {
        Ok(store) => {
            report.add(look(store.as_ref()));
            Held::Free
        }
        Err(error @ StorageError::Locked { holder: LockHolder::Readers, .. }) => {
            report.add(Finding::skipped(STORE, error.to_string()));
            Held::Free
        }
        Err(StorageError::Locked { holder, .. }) => {
            report.add(Finding::ok(STORE, holder.to_string()));
            Held::By(holder.to_string())
        }
        Err(error) => {
            let advice = error.help().unwrap_or_else(|| "restore the directory from a backup".to_owned());
            report.add(Finding::failure(STORE, error.exit_code(), error.to_string(), advice));
            Held::Free
        }
    }
}

/// Reads members, tokens and the newest record: what an earlier build wrote is found out here, not at the next start.
fn look(store: &dyn Store) -> Finding {
    let registry = match driver::registry(store.catalogue()) {
        Ok(registry) => registry,
        Err(error) => {
            let text = exit::render(&error).trim_end().replace('\n', "; ");
            return Finding::failure(STORE, exit::code_of(&error), text, OTHER_VERSION_HELP);
        }
    };
    let members = registry.roster().members().count();
    let newest = match store.journal().last_position() {
        Ok(None) => None,
        Ok(Some(position)) => match store.journal().record(position) {
            Ok(Some(bytes)) => match Record::from_bytes(&bytes) {
                Ok(_) => Some(position),
                Err(error) => {
                    let measured = format!("record {position} cannot be read: {error}");
                    return Finding::failure(STORE, ExitCode::Storage, measured, OTHER_VERSION_HELP);
                }
            },
            Ok(None) => Some(position),
            Err(error) => return unreadable(&error),
        },
        Err(error) => return unreadable(&error),
    };
    let run = newest.map_or_else(|| "no run yet".to_owned(), |position| format!("record {position} is the newest"));
    let measured = format!("readable: schema {}, {members} agents, {run}", schema::VERSION);
    Finding::ok(STORE, measured).figure("agents", members).figure("schema", schema::VERSION)
}

fn unreadable(error: &StorageError) -> Finding {
    let advice = error.help().unwrap_or_else(|| "restore the directory from a backup".to_owned());
    Finding::failure(STORE, error.exit_code(), error.to_string(), advice)
}
