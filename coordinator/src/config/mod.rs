//! `run.toml`: what the run computes ([`RunSpec`], sent to every agent) and how this coordinator serves it.
//!
//! ```text
//!  bytes ──► toml ──► tables below ──► validate ──► Config
//!              │         │                │
//!              └─────────┴────────────────┴──► ConfigError { file, line, column, what, help }
//! ```
//! An unknown key is an error, and so is a value out of range: both are reported with the file and the line. Every key
//! is described in `docs/configuration.md`; [`Config::template`] is the commented file that `init` writes.

mod advice;
pub(crate) mod locate;
mod pods;
mod template;
mod validate;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anabranch_common::limits;
use anabranch_common::merge::{MergeSpec, recall};
use anabranch_common::spec::{
    AdmitSpec, DownlinkSpec, EvaluateSpec, ModelSpec, PodSpec, RunSpec, TargetSpec, TrainSpec, UploadSpec,
};
use anabranch_io::logging::LogFormat;
use anabranch_io::text_file::{self, BadEncoding, TextError};
use serde::{Deserialize, Serialize};

pub use advice::advice;
pub use template::TemplateOptions;
pub(crate) use validate::{is_label, label_problem};

/// Name of the configuration file in a coordinator's directory.
pub const FILE_NAME: &str = "run.toml";
/// UDP port on which a coordinator listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 4433;

/// Everything that `run.toml` says, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What the run computes.
    pub spec: RunSpec,
    /// The run's share of an agent's device, in proportion to the weights of the agent's other runs. At least 1.
    pub weight: u32,
    /// What the run may take.
    pub quota: QuotaConfig,
    /// Where its state is stored.
    pub store: StoreConfig,
    /// Where the coordinator is reached, and whom it lets in.
    pub server: ServerConfig,
    /// How work is handed out.
    pub schedule: ScheduleConfig,
    /// When checkpoints are taken, and how many are kept.
    pub checkpoint: CheckpointConfig,
    /// How the coordinator logs.
    pub log: LogConfig,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and UDP port to listen on.
    pub listen: SocketAddr,
    /// Names and addresses under which agents reach this coordinator; join tokens carry them in this order.
    pub names: Vec<String>,
    /// Life of an agent's certificate in days; it is renewed over the open connection at two thirds of it.
    pub agent_certificate_days: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        let listen = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, DEFAULT_PORT));
        Self { listen, names: Vec::new(), agent_certificate_days: 30 }
    }
}

impl ServerConfig {
    /// The addresses that a join token carries: `names`, at most `limits::COORDINATOR_ADDRESSES` of them, else the address of
    /// `listen`, else (where that is a wildcard) 127.0.0.1; with the port of `listen`.
    #[must_use]
    pub fn advertised(&self) -> Vec<String> {
        let port = self.listen.port();
        let address = |host: &String| match host.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{host}]:{port}"),
            Err(_) => format!("{host}:{port}"),
        };
        if !self.names.is_empty() {
            return self.names.iter().take(limits::COORDINATOR_ADDRESSES).map(address).collect();
        }
        vec![if self.listen.ip().is_unspecified() {
            // [::] takes IPv4 too.
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string()
        } else {
            // Without a scope, which means nothing to another machine.
            SocketAddr::new(self.listen.ip(), port).to_string()
        }]
    }

    /// Why agents that use `name` cannot reach a coordinator on `listen`; none where they can, or where only the name
    /// server knows.
    #[must_use]
    pub fn unreachable_by(&self, name: &str) -> Option<String> {
        let bound = self.listen.ip().to_canonical();
        let name_ip = name.parse::<IpAddr>().ok().or_else(|| loopback_v6(name)).map(|ip| ip.to_canonical());
        let takes_both = bound.is_unspecified() && bound.is_ipv6();
        let listen = self.listen;
        if let Some(ip) = name_ip.filter(|ip| ip.is_ipv4() != bound.is_ipv4() && !takes_both) {
            let (family, other) = if ip.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            return Some(format!(
                "holds {name:?}, an address of {family}, but server.listen ({listen}) takes {other} only; [::] takes both"
            ));
        }
        let is_loopback = name_ip.map_or(name.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback());
        (is_loopback && !bound.is_unspecified() && !bound.is_loopback()).then(|| {
            format!(
                "holds {name:?}, where nothing listens: server.listen is {listen}; 0.0.0.0 or [::] takes loopback too"
            )
        })
    }

    /// Every name and address that the server's certificate must list: `names`, and the address to listen on when it is
    /// a certain one.
    #[must_use]
    pub fn certificate_names(&self) -> Vec<String> {
        let listen = Some(self.listen.ip()).filter(|ip| !ip.is_unspecified());
        self.names.iter().cloned().chain(listen.map(|ip| ip.to_string())).collect()
    }

    /// Where a process on this machine reaches the coordinator: `listen`, or loopback when that is a wildcard.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        let mut address = self.listen;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        address
    }
}

