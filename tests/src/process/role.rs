//! Which daemon a process is.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use crate::ledger;

/// A daemon that `anabranch-lab` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `anabranch-coordinator`.
    Coordinator,
    /// `anabranch-agent`.
    Agent,
    /// The agent with the trainer of [`ledger`].
    LedgerAgent,
}

impl Role {
    /// The hidden first argument.
    #[must_use]
    pub fn arg(self) -> &'static str {
        match self {
            Self::Coordinator => "as-coordinator",
            Self::Agent => "as-agent",
            Self::LedgerAgent => "as-ledger-agent",
        }
    }

    /// The role that a first argument stands for.
    #[must_use]
    pub fn from_arg(arg: &OsStr) -> Option<Self> {
        [Self::Coordinator, Self::Agent, Self::LedgerAgent].into_iter().find(|role| arg == role.arg())
    }

    /// Be that daemon until its end.
    pub fn main(self, args: impl Iterator<Item = OsString>) -> ExitCode {
        match self {
            Self::Coordinator => {
                anabranch_coordinator::cli::main(std::iter::once("anabranch-coordinator".into()).chain(args))
            }
            Self::Agent => anabranch_agent::cli::main(std::iter::once("anabranch-agent".into()).chain(args)),
            Self::LedgerAgent => ledger::main(args),
        }
    }
}
