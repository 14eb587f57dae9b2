//! Who holds which examples: written down, or by a rule. The same rule and seed give the same split.

use std::path::{Path, PathBuf};

use anabranch_common::rng::SplitMix64;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

/// How the examples are shared out.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Split {
    /// A file beside the workload's: line a has the indices of agent a's examples.
    File {
        /// The file.
        path: PathBuf,
    },
    /// Every agent gets the same mixture.
    Iid {
        /// Decides who gets which example.
        seed: u64,
    },
    /// Some classes are held by one agent alone; the others are shared out evenly among the agents that hold none alone.
    Rare {
        /// Decides who gets which example.
        seed: u64,
        /// The classes that one agent holds alone.
        holders: Vec<Holder>,
    },
    /// Of text: each agent has the files below a folder of its own, except some that models are tested on.
    Folders {
        /// The folder of each agent, below the data directory.
        agents: Vec<PathBuf>,
        /// How the names of files end that are text, such as `py`.
        extension: String,
        /// One file in so many is held out to test on.
        held_out_every: usize,
        /// Bytes of each folder that are tested on.
        held_out_bytes: usize,
    },
}

/// A class that one agent holds alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// The class.
    pub class: u32,
    /// The agent, from 0.
    pub agent: usize,
}

impl Split {
    /// Checks the rule for so many agents and classes.
    ///
    /// # Errors
    /// The key, and what is wrong with its value.
    pub(super) fn check(&self, agents: usize, classes: u32) -> Result<(), (String, String)> {
        let holders = match self {
            Self::Rare { holders, .. } => holders,
            Self::Folders { agents: folders, held_out_every, held_out_bytes, .. } => {
                let least = |key: &str, found: usize, least: usize| match found >= least {
                    true => Ok(()),
                    false => Err((format!("split.{key}"), format!("must be at least {least}, but is {found}"))),
                };
                if folders.len() != agents {
                    let problem = format!("must be as many as agents ({agents}), but are {}", folders.len());
                    return Err(("split.agents".to_owned(), problem));
                }
                least("held_out_every", *held_out_every, 2)?;
                return least("held_out_bytes", *held_out_bytes, 2);
            }
            Self::File { .. } | Self::Iid { .. } => return Ok(()),
        };
        for (index, holder) in holders.iter().enumerate() {
            if holder.class >= classes {
                let problem = format!("must be less than model.classes ({classes}), but is {}", holder.class);
                return Err((format!("split.holders.{index}.class"), problem));
            }
            if holder.agent >= agents {
                let problem = format!("must be less than the number of agents ({agents}), but is {}", holder.agent);
                return Err((format!("split.holders.{index}.agent"), problem));
            }
            if holders[..index].iter().any(|earlier| earlier.class == holder.class) {
                return Err((format!("split.holders.{index}.class"), format!("names class {} twice", holder.class)));
            }
        }
        let all_hold = (0..agents).all(|agent| holders.iter().any(|holder| holder.agent == agent));
        if all_hold {
            return Err(("split.holders".to_owned(), "leaves no agent for the other classes".to_owned()));
        }
        Ok(())
    }

    /// Returns the indices of each agent's examples.
    ///
    /// # Errors
    /// The file of the split cannot be read, or does not fit; an agent would get nothing.
    pub(super) fn rows(&self, folder: &Path, agents: usize, labels: &[u32]) -> anyhow::Result<Vec<Vec<usize>>> {
        let rows = match self {
            Self::File { path } => from_file(&folder.join(path), agents, labels.len())?,
            Self::Iid { seed } => rare(*seed, &[], agents, labels),
            Self::Rare { seed, holders } => rare(*seed, holders, agents, labels),
            Self::Folders { .. } => bail!("split.kind folders is for text"),
        };
        if let Some(agent) = rows.iter().position(Vec::is_empty) {
            bail!("the split leaves agent {agent} without examples");
        }
        Ok(rows)
    }
}

