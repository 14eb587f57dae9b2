//! The lines of `docs/trainer-protocol.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anabranch_common::manifest::TensorSpec;
use anabranch_common::spec::TrainSpec;
use serde::{Deserialize, Serialize};

use crate::session::event::FeedbackState;
use crate::train::{Metrics, RoundContext, RoundFile, RunPart};

/// The version of the protocol that is spoken here.
pub const PROTOCOL: u32 = 1;

/// From the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Ask {
    /// The first line.
    Hello(HelloAsk),
    /// Build the trainer.
    Prepare {
        /// Number of the request.
        id: u64,
        /// What is trained.
        run: RunPart,
    },
    /// Make version 0.
    Initial {
        /// Number of the request.
        id: u64,
        /// The run's seed.
        seed: u64,
        /// Where to write it.
        out: String,
    },
    /// Run a local round.
    Train {
        /// Number of the request.
        id: u64,
        /// The model to start from.
        base: String,
        /// Where to write what was reached.
        out: String,
        /// Decides which examples are drawn.
        seed: u64,
        /// Where in the run the round is.
        #[serde(flatten)]
        context: RoundContext,
        /// Steps, batch, optimizer; the learning rate is that of this round.
        plan: Box<TrainSpec>,
        /// Never compute more examples at once than this, since that ran out of memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_micro_batch: Option<u32>,
        /// Where the native trainer keeps a long round, and takes it up; other trainers may ignore it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep: Option<RoundFile>,
        /// How to encode what was learned, for a trainer that said `encodes`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encode: Option<EncodeAsk>,
    },
    /// Measure a model.
    Evaluate {
        /// Number of the request.
        id: u64,
        /// The model.
        model: String,
    },
    /// Begin a round of which parts of the model are computed here, pass by pass.
    Stages {
        /// Number of the request.
        id: u64,
        /// A number of the round's own, from which what is drawn in a pass follows.
        round: u64,
        /// The parts.
        parts: Vec<PartAsk>,
        /// Which examples to draw, where the first part is among them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        draw: Option<DrawAsk>,
    },
    /// Load the weights of a part.
    Weights {
        /// Number of the request.
        id: u64,
        /// The part.
        part: usize,
        /// Its tensors.
        weights: String,
    },
    /// Compute the output of a micro-batch.
    Forward {
        /// Number of the request.
        id: u64,
        /// The part.
        part: usize,
        /// Number of the micro-batch in the round.
        micro_batch: u64,
        /// Its examples.
        examples: usize,
        /// The output of the part before; none for the first part, which draws the examples.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input: Option<String>,
        /// Where to write the output; none for the last part, which computes the loss.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        out: Option<String>,
    },
    /// Compute the gradients of a micro-batch that was forwarded.
    Backward {
        /// Number of the request.
        id: u64,
        /// The part.
        part: usize,
        /// Number of the micro-batch in the round.
        micro_batch: u64,
        /// The gradient of the output; none for the last part.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slope: Option<String>,
        /// Where to write the gradient of the part's tensors.
        out: String,
        /// Where to write the gradient of the input; none for the first part.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of_input: Option<String>,
    },
    /// End the round before its last step.
    Stop {
        /// Number of the round's request.
        id: u64,
    },
    /// The agent leaves.
    Exit,
}

/// Consecutive modules of a model that is computed in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartAsk {
    /// Which part of the model, from 0.
    pub part: usize,
    /// Its first module, from 0.
    pub first: usize,
    /// The module before which it ends.
    pub end: usize,
}

/// Which examples the first part draws.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawAsk {
    /// Decides which.
    pub seed: u64,
    /// Steps of the round.
    pub local_steps: u32,
    /// Examples of a step.
    pub batch_size: u32,
    /// Examples of a micro-batch; the last one of a step may have fewer.
    pub micro_batch: u32,
}

/// How to encode a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncodeAsk {
    /// Share of the entries that is sent, in (0, 1].
    pub fraction: f32,
    /// EF14's beta.
    pub feedback_decay: f32,
    /// Which feedback state to go on from.
    pub from: FeedbackState,
    /// Where that state is.
    pub state: StateAt,
    /// What the state that it leaves will be called.
    pub made: FeedbackState,
    /// Where to write the payload.
    pub out: String,
}

/// Where a feedback state is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateAt {
    /// The encoder has it: it made it, or went on from it the last time.
    Kept,
    /// Nothing is left out.
    Empty,
    /// In this file.
    File(String),
}

