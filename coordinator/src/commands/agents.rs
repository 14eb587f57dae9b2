//! `agents list|revoke|rotate`.

use anabranch_common::wire::operator::{RegistryRequest, RunRequest};

use super::output;
use super::reach::Coordinator;
use super::status::table;
use crate::cli::{AgentsVerb, RunReportArgs, RunTargetArgs};

pub(super) fn agents(verb: AgentsVerb) -> anyhow::Result<()> {
    match verb {
        AgentsVerb::List(RunReportArgs { target: RunTargetArgs { target, which }, output }) => {
            let json = Coordinator::look(&target)?.ask_json(which.ask(RunRequest::AgentsList))?;
            let none = "no agents; one joins with a token from `anabranch-coordinator token create`";
            output::print_list(&json, output, ("the list of agents", none), table::members)
        }
        AgentsVerb::Revoke { target, agent } => {
            let done = Coordinator::reach(&target)?.ask_done(RegistryRequest::AgentRevoke { agent })?;
            output::print_line(&done)
        }
        AgentsVerb::Rotate { target, agent, all: _ } => {
            let done = Coordinator::reach(&target)?.ask_done(RegistryRequest::AgentRotate { agent })?;
            output::print_line(&done)
        }
    }
}
