//! Which daemon a process is.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use crate::{chaos, encoder, ledger, power};

/// A daemon that `anabranch-lab` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `anabranch-coordinator`.
    Coordinator,
    /// `anabranch-agent`.
    Agent,
    /// The agent with the trainer of [`ledger`].
    LedgerAgent,
    /// What [`power`] records: the coordinator's store.
    RecordedStore,
    /// The same of the agent's.
    RecordedLedger,
    /// The agent that sends wrong numbers, of [`chaos`].
    PoisonedAgent,
    /// The trainer of [`encoder`], which an agent starts.
    EmulatedTrainer,
}

impl Role {
    /// The hidden first argument.
    #[must_use]
    pub fn arg(self) -> &'static str {
        match self {
            Self::Coordinator => "as-coordinator",
            Self::Agent => "as-agent",
            Self::LedgerAgent => "as-ledger-agent",
            Self::RecordedStore => "as-recorded-store",
            Self::RecordedLedger => "as-recorded-ledger",
            Self::PoisonedAgent => "as-poisoned-agent",
            Self::EmulatedTrainer => "as-emulated-trainer",
        }
    }

    /// The role that a first argument stands for.
    #[must_use]
    pub fn from_arg(arg: &OsStr) -> Option<Self> {
        let daemons = [Self::Coordinator, Self::Agent, Self::LedgerAgent, Self::PoisonedAgent];
        let roles = daemons.into_iter().chain([Self::RecordedStore, Self::RecordedLedger, Self::EmulatedTrainer]);
        roles.into_iter().find(|role| arg == role.arg())
    }

    /// Be that daemon until its end.
    pub fn main(self, args: impl Iterator<Item = OsString>) -> ExitCode {
        match self {
            Self::Coordinator => {
                anabranch_coordinator::cli::main(std::iter::once("anabranch-coordinator".into()).chain(args))
            }
            Self::Agent => anabranch_agent::cli::main(std::iter::once("anabranch-agent".into()).chain(args)),
            Self::LedgerAgent => ledger::main(args),
            Self::PoisonedAgent => chaos::poisoned_main(args),
            Self::EmulatedTrainer => encoder::main(),
            Self::RecordedStore => power::main(power::Subject::Store, args),
            Self::RecordedLedger => power::main(power::Subject::Ledger, args),
        }
    }
}
