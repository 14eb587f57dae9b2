//! Staleness functions.
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// s(tau), 1 at tau = 0 (Xie et al. 2019, section 5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(tag = "staleness_fn", rename_all = "lowercase", deny_unknown_fields)]
pub enum Staleness {
    /// Always 1.
    #[default]
    Constant,
    /// (1 + tau)^-a.
    Polynomial {
        /// Exponent.
        a: f64,
    },
    /// 1 up to b, then 1 / (a (tau - b) + 1).
    Hinge {
        /// Slope.
        a: f64,
        /// Where damping starts.
        b: u64,
    },
}

impl Staleness {
    /// The factor at staleness `tau`.
    #[must_use]
    pub fn factor(&self, tau: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Polynomial { a } => (1.0 + tau as f64).powf(-a),
            Self::Hinge { b, .. } if tau <= *b => 1.0,
            Self::Hinge { a, b } => 1.0 / (a * (tau - b) as f64 + 1.0),
        }
    }
}
