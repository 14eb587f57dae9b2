//! Deliberate bugs: mistakes that a tired engineer makes, each one line, each where it would be made.
//!
//! Only with the feature `faults`, and only in a thread that has planted one; without the feature [`is`] is `false` and
//! costs nothing. The simulation must find every one of them (`tests/tests/bites.rs`): what it cannot find it does not
//! check.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// Agents are told before the record is durable.
    AckBeforeSync,
    /// A decided update is decided again when it is offered again.
    DecidedForgotten,
    /// A refusal is told and not journalled.
    RefusalNotJournalled,
    /// Staleness is one too large.
    StalenessOffByOne,
    /// Updates are merged however far behind their base is.
    StaleAdmitted,
    /// Updates of a branch that was left are merged.
    BranchIgnored,
    /// Updates of revoked agents are merged.
    RevokedAdmitted,
    /// Participation weights have no limits.
    ParticipationUnclipped,
    /// A checkpoint is restored without the merge buffer.
    BufferLost,
    /// A checkpoint is restored without the verdicts in it.
    VerdictsLost,
    /// A checkpoint is restored without the leases in it.
    LeasesLost,
    /// A checkpoint is restored without what it knows of agents' speeds.
    SpeedsLost,
    /// A coordinator that starts again does not know the norm of the model that its history began with.
    NormLost,
    /// Weights are computed again when records are replayed.
    WeightRecomputed,
    /// A rollback goes on with the model that it found.
    BranchModelKept,
    /// What power loss tore is taken for whole.
    TornTailKept,
    /// A checkpoint's manifest is written before what it names is durable.
    CheckpointUnsynced,
    /// What is read from the journal is not compared with its checksums.
    ChecksumIgnored,
    /// The coordinator goes on after a sync that failed.
    StorageErrorSwallowed,
    /// However large an update is, it counts in full.
    ClipForgotten,
    /// Nobody may be ahead of anybody else.
    WaitsForTheSlowest,
    /// Leases are outstanding for ever.
    LeaseNeverExpires,
    /// An agent that asks again holds two leases.
    LeaseTwice,
    /// Leases are granted while the run is paused.
    GrantsWhilePaused,
    /// A new incarnation has the number of the one before.
    EpochReused,
    /// Two updates of an agent have the same number.
    NumberReused,
    /// A refusal that gives the content back drops it.
    ResidualDropped,
    /// The residual of another branch goes on being added.
    ResidualKept,
    /// An agent that starts again does not know its finished updates.
    OutboxForgotten,
    /// The coordinator does not listen when an agent says that its evaluation has failed.
    EvaluationFailureUnheard,
}

impl Bug {
    /// Every one.
    pub const ALL: [Self; 30] = [
        Self::AckBeforeSync,
        Self::DecidedForgotten,
        Self::RefusalNotJournalled,
        Self::StalenessOffByOne,
        Self::StaleAdmitted,
        Self::BranchIgnored,
        Self::RevokedAdmitted,
        Self::ParticipationUnclipped,
        Self::BufferLost,
        Self::VerdictsLost,
        Self::LeasesLost,
        Self::SpeedsLost,
        Self::NormLost,
        Self::WeightRecomputed,
        Self::BranchModelKept,
        Self::TornTailKept,
        Self::CheckpointUnsynced,
        Self::ChecksumIgnored,
        Self::StorageErrorSwallowed,
        Self::ClipForgotten,
        Self::WaitsForTheSlowest,
        Self::LeaseNeverExpires,
        Self::LeaseTwice,
        Self::GrantsWhilePaused,
        Self::EpochReused,
        Self::NumberReused,
        Self::ResidualDropped,
        Self::ResidualKept,
        Self::OutboxForgotten,
        Self::EvaluationFailureUnheard,
    ];
}

/// Whether this mistake is made here.
#[cfg(feature = "faults")]
#[must_use]
pub fn is(bug: Bug) -> bool {
    planted::PLANTED.get() == Some(bug)
}

/// No mistake is made on purpose in this build.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[must_use]
pub const fn is(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "faults")]
mod planted {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        pub(super) static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// A planted bug; dropping it takes it out again.
    #[derive(Debug)]
    pub struct Planted(());

    /// Plants a bug in this thread, instead of the one that was there.
    #[must_use]
    pub fn plant(bug: Bug) -> Planted {
        PLANTED.set(Some(bug));
        Planted(())
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
}

#[cfg(feature = "faults")]
pub use planted::{Planted, plant};
