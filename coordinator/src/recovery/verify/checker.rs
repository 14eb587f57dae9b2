//! The records of a run, computed a second time.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::codec::{self, Delta};
use anabranch_common::ids::{Digest, ModelVersion, Position};
use anabranch_common::journal::{
    Chain, Close, CloseReason, Contribution, HEADER_BYTES, Publication, PublicationForm, Record, RecordBody,
};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::RunSpec;

use super::average::Average;
use super::own_state::{OwnState, Saved};
use super::published::{PublishedVersions, Segment};
use super::track::TrackedBase;
use crate::core::round::Round;
use crate::recovery::checkpoint::Checkpoint;
use crate::recovery::{RecoveryError, cursor, pins, saved, vectors};
use crate::store::{Blobs, Store};

/// Why a record cannot be checked, or does not hold.
pub(super) enum Problem {
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
    /// FedAsync, and the rescaled rule with its other weights, each with its name: each update moves the model.
    Direct(&'static str),
    /// FedBuff: so many updates are summed up, then move it together.
    Buffered(u32),
    /// Delayed Nesterov: each update moves the model, and so many of them a momentum.
    Delayed(u32),
    /// FADAS: so many updates make a step, by a state of its own.
    Adaptive(u32),
    /// Recall: each update moves the model, by a state of its own.
    Recalling,
    /// EF21: each update moves a memory, and the model along all of them.
    Remembering,
    /// Rules behind a barrier, each with its name: as many updates as there are make a step, by a state of its own.
    Rounds(&'static str),
}

impl Rule {
    fn of(spec: &MergeSpec) -> Self {
        match spec {
            MergeSpec::FedAsync { .. } => Self::Direct("fedasync"),
            MergeSpec::Rescaled { .. } => Self::Direct("rescaled"),
            MergeSpec::FedBuff { buffer_size, .. } => Self::Buffered((*buffer_size).max(1)),
            MergeSpec::DelayedNesterov { buffer_size, .. } => Self::Delayed((*buffer_size).max(1)),
            MergeSpec::Fadas { buffer_size, .. } => Self::Adaptive((*buffer_size).max(1)),
            MergeSpec::Recall { .. } => Self::Recalling,
            MergeSpec::Ef21 { .. } => Self::Remembering,
            MergeSpec::FedAvg { .. } => Self::Rounds("fedavg"),
            MergeSpec::FedProx { .. } => Self::Rounds("fedprox"),
            MergeSpec::SyncSgd { .. } => Self::Rounds("sync-sgd"),
            MergeSpec::FedAvgM { .. } => Self::Rounds("fedavgm"),
            MergeSpec::FedAdam { .. } => Self::Rounds("fedadam"),
            MergeSpec::Averaged(rule) => Self::of(rule),
        }
    }

    /// How many contributions make a version, where that is a number.
    fn size(self) -> Option<u32> {
        match self {
            Self::Direct(_) | Self::Delayed(_) | Self::Recalling | Self::Remembering => Some(1),
            Self::Buffered(size) | Self::Adaptive(size) => Some(size),
            Self::Rounds(_) => None,
        }
    }

    /// Whether so many contributions may be closed for this reason.
    fn closes(self, waiting: u32, why: CloseReason) -> bool {
        match (self.size(), why) {
            (Some(size), CloseReason::Filled) => waiting == size,
            (None, CloseReason::Complete | CloseReason::Deadline) => waiting > 0,
            (Some(_), CloseReason::Complete | CloseReason::Deadline) | (None, CloseReason::Filled) => false,
        }
    }

    /// What a parameter's place in the buffer holds while no contribution reaches it. -0 changes no parameter.
    fn nothing(self) -> f32 {
        match self {
            Self::Direct(_) => -0.0,
            Self::Buffered(_)
            | Self::Delayed(_)
            | Self::Adaptive(_)
            | Self::Recalling
            | Self::Remembering
            | Self::Rounds(_) => 0.0,
        }
    }
}

/// The run at one position, as it is computed here.
pub(super) struct Checker {
    manifest: ModelManifest,
    rule: Rule,
    spec: MergeSpec,
    /// The state of the rule, where it has one beside the buffer.
    own: Option<OwnState>,
    /// The average that is kept beside the rule, if one is.
    average: Option<Average>,
    pub(super) position: Position,
    pub(super) version: ModelVersion,
    pub(super) chain: Chain,
    pub(super) model: Vec<f32>,
    /// What agents train from in place of `model`.
    track: Option<TrackedBase>,
    /// The version of `model`, once the model has overflowed: it stays as it is.
    pub(super) last_finite: Option<ModelVersion>,
    buffer: Vec<f32>,
    waiting: u32,
    /// The publication that a checkpoint taken here must have saved.
    published: Option<Publication>,
    /// Which versions are published further on.
    wanted: PublishedVersions,
    /// The history that versions are counted in: it begins with a model that was not made by merging.
    since: Segment,
    /// Digests of versions that are published: since the one that was published last.
    made: BTreeMap<ModelVersion, Digest>,
}

impl Checker {
    /// After record 0.
    pub(super) fn genesis(store: &dyn Store) -> Result<Self, RecoveryError> {
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
            own: OwnState::of(spec.merge.unaveraged(), manifest.params()),
            average: Average::of(&spec.merge, manifest.params()),
            spec: spec.merge.clone(),
            manifest: manifest.clone(),
            rule,
            position: Position(0),
            version: ModelVersion(0),
            chain: link(Chain::default(), &bytes, 0.0, ModelVersion(0)),
            made: BTreeMap::from([(ModelVersion(0), Digest::of_f32(&model))]),
            track: spec.downlink.track.as_ref().map(|track| TrackedBase::new(track, model.clone(), ModelVersion(0))),
            model,
            last_finite: None,
            waiting: 0,
            published: None,
            wanted: PublishedVersions::default(),
            since: Segment { position: Position(0), version: ModelVersion(0) },
        })
    }

