//! The product's maths on real examples: the jobs of `agent/src/worker`, without its thread.

use anabranch_agent::native_factory_with;
use anabranch_agent::node::MathsJob;
use anabranch_agent::session::event::Event;
use anabranch_agent::shard::Shard as _;
use anabranch_agent::train::NativeOptions;
use anabranch_agent::worker::{Maths, MathsSetup, Shards};
use anabranch_common::ids::ModelVersion;
use anabranch_common::manifest::ModelManifest;
use tokio::sync::mpsc;

use crate::invariants::journal::Checked;
use crate::sim::Learner;
use crate::sim::schedule::Machine;

use super::data::Rows;

/// How the maths use this machine: results do not depend on the number of threads, and races run beside each other.
pub(super) const OPTIONS: NativeOptions =
    NativeOptions { threads: Some(1), max_memory_bytes: None, device: None, before_bytes: None, reserved_per_param: 0 };

/// The maths of every agent.
#[derive(Debug)]
pub(super) struct Native {
    manifest: ModelManifest,
    /// Of machine 1 first.
    shards: Vec<Rows>,
    /// The maths of each process that runs.
    processes: Vec<Option<Maths>>,
}

impl Native {
    pub(super) fn new(manifest: ModelManifest, shards: Vec<Rows>) -> Self {
        let processes = shards.iter().map(|_| None).collect();
        Self { manifest, shards, processes }
    }
}

impl Learner for Native {
    fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    fn started(&mut self, machine: Machine) {
        let shards = Shards { train: Some(Box::new(self.shards[machine - 1].clone())), eval: None };
        let setup = MathsSetup::new(native_factory_with(OPTIONS, &shards), shards);
        // Nobody listens to how a round goes on: that follows the real clock.
        let (progress, _) = mpsc::channel(1);
        self.processes[machine - 1] = Some(Maths::new(setup, progress));
    }

    fn work(&mut self, machine: Machine, job: MathsJob) -> Event {
        let maths = self.processes[machine - 1].as_mut();
        maths.expect("a process starts before it has work").work(job)
    }

    fn examples(&self, machine: Machine) -> u64 {
        self.shards[machine - 1].len() as u64
    }

    fn encodes(&self, _machine: Machine) -> bool {
        false
    }

    /// A race reports what was learned; nothing must have been.
    fn learned(&mut self, _version: ModelVersion, _model: &[f32]) -> Checked {
        Ok(())
    }
}
