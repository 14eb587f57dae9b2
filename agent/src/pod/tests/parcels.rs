//! What is sent arrives: every kind, in order, bit for bit, however much of it.

use super::*;
use anabranch_common::wire::pod::LayerFigures;

use crate::pod::{Address, LayerContent, Parcel, Wire, rows};

/// Bits that a value must keep: of a NaN, the smallest numbers, both zeros and an infinity.
const BITS: [u32; 7] = [0x7FC0_1234, 1, 0x8000_0000, 0, 0x7F80_0000, 0x3F80_0001, 0xBF12_3456];

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|index| f32::from_bits(BITS[index % BITS.len()])).collect()
}

/// What a layer comes to, with so many values that are left out, and bytes.
fn layer(left_out: usize, bytes: usize) -> Parcel {
    let figures = LayerFigures { base_dot: -0.25, delta_square: 2.0, left_out_square: f64::MIN_POSITIVE };
    let payload = (0..=250u8).cycle().take(bytes).collect();
    Parcel::Layer(LayerContent { layer: 7, payload, left_out: values(left_out), figures })
}

/// A parcel of so many equal values.
fn filled(value: f32, values: usize) -> Parcel {
    let left_out = vec![value; values];
    Parcel::Layer(LayerContent { layer: 0, payload: Vec::new(), left_out, figures: LayerFigures::default() })
}

/// One parcel of each kind; activations as stages round them for their form.
fn all_kinds(form: Activations) -> Vec<Parcel> {
    let activations = |count| match form {
        Activations::F32 => values(count),
        Activations::Bf16 => {
            values(count).into_iter().map(|value| f32::from_bits(value.to_bits() & 0xFFFF_0000)).collect()
        }
        Activations::Int8 => {
            // The first row is all NaN, as one of its values is; the others are as they were rounded.
            let mut values: Vec<f32> =
                values(count).into_iter().map(|value| if value.is_finite() { value } else { 0.5 }).collect();
            values[1] = f32::NAN;
            rows::round(&mut values, 3);
            values
        }
    };
    vec![
        Parcel::Weights { own: values(1_000), tied: values(100), held: values(1_000) },
        Parcel::Weights { own: values(3), tied: Vec::new(), held: Vec::new() },
        Parcel::Activations { values: activations(24), shape: [8, 3] },
        Parcel::Gradient { values: activations(24), shape: [8, 3] },
        Parcel::Labels(vec![0, 9, u32::MAX]),
        Parcel::Loss(f64::from_bits(0x7FF8_0000_0000_0001)),
        Parcel::TiedSum(values(100)),
        Parcel::Tied { version: 3, values: values(100), moved: values(99) },
        Parcel::Tied { version: 0, values: values(100), moved: Vec::new() },
        Parcel::Activations { values: Vec::new(), shape: [0, 3] },
        layer(999, 77),
        layer(0, 8_001),
        layer(9, 0),
        Parcel::Base { seed: u64::MAX, values: values(998) },
        Parcel::Chunk { number: 1 << 40, values: values(50) },
        Parcel::Ended(Digest([7; 32])),
    ]
}

/// A parcel with the bits of its values, since a NaN equals nothing.
fn bits(parcel: &Parcel) -> (Vec<u32>, String) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    match parcel {
        Parcel::Weights { own, tied, held } => (bits(own), format!("weights {:?} {:?}", bits(tied), bits(held))),
        Parcel::Activations { values, shape } => (bits(values), format!("activations {shape:?}")),
        Parcel::Gradient { values, shape } => (bits(values), format!("gradient {shape:?}")),
        Parcel::Labels(labels) => (labels.clone(), "labels".to_owned()),
        Parcel::Loss(loss) => (Vec::new(), format!("loss {:x}", loss.to_bits())),
        Parcel::TiedSum(values) => (bits(values), "sum".to_owned()),
        Parcel::Tied { version, values, moved } => (bits(values), format!("tied {version} {:?}", bits(moved))),
        Parcel::Layer(LayerContent { layer, payload, left_out, figures }) => {
            (bits(left_out), format!("layer {layer} {payload:?} {figures:?}"))
        }
        Parcel::Base { seed, values } => (bits(values), format!("base {seed}")),
        Parcel::Chunk { number, values } => (bits(values), format!("chunk {number}")),
        Parcel::Ended(digest) => (Vec::new(), format!("end {digest:?}")),
    }
}

