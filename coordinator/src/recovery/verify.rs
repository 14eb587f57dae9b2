//! An independent checker: what the journal says, computed a second time and in another way.
//!
//! It shares with the coordinator only the reading of records and the decoding of payloads. The chain is recomputed from
//! the stored bytes, the model by an implementation of the merge rules that is written here once more, plainly, and the
//! versions by counting. Where finite updates add up to a model that is not, the run's model stays the last finite one; the
//! chain goes on. It does not use `RunState`, `ModelState` or any `MergeStrategy`.

use std::collections::BTreeSet;

use anabranch_common::codec::{self, Delta};
use anabranch_common::ids::{Digest, ModelVersion, Position};
use anabranch_common::journal::{AcceptedUpdate, Chain, HEADER_BYTES, Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::MergeSpec;
use anabranch_common::status::VerifyReport;

use super::checkpoint::{self, Checkpoint};
use super::{RecoveryError, cursor, pins, replay, saved, vectors};
use crate::store::{Blobs, Store};

/// Recomputes chain and model from the anchor (the oldest kept checkpoint that can be read, or record 0 when everything
/// since it is kept), compares every checkpoint on the way, and says up to where all of it holds.
///
/// # Errors
/// Only when the storage fails or there is no run: what does not hold is in the report.
pub fn verify(store: &dyn Store) -> Result<VerifyReport, RecoveryError> {
    replay::steadily(store, || check(store), |report| report.holds)
}

fn check(store: &dyn Store) -> Result<VerifyReport, RecoveryError> {
    // A model that has overflowed cannot be taken back: the records are read again, up to there.
    let mut overflows = BTreeSet::new();
    loop {
        match check_around(store, &overflows)? {
            Outcome::Report(report) => return Ok(report),
            Outcome::Overflow(position) => overflows.insert(position),
        };
    }
}

enum Outcome {
    Report(VerifyReport),
    /// The record at this position makes a version that is not finite.
    Overflow(Position),
}

fn check_around(store: &dyn Store, overflows: &BTreeSet<Position>) -> Result<Outcome, RecoveryError> {
    let (mut checkpoints, mut problems) = checkpoint::readable(store.catalogue())?;
    // After the checkpoints: one that is taken meanwhile is not beyond the end.
    let last = store.journal().last_position()?.ok_or(RecoveryError::Empty)?;
    checkpoints.reverse();
    let from_the_start = store.journal().first_position()? == Some(Position(0));
    let started = if from_the_start {
        Checker::genesis(store)
    } else {
        checkpoints
            .first()
            .ok_or_else(|| no_anchor(&problems))
            .and_then(|oldest| Checker::anchor(store.blobs(), oldest))
    };
    let mut checker = match started {
        Ok(checker) => checker,
        Err(error) if error.is_local() => return Ok(Outcome::Report(nothing_holds(&error))),
        Err(error) => return Err(error),
    };
    let from = checker.position;
    let mut records = u64::from(from_the_start);
    let found = loop {
        let here = checkpoints.iter().find(|checkpoint| checkpoint.position == checker.position);
        match here.map_or(Ok(()), |checkpoint| checker.compare(store.blobs(), checkpoint)) {
            Err(error) if error.is_local() => break Some(error.to_string()),
            other => other?,
        }
        if checker.position >= last {
            break None;
        }
        match checker.step(store, overflows) {
            Err(Problem::Overflow(position)) => return Ok(Outcome::Overflow(position)),
            Err(Problem::Recovery(error)) if error.is_local() => break Some(error.to_string()),
            Err(Problem::Recovery(error)) => return Err(error),
            Err(Problem::Found(text)) => break Some(text),
            Ok(()) => records += 1,
        }
    };
    if let Some(beyond) = checkpoints.iter().find(|checkpoint| checkpoint.position > last) {
        problems.push(RecoveryError::Short { last, checkpoint: beyond.position }.to_string());
    }
    let problem = found.or_else(|| problems.into_iter().next());
    Ok(Outcome::Report(VerifyReport {
        holds: problem.is_none(),
        from,
        to: checker.position,
        records,
        version: checker.last_finite.unwrap_or(checker.version),
        model: Digest::of_f32(&checker.model),
        chain: checker.chain.0,
        problem,
    }))
}

fn no_anchor(problems: &[String]) -> RecoveryError {
    RecoveryError::Manifest(format!("is not usable in any checkpoint: {}", problems.join("; ")))
}

fn nothing_holds(error: &RecoveryError) -> VerifyReport {
    VerifyReport {
        holds: false,
        from: Position(0),
        to: Position(0),
        records: 0,
        version: ModelVersion(0),
        model: Digest::default(),
        chain: Digest::default(),
        problem: Some(error.to_string()),
    }
}

enum Problem {
    Recovery(RecoveryError),
    Found(String),
    Overflow(Position),
}

impl<E: Into<RecoveryError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Recovery(error.into())
    }
}

