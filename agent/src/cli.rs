//! The command line: arguments as typed. What they do is in `commands`.

mod doctor;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use anabranch_io::cli::{self, LogArgs, OutputArgs};
use anabranch_io::web::listen_address;
use clap::{Args, Parser, Subcommand};

use crate::commands;
use crate::config::RunsChoice;
use crate::device;
use crate::encode::cuda::EncoderPlace;
use crate::manners::{MaxLoad, Nice, QuietHours};
use crate::size::Size;
pub(crate) use doctor::DoctorArgs;

/// Variable that `--dir` falls back to.
const DIR_ENV: &str = "ANABRANCH_AGENT_DIR";

const EXIT_CODES: &str = "\
Exit codes:
   0  done; for `run`: the run has ended, or SIGTERM parked it
   1  anything that has no code of its own
   2  wrong use of the command line
   3  agent.toml or the keys in tls/ are missing, unreadable or wrong
   4  the coordinator does not answer, or no agent runs here
   5  identity refused: token, CA, revoked, or one certificate in two processes
   6  storage: no space, failed sync, permission, corrupt
   7  the directory is in use by another process
   8  shard missing, unreadable or unfit for the model
   9  protocol versions do not match
  10  the trainer's model is not the run's
  12  a certificate is not valid at this machine's clock
  14  the trainer cannot be started, or is of no use";

const EXAMPLES: &str = "\
From a token to training:
  anabranch-agent doctor --token-file token.txt --dir agent
  anabranch-agent join --token anb1-... --dir agent
  anabranch-agent shard inspect train.csv
  anabranch-agent run --dir agent --shard train.csv
  anabranch-agent status --dir agent

`run` reconnects for as long as it takes; finished work is kept on disk until
the coordinator has decided on it.
";

