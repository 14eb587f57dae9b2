//! New keys of members, and the way from one CA to the next.

use anabranch_common::status::CaStatus;
use anabranch_common::wire::message::RenewalKey;
use anabranch_io::tls;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PublicKeyData as _};

use super::*;
use crate::registry::certificates::Authorities;

const FUTURE_MS: u64 = 1_000_000;

/// A CA's certificate in DER, and the name of its key.
fn ca() -> (Vec<u8>, Option<Digest>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let der = params.self_signed(&KeyPair::generate().expect("a key")).expect("signed").der().to_vec();
    let id = tls::authority_id(&der);
    assert!(id.is_some());
    (der, id)
}

fn authorities(ders: &[&[u8]]) -> Authorities {
    let cas = tls::Authorities::new(ders.iter().map(|der| der.to_vec()).collect());
    Authorities::of(&cas).expect("at least one")
}

fn certificate(key: AgentId, authority: Option<Digest>) -> Certificate {
    Certificate { key, authority, expires_at_ms: FUTURE_MS, version: 7 }
}

/// A request for a certificate, and the id of its key.
fn request() -> (Vec<u8>, AgentId) {
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default().serialize_request(&key).expect("signed").der().to_vec();
    (csr, AgentId::of_public_key(&key.subject_public_key_info()))
}

fn shown(registry: &mut Registry, agent: AgentId, certificate: Certificate) {
    let command = registry.handle(NOW, Event::Shown { agent, certificate });
    if let Some(Command::Save(job)) = command {
        let next = registry.handle(NOW, Event::Saved { ticket: job.ticket });
        assert!(matches!(next, None | Some(Command::CloseReplaced { .. })), "{next:?}");
    }
}

fn rotate(agent: Option<&str>) -> Event {
    operator(RegistryRequest::AgentRotate { agent: agent.map(str::to_owned) })
}

fn renew(csr_der: &[u8]) -> Event {
    Event::Renew { peer: PeerId(4), agent: AGENT, csr_der: csr_der.to_vec() }
}

fn answered(command: Option<Command>) -> OperatorResponse {
    match command {
        Some(Command::Reply { response, .. } | Command::AskToRenew { response, .. }) => response,
        other => panic!("expected an answer, got {other:?}"),
    }
}

#[test]
fn the_old_key_is_refused_once_the_new_one_has_been_used_and_not_before() {
    let mut registry = with_a_member();
    let old = certificate(AGENT, None);
    assert_eq!(registry.renewal_wanted(AGENT, &old), None);
    let (csr, key) = request();
    assert!(
        matches!(registry.handle(NOW, renew(&csr)), Some(Command::Sign(_))),
        "the signer sees that it is another key"
    );

    let asks = saved(&mut registry, rotate(Some("ward-1")));
    assert!(matches!(&asks, Some(Command::AskToRenew { .. })), "{asks:?}");
    assert_eq!(registry.renewal_wanted(AGENT, &old), Some(RenewalKey::New));
    assert_eq!(registry.renewal_wanted(AGENT, &Certificate { version: 6, ..old }), None, "it would not understand");

    let Some(Command::Save(job)) = registry.handle(NOW, renew(&csr)) else { panic!("the key is durable first") };
    assert_eq!(registry.handle(NOW, renew(&request().0)), None, "one key of each member waits for the disk");
    let purpose = Purpose::Renewal { peer: PeerId(4), key };
    let Some(Command::Sign(SignerJob::Certificate(signed))) = registry.handle(NOW, Event::Saved { ticket: job.ticket })
    else {
        panic!("expected a certificate")
    };
    assert_eq!(signed.purpose, purpose);
    for key in [AGENT, key] {
        assert_eq!(registry.greet(AGENT, Some(&certificate(key, None))), Ok("ward-1"), "the answer may be lost");
    }
    assert!(registry.roster().member(AGENT).is_some_and(|member| member.rotates));

    assert!(registry.switches(AGENT, &certificate(key, None)) && !registry.switches(AGENT, &old));
    let first = Event::Shown { agent: AGENT, certificate: certificate(key, None) };
    let Some(Command::Save(job)) = registry.handle(NOW, first) else { panic!("expected an item") };
    for key in [AGENT, key] {
        let greeted = registry.greet(AGENT, Some(&certificate(key, None)));
        assert_eq!(greeted, Err(Rejection::Busy), "a crash may undo that the new key counts");
    }
    let over = registry.handle(NOW, Event::Saved { ticket: job.ticket });
    assert_eq!(over, Some(Command::CloseReplaced { agent: AGENT }));
    assert_eq!(registry.greet(AGENT, Some(&certificate(key, None))), Ok("ward-1"));
    assert_eq!(registry.greet(AGENT, Some(&old)), Err(Rejection::OldCertificate));
    assert_eq!(registry.renewal_wanted(AGENT, &certificate(key, None)), None, "it is through");
    let again = Event::Join { request: REQUEST, run: RUN, secret: SECRET, agent: AGENT, csr_der: vec![3] };
    let refused = Some(Command::RefuseJoin { request: REQUEST, refusal: JoinRefusal::Revoked });
    assert_eq!(registry.handle(NOW, again), refused, "the old key joins nobody");
    let again = Event::Join { request: REQUEST, run: RUN, secret: SECRET, agent: key, csr_der: vec![3] };
    let Some(Command::Sign(job)) = saved(&mut registry, again) else { panic!("expected a certificate") };
    assert_eq!(job.agent(), Some(AGENT), "the new key is the same member's");
}