/// Sends one parcel of each kind to each other part, and returns what comes, by its sender's part.
fn exchange(mut wire: LinkWire, me: usize, form: Activations) -> Vec<Vec<Parcel>> {
    let others: Vec<usize> = (0..3).filter(|part| *part != me).collect();
    for parcel in all_kinds(form) {
        for to in &others {
            wire.send(Address { from: me, to: *to }, parcel.clone()).expect("sent");
        }
    }
    let mut received = vec![Vec::new(); 3];
    for _ in 0..others.len() * all_kinds(form).len() {
        let (address, parcel) = loop {
            match wire.receive() {
                Ok(received) => break received,
                // It was quicker.
                Err(WireError::Member { reason, .. }) if reason.ends_with("has left") => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(address.to, me);
        received[address.from].push(parcel);
    }
    wire.finish().expect("all of it arrived");
    received
}

#[test]
fn parcels_of_every_kind_arrive_in_order_and_bit_for_bit() {
    let world = World::new(3);
    for (attempt, form) in [(1, Activations::F32), (2, Activations::Bf16), (3, Activations::Int8)] {
        let round = world.round(attempt, &[0, 1, 2]);
        let sent: Vec<_> = all_kinds(form).iter().map(bits).collect();
        std::thread::scope(|scope| {
            for me in 0..3 {
                let (world, round, sent) = (&world, &round, &sent);
                scope.spawn(move || {
                    let wire = world.open_with(me, round, &super::form(form)).expect("all members are there");
                    for (from, parcels) in exchange(wire, me, form).iter().enumerate().filter(|(from, _)| *from != me) {
                        let received: Vec<_> = parcels.iter().map(bits).collect();
                        assert!(received == *sent, "from part {from} to part {me} as {form:?}");
                    }
                });
            }
        });
    }
}

/// The module's doc argues that this cannot deadlock: both members send, more than the network holds, before either receives.
#[test]
fn two_members_that_send_large_parcels_at_once_do_not_wait_for_each_other() {
    let world = World::new(2);
    let round = world.round(1, &[0, 1, 0]);
    let params = 3 * limits::POD_WINDOW_BYTES as usize / 4;
    let sizes = ParcelSizes { params, activations: 10, ..*SIZES };
    std::thread::scope(|scope| {
        for (me, to) in [(0, 1), (1, 2)] {
            let (world, round) = (&world, &round);
            scope.spawn(move || {
                let attempt = Attempt { round, spec: &spec(LONG.as_secs_f64()), sizes, part_params: &[params; 3] };
                let mut wire =
                    world.members[me].links.open(attempt, LONG, Arc::new(|| false)).expect("all members are there");
                for fill in [1.0, 2.0] {
                    wire.send(Address { from: me, to }, filled(fill, params)).expect("sent");
                }
                for fill in [1.0, 2.0] {
                    let (_, parcel) = wire.receive().expect("received");
                    assert!(parcel == filled(fill, params), "another parcel than number {fill}");
                }
                wire.finish().expect("all of it arrived");
            });
        }
    });
}

#[test]
fn a_parcel_that_no_round_needs_is_not_sent() {
    let world = World::new(2);
    let round = world.round(1, &[0, 1, 0]);
    let mut wires = world.open_all(&round);
    for (from, to) in [(0, 2), (1, 0), (0, 3)] {
        let (agent, reason) = named(wires[0].send(Address { from, to }, Parcel::Loss(0.0)));
        assert_eq!((agent, reason), (world.id(0), format!("no parcel goes from part {from} to part {to}")));
    }
    let (agent, reason) = named(wires[0].send(Address { from: 0, to: 1 }, layer(2_040, 0)));
    assert_eq!(agent, world.id(0));
    assert_eq!(reason, "a parcel of 2040 values, more than the 2039 that such a parcel can have in this round");
}
