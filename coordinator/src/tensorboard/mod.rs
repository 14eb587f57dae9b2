//! TensorBoard's event files of every run, below a folder: `FOLDER/RUN/events.out.tfevents.*`.
//!
//! A task beside the loop reads the snapshots that it publishes. Each process begins a file of its own, and goes on where the
//! one before was: the file `anabranch.state` says up to when measurements were written. After a rollback the
//! steps that count no more are taken back.
//!
//! | tag | value | at the step |
//! |---|---|---|
//! | `accuracy`, `loss` | a measurement of a version | that version |
//! | `staleness` | mean over connected agents of their latest merged updates | newest version |
//! | `version` | newest version | newest version |

mod event;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anabranch_common::ids::{ModelVersion, RunId};
use anabranch_common::limits;
use anabranch_common::status::{StatusReport, TimedAggregate};
use event::{What, record};

use crate::host::RunView;
use crate::web::{Snapshot, Snapshots};

/// The file that says how far a run's measurements were written.
const STATE: &str = "anabranch.state";
/// What names of event files begin with; the time follows.
const PREFIX: &str = "events.out.tfevents.";

/// Writes event files below a folder until no snapshots come any more.
pub(crate) async fn write(folder: PathBuf, mut snapshots: Snapshots) {
    let mut curves = Curves { folder, by_run: BTreeMap::new() };
    while snapshots.changed().await.is_ok() {
        let snapshot = std::sync::Arc::clone(&snapshots.borrow_and_update());
        let written = tokio::task::spawn_blocking(move || {
            curves.take(&snapshot);
            curves
        });
        match written.await {
            Ok(back) => curves = back,
            Err(error) => return tracing::error!(%error, "TensorBoard's files are written no more"),
        }
    }
}

/// The files of all runs.
#[derive(Debug)]
struct Curves {
    folder: PathBuf,
    /// By name. None where it could not be written.
    by_run: BTreeMap<String, Option<Curve>>,
}

impl Curves {
    fn take(&mut self, snapshot: &Snapshot) {
        self.by_run.retain(|name, _| snapshot.view.runs.iter().any(|run| run.summary.name == *name));
        for RunView { summary, report, .. } in &snapshot.view.runs {
            let Some(report) = report else { continue };
            let name = &summary.name;
            if !self.by_run.contains_key(name) {
                let begun = Curve::begin(&self.folder.join(folder_name(name)), report, snapshot.at_ms);
                let begun = begun.map_err(|error| give_up(name, &error)).ok();
                self.by_run.insert(name.clone(), begun);
            }
            let Some(curve) = self.by_run.get_mut(name) else { continue };
            let written = curve.as_mut().map(|curve| curve.add(report, snapshot.at_ms));
            if let Some(Err(error)) = written {
                give_up(name, &error);
                *curve = None;
            }
        }
    }
}

/// A full disk below this folder is no concern of the run's.
fn give_up(run: &str, error: &io::Error) {
    tracing::warn!(run, %error, "TensorBoard's files of this run are written no more; the next start tries again");
}

/// A run's name as the name of one folder.
fn folder_name(run: &str) -> String {
    let safe = |char: char| if char.is_alphanumeric() || "-_. ".contains(char) { char } else { '_' };
    let name: String = run.chars().map(safe).collect();
    if name.trim_matches(['.', ' ']).is_empty() { "run".to_owned() } else { name }
}

/// The file of one run that this process writes.
#[derive(Debug)]
struct Curve {
    folder: PathBuf,
    file: File,
    run: RunId,
    /// Seconds since record 0 of the newest measurement that was written.
    measured_s: f64,
    /// Version and Unix time in milliseconds of the latest sample.
    sampled: Option<(ModelVersion, u64)>,
}

impl Curve {
    /// Begins a file behind those that are there.
    fn begin(folder: &Path, report: &StatusReport, at_ms: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let known = fs::read_to_string(folder.join(STATE)).ok();
        let known = known.as_deref().and_then(|text| text.trim().split_once(' '));
        let is_same = |run: &str| run == report.run.to_string();
        let measured_s = match known {
            Some((run, measured_s)) if is_same(run) => measured_s.parse().unwrap_or(-1.0),
            _ => -1.0,
        };
        // What another run of this name has left is no part of this one.
        let is_foreign = known.is_some_and(|(run, _)| !is_same(run));
        let from = if is_foreign { 0 } else { report.version.0.saturating_add(1) };
        let mut file = new_file(folder, at_ms)?;
        let at_s = at_ms as f64 / 1e3;
        file.write_all(&[record(at_s, 0, What::Version), record(at_s, from, What::Start)].concat())?;
        Ok(Self { folder: folder.to_owned(), file, run: report.run, measured_s, sampled: None })
    }

