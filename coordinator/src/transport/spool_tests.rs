use std::path::Path;
use std::sync::Arc;

use anabranch_common::ids::{AgentId, Epoch, RunId, UpdateSeq};
use anabranch_common::limits::CHUNK_BYTES;
use anabranch_common::transfer::UploadId;
use anabranch_common::update::UpdateKey;
use anabranch_common::wire::transfer::TransferManifest;

use super::*;

fn agent(n: u8) -> AgentId {
    AgentId([n; 16])
}

fn update(n: u8, seq: u64) -> UploadName {
    UploadName::of_update(&UpdateKey { run: RunId([1; 16]), agent: agent(n), epoch: Epoch(3), seq: UpdateSeq(seq) })
}

fn content() -> Vec<u8> {
    (0..3 * CHUNK_BYTES + 5).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[2]).collect()
}

fn sink_of(name: UploadName, content: &[u8]) -> Arc<Sink> {
    Arc::new(Sink::new(UploadId(1), name, TransferManifest::of(content)).expect("valid"))
}

/// Opens an upload of [`content`]. Returns whether it is kept, and its sink.
fn take_up(spool: &Spool, name: UploadName) -> (bool, Arc<Sink>) {
    let sink = sink_of(name, &content());
    let Some(Done::Open(opened)) = spool.run(SpoolJob::Open { sink: Arc::clone(&sink), keep: true }) else {
        panic!("it is answered")
    };
    (opened.on_disk, sink)
}

fn missing(sink: &Sink) -> Vec<u32> {
    sink.missing().indices(4).collect()
}

/// Puts chunk `index` where the transport would. Returns whether it is kept.
fn receive(spool: &Spool, name: UploadName, index: usize) -> bool {
    let content = content();
    let chunk = content.chunks(CHUNK_BYTES).nth(index).expect("there are four");
    spool.write(name, (index * CHUNK_BYTES) as u64, chunk)
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("there").count()
}

/// Fault 31, in the small: chunks in any order, a restart, and only the missing ones are asked for.
#[test]
fn what_had_come_before_a_restart_is_there_after_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (folder, name) = (dir.path().join("uploads"), update(1, 7));
    let (spool, halves) = Spool::open(folder.clone());
    assert_eq!(halves, []);
    let (kept, first) = take_up(&spool, name);
    assert!(kept);
    assert_eq!(missing(&first), [0, 1, 2, 3]);
    assert!(receive(&spool, name, 2) && receive(&spool, name, 0));
    drop(spool);

    let (spool, halves) = Spool::open(folder.clone());
    assert_eq!(halves.iter().map(|half| half.name).collect::<Vec<_>>(), [name]);
    let (_, second) = take_up(&spool, name);
    assert_eq!(missing(&second), [1, 3]);
    receive(&spool, name, 3);
    receive(&spool, name, 1);
    let (_, whole) = take_up(&spool, name);
    assert_eq!(whole.payload().as_deref(), Some(&content()[..]));
    assert!(spool.run(SpoolJob::Delete(vec![name])).is_none());
    assert_eq!(files(&folder), 0, "decided, so gone");
    receive(&spool, name, 1);
    assert_eq!(files(&folder), 0, "and stays gone");
}

#[test]
fn torn_flipped_and_foreign_bytes_are_asked_for_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (spool, _) = Spool::open(dir.path().to_owned());
    let name = update(1, 7);
    take_up(&spool, name);
    (0..4).for_each(|index| assert!(receive(&spool, name, index)));
    let path = dir.path().join(name.file());
    let file = OpenOptions::new().write(true).open(&path).expect("there");
    file.write_all_at(&[9], CHUNK_BYTES as u64 + 77).expect("writes");
    file.set_len(2 * CHUNK_BYTES as u64 + 1000).expect("cuts");
    let (_, back) = take_up(&spool, name);
    assert_eq!(missing(&back), [1, 2, 3]);
    // The same key with another content: nothing of it is here.
    let other = sink_of(name, &vec![3; 2 * CHUNK_BYTES]);
    spool.run(SpoolJob::Open { sink: Arc::clone(&other), keep: true });
    assert_eq!(missing(&other), [0, 1]);
}

#[test]
fn strangers_are_deleted_at_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in [update(1, 0), update(255, u64::MAX), UploadName::of_model(agent(2))] {
        std::fs::write(dir.path().join(name.file()), b"half").expect("writes");
    }
    for stranger in ["notes.txt", ".part", "01-2-3.part", &update(1, 5).file().replace("-5", "-05")] {
        std::fs::write(dir.path().join(stranger), b"?").expect("writes");
    }
    let (_, halves) = Spool::open(dir.path().to_owned());
    assert_eq!((halves.len(), halves.iter().map(|half| half.bytes).sum::<u64>()), (3, 12));
    assert_eq!(files(dir.path()), 3);
}

#[test]
fn what_is_not_to_be_kept_counts_once_more_and_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (spool, _) = Spool::open(dir.path().to_owned());
    let name = update(1, 0);
    take_up(&spool, name);
    receive(&spool, name, 0);
    let sink = sink_of(name, &content());
    let done = spool.run(SpoolJob::Open { sink: Arc::clone(&sink), keep: false });
    assert!(matches!(done, Some(Done::Open(Opened { on_disk: false, .. }))));
    assert_eq!((missing(&sink), files(dir.path())), (vec![1, 2, 3], 0));
}

/// A folder that cannot be written (here: a file is in its place) costs resumption and nothing else.
#[test]
fn without_a_folder_nothing_is_kept_and_nothing_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let taken = dir.path().join("uploads");
    std::fs::write(&taken, b"in the way").expect("writes");
    let (spool, halves) = Spool::open(taken.clone());
    assert!(halves.is_empty() && !take_up(&spool, update(1, 0)).0);
    receive(&spool, update(1, 0), 0);
    spool.run(SpoolJob::Delete(vec![update(1, 0)]));
    assert_eq!(std::fs::read(&taken).expect("untouched"), b"in the way");
}

/// The journal stops the coordinator when it finds no space: halves must not take the last of it.
#[test]
fn the_last_of_the_disk_is_left_to_the_journal() {
    let spare = anabranch_common::limits::PARTIAL_UPLOAD_SPARE_BYTES;
    assert!(transfer::leaves_spare(spare + 10, 10) && !transfer::leaves_spare(spare + 9, 10));
    let dir = tempfile::tempdir().expect("a directory");
    let (spool, _) = Spool::open(dir.path().to_owned());
    assert!((1..u64::MAX).contains(&spool.free_bytes()), "the system says how much there is");
}

/// Once for real where the system has it: every write to /dev/full fails with "no space left".
#[test]
fn a_full_disk_gives_up_keeping_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let (spool, _) = Spool::open(dir.path().to_owned());
    let name = update(1, 0);
    assert!(take_up(&spool, name).0);
    let path = dir.path().join(name.file());
    std::fs::remove_file(&path).expect("there");
    std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
    assert!(!receive(&spool, name, 0));
    assert!(!path.exists());
}
