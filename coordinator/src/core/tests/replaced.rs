//! Models that take the place of the newest one: imports, and earlier versions on a new branch.

use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::{BranchId, Digest, ModelVersion, Position};
use anabranch_common::journal::{FinishReason, Record, RecordBody};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::{ModelKind, RunSpec};
use anabranch_common::wire::operator::RunRequest;

use super::world::{LEASE_TTL_MS, World, content, manifest, spec};
use crate::core::command::Command;
use crate::core::content::Content;
use crate::core::event::{Event, PeerId, RequestId};
use crate::core::replacement::{EarlierVersion, ReplaceError, Replaced};
use crate::core::state::RunState;

const REQUEST: RequestId = RequestId(5);
const BRANCH: BranchId = BranchId([9; 16]);
const VALUES: [f32; 4] = [3.0, 0.0, -4.0, 0.0];

fn model(values: [f32; 4]) -> Arc<Content> {
    content(Delta::Dense(values.to_vec()))
}

fn import(values: [f32; 4]) -> Event {
    let digest = Digest::of_f32(&values);
    Event::Import { request: REQUEST, manifest: manifest(), digest, model: model(values) }
}

fn import_of(manifest: ModelManifest, values: &[f32]) -> Event {
    let model = content(Delta::Dense(values.to_vec()));
    Event::Import { request: REQUEST, manifest, digest: Digest::of_f32(values), model }
}

/// What recovery makes of the run as it was.
fn earlier(state: &RunState) -> EarlierVersion {
    let RunState { branch, position, version, examples, .. } = *state;
    EarlierVersion { branch, position, version, examples, model: model(VALUES) }
}

fn roll_back(to: EarlierVersion) -> Event {
    Event::RollBack { request: REQUEST, branch: BRANCH, to }
}

/// A run of a stopped coordinator, at version 2 and with a lease outstanding, and its fold when version 1 was made.
fn stopped() -> (World, RunState) {
    let mut world = World::started(1);
    world.make_version(1, 0);
    let first = world.state().clone();
    world.make_version(1, 1);
    world.lease(1);
    world.handle(Event::Disconnected { peer: PeerId(1) });
    world.journal();
    (world, first)
}

fn at_rest(world: &mut World) -> Vec<Command> {
    let upto = world.position();
    world.handle_at_rest(Event::Journalled { upto })
}

/// The record and the model that are to be stored, where nothing else is ordered.
fn stored(commands: &[Command]) -> (&Arc<Record>, &Arc<Content>, Option<BranchId>) {
    let [Command::AppendModel { record, model, parent }] = commands else { panic!("a model, got {commands:?}") };
    (record, model, *parent)
}

fn kinds(commands: &[Command]) -> Vec<&'static str> {
    World::appended(commands).iter().map(|record| record.body.kind()).collect()
}

/// Why the event is refused. Nothing but the answer may follow from it.
fn refused(world: &mut World, event: Event) -> ReplaceError {
    let before = world.state().clone();
    let commands = world.handle_at_rest(event);
    assert_eq!(*world.state(), before);
    match &commands[..] {
        [Command::Replaced { request: REQUEST, outcome: Err(why) }] => why.clone(),
        _ => panic!("expected a refusal, got {commands:?}"),
    }
}

#[test]
fn an_imported_model_is_stored_before_its_record_and_answered_when_both_are_durable() {
    let (mut world, _) = stopped();
    let commands = world.handle_at_rest(import(VALUES));
    let (record, imported, parent) = stored(&commands);
    let version = ModelVersion(3);
    let body = RecordBody::Imported { model: Digest::of_f32(&VALUES), version, norm: 5.0, copied: None };
    assert_eq!((&record.body, imported, parent), (&body, &model(VALUES), None));

    let replaced = Replaced { position: record.position, version, before: Some(ModelVersion(2)) };
    let merge = Command::Merge { record: Arc::clone(record), content: Some(model(VALUES)) };
    assert_eq!(at_rest(&mut world), [merge, Command::Replaced { request: REQUEST, outcome: Ok(replaced) }]);
    assert_eq!((world.state().version, world.state().reference_norm), (version, 5.0));
    assert_eq!(world.replayed(), *world.state());
}

/// An imported first model and one that an agent offers make the same record 0.
#[test]
fn the_first_model_of_a_run_may_be_imported() {
    let mut world = World::new();
    let commands = world.handle_at_rest(import([0.0; 4]));
    assert!(matches!(commands[0], Command::AppendModel { parent: None, .. }), "{commands:?}");
    assert_eq!((kinds(&commands), commands.len()), (vec!["genesis"], 1), "a record, and no answer");
    let mut offered = World::new();
    offered.connect(PeerId(1), 1);
    offered.offer_model(PeerId(1));
    let begun = offered.model_received(PeerId(1));
    assert_eq!(World::appended(&commands)[0], World::appended(&begun)[0]);

    let commands = at_rest(&mut world);
    let replaced = Replaced { position: Position(0), version: ModelVersion(0), before: None };
    assert!(
        matches!(&commands[..], [Command::Merge { .. }, Command::Replaced { outcome: Ok(done), .. }] if *done == replaced),
        "{commands:?}"
    );
}

