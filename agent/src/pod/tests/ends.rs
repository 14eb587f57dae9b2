//! How links end: in good order, given up, stopped, or without a word.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::pod::{Address, Parcel, Wire};

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
        let attempt = Attempt { round: &round, spec: &spec, sizes: SIZES };
        let stopping: crate::pod::Stop = Arc::new(move || is_set.load(Ordering::SeqCst));
        let mut owner = world.members[0].links.open(attempt, LONG, stopping).expect("both are there");
        let waiting = scope.spawn(move || owner.receive());
        stop.store(true, Ordering::SeqCst);
        assert_eq!(waiting.join().expect("no panic"), Err(WireError::Over));
        drop(helper);
    });
}

#[test]
fn a_member_that_says_nothing_is_silent() {
    let world = World::new(2);
    let round = world.round(1, &[0, 1, 0]);
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| world.open(1, &round));
        let mut owner = world.open_with(0, &round, &spec(0.2)).expect("both are there");
        assert_eq!(owner.receive(), Err(WireError::Silent(Duration::from_millis(200))));
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
    let trained = |part: usize| (Address { from: part, to: 0 }, Parcel::Trained(vec![1.5; 900 + part]));
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

/// As a process that was killed or stopped: its connection is there, and nobody answers.
#[test]
fn a_member_that_is_gone_without_a_word_is_noticed() {
    let world = World::new(2);
    let round = world.round(1, &[0, 1, 0]);
    let gone = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let linked = Barrier::new(2);
    std::thread::scope(|scope| {
        let victim = scope.spawn(|| {
            let mut wire = world.open(1, &round);
            linked.wait();
            wire.receive()
        });
        let raw = gone.block_on(world.ask(0, 1, PodGreeting::new(RUN, round.mark)));
        linked.wait();
        // Nothing runs in `gone` from here on.
        let (agent, reason) = named(victim.join().expect("no panic"));
        assert_eq!(agent, world.id(0));
        assert!(reason.contains("does not acknowledge") || reason.contains("timed out"), "{reason}");
        drop(raw);
    });
}
