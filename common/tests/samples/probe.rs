//! Examples of what `doctor` asks.

use anabranch_common::wire::message::{Rejection, RunPhase};
use anabranch_common::wire::probe::{Facts, FactsWanted, ProbeAnswer, RunFacts};

use super::{RUN, spec};

pub(crate) fn answer() -> ProbeAnswer {
    ProbeAnswer {
        unix_ms: 1_800_000_000_123,
        software: "0.1.0".into(),
        remote: "192.0.2.7:50000".into(),
        sent: 17,
        lost: 2,
    }
}

pub(crate) fn facts_wanted() -> FactsWanted {
    FactsWanted { run: RUN }
}

pub(crate) fn facts() -> Vec<Facts> {
    let run = RunFacts { spec: spec().for_agents(), params: Some(2_003), state: RunPhase::Running };
    vec![Facts::Rejected(Rejection::Revoked), Facts::Run(Box::new(run))]
}
