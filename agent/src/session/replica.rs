//! The model this agent holds, and the one it is fetching.

use std::sync::Arc;

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::wire::message::AgentMessage;
use anabranch_common::wire::transfer::{Assembly, Missing, TransferError, TransferManifest};

/// A model version by name and content. What users are given of a version may be another vector than the one that agents
/// train from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its version.
    pub version: ModelVersion,
    /// Digest of its content.
    pub digest: Digest,
}

impl Wanted {
    /// Asks the coordinator for it, or for what is missing of it.
    pub(super) fn request(self, missing: Option<Missing>) -> AgentMessage {
        AgentMessage::FetchModel { version: self.version, digest: self.digest, missing }
    }
}

#[derive(Debug)]
enum Fetch {
    /// Asked for; the coordinator has not said what its chunks are.
    Asked,
    /// Chunks are coming in.
    Receiving(Assembly),
    /// Complete; being decoded and checked.
    Unpacking,
}

/// What an arriving chunk led to.
#[derive(Debug, PartialEq)]
pub(super) enum Arrival {
    /// More is missing, or the chunk was not for this fetch.
    Partial,
    /// All of it is here, in the form of codec 0.
    Complete(Wanted, Vec<u8>),
    /// The chunk is not what was announced.
    Bad(TransferError),
}

/// What the coordinator's description of a model led to.
#[derive(Debug, PartialEq)]
pub(super) enum Announced {
    /// Chunks may come (or go on coming); some that came early may have completed it.
    Receiving(Arrival),
    /// The half that is here belongs to another transfer: ask for all of it.
    Restart,
    /// Not what was asked for.
    Unexpected,
}

/// At most one model, and at most one fetch.
#[derive(Debug, Default)]
pub struct Replica {
    held: Option<(Wanted, Arc<[f32]>)>,
    fetch: Option<(Wanted, Fetch)>,
    early: Vec<(Digest, u32, Vec<u8>)>,
    since_ms: u64,
}

impl Replica {
    /// What is held.
    #[must_use]
    pub fn held(&self) -> Option<Wanted> {
        self.held.as_ref().map(|(wanted, _)| *wanted)
    }

    /// Chunks received and announced of the fetch that is under way.
    #[must_use]
    pub fn fetching(&self) -> Option<(ModelVersion, usize, usize)> {
        let (wanted, fetch) = self.fetch.as_ref()?;
        let (done, all) = match fetch {
            Fetch::Asked => (0, 0),
            Fetch::Receiving(assembly) => {
                let all = assembly.manifest().chunks.len();
                (all - assembly.missing().indices(all).count(), all)
            }
            Fetch::Unpacking => (1, 1),
        };
        Some((wanted.version, done, all))
    }

    /// The content of `wanted`, if it is what is held.
    pub(super) fn content(&self, wanted: Wanted) -> Option<Arc<[f32]>> {
        self.held.as_ref().filter(|(held, _)| *held == wanted).map(|(_, content)| Arc::clone(content))
    }

    /// A download is decoded. One that is no longer wanted must not take the place of what is.
    pub(super) fn unpacked(&mut self, wanted: Wanted, content: Arc<[f32]>) {
        if self.fetch.as_ref().is_some_and(|(fetched, _)| *fetched == wanted) {
            self.hold(wanted, content);
        }
    }

    /// Whether this model is being decoded.
    pub(super) fn is_unpacking(&self, wanted: Wanted) -> bool {
        matches!(&self.fetch, Some((fetched, Fetch::Unpacking)) if *fetched == wanted)
    }

    /// Holds this from now on.
    pub(super) fn hold(&mut self, wanted: Wanted, content: Arc<[f32]>) {
        self.held = Some((wanted, content));
        if self.fetch.as_ref().is_some_and(|(fetched, _)| *fetched == wanted) {
            self.fetch = None;
        }
    }

