//! What can be done to a node.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::link::Conditions;

/// One kind of fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// kill -9; started again when it is over.
    Kill,
    /// SIGTERM; started again when it is over.
    Park,
    /// SIGSTOP, then SIGCONT.
    Hang,
    /// The process gets this share of the time (0..1), a tenth of a second at a time.
    Slow {
        /// Share of the time.
        share: f64,
    },
    /// The agent's link is like this instead; for the coordinator: every link.
    Link {
        /// In which direction.
        #[serde(default)]
        way: Ways,
        /// A new address for the agent, again and again, in milliseconds; 0 for never.
        #[serde(default)]
        rebind_ms: u64,
        /// What happens to datagrams.
        #[serde(default)]
        line: Conditions,
    },
    /// The links to the helper from other members of its pod are like this instead; its link to the coordinator is as ever.
    PodLink {
        /// What happens to datagrams, in both directions.
        #[serde(default)]
        line: Conditions,
    },
    /// Every write into the node's directory fails: no space.
    DiskFull,
    /// Every sync in the node's directory fails with EIO.
    DiskError,
    /// Every sync in the node's directory takes that much longer.
    DiskSlow {
        /// In milliseconds.
        delay_ms: u64,
    },
    /// The wall clock jumps, and back again.
    Clock {
        /// By so many seconds.
        offset_s: i64,
    },
    /// The agent is killed, its shard damaged, and it is started on it; the shard is whole again when it is over.
    CorruptShard,
    /// The agent is killed and started as one that sends wrong numbers; killed again, and honest, when it is over.
    Poison {
        /// Which.
        with: Poison,
    },
}

/// Directions of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ways {
    /// Both.
    #[default]
    Both,
    /// From the agent.
    Up,
    /// To the agent.
    Down,
}

/// Wrong numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Poison {
    /// Not a number.
    Nan,
    /// The difference times a million.
    Huge,
    /// The difference times -10.
    Flip,
}

impl Fault {
    /// Its name in the scenario file and in the scorecard.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Park => "park",
            Self::Hang => "hang",
            Self::Slow { .. } => "slow",
            Self::Link { .. } => "link",
            Self::PodLink { .. } => "pod-link",
            Self::DiskFull => "disk-full",
            Self::DiskError => "disk-error",
            Self::DiskSlow { .. } => "disk-slow",
            Self::Clock { .. } => "clock",
            Self::CorruptShard => "corrupt-shard",
            Self::Poison { .. } => "poison",
        }
    }

    /// In words, for the log and the picture.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Slow { share } => format!("runs {:.0} % of the time", share * 100.0),
            Self::Link { way, rebind_ms, line } => {
                let way = match way {
                    Ways::Both => "link",
                    Ways::Up => "link up",
                    Ways::Down => "link down",
                };
                let rebind = if *rebind_ms > 0 { format!(" new address every {rebind_ms} ms") } else { String::new() };
                format!("{way}:{line}{rebind}")
            }
            Self::PodLink { line } => format!("links of its pod:{line}"),
            Self::DiskSlow { delay_ms } => format!("syncs take {delay_ms} ms more"),
            Self::Clock { offset_s } => format!("clock off by {offset_s} s"),
            Self::Poison { with } => format!("sends wrong numbers ({with:?})").to_lowercase(),
            Self::Kill => "kill -9".to_owned(),
            Self::Park => "SIGTERM".to_owned(),
            Self::Hang => "SIGSTOP".to_owned(),
            Self::DiskFull => "no space on its disk".to_owned(),
            Self::DiskError => "syncs fail".to_owned(),
            Self::CorruptShard => "its shard is damaged".to_owned(),
        }
    }

    /// Whether it needs the library that is loaded into the daemons.
    #[must_use]
    pub fn needs_shim(&self) -> bool {
        matches!(self, Self::DiskFull | Self::DiskError | Self::DiskSlow { .. } | Self::Clock { .. })
    }

    pub(super) fn agents_only(&self) -> bool {
        matches!(self, Self::CorruptShard | Self::Poison { .. })
    }

    pub(super) fn helpers_only(&self) -> bool {
        matches!(self, Self::PodLink { .. })
    }

    pub(super) fn needs_shard(&self) -> bool {
        self.agents_only()
    }

    pub(super) fn is_link(&self) -> bool {
        matches!(self, Self::Link { .. } | Self::PodLink { .. })
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Slow { share } => ensure!((0.01..=1.0).contains(share), "share must be 0.01 to 1, not {share}"),
            Self::Link { line, .. } | Self::PodLink { line } => line.check()?,
            _ => {}
        }
        Ok(())
    }
}
