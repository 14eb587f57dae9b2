//! What a round is given: the tensors of the run, and the plan of its lease.

use super::*;
use crate::session::command::StartedFrom;

#[test]
fn a_trainer_that_does_not_fit_the_run_names_the_tensor() {
    let mut session = Session::new(config(100, 0), Kept::default());
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    session.handle(0, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    let text = "it lacks w [2]; the run has no other [2]";
    assert_eq!(
        session.handle(0, Event::Prepared { manifest: manifest("other") }),
        [Command::Exit(Ending::Manifest(text.into()))]
    );
}

/// A run that began with an imported file has that file's order, and safetensors libraries sort by
/// name.
#[test]
fn a_trainer_with_the_runs_tensors_in_another_order_takes_the_runs_order() {
    let tensor = |name: &str| TensorSpec { name: name.into(), shape: vec![1] };
    let of = |names: [&str; 2]| ModelManifest::new(names.map(tensor).to_vec()).expect("valid");
    let (ours, theirs) = (of(["weight", "bias"]), of(["bias", "weight"]));
    let mut session = Session::new(config(100, 0), Kept::default());
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    session.handle(0, welcome(BRANCH, None, RunPhase::Pending));
    let made = session.handle(0, Event::Prepared { manifest: ours });
    assert!(matches!(made[..], [Command::MakeInitial { .. }]), "{made:?}");
    let ready = say(CoordinatorMessage::ModelReady { manifest: theirs.clone(), digest: digest(0) });
    assert_eq!(session.handle(0, ready), [Command::Reorder(Box::new(theirs.clone()))]);
    let asked = session.handle(0, Event::Prepared { manifest: theirs });
    assert_eq!(asked, [send(AgentMessage::RequestLease)]);
}

/// What a lease plans is what is trained: its steps, and the learning rate times its factor.
#[test]
fn a_round_has_the_plan_of_its_lease() {
    let mut session = asking(config(100, 0), Kept::default());
    let plan = Plan { local_steps: 3, lr_factor: 0.5, round: 7, progress: Some(0.25), ..PLAN };
    let planned = Lease { plan, ..lease(1, 0) };
    session.handle(0, say(CoordinatorMessage::Lease { lease: planned.clone(), evaluate: false }));
    session.handle(0, announce(0));
    session.handle(0, chunk(0));
    let commands = session.handle(0, unpacked(0));
    let [Command::Train { lease: under, spec: counts, .. }] = &commands[..] else { panic!("no round: {commands:?}") };
    assert_eq!(**under, planned);
    let train = &spec().train;
    assert_eq!((counts.train.local_steps, counts.train.optimizer.lr()), (3, 0.5 * train.optimizer.lr()));
    assert_eq!(counts.train.batch_size, train.batch_size);
}

/// The base is kept until then only where the plan asks for it.
#[test]
fn a_delta_goes_to_the_store_with_what_its_round_started_from() {
    for base_dot in [false, true] {
        let mut session = asking(config(100, 0), Kept::default());
        let planned = Lease { plan: Plan { base_dot, ..lease(1, 0).plan }, ..lease(1, 0) };
        session.handle(0, say(CoordinatorMessage::Lease { lease: planned.clone(), evaluate: false }));
        session.handle(0, announce(0));
        session.handle(0, chunk(0));
        session.handle(0, unpacked(0));
        let commands = session.handle(9, Event::Trained(Box::new(outcome(&planned))));
        let started_from = base_dot.then(|| StartedFrom { base: content(0), lead: None });
        let banked = |command: &Command| matches!(command, Command::Bank(bank) if bank.started_from == started_from);
        assert!(commands.iter().any(banked), "{commands:?}");
    }
}

/// Also where the run's schedule has gone on meanwhile.
#[test]
fn a_round_that_a_crash_cut_off_goes_on_with_its_plan() {
    let mut session = Session::new(config(100, 0), Kept { branch: Some(BRANCH), ..Kept::default() });
    let plan = Plan { local_steps: 3, lr_factor: 0.25, round: 9, ..PLAN };
    let cut_off = Lease { plan, ..lease(4, 0) };
    session.resume(cut_off.clone(), content(0));
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    session.handle(0, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    let commands = session.handle(0, Event::Prepared { manifest: manifest("w") });
    let [Command::Train { lease: under, spec: counts, .. }] = &commands[..] else { panic!("no round: {commands:?}") };
    assert_eq!(**under, cut_off);
    let lr = spec().train.optimizer.lr();
    assert_eq!((counts.train.local_steps, counts.train.optimizer.lr()), (3, 0.25 * lr));
}
