//! An agent as one synchronous object: the session, and the jobs that it gives to store and maths. Driver, simulation and
//! swarm feed it and carry out what it says; they decide nothing.
//!
//! ```text
//!             Input                                             Output
//!  Event(..)         ─┐                                     ┌─► Open · Close · Send · SendChunks · SendPart (the link)
//!  Link { number, ..} ┼─► AgentNode::handle(now_ms, input) ─┼─► Run(job) ─► carried out elsewhere ─► Done
//!  Done(..)          ─┘        session, lanes               └─► StopTraining · Renew · StoreCertificate · Exit
//! ```
//!
//! | rule | |
//! |---|---|
//! | store | one job at a time, in the order of the session's commands |
//! | maths | one job at a time, in that order; a round, own or another agent's, that has not begun is taken back, not stopped |
//! | unpacking | beside both: a round may be computed for hours |
//! | payloads | from memory if they were stored a moment ago, otherwise through a job of the store |
//! | links | numbered; what another link than the newest says does not count |
//! | exit | what was given to the store is carried out, unless the store has failed |

mod job;
mod log;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use anabranch_common::ids::Digest;
use anabranch_common::lane::Lane;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::message::AgentMessage;
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_io::faults;

use crate::session::Session;
use crate::session::command::{ChunkSource, Command, Ending, Renewal, RenewedCertificate};
use crate::session::event::{Event, Problem};
use crate::store::FreshPayloads;

pub use job::{Done, Job, MathsJob, Start, StoreDone, StoreJob, Unpack, initial_model, judged, storage_failed};

/// Something that happened outside the node.
#[derive(Debug)]
pub enum Input {
    /// What a driver tells by itself: the start, ticks, a stop, a hold, a stored certificate, progress.
    Event(Event),
    /// What a link tells: that it is open or gone, a message, a chunk.
    Link {
        /// Its number, from [`Output::Open`].
        number: u64,
        /// What it tells.
        event: Event,
    },
    /// A job is done.
    Done(Done),
}

