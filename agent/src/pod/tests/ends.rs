//! How links end: in good order, given up, stopped, or without a word.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_common::wire::pod::LayerFigures;

use super::*;
use crate::clock::Clock;
use crate::pod::{Address, LayerContent, Parcel, Wire};

/// What a layer comes to, with so many values.
fn values(count: usize) -> Parcel {
    let (payload, left_out, figures) = (Vec::new(), vec![1.5; count], LayerFigures::default());
    Parcel::Layer(LayerContent { layer: 0, payload, left_out, figures })
}

#[test]
fn a_member_that_gives_up_is_named_by_the_others() {
    let world = World::new(3);
    let mut wires = world.open_all(&world.round(1, &[0, 1, 2, 0]));
    let one = wires.remove(1);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = wires.iter_mut().map(|wire| scope.spawn(|| wire.receive())).collect();
        drop(one);
        for other in waiting {
            let (agent, reason) = named(other.join().expect("no panic"));
            assert_eq!(agent, world.id(1));
            assert!(reason.ends_with("gave the attempt up"), "{reason}");
        }
    });
    // It is told once; the others are there until they are lost too, and say why they have given up.
    let mut two = wires.pop().expect("two are left");
    let parcel = (Address { from: 2, to: 0 }, Parcel::Loss(0.5));
    assert_eq!(named(two.send(Address { from: 2, to: 1 }, Parcel::Loss(0.5))).0, world.id(1));
    two.send(parcel.0, parcel.1.clone()).expect("the owner is there");
    assert_eq!(wires[0].receive(), Ok(parcel));
    drop(two);
    let (agent, reason) = named(wires[0].receive());
    assert_eq!(agent, world.id(2));
    let over = format!("gave the attempt up over member {}: gave the attempt up", world.id(1).short());
    assert!(reason.ends_with(&over), "{reason}");
    assert!(named(wires[0].receive()).1.ends_with("nothing more comes"));
}

#[test]
fn a_stop_ends_a_wait() {
    let world = World::new(2);
    let round = world.round(1, &[0, 1, 0]);
    let stop = Arc::new(AtomicBool::new(false));
    let spec = spec(LONG.as_secs_f64());
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| world.open(1, &round));
        let is_set = Arc::clone(&stop);
        let attempt = Attempt { round: &round, spec: &spec, sizes: *SIZES, part_params: PARAMS };
        let stopping: crate::pod::Stop = Arc::new(move || is_set.load(Ordering::SeqCst));
        let mut owner = world.members[0].links.open(attempt, LONG, stopping).expect("both are there");
        let waiting = scope.spawn(move || owner.receive());
        stop.store(true, Ordering::SeqCst);
        assert_eq!(waiting.join().expect("no panic"), Err(WireError::Over));
        drop(helper);
    });
}

/// Its process lives, so that it may compute for longer than the deadline, or wait for the weights that are on their way to it.
#[test]
fn a_member_that_computes_is_waited_for() {
    let world = World::new(2);
    let round = world.round(1, &[0, 1, 0]);
    let (spec, begun) = (spec(0.05), Clock::start());
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| world.open(1, &round));
        // Until it was asked well after the deadline whether it is to stop.
        let stop: crate::pod::Stop = Arc::new(move || begun.elapsed() > Duration::from_secs(4));
        let attempt = Attempt { round: &round, spec: &spec, sizes: *SIZES, part_params: PARAMS };
        let mut owner = world.members[0].links.open(attempt, LONG, stop).expect("both are there");
        assert_eq!(owner.receive(), Err(WireError::Over));
        drop(helper.join().expect("no panic"));
    });
}

/// A helper that is through leaves while another one computes.
#[test]
fn members_leave_one_after_the_other() {
    let world = World::new(3);
    let round = world.round(1, &[0, 1, 2, 0]);
    let mut wires = world.open_all(&round);
    let (two, one, mut owner) = (wires.pop(), wires.pop(), wires.pop().expect("three"));
    let (mut two, mut one) = (two.expect("three"), one.expect("three"));
    let trained = |part: usize| (Address { from: part, to: 0 }, values(900 + part));
    let send = |wire: &mut LinkWire, part| {
        let (address, parcel) = trained(part);
        wire.send(address, parcel).expect("sent");
    };
    send(&mut one, 1);
    one.finish().expect("it arrived");
    assert_eq!(owner.receive(), Ok(trained(1)));
    let (agent, reason) = named(owner.receive());
    assert!(agent == world.id(1) && reason.ends_with("has left"), "{reason}");
    // What comes too late for it is dropped.
    owner.send(Address { from: 0, to: 1 }, Parcel::Loss(1.0)).expect("dropped");
    two.send(Address { from: 2, to: 1 }, Parcel::Loss(1.0)).expect("dropped");
    send(&mut two, 2);
    std::thread::scope(|scope| {
        let two = scope.spawn(|| two.finish());
        assert_eq!(owner.receive(), Ok(trained(2)));
        two.join().expect("no panic").expect("it arrived");
    });
    let (agent, reason) = named(owner.receive());
    assert!(agent == world.id(2) && reason.ends_with("has left"), "{reason}");
    assert!(named(owner.receive()).1.ends_with("nothing more comes"));
    owner.finish().expect("nobody is left");
}

/// The owner waits for nobody who has nothing to tell it, and whoever hears of that late has done its part.
#[test]
fn an_owner_that_has_everything_leaves_at_once() {
    let world = World::new(2);
    let mut wires = world.open_all(&world.round(1, &[0, 1, 0]));
    let (mut helper, mut owner) = (wires.pop().expect("two"), wires.pop().expect("two"));
    let trained = (Address { from: 1, to: 0 }, values(900));
    helper.send(trained.0, trained.1.clone()).expect("sent");
    assert_eq!(owner.receive(), Ok(trained));
    owner.close();
    let (agent, reason) = named(helper.receive());
    assert!(agent == world.id(0) && reason.ends_with("has left"), "{reason}");
    helper.finish().expect("it arrived");
}

/// As a process that was killed or stopped: its connection is there, and nobody answers.
#[test]
fn a_member_that_gives_no_sign_of_life_is_noticed() {
    let world = World::new(2);
    for (attempt, deadline_s, told) in
        [(1, LONG.as_secs_f64(), ["does not acknowledge", "timed out"]), (2, 0.1, ["no sign of life for 2 s"; 2])]
    {
        let reason = gone_without_a_word(&world, &world.round(attempt, &[0, 1, 0]), deadline_s);
        assert!(told.iter().any(|told| reason.contains(told)), "{reason}");
    }
}

/// What the helper of a round says of an owner that stops where it is.
fn gone_without_a_word(world: &World, round: &PodRound, deadline_s: f64) -> String {
    let gone = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let linked = Barrier::new(2);
    std::thread::scope(|scope| {
        let victim = scope.spawn(|| {
            let wire = world.open_with(1, round, &spec(deadline_s));
            linked.wait();
            wire.and_then(|mut wire| wire.receive())
        });
        let raw = gone.block_on(world.ask(0, 1, PodGreeting::new(RUN, round.mark)));
        linked.wait();
        // Nothing runs in `gone` from here on.
        let (agent, reason) = named(victim.join().expect("no panic"));
        assert_eq!(agent, world.id(0));
        drop(raw);
        reason
    })
}
