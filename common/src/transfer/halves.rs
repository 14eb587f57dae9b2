//! Which halves of uploads are kept on disk. The files themselves are elsewhere.

use std::collections::BTreeMap;

use super::name::UploadName;
use crate::ids::AgentId;
use crate::limits;

/// The half of an upload on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Half {
    /// Its upload.
    pub name: UploadName,
    /// Bytes of its file.
    pub bytes: u64,
    /// When it was written last, Unix milliseconds.
    pub touched_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    touched_ms: u64,
}

type Index = BTreeMap<UploadName, Entry>;

/// The list.
#[derive(Debug, Default)]
pub(super) struct Halves {
    index: Index,
}

impl Halves {
    /// The list of what the last process has left. Also returns what is too old or too much.
    pub(super) fn new(found: &[Half], now_ms: u64) -> (Self, Vec<UploadName>) {
        let entry = |half: &Half| (half.name, Entry { bytes: half.bytes, touched_ms: half.touched_ms });
        let mut halves = Self { index: found.iter().map(entry).collect() };
        let mut superfluous = halves.expire(now_ms);
        superfluous.extend(displace(&mut halves.index, over_budget));
        (halves, superfluous)
    }

    /// Takes an upload in, if it may be kept. Also returns what has to go for it.
    pub(super) fn admit(&mut self, name: UploadName, bytes: u64, now_ms: u64) -> (bool, Vec<UploadName>) {
        if bytes > limits::PARTIAL_UPLOAD_BYTES_PER_AGENT {
            return (false, Vec::new());
        }
        self.index.insert(name, Entry { bytes, touched_ms: now_ms });
        let newest_last = |index: &Index| {
            let mut others = index.clone();
            // The newest of its agent goes last.
            if let Some(entry) = others.get_mut(&name) {
                entry.touched_ms = u64::MAX;
            }
            over_budget(&others)
        };
        let displaced = displace(&mut self.index, newest_last);
        (self.index.contains_key(&name), displaced)
    }

    pub(super) fn touch(&mut self, name: UploadName, now_ms: u64) {
        if let Some(entry) = self.index.get_mut(&name) {
            entry.touched_ms = now_ms;
        }
    }

    pub(super) fn keeps(&self, name: UploadName) -> bool {
        self.index.contains_key(&name)
    }

    /// Returns whether it was kept.
    pub(super) fn remove(&mut self, name: UploadName) -> bool {
        self.index.remove(&name).is_some()
    }

    /// Takes out what nobody has gone on with for too long.
    pub(super) fn expire(&mut self, now_ms: u64) -> Vec<UploadName> {
        let old =
            |_: &UploadName, entry: &mut Entry| now_ms.saturating_sub(entry.touched_ms) > limits::PARTIAL_UPLOAD_AGE_MS;
        self.index.extract_if(.., old).map(|(name, _)| name).collect()
    }

    /// How many there are, and their bytes.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.index.len() as u64, self.index.values().map(|entry| entry.bytes).sum())
    }
}

/// Whether an upload of `bytes` may be kept on a disk with `free` bytes.
#[must_use]
pub fn leaves_spare(free: u64, bytes: u64) -> bool {
    free >= bytes.saturating_add(limits::PARTIAL_UPLOAD_SPARE_BYTES)
}

/// Takes out what has to go, one after another.
fn displace(index: &mut Index, next: impl Fn(&Index) -> Option<UploadName>) -> Vec<UploadName> {
    let mut displaced = Vec::new();
    while let Some(name) = next(index) {
        index.remove(&name);
        displaced.push(name);
    }
    displaced
}

/// The upload that has to go first, while there are too many: the oldest one of an agent beyond its budget, else of the
/// agent that holds most.
fn over_budget(index: &Index) -> Option<UploadName> {
    let mut held: BTreeMap<AgentId, (usize, u64)> = BTreeMap::new();
    for (name, entry) in index {
        let (uploads, bytes) = held.entry(name.agent()).or_default();
        *uploads += 1;
        *bytes += entry.bytes;
    }
    let beyond = |(uploads, bytes): &(usize, u64)| {
        *uploads > limits::PARTIAL_UPLOADS_PER_AGENT || *bytes > limits::PARTIAL_UPLOAD_BYTES_PER_AGENT
    };
    let all: u64 = held.values().map(|(_, bytes)| bytes).sum();
    let most = || held.iter().max_by_key(|(_, (_, bytes))| *bytes).filter(|_| all > limits::PARTIAL_UPLOAD_BYTES);
    let (agent, _) = held.iter().find(|(_, held)| beyond(held)).or_else(most)?;
    let of_agent = index.iter().filter(|(name, _)| name.agent() == *agent);
    of_agent.min_by_key(|(_, entry)| entry.touched_ms).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, RunId, UpdateSeq};
    use crate::update::UpdateKey;

    fn update(n: u8, seq: u64) -> UploadName {
        let agent = AgentId([n; 16]);
        UploadName::of_update(&UpdateKey { run: RunId([1; 16]), agent, epoch: Epoch(3), seq: UpdateSeq(seq) })
    }

    fn index(entries: &[(UploadName, u64, u64)]) -> Index {
        entries
            .iter()
            .map(|(name, bytes, touched_ms)| (*name, Entry { bytes: *bytes, touched_ms: *touched_ms }))
            .collect()
    }

    #[test]
    fn an_agent_beyond_its_budget_loses_its_oldest_and_all_together_the_hogs() {
        let per_agent = limits::PARTIAL_UPLOAD_BYTES_PER_AGENT;
        let many: Vec<_> = (0..17).map(|seq| (update(1, seq), 1, 100 - seq)).collect();
        assert_eq!(over_budget(&index(&many)), Some(update(1, 16)));
        assert_eq!(over_budget(&index(&many[1..])), None);
        let much = [(update(1, 0), per_agent, 5), (update(1, 1), 1, 9), (update(2, 0), 1, 0)];
        assert_eq!(over_budget(&index(&much)), Some(update(1, 0)));
        let agents = u8::try_from(limits::PARTIAL_UPLOAD_BYTES / per_agent).expect("few");
        let mut all: Vec<_> = (1..=agents).map(|n| (update(n, 0), per_agent - u64::from(n), 50)).collect();
        assert_eq!(over_budget(&index(&all)), None);
        all.push((update(200, 0), 1 << 20, 0));
        assert_eq!(over_budget(&index(&all)), Some(update(1, 0)), "not the small one, though it is the oldest");
    }

    #[test]
    fn an_upload_larger_than_the_budget_is_not_kept() {
        let mut halves = Halves::default();
        assert_eq!(halves.admit(update(1, 0), limits::PARTIAL_UPLOAD_BYTES_PER_AGENT + 1, 0), (false, vec![]));
        assert_eq!(halves.totals(), (0, 0));
    }

    #[test]
    fn what_nobody_goes_on_with_expires() {
        let mut halves = Halves::default();
        (0..2).for_each(|seq| assert_eq!(halves.admit(update(1, seq), 10, 10), (true, vec![])));
        halves.touch(update(1, 1), 1_000);
        let later = 1_000 + limits::PARTIAL_UPLOAD_AGE_MS;
        assert_eq!(halves.expire(later), [update(1, 0)]);
        assert!(!halves.keeps(update(1, 0)) && halves.keeps(update(1, 1)));
        let found = [Half { name: update(1, 1), bytes: 10, touched_ms: 1_000 }];
        let (at_the_start, superfluous) = Halves::new(&found, later + 1);
        assert_eq!((at_the_start.totals(), superfluous), ((0, 0), vec![update(1, 1)]));
    }
}
