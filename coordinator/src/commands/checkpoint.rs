//! `checkpoint list|verify|export|import|rollback`.

use std::path::Path;

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::merge::Served;
use anabranch_common::status::{CheckpointStatus, StatusReport, VerifyReport};
use anabranch_common::wire::operator::RunRequest;
use anabranch_io::durable::StorageError;
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::model_file::{self, Provenance, ReadError};
use anyhow::Context as _;

use super::output::{self, Align, Table};
use super::reach::Coordinator;
use super::stopped::Stopped;
use crate::cli::{CheckpointVerb, RunReportArgs, RunTargetArgs};
use crate::core::replacement::Replaced;

pub(super) fn checkpoint(verb: CheckpointVerb) -> anyhow::Result<()> {
    match verb {
        CheckpointVerb::List(args) => list(&args),
        CheckpointVerb::Verify(args) => verify(&args),
        CheckpointVerb::Export { target, out, version, force } => export(&target, &out, version, force),
        CheckpointVerb::Import { dir, which, file } => import(&dir.dir, which.run.as_deref(), &file),
        CheckpointVerb::Rollback { dir, which, version } => rollback(&dir.dir, which.run.as_deref(), version),
    }
}

fn list(RunReportArgs { target: RunTargetArgs { target, which }, output }: &RunReportArgs) -> anyhow::Result<()> {
    let json = Coordinator::look(target)?.ask_json(which.ask(RunRequest::CheckpointList))?;
    let none = "no checkpoints yet; until the first one, recovery replays the whole journal";
    output::print_list(&json, *output, ("the list", none), table)
}

