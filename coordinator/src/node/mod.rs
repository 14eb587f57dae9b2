//! A run as one synchronous object without I/O: the core, and everything that carries its commands out. The
//! [`Host`](crate::host::Host) feeds it.
//!
//! ```text
//!  Input ─► Node::handle ─► Core ─► commands ─┬─► lanes: writer, merger, checkpointer ─► Output::Run(job)
//!    ▲                       ▲                ├─► publisher, forms, downloads ─────────► ToPeer::SendChunks, Output::Run
//!    │                       │                ├─► uploads (common::transfer) ──────────► ToPeer::Receive, Output::Run
//!    │                       └── events ──┐   ├─► messages ────────────────────────────► ToPeer::Send, ...
//!    └── Input::Done(answer) ─────────────┘   └─► requests ────────────────────────────► Output::Reply, Renew, Revoked
//! ```
//! Each lane has at most one job out, and its queue. So the loop never waits for a worker. When the core lets the run
//! end, the lanes finish what they have; then comes [`Output::Exit`]. A job that fails ends the run at once: nobody is
//! told anything more.

mod chain;
pub mod checkpoint;
mod commands;
mod decode;
mod downloads;
mod forms;
mod interface;
mod job;
pub mod merge;
mod pack;
mod publish;
mod receiving;
#[cfg(test)]
mod tests;
pub mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::ids::AgentId;
use anabranch_common::journal::Record;
use anabranch_common::lane::Lane;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::RunSpec;
use anabranch_common::transfer::{Budgets, Half, Uploads};
use anabranch_common::wire::message::CoordinatorMessage;

use chain::Chain;
use checkpoint::CheckpointJob;
use downloads::Downloads;
use forms::Forms;
use merge::{MergeJob, Merged, ServedVector};
use publish::Publisher;
use write::WriteJob;

pub use decode::DecodeJob;
pub use downloads::DownloadId;
pub use interface::{Input, Output, ToPeer};
pub use job::{Done, Job, JobError, SpoolJob};
pub use pack::{Basis, FormKey, PackJob, PackedModel};
pub use publish::PublishedModel;

use crate::core::command::ExitReason;
use crate::core::event::{Event, Now, PeerId};
use crate::core::publication::ServedModel;
use crate::core::trial::TrialOrder;
use crate::core::{Core, ModelMismatch, Options};
use crate::recovery::Recovered;

/// What a node is told at its start, beside what is stored.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of its core.
    pub options: Options,
    /// What run.toml says.
    pub spec: RunSpec,
    /// What uploads may hold.
    pub budgets: Budgets,
}

/// Whether the node goes on.
#[derive(Debug)]
enum Phase {
    Serving,
    /// No agent is served: nothing expires, and nothing becomes due.
    AtRest,
    /// The core is done; the lanes finish what they have.
    Leaving(ExitReason),
    /// [`Output::Exit`] was returned.
    Gone,
}

/// A run of the coordinator.
#[derive(Debug)]
pub struct Node {
    core: Core,
    spec: RunSpec,
    phase: Phase,
    /// Records that are not durable. An accepted update holds its part of the budgets of uploads
    /// (`limits::UPLOADS_IN_FLIGHT_BYTES`, `limits::DECODED_UPLOADS_BYTES`) until it is merged. Beyond
    /// `limits::UNWRITTEN_RECORDS` agents cause no other records. Operators are trusted not to.
    writer: Lane<WriteJob>,
    /// Updates, which hold those budgets; a record that closes them for each version; and one publication and one
    /// checkpoint, for the core orders the next one when the last is done, or the run ends.
    merger: Lane<MergeJob>,
    /// One checkpoint, likewise.
    checkpointer: Lane<Box<CheckpointJob>>,
    publisher: Publisher,
    forms: Forms,
    chain: Chain,
    downloads: Downloads,
    uploads: Uploads,
    /// Every connection, and whose it is.
    agents: BTreeMap<PeerId, AgentId>,
    manifest: Option<Arc<ModelManifest>>,
    out: Vec<Output>,
}

