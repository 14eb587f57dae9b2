//! Who may take part in which run, and what `doctor` is told of it: the same decision as for a hello, without its effects.

use anabranch_common::ids::RunId;
use anabranch_common::wire::message::Rejection;
use anabranch_common::wire::probe::{Facts, RunFacts};

use super::{Caller, Host, Output};
use crate::core::event::RequestId;

impl Host {
    /// Returns the name of an agent that may take part in a run which is served.
    ///
    /// # Errors
    /// Why it is turned away.
    pub(super) fn admit(&self, caller: Caller, run: RunId) -> Result<&str, Rejection> {
        let Caller { agent, certificate } = caller;
        let name = self.registry.greet(agent, certificate.as_ref())?;
        let may_enter = self.registry.may_enter(agent, run);
        if may_enter && self.serving().any(|served| served == run) {
            return Ok(name);
        }
        // Which run it is that cannot be opened, its directory alone could tell.
        let may_be_here = self.nodes.contains_key(&run)
            || self.ended.contains_key(&run)
            || !self.opening.is_empty()
            || !self.unserved.is_empty();
        Err(match self.first_serving(|run| self.registry.may_enter(agent, run)) {
            Some(run) if !may_enter => Rejection::WrongRun { run },
            None if !may_enter => Rejection::Unknown,
            Some(run) if !may_be_here => Rejection::WrongRun { run },
            None if !may_be_here => Rejection::Unknown,
            // As where no process answers: the agent tries again later.
            _ => Rejection::Busy,
        })
    }

    /// Answers an agent that asks about a run.
    pub(super) fn tell_facts(&mut self, request: RequestId, caller: Caller, run: RunId) {
        let facts = match self.admit(caller, run) {
            Err(why) => Facts::Rejected(why),
            Ok(_) => match self.nodes.get(&run) {
                Some(node) => Facts::Run(Box::new(RunFacts {
                    spec: node.spec().for_agents(),
                    params: node.core().state().map(|state| state.manifest.params() as u64),
                    state: node.core().phase(),
                })),
                None => Facts::Rejected(Rejection::Busy),
            },
        };
        self.out.push(Output::Facts { request, facts });
    }
}