#[test]
fn a_rotation_survives_a_restart_at_each_step() {
    let restored = |registry: &mut Registry, event| {
        let Some(Command::Save(job)) = registry.handle(NOW, event) else { panic!("expected items") };
        let mut roster = Roster::default();
        for (key, value) in &job.items {
            roster.restore(key, value.as_ref().expect("a member")).expect("as saved");
        }
        registry.handle(NOW, Event::Saved { ticket: job.ticket });
        Registry::new(roster)
    };
    let mut registry = with_a_member();
    let (csr, key) = request();
    let old = certificate(AGENT, None);
    let marked = restored(&mut registry, rotate(None));
    assert_eq!(marked.renewal_wanted(AGENT, &old), Some(RenewalKey::New), "it is asked when it comes back");
    let issued = restored(&mut registry, renew(&csr));
    assert_eq!([AGENT, key].map(|key| issued.greet(AGENT, Some(&certificate(key, None))).is_ok()), [true; 2]);
    let used = restored(&mut registry, Event::Shown { agent: AGENT, certificate: certificate(key, None) });
    assert_eq!([AGENT, key].map(|key| used.greet(AGENT, Some(&certificate(key, None))).is_ok()), [false, true]);
}

#[test]
fn a_key_has_one_owner() {
    let mut registry = with_a_member();
    let other = AgentId([2; 16]);
    saved(&mut registry, join(other));
    saved(&mut registry, rotate(None));
    let (csr, key) = request();
    saved(&mut registry, renew(&csr));
    let of_other = |csr: &[u8]| Event::Renew { peer: PeerId(5), agent: other, csr_der: csr.to_vec() };
    assert_eq!(registry.handle(NOW, of_other(&csr)), None, "it is another member's");
    shown(&mut registry, AGENT, certificate(key, None));
    assert_eq!(registry.handle(NOW, of_other(&csr)), None);
    assert_eq!(registry.handle(NOW, of_other(b"no request")), None);
    assert!(matches!(saved(&mut registry, of_other(&request().0)), Some(Command::Sign(_))));
}