impl Node {
    /// Goes on from what a store holds, or starts with nothing. `halves` are the halves of uploads on disk. Returns the
    /// node, and what it wants done first.
    ///
    /// # Errors
    /// The configured model is not the run's.
    pub fn start(
        Settings { options, spec, budgets }: Settings,
        recovered: Option<Recovered>,
        halves: &[Half],
        now: Now,
    ) -> Result<(Self, Vec<Output>), ModelMismatch> {
        let uploads = Uploads::new(budgets, halves, now);
        let Some(Recovered { state, model, chain, checkpoint_version, oldest, .. }) = recovered else {
            let mut node = Self::of(Core::new(options, spec.clone(), now), spec, uploads);
            let outputs = node.outputs(now);
            return Ok((node, outputs));
        };
        let rebuildable = (oldest, checkpoint_version);
        let (mut core, commands) = Core::resume(options, spec.clone(), (state, chain), rebuildable, now)?;
        core.take_up_the_end(now);
        let mut node = Self::of(core, spec, uploads);
        let overflowed = model.overflowed();
        if overflowed.is_none() {
            node.merger.push(MergeJob::Start(Box::new(model)));
        }
        node.carry_out(now, commands);
        // Killed between the record that made it overflow and the record that ends the run: end it now.
        if let Some(version) = overflowed {
            node.tell_core(now, Event::NonFinite { version });
        }
        let outputs = node.outputs(now);
        Ok((node, outputs))
    }

    /// The same for a coordinator that is stopped, with the journalled configuration: a change of run.toml counts from the
    /// next start on. The node holds no model but one that an event brings: the next start merges what is appended here.
    #[must_use]
    pub fn start_at_rest(
        Settings { options, spec, budgets }: Settings,
        recovered: Option<Recovered>,
        now: Now,
    ) -> (Self, Vec<Output>) {
        let uploads = Uploads::new(budgets, &[], now);
        let (core, spec, commands) = match recovered {
            None => (Core::new(options, spec.clone(), now), spec, Vec::new()),
            Some(Recovered { state, chain, checkpoint_version, oldest, .. }) => {
                let (spec, rebuildable) = (state.spec.clone(), (oldest, checkpoint_version));
                let (core, commands) = Core::resume(options, spec.clone(), (state, chain), rebuildable, now)
                    .expect("the journalled configuration is the run's");
                (core, spec, commands)
            }
        };
        let mut node = Self { phase: Phase::AtRest, ..Self::of(core, spec, uploads) };
        node.carry_out(now, commands);
        let outputs = node.outputs(now);
        (node, outputs)
    }

    fn of(core: Core, spec: RunSpec, uploads: Uploads) -> Self {
        Self {
            core,
            chain: Chain::of(&spec),
            spec,
            phase: Phase::Serving,
            writer: Lane::default(),
            merger: Lane::default(),
            checkpointer: Lane::default(),
            publisher: Publisher::default(),
            forms: Forms::default(),
            downloads: Downloads::default(),
            uploads,
            agents: BTreeMap::new(),
            manifest: None,
            out: Vec::new(),
        }
    }