    /// Adds what is new in a report.
    fn add(&mut self, report: &StatusReport, at_ms: u64) -> io::Result<()> {
        let mut records = Vec::new();
        let began_s = at_ms as f64 / 1e3 - report.wall_s;
        let mut measured_s = None;
        for TimedAggregate { at_s, aggregate } in report.aggregates.iter().filter(|timed| timed.at_s > self.measured_s)
        {
            measured_s = Some(*at_s);
            let scalars = [("accuracy", aggregate.accuracy), ("loss", aggregate.loss)];
            records.extend(record(began_s + at_s, aggregate.version.0, What::Scalars(&scalars)));
        }
        let version = report.version;
        let is_due = self.sampled.is_none_or(|(sampled, sampled_ms)| {
            sampled != version && at_ms.saturating_sub(sampled_ms) >= limits::TENSORBOARD_SAMPLE_MS
        });
        if report.serving && is_due {
            let staleness = mean_staleness(report).map(|mean| ("staleness", mean));
            let scalars: Vec<_> = [("version", version.0 as f64)].into_iter().chain(staleness).collect();
            records.extend(record(at_ms as f64 / 1e3, version.0, What::Scalars(&scalars)));
            self.sampled = Some((version, at_ms));
        }
        self.file.write_all(&records)?;
        if let Some(measured_s) = measured_s {
            self.measured_s = measured_s;
            let partial = self.folder.join(format!("{STATE}.partial"));
            fs::write(&partial, format!("{} {measured_s}\n", self.run))?;
            fs::rename(&partial, self.folder.join(STATE))?;
        }
        Ok(())
    }
}

/// Makes a file whose name comes after those of all earlier processes, whatever the clock says: they are read in that order.
fn new_file(folder: &Path, at_ms: u64) -> io::Result<File> {
    let mut number = at_ms;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let time = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok());
        number = number.max(time.map_or(0, |time| time.saturating_add(1)));
    }
    let path = folder.join(format!("{PREFIX}{number:013}.anabranch"));
    OpenOptions::new().append(true).create_new(true).open(path)
}

/// Mean staleness of the latest merged updates of connected agents.
fn mean_staleness(report: &StatusReport) -> Option<f64> {
    let connected = report.agents.iter().filter(|agent| agent.connected);
    let all: Vec<u64> = connected.filter_map(|agent| agent.staleness).collect();
    (!all.is_empty()).then(|| all.iter().sum::<u64>() as f64 / all.len() as f64)
}

#[cfg(test)]
mod tests {
    use anabranch_common::journal::{Aggregate, Chain};

    use super::*;
    use crate::core::status;

    const RUN: RunId = RunId([1; 16]);

    /// A report with measurements of these versions, 10 s apart.
    fn report(run: RunId, versions: &[u64]) -> StatusReport {
        let options = crate::web::tests::options(run);
        let measured = versions.iter().zip(1..).map(|(version, number)| TimedAggregate {
            at_s: 10.0 * f64::from(number),
            aggregate: Aggregate { version: ModelVersion(*version), accuracy: 0.5, loss: 1.0, ..aggregate() },
        });
        let version = ModelVersion(versions.last().copied().unwrap_or_default());
        let report = status::report(&options, "digits", None, Chain::default(), Vec::new(), 0);
        StatusReport { serving: true, version, aggregates: measured.collect(), ..report }
    }

    /// The records of the newest file.
    fn newest(folder: &Path) -> Vec<u8> {
        let names = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let events =
            names.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)));
        fs::read(events.max().expect("a file")).expect("readable")
    }

    fn measurements(bytes: &[u8]) -> usize {
        bytes.windows(8).filter(|window| window == b"accuracy").count()
    }

    #[test]
    fn each_process_writes_what_is_new_behind_what_is_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("digits");
        let mut curve = Curve::begin(&folder, &report(RUN, &[]), 5_000).expect("writable");
        curve.add(&report(RUN, &[1, 2]), 5_000).expect("writable");
        curve.add(&report(RUN, &[1, 2, 3]), 6_000).expect("writable");
        assert_eq!(measurements(&newest(&folder)), 3);
        // A clock that went back; the next process still comes after this one.
        let mut next = Curve::begin(&folder, &report(RUN, &[1, 2, 3]), 4_000).expect("writable");
        next.add(&report(RUN, &[1, 2, 3, 4]), 4_000).expect("writable");
        let bytes = newest(&folder);
        assert_eq!(measurements(&bytes), 1);
        let start = record(4.0, 4, What::Start);
        assert!(bytes.windows(start.len()).any(|window| window == start), "steps from 4 on count no more");
    }

    #[test]
    fn what_another_run_has_left_is_taken_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut before = Curve::begin(dir.path(), &report(RUN, &[]), 1_000).expect("writable");
        before.add(&report(RUN, &[1, 2]), 1_000).expect("writable");
        let other = RunId([2; 16]);
        let mut after = Curve::begin(dir.path(), &report(other, &[]), 2_000).expect("writable");
        after.add(&report(other, &[1]), 2_000).expect("writable");
        let bytes = newest(dir.path());
        assert_eq!(measurements(&bytes), 1);
        let start = record(2.0, 0, What::Start);
        assert!(bytes.windows(start.len()).any(|window| window == start));
    }

    #[test]
    fn a_run_is_a_folder_of_its_own_whatever_it_is_called() {
        assert_eq!(["wards", "a/b", "..", "", "Größe 1"].map(folder_name), ["wards", "a_b", "run", "run", "Größe 1"]);
    }

    /// The other fields of a measurement.
    fn aggregate() -> Aggregate {
        Aggregate {
            version: ModelVersion(0),
            accuracy: 0.0,
            loss: 0.0,
            evaluators: 1,
            num_examples: 1,
            covered_examples: 1,
            known_examples: 1,
        }
    }
}
