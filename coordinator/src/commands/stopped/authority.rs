//! From one CA to the next on a stopped coordinator: the steps of a running one, without agents to ask.

use anabranch_common::wire::operator::OperatorResponse;

use super::Stopped;
use crate::clock;
use crate::commands::reach;
use crate::core::event::Now;
use crate::registry::AuthorityStep;

impl Stopped {
    pub(super) fn begin_rollover(&self) -> anyhow::Result<OperatorResponse> {
        let mut identity = reach::load_identity(&self.dir)?;
        if identity.next_ca_der().is_some() {
            let why = "a rollover is under way: `ca status` shows it, and `ca finish` ends it";
            return Ok(OperatorResponse::Conflict(why.to_owned()));
        }
        identity.settle().map_err(reach::identity_fail)?;
        let names = self.config.server.certificate_names();
        identity.begin_rollover(&names, clock::unix_ms()).map_err(reach::identity_fail)?;
        Ok(OperatorResponse::Done(AuthorityStep::Begin.told().to_owned()))
    }

    pub(super) fn finish_rollover(&self, force: bool) -> anyhow::Result<OperatorResponse> {
        let mut identity = reach::load_identity(&self.dir)?;
        let now = Now { unix_ms: clock::unix_ms(), mono_ms: 0 };
        let is_begun = identity.next_ca_der().is_some();
        if let Some(why) = self.registry()?.keeps_from_finishing(now).filter(|_| is_begun && !force) {
            return Ok(OperatorResponse::Conflict(why));
        }
        identity.finish_rollover().map_err(reach::identity_fail)?;
        Ok(OperatorResponse::Done(AuthorityStep::Finish.told().to_owned()))
    }
}
