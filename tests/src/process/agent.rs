//! An agent with a trainer of the tests.

use std::path::Path;
use std::time::Duration;

use anabranch_agent::config::{AgentConfig, AgentDir};
use anabranch_agent::driver::Setup;
use anabranch_agent::identity::AgentKey;
use anabranch_agent::store::Ledger;
use anabranch_agent::worker::{Pace, Shards, TrainerFactory};
use anabranch_io::durable;
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
    durable::install_panic_policy();
    let dir = AgentDir::new(dir);
    let (shards, factory) = work()?;
    let setup = Setup {
        config: AgentConfig::read(&dir.config())?,
        key: AgentKey::read(&dir)?,
        ledger: Ledger::open(&dir.store())?,
        dir,
        shards,
        factory,
        device: device.to_owned(),
        pace: Pace { min_round: Duration::from_millis(min_round_ms), ..Pace::default() },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ending = runtime.block_on(anabranch_agent::serve(setup));
    runtime.shutdown_timeout(Duration::ZERO);
    anabranch_agent::finish(ending?)
}
