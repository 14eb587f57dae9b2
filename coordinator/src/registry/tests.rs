//! What the registry does with events, as exact commands.

mod certificates;

use anabranch_common::ids::Digest;
use anabranch_common::token::PagePermission;

use super::*;
use crate::store::Store as _;
use crate::store::for_tests::MapStore;

const RUN: RunId = RunId([1; 16]);
const SECRET: [u8; 32] = [7; 32];
const AGENT: AgentId = AgentId([1; 16]);
const REQUEST: RequestId = RequestId(5);
const NOW: Now = Now { unix_ms: 1_000, mono_ms: 10 };

/// A registry with a token for two agents.
fn registry() -> Registry {
    let mut roster = Roster::default();
    let secret_digest = Digest::of(&SECRET).0;
    let token = NewToken { secret_digest, name: Some("ward".into()), ttl_ms: 60_000, uses: 2, runs: BTreeSet::new() };
    roster.create_token(token, 0).expect("a sound token");
    roster.take_changes().expect("short");
    Registry::new(roster)
}

/// The same with a member whose item is durable.
fn with_a_member() -> Registry {
    let mut registry = registry();
    let job = saved(&mut registry, join(AGENT));
    assert!(matches!(job, Some(Command::Sign(_))), "{job:?}");
    registry
}

fn join(agent: AgentId) -> Event {
    Event::Join { request: REQUEST, run: RUN, secret: SECRET, agent, csr_der: vec![3] }
}

fn revoke(who: &str) -> Event {
    operator(RegistryRequest::AgentRevoke { agent: who.into() })
}

fn operator(operation: RegistryRequest) -> Event {
    Event::Operator { request: REQUEST, operation }
}

/// Handles an event that saves something, and returns what follows once it is durable.
fn saved(registry: &mut Registry, event: Event) -> Option<Command> {
    let Some(Command::Save(job)) = registry.handle(NOW, event) else { panic!("expected items to be saved") };
    registry.handle(NOW, Event::Saved { ticket: job.ticket })
}

fn sign(purpose: Purpose, name: &str) -> Option<Command> {
    let job = SignJob { purpose, agent: AGENT, name: name.into(), csr_der: vec![3], at_ms: NOW.unix_ms };
    Some(Command::Sign(SignerJob::Certificate(job)))
}

#[test]
fn a_use_of_a_token_is_durable_before_a_certificate_is_ordered_and_a_retry_gets_the_same() {
    let mut registry = registry();
    assert_eq!(registry.greet(AGENT, None), Err(Rejection::Unknown));
    let Some(Command::Save(first)) = registry.handle(NOW, join(AGENT)) else { panic!("expected items") };
    assert_eq!(first.items.len(), 1, "the member's item");
    let Some(Command::Save(retry)) = registry.handle(NOW, join(AGENT)) else { panic!("expected items") };
    assert_eq!(retry.items, [], "nothing has changed, and the answer waits for what is being saved");
    assert_eq!(registry.greet(AGENT, None), Err(Rejection::Busy), "a crash may undo its use of the token");
    let purpose = Purpose::Join { request: REQUEST, run: RUN };
    for ticket in [first.ticket, retry.ticket] {
        assert_eq!(registry.handle(NOW, Event::Saved { ticket }), sign(purpose, "ward-1"));
    }
    assert_eq!(registry.handle(NOW, Event::Saved { ticket: first.ticket }), None, "once");
    assert_eq!(registry.greet(AGENT, None), Ok("ward-1"));
}

#[test]
fn who_may_not_join_hears_why_at_once() {
    let mut registry = with_a_member();
    let unknown = Event::Join { request: REQUEST, run: RUN, secret: [0; 32], agent: AGENT, csr_der: vec![] };
    let refused = |refusal| Some(Command::RefuseJoin { request: REQUEST, refusal });
    assert_eq!(registry.handle(NOW, unknown), refused(JoinRefusal::UnknownToken));
    saved(&mut registry, join(AgentId([2; 16])));
    assert_eq!(registry.handle(NOW, join(AgentId([3; 16]))), refused(JoinRefusal::UsedToken));
    saved(&mut registry, revoke("ward-1"));
    assert_eq!(registry.handle(NOW, join(AGENT)), refused(JoinRefusal::Revoked));
}

