//! Jobs for searches beside the loop, and what comes of them.

use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::{Digest, ModelVersion, Position, RunId};
use anabranch_common::manifest::ModelManifest;

use crate::core::content::{Content, Reservation};
use crate::node::PublishedModel;
use crate::recovery::Exported;
use crate::search::record::{Record, TrialId};

/// What a search is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchTexts {
    /// Path of `SEARCH.toml`, as the operator gave it.
    pub path: String,
    /// Its text.
    pub search: String,
    /// The text of the `run.toml` that it names.
    pub base: String,
}

/// What is to be done for a search, beside the loop.
#[derive(Debug, PartialEq)]
pub enum SearchesJob {
    /// Check the texts and make the directory, with a store that is empty; answered by `Opened` or `NotOpened`.
    Create {
        /// Name of the search.
        name: String,
        /// The texts as they came.
        texts: SearchTexts,
    },
    /// Open a directory that is there, and read its journal; answered likewise.
    Open {
        /// Name of the search.
        name: String,
    },
    /// Write records with one sync; answered by `Written`. Of one search, at most one such job is out.
    Write {
        /// Name of the search.
        name: String,
        /// The records, the oldest first.
        records: Vec<Record>,
    },
    /// Rebuild a version of a trial's run from its store; answered by `Rebuilt`.
    Rebuild {
        /// Name of the search.
        search: String,
        /// The trial.
        trial: TrialId,
        /// Its run.
        run: RunId,
        /// The version.
        version: ModelVersion,
    },
    /// Take a version out of a trial's run for another trial; answered by `Copied`.
    Copy {
        /// Name of the search.
        search: String,
        /// The trial that goes on from it.
        trial: TrialId,
        /// The run that it is of.
        run: RunId,
        /// The version.
        version: ModelVersion,
    },
}

/// What another trial goes on from.
#[derive(Debug)]
pub struct CopiedModel {
    /// Its tensors.
    pub manifest: ModelManifest,
    /// Digest of its content.
    pub digest: Digest,
    /// Its content.
    pub content: Arc<Content>,
}

impl CopiedModel {
    /// Measures a model that was taken out of a run. This reads every value: it does not belong on the loop.
    #[must_use]
    pub fn of(exported: Exported) -> Self {
        let Exported { manifest, digest, model, .. } = exported;
        Self { manifest, digest, content: Arc::new(Content::measure(Delta::Dense(model), Reservation::default())) }
    }
}

/// A job for a search has ended.
#[derive(Debug)]
pub enum SearchesDone {
    /// The store is open.
    Opened {
        /// Name of the search.
        name: String,
        /// Its whole journal; none of a search that begins.
        records: Vec<Record>,
        /// What a search that begins is started with: the base without the tables that trials do not have.
        texts: Option<SearchTexts>,
    },
    /// The texts are refused, or the store cannot be opened.
    NotOpened {
        /// Name of the search.
        name: String,
        /// Whether the directory is there.
        is_there: bool,
        /// The problem, and what to do about it.
        why: String,
    },
    /// Records are durable, up to a position; or the store has failed.
    Written {
        /// Name of the search.
        name: String,
        /// Position of the newest record, or the problem.
        result: Result<Position, String>,
    },
    /// A version is rebuilt.
    Rebuilt {
        /// Name of the search.
        search: String,
        /// The trial.
        trial: TrialId,
        /// Its run.
        run: RunId,
        /// The version.
        version: ModelVersion,
        /// What users are given of it, or the problem.
        model: Result<Arc<PublishedModel>, String>,
    },
    /// A version was taken out of a run.
    Copied {
        /// Name of the search.
        search: String,
        /// The trial that goes on from it.
        trial: TrialId,
        /// The run that it is of.
        run: RunId,
        /// The version.
        version: ModelVersion,
        /// What users are given of it, or the problem.
        model: Result<Box<CopiedModel>, String>,
    },
}
