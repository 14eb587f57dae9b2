//! The jobs of a node: what takes long, or belongs to a thread of its own.

use std::borrow::Cow;
use std::sync::Arc;

use anabranch_common::codec::{self, Codec as _, Delta, dense::Planes32};
use anabranch_common::downlink::{FormError, ModelForm, chain, track, xor};
use anabranch_common::ids::{AgentId, BranchId, Digest, ModelVersion, RunId};
use anabranch_common::journal::Lease;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::pod::PodRound;
use anabranch_common::spec::AgentSpec;
use anabranch_common::update::UpdateKey;
use anabranch_common::wire::message::NOT_FINITE;
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_io::durable::StorageError;

use crate::encode::{self, BankError};
use crate::session::command::{Bank, Ending, Lead, Settlement};
use crate::session::event::{Event, InitialModel};
use crate::session::replica::Onto;
use crate::store::Ledger;
use crate::train::Metrics;

/// Something to carry out, beside the node.
#[derive(Debug)]
pub enum Job {
    /// On the ledger. The node gives the next one when this one is done.
    Store(StoreJob),
    /// With the trainer. The node gives the next one when this one is done.
    Maths(MathsJob),
    /// Beside both.
    Unpack(Unpack),
}

/// A job is done.
#[derive(Debug)]
pub enum Done {
    /// One of the store's.
    Store(StoreDone),
    /// One of the trainer's, and what it led to.
    Maths(Event),
    /// An unpacking, and what it led to.
    Unpack(Event),
}

/// Work for the ledger.
#[derive(Debug)]
pub enum StoreJob {
    /// See `Command::Bank`.
    Bank {
        /// What to store.
        bank: Box<Bank>,
        /// The model's tensors.
        manifest: Arc<ModelManifest>,
    },
    /// See `Command::Settle`.
    Settle {
        /// Which update.
        key: UpdateKey,
        /// What becomes of its content.
        content: Settlement,
    },
    /// See `Command::AdoptBranch`.
    Adopt(BranchId),
    /// Reads the payload of an update that is to be sent.
    Read {
        /// Which update.
        key: UpdateKey,
        /// Number of the link it is for.
        link: u64,
        /// Its chunks.
        transfer: TransferManifest,
        /// Which of them to send.
        missing: Missing,
    },
}

/// What a job of the store led to.
#[derive(Debug)]
pub enum StoreDone {
    /// An event.
    Event(Event),
    /// The ledger belongs to the branch.
    Adopted,
    /// See [`StoreJob::Read`].
    Read {
        /// Number of the link it is for.
        link: u64,
        /// The payload, if the update is still in the outbox.
        content: Option<Arc<[u8]>>,
        /// Its chunks.
        transfer: TransferManifest,
        /// Which of them to send.
        missing: Missing,
    },
}

impl StoreJob {
    /// Whether a read of `key` for `link` makes this job superfluous.
    pub(super) fn is_replaced_by_read(&self, key: UpdateKey, link: u64) -> bool {
        matches!(self, Self::Read { key: of, link: on, .. } if *of == key || *on != link)
    }

    /// Returns the chunks of `key` that are to be read for `link`, if this job reads some.
    pub(super) fn reads(&self, key: UpdateKey, link: u64) -> Option<&Missing> {
        match self {
            Self::Read { key: of, link: on, missing, .. } if *of == key && *on == link => Some(missing),
            _ => None,
        }
    }

    /// Carries the job out on the ledger of `agent` in `run`.
    ///
    /// # Errors
    /// The store has failed. The job may have left a residual half taken out: no other job may follow.
    pub fn run(self, ledger: &mut Ledger, run: RunId, agent: AgentId) -> Result<StoreDone, StorageError> {
        match self {
            Self::Bank { bank, manifest } => {
                let lease = bank.lease.id;
                match encode::bank(ledger, run, agent, &manifest, *bank) {
                    Ok(entry) => Ok(StoreDone::Event(Event::Banked(entry))),
                    Err(BankError::Storage(error)) => Err(error),
                    Err(error @ (BankError::Encode(_) | BankError::Changed)) => {
                        Ok(StoreDone::Event(Event::Discarded { lease, problem: error.to_string() }))
                    }
                }
            }
            Self::Settle { key, content } => {
                ledger.settle(key, content)?;
                Ok(StoreDone::Event(Event::Settled { key }))
            }
            Self::Adopt(branch) => {
                ledger.adopt(branch)?;
                Ok(StoreDone::Adopted)
            }
            Self::Read { key, link, transfer, missing } => {
                let content = ledger.payload(key)?.map(Arc::from);
                Ok(StoreDone::Read { link, content, transfer, missing })
            }
        }
    }
}

