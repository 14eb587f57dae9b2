//! The saver's jobs: items of the catalogue become durable, many with one sync.

use std::collections::VecDeque;

use anabranch_common::limits;
use anabranch_io::faults;

use super::roster::ItemChange;
use crate::store::{Catalogue, StorageError};

/// Items to be stored or deleted.
#[derive(Debug, PartialEq, Eq)]
pub struct SaveJob {
    pub(super) ticket: u64,
    pub(super) items: Vec<ItemChange>,
}

/// Takes the jobs that are made durable with one sync.
#[must_use]
pub fn group(waiting: &mut VecDeque<SaveJob>) -> Vec<SaveJob> {
    let jobs = waiting.len().min(limits::GROUP_COMMIT_RECORDS);
    waiting.drain(..jobs).collect()
}

/// Makes a group of jobs durable with one sync. Returns their tickets.
///
/// # Errors
/// The store fails: the process must stop, and nobody may be told of any of these jobs.
pub fn save(catalogue: &dyn Catalogue, jobs: Vec<SaveJob>) -> Result<Vec<u64>, StorageError> {
    let mut tickets = Vec::with_capacity(jobs.len());
    for SaveJob { ticket, items } in jobs {
        put(catalogue, items)?;
        tickets.push(ticket);
    }
    faults::point("items-before-sync");
    catalogue.sync()?;
    faults::point("items-saved");
    Ok(tickets)
}

/// Stores or deletes items. They are durable after [`Catalogue::sync`].
///
/// # Errors
/// The store fails.
pub fn put(catalogue: &dyn Catalogue, items: Vec<ItemChange>) -> Result<(), StorageError> {
    for (key, value) in items {
        match value {
            Some(value) => catalogue.put(&key, &value)?,
            None => catalogue.delete(&key)?,
        }
    }
    Ok(())
}
