//! `shard inspect` and `shard split`.

use anabranch_io::exit::{ExitCode, Fail};

use super::run::shard_options;
use super::{print, print_json, shard_fail};
use crate::cli::{InspectArgs, SplitArgs};
use crate::shard::{self, DEFAULT_CONTEXT, Skew, SplitOptions};

/// Runs `shard inspect`. A shard with problems is shown, and is an error.
pub(super) fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let options = shard_options(args.label_column.clone(), args.drop_columns.clone());
    let context = args.context.map_or(DEFAULT_CONTEXT, usize::from);
    let report = shard::inspect(&args.path, &options, context).map_err(shard_fail)?;
    if args.output.json {
        print_json(&report)?;
    } else {
        print(&report.to_string())?;
    }
    if report.is_usable() {
        return Ok(());
    }
    let text = format!("{} cannot be used as it is", args.path.display());
    Err(Fail::new(ExitCode::Shard, text).help("mend the lines listed above; every one of them stops `run`").into())
}

/// Runs `shard split`.
pub(super) fn split(args: &SplitArgs) -> anyhow::Result<()> {
    let skew = match args.alpha {
        Some(alpha) => Skew::Alpha(alpha),
        None => Skew::Iid,
    };
    let mut options = SplitOptions::new(args.agents as usize, skew, args.seed);
    options.eval_rows = args.eval_rows.map(usize::try_from).transpose()?;
    if let Some(name) = &args.label_column {
        options.label_column.clone_from(name);
    }
    options.drop_columns.clone_from(&args.drop_columns);
    let report = shard::split(&args.dataset, &args.out, &options).map_err(shard_fail)?;
    if args.output.json { print_json(&report) } else { print(&report.to_string()) }
}