/// Otherwise an agent would be told of a change that a crash can undo.
#[test]
fn a_refusal_of_a_join_waits_for_the_changes_that_it_follows_from() {
    let refused = |refusal| Some(Command::RefuseJoin { request: REQUEST, refusal });
    let ticket = |command: Option<Command>| match command {
        Some(Command::Save(job)) => (job.ticket, job.items.len()),
        other => panic!("expected items, got {other:?}"),
    };
    let mut registry = with_a_member();
    let unknown = Event::Join { request: REQUEST, run: RUN, secret: [0; 32], agent: AgentId([4; 16]), csr_der: vec![] };
    let (second, _) = ticket(registry.handle(NOW, join(AgentId([2; 16]))));
    assert_eq!(registry.handle(NOW, unknown), refused(JoinRefusal::UnknownToken), "no token is being changed");
    let (used, items) = ticket(registry.handle(NOW, join(AgentId([3; 16]))));
    assert_eq!(items, 0, "it waits for the use that was the last one");
    assert!(matches!(registry.handle(NOW, Event::Saved { ticket: second }), Some(Command::Sign(_))));
    assert_eq!(registry.handle(NOW, Event::Saved { ticket: used }), refused(JoinRefusal::UsedToken));

    ticket(registry.handle(NOW, revoke("ward-1")));
    let (revoked, items) = ticket(registry.handle(NOW, join(AGENT)));
    assert_eq!(items, 0, "it waits for the revocation");
    assert_eq!(registry.handle(NOW, Event::Saved { ticket: revoked }), refused(JoinRefusal::Revoked));

    let id = registry.roster().tokens().list()[0].id.clone();
    ticket(registry.handle(NOW, operator(RegistryRequest::TokenRevoke { id })));
    for _ in 3..limits::JOINS_WAITING {
        ticket(registry.handle(NOW, join(AgentId([3; 16]))));
    }
    let deferred = Some(Command::DeferJoin { request: REQUEST });
    let (last, items) = ticket(registry.handle(NOW, join(AgentId([3; 16]))));
    assert_eq!(
        (items, registry.handle(NOW, join(AgentId([3; 16])))),
        (0, deferred),
        "refusals wait in the room of joins"
    );
    assert_eq!(registry.handle(NOW, Event::Saved { ticket: last }), refused(JoinRefusal::UnknownToken));
    ticket(registry.handle(NOW, join(AgentId([3; 16]))));
}

/// While the disk stalls nothing that was asked for may fill the memory, and joins must not keep an operator from revoking
/// the token that they use.
#[test]
fn joins_beyond_what_may_wait_are_deferred_and_operators_have_room_of_their_own() {
    let mut registry = registry();
    let mut tickets = Vec::new();
    for _ in 0..limits::JOINS_WAITING {
        let Some(Command::Save(job)) = registry.handle(NOW, join(AGENT)) else { panic!("expected items") };
        tickets.push(job.ticket);
    }
    let deferred = Some(Command::DeferJoin { request: REQUEST });
    let newcomer = AgentId([2; 16]);
    assert_eq!(registry.handle(NOW, join(newcomer)), deferred);
    assert!(registry.roster().member(newcomer).is_none(), "no use of the token is taken");
    for _ in 0..limits::REGISTRY_CHANGES_WAITING {
        let change = registry.handle(NOW, revoke(&AGENT.to_string()));
        assert!(matches!(change, Some(Command::Save(_))), "{change:?}");
    }
    let refused = registry.handle(NOW, revoke(&AGENT.to_string()));
    let Some(Command::Reply { response: OperatorResponse::Failed(why), .. }) = refused else { panic!("{refused:?}") };
    assert!(why.starts_with("the disk is slow"), "{why}");
    let listed = registry.handle(NOW, operator(RegistryRequest::TokenList));
    assert!(matches!(&listed, Some(Command::Reply { response: OperatorResponse::Json(_), .. })), "{listed:?}");

    for ticket in tickets {
        assert!(matches!(registry.handle(NOW, Event::Saved { ticket }), Some(Command::Sign(_))));
    }
    assert_eq!(registry.handle(NOW, join(newcomer)), deferred, "as many certificates are being issued");
    registry.handle(NOW, Event::JoinAnswered);
    assert!(matches!(registry.handle(NOW, join(newcomer)), Some(Command::Save(_))));
    assert_eq!(registry.handle(NOW, join(newcomer)), deferred);
    let saved = registry.handle(NOW, Event::Saved { ticket: limits::JOINS_WAITING as u64 });
    assert!(matches!(saved, Some(Command::Revoke { .. })), "{saved:?}");
    assert!(matches!(registry.handle(NOW, revoke(&AGENT.to_string())), Some(Command::Save(_))));
}

