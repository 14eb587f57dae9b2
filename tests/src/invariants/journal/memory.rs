//! Memories: an update is a difference against the memory that the records before it make of its agent, or against 0,
//! and the agent has the bits that they make.

use std::collections::BTreeMap;

use anabranch_common::codec;
use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::journal::{Contribution, Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::RunSpec;
use anabranch_common::update::MemoryMark;

use super::{Checked, ensure};

const NAME: &str = "memories";

/// The memory of each agent, and the content of every memory that there was, by name.
#[derive(Debug, Default)]
pub(super) struct Memories {
    manifest: Option<ModelManifest>,
    held: BTreeMap<AgentId, (MemoryMark, Vec<f32>)>,
    known: BTreeMap<Digest, Digest>,
}

impl Memories {
    pub(super) fn apply(&mut self, spec: Option<&RunSpec>, record: &Record) -> Checked {
        match &record.body {
            RecordBody::Genesis { manifest, .. } => self.manifest = Some(manifest.clone()),
            RecordBody::Contribution(update) => {
                return self.contribute(spec.is_some_and(|spec| spec.merge.keeps_memories()), record, update);
            }
            RecordBody::Imported { .. } | RecordBody::Branched { .. } => self.held.clear(),
            RecordBody::ConfigChanged { spec: after }
                if spec.is_some_and(|before| !after.merge.keeps_waiting(&before.merge)) =>
            {
                self.held.clear();
            }
            _ => {}
        }
        Ok(())
    }

    fn contribute(&mut self, keeps: bool, record: &Record, update: &Contribution) -> Checked {
        let (position, agent, said) = (record.position, update.meta.key.agent, update.meta.memory);
        let Some(inputs) = &update.memory else {
            return ensure(!keeps, NAME, || format!("record {position} has no memory"));
        };
        let empty = said.is_none_or(|mark| mark == MemoryMark::EMPTY);
        let step = inputs.step > 0.0 && inputs.step <= 1.0;
        ensure(keeps && inputs.begins == empty && inputs.active > 0 && step, NAME, || {
            format!("record {position}: {inputs:?} of a difference against {said:?}")
        })?;
        let left = inputs.left.iter().all(|left| *left != agent && self.held.contains_key(left));
        ensure(left, NAME, || format!("record {position} forgets memories that are not there: {inputs:?}"))?;
        inputs.left.iter().for_each(|left| drop(self.held.remove(left)));
        if empty {
            self.held.remove(&agent);
        }
        let before = self.held.get(&agent).map(|(mark, _)| *mark);
        ensure(before == said.filter(|_| !empty), NAME, || {
            format!("record {position} is a difference against {said:?}, and {before:?} is there")
        })?;
        let Some(content) = self.manifest.as_ref().and_then(|manifest| {
            codec::decode(update.meta.codec, manifest, &record.payload).ok().map(codec::Delta::into_dense)
        }) else {
            return Ok(());
        };
        let (mark, values) = self.held.entry(agent).or_insert_with(|| (MemoryMark::EMPTY, vec![0.0; content.len()]));
        for (value, content) in values.iter_mut().zip(content) {
            *value += update.weight * content;
        }
        *mark = mark.with(update.meta.payload_digest, update.weight);
        self.known.insert(mark.0, Digest::of_f32(values));
        if !inputs.keeps {
            self.held.remove(&agent);
        }
        Ok(())
    }

    /// An agent has this memory.
    pub(super) fn are(&self, mark: MemoryMark, values: Option<&[f32]>) -> Checked {
        let Some(values) = values else {
            return ensure(mark == MemoryMark::EMPTY, NAME, || format!("an agent has nothing of {mark:?}"));
        };
        ensure(self.known.get(&mark.0) == Some(&Digest::of_f32(values)), NAME, || {
            format!("an agent has another memory {mark:?} than its updates make")
        })
    }
}
