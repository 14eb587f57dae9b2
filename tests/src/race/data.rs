//! The data sets of the races, opened by the product's own readers, and shared by all agents of a process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_agent::shard::{self, Shard, ShardOptions, Text};
use anabranch_common::spec::ModelSpec;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use super::texts;
use super::workload::Workload;

/// Examples that are read together.
const TOGETHER: usize = 4_096;
/// The file of a shard of text.
const TEXT_FILE: &str = "text.txt";

/// A data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataName {
    /// MNIST: 60,000 images to train on, 10,000 to test on.
    Mnist,
    /// The digits of the examples (`examples/data`): 1,437 to train on, 360 to test on.
    Digits,
    /// Folders of text that the split names.
    Text,
}

impl DataName {
    /// The files that must be there: first the one to train on, then the one to test on.
    pub(super) fn files(self) -> &'static [&'static str] {
        match self {
            Self::Mnist => &[
                "train-images-idx3-ubyte.gz",
                "t10k-images-idx3-ubyte.gz",
                "train-labels-idx1-ubyte.gz",
                "t10k-labels-idx1-ubyte.gz",
            ],
            Self::Digits => &["digits-train.csv.gz", "digits-test.csv.gz"],
            Self::Text => &[],
        }
    }

    /// The folder below the data directory in which it may be too.
    fn folder(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::Digits => "digits",
            Self::Text => "text",
        }
    }

    fn source(self) -> &'static str {
        match self {
            Self::Mnist => "MNIST's four files are to be had from https://ossci-datasets.s3.amazonaws.com/mnist/",
            Self::Digits => "the digits are in examples/data",
            Self::Text => "it has a folder for each name in the workload's split, such as /usr/lib/python3.11",
        }
    }

    /// The folder that has every file, or which one is missing.
    pub(super) fn locate(self, data: Option<&Path>) -> anyhow::Result<PathBuf> {
        let Some(data) = data else {
            bail!(
                "this workload needs data: name their directory with --data or ANABRANCH_DATA; {} {}",
                self.source(),
                self.files().join(", ")
            )
        };
        let missing = |folder: &Path| self.files().iter().find(|file| !folder.join(file).is_file());
        let below = data.join(self.folder());
        if below.is_dir() && missing(&below).is_none() {
            return Ok(below);
        }
        match missing(data) {
            None => Ok(data.to_owned()),
            Some(file) => bail!("{} is missing; {}", data.join(file).display(), self.source()),
        }
    }
}

/// A data set in memory, split.
#[derive(Debug)]
pub(crate) struct DataSet {
    /// What each agent trains on, the first agent first.
    pub(crate) shards: Vec<Rows>,
    /// What all of them hold.
    pub(crate) all: Rows,
    /// The test examples of each class, the first class first; of text there is one part.
    pub(crate) test: Vec<Rows>,
    /// All test examples.
    pub(crate) all_test: Rows,
}

impl DataSet {
    /// Reads and splits the data set of a workload.
    ///
    /// # Errors
    /// A file is missing, or does not fit the model or the split. The text says which one, and where it is to be had.
    pub(crate) fn open(workload: &Workload, data: Option<&Path>) -> anyhow::Result<Self> {
        let folder = workload.data.locate(data)?;
        match workload.data {
            DataName::Text => Self::of_text(workload, &folder),
            name => Self::of_classes(workload, &folder, name.files()),
        }
    }

    /// Returns the same data, all held by one machine.
    pub(super) fn pooled(&self) -> Self {
        Self {
            shards: vec![self.all.clone()],
            all: self.all.clone(),
            test: self.test.clone(),
            all_test: self.all_test.clone(),
        }
    }

    fn of_classes(workload: &Workload, folder: &Path, files: &[&str]) -> anyhow::Result<Self> {
        let model: &ModelSpec = &workload.model;
        let open = |file: &str| -> anyhow::Result<Arc<dyn Shard>> {
            let opened = shard::open(&folder.join(file), &ShardOptions::for_model(model));
            Ok(Arc::from(opened.context("cannot read the data set")?))
        };
        let [train, test, ..] = files else { bail!("the data set has no file to test on") };
        let (train, test) = (open(train)?, open(test)?);
        let rows = workload.split.rows(&workload.folder, workload.agent_count(), &labels_of(&*train))?;
        let (all, of_test) = (rows.concat(), labels_of(&*test));
        let of_class = |class: u32| {
            let rows = (0..of_test.len()).filter(|index| of_test[*index] == class).collect();
            Rows::some(Arc::clone(&test), rows)
        };
        Ok(Self {
            shards: rows.into_iter().map(|rows| Rows::some(Arc::clone(&train), rows)).collect(),
            all: Rows::some(train, all),
            test: (0..model.classes).map(of_class).collect(),
            all_test: Rows::all(test),
        })
    }

    fn of_text(workload: &Workload, folder: &Path) -> anyhow::Result<Self> {
        let texts::Texts { agents, test } = texts::read(&workload.split, folder, workload.agent_count())?;
        let text = |bytes: Vec<u8>| -> anyhow::Result<Rows> {
            Ok(Rows::all(Arc::new(Text::new(bytes).context("a text of the split is empty")?)))
        };
        let test = text(test)?;
        Ok(Self {
            all: text(agents.join(&0))?,
            shards: agents.into_iter().map(text).collect::<anyhow::Result<_>>()?,
            test: vec![test.clone()],
            all_test: test,
        })
    }
}

