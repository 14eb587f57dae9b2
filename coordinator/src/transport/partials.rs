//! Half-received uploads on disk, so that a restart of the coordinator costs an agent only the chunks that were missing.
//!
//! ```text
//!  DIR/uploads/<agent>-<epoch>-<seq>.part     the content of an update, as far as it has come; holes where it has not
//!  DIR/uploads/<agent>-model.part             the same of an initial model
//! ```
//! Plain files beside the store, never synced, and with no list of what is in them: an agent offers its update again with
//! the digest of every chunk, and a chunk is here if the bytes in its place have that digest. Whatever a crash, a full
//! disk or a foreign hand leaves is therefore asked for again, and nothing wrong is ever merged. In the store each chunk
//! would be written three times, and a disk that is full would stop the coordinator; here it costs a resumption. The last
//! `limits::PARTIAL_UPLOAD_SPARE_BYTES` of the disk are left to the journal.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::update::UpdateKey;
use anabranch_common::wire::transfer::Assembly;
use parking_lot::Mutex;

/// What half of which is here: an agent's update, or its initial model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartialName {
    agent: AgentId,
    /// Epoch and number of the update; none for the model.
    update: Option<(u32, u64)>,
}

impl PartialName {
    pub(super) fn of_update(key: &UpdateKey) -> Self {
        Self { agent: key.agent, update: Some((key.epoch.0, key.seq.0)) }
    }

    pub(super) fn of_model(agent: AgentId) -> Self {
        Self { agent, update: None }
    }

    fn file(self) -> String {
        match self.update {
            Some((epoch, seq)) => format!("{}-{epoch}-{seq}.part", self.agent),
            None => format!("{}-model.part", self.agent),
        }
    }

    fn parse(file: &str) -> Option<Self> {
        let (agent, rest) = file.strip_suffix(".part")?.split_once('-')?;
        let agent = agent.parse().ok()?;
        let update = match rest {
            "model" => None,
            rest => {
                let (epoch, seq) = rest.split_once('-')?;
                Some((epoch.parse().ok()?, seq.parse().ok()?))
            }
        };
        // One spelling for each: no second file can stand for the same upload.
        Some(Self { agent, update }).filter(|name| name.file() == file)
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    touched_ms: u64,
}

type Index = BTreeMap<PartialName, Entry>;

/// The folder, and what is in it. All of its work is file system calls: not for the runtime's threads.
#[derive(Debug)]
pub(super) struct Partials {
    folder: PathBuf,
    index: Mutex<Index>,
}

impl Partials {
    /// Looks at what the last process left in `folder`; what is too old, too much or nothing of ours is deleted. Where
    /// the folder cannot be used, uploads are kept in memory only.
    pub(super) fn open(folder: PathBuf, now_ms: u64) -> Self {
        let partials = Self { folder, index: Mutex::default() };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&partials.folder);
        if let Err(error) = made.and_then(|()| partials.read_folder()) {
            tracing::warn!(folder = %partials.folder.display(), %error, "half-received uploads will not survive a restart");
        }
        partials.expire(now_ms);
        let over: Vec<PartialName> = {
            let mut index = partials.index.lock();
            displace(&mut index, over_budget)
        };
        over.iter().for_each(|name| partials.delete(&name.file()));
        let (uploads, bytes) = partials.totals();
        if uploads > 0 {
            tracing::info!(uploads, bytes, "half-received uploads are here from before");
        }
        partials
    }

