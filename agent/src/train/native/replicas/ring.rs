//! An all-reduce over a ring (reduce-scatter, then all-gather; Patarasuk and Yuan 2009), as one member sees it. It knows nothing of
//! threads and links: [`begin`](AllReduce::begin) and [`take`](AllReduce::take) give what the next member is sent.
//!
//! ```text
//!  N members, a vector in N groups. In hop h member k receives group k - 1 - h of its left neighbour.
//!
//!  hop           0 .. N-2                    N-1 .. 2N-3
//!  what it does  adds its own, passes on     takes over, passes on
//!                └ in the last of these the group is complete, at this member alone
//! ```
//! Each group is summed in the order of the ring, at one member, and copied by all others. So all have the same bits, whatever the
//! speed of members and links. Each member sends 2(N-1)/N times its vector, which is the least that is possible.
//!
//! A group travels in chunks. A chunk is passed on as soon as it is here, so that all links of the ring carry something at a time.

use std::collections::VecDeque;
use std::ops::Range;

/// A member's place in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ring {
    place: usize,
    members: usize,
}

impl Ring {
    /// The place `place` of `members`, counted from 0.
    pub(super) fn new(place: usize, members: usize) -> Self {
        assert!(place < members, "place {place} of a ring of {members}");
        Self { place, members }
    }

    /// Returns the place of the member that sends to this one.
    pub(super) fn left(self) -> usize {
        (self.place + self.members - 1) % self.members
    }

    /// Returns the place of the member that this one sends to.
    pub(super) fn right(self) -> usize {
        (self.place + 1) % self.members
    }

    fn hops(self) -> usize {
        2 * (self.members - 1)
    }

    /// The hop whose groups are complete where they arrive.
    fn last_sum(self) -> usize {
        self.members - 2
    }

    /// Which group arrives here in a hop.
    fn group(self, hop: usize) -> usize {
        (self.place + 2 * self.members - 1 - hop) % self.members
    }

    /// Returns how many values of a vector of `len` this member sends to the right, and receives from the left, while it is summed.
    pub(super) fn traffic(self, len: usize) -> (usize, usize) {
        let arrives = |hop: usize| self.range(self.group(hop), len).len();
        match self.hops().checked_sub(1) {
            None => (0, 0),
            // What arrives in the last hop goes no further.
            Some(last) => {
                let passed_on: usize = (0..last).map(arrives).sum();
                (self.range(self.place, len).len() + passed_on, passed_on + arrives(last))
            }
        }
    }

    /// The values of a group of a vector of `len`.
    fn range(self, group: usize, len: usize) -> Range<usize> {
        len * group / self.members..len * (group + 1) / self.members
    }
}

/// A chunk that is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Awaited {
    hop: usize,
    range: Range<usize>,
}

/// One all-reduce of a vector.
#[derive(Debug)]
pub(super) struct AllReduce {
    ring: Ring,
    values: Vec<f32>,
    chunk: usize,
    /// Hops that are not over, with what is awaited of their groups.
    awaited: VecDeque<Awaited>,
}

impl AllReduce {
    /// Sums `values` over the ring, with at most `chunk` of them at a time.
    pub(super) fn new(ring: Ring, values: Vec<f32>, chunk: usize) -> Self {
        let hops = (0..ring.hops()).map(|hop| Awaited { hop, range: ring.range(ring.group(hop), values.len()) });
        let awaited = hops.filter(|hop| !hop.range.is_empty()).collect();
        Self { ring, values, chunk: chunk.max(1), awaited }
    }