#[test]
fn a_rollover_asks_members_and_waits_for_them() {
    let ((present_der, present), (next_der, next)) = (ca(), ca());
    let mut registry = with_a_member().with_authorities(Some(authorities(&[&present_der])));
    let other = AgentId([2; 16]);
    saved(&mut registry, join(other));
    let by = |authority| certificate(AGENT, authority);
    shown(&mut registry, AGENT, by(present));
    assert_eq!(registry.greet(AGENT, Some(&by(next))), Err(Rejection::OldCertificate), "of a CA that nobody trusts");
    let finish = |force| operator(RegistryRequest::CaFinish { force });
    assert!(matches!(answered(registry.handle(NOW, finish(true))), OperatorResponse::Conflict(_)), "none has begun");

    let begin = registry.handle(NOW, operator(RegistryRequest::CaRotate));
    assert!(matches!(begin, Some(Command::Sign(SignerJob::Authority(_)))), "{begin:?}");
    let failed = Event::AuthorityDone { request: REQUEST, outcome: Err("no space".into()) };
    assert_eq!(answered(registry.handle(NOW, failed)), OperatorResponse::Failed("no space".into()));
    let both = authorities(&[&present_der, &next_der]);
    let done = Event::AuthorityDone { request: REQUEST, outcome: Ok((AuthorityStep::Begin, both)) };
    assert!(matches!(registry.handle(NOW, done), Some(Command::AskToRenew { .. })));
    assert!(matches!(
        answered(registry.handle(NOW, operator(RegistryRequest::CaRotate))),
        OperatorResponse::Conflict(_)
    ));

    assert_eq!(registry.renewal_wanted(AGENT, &by(present)), Some(RenewalKey::Same));
    assert_eq!(registry.renewal_wanted(AGENT, &by(next)), None);
    let status = |registry: &mut Registry| -> CaStatus {
        match answered(registry.handle(NOW, operator(RegistryRequest::CaStatus))) {
            OperatorResponse::Json(text) => serde_json::from_str(&text).expect("JSON"),
            other => panic!("{other:?}"),
        }
    };
    let names = |status: &CaStatus| status.waiting.iter().map(|member| member.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&status(&mut registry)), ["ward-1", "ward-2"]);
    match answered(registry.handle(NOW, finish(false))) {
        OperatorResponse::Conflict(why) => assert!(why.contains("ward-1, ward-2") && why.contains("--force"), "{why}"),
        other => panic!("{other:?}"),
    }

    shown(&mut registry, AGENT, by(next));
    let older = Certificate { version: 6, ..certificate(other, next) };
    shown(&mut registry, other, older);
    assert_eq!(names(&status(&mut registry)), ["ward-2"], "what an older agent trusts is not known");
    shown(&mut registry, other, Certificate { expires_at_ms: NOW.unix_ms, ..certificate(other, present) });
    assert!(status(&mut registry).waiting[0].expired);
    assert_eq!(registry.keeps_from_finishing(NOW), None, "one that has expired joins again in any case");
    let end = registry.handle(NOW, finish(false));
    assert!(matches!(end, Some(Command::Sign(SignerJob::Authority(_)))), "{end:?}");
    let done =
        Event::AuthorityDone { request: REQUEST, outcome: Ok((AuthorityStep::Finish, authorities(&[&next_der]))) };
    registry.handle(NOW, done);
    assert_eq!(registry.greet(AGENT, Some(&by(next))), Ok("ward-1"));
    assert_eq!(registry.greet(AGENT, Some(&by(present))), Err(Rejection::OldCertificate));
    assert_eq!(names(&status(&mut registry)), [""; 0]);
}

#[test]
fn of_many_members_that_are_left_a_few_are_named() {
    let ((present_der, _), (next_der, _)) = (ca(), ca());
    let mut roster = Roster::default();
    let secret_digest = Digest::of(&SECRET).0;
    let token = NewToken { secret_digest, name: Some("ward".into()), ttl_ms: 60_000, uses: 99, runs: BTreeSet::new() };
    roster.create_token(token, 0).expect("a sound token");
    let members = u8::try_from(limits::MEMBERS_NAMED + 3).expect("few");
    (1..=members).for_each(|n| drop(roster.join(&SECRET, AgentId([n; 16]), 1).expect("good")));
    let registry = Registry::new(roster).with_authorities(Some(authorities(&[&present_der, &next_der])));
    let why = registry.keeps_from_finishing(NOW).expect("everybody is left");
    assert!(why.starts_with("13 members") && why.contains(" and 3 more; "), "{why}");
}

/// While the disk stalls a member that connects again and again costs one job.
#[test]
fn of_each_member_one_certificate_waits_to_be_saved() {
    let mut registry = with_a_member();
    let by = |expires_at_ms| Event::Shown {
        agent: AGENT,
        certificate: Certificate { expires_at_ms, ..certificate(AGENT, None) },
    };
    let Some(Command::Save(first)) = registry.handle(NOW, by(5)) else { panic!("expected an item") };
    assert_eq!([6, 7].map(|at_ms| registry.handle(NOW, by(at_ms))), [None, None]);
    let Some(Command::Save(second)) = registry.handle(NOW, Event::Saved { ticket: first.ticket }) else {
        panic!("expected the latest one")
    };
    assert_eq!(second.items.len(), 1);
    assert_eq!(registry.handle(NOW, Event::Saved { ticket: second.ticket }), None);
    assert_eq!(registry.handle(NOW, by(7)), None, "it is saved");
}

