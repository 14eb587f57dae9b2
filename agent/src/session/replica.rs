//! The model this agent holds, and the one it is fetching.

use std::sync::Arc;

use anabranch_common::downlink::{FetchPurpose, ModelForm};
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

/// What a model that was fetched rests on: `None` for a whole one.
pub type Onto = Option<(ModelForm, Arc<[f32]>)>;

#[derive(Debug)]
enum Stage {
    /// Asked for; the coordinator has not said what its chunks are.
    Asked,
    /// Chunks are coming in, of a model in this form.
    Receiving(ModelForm, Assembly),
    /// Complete, in this form; being decoded and checked.
    Unpacking(ModelForm),
}

/// A model that is being fetched.
#[derive(Debug)]
struct Fetch {
    wanted: Wanted,
    purpose: FetchPurpose,
    /// What was held when it was asked for. The answer may rest on it.
    held: Option<(Wanted, Arc<[f32]>)>,
    stage: Stage,
}

impl Fetch {
    /// Asks the coordinator for it, or for what is missing of it.
    fn request(&self, missing: Option<Missing>) -> AgentMessage {
        let Wanted { version, digest } = self.wanted;
        let held = self.held.as_ref().map(|(held, _)| (held.version, held.digest));
        AgentMessage::FetchModel { version, digest, purpose: self.purpose, held, missing }
    }

    /// Whether the coordinator's answer can be in this form: it rests on nothing, or on what was held.
    fn accepts(&self, form: ModelForm) -> bool {
        form.from().is_none_or(|from| self.held.as_ref().is_some_and(|(held, _)| held.version == from))
    }

    fn onto(&self, form: ModelForm) -> Onto {
        form.from()?;
        self.held.as_ref().map(|(_, base)| (form, Arc::clone(base)))
    }
}

/// What an arriving chunk led to.
#[derive(Debug, PartialEq)]
pub(super) enum Arrival {
    /// More is missing, or the chunk was not for this fetch.
    Partial,
    /// All of it is here, and what it rests on.
    Complete(Wanted, Onto, Vec<u8>),
    /// The chunk is not what was announced.
    Bad(TransferError),
}

/// What the coordinator's description of a model led to.
#[derive(Debug, PartialEq)]
pub(super) enum Announced {
    /// Chunks may come (or go on coming); some that came early may have completed it.
    Receiving(Arrival),
    /// The half that is here belongs to another transfer: ask for all of it.
    Restart(Box<AgentMessage>),
    /// Not what was asked for.
    Unexpected,
}

