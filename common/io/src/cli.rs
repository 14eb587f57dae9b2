//! What the two daemons' command lines share: logging options, how a command line is run, and what it prints.

use std::ffi::OsString;
use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::{Args, Command, Parser};

use crate::exit::{self, ExitCode, Fail};
use crate::logging::{self, LogFormat};
use crate::signals;
use crate::terminal::visible;

/// Logging options, which every verb takes.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Log less: warnings only; twice for errors only
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    quiet: u8,
    /// Shape of log lines on standard error [default: what the configuration file says, else human]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl LogArgs {
    /// Starts logging: in the shape of the command line, else in `format`; `verbosity` is what no option means for this
    /// verb (0 is normal, above is more, below is less).
    ///
    /// # Errors
    /// `ANABRANCH_LOG` is not a filter, or a logger is set up already.
    pub fn start(&self, format: LogFormat, verbosity: i8) -> Result<(), Fail> {
        let steps = |count: u8| i8::try_from(count).unwrap_or(i8::MAX);
        let asked = steps(self.verbose).saturating_sub(steps(self.quiet));
        logging::init(self.log_format.unwrap_or(format), asked.saturating_add(verbosity))
            .map_err(|error| Fail::new(ExitCode::Usage, error.to_string()))
    }
}

/// How a verb prints what a script might read.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// Print JSON instead
    #[arg(long)]
    pub json: bool,
}

/// Runs one command line, the program's name included, to its end: `execute` does what it says, and its error is told
/// with its cause, its help and its exit code.
pub fn main<C: Parser>(
    args: impl IntoIterator<Item = OsString>,
    execute: impl FnOnce(C) -> anyhow::Result<()>,
) -> std::process::ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    signals::install_for_daemon(&args);
    let cli = match C::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed standard error.
            let _ = error.print();
            return std::process::ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match execute(cli) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => exit::report(&error).into(),
    }
}

/// Writes `text` to standard output, without control characters ([`visible`]). A reader that has seen enough (`| head`)
/// is no error.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(visible(text).as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Returns a number of bytes with a binary unit: `1.4 MiB`, or `17 B`.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let units = [(50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

/// Lines of a command's and its verbs' notes and examples that a terminal of 80 columns would break. A command that is
/// broken in the middle cannot be copied, so the tests of both command lines expect none.
#[must_use]
pub fn lines_that_break(command: &Command) -> Vec<String> {
    let notes = [command.get_after_help(), command.get_after_long_help()];
    let notes: String = notes.into_iter().flatten().map(|note| format!("{note}\n")).collect();
    let wide = notes.lines().filter(|line| line.chars().count() > 80).map(str::to_owned);
    wide.chain(command.get_subcommands().flat_map(lines_that_break)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_binary_unit() {
        let sizes = [0, 1023, 1024, 1_500_000, 3 << 29, u64::MAX].map(size_text);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.4 MiB", "1.5 GiB", "16384.0 PiB"]);
    }

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        log: LogArgs,
        #[arg(long)]
        fail: bool,
    }

    fn run(args: &[&str]) -> std::process::ExitCode {
        main(["program"].iter().chain(args).map(OsString::from), |line: Line| {
            assert_eq!(line.log.verbose, 2);
            if line.fail { Err(Fail::new(ExitCode::Locked, "as asked").into()) } else { Ok(()) }
        })
    }

    /// Guards the codes that scripts rely on: 0, 2 for wrong use, and that of the error.
    #[test]
    fn a_command_line_ends_with_the_code_of_what_happened() {
        let code = |code: ExitCode| format!("{:?}", std::process::ExitCode::from(code));
        assert_eq!(format!("{:?}", run(&["-vv"])), code(ExitCode::Ok));
        assert_eq!(format!("{:?}", run(&["-vv", "--fail"])), code(ExitCode::Locked));
        assert_eq!(format!("{:?}", run(&["-v", "-q"])), code(ExitCode::Usage), "more and less at once");
        assert_eq!(format!("{:?}", run(&["--log-format", "xml"])), code(ExitCode::Usage));
    }

    #[test]
    fn an_example_that_would_be_broken_is_found_in_any_verb() {
        let wide = "x".repeat(81);
        let command = Command::new("a").after_help("short").subcommand(Command::new("b").after_long_help(wide.clone()));
        assert_eq!(lines_that_break(&command), [wide]);
    }
}
