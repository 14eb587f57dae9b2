//! An agent with a trainer of the tests.

use std::path::Path;
use std::time::Duration;

use anabranch_agent::worker::{Pace, Shards, TrainerFactory};
use anabranch_io::logging::{self, LogFormat};

/// Be the agent of the directory `dir` until it ends. It logs JSON, calls its device `device`, and takes at least
/// `min_round_ms` for a local round.
///
/// # Errors
/// It cannot start, or ends as nobody asked it to; with the exit code that `run` has for it.
pub fn be_agent(
    dir: &Path,
    device: &str,
    min_round_ms: u64,
    work: impl FnOnce() -> anyhow::Result<(Shards, TrainerFactory)>,
) -> anyhow::Result<()> {
    logging::init(LogFormat::Json, 0)?;
    let (shards, factory) = work()?;
    let pace = Pace { min_round: Duration::from_millis(min_round_ms), ..Pace::default() };
    anabranch_agent::run_with(dir, shards, factory, device, pace)
}
