//! Arguments of `doctor`.

use std::path::PathBuf;

use anabranch_common::limits::doctor as limits;
use anabranch_io::cli::OutputArgs;
use clap::{ArgGroup, Args};

use super::DIR_ENV;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).multiple(true).args(["dir", "token", "token_file", "connect"]))]
#[command(group = ArgGroup::new("before_joining").args(["token", "token_file", "connect"]))]
#[command(after_help = "Examples:
  anabranch-agent doctor --token-file token.txt --dir agent   # before joining
  anabranch-agent doctor --dir agent                          # after joining
  anabranch-agent doctor --connect trainer.example.org:4433 --ca ca.crt
  anabranch-agent doctor --dir agent --nat=120 --json

A check that fails gives its exit code: 4 not reached, 5 identity, 6 disk,
9 versions, 12 clock or certificate. Warnings give 0.")]
pub(crate) struct DoctorArgs {
    /// Directory of the agent; before joining: the one that `join` will make, whose disk is checked
    #[arg(long, value_name = "DIR", env = DIR_ENV)]
    pub(crate) dir: Option<PathBuf>,
    /// A join token, which is not used up
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// A file with a join token, which is not used up
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// A coordinator
    #[arg(long, value_name = "HOST:PORT", requires = "ca")]
    pub(crate) connect: Option<String>,
    /// The certificate of that coordinator's CA (tls/ca.crt)
    #[arg(long, value_name = "FILE", requires = "connect")]
    pub(crate) ca: Option<PathBuf>,
    /// Also find out how long routers on the way remember a silent agent: wait up to this many seconds in all
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60",
          value_parser = clap::value_parser!(u64).range(limits::NAT_FIRST_S..=limits::NAT_S))]
    pub(crate) nat: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