#[test]
fn a_first_model_has_the_tensors_of_the_settings_in_any_order() {
    let mut spec = spec();
    (spec.model.kind, spec.model.hidden) = (ModelKind::Mlp, vec![2]);
    let native = spec.model.layers().expect("valid").expect("native").manifest;
    let reversed = ModelManifest::new(native.tensors().iter().rev().cloned().collect()).expect("valid");
    assert_ne!(native, reversed);
    let mut world = World::pending(spec);
    let commands = world.handle_at_rest(import(VALUES));
    assert!(
        matches!(commands[..], [Command::Replaced { outcome: Err(ReplaceError::OtherModel(_)), .. }]),
        "{commands:?}"
    );
    assert!(!world.has_begun());
    world.handle_at_rest(import_of(reversed.clone(), &vec![0.5; reversed.params()]));
    assert_eq!(world.state().manifest, reversed, "the order of the file is the run's");
}

#[test]
fn a_model_that_cannot_replace_the_newest_one_is_refused_and_nothing_changes() {
    let (mut world, _) = stopped();
    let tensor = |name: &str, len| TensorSpec { name: name.into(), shape: vec![len] };
    let other = ModelManifest::new(vec![tensor("other", 4)]).expect("valid");
    assert_eq!(refused(&mut world, import_of(other, &VALUES)), ReplaceError::OtherManifest);
    let short = refused(&mut world, import_of(manifest(), &VALUES[..3]));
    assert_eq!(short, ReplaceError::WrongLength { expected: 4, found: 3 });
    for value in [f32::NAN, f32::INFINITY] {
        assert_eq!(refused(&mut world, import([1.0, value, 0.0, 0.0])), ReplaceError::NotFinite);
    }
    world.handle_at_rest(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
    world.journal();
    assert_eq!(refused(&mut world, import(VALUES)), ReplaceError::Finished(ModelVersion(2)));
}

#[test]
fn a_rollback_starts_a_branch_and_then_a_checkpoint() {
    let (mut world, first) = stopped();
    world.handle_at_rest(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
    at_rest(&mut world);
    let commands = world.handle_at_rest(roll_back(earlier(&first)));
    let (record, _, parent) = stored(&commands);
    let (from, version, examples) = (first.position, ModelVersion(1), first.examples);
    assert!(examples > 0);
    let body = RecordBody::Branched { branch: BRANCH, from, version, norm: 5.0, examples };
    assert_eq!((&record.body, parent), (&body, Some(first.branch)));

    let commands_after = at_rest(&mut world);
    let replaced = Replaced { position: record.position, version, before: Some(ModelVersion(2)) };
    let [Command::Merge { content: Some(_), .. }, Command::Replaced { outcome, .. }, Command::Checkpoint(order)] =
        &commands_after[..]
    else {
        panic!("expected the model, the answer and a checkpoint, got {commands_after:?}")
    };
    assert_eq!(outcome, &Ok(replaced));
    assert_eq!((order.position, &order.state), (record.position, world.state()));
    let state = world.state();
    assert_eq!((state.branch, state.version, state.finished), (BRANCH, version, None));
    assert_eq!((state.leases_outstanding(), state.examples), (0, examples));
    assert_eq!(world.replayed(), *state);
}

#[test]
fn a_rollback_to_what_is_not_kept_is_refused_and_nothing_changes() {
    let mut world = World::new();
    let (mut run, first) = stopped();
    let commands = world.handle_at_rest(roll_back(earlier(&first)));
    let no_run = Command::Replaced { request: REQUEST, outcome: Err(ReplaceError::NoRun) };
    assert_eq!(commands, [no_run]);

    let position = run.position();
    run.handle_at_rest(Event::Checkpointed { position, version: ModelVersion(2), oldest: ModelVersion(1) });
    let version = ModelVersion(3);
    let why = refused(&mut run, roll_back(EarlierVersion { version, ..earlier(&first) }));
    assert_eq!(why, ReplaceError::Version { version, oldest: ModelVersion(1), newest: ModelVersion(2) });
    let taken = Event::RollBack { request: REQUEST, branch: first.branch, to: earlier(&first) };
    assert_eq!(refused(&mut run, taken), ReplaceError::BranchTaken(first.branch));
    let overflowed = EarlierVersion { model: model([f32::NAN; 4]), ..earlier(&first) };
    assert_eq!(refused(&mut run, roll_back(overflowed)), ReplaceError::NotFinite);
    let longer = EarlierVersion { model: content(Delta::Dense(vec![0.0; 5])), ..earlier(&first) };
    assert_eq!(refused(&mut run, roll_back(longer)), ReplaceError::WrongLength { expected: 4, found: 5 });
    // What recovery has rebuilt can be rebuilt, whatever the core takes for the oldest version.
    let version = ModelVersion(0);
    assert_eq!(kinds(&run.handle_at_rest(roll_back(EarlierVersion { version, ..earlier(&first) }))), ["branched"]);
}

/// Connected agents hold leases on the model that would be replaced.
#[test]
fn while_agents_are_connected_no_model_is_replaced() {
    let mut world = World::started(1);
    assert_eq!(refused(&mut world, import(VALUES)), ReplaceError::Serving);
    let here = earlier(world.state());
    assert_eq!(refused(&mut world, roll_back(here)), ReplaceError::Serving);
}

/// Everything that time makes due is due here; the next start does it.
#[test]
fn nothing_else_happens_to_a_stopped_coordinator_because_it_was_asked_for_something() {
    let imported = |_: &RunState| import(VALUES);
    let rolled_back = |first: &RunState| roll_back(earlier(first));
    for (event, own_checkpoints) in [(imported as fn(&RunState) -> Event, 0), (rolled_back, 1)] {
        let (mut world, first) = stopped();
        world.checkpoint_every_ms(LEASE_TTL_MS);
        world.advance_ms(100 * LEASE_TTL_MS);
        let mut commands = world.handle_at_rest(event(&first));
        commands.extend(at_rest(&mut world));
        assert_eq!(kinds(&commands).len(), 1, "{commands:?}");
        let other =
            |command: &&Command| matches!(command, Command::Publish { .. } | Command::Send { .. } | Command::Exit(_));
        assert_eq!(commands.iter().find(other), None);
        let checkpoints =
            |commands: &[Command]| commands.iter().filter(|command| matches!(command, Command::Checkpoint(_))).count();
        assert_eq!(checkpoints(&commands), own_checkpoints);
        let mut later = world.handle(Event::Tick);
        later.extend(world.journal());
        assert_eq!(checkpoints(&later), 1 - own_checkpoints, "an import leaves it to the next start: {later:?}");
    }
}

/// Killed between the contribution and its close: the contribution counts, and what is asked for comes after it.
#[test]
fn what_was_due_is_closed_before_a_model_is_replaced() {
    for event in [|_: &RunState| import(VALUES), |first: &RunState| roll_back(earlier(first))] {
        let (world, first) = stopped();
        // Without the close of version 2, its publication and the lease.
        let mut world = world.restarted_without(3, spec());
        let closed = world.state().clone();
        assert_eq!((closed.version, closed.round.contributions), (ModelVersion(2), 0));
        let commands = world.handle_at_rest(event(&first));
        let record = &World::appended(&commands)[0];
        assert_eq!(record.position, closed.position.next());
        let commands = at_rest(&mut world);
        let merged = commands.iter().filter_map(|command| match command {
            Command::Merge { record, .. } => Some(record.body.kind()),
            _ => None,
        });
        assert_eq!(merged.collect::<Vec<_>>(), ["closed", record.body.kind()]);
        assert_eq!(world.replayed(), *world.state());
    }
}

/// A buffer that is not full is dropped: its contributions were made for the model that goes.
#[test]
fn a_buffer_that_is_not_full_goes_with_its_model() {
    let merge =
        MergeSpec::FedBuff { buffer_size: 2, server_lr: 1.0, staleness: Default::default(), participation: false };
    for rolls_back in [false, true] {
        let mut world = World::started_with(RunSpec { merge: merge.clone(), ..spec() }, 1);
        let begun = world.state().clone();
        world.make_version(1, 0);
        assert_eq!((world.state().version, world.state().round.contributions), (ModelVersion(0), 1));
        world.handle(Event::Disconnected { peer: PeerId(1) });
        world.handle_at_rest(if rolls_back { roll_back(earlier(&begun)) } else { import(VALUES) });
        assert_eq!((world.state().round.contributions, world.state().examples), (0, 0));
        assert_eq!(world.replayed(), *world.state());
    }
}

#[test]
fn a_run_that_was_stopped_has_no_model_replaced_but_by_a_rollback() {
    let (mut world, first) = stopped();
    world.handle_at_rest(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
    assert_eq!(world.state().finished, Some((FinishReason::Stopped, ModelVersion(2))));
    at_rest(&mut world);
    assert_eq!(refused(&mut world, import(VALUES)), ReplaceError::Finished(ModelVersion(2)));
    assert_eq!(kinds(&world.handle_at_rest(roll_back(earlier(&first)))), ["branched"]);
}