/// The address of a name that /etc/hosts has for the loopback of IPv6 alone.
fn loopback_v6(name: &str) -> Option<IpAddr> {
    let is_one = ["ip6-localhost", "ip6-loopback"].iter().any(|known| name.eq_ignore_ascii_case(known));
    is_one.then(|| Ipv6Addr::LOCALHOST.into())
}

/// `[schedule]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Seconds after which a lease no longer counts as outstanding. Work that comes later is still merged while its
    /// base is within `admit.max_staleness`.
    pub lease_ttl_s: f64,
    /// Milliseconds between two looks at what has expired or is due.
    pub tick_ms: u64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { lease_ttl_s: 600.0, tick_ms: 250 }
    }
}

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// A checkpoint after this many versions (0: never by versions) ...
    pub every_versions: u64,
    /// ... or after this many seconds with a new version (0: never by time), whichever comes first.
    pub every_s: f64,
    /// Checkpoints kept, at least 2.
    pub keep: usize,
    /// How much of the journal is kept.
    pub retention: Retention,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_versions: 200, every_s: 60.0, keep: 2, retention: Retention::SinceSnapshot }
    }
}

/// `[quota]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaConfig {
    /// Bytes on the disk above which the run gives no more leases. Without it there is no such bound.
    pub disk_bytes: Option<u64>,
}

/// `[store]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// The bucket that holds the run's state, `scheme://bucket/prefix`. Without it the state is in the run's directory.
    pub url: Option<String>,
}

/// Schemes of [`StoreConfig::url`]. Memory is gone with the process, so it is none of them.
pub(crate) const STORE_SCHEMES: [&str; 4] = ["s3://", "gs://", "az://", "file:///"];

/// How much of the journal is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// Records since the oldest kept checkpoint.
    #[default]
    SinceSnapshot,
    /// Every record since the run began.
    All,
}

/// `[log]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Shape of a line on standard error; `--log-format` overrides it.
    pub format: LogFormat,
}

/// The file as it is written, before its values are checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    run: RunTable,
    model: ModelSpec,
    train: TrainSpec,
    upload: UploadSpec,
    merge: MergeSpec,
    admit: AdmitSpec,
    #[serde(default)]
    downlink: DownlinkSpec,
    pod: Option<PodSpec>,
    evaluate: EvaluateSpec,
    #[serde(default)]
    target: TargetSpec,
    #[serde(default)]
    server: ServerConfig,
    #[serde(default)]
    schedule: ScheduleConfig,
    #[serde(default)]
    checkpoint: CheckpointConfig,
    #[serde(default)]
    quota: QuotaConfig,
    #[serde(default)]
    store: StoreConfig,
    #[serde(default)]
    log: LogConfig,
}

