//! Members that do not keep to the protocol: the error names them, and they cost a bounded amount of memory.

use std::convert::Infallible;
use std::sync::Barrier;

use anabranch_common::schema;
use anabranch_common::wire::frame;
use anabranch_common::wire::pod::{LayerFigures, ParcelContent, ParcelHead};

use super::*;
use crate::pod::Wire;

/// A head from part 0, which is the hostile member's, to part 1, which is the other one's.
fn head(content: ParcelContent, checksum: u32) -> Vec<u8> {
    framed(ParcelHead { from: 0, to: 1, content, checksum })
}

fn framed(head: ParcelHead) -> Vec<u8> {
    let bytes = schema::encode(&head, limits::POD_PARCEL_HEAD_BYTES).expect("small");
    frame::encode(FrameKind::Parcel, &bytes).expect("small")
}

struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    /// Whether the stream ends after them.
    ends: bool,
    error: &'static str,
}

/// What a layer comes to, with so many values that are left out of an empty payload.
fn layer(left_out: u64) -> ParcelContent {
    ParcelContent::Layer { layer: 0, left_out, bytes: 0, figures: LayerFigures::default() }
}

fn cases() -> Vec<Case> {
    let case = |what, bytes, error| Case { what, bytes, ends: false, error };
    let sum = |values| ParcelContent::TiedSum { values };
    let loss = ParcelContent::Loss { sum: 0.0 };
    let wrong_route = |from, to| framed(ParcelHead { from, to, content: loss, checksum: 0 });
    let large = "that such a parcel can have in this round";
    let mut oversized = head(loss, 0);
    oversized[8..12].fill(0xFF);
    let mut damaged = head(loss, 0);
    damaged[20] ^= 1;
    vec![
        case(
            "another protocol",
            b"GET / HTTP/1.1\r\nHost: member\r\n".to_vec(),
            "does not speak the anabranch protocol",
        ),
        case("another frame", frame::encode(FrameKind::Agent, b"hello").expect("small"), "unexpected frame of kind 5"),
        case("an oversized head", oversized, "frame of 4294967295 bytes"),
        case("a damaged head", damaged, "does not match its checksum"),
        case("an oversized parcel", head(layer(1 << 40), 0), large),
        case("more than its part", head(layer(2_040), 0), "2040 values, more than the 2039 that"),
        case(
            "more than the other's part and the tied tensor",
            head(ParcelContent::Weights { own: 1_001, tied: 100, held: 1_000 }, 0),
            "2101 values, more than the 2100 that",
        ),
        case(
            "a whole part as a tied tensor",
            head(ParcelContent::TiedSum { values: 101 }, 0),
            "more than the 100 that",
        ),
        case("labels like weights", head(ParcelContent::Labels { labels: 501 }, 0), "more than the 500 that"),
        case(
            "numbers that overflow",
            head(ParcelContent::Activations { rows: 1 << 40, columns: 1 << 40, form: Activations::F32 }, 0),
            large,
        ),
        case(
            "rows without columns",
            head(ParcelContent::Gradient { rows: 501, columns: 0, form: Activations::F32 }, 0),
            large,
        ),
        case(
            "two vectors that overflow",
            head(ParcelContent::Tied { version: 0, values: u64::MAX, moved: 2 }, 0),
            large,
        ),
        case("part of another member", wrong_route(1, 1), "from part 1 to part 1"),
        case("parts of its own", wrong_route(0, 2), "from part 0 to part 2"),
        case("a part that is none", wrong_route(9, 1), "from part 9 to part 1"),
        case(
            "another form",
            head(ParcelContent::Gradient { rows: 1, columns: 1, form: Activations::Int8 }, 0),
            "another form than pod.activations says",
        ),
        case("damaged values", [head(sum(2), 1), vec![0; 8]].concat(), "a parcel does not match its checksum"),
        case("a stop within values", [head(sum(100), 0), vec![0; 40]].concat(), "stopped in the middle"),
        Case {
            what: "an end within values",
            bytes: [head(sum(100), 0), vec![0; 40]].concat(),
            ends: true,
            error: "ended its stream in the middle",
        },
        Case {
            what: "an end within a head",
            bytes: head(loss, 0)[..30].to_vec(),
            ends: true,
            error: "ended its stream",
        },
    ]
}

#[test]
fn whoever_breaks_the_protocol_is_named() {
    let world = World::new(2);
    for (attempt, Case { what, bytes, ends, error }) in (1..).zip(cases()) {
        let round = world.round(attempt, &[0, 1, 0]);
        std::thread::scope(|scope| {
            let victim = scope.spawn(|| world.open_with(1, &round, &spec(0.4)).and_then(|mut wire| wire.receive()));
            let (mut raw, answer) = world.runtime.block_on(world.ask(0, 1, PodGreeting::new(RUN, round.mark)));
            assert!(matches!(answer, PodAnswer::Ready { .. }), "{what}: {answer:?}");
            world.runtime.block_on(raw.send.write_all(&bytes)).expect("the link is open");
            if ends {
                raw.send.finish().expect("the link is open");
            }
            let (agent, reason) = named(victim.join().expect("no panic"));
            assert_eq!(agent, world.id(0), "{what}");
            assert!(reason.contains(error), "{what}: {reason}");
        });
    }
}

/// Nothing is taken out here, so that what waits is what the desk lets in.
#[test]
fn a_flood_is_cut_off_at_what_the_order_allows() {
    let world = World::new(2);
    // Parcels without values, and parcels with as many as fit.
    let full = layer(2_000);
    let floods =
        [(ParcelContent::Loss { sum: 1.0 }, 0, "43 parcels of 0 values"), (full, 8_000, "12 parcels of 24000 values")];
    for (attempt, (content, bytes, error)) in (1..).zip(floods) {
        let round = world.round(attempt, &[0, 1, 0]);
        let values = vec![0; bytes];
        let parcel = [head(content, crc32c::crc32c(&values)), values].concat();
        let cut_off = Barrier::new(2);
        std::thread::scope(|scope| {
            let victim = scope.spawn(|| -> Result<Infallible, WireError> {
                // Told here already where the flood is quick.
                let opened = world.open_with(1, &round, &spec(LONG.as_secs_f64()));
                cut_off.wait();
                let mut wire = opened?;
                // What was let in comes first.
                loop {
                    wire.receive()?;
                }
            });
            world.runtime.block_on(async {
                let (mut raw, _) = world.ask(0, 1, PodGreeting::new(RUN, round.mark)).await;
                // Until its reader is gone.
                while raw.send.write_all(&parcel).await.is_ok() {}
            });
            cut_off.wait();
            let (agent, reason) = named(victim.join().expect("no panic"));
            assert_eq!(agent, world.id(0));
            assert!(reason.contains(error), "{reason}");
        });
    }
}