    /// Starts from a checkpoint, whose chain is taken as given.
    pub(super) fn anchor(blobs: &dyn Blobs, checkpoint: &Checkpoint) -> Result<Self, RecoveryError> {
        let state = saved::load_without_agents(blobs, checkpoint.state)?;
        let (manifest, rule) = (state.manifest, Rule::of(&state.spec.merge));
        let saved = Saved::of(&state.spec.merge, blobs, checkpoint, &manifest);
        let own = OwnState::load(state.spec.merge.unaveraged(), &saved)?;
        let average = Average::load(&saved)?;
        let buffer = match saved.vectors().first() {
            Some(digest) if own.is_none() => vectors::load(blobs, "merge vector", &manifest, *digest)?,
            _ => vec![rule.nothing(); manifest.params()],
        };
        let track = match (&state.spec.downlink.track, checkpoint.track) {
            (Some(spec), Some(digest)) => {
                Some(TrackedBase::new(spec, vectors::load(blobs, "published track", &manifest, digest)?, state.base))
            }
            (None, None) => None,
            _ => return Err(contradiction(checkpoint, "published track")),
        };
        Ok(Self {
            model: vectors::load(blobs, "model", &manifest, checkpoint.model)?,
            track,
            manifest,
            rule,
            spec: state.spec.merge,
            own,
            average,
            position: checkpoint.position,
            version: checkpoint.version,
            chain: checkpoint.chain,
            last_finite: None,
            buffer,
            waiting: state.round.contributions,
            published: state.published,
            wanted: PublishedVersions::default(),
            since: Segment { position: checkpoint.position, version: state.base },
            made: BTreeMap::from([(state.base, checkpoint.track.unwrap_or(checkpoint.model))]),
        })
    }

    /// Hashes the model at these versions alone: a hash takes longer than the merge that makes the version.
    pub(super) fn hash_only(&mut self, wanted: PublishedVersions) {
        self.wanted = wanted;
    }