#[test]
fn a_revocation_counts_once_it_is_durable_and_then_every_run_is_told() {
    let mut registry = with_a_member();
    let Some(Command::Save(job)) = registry.handle(NOW, revoke("ward-1")) else { panic!("expected items") };
    assert_eq!((registry.greet(AGENT, None), registry.revoked().count()), (Ok("ward-1"), 0), "a crash may undo it");
    let response = OperatorResponse::Done(format!("revoked ward-1 ({AGENT}); its connections are closed"));
    let told = |response| Some(Command::Revoke { request: REQUEST, agent: AGENT, response });
    assert_eq!(registry.handle(NOW, Event::Saved { ticket: job.ticket }), told(response));
    assert_eq!((registry.greet(AGENT, None), registry.revoked().collect()), (Err(Rejection::Revoked), vec![AGENT]));
    let again = registry.handle(NOW, revoke(&AGENT.to_string()));
    let Some(Command::Save(job)) = again else { panic!("expected items, got {again:?}") };
    assert_eq!(
        (&job.items[..], registry.greet(AGENT, None)),
        (&[][..], Err(Rejection::Revoked)),
        "it was saved before"
    );
    let response = OperatorResponse::Done(format!("ward-1 ({AGENT}) was revoked already"));
    let saved = registry.handle(NOW, Event::Saved { ticket: job.ticket });
    assert_eq!(saved, told(response), "a run may have lost its record");
    let nobody = registry.handle(NOW, revoke("ward-9"));
    assert!(matches!(&nobody, Some(Command::Reply { response: OperatorResponse::NotFound(_), .. })), "{nobody:?}");
}

#[test]
fn certificates_are_renewed_for_members_as_far_as_they_can_pay() {
    let mut registry = with_a_member();
    let peer = PeerId(4);
    let renew = |agent| Event::Renew { peer, agent, csr_der: vec![3] };
    assert_eq!(registry.handle(NOW, renew(AGENT)), sign(Purpose::Renewal { peer, key: AGENT }, "ward-1"));
    assert_eq!(registry.handle(NOW, renew(AgentId([9; 16]))), None, "no member");
    let signed = (0..1_000).filter(|_| registry.handle(NOW, renew(AGENT)).is_some()).count() as u64;
    assert_eq!(signed, limits::AGENT_RECORDS_BURST - 1);
    let later = Now { mono_ms: NOW.mono_ms + 60_000, ..NOW };
    assert!(registry.handle(later, renew(AGENT)).is_some());
    registry.handle(later, revoke("ward-1"));
    assert_eq!(registry.handle(later, renew(AGENT)), None, "its revocation is being saved");
}

#[test]
fn tokens_are_made_listed_and_revoked_and_each_change_is_durable_before_its_answer() {
    let mut registry = registry();
    let create =
        RegistryRequest::TokenCreate { name: None, ttl_ms: 1_000, uses: 1, secret_digest: [3; 32], runs: Vec::new() };
    let made = saved(&mut registry, operator(create.clone()));
    let Some(Command::Reply { request: REQUEST, response: OperatorResponse::Done(id) }) = made else {
        panic!("expected an id, got {made:?}")
    };
    let again = registry.handle(NOW, operator(create));
    assert!(matches!(&again, Some(Command::Reply { response: OperatorResponse::Failed(_), .. })), "{again:?}");
    let revoked = saved(&mut registry, operator(RegistryRequest::TokenRevoke { id: id.clone() }));
    let response = OperatorResponse::Done(format!("revoked token {id}"));
    assert_eq!(revoked, Some(Command::Reply { request: REQUEST, response }));
    let listed = registry.handle(NOW, operator(RegistryRequest::TokenList));
    let Some(Command::Reply { response: OperatorResponse::Json(text), .. }) = listed else { panic!("{listed:?}") };
    assert!(text.contains(&id) && text.contains("\"revoked\":true"), "{text}");
    let unknown = registry.handle(NOW, operator(RegistryRequest::TokenRevoke { id: "x".into() }));
    assert!(matches!(&unknown, Some(Command::Reply { response: OperatorResponse::NotFound(_), .. })), "{unknown:?}");
}

#[test]
fn a_runs_agents_are_completed_with_the_members_that_it_has_not_seen() {
    let mut registry = with_a_member();
    saved(&mut registry, join(AgentId([2; 16])));
    saved(&mut registry, revoke("ward-2"));
    let seen = AgentStatus { updates_accepted: 7, ..status::unseen(AGENT) };
    let mut agents = vec![seen];
    registry.complete(&mut agents);
    let shown: Vec<_> = agents.iter().map(|agent| (&*agent.name, agent.revoked, agent.updates_accepted)).collect();
    assert_eq!(shown, [("ward-1", false, 7), ("ward-2", true, 0)]);
    let Some(Command::Save(job)) = registry.handle(NOW, revoke("ward-1")) else { panic!("expected items") };
    registry.complete(&mut agents);
    assert!(!agents[0].revoked, "a crash may undo it");
    registry.handle(NOW, Event::Saved { ticket: job.ticket });
    registry.complete(&mut agents);
    assert!(agents[0].revoked);
}