/// Trains where the data is: takes a model, trains it on a local shard, and sends the compressed difference.
#[derive(Debug, Parser)]
#[command(name = "anabranch-agent", version, max_term_width = 110)]
#[command(after_help = "Exit codes and examples: --help", after_long_help = format!("{EXAMPLES}\n{EXIT_CODES}"))]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Enrol with a join token: makes a key here and gets a certificate for it
    Join(JoinArgs),
    /// Train and evaluate until the run ends, or until SIGTERM
    ///
    /// SIGTERM, Ctrl-C or SIGHUP (the terminal closes; ignored under nohup) stops the agent in order, also while it
    /// starts: with exit code 0, its trainer and all that the trainer has started ended. A second SIGTERM or
    /// Ctrl-C stops it at once.
    Run(Box<RunArgs>),
    /// Show what the agent is doing, or what its store holds when it is stopped
    Status(StatusArgs),
    /// Change the addresses under which an agent that has joined finds its coordinator
    SetCoordinators(SetCoordinatorsArgs),
    /// Check this machine and its line to a coordinator, before or after joining: each line says what to do
    ///
    /// Checks the address, UDP, TLS, versions, clocks, path, rate, certificate, membership, disk, memory and device, and
    /// estimates the time to the first update. Sends about 0.8 MB, writes 34 MB to the disk of --dir and removes them, and
    /// changes nothing: neither there nor at the coordinator.
    Doctor(DoctorArgs),
    /// Look into a shard, or cut a data set into shards
    #[command(subcommand, visible_alias = "shards")]
    Shard(ShardVerb),
    /// Show the processors and GPUs of this machine, and what this build can train on
    #[command(after_help = "Examples:
  anabranch-agent devices
  anabranch-agent devices --json")]
    Devices(DevicesArgs),
    /// Look at the GPUs, and tell the process that started this one
    #[command(hide = true)]
    ProbeGpus,
    /// Compute a little on a GPU, and tell the process that started this one
    #[command(hide = true)]
    ProbeDevice {
        /// Which
        device: device::GpuId,
    },
    /// Be the native trainer of an agent that runs with --isolate
    #[command(hide = true)]
    Trainer(TrainerArgs),
    /// Write the manual pages of this program, one for each verb
    #[command(after_help = "Example:
  anabranch-agent man --out ~/.local/share/man/man1")]
    Man {
        /// Folder to write them to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print a script that completes commands in a shell
    #[command(after_help = "Example:
  anabranch-agent completions bash \\
      > ~/.local/share/bash-completion/completions/anabranch-agent")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// The agent's directory.
#[derive(Debug, Args)]
pub(crate) struct DirArgs {
    /// Directory of the agent, made by `join`
    #[arg(long, value_name = "DIR", env = DIR_ENV)]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "All addresses must lead to the same coordinator, or to one with the same CA.
They are tried in turn; the one that worked last comes first.

Example:
  anabranch-agent set-coordinators --dir agent \\
      trainer.example.org:4433 10.0.0.7:4433")]
pub(crate) struct SetCoordinatorsArgs {
    #[command(flatten)]
    pub(crate) dir: DirArgs,
    /// Addresses of the coordinator, at most 8, in the order in which they are tried
    #[arg(value_name = "HOST:PORT", required = true)]
    pub(crate) addresses: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "A join that broke off can be repeated: the same key gets the same certificate.

Example:
  anabranch-agent join --token anb1-... --dir agent")]
pub(crate) struct JoinArgs {
    /// The token that `anabranch-coordinator token create` printed
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ANABRANCH_TOKEN",
        hide_env_values = true,
        required_unless_present = "if_missing"
    )]
    pub(crate) token: Option<String>,
    /// Directory to make
    #[arg(long, value_name = "DIR", env = DIR_ENV)]
    pub(crate) dir: PathBuf,
    /// Do nothing where DIR has an agent already: no token is needed then. For scripts
    #[arg(long)]
    pub(crate) if_missing: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Options win over agent.toml.

Examples:
  anabranch-agent run --dir agent --shard train.csv
  anabranch-agent run --dir agent --shard mnist/agent-0 --eval-shard mnist/test
  anabranch-agent run --dir judge --eval-shard test.csv      # only evaluates
  anabranch-agent run --dir agent --shard books/             # text, for a gpt
  anabranch-agent run --dir helper --pod-listen 10.0.0.7:4440  # only helps
  anabranch-agent run --dir agent --shard train.csv --runs all  # every run
  anabranch-agent run --dir agent --shard data -- python3 train.py")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) dir: DirArgs,
    /// What to train on: a CSV file, a directory with a CSV file or a pair of IDX files, or a folder of text
    #[arg(long, value_name = "PATH")]
    pub(crate) shard: Option<PathBuf>,
    /// What to evaluate on
    #[arg(long, value_name = "PATH")]
    pub(crate) eval_shard: Option<PathBuf>,
    /// Name of the label column in a CSV file [default: label]
    #[arg(long, value_name = "NAME")]
    pub(crate) label_column: Option<String>,
    /// Leave this column of a CSV file out; '' is a column without a name (may be given several times)
    #[arg(long = "drop-column", value_name = "NAME")]
    pub(crate) drop_columns: Vec<String>,
    /// Device for the native models: auto, cpu, or a GPU backend of this build with a number, like cuda:1. A GPU
    /// implies --isolate [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<device::Choice>,
    /// Where updates are encoded: auto is on the NVIDIA GPU that trains, else by the agent [default: auto]
    #[arg(long, value_name = "PLACE")]
    pub(crate) encoder: Option<EncoderPlace>,
    /// Threads for the maths [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Train in a process of its own: a crash or a hang there costs one local round
    #[arg(long, conflicts_with = "trainer")]
    pub(crate) isolate: bool,
    /// Write a long round to disk this often, to resume it when the agent was killed; 0: never [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) checkpoint_s: Option<u64>,
    /// Ask for the next lease only when a round is over, not while it is computed
    #[arg(long)]
    pub(crate) no_overlap: bool,
    /// Take part in further runs of the coordinator, beside the one that was joined: all, or names like digits,text. They
    /// share the device by weight. Goes on until it is stopped. Not together with --pod-listen
    #[arg(long, value_name = "all|NAME,...")]
    pub(crate) runs: Option<RunsChoice>,
    /// Serve figures for Prometheus over HTTP at a port of the loopback interface, or at an address like 10.0.0.7:9464 (any
    /// client that reaches it reads them)
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = listen_address)]
    pub(crate) metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) pod: PodArgs,
    #[command(flatten)]
    pub(crate) manners: MannersArgs,
    #[command(flatten)]
    pub(crate) experiment: ExperimentArgs,
    /// A program that trains instead of the native models, and its arguments
    /// (it speaks docs/trainer-protocol.md)
    #[arg(last = true, value_name = "TRAINER", conflicts_with_all = ["label_column", "drop_columns"])]
    pub(crate) trainer: Vec<OsString>,
}

