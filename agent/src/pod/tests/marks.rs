//! Who is let in, and for which attempt.

use anabranch_common::schema;
use anabranch_io::tls::ConnectProblem;

use super::*;
use crate::pod::link::code;

fn closed_with(error: &quinn::ConnectionError) -> (u64, String) {
    match tls::explain(error) {
        ConnectProblem::Closed { code, reason } => (code, reason),
        other => panic!("expected a close by the other side, not {other:?}"),
    }
}

/// It writes more than a stranger may have under way, so that the write ends only if some of it is read.
#[test]
fn nothing_is_read_of_an_agent_that_the_round_does_not_name() {
    let world = World::new(3);
    let round = world.round(1, &[0, 1, 0]);
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| world.open(1, &round));
        world.runtime.block_on(async {
            let (_endpoint, connection) = world.connect(2, 1).await;
            let (mut send, _recv) = connection.open_bi().await.expect("the connection is open");
            let written = send.write_all(&vec![0; 4 * limits::STRANGER_WINDOW_BYTES as usize]).await;
            let Err(quinn::WriteError::ConnectionLost(error)) = written else { panic!("all of it was taken") };
            assert_eq!(closed_with(&error).0, u64::from(code::NOT_YET));
        });
        let owner = world.open(0, &round);
        owner.finish().expect("nothing was sent");
        helper.join().expect("no panic").finish().expect("nothing was sent");
    });
}

#[test]
fn an_agent_has_one_connection_that_waits() {
    let world = World::new(2);
    world.runtime.block_on(async {
        let (one, other) = (world.connect(0, 1).await, world.connect(0, 1).await);
        let first = tokio::select! {
            closed = one.1.closed() => closed,
            closed = other.1.closed() => closed,
        };
        assert_eq!(closed_with(&first), (code::NOT_YET.into(), "a newer connection of this agent waits".to_owned()));
    });
}

#[test]
fn greetings_for_anything_else_than_the_attempt_are_answered_with_no() {
    let world = World::new(2);
    let round = world.round(2, &[0, 1, 0]);
    let right = PodGreeting::new(RUN, round.mark);
    let of = |lease, attempt| PodGreeting { mark: PodMark { lease: LeaseId(lease), attempt }, ..right };
    let next = schema::VERSION + 1;
    let refused = |why: &str| PodAnswer::Refused(why.to_owned());
    let cases = [
        (PodGreeting { run: RunId([8; 16]), ..right }, refused("this agent is in another run")),
        (PodGreeting { min: next, max: next, ..right }, refused("this agent speaks other versions of the protocol")),
        (of(7, 1), refused("that attempt is over here, or has a link with this agent")),
        (of(7, 3), PodAnswer::NotYet),
        (of(8, 1), PodAnswer::NotYet),
        (right, PodAnswer::Ready { version: schema::VERSION }),
    ];
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| world.open(1, &round));
        // The link of the last one is there until the helper has it.
        let mut links = Vec::new();
        for (greeting, expected) in cases {
            let (link, answer) = world.runtime.block_on(world.ask(0, 1, greeting));
            assert_eq!(answer, expected, "{greeting:?}");
            links.push(link);
        }
        drop(helper.join().expect("no panic"));
    });
}

/// The owner hears of attempt 2 while the helper is still at attempt 1.
#[test]
fn a_member_that_is_told_later_is_dialed_again() {
    let world = World::new(2);
    let (first, second) = (world.round(1, &[0, 1, 0]), world.round(2, &[0, 1, 0]));
    let wires = world.open_all(&first);
    std::thread::scope(|scope| {
        let owner = scope.spawn(|| world.open(0, &second));
        drop(wires);
        let helper = world.open(1, &second);
        owner.join().expect("no panic").finish().expect("nothing was sent");
        helper.finish().expect("nothing was sent");
    });
}

#[test]
fn attempts_that_are_over_are_not_opened_again() {
    let world = World::new(2);
    drop(world.open_all(&world.round(2, &[0, 1, 0])));
    for attempt in [1, 2] {
        let opened = world.open_with(1, &world.round(attempt, &[0, 1, 0]), &spec(1.0));
        assert_eq!(opened.err(), Some(WireError::Repeated { attempt, newest: 2 }));
    }
    let (agent, reason) = named(world.open_with(1, &world.round(3, &[0]), &spec(1.0)));
    assert_eq!((agent, reason.as_str()), (world.id(1), "the round does not name this agent"));
}

/// An agent that took over the address of another one is not greeted.
#[test]
fn another_agent_at_the_address_of_a_member_ends_the_attempt() {
    let world = World::new(3);
    let mut round = world.round(1, &[0, 1, 0]);
    round.peers[1].address = world.members[2].address();
    let (agent, reason) = named(world.open_with(0, &round, &spec(1.0)));
    assert_eq!(agent, world.id(1));
    assert!(reason.contains("certificate was refused"), "{reason}");
    round.peers.remove(1);
    round.mark.attempt += 1;
    let (agent, reason) = named(world.open_with(0, &round, &spec(1.0)));
    assert_eq!(agent, world.id(1));
    assert!(reason.starts_with("the round has no address"), "{reason}");
}

#[test]
fn a_member_that_does_not_come_is_named() {
    let world = World::new(3);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let mut round = world.round(1, &[0, 1, 0]);
    round.peers[1].address = silent.local_addr().expect("bound").to_string();
    let spec = spec(1.0);
    let attempt = Attempt { round: &round, spec: &spec, sizes: *SIZES, part_params: PARAMS };
    let (agent, reason) = named(world.members[0].links.open(attempt, Duration::from_millis(200), Arc::new(|| false)));
    assert_eq!(agent, world.id(1));
    assert!(reason.contains("cannot be reached"), "{reason}");
    // Nor does the deadline keep an agent from stopping.
    let stopped =
        world.members[2].links.open(Attempt { round: &world.round(1, &[2, 1, 2]), ..attempt }, LONG, Arc::new(|| true));
    assert_eq!(stopped.err(), Some(WireError::Over));
}

/// The owner has to fetch the base before it dials: the deadline of the others begins then.
#[test]
fn a_helper_waits_for_the_owner_longer_than_for_anybody_else() {
    let world = World::new(2);
    let round = world.round(1, &[0, 1, 0]);
    let spec = spec(LONG.as_secs_f64());
    let attempt = Attempt { round: &round, spec: &spec, sizes: *SIZES, part_params: PARAMS };
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| world.members[1].links.open(attempt, Duration::ZERO, Arc::new(|| false)));
        let owner = world.open(0, &round);
        drop(helper.join().expect("no panic").expect("the owner has come"));
        drop(owner);
    });
}

#[test]
fn a_renewed_certificate_is_shown_from_then_on() {
    let world = World::new(2);
    let shown = |connection: &Connection| {
        let chain = connection.peer_identity().expect("a certificate");
        chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().expect("a chain")[0].to_vec()
    };
    let renewed = world.ca.certify(&world.members[1].key);
    let before = world.runtime.block_on(world.connect(0, 1));
    assert_eq!(shown(&before.1), world.members[1].certificate_der);
    let member = &world.members[1];
    let replace =
        |der: &[u8]| member.links.replace_certificate(&(&world.ca.der).into(), der, &member.key.serialize_der());
    replace(&renewed).expect("it fits the key");
    let after = world.runtime.block_on(world.connect(0, 1));
    assert!(shown(&after.1) == renewed && renewed != world.members[1].certificate_der);
    assert!(replace(b"no certificate").is_err());
    drop(world.open_all(&world.round(1, &[1, 0, 1])));
}
