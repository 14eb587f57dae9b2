//! Jobs for searches beside the loop, and what comes of them.

use std::sync::Arc;

use anabranch_common::ids::{ModelVersion, Position, RunId};

use crate::node::PublishedModel;
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
}
