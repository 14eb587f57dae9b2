//! Guards P1, P2, P4 and P6 (docs/faults.md) against kill -9 of real processes.
//!
//! In a normal build: at moments drawn at random. With `--features faults`: at every named point in turn (faults 1 to
//! 11, 31 and 32), at least 100 times, recovery 20 times in a row among them. After each death of the coordinator a
//! copy of its store is audited: what was acknowledged is merged once, and recovery gives what an independent checker
//! gives. The longer command is `anabranch-lab kills --count 2000`.

use std::path::Path;

use anabranch_tests::kills::{self, HAS_POINTS};

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

#[test]
fn whoever_is_killed_nothing_is_lost_and_nothing_is_merged_twice() -> anyhow::Result<()> {
    let count = if HAS_POINTS { 100 } else { 12 };
    let report = kills::run_for_test(Path::new(LAB), count, 7)?;
    report.finish(None)?;
    assert!(report.metrics["kills_count"] >= count as f64, "{report:?}");
    assert!(report.metrics["updates_accepted"] > 100.0, "{report:?}");
    let never: Vec<&String> = report.counts.iter().filter(|(_, hits)| **hits == 0).map(|(name, _)| name).collect();
    assert!(never.is_empty(), "never reached: {never:?}");
    assert!(report.pass);
    Ok(())
}
