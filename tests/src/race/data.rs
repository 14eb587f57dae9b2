//! The data sets of the races, opened by the product's own readers, and shared by all agents of a process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_agent::shard::{self, Shard, ShardOptions};
use anabranch_common::spec::ModelSpec;
use anyhow::{Context as _, bail};
use serde::Deserialize;

/// Examples whose labels are read together.
const TOGETHER: usize = 4_096;

/// A data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataName {
    /// MNIST: 60,000 images to train on, 10,000 to test on.
    Mnist,
    /// The digits of the examples (`examples/data`): 1,437 to train on, 360 to test on.
    Digits,
}

impl DataName {
    /// The files that must be there: first the one to train on, then the one to test on.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Mnist => &[
                "train-images-idx3-ubyte.gz",
                "t10k-images-idx3-ubyte.gz",
                "train-labels-idx1-ubyte.gz",
                "t10k-labels-idx1-ubyte.gz",
            ],
            Self::Digits => &["digits-train.csv.gz", "digits-test.csv.gz"],
        }
    }

    /// The folder below the data directory in which it may be too.
    fn folder(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::Digits => "digits",
        }
    }

    fn source(self) -> &'static str {
        match self {
            Self::Mnist => "MNIST's four files are to be had from https://ossci-datasets.s3.amazonaws.com/mnist/",
            Self::Digits => "the digits are in examples/data",
        }
    }

    /// The folder that has every file, or which one is missing.
    fn locate(self, data: Option<&Path>) -> anyhow::Result<PathBuf> {
        let Some(data) = data else {
            bail!(
                "this workload needs data: name their directory with --data or ANABRANCH_DATA; {} ({})",
                self.source(),
                self.files().join(", ")
            )
        };
        let missing = |folder: &Path| self.files().iter().find(|file| !folder.join(file).is_file());
        let below = data.join(self.folder());
        if missing(&below).is_none() {
            return Ok(below);
        }
        match missing(data) {
            None => Ok(data.to_owned()),
            Some(file) => bail!("{} is missing; {}", data.join(file).display(), self.source()),
        }
    }
}

/// A data set in memory.
#[derive(Debug)]
pub(super) struct DataSet {
    train: Arc<dyn Shard>,
    labels: Vec<u32>,
    /// The test examples of each class, the first class first.
    test: Vec<Rows>,
}

impl DataSet {
    /// Reads a data set for a model.
    ///
    /// # Errors
    /// A file is missing, or does not fit the model. The text says which one, and where it is to be had.
    pub(super) fn open(name: DataName, data: Option<&Path>, model: &ModelSpec) -> anyhow::Result<Self> {
        let folder = name.locate(data)?;
        let open = |file: &str| -> anyhow::Result<Arc<dyn Shard>> {
            let opened = shard::open(&folder.join(file), &ShardOptions::for_model(model));
            Ok(Arc::from(opened.context("cannot read the data set")?))
        };
        let (train, test) = (open(name.files()[0])?, open(name.files()[1])?);
        let labels = labels_of(&*train);
        let of_test = labels_of(&*test);
        let of_class = |class: u32| {
            let rows = (0..of_test.len()).filter(|index| of_test[*index] == class).collect();
            Rows::new(Arc::clone(&test), rows)
        };
        Ok(Self { train, labels, test: (0..model.classes).map(of_class).collect() })
    }

    /// Returns the label of every example to train on.
    pub(super) fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Returns the examples to train on at these indices.
    pub(super) fn shard(&self, rows: Vec<usize>) -> Rows {
        Rows::new(Arc::clone(&self.train), rows)
    }

    /// Returns the test examples of each class, the first class first.
    pub(super) fn test(&self) -> &[Rows] {
        &self.test
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

/// Some examples of a shard, which they share with others.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    of: Arc<dyn Shard>,
    rows: Arc<[usize]>,
}

impl Rows {
    fn new(of: Arc<dyn Shard>, rows: Vec<usize>) -> Self {
        Self { of, rows: rows.into() }
    }
}

impl Shard for Rows {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn input_shape(&self) -> &[u64] {
        self.of.input_shape()
    }

    fn classes(&self) -> u32 {
        self.of.classes()
    }

    fn read(&self, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        let rows: Vec<usize> = indices.iter().map(|index| self.rows[*index]).collect();
        self.of.read(&rows, inputs, labels);
    }
}

#[cfg(test)]
mod tests {
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
}
