//! The command line: arguments as typed. What they do is in `commands`.

mod page;
mod registry;
#[cfg(feature = "object-store")]
mod store;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use anabranch_common::ids::ModelVersion;
use anabranch_common::wire::operator::{OperatorRequest, RunRequest};
use anabranch_io::cli::{self, LogArgs, OutputArgs};
use anabranch_io::web::listen_address;
use clap::{Args, Parser, Subcommand};

#[cfg(feature = "object-store")]
pub(crate) use self::store::StoreVerb;
use crate::commands;
use crate::config;
pub(crate) use page::{PageTokenVerb, PageVerb};
pub(crate) use registry::{AgentsVerb, CaVerb, TokenVerb};

/// Variable that `--dir` falls back to.
const DIR_ENV: &str = "ANABRANCH_COORDINATOR_DIR";

const EXIT_CODES: &str = "\
Exit codes:
   0  done; for `run`: the run ended, or was parked by SIGTERM
   1  anything that has no code of its own
   2  wrong use of the command line
   3  run.toml or the keys in tls/ are missing, unreadable or wrong
   4  no coordinator answers, or what was asked is not possible now
   5  identity refused: token, CA, certificate, role
   6  storage: no space, failed sync, permission, corrupt
   7  the directory is in use by another process
   9  protocol versions do not match
  10  manifest or model does not match the run
  11  the model is no longer finite
  12  a certificate is not valid at this machine's clock
  13  port taken, or address not available
  15  another coordinator has taken the run's store over";

const EXAMPLES: &str = "\
From nothing to a run:
  anabranch-coordinator init --dir trainer --san trainer.example.org
  anabranch-coordinator run --dir trainer
  anabranch-coordinator token create --dir trainer --name clinic
  anabranch-coordinator status --dir trainer --watch
  anabranch-coordinator checkpoint export --dir trainer --out model.safetensors

Several runs in one coordinator:
  anabranch-coordinator runs create --dir trainer wards --config wards.toml
  anabranch-coordinator runs list --dir trainer
  anabranch-coordinator status --dir trainer --run wards

A search over configurations:
  anabranch-coordinator search start --dir trainer lr.toml
  anabranch-coordinator search status --dir trainer lr --watch
  anabranch-coordinator search export --dir trainer lr --out best.safetensors

From another machine, with copies of tls/operator.crt, operator.key and ca.crt:
  anabranch-coordinator status --connect trainer.example.org:4433 \\
      --cert operator.crt --key operator.key --ca ca.crt
";

