//! The shards of W1: MNIST, cut as `tests/workloads/w1-split.txt` says.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use flate2::read::GzDecoder;

/// Line a holds the indices, in the training set, of agent a's examples.
const SPLIT: &str = include_str!("../../../workloads/w1-split.txt");
/// Bytes of one image.
const IMAGE: usize = 784;
/// Bytes before the images, and before the labels.
const HEADERS: (usize, usize) = (16, 8);

/// Writes a directory for each line of the split file, `shard-0` and so on, and returns them in order.
///
/// # Errors
/// MNIST is not in `data`, or is not what the split file is about.
pub(super) fn write_shards(data: &Path, to: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let images = read(&data.join("train-images-idx3-ubyte.gz"))?;
    let labels = read(&data.join("train-labels-idx1-ubyte.gz"))?;
    let images = images.get(HEADERS.0..).context("the images are cut off")?;
    let labels = labels.get(HEADERS.1..).context("the labels are cut off")?;
    ensure!(images.len() == labels.len() * IMAGE, "{} labels do not fit the images", labels.len());
    let mut shards = Vec::new();
    for (agent, line) in SPLIT.lines().enumerate() {
        let (mut own_images, mut own_labels) = (Vec::new(), Vec::new());
        for word in line.split_whitespace() {
            let index: usize = word.parse().with_context(|| format!("line {agent} of the split: {word:?}"))?;
            own_labels.push(*labels.get(index).with_context(|| format!("there is no example {index}"))?);
            own_images.extend_from_slice(&images[index * IMAGE..(index + 1) * IMAGE]);
        }
        shards.push(write(&to.join(format!("shard-{agent}")), &own_images, &own_labels)?);
    }
    Ok(shards)
}

/// Writes the test set.
///
/// # Errors
/// It is not in `data`.
pub(super) fn write_test(data: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let images = read(&data.join("t10k-images-idx3-ubyte.gz"))?;
    let labels = read(&data.join("t10k-labels-idx1-ubyte.gz"))?;
    ensure!(images.len() > HEADERS.0 && labels.len() > HEADERS.1, "the test set is cut off");
    write(&to.join("test"), &images[HEADERS.0..], &labels[HEADERS.1..])
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

fn write(folder: &Path, images: &[u8], labels: &[u8]) -> anyhow::Result<PathBuf> {
    std::fs::create_dir(folder)?;
    let count = u32::try_from(labels.len())?.to_be_bytes();
    let side = 28u32.to_be_bytes();
    let images = [&[0, 0, 8, 3], &count[..], &side, &side, images].concat();
    let labels = [&[0, 0, 8, 1], &count[..], labels].concat();
    std::fs::write(folder.join("images-idx3-ubyte"), images)?;
    std::fs::write(folder.join("labels-idx1-ubyte"), labels)?;
    Ok(folder.to_path_buf())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A split that gives an example to nobody or to two agents would measure another workload.
    #[test]
    fn the_split_gives_every_training_example_to_one_agent() {
        let all: Vec<u32> = SPLIT.split_whitespace().map(|word| word.parse().expect("an index")).collect();
        assert_eq!(SPLIT.lines().count(), 10);
        assert_eq!(all.len(), 60_000);
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), (0..60_000).collect());
    }
}
