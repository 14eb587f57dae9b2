//! What the verbs do, one file a verb.
//!
//! ```text
//!  verb ──► OperatorRequest ──► reach ─┬─► client   a coordinator is running: over QUIC, with the operator certificate
//!                                      └─► stopped  none is: the same request, answered from the store
//!                                                    │
//!  table, JSON, file ◄── OperatorResponse ◄──────────┘
//! ```

mod agents;
mod ca;
mod checkpoint;
mod client;
mod config;
mod control;
mod doctor;
mod init;
mod output;
mod page;
mod reach;
mod run;
mod runs;
mod search;
mod status;
mod stopped;
#[cfg(feature = "object-store")]
mod store;
mod token;
mod top;

use anabranch_io::logging::LogFormat;
use clap::CommandFactory as _;

use crate::cli::{Cli, PageVerb, Verb};
pub(crate) use output::{bytes, count, date, span};
pub(crate) use status::table::{head as status_lines, heard, state as status_state};
pub(crate) use stopped::{mismatch_fail, recovery_fail};

/// Does what the command line says.
pub(crate) fn execute(cli: Cli) -> anyhow::Result<()> {
    let Cli { log, verb } = cli;
    anabranch_io::durable::install_panic_policy();
    if !matches!(verb, Verb::Run(_)) {
        // The short verbs speak through standard output; their log is for what went wrong on the way.
        log.start(LogFormat::Human, -1)?;
    }
    match verb {
        Verb::Init(args) => init::init(&args),
        Verb::Run(args) => run::run(&args, &log),
        Verb::Token(verb) => token::token(verb),
        Verb::Page(PageVerb::Token(verb)) => page::token(verb),
        Verb::Agents(verb) => agents::agents(verb),
        Verb::Ca(verb) => ca::ca(verb),
        Verb::Status(args) => status::status(&args),
        Verb::Top(target) => top::top(target),
        Verb::Runs(verb) => runs::runs(verb),
        Verb::Search(verb) => search::search(verb),
        Verb::Pause(target) => control::pause(&target),
        Verb::Resume(target) => control::resume(&target),
        Verb::Stop(target) => control::stop(&target),
        Verb::Checkpoint(verb) => checkpoint::checkpoint(verb),
        Verb::Config(verb) => config::config(verb),
        #[cfg(feature = "object-store")]
        Verb::Store(verb) => store::store(verb),
        Verb::Man { out } => {
            let pages = anabranch_io::manual::write(Cli::command(), &out)?;
            output::print(&format!("{pages} manual pages in {}\n", out.display()))
        }
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "anabranch-coordinator", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}
