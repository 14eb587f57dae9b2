//! An average of the models, kept beside any rule and served in place of the newest model.
//!
//! ```text
//! close:  x     as the rule moves it
//!         n    += 1
//!         xbar += (Q + 1) / (n + Q + 1) (x - xbar)      xbar is x before the first close
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | | `average` | false | whether there is an average; [recall](super::recall) has its own, by the same formula, and its default is true |
//! | Q | - | 7 | the average looks back over about 1 / (Q + 1) of the closes |
//! | n | - | - | closes since the average began: u64 |
//! | x, xbar | - | - | model, average: f32, and computed in f32 |
//!
//! Polynomial-decay averaging (Shamir and Zhang 2013, "Stochastic Gradient Descent for Non-smooth Optimization:
//! Convergence Results and Optimal Averaging Schemes"), counted in closes. The window is a part of the run and no
//! number of closes, so that it suits runs of ten rounds and of a million updates: after 16 closes the average looks
//! back over 3 of them.
//!
//! The rule moves the model as if nothing were kept: agents train from x, or from the track that follows x. The average
//! begins anew with the rule: with another rule or another size of its buffer, at an import and at a rollback. It
//! begins with the close after `average` was switched on, and until then the model is served.
//!
//! Bad at: runs that end while they still learn fast, whose average is an eighth of the run behind; one more vector in
//! memory, and in each checkpoint.

use std::borrow::Cow;
use std::sync::Arc;

use super::recall::AVERAGE_POWER;
use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule, Served, only_part};
use crate::codec::{Delta, is_finite};
use crate::schema;

layout! {
    struct Counted { closes }
}

/// What is saved beside the vectors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Counted {
    /// n.
    closes: u64,
}

#[derive(Debug, Clone)]
struct Average {
    counted: Counted,
    values: Vec<f32>,
}

impl Average {
    fn new(params: usize) -> Self {
        Self { counted: Counted::default(), values: vec![0.0; params] }
    }

    /// A close is about to move the model.
    fn begin_at(&mut self, model: &[f32]) {
        if self.counted.closes == 0 {
            self.values.copy_from_slice(model);
        }
    }

    /// A close has moved the model.
    #[expect(clippy::cast_possible_truncation, reason = "a part in (0, 1)")]
    fn follow(&mut self, model: &[f32]) {
        self.counted.closes += 1;
        let closes = self.counted.closes as f64;
        let part = ((AVERAGE_POWER + 1.0) / (closes + AVERAGE_POWER + 1.0)) as f32;
        for (average, x) in self.values.iter_mut().zip(model) {
            *average += part * (*x - *average);
        }
    }
}

/// A rule, and the average beside it while there is one. See the [module](self).
#[derive(Debug)]
pub struct Averaged {
    rule: Box<dyn MergeRule>,
    average: Option<Average>,
    params: usize,
}

impl Averaged {
    /// Returns the rule with empty state for a model of `params` parameters, and an average if `spec` has one.
    #[must_use]
    pub fn new(spec: &MergeSpec, params: usize) -> Self {
        let average = spec.is_averaged().then(|| Average::new(params));
        Self { rule: spec.moving_rule(params), average, params }
    }
}

impl MergeRule for Averaged {
    fn contribute(&mut self, model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        self.rule.contribute(model, delta, arrival);
    }

    fn close(&mut self, model: &mut [f32]) {
        let Some(average) = &mut self.average else { return self.rule.close(model) };
        average.begin_at(model);
        self.rule.close(model);
        average.follow(model);
    }

    fn configure(&mut self, spec: &MergeSpec) {
        self.rule.configure(spec.unaveraged());
        if !spec.is_averaged() {
            self.average = None;
        } else if self.average.is_none() {
            self.average = Some(Average::new(self.params));
        }
    }