impl File {
    /// Fills in `merge.step` where `text` leaves it out: which step suits depends on the local optimizer.
    fn fill_in_step(&mut self, text: &str) {
        let MergeSpec::Recall { step, .. } = &mut self.merge else { return };
        let table: Option<toml::Table> = text.parse().ok();
        let given = table.as_ref().and_then(|table| table.get("merge")).and_then(|merge| merge.get("step"));
        if given.is_none() {
            *step = recall::usual_step(&self.train.optimizer);
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunTable {
    name: String,
    seed: u64,
    #[serde(default = "one")]
    weight: u32,
}

/// The weight of a run that names none.
fn one() -> u32 {
    1
}

/// Tables of the process. Only `run.toml` of its own directory has them.
const PROCESS_TABLES: [&str; 2] = ["server", "log"];

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: TextError,
    },
    /// Not UTF-8.
    #[error("{}:{}:{}: {}", path.display(), encoding.line, encoding.column, encoding.problem)]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Where, and how.
        encoding: BadEncoding,
    },
    /// Not TOML, an unknown key, a missing one, or a value of another type.
    #[error("{}:{line}:{column}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// A value that makes no sense.
    #[error("{}:{line}:{column}: {key} {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The key, with its table: `train.batch_size`.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
}

impl ConfigError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        let missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        matches!(self, Self::Unreadable { source: TextError::Io(error), .. } if missing(error))
    }
}

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// See [`ConfigError`]; the text names file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &read(path)?)
    }

    /// Reads and checks `path`, the configuration of the run `name` in a directory of its own: see [`parse_run`](Self::parse_run).
    ///
    /// # Errors
    /// See [`ConfigError`]; the text names file, line and column.
    pub fn load_run(path: &Path, name: &str) -> Result<Self, ConfigError> {
        Self::parse_run(path, &read(path)?, name)
    }

    /// Checks `text` as the configuration of the run `name` in a directory of its own. The run has that name, whatever
    /// `run.name` says, and the tables of the process are refused.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse_run(path: &Path, text: &str, name: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().unwrap_or_default();
        if let Some(key) = PROCESS_TABLES.into_iter().find(|key| table.contains_key(*key)) {
            let (line, column) = locate::line_column(text, locate::of_key(text, key));
            let problem = "is a table of the process: take it out here, and set it in run.toml of the directory that \
                           `init` has made";
            let (path, key, problem) = (path.to_owned(), key.to_owned(), problem.to_owned());
            return Err(ConfigError::Value { path, line, column, key, problem });
        }
        let mut config = Self::parse(path, text)?;
        name.clone_into(&mut config.spec.name);
        Ok(config)
    }

    /// Checks `text` as if it had been read from `path`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut file: File = toml::from_str(text).map_err(|error| {
            let complaint = |text: &str| Some(toml::from_str::<File>(text).err()?.message().to_owned());
            let (offset, problem) = match locate::culprit(text, &error, complaint) {
                Some(key) => (locate::of_key(text, &key), format!("{key}: {}", error.message())),
                None => (locate::of_error(text, &error), error.message().to_owned()),
            };
            let (line, column) = locate::line_column(text, offset);
            ConfigError::Syntax { path: path.to_owned(), line, column, problem }
        })?;
        file.fill_in_step(text);
        let config = Self {
            spec: RunSpec {
                name: file.run.name,
                seed: file.run.seed,
                model: file.model,
                train: file.train,
                upload: file.upload,
                merge: file.merge,
                admit: file.admit,
                downlink: file.downlink,
                pod: file.pod,
                evaluate: file.evaluate,
                target: file.target,
            },
            weight: file.run.weight,
            quota: file.quota,
            store: file.store,
            server: file.server,
            schedule: file.schedule,
            checkpoint: file.checkpoint,
            log: file.log,
        };
        validate::check(&config).map_err(|validate::Problem { key, problem }| {
            let (line, column) = locate::line_column(text, locate::of_key(text, key));
            ConfigError::Value { path: path.to_owned(), line, column, key: key.to_owned(), problem }
        })?;
        Ok(config)
    }

    /// The commented `run.toml` that `init` writes: MNIST with a small dense network.
    #[must_use]
    pub fn template(options: &TemplateOptions) -> String {
        template::render(options)
    }
}

/// Returns the text of a configuration file.
fn read(path: &Path) -> Result<String, ConfigError> {
    text_file::read(path, limits::CONFIG_FILE_BYTES).map_err(|error| match error {
        TextError::Encoding { encoding } => ConfigError::Encoding { path: path.to_owned(), encoding },
        source => ConfigError::Unreadable { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests;
