//! What an agent that trains in its own process learns from having been killed for its memory.
//!
//! Who is killed cannot say why. So a note says how many examples were computed at once, and how often this system had
//! killed for memory until then; the next process compares. Between rounds the note stays as it is; an end in order removes
//! it. (A trainer in a process of its own needs none: its agent sees how it ends.)

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::device::memory::Kills;
use crate::train::Bound;

/// The note of one agent, and the bound that it has taught.
#[derive(Debug)]
pub struct KilledNote {
    path: PathBuf,
    kills: fn() -> Option<Kills>,
    bound: Bound,
    written: Option<Note>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    kills: Kills,
    micro_batch: u32,
    bound: Bound,
}

impl KilledNote {
    /// Reads what the process before has left at `path`. `kills` tells how often this system has killed for memory; nothing
    /// where systems do not tell, and then nothing is noted.
    #[must_use]
    pub fn open(path: PathBuf, kills: fn() -> Option<Kills>) -> Self {
        // Whatever is there and is no note was not written by a process that trained.
        let left = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        let mut bound = Bound::default();
        if let Some(note) = left
            && kills().is_some_and(|now| now.boot == note.kills.boot && now.count > note.kills.count)
        {
            bound = note.bound;
            let next = bound.failed(note.micro_batch);
            tracing::warn!(
                tried = note.micro_batch,
                max_micro_batch = next,
                "the agent before was killed, it seems for its memory; rounds take smaller micro-batches"
            );
        }
        Self { path, kills, bound, written: None }
    }

    /// The most examples at once.
    #[must_use]
    pub fn most(&self) -> Option<u32> {
        self.bound.most()
    }

    /// A round begins that computes so many examples at once.
    pub fn begins(&mut self, micro_batch: u32) {
        let Some(kills) = (self.kills)() else { return };
        let note = Note { kills, micro_batch, bound: self.bound.clone() };
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

    /// A round of batches of `batch` examples fitted.
    pub fn fitted(&mut self, batch: u32) {
        if let Some(next) = self.bound.fitted(batch) {
            tracing::info!(max_micro_batch = next, "rounds fit into memory; larger micro-batches are tried again");
        }
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
        let open = |kills| KilledNote::open(path.clone(), kills);
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
