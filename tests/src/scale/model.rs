//! A fleet as a queue of moments: no weights, no bytes, only who merges when, and how many versions passed meanwhile.
//!
//! ```text
//!  agent    ── base taken ──(line down)── round ──(line up, write)──► merged: a version of its coordinator
//!  region   ── every `contributions` merged, or `every_ms` after the last ──(line up, write)──► merged: a version of the root
//!              then a new base ──(line down)──►
//! ```
//! An agent computes without a break: it takes the base of its next round as long before the end of the current one as the
//! line needs to bring it. A region's agents go on while its contribution and its base travel.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anabranch_common::rng::SplitMix64;

/// A line between a coordinator and who contributes to it. One way takes the delay and the bytes over the rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// One way, in milliseconds.
    pub delay_ms: f64,
    /// Bytes in a millisecond, both ways.
    pub bytes_per_ms: f64,
}

impl Line {
    fn takes_us(&self, bytes: u64) -> u64 {
        us(self.delay_ms + bytes as f64 / self.bytes_per_ms)
    }
}

/// What agents are, and what they send.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// How long each agent's round takes, in milliseconds; as many as there are agents.
    pub rounds_ms: Vec<f64>,
    /// Bytes of an update, and of a region's contribution.
    pub update_bytes: u64,
    /// Bytes of a base.
    pub base_bytes: u64,
    /// From the last byte at a coordinator to the version, in milliseconds: decoding, writing, merging.
    pub write_ms: f64,
    /// The agents' lines: to the root, or to their regions.
    pub line: Line,
}

/// Coordinators between the agents and the root.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Regions {
    /// How many; agents are of one after the other.
    pub regions: usize,
    /// A region contributes after so many merged updates, ...
    pub contributions: u64,
    /// ... or so long after its last contribution, whichever comes first, in milliseconds. Not before one was merged.
    pub every_ms: f64,
    /// The lines to the root.
    pub line: Line,
}

/// What a coordinator, or all regions together, took in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Level {
    /// Contributions that were merged.
    pub merged: u64,
    /// How many versions behind each of them was: `staleness[n]` of them were n behind.
    pub staleness: Vec<u64>,
    /// Bytes that came up the lines to it, and went down.
    pub up_bytes: u64,
    /// The same, down.
    pub down_bytes: u64,
}

impl Level {
    pub(super) fn merge(&mut self, behind: u64, bytes: u64) {
        let behind = usize::try_from(behind).unwrap_or(usize::MAX).min(MOST_BEHIND);
        if self.staleness.len() <= behind {
            self.staleness.resize(behind + 1, 0);
        }
        self.staleness[behind] += 1;
        self.merged += 1;
        self.up_bytes += bytes;
    }

    /// Returns the mean staleness.
    #[must_use]
    pub fn mean_staleness(&self) -> f64 {
        let sum: f64 = self.staleness.iter().enumerate().map(|(behind, count)| behind as f64 * *count as f64).sum();
        sum / (self.merged as f64).max(1.0)
    }

    /// Returns the staleness that a share (0..1) of the contributions does not exceed.
    #[must_use]
    pub fn staleness_at(&self, share: f64) -> u64 {
        let mut left = share * self.merged as f64;
        for (behind, count) in self.staleness.iter().enumerate() {
            left -= *count as f64;
            if left <= 0.0 {
                return behind as u64;
            }
        }
        0
    }
}

/// Larger staleness counts as this.
const MOST_BEHIND: usize = 1 << 20;

/// What a fleet comes to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The root.
    pub root: Level,
    /// All regions together; nothing without regions.
    pub regions: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// An agent's base is fixed.
    Base(u32),
    /// The update of an agent's round from this version is merged.
    Update(u32, u64),
    /// It is time for a region to contribute, unless it has since its contribution of this number.
    Due(u32, u64),
    /// A region's contribution is merged at the root.
    Contribution(u32),
    /// A region has a new base.
    Rebase(u32),
}

#[derive(Debug, Clone, Default)]
struct Region {
    version: u64,
    /// Version of the root that its model is based on.
    base: u64,
    waiting: u64,
    /// Number of its next contribution.
    number: u64,
    /// A contribution is on its way, or the base that answers it.
    is_out: bool,
    is_due: bool,
}

