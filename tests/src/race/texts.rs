//! Text for language models: a folder of files for each agent, and files of every folder that nobody trains on.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::split::Split;

/// What separates two files.
const SEPARATOR: u8 = 0;

/// Text, shared out.
#[derive(Debug)]
pub(super) struct Texts {
    /// What each agent trains on.
    pub(super) agents: Vec<Vec<u8>>,
    /// What models are tested on, of every agent's folder as much.
    pub(super) test: Vec<u8>,
}

/// Reads the folders of a split below `data`. Files are taken in the order of their paths.
///
/// # Errors
/// The split is of another kind, a folder is missing, or has too few files.
pub(super) fn read(split: &Split, data: &Path, agents: usize) -> anyhow::Result<Texts> {
    let Split::Folders { agents: folders, extension, held_out_every, held_out_bytes } = split else {
        bail!("split.kind must be folders for text")
    };
    ensure!(folders.len() == agents, "split.agents has {} folders for {agents} agents", folders.len());
    let mut texts = Texts { agents: Vec::new(), test: Vec::new() };
    for folder in folders {
        let folder = data.join(folder);
        let shown = folder.display().to_string();
        let mut files = Vec::new();
        collect(&folder, extension, &mut files).with_context(|| format!("cannot read the folder {shown}"))?;
        files.sort();
        let (mut own, mut held_out) = (Vec::new(), Vec::new());
        for (index, file) in files.iter().enumerate() {
            let to = if (index + 1).is_multiple_of(*held_out_every) { &mut held_out } else { &mut own };
            to.extend(std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
            to.push(SEPARATOR);
        }
        ensure!(!own.is_empty(), "{shown} has no file to train on that ends in .{extension}");
        ensure!(held_out.len() >= *held_out_bytes, "{shown} has {} bytes to hold out", held_out.len());
        texts.test.extend(&held_out[..*held_out_bytes]);
        texts.agents.push(own);
    }
    Ok(texts)
}

/// Links are not followed.
fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let (path, kind) = (entry.as_ref().map_or_else(|_| PathBuf::new(), |entry| entry.path()), entry?.file_type()?);
        if kind.is_dir() {
            collect(&path, extension, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_holds_out_its_own_files_and_nobody_trains_on_them() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        for (agent, letter) in [("one", "a"), ("two", "b")] {
            let path = folder.path().join(agent).join("inner");
            std::fs::create_dir_all(&path)?;
            for number in 0..4 {
                std::fs::write(path.join(format!("{number}.py")), format!("{letter}{number}"))?;
            }
            std::fs::write(path.join("4.pyc"), "not text")?;
        }
        let split = |held_out_bytes, agents: &[&str]| Split::Folders {
            agents: agents.iter().map(PathBuf::from).collect(),
            extension: "py".to_owned(),
            held_out_every: 2,
            held_out_bytes,
        };
        let texts = read(&split(4, &["one", "two"]), folder.path(), 2)?;
        assert_eq!(texts.agents, [b"a0\0a2\0", b"b0\0b2\0"]);
        assert_eq!(texts.test, b"a1\0ab1\0b");
        let problem = |split: &Split, agents| read(split, folder.path(), agents).expect_err("refused").to_string();
        assert!(problem(&split(4, &["one"]), 2).contains("1 folders for 2 agents"));
        assert!(problem(&split(7, &["one"]), 1).contains("has 6 bytes to hold out"));
        assert!(problem(&split(4, &["three"]), 1).contains("three"));
        assert!(problem(&Split::Iid { seed: 1 }, 1).contains("must be folders"));
        Ok(())
    }
}
