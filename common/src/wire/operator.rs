//! What an operator may ask of a running coordinator, one request a stream.

use crate::ids::ModelVersion;
use crate::merge::Served;
use crate::token::PagePermission;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorRequest {
    /// For one run.
    Run {
        /// Name of the run, or its id in hexadecimal; the only one that is served when absent.
        run: Option<String>,
        /// What.
        request: RunRequest,
    },
    /// For the registry, which all runs of a process share.
    Registry(RegistryRequest),
    /// For the process: which runs it has.
    Runs(RunsRequest),
    /// For the process: its searches over configurations.
    Search(SearchRequest),
}

/// What an operator may ask about the searches of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SearchRequest {
    /// `search start`: answered by a `SearchStarted` as JSON, once the search is durable.
    Start {
        /// Path of `SEARCH.toml`, as the operator gave it.
        path: String,
        /// Its text.
        search: String,
        /// The text of the `run.toml` that it names.
        base: String,
    },
    /// `search status`: answered by a `SearchReport` as JSON.
    Status {
        /// Name of the search; the only one when absent.
        name: Option<String>,
    },
    /// `search stop`: ends the search, and its trials.
    Stop {
        /// Name of the search.
        name: String,
    },
    /// `search list`: answered by `[SearchSummary]` as JSON.
    List,
    /// `search export`: answered by a `SearchResult` as JSON, which names the run and the version to export.
    Export {
        /// Name of the search; the only one when absent.
        name: Option<String>,
    },
}

/// What an operator may ask about the runs of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunsRequest {
    /// `runs create`: answered by a `RunCreated` as JSON.
    Create {
        /// Its name.
        name: String,
        /// The text of its `run.toml`.
        config: String,
        /// Makes a repeated request safe: with the same token and the same text the answer is the same.
        submit_token: Option<String>,
    },
    /// `runs list`: answered by `[RunSummary]` as JSON.
    List,
    /// `runs delete`: a run that has ended or is paused, with all that is stored of it.
    Delete {
        /// Name or id of the run.
        run: String,
    },
}

/// What an operator may ask of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunRequest {
    /// `status`.
    Status,
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `stop`: ends the run.
    Stop,
    /// `agents list`: every member, with what the run knows of it.
    AgentsList,
    /// `checkpoint list`.
    CheckpointList,
    /// `checkpoint verify`.
    CheckpointVerify,
    /// `checkpoint export`; answered by `ModelFollows`, then the content in `Part` frames (codec 0).
    CheckpointExport {
        /// Which version; the result or the newest when absent.
        version: Option<ModelVersion>,
    },
}

/// What an operator may ask about members and tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryRequest {
    /// `agents revoke`: by id or by name. Every run is told.
    AgentRevoke {
        /// Id in hexadecimal, or name.
        agent: String,
    },
    /// `token create`. The secret never leaves the requester: only its digest is sent.
    TokenCreate {
        /// Name for the agents that join with it.
        name: Option<String>,
        /// How long it is good for, in milliseconds.
        ttl_ms: u64,
        /// How many agents may join with it.
        uses: u32,
        /// BLAKE3 of the secret.
        secret_digest: [u8; 32],
        /// Names or ids of the runs that its agents may take part in; all runs when there is none.
        runs: Vec<String>,
    },
    /// `token list`.
    TokenList,
    /// `token revoke`: by id.
    TokenRevoke {
        /// Its id.
        id: String,
    },
    /// `page token create`. The secret never leaves the requester: only its digest is sent. Answered by its id.
    PageTokenCreate {
        /// Name of its owner, for people.
        name: Option<String>,
        /// How long it is good for, in milliseconds.
        ttl_ms: u64,
        /// What its owner may do.
        permission: PagePermission,
        /// BLAKE3 of the secret.
        secret_digest: [u8; 32],
    },
    /// `page token list`: answered by `[PageTokenStatus]` as JSON.
    PageTokenList,
    /// `page token revoke`: by id.
    PageTokenRevoke {
        /// Its id.
        id: String,
    },
    /// `agents rotate`: new keys and certificates.
    AgentRotate {
        /// Id in hexadecimal, or name; every agent when absent.
        agent: Option<String>,
    },
    /// `ca rotate`: begins a rollover to a new CA.
    CaRotate,
    /// `ca status`: answered by a `CaStatus` as JSON.
    CaStatus,
    /// `ca finish`: ends the rollover.
    CaFinish {
        /// Even though members still hold certificates of the old CA.
        force: bool,
    },
}

impl From<RunRequest> for OperatorRequest {
    /// A request for the only run that is served.
    fn from(request: RunRequest) -> Self {
        Self::Run { run: None, request }
    }
}

impl From<RunsRequest> for OperatorRequest {
    fn from(request: RunsRequest) -> Self {
        Self::Runs(request)
    }
}

impl From<SearchRequest> for OperatorRequest {
    fn from(request: SearchRequest) -> Self {
        Self::Search(request)
    }
}

impl From<RegistryRequest> for OperatorRequest {
    fn from(request: RegistryRequest) -> Self {
        Self::Registry(request)
    }
}

/// An answer. JSON is the same text that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorResponse {
    /// Done; the text is for people.
    Done(String),
    /// `StatusReport`, `[AgentStatus]`, `[TokenStatus]`, `[PageTokenStatus]`, `[CheckpointStatus]`, `VerifyReport`,
    /// `[RunSummary]`, `RunCreated`, `SearchStarted`, `SearchReport`, `[SearchSummary]`, `SearchResult` or `CaStatus` as
    /// JSON.
    Json(String),
    /// The content of a model follows.
    ModelFollows {
        /// Which vector of the version it is.
        served: Served,
        /// Its version.
        version: ModelVersion,
        /// Its manifest as JSON.
        manifest_json: String,
        /// Length of the encoded content in bytes.
        bytes: u64,
    },
    /// Not done, and why; with what to do about it.
    Failed(String),
    /// Nothing by that name.
    NotFound(String),
    /// Not now: the text says what state the run is in.
    Conflict(String),
}