/// Coordinates asynchronous federated training: agents train where their data is, and their updates are merged as they
/// arrive.
#[derive(Debug, Parser)]
#[command(name = "anabranch-coordinator", version, max_term_width = 110)]
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
    /// Make a directory for a run: its CA, certificates and a commented run.toml
    Init(InitArgs),
    /// Serve the runs of a directory until all have ended, or are parked
    ///
    /// SIGTERM, Ctrl-C or SIGHUP (the terminal closes; ignored under nohup) parks the runs, also while it starts: what was
    /// acknowledged is on disk, and the next `run` goes on from there. When every run has reached a target or was
    /// stopped, the process ends by itself with exit code 0.
    Run(RunArgs),
    /// Make, list and revoke the tokens with which agents join
    #[command(subcommand, visible_alias = "tokens")]
    Token(TokenVerb),
    /// Make, list and revoke the tokens of the operator's page
    #[command(subcommand)]
    Page(PageVerb),
    /// List and revoke agents, and give them new keys
    #[command(subcommand, visible_alias = "agent")]
    Agents(AgentsVerb),
    /// Replace the CA: begin, show and finish a rollover, while agents go on
    #[command(subcommand)]
    Ca(CaVerb),
    /// Create, list and delete runs, and show, pause, resume and stop one of them
    #[command(subcommand)]
    Runs(RunsVerb),
    /// Search over configurations: start, show, stop and list searches, and export what they have found
    ///
    /// A search trains many configurations of one run.toml on the same agents, and finds the best one for the price of about
    /// two runs. docs/search.md describes SEARCH.toml.
    #[command(subcommand, visible_alias = "searches")]
    Search(SearchVerb),
    /// Show the run: state, agents, bytes, accuracy
    ///
    /// On a stopped coordinator the store is read instead. Where there are several runs, a table of them is shown, and --run
    /// names one.
    Status(StatusArgs),
    /// Watch the whole process on a terminal: what needs attention, runs, agents, curves, searches, events
    ///
    /// Shows what the operator's page shows, once a second. ? lists the keys. A coordinator that is lost is found again.
    /// Into a pipe, use `status --watch`.
    #[command(after_help = "Examples:
  anabranch-coordinator top --dir trainer
  anabranch-coordinator top --connect trainer.example.org:4433 \\
      --cert operator.crt --key operator.key --ca ca.crt")]
    Top(TargetArgs),
    /// Give no more leases until `resume`; work under way is still merged
    Pause(RunTargetArgs),
    /// Give leases again
    Resume(RunTargetArgs),
    /// End the run for good (to park it and go on later, send SIGTERM to `run` instead)
    Stop(RunTargetArgs),
    /// List, verify, export and import the model's checkpoints
    #[command(subcommand, visible_alias = "checkpoints")]
    Checkpoint(CheckpointVerb),
    /// Check run.toml
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Check an object store, and copy a run into one or out of one
    #[cfg(feature = "object-store")]
    #[command(subcommand)]
    Store(StoreVerb),
    /// Write the manual pages of this program, one for each verb
    #[command(after_help = "Example:
  anabranch-coordinator man --out ~/.local/share/man/man1")]
    Man {
        /// Folder to write them to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Check this machine and a directory: port, names, certificates, clock, memory, disk; each line says what to do
    ///
    /// Works beside a coordinator that runs, and without one. Writes 34 MB to the disk of --dir and removes them; changes
    /// nothing.
    #[command(after_help = "Example:
  anabranch-coordinator doctor --dir trainer

A check that fails gives its exit code: 3 run.toml or keys, 6 disk or store,
12 clock or certificate, 13 port. Warnings give 0.")]
    Doctor(DoctorArgs),
    /// Print a script that completes commands in a shell
    #[command(after_help = "Example:
  anabranch-coordinator completions bash \\
      > ~/.local/share/bash-completion/completions/anabranch-coordinator")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Heading of [`TargetArgs`] in the help.
const TARGET_HEADING: &str = "Which coordinator";

/// A directory made by `init`.
#[derive(Debug, Args)]
pub(crate) struct DirArgs {
    /// Directory of the run, made by `init`
    #[arg(long, value_name = "DIR", env = DIR_ENV)]
    pub(crate) dir: PathBuf,
}

/// What `doctor` checks, and how it prints that.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) dir: DirArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Which coordinator: the one of a directory, or one elsewhere.
// Each argument names the heading: as `next_help_heading` of this struct it would also hold for the
// arguments that follow where the struct is flattened.
#[derive(Debug, Clone, Args)]
pub(crate) struct TargetArgs {
    /// Directory of the run, made by `init`
    #[arg(long, value_name = "DIR", env = DIR_ENV, required_unless_present = "connect",
          help_heading = TARGET_HEADING)]
    pub(crate) dir: Option<PathBuf>,
    /// Instead of --dir: a coordinator elsewhere
    #[arg(long, value_name = "HOST:PORT", requires_all = ["cert", "key", "ca"], help_heading = TARGET_HEADING)]
    pub(crate) connect: Option<String>,
    /// The operator's certificate (tls/operator.crt)
    #[arg(long, value_name = "FILE", requires = "connect", help_heading = TARGET_HEADING)]
    pub(crate) cert: Option<PathBuf>,
    /// The operator's key (tls/operator.key)
    #[arg(long, value_name = "FILE", requires = "connect", help_heading = TARGET_HEADING)]
    pub(crate) key: Option<PathBuf>,
    /// The run's CA (tls/ca.crt)
    #[arg(long, value_name = "FILE", requires = "connect", help_heading = TARGET_HEADING)]
    pub(crate) ca: Option<PathBuf>,
}

/// Which run of which coordinator.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunTargetArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(flatten)]
    pub(crate) which: WhichRun,
}

/// Which run of a coordinator.
#[derive(Debug, Clone, Args)]
pub(crate) struct WhichRun {
    /// Name or id of the run; needed only where there are several
    #[arg(long, value_name = "NAME", help_heading = TARGET_HEADING)]
    pub(crate) run: Option<String>,
}

impl WhichRun {
    /// Returns a request for this run.
    pub(crate) fn ask(&self, request: RunRequest) -> OperatorRequest {
        OperatorRequest::Run { run: self.run.clone(), request }
    }
}

