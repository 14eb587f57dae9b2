//! The agent's ledger, driven through everything that it does, and what must be left of it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anabranch_agent::encode;
use anabranch_agent::session::command::Settlement;
use anabranch_agent::session::event::Kept;
use anabranch_agent::store::{FILE_BYTES, Ledger};
use anabranch_common::codec::CodecSpec;
use anabranch_common::ids::{BranchId, Digest};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anyhow::{Context as _, ensure};

use crate::bench::ledger::{AGENT, RUN, bank, key};
use crate::bench::store::noise;

/// Values of the model: the residual is a file, written in eight pieces.
const PARAMS: usize = 120_000;
/// What updates are encoded with, in turn: one payload is a file, the next one lies in sled.
const CODECS: [CodecSpec; 2] = [CodecSpec::Bf16, CodecSpec::top_k(0.1)];
/// A branch that no step works on.
const ELSEWHERE: BranchId = BranchId([255; 16]);

/// What a ledger holds.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    kept: Kept,
    residual: Option<Digest>,
}

impl Content {
    fn of(ledger: &Ledger) -> anyhow::Result<Self> {
        let kept = ledger.kept()?;
        for entry in &kept.outbox {
            let payload = ledger.payload(entry.meta.key)?.context("an update without its payload")?;
            ensure!(Digest::of(&payload) == entry.meta.payload_digest, "another payload");
        }
        Ok(Self { kept, residual: ledger.residual().map(Digest::of_f32) })
    }
}

/// What the ledger was asked to keep, by seed, and what it is after each step.
#[derive(Debug)]
pub(super) struct Script {
    seed: u64,
    manifest: ModelManifest,
    contents: Vec<Content>,
}

impl Script {
    /// The script of a seed, carried out once for comparison.
    ///
    /// # Errors
    /// The comparison fails.
    pub(super) fn new(seed: u64, steps: u64) -> anyhow::Result<Self> {
        let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![PARAMS as u64] }])?;
        let mut script = Self { seed, manifest, contents: Vec::new() };
        let dir = tempfile::tempdir()?;
        let mut ledger = Ledger::open(dir.path())?;
        let (mut short, mut long) = (0, 0);
        script.contents.push(Content::of(&ledger)?);
        for step in 0..steps {
            script.step(&mut ledger, step)?;
            script.contents.push(Content::of(&ledger)?);
            let files = ledger.outbox().filter(|meta| meta.payload_bytes >= FILE_BYTES as u64).count();
            (short, long) = (short.max(ledger.outbox().count() - files), long.max(files));
        }
        ensure!(steps < 5 || (short > 0 && long > 0), "{short} payloads in sled and {long} in files");
        Ok(script)
    }

    fn step(&self, ledger: &mut Ledger, step: u64) -> anyhow::Result<()> {
        // Of six steps: three updates, two verdicts, and now and then another branch. Each step is one change.
        let branch = BranchId([u8::try_from(step / 24 % 200)?; 16]);
        match step % 6 {
            0 => ledger.adopt(branch)?,
            3 => ledger.settle(key(step - 1), Settlement::Return)?,
            5 => ledger.settle(key(step - 4), Settlement::Drop)?,
            _ => {
                let codec = CODECS[usize::try_from(step)? % CODECS.len()];
                let delta = noise(PARAMS, self.seed + step);
                encode::bank(ledger, RUN, AGENT, &self.manifest, bank(step, branch, codec, delta))?;
            }
        }
        Ok(())
    }

    /// Fills a new ledger in `dir`, and writes down in `acks` which steps are done.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn drive(&self, dir: &Path, acks: &Path, steps: u64) -> anyhow::Result<()> {
        let mut acks = File::options().create(true).append(true).open(acks)?;
        let mut ledger = Ledger::open(dir)?;
        for step in 0..steps {
            self.step(&mut ledger, step)?;
            acks.write_all(format!("{}\n", step + 1).as_bytes())?;
        }
        Ok(())
    }

    /// Opens what a power loss left in `dir`: it must be what it was after `done` steps, or in the step after that.
    /// `thorough` goes on and opens once more.
    ///
    /// # Errors
    /// Something is not as it must be.
    pub(super) fn audit(&self, dir: &Path, done: u64, thorough: bool) -> anyhow::Result<()> {
        let done = usize::try_from(done)?;
        let mut ledger = Ledger::open(dir)?;
        let found = Content::of(&ledger)?;
        let mut expected = self.contents.iter().skip(done).take(2);
        ensure!(expected.any(|expected| *expected == found), "after {done} steps it holds {found:?}");
        ledger.adopt(ELSEWHERE)?;
        if !thorough {
            return Ok(());
        }
        encode::bank(
            &mut ledger,
            RUN,
            AGENT,
            &self.manifest,
            bank(1 << 20, ELSEWHERE, CODECS[0], noise(PARAMS, self.seed)),
        )?;
        let expected = Content::of(&ledger)?;
        ensure!(expected.kept.outbox.len() == found.kept.outbox.len() + 1, "the outbox does not go on");
        drop(ledger);
        let ledger = Ledger::open(dir).context("the second time")?;
        ensure!(Content::of(&ledger)? == expected, "the second time it holds something else");
        Ok(())
    }
}
