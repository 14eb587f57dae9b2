//! Fault 11 and promises P1 to P3: a process that dies at any put or deletion loses nothing acknowledged and no bit.

use anabranch_testkit_store::SimBucket;
use anabranch_testkit_store::bucket::{Death, Weather};

use super::{Opened, open, open_over};
use crate::history::{History, PACE, assert_goes_on, assert_same_bits, drive, fedbuff, recall, run_through};

/// The run dies at a request. Whoever opens the bucket next has what was acknowledged, and goes on to the same end.
fn die_at(history: &History, death: Death, seed: u64, weather: Weather) {
    let bucket = SimBucket::new(seed, Weather::FAIR);
    let acknowledged = match open_over(bucket.connect(seed, weather).dying(death), seed) {
        Ok(store) => {
            // A death at one of the last deletions stops nothing that is left to do.
            drive(&store, history, PACE).0
        }
        Err(_) => None,
    };
    let context = format!("{death:?}, seed {seed}");
    let after = open(&bucket, seed + 1000, weather).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_goes_on(&after, history, acknowledged, &context);
}

fn writes_of(history: &History) -> u64 {
    let opened = Opened::new(SimBucket::new(1, Weather::FAIR), 1, Weather::FAIR);
    run_through(&opened, history, PACE);
    assert_eq!(assert_same_bits(&opened, history, "uninterrupted"), history.last());
    opened.bucket.writes()
}

#[test]
fn a_death_at_any_request_loses_nothing_acknowledged_and_no_bit() {
    for merge in [fedbuff(3), recall()] {
        let history = History::scripted(&merge, 21);
        let writes = writes_of(&history);
        assert!(writes > 100, "the script has many boundaries, not {writes}");
        for at_write in 0..writes {
            for carried_out in [false, true] {
                die_at(&history, Death { at_write, carried_out }, at_write, Weather::FAIR);
            }
        }
    }
}

#[test]
fn so_it_is_in_foul_weather() {
    let history = History::scripted(&fedbuff(3), 14);
    for (seed, at_write) in (0..).zip((0..writes_of(&history)).step_by(3)) {
        die_at(&history, Death { at_write, carried_out: seed % 2 == 0 }, seed, Weather::FOUL);
    }
}

/// A process that dies while it opens a store leaves it as it was, for the next one.
#[test]
fn a_death_at_any_request_of_an_opening_changes_nothing() {
    let history = History::scripted(&fedbuff(2), 14);
    let opened = Opened::new(SimBucket::new(1, Weather::FAIR), 1, Weather::FAIR);
    run_through(&opened, &history, PACE);
    let mut deaths = 0;
    for at_write in 0.. {
        for carried_out in [false, true] {
            let bucket = opened.bucket.copy();
            let died = open_over(bucket.connect(2, Weather::FAIR).dying(Death { at_write, carried_out }), 2).is_err();
            deaths += u64::from(died);
            // A second one dies at the same place, before a third looks.
            let second = Death { at_write: bucket.writes() + at_write, carried_out };
            drop(open_over(bucket.connect(3, Weather::FAIR).dying(second), 3));
            let after = Opened::new(bucket, 4, Weather::FAIR);
            assert_eq!(assert_same_bits(&after, &history, &format!("{at_write}")), history.last());
            if !died {
                assert!(deaths >= 6, "an opening announces, seals and fences: {deaths}");
                return;
            }
        }
    }
}
