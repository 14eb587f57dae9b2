//! What the host wants done: jobs beside its loop, each as a whole when its time has come, and messages to agents.

use std::path::Path;
use std::sync::Arc;

use anabranch_common::ids::{Digest, ModelVersion, Position, RunId};
use anabranch_common::journal::Record;
use anabranch_coordinator::config::Config;
use anabranch_coordinator::core::event::Event;
use anabranch_coordinator::host::{Input, Output, RunsDone, RunsJob, SearchTexts, SearchesDone, SearchesJob};
use anabranch_coordinator::node::merge::Merged;
use anabranch_coordinator::node::write::WriteJob;
use anabranch_coordinator::node::{Done, Job, JobError, Node, PublishedModel, write};
use anabranch_coordinator::recovery;
use anabranch_coordinator::runs::searches;
use anabranch_coordinator::search::journal;
use anabranch_coordinator::store::{Engine, Store as _};

use crate::sim::disk::SimDisk;

use super::coordinator::Directory;
use super::world::{Happening, World};

impl World {
    /// Carries outputs out, until the process is killed between two of them.
    pub(super) fn carry_out(&mut self, outputs: Vec<Output>) {
        self.see_records(&outputs);
        for output in outputs {
            if self.coordinator.process.is_none() {
                return;
            }
            match output {
                Output::ToPeer(what) => self.tell_peer(what),
                Output::List { peer, list } => self.tell_list(peer, list),
                Output::Run { .. } => self.do_later(output),
                Output::Runs(_) | Output::Searches(_) => {
                    self.see_decisions(&output);
                    if self.step(|| brief(&output)) {
                        return;
                    }
                    self.do_later(output);
                }
                Output::Reply { request, answer } => self.replied(request, &answer.into_response()),
                Output::Ended { ended: Ok(reason), run } => self.note(0, || format!("run {run} has ended: {reason:?}")),
                Output::Ended { ended: Err(error), .. } | Output::Exit(Err(error)) => self.job_failed(&error),
                Output::Exit(Ok(())) => return self.coordinator_exits(),
                // No store was changed by a test, none has a quota, nobody joins, and nobody asks about ended runs or as `doctor`.
                Output::Close { .. }
                | Output::Facts { .. }
                | Output::Measure { .. }
                | Output::Look { .. }
                | Output::Save(_)
                | Output::Sign(_)
                | Output::Show(_)
                | Output::Replaced { .. }
                | Output::JoinReply { .. }
                | Output::DeferJoin { .. } => self.violate("P6", format!("{output:?} is not expected here")),
            }
        }
    }

    fn job_failed(&mut self, error: &JobError) {
        self.violate("P7", format!("a job fails without a fault: {error:?}"));
    }

    fn do_later(&mut self, output: Output) {
        let ms = match &output {
            Output::Run { job: Job::Merge(_) | Job::Pack(_), .. } => self.rng.below(5),
            Output::Run { job: Job::Checkpoint(_), .. } => 5 + self.rng.below(100),
            _ => 1 + self.rng.below(20),
        };
        let life = self.coordinator.life;
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.next_job += 1;
        let job = process.next_job;
        process.jobs.insert(job, output);
        self.after(ms, Happening::Job(life, job));
    }