    /// Returns the chunks to send before anything has arrived.
    pub(super) fn begin(&self) -> impl Iterator<Item = Vec<f32>> + '_ {
        let own = if self.ring.members > 1 { self.ring.range(self.ring.place, self.values.len()) } else { 0..0 };
        self.values[own].chunks(self.chunk).map(<[f32]>::to_vec)
    }

    /// Returns the number of values of the next chunk from the left neighbour. `None`: the sum is complete here.
    pub(super) fn awaits(&self) -> Option<usize> {
        self.awaited.front().map(|awaited| awaited.range.len().min(self.chunk))
    }

    /// Takes the next chunk, as long as [`awaits`](Self::awaits) says, and returns what the right neighbour is sent of it.
    pub(super) fn take(&mut self, mut chunk: Vec<f32>) -> Option<Vec<f32>> {
        let Awaited { hop, range } = self.awaited.front_mut().expect("a chunk is awaited");
        let (hop, at) = (*hop, range.start..range.start + chunk.len());
        range.start = at.end;
        if range.start == range.end {
            self.awaited.pop_front();
        }
        let own = &mut self.values[at];
        if hop <= self.ring.last_sum() {
            chunk.iter_mut().zip(own.iter()).for_each(|(sum, own)| *sum += own);
        }
        if hop >= self.ring.last_sum() {
            own.copy_from_slice(&chunk);
        }
        (hop + 1 < self.ring.hops()).then_some(chunk)
    }

    /// Returns the sums, once nothing more is awaited.
    pub(super) fn into_values(self) -> Vec<f32> {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::rng::SplitMix64;
    use proptest::prelude::*;

    use super::*;

    /// What all members come to, and how many values each has sent. Which link delivers next is drawn by `seed`.
    fn summed(vectors: &[Vec<f32>], chunk: usize, seed: u64) -> (Vec<Vec<f32>>, Vec<usize>) {
        let (summed, traffic) = carried(vectors, chunk, seed);
        (summed, traffic.into_iter().map(|(sent, _)| sent).collect())
    }

    /// As [`summed`], with how many values each member has sent and received.
    fn carried(vectors: &[Vec<f32>], chunk: usize, seed: u64) -> (Vec<Vec<f32>>, Vec<(usize, usize)>) {
        let members = vectors.len();
        let mut rng = SplitMix64::new(seed);
        let mut all: Vec<AllReduce> =
            (0..members).map(|k| AllReduce::new(Ring::new(k, members), vectors[k].clone(), chunk)).collect();
        // Those that are on their way to each member.
        let mut inboxes: Vec<VecDeque<Vec<f32>>> = vec![VecDeque::new(); members];
        let mut traffic = vec![(0, 0); members];
        for (k, member) in all.iter().enumerate() {
            for chunk in member.begin() {
                traffic[k].0 += chunk.len();
                inboxes[member.ring.right()].push_back(chunk);
            }
        }
        loop {
            let ready: Vec<usize> = (0..members).filter(|k| !inboxes[*k].is_empty()).collect();
            if ready.is_empty() {
                break;
            }
            let k = ready[usize::try_from(rng.next_u64() % ready.len() as u64).expect("few")];
            let chunk = inboxes[k].pop_front().expect("it is ready");
            assert_eq!(all[k].awaits(), Some(chunk.len()));
            traffic[k].1 += chunk.len();
            if let Some(chunk) = all[k].take(chunk) {
                traffic[k].0 += chunk.len();
                inboxes[all[k].ring.right()].push_back(chunk);
            }
        }
        assert!(all.iter().all(|member| member.awaits().is_none()), "some members wait for ever");
        (all.into_iter().map(AllReduce::into_values).collect(), traffic)
    }

    fn vectors(members: usize, len: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = SplitMix64::new(seed);
        (0..members).map(|_| (0..len).map(|_| 1.0 + rng.next_signed_f32()).collect()).collect()
    }

    proptest! {
        #[test]
        fn all_members_have_the_same_bits_of_the_sum_whatever_the_speed_of_links(
            members in 1usize..=6,
            len in 0usize..200,
            chunk in 1usize..40,
            seed: u64,
        ) {
            let given = vectors(members, len, seed);
            let (found, traffic) = carried(&given, chunk, seed);
            for at in 0..len {
                let sum: f64 = given.iter().map(|vector| f64::from(vector[at])).sum();
                let of_first = found[0][at];
                prop_assert!((f64::from(of_first) - sum).abs() <= 1e-6 * sum.abs().max(1e-6));
                prop_assert!(found.iter().all(|vector| vector[at].to_bits() == of_first.to_bits()));
            }
            prop_assert_eq!(summed(&given, chunk, seed ^ 1).0, found.clone());
            prop_assert_eq!(summed(&given, 1000, seed).0, found, "chunks change no bit");
            let foreseen: Vec<_> = (0..members).map(|k| Ring::new(k, members).traffic(len)).collect();
            prop_assert_eq!(&traffic, &foreseen);
            // 2(N-1)/N of the vector, but for groups that are a value longer than others.
            let ideal = 2.0 * (members - 1) as f64 / members as f64 * len as f64;
            for (values, _) in traffic {
                prop_assert!((values as f64 - ideal).abs() <= 2.0 * members as f64, "{values} of {ideal} were sent");
            }
        }
    }

    #[test]
    fn a_vector_that_is_shorter_than_the_ring_is_summed() {
        let (found, sent) = summed(&[vec![1.0], vec![2.0], vec![4.0], vec![8.0]], 3, 1);
        assert_eq!(found, vec![vec![15.0]; 4]);
        // The only value is in member 3's group: it goes on to 0, 1 and 2, is complete there, and goes on to 3, 0 and 1.
        assert_eq!(sent, [2, 1, 1, 2]);
    }

    #[test]
    fn values_that_are_not_finite_reach_everybody() {
        let (found, _) = summed(&[vec![1.0, 2.0], vec![f32::NAN, f32::INFINITY], vec![0.0, 0.0]], 1, 1);
        assert!(found.iter().all(|sum| sum[0].is_nan() && sum[1] == f32::INFINITY), "{found:?}");
    }

    #[test]
    fn a_ring_of_one_sends_nothing() {
        let alone = AllReduce::new(Ring::new(0, 1), vec![3.0], 1);
        assert_eq!((alone.begin().count(), alone.awaits()), (0, None));
        assert_eq!(alone.into_values(), [3.0]);
    }
}
