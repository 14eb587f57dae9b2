//! Which runs there are: one stream on an agent's connection, beside the control streams of its runs.
//!
//! ```text
//!  agent                                   coordinator
//!   │ ── Propose{Runs} ──────────────────────► │
//!   │ ── RunsWanted ─────────────────────────► │
//!   │ ◄──────────────────────── RunsListed ─── │  at once, and again whenever it changes
//! ```

use crate::ids::RunId;
use crate::limits::{NAME_BYTES, RUN_WEIGHT, RUNS_PER_CONNECTION};

/// The runs that an agent would take part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunsWanted {
    /// All that it may.
    All,
    /// Those with these names or ids.
    Named(Vec<String>),
}

/// The runs that an agent may take part in at present, of those that it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunsListed {
    /// By id, at most `limits::RUNS_PER_CONNECTION`.
    pub runs: Vec<RunInfo>,
}

/// A run that an agent may take part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// Its id.
    pub run: RunId,
    /// Its name.
    pub name: String,
    /// Its share of a device beside other runs: 1 to `limits::RUN_WEIGHT`.
    pub weight: u32,
}

/// Why a wish or a list is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunsError {
    /// Too many names or runs.
    #[error("{0} runs, more than {RUNS_PER_CONNECTION}")]
    TooMany(usize),
    /// A name that no run has.
    #[error("a run's name of {0} bytes, expected 1 to {NAME_BYTES}")]
    Name(usize),
    /// A weight out of range.
    #[error("weight {weight} of run {run}, expected 1 to {RUN_WEIGHT}")]
    Weight {
        /// The run.
        run: RunId,
        /// Its weight.
        weight: u32,
    },
    /// A run that is listed twice.
    #[error("run {0} is listed twice, or out of order")]
    Order(RunId),
}

impl RunsWanted {
    /// Checks the number and the length of the names.
    ///
    /// # Errors
    /// See [`RunsError`].
    pub fn validate(&self) -> Result<(), RunsError> {
        let Self::Named(names) = self else { return Ok(()) };
        check_count(names.len())?;
        names.iter().try_for_each(|name| check_name(name))
    }

    /// Whether the run with this id and name is wanted.
    #[must_use]
    pub fn wants(&self, run: RunId, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|wanted| wanted == name || *wanted == run.to_string()),
        }
    }
}

impl RunsListed {
    /// Checks the number of runs, their order, names and weights.
    ///
    /// # Errors
    /// See [`RunsError`].
    pub fn validate(&self) -> Result<(), RunsError> {
        check_count(self.runs.len())?;
        if let Some(pair) = self.runs.windows(2).find(|pair| pair[0].run >= pair[1].run) {
            return Err(RunsError::Order(pair[1].run));
        }
        self.runs.iter().try_for_each(|info| {
            check_name(&info.name)?;
            let RunInfo { run, weight, .. } = *info;
            if (1..=RUN_WEIGHT).contains(&weight) { Ok(()) } else { Err(RunsError::Weight { run, weight }) }
        })
    }
}

fn check_count(count: usize) -> Result<(), RunsError> {
    if count <= RUNS_PER_CONNECTION as usize { Ok(()) } else { Err(RunsError::TooMany(count)) }
}

fn check_name(name: &str) -> Result<(), RunsError> {
    if (1..=NAME_BYTES).contains(&name.len()) { Ok(()) } else { Err(RunsError::Name(name.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(byte: u8, name: &str, weight: u32) -> RunInfo {
        RunInfo { run: RunId([byte; 16]), name: name.to_owned(), weight }
    }

    #[test]
    fn a_list_is_in_order_and_has_names_and_weights() {
        let check = |runs: Vec<RunInfo>| RunsListed { runs }.validate();
        assert_eq!(check(vec![info(1, "a", 1), info(2, "b", RUN_WEIGHT)]), Ok(()));
        let run = RunId([2; 16]);
        assert_eq!(check(vec![info(2, "a", 1), info(2, "b", 1)]), Err(RunsError::Order(run)));
        assert_eq!(check(vec![info(2, "a", 0)]), Err(RunsError::Weight { run, weight: 0 }));
        assert_eq!(check(vec![info(2, "", 1)]), Err(RunsError::Name(0)));
        let most = RUNS_PER_CONNECTION as usize;
        let many = (0..=most).map(|_| info(2, "a", 1)).collect();
        assert_eq!(check(many), Err(RunsError::TooMany(most + 1)));
    }

    #[test]
    fn a_run_is_wanted_by_its_name_or_by_its_id() {
        let run = RunId([0xAB; 16]);
        let named = |name: &str| RunsWanted::Named(vec!["other".to_owned(), name.to_owned()]);
        assert!(RunsWanted::All.wants(run, "digits") && named("digits").wants(run, "digits"));
        assert!(named(&run.to_string()).wants(run, "digits") && !named("digit").wants(run, "digits"));
        assert_eq!(named(&"x".repeat(NAME_BYTES + 1)).validate(), Err(RunsError::Name(NAME_BYTES + 1)));
        assert_eq!(named("digits").validate(), Ok(()));
    }
}
