//! What merging one update costs, by rule: `cargo test -p anabranch-tests --lib bench::merge -- --nocapture`.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::codec::Delta;
use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::merge::recall::{RecallInputs, Recalled};
use anabranch_common::merge::shares::{Recalling, Shares};
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::merge::{Arrival, MergeSpec};
use anabranch_common::rng::SplitMix64;

use crate::clock::Stopwatch;

const UPDATES: u32 = 20;

/// A model, and updates of 5 % of its entries.
struct Load {
    params: usize,
    updates: Vec<Arc<Delta>>,
}

impl Load {
    fn of(params: u32) -> Self {
        let mut rng = SplitMix64::new(3);
        let updates = (0..limits::RECALLED_AGENTS).map(|_| {
            let indices: Vec<u32> = (0..params).filter(|_| rng.below(20) == 0).collect();
            let values = indices.iter().map(|_| 0.01 * rng.next_signed_f32()).collect();
            Arc::new(Delta::Sparse { len: params as usize, indices, values })
        });
        Self { params: params as usize, updates: updates.collect() }
    }

    /// Time of one update and its close, when so many memories are recalled at each.
    fn time(&self, spec: &MergeSpec, recalled: usize) -> Duration {
        let (mut rule, mut model) = (spec.rule(self.params), vec![0.5; self.params]);
        let agent = |number: usize| AgentId([u8::try_from(number).unwrap_or(u8::MAX); 16]);
        let all = (0..recalled).map(|number| Recalled { agent: agent(number), factor: 0.01 }).collect();
        let inputs = RecallInputs { active: 100, scale: 1.0, recalled: all };
        let mut take = |number: usize| {
            let (agent, weight, mean_weight, recall) = (agent(number), 0.5, 0, Some(&inputs));
            let arrival =
                Arrival { agent, weight, mean_weight, staleness: 0, base_dot: Some(0.0), recall, memory: None };
            rule.contribute(&model, &self.updates[number % self.updates.len()], &arrival);
            rule.close(&mut model);
        };
        (0..recalled).for_each(&mut take);
        let watch = Stopwatch::start();
        (0..UPDATES as usize).for_each(take);
        watch.elapsed() / UPDATES
    }
}

/// Time of what admission asks of the shares for one update, in a fleet of which every agent has reported.
fn shares_time(agents: u32) -> Duration {
    let agent = |number: u32| AgentId(u128::from(number).to_be_bytes());
    let mut shares = Shares::of((0..agents).map(|number| (agent(number), 600)));
    (0..agents).for_each(|number| drop(shares.arrive(agent(number), 600)));
    let watch = Stopwatch::start();
    for number in 0..UPDATES {
        let admitted = shares.admit(agent(number % 7), 600, Recalling::On);
        assert!(admitted.weight > 0.0 && admitted.inputs.recalled.len() <= limits::RECALLED_AGENTS);
        shares.arrive(agent(number % 7), 600);
    }
    watch.elapsed() / UPDATES
}

#[test]
fn an_update_is_merged_in_far_less_than_a_second() {
    let fedasync = MergeSpec::FedAsync { alpha: 0.5, staleness: Staleness::Constant, participation: false };
    let recall = MergeSpec::Recall { step: 23.0, recall: true, average: true };
    for params in [100_000, 1_000_000] {
        let load = Load::of(params);
        println!("{params} parameters, updates of 5 %: fedasync {:?} an update", load.time(&fedasync, 0));
        for recalled in [0, 2, 64] {
            let time = load.time(&recall, recalled);
            println!("  recall with {recalled} memories: {time:?}");
            assert!(time < Duration::from_secs(1), "{params} parameters, {recalled} memories: {time:?}");
        }
    }
    let most = u32::try_from(limits::AGENTS).expect("few");
    for agents in [10, 1_000, most] {
        let time = shares_time(agents);
        println!("shares of {agents} agents: {time:?} an update");
        assert!(time < Duration::from_secs(1), "{agents} agents: {time:?}");
    }
}
