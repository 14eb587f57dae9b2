//! Guards P3 (docs/faults.md) below sled: what was acknowledged survives a power loss at every sync and at moments drawn
//! at random, with unsynced writes lost, torn and reordered. The longer command is `anabranch-lab power --states 5000`.

use std::path::Path;

use anabranch_tests::power;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

#[test]
fn what_was_acknowledged_survives_power_loss() -> anyhow::Result<()> {
    let options = power::Options { lab: Path::new(LAB).to_path_buf(), states: 200, rounds: 12, seed: 5 };
    let Some(report) = power::run(&options)? else {
        assert!(std::env::var_os("CI").is_none(), "{}", power::NO_COMPILER);
        println!("not done: {}", power::NO_COMPILER);
        return Ok(());
    };
    report.finish(None)?;
    assert!(report.metrics["store_states_count"] > 200.0, "{report:?}");
    assert!(report.metrics["ledger_states_count"] > 150.0, "{report:?}");
    assert!(report.pass, "{report:?}");
    Ok(())
}
