//! `store check|copy`.

use std::path::Path;
use std::sync::Arc;

use anabranch_io::cli::OutputArgs;
use anabranch_io::durable::StorageError;
use anabranch_io::exit::{ExitCode, Fail};

use super::output;
use crate::cli::StoreVerb;
use crate::runs;
use crate::store::copy::{self, CopyError};
use crate::store::object::remote::{self, RemoteBucket};
use crate::store::object::{CheckError, CheckPlan, CheckReport, check};
use crate::store::{ObjectStore, SledStore, Store};

pub(super) fn store(verb: StoreVerb) -> anyhow::Result<()> {
    match verb {
        StoreVerb::Check { url, writers, races, output } => check_url(&url, CheckPlan { writers, races }, output),
        StoreVerb::Copy { from, to, output } => copy_store(&from, &to, output),
    }
}

fn check_url(url: &str, plan: CheckPlan, output: OutputArgs) -> anyhow::Result<()> {
    let bucket = RemoteBucket::connect(url)?;
    let report = check(&bucket, plan, remote::writer()?.id).map_err(|error| match error {
        CheckError::Plan => Fail::new(ExitCode::Usage, error.to_string()).into(),
        CheckError::Storage(error) => anyhow::Error::new(error),
    })?;
    if output.json {
        output::print_line(&serde_json::to_string(&report)?)?;
    } else {
        output::print(&shown(&report))?;
    }
    if report.is_usable() {
        return Ok(());
    }
    let detail = "it does not keep the condition that a key is created once".to_owned();
    Err(StorageError::Unfit { path: url.into(), detail }.into())
}

/// The report for people.
fn shown(report: &CheckReport) -> String {
    let CheckReport { writers, races, .. } = report;
    let verdict = if report.is_usable() { "a run may be stored here" } else { "no run may be stored here" };
    format!(
        "{races} races of {writers} writers\n\
         several winners          {}\n\
         object not the winner's  {}\n\
         keys created again       {}\n\
         objects not deleted      {}\n\
         requests unanswered      {}\n\
         listings behind          {}\n\
         puts, median             {:.1} ms\n\
         puts, longest            {:.1} ms\n\
         {verdict}\n",
        report.several_winners,
        report.overwritten,
        report.created_again,
        report.undeleted,
        report.unanswered,
        report.listings_behind,
        report.put_ms_median,
        report.put_ms_longest,
    )
}

fn is_address(text: &str) -> bool {
    text.contains("://")
}

fn copy_store(from: &str, to: &str, output: OutputArgs) -> anyhow::Result<()> {
    if !is_address(from) && !is_address(to) {
        let fail = Fail::new(ExitCode::Usage, "neither FROM nor TO is the address of an object store");
        return Err(fail.help("copy a directory as a whole, with the coordinator stopped").into());
    }
    let source = open_source(from)?;
    let target = open_target(to)?;
    let report = copy::copy(source.as_ref(), target.as_ref()).map_err(|error| copy_fail(error, from, to))?;
    if output.json {
        return output::print_line(&serde_json::to_string(&report)?);
    }
    output::print_line(&format!(
        "{} records, {} blobs, {} items and {} checkpoints, {}: the copy is the same",
        output::count(report.records),
        output::count(report.blobs),
        output::count(report.items),
        output::count(report.checkpoints),
        output::bytes(report.bytes),
    ))
}

fn open_source(place: &str) -> anyhow::Result<Arc<dyn Store>> {
    let store: Arc<dyn Store> = if is_address(place) {
        Arc::new(ObjectStore::open_copy(Arc::new(RemoteBucket::connect(place)?))?)
    } else {
        Arc::new(SledStore::open_copy(&Path::new(place).join(runs::STORE_DIR))?)
    };
    if copy::is_incomplete(store.catalogue())? {
        return Err(copy_fail(CopyError::Unreadable("a copy that was cut short".to_owned()), place, ""));
    }
    Ok(store)
}

fn open_target(place: &str) -> anyhow::Result<Arc<dyn Store>> {
    if is_address(place) {
        let bucket = RemoteBucket::connect(place)?;
        remote::check_and_refuse(&bucket, CheckPlan::SHORT)?;
        return Ok(Arc::new(ObjectStore::open(Arc::new(bucket), &remote::writer()?)?));
    }
    anabranch_io::durable::act_as_owner(Path::new(place))?;
    Ok(Arc::new(SledStore::open_dir(&Path::new(place).join(runs::STORE_DIR))?))
}

/// A copy that was not made, with its exit code and what to do.
fn copy_fail(error: CopyError, from: &str, to: &str) -> anyhow::Error {
    let help = match &error {
        CopyError::Storage(_) => return error.into(),
        CopyError::NotEmpty => format!("choose another target, or remove what is in {to}"),
        CopyError::Nothing => format!("check {from}: it has never been used"),
        CopyError::Unreadable(_) | CopyError::Differs(_) => {
            format!("stop whatever writes to {from} or {to}, remove the copy, and copy again")
        }
    };
    let code = if matches!(error, CopyError::NotEmpty) { ExitCode::Unavailable } else { ExitCode::Storage };
    Fail::new(code, error.to_string()).help(help).into()
}