    fn read_folder(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(PartialName::parse);
            let metadata = entry.metadata()?;
            match name.filter(|_| metadata.is_file()) {
                Some(name) => {
                    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
                    let touched_ms = u64::try_from(modified.as_millis()).unwrap_or(0);
                    self.index.lock().insert(name, Entry { bytes: metadata.len(), touched_ms });
                }
                None if metadata.is_file() => std::fs::remove_file(entry.path())?,
                None => {}
            }
        }
        Ok(())
    }

    /// Puts every chunk that is here of `assembly`'s transfer into it, and keeps the ones that come from now on. Returns
    /// whether it does: not where there is no room for them.
    pub(super) fn take_up(&self, name: PartialName, assembly: &mut Assembly, now_ms: u64) -> bool {
        let bytes = assembly.manifest().bytes;
        if bytes > limits::PARTIAL_UPLOAD_BYTES_PER_AGENT || !leaves_spare(self.free_bytes(), bytes) {
            // What is here of it already still counts; it is not worth a warning if that cannot be read.
            let _ = self.keeps(name).then(|| self.read(name, assembly));
            self.remove(name);
            return false;
        }
        let displaced: Vec<PartialName> = {
            let mut index = self.index.lock();
            index.insert(name, Entry { bytes, touched_ms: now_ms });
            let others = |index: &Index| {
                let mut others = index.clone();
                // The newest of its agent goes last.
                if let Some(entry) = others.get_mut(&name) {
                    entry.touched_ms = u64::MAX;
                }
                over_budget(&others)
            };
            displace(&mut index, others)
        };
        displaced.iter().for_each(|name| self.delete(&name.file()));
        if displaced.contains(&name) {
            return false;
        }
        match self.read(name, assembly) {
            Ok(()) => true,
            Err(error) => {
                self.give_up(name, &error);
                false
            }
        }
    }

    fn read(&self, name: PartialName, assembly: &mut Assembly) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(self.path(name))?;
        let length = file.metadata()?.len();
        let mut chunk = Vec::new();
        for index in 0..u32::try_from(assembly.manifest().chunks.len()).unwrap_or(u32::MAX) {
            let Some(range) = assembly.manifest().range(index).filter(|range| range.end as u64 <= length) else {
                break;
            };
            chunk.resize(range.len(), 0);
            file.read_exact_at(&mut chunk, range.start as u64)?;
            // Bytes of another digest have not come yet, or are damaged.
            let _ = assembly.put(index, &chunk);
        }
        Ok(())
    }

    /// Writes a chunk that was checked. Of an upload that is not kept (any more) nothing is written.
    pub(super) fn write(&self, name: PartialName, offset: u64, chunk: &[u8], now_ms: u64) {
        match self.index.lock().get_mut(&name) {
            Some(entry) => entry.touched_ms = now_ms,
            None => return,
        }
        // Never created here: it may have been decided, and deleted, in this moment.
        let written = OpenOptions::new().write(true).open(self.path(name));
        match written.and_then(|file: File| file.write_all_at(chunk, offset)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.give_up(name, &error),
            Ok(()) | Err(_) => {}
        }
    }

    /// Whether chunks of it are kept here.
    pub(super) fn keeps(&self, name: PartialName) -> bool {
        self.index.lock().contains_key(&name)
    }

    /// Deletes what was decided.
    pub(super) fn remove(&self, name: PartialName) {
        if self.index.lock().remove(&name).is_some() {
            self.delete(&name.file());
        }
    }

    /// Deletes what nobody has gone on with for too long.
    pub(super) fn expire(&self, now_ms: u64) {
        let old = |entry: &Entry| now_ms.saturating_sub(entry.touched_ms) > limits::PARTIAL_UPLOAD_AGE_MS;
        let expired: Vec<PartialName> =
            self.index.lock().iter().filter(|(_, entry)| old(entry)).map(|(name, _)| *name).collect();
        for name in expired {
            tracing::info!(agent = %name.agent.short(), "a half-received upload has expired");
            self.remove(name);
        }
    }

    /// How many there are, and their bytes.
    pub(super) fn totals(&self) -> (u64, u64) {
        let index = self.index.lock();
        (index.len() as u64, index.values().map(|entry| entry.bytes).sum())
    }

    /// Bytes that the disk has left for this process; unknown (where the system does not say) is as good as plenty.
    fn free_bytes(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.folder)
            .map_or(u64::MAX, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()))
    }

    fn give_up(&self, name: PartialName, error: &io::Error) {
        tracing::warn!(agent = %name.agent.short(), %error, "an upload is kept in memory only");
        self.remove(name);
    }

    fn delete(&self, file: &str) {
        match std::fs::remove_file(self.folder.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file, %error, "a half-received upload cannot be deleted");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn path(&self, name: PartialName) -> PathBuf {
        Path::new(&self.folder).join(name.file())
    }
}

/// Whether an upload of `bytes` may be kept on a disk with `free` bytes.
fn leaves_spare(free: u64, bytes: u64) -> bool {
    free >= bytes.saturating_add(limits::PARTIAL_UPLOAD_SPARE_BYTES)
}

/// Takes out what has to go, one after another.
fn displace(index: &mut Index, next: impl Fn(&Index) -> Option<PartialName>) -> Vec<PartialName> {
    let mut displaced = Vec::new();
    while let Some(name) = next(index) {
        index.remove(&name);
        displaced.push(name);
    }
    displaced
}

/// The upload that has to go first, while there are too many: the oldest one of an agent beyond its budget, else of the
/// agent that holds most.
fn over_budget(index: &Index) -> Option<PartialName> {
    let mut held: BTreeMap<AgentId, (usize, u64)> = BTreeMap::new();
    for (name, entry) in index {
        let (uploads, bytes) = held.entry(name.agent).or_default();
        *uploads += 1;
        *bytes += entry.bytes;
    }
    let beyond = |(uploads, bytes): &(usize, u64)| {
        *uploads > limits::PARTIAL_UPLOADS_PER_AGENT || *bytes > limits::PARTIAL_UPLOAD_BYTES_PER_AGENT
    };
    let all: u64 = held.values().map(|(_, bytes)| bytes).sum();
    let most = || held.iter().max_by_key(|(_, (_, bytes))| *bytes).filter(|_| all > limits::PARTIAL_UPLOAD_BYTES);
    let (agent, _) = held.iter().find(|(_, held)| beyond(held)).or_else(most)?;
    let of_agent = index.iter().filter(|(name, _)| name.agent == *agent);
    of_agent.min_by_key(|(_, entry)| entry.touched_ms).map(|(name, _)| *name)
}

#[cfg(test)]
#[path = "partials_tests.rs"]
mod tests;
