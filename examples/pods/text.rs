//! The text that this run learns: the documentation of the product itself.

use std::path::{Path, PathBuf};

/// Every document, with its name.
const DOCUMENTS: [(&str, &str); 15] = [
    ("README.md", include_str!("../../README.md")),
    ("agents.md", include_str!("../../docs/agents.md")),
    ("benchmarks.md", include_str!("../../docs/benchmarks.md")),
    ("configuration.md", include_str!("../../docs/configuration.md")),
    ("downlink.md", include_str!("../../docs/downlink.md")),
    ("faults.md", include_str!("../../docs/faults.md")),
    ("hardware.md", include_str!("../../docs/hardware.md")),
    ("merging.md", include_str!("../../docs/merging.md")),
    ("operating.md", include_str!("../../docs/operating.md")),
    ("parallelism.md", include_str!("../../docs/parallelism.md")),
    ("protocol.md", include_str!("../../docs/protocol.md")),
    ("race.md", include_str!("../../docs/race.md")),
    ("simulation.md", include_str!("../../docs/simulation.md")),
    ("survival.md", include_str!("../../docs/survival.md")),
    ("trainer-protocol.md", include_str!("../../docs/trainer-protocol.md")),
];
/// The last one in so many bytes of each document is for evaluation.
const HELD_OUT: usize = 32;

/// Folders of text.
#[derive(Debug)]
pub(crate) struct Text {
    /// To train on.
    pub(crate) train: PathBuf,
    /// What no agent trains on.
    pub(crate) held_out: PathBuf,
}

impl Text {
    /// Writes the documents into two folders of `dir`.
    pub(crate) fn write(dir: &Path) -> anyhow::Result<Self> {
        let this = Self { train: dir.join("text"), held_out: dir.join("held-out") };
        std::fs::create_dir_all(&this.train)?;
        std::fs::create_dir_all(&this.held_out)?;
        for (name, text) in DOCUMENTS {
            let (train, held_out) = divide(text);
            std::fs::write(this.train.join(name), train)?;
            std::fs::write(this.held_out.join(name), held_out)?;
        }
        Ok(this)
    }
}

/// Cuts a document before the line in which its last part begins.
fn divide(text: &str) -> (&str, &str) {
    let from = text.len() - text.len() / HELD_OUT;
    let line = text.as_bytes()[..from].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    text.split_at(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_document_has_both_parts_and_nothing_is_in_both() {
        for (name, text) in DOCUMENTS {
            let (train, held_out) = divide(text);
            assert_eq!([train, held_out].concat(), text, "{name}");
            assert!(train.ends_with('\n') && !held_out.is_empty() && train.len() > 10 * held_out.len(), "{name}");
            assert!(held_out.len() >= text.len() / HELD_OUT, "{name}");
        }
    }
}
