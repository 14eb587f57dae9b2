//! What a scenario with pods came to: the bits of its model, and how soon pods had updates accepted again.

use anabranch_common::journal::FinishReason;
use anabranch_io::model_file;
use anyhow::ensure;

use super::drive::Record;
use super::fault::Fault;
use super::fleet::Fleet;
use super::scenario::Scenario;

/// Returns the model of a run that has ended with its last version, as exported, in bits.
///
/// # Errors
/// The run has not ended so, or its model cannot be exported.
pub(super) fn finished_model(fleet: &Fleet) -> anyhow::Result<Vec<u32>> {
    let finished = fleet.cluster.status()?.finished;
    ensure!(finished == Some(FinishReason::Versions), "the run has not reached its last version: {finished:?}");
    let path = fleet.cluster.path().join("finished.safetensors");
    fleet.cluster.coordinate(&["checkpoint", "export"], &["--out", &path.display().to_string()])?.code(0)?;
    let (_, values) = model_file::read(&path, None)?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// Returns, for each kill of a process that pods need, the seconds from its restart until its pods had another update
/// accepted: an owner its own one; after a helper or the coordinator was killed, every owner of a pod. Where another fault of
/// theirs began before that, the time runs from the end of that fault. In order.
pub(super) fn recoveries(scenario: &Scenario, record: &Record) -> Vec<f64> {
    let (owners, agents) = (scenario.owner_names(), scenario.agent_names());
    let alone = &agents[owners.len()..];
    if owners.is_empty() {
        return Vec::new();
    }
    let faults = || record.injected.iter().filter(move |injected| !alone.contains(&injected.node));
    let mut times: Vec<f64> = faults()
        .filter(|injected| injected.fault == Fault::Kill)
        .map(|kill| {
            let own = owners.iter().find(|owner| **owner == kill.node);
            let waiting = own.map_or(owners.as_slice(), std::slice::from_ref);
            let mut from_ms = kill.to_ms;
            loop {
                let served_ms = served_ms(record, waiting, from_ms);
                let others = faults().filter(|other| other.from_ms < served_ms && other.to_ms > from_ms);
                match others.map(|other| other.to_ms).max() {
                    Some(to_ms) => from_ms = to_ms,
                    None => return served_ms.saturating_sub(from_ms) as f64 / 1e3,
                }
            }
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// When each of `owners` had an update accepted after `from_ms`; the end of the run where one had none.
fn served_ms(record: &Record, owners: &[String], from_ms: u64) -> u64 {
    let first = |owner: &String| {
        let mut accepted = record.accepted().filter(|(at_ms, agent, ..)| *at_ms > from_ms && agent == owner);
        accepted.next().map_or(record.end_ms, |(at_ms, ..)| at_ms)
    };
    owners.iter().map(first).max().unwrap_or(record.end_ms)
}

/// Returns the longest time that an owner of a pod had no update accepted, in seconds, until every agent was served again;
/// none without pods.
pub(super) fn longest_gap_s(scenario: &Scenario, record: &Record) -> Option<f64> {
    let until_ms = record.served_ms.unwrap_or(record.end_ms);
    let of_owner = |owner: &String| {
        let accepted = record.accepted().filter(|(at_ms, agent, ..)| *at_ms <= until_ms && agent == owner);
        let mut before_ms = 0;
        let gaps = accepted.map(|(at_ms, ..)| at_ms.saturating_sub(std::mem::replace(&mut before_ms, at_ms)));
        let longest_ms = gaps.max().unwrap_or(until_ms);
        longest_ms.max(until_ms.saturating_sub(before_ms))
    };
    scenario.owner_names().iter().map(of_owner).max().map(|ms| ms as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::drive::Injected;
    use crate::chaos::parse;
    use crate::process::{Seen, What};

    fn scenario(agents: u32, alone: u32) -> Scenario {
        let text = format!(
            "faults = [4]\nabout = \"a test\"\ntask = \"digits\"\nseconds = 9.0\nagents = {agents}\n[pod]\nhelpers = 2\n\
             alone = {alone}\nrun = {{ kind = \"stages\", stages = 2 }}\n"
        );
        parse(&text).expect("a scenario")
    }

    fn record(kills: &[(&str, u64, u64)], accepted: &[(&str, u64)]) -> Record {
        let accepted = accepted.iter().map(|(agent, at_ms)| Seen {
            at_ms: *at_ms,
            agent: (*agent).to_owned(),
            what: What::Accepted { key: (1, *at_ms), version: 1 },
        });
        let injected = kills.iter().map(|(node, from_ms, to_ms)| Injected {
            node: (*node).to_owned(),
            fault: Fault::Kill,
            from_ms: *from_ms,
            to_ms: *to_ms,
        });
        Record { seen: accepted.collect(), injected: injected.collect(), end_ms: 20_000, ..Record::default() }
    }

    #[test]
    fn an_owner_waits_for_its_own_update_and_a_helper_for_those_of_all_owners() {
        let updates = [("agent-0", 1_500), ("agent-2", 1_600), ("agent-1", 2_500), ("agent-0", 4_000)];
        let of = |node: &str| recoveries(&scenario(3, 1), &record(&[(node, 500, 1_000)], &updates));
        assert_eq!(of("agent-0"), [0.5]);
        assert_eq!(of("helper-1"), [1.5]);
        assert_eq!(of("coordinator"), [1.5]);
        assert_eq!(of("agent-2"), [0.0; 0], "it trains alone");
    }

    #[test]
    fn what_fails_meanwhile_is_waited_for_and_what_never_comes_lasts_to_the_end() {
        let kills = [("helper-0", 500, 1_000), ("agent-0", 1_800, 3_000)];
        let times = recoveries(&scenario(1, 0), &record(&kills, &[("agent-0", 3_700)]));
        assert_eq!(times, [0.7, 0.7]);
        assert_eq!(recoveries(&scenario(1, 0), &record(&kills[..1], &[("agent-0", 900)])), [19.0]);
    }

    #[test]
    fn a_gap_reaches_to_the_end() {
        let updates = [("agent-0", 100), ("agent-0", 2_100), ("agent-0", 2_200)];
        let longest =
            |served_ms| longest_gap_s(&scenario(1, 0), &Record { served_ms: Some(served_ms), ..record(&[], &updates) });
        assert_eq!((longest(2_200), longest(9_200)), (Some(2.0), Some(7.0)));
    }
}