/// Where an agent is reached by other members of pods.
#[derive(Debug, Clone, Args)]
#[command(
    next_help_heading = "Pods (agents that compute one round together, where the run has [pod]; with a program: docs/trainer-protocol.md, Stages)"
)]
pub(crate) struct PodArgs {
    /// Join pods, and listen for their other members at this address, like 10.0.0.7:4440 (UDP). Without a shard this
    /// agent only helps others
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) pod_listen: Option<SocketAddr>,
    /// Where other members reach this agent, like clinic.example:4440 [default: the address of --pod-listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) pod_advertise: Option<String>,
    /// The site that this agent is of: where the run has pods of replicas, agents of one site that have a training shard train
    /// together [default: the site without a name]
    #[arg(long, value_name = "NAME")]
    pub(crate) site: Option<String>,
}

/// What the hidden verb `trainer` needs beside what the agent tells it.
#[derive(Debug, Args)]
pub(crate) struct TrainerArgs {
    /// Name of the label column in a CSV file
    #[arg(long, value_name = "NAME")]
    pub(crate) label_column: Option<String>,
    /// Leave this column of a CSV file out; '' is a column without a name (may be given several times)
    #[arg(long = "drop-column", value_name = "NAME")]
    pub(crate) drop_columns: Vec<String>,
    /// The GPU to train on
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<device::GpuId>,
    /// Where to encode what was trained
    #[arg(long, value_name = "PLACE")]
    pub(crate) encoder: Option<EncoderPlace>,
}

/// What a volunteer's machine keeps for its owner.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Manners (no new work is taken on; a round under way is finished and sent)")]
pub(crate) struct MannersArgs {
    /// Never more threads for the maths than this, whatever --threads or agent.toml says
    #[arg(long, value_name = "N")]
    pub(crate) max_threads: Option<NonZeroU16>,
    /// The most memory for the process that trains, its shards included, like 512M or 2G: larger batches are
    /// computed in parts [default: what is free]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_memory: Option<Size>,
    /// Lower the priority of the maths by this much, from 0 to 19
    #[arg(long, value_name = "N")]
    pub(crate) nice: Option<Nice>,
    /// No new work between these times, in UTC: 08:00-18:00
    #[arg(long, value_name = "FROM-TO")]
    pub(crate) quiet_hours: Option<QuietHours>,
    /// No new work while the machine runs on its battery
    #[arg(long)]
    pub(crate) pause_on_battery: bool,
    /// No new work while the 1-minute load average is above this (the agent's own threads count)
    #[arg(long, value_name = "LOAD")]
    pub(crate) max_load: Option<MaxLoad>,
    /// Where the power supplies are described
    #[arg(long, value_name = "DIR", default_value = "/sys/class/power_supply", hide = true)]
    pub(crate) power_supplies: PathBuf,
    /// Where the load averages are
    #[arg(long, value_name = "FILE", default_value = "/proc/loadavg", hide = true)]
    pub(crate) loadavg: PathBuf,
}

/// Artificial slowness.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Experiments (artificial slowness; never needed for real work)")]
pub(crate) struct ExperimentArgs {
    /// Make every local round take this many times as long as its maths
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = slow_factor, hide_default_value = true)]
    pub(crate) simulate_slow: f64,
    /// Make every local round take at least this long
    #[arg(long, value_name = "MS", default_value_t = 0, hide_default_value = true)]
    pub(crate) min_round: u64,
}

fn slow_factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err("a number from 1 to 1000000".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) dir: DirArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShardVerb {
    /// Count examples and classes, and show the first problems with their line numbers
    #[command(after_help = "Examples:
  anabranch-agent shard inspect train.csv
  anabranch-agent shard inspect mnist/ --json
  anabranch-agent shard inspect books/ --context 128")]
    Inspect(InspectArgs),
    /// Cut a data set into one directory an agent, evenly or by a Dirichlet distribution over labels
    ///
    /// Text is split evenly by bytes: whole files where there are enough of them, stretches of bytes
    /// where there are not.
    #[command(after_help = "Examples:
  anabranch-agent shard split digits.csv --agents 4 --alpha 0.3 --seed 7 \\
      --eval-rows 360 --out shards
  anabranch-agent shard split mnist/ --agents 3 --iid --seed 1 --out shards
  anabranch-agent shard split books/ --agents 3 --iid --seed 1 --out shards")]
    Split(SplitArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A CSV file, a directory with a CSV file or a pair of IDX files, or a folder of text
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Bytes of the windows that text is counted in [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16_384))]
    pub(crate) context: Option<u16>,
    /// Name of the label column in a CSV file
    #[arg(long, value_name = "NAME")]
    pub(crate) label_column: Option<String>,
    /// Leave this column of a CSV file out; '' is a column without a name (may be given several times)
    #[arg(long = "drop-column", value_name = "NAME")]
    pub(crate) drop_columns: Vec<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("how").required(true).args(["alpha", "iid"]))]
