//! Uploads of a pod: an update of four sections, of which the second and the third are also those of helpers.

use std::sync::LazyLock;

use super::*;
use crate::pod::PodMark;
use crate::wire::transfer::Missing;

const HELPERS: [PeerId; 2] = [PeerId(11), PeerId(12)];
/// Chunks of the helpers: of 6, the others are the owner's.
const CHUNKS: [std::ops::Range<u32>; 2] = [1..3, 3..5];

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(content);
static TRANSFER: LazyLock<TransferManifest> = LazyLock::new(|| {
    let mib = CHUNK_BYTES as u64;
    TransferManifest::in_sections(&CONTENT, vec![1, mib + 2, 2 * mib + 3])
});

fn transfer() -> TransferManifest {
    TRANSFER.clone()
}

fn helpers() -> Vec<Helper> {
    let sections: Vec<_> = transfer().sections().collect();
    let mark = PodMark { lease: LeaseId(0), attempt: 1 };
    let helper = |(peer, part): (PeerId, u32)| Helper { peer, mark, part, section: sections[part as usize].clone() };
    HELPERS.into_iter().zip(1..).map(helper).collect()
}

/// What each connection was asked for, in chunks of the transfer, in the order of the questions.
#[derive(Default)]
struct Asked {
    owner: Vec<Vec<u32>>,
    helpers: Vec<(PeerId, Vec<u32>)>,
    released: Vec<PeerId>,
}

struct Pod {
    world: World,
    asked: Asked,
}

impl Pod {
    fn offered() -> Self {
        let mut pod = Self { world: World { keeps: true, ..World::new() }, asked: Asked::default() };
        pod.offers();
        pod
    }

    fn offers(&mut self) {
        let offer = (transfer(), helpers());
        self.world.uploads.offered(self.world.now, (PEER, AGENT), update(0), offer);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            let actions = self.world.uploads.take_actions(self.world.now);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Open { sink, .. } => {
                        let opened = Opened { upload: sink.upload(), on_disk: true };
                        self.world.uploads.opened(self.world.now, opened);
                    }
                    Action::Receive { peer, sink, missing, .. } => {
                        assert_eq!(peer, PEER);
                        self.asked.owner.push(missing.indices(6).collect());
                        self.world.sinks.push(sink);
                    }
                    Action::Ask { helper, missing, on_disk: true, .. } => {
                        let first = helper.section.chunks.start;
                        let chunks = missing.indices(6).map(|index| first + index).collect();
                        self.asked.helpers.push((helper.peer, chunks));
                    }
                    Action::Release { peer, transfer: of } => {
                        assert_eq!(of, transfer().id());
                        self.asked.released.push(peer);
                    }
                    other => self.world.actions.push(other),
                }
            }
        }
    }

    /// A chunk arrives, on whichever line.
    fn comes(&mut self, index: u32) {
        let sink = Arc::clone(self.world.sinks.last().expect("chunks are awaited"));
        let range = sink.manifest().range(index).expect("there are six");
        let put = sink.put(index, &CONTENT[range.clone()]).expect("a sound chunk");
        let bytes = if put.is_news { range.len() as u64 } else { 0 };
        let received = Received { upload: sink.upload(), bytes, is_whole: put.is_whole, is_kept: true };
        self.world.uploads.received(self.world.now, received);
        self.settle();
    }

    fn look(&mut self) {
        self.world.now.mono_ms += limits::TRANSFER_LOOK_MS;
        self.world.now.unix_ms += limits::TRANSFER_LOOK_MS;
        self.world.uploads.tick(self.world.now);
        self.settle();
    }

    /// Everything is here, once, and no connection awaits anything of it.
    fn is_whole(&mut self) {
        assert_eq!(self.world.decodes(), 1);
        assert_eq!(self.world.uploads.status().chunks_received, 6);
        let payload = self.world.sinks.last().expect("it was asked for").payload();
        assert_eq!(payload.as_deref(), Some(&CONTENT[..]));
        self.asked.released.sort_unstable();
        self.asked.released.dedup();
        assert_eq!(self.asked.released, [PEER, HELPERS[0], HELPERS[1]]);
    }
}

#[test]
fn each_is_asked_for_its_own_and_any_order_gives_the_update() {
    // Orders of the six, by their numbers.
    for order in (0..720).step_by(23) {
        let (mut left, mut number) = ((0..6).collect::<Vec<u32>>(), order);
        let mut pod = Pod::offered();
        assert_eq!(pod.asked.owner, [[0, 5]]);
        let asked = [(HELPERS[0], vec![1, 2]), (HELPERS[1], vec![3, 4])];
        assert_eq!(pod.asked.helpers, asked);
        for place in (1..=6).rev() {
            pod.comes(left.remove(number % place));
            number /= place;
        }
        pod.is_whole();
    }
}

