//! Local optimizers on flat vectors.
//!
//! | kind | step, element by element |
//! |---|---|
//! | SGD, heavy ball (Polyak 1964, in PyTorch's form) | v = momentum * v + g; x -= lr * v |
//! | AdamW (Loshchilov and Hutter 2019, algorithm 2, eta = 1) | x -= lr * weight_decay * x; m, s as in Adam; x -= lr * m^ / (sqrt(s^) + 1e-8) |

use anabranch_common::spec::OptimizerSpec;

use super::TrainError;
use super::vector::vectorized;

/// Keeps the division in AdamW finite (the paper's epsilon).
const EPSILON: f32 = 1e-8;

/// An optimizer with its state.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Optimizer {
    Sgd { lr: f32, momentum: f32, velocity: Vec<f32> },
    AdamW { lr: f32, weight_decay: f32, beta_1: f32, beta_2: f32, moments: Moments },
}

/// AdamW's moments, and the powers of the betas that correct their bias.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
    beta_1_power: f64,
    beta_2_power: f64,
}

impl Optimizer {
    /// A fresh optimizer for `params` parameters.
    pub(super) fn new(spec: &OptimizerSpec, params: usize) -> Result<Self, TrainError> {
        validate(spec)?;
        Ok(match *spec {
            OptimizerSpec::Sgd { lr, momentum } => {
                // Without momentum there is no state to keep.
                let velocity = if momentum > 0.0 { vec![0.0; params] } else { Vec::new() };
                Self::Sgd { lr, momentum, velocity }
            }
            OptimizerSpec::AdamW { lr, weight_decay, beta_1, beta_2 } => {
                let moments = Moments {
                    first: vec![0.0; params],
                    second: vec![0.0; params],
                    beta_1_power: 1.0,
                    beta_2_power: 1.0,
                };
                Self::AdamW { lr, weight_decay, beta_1, beta_2, moments }
            }
        })
    }

    /// Whether this is what `spec` makes, state and learning rate aside: a schedule changes the
    /// rate and keeps the state.
    pub(super) fn is(&self, spec: &OptimizerSpec) -> bool {
        match (self, spec) {
            (Self::Sgd { momentum, .. }, OptimizerSpec::Sgd { momentum: spec_momentum, .. }) => {
                momentum == spec_momentum
            }
            (
                Self::AdamW { weight_decay, beta_1, beta_2, .. },
                OptimizerSpec::AdamW { weight_decay: spec_decay, beta_1: spec_1, beta_2: spec_2, .. },
            ) => weight_decay == spec_decay && beta_1 == spec_1 && beta_2 == spec_2,
            _ => false,
        }
    }

    /// Drops its state, when no more steps are taken.
    pub(super) fn forget(&mut self) {
        match self {
            Self::Sgd { velocity, .. } => *velocity = Vec::new(),
            Self::AdamW { moments, .. } => (moments.first, moments.second) = (Vec::new(), Vec::new()),
        }
    }

    /// Goes on with the learning rate of `spec`.
    ///
    /// # Errors
    /// The rate is not usable.
    pub(super) fn set_lr(&mut self, spec: &OptimizerSpec) -> Result<(), TrainError> {
        validate(spec)?;
        match self {
            Self::Sgd { lr, .. } | Self::AdamW { lr, .. } => *lr = spec.lr(),
        }
        Ok(())
    }

    /// Its state: vectors as long as the model (none where there is none to keep), and two numbers.
    pub(super) fn state(&self) -> (Vec<&[f32]>, [f64; 2]) {
        match self {
            Self::Sgd { velocity, .. } if velocity.is_empty() => (Vec::new(), [1.0; 2]),
            Self::Sgd { velocity, .. } => (vec![velocity], [1.0; 2]),
            Self::AdamW { moments, .. } => {
                (vec![&moments.first, &moments.second], [moments.beta_1_power, moments.beta_2_power])
            }
        }
    }

    /// Takes over what [`state`](Self::state) gave of an optimizer of the same kind. False: it is of another one.
    pub(super) fn restore(&mut self, vectors: &mut Vec<Vec<f32>>, powers: [f64; 2]) -> bool {
        let own = self.state().0;
        let fits = own.len() == vectors.len() && own.iter().zip(vectors.iter()).all(|(a, b)| a.len() == b.len());
        if !fits {
            return false;
        }
        let mut vectors = vectors.drain(..);
        match self {
            Self::Sgd { velocity, .. } => *velocity = vectors.next().unwrap_or_default(),
            Self::AdamW { moments, .. } => {
                moments.first = vectors.next().unwrap_or_default();
                moments.second = vectors.next().unwrap_or_default();
                [moments.beta_1_power, moments.beta_2_power] = powers;
            }
        }
        true
    }

