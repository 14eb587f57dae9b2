//! The agent's ledger, driven through everything that it does, and what must be left of it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anabranch_agent::core::command::{Bank, Settlement};
use anabranch_agent::core::event::{Kept, Outcome};
use anabranch_agent::store::Ledger;
use anabranch_common::codec::CodecSpec;
use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion, RunId, UpdateSeq};
use anabranch_common::journal::Lease;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::update::UpdateKey;
use anyhow::{Context as _, ensure};

use crate::bench::store::noise;

const RUN: RunId = RunId([1; 16]);
const AGENT: AgentId = AgentId([2; 16]);
/// Values of the model: the residual takes two chunks.
const PARAMS: usize = 40_000;

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
        script.contents.push(Content::of(&ledger)?);
        for step in 0..steps {
            script.step(&mut ledger, step)?;
            script.contents.push(Content::of(&ledger)?);
        }
        Ok(script)
    }

    fn step(&self, ledger: &mut Ledger, step: u64) -> anyhow::Result<()> {
        // Of six steps: three updates, two verdicts, and now and then another branch. Each step is one change.
        let key = |seq: u64| UpdateKey { run: RUN, agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(seq) };
        let branch = BranchId([u8::try_from(step / 24 % 200)?; 16]);
        match step % 6 {
            0 => ledger.adopt(branch)?,
            3 => ledger.settle(key(step - 1), Settlement::Return)?,
            5 => ledger.settle(key(step - 4), Settlement::Drop)?,
            _ => {
                ledger.bank(RUN, AGENT, &self.manifest, self.bank(step, branch))?;
            }
        }
        Ok(())
    }

    fn bank(&self, seq: u64, branch: BranchId) -> Bank {
        let lease = LeaseId(seq);
        Bank {
            lease: Lease {
                id: lease,
                agent: AGENT,
                epoch: Epoch(1),
                branch,
                base_version: ModelVersion(0),
                base_digest: Digest::default(),
                seed: 0,
                expires_at_ms: 0,
            },
            epoch: Epoch(1),
            seq: UpdateSeq(seq),
            codec: CodecSpec::TopK { fraction: 0.1 },
            feedback_decay: 1.0,
            outcome: Outcome {
                lease,
                delta: noise(PARAMS, self.seed + seq).into(),
                num_examples: 1,
                local_steps: 1,
                train_loss: 0.0,
                compute_ms: 1,
            },
        }
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
    ///
    /// # Errors
    /// Something is not as it must be.
    pub(super) fn audit(&self, dir: &Path, done: u64) -> anyhow::Result<()> {
        let done = usize::try_from(done)?;
        let mut ledger = Ledger::open(dir)?;
        let found = Content::of(&ledger)?;
        let mut expected = self.contents.iter().skip(done).take(2);
        ensure!(expected.any(|expected| *expected == found), "after {done} steps it holds {found:?}");
        ledger.adopt(BranchId([255; 16]))?;
        Ok(())
    }
}
