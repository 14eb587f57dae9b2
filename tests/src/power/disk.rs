//! A disk that knows what was synced, and what may be left of the rest when the power goes.
//!
//! | what | is durable after |
//! |---|---|
//! | written bytes, a changed length | a sync of the file |
//! | a created, renamed or removed name | a sync of the directory it is in (for a rename: of the new name's) |
//!
//! That is what POSIX promises and less than ext4, XFS or btrfs give: there a sync of a file makes its name durable too,
//! and names change in order. `sync_file_range` is no sync: the data may be in the disk's cache. What is not durable is
//! there or not, each change by itself; of a write, each sector of 512 bytes by itself.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use anabranch_common::rng::SplitMix64;

use super::log::{FileId, Log, Operation};

/// What a disk writes as a whole.
const SECTOR_BYTES: u64 = 512;

/// What is left of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// Everything: what `kill -9` leaves.
    Everything,
    /// What a generator with this seed decides.
    Some(u64),
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, data: Range<usize> },
    Truncate(u64),
}

#[derive(Debug, Default, Clone)]
struct Node {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(FileId),
    Folder,
}

type Names = BTreeMap<String, Entry>;

#[derive(Debug, Clone)]
enum NameChange {
    Set { path: String, entry: Entry },
    Rename { from: String, to: String, entry: Entry },
    Remove { path: String },
}

impl NameChange {
    /// The directory whose sync makes it durable.
    fn folder(&self) -> &str {
        match self {
            Self::Set { path, .. } | Self::Remove { path } => parent(path),
            Self::Rename { to, .. } => parent(to),
        }
    }