/// What is asked of a run, and how the answer is printed.
#[derive(Debug, Args)]
pub(crate) struct RunReportArgs {
    #[command(flatten)]
    pub(crate) target: RunTargetArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What is asked of a coordinator, and how the answer is printed.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  anabranch-coordinator init --dir trainer
  anabranch-coordinator init --dir trainer --listen 0.0.0.0:4433 \\
      --san trainer.example.org --san 10.0.0.7")]
pub(crate) struct InitArgs {
    /// Directory to make
    #[arg(long, value_name = "DIR", env = DIR_ENV)]
    pub(crate) dir: PathBuf,
    /// Address and UDP port to listen on
    #[arg(long, value_name = "ADDR:PORT",
          default_value_t = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, config::DEFAULT_PORT)))]
    pub(crate) listen: SocketAddr,
    /// Name or IP address under which agents reach the coordinator; repeat for more, the first goes into tokens
    /// [default: the address of --listen; 127.0.0.1 where that is a wildcard]
    #[arg(long = "san", value_name = "NAME-or-IP")]
    pub(crate) names: Vec<String>,
    /// Name of the run, for people
    #[arg(long, value_name = "NAME", default_value = "mnist")]
    pub(crate) name: String,
    /// Seed of the initial model and of everything drawn at random
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Make only what is missing: nothing where DIR has run.toml and keys; keys alone where it has a run.toml. For scripts
    #[arg(long)]
    pub(crate) if_missing: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  anabranch-coordinator run --dir trainer
  anabranch-coordinator run --dir trainer --metrics 9464
  anabranch-coordinator run --dir trainer --page 8433
  anabranch-coordinator run --dir trainer --log-format json -v 2> trainer.log")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) dir: DirArgs,
    /// Go on when every run has ended: more can be created
    #[arg(long)]
    pub(crate) stay: bool,
    /// Serve figures for Prometheus at /metrics and health at /healthz over HTTP, at a port of the loopback interface or at an
    /// address like 10.0.0.7:9464. It is not encrypted: any client that reaches the address reads them
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = listen_address)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Serve a page for the operator: runs, agents, curves, refusals, searches, live; with a token of `page token create` it
    /// pauses, resumes and stops runs and sends models. A port alone is one of the loopback interface, over HTTP. Any other
    /// address is served over HTTPS with the server's certificate, and needs a token to see anything
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = listen_address)]
    pub(crate) page: Option<SocketAddr>,
    /// Write TensorBoard's event files of every run below this folder: accuracy, loss, staleness, version
    #[arg(long, value_name = "DIR")]
    pub(crate) tensorboard: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunsVerb {
    /// Create a run, which is served at once: agents can take part in it
    ///
    /// The file is a run.toml without [server] and [log], which are the coordinator's. On a stopped coordinator the directory
    /// is made, and the next `run` serves it.
    #[command(after_help = "Examples:
  anabranch-coordinator runs create --dir trainer wards --config wards.toml
  anabranch-coordinator runs create --dir trainer wards --config wards.toml \\
      --submit-token \"$JOB\"")]
    Create {
        #[command(flatten)]
        target: TargetArgs,
        /// Name of the run: letters, digits, - _ .
        #[arg(value_name = "NAME")]
        name: String,
        /// Its configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Any text that only this request has: repeated with it and the same file, the request makes no second run
        #[arg(long, value_name = "TEXT")]
        submit_token: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show all runs in a table, those that have ended and those that cannot be served included
    List(ReportArgs),
    /// Show one run: what `status --run NAME` shows
    Show {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        name: RunName,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give no more leases of one run until `runs resume`
    Pause {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        name: RunName,
    },
    /// Give leases of one run again
    Resume {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        name: RunName,
    },
    /// End one run for good; it stays listed and readable
    Stop {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        name: RunName,
    },
    /// Delete one run with all that is stored of it, and free its disk
    ///
    /// Only a run that has ended, is paused or has no model yet. The name is asked for on a terminal.
    #[command(after_help = "Example:
  anabranch-coordinator runs delete --dir trainer wards --confirm wards \\
      --export wards.safetensors")]
    Delete {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        name: RunName,
        /// The same name again, in place of the question
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
        /// File to write the run's model to first
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SearchVerb {
    /// Start a search: its trials are runs of the coordinator, NAME-0, NAME-1, and so on
    ///
    /// Prints the price in full runs, and which combinations of the space are impossible. The coordinator keeps a copy of
    /// both files. Agents take part that follow all runs (`anabranch-agent run --runs all`); at least one needs an evaluation
    /// shard.
    #[command(after_help = "Examples:
  anabranch-coordinator search start --dir trainer lr.toml
  anabranch-coordinator search status --dir trainer lr --watch")]
    Start {
        #[command(flatten)]
        target: TargetArgs,
        /// The search: SEARCH.toml
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a search: its trials from best to worst
    #[command(after_help = "Examples:
  anabranch-coordinator search status --dir trainer
  anabranch-coordinator search status --dir trainer lr --svg lr.svg")]
    Status(SearchStatusArgs),
    /// End a search and its trials; what was measured stays
    Stop {
        #[command(flatten)]
        target: TargetArgs,
        /// Name of the search
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Show all searches in a table
    List(ReportArgs),
    /// Write the winner's model as safetensors, and its run.toml; the leader's while the search goes on
    #[command(after_help = "Example:
  anabranch-coordinator search export --dir trainer lr --out best.safetensors \\
      --config best.toml")]
    Export {
        #[command(flatten)]
        target: TargetArgs,
        /// Name of the search; needed only where there are several
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// File to write the model to
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// File to write the configuration to
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Replace files that exist
        #[arg(long)]
        force: bool,
    },
}

/// Which search is shown, and how.
#[derive(Debug, Args)]
pub(crate) struct SearchStatusArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Name of the search; needed only where there are several
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Go on showing it, once a second, until it ends
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Write a picture of it too: curves of all trials, and their configurations as parallel coordinates
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// The run that a verb of `runs` is about.
#[derive(Debug, Args)]
pub(crate) struct RunName {
    /// Name or id of the run
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  anabranch-coordinator status --dir trainer
  anabranch-coordinator status --dir trainer --watch
  anabranch-coordinator status --dir trainer --json | jq .version")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) report: RunReportArgs,
    /// Go on showing it, once a second: a live view, or plain lines where there is no terminal
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointVerb {
    /// Show the checkpoints
    List(RunReportArgs),
    /// Recompute the journal's hash chain and the model, and compare
    Verify(RunReportArgs),
    /// Write a model as safetensors
    #[command(after_help = "Examples:
  anabranch-coordinator checkpoint export --dir trainer --out model.safetensors
  python -c 'from safetensors.numpy import load_file as load
print(load(\"model.safetensors\").keys())'")]
    Export {
        #[command(flatten)]
        target: RunTargetArgs,
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Which version [default: the run's result, else the newest]
        #[arg(long = "version", value_name = "N",
              value_parser = version)]
        version: Option<ModelVersion>,
        /// Replace FILE when it exists
        #[arg(long)]
        force: bool,
    },
    /// Take a model from a safetensors file, on a stopped coordinator
    ///
    /// In a run without a model it becomes version 0. In a run with one it must have the same tensors, and becomes the
    /// next version.
    Import {
        #[command(flatten)]
        dir: DirArgs,
        #[command(flatten)]
        which: WhichRun,
        /// File to read: f32 tensors
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Go on from an earlier version, on a stopped coordinator
    ///
    /// The run continues from that version on a new branch, also when it had ended. Updates that were merged after it no
    /// longer count, and agents that worked on the old branch start anew.
    #[command(after_help = "Example:
  anabranch-coordinator checkpoint rollback --dir trainer --version 120")]
    Rollback {
        #[command(flatten)]
        dir: DirArgs,
        #[command(flatten)]
        which: WhichRun,
        /// Version to go back to, the newest one included
        #[arg(long = "version", value_name = "N",
              value_parser = version)]
        version: ModelVersion,
    },
}

fn version(text: &str) -> Result<ModelVersion, std::num::ParseIntError> {
    text.parse().map(ModelVersion)
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Check run.toml and say what is wrong, with line and column
    Check {
        #[command(flatten)]
        dir: DirArgs,
        #[command(flatten)]
        which: WhichRun,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Runs one command line, the program's name included, to its end.
pub fn main(args: impl IntoIterator<Item = OsString>) -> std::process::ExitCode {
    cli::main(args, commands::execute)
}

#[cfg(test)]
mod tests;
