//! Feedback state in two files that are written in turn, for states too large for the store.
//!
//! ```text
//!  feedback.0, feedback.1:  magic "ANBF", layout u16 le, 2 zeros, generation u64 le, floats u64 le, BLAKE3 of all that is
//!                           before it and behind it (32 bytes), then the floats (f32 le)
//! ```
//! A save writes the file that does not hold the latest state, syncs it, and syncs the folder: a crash at any byte leaves
//! the state before. A load takes the one of the highest generation that is whole.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anabranch_common::ids::Digest;
use anabranch_common::limits;

const MAGIC: [u8; 4] = *b"ANBF";
const LAYOUT: u16 = 1;
const HEAD_BYTES: usize = 24;
const DIGEST_BYTES: usize = 32;

/// Two files in a folder, of which one holds the latest state.
#[derive(Debug)]
pub struct Slots {
    dir: PathBuf,
    generation: u64,
}

impl Slots {
    /// Over `dir`, which exists; with the latest state that is whole, or nothing.
    ///
    /// # Errors
    /// A file is there and cannot be read.
    pub fn open(dir: &Path) -> io::Result<(Self, Vec<f32>)> {
        let mut latest = (0, Vec::new());
        for slot in 0..2 {
            if let Some(found) = read(&path(dir, slot))?.filter(|found| found.0 > latest.0) {
                latest = found;
            }
        }
        let (generation, state) = latest;
        Ok((Self { dir: dir.to_path_buf(), generation }, state))
    }

    /// Saves a state; when this returns, it is durable and the one that [`open`](Self::open) finds.
    ///
    /// # Errors
    /// The file cannot be written or synced: the state before is still there.
    pub fn save(&mut self, state: &[f32]) -> io::Result<()> {
        let generation = self.generation + 1;
        let path = path(&self.dir, generation % 2);
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&LAYOUT.to_le_bytes());
        head.extend_from_slice(&[0; 2]);
        head.extend_from_slice(&generation.to_le_bytes());
        head.extend_from_slice(&(state.len() as u64).to_le_bytes());
        let body: Vec<u8> = state.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut file = BufWriter::new(File::create(&path)?);
        file.write_all(&head)?;
        file.write_all(&digest(&head, &body))?;
        file.write_all(&body)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        self.generation = generation;
        Ok(())
    }
}

fn path(dir: &Path, slot: u64) -> PathBuf {
    dir.join(format!("feedback.{slot}"))
}

/// Over the digest of the body, so that nothing has to be joined.
fn digest(head: &[u8], body: &[u8]) -> [u8; DIGEST_BYTES] {
    Digest::of(&[head, &Digest::of(body).0].concat()).0
}

/// The generation and state of a file; nothing where it is not there or not whole.
fn read(path: &Path) -> io::Result<Option<(u64, Vec<f32>)>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let most = (HEAD_BYTES + DIGEST_BYTES + 4 * limits::MODEL_PARAMS) as u64;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> Option<(u64, Vec<f32>)> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (check, body) = rest.split_at_checked(DIGEST_BYTES)?;
    let number = |from: usize| head[from..from + 8].first_chunk().copied().map(u64::from_le_bytes);
    let (generation, floats) = (number(8)?, number(16)?);
    let sound = head[..4] == MAGIC
        && head[4..6] == LAYOUT.to_le_bytes()
        && body.len() as u64 == floats.checked_mul(4)?
        && digest(head, body) == check;
    let value = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
    sound.then(|| (generation, body.as_chunks().0.iter().map(value).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against a crash while a state is written: cut off or damaged at any byte, the state before is found.
    #[test]
    fn a_save_that_was_cut_off_leaves_the_state_before() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut slots, none) = Slots::open(dir.path()).expect("empty");
        assert!(none.is_empty());
        slots.save(&[1.0, -0.0, f32::MIN_POSITIVE]).expect("saved");
        slots.save(&[2.0, 3.0]).expect("saved");
        let latest = path(dir.path(), 0);
        let whole = std::fs::read(&latest).expect("the second save");
        for cut in 0..whole.len() {
            std::fs::write(&latest, &whole[..cut]).expect("written");
            assert_eq!(Slots::open(dir.path()).expect("readable").1, [1.0, -0.0, f32::MIN_POSITIVE], "cut at {cut}");
            let mut damaged = whole.clone();
            damaged[cut] ^= 1;
            std::fs::write(&latest, &damaged).expect("written");
            assert_eq!(Slots::open(dir.path()).expect("readable").1[0], 1.0, "damaged at {cut}");
        }
        std::fs::write(&latest, &whole).expect("written");
        assert_eq!(Slots::open(dir.path()).expect("readable").1, [2.0, 3.0]);
    }

    /// Guards the order: the file that holds the latest state is never the one that is written.
    #[test]
    fn saves_take_turns_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        for nth in 0..5u8 {
            let (mut slots, before) = Slots::open(dir.path()).expect("readable");
            assert_eq!(before.first().copied().unwrap_or(-1.0), f32::from(nth) - 1.0);
            let held = path(dir.path(), slots.generation % 2);
            let bytes = std::fs::read(&held).ok();
            slots.save(&[f32::from(nth); 10]).expect("saved");
            assert_eq!(std::fs::read(&held).ok(), bytes, "the latest state was overwritten");
        }
    }
}
