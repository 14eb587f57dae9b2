//! An independent checker: what the journal says, computed a second time and in another way.
//!
//! It shares with the coordinator only the reading of records and the decoding of payloads. The chain is recomputed from
//! the stored bytes, the model by an implementation of the merge rules that is written here once more, plainly, and the
//! versions by counting. Where finite updates add up to a model that is not, the run's model stays the last finite one; the
//! chain goes on. A version is closed when the rule says so, never earlier or later, and a published digest is that of the
//! version that the records make. It does not use `RunState`, `ModelState` or any `MergeRule`.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::codec::{self, Delta};
use anabranch_common::ids::{Digest, ModelVersion, Position};
use anabranch_common::journal::{
    Chain, Close, CloseReason, Contribution, HEADER_BYTES, Publication, Record, RecordBody,
};
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

    /// How many contributions make a version.
    fn size(self) -> u32 {
        match self {
            Self::Direct => 1,
            Self::Buffered(size) => size,
        }
    }

    /// What a parameter's place in the buffer holds while no contribution reaches it. -0 changes no parameter.
    fn nothing(self) -> f32 {
        match self {
            Self::Direct => -0.0,
            Self::Buffered(_) => 0.0,
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
    waiting: u32,
    /// Digests of the versions that may still be published: since the one that was published last.
    made: BTreeMap<ModelVersion, Digest>,
}

impl Checker {
    fn genesis(store: &dyn Store) -> Result<Self, RecoveryError> {
        let record = cursor::read(store.journal(), Position(0))?;
        let RecordBody::Genesis { spec, manifest, model, norm, .. } = &record.body else {
            return Err(crate::core::state::FoldError::Genesis(Position(0)).into());
        };
        let model = vectors::load(store.blobs(), "initial model", manifest, *model)?;
        same_norm(Position(0), *norm, &model)?;
        let rule = Rule::of(&spec.merge);
        let bytes = store.journal().record(Position(0))?.ok_or(RecoveryError::MissingRecord(Position(0)))?;
        Ok(Self {
            buffer: vec![rule.nothing(); manifest.params()],
            manifest: manifest.clone(),
            rule,
            position: Position(0),
            version: ModelVersion(0),
            chain: link(Chain::default(), &bytes, 0.0, ModelVersion(0)),
            made: BTreeMap::from([(ModelVersion(0), Digest::of_f32(&model))]),
            model,
            last_finite: None,
            waiting: 0,
        })
    }

    /// Starts from a checkpoint, whose chain is taken as given.
    fn anchor(blobs: &dyn Blobs, checkpoint: &Checkpoint) -> Result<Self, RecoveryError> {
        let state = saved::load_without_agents(blobs, checkpoint.state)?;
        let (manifest, rule) = (state.manifest, Rule::of(&state.spec.merge));
        let buffer = match checkpoint.merge_state.first() {
            Some(digest) => vectors::load(blobs, "merge vector", &manifest, *digest)?,
            None => vec![rule.nothing(); manifest.params()],
        };
        Ok(Self {
            model: vectors::load(blobs, "model", &manifest, checkpoint.model)?,
            manifest,
            rule,
            position: checkpoint.position,
            version: checkpoint.version,
            chain: checkpoint.chain,
            last_finite: None,
            buffer,
            waiting: state.round.contributions,
            made: BTreeMap::from([(checkpoint.version, checkpoint.model)]),
        })
    }

    fn step(&mut self, store: &dyn Store, overflows: &BTreeSet<Position>) -> Result<(), Problem> {
        let position = self.position.next();
        let bytes = store.journal().record(position)?.ok_or(RecoveryError::MissingRecord(position))?;
        let record = cursor::read(store.journal(), position)?;
        let replaces = matches!(record.body, RecordBody::Imported { .. } | RecordBody::Branched { .. });
        let closes = matches!(record.body, RecordBody::Closed(_));
        if self.waiting >= self.rule.size() && !closes && !replaces {
            let waiting = self.waiting;
            return Err(Problem::Found(format!(
                "record {position} follows {waiting} contributions that it does not close"
            )));
        }
        let mut weight = 0.0;
        match &record.body {
            RecordBody::Contribution(contribution) => {
                self.contribute(&record, contribution)?;
                weight = contribution.weight;
            }
            RecordBody::Closed(close) => {
                if self.last_finite.is_none() && overflows.contains(&position) {
                    self.last_finite = Some(self.version);
                }
                self.close(position, close)?;
            }
            RecordBody::Published(publication) => self.published(position, publication)?,
            RecordBody::ConfigChanged { spec } => {
                let before = std::mem::replace(&mut self.rule, Rule::of(&spec.merge));
                if before != self.rule {
                    self.empty_buffer();
                }
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

    fn contribute(&mut self, record: &Record, contribution: &Contribution) -> Result<(), Problem> {
        let position = record.position;
        let found = |text: String| Problem::Found(format!("record {position}: {text}"));
        if Digest::of(&record.payload) != contribution.meta.payload_digest {
            return Err(found("the payload is not the one that was admitted".to_owned()));
        }
        let delta = codec::decode(contribution.meta.codec, &self.manifest, &record.payload)
            .map_err(|error| found(format!("the payload does not decode: {error}")))?;
        if self.last_finite.is_none() {
            add(&mut self.buffer, &delta, contribution.weight);
        }
        self.waiting += 1;
        Ok(())
    }

    fn close(&mut self, position: Position, close: &Close) -> Result<(), Problem> {
        let found = |text: String| Problem::Found(format!("record {position}: {text}"));
        let version = self.version.next();
        if close.version != version {
            return Err(found(format!("says version {}, counting says {version}", close.version)));
        }
        let CloseReason::Filled = close.why;
        if close.contributions != self.waiting || self.waiting != self.rule.size() {
            let (said, size) = (close.contributions, self.rule.size());
            return Err(found(format!("closes {said} contributions where {} of {size} wait", self.waiting)));
        }
        if self.last_finite.is_none() {
            for (parameter, pending) in self.model.iter_mut().zip(&self.buffer) {
                *parameter += *pending;
            }
        }
        self.empty_buffer();
        self.version = version;
        if !self.model.iter().all(|value| value.is_finite()) {
            return Err(Problem::Overflow(position));
        }
        if self.last_finite.is_none() {
            self.made.insert(version, Digest::of_f32(&self.model));
        }
        Ok(())
    }

    /// A version before the first one that was computed here cannot be compared.
    fn published(&mut self, position: Position, publication: &Publication) -> Result<(), Problem> {
        let Publication { version, digest, .. } = publication;
        let oldest = self.made.first_key_value().map_or(self.version, |(oldest, _)| *oldest);
        if *version >= oldest && self.made.get(version) != Some(digest) {
            return Err(Problem::Found(format!("record {position}: version {version} was published as another model")));
        }
        self.made = self.made.split_off(version);
        Ok(())
    }

    fn replace(&mut self, blobs: &dyn Blobs, model: Digest, version: ModelVersion) -> Result<(), RecoveryError> {
        self.model = vectors::load(blobs, "model", &self.manifest, model)?;
        self.version = version;
        self.made = BTreeMap::from([(version, model)]);
        self.last_finite = None;
        self.empty_buffer();
        Ok(())
    }

    fn empty_buffer(&mut self) {
        self.buffer.fill(self.rule.nothing());
        self.waiting = 0;
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
            Rule::Direct if self.waiting == 0 => &[],
            Rule::Direct | Rule::Buffered(_) => &[Digest::of_f32(&self.buffer)],
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