/// What a trainer is told first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAsk {
    /// Oldest version of the protocol that the agent speaks.
    pub min_protocol: u32,
    /// Newest version of the protocol that the agent speaks.
    pub max_protocol: u32,
    /// Where tensor files lie.
    pub dir: PathBuf,
    /// The agent's name.
    pub agent: String,
    /// What to train on.
    pub shard: Option<PathBuf>,
    /// What to evaluate on.
    pub eval_shard: Option<PathBuf>,
    /// Threads for the maths; none: as many as the process may use.
    pub threads: Option<usize>,
    /// The most that the trainer's process may have in memory, in bytes; none: what is free.
    #[serde(default)]
    pub max_memory: Option<u64>,
}

/// From the trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Answer {
    /// To `hello`.
    Hello(HelloAnswer),
    /// To `prepare`.
    Prepared {
        /// Number of the request.
        id: u64,
        /// The model's tensors, in the order of the flat vector.
        tensors: Vec<TensorSpec>,
        /// Whether it adds the proximal term of a plan with `proximal_mu`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        proximal: bool,
        /// How many of the tensors belong to each module, for a trainer that computes its model in parts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        modules: Vec<usize>,
    },
    /// To `initial`.
    Initial {
        /// Number of the request.
        id: u64,
    },
    /// A round has come this far.
    Step {
        /// Number of the request.
        id: u64,
        /// Steps done.
        step: u32,
        /// Examples seen.
        examples: u64,
        /// The latest loss.
        #[serde(with = "number")]
        loss: f64,
        /// How many examples it computes at once, where it cuts batches.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        micro_batch: Option<u32>,
    },
    /// To `train`.
    Trained {
        /// Number of the request.
        id: u64,
        /// Steps done.
        steps: u32,
        /// Examples seen, repetitions counted.
        num_examples: u64,
        /// Mean of the steps' losses.
        #[serde(with = "number")]
        mean_loss: f64,
        /// Whether it ended before its last step, as asked.
        stopped: bool,
        /// Whether the payload that `encode` asked for was written.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        encoded: bool,
    },
    /// To `evaluate`.
    Evaluated {
        /// Number of the request.
        id: u64,
        /// What was measured.
        #[serde(flatten)]
        measured: Measured,
    },
    /// To `stages`.
    Stages {
        /// Number of the request.
        id: u64,
    },
    /// To `weights`.
    Weights {
        /// Number of the request.
        id: u64,
    },
    /// To `forward`.
    Forward {
        /// Number of the request.
        id: u64,
        /// Mean loss of the micro-batch, of the last part.
        #[serde(default, with = "optional_number", skip_serializing_if = "Option::is_none")]
        loss: Option<f64>,
    },
    /// To `backward`.
    Backward {
        /// Number of the request.
        id: u64,
    },
    /// To any request: it cannot be done.
    Failed {
        /// Number of the request.
        id: u64,
        /// What kind of failure.
        kind: FailureKind,
        /// Why, for people.
        message: String,
    },
    /// The process lives.
    Heartbeat,
}

impl Answer {
    /// The request that it belongs to.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        match self {
            Self::Hello(_) | Self::Heartbeat => None,
            Self::Prepared { id, .. }
            | Self::Initial { id }
            | Self::Step { id, .. }
            | Self::Trained { id, .. }
            | Self::Evaluated { id, .. }
            | Self::Stages { id }
            | Self::Weights { id }
            | Self::Forward { id, .. }
            | Self::Backward { id }
            | Self::Failed { id, .. } => Some(*id),
        }
    }
}

/// The figures of an evaluation, as a trainer writes them. Keys that are missing and keys that are not known are kept, so
/// that the evaluation fails and names them, and the process lives on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Share of examples classified correctly.
    #[serde(default, with = "optional_number", skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean loss in nats.
    #[serde(default, with = "optional_number", skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Examples it was measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_examples: Option<u64>,
    /// Keys that the protocol does not have.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl From<Metrics> for Measured {
    fn from(Metrics { accuracy, loss, num_examples }: Metrics) -> Self {
        let unknown = BTreeMap::new();
        Self { accuracy: Some(accuracy), loss: Some(loss), num_examples: Some(num_examples), unknown }
    }
}