fn labels_of(shard: &dyn Shard) -> Vec<u32> {
    let (mut all, mut inputs, mut labels) = (Vec::with_capacity(shard.len()), Vec::new(), Vec::new());
    for start in (0..shard.len()).step_by(TOGETHER) {
        let indices: Vec<usize> = (start..shard.len().min(start + TOGETHER)).collect();
        shard.read(&indices, &mut inputs, &mut labels);
        all.append(&mut labels);
    }
    all
}

/// Examples of a shard, which they share with others.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    of: Arc<dyn Shard>,
    /// Which; all where it is absent, as of text.
    rows: Option<Arc<[usize]>>,
}

impl Rows {
    fn some(of: Arc<dyn Shard>, rows: Vec<usize>) -> Self {
        Self { of, rows: Some(rows.into()) }
    }

    fn all(of: Arc<dyn Shard>) -> Self {
        Self { of, rows: None }
    }

    /// Writes a folder that an agent takes as its shard: a file of text, or two of IDX.
    ///
    /// # Errors
    /// A value is no byte, or a file cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(folder)?;
        if let Some(text) = self.text() {
            return Ok(std::fs::write(folder.join(TEXT_FILE), text.bytes())?);
        }
        let (mut values, mut all_labels) = (Vec::new(), Vec::new());
        let (mut inputs, mut labels) = (Vec::new(), Vec::new());
        for start in (0..self.len()).step_by(TOGETHER) {
            let indices: Vec<usize> = (start..self.len().min(start + TOGETHER)).collect();
            self.read(&indices, &mut inputs, &mut labels);
            for value in &inputs {
                values.push(byte(*value).with_context(|| format!("{value} is no byte: IDX cannot hold it"))?);
            }
            for label in &labels {
                all_labels.push(u8::try_from(*label).context("IDX holds labels up to 255")?);
            }
        }
        let count = u32::try_from(self.len())?.to_be_bytes();
        let shape = self.input_shape().iter().map(|extent| Ok(u32::try_from(*extent)?.to_be_bytes()));
        let shape: Vec<[u8; 4]> = shape.collect::<anyhow::Result<_>>()?;
        ensure!(!shape.is_empty(), "examples have no shape");
        let dims = u8::try_from(shape.len() + 1)?;
        let images = [&[0, 0, 8, dims], &count[..], shape.as_flattened(), &values].concat();
        std::fs::write(folder.join("images-idx3-ubyte"), images)?;
        std::fs::write(folder.join("labels-idx1-ubyte"), [&[0, 0, 8, 1], &count[..], &all_labels].concat())?;
        Ok(())
    }
}

/// A whole number from 0 to 255.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "compared with what it was")]
fn byte(value: f32) -> Option<u8> {
    let byte = value as u8;
    (f32::from(byte).to_bits() == value.to_bits()).then_some(byte)
}

impl Shard for Rows {
    fn len(&self) -> usize {
        self.rows.as_ref().map_or_else(|| self.of.len(), |rows| rows.len())
    }

    fn input_shape(&self) -> &[u64] {
        self.of.input_shape()
    }

    fn classes(&self) -> u32 {
        self.of.classes()
    }

    fn read(&self, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        match &self.rows {
            None => self.of.read(indices, inputs, labels),
            Some(all) => {
                let rows: Vec<usize> = indices.iter().map(|index| all[*index]).collect();
                self.of.read(&rows, inputs, labels);
            }
        }
    }

    fn text(&self) -> Option<&Text> {
        self.of.text().filter(|_| self.rows.is_none())
    }
}

#[cfg(test)]
mod tests {
    use anabranch_agent::shard::{Examples, Inputs};

    use super::*;

    #[test]
    fn a_missing_file_is_named_with_the_place_where_it_is_to_be_had() {
        let error = DataName::Mnist.locate(None).expect_err("nothing was named").to_string();
        assert!(error.contains("ANABRANCH_DATA") && error.contains("https://"), "{error}");
        let folder = tempfile::tempdir().expect("a folder");
        let error = DataName::Mnist.locate(Some(folder.path())).expect_err("nothing is there").to_string();
        assert!(error.contains("train-images-idx3-ubyte.gz is missing"), "{error}");
        let below = folder.path().join("mnist");
        std::fs::create_dir(&below).expect("made");
        DataName::Mnist.files().iter().for_each(|file| std::fs::write(below.join(file), []).expect("written"));
        assert_eq!(DataName::Mnist.locate(Some(folder.path())).expect("it is there"), below);
    }

    #[test]
    fn a_written_shard_reads_as_the_same_examples() -> anyhow::Result<()> {
        let inputs = Inputs::Bytes((0..24).collect());
        let all = Examples::new(inputs, vec![0, 1, 2, 3], vec![2, 3]).context("four examples of six values")?;
        let rows = Rows::some(Arc::new(all), vec![3, 1]);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("shard");
        rows.write(&path)?;
        let read = shard::open(&path, &ShardOptions::default())?;
        let contents = |shard: &dyn Shard| {
            let (mut inputs, mut labels) = (Vec::new(), Vec::new());
            shard.read(&[0, 1], &mut inputs, &mut labels);
            (shard.len(), shard.input_shape().to_vec(), inputs, labels)
        };
        assert_eq!(contents(&*read), contents(&rows));
        assert_eq!((byte(3.0), byte(0.5), byte(256.0), byte(-1.0)), (Some(3), None, None, None));
        Ok(())
    }
}
