//! What an agent that trains in its own process learns from having been killed for its memory, run by run.
//!
//! Who is killed cannot say why. So a note says how many examples were computed at once, for which run, and how often this
//! system had killed for memory until then; the next process compares. Between rounds the note stays as it is; an end in
//! order removes it. (A trainer in a process of its own needs none: its agent sees how it ends.)

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anabranch_common::ids::RunId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::device::memory::Kills;
use crate::train::Bound;

/// The note of one agent, and the bounds that it has taught.
#[derive(Debug, Clone)]
pub struct KilledNotes(Arc<Mutex<Notes>>);

#[derive(Debug)]
struct Notes {
    path: PathBuf,
    kills: fn() -> Option<Kills>,
    /// Of the runs whose rounds did not fit.
    bounds: BTreeMap<RunId, Bound>,
    written: Option<Note>,
}

/// What one run has of the note.
#[derive(Debug)]
pub struct KilledNote {
    run: RunId,
    notes: KilledNotes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    kills: Kills,
    /// Whose round began last.
    run: RunId,
    micro_batch: u32,
    /// Of the runs whose rounds did not fit.
    bounds: BTreeMap<RunId, Bound>,
}

impl KilledNotes {
    /// Reads what the process before has left at `path`. `kills` tells how often this system has killed for memory; nothing
    /// where systems do not tell, and then nothing is noted.
    #[must_use]
    pub fn open(path: PathBuf, kills: fn() -> Option<Kills>) -> Self {
        // Whatever is there and is no note was not written by a process that trained.
        let left = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        let mut bounds = BTreeMap::new();
        if let Some(note) = left
            && kills().is_some_and(|now| now.boot == note.kills.boot && now.count > note.kills.count)
        {
            bounds = note.bounds;
            let next = bounds.entry(note.run).or_default().failed(note.micro_batch);
            tracing::warn!(
                run = %note.run.short(),
                tried = note.micro_batch,
                max_micro_batch = next,
                "the agent before was killed, it seems for its memory; rounds of this run take smaller micro-batches"
            );
        }
        Self(Arc::new(Mutex::new(Notes { path, kills, bounds, written: None })))
    }

    /// What a run has of it.
    #[must_use]
    pub fn of(&self, run: RunId) -> KilledNote {
        KilledNote { run, notes: self.clone() }
    }
}

impl KilledNote {
    /// The most examples at once.
    #[must_use]
    pub fn most(&self) -> Option<u32> {
        self.notes.0.lock().bounds.get(&self.run).and_then(Bound::most)
    }

    /// A round begins that computes so many examples at once.
    pub fn begins(&mut self, micro_batch: u32) {
        self.notes.0.lock().begins(self.run, micro_batch);
    }

    /// A round of batches of `batch` examples fitted.
    pub fn fitted(&mut self, batch: u32) {
        let next = self.notes.0.lock().bounds.get_mut(&self.run).and_then(|bound| bound.fitted(batch));
        if let Some(next) = next {
            let run = self.run.short();
            tracing::info!(%run, max_micro_batch = next, "rounds fit into memory; larger micro-batches are tried again");
        }
    }
}

impl Notes {
    fn begins(&mut self, run: RunId, micro_batch: u32) {
        let Some(kills) = (self.kills)() else { return };
        let note = Note { kills, run, micro_batch, bounds: self.bounds.clone() };
        if self.written.as_ref() == Some(&note) {
            return;
        }
        // Not synced: what a killed process has written stays, and a power cut is no question of memory.
        let partial = self.path.with_extension("partial");
        let written = serde_json::to_vec(&note)
            .map_err(std::io::Error::other)
            .and_then(|bytes| fs::write(&partial, bytes))
            .and_then(|()| fs::rename(&partial, &self.path));
        if let Err(error) = written {
            tracing::debug!(%error, "no note about memory was written");
        }
        self.written = Some(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kills(boot: &str, count: u64) -> Option<Kills> {
        Some(Kills { boot: boot.to_owned(), count })
    }

    #[test]
    fn only_a_process_that_vanished_while_the_system_killed_for_memory_teaches() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("memory");
        const RUN: RunId = RunId([1; 16]);
        const OTHER: RunId = RunId([2; 16]);
        let open = |kills| KilledNotes::open(path.clone(), kills).of(RUN);
        assert_eq!(open(|| kills("a", 3)).most(), None, "nothing was left");
        open(|| kills("a", 3)).begins(64);
        assert_eq!(open(|| kills("a", 3)).most(), None, "killed, and not by the system for memory");
        assert_eq!(open(|| kills("b", 9)).most(), None, "the machine was restarted");
        assert_eq!(open(|| None).most(), None);

        let mut second = open(|| kills("a", 4));
        assert_eq!(second.most(), Some(32));
        second.begins(32);
        assert_eq!(open(|| kills("a", 4)).most(), None, "the count is that of the second process");
        assert_eq!(open(|| kills("a", 5)).most(), Some(16));
        let notes = KilledNotes::open(path.clone(), || kills("a", 5));
        assert_eq!((notes.of(RUN).most(), notes.of(OTHER).most()), (Some(16), None), "its rounds were not cut off");
        notes.of(OTHER).begins(64);
        let notes = KilledNotes::open(path.clone(), || kills("a", 6));
        assert_eq!((notes.of(RUN).most(), notes.of(OTHER).most()), (Some(16), Some(32)), "each has its own bound");
        for _ in 0..16 {
            second.fitted(64);
        }
        assert_eq!(second.most(), None, "after 16 rounds a whole batch is tried again");
        second.begins(64);
        let mut third = open(|| kills("a", 5));
        assert_eq!(third.most(), Some(32));
        for _ in 0..16 {
            third.fitted(64);
        }
        assert_eq!(third.most(), Some(32), "what was raised too early waits longer, over processes");

        fs::write(&path, "{\"kills\":").expect("written");
        assert_eq!(open(|| kills("a", 9)).most(), None, "no note");
        let mut untold = open(|| None);
        fs::remove_file(&path).expect("there");
        untold.begins(8);
        assert!(!path.exists());
    }
}