impl Measured {
    /// The figures.
    ///
    /// # Errors
    /// A key is missing or not known; the text names every one.
    pub fn metrics(&self) -> Result<Metrics, String> {
        let Self { accuracy, loss, num_examples, unknown } = self;
        let unknown: Vec<String> = unknown.keys().map(|key| format!("unknown `{key}`")).collect();
        let missing = [
            (accuracy.is_none(), "no `accuracy` (0 where accuracy has no meaning)"),
            (loss.is_none(), "no `loss`"),
            (num_examples.is_none(), "no `num_examples`"),
        ];
        let missing = missing.iter().filter(|(missing, _)| *missing).map(|(_, what)| (*what).to_owned());
        match (accuracy, loss, num_examples) {
            (Some(accuracy), Some(loss), Some(num_examples)) if unknown.is_empty() => {
                Ok(Metrics { accuracy: *accuracy, loss: *loss, num_examples: *num_examples })
            }
            _ => Err(format!(
                "its `evaluated` has {}",
                unknown.into_iter().chain(missing).collect::<Vec<_>>().join(", ")
            )),
        }
    }
}

/// What a trainer says of itself first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAnswer {
    /// The version of the protocol that it speaks.
    pub protocol: u32,
    /// Its name, for people.
    pub name: String,
    /// Examples it trains on; 0: it does not train.
    pub train_examples: u64,
    /// Examples it evaluates on; 0: it does not evaluate.
    pub eval_examples: u64,
    /// Whether it has an encoder of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encodes: bool,
    /// Whether it computes its model in parts: then it is of use without examples too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stages: bool,
}

/// Why a request cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// The loss or the model is no longer finite.
    Diverged,
    /// It takes more memory than there is: with smaller micro-batches it may succeed.
    Memory,
    /// Anything else.
    Error,
}

/// A number that need not be finite: JSON has no such numbers, so they are written as strings.
mod number {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(f64),
        Word(String),
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        match *value {
            value if value.is_finite() => to.serialize_f64(value),
            value if value.is_nan() => to.serialize_str("NaN"),
            value if value > 0.0 => to.serialize_str("Infinity"),
            _ => to.serialize_str("-Infinity"),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        match Written::deserialize(from)? {
            Written::Number(value) => Ok(value),
            Written::Word(word) => match word.as_str() {
                "NaN" => Ok(f64::NAN),
                "Infinity" => Ok(f64::INFINITY),
                "-Infinity" => Ok(f64::NEG_INFINITY),
                other => Err(serde::de::Error::custom(format!("{other:?} is not a number"))),
            },
        }
    }
}

