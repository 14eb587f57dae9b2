//! `doctor`: the checks are in `crate::doctor`.

use crate::cli::DoctorArgs;
use crate::doctor;

pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(doctor::check(&args.dir.dir)).finish(args.output.json)
}
