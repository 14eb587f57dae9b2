//! Logs: to stderr, for people or as JSON lines, filtered by verbosity or by `ANABRANCH_LOG`.

use std::fmt::Debug;
use std::io::{self, IsTerminal};

use serde::{Deserialize, Serialize};
use tracing::field::Field;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::terminal::{visible, visible_line};

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
    let ansi = !plain && io::stderr().is_terminal();
    tracing_subscriber::registry().with(lines(format, ansi, verbosity, io::stderr)).with(filter).try_init()?;
    Ok(())
}

/// Writes each event as one line to what `writer` makes, without control characters of text from outside.
fn lines<W: io::Write + 'static>(
    format: LogFormat,
    ansi: bool,
    verbosity: i8,
    writer: impl Fn() -> W + Send + Sync + 'static,
) -> Box<dyn Layer<Registry> + Send + Sync> {
    match format {
        LogFormat::Human => {
            let lines = fmt::layer().with_writer(writer).with_ansi(ansi).with_target(verbosity > 0);
            lines.fmt_fields(debug_fn(write_field).delimited(" ")).boxed()
        }
        LogFormat::Json => {
            let lines = fmt::layer().with_writer(move || Visible(writer())).with_ansi(false);
            lines.json().flatten_event(true).boxed()
        }
    }
}

/// Writes a field as tracing-subscriber does, which escapes some kinds of values only.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    let value = visible_line(&value);
    match field.name() {
        "message" => write!(writer, "{value}"),
        // What the log crate's events say of themselves.
        name if name.starts_with("log.") => Ok(()),
        name if writer.has_ansi_escapes() => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
        name => write!(writer, "{name}={value}"),
    }
}

/// Passes lines on as [`visible`] text. The formatter hands over each line in one piece.
struct Visible<W>(W);

impl<W: io::Write> io::Write for Visible<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(visible(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn the_environment_wins_and_nonsense_is_an_error() {
        assert_eq!(filter(None, 0).expect("ours").to_string(), "anabranch=info,warn");
        assert_eq!(filter(Some(" "), -3).expect("ours").to_string(), "error");
        assert_eq!(filter(Some("quinn=trace"), 0).expect("valid").to_string(), "quinn=trace");
        assert!(matches!(filter(Some("quinn=loud"), 0), Err(LoggingError::Filter(_))));
    }

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, ansi: bool, log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = lines(format, ansi, 0, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        String::from_utf8(kept.0.lock().clone()).expect("text")
    }

    /// Reasons of peers, words of trainers and names in files are logged, and a log is read on a terminal.
    #[test]
    fn an_event_is_one_line_that_a_terminal_only_shows() {
        const BAD: &str = "\x1b]0;title\x07\x1b[2J\u{9b}1m\r\n2026 INFO all is well\u{202e}\u{2028}";
        let log = || {
            let error = io::Error::other(BAD);
            tracing::warn!(why = BAD, %error, debug = ?BAD, display = %BAD, "said: {BAD}");
        };
        for (format, ansi) in [(LogFormat::Human, false), (LogFormat::Human, true), (LogFormat::Json, false)] {
            let text = logged(format, ansi, log);
            let plain = without_colours(&text);
            assert!(text.ends_with('\n') && text.matches('\n').count() == 1, "{text:?}");
            assert!(!plain.trim_end_matches('\n').contains(char::is_control), "{text:?}");
            assert!(!text.contains(['\u{202e}', '\u{2028}']) && text.contains("all is well"), "{text:?}");
            assert_eq!(text.contains('\x1b'), ansi, "{text:?}");
            if format == LogFormat::Json {
                let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                assert_eq!(value["why"], BAD);
            }
        }
    }

    /// The text without the formatter's colours, `ESC [ digits m`.
    fn without_colours(text: &str) -> String {
        let mut parts = text.split("\x1b[");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |plain, part| {
            let (code, rest) = part.split_once('m').expect("a colour");
            assert!(code.bytes().all(|byte| byte.is_ascii_digit()), "{part:?} is no colour");
            plain + rest
        })
    }
}