pub(crate) struct SplitArgs {
    /// The data set
    #[arg(value_name = "DATASET")]
    pub(crate) dataset: PathBuf,
    /// How many shards
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) agents: u32,
    /// Concentration of the Dirichlet distribution: the smaller, the more one-sided the shards
    #[arg(long, value_name = "ALPHA")]
    pub(crate) alpha: Option<f64>,
    /// Evenly, at random
    #[arg(long)]
    pub(crate) iid: bool,
    /// Seed: the same data set and seed give the same shards
    #[arg(long, value_name = "N")]
    pub(crate) seed: u64,
    /// Directory to make
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Keep this many examples apart for testing, in `eval/` (not of text)
    #[arg(long, value_name = "N")]
    pub(crate) eval_rows: Option<u64>,
    /// Name of the label column in a CSV file
    #[arg(long, value_name = "NAME")]
    pub(crate) label_column: Option<String>,
    /// Leave this column of a CSV file out; '' is a column without a name (may be given several times)
    #[arg(long = "drop-column", value_name = "NAME")]
    pub(crate) drop_columns: Vec<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Runs one command line, the program's name included, to its end.
pub fn main(args: impl IntoIterator<Item = OsString>) -> std::process::ExitCode {
    cli::main(args, commands::execute)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn examples_can_be_copied_from_a_narrow_terminal() {
        assert_eq!(cli::lines_that_break(&Cli::command()), [""; 0]);
    }

    #[test]
    fn wrong_use_is_refused() {
        let parse = |args: &[&str]| Cli::try_parse_from(["anabranch-agent"].iter().chain(args)).map(|_| ());
        assert!(parse(&["run", "--dir", "d", "--shard", "s", "--min-round", "250"]).is_ok());
        assert!(parse(&["run", "--dir", "d", "--simulate-slow", "0.5"]).is_err(), "nothing makes the maths faster");
        assert!(parse(&["run", "--dir", "d", "--threads", "0"]).is_err());
        for size in ["0", "lots", "2X", "-1G"] {
            let error = parse(&["run", "--dir", "d", &format!("--max-memory={size}")]).expect_err(size).to_string();
            assert!(error.contains("not a size of memory above 0"), "{error}");
        }
        let tpu = parse(&["run", "--dir", "d", "--device", "tpu"]).expect_err("there is no such device").to_string();
        assert!(tpu.contains("unknown device `tpu`, expected auto, cpu, cuda,"), "{tpu}");
        #[cfg(not(feature = "cuda"))]
        {
            let cuda = parse(&["run", "--dir", "d", "--device", "cuda:1"]).expect_err("no such backend").to_string();
            assert!(cuda.contains("this build has no CUDA backend: build the agent with `--features cuda`"), "{cuda}");
        }
        let split = ["shard", "split", "x", "--agents", "3", "--seed", "1", "--out", "o"];
        let with = |more: &[&str]| parse(&[&split[..], more].concat());
        assert!(with(&["--iid"]).is_ok() && with(&["--alpha", "0.3"]).is_ok());
        assert!(with(&[]).is_err() && with(&["--iid", "--alpha", "0.3"]).is_err(), "one of the two");
    }

    #[test]
    fn every_exit_code_of_an_agent_is_in_the_help() {
        use anabranch_io::exit::ExitCode as Code;
        let codes = [
            Code::Ok,
            Code::Other,
            Code::Usage,
            Code::Config,
            Code::Unavailable,
            Code::Identity,
            Code::Storage,
            Code::Locked,
            Code::Shard,
            Code::Protocol,
            Code::Model,
            Code::Clock,
            Code::Trainer,
        ];
        for code in codes {
            let line = format!("\n{:>4}  ", code.as_u8());
            assert!(EXIT_CODES.contains(&line), "exit code {} is not in the help", code.as_u8());
        }
    }
}
