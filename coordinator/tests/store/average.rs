//! An average of the models that is switched on and off while the run goes on, and changes of the rule below it.

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::journal::RecordBody;
use anabranch_common::merge::{MergeSpec, Served};
use anabranch_coordinator::recovery;

use crate::history::{ALL, History, Pace, assert_same_bits, fedasync, fedavg, fedbuff, manifest, rescaled, stored};

/// A checkpoint after every second commit: while contributions wait, and right after each change.
const OFTEN: Pace = Pace { group: 1, checkpoint_every: 2, ..ALL };

fn work(history: &mut History, rounds: std::ops::Range<u64>) {
    for round in rounds {
        let agent = AgentId([u8::try_from(round % 3).expect("small"); 16]);
        let lease = history.lease(agent, round);
        history.update(agent, lease, round);
    }
}

fn change(history: &mut History, merge: MergeSpec) {
    let mut spec = history.state().spec.clone();
    spec.merge = merge;
    history.push(RecordBody::ConfigChanged { spec: Box::new(spec) }, vec![]);
}

/// Runs these rules one after the other, four updates each.
fn history(rules: &[MergeSpec]) -> History {
    let mut history = History::begin(rules[0].clone(), manifest(30));
    (0..3).for_each(|agent| history.join(agent));
    for (index, rule) in (0..).zip(rules) {
        change(&mut history, rule.clone());
        work(&mut history, 4 * index..4 * index + 4);
    }
    history
}

#[test]
fn an_average_that_is_switched_has_the_bits_of_an_uninterrupted_run() {
    for rule in [fedasync(), fedbuff(3), fedavg()] {
        let (off, on) = (rule.clone(), rule.averaged());
        let switched = history(&[off.clone(), on.clone(), on.clone(), off.clone(), on]);
        let store = stored(&switched, OFTEN);
        assert_eq!(assert_same_bits(&store, &switched, "switched"), switched.last());
        let report = recovery::verify(&store).expect("memory");
        assert!(report.holds, "{report:?}");
        let plain = history(&[off.clone(), off.clone(), off.clone(), off.clone(), off]);
        let digest = |history: &History| Digest::of_f32(history.model_of(history.state().version));
        assert_eq!(digest(&switched), digest(&plain), "the model moves as it does without an average");
        let exported = recovery::export(&store, None).expect("memory");
        assert_eq!(exported.served, Served::Average);
        assert_ne!(exported.digest, digest(&switched));
    }
}

/// Both rules move the model at every update and keep nothing: only their average begins anew.
#[test]
fn an_average_begins_anew_with_another_rule() {
    let rules = [fedasync(), rescaled(), fedbuff(2), fedbuff(3), fedavg()].map(MergeSpec::averaged);
    let history = history(&rules);
    let store = stored(&history, OFTEN);
    assert_eq!(assert_same_bits(&store, &history, "changed"), history.last());
    let report = recovery::verify(&store).expect("memory");
    assert!(report.holds, "{report:?}");
}
