//! The forms in which a published model can reach an agent: the smallest is sent. Each is made when the first agent needs
//! it, once for all that wait.
//!
//! ```text
//!  request, with what the agent holds ─► choose ─┬─► a form that was made before                      ─► send
//!                                                ├─► wait; PackJob beside the loop: shorter than whole ─► made ─► send
//!                                                │                                  not shorter ──────────┐
//!                                                └─► wait; PackJob beside the loop: the whole model ◄─────┘
//! ```
//! The ways that rest on what the agent holds: records of the published track or accepted updates, and the bits that differ.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::downlink::track::{self, TrackRecord};
use anabranch_common::ids::ModelVersion;
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;

use super::chain::Chain;
use super::pack::{Basis, FormKey, Material, PackJob, PackedModel, Ways};
use super::publish::{PublishedModel, Publisher};
use crate::core::command::ModelRequest;
use crate::core::event::PeerId;

/// Percent of a vector's bytes that its snapshot takes, about: signs and exponents compress, fractions do not.
const SNAPSHOT_PERCENT: usize = 90;

#[derive(Debug)]
enum Form {
    /// It is being made, for these connections, in so many bytes of memory.
    Making { waiting: BTreeMap<PeerId, ModelRequest>, memory_bytes: u64 },
    /// It can be sent.
    Made(Arc<PackedModel>),
    /// No way from what is held is shorter than the whole.
    NotShorter,
}

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Choice {
    /// Send this form.
    Send(Arc<PackedModel>),
    /// Answer when the form is made. The job comes with the first request for it.
    Wait(Option<PackJob>),
    /// The content is no longer here.
    Gone,
}

/// What there is to make forms of, beside the records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here<'a> {
    /// The versions that can be fetched.
    pub(super) publisher: &'a Publisher,
    /// The accepted updates.
    pub(super) chain: &'a Chain,
    /// The run's tensors.
    pub(super) manifest: &'a Arc<ModelManifest>,
    /// Bytes of forms that are on their way to agents.
    pub(super) sending_bytes: u64,
}

/// What forms may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) forms: usize,
    pub(super) made_bytes: usize,
    pub(super) packing_bytes: u64,
    pub(super) sending_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            forms: limits::FORMS,
            made_bytes: limits::FORMS_BYTES,
            packing_bytes: limits::PACKING_BYTES,
            sending_bytes: limits::SENDING_BYTES,
        }
    }
}

/// Records of the published track, and the forms that were made.
#[derive(Debug, Default)]
pub(super) struct Forms {
    bounds: Bounds,
    /// By the version that each leads to. At most `limits::TRACK_RECORDS` of `limits::TRACK_RECORDS_BYTES` in all.
    records: BTreeMap<ModelVersion, TrackRecord>,
    record_bytes: usize,
    /// At most `bounds.forms`.
    forms: BTreeMap<FormKey, Form>,
    /// Bytes of those that are made: at most `bounds.made_bytes`, unless two of them need more.
    made_bytes: usize,
    /// Memory of the jobs that are out: at most `bounds.packing_bytes`, unless one needs more.
    packing_bytes: u64,
    /// Requests for which no job could go out: they are looked at again when one is done. One of each connection at most.
    deferred: BTreeMap<PeerId, ModelRequest>,
}

/// Returns the steps from one version to a later one, the oldest first, if all of them are here. `follows` returns the version
/// that a step follows, and nothing where the way has become too long.
pub(super) fn way_back<T>(
    steps: &BTreeMap<ModelVersion, T>,
    from: ModelVersion,
    to: ModelVersion,
    mut follows: impl FnMut(&T) -> Option<ModelVersion>,
) -> Option<Vec<&T>> {
    let (mut at, mut back) = (to, Vec::new());
    while at > from {
        let step = steps.get(&at)?;
        at = follows(step)?;
        back.push(step);
    }
    back.reverse();
    (at == from && !back.is_empty()).then_some(back)
}