struct World<'a> {
    fleet: &'a Fleet,
    tree: Option<&'a Regions>,
    agenda: BinaryHeap<Reverse<(u64, u64, Moment)>>,
    drawn: u64,
    regions: Vec<Region>,
    version: u64,
    found: Found,
}

/// Lets a fleet work for so long, in milliseconds, from a cold start at drawn moments of everybody's first round. What comes in
/// during the first `skip_ms` is not counted.
#[must_use]
pub fn run(fleet: &Fleet, tree: Option<&Regions>, (skip_ms, until_ms): (f64, f64), seed: u64) -> Found {
    let count = fleet.rounds_ms.len();
    let mut world = World {
        fleet,
        tree,
        agenda: BinaryHeap::with_capacity(2 * count),
        drawn: 0,
        regions: vec![Region::default(); tree.map_or(0, |tree| tree.regions)],
        version: 0,
        found: Found::default(),
    };
    let mut rng = SplitMix64::new(seed);
    for (agent, round_ms) in (0..).zip(&fleet.rounds_ms) {
        world.at(us(rng.next_f64() * round_ms), Moment::Base(agent));
    }
    for region in 0..world.regions.len() {
        world.wait_for(0, region);
    }
    let (skip_us, until_us) = (us(skip_ms), us(until_ms));
    let mut is_counted = false;
    while let Some(Reverse((at_us, _, moment))) = world.agenda.pop() {
        if at_us >= until_us {
            break;
        }
        if at_us >= skip_us && !is_counted {
            is_counted = true;
            world.found = Found::default();
        }
        world.happen(at_us, moment);
    }
    world.found
}

impl World<'_> {
    fn at(&mut self, at_us: u64, moment: Moment) {
        self.drawn += 1;
        self.agenda.push(Reverse((at_us, self.drawn, moment)));
    }

    /// A region's timer.
    fn wait_for(&mut self, now_us: u64, region: usize) {
        let Some(tree) = self.tree else { return };
        let number = self.regions[region].number;
        self.at(now_us + us(tree.every_ms), Moment::Due(short(region), number));
    }

    fn happen(&mut self, now_us: u64, moment: Moment) {
        match moment {
            Moment::Base(agent) => self.base(now_us, agent),
            Moment::Update(agent, base) => self.update(now_us, agent, base),
            Moment::Due(region, number) => {
                let region = region as usize;
                if self.regions[region].number == number {
                    self.regions[region].is_due = true;
                    self.contribute(now_us, region);
                }
            }
            Moment::Contribution(region) => self.contribution(now_us, region as usize),
            Moment::Rebase(region) => {
                self.regions[region as usize].is_out = false;
                self.contribute(now_us, region as usize);
            }
        }
    }

    fn region_of(&self, agent: u32) -> Option<usize> {
        self.tree.map(|tree| agent as usize % tree.regions)
    }

    fn base(&mut self, now_us: u64, agent: u32) {
        let (fleet, region) = (self.fleet, self.region_of(agent));
        let (version, level) = match region {
            Some(region) => (self.regions[region].version, &mut self.found.regions),
            None => (self.version, &mut self.found.root),
        };
        level.down_bytes += fleet.base_bytes;
        let round_us = us(fleet.rounds_ms[agent as usize]);
        let (down_us, up_us) = (fleet.line.takes_us(fleet.base_bytes), fleet.line.takes_us(fleet.update_bytes));
        self.at(now_us + down_us + round_us + up_us + us(fleet.write_ms), Moment::Update(agent, version));
        // It is there when this round ends, or as soon as the line has brought it.
        self.at(now_us + round_us.max(down_us), Moment::Base(agent));
    }

    fn update(&mut self, now_us: u64, agent: u32, base: u64) {
        let (fleet, region) = (self.fleet, self.region_of(agent));
        match region {
            Some(at) => {
                let region = &mut self.regions[at];
                self.found.regions.merge(region.version - base, fleet.update_bytes);
                region.version += 1;
                region.waiting += 1;
                self.contribute(now_us, at);
            }
            None => {
                self.found.root.merge(self.version - base, fleet.update_bytes);
                self.version += 1;
            }
        }
    }

    /// A region sends what it has, if it is time.
    fn contribute(&mut self, now_us: u64, at: usize) {
        let Some(tree) = self.tree else { return };
        let region = &mut self.regions[at];
        let is_time = region.waiting >= tree.contributions || (region.is_due && region.waiting > 0);
        if !is_time || region.is_out {
            return;
        }
        region.waiting = 0;
        region.is_due = false;
        region.is_out = true;
        region.number += 1;
        let up_us = tree.line.takes_us(self.fleet.update_bytes) + us(self.fleet.write_ms);
        self.at(now_us + up_us, Moment::Contribution(short(at)));
        self.wait_for(now_us, at);
    }

    fn contribution(&mut self, now_us: u64, at: usize) {
        let Some(tree) = self.tree else { return };
        let region = &mut self.regions[at];
        self.found.root.merge(self.version - region.base, self.fleet.update_bytes);
        self.version += 1;
        // Its new base holds its own contribution.
        region.base = self.version;
        self.found.root.down_bytes += self.fleet.base_bytes;
        self.at(now_us + tree.line.takes_us(self.fleet.base_bytes), Moment::Rebase(short(at)));
    }
}