fn table(checkpoints: &[CheckpointStatus]) -> String {
    let columns = [
        ("version", Align::Right),
        ("position", Align::Right),
        ("taken", Align::Left),
        ("size", Align::Right),
        ("model", Align::Left),
        ("chain", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for checkpoint in checkpoints {
        table.row(vec![
            checkpoint.version.to_string(),
            checkpoint.position.to_string(),
            output::date(checkpoint.at_ms),
            output::bytes(checkpoint.bytes),
            checkpoint.model.short(),
            checkpoint.chain.short(),
        ]);
    }
    table.render()
}

fn verify(RunReportArgs { target: RunTargetArgs { target, which }, output }: &RunReportArgs) -> anyhow::Result<()> {
    let json = Coordinator::look(target)?.ask_json(which.ask(RunRequest::CheckpointVerify))?;
    let report: VerifyReport = output::read_report(&json, "the report")?;
    if output.json {
        output::print_line(&json)?;
    } else {
        output::print(&format!(
            "records    {} ({} to {})\nversion    {}\nmodel      {}\nchain      {}\nverdict    {}\n",
            output::count(report.records),
            report.from,
            report.to,
            report.version,
            report.model,
            report.chain,
            if report.holds { "everything holds" } else { "NOT everything holds" },
        ))?;
    }
    if report.holds {
        return Ok(());
    }
    let problem = report.problem.unwrap_or_else(|| "the journal does not hold".to_owned());
    let fail = Fail::new(ExitCode::Storage, format!("{problem}; everything up to record {} holds", report.to));
    Err(fail.help("restore the directory from a backup, and check the disk").into())
}

/// Writes the model of a run to a file.
pub(super) fn export(
    RunTargetArgs { target, which }: &RunTargetArgs,
    out: &Path,
    version: Option<ModelVersion>,
    force: bool,
) -> anyhow::Result<()> {
    // Before a model of gigabytes is fetched; the rename at the end would replace the file.
    if !force && out.symlink_metadata().is_ok() {
        let fail = Fail::new(ExitCode::Usage, format!("{} exists already", out.display()));
        return Err(fail.help("choose another file, or replace it with --force").into());
    }
    check_folder(out)?;
    let (run, exported) = match Coordinator::look(target)? {
        Coordinator::Stopped(mut stopped) => {
            stopped.select(which.run.as_deref())?;
            (stopped.run()?, stopped.export(version)?)
        }
        Coordinator::Running(mut client) => {
            let exported = client.export(which.run.clone(), version)?;
            let status = Coordinator::Running(client).ask_json(which.ask(RunRequest::Status))?;
            let report: StatusReport = output::read_report(&status, "the status")?;
            (report.run, exported)
        }
    };
    let from = Provenance { run, version: exported.version, served: exported.served, digest: exported.digest };
    model_file::write(out, &exported.manifest, &exported.model, from)
        .map_err(|source| anyhow::Error::new(StorageError::of_io(out, source)))
        .with_context(|| format!("cannot write {}", out.display()))?;
    output::print(&format!(
        "{}: version {}{}, {} parameters in {} tensors, digest {}\n",
        out.display(),
        exported.version,
        if exported.served == Served::Average { ", the average that is served" } else { "" },
        output::count(exported.manifest.params() as u64),
        exported.manifest.tensors().len(),
        exported.digest,
    ))
}

/// The directory that the file goes into has to be there: one that a slip of the pen has named is not made.
fn check_folder(out: &Path) -> anyhow::Result<()> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let problem = match folder.metadata() {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => format!("{} is not a directory", folder.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("the directory {} does not exist", folder.display())
        }
        Err(error) => format!("cannot look into {}: {error}", folder.display()),
    };
    let help = format!("make it with `mkdir -p {}`, or choose another place", folder.display());
    Err(Fail::new(ExitCode::Usage, format!("cannot write {}: {problem}", out.display())).help(help).into())
}

fn import(dir: &Path, run: Option<&str>, file: &Path) -> anyhow::Result<()> {
    // The file is the caller's; the directory may be another user's.
    let (manifest, native) = {
        let mut stopped = Stopped::look(dir)?;
        stopped.select(run)?;
        (stopped.manifest()?, stopped.native_manifest()?)
    };
    let is_first = manifest.is_none();
    let read = match (&manifest, &native) {
        (None, Some(native)) => model_file::read_in_file_order(file, native),
        (manifest, _) => model_file::read(file, manifest.as_ref()),
    };
    let source = if is_first { TensorSource::Settings } else { TensorSource::Run };
    let (manifest, values) = read.map_err(|error| read_fail(error, source))?;
    let (params, digest) = (values.len() as u64, Digest::of_f32(&values));
    let mut stopped = Stopped::open(dir)?;
    stopped.select(run)?;
    let Replaced { position, version, .. } = stopped.import(&manifest, values)?;
    output::print(&format!(
        "imported {} parameters in {} tensors as version {version} (record {position}), digest {digest}\n",
        output::count(params),
        manifest.tensors().len(),
    ))?;
    if is_first {
        let names: Vec<&str> = manifest.tensors().iter().take(4).map(|tensor| tensor.name.as_str()).collect();
        let more = if manifest.tensors().len() > names.len() { ", ..." } else { "" };
        output::hint(&format!(
            "the run has no model yet, so the order of the tensors in the file is the run's from now on: {}{more}; \
             agents whose trainers have the same tensors in another order put them into this one",
            names.join(", ")
        ));
    }
    Ok(())
}

fn rollback(dir: &Path, run: Option<&str>, version: ModelVersion) -> anyhow::Result<()> {
    let Coordinator::Stopped(mut stopped) = Coordinator::of_dir(dir)? else {
        let fail = Fail::new(ExitCode::Unavailable, format!("a coordinator is running in {}", dir.display()));
        return Err(fail
            .help("a rollback needs a stopped one: end `run` with SIGTERM, roll back, then start it again; its agents come back by themselves")
            .into());
    };
    stopped.select(run)?;
    let done = stopped.rollback(version)?;
    output::print(&format!(
        "rolled back from version {} to version {version} on branch {} (record {}, from record {})\n",
        done.before, done.branch, done.position, done.from,
    ))
}

/// What says which tensors a model that is imported has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TensorSource {
    /// The model that the run has.
    Run,
    /// `[model]` in run.toml, before the run has a model.
    Settings,
}

fn read_fail(error: ReadError, whose: TensorSource) -> anyhow::Error {
    let (code, help) = match &error {
        ReadError::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            (ExitCode::Usage, "run as a user that may read it")
        }
        ReadError::Unreadable { .. } => (ExitCode::Usage, "check the path"),
        ReadError::Malformed { .. } => (ExitCode::Model, "write the file again with a safetensors library"),
        ReadError::NotF32 { .. } => (ExitCode::Model, "convert the tensors to f32 before they are saved"),
        ReadError::NotFinite(_) => (ExitCode::NotFinite, "a model with NaN or infinity cannot be trained any further"),
        ReadError::Manifest(_) => (ExitCode::Model, "docs/protocol.md lists the limits of a manifest"),
        ReadError::OtherTensors(_) if whose == TensorSource::Settings => {
            (ExitCode::Model, "nothing was changed; `[model]` in run.toml says which tensors the run's model has")
        }
        ReadError::OtherTensors(_) => {
            (ExitCode::Model, "nothing was changed; only a model with the same tensors can replace the run's")
        }
    };
    Fail::new(code, error.to_string()).help(help).into()
}