    /// Reads the next record and does what it says.
    pub(super) fn step(&mut self, store: &dyn Store, overflows: &BTreeSet<Position>) -> Result<(), Problem> {
        let position = self.position.next();
        let bytes = store.journal().record(position)?.ok_or(RecoveryError::MissingRecord(position))?;
        let record = cursor::parse(position, &bytes)?;
        let is_full = self.rule.size().is_some_and(|size| self.waiting >= size);
        if is_full && !matches!(record.body, RecordBody::Closed(_)) {
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
                self.spec = spec.merge.clone();
                if before != self.rule {
                    self.begin_rule();
                }
                if let Some(own) = &mut self.own {
                    own.set(self.spec.unaveraged());
                }
                // It goes on where it is on before and after, and begins where it is not.
                let begun = Average::of(&self.spec, self.manifest.params());
                self.average = begun.map(|begun| self.average.take().unwrap_or(begun));
                self.change_track(spec);
            }
            RecordBody::Imported { model, version, norm, .. } => {
                self.replace(store.blobs(), position, *model, *version)?;
                same_norm(position, *norm, &self.model)?;
            }
            RecordBody::Branched { branch, version, norm, .. } => {
                let model = pins::branch_model(store.catalogue(), *branch)?;
                self.replace(store.blobs(), position, model, *version)?;
                self.published = None;
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
        match &mut self.own {
            _ if self.last_finite.is_some() => {}
            Some(own) => own.contribute(&self.model, &delta, contribution),
            None => add(&mut self.buffer, &delta, contribution.weight),
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
        if close.contributions != self.waiting || !self.rule.closes(self.waiting, close.why) {
            let (said, waiting, why, rule) = (close.contributions, self.waiting, close.why, self.rule);
            return Err(found(format!("closes {said} contributions of {waiting} as {why:?} under {rule:?}")));
        }
        if self.track.is_none() && !close.is_base {
            return Err(found("keeps a version from the agents of a run without a published track".to_owned()));
        }
        if self.last_finite.is_none() {
            self.move_model();
        }
        self.empty_buffer();
        self.version = version;
        if !self.model.iter().all(|value| value.is_finite()) {
            return Err(Problem::Overflow(position));
        }
        if self.last_finite.is_none() && close.is_base {
            self.offer(version);
        }
        Ok(())
    }

    fn move_model(&mut self) {
        let before = self.average.is_some().then(|| self.model.clone());
        match &mut self.own {
            Some(own) => own.close(&mut self.model),
            None => {
                for (parameter, pending) in self.model.iter_mut().zip(&self.buffer) {
                    *parameter += *pending;
                }
            }
        }
        if let (Some(average), Some(before)) = (&mut self.average, before) {
            average.close(&before, &self.model);
        }
    }

    /// Agents may train from `version`: keeps the digest of what they are sent, where that is published.
    fn offer(&mut self, version: ModelVersion) {
        if let Some(track) = &mut self.track {
            track.follow(&self.manifest, &self.model, version);
        }
        if self.wanted.contains(self.since, version) {
            self.made.insert(version, self.base_digest());
        }
    }

    fn base_digest(&self) -> Digest {
        self.track.as_ref().map_or_else(|| Digest::of_f32(&self.model), TrackedBase::digest)
    }

    /// A track that is switched on begins at the model, and so does one whose base is too old for every update from it.
    fn change_track(&mut self, spec: &RunSpec) {
        match (&mut self.track, &spec.downlink.track) {
            (Some(track), Some(spec_of_track)) => {
                let behind = self.version.0 - track.version().0;
                let most = if spec.merge.barrier().is_some() { 0 } else { spec.admit.max_staleness };
                track.set(spec_of_track);
                if behind <= most {
                    return;
                }
                track.begin(&self.model, self.version);
            }
            (None, None) => return,
            (None, Some(spec)) => self.track = Some(TrackedBase::new(spec, self.model.clone(), self.version)),
            (Some(_), None) => self.track = None,
        }
        self.published = None;
        self.since.version = self.version;
        self.made = BTreeMap::from([(self.version, Digest::of_f32(&self.model))]);
    }

    /// A version before the first one that was computed here cannot be compared.
    fn published(&mut self, position: Position, publication: &Publication) -> Result<(), Problem> {
        let Publication { version, digest, form } = publication;
        let expected = if self.track.is_some() { PublicationForm::Track } else { PublicationForm::Snapshot };
        if *form != expected {
            return Err(Problem::Found(format!("record {position} publishes a {form:?}, not a {expected:?}")));
        }
        if *version >= self.since.version && self.made.get(version) != Some(digest) {
            return Err(Problem::Found(format!(
                "record {position}: version {version} was published as another model or left behind"
            )));
        }
        self.made = self.made.split_off(version);
        self.published = Some(*publication);
        Ok(())
    }

    fn replace(
        &mut self,
        blobs: &dyn Blobs,
        position: Position,
        model: Digest,
        version: ModelVersion,
    ) -> Result<(), RecoveryError> {
        self.model = vectors::load(blobs, "model", &self.manifest, model)?;
        self.version = version;
        self.since = Segment { position, version };
        self.made = BTreeMap::from([(version, model)]);
        if let Some(track) = &mut self.track {
            track.begin(&self.model, version);
        }
        self.last_finite = None;
        self.begin_rule();
        Ok(())
    }

    /// The rule begins with nothing, and so does the average beside it.
    fn begin_rule(&mut self) {
        self.empty_buffer();
        self.own = OwnState::of(self.spec.unaveraged(), self.manifest.params());
        self.average = Average::of(&self.spec, self.manifest.params());
    }

    fn empty_buffer(&mut self) {
        self.buffer.fill(self.rule.nothing());
        self.waiting = 0;
    }

    /// Compares what was computed with a checkpoint that was taken here, and checks that its blobs are whole.
    pub(super) fn compare(&self, blobs: &dyn Blobs, checkpoint: &Checkpoint) -> Result<(), RecoveryError> {
        let differs = |what| Err(contradiction(checkpoint, what));
        if checkpoint.chain != self.chain {
            return differs("chain");
        }
        if checkpoint.version != self.version {
            return differs("version");
        }
        if checkpoint.model != Digest::of_f32(&self.model) {
            return differs("model");
        }
        if checkpoint.track != self.track.as_ref().map(TrackedBase::digest) {
            return differs("published track");
        }
        let saved = Saved::of(&self.spec, blobs, checkpoint, &self.manifest);
        let same = match (&self.own, self.rule) {
            (Some(own), _) => own.is_in(&saved)?,
            (None, Rule::Direct(_)) if self.waiting == 0 => saved.vectors().is_empty(),
            (None, _) => saved.vectors() == [Digest::of_f32(&self.buffer)],
        };
        if !same || (self.own.is_none() && !saved.parts()?.is_empty()) {
            return differs("merge state");
        }
        if let Some(average) = &self.average
            && !average.is_in(&saved)?
        {
            return differs("average of the models");
        }
        for digest in checkpoint.merge_state.iter().chain([&checkpoint.model]).chain(&checkpoint.track) {
            vectors::load(blobs, "vector", &self.manifest, *digest)?;
        }
        let state = saved::load_without_agents(blobs, checkpoint.state)?;
        if state.position != self.position || state.version != self.version || state.branch != checkpoint.branch {
            return differs("position, version or branch in its state");
        }
        let Round { contributions, examples, .. } = state.round;
        if contributions != self.waiting || (contributions == 0 && examples != 0) {
            return differs("number of waiting contributions");
        }
        if state.published != self.published {
            return differs("published version");
        }
        if state.base != self.track.as_ref().map_or(self.version, TrackedBase::version) {
            return differs("version to train from");
        }
        saved::check(blobs, checkpoint.state)
    }
}

fn contradiction(checkpoint: &Checkpoint, what: &'static str) -> RecoveryError {
    RecoveryError::Contradiction { position: checkpoint.position, what }
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
pub(super) fn add(target: &mut [f32], delta: &Delta, weight: f32) {
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
