//! Splitting a data set into one directory an agent: for experiments with data that differ from agent to agent.
//!
//! Each label's examples are shuffled and shared out by a draw from a symmetric Dirichlet distribution over the agents
//! (Hsu, Qi and Brown 2019, and Yurochkin et al. 2019, per label): the smaller alpha, the fewer labels an agent has.
//! Agents that get too few are filled up from the one that has most. Text has no labels: see `split_text`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anabranch_common::limits;
use flate2::{Compression, GzBuilder};
use serde::Serialize;

use super::draw::{Draw, Purpose};
use super::inspect::Labels;
use super::source::{Source, name, part_name};
use super::{ShardError, ShardOptions, csv, dropped, idx, split_text};

/// How labels are shared out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Skew {
    /// Every agent gets the same mixture.
    Iid,
    /// Concentration of the Dirichlet distribution, above 0: 100 is almost even, 0.1 gives most agents two labels.
    Alpha(f64),
}

/// How a data set is split.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitOptions {
    /// Number of agents.
    pub agents: usize,
    /// How labels are shared out.
    pub skew: Skew,
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Name of the label column (CSV).
    pub label_column: String,
    /// Names of columns that the parts are written without (CSV).
    pub drop_columns: Vec<String>,
    /// Holds out this many examples, every label in proportion, as `eval/`.
    pub eval_rows: Option<usize>,
    /// Every agent gets at least this many examples.
    pub min_examples: usize,
}

impl SplitOptions {
    /// For `agents` agents, with the default label column, 10 examples at least, and nothing held out.
    #[must_use]
    pub fn new(agents: usize, skew: Skew, seed: u64) -> Self {
        let label_column = super::DEFAULT_LABEL_COLUMN.to_owned();
        Self { agents, skew, seed, label_column, drop_columns: Vec::new(), eval_rows: None, min_examples: 10 }
    }
}

/// One directory that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartReport {
    /// The directory.
    pub path: PathBuf,
    /// Examples in it.
    pub examples: u64,
    /// Examples of each label; none where it is text.
    pub labels: BTreeMap<u32, u64>,
    /// Where it is text: how much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextPart>,
}

/// How much text a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TextPart {
    /// Files.
    pub files: u64,
    /// Bytes, those between two files included.
    pub bytes: u64,
}

/// What a split wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitReport {
    /// `agent-0/`, `agent-1/`, ...
    pub agents: Vec<PartReport>,
    /// `eval/`, where examples were held out or the data set has a test part.
    pub eval: Option<PartReport>,
}

impl fmt::Display for SplitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.agents.iter().chain(&self.eval) {
            let path = part.path.display();
            match &part.text {
                Some(TextPart { files, bytes }) => writeln!(f, "{path}  {bytes} bytes of text in {files} files")?,
                None => writeln!(f, "{path}  {} examples  {}", part.examples, Labels(&part.labels))?,
            }
        }
        Ok(())
    }
}

/// Splits the data set at `path` into `out/agent-0`, `out/agent-1`, ... and `out/eval`, in its own format and under its
/// own file names, without the dots of hidden ones. `out` appears complete or not at all.
///
/// # Errors
/// `out` has something in it, the data set cannot be read, or there are too few examples.
pub fn split(path: &Path, out: &Path, options: &SplitOptions) -> Result<SplitReport, ShardError> {
    refuse_occupied(out)?;
    let source = Source::locate(path)?;
    let columns =
        ShardOptions::default().label_column(&options.label_column).drop_columns(options.drop_columns.as_slice());
    dropped::check(&source, None, &columns)?;
    if let Source::Text(text) = &source {
        return split_text::split(text, out, options);
    }
    let data = DataSet::read(&source, &columns)?;
    let labels = data.labels();
    check(path, labels.len(), options)?;
    let (held_out, rest) = hold_out(&labels, options);
    let parts = assign(&labels, rest, options);

    let partial = Partial::new(out)?;
    let mut report = SplitReport { agents: Vec::new(), eval: None };
    for (agent, indices) in parts.iter().enumerate() {
        let directory = format!("agent-{agent}");
        data.write(&partial.path().join(&directory), indices)?;
        report.agents.push(describe(out.join(directory), &labels, indices));
    }
    let eval = out.join("eval");
    if options.eval_rows.is_some() {
        data.write(&partial.path().join("eval"), &held_out)?;
        report.eval = Some(describe(eval, &labels, &held_out));
    } else if let Some(test) = source.test_part() {
        let test = DataSet::read(&test, &columns)?;
        let labels = test.labels();
        let all: Vec<usize> = (0..labels.len()).collect();
        test.write(&partial.path().join("eval"), &all)?;
        report.eval = Some(describe(eval, &labels, &all));
    }
    partial.finish(out)?;
    Ok(report)
}

