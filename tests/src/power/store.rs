//! The coordinator's store, driven through everything that it does, and what must be left of it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anabranch_common::ids::{ModelVersion, Position};
use anabranch_common::journal::{Chain, Record, RecordBody};
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::state::RunState;
use anabranch_coordinator::merger::ModelState;
use anabranch_coordinator::recovery::{self, RecoveryError, checkpoint};
use anabranch_coordinator::store::{Journal, SledStore, Store};
use anyhow::{Context as _, ensure};

use crate::bench::store::{TestRun, noise, noise_bytes};

/// Values of the model: more than one chunk, which lies in a file.
const PARAMS: usize = 50_000;
/// Lengths of payloads, in turn: beside the head, in sled, in a file, in two chunks.
const PAYLOADS: [usize; 5] = [0, 700, 5_000, 40_000, 150_000];
/// A checkpoint after so many rounds.
const CHECKPOINT_ROUNDS: u64 = 3;

/// What the store was asked to keep, by seed.
#[derive(Debug)]
pub(super) struct Script {
    run: TestRun,
    seed: u64,
}

/// What was acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Acked {
    /// Records below this position.
    pub(super) records: u64,
    /// The round of the item.
    pub(super) round: u64,
    /// Position of the newest checkpoint.
    pub(super) checkpoint: u64,
}

impl Acked {
    /// Reads an acknowledgement.
    ///
    /// # Errors
    /// It is not one.
    pub(super) fn add(&mut self, text: &str) -> anyhow::Result<()> {
        let (what, number) = text.trim().split_once(' ').with_context(|| format!("acknowledgement {text:?}"))?;
        let number = number.parse()?;
        match what {
            "records" => self.records = number,
            "round" => self.round = number,
            "checkpoint" => self.checkpoint = number,
            other => anyhow::bail!("acknowledgement of {other}"),
        }
        Ok(())
    }
}

impl Script {
    /// The script of a seed.
    ///
    /// # Errors
    /// None that a seed could cause.
    pub(super) fn new(seed: u64) -> anyhow::Result<Self> {
        Ok(Self { run: TestRun::new(PARAMS, seed)?, seed })
    }

    fn model(&self, position: u64) -> Vec<f32> {
        noise(PARAMS, self.seed + position)
    }

    fn record(&self, position: u64) -> anyhow::Result<Record> {
        if position == 0 {
            return Ok(self.run.genesis.clone());
        }
        let bytes = PAYLOADS[usize::try_from(position)? % PAYLOADS.len()];
        let body = if position.is_multiple_of(2) { RecordBody::Resumed } else { RecordBody::Paused };
        let payload: Arc<[u8]> = noise_bytes(bytes, self.seed ^ position << 20);
        Ok(Record::new(Position(position), position, body, payload))
    }

    fn item(&self, round: u64) -> Vec<u8> {
        let bytes = if round.is_multiple_of(4) { 100_000 } else { 90 };
        noise_bytes(bytes, self.seed ^ round << 40).to_vec()
    }

    fn append(&self, journal: &dyn Journal, next: u64, count: u64) -> anyhow::Result<()> {
        let mut records = Vec::new();
        for position in next..next + count {
            records.push((Position(position), self.record(position)?.to_bytes()?));
        }
        Ok(journal.append(&records)?)
    }

    /// Fills a new store in `dir`, and writes down in `acks` what is durable.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn drive(&self, dir: &Path, acks: &Path, rounds: u64) -> anyhow::Result<()> {
        let mut acks = File::options().create(true).append(true).open(acks)?;
        let mut ack = |text: String| acks.write_all(text.as_bytes());
        let store = SledStore::open_dir(dir)?;
        recovery::put_model(&store, &self.run.manifest, &self.model(0))?;
        let mut next = 0;
        let mut chain = Chain::default();
        for round in 1..=rounds {
            let count = 1 + round % 3;
            self.append(store.journal(), next, count)?;
            for position in next..next + count {
                chain = chain.extend(self.record(position)?.digest()?, 0.0, ModelVersion(0));
            }
            next += count;
            store.journal().sync()?;
            ack(format!("records {next}\n"))?;
            store.catalogue().put("book", &self.item(round))?;
            store.catalogue().sync()?;
            ack(format!("round {round}\n"))?;
            if round.is_multiple_of(CHECKPOINT_ROUNDS) {
                let position = Position(next - 1);
                let paused = !position.0.is_multiple_of(2);
                let state = RunState { position, paused, ..self.run.state.clone() };
                let manifest = self.run.manifest.clone();
                let spec = self.run.spec.merge.clone();
                let model = ModelState::new(manifest, spec, self.model(position.0), state.version)?;
                checkpoint::write(&store, &state, chain, &model, round)?;
                ack(format!("checkpoint {position}\n"))?;
                checkpoint::prune(&store, 2, Retention::SinceSnapshot)?;
            }
        }
        Ok(())
    }

    /// Opens what a power loss left in `dir`, and compares it with what was acknowledged. `thorough` goes on and opens
    /// once more.
    ///
    /// # Errors
    /// Something is not as it must be.
    pub(super) fn audit(&self, dir: &Path, acked: Acked, thorough: bool) -> anyhow::Result<()> {
        let store = SledStore::open_dir(dir)?;
        let next = store.journal().last_position()?.map_or(0, |last| last.0 + 1);
        ensure!(next >= acked.records, "{} records were acknowledged, {next} are there", acked.records);
        let first = store.journal().first_position()?.map_or(0, |first| first.0);
        for position in (0..next).filter(|position| *position == 0 || *position >= first) {
            let found = store.journal().record(Position(position)).with_context(|| format!("record {position}"))?;
            ensure!(found == Some(self.record(position)?.to_bytes()?), "record {position} has other bytes");
        }
        let item = store.catalogue().get("book")?;
        let fits = |round: u64| (round == 0 && item.is_none()) || (item.as_ref() == Some(&self.item(round)));
        ensure!(fits(acked.round) || fits(acked.round + 1), "the item of round {} is lost", acked.round);
        self.audit_recovery(&store, acked, next)?;
        if !thorough {
            return Ok(());
        }
        self.append(store.journal(), next, 3)?;
        store.catalogue().put("book", &self.item(acked.round + 2))?;
        store.journal().sync()?;
        store.catalogue().sync()?;
        drop(store);
        let store = SledStore::open_dir(dir).context("the second time")?;
        ensure!(
            store.journal().last_position()?.map(Position::next) == Some(Position(next + 3)),
            "the journal does not go on"
        );
        ensure!(store.catalogue().get("book")? == Some(self.item(acked.round + 2)), "the item cannot be replaced");
        if next > 0 {
            recovery::recover(&store).context("the second time")?;
        }
        Ok(())
    }

    fn audit_recovery(&self, store: &dyn Store, acked: Acked, next: u64) -> anyhow::Result<()> {
        let recovered = match recovery::recover(store) {
            Err(RecoveryError::Empty) if acked.records == 0 => return Ok(()),
            other => other?,
        };
        ensure!(recovered.position.0 + 1 == next, "recovery ends at {}", recovered.position);
        ensure!(recovered.warnings.is_empty(), "a checkpoint named what was not durable: {:?}", recovered.warnings);
        let from = recovered.from_checkpoint.map_or(0, |position| position.0);
        ensure!(from >= acked.checkpoint, "the checkpoint at {} is lost, {from} is there", acked.checkpoint);
        ensure!(recovered.model.model() == self.model(from), "the checkpoint at {from} has another model");
        Ok(())
    }
}