    /// One step along `gradient`, which is as long as `model`.
    pub(super) fn step(&mut self, model: &mut [f32], gradient: &[f32]) {
        match self {
            Self::Sgd { lr, momentum, velocity } if velocity.is_empty() => {
                debug_assert!(*momentum <= 0.0, "momentum has a velocity");
                for (x, g) in model.iter_mut().zip(gradient) {
                    *x -= *lr * g;
                }
            }
            Self::Sgd { lr, momentum, velocity } => {
                vectorized!(heavy_ball(model, gradient, velocity, *lr, *momentum));
            }
            Self::AdamW { lr, weight_decay, beta_1, beta_2, moments } => {
                moments.step(model, gradient, *lr, *weight_decay, [*beta_1, *beta_2]);
            }
        }
    }

    /// Turns `gradient` into the weights that [`step`](Self::step) along it would make of `model`. The state stays as it is.
    pub(super) fn foresee(&self, model: &[f32], gradient: &mut [f32]) {
        match self {
            Self::Sgd { lr, velocity, .. } if velocity.is_empty() => {
                model.iter().zip(gradient).for_each(|(x, g)| *g = x - *lr * *g);
            }
            Self::Sgd { lr, momentum, velocity } => {
                vectorized!(foresee_heavy_ball(model, gradient, velocity, *lr, *momentum));
            }
            Self::AdamW { lr, weight_decay, beta_1, beta_2, moments } => {
                let (_, step) = moments.stepping(*lr, *weight_decay, [*beta_1, *beta_2]);
                vectorized!(foresee_each(model, gradient, &moments.first, &moments.second, step));
            }
        }
    }
}

impl Moments {
    fn step(&mut self, model: &mut [f32], gradient: &[f32], lr: f32, weight_decay: f32, betas: [f32; 2]) {
        let (powers, step) = self.stepping(lr, weight_decay, betas);
        [self.beta_1_power, self.beta_2_power] = powers;
        vectorized!(each(model, gradient, &mut self.first, &mut self.second, step));
    }

    /// Returns the powers of the betas after the next step, and what that step does to a weight, given its gradient and moments.
    #[expect(clippy::cast_possible_truncation, reason = "the corrections are applied to f32 vectors")]
    fn stepping(
        &self,
        lr: f32,
        weight_decay: f32,
        [beta_1, beta_2]: [f32; 2],
    ) -> ([f64; 2], impl Fn([f32; 4]) -> [f32; 3] + Copy + use<>) {
        let powers = [self.beta_1_power * f64::from(beta_1), self.beta_2_power * f64::from(beta_2)];
        let [correct_1, correct_2] = powers.map(|power| (1.0 / (1.0 - power)) as f32);
        let keep = 1.0 - lr * weight_decay;
        let step = move |[x, g, m, s]: [f32; 4]| {
            let m = beta_1 * m + (1.0 - beta_1) * g;
            let s = beta_2 * s + (1.0 - beta_2) * g * g;
            [x * keep - lr * (m * correct_1) / ((s * correct_2).sqrt() + EPSILON), m, s]
        };
        (powers, step)
    }
}

/// Steps every value of the model with its moments.
#[inline(always)]
fn each(
    model: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: impl Fn([f32; 4]) -> [f32; 3],
) {
    for (((x, g), m), s) in model.iter_mut().zip(gradient).zip(first).zip(second) {
        [*x, *m, *s] = step([*x, *g, *m, *s]);
    }
}

/// Turns every value of `gradient` into the weight that a step along it gives.
#[inline(always)]
fn foresee_each(
    model: &[f32],
    gradient: &mut [f32],
    first: &[f32],
    second: &[f32],
    step: impl Fn([f32; 4]) -> [f32; 3],
) {
    for (((x, g), m), s) in model.iter().zip(gradient).zip(first).zip(second) {
        [*g, ..] = step([*x, *g, *m, *s]);
    }
}

#[inline(always)]
fn foresee_heavy_ball(model: &[f32], gradient: &mut [f32], velocity: &[f32], lr: f32, momentum: f32) {
    for ((x, g), v) in model.iter().zip(gradient).zip(velocity) {
        *g = x - lr * (momentum * v + *g);
    }
}

#[inline(always)]
fn heavy_ball(model: &mut [f32], gradient: &[f32], velocity: &mut [f32], lr: f32, momentum: f32) {
    for ((x, g), v) in model.iter_mut().zip(gradient).zip(velocity) {
        *v = momentum * *v + g;
        *x -= lr * *v;
    }
}

