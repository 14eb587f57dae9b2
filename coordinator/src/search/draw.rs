//! What trials are given: drawn from the seed, the trial's number and the key alone, whatever the order of events.
//!
//! Logarithms and powers may differ in their last bits between machines, so drawn numbers have four significant digits.
//! The journal keeps them as text, and nothing draws them a second time.

use anabranch_common::ids::Digest;
use anabranch_common::rng::SplitMix64;

use super::record::TrialId;
use super::space::{Domain, Overrides, number, parse_value};
use super::spec::{Method, SearchSpec};

/// How a copied trial's numbers differ from those of its origin (Jaderberg et al. 2017, appendix A).
const FACTORS: [f64; 2] = [0.8, 1.2];
/// How often a key of a copy is drawn anew instead (the same).
const RESAMPLED: f64 = 0.25;

/// Returns what trial `trial` changes in the base when it begins.
#[must_use]
pub fn first(spec: &SearchSpec, trial: TrialId) -> Overrides {
    if spec.method == Method::Grid {
        return point(spec, u64::from(trial.0));
    }
    let draw = |(key, domain): (&String, &Domain)| (key.clone(), anew(domain, &mut stream(spec.seed, trial, 0, key)));
    spec.space.0.iter().map(draw).collect()
}

/// Returns what a trial changes that continues at `rung` from a copy of another one with `origin`: perturbed values
/// (Jaderberg et al. 2017).
#[must_use]
pub fn perturbed(spec: &SearchSpec, trial: TrialId, rung: u32, origin: &Overrides) -> Overrides {
    let draw = |(key, domain): (&String, &Domain)| {
        let mut rng = stream(spec.seed, trial, rung.saturating_add(1), key);
        let value = match origin.get(key).and_then(|text| parse_value(text)) {
            Some(value) if rng.next_f64() >= RESAMPLED => near(domain, &value, &mut rng),
            _ => anew(domain, &mut rng),
        };
        (key.clone(), value)
    };
    spec.space.0.iter().map(draw).collect()
}

/// Returns which of `candidates` a trial of a population continues from; `None` without any.
#[must_use]
pub fn origin(seed: u64, trial: TrialId, rung: u32, candidates: &[TrialId]) -> Option<TrialId> {
    // No key of a space is empty.
    let index = stream(seed, trial, rung.saturating_add(1), "").below(candidates.len() as u64);
    candidates.get(usize::try_from(index).ok()?).copied()
}

/// The stream of one trial's key in one of its generations.
fn stream(seed: u64, trial: TrialId, generation: u32, key: &str) -> SplitMix64 {
    let parts = [&seed.to_le_bytes()[..], &trial.0.to_le_bytes(), &generation.to_le_bytes(), key.as_bytes()];
    let [a, b, c, d, e, f, g, h, ..] = Digest::of(&parts.concat()).0;
    SplitMix64::new(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// The point of a grid at `index`: the last key changes fastest.
fn point(spec: &SearchSpec, index: u64) -> Overrides {
    let mut rest = index;
    let value = |(key, domain): (&String, &Domain)| {
        let size = domain.size().unwrap_or(1).max(1);
        let value = domain.nth(rest % size);
        rest /= size;
        Some((key.clone(), value?))
    };
    spec.space.0.iter().rev().filter_map(value).collect()
}

fn anew(domain: &Domain, rng: &mut SplitMix64) -> String {
    match domain {
        Domain::Log(low, high) => {
            let exponent = low.ln() + rng.next_f64() * (high.ln() - low.ln());
            rounded(exponent.exp(), *low, *high)
        }
        Domain::Uniform(low, high) => {
            let at = rng.next_f64();
            rounded(low * (1.0 - at) + high * at, *low, *high)
        }
        Domain::Int(..) | Domain::Choice(_) => {
            let index = rng.below(domain.size().unwrap_or(u64::MAX));
            domain.nth(index).expect("an index below the size of a finite domain")
        }
    }
}

fn near(domain: &Domain, value: &toml::Value, rng: &mut SplitMix64) -> String {
    let up = rng.below(2) == 1;
    let factor = FACTORS[usize::from(up)];
    match domain {
        Domain::Log(low, high) | Domain::Uniform(low, high) => {
            rounded(value.as_float().unwrap_or(*low) * factor, *low, *high)
        }
        Domain::Int(low, high) => {
            let value = value.as_integer().unwrap_or(*low);
            // One in five at least, and one at least: small numbers move too.
            let step = (value / 5).abs().max(1);
            let moved = if up { value.saturating_add(step) } else { value.saturating_sub(step) };
            moved.clamp(*low, *high).to_string()
        }
        Domain::Choice(values) => {
            let index = values.iter().position(|choice| choice == value).unwrap_or(0);
            let moved = if up { index.saturating_add(1) } else { index.saturating_sub(1) };
            values[moved.min(values.len() - 1)].to_string()
        }
    }
}

/// Four significant digits of `value`, within the bounds.
fn rounded(value: f64, low: f64, high: f64) -> String {
    let value: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    number(value.clamp(low, high))
}