/// The directory in which a split is made; its parts get their place when all of them are there.
pub(super) struct Partial(PathBuf);

impl Partial {
    /// For `out`; what an earlier split left unfinished is removed.
    pub(super) fn new(out: &Path) -> Result<Self, ShardError> {
        let path = partial_path(out);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|error| ShardError::io(&path, error))?;
        }
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn finish(self, out: &Path) -> Result<(), ShardError> {
        fs::rename(&self.0, out).map_err(|error| ShardError::io(out, error))
    }
}

fn refuse_occupied(out: &Path) -> Result<(), ShardError> {
    match fs::read_dir(out) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(ShardError::NotEmpty { path: out.to_path_buf() }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ShardError::io(out, error)),
    }
}

fn partial_path(out: &Path) -> PathBuf {
    let mut partial = out.file_name().unwrap_or_default().to_os_string();
    partial.push(".partial");
    out.with_file_name(partial)
}

fn check(path: &Path, examples: usize, options: &SplitOptions) -> Result<(), ShardError> {
    let refuse = |what: String| Err(ShardError::Split { path: path.to_path_buf(), what });
    if options.agents == 0 || options.agents > limits::AGENTS {
        return refuse(format!("{} agents were asked for, expected 1 to {}", options.agents, limits::AGENTS));
    }
    if let Skew::Alpha(alpha) = options.skew
        && !(alpha.is_finite() && alpha > 0.0)
    {
        return refuse(format!("alpha is {alpha}, expected a number above 0"));
    }
    let eval_rows = options.eval_rows.unwrap_or(0);
    let needed = options.min_examples.max(1).checked_mul(options.agents).and_then(|n| n.checked_add(eval_rows));
    if needed.is_none_or(|needed| needed > examples) {
        return refuse(format!(
            "it holds {examples} examples, too few for {} agents with at least {} each and {eval_rows} for evaluation",
            options.agents,
            options.min_examples.max(1)
        ));
    }
    Ok(())
}

/// The indices of each label, in file order.
fn by_label(labels: &[u32], indices: impl Iterator<Item = usize>) -> BTreeMap<u32, Vec<usize>> {
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for index in indices {
        groups.entry(labels[index]).or_default().push(index);
    }
    groups
}

/// Held-out indices and the rest, both in file order. Each label gives its share; what rounding leaves over is taken
/// from the labels with the largest remainders.
fn hold_out(labels: &[u32], options: &SplitOptions) -> (Vec<usize>, Vec<usize>) {
    let Some(rows) = options.eval_rows else { return (Vec::new(), (0..labels.len()).collect()) };
    let mut draw = Draw::new(options.seed, Purpose::HoldOut);
    let mut groups = by_label(labels, 0..labels.len());
    let mut shares: Vec<(usize, u32, usize)> = groups
        .iter()
        .map(|(label, group)| {
            let exact = group.len() as u128 * rows as u128;
            let (whole, remainder) = (exact / labels.len() as u128, exact % labels.len() as u128);
            (remainder as usize, *label, whole as usize)
        })
        .collect();
    let mut left = rows - shares.iter().map(|(_, _, whole)| whole).sum::<usize>();
    shares.sort_by_key(|(remainder, label, _)| (std::cmp::Reverse(*remainder), *label));
    for (_, _, count) in &mut shares {
        if left == 0 {
            break;
        }
        *count += 1;
        left -= 1;
    }
    shares.sort_by_key(|(_, label, _)| *label);
    let (mut held_out, mut rest) = (Vec::new(), Vec::new());
    for ((_, _, count), group) in shares.iter().zip(groups.values_mut()) {
        draw.shuffle(group);
        held_out.extend_from_slice(&group[..*count]);
        rest.extend_from_slice(&group[*count..]);
    }
    held_out.sort_unstable();
    rest.sort_unstable();
    (held_out, rest)
}