fn short(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; times are not negative")]
fn us(ms: f64) -> u64 {
    (ms * 1e3).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Line = Line { delay_ms: 0.0, bytes_per_ms: f64::INFINITY };

    fn fleet(agents: usize, round_ms: f64) -> Fleet {
        let (update_bytes, base_bytes) = (10, 100);
        Fleet { rounds_ms: vec![round_ms; agents], update_bytes, base_bytes, write_ms: 0.0, line: NEAR }
    }

    #[test]
    fn while_an_agent_computes_every_other_one_merges_once() {
        let found = run(&fleet(50, 1_000.0), None, (10_000.0, 110_000.0), 1);
        assert_eq!((found.root.merged, found.root.up_bytes, found.root.down_bytes), (5_000, 50_000, 500_000));
        assert_eq!((found.root.staleness_at(0.01), found.root.staleness_at(1.0)), (49, 49));
        assert_eq!(found.regions, Level::default());
    }

    #[test]
    fn a_line_adds_what_is_merged_while_it_carries() {
        let slow = Fleet { line: Line { delay_ms: 100.0, bytes_per_ms: 1.0 }, ..fleet(50, 1_000.0) };
        // 200 ms down, 110 ms up: 1,310 ms of 50 updates a second.
        let mean = run(&slow, None, (10_000.0, 110_000.0), 1).root.mean_staleness();
        assert!((64.0..67.0).contains(&mean), "{mean}");
    }

    #[test]
    fn regions_divide_what_comes_to_the_root_by_what_they_gather() {
        let regions = Regions { regions: 5, contributions: 20, every_ms: 1e9, line: NEAR };
        let found = run(&fleet(50, 1_000.0), Some(&regions), (10_000.0, 110_000.0), 1);
        assert_eq!((found.regions.merged, found.root.merged), (5_000, 250));
        assert_eq!((found.root.up_bytes, found.root.down_bytes), (2_500, 25_000));
        // Four other regions contribute between two contributions of one, and nine other agents between two of an agent.
        assert!((found.root.mean_staleness() - 4.0).abs() < 0.5, "{}", found.root.mean_staleness());
        assert!((found.regions.mean_staleness() - 9.5).abs() < 0.6, "{}", found.regions.mean_staleness());
    }

    #[test]
    fn a_region_contributes_in_time_what_it_has() {
        let regions = Regions { regions: 5, contributions: 1_000_000, every_ms: 5_000.0, line: NEAR };
        let found = run(&fleet(50, 1_000.0), Some(&regions), (0.0, 100_500.0), 1);
        assert_eq!(found.root.merged, 5 * 20);
    }

    #[test]
    fn the_same_seed_gives_the_same_figures() {
        let fleet = Fleet { rounds_ms: (1..100).map(|agent| f64::from(agent) * 10.0).collect(), ..fleet(0, 0.0) };
        let found = |seed| run(&fleet, None, (0.0, 50_000.0), seed);
        assert_eq!(found(3), found(3));
        assert_ne!(found(3), found(4));
    }
}