/// The same where the key may be absent.
mod optional_number {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Written(#[serde(with = "super::number")] f64);

    pub(super) fn serialize<S: Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::number::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Written::deserialize(from).map(|Written(value)| Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of the document, as it prints them.
    #[test]
    fn the_documents_lines_are_what_is_read_and_written() {
        let text = r#"{"type":"step","id":3,"step":20,"examples":640,"loss":0.93}"#;
        let step = Answer::Step { id: 3, step: 20, examples: 640, loss: 0.93, micro_batch: None };
        assert_eq!(serde_json::from_str::<Answer>(text).expect("a step"), step);
        assert_eq!(serde_json::to_string(&step).expect("a line"), text);
        let text = r#"{"type":"hello","protocol":1,"name":"train.py","train_examples":1437,"eval_examples":0}"#;
        let hello = HelloAnswer {
            protocol: 1,
            name: "train.py".into(),
            train_examples: 1437,
            eval_examples: 0,
            encodes: false,
            stages: false,
        };
        assert_eq!(serde_json::from_str::<Answer>(text).expect("a hello"), Answer::Hello(hello));
        assert_eq!(serde_json::from_str::<Answer>(r#"{"type":"heartbeat","x":1}"#).expect("alive"), Answer::Heartbeat);
        assert_eq!(serde_json::to_string(&Ask::Stop { id: 3 }).expect("a line"), r#"{"type":"stop","id":3}"#);
        assert_eq!(serde_json::to_string(&Ask::Exit).expect("a line"), r#"{"type":"exit"}"#);
        assert!(serde_json::from_str::<Answer>(r#"{"type":"well"}"#).is_err());
    }

    /// `acc` used to be ignored where `accuracy` was there too.
    #[test]
    fn keys_of_an_evaluation_that_are_missing_or_unknown_are_named() {
        let read = |keys: &str| {
            let line = format!(r#"{{"type":"evaluated","id":4,{keys}}}"#);
            match serde_json::from_str(&line) {
                Ok(Answer::Evaluated { id: 4, measured }) => measured.metrics(),
                other => panic!("{other:?}"),
            }
        };
        let sound = r#""accuracy":0.97,"loss":0.11,"num_examples":360"#;
        assert_eq!(read(sound), Ok(Metrics { accuracy: 0.97, loss: 0.11, num_examples: 360 }));
        let metrics = Metrics { accuracy: 0.97, loss: 0.11, num_examples: 360 };
        let line = serde_json::to_string(&Answer::Evaluated { id: 4, measured: metrics.into() }).expect("a line");
        assert_eq!(line, format!(r#"{{"type":"evaluated","id":4,{sound}}}"#));
        assert_eq!(
            read(r#""acc":0.97,"loss":0.1,"num_examples":3"#),
            Err("its `evaluated` has unknown `acc`, no `accuracy` (0 where accuracy has no meaning)".into())
        );
        assert_eq!(read(&format!(r#"{sound},"f1":0.5"#)), Err("its `evaluated` has unknown `f1`".into()));
        assert!(read(r#""accuracy":"NaN","loss":0.1,"num_examples":3"#).is_ok_and(|read| read.accuracy.is_nan()));
    }

    #[test]
    fn a_round_is_asked_for_as_the_document_prints_it() {
        let text = r#"{"type":"train","id":3,"base":"base-3.safetensors","out":"end-3.safetensors","seed":7,"version":250,"number":41,"progress":0.25,"lr_factor":0.5,"plan":{"local_steps":20,"batch_size":32,"optimizer":{"kind":"sgd","lr":0.05,"momentum":0.0},"keep_optimizer_state":false}}"#;
        let ask: Ask = serde_json::from_str(text).expect("a round");
        let Ask::Train { context, .. } = &ask else { panic!("{ask:?}") };
        let expected = RoundContext { version: 250, number: 41, progress: Some(0.25), lr_factor: 0.5 };
        assert_eq!(*context, expected);
        assert_eq!(serde_json::to_string(&ask).expect("a line"), text);
        let without = text.replace("0.25", "null");
        assert_eq!(
            serde_json::to_string(&serde_json::from_str::<Ask>(&without).expect("a round")).expect("a line"),
            without
        );
    }

    #[test]
    fn passes_of_parts_are_asked_for_as_the_document_prints_them() {
        for text in [
            r#"{"type":"stages","id":5,"round":81,"parts":[{"part":0,"first":0,"end":2},{"part":2,"first":3,"end":4}],"draw":{"seed":7,"local_steps":20,"batch_size":32,"micro_batch":11}}"#,
            r#"{"type":"stages","id":5,"round":81,"parts":[{"part":1,"first":2,"end":3}]}"#,
            r#"{"type":"weights","id":6,"part":0,"weights":"weights.safetensors"}"#,
            r#"{"type":"forward","id":7,"part":0,"micro_batch":0,"examples":11,"out":"output.safetensors"}"#,
            r#"{"type":"forward","id":8,"part":2,"micro_batch":0,"examples":11,"input":"input.safetensors"}"#,
            r#"{"type":"backward","id":9,"part":2,"micro_batch":0,"out":"gradient.safetensors","of_input":"of-input.safetensors"}"#,
            r#"{"type":"backward","id":12,"part":0,"micro_batch":0,"slope":"slope.safetensors","out":"gradient.safetensors"}"#,
        ] {
            let ask: Ask = serde_json::from_str(text).expect(text);
            assert_eq!(serde_json::to_string(&ask).expect("a line"), text);
        }
        for (text, expected) in [
            (r#"{"type":"stages","id":5}"#, Answer::Stages { id: 5 }),
            (r#"{"type":"weights","id":6}"#, Answer::Weights { id: 6 }),
            (r#"{"type":"forward","id":7}"#, Answer::Forward { id: 7, loss: None }),
            (r#"{"type":"forward","id":8,"loss":0.69}"#, Answer::Forward { id: 8, loss: Some(0.69) }),
            (r#"{"type":"forward","id":8,"loss":"Infinity"}"#, Answer::Forward { id: 8, loss: Some(f64::INFINITY) }),
            (r#"{"type":"backward","id":9}"#, Answer::Backward { id: 9 }),
        ] {
            let answer: Answer = serde_json::from_str(text).expect(text);
            assert_eq!((answer.id(), &answer), (expected.id(), &expected));
            assert_eq!(serde_json::to_string(&answer).expect("a line"), text);
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_words() {
        for (value, word) in [(f64::NAN, "NaN"), (f64::INFINITY, "Infinity"), (f64::NEG_INFINITY, "-Infinity")] {
            let step = Answer::Step { id: 1, step: 1, examples: 1, loss: value, micro_batch: None };
            let line = serde_json::to_string(&step).expect("a line");
            assert!(line.ends_with(&format!(r#""loss":"{word}"}}"#)), "{line}");
            let Ok(Answer::Step { loss, .. }) = serde_json::from_str(&line) else { panic!("{line}") };
            assert!(loss.total_cmp(&value).is_eq());
        }
        assert!(
            serde_json::from_str::<Answer>(r#"{"type":"step","id":1,"step":1,"examples":1,"loss":"low"}"#).is_err()
        );
    }
}