    fn apply(&self, names: &mut Names) {
        let has_folder = |names: &Names, path: &str| {
            let folder = parent(path);
            folder.is_empty() || names.get(folder) == Some(&Entry::Folder)
        };
        match self {
            Self::Set { path, entry } if has_folder(names, path) => {
                names.insert(path.clone(), *entry);
            }
            Self::Rename { from, to, entry } if has_folder(names, to) => {
                if names.get(from) == Some(entry) {
                    names.remove(from);
                }
                names.insert(to.clone(), *entry);
            }
            Self::Remove { path } => {
                let below = format!("{path}/");
                // A directory that is not empty stays.
                if !names.range(below.clone()..).next().is_some_and(|(name, _)| name.starts_with(&below)) {
                    names.remove(path);
                }
            }
            _ => {}
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// What a power loss leaves: contents by path, none for a directory.
pub(super) type Image = BTreeMap<String, Option<Vec<u8>>>;

/// The disk at one moment of a recording.
#[derive(Debug, Default)]
pub(super) struct Disk {
    nodes: BTreeMap<FileId, Node>,
    durable: Names,
    seen: Names,
    pending: Vec<NameChange>,
}

impl Disk {
    /// The next operation of a recording happens.
    pub(super) fn apply(&mut self, operation: &Operation, log: &Log) {
        match operation {
            Operation::Created { file, path } => {
                self.nodes.insert(*file, Node::default());
                self.change_name(NameChange::Set { path: path.clone(), entry: Entry::File(*file) });
            }
            Operation::Write { file, offset, data } => {
                let node = self.nodes.entry(*file).or_default();
                node.pending.push(Change::Write { offset: *offset, data: data.clone() });
            }
            Operation::Truncate { file, len } => {
                self.nodes.entry(*file).or_default().pending.push(Change::Truncate(*len));
            }
            Operation::Sync { file } => {
                if let Some(node) = self.nodes.get_mut(file) {
                    for change in std::mem::take(&mut node.pending) {
                        change.apply(&mut node.durable, log, |_| true);
                    }
                }
            }
            Operation::SyncDir { path } => {
                for change in self.pending.extract_if(.., |change| change.folder() == path) {
                    change.apply(&mut self.durable);
                }
            }
            Operation::Rename { from, to } => {
                if let Some(entry) = self.seen.get(from).copied() {
                    self.change_name(NameChange::Rename { from: from.clone(), to: to.clone(), entry });
                }
            }
            Operation::Unlink { path } | Operation::RemoveDir { path } => {
                self.change_name(NameChange::Remove { path: path.clone() });
            }
            // The recorded directory itself is always there.
            Operation::MakeDir { path } if path.is_empty() => {}
            Operation::MakeDir { path } => {
                self.change_name(NameChange::Set { path: path.clone(), entry: Entry::Folder });
            }
            Operation::Ack { .. } => {}
        }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.seen);
        self.pending.push(change);
    }

    /// What is there when the power goes now.
    #[must_use]
    pub(super) fn after_power_loss(&self, left: Left, log: &Log) -> Image {
        let mut rng = SplitMix64::new(match left {
            Left::Some(seed) => seed,
            _ => 0,
        });
        // Some disks lose nearly everything, some nearly nothing.
        let share = [0.05, 0.3, 0.5, 0.7, 0.95][usize::try_from(rng.next_u64() % 5).unwrap_or(0)];
        let mut names = self.durable.clone();
        for change in &self.pending {
            if left.keeps(&mut rng, share) {
                change.apply(&mut names);
            }
        }
        let content = |file: &FileId, rng: &mut SplitMix64| {
            let Some(node) = self.nodes.get(file) else { return Vec::new() };
            let mut content = node.durable.clone();
            for change in &node.pending {
                // Whole, lost, or torn by sectors.
                let torn = matches!(left, Left::Some(_)) && rng.next_u64().is_multiple_of(3);
                if torn {
                    change.apply(&mut content, log, |_| rng.next_u64() & 1 == 1);
                } else if left.keeps(rng, share) {
                    change.apply(&mut content, log, |_| true);
                }
            }
            content
        };
        let mut image = Image::new();
        for (path, entry) in &names {
            let content = match entry {
                Entry::File(file) => Some(content(file, &mut rng)),
                Entry::Folder => None,
            };
            image.insert(path.clone(), content);
        }
        image
    }
}

impl Left {
    fn keeps(self, rng: &mut SplitMix64, share: f64) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Some(_) => ((rng.next_u64() >> 11) as f64) < share * (1u64 << 53) as f64,
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>, log: &Log, mut keeps: impl FnMut(u64) -> bool) {
        let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        match self {
            Self::Truncate(len) => {
                if keeps(0) {
                    content.resize(index(*len), 0);
                }
            }
            Self::Write { offset, data } => {
                let data = log.data(data);
                let end = offset + data.len() as u64;
                let mut at = *offset;
                while at < end {
                    let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                    if keeps(at) {
                        if content.len() < index(next) {
                            content.resize(index(next), 0);
                        }
                        let from = index(at - offset)..index(next - offset);
                        content[index(at)..index(next)].copy_from_slice(&data[from]);
                    }
                    at = next;
                }
            }
        }
    }
}

/// Everything in a folder.
///
/// # Errors
/// It cannot be read.
pub(super) fn read_image(folder: &Path) -> io::Result<Image> {
    let mut image = Image::new();
    let mut folders = vec![String::new()];
    while let Some(below) = folders.pop() {
        for entry in std::fs::read_dir(folder.join(&below))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            if entry.file_type()?.is_dir() {
                folders.push(path.clone());
                image.insert(path, None);
            } else {
                image.insert(path, Some(std::fs::read(entry.path())?));
            }
        }
    }
    Ok(image)
}

/// Writes an image to a folder that is empty.
///
/// # Errors
/// It cannot be written.
pub(super) fn write_image(image: &Image, folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    // A directory comes before what is in it.
    for (path, content) in image {
        match content {
            Some(content) => std::fs::write(folder.join(path), content)?,
            None => std::fs::create_dir(folder.join(path))?,
        }
    }
    Ok(())
}
