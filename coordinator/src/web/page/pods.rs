//! The pods of a run: their members, and the layers that each of them computes.

use std::collections::BTreeMap;

use anabranch_common::ids::AgentId;
use anabranch_common::status::{PodMemberState, PodPartStatus, PodState, PodStatus, StatusReport};
use serde::Serialize;

/// Agents that join pods, and the pods that they form.
#[derive(Debug, Serialize)]
pub(super) struct Pods {
    computing: u64,
    sizes: Option<[u64; 2]>,
    at_work: u64,
    free: u64,
    members: u64,
    waiting: u64,
    problem: Option<String>,
    rows: Vec<PodLine>,
    /// Pods at work that are not listed.
    more: u64,
}

/// A pod.
#[derive(Debug, Serialize)]
struct PodLine {
    owner: String,
    /// Its lease and the number of its attempt, which tell it from others.
    mark: String,
    state: &'static str,
    problem: Option<String>,
    stages: Vec<Stage>,
}

/// What one member does.
#[derive(Debug, Serialize)]
struct Stage {
    agent: String,
    layers: String,
    state: &'static str,
}

impl Pods {
    /// Returns none where a run has no pods.
    pub(super) fn of(report: &StatusReport) -> Option<Self> {
        let pods = report.pods.as_ref()?;
        let names: BTreeMap<AgentId, &str> =
            report.agents.iter().map(|agent| (agent.agent, agent.name.as_str())).collect();
        let name = |agent: AgentId| names.get(&agent).map_or_else(|| agent.short(), |name| (*name).to_owned());
        let listed = pods.pods.iter().filter(|pod| pod.state == PodState::Computing).count() as u64;
        Some(Self {
            computing: pods.computing,
            sizes: pods.sizes,
            at_work: pods.at_work,
            free: pods.free,
            members: pods.members,
            waiting: pods.waiting,
            problem: pods.problem.clone(),
            rows: pods.pods.iter().map(|pod| line(pod, &name)).collect(),
            more: pods.computing.saturating_sub(listed),
        })
    }
}

fn line(pod: &PodStatus, name: &dyn Fn(AgentId) -> String) -> PodLine {
    let stage = |part: &PodPartStatus| Stage {
        agent: name(part.agent),
        layers: layers(part),
        state: match part.state {
            PodMemberState::Computing => "computing",
            PodMemberState::Idle => "idle",
            PodMemberState::Away => "away",
        },
    };
    PodLine {
        owner: name(pod.owner),
        mark: format!("lease {}, attempt {}", pod.lease, pod.attempt),
        state: match pod.state {
            PodState::Computing => "computing",
            PodState::Waiting => "waiting",
        },
        problem: pod.problem.clone(),
        stages: pod.parts.iter().map(stage).collect(),
    }
}

/// Layers as people count them, from 1.
fn layers(part: &PodPartStatus) -> String {
    match (part.first + 1, part.end) {
        (first, last) if first >= last => format!("layer {last}"),
        (first, last) => format!("layers {first} to {last}"),
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::LeaseId;
    use anabranch_common::status::PodsStatus;

    use super::super::tests::{agent, run};
    use super::*;

    #[test]
    fn each_member_of_a_pod_has_its_name_its_layers_and_what_it_does() {
        let (owner, helper) = (agent(1), agent(2));
        let mut view = run("wards", vec![owner.clone(), helper.clone()]);
        let report = view.report.as_mut().expect("a report");
        assert!(Pods::of(report).is_none(), "a run without pods");
        let part = |agent, first, end, state| PodPartStatus { agent, first, end, state };
        let stranger = AgentId([9; 16]);
        let pod = PodStatus {
            owner: owner.agent,
            lease: LeaseId(7),
            attempt: 2,
            state: PodState::Computing,
            parts: vec![
                part(owner.agent, 0, 1, PodMemberState::Computing),
                part(helper.agent, 1, 4, PodMemberState::Idle),
                part(stranger, 4, 5, PodMemberState::Away),
            ],
            problem: None,
        };
        report.pods = Some(PodsStatus { computing: 3, sizes: Some([2, 3]), pods: vec![pod], ..PodsStatus::default() });
        let pods = Pods::of(report).expect("pods");
        assert_eq!((pods.computing, pods.sizes, pods.more), (3, Some([2, 3]), 2));
        let row = &pods.rows[0];
        assert_eq!((&*row.owner, &*row.mark, row.state), ("agent-1", "lease 7, attempt 2", "computing"));
        let stages: Vec<_> = row.stages.iter().map(|stage| (&*stage.agent, &*stage.layers, stage.state)).collect();
        let short = stranger.short();
        assert_eq!(
            stages,
            [("agent-1", "layer 1", "computing"), ("agent-2", "layers 2 to 4", "idle"), (&short, "layer 5", "away")]
        );
    }
}