fn validate(spec: &OptimizerSpec) -> Result<(), TrainError> {
    let check = |key: &'static str, value: f32, good: bool, expected: &str| {
        if good {
            return Ok(());
        }
        Err(TrainError::Spec { key, found: value.to_string(), expected: expected.to_owned() })
    };
    let share = |value: f32| (0.0..1.0).contains(&value);
    match *spec {
        OptimizerSpec::Sgd { lr, momentum } => {
            check("train.optimizer.lr", lr, lr.is_finite() && lr >= 0.0, "expected 0 or a number above it")?;
            check("train.optimizer.momentum", momentum, share(momentum), "expected at least 0 and below 1")
        }
        OptimizerSpec::AdamW { lr, weight_decay, beta_1, beta_2 } => {
            check("train.optimizer.lr", lr, lr.is_finite() && lr >= 0.0, "expected 0 or a number above it")?;
            let decays = weight_decay.is_finite() && weight_decay >= 0.0 && lr * weight_decay < 1.0;
            check("train.optimizer.weight_decay", weight_decay, decays, "expected at least 0 and below 1 / lr")?;
            check("train.optimizer.beta_1", beta_1, share(beta_1), "expected at least 0 and below 1")?;
            check("train.optimizer.beta_2", beta_2, share(beta_2), "expected at least 0 and below 1")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f32, expected: f64) {
        assert!((f64::from(found) - expected).abs() < 1e-6, "{found} is not {expected}");
    }

    #[test]
    fn heavy_ball_takes_the_steps_computed_by_hand() {
        let spec = OptimizerSpec::Sgd { lr: 0.1, momentum: 0.9 };
        let mut optimizer = Optimizer::new(&spec, 1).expect("valid");
        let mut x = [1.0f32];
        optimizer.step(&mut x, &[2.0]); // v = 2, x = 1 - 0.2
        close(x[0], 0.8);
        optimizer.step(&mut x, &[1.0]); // v = 0.9 * 2 + 1 = 2.8, x = 0.8 - 0.28
        close(x[0], 0.52);
        optimizer.step(&mut x, &[-1.0]); // v = 0.9 * 2.8 - 1 = 1.52, x = 0.52 - 0.152
        close(x[0], 0.368);
    }

    #[test]
    fn adamw_takes_the_steps_computed_by_hand() {
        let spec = OptimizerSpec::AdamW { lr: 0.1, weight_decay: 0.5, beta_1: 0.9, beta_2: 0.99 };
        let mut optimizer = Optimizer::new(&spec, 1).expect("valid");
        let mut x = [1.0f32];
        // Step 1: decay to 0.95; m^ = g = 2, s^ = g^2 = 4, so the step is lr * 2 / 2 = 0.1.
        optimizer.step(&mut x, &[2.0]);
        close(x[0], 0.85);
        // Step 2, g = 1: m = 0.9*0.2 + 0.1 = 0.28, m^ = 0.28/0.19; s = 0.99*0.04 + 0.01 = 0.0496, s^ = 0.0496/0.0199.
        optimizer.step(&mut x, &[1.0]);
        close(x[0], 0.85 * 0.95 - 0.1 * (0.28 / 0.19) / (0.0496f64 / 0.0199).sqrt());
    }

    #[test]
    fn what_is_foreseen_is_what_the_step_gives() {
        let adamw = OptimizerSpec::AdamW { lr: 0.1, weight_decay: 0.5, beta_1: 0.9, beta_2: 0.99 };
        let sgd = |momentum| OptimizerSpec::Sgd { lr: 0.1, momentum };
        for spec in [sgd(0.0), sgd(0.9), adamw] {
            let mut optimizer = Optimizer::new(&spec, 2).expect("valid");
            let mut x = [1.0f32, -2.0];
            for gradient in [[2.0f32, 0.1], [-1.0, 0.3], [0.5, 0.0]] {
                let (before, mut foreseen) = (optimizer.clone(), gradient);
                optimizer.foresee(&x, &mut foreseen);
                assert_eq!(optimizer, before, "the state is as it was");
                optimizer.step(&mut x, &gradient);
                assert_eq!(foreseen, x, "{spec:?}");
            }
        }
    }

    /// A schedule that changes the rate between two rounds leaves momentum as it was.
    #[test]
    fn another_learning_rate_keeps_the_state() {
        let spec = OptimizerSpec::Sgd { lr: 0.1, momentum: 0.9 };
        let mut optimizer = Optimizer::new(&spec, 1).expect("valid");
        let mut x = [1.0f32];
        optimizer.step(&mut x, &[2.0]); // v = 2, x = 0.8
        let halved = spec.with_lr(0.05);
        assert!(optimizer.is(&halved) && !optimizer.is(&OptimizerSpec::Sgd { lr: 0.1, momentum: 0.8 }));
        optimizer.set_lr(&halved).expect("valid");
        optimizer.step(&mut x, &[1.0]); // v = 2.8, x = 0.8 - 0.05 * 2.8
        close(x[0], 0.66);
        assert!(optimizer.set_lr(&spec.with_lr(f32::NAN)).is_err());
    }

    #[test]
    fn unusable_hyperparameters_are_refused_by_key() {
        let sgd = |lr, momentum| OptimizerSpec::Sgd { lr, momentum };
        let key = |spec| match Optimizer::new(&spec, 1) {
            Err(TrainError::Spec { key, .. }) => key,
            other => panic!("expected a refusal, found {other:?}"),
        };
        assert_eq!(key(sgd(-0.1, 0.0)), "train.optimizer.lr");
        assert_eq!(key(sgd(f32::NAN, 0.0)), "train.optimizer.lr");
        assert_eq!(key(sgd(0.1, 1.0)), "train.optimizer.momentum");
        let adamw = OptimizerSpec::AdamW { lr: 0.1, weight_decay: 10.0, beta_1: 0.9, beta_2: 0.99 };
        assert_eq!(key(adamw), "train.optimizer.weight_decay");
    }
}