/// Returns how an agent ends over an error of its store.
#[must_use]
pub fn storage_failed(error: &StorageError) -> Event {
    Event::Failed(Ending::Storage(match error.help() {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    }))
}

/// What a round starts from.
#[derive(Debug)]
pub struct Start {
    /// The base's content.
    pub base: Arc<[f32]>,
    /// What to be ahead of it by.
    pub lead: Option<Lead>,
}

impl Start {
    /// Returns the model to start from.
    #[must_use]
    pub fn model(&self) -> Cow<'_, [f32]> {
        match &self.lead {
            Some(lead) => Cow::Owned(lead.from(&self.base)),
            None => Cow::Borrowed(&self.base),
        }
    }
}

/// Work for the maths.
#[derive(Debug)]
pub enum MathsJob {
    /// See `Command::Prepare`.
    Prepare(Box<AgentSpec>),
    /// See `Command::Reorder`.
    Reorder(Box<ModelManifest>),
    /// See `Command::MakeInitial`.
    MakeInitial {
        /// The run's seed.
        seed: u64,
    },
    /// See `Command::Train`.
    Train {
        /// The lease.
        lease: Box<Lease>,
        /// The configuration.
        spec: Box<AgentSpec>,
        /// What to start from.
        start: Start,
        /// The pod that computes it, if one does.
        pod: Option<Box<PodRound>>,
    },
    /// See `Command::Serve`.
    Serve {
        /// Who computes what.
        round: Box<PodRound>,
        /// The configuration.
        spec: Box<AgentSpec>,
    },
    /// See `Command::Evaluate`.
    Evaluate {
        /// Its version.
        version: ModelVersion,
        /// Its content.
        content: Arc<[f32]>,
    },
}

impl MathsJob {
    /// Returns what a stop leads to while the job waits: nothing if it is not one that can be stopped.
    #[must_use]
    pub fn stopped(&self) -> Option<Event> {
        match self {
            Self::Train { lease, .. } => Some(Event::TrainingStopped { lease: lease.id }),
            Self::Serve { round, .. } => Some(Event::Served { mark: round.mark, problem: None, parts: vec![] }),
            Self::Prepare(_) | Self::Reorder(_) | Self::MakeInitial { .. } | Self::Evaluate { .. } => None,
        }
    }
}

/// What an evaluation came to. Figures that are not finite, such as the loss of a model that an attacker has blown up, are
/// a failed evaluation: the coordinator takes them for a breach of the protocol.
#[must_use]
pub fn judged(version: ModelVersion, metrics: Metrics) -> Event {
    let Metrics { accuracy, loss, num_examples } = metrics;
    if accuracy.is_finite() && loss.is_finite() {
        return Event::Evaluated { version, accuracy, loss, num_examples };
    }
    Event::EvaluationFailed { version, problem: format!("{NOT_FINITE}: accuracy {accuracy}, loss {loss}") }
}

/// Version 0 of a run, in every form in which it is needed; answered by `InitialMade`.
#[must_use]
pub fn initial_model(manifest: &ModelManifest, content: Arc<[f32]>) -> Event {
    match Planes32.encode(manifest, &content) {
        Ok(encoded) => {
            let transfer = TransferManifest::of(&encoded);
            let digest = Digest::of_f32(&content);
            Event::InitialMade(InitialModel { content, digest, encoded: encoded.into(), transfer })
        }
        Err(error) => Event::Failed(Ending::Trainer(format!("the initial model cannot be used: {error}"))),
    }
}

/// A downloaded model that is to be decoded.
#[derive(Debug)]
pub struct Unpack {
    pub(super) manifest: Arc<ModelManifest>,
    pub(super) version: ModelVersion,
    pub(super) digest: Digest,
    pub(super) onto: Onto,
    pub(super) encoded: Vec<u8>,
}

impl Unpack {
    /// Returns the version of the model.
    #[must_use]
    pub fn version(&self) -> ModelVersion {
        self.version
    }

