//! Scenarios: worlds that are written down rather than drawn.

use std::path::Path;

use anabranch_common::limits;
use anabranch_io::text_file;
use anyhow::Context as _;

use super::schedule::Schedule;

/// Reads a scenario: a [`Schedule`] as TOML.
///
/// # Errors
/// The file cannot be read, or says something else; the message has the line.
pub fn read(path: &Path) -> anyhow::Result<Schedule> {
    let text = text_file::read(path, limits::CONFIG_FILE_BYTES);
    let text = text.with_context(|| format!("cannot read the scenario {}", path.display()))?;
    let schedule: Schedule = toml::from_str(&text).with_context(|| format!("{} is not a scenario", path.display()))?;
    anyhow::ensure!(!schedule.agents.is_empty(), "{} has no agents", path.display());
    anyhow::ensure!(schedule.params > 0, "{} has a model without parameters", path.display());
    Ok(schedule)
}

/// Writes a scenario.
///
/// # Errors
/// None but what serialising plain values has.
pub fn to_toml(schedule: &Schedule) -> anyhow::Result<String> {
    Ok(toml::to_string(schedule)?)
}
