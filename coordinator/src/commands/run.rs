//! `run`: serve until the run ends or is parked.

use std::time::Duration;

use anabranch_common::limits;
use anabranch_io::cli::LogArgs;
use anabranch_io::exit::{self, ExitCode};
use anabranch_io::signals::Signals;
use anyhow::Context as _;

use super::reach;
use crate::cli::RunArgs;
use crate::clock;
use crate::driver::{self, RunOptions, WatchOptions};
use crate::{heap, runs};

const PAUSE: Duration = Duration::from_millis(250);

pub(super) fn run(args: &RunArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut signals = Signals::install().context("no signal handler")?;
    let config = reach::load_config(&args.dir.dir)?;
    log.start(config.log.format, 0)?;
    let has_several = args.stay || runs::names(&args.dir.dir).is_ok_and(|names| !names.is_empty());
    if has_several && heap::is_as_by_default() {
        let error = heap::start_anew();
        tracing::warn!(%error, "idle runs will take more memory");
    }
    for _ in 1..limits::LOCK_ATTEMPTS {
        match serve(args, &mut signals) {
            Err(error) if exit::code_of(&error) == ExitCode::Locked => std::thread::sleep(PAUSE),
            ended => return ended,
        }
    }
    serve(args, &mut signals)
}

/// The directory is locked before anything else happens to it, so that a second attempt starts from the same state.
fn serve(args: &RunArgs, signals: &mut Signals) -> anyhow::Result<()> {
    let dir = args.dir.dir.clone();
    let config = reach::load_config(&dir)?;
    let mut identity = reach::load_identity(&dir)?;
    if let Err(error) = identity.settle() {
        tracing::warn!(%error, "the files of the new CA are not in their place yet; the next start puts them there");
    }
    let renewed = identity.renew(&config.server.certificate_names(), clock::unix_ms()).map_err(reach::identity_fail)?;
    for name in renewed {
        tracing::info!("renewed the {name}'s certificate");
    }
    let RunArgs { stay, metrics, page, ref tensorboard, .. } = *args;
    let watch = WatchOptions { metrics, page, tensorboard: tensorboard.clone() };
    driver::run(RunOptions { dir, config, identity, stay, watch }, signals)
}
