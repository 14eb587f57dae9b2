//! A base in the forms that rest on what is held, and version 0 as it is made here.

use anabranch_common::spec::ModelKind;

use super::*;

/// The request for the content of `of` as `version`, by an agent that holds the version `held`.
pub(super) fn fetch_model(version: u64, of: u64, purpose: FetchPurpose, held: Option<u64>) -> AgentMessage {
    let held = held.map(|held| (ModelVersion(held), digest(held)));
    AgentMessage::FetchModel { version: ModelVersion(version), digest: digest(of), purpose, held, missing: None }
}

/// A session that has trained on version 1, which came as a whole, and was granted a lease on version 5.
fn fetching() -> Session {
    let mut session = asking(config(100, 10), Kept::default());
    session.handle(0, grant(1, 1));
    session.handle(0, announce(1));
    session.handle(0, chunk(1));
    assert_eq!(session.handle(0, unpacked(1)), [train(&lease(1, 1))]);
    session.handle(1, Event::Trained(Box::new(outcome(&lease(1, 1)))));
    session.handle(2, Event::Banked(entry(0, &lease(1, 1))));
    assert_eq!(session.handle(3, decide(0, accepted())).last(), Some(&send(AgentMessage::RequestLease)));
    assert_eq!(session.handle(4, grant(2, 5)), [send(fetch_model(5, 5, FetchPurpose::Train, Some(1)))]);
    session
}

/// The forms that rest on the version `from`.
fn forms_from(from: u64) -> [ModelForm; 3] {
    let from = ModelVersion(from);
    [ModelForm::Track { from }, ModelForm::Xor { from }, ModelForm::Chain { from }]
}

fn announce_as(form: ModelForm) -> Event {
    let (version, transfer) = (ModelVersion(5), TransferManifest::of(&encoded(5)));
    say(CoordinatorMessage::Model { version, digest: digest(5), form, transfer })
}

fn unpack(form: ModelForm) -> Command {
    let onto = form.from().map(|from| (form, content(from.0)));
    Command::Unpack { version: ModelVersion(5), digest: digest(5), onto, encoded: encoded(5) }
}

fn unpack_failed() -> Event {
    Event::UnpackFailed { version: ModelVersion(5), digest: digest(5), problem: "torn".into() }
}

#[test]
fn a_form_is_applied_to_what_was_held_when_it_was_asked_for() {
    for form in forms_from(1) {
        let mut session = fetching();
        assert_eq!(session.handle(5, announce_as(form)), []);
        assert_eq!(session.handle(6, chunk(5)), [unpack(form)]);
        assert_eq!(session.handle(7, unpacked(5)), [train(&lease(2, 5))]);
    }
}

#[test]
fn a_form_that_rests_on_another_version_is_not_taken() {
    for form in forms_from(2) {
        let mut session = fetching();
        assert_eq!(session.handle(5, announce_as(form)), []);
        assert_eq!(session.replica().fetching(), Some((ModelVersion(5), 0, 0)), "it is still asked for");
        session.handle(6, announce(5));
        assert_eq!(session.handle(7, chunk(5)), [unpack(ModelForm::Snapshot)]);
    }
}

/// The replica is not what the coordinator believes: the whole model is asked for, once.
#[test]
fn a_form_that_leads_elsewhere_is_followed_by_the_whole_model() {
    for form in forms_from(1) {
        let mut session = fetching();
        session.handle(5, announce_as(form));
        session.handle(6, chunk(5));
        let whole = send(fetch_model(5, 5, FetchPurpose::Train, None));
        assert_eq!(session.handle(7, unpack_failed()), [whole]);
        assert_eq!(session.handle(8, announce_as(form)), [], "it was not asked for");
        session.handle(9, announce(5));
        assert_eq!(session.handle(10, chunk(5)), [unpack(ModelForm::Snapshot)]);
        assert_eq!(session.handle(11, unpack_failed()), [give_back(2)], "the whole model is no better");
    }
}

