//! The published track of a stored run whose configuration changes.

use anabranch_common::ids::AgentId;
use anabranch_common::journal::RecordBody;
use anabranch_common::spec::RunSpec;
use anabranch_coordinator::recovery;

use crate::history::{ALL, History, assert_same_bits, fedavg, manifest, recall, stored};

/// Rounds begin from the newest version alone, and so do updates that may not be stale: the base of the track is older.
#[test]
fn a_track_from_whose_base_no_update_is_welcome_begins_anew_at_the_model() {
    let changes: [fn(&mut RunSpec); 2] = [|spec| spec.merge = fedavg(), |spec| spec.admit.max_staleness = 0];
    for change in changes {
        let mut history = History::begin(recall(), manifest(30));
        (0..3).for_each(|agent| history.join(agent));
        let work = |history: &mut History, rounds: std::ops::Range<u64>| {
            for round in rounds {
                let agent = AgentId([u8::try_from(round % 3).expect("small"); 16]);
                let lease = history.lease(agent, round);
                history.update(agent, lease, round);
            }
        };
        work(&mut history, 0..5);
        let state = history.state();
        assert!(state.base < state.version, "the track has a record at every second version");
        let mut spec = state.spec.clone();
        change(&mut spec);
        history.push(RecordBody::ConfigChanged { spec: Box::new(spec) }, vec![]);
        let state = history.state();
        assert_eq!((state.base, state.published), (state.version, None));
        work(&mut history, 5..20);
        assert_eq!(history.state().base, history.state().version);
        let store = stored(&history, ALL);
        assert_eq!(assert_same_bits(&store, &history, "changed"), history.last());
        let report = recovery::verify(&store).expect("memory");
        assert!(report.holds, "{report:?}");
    }
}
