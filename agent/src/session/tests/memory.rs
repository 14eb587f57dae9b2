//! Updates that are differences against a memory: it moves with what was accepted, by the weight of the verdict.

use super::*;

/// What an undecided difference leads to when this is heard of it.
fn settled(verdict: Verdict) -> Vec<Command> {
    let mut update = entry(0, &lease(1, 0));
    update.meta.memory = Some(MemoryMark::EMPTY);
    let kept = Kept { branch: Some(BRANCH), outbox: vec![update], ..Kept::default() };
    asking(config(100, 0), kept).handle(0, decide(0, verdict))
}

#[test]
fn an_accepted_difference_is_remembered_and_a_refused_one_changes_nothing() {
    let (position, version) = (Position(9), ModelVersion(1));
    let accepted = Verdict::Accepted { position, version, weight: 0.25, staleness: 0 };
    assert_eq!(settled(accepted), [Command::Settle { key: key(0), content: Settlement::Remember(0.25) }]);
    for reason in RefusalReason::ALL {
        let commands = settled(refused(reason));
        assert_eq!(commands, [Command::Settle { key: key(0), content: Settlement::Drop }], "{reason:?}");
    }
}