#[test]
fn what_a_lost_helper_has_not_brought_is_asked_of_the_owner() {
    for (wrong, peer) in [(true, HELPERS[1]), (false, HELPERS[1])] {
        let mut pod = Pod::offered();
        pod.comes(4);
        // A helper that sends something else says with it that it has nothing.
        match wrong {
            true => pod.world.uploads.not_there(pod.world.now, peer, transfer().id()),
            false => pod.world.uploads.closed(pod.world.now, peer),
        }
        pod.settle();
        assert_eq!((&pod.asked.owner[..], &pod.asked.released[..]), (&[vec![0, 5], vec![3]][..], &[peer][..]));
        pod.world.uploads.not_there(pod.world.now, peer, transfer().id());
        pod.settle();
        assert_eq!(pod.asked.owner.len(), 2, "it is asked once");
        [3, 0, 1, 2, 5].into_iter().for_each(|index| pod.comes(index));
        pod.is_whole();
    }
}

#[test]
fn a_silent_helper_is_not_awaited_and_one_that_brings_chunks_is() {
    let mut pod = Pod::offered();
    pod.look();
    pod.comes(1);
    pod.look();
    assert_eq!(pod.asked.owner, [vec![0, 5], vec![3, 4]], "the second one is silent");
    assert_eq!(pod.asked.released, [HELPERS[1]]);
    pod.look();
    pod.look();
    assert_eq!(pod.asked.owner[2..], [[2]], "so is the first one since");
    // What comes too late is welcome.
    [4, 3, 2, 5, 0].into_iter().for_each(|index| pod.comes(index));
    pod.is_whole();
}

#[test]
fn an_owner_that_comes_back_goes_on_with_its_helpers() {
    let mut pod = Pod::offered();
    [0, 1, 3, 4].into_iter().for_each(|index| pod.comes(index));
    pod.world.uploads.closed(pod.world.now, PEER);
    pod.settle();
    assert_eq!(pod.asked.released, HELPERS, "nothing is awaited while the owner is gone");
    let sink = Arc::clone(pod.world.sinks.last().expect("it was asked for"));
    pod.asked = Asked::default();
    pod.offers();
    // The disk of this world is empty: what was there before is put into the new sink by hand.
    let news = pod.world.sinks.last().expect("it is asked for again");
    assert!(!Arc::ptr_eq(&sink, news));
    assert_eq!((&pod.asked.owner[..], pod.asked.helpers.len()), (&[vec![0, 5]][..], 2));
    (0..6).for_each(|index| pod.comes(index));
    assert_eq!(pod.world.decodes(), 1);
}

#[test]
fn what_is_here_already_is_asked_of_nobody() {
    let mut pod = Pod { world: World { keeps: true, ..World::new() }, asked: Asked::default() };
    let offer = (transfer(), helpers());
    pod.world.uploads.offered(pod.world.now, (PEER, AGENT), update(0), offer);
    let mut actions = pod.world.uploads.take_actions(pod.world.now);
    let Some(Action::Open { sink, .. }) = actions.pop() else { panic!("{actions:?}") };
    for index in [0, 3, 4, 5] {
        let range = sink.manifest().range(index).expect("there are six");
        sink.put(index, &CONTENT[range]).expect("sound");
    }
    pod.world.uploads.opened(pod.world.now, Opened { upload: sink.upload(), on_disk: true });
    pod.settle();
    assert_eq!(pod.asked.helpers, [(HELPERS[0], vec![1, 2])]);
    assert_eq!(pod.asked.owner, [Vec::<u32>::new()], "the owner hears that its update is on its way");
}

#[test]
fn a_helper_that_is_gone_before_its_turn_is_not_asked() {
    let mut pod = Pod { world: World { keeps: true, ..World::new() }, asked: Asked::default() };
    let large = large(9, 3);
    pod.world.uploads.offered(pod.world.now, (PEER, AGENT), update(1), (large.clone(), Vec::new()));
    pod.offers();
    assert!(pod.asked.helpers.is_empty(), "another large upload of the owner is under way");
    pod.world.uploads.closed(pod.world.now, HELPERS[0]);
    let sink = Arc::clone(pod.world.sinks.last().expect("the other one"));
    assert_eq!((sink.transfer(), Missing::all(3)), (large.id(), sink.missing()));
    // It is given up, and the next one has its turn.
    let looks = limits::UPLOAD_STALL_MS / limits::TRANSFER_LOOK_MS + 1;
    (0..looks).for_each(|_| pod.look());
    assert_eq!(pod.asked.helpers, [(HELPERS[1], vec![3, 4])]);
    assert_eq!(pod.asked.owner.last(), Some(&vec![0, 1, 2, 5]));
    let chunks: Vec<_> = helpers().into_iter().map(|helper| helper.section.chunks).collect();
    assert_eq!(chunks, CHUNKS);
}