/// At most one model to train from, one to evaluate, and one fetch.
#[derive(Debug, Default)]
pub struct Replica {
    held: Option<(Wanted, Arc<[f32]>)>,
    /// What was fetched to be evaluated, until the next fetch: it does not take the place of what the next base may rest on.
    visiting: Option<(Wanted, Arc<[f32]>)>,
    fetch: Option<Fetch>,
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
        let Fetch { wanted, stage, .. } = self.fetch.as_ref()?;
        let (done, all) = match stage {
            Stage::Asked => (0, 0),
            Stage::Receiving(_, assembly) => {
                let all = assembly.manifest().chunks.len();
                (all - assembly.missing().indices(all).count(), all)
            }
            Stage::Unpacking(_) => (1, 1),
        };
        Some((wanted.version, done, all))
    }

    /// The content of `wanted`, if it is here.
    pub(super) fn content(&self, wanted: Wanted) -> Option<Arc<[f32]>> {
        let mut here = [&self.held, &self.visiting].into_iter().flatten();
        here.find(|(held, _)| *held == wanted).map(|(_, content)| Arc::clone(content))
    }

    /// A download is decoded. One that is no longer wanted must not take the place of what is.
    pub(super) fn unpacked(&mut self, wanted: Wanted, content: Arc<[f32]>) {
        match self.fetch.take_if(|fetch| fetch.wanted == wanted).map(|fetch| fetch.purpose) {
            Some(FetchPurpose::Train) => self.held = Some((wanted, content)),
            Some(FetchPurpose::Evaluate) => self.visiting = Some((wanted, content)),
            None => {}
        }
    }

    /// Whether this model is being decoded.
    pub(super) fn is_unpacking(&self, wanted: Wanted) -> bool {
        self.fetch.as_ref().is_some_and(|fetch| fetch.wanted == wanted && matches!(fetch.stage, Stage::Unpacking(_)))
    }

    /// Holds this from now on.
    pub(super) fn hold(&mut self, wanted: Wanted, content: Arc<[f32]>) {
        self.held = Some((wanted, content));
        self.fetch.take_if(|fetch| fetch.wanted == wanted);
    }

    /// Starts or takes up the fetch of `wanted`; what to ask the coordinator, or nothing while the model is being
    /// decoded.
    pub(super) fn ask(&mut self, now_ms: u64, wanted: Wanted, purpose: FetchPurpose) -> Option<AgentMessage> {
        self.since_ms = now_ms;
        if self.fetch.as_ref().is_none_or(|fetch| (fetch.wanted, fetch.purpose) != (wanted, purpose)) {
            let held = self.held.clone().filter(|_| purpose == FetchPurpose::Train);
            self.fetch = Some(Fetch { wanted, purpose, held, stage: Stage::Asked });
            self.visiting = None;
        }
        let fetch = self.fetch.as_ref()?;
        match &fetch.stage {
            Stage::Asked => Some(fetch.request(None)),
            Stage::Receiving(_, assembly) => Some(fetch.request(Some(assembly.missing().clone()))),
            Stage::Unpacking(_) => None,
        }
    }

    /// What came does not lead to the model: returns the request for the whole of it, unless that is what came.
    pub(super) fn ask_for_whole(&mut self, now_ms: u64, wanted: Wanted) -> Option<AgentMessage> {
        let fetch = self.fetch.as_mut().filter(|fetch| fetch.wanted == wanted)?;
        if matches!(fetch.stage, Stage::Unpacking(ModelForm::Snapshot)) {
            return None;
        }
        (self.since_ms, fetch.held, fetch.stage) = (now_ms, None, Stage::Asked);
        Some(fetch.request(None))
    }

    /// The coordinator says what the chunks of a model are. Of a model of more than `max_bytes`
    /// nothing is allocated.
    pub(super) fn announced(
        &mut self,
        now_ms: u64,
        offered: Wanted,
        (form, transfer): (ModelForm, TransferManifest),
        max_bytes: u64,
    ) -> Announced {
        let asked = self.fetch.as_mut().filter(|fetch| fetch.wanted == offered && fetch.accepts(form));
        let Some(fetch) = asked else { return Announced::Unexpected };
        match &fetch.stage {
            Stage::Receiving(_, assembly) => {
                if assembly.manifest().id() != transfer.id() {
                    fetch.stage = Stage::Asked;
                    return Announced::Restart(Box::new(fetch.request(None)));
                }
            }
            Stage::Asked => match Assembly::new(transfer, max_bytes) {
                Ok(assembly) => fetch.stage = Stage::Receiving(form, assembly),
                Err(problem) => return Announced::Receiving(Arrival::Bad(problem)),
            },
            Stage::Unpacking(_) => return Announced::Unexpected,
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
        match self.fetch.as_mut().map(|fetch| &mut fetch.stage) {
            Some(Stage::Asked) => {
                if self.early.len() < limits::EARLY_CHUNKS {
                    self.early.push((transfer, index, bytes));
                }
                Arrival::Partial
            }
            Some(Stage::Receiving(_, assembly)) if assembly.manifest().id() == transfer => {
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
        let Some(fetch) = &mut self.fetch else { return Arrival::Partial };
        let form = match &fetch.stage {
            Stage::Receiving(form, assembly) if assembly.missing().is_empty() => *form,
            _ => return Arrival::Partial,
        };
        let Stage::Receiving(_, assembly) = std::mem::replace(&mut fetch.stage, Stage::Unpacking(form)) else {
            return Arrival::Partial;
        };
        let content = assembly.finish().expect("nothing is missing, so there is a content");
        Arrival::Complete(fetch.wanted, fetch.onto(form), content)
    }

    /// Gives the fetch up; what arrives of it later is ignored.
    pub(super) fn forget_fetch(&mut self) {
        self.fetch = None;
        self.early.clear();
    }

    /// Drops everything: it belongs to another branch.
    pub(super) fn drop_all(&mut self) {
        (self.held, self.visiting) = (None, None);
        self.forget_fetch();
    }

    /// The connection is gone; chunks that were not announced will come again.
    pub(super) fn disconnected(&mut self) {
        self.early.clear();
    }

    /// When to ask again for what does not come.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        match self.fetch.as_ref()?.stage {
            Stage::Asked | Stage::Receiving(..) => Some(self.since_ms + limits::FETCH_RETRY_MS),
            Stage::Unpacking(_) => None,
        }
    }
}
