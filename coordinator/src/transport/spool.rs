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
//!
//! Which halves are kept is decided elsewhere (`common/src/transfer`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anabranch_common::transfer::{self, Half, Opened, Sink, UploadName};

use crate::node::{Done, SpoolJob};

/// The folder. All of its work is file system calls: not for the runtime's threads.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// Looks at what the last process left in `folder`; what is nothing of ours is deleted. Where the folder cannot be
    /// used, uploads are kept in memory only.
    #[must_use]
    pub fn open(folder: PathBuf) -> (Self, Vec<Half>) {
        let spool = Self { folder };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&spool.folder);
        let halves = made.and_then(|()| spool.read_folder()).unwrap_or_else(|error| {
            tracing::warn!(folder = %spool.folder.display(), %error, "half-received uploads will not survive a restart");
            Vec::new()
        });
        let bytes: u64 = halves.iter().map(|half| half.bytes).sum();
        if !halves.is_empty() {
            tracing::info!(uploads = halves.len(), bytes, "half-received uploads are here from before");
        }
        (spool, halves)
    }

    fn read_folder(&self) -> io::Result<Vec<Half>> {
        let mut halves = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(UploadName::parse);
            let metadata = entry.metadata()?;
            match name.filter(|_| metadata.is_file()) {
                Some(name) => {
                    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
                    let touched_ms = u64::try_from(modified.as_millis()).unwrap_or(0);
                    halves.push(Half { name, bytes: metadata.len(), touched_ms });
                }
                None if metadata.is_file() => std::fs::remove_file(entry.path())?,
                None => {}
            }
        }
        Ok(halves)
    }

    /// Does a job. Only an upload that is opened is answered.
    pub fn run(&self, job: SpoolJob) -> Option<Done> {
        match job {
            SpoolJob::Open { sink, keep } => {
                let on_disk = self.take_up(&sink, keep);
                Some(Done::Open(Opened { upload: sink.upload(), on_disk }))
            }
            SpoolJob::Delete(names) => {
                names.into_iter().for_each(|name| self.delete(name));
                None
            }
        }
    }

    /// Puts every chunk that is here into the sink. Returns whether the ones that come from now on are kept: not where
    /// there is no room for them.
    fn take_up(&self, sink: &Sink, keep: bool) -> bool {
        let name = sink.name();
        if !keep || !transfer::leaves_spare(self.free_bytes(), sink.manifest().bytes) {
            // What is here of it already still counts; it is not worth a warning if that cannot be read.
            let _ = File::open(self.path(name)).and_then(|file| read(&file, sink));
            self.delete(name);
            return false;
        }
        let mut options = OpenOptions::new();
        let opened = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(self.path(name));
        match opened.and_then(|file| read(&file, sink)) {
            Ok(()) => true,
            Err(error) => {
                self.give_up(name, &error);
                false
            }
        }
    }

    /// Writes a chunk that was checked. Returns false if it cannot be kept, and deletes the rest then.
    pub(super) fn write(&self, name: UploadName, offset: u64, chunk: &[u8]) -> bool {
        // Never created here: it may have been decided, and deleted, in this moment.
        let written = OpenOptions::new().write(true).open(self.path(name));
        match written.and_then(|file: File| file.write_all_at(chunk, offset)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.give_up(name, &error);
                false
            }
            Ok(()) | Err(_) => true,
        }
    }

    /// Bytes that the disk has left for this process; unknown (where the system does not say) is as good as plenty.
    fn free_bytes(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.folder)
            .map_or(u64::MAX, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()))
    }

    fn give_up(&self, name: UploadName, error: &io::Error) {
        tracing::warn!(agent = %name.agent().short(), %error, "an upload is kept in memory only");
        self.delete(name);
    }

    fn delete(&self, name: UploadName) {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                tracing::warn!(file = name.file(), %error, "a half-received upload cannot be deleted");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn path(&self, name: UploadName) -> PathBuf {
        Path::new(&self.folder).join(name.file())
    }
}

fn read(file: &File, sink: &Sink) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut chunk = Vec::new();
    for index in 0..u32::try_from(sink.manifest().chunks.len()).unwrap_or(u32::MAX) {
        let Some(range) = sink.manifest().range(index).filter(|range| range.end as u64 <= length) else {
            break;
        };
        chunk.resize(range.len(), 0);
        file.read_exact_at(&mut chunk, range.start as u64)?;
        // Bytes of another digest have not come yet, or are damaged.
        let _ = sink.put(index, &chunk);
    }
    Ok(())
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