    /// Returns the digest that the model must have.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Decodes the model and checks that it is the one that was announced. Returns `Unpacked` or `UnpackFailed`.
    #[must_use]
    pub fn run(self) -> Event {
        let Self { version, digest, .. } = self;
        match self.content() {
            Ok(content) => {
                let found = Digest::of_f32(&content);
                if found == digest {
                    Event::Unpacked { version, digest, content: content.into() }
                } else {
                    let problem = format!("its digest is {}, not {}", found.short(), digest.short());
                    Event::UnpackFailed { version, digest, problem }
                }
            }
            Err(problem) => Event::UnpackFailed { version, digest, problem },
        }
    }

    fn content(self) -> Result<Vec<f32>, String> {
        let Self { manifest, onto, encoded, .. } = self;
        let made = match onto {
            Some((ModelForm::Track { .. }, base)) => track::replay(&manifest, &base, &encoded),
            Some((ModelForm::Chain { .. }, base)) => chain::replay(&manifest, &base, &encoded),
            Some((ModelForm::Xor { .. }, base)) => xor::apply(&manifest, &base, &encoded),
            Some((ModelForm::Snapshot, _)) | None => {
                codec::decode(Planes32::ID, &manifest, &encoded).map(Delta::into_dense).map_err(FormError::from)
            }
        };
        made.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::downlink::chain::{ChainRule, ChainStep, ChainUpdate};
    use anabranch_common::downlink::track::Track;
    use anabranch_common::manifest::TensorSpec;

    use super::*;

    /// A form, and its content.
    type Packed = (ModelForm, Vec<u8>);

    /// A version, and every form that leads to it from the one before.
    fn forms() -> (Arc<ModelManifest>, [Vec<f32>; 2], Vec<Packed>) {
        let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![4] }]).expect("valid");
        let (base, step) = (vec![0.5, -0.0, 2.0, 8.0], [0.25, 0.0, -2.0, 0.125]);
        let model: Vec<f32> = base.iter().zip(step).map(|(base, step)| base + step).collect();
        let (from, version) = (ModelVersion(3), ModelVersion(4));
        let mut y = Track::new(codec::CodecSpec::F32, base.clone(), from);
        let record = y.advance(&manifest, &model, version).expect("a finite step");
        let payload = Planes32.encode(&manifest, &step).expect("finite").into();
        let updates = vec![ChainUpdate { codec: Planes32::ID, weight: 1.0, payload }];
        let forms = vec![
            (ModelForm::Snapshot, Planes32.encode(&manifest, &model).expect("finite")),
            (ModelForm::Track { from }, track::pack([&record])),
            (ModelForm::Xor { from }, xor::pack(&base, &model)),
            (ModelForm::Chain { from }, chain::pack(ChainRule::FedAsync, [&ChainStep { from, version, updates }])),
        ];
        (Arc::new(manifest), [base, model], forms)
    }

    fn unpack(manifest: &Arc<ModelManifest>, model: &[f32], onto: Onto, encoded: &[u8]) -> Event {
        let (manifest, version, digest) = (Arc::clone(manifest), ModelVersion(4), Digest::of_f32(model));
        Unpack { manifest, version, digest, onto, encoded: encoded.to_vec() }.run()
    }

    #[test]
    fn every_form_leads_to_the_same_model_and_to_no_other() {
        let (manifest, [base, model], forms) = forms();
        for (form, encoded) in forms {
            let onto = |base: &[f32]| form.from().map(|_| (form, Arc::from(base)));
            let Event::Unpacked { version: ModelVersion(4), content, .. } =
                unpack(&manifest, &model, onto(&base), &encoded)
            else {
                panic!("{form:?} does not lead to the model")
            };
            assert!(content.iter().zip(&model).all(|(found, model)| found.to_bits() == model.to_bits()), "{form:?}");
            let other = unpack(&manifest, &[9.0; 4], onto(&base), &encoded);
            let Event::UnpackFailed { problem, .. } = other else { panic!("{form:?} leads elsewhere") };
            assert!(problem.starts_with("its digest is "), "{problem}");
            if form.from().is_some() {
                let elsewhere = unpack(&manifest, &model, onto(&[1.0; 4]), &encoded);
                assert!(matches!(elsewhere, Event::UnpackFailed { .. }), "{form:?} does without its base");
            }
            let cut = unpack(&manifest, &model, onto(&base), &encoded[..encoded.len() - 1]);
            assert!(matches!(cut, Event::UnpackFailed { .. }), "{form:?} is taken in part");
        }
    }
}
