//! What a process has of one run: its link, its store, its figures.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anabranch_common::ids::RunId;
use anabranch_common::wire::runs::RunInfo;
use anabranch_io::durable::StorageError;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::StartError;
use crate::commands::run::open_store;
use crate::config::{AgentConfig, AgentDir};
use crate::host::Input;
use crate::node::AgentNode;
use crate::report::{AgentReport, LiveReport, RunState, Traffic, WaitingUpdate};
use crate::session::{Session, SessionConfig};
use crate::store::Ledger;
use crate::train::Rounds;
use crate::transport::Link;
use crate::worker::{Inputs, KilledNotes, RunMaths, StoreThread};

/// What a process has of one run.
#[derive(Debug)]
pub(super) struct Part {
    /// The link, and its number among those of the run's node.
    pub(super) link: Option<(Link, u64)>,
    pub(super) store: StoreThread,
    pub(super) traffic: Traffic,
    /// Examples that the latest round computed at once; 0 where that is not known.
    micro_batch: Arc<AtomicU32>,
}

/// Runs whose stores were opened, for the loop to take up.
pub(super) type Opened = Arc<Mutex<BTreeMap<RunId, (Part, RunMaths)>>>;

/// What it takes to begin with a run.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// The agent's directory.
    pub(super) dir: AgentDir,
    /// What the session of the joined run is told.
    pub(super) session: SessionConfig,
    /// How often a long round is kept, in seconds.
    pub(super) keep_s: u64,
    /// What being killed for memory has taught, of each run.
    pub(super) killed: KilledNotes,
    /// Where threads tell what happens.
    pub(super) tell: mpsc::Sender<Input>,
}

impl Setting {
    /// Makes what a process has of a run in `dir`, whose store is open.
    ///
    /// # Errors
    /// The store cannot be read, or the system has no thread to give.
    pub(super) fn part_of(
        &self,
        run: RunId,
        dir: &AgentDir,
        ledger: Ledger,
    ) -> Result<(AgentNode, Part, RunMaths), StartError> {
        let is_home = run == self.session.run;
        let config = SessionConfig {
            run,
            // One session renews the certificate, and one offers itself to pods.
            renew_at_ms: if is_home { self.session.renew_at_ms } else { u64::MAX },
            pod: self.session.pod.clone().filter(|_| is_home),
            // Runs that lose their connection together do not try again together.
            backoff_seed: self.session.backoff_seed ^ digest_seed(run),
            ..self.session.clone()
        };
        let agent = config.agent;
        let mut session = Session::new(config, ledger.kept()?);
        let rounds = Rounds::new(dir.round(), self.keep_s);
        if let Some((lease, base)) = rounds.as_ref().and_then(Rounds::pending) {
            tracing::info!(lease = lease.id.0, base = lease.base_version.0, "a round was cut off; it will be resumed");
            session.resume(lease, base);
        }
        let node = AgentNode::new(session, ledger.fresh());
        let inputs = Inputs::Host(run, self.tell.clone());
        let store = StoreThread::spawn(ledger, run, agent, inputs.clone())?;
        let micro_batch = Arc::new(AtomicU32::new(0));
        let part = Part { link: None, store, traffic: Traffic::default(), micro_batch: Arc::clone(&micro_batch) };
        Ok((node, part, RunMaths { rounds, micro_batch, killed: Some(self.killed.of(run)), inputs }))
    }

    /// Opens the store of a run that is listed, and tells the loop: `Begun`, with the rest in `opened`, or `NotBegun`. For a
    /// thread that may wait.
    pub(super) fn open(&self, info: &RunInfo, opened: &Opened) {
        let run = info.run;
        let input = match self.open_part(run) {
            Ok((node, part, of_run)) => {
                tracing::info!(run = %run.short(), name = info.name, weight = info.weight, "taking part in a run");
                opened.lock().insert(run, (part, of_run));
                Input::Begun { run, node: Box::new(node) }
            }
            Err(error) => Input::NotBegun { run, problem: with_help(&error) },
        };
        // The loop has ended: the store is closed as its thread's queue is dropped.
        let _ = self.tell.blocking_send(input);
    }

    fn open_part(&self, run: RunId) -> Result<(AgentNode, Part, RunMaths), StartError> {
        let dir = self.dir.of_run(run);
        DirBuilder::new().recursive(true).mode(0o700).create(dir.path())?;
        let ledger = open_store(&dir.store())?;
        self.part_of(run, &dir, ledger)
    }
}

fn with_help(error: &StartError) -> String {
    let help = match error {
        StartError::Storage(error) => StorageError::help(error),
        _ => None,
    };
    match help {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    }
}

impl Part {
    /// The state of its run.
    pub(super) fn report(&self, session: &Session) -> RunState {
        let micro_batch = self.micro_batch.load(Ordering::Relaxed);
        let traffic = Traffic {
            micro_batch: (micro_batch > 0).then_some(micro_batch),
            encoded_by_trainer: self.store.encoded_there(),
            ..self.traffic.clone()
        };
        RunState {
            live: Some(LiveReport::of(session, &traffic)),
            outbox: session.outbox().entries().map(|entry| WaitingUpdate::of(&entry.meta)).collect(),
            branch: session.branch(),
        }
    }
}

/// What `status` shows before anything has happened.
pub(super) fn first_report(config: &AgentConfig, session: &SessionConfig, ledger: &Ledger) -> AgentReport {
    AgentReport {
        software: session.software.clone(),
        running: true,
        run: config.run,
        agent: session.agent,
        name: config.name.clone(),
        address: config.address.first().to_owned(),
        addresses: config.address.as_slice().to_vec(),
        outbox: ledger.outbox().map(WaitingUpdate::of).collect(),
        branch: ledger.branch(),
        live: None,
        runs: Vec::new(),
    }
}

/// A number from a run's id, for the jitter of its attempts to connect.
fn digest_seed(run: RunId) -> u64 {
    let (low, high) = run.0.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number.rotate_left(8) ^ u64::from(*byte));
    number(low) ^ number(high).rotate_left(17)
}

/// Removes what is left of a run that is not listed, unless it has updates to hand over.
pub(super) fn sweep(dir: &AgentDir) {
    let path = dir.path().display();
    match Ledger::open(&dir.store()) {
        Ok(ledger) if ledger.outbox().next().is_none() => {
            drop(ledger);
            tracing::info!(dir = %path, "a run is not listed, and has nothing to hand over; its directory is removed");
            remove(dir);
        }
        Ok(_) => tracing::info!(dir = %path, "a run is not listed; its updates are kept until it is"),
        Err(error) => tracing::warn!(dir = %path, %error, "what is left of a run that is not listed cannot be read"),
    }
}

/// Removes what is left of a run that has ended.
pub(super) fn remove(dir: &AgentDir) {
    if let Err(error) = std::fs::remove_dir_all(dir.path()) {
        tracing::warn!(dir = %dir.path().display(), %error, "what is left of a run that has ended cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_not_listed_and_has_an_empty_outbox_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = AgentDir::new(folder.path()).of_run(RunId([7; 16]));
        std::fs::create_dir_all(dir.path()).expect("a directory");
        drop(Ledger::open(&dir.store()).expect("a store"));
        sweep(&dir);
        assert!(!dir.path().exists());
    }

    #[test]
    fn runs_of_a_process_wait_differently() {
        let seeds: std::collections::BTreeSet<u64> = (0..64).map(|number| digest_seed(RunId([number; 16]))).collect();
        assert_eq!(seeds.len(), 64);
    }
}
