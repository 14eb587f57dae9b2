//! `pause`, `resume` and `stop`.

use anabranch_common::wire::operator::RunRequest;

use super::output;
use super::reach::Coordinator;
use crate::cli::TargetArgs;

pub(super) fn pause(target: &TargetArgs) -> anyhow::Result<()> {
    control(target, RunRequest::Pause)
}

pub(super) fn resume(target: &TargetArgs) -> anyhow::Result<()> {
    control(target, RunRequest::Resume)
}

pub(super) fn stop(target: &TargetArgs) -> anyhow::Result<()> {
    control(target, RunRequest::Stop)
}

fn control(target: &TargetArgs, request: RunRequest) -> anyhow::Result<()> {
    let done = Coordinator::reach(target)?.ask_done(request)?;
    output::print_line(&done)
}
