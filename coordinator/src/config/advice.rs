//! What `config check` says about settings that are valid and known to work badly together.

use anabranch_common::codec::CodecSpec;
use anabranch_common::downlink::chain::ChainRule;
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::merge::{MergeSpec, recall};
use anabranch_common::spec::{OptimizerSpec, RunSpec};

/// Returns one sentence or two for each combination that is known to be bad: the keys, and why (docs/merging.md).
#[must_use]
pub fn advice(spec: &RunSpec) -> Vec<&'static str> {
    let recalls = matches!(spec.merge, MergeSpec::Recall { .. });
    let bounded = spec.admit.max_norm_ratio > 0.0 || spec.admit.clip_norm_ratio > 0.0;
    let (fraction, sparse) = match spec.upload.codec {
        CodecSpec::TopK { fraction, .. } => (fraction, true),
        _ => (1.0, false),
    };
    let steady = match spec.merge.unaveraged() {
        MergeSpec::FedAsync { staleness, .. } => *staleness == Staleness::Constant,
        _ => false,
    };
    let long = match (&spec.merge, &spec.train.optimizer) {
        (MergeSpec::Recall { step, .. }, OptimizerSpec::AdamW { .. }) => *step > 2.0 * recall::USUAL_STEP_ADAMW,
        _ => false,
    };
    let known = [
        (
            !recalls && spec.admit.rare_norm_ratio > 0.0,
            "admit.rare_norm_ratio has no effect: only merge.strategy = \"recall\" knows how often an agent reports",
        ),
        (
            recalls && bounded && spec.admit.rare_norm_ratio == 0.0,
            "merge.strategy = \"recall\" with admit.max_norm_ratio or admit.clip_norm_ratio, but without \
             admit.rare_norm_ratio: agents that alone hold a class send long updates, which are refused or scaled down, \
             and the class is forgotten; set rare_norm_ratio = 10",
        ),
        (
            steady,
            "merge.strategy = \"fedasync\" without merge.staleness: on lines with a long round trip updates are stale, \
             and the model oscillates; set staleness = { fn = \"polynomial\", a = 0.5 }",
        ),
        (
            recalls && sparse && fraction < 0.05,
            "merge.strategy = \"recall\" with upload.codec.fraction below 0.05: what slow agents alone know is learned \
             less well; fewer bits cost less than fewer entries (bits = 4)",
        ),
        (
            spec.downlink.share_updates && (spec.downlink.track.is_some() || ChainRule::of(&spec.merge).is_none()),
            "downlink.share_updates has no effect: agents replay updates only with merge.strategy = \"fedasync\" or \
             \"fedbuff\", and without downlink.track",
        ),
        (
            long,
            "merge.step is more than twice what suits train.optimizer.kind = \"adamw\": AdamW's updates are of full \
             length, and a fleet that steps many of them at a time overshoots; leave merge.step out",
        ),
        (
            sparse && spec.upload.feedback_decay == 0.0 && !spec.merge.keeps_memories(),
            "upload.feedback_decay = 0 with a top-k codec: what an update leaves out is lost; set feedback_decay = 1",
        ),
    ];
    known.into_iter().filter(|(bad, _)| *bad).map(|(_, why)| why).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{parse, template};

    fn of(changes: &[(&str, &str)]) -> Vec<&'static str> {
        let mut text = template();
        for (from, to) in changes {
            assert!(text.contains(from), "the template has no {from}");
            text = text.replacen(from, to, 1);
        }
        advice(&parse(&text).expect("valid").spec)
    }

    #[test]
    fn what_init_writes_is_fine_and_each_bad_combination_is_named_once() {
        assert_eq!(of(&[]), [] as [&str; 0]);
        let recall = "strategy = \"recall\"";
        let unfit = of(&[(recall, "strategy = \"fedasync\"\nalpha = 0.6")]);
        assert!(unfit.len() == 2 && unfit[0].contains("no effect") && unfit[1].contains("oscillates"), "{unfit:?}");
        for (from, to, expected) in [
            ("rare_norm_ratio = 10.0", "rare_norm_ratio = 0.0", "the class is forgotten"),
            ("fraction = 0.075", "fraction = 0.01", "upload.codec.fraction below 0.05"),
            ("feedback_decay = 1.0", "feedback_decay = 0.0", "is lost"),
            ("#share_updates = false", "share_updates = true", "downlink.share_updates has no effect"),
        ] {
            let found = of(&[(from, to)]);
            assert!(found.len() == 1 && found[0].contains(expected), "{from}: {found:?}");
        }
        let adamw = ("optimizer = { kind = \"sgd\", lr = 0.05 }", "optimizer = { kind = \"adamw\", lr = 0.001 }");
        assert_eq!(of(&[adamw]), [] as [&str; 0], "the step follows the optimizer");
        let found = of(&[adamw, (recall, "strategy = \"recall\"\nstep = 23.0")]);
        assert!(found.len() == 1 && found[0].contains("overshoots"), "{found:?}");
    }
}
