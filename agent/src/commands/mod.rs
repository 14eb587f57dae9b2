//! One file a verb, and what they share.

mod device;
mod devices;
mod doctor;
mod join;
mod pod;
pub(crate) mod run;
mod set_coordinators;
mod shard;
mod status;
mod trainer;

use anabranch_io::cli::print;
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::logging::LogFormat;
use clap::CommandFactory as _;

use crate::cli::{Cli, ShardVerb, Verb};
use crate::config::ConfigError;
use crate::driver::StartError;
use crate::pod::LinksError;
use crate::shard::ShardError;
use crate::train::process::ProcessError;
use crate::transport::DialError;

/// Runs a command to its end.
///
/// # Errors
/// Whatever went wrong, with its exit code inside (see `anabranch_io::exit`).
pub(crate) fn execute(cli: Cli) -> anyhow::Result<()> {
    cli.log.start(LogFormat::Human, 0)?;
    match cli.verb {
        Verb::Join(args) => join::join(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Status(args) => status::status(&args),
        Verb::SetCoordinators(args) => set_coordinators::set_coordinators(&args),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Shard(ShardVerb::Inspect(args)) => shard::inspect(&args),
        Verb::Shard(ShardVerb::Split(args)) => shard::split(&args),
        Verb::Devices(args) => devices::devices(&args),
        Verb::ProbeGpus => devices::probe_gpus(),
        Verb::ProbeDevice { device } => device::probe(device),
        Verb::Trainer(args) => trainer::trainer(&args),
        Verb::Man { out } => {
            let pages = anabranch_io::manual::write(Cli::command(), &out)?;
            print(&format!("{pages} manual pages in {}\n", out.display()))
        }
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "anabranch-agent", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Writes JSON, indented, to standard output.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// A connection's problem, with the code that its cause has.
fn dial_fail(error: DialError) -> anyhow::Error {
    match error {
        DialError::Bind(error) => error.into(),
        DialError::Connect(error) => error.into(),
        DialError::Handshake(error) => error.into(),
        DialError::Frame(error) => error.into(),
        DialError::Tls(error) => identity_fail(&error).into(),
    }
}

/// Keys and certificates in the directory that cannot be used.
fn identity_fail(error: &dyn std::fmt::Display) -> Fail {
    Fail::new(ExitCode::Config, error.to_string())
        .help("restore tls/ from a backup, or join again with a new token in another directory")
}

fn start_fail(error: StartError) -> anyhow::Error {
    match error {
        StartError::Identity(error) => identity_fail(&error).into(),
        StartError::Storage(error) => error.into(),
        StartError::System(error) => error.into(),
        StartError::Dial(error) => dial_fail(error),
        StartError::Metrics(error) => {
            let help =
                "give --metrics (or `metrics` in agent.toml) an address of this machine with a port that is free";
            Fail::new(ExitCode::Usage, error.to_string()).help(help).into()
        }
        StartError::Links(LinksError::Bind(error)) => {
            let help = format!("--pod-listen: {}", error.help());
            Fail::new(ExitCode::Usage, error.to_string()).help(help).into()
        }
        StartError::Links(error) => identity_fail(&error).into(),
    }
}

fn config_fail(error: ConfigError) -> Fail {
    let fail = Fail::new(ExitCode::Config, error.to_string());
    match error {
        ConfigError::Missing { .. } => fail.help("enrol first: anabranch-agent join --token TOKEN --dir DIR"),
        ConfigError::Unreadable { path, source } => fail.help(source.help(&path)).because(source),
        ConfigError::Encoding { path, encoding } => fail.help(encoding.help(&path)),
        ConfigError::Line { .. } => fail.help("mend that line; `anabranch-agent run --help` lists what can be set"),
    }
}

fn process_fail(error: ProcessError) -> Fail {
    let help = match &error {
        ProcessError::Start { .. } => "give a program that exists and may be executed, and its arguments, after `--`",
        ProcessError::Scratch(_) => "check the agent's directory and its disk",
        // The caller ends with code 0.
        ProcessError::Stopped => "start the agent again",
        ProcessError::Unusable(_) => {
            "its own output is in the log above; docs/trainer-protocol.md says what is expected of it"
        }
    };
    Fail::new(ExitCode::Trainer, error.to_string()).help(help).because(error)
}

fn shard_fail(error: ShardError) -> Fail {
    let help = match &error {
        ShardError::Missing { .. } => {
            "give a CSV file, a directory with a CSV file or a pair of IDX files, or a folder of text"
        }
        ShardError::Permission { .. } => "run as a user that may read it",
        ShardError::Empty { .. } => "a shard needs at least one example",
        ShardError::TooShort { .. } => "put more text into it, or train a model with a smaller context",
        ShardError::Corrupt { .. } => "`anabranch-agent shard inspect PATH` lists the first problems",
        ShardError::LabelColumn { .. } => "name the column with --label-column, or `label_column` in agent.toml",
        ShardError::DropColumn { .. } => "name columns of a shard with --drop-column, or `drop_columns` in agent.toml",
        ShardError::NoColumns { .. } => {
            "only CSV shards have columns: leave out --drop-column, and `drop_columns` in agent.toml"
        }
        ShardError::OtherColumns { .. } => "evaluate on a file with the columns that are trained on",
        ShardError::Shape { .. } | ShardError::LabelRange { .. } => {
            "this shard belongs to another model; ask who runs the coordinator for the shape it takes"
        }
        ShardError::TooLarge { .. } => "cut it into smaller shards",
        ShardError::NotEmpty { .. } => "choose a directory that does not exist",
        ShardError::Split { .. } => {
            "ask for fewer shards or for fewer rows kept apart; text is split with --iid and without --eval-rows"
        }
        ShardError::Io { .. } => "check the path and the disk",
    };
    Fail::new(ExitCode::Shard, error.to_string()).help(help).because(error)
}
