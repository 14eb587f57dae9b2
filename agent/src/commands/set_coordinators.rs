//! `set-coordinators`: other addresses for an agent that has joined.

use std::path::Path;

use anabranch_common::limits;
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::text_file;
use anyhow::Context as _;

use super::config_fail;
use crate::cli::SetCoordinatorsArgs;
use crate::config::{Addresses, AgentConfig, AgentDir, with_addresses};
use crate::files::{self, PUBLIC};

/// Runs `set-coordinators`.
pub(super) fn set_coordinators(args: &SetCoordinatorsArgs) -> anyhow::Result<()> {
    let dir = AgentDir::new(&args.dir.dir);
    // One that cannot be read is told with its line before anything is changed.
    AgentConfig::read(&dir.config()).map_err(config_fail)?;
    let addresses = Addresses::new(args.addresses.clone());
    if let Some(problem) = addresses.problem() {
        let help = "give each as HOST:PORT; the first one is tried first";
        return Err(Fail::new(ExitCode::Usage, problem).help(help).into());
    }
    replace(&dir.config(), &addresses)?;
    super::print(&format!(
        "{} finds its coordinator at {addresses}\nan agent that runs takes this up at its next start\n",
        dir.path().display()
    ))
}

fn replace(path: &Path, addresses: &Addresses) -> anyhow::Result<()> {
    let text = text_file::read(path, limits::CONFIG_FILE_BYTES).with_context(|| path.display().to_string())?;
    let changed = with_addresses(path, &text, addresses).map_err(config_fail)?;
    files::write_atomic(path, changed.as_bytes(), PUBLIC)
        .with_context(|| format!("{} cannot be written", path.display()))
}
