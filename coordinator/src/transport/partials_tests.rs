use anabranch_common::ids::{Epoch, RunId, UpdateSeq};
use anabranch_common::limits::CHUNK_BYTES;
use anabranch_common::wire::transfer::TransferManifest;

use super::*;

fn agent(n: u8) -> AgentId {
    AgentId([n; 16])
}

fn update(n: u8, seq: u64) -> PartialName {
    PartialName::of_update(&UpdateKey { run: RunId([1; 16]), agent: agent(n), epoch: Epoch(3), seq: UpdateSeq(seq) })
}

fn content() -> Vec<u8> {
    (0..3 * CHUNK_BYTES + 5).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[2]).collect()
}

fn assembly() -> Assembly {
    Assembly::new(TransferManifest::of(&content()), u64::MAX).expect("valid")
}

fn missing(assembly: &Assembly) -> Vec<u32> {
    assembly.missing().indices(4).collect()
}

/// Puts chunk `index` where the transport would.
fn receive(partials: &Partials, name: PartialName, index: usize) {
    let content = content();
    let chunk = content.chunks(CHUNK_BYTES).nth(index).expect("there are four");
    partials.write(name, (index * CHUNK_BYTES) as u64, chunk, 5);
}

/// Fault 31, in the small: chunks in any order, a restart, and only the missing ones are asked for.
#[test]
fn what_had_come_before_a_restart_is_there_after_it() {
    let folder = tempfile::tempdir().expect("a directory");
    let partials = Partials::open(folder.path().join("uploads"), 0);
    let (name, mut first) = (update(1, 7), assembly());
    assert!(partials.take_up(name, &mut first, 0));
    assert_eq!(missing(&first), [0, 1, 2, 3]);
    receive(&partials, name, 2);
    receive(&partials, name, 0);
    drop(partials);

    let now_ms = crate::clock::unix_ms();
    let partials = Partials::open(folder.path().join("uploads"), now_ms);
    let mut second = assembly();
    assert!(partials.take_up(name, &mut second, now_ms));
    assert_eq!(missing(&second), [1, 3]);
    receive(&partials, name, 3);
    receive(&partials, name, 1);
    let mut whole = assembly();
    assert!(partials.take_up(name, &mut whole, now_ms));
    assert_eq!(whole.finish(), Some(content()));
    partials.remove(name);
    assert_eq!(partials.totals(), (0, 0));
    assert_eq!(std::fs::read_dir(folder.path().join("uploads")).expect("there").count(), 0, "decided, so gone");
    receive(&partials, name, 1);
    assert_eq!(std::fs::read_dir(folder.path().join("uploads")).expect("there").count(), 0, "and stays gone");
}

#[test]
fn torn_flipped_and_foreign_bytes_are_asked_for_again() {
    let folder = tempfile::tempdir().expect("a directory");
    let partials = Partials::open(folder.path().to_owned(), 0);
    let name = update(1, 7);
    assert!(partials.take_up(name, &mut assembly(), 0));
    (0..4).for_each(|index| receive(&partials, name, index));
    let path = folder.path().join(name.file());
    let file = OpenOptions::new().write(true).open(&path).expect("there");
    file.write_all_at(&[9], CHUNK_BYTES as u64 + 77).expect("writes");
    file.set_len(2 * CHUNK_BYTES as u64 + 1000).expect("cuts");
    let mut back = assembly();
    assert!(partials.take_up(name, &mut back, 0));
    assert_eq!(missing(&back), [1, 2, 3]);
    // The same key with another content: nothing of it is here.
    let other = TransferManifest::of(&vec![3; 2 * CHUNK_BYTES]);
    let mut other = Assembly::new(other, u64::MAX).expect("valid");
    assert!(partials.take_up(name, &mut other, 0));
    assert_eq!(missing(&other), [0, 1]);
}

