//! A bucket is used only if each key has one winner.

use anabranch_common::limits;
use anabranch_coordinator::store::object::{CheckError, CheckPlan, CheckReport, check};
use anabranch_testkit_store::SimBucket;
use anabranch_testkit_store::bucket::{Conditions, Weather};

const NONCE: [u8; 16] = [7; 16];

fn checked(conditions: Conditions, plan: CheckPlan, weather: Weather) -> CheckReport {
    let bucket = SimBucket::new(1, weather).treating(conditions);
    let report = check(&bucket, plan, NONCE).expect("it answers");
    assert_eq!(bucket.keys("check/"), [""; 0], "nothing is left behind");
    report
}

#[test]
fn a_bucket_that_keeps_conditions_may_be_used() {
    let report = checked(Conditions::Kept, CheckPlan { writers: 8, races: 50 }, Weather::FAIR);
    assert!(report.is_usable(), "{report:?}");
    assert_eq!((report.unanswered, report.listings_behind), (0, 0));
    assert!(report.put_ms_longest >= report.put_ms_median);
}

#[test]
fn a_bucket_that_ignores_conditions_is_found_out_in_the_short_check() {
    let report = checked(Conditions::Ignored, CheckPlan::SHORT, Weather::FAIR);
    assert_eq!((report.created_again, report.several_winners), (3, 3));
    assert!(!report.is_usable());
}

#[test]
fn a_bucket_that_checks_first_and_then_writes_is_found_out() {
    let report = checked(Conditions::CheckedBefore, CheckPlan { writers: 16, races: 500 }, Weather::FAIR);
    assert!(report.several_winners > 0 && !report.is_usable(), "{report:?}");
    assert_eq!(report.created_again, 0, "one after another it does what it should");
}

/// Lost answers are no evidence against a bucket.
#[test]
fn a_bucket_behind_a_bad_network_may_be_used() {
    let weather = Weather { lost_requests: 100, lost_answers: 100, ..Weather::FAIR };
    let report = checked(Conditions::Kept, CheckPlan { writers: 8, races: 100 }, weather);
    assert!(report.unanswered > 0 && report.is_usable(), "{report:?}");
}

#[test]
fn a_plan_has_bounds() {
    let bucket = SimBucket::new(1, Weather::FAIR);
    for (writers, races) in [(1, 1), (limits::OBJECT_RACERS + 1, 1), (2, 0), (2, limits::OBJECT_RACES + 1)] {
        let refused = check(&bucket, CheckPlan { writers, races }, NONCE);
        assert!(matches!(refused, Err(CheckError::Plan)), "{writers} writers, {races} races");
    }
    check(&bucket, CheckPlan { writers: limits::OBJECT_RACERS, races: 1 }, NONCE).expect("within them");
}
