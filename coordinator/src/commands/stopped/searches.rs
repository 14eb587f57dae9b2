//! Searches of a stopped coordinator: their journals are read, and nothing is changed.

use anabranch_common::wire::operator::{OperatorResponse, SearchRequest};

use super::Stopped;
use crate::core::status::json;
use crate::runs::searches;
use crate::search::report::{SearchReport, SearchResult, SearchSummary, no_search};
use crate::search::{SearchState, journal};

impl Stopped {
    pub(super) fn operate_searches(&self, request: SearchRequest) -> anyhow::Result<OperatorResponse> {
        let needs_a_process = |verb: &str| {
            OperatorResponse::Conflict(format!(
                "`search {verb}` needs a running coordinator: start it with `anabranch-coordinator run --dir {}`",
                self.dir.display()
            ))
        };
        Ok(match request {
            SearchRequest::Start { .. } => needs_a_process("start"),
            SearchRequest::Stop { .. } => needs_a_process("stop"),
            SearchRequest::List => json(&self.search_summaries()?),
            SearchRequest::Status { name } => match self.search(name.as_deref())? {
                Ok(state) => json(&SearchReport::of(&state)),
                Err(response) => response,
            },
            SearchRequest::Export { name } => match self.search(name.as_deref())? {
                Ok(state) => SearchResult::of(&state).map_or_else(OperatorResponse::Conflict, |result| json(&result)),
                Err(response) => response,
            },
        })
    }

    fn search_summaries(&self) -> anyhow::Result<Vec<SearchSummary>> {
        let names = searches::names(&self.dir)?;
        let summary = |name: &String| match self.read_search(name) {
            Ok(state) => SearchSummary::of(&state),
            Err(error) => SearchSummary::unread(name, Some(format!("{error:#}"))),
        };
        Ok(names.iter().map(summary).collect())
    }

    /// The state of a search by name; of the only one without.
    fn search(&self, wanted: Option<&str>) -> anyhow::Result<Result<SearchState, OperatorResponse>> {
        let names = searches::names(&self.dir)?;
        let found = match wanted {
            Some(wanted) => names.iter().find(|name| *name == wanted),
            None => names.first().filter(|_| names.len() == 1),
        };
        match found {
            Some(name) => self.read_search(name).map(Ok),
            None => Ok(Err(OperatorResponse::NotFound(no_search(wanted, names.iter())))),
        }
    }

    fn read_search(&self, name: &str) -> anyhow::Result<SearchState> {
        // In its directory, wherever its trials are.
        let store = (self.open)(&searches::dir_of(&self.dir, name), None)?;
        Ok(SearchState::fold(&journal::read(store.journal())?)?)
    }
}
