//! The same fleet in the simulation: the product's coordinator and agents in virtual time, without regions and faults.

use anyhow::ensure;

use crate::sim::schedule::{AgentPlan, LinkPlan, Schedule, Task};
use crate::sim::{Overhead, Setting, World};

use super::model::{Fleet, Level};

/// Values of the model.
const PARAMS: u32 = 16;

/// Lets the agents of `fleet` work for so long, in milliseconds. What comes in during the first `skip_ms` is not counted.
/// Bytes are those of chunks that have left the lines, sent again or not.
///
/// # Errors
/// A promise was broken.
pub(super) fn run(fleet: &Fleet, (skip_ms, until_ms): (u64, u64), seed: u64) -> anyhow::Result<Level> {
    let schedule = schedule(fleet, until_ms);
    let setting = Setting { overhead: Overhead::None, ..Setting::simulated(seed, &schedule) };
    let mut world = World::with(seed, schedule, setting, false);
    world.advance(skip_ms);
    let (skipped, before) = (world.staleness().len(), world.traffic());
    world.advance(until_ms);
    let (staleness, after) = (world.staleness(), world.traffic());
    let (outcome, _) = world.finish();
    ensure!(outcome.violation.is_none(), "{:?}", outcome.violation);
    let mut level = Level {
        up_bytes: after.up_bytes - before.up_bytes,
        down_bytes: after.down_bytes - before.down_bytes,
        ..Level::default()
    };
    for behind in &staleness[skipped..] {
        level.merge(*behind, 0);
    }
    Ok(level)
}

fn schedule(fleet: &Fleet, length_ms: u64) -> Schedule {
    let link =
        LinkPlan { delay_ms: whole(fleet.line.delay_ms), jitter_ms: 0, loss: 0.0, bandwidth: fleet.line.bytes_per_ms };
    let agents = fleet.rounds_ms.iter().zip(0..).map(|(round_ms, number)| AgentPlan {
        // The first rounds end one after the other, as in the model.
        start_ms: number * whole(*round_ms) / fleet.rounds_ms.len() as u64,
        ..AgentPlan::plain(whole(*round_ms), link.clone())
    });
    Schedule {
        task: Task::Quadratic,
        params: PARAMS,
        buffer: 1,
        rule: None,
        track: None,
        share_updates: false,
        lossy: false,
        adaptive: false,
        max_staleness: 1_000_000,
        lease_ttl_ms: 3_600_000,
        checkpoint_every: 500,
        keep_journal: false,
        target_round_ms: 0,
        round_deadline_ms: 0,
        pods: None,
        agents: agents.collect(),
        length_ms,
        faults: Vec::new(),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; times are not negative")]
fn whole(ms: f64) -> u64 {
    ms.round() as u64
}