/// A coordinator that was started again makes another form than the one that was half here. Its announcement comes again with
/// the answer to the request for all of it, and the chunks that came before that are not lost.
#[test]
fn another_form_takes_the_place_of_one_that_is_half_here() {
    let mut session = fetching();
    session.handle(5, announce_as(ModelForm::Snapshot));
    let [_, form, _] = forms_from(1);
    let other = TransferManifest::of(&encoded(6));
    let (version, digest) = (ModelVersion(5), digest(5));
    let announce = CoordinatorMessage::Model { version, digest, form, transfer: other };
    let all = send(fetch_model(5, 5, FetchPurpose::Train, Some(1)));
    assert_eq!(session.handle(6, say(announce.clone())), [all]);
    assert_eq!(session.handle(7, chunk(6)), [], "it came before it was announced");
    let onto = Some((form, content(1)));
    assert_eq!(session.handle(8, say(announce)), [Command::Unpack { version, digest, onto, encoded: encoded(6) }]);
}

/// What is evaluated does not take the place of what the next base rests on.
#[test]
fn an_evaluation_leaves_the_replica() {
    let mut session = fetching();
    session.handle(5, announce_as(forms_from(1)[0]));
    session.handle(6, chunk(5));
    assert_eq!(session.handle(7, unpacked(5)), [train(&lease(2, 5))]);
    let evaluate = CoordinatorMessage::Evaluate { version: ModelVersion(6), digest: digest(90) };
    assert_eq!(session.handle(8, say(evaluate)), [send(fetch_model(6, 90, FetchPurpose::Evaluate, None))]);
    let commands = session.handle(9, Event::Trained(Box::new(outcome(&lease(2, 5)))));
    assert_eq!(commands, [bank(&lease(2, 5), 1)]);
    let (version, digest_of) = (ModelVersion(6), digest(90));
    let transfer = TransferManifest::of(&encoded(90));
    let form = ModelForm::Snapshot;
    session.handle(10, say(CoordinatorMessage::Model { version, digest: digest_of, form, transfer }));
    session.handle(11, chunk(90));
    let evaluated = session.handle(12, Event::Unpacked { version, digest: digest_of, content: content(90) });
    assert_eq!(evaluated, [Command::Evaluate { version, content: content(90) }]);
    assert_eq!(session.replica().held().map(|held| held.version), Some(ModelVersion(5)));
}

/// A session of a run with a native model, whose version 0 was made elsewhere.
fn native() -> (Session, Vec<Command>) {
    let mut session = Session::new(config(100, 0), Kept::default());
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    let mut welcomed = welcome(BRANCH, Some(digest(0)), RunPhase::Running);
    if let Event::Message(CoordinatorMessage::Welcome(welcome)) = &mut welcomed {
        welcome.spec.model.kind = ModelKind::Mlp;
    }
    session.handle(0, welcomed);
    let commands = session.handle(0, Event::Prepared { manifest: manifest("w") });
    (session, commands)
}

fn made(version: u64) -> Event {
    let bytes: Arc<[u8]> = encoded(version).into();
    let transfer = TransferManifest::of(&bytes);
    Event::InitialMade(InitialModel { content: content(version), digest: digest(version), encoded: bytes, transfer })
}

#[test]
fn version_0_of_a_native_model_is_made_before_a_lease_is_asked_for() {
    let (mut session, commands) = native();
    assert_eq!(commands, [Command::MakeInitial { seed: 7 }]);
    assert_eq!(session.handle(1, Event::Tick), [], "it is being made");
    assert_eq!(session.handle(2, made(0)), [send(AgentMessage::RequestLease)]);
    let fetch = send(fetch_model(5, 5, FetchPurpose::Train, Some(0)));
    assert_eq!(session.handle(3, grant(1, 5)), [fetch]);
}

/// It was imported, or made by another program.
#[test]
fn another_version_0_than_the_runs_is_dropped() {
    let (mut session, _) = native();
    assert_eq!(session.handle(2, made(9)), [send(AgentMessage::RequestLease)]);
    assert_eq!(session.handle(3, grant(1, 0)), [send(fetch_model(0, 0, FetchPurpose::Train, None))]);
}