    fn served<'a>(&'a self, model: &'a [f32]) -> (Served, &'a [f32]) {
        match &self.average {
            Some(average) if average.counted.closes > 0 => (Served::Average, &average.values),
            _ => self.rule.served(model),
        }
    }

    fn is_finite(&self) -> bool {
        self.rule.is_finite() && self.average.as_ref().is_none_or(|average| is_finite(&average.values))
    }

    /// What the rule saves, then xbar; the parts of the rule, then n.
    fn save(&self) -> SavedRule<'_> {
        let mut saved = self.rule.save();
        if let Some(average) = &self.average {
            saved.vectors.push(Cow::Borrowed(&average.values));
            let counted = schema::encode(&average.counted, usize::MAX);
            saved.parts.push(counted.expect("a number has bytes in every version"));
        }
        saved
    }

    fn restore(&mut self, mut saved: SavedRule<'static>) -> Result<(), RestoreError> {
        let Some(average) = &mut self.average else { return self.rule.restore(saved) };
        let missing = || RestoreError::Part("the average of the models is missing".into());
        let values = saved.vectors.pop().ok_or_else(missing)?;
        let counted = only_part(&[saved.parts.pop().ok_or_else(missing)?])?;
        if values.len() != self.params {
            return Err(RestoreError::WrongShape { expected: 1, found: 1, params: values.len() });
        }
        self.rule.restore(saved)?;
        *average = Average { counted, values: values.into_owned() };
        Ok(())
    }

    fn boxed(&self) -> Box<dyn MergeRule> {
        Box::new(Self { rule: self.rule.boxed(), average: self.average.clone(), params: self.params })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::AgentId;
    use crate::merge::fedavg::tests::round;
    use crate::merge::recall::RecallInputs;
    use crate::merge::staleness::Staleness;

    fn fedasync() -> MergeSpec {
        MergeSpec::FedAsync { alpha: 1.0, staleness: Staleness::Constant, participation: false }
    }

    /// Merges an update of this value, and returns what is served.
    fn merge(rule: &mut dyn MergeRule, model: &mut [f32], value: f32) -> (Served, f32) {
        round(rule, model, &[(value, 1.0, 1)]);
        let (served, vector) = rule.served(model);
        (served, vector[0])
    }

    #[test]
    fn the_average_by_hand() {
        let (mut rule, mut model) = (fedasync().averaged().rule(1), [1.0]);
        assert_eq!(rule.served(&model), (Served::Model, &[1.0][..]), "nothing was merged yet");
        assert_eq!(merge(rule.as_mut(), &mut model, 9.0), (Served::Average, 9.0), "1 + 8 / 9 of 9");
        assert_eq!(merge(rule.as_mut(), &mut model, 5.0), (Served::Average, 13.8), "9 + 8 / 10 of 6");
        assert_eq!(model, [15.0], "the model moves as it does without an average");
    }

    #[test]
    fn an_average_begins_when_it_is_switched_on_and_ends_when_it_is_switched_off() {
        let (mut rule, mut model) = (fedasync().rule(1), [0.0]);
        assert_eq!(merge(rule.as_mut(), &mut model, 2.0), (Served::Model, 2.0));
        rule.configure(&fedasync().averaged());
        assert_eq!(rule.served(&model), (Served::Model, &[2.0][..]), "no close since then");
        assert_eq!(merge(rule.as_mut(), &mut model, 9.0), (Served::Average, 10.0));
        let before = rule.save().into_owned();
        rule.configure(&fedasync().averaged());
        assert_eq!(rule.save(), before, "it goes on where it was on");
        rule.configure(&fedasync());
        assert_eq!((rule.served(&model), rule.save()), ((Served::Model, &[11.0][..]), SavedRule::default()));
    }

    #[test]
    fn switching_it_keeps_what_waits() {
        let fedbuff = |size: u32| {
            let (server_lr, staleness, participation) = (1.0, Staleness::Constant, false);
            MergeSpec::FedBuff { buffer_size: size, server_lr, staleness, participation }
        };
        assert!(fedbuff(2).averaged().keeps_waiting(&fedbuff(2)) && fedbuff(2).keeps_waiting(&fedbuff(2).averaged()));
        assert!(!fedbuff(3).averaged().keeps_waiting(&fedbuff(2).averaged()));
        let (mut rule, mut model) = (fedbuff(2).rule(1), [0.0]);
        let arrival = Arrival::of(AgentId([1; 16]), 0.5);
        rule.contribute(&model, &Arc::new(Delta::Dense(vec![2.0])), &arrival);
        rule.configure(&fedbuff(2).averaged());
        assert_eq!(merge(rule.as_mut(), &mut model, 8.0), (Served::Average, 8.0), "8 / 9 of 1 + 8");
        assert_eq!(model, [9.0], "what waited is in it");
    }

    /// Recall has an average of its own. It is the same one.
    #[test]
    fn recall_keeps_the_same_average() {
        let recall = MergeSpec::Recall { step: 4.0, recall: false, average: true };
        assert_eq!(MergeSpec::Recall { step: 4.0, recall: false, average: false }.averaged(), recall);
        let (mut rule, mut model, mut average) = (recall.rule(3), vec![0.5; 3], Average::new(3));
        for value in [1.0, -2.0, 0.25, 3.0] {
            let inputs = RecallInputs { active: 1, scale: 1.0, recalled: vec![] };
            let arrival = Arrival { recall: Some(&inputs), ..Arrival::of(AgentId([1; 16]), 1.0) };
            rule.contribute(&model, &Arc::new(Delta::Dense(vec![value, -value, 0.5])), &arrival);
            average.begin_at(&model);
            rule.close(&mut model);
            average.follow(&model);
            assert_eq!(rule.served(&model), (Served::Average, &average.values[..]));
        }
    }
}
