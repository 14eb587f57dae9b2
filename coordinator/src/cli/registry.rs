//! Verbs about tokens, agents and the CA.

use std::time::Duration;

use anabranch_io::cli::OutputArgs;
use clap::Subcommand;

use super::{ReportArgs, RunReportArgs, TargetArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a token and print it; hand it to the agent over a channel you trust
    #[command(after_help = "Examples:
  anabranch-coordinator token create --dir trainer --name clinic
  anabranch-coordinator token create --dir trainer --name ward --uses 20
  anabranch-agent join --dir agent \\
      --token \"$(anabranch-coordinator token create --dir trainer)\"")]
    Create {
        #[command(flatten)]
        target: TargetArgs,
        /// Name for the agent that joins with it; numbered when --uses is above 1 [default: after its id]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// How long it is good for: 90s, 30m, 24h, 7d
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// How many agents may join with it
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u32,
        /// Address that goes into the token; several times for several, which agents try in this order [default: each of
        /// server.names in run.toml, else server.listen (127.0.0.1 where that is a wildcard), with the port of
        /// server.listen; with --connect: HOST:PORT]
        #[arg(long = "address", value_name = "HOST:PORT")]
        addresses: Vec<String>,
        /// Runs that agents may take part in that join with it, by name or id [default: all runs, later ones included]
        #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
        runs: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show the tokens; their secrets are not kept
    List(ReportArgs),
    /// Revoke a token: nobody joins with it any more; agents that have joined stay
    Revoke {
        #[command(flatten)]
        target: TargetArgs,
        /// Id of the token, from `token list`
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentsVerb {
    /// Show the agents
    List(RunReportArgs),
    /// Revoke an agent: its connections are closed and its certificate is no longer taken; merged work stays
    Revoke {
        #[command(flatten)]
        target: TargetArgs,
        /// Id or name of the agent, from `agents list`
        agent: String,
    },
    /// Give agents new keys and certificates: at once where they are connected, else when they come back
    ///
    /// The agent makes the key; its identity, its name and its work stay. The old key is refused as soon as the agent has
    /// connected with the new one.
    #[command(group = clap::ArgGroup::new("which").required(true).args(["agent", "all"]))]
    Rotate {
        #[command(flatten)]
        target: TargetArgs,
        /// Id or name of the agent, from `agents list`
        agent: Option<String>,
        /// Every agent
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaVerb {
    /// Make a next CA, and begin to move agents to it
    ///
    /// From then on both CAs are trusted, and new tokens pin both. Agents that are connected get certificates of the next CA
    /// at once, the others when they come back. `ca finish` ends the rollover.
    #[command(after_help = "Example:
  anabranch-coordinator ca rotate --dir trainer
  anabranch-coordinator ca status --dir trainer
  anabranch-coordinator ca finish --dir trainer")]
    Rotate {
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Show the CAs, and during a rollover the agents that have not moved yet
    Status(ReportArgs),
    /// End a rollover: certificates of the old CA are no longer accepted
    ///
    /// Refused while agents hold certificates of the old CA that are still good.
    Finish {
        #[command(flatten)]
        target: TargetArgs,
        /// End it all the same: those agents have to join again, from another directory
        #[arg(long)]
        force: bool,
    },
}
