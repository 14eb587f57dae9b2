//! The folder of half-received uploads, in memory: what was written survives a killed process, and power loss tears it.

use std::collections::BTreeMap;

use anabranch_common::limits::CHUNK_BYTES;
use anabranch_common::rng::SplitMix64;
use anabranch_common::transfer::{Half, Opened, Sink, UploadName};
use anabranch_coordinator::node::{Done, SpoolJob};

/// The folder.
#[derive(Debug, Default)]
pub(in crate::sim) struct Spool {
    /// Content, and when it was written last, Unix milliseconds.
    files: BTreeMap<UploadName, (Vec<u8>, u64)>,
}

impl Spool {
    /// What a process finds that starts.
    pub(in crate::sim) fn halves(&self) -> Vec<Half> {
        let half = |(name, (content, touched_ms)): (&UploadName, &(Vec<u8>, u64))| Half {
            name: *name,
            bytes: content.len() as u64,
            touched_ms: *touched_ms,
        };
        self.files.iter().map(half).collect()
    }

    pub(in crate::sim) fn run(&mut self, job: SpoolJob, unix_ms: u64) -> Option<Done> {
        match job {
            SpoolJob::Open { sink, keep } => {
                let kept = self.files.remove(&sink.name());
                let (mut content, _) = kept.unwrap_or_default();
                read(&content, &sink);
                if keep {
                    content.resize(usize::try_from(sink.manifest().bytes).unwrap_or(0), 0);
                    self.files.insert(sink.name(), (content, unix_ms));
                }
                Some(Done::Open(Opened { upload: sink.upload(), on_disk: keep }))
            }
            SpoolJob::Delete(names) => {
                names.iter().for_each(|name| _ = self.files.remove(name));
                None
            }
        }
    }

    pub(in crate::sim) fn write(&mut self, name: UploadName, offset: u64, chunk: &[u8], unix_ms: u64) {
        let Some((content, touched_ms)) = self.files.get_mut(&name) else { return };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(place) = content.get_mut(start..start.saturating_add(chunk.len())) {
            place.copy_from_slice(chunk);
            *touched_ms = unix_ms;
        }
    }

    /// The power goes: nothing here was synced. Some chunks are there, some are not, some in part.
    pub(in crate::sim) fn lose_power(&mut self, seed: u64) {
        let mut rng = SplitMix64::new(seed);
        for (content, _) in self.files.values_mut() {
            for chunk in content.chunks_mut(CHUNK_BYTES) {
                let kept = match rng.below(3) {
                    0 => 0,
                    1 => chunk.len() / 2,
                    _ => chunk.len(),
                };
                chunk[kept..].fill(0);
            }
        }
    }
}

fn read(content: &[u8], sink: &Sink) {
    for index in 0..u32::try_from(sink.manifest().chunks.len()).unwrap_or(u32::MAX) {
        let chunk = sink.manifest().range(index).and_then(|range| content.get(range)).unwrap_or_default();
        // Bytes of another digest have not come yet, or are damaged.
        _ = sink.put(index, chunk);
    }
}
