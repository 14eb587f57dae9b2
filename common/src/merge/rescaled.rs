//! Rescaled asynchronous SGD, after Mahran, Maranjyan and Richtarik 2026, "Rescaled Asynchronous SGD: Optimal Distributed
//! Optimization under Data and System Heterogeneity": every update moves the model, by a step in proportion to the time that
//! its agent takes, so that all agents pull equally over time, whatever their speed.
//!
//! ```text
//! R_a = arrivals between the two latest updates of agent a, this one included          C = active agents
//! r   = clip(R_a / C, 1/8, 8), and 1 for an agent's first update
//! w   = alpha * s(tau) * r
//! close:  x += w delta
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | alpha | `alpha` | - | step of an agent of mean speed |
//! | s | `staleness` | constant | damping of stale updates; the paper has none |
//! | x | - | - | model: f32 |
//!
//! The paper's steps are in proportion to fixed times T_a. Here time is counted in arrivals, which are in the journal. The
//! intervals of an agent add up to all arrivals while it was there: so each agent has the sum n / C in n arrivals, and the mean
//! of r over all arrivals is 1, as long as nothing is clipped. Equal pull is per agent, not per example.
//!
//! r is computed in the fold, by [`Shares::rescale`](super::shares::Shares::rescale), when an update is admitted, and is part of
//! the weight in its record. With that weight the rule is [`FedAsync`](super::fedasync::FedAsync), which merges it: no state of
//! its own.
//!
//! Bad at: times that change, since the paper assumes fixed ones, and one interval here is one look: an agent that pauses
//! comes back with up to 8 times the weight; stale updates of slow agents, which get the largest steps; fleets in which an
//! agent is more than 8 times slower than the mean; a liar that holds its updates back, though it gains at most what it
//! missed.

use super::participation::{MAX_WEIGHT, MIN_WEIGHT};

/// Returns r for an interval of so many arrivals in a fleet of so many active agents.
#[must_use]
pub(super) fn factor(interval: u64, active: u64) -> f64 {
    (interval as f64 / active.max(1) as f64).clamp(MIN_WEIGHT, MAX_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::AgentId;
    use crate::merge::shares::Shares;

    fn agent(number: u8) -> AgentId {
        AgentId([number; 16])
    }

    #[test]
    fn factors_are_in_proportion_and_clipped() {
        assert_eq!([5, 10, 30].map(|interval| factor(interval, 10)), [0.5, 1.0, 3.0]);
        assert_eq!([1, 1_000].map(|interval| factor(interval, 10)), [MIN_WEIGHT, MAX_WEIGHT]);
    }

    #[test]
    fn agents_of_different_speed_pull_equally_and_by_1_in_the_mean() {
        let mut shares = Shares::of((0..3).map(|number| (agent(number), 100)));
        let (mut pulls, arrivals) = ([0.0; 3], 3_000_u32);
        for arrival in 0..arrivals {
            let number = if arrival % 6 == 5 { 2 } else { u8::from(arrival % 3 == 1) };
            pulls[usize::from(number)] += shares.rescale(agent(number), 100);
            shares.arrive(agent(number), 100);
        }
        let mean = pulls.iter().sum::<f64>() / f64::from(arrivals);
        assert!((mean - 1.0).abs() < 0.01, "the mean is {mean}");
        let third = f64::from(arrivals) / 3.0;
        assert!(pulls.iter().all(|pull| (pull / third - 1.0).abs() < 0.01), "{pulls:?} of {third} each");
    }

    #[test]
    fn nothing_is_known_of_the_time_of_an_agent_before_its_second_update() {
        let mut shares = Shares::of((0..2).map(|number| (agent(number), 100)));
        (0..9).for_each(|_| drop(shares.arrive(agent(0), 100)));
        assert_eq!(shares.rescale(agent(1), 100), 1.0);
        shares.arrive(agent(1), 100);
        (0..3).for_each(|_| drop(shares.arrive(agent(0), 100)));
        assert_eq!(shares.rescale(agent(1), 100), 2.0, "4 arrivals of 2 agents");
        shares.forget_updates();
        assert_eq!(shares.rescale(agent(1), 100), 1.0, "the model is another one");
    }
}