/// Whoever holds a copy of the present key may ask, too.
#[test]
fn a_next_key_stays_until_an_operator_asks_again() {
    let mut registry = with_a_member();
    saved(&mut registry, rotate(None));
    let ((first, first_key), (second, second_key)) = (request(), request());
    saved(&mut registry, renew(&first));
    assert_eq!(registry.handle(NOW, renew(&second)), None, "another key has come first");
    let repeated = registry.handle(NOW, renew(&first));
    assert!(matches!(saved_or_signed(&mut registry, repeated), Some(Command::Sign(_))), "its answer may be lost");
    let next = |registry: &Registry| registry.roster().member(AGENT).and_then(|member| member.next_key);
    assert_eq!(next(&registry), Some(first_key));
    saved(&mut registry, rotate(Some("ward-1")));
    assert!(matches!(saved(&mut registry, renew(&second)), Some(Command::Sign(_))));
    assert_eq!(next(&registry), Some(second_key));
    assert_eq!(registry.handle(NOW, renew(&first)), None, "an operator asks for one more");
}

fn saved_or_signed(registry: &mut Registry, command: Option<Command>) -> Option<Command> {
    match command {
        Some(Command::Save(job)) => registry.handle(NOW, Event::Saved { ticket: job.ticket }),
        other => other,
    }
}

fn issued(until_ms: u64) -> Event {
    let renewal = Renewal { peer: PeerId(4), certificate_der: vec![4], ca_ders: Vec::new() };
    Event::Issued { agent: AGENT, until_ms, renewal }
}

/// An ordinary renewal makes no new connection, so nothing is shown.
#[test]
fn a_renewed_certificate_counts_from_when_it_is_sent() {
    let ((present_der, present), (next_der, _)) = (ca(), ca());
    let cas = Some(authorities(&[&present_der, &next_der]));
    let mut registry = with_a_member().with_authorities(cas);
    shown(&mut registry, AGENT, Certificate { expires_at_ms: NOW.unix_ms, ..certificate(AGENT, present) });
    assert_eq!(registry.keeps_from_finishing(NOW), None, "it has expired");
    registry.set_connected(BTreeSet::from([AGENT]));
    assert!(registry.keeps_from_finishing(NOW).is_some(), "it can renew over its connection");
    registry.set_connected(BTreeSet::new());

    let Some(Command::Save(job)) = registry.handle(NOW, issued(FUTURE_MS)) else { panic!("durable before it is sent") };
    assert_eq!(registry.handle(NOW, issued(FUTURE_MS + 1)), None, "one of each member waits for the disk");
    let mut roster = Roster::default();
    for (key, value) in &job.items {
        roster.restore(key, value.as_ref().expect("a member")).expect("as saved");
    }
    let sent = registry.handle(NOW, Event::Saved { ticket: job.ticket });
    assert!(matches!(sent, Some(Command::SendRenewed { agent: AGENT, .. })), "{sent:?}");
    for registry in [&registry, &Registry::new(roster).with_authorities(cas)] {
        assert!(registry.keeps_from_finishing(NOW).is_some_and(|why| why.contains("ward-1")));
        let mut agents = Vec::new();
        registry.complete(&mut agents);
        assert_eq!(agents[0].certificate_expires_at_ms, Some(FUTURE_MS));
    }
    let later = Now { unix_ms: FUTURE_MS, ..NOW };
    assert_eq!(registry.keeps_from_finishing(later), None);
}

/// It may have connected with nothing of what it holds.
#[test]
fn a_member_whose_certificate_has_expired_and_that_joins_again_counts() {
    let ((present_der, present), (next_der, _)) = (ca(), ca());
    let mut registry = with_a_member().with_authorities(Some(authorities(&[&present_der, &next_der])));
    shown(&mut registry, AGENT, Certificate { expires_at_ms: NOW.unix_ms, ..certificate(AGENT, present) });
    assert_eq!(registry.keeps_from_finishing(NOW), None);
    let Some(Command::Save(job)) = registry.handle(NOW, join(AGENT)) else { panic!("expected items") };
    assert_eq!(job.items.len(), 1, "the member's item");
    assert!(registry.keeps_from_finishing(NOW).is_some());
}
