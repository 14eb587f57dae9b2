//! Members send their own ranges of an update: who is asked for what.

use anabranch_common::ids::Digest;
use anabranch_common::pod::PodSections;
use anabranch_common::transfer::Helper;
use anabranch_common::wire::transfer::TransferManifest;

use super::*;

/// An update in four sections: those of parts 1 and 2 of the model are also the helpers'.
fn offer(world: &mut World, lease: &Lease, mark: PodMark, parts: &[Option<u32>]) -> Vec<Command> {
    let meta = world.meta(1, 0, lease);
    let transfer = TransferManifest::in_sections(&[0; 16], vec![4, 8, 12]);
    let sections = Some(Box::new(PodSections { mark, parts: parts.to_vec() }));
    world.message(1, AgentMessage::OfferUpdate { meta, transfer, sections })
}

/// Connections that are to be asked for sections, and the first byte of each.
fn asked(commands: &[Command]) -> Vec<(u64, u64)> {
    let receive = commands.iter().find_map(|command| match command {
        Command::ReceiveUpdate { peer: PeerId(1), helpers, .. } => Some(helpers),
        _ => None,
    });
    let helpers = receive.unwrap_or_else(|| panic!("the update is to be received: {commands:?}"));
    helpers.iter().map(|Helper { peer, section, .. }| (peer.0, section.bytes.start)).collect()
}

const PARTS: [Option<u32>; 4] = [None, Some(1), Some(2), None];

#[test]
fn members_that_were_named_are_asked_for_their_parts() {
    let mut world = started(pods(3, Labels::Travel), 3);
    let (lease, round) = begun(&mut world);
    let peer_of = |part: usize| u64::from(round.parts[part].agent.0[0]);
    let both = [(peer_of(1), 4), (peer_of(2), 8)];
    assert_eq!(asked(&offer(&mut world, &lease, round.mark, &PARTS)), both);
    // Of the owner, of no part, and in more or fewer sections than there are.
    assert_eq!(asked(&offer(&mut world, &lease, round.mark, &[Some(0), Some(1), None, None])), both[..1]);
    assert_eq!(asked(&offer(&mut world, &lease, round.mark, &[None, Some(1), Some(9), None])), both[..1]);
    for parts in [&[None, Some(1), Some(1), None][..], &[None, Some(2), Some(1), None], &PARTS[..3], &[]] {
        assert_eq!(asked(&offer(&mut world, &lease, round.mark, parts)), [], "{parts:?}");
    }
    // Another attempt than the latest, or of another lease.
    for other in [mark(&lease, 2), PodMark { lease: LeaseId(90), attempt: 1 }] {
        assert_eq!(asked(&offer(&mut world, &lease, other, &PARTS)), [], "{other:?}");
    }
    leave(&mut world, 2);
    let there: Vec<(u64, u64)> = both.into_iter().filter(|(peer, _)| *peer != 2).collect();
    assert_eq!(asked(&offer(&mut world, &lease, round.mark, &PARTS)), there);
}

/// Its process is told of the attempt before it is asked for anything of it.
#[test]
fn a_helper_that_has_just_connected_is_asked_once_it_was_welcomed() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    end(&mut world, 2, round.mark, None);
    leave(&mut world, 2);
    // Another process of it: its epoch is a record.
    let pod = super::offer(2, 1000);
    world.hello(PeerId(2), 2, AgentHello { train_examples: 0, pod: Some(pod), ..hello(2, 20) });
    assert_eq!(offer(&mut world, &lease, round.mark, &PARTS), [], "nothing is asked for yet");
    let sent = world.messages();
    let commands = world.journal();
    assert!(matches!(world.sent_since(sent)[..], [(PeerId(2), CoordinatorMessage::Welcome(_)), ..]));
    assert_eq!(asked(&commands), [(2, 4)]);
}

#[test]
fn a_coordinator_that_has_begun_no_attempt_asks_the_owner_alone() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    let mut world = world.restarted();
    owner(&mut world, 1);
    helper(&mut world, 2);
    assert_eq!(asked(&offer(&mut world, &lease, round.mark, &PARTS)), []);
}

#[test]
fn helpers_hear_that_the_update_is_decided() {
    let mut world = started(pods(3, Labels::Travel), 3);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    world.receive(1, &world.meta(1, 0, &lease), [1.0; 4]);
    world.journal();
    let told = world.sent_since(sent).iter().filter_map(|(peer, message)| match message {
        CoordinatorMessage::PartDone { mark } => Some((peer.0, *mark)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [(2, round.mark), (3, round.mark)]);
}

#[test]
fn an_agent_that_has_no_part_is_not_asked_again() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let transfer = Digest([7; 32]);
    let commands = world.message(2, AgentMessage::PartNotHere { transfer });
    assert_eq!(commands, [Command::PartNotThere { peer: PeerId(2), transfer }]);
}
