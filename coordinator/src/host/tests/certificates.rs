//! Members are asked to renew their certificates, and what was replaced is closed.

use anabranch_common::ids::{Digest, Incarnation};
use anabranch_common::wire::message::{AgentHello, CoordinatorMessage, Rejection, RenewalKey};
use anabranch_common::wire::operator::RegistryRequest;
use anabranch_common::wire::runs::RunsWanted;
use anabranch_io::tls;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::super::*;
use super::world::{A, AGENT, B, OTHER, REQUEST, World};
use crate::identity::Credential;
use crate::registry::certificates::Authorities;
use crate::registry::roster::Certificate;
use crate::registry::{AuthorityStep, Shown, Stepped};

fn certificate(key: AgentId, authority: Option<Digest>) -> Certificate {
    Certificate { key, authority, expires_at_ms: 2_000_000, version: 7 }
}

fn connect(world: &mut World, peer: u64, (agent, run): (AgentId, RunId), certificate: Certificate) {
    let hello = AgentHello {
        run,
        branch: None,
        incarnation: Incarnation([9; 16]),
        software: "test".into(),
        train_examples: 100,
        eval_examples: 0,
        device: "cpu".into(),
        pod: None,
    };
    world.handle(Input::Hello { peer: PeerId(peer), agent, certificate: Some(certificate), hello });
    world.work();
}

/// What was sent on a stream, in order: `w` for a welcome, `s` and `n` for requests to renew with the same or a new key.
fn told(world: &mut World, to: u64) -> String {
    let outputs = std::mem::take(&mut world.outputs);
    let sent = outputs.iter().filter_map(|output| match output {
        Output::ToPeer(ToPeer::Send { peer, message }) if peer.0 == to => match &**message {
            CoordinatorMessage::Welcome(_) => Some('w'),
            CoordinatorMessage::RenewNow { key: RenewalKey::Same } => Some('s'),
            CoordinatorMessage::RenewNow { key: RenewalKey::New } => Some('n'),
            _ => None,
        },
        _ => None,
    });
    sent.collect()
}

#[test]
fn a_member_that_is_to_rotate_is_asked_once_and_again_when_it_comes_back() {
    let mut world = World::started();
    connect(&mut world, 3, (AGENT, A), certificate(AGENT, None));
    assert_eq!(told(&mut world, 3), "w");
    world.operate(RegistryRequest::AgentRotate { agent: Some(AGENT.to_string()) });
    assert!(!world.is_answered(), "a crash may undo it");
    world.work();
    assert!(world.is_answered());
    assert_eq!(told(&mut world, 3), "n");
    connect(&mut world, 4, (AGENT, B), certificate(AGENT, None));
    assert_eq!(told(&mut world, 4), "w", "it was asked on the other stream");
    [3, 4].into_iter().for_each(|peer| world.handle(Input::Disconnected { peer: PeerId(peer) }));
    world.work();
    connect(&mut world, 5, (AGENT, B), certificate(AGENT, None));
    assert_eq!(told(&mut world, 5), "wn");
    connect(&mut world, 6, (OTHER, A), certificate(OTHER, None));
    assert_eq!(told(&mut world, 6), "w", "another member");
}

fn ca() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.self_signed(&KeyPair::generate().expect("a key")).expect("signed").der().to_vec()
}

fn stepped(step: AuthorityStep, cas: &[&Vec<u8>]) -> Input {
    let cas = tls::Authorities::new(cas.iter().map(|der| (*der).clone()).collect());
    let server = Credential { certificate_der: vec![1], key_der: vec![2] };
    let outcome = Stepped {
        step,
        authorities: Authorities::of(&cas).expect("a CA"),
        shown: Box::new(Shown { authorities: cas, server, expiries: vec![] }),
    };
    Input::Registry(registry::Done::Signed(vec![Signed::Authority { request: REQUEST, outcome: Ok(outcome) }]))
}

#[test]
fn both_cas_are_trusted_before_members_are_asked_and_the_old_one_is_closed_out() {
    let (present, next) = (ca(), ca());
    let by = |der: &Vec<u8>| certificate(AGENT, tls::authority_id(der));
    let mut world = World::started();
    connect(&mut world, 3, (AGENT, A), by(&present));
    world.outputs.clear();
    world.handle(stepped(AuthorityStep::Begin, &[&present, &next]));
    let place = |is: &dyn Fn(&Output) -> bool| world.outputs.iter().position(is);
    let shown = place(&|output| matches!(output, Output::Show(_)));
    let asked = place(&|output| matches!(output, Output::ToPeer(ToPeer::Send { .. })));
    assert!(shown < asked && shown.is_some(), "{:?}", world.outputs);
    assert_eq!(told(&mut world, 3), "s");
    connect(&mut world, 4, (AGENT, B), by(&next));
    assert_eq!(told(&mut world, 4), "w");

    world.handle(stepped(AuthorityStep::Finish, &[&next]));
    assert_eq!(world.rejection(3), Some(&Rejection::OldCertificate));
    assert!(world.is_closed(3) && !world.is_closed(4), "{:?}", world.outputs);
    world.outputs.clear();
    connect(&mut world, 5, (AGENT, A), by(&present));
    assert_eq!(world.rejection(5), Some(&Rejection::OldCertificate));
    let subscribe = |certificate| Input::Subscribe {
        peer: PeerId(6),
        agent: AGENT,
        certificate: Some(certificate),
        wanted: RunsWanted::All,
    };
    world.outputs.clear();
    world.handle(subscribe(by(&present)));
    assert!(world.is_closed(6), "{:?}", world.outputs);
}
