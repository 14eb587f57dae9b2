//! A run at one position of its journal, and the step to the next one.

use std::borrow::Cow;

use anabranch_common::ids::Position;
use anabranch_common::journal::{Chain, Record, RecordBody};
use anabranch_common::merge::SavedRule;

use super::checkpoint::{self, Checkpoint};
use super::{RecoveryError, pins, saved, vectors};
use crate::core::state::RunState;
use crate::merger::{MergeError, ModelState};
use crate::store::{Blobs, Journal, Store};

/// State, model and chain after one record.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) state: RunState,
    pub(super) model: ModelState,
    pub(super) chain: Chain,
}

/// Reads a record that must be there, and checks that it is the one.
pub(super) fn read(journal: &dyn Journal, position: Position) -> Result<Record, RecoveryError> {
    let bytes = journal.record(position)?.ok_or(RecoveryError::MissingRecord(position))?;
    parse(position, &bytes)
}

/// Reads a record from the bytes that lie at a position, and checks that it is the one.
pub(super) fn parse(position: Position, bytes: &[u8]) -> Result<Record, RecoveryError> {
    let record = Record::from_bytes(bytes).map_err(|source| RecoveryError::Record { position, source })?;
    if record.position != position {
        return Err(RecoveryError::Misplaced { position, said: record.position });
    }
    Ok(record)
}

impl Cursor {
    /// After record 0.
    pub(super) fn genesis(store: &dyn Store) -> Result<Self, RecoveryError> {
        if store.journal().last_position()?.is_none() {
            return Err(RecoveryError::Empty);
        }
        let record = read(store.journal(), Position(0))?;
        let state = RunState::genesis(&record)?;
        let vector = vectors::load(store.blobs(), "initial model", &state.manifest, state.initial)?;
        let model = ModelState::new(state.manifest.clone(), state.spec.merge.clone(), vector, state.version)
            .map_err(|source| RecoveryError::Merge { position: Position(0), source })?
            .tracked(state.spec.downlink.track.as_ref());
        let chain = Chain::default().extend(record.digest()?, 0.0, state.version);
        Ok(Self { state, model, chain })
    }

    /// After the record of a checkpoint. Everything it names is checked against its digest.
    pub(super) fn checkpoint(blobs: &dyn Blobs, checkpoint: &Checkpoint) -> Result<Self, RecoveryError> {
        let state = saved::load(blobs, checkpoint.state)?;
        let contradiction = |what| RecoveryError::Contradiction { position: checkpoint.position, what };
        if state.position != checkpoint.position {
            return Err(contradiction("position"));
        }
        if (state.version, state.branch) != (checkpoint.version, checkpoint.branch) {
            return Err(contradiction("version or branch"));
        }
        if checkpoint.merge_state.len() != state.spec.merge.saved_vectors(state.round.contributions) as usize {
            return Err(contradiction("what waits for a close"));
        }
        if checkpoint.track.is_some() != state.spec.downlink.track.is_some() {
            return Err(contradiction("published track"));
        }
        let manifest = state.manifest.clone();
        let vector = vectors::load(blobs, "model", &manifest, checkpoint.model)?;
        let track = checkpoint.track.map(|digest| vectors::load(blobs, "published track", &manifest, digest));
        let track = track.transpose()?;
        let merge_state = checkpoint
            .merge_state
            .iter()
            .map(|digest| vectors::load(blobs, "merge vector", &manifest, *digest).map(Cow::Owned))
            .collect::<Result<Vec<_>, _>>()?;
        let parts = checkpoint
            .merge_parts
            .iter()
            .map(|digest| checkpoint::load_part(blobs, *digest))
            .collect::<Result<_, _>>()?;
        let merge_state = SavedRule { vectors: merge_state, parts };
        let merge_failed = |source| RecoveryError::Merge { position: checkpoint.position, source };
        let mut model = ModelState::restore(manifest, state.spec.merge.clone(), vector, merge_state, state.version)
            .map_err(merge_failed)?;
        if let (Some(spec), Some(track)) = (&state.spec.downlink.track, track) {
            model = model.with_track(spec, track, state.base).map_err(merge_failed)?;
        }
        Ok(Self { state, model, chain: checkpoint.chain })
    }

    /// Reads and applies the next record, through the code that applied it live.
    pub(super) fn step(&mut self, store: &dyn Store) -> Result<(), RecoveryError> {
        let position = self.state.position.next();
        let record = read(store.journal(), position)?;
        let (weight, version) = record.chain_inputs(self.state.version);
        self.state.apply(&record)?;
        self.chain = self.chain.extend(record.digest()?, weight, version);
        match self.model.apply(&record) {
            Ok(()) => Ok(()),
            Err(MergeError::Replaced) => self.replace(store, &record),
            Err(source) => Err(RecoveryError::Merge { position, source }),
        }
    }

    fn replace(&mut self, store: &dyn Store, record: &Record) -> Result<(), RecoveryError> {
        let digest = match &record.body {
            RecordBody::Branched { branch, .. } => pins::branch_model(store.catalogue(), *branch)?,
            RecordBody::Imported { model, .. } => *model,
            _ => return Ok(()),
        };
        let vector = vectors::load(store.blobs(), "model", &self.state.manifest, digest)?;
        let (manifest, spec) = (self.state.manifest.clone(), self.state.spec.merge.clone());
        self.model = ModelState::new(manifest, spec, vector, self.state.version)
            .map_err(|source| RecoveryError::Merge { position: record.position, source })?
            .tracked(self.state.spec.downlink.track.as_ref());
        Ok(())
    }
}
