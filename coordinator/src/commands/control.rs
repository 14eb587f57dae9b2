//! `pause`, `resume` and `stop`.

use anabranch_common::wire::operator::RunRequest;

use super::output;
use super::reach::Coordinator;
use crate::cli::RunTargetArgs;

pub(super) fn pause(target: &RunTargetArgs) -> anyhow::Result<()> {
    control(target, RunRequest::Pause)
}

pub(super) fn resume(target: &RunTargetArgs) -> anyhow::Result<()> {
    control(target, RunRequest::Resume)
}

pub(super) fn stop(target: &RunTargetArgs) -> anyhow::Result<()> {
    control(target, RunRequest::Stop)
}

fn control(RunTargetArgs { target, which }: &RunTargetArgs, request: RunRequest) -> anyhow::Result<()> {
    let done = Coordinator::reach(target)?.ask_done(which.ask(request))?;
    output::print_line(&done)
}