    /// Shows the watchers the records that runs have made, whether they are being written or wait.
    fn see_records(&mut self, outputs: &[Output]) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let mut checked = Ok(());
        for (run, open) in &mut process.runs {
            let groups = outputs.iter().filter_map(|output| match output {
                Output::Run { run: of, job: Job::Write(group) } if of == run => Some(group),
                _ => None,
            });
            let given: Vec<&Arc<Record>> = groups.flatten().map(WriteJob::record).collect();
            let unwritten = process.host.node(*run).into_iter().flat_map(Node::unwritten);
            let records = (open.next_write.0..).map(Position).zip(given.iter().copied().chain(unwritten));
            for (at, record) in records {
                checked = checked.and_then(|()| self.watch.made(*run, at, record));
            }
            open.next_write.0 += given.len() as u64;
        }
        self.checked(checked);
    }

    /// Shows the watcher what the search has decided.
    fn see_decisions(&mut self, output: &Output) {
        let checked = match output {
            Output::Searches(SearchesJob::Write { records, .. }) => self.watch.decided(records),
            Output::Searches(SearchesJob::Rebuild { trial, version, .. }) => self.watch.measures(*trial, *version),
            Output::Runs(RunsJob::Create { name, .. }) => self.watch.creates(name),
            _ => Ok(()),
        };
        self.checked(checked);
    }

    pub(super) fn job(&mut self, life: u64, job: u64) {
        if !self.coordinator.is_life(life) {
            return;
        }
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let Some(output) = process.jobs.get(&job) else { return };
        let counts = matches!(output, Output::Runs(_) | Output::Searches(_));
        let what = if counts { brief(output) } else { String::new() };
        if counts && self.step(|| format!("before {what}")) {
            return;
        }
        let Some(output) = self.coordinator.process.as_mut().and_then(|process| process.jobs.remove(&job)) else {
            return;
        };
        let input = match output {
            Output::Run { run, job } => self.run_job(run, job).map(|done| Input::Done { run, done }),
            Output::Runs(job) => self.runs_job(job).map(Input::Runs),
            Output::Searches(job) => self.searches_job(job).map(Input::Searches),
            _ => None,
        };
        if counts && self.step(|| format!("after {what}")) {
            return;
        }
        if let Some(input) = input {
            self.coordinator_takes(input);
        }
        if counts && self.coordinator.is_life(life) {
            self.step(|| format!("{what} was heard of"));
        }
    }

    fn run_job(&mut self, run: RunId, job: Job) -> Option<Done> {
        let unix_ms = self.unix_ms();
        let open = self.coordinator.process.as_mut()?.runs.get_mut(&run)?;
        match job {
            Job::Write(group) => {
                let done = write::write(&*open.store, group);
                for event in done.iter().flatten() {
                    if let Event::Journalled { upto } = event {
                        self.watch.synced(run, *upto);
                    }
                }
                Some(Done::Write(done))
            }
            Job::Merge(batch) => {
                let done = open.merger.run(batch);
                let mut checked = Ok(());
                for merged in done.iter().flatten() {
                    let Merged::Published { model, served, .. } = merged else { continue };
                    let Some(state) = open.merger.model() else { continue };
                    let newest = (state.version(), state.model().to_vec(), Digest::of_f32(state.served().1));
                    let base = state.base().1.to_vec();
                    checked = checked.and_then(|()| self.watch.published(run, model, served, &base, &newest));
                }
                self.checked(checked);
                Some(Done::Merge(done))
            }
            Job::Checkpoint(job) => Some(Done::Checkpoint(job.run(&*open.store, open.keep))),
            Job::Decode(job) => Some(job.run()),
            Job::Pack(job) => Some(job.run()),
            Job::Spool(job) => self.coordinator.directory_of(run)?.spool.run(job, unix_ms),
        }
    }

    fn runs_job(&mut self, job: RunsJob) -> Option<RunsDone> {
        let name = match job {
            RunsJob::Create { name, config, submission } => {
                let config = match Config::parse_run(Path::new("run.toml"), &config, &name) {
                    Ok(config) => config,
                    Err(error) => {
                        self.violate("search replay", format!("a trial's configuration is refused: {error}"));
                        return None;
                    }
                };
                if self.coordinator.directories.contains_key(&name) {
                    self.violate("search orders", format!("run {name} is made a second time"));
                    return None;
                }
                self.coordinator.directories.insert(name.clone(), Directory::new(&name, config, submission));
                name
            }
            RunsJob::Open { name } => name,
            RunsJob::Delete { name, .. } => {
                self.violate("search orders", format!("run {name} is deleted, and nobody has asked for that"));
                return None;
            }
            RunsJob::Reopen { name, .. } => {
                self.violate("search orders", format!("run {name} is replaced by a copy, and the method is not pbt"));
                return None;
            }
        };
        match self.open_run(&name) {
            Ok(opened) => Some(RunsDone::Opened(Box::new(opened))),
            Err(violation) => {
                self.checked(Err(violation));
                None
            }
        }
    }

    fn searches_job(&mut self, job: SearchesJob) -> Option<SearchesDone> {
        match job {
            SearchesJob::Copy { .. } => {
                self.violate("search orders", "a run is to be copied, and the method is not pbt".to_owned());
                None
            }
            SearchesJob::Create { name, texts } => {
                let SearchTexts { path, search, base } = texts;
                let base = match searches::check_texts((Path::new(&path), &search), &base) {
                    Ok((_, base, _)) => base.text(),
                    Err(error) => {
                        let why = error.to_string();
                        return Some(SearchesDone::NotOpened { name, is_there: false, why });
                    }
                };
                let disk = SimDisk::default();
                self.coordinator.search = Some(disk.clone());
                self.open_search(disk)?;
                let texts = Some(SearchTexts { path, search, base });
                Some(SearchesDone::Opened { name, records: Vec::new(), texts })
            }
            SearchesJob::Open { name } => {
                let disk = self.coordinator.search.clone()?;
                let store = self.open_search(disk)?;
                let records = match journal::read(store.journal()) {
                    Ok(records) => records,
                    Err(error) => {
                        self.violate("search replay", format!("the journal cannot be read: {error}"));
                        return None;
                    }
                };
                let restored = self.watch.restored(&records);
                self.checked(restored);
                if records.is_empty() {
                    self.coordinator.search = None;
                    let why = "its start was never answered; start it again".to_owned();
                    return Some(SearchesDone::NotOpened { name, is_there: false, why });
                }
                Some(SearchesDone::Opened { name, records, texts: None })
            }
            SearchesJob::Write { name, records } => {
                let store = self.coordinator.process.as_ref()?.search.clone()?;
                match journal::write(store.journal(), &records) {
                    Ok(Some(position)) => {
                        self.watch.durable(position);
                        Some(SearchesDone::Written { name, result: Ok(position) })
                    }
                    Ok(None) => None,
                    Err(error) => {
                        self.violate("P7", format!("the search's store fails without a fault: {error}"));
                        None
                    }
                }
            }
            SearchesJob::Rebuild { search, trial, run, version } => {
                let model = self.rebuild(run, version);
                Some(SearchesDone::Rebuilt { search, trial, run, version, model })
            }
        }
    }

    /// The whole journal is durable that an earlier process has left.
    fn open_search(&mut self, disk: SimDisk) -> Option<Arc<Engine<SimDisk>>> {
        let opened = disk.open().and_then(|()| Engine::open(disk));
        match opened {
            Ok(store) => {
                let store = Arc::new(store);
                self.coordinator.process.as_mut()?.search = Some(Arc::clone(&store));
                Some(store)
            }
            Err(error) => {
                self.violate("P7", format!("the search's store cannot be opened: {error}"));
                None
            }
        }
    }

    fn rebuild(&mut self, run: RunId, version: ModelVersion) -> Result<Arc<PublishedModel>, String> {
        let process = self.coordinator.process.as_ref().ok_or("there is no process")?;
        let open = process.runs.get(&run).ok_or("its run is not open")?;
        let exported = recovery::export(&*open.store, Some(version)).map_err(|error| error.to_string())?;
        let (digest, values) = (exported.digest, exported.model.into());
        let rebuilt = self.watch.rebuilt(run, version, digest);
        self.checked(rebuilt);
        Ok(Arc::new(PublishedModel { version, digest, values }))
    }
}

/// What an output is about, for the trace.
fn brief(output: &Output) -> String {
    match output {
        Output::Runs(RunsJob::Create { name, .. }) => format!("the making of run {name}"),
        Output::Runs(RunsJob::Open { name }) => format!("the opening of run {name}"),
        Output::Runs(RunsJob::Delete { name, .. }) => format!("the deletion of run {name}"),
        Output::Searches(SearchesJob::Create { .. }) => "the making of the search".into(),
        Output::Searches(SearchesJob::Open { .. }) => "the opening of the search".into(),
        Output::Searches(SearchesJob::Write { records, .. }) => {
            let bodies: Vec<_> = records.iter().map(|record| format!("{:?}", record.body)).collect();
            let text: String = bodies.join("; ").chars().take(160).collect();
            format!("{} records: {text}", records.len())
        }
        Output::Searches(SearchesJob::Rebuild { trial, version, .. }) => {
            format!("the rebuilding of version {version} of trial {trial}")
        }
        other => format!("{other:?}"),
    }
}