impl Forms {
    /// Without any, within other bounds than those of the process.
    #[cfg(test)]
    pub(super) fn within(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Adds records of the track.
    pub(super) fn add(&mut self, records: Vec<TrackRecord>) {
        for record in records {
            self.record_bytes += record.payload.len();
            if let Some(before) = self.records.insert(record.version, record) {
                self.record_bytes -= before.payload.len();
            }
        }
        while self.records.len() > limits::TRACK_RECORDS || self.record_bytes > limits::TRACK_RECORDS_BYTES {
            let Some((_, oldest)) = self.records.pop_first() else { break };
            self.record_bytes -= oldest.payload.len();
        }
    }

    /// Chooses the form in which a request is answered.
    pub(super) fn choose(&mut self, peer: PeerId, request: &ModelRequest, here: Here<'_>) -> Choice {
        let ModelRequest { version, digest, held, .. } = request;
        let Some(model) = here.publisher.get(*version, *digest) else { return Choice::Gone };
        self.forget(peer);
        let key = |basis| FormKey { version: *version, digest: *digest, basis };
        let whole = key(Basis::Nothing);
        let held = held.filter(|(from, digest)| here.publisher.may_be(*from, *digest));
        if let Some((from, digest)) = held {
            let key = key(Basis::Held(from, digest));
            if let Some(choice) = self.known(&key, peer, request) {
                return choice;
            }
            if !self.forms.contains_key(&key)
                && let Some(ways) = self.ways(&key, &model, here)
                && let Some(job) = self.start(PackJob::new(key, Arc::clone(&model), Material::Ways(ways)), key)
            {
                return self.wait(&key, peer, request, job);
            }
        }
        if let Some(choice) = self.known(&whole, peer, request) {
            return choice;
        }
        match self.start(PackJob::new(whole, model, Material::Whole(Arc::clone(here.manifest))), whole) {
            Some(job) => self.wait(&whole, peer, request, job),
            None => {
                self.deferred.insert(peer, request.clone());
                Choice::Wait(None)
            }
        }
    }

    /// Answers with a form that is made or being made.
    fn known(&mut self, key: &FormKey, peer: PeerId, request: &ModelRequest) -> Option<Choice> {
        match self.forms.get_mut(key)? {
            Form::Made(model) => Some(Choice::Send(Arc::clone(model))),
            Form::Making { waiting, .. } => {
                waiting.insert(peer, request.clone());
                Some(Choice::Wait(None))
            }
            Form::NotShorter => None,
        }
    }

    /// Takes in a job, if there is room for it and its form.
    fn start(&mut self, job: PackJob, key: FormKey) -> Option<PackJob> {
        let memory_bytes = job.memory_bytes();
        if self.packing_bytes > 0 && self.packing_bytes + memory_bytes > self.bounds.packing_bytes {
            return None;
        }
        self.make_room();
        if self.forms.len() >= self.bounds.forms {
            return None;
        }
        self.packing_bytes += memory_bytes;
        self.forms.insert(key, Form::Making { waiting: BTreeMap::new(), memory_bytes });
        Some(job)
    }

    fn wait(&mut self, key: &FormKey, peer: PeerId, request: &ModelRequest, job: PackJob) -> Choice {
        if let Some(Form::Making { waiting, .. }) = self.forms.get_mut(key) {
            waiting.insert(peer, request.clone());
        }
        Choice::Wait(Some(job))
    }

    /// The ways to `model` that the form of this key can take.
    fn ways(&self, key: &FormKey, model: &PublishedModel, here: Here<'_>) -> Option<Ways> {
        let Basis::Held(from, digest) = key.basis else { return None };
        let whole_bytes = match self.forms.get(&FormKey { basis: Basis::Nothing, ..*key }) {
            Some(Form::Made(whole)) => whole.content.len(),
            _ => model.bytes() / 100 * SNAPSHOT_PERCENT,
        };
        let records = self.records_between(from, key.version, whole_bytes);
        let replay = here.chain.between(from, key.version, whole_bytes);
        let ways = Ways { records, replay, base: None, whole_bytes };
        // An entry that has moved takes several times more bits in a difference than in a record.
        let may_be_shorter = ways.shortest_bytes().is_none_or(|bytes| bytes > model.bytes() / 4);
        let has_room = here.sending_bytes + model.bytes() as u64 <= self.bounds.sending_bytes;
        let base = if may_be_shorter && has_room { here.publisher.get(from, digest) } else { None };
        let ways = Ways { base, ..ways };
        (ways.base.is_some() || ways.shortest_bytes().is_some()).then_some(ways)
    }

    /// Takes a form that was made, or cannot be: no way is shorter than the whole. Returns the requests that wait for it.
    pub(super) fn made(&mut self, key: FormKey, model: Option<Arc<PackedModel>>) -> Vec<(PeerId, ModelRequest)> {
        let Some(Form::Making { waiting, memory_bytes }) = self.forms.remove(&key) else { return Vec::new() };
        self.packing_bytes -= memory_bytes;
        match (model, key.basis) {
            (Some(model), _) => {
                self.made_bytes += model.content.len();
                self.forms.insert(key, Form::Made(model));
                self.make_room();
            }
            (None, Basis::Held(..)) => _ = self.forms.insert(key, Form::NotShorter),
            (None, Basis::Nothing) => {}
        }
        waiting.into_iter().collect()
    }

    /// Takes the requests for which no job could go out.
    pub(super) fn take_deferred(&mut self) -> BTreeMap<PeerId, ModelRequest> {
        std::mem::take(&mut self.deferred)
    }

    /// Forgets what a connection waits for: it is gone, or asks for something else.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.deferred.remove(&peer);
        for form in self.forms.values_mut() {
            if let Form::Making { waiting, .. } = form {
                waiting.remove(&peer);
            }
        }
    }

    /// The records from one version to a later one, if all of them are here and shorter than `less_than` bytes.
    fn records_between(&self, from: ModelVersion, to: ModelVersion, less_than: usize) -> Option<Vec<TrackRecord>> {
        let mut bytes = 0;
        let way = way_back(&self.records, from, to, |record| {
            bytes += track::HEADER_BYTES + record.payload.len();
            (bytes < less_than).then_some(record.from)
        });
        way.map(|records| records.into_iter().cloned().collect())
    }

    /// Drops forms of the oldest versions where there is no room for another one.
    fn make_room(&mut self) {
        let is_made = |form: &Form| matches!(form, Form::Made(_));
        loop {
            let too_many = self.forms.len() >= self.bounds.forms;
            let too_long = self.made_bytes > self.bounds.made_bytes
                && self.forms.values().filter(|form| is_made(form)).nth(2).is_some();
            let may_go = |form: &Form| is_made(form) || (too_many && matches!(form, Form::NotShorter));
            let oldest = self.forms.iter().find(|(_, form)| may_go(form)).map(|(key, _)| *key);
            let Some(oldest) = oldest.filter(|_| too_many || too_long) else { return };
            if let Some(Form::Made(model)) = self.forms.remove(&oldest) {
                self.made_bytes -= model.content.len();
            }
        }
    }
}