#[test]
fn names_are_read_back_and_strangers_are_deleted_at_the_start() {
    let folder = tempfile::tempdir().expect("a directory");
    for name in [update(1, 0), update(255, u64::MAX), PartialName::of_model(agent(2))] {
        assert_eq!(PartialName::parse(&name.file()), Some(name));
        std::fs::write(folder.path().join(name.file()), b"half").expect("writes");
    }
    for stranger in ["notes.txt", ".part", "01-2-3.part", &update(1, 5).file().replace("-5", "-05")] {
        assert_eq!(PartialName::parse(stranger), None);
        std::fs::write(folder.path().join(stranger), b"?").expect("writes");
    }
    assert_eq!(Partials::open(folder.path().to_owned(), 0).totals(), (3, 12));
    assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 3);
}

#[test]
fn what_nobody_goes_on_with_expires() {
    let folder = tempfile::tempdir().expect("a directory");
    let partials = Partials::open(folder.path().to_owned(), 0);
    partials.take_up(update(1, 0), &mut assembly(), 10);
    partials.take_up(update(1, 1), &mut assembly(), 10);
    partials.write(update(1, 1), 0, &[0; 10], 1_000);
    partials.expire(1_000 + limits::PARTIAL_UPLOAD_AGE_MS);
    assert!(!partials.keeps(update(1, 0)) && partials.keeps(update(1, 1)));
    let later = crate::clock::unix_ms() + limits::PARTIAL_UPLOAD_AGE_MS + 1_000;
    assert_eq!(Partials::open(folder.path().to_owned(), later).totals(), (0, 0), "at the start too");
}

fn index(entries: &[(PartialName, u64, u64)]) -> Index {
    entries.iter().map(|(name, bytes, touched_ms)| (*name, Entry { bytes: *bytes, touched_ms: *touched_ms })).collect()
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
    let folder = tempfile::tempdir().expect("a directory");
    let partials = Partials::open(folder.path().to_owned(), 0);
    let bytes = limits::PARTIAL_UPLOAD_BYTES_PER_AGENT + 1;
    let chunks = vec![Default::default(); 513];
    let mut huge = Assembly::new(TransferManifest { bytes, chunks }, u64::MAX).expect("valid");
    assert!(!partials.take_up(update(1, 0), &mut huge, 0));
    assert_eq!(partials.totals(), (0, 0));
}

/// A folder that cannot be written (here: a file is in its place) costs resumption and nothing else.
#[test]
fn without_a_folder_nothing_is_kept_and_nothing_fails() {
    let folder = tempfile::tempdir().expect("a directory");
    let taken = folder.path().join("uploads");
    std::fs::write(&taken, b"in the way").expect("writes");
    let partials = Partials::open(taken.clone(), 0);
    assert!(!partials.take_up(update(1, 0), &mut assembly(), 0));
    receive(&partials, update(1, 0), 0);
    partials.remove(update(1, 0));
    assert_eq!(partials.totals(), (0, 0));
    assert_eq!(std::fs::read(&taken).expect("untouched"), b"in the way");
}

/// The journal stops the coordinator when it finds no space: halves must not take the last of it.
#[test]
fn the_last_of_the_disk_is_left_to_the_journal() {
    let spare = limits::PARTIAL_UPLOAD_SPARE_BYTES;
    assert!(leaves_spare(spare + 10, 10) && !leaves_spare(spare + 9, 10));
    let folder = tempfile::tempdir().expect("a directory");
    let partials = Partials::open(folder.path().to_owned(), 0);
    assert!((1..u64::MAX).contains(&partials.free_bytes()), "the system says how much there is");
}

/// Once for real where the system has it: every write to /dev/full fails with "no space left".
#[test]
fn a_full_disk_gives_up_keeping_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a directory");
    let partials = Partials::open(folder.path().to_owned(), 0);
    let name = update(1, 0);
    assert!(partials.take_up(name, &mut assembly(), 0));
    let path = folder.path().join(name.file());
    std::fs::remove_file(&path).expect("there");
    std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
    receive(&partials, name, 0);
    assert!(!partials.keeps(name));
    assert!(!path.exists());
}
