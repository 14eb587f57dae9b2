//! The named kill points, and in which order they are visited.
//!
//! Each stands for a step of faults 1 to 11 and 31 to 32 of the fault catalogue (docs/faults.md). A point that is never
//! reached guards nothing: a run that misses one does not pass.

use anabranch_common::rng::SplitMix64;

/// A place in a daemon at which it can be made to kill itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its name in the code: `anabranch_io::faults::point(name)`.
    pub name: &'static str,
    /// How many passages of it the kill may wait for.
    pub passages: u64,
}

const fn at(name: &'static str, passages: u64) -> Point {
    Point { name, passages }
}

impl Point {
    /// Returns whether the coordinator passes it only when it saves members or tokens: an operator has to ask for it.
    #[must_use]
    pub fn needs_an_operator(self) -> bool {
        self.name.starts_with("items-")
    }
}

/// Only before the first model is there.
pub const GENESIS: Point = at("model-stored", 1);

/// In the coordinator.
pub const COORDINATOR: [Point; 23] = [
    at("journal-before-write", 12),
    at("journal-before-sync", 12),
    at("journal-before-ack", 12),
    at("items-before-sync", 1),
    at("items-saved", 1),
    at("verdict-sent", 6),
    at("lease-sent", 6),
    at("merge-before", 8),
    at("merge-after", 8),
    at("upload-asked-for", 6),
    at("upload-chunk", 6),
    at("checkpoint-in-pages", 2),
    at("checkpoint-before-head", 2),
    at("checkpoint-in-snapshot", 2),
    at("checkpoint-before-manifest", 2),
    at("checkpoint-in-manifest", 2),
    at("checkpoint-written", 2),
    at("prune-in-manifests", 2),
    at("prune-before-records", 2),
    at("prune-in-records", 2),
    at("prune-in-blobs", 2),
    at("store-opening", 1),
    at("recovered", 1),
];

/// In the coordinator's recovery, killed many times in a row.
pub const RECOVERY: [Point; 4] =
    [at("store-opening", 1), at("recovery-begins", 1), at("recovery-in-replay", 2), at("recovered", 1)];

/// In the agent.
pub const AGENT: [Point; 10] = [
    at("ledger-in-file", 12),
    at("ledger-files-synced", 6),
    at("ledger-blobs-written", 6),
    at("ledger-before-head", 6),
    at("ledger-in-head", 6),
    at("ledger-head-synced", 6),
    at("update-offered", 4),
    at("update-before-chunks", 4),
    at("verdict-received", 4),
    at("store-opening", 1),
];

/// How many kills in a row hit the coordinator's recovery (fault 11).
pub const RECOVERY_BURST: usize = 20;
/// Kills at moments drawn at random, in each round and for each victim.
const ANY_MOMENT: usize = 4;
/// A moment drawn at random comes at most this long after the start, in milliseconds.
const ANY_MOMENT_MS: u64 = 600;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The coordinator.
    Coordinator,
    /// The agent with this number.
    Agent(usize),
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// At a passage of a point, counted from 1.
    At(Point, u64),
    /// So many milliseconds after it was started.
    AfterMs(u64),
}

/// One kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// Who.
    pub victim: Victim,
    /// When.
    pub moment: Moment,
}

/// A round: every point once, a burst in recovery, and random moments; kills of the same victim stand together. Without
/// points (a build without the feature `faults`) there are random moments only.
#[must_use]
pub fn round(rng: &mut SplitMix64, agents: usize, with_points: bool) -> Vec<Kill> {
    let mut kills = Vec::new();
    let mut add = |rng: &mut SplitMix64, victim, points: &[Point], any_moment| {
        let mut group: Vec<Moment> = Vec::new();
        for point in points.iter().filter(|_| with_points) {
            group.push(Moment::At(*point, 1 + rng.below(point.passages)));
        }
        group.extend((0..any_moment).map(|_| Moment::AfterMs(rng.below(ANY_MOMENT_MS))));
        shuffle(rng, &mut group);
        kills.extend(group.into_iter().map(|moment| Kill { victim, moment }));
    };
    add(rng, Victim::Coordinator, &COORDINATOR, ANY_MOMENT);
    for agent in 0..agents {
        add(rng, Victim::Agent(agent), &AGENT, ANY_MOMENT);
    }
    let burst: Vec<Point> = RECOVERY.iter().copied().cycle().take(RECOVERY_BURST).collect();
    add(rng, Victim::Coordinator, &burst, 0);
    kills
}

fn shuffle<T>(rng: &mut SplitMix64, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let other = usize::try_from(rng.below(last as u64 + 1)).unwrap_or(0);
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_visits_every_point_and_the_same_seed_gives_the_same_round() {
        let kills = round(&mut SplitMix64::new(5), 2, true);
        assert_eq!(kills, round(&mut SplitMix64::new(5), 2, true));
        assert_ne!(kills, round(&mut SplitMix64::new(6), 2, true));
        let visited = |victim, point: &Point| {
            kills
                .iter()
                .any(|kill| kill.victim == victim && matches!(kill.moment, Moment::At(at, _) if at.name == point.name))
        };
        assert!(COORDINATOR.iter().chain(&RECOVERY).all(|point| visited(Victim::Coordinator, point)));
        assert!(AGENT.iter().all(|point| visited(Victim::Agent(0), point) && visited(Victim::Agent(1), point)));
        assert!(round(&mut SplitMix64::new(5), 2, false).iter().all(|kill| matches!(kill.moment, Moment::AfterMs(_))));
    }
}
