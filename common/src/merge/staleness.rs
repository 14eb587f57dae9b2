//! How much an update counts for that started from an old version.

use serde::{Deserialize, Serialize};

use super::SpecError;

/// s(tau), 1 at tau = 0 and never rising (Xie et al. 2019, section 5). In `run.toml`:
///
/// ```toml
/// staleness = { fn = "polynomial", a = 0.5 }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fn", rename_all = "lowercase", deny_unknown_fields)]
pub enum Staleness {
    /// Always 1.
    #[default]
    Constant,
    /// (1 + tau)^-a. FedBuff's is a = 0.5.
    Polynomial {
        /// Exponent, at least 0.
        a: f64,
    },
    /// 1 up to b, then 1 / (a (tau - b) + 1).
    Hinge {
        /// Slope, at least 0.
        a: f64,
        /// Where damping starts, in versions.
        b: u64,
    },
}

impl Staleness {
    /// The factor at staleness `tau` (versions), in [0, 1].
    ///
    /// `powf` differs between machines in its last bits, so this is computed once, when an update is admitted, and the
    /// weight it goes into is journalled.
    #[must_use]
    pub fn factor(&self, tau: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Polynomial { a } => (1.0 + tau as f64).powf(-a),
            Self::Hinge { b, .. } if tau <= *b => 1.0,
            Self::Hinge { a, b } => 1.0 / (a * (tau - b) as f64 + 1.0),
        }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// `a` is negative or not finite: stale updates would count for more than fresh ones.
    pub fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Polynomial { a } | Self::Hinge { a, .. } if !(a.is_finite() && *a >= 0.0) => {
                Err(SpecError { field: "staleness.a", found: *a, expected: "a number of at least 0" })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factors_are_the_published_ones() {
        let hinge = Staleness::Hinge { a: 10.0, b: 4 };
        let polynomial = Staleness::Polynomial { a: 0.5 };
        assert_eq!([0, 4, 5, 6].map(|tau| hinge.factor(tau)), [1.0, 1.0, 1.0 / 11.0, 1.0 / 21.0]);
        assert_eq!([0, 3, 99].map(|tau| polynomial.factor(tau)), [1.0, 0.5, 0.1]);
        assert_eq!(Staleness::Constant.factor(u64::MAX), 1.0);
    }

    #[test]
    fn no_staleness_gives_a_factor_outside_of_zero_to_one() {
        for staleness in [
            Staleness::Constant,
            Staleness::Polynomial { a: 0.0 },
            Staleness::Polynomial { a: 1e300 },
            Staleness::Hinge { a: 0.0, b: 0 },
            Staleness::Hinge { a: 1e300, b: 1 },
        ] {
            staleness.validate().expect("the parameters are in range");
            for tau in [0, 1, 2, 1 << 20, u64::MAX] {
                let factor = staleness.factor(tau);
                assert!((0.0..=1.0).contains(&factor), "{staleness:?} at {tau} gives {factor}");
            }
        }
    }

    #[test]
    fn bad_parameters_are_refused_by_name() {
        for a in [-0.1, f64::NAN, f64::INFINITY] {
            let error = Staleness::Polynomial { a }.validate().expect_err("out of range");
            assert_eq!(error.field, "staleness.a");
            assert!(Staleness::Hinge { a, b: 3 }.validate().is_err());
        }
    }

    #[test]
    fn it_reads_well_in_toml() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Holder {
            #[serde(default)]
            staleness: Staleness,
        }
        let read = |text: &str| toml::from_str::<Holder>(text).map(|holder| holder.staleness);
        assert_eq!(read(""), Ok(Staleness::Constant));
        assert_eq!(read(r#"staleness = { fn = "polynomial", a = 0.5 }"#), Ok(Staleness::Polynomial { a: 0.5 }));
        assert_eq!(read(r#"staleness = { fn = "hinge", a = 10.0, b = 4 }"#), Ok(Staleness::Hinge { a: 10.0, b: 4 }));
        assert!(read(r#"staleness = { fn = "polynomial", a = 0.5, b = 1 }"#).is_err(), "a stray field was accepted");
        let hinge = Holder { staleness: Staleness::Hinge { a: 2.5, b: 7 } };
        let written = toml::to_string(&hinge).expect("serializable");
        assert_eq!(toml::from_str(&written), Ok(hinge));
    }
}