/// How updates become versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// FedAsync: each update moves the model.
    Direct,
    /// FedBuff: so many updates are summed up, then move it together.
    Buffered(u32),
}

impl Rule {
    fn of(spec: &MergeSpec) -> Self {
        match spec {
            MergeSpec::FedAsync { .. } => Self::Direct,
            MergeSpec::FedBuff { buffer_size, .. } => Self::Buffered((*buffer_size).max(1)),
        }
    }
}

struct Checker {
    manifest: ModelManifest,
    rule: Rule,
    position: Position,
    version: ModelVersion,
    chain: Chain,
    model: Vec<f32>,
    /// The version of `model`, once the model has overflowed: it stays as it is.
    last_finite: Option<ModelVersion>,
    buffer: Vec<f32>,
    buffered: u32,
}

impl Checker {
    fn genesis(store: &dyn Store) -> Result<Self, RecoveryError> {
        let record = cursor::read(store.journal(), Position(0))?;
        let RecordBody::Genesis { spec, manifest, model, norm, .. } = &record.body else {
            return Err(crate::core::state::FoldError::Genesis(Position(0)).into());
        };
        let model = vectors::load(store.blobs(), "initial model", manifest, *model)?;
        same_norm(Position(0), *norm, &model)?;
        let bytes = store.journal().record(Position(0))?.ok_or(RecoveryError::MissingRecord(Position(0)))?;
        Ok(Self {
            buffer: vec![0.0; manifest.params()],
            manifest: manifest.clone(),
            rule: Rule::of(&spec.merge),
            position: Position(0),
            version: ModelVersion(0),
            chain: link(Chain::default(), &bytes, 0.0, ModelVersion(0)),
            model,
            last_finite: None,
            buffered: 0,
        })
    }

    /// Starts from a checkpoint, whose chain is taken as given.
    fn anchor(blobs: &dyn Blobs, checkpoint: &Checkpoint) -> Result<Self, RecoveryError> {
        let state = saved::load_without_agents(blobs, checkpoint.state)?;
        let manifest = state.manifest;
        let buffer = match checkpoint.merge_state.first() {
            Some(digest) => vectors::load(blobs, "merge vector", &manifest, *digest)?,
            None => vec![0.0; manifest.params()],
        };
        Ok(Self {
            model: vectors::load(blobs, "model", &manifest, checkpoint.model)?,
            manifest,
            rule: Rule::of(&state.spec.merge),
            position: checkpoint.position,
            version: checkpoint.version,
            chain: checkpoint.chain,
            last_finite: None,
            buffer,
            buffered: state.buffered,
        })
    }

    fn step(&mut self, store: &dyn Store, overflows: &BTreeSet<Position>) -> Result<(), Problem> {
        let position = self.position.next();
        let bytes = store.journal().record(position)?.ok_or(RecoveryError::MissingRecord(position))?;
        let record = cursor::read(store.journal(), position)?;
        let mut weight = 0.0;
        match &record.body {
            RecordBody::Update(update) => {
                if self.last_finite.is_none() && overflows.contains(&position) {
                    self.last_finite = Some(self.version);
                }
                self.merge(&record, update)?;
                weight = update.weight;
            }
            RecordBody::ConfigChanged { spec } => {
                let rule = Rule::of(&spec.merge);
                if rule != self.rule {
                    self.empty_buffer();
                }
                self.rule = rule;
            }
            RecordBody::Imported { model, version, norm } => {
                self.replace(store.blobs(), *model, *version)?;
                same_norm(position, *norm, &self.model)?;
            }
            RecordBody::Branched { branch, version, norm, .. } => {
                let model = pins::branch_model(store.catalogue(), *branch)?;
                self.replace(store.blobs(), model, *version)?;
                same_norm(position, *norm, &self.model)?;
            }
            RecordBody::Genesis { .. } => {
                return Err(Problem::Found(format!("record {position} is a second genesis record")));
            }
            _ => {}
        }
        self.chain = link(self.chain, &bytes, weight, self.version);
        self.position = position;
        Ok(())
    }

