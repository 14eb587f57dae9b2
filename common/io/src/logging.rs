//! Logs: to stderr, for people or as JSON lines, filtered by verbosity or by `ANABRANCH_LOG`.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Environment variable with a filter (a level, or a level for each target: for example `anabranch_agent=debug,quinn=info`). It wins
/// over the verbosity on the command line.
pub const FILTER_ENV: &str = "ANABRANCH_LOG";

/// Shape of log lines, on a command line and in a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; in colour if stderr is a terminal and `NO_COLOR` is not set.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be read.
    #[error("{FILTER_ENV} is not a log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A logger is set up already.
    #[error("logging was set up twice")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The filter that belongs to a verbosity: 0 is our own `info` and others' `warn`; each step up or down is one level.
fn directives(verbosity: i8) -> &'static str {
    match verbosity {
        ..=-2 => "error",
        -1 => "warn",
        0 => "warn,anabranch=info",
        1 => "info,anabranch=debug",
        2.. => "debug,anabranch=trace",
    }
}

fn filter(from_env: Option<&str>, verbosity: i8) -> Result<Targets, LoggingError> {
    let text = from_env.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| directives(verbosity));
    Ok(text.parse::<Targets>()?)
}

/// Sets up the process's logger. Call once, first thing in `main`.
///
/// # Errors
/// `ANABRANCH_LOG` is not a filter, or a logger is set up already.
pub fn init(format: LogFormat, verbosity: i8) -> Result<(), LoggingError> {
    let filter = filter(std::env::var(FILTER_ENV).ok().as_deref(), verbosity)?;
    // https://no-color.org: set and not empty means no colour.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let ansi = !plain && std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Human => lines.with_ansi(ansi).with_target(verbosity > 0).boxed(),
        LogFormat::Json => lines.with_ansi(false).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines).with(filter).try_init()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_wins_and_nonsense_is_an_error() {
        assert_eq!(filter(None, 0).expect("ours").to_string(), "anabranch=info,warn");
        assert_eq!(filter(Some(" "), -3).expect("ours").to_string(), "error");
        assert_eq!(filter(Some("quinn=trace"), 0).expect("valid").to_string(), "quinn=trace");
        assert!(matches!(filter(Some("quinn=loud"), 0), Err(LoggingError::Filter(_))));
    }
}
