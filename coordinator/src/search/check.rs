//! Which combinations of a space are impossible, told before the search begins.

use std::path::Path;

use anabranch_common::limits;

use super::base::Base;
use super::draw;
use super::record::TrialId;
use super::source::{Source, SpecError};
use super::space::Overrides;
use super::spec::{Method, SearchSpec};

/// A combination that the base's check refuses. A trial with it is closed when its turn comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    /// The trial that has it; `None` of a corner of the space, which trials come near to.
    pub trial: Option<TrialId>,
    /// The values.
    pub overrides: Overrides,
    /// Why, for people.
    pub problem: String,
}

/// Holds every trial that is known at the start, and corners of the space, against the base. `text` is what `spec` was read
/// from.
///
/// Corners are combinations of both bounds of numbers and of all choices: the first
/// [`limits::SEARCH_CORNERS`] of them, which begin with every value beside the first one of each other key.
///
/// # Errors
/// A value of a key is impossible in every corner that has it: then the key is at fault, or its base.
pub fn check(spec: &SearchSpec, base: &Base, path: &Path, text: &str) -> Result<Vec<Impossible>, SpecError> {
    let refused = |(overrides, problem): (Overrides, String)| Impossible { trial: None, overrides, problem };
    let corners = corners(spec);
    let checked: Vec<(Overrides, Option<String>)> =
        corners.into_iter().map(|corner| (corner.clone(), base.trial(&spec.name, &corner).err())).collect();
    for (key, domain) in &spec.space.0 {
        for value in domain.extremes() {
            let mut with = checked.iter().filter(|(corner, _)| corner.get(key) == Some(&value)).peekable();
            let Some((_, Some(problem))) = with.peek() else { continue };
            if with.all(|(_, problem)| problem.is_some()) && at_fault(spec, base, key, &value) {
                let problem = format!("may be {value}, which no trial could run with: {problem}");
                let whole = format!("space.{key}");
                let quoted = Source::new(path, text).refused(&["space", key], &problem);
                // Without quotes the key is a path of tables.
                let parts: Vec<&str> = whole.split('.').collect();
                let nested = Source::new(path, text).refused(&parts, &problem);
                return Err(if (nested.line, nested.column) > (quoted.line, quoted.column) { nested } else { quoted });
            }
        }
    }
    let corners = checked.into_iter().filter_map(|(corner, problem)| Some(refused((corner, problem?))));
    let trials = (0..spec.trials).filter_map(|number| {
        let trial = TrialId(number);
        let overrides = draw::first(spec, trial);
        let problem = base.trial(&spec.name, &overrides).err()?;
        Some(Impossible { trial: Some(trial), overrides, problem })
    });
    // The trials of a grid are all there is.
    let trials: Vec<Impossible> = trials.collect();
    Ok(if spec.method == Method::Grid { trials } else { corners.chain(trials).collect() })
}

/// Whether a value is to blame: alone in the base it fails, or no other key of the space fails alone.
fn at_fault(spec: &SearchSpec, base: &Base, key: &str, value: &str) -> bool {
    let alone = |key: &str, value: &str| {
        base.trial(&spec.name, &Overrides::from([(key.to_owned(), value.to_owned())])).is_err()
    };
    let others = spec.space.0.iter().filter(|(other, _)| *other != key);
    alone(key, value) || !others.into_iter().any(|(other, domain)| domain.extremes().iter().any(|v| alone(other, v)))
}

/// Combinations of extreme values, without repetitions: each value beside the first one of every other key, then all
/// combinations in order, as many as [`limits::SEARCH_CORNERS`].
fn corners(spec: &SearchSpec) -> Vec<Overrides> {
    let keys: Vec<(&String, Vec<String>)> = spec.space.0.iter().map(|(key, domain)| (key, domain.extremes())).collect();
    let first: Overrides = keys.iter().map(|(key, values)| ((*key).clone(), values[0].clone())).collect();
    let mut corners = vec![first.clone()];
    for (key, values) in &keys {
        let beside = values.iter().skip(1).map(|value| {
            let mut corner = first.clone();
            corner.insert((*key).clone(), value.clone());
            corner
        });
        corners.extend(beside);
    }
    let singles = corners.len();
    let all = keys.iter().try_fold(1usize, |all, (_, values)| all.checked_mul(values.len()));
    for number in 0..all.unwrap_or(usize::MAX).min(limits::SEARCH_CORNERS) {
        let (mut rest, mut moved, mut corner) = (number, 0, Overrides::new());
        for (key, values) in &keys {
            let index = rest % values.len();
            moved += usize::from(index > 0);
            rest /= values.len();
            corner.insert((*key).clone(), values[index].clone());
        }
        if moved > 1 && corners.len() < singles + limits::SEARCH_CORNERS {
            corners.push(corner);
        }
    }
    corners
}
