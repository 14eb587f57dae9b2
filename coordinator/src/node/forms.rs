//! The forms in which a published model can reach an agent that holds an older one: the smallest is sent.
//!
//! ```text
//!  request, with what the agent holds ─► choose ─┬─► the snapshot                                nothing smaller
//!                                                ├─► a form that was made before                 for everyone who holds the same
//!                                                └─► wait; PackJob beside the loop ─► made ─► everyone who waits for it
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::downlink::ModelForm;
use anabranch_common::downlink::track::{self, TrackRecord};
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::wire::transfer::TransferManifest;

use super::job::Done;
use super::publish::PackedModel;
use crate::core::command::ModelRequest;
use crate::core::event::PeerId;

/// A model in one form: the version that it leads to, and the one that it rests on.
pub type FormKey = (ModelVersion, ModelVersion);

/// A model that is to be brought into a form; answered by [`Done::Packed`].
#[derive(Debug)]
pub struct PackJob {
    key: FormKey,
    digest: Digest,
    records: Vec<TrackRecord>,
}

impl PackJob {
    /// Whether it takes less time than to be handed out and back.
    #[must_use]
    pub fn is_short(&self) -> bool {
        track::packed_bytes(&self.records) <= limits::INLINE_DECODE_BYTES
    }

    /// Makes the form.
    #[must_use]
    pub fn run(self) -> Done {
        let Self { key, digest, records } = self;
        let (version, from) = key;
        let content: Arc<[u8]> = track::pack(&records).into();
        let transfer = TransferManifest::of(&content);
        let model = PackedModel { version, digest, form: ModelForm::Track { from }, content, transfer };
        Done::Packed { key, model: Some(Arc::new(model)) }
    }

    /// What is answered if it panics.
    #[must_use]
    pub fn failure(&self) -> Done {
        Done::Packed { key: self.key, model: None }
    }
}

#[derive(Debug)]
enum Form {
    /// It is being made, for these connections.
    Making(BTreeMap<PeerId, ModelRequest>),
    Made(Arc<PackedModel>),
}

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Choice {
    /// Send this form.
    Send(Arc<PackedModel>),
    /// Answer when the form is made. The job comes with the first request for it.
    Wait(Option<PackJob>),
}

/// Records of the published track, and the forms that were made of them.
#[derive(Debug, Default)]
pub(super) struct Forms {
    /// By the version that each leads to. At most `limits::TRACK_RECORDS` of `limits::TRACK_RECORDS_BYTES` in all.
    records: BTreeMap<ModelVersion, TrackRecord>,
    record_bytes: usize,
    /// At most `limits::PARCELS` of `limits::PUBLISHED_BYTES` in all.
    forms: BTreeMap<FormKey, Form>,
    form_bytes: usize,
}

impl Forms {
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

    /// Chooses the form of `snapshot` for an agent that holds the version `from` of the same track.
    pub(super) fn choose(
        &mut self,
        peer: PeerId,
        request: ModelRequest,
        from: ModelVersion,
        snapshot: Arc<PackedModel>,
    ) -> Choice {
        let key = (snapshot.version, from);
        match self.forms.get_mut(&key) {
            Some(Form::Made(model)) if model.digest == snapshot.digest => return Choice::Send(Arc::clone(model)),
            Some(Form::Making(waiting)) => {
                waiting.insert(peer, request);
                return Choice::Wait(None);
            }
            Some(Form::Made(_)) | None => {}
        }
        let Some(records) = self.way(from, snapshot.version, snapshot.content.len()) else {
            return Choice::Send(snapshot);
        };
        self.make_room();
        if self.forms.len() >= limits::PARCELS {
            return Choice::Send(snapshot);
        }
        self.forget(key);
        self.forms.insert(key, Form::Making(BTreeMap::from([(peer, request)])));
        Choice::Wait(Some(PackJob { key, digest: snapshot.digest, records }))
    }

    /// Takes a form that was made. Returns who waits for it.
    pub(super) fn made(&mut self, key: FormKey, model: Option<Arc<PackedModel>>) -> Vec<(PeerId, ModelRequest)> {
        let Some(Form::Making(waiting)) = self.forms.remove(&key) else { return Vec::new() };
        if let Some(model) = model {
            self.form_bytes += model.content.len();
            self.forms.insert(key, Form::Made(model));
            self.make_room();
        }
        waiting.into_iter().collect()
    }

    /// The records from one version to a later one, if all of them are here and shorter than `less_than` bytes.
    fn way(&self, from: ModelVersion, to: ModelVersion, less_than: usize) -> Option<Vec<TrackRecord>> {
        let (mut at, mut bytes, mut back) = (to, 0, Vec::new());
        while at > from {
            let record = self.records.get(&at)?;
            bytes += track::HEADER_BYTES + record.payload.len();
            if bytes >= less_than {
                return None;
            }
            back.push(record.clone());
            at = record.from;
        }
        back.reverse();
        (at == from && !back.is_empty()).then_some(back)
    }

    /// Drops forms of the oldest versions where there is no room for another one.
    fn make_room(&mut self) {
        while self.forms.len() >= limits::PARCELS || self.form_bytes > limits::PUBLISHED_BYTES {
            let is_made = |(key, form): (&FormKey, &Form)| matches!(form, Form::Made(_)).then_some(*key);
            let Some(oldest) = self.forms.iter().find_map(is_made) else { return };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, key: FormKey) {
        if let Some(Form::Made(model)) = self.forms.remove(&key) {
            self.form_bytes -= model.content.len();
        }
    }
}