    /// Takes one input. `now` never goes back in its monotonic part.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match (&self.phase, input) {
            (Phase::Gone, _) => return Vec::new(),
            (_, Input::Done(done)) => self.done(now, done),
            (Phase::Leaving(_), _) => {}
            (Phase::Serving | Phase::AtRest, input) => self.serve(now, input),
        }
        self.outputs(now)
    }

    /// The state machine that decides.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The configuration.
    #[must_use]
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// The policy of uploads.
    #[must_use]
    pub fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// Bytes of models on their way to agents, each content counted once.
    #[must_use]
    pub fn sending_bytes(&self) -> u64 {
        self.downloads.bytes()
    }

    /// Records that wait for the writer, the oldest first.
    pub fn unwritten(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.writer.waiting().map(WriteJob::record)
    }

    fn serve(&mut self, now: Now, input: Input) {
        let event = match input {
            Input::Event(event) => event,
            Input::Sent { peer, download, bytes } => {
                let purpose = self.downloads.ended(peer, download);
                let Some((bytes, purpose)) = bytes.zip(purpose) else { return };
                Event::ModelSent { peer, bytes, purpose }
            }
            Input::Received(chunk) => return self.chunk_received(now, chunk),
            Input::Measure(model) => {
                let (version, digest) = (model.version, model.digest);
                self.publisher.add_measured(model);
                Event::Trial(TrialOrder::Measure { version, digest })
            }
            Input::Done(done) => return self.done(now, done),
        };
        match &event {
            Event::Connected { peer, agent, .. } => {
                self.agents.insert(*peer, *agent);
                self.downloads.connected(*peer);
            }
            Event::Disconnected { peer } => {
                self.agents.remove(peer);
                self.downloads.disconnected(*peer);
                self.forms.forget(*peer);
                self.uploads.closed(now, *peer);
            }
            Event::Tick => self.uploads.tick(now),
            _ => {}
        }
        self.tell_core(now, event);
    }

    fn done(&mut self, now: Now, done: Done) {
        let failed = match done {
            Done::Write(result) => {
                self.writer.done();
                result.map(|events| events.into_iter().for_each(|event| self.tell_core(now, event)))
            }
            Done::Merge(result) => {
                self.merger.done();
                result.map(|merged| merged.into_iter().for_each(|merged| self.merged(now, merged)))
            }
            Done::Checkpoint(result) => {
                self.checkpointer.done();
                result.map(|event| self.tell_core(now, event))
            }
            Done::Decode { upload, event } => {
                self.tell_core(now, event);
                self.uploads.decoded(now, upload);
                Ok(())
            }
            Done::Packed { key, model } => {
                self.packed(key, model);
                Ok(())
            }
            Done::Open(opened) => {
                self.uploads.opened(now, opened);
                Ok(())
            }
            Done::Panicked(worker) => Err(JobError::Panicked(worker)),
            Done::NotTaken(worker) => Err(JobError::NotTaken(worker)),
        };
        if let Err(error) = failed {
            self.phase = Phase::Gone;
            self.out = vec![Output::Exit(Err(error))];
        }
    }

    fn merged(&mut self, now: Now, merged: Merged) {
        match merged {
            Merged::NonFinite(version) => self.tell_core(now, Event::NonFinite { version }),
            Merged::Published { model, served, records } => {
                self.forms.add(records);
                let (version, digest) = (model.version, model.digest);
                self.publisher.add(model);
                let served = match served {
                    ServedVector::Same => ServedModel::Same,
                    ServedVector::Other => ServedModel::Other,
                    ServedVector::Ready(model) => {
                        let (version, digest) = (model.version, model.digest);
                        self.publisher.add_served(model);
                        ServedModel::Ready(version, digest)
                    }
                };
                self.tell_core(now, Event::Published { version, digest, served });
            }
            Merged::Checkpoint(job) => self.checkpointer.push(job),
        }
    }

    /// What the workers answer to a core that is done is for nobody.
    fn tell_core(&mut self, now: Now, event: Event) {
        let commands = match self.phase {
            Phase::Serving => self.core.handle(now, event),
            Phase::AtRest => self.core.handle_at_rest(now, event),
            Phase::Leaving(_) | Phase::Gone => return,
        };
        self.carry_out(now, commands);
    }

    fn outputs(&mut self, now: Now) -> Vec<Output> {
        if !matches!(self.phase, Phase::Gone) {
            self.carry_out_uploads(now);
            self.start_jobs();
            self.leave();
        }
        std::mem::take(&mut self.out)
    }

    fn start_jobs(&mut self) {
        let write = self.writer.next(write::group).map(Job::Write);
        let merge = self.merger.next(merge::batch).map(Job::Merge);
        let checkpoint = self.checkpointer.next_job().map(Job::Checkpoint);
        self.out.extend([write, merge, checkpoint].into_iter().flatten().map(Output::Run));
    }

    /// Whether the run is about to end here: nothing of what peers say counts any more.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving(_) | Phase::Gone)
    }

    fn leave(&mut self) {
        let idle = self.writer.is_idle() && self.checkpointer.is_idle() && self.merger.is_idle();
        if let Phase::Leaving(reason) = self.phase
            && idle
        {
            self.phase = Phase::Gone;
            self.out.push(Output::Exit(Ok(reason)));
        }
    }

    fn send(&mut self, peer: PeerId, message: CoordinatorMessage) {
        self.tell(ToPeer::Send { peer, message: Box::new(message) });
    }

    fn tell(&mut self, what: ToPeer) {
        self.out.push(Output::ToPeer(what));
    }
}