/// Indices of each agent, in file order.
fn assign(labels: &[u32], indices: Vec<usize>, options: &SplitOptions) -> Vec<Vec<usize>> {
    let mut draw = Draw::new(options.seed, Purpose::Split);
    let mut parts = vec![Vec::new(); options.agents];
    match options.skew {
        Skew::Iid => {
            let mut indices = indices;
            draw.shuffle(&mut indices);
            for (turn, index) in indices.into_iter().enumerate() {
                parts[turn % options.agents].push(index);
            }
        }
        Skew::Alpha(alpha) => {
            for group in by_label(labels, indices.into_iter()).values_mut() {
                draw.shuffle(group);
                let shares = draw.dirichlet(alpha, options.agents);
                let (mut start, mut sum) = (0, 0.0);
                for (part, share) in parts.iter_mut().zip(&shares) {
                    sum += share;
                    #[expect(clippy::cast_possible_truncation, reason = "clamped to the length of the group")]
                    let end = ((sum * group.len() as f64).round() as usize).clamp(start, group.len());
                    part.extend_from_slice(&group[start..end]);
                    start = end;
                }
                // Rounding may leave the last example without an agent.
                parts[options.agents - 1].extend_from_slice(&group[start..]);
            }
        }
    }
    fill_up(&mut parts, options.min_examples.max(1));
    parts.iter_mut().for_each(|part| part.sort_unstable());
    parts
}

/// Moves examples from the largest part to those below `least`; there are enough for all.
fn fill_up(parts: &mut [Vec<usize>], least: usize) {
    for poor in 0..parts.len() {
        while parts[poor].len() < least {
            let rich = (0..parts.len()).max_by_key(|part| (parts[*part].len(), std::cmp::Reverse(*part)));
            let moved = rich.and_then(|rich| parts[rich].pop());
            parts[poor].extend(moved);
        }
    }
}

fn describe(path: PathBuf, labels: &[u32], indices: &[usize]) -> PartReport {
    let mut histogram = BTreeMap::new();
    for index in indices {
        *histogram.entry(labels[*index]).or_default() += 1;
    }
    PartReport { path, examples: indices.len() as u64, labels: histogram, text: None }
}

/// A data set in the form in which its parts are written.
enum DataSet {
    Csv { name: String, text: csv::Text, labels: Vec<u32> },
    Idx { names: [String; 2], images: idx::Array, labels: idx::Array },
}

impl DataSet {
    fn read(source: &Source, options: &ShardOptions) -> Result<Self, ShardError> {
        match source {
            Source::Csv(path) => {
                let labels = csv::read(path, options)?.labels().to_vec();
                Ok(Self::Csv { name: part_name(&name(path)), text: csv::Text::read(path, options)?, labels })
            }
            Source::Idx { images, labels } => {
                let names = [images, labels].map(|file| part_name(&name(file)));
                let (images, labels) = idx::read(images, labels)?;
                Ok(Self::Idx { names, images, labels })
            }
            Source::Text(text) => {
                let what = "it is text, which has no labels".to_owned();
                Err(ShardError::Split { path: text.root.clone(), what })
            }
        }
    }

    fn labels(&self) -> Vec<u32> {
        match self {
            Self::Csv { labels, .. } => labels.clone(),
            Self::Idx { labels, .. } => labels.values.iter().map(|label| u32::from(*label)).collect(),
        }
    }

    fn write(&self, directory: &Path, indices: &[usize]) -> Result<(), ShardError> {
        fs::create_dir_all(directory).map_err(|error| ShardError::io(directory, error))?;
        match self {
            Self::Csv { name, text, .. } => write_file(&directory.join(name), &text.select(indices)),
            Self::Idx { names, images, labels } => {
                let count = u32::try_from(indices.len()).expect("a part of at most 2^32 examples");
                for (name, array) in names.iter().zip([images, labels]) {
                    let mut bytes = array.header(count);
                    indices.iter().for_each(|index| bytes.extend_from_slice(array.row(*index)));
                    write_file(&directory.join(name), &bytes)?;
                }
                Ok(())
            }
        }
    }
}

/// Writes a file, compressed where its name says so; no time and no name goes into the gzip header, so that the same
/// content gives the same bytes.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    let write = || {
        let mut file = fs::File::create(path)?;
        if path.extension().is_some_and(|extension| extension == "gz") {
            let mut encoder = GzBuilder::new().mtime(0).write(file, Compression::default());
            encoder.write_all(bytes)?;
            file = encoder.finish()?;
        } else {
            file.write_all(bytes)?;
        }
        file.sync_all()
    };
    write().map_err(|error| ShardError::io(path, error))
}
