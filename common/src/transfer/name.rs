//! Names of uploads.

use crate::ids::AgentId;
use crate::update::UpdateKey;

/// Whose upload it is, and of what. The half of an upload is kept under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UploadName {
    agent: AgentId,
    /// Epoch and number of the update; none for the model.
    update: Option<(u32, u64)>,
}

impl UploadName {
    /// An update.
    #[must_use]
    pub fn of_update(key: &UpdateKey) -> Self {
        Self { agent: key.agent, update: Some((key.epoch.0, key.seq.0)) }
    }

    /// An agent's initial model.
    #[must_use]
    pub fn of_model(agent: AgentId) -> Self {
        Self { agent, update: None }
    }

    /// Whose it is.
    #[must_use]
    pub fn agent(&self) -> AgentId {
        self.agent
    }

    /// Name of the file in which its half is kept.
    #[must_use]
    pub fn file(&self) -> String {
        match self.update {
            Some((epoch, seq)) => format!("{}-{epoch}-{seq}.part", self.agent),
            None => format!("{}-model.part", self.agent),
        }
    }

    /// Reads a file's name back.
    #[must_use]
    pub fn parse(file: &str) -> Option<Self> {
        let (agent, rest) = file.strip_suffix(".part")?.split_once('-')?;
        let agent = agent.parse().ok()?;
        let update = match rest {
            "model" => None,
            rest => {
                let (epoch, seq) = rest.split_once('-')?;
                Some((epoch.parse().ok()?, seq.parse().ok()?))
            }
        };
        // One spelling for each: no second file can stand for the same upload.
        Some(Self { agent, update }).filter(|name| name.file() == file)
    }
}
