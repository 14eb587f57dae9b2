//! Journal records. A new kind of record is a variant with the next tag.

use crate::journal::{
    Aggregate, Close, CloseReason, Contribution, CopyMark, Evaluation, FinishReason, Head, ModelsSent, Publication,
    PublicationForm, RecordBody,
};
use crate::merge::ef21::MemoryInputs;
use crate::merge::recall::{RecallInputs, Recalled};

layout! {
    struct Head { position, at_ms, body }

    enum RecordBody {
        0 = Genesis { run, branch, spec, manifest, model, norm },
        1 = ConfigChanged { spec },
        2 = AgentJoined { agent, name },
        3 = AgentRevoked { agent },
        4 = EpochStarted { agent, epoch, incarnation, examples_held, eval_examples },
        5 = LeaseGranted(lease),
        6 = LeaseEnded { lease, why },
        7 = Contribution(contribution),
        8 = Refused { key, payload_digest, lease, reason },
        9 = Evaluated(evaluation),
        10 = Imported { model, version, norm, copied since 7 or None },
        11 = Branched { branch, from, version, norm, examples },
        12 = Paused,
        13 = Resumed,
        14 = Finished { reason, result },
        15 = EvaluationFailed { agent, version, reason },
        16 = Aggregated(aggregate),
        17 = ModelsSent(sent),
        18 = Reopened,
        19 = Closed(close),
        20 = Published(publication),
    }

    struct Contribution { meta, credited_examples, staleness, weight, mean_weight, norm, recall, memory, transfer_ms }
    struct MemoryInputs { active, step, begins, keeps, left }
    struct RecallInputs { active, scale, recalled }
    struct Recalled { agent, factor }
    struct Close { version, contributions, why, is_base }
    struct CopyMark { rung, from, version }
    struct Publication { version, form, digest }
    struct Evaluation { agent, version, accuracy, loss, num_examples }
    struct Aggregate { version, accuracy, loss, evaluators, num_examples, covered_examples, known_examples }
    struct ModelsSent { agent, models, bytes, evaluation_bytes }

    enum CloseReason { 0 = Filled, 1 = Complete, 2 = Deadline }
    enum PublicationForm { 0 = Snapshot, 1 = Track }

    enum FinishReason {
        0 = Accuracy { reached },
        1 = Loss { reached },
        2 = Versions,
        3 = WallTime,
        4 = Stopped,
        5 = NonFinite,
    }
}