fn from_file(path: &Path, agents: usize, examples: usize) -> anyhow::Result<Vec<Vec<usize>>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the split {shown}"))?;
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let indices = line.split_whitespace().map(|word| {
            let index: usize = word.parse().with_context(|| format!("{shown}:{}: {word:?} is no index", number + 1))?;
            ensure!(index < examples, "{shown}:{}: there is no example {index}, only {examples}", number + 1);
            Ok(index)
        });
        rows.push(indices.collect::<anyhow::Result<Vec<usize>>>()?);
    }
    ensure!(rows.len() == agents, "{shown} has {} lines for {agents} agents", rows.len());
    Ok(rows)
}

/// Of each class that nobody holds alone, every agent that holds none alone gets the same number of examples, give or take
/// one.
fn rare(seed: u64, holders: &[Holder], agents: usize, labels: &[u32]) -> Vec<Vec<usize>> {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0201);
    let others: Vec<usize> = (0..agents).filter(|agent| holders.iter().all(|holder| holder.agent != *agent)).collect();
    let mut rows = vec![Vec::new(); agents];
    let classes = labels.iter().max().map_or(0, |label| label + 1);
    for class in 0..classes {
        let mut of: Vec<usize> = (0..labels.len()).filter(|index| labels[*index] == class).collect();
        if let Some(holder) = holders.iter().find(|holder| holder.class == class) {
            rows[holder.agent].append(&mut of);
            continue;
        }
        shuffle(&mut rng, &mut of);
        // Another agent begins with each class, so that what does not come out even is not always the same agent's.
        for (turn, index) in of.into_iter().enumerate() {
            rows[others[(turn + class as usize) % others.len()]].push(index);
        }
    }
    rows
}

/// Fisher and Yates.
fn shuffle(rng: &mut SplitMix64, items: &mut [usize]) {
    for last in (1..items.len()).rev() {
        let other = usize::try_from(rng.below(last as u64 + 1)).unwrap_or(last);
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(pairs: &[(u32, usize)]) -> Vec<Holder> {
        pairs.iter().map(|(class, agent)| Holder { class: *class, agent: *agent }).collect()
    }

    #[test]
    fn a_class_that_one_agent_holds_alone_is_with_no_other_and_every_example_is_with_one_agent() {
        let labels: Vec<u32> = (0..1_000).map(|index| index % 10).collect();
        let split = Split::Rare { seed: 3, holders: holders(&[(8, 3), (9, 4)]) };
        let rows = split.rows(Path::new(""), 5, &labels).expect("a split");
        let classes = |agent: usize| {
            let mut classes: Vec<u32> = rows[agent].iter().map(|index| labels[*index]).collect();
            classes.sort_unstable();
            classes.dedup();
            classes
        };
        assert_eq!((classes(3), classes(4)), (vec![8], vec![9]));
        assert!((0..3).all(|agent| classes(agent) == [0, 1, 2, 3, 4, 5, 6, 7]));
        let sizes: Vec<usize> = rows[..3].iter().map(Vec::len).collect();
        assert!(sizes.iter().max().zip(sizes.iter().min()).is_some_and(|(most, least)| most - least <= 3), "{sizes:?}");
        let mut all: Vec<usize> = rows.concat();
        all.sort_unstable();
        assert_eq!(all, (0..1_000).collect::<Vec<_>>());
        assert_eq!(rows, split.rows(Path::new(""), 5, &labels).expect("a split"), "the same seed");
        let other = Split::Rare { seed: 4, holders: holders(&[(8, 3), (9, 4)]) };
        assert_ne!(rows, other.rows(Path::new(""), 5, &labels).expect("a split"), "another seed");
    }

    #[test]
    fn a_rule_that_cannot_be_followed_is_refused_by_its_key() {
        let problem = |pairs: &[(u32, usize)]| {
            Split::Rare { seed: 0, holders: holders(pairs) }.check(2, 10).map_err(|(key, _)| key)
        };
        assert_eq!(problem(&[(3, 1)]), Ok(()));
        assert_eq!(problem(&[(3, 1), (10, 1)]), Err("split.holders.1.class".to_owned()));
        assert_eq!(problem(&[(3, 2)]), Err("split.holders.0.agent".to_owned()));
        assert_eq!(problem(&[(3, 1), (3, 0)]), Err("split.holders.1.class".to_owned()));
        assert_eq!(problem(&[(3, 1), (4, 0)]), Err("split.holders".to_owned()));
    }
}