    fn merge(&mut self, record: &Record, update: &AcceptedUpdate) -> Result<(), Problem> {
        let position = record.position;
        let found = |text: String| Problem::Found(format!("record {position}: {text}"));
        if Digest::of(&record.payload) != update.meta.payload_digest {
            return Err(found("the payload is not the one that was admitted".to_owned()));
        }
        let delta = codec::decode(update.meta.codec, &self.manifest, &record.payload)
            .map_err(|error| found(format!("the payload does not decode: {error}")))?;
        let closes = match self.rule {
            Rule::Direct => true,
            Rule::Buffered(updates) => self.buffered + 1 >= updates,
        };
        let version = if closes { self.version.next() } else { self.version };
        if (update.closes, update.version) != (closes, version) {
            return Err(found(format!("says version {}, counting says {version}", update.version)));
        }
        let target = if self.rule == Rule::Direct { &mut self.model } else { &mut self.buffer };
        if self.last_finite.is_none() {
            add(target, &delta, update.weight);
        }
        self.buffered += 1;
        if closes {
            if self.rule != Rule::Direct && self.last_finite.is_none() {
                for (parameter, pending) in self.model.iter_mut().zip(&self.buffer) {
                    *parameter += *pending;
                }
            }
            self.empty_buffer();
        }
        self.version = version;
        if self.model.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(Problem::Overflow(position)) }
    }

    fn replace(&mut self, blobs: &dyn Blobs, model: Digest, version: ModelVersion) -> Result<(), RecoveryError> {
        self.model = vectors::load(blobs, "model", &self.manifest, model)?;
        self.version = version;
        self.last_finite = None;
        self.empty_buffer();
        Ok(())
    }

    fn empty_buffer(&mut self) {
        self.buffer.fill(0.0);
        self.buffered = 0;
    }

    /// Compares what was computed with a checkpoint that was taken here, and checks that its blobs are whole.
    fn compare(&self, blobs: &dyn Blobs, checkpoint: &Checkpoint) -> Result<(), RecoveryError> {
        let differs = |what| Err(RecoveryError::Contradiction { position: checkpoint.position, what });
        if checkpoint.chain != self.chain {
            return differs("chain");
        }
        if checkpoint.version != self.version {
            return differs("version");
        }
        if checkpoint.model != Digest::of_f32(&self.model) {
            return differs("model");
        }
        let buffers: &[Digest] = match self.rule {
            Rule::Direct => &[],
            Rule::Buffered(_) => &[Digest::of_f32(&self.buffer)],
        };
        if checkpoint.merge_state != buffers {
            return differs("merge state");
        }
        for digest in checkpoint.merge_state.iter().chain([&checkpoint.model]) {
            vectors::load(blobs, "vector", &self.manifest, *digest)?;
        }
        saved::check(blobs, checkpoint.state)
    }
}

/// The norm that a record says its model has is the one that it has.
fn same_norm(position: Position, said: f64, model: &[f32]) -> Result<(), RecoveryError> {
    let mut squares = 0.0_f64;
    for value in model {
        squares += f64::from(*value) * f64::from(*value);
    }
    if squares.sqrt().to_bits() == said.to_bits() { Ok(()) } else { Err(RecoveryError::Norm(position)) }
}

/// `target += weight * delta`, entry by entry: the same two roundings in the same order as the coordinator's.
fn add(target: &mut [f32], delta: &Delta, weight: f32) {
    match delta {
        Delta::Dense(values) => {
            for index in 0..target.len() {
                let scaled = weight * values[index];
                target[index] += scaled;
            }
        }
        Delta::Sparse { indices, values, .. } => {
            for entry in 0..indices.len() {
                let scaled = weight * values[entry];
                target[indices[entry] as usize] += scaled;
            }
        }
    }
}

/// The chain over a record's stored bytes, from the formula: BLAKE3(h || BLAKE3(BLAKE3(head) || BLAKE3(payload)) ||
/// weight || version).
fn link(chain: Chain, bytes: &[u8], weight: f32, version: ModelVersion) -> Chain {
    let content = bytes.get(HEADER_BYTES..).unwrap_or(&[]);
    let head_len = bytes.get(8..12).and_then(|len| len.try_into().ok()).map_or(0, u32::from_le_bytes) as usize;
    let (head, payload) = content.split_at(head_len.min(content.len()));
    let record = Digest::of(&[Digest::of(head).0, Digest::of(payload).0].concat());
    let mut link = Vec::with_capacity(76);
    link.extend_from_slice(&chain.0.0);
    link.extend_from_slice(&record.0);
    link.extend_from_slice(&weight.to_le_bytes());
    link.extend_from_slice(&version.0.to_le_bytes());
    Chain(Digest::of(&link))
}