#[test]
fn jobs_are_saved_in_order_with_one_sync() {
    let mut registry = registry();
    let mut job = |agent| match registry.handle(NOW, join(AgentId([agent; 16]))) {
        Some(Command::Save(job)) => job,
        other => panic!("expected items, got {other:?}"),
    };
    let (store, mut waiting) = (MapStore::new(), std::collections::VecDeque::from([job(1), job(2)]));
    let group = save::group(&mut waiting);
    assert!(waiting.is_empty());
    assert_eq!(save::save(store.catalogue(), group).expect("memory"), [0, 1]);
    assert_eq!(store.catalogue().list(roster::MEMBER_KEYS).expect("memory").len(), 2);
}

#[test]
fn page_tokens_grant_what_is_durable_and_uses_are_saved_one_at_a_time() {
    let (mut registry, secret) = (registry(), [5; 32]);
    let create = |secret: &[u8; 32]| RegistryRequest::PageTokenCreate {
        name: Some("anna".into()),
        ttl_ms: 60_000,
        permission: PagePermission::Operate,
        secret_digest: Digest::of(secret).0,
    };
    let Some(Command::Save(job)) = registry.handle(NOW, operator(create(&secret))) else { panic!("expected items") };
    assert_eq!(registry.page_grants().of_secret(&secret, NOW.unix_ms), None, "a crash may undo it");
    let made = registry.handle(NOW, Event::Saved { ticket: job.ticket });
    let Some(Command::Reply { response: OperatorResponse::Done(id), .. }) = made else { panic!("{made:?}") };
    let granted = registry.page_grants().of_secret(&secret, NOW.unix_ms).expect("good").clone();
    assert_eq!((&granted.id, granted.permission), (&id, PagePermission::Operate));
    saved(&mut registry, operator(create(&[6; 32])));
    let other = registry.page_grants().of_secret(&[6; 32], NOW.unix_ms).expect("good").id.clone();

    let Some(Command::Save(job)) = registry.handle(NOW, Event::PageTokenUsed { id: id.clone() }) else {
        panic!("expected items")
    };
    assert_eq!(job.items.len(), 1);
    assert_eq!(registry.handle(NOW, Event::PageTokenUsed { id: id.clone() }), None, "it was noted");
    assert_eq!(registry.handle(NOW, Event::PageTokenUsed { id: other }), None, "the disk has not taken the last one");
    assert_eq!(registry.handle(NOW, Event::Saved { ticket: job.ticket }), None);
    let listed = registry.handle(NOW, operator(RegistryRequest::PageTokenList));
    let Some(Command::Reply { response: OperatorResponse::Json(text), .. }) = listed else { panic!("{listed:?}") };
    assert_eq!(text.matches("\"last_used_at_ms\":1000").count(), 2, "{text}");

    let revoke = RegistryRequest::PageTokenRevoke { id: id.clone() };
    let Some(Command::Save(job)) = registry.handle(NOW, operator(revoke)) else { panic!("expected items") };
    assert_eq!(job.items.len(), 2, "with the use that waited");
    assert!(registry.page_grants().has(&id, NOW.unix_ms), "a crash may undo it");
    let response = OperatorResponse::Done(format!("revoked page token {id}"));
    let told = registry.handle(NOW, Event::Saved { ticket: job.ticket });
    assert_eq!(told, Some(Command::Reply { request: REQUEST, response }));
    assert!(!registry.page_grants().has(&id, NOW.unix_ms));
    let unknown = registry.handle(NOW, operator(RegistryRequest::PageTokenRevoke { id: "x".into() }));
    assert!(matches!(&unknown, Some(Command::Reply { response: OperatorResponse::NotFound(_), .. })), "{unknown:?}");
}

#[test]
fn what_page_tokens_grant_is_no_newer_than_what_is_durable() {
    let mut registry = registry();
    let create = |registry: &mut Registry, secret: [u8; 32]| {
        let operation = RegistryRequest::PageTokenCreate {
            name: None,
            ttl_ms: 60_000,
            permission: PagePermission::View,
            secret_digest: Digest::of(&secret).0,
        };
        match registry.handle(NOW, operator(operation)) {
            Some(Command::Save(job)) => job.ticket,
            other => panic!("expected items, got {other:?}"),
        }
    };
    let (first, second) = (create(&mut registry, [5; 32]), create(&mut registry, [6; 32]));
    let granted = |registry: &Registry| {
        [[5; 32], [6; 32]].map(|secret| registry.page_grants().of_secret(&secret, NOW.unix_ms).is_some())
    };
    registry.handle(NOW, Event::Saved { ticket: first });
    assert_eq!(granted(&registry), [true, false], "a crash may undo the second one");
    registry.handle(NOW, Event::Saved { ticket: second });
    assert_eq!(granted(&registry), [true, true]);
}