/// Something to do.
#[derive(Debug)]
pub enum Output {
    /// Open a link after a wait. It takes the place of the one before.
    Open {
        /// Its number.
        number: u64,
        /// The wait, in milliseconds.
        after_ms: u64,
    },
    /// Close the link.
    Close {
        /// Why, for people.
        why: String,
    },
    /// Send a message on the link.
    Send(AgentMessage),
    /// Send chunks on the link; answered by `Event::ChunksSent`.
    SendChunks {
        /// What they are cut from.
        content: Arc<[u8]>,
        /// All chunks of it.
        transfer: TransferManifest,
        /// Which of them.
        missing: Missing,
    },
    /// Send chunks of another agent's update on the link.
    SendPart {
        /// The section that they are cut from.
        content: Arc<[u8]>,
        /// The update's transfer.
        transfer: Digest,
        /// The section's first chunk.
        first: u32,
        /// Which of them, counted from that one.
        missing: Missing,
    },
    /// Carry out a job; answered by [`Input::Done`].
    Run(Job),
    /// Stop what is computed, a round at its next step or a part of another agent's; its job answers.
    StopTraining,
    /// Make a signing request and send it.
    Renew(Renewal),
    /// Put a renewed certificate in its file; answered by `Event::CertificateStored`.
    StoreCertificate(RenewedCertificate),
    /// Close the link in good order and leave. Nothing follows.
    Exit(Ending),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct AgentNode {
    session: Session,
    fresh: Arc<FreshPayloads>,
    /// The tensors of the trainer, once it is built.
    manifest: Option<Arc<ModelManifest>>,
    /// For each of `limits::OUTBOX_UPDATES` updates: it is banked, read and settled at most once. Between two of these
    /// jobs, at most one that adopts a branch.
    store: Lane<StoreJob>,
    /// At most one job of each kind: the session waits for its answer before it gives the next.
    maths: Lane<MathsJob>,
    /// The link that counts, if there is one.
    link: Option<u64>,
    links: u64,
}

impl AgentNode {
    /// A node that has done nothing yet. Its first input must be `Event::Started`. `fresh` holds payloads of the outbox
    /// that need not be read.
    #[must_use]
    pub fn new(session: Session, fresh: Arc<FreshPayloads>) -> Self {
        let (store, maths) = (Lane::default(), Lane::default());
        Self { session, fresh, manifest: None, store, maths, link: None, links: 0 }
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Other runs use the device too: see [`Session::share_device`].
    pub fn share_device(&mut self) {
        self.session.share_device();
    }

    /// Takes one input and returns what to do, in this order.
    pub fn handle(&mut self, now_ms: u64, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        let mut events: VecDeque<Event> = self.event(input, &mut out).into_iter().collect();
        let mut ending = None;
        while let Some(event) = events.pop_front() {
            log::event(&event);
            if let Event::Prepared { manifest } = &event {
                self.manifest = Some(Arc::new(manifest.clone()));
            }
            for command in self.session.handle(now_ms, event) {
                match command {
                    Command::Exit(why) => ending = Some(why),
                    command => events.extend(self.execute(command, &mut out)),
                }
            }
        }
        match ending {
            Some(ending) => self.exit(ending, &mut out),
            None => self.run_lanes(&mut out),
        }
        out
    }

    /// What an input means for the session, if anything.
    fn event(&mut self, input: Input, out: &mut Vec<Output>) -> Option<Event> {
        match input {
            Input::Event(event) => Some(event),
            Input::Link { number, event } => {
                if self.link != Some(number) {
                    return None;
                }
                if matches!(event, Event::Disconnected(_)) {
                    self.link = None;
                }
                Some(event)
            }
            Input::Done(Done::Unpack(event)) => Some(event),
            Input::Done(Done::Maths(event)) => {
                self.maths.done();
                Some(event)
            }
            Input::Done(Done::Store(done)) => {
                self.store.done();
                match done {
                    StoreDone::Event(event) => Some(event),
                    StoreDone::Adopted => None,
                    StoreDone::Read { link, content, transfer, missing } => {
                        // The update may have left the outbox, and on another link it is offered again.
                        if let Some(content) = content.filter(|_| self.link == Some(link)) {
                            faults::point("update-before-chunks");
                            out.push(Output::SendChunks { content, transfer, missing });
                        }
                        None
                    }
                }
            }
        }
    }

    /// Carries out a command; what is known at once of its outcome comes back.
    fn execute(&mut self, command: Command, out: &mut Vec<Output>) -> Option<Event> {
        match command {
            Command::Connect { after_ms } => {
                self.links += 1;
                self.link = Some(self.links);
                out.push(Output::Open { number: self.links, after_ms });
            }
            Command::Disconnect { why } => {
                self.link = None;
                out.push(Output::Close { why });
            }
            Command::Send(message) => {
                log::message(&message);
                out.push(Output::Send(message));
            }
            Command::SendChunks { source, transfer, missing } => self.send_chunks(source, transfer, missing, out),
            Command::SendPart { content, transfer, first, missing } => {
                log::part(content.len(), transfer);
                faults::point("update-before-chunks");
                out.push(Output::SendPart { content, transfer, first, missing });
            }
            Command::Prepare(spec) => self.maths.push(MathsJob::Prepare(spec)),
            Command::Reorder(manifest) => self.maths.push(MathsJob::Reorder(manifest)),
            Command::MakeInitial { seed } => self.maths.push(MathsJob::MakeInitial { seed }),
            Command::Unpack { version, digest, onto, encoded } => {
                let manifest = self.manifest();
                out.push(Output::Run(Job::Unpack(Unpack { manifest, version, digest, onto, encoded })));
            }
            Command::Train { lease, spec, base, lead, pod } => {
                self.maths.push(MathsJob::Train { lease, spec, start: Start { base, lead }, pod });
            }
            Command::Serve { round, spec } => self.maths.push(MathsJob::Serve { round, spec }),
            Command::StopTraining => match self.maths.take_back(MathsJob::stopped) {
                Some(stopped) => return Some(stopped),
                None => out.push(Output::StopTraining),
            },
            Command::Evaluate { version, content } => self.maths.push(MathsJob::Evaluate { version, content }),
            Command::Bank(bank) => {
                let manifest = self.manifest();
                self.store.push(StoreJob::Bank { bank, manifest });
            }
            Command::Settle { key, content } => self.store.push(StoreJob::Settle { key, content }),
            Command::AdoptBranch { branch } => match self.store.last_mut() {
                // No job wants the branch in between.
                Some(StoreJob::Adopt(waiting)) => *waiting = branch,
                _ => self.store.push(StoreJob::Adopt(branch)),
            },
            Command::Renew(renewal) => out.push(Output::Renew(renewal)),
            Command::StoreCertificate(renewed) => out.push(Output::StoreCertificate(renewed)),
            Command::Exit(_) => {}
        }
        None
    }

    fn send_chunks(
        &mut self,
        source: ChunkSource,
        transfer: TransferManifest,
        mut missing: Missing,
        out: &mut Vec<Output>,
    ) {
        let Some(link) = self.link else { return };
        let content = match source {
            ChunkSource::Initial(content) => content,
            ChunkSource::Update(key) => {
                log::chunks(key, &transfer, &missing);
                let Some(content) = self.fresh.get(key) else {
                    // The payload is read once for all that is asked for; what another link needed is of no use.
                    self.store.waiting().filter_map(|job| job.reads(key, link)).for_each(|asked| missing.join(asked));
                    self.store.retain(|job| !job.is_replaced_by_read(key, link));
                    return self.store.push(StoreJob::Read { key, link, transfer, missing });
                };
                faults::point("update-before-chunks");
                content
            }
        };
        out.push(Output::SendChunks { content, transfer, missing });
    }

    fn manifest(&self) -> Arc<ModelManifest> {
        Arc::clone(self.manifest.as_ref().expect("models and rounds come after Prepared"))
    }

    fn run_lanes(&mut self, out: &mut Vec<Output>) {
        out.extend(self.store.next_job().map(Job::Store).map(Output::Run));
        out.extend(self.maths.next_job().map(Job::Maths).map(Output::Run));
    }

    /// Deltas and decisions that the store was given are carried out: whoever runs the jobs takes them all.
    fn exit(&mut self, ending: Ending, out: &mut Vec<Output>) {
        let rest = self.store.drain();
        if !matches!(ending, Ending::Storage(_)) {
            out.extend(rest.map(Job::Store).map(Output::Run));
        }
        out.push(Output::Exit(ending));
    }

    /// The link takes no more messages: it is given up as if it had ended.
    #[must_use]
    pub fn link_is_full(&self) -> Input {
        let problem = Problem::Transient("the connection takes no more messages".to_owned());
        Input::Link { number: self.links, event: Event::Disconnected(problem) }
    }
}