    /// Starts or takes up the fetch of `wanted`; what to ask the coordinator, or nothing while the model is being
    /// decoded.
    pub(super) fn ask(&mut self, now_ms: u64, wanted: Wanted) -> Option<AgentMessage> {
        self.since_ms = now_ms;
        let fetch = match self.fetch.take() {
            Some((fetched, fetch)) if fetched == wanted => fetch,
            _ => Fetch::Asked,
        };
        let missing = match &fetch {
            Fetch::Asked => None,
            Fetch::Receiving(assembly) => Some(assembly.missing().clone()),
            Fetch::Unpacking => {
                self.fetch = Some((wanted, fetch));
                return None;
            }
        };
        self.fetch = Some((wanted, fetch));
        Some(wanted.request(missing))
    }

    /// The coordinator says what the chunks of a model are. Of a model of more than `max_bytes`
    /// nothing is allocated.
    pub(super) fn announced(
        &mut self,
        now_ms: u64,
        offered: Wanted,
        transfer: TransferManifest,
        max_bytes: u64,
    ) -> Announced {
        match &self.fetch {
            Some((wanted, Fetch::Receiving(assembly))) if *wanted == offered => {
                if assembly.manifest().id() != transfer.id() {
                    self.fetch = Some((offered, Fetch::Asked));
                    return Announced::Restart;
                }
            }
            Some((wanted, Fetch::Asked)) if *wanted == offered => match Assembly::new(transfer, max_bytes) {
                Ok(assembly) => self.fetch = Some((offered, Fetch::Receiving(assembly))),
                Err(problem) => return Announced::Receiving(Arrival::Bad(problem)),
            },
            _ => return Announced::Unexpected,
        }
        self.since_ms = now_ms;
        for (transfer, index, bytes) in std::mem::take(&mut self.early) {
            match self.put(now_ms, transfer, index, bytes) {
                Arrival::Partial => {}
                done => return Announced::Receiving(done),
            }
        }
        Announced::Receiving(self.complete_if_whole())
    }

    /// A chunk arrived. Chunks overtake the message that announces them, so a few are kept for later.
    pub(super) fn put(&mut self, now_ms: u64, transfer: Digest, index: u32, bytes: Vec<u8>) -> Arrival {
        match &mut self.fetch {
            Some((_, Fetch::Asked)) => {
                if self.early.len() < limits::EARLY_CHUNKS {
                    self.early.push((transfer, index, bytes));
                }
                Arrival::Partial
            }
            Some((_, Fetch::Receiving(assembly))) if assembly.manifest().id() == transfer => {
                self.since_ms = now_ms;
                match assembly.put(index, &bytes) {
                    Ok(_) => self.complete_if_whole(),
                    Err(problem) => Arrival::Bad(problem),
                }
            }
            _ => Arrival::Partial,
        }
    }

    fn complete_if_whole(&mut self) -> Arrival {
        match self.fetch.take() {
            Some((wanted, Fetch::Receiving(assembly))) if assembly.missing().is_empty() => {
                self.fetch = Some((wanted, Fetch::Unpacking));
                Arrival::Complete(wanted, assembly.finish().expect("nothing is missing, so there is a content"))
            }
            other => {
                self.fetch = other;
                Arrival::Partial
            }
        }
    }

    /// Gives the fetch up; what arrives of it later is ignored.
    pub(super) fn forget_fetch(&mut self) {
        self.fetch = None;
        self.early.clear();
    }

    /// Drops everything: it belongs to another branch.
    pub(super) fn drop_all(&mut self) {
        self.held = None;
        self.forget_fetch();
    }

    /// The connection is gone; chunks that were not announced will come again.
    pub(super) fn disconnected(&mut self) {
        self.early.clear();
    }

    /// When to ask again for what does not come.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        match self.fetch {
            Some((_, Fetch::Asked | Fetch::Receiving(_))) => Some(self.since_ms + limits::FETCH_RETRY_MS),
            Some((_, Fetch::Unpacking)) | None => None,
        }
    }
}
