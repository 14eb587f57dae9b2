//! The verbs of the operator's page.

use std::time::Duration;

use anabranch_io::cli::OutputArgs;
use clap::Subcommand;

use super::{ReportArgs, TargetArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum PageVerb {
    /// Make, list and revoke tokens
    #[command(subcommand, visible_alias = "tokens")]
    Token(PageTokenVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PageTokenVerb {
    /// Make a token and print it; the page asks for it
    ///
    /// A token lets its owner see the page and download models. With --operate its owner also pauses, resumes and stops runs.
    #[command(after_help = "Examples:
  anabranch-coordinator page token create --dir trainer --name anna
  anabranch-coordinator page token create --dir trainer --name anna \\
      --operate --expires 12h")]
    Create {
        #[command(flatten)]
        target: TargetArgs,
        /// Name of its owner, which the log and `page token list` show
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Let its owner pause, resume and stop runs
        #[arg(long)]
        operate: bool,
        /// How long it is good for: 30m, 12h, 30d
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = humantime::parse_duration)]
        expires: Duration,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show the tokens: their names, when they expire and when they were used last; their secrets are not kept
    List(ReportArgs),
    /// Revoke a token: pages that use it are refused at once
    Revoke {
        #[command(flatten)]
        target: TargetArgs,
        /// Id of the token, from `page token list`
        id: String,
    },
}
