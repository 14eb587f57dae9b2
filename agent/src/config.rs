//! An agent's directory and its `agent.toml`: written by `join`, edited by people, checked strictly.
//!
//! ```text
//!  dir/
//!    agent.toml             who and where; shard, device, threads
//!    coordinator            the address that worked last
//!    tls/agent.crt          certificate (PEM)        tls/ca.crt   the CAs that are trusted (PEM): one, or two in a rollover
//!    tls/agent.key          private key (PEM, 0600), made here; it never leaves
//!    tls/agent.crt.next  agent.key.next   what takes their place when both are there (see `identity`)
//!    store/                 outbox and residual (see `store`)
//!    round                  a long round that is under way (see `train::Rounds`)
//!    runs/RUN-ID/           store/ and round of a run beside the one that was joined
//!    control.sock           while it runs: what `status` asks
//! ```

mod addresses;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anabranch_common::ids::{AgentId, Digest, RunId};
use anabranch_common::limits;
use anabranch_common::wire::runs::RunsWanted;
use anabranch_io::text_file::{self, BadEncoding, TextError};
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use crate::device;
use crate::encode::cuda::EncoderPlace;
use crate::manners::MannersConfig;
pub use addresses::{Addresses, with_addresses};

/// Name of the folder with the directories of further runs.
const RUNS_DIR: &str = "runs";

/// The directory of one agent.
#[derive(Debug, Clone)]
pub struct AgentDir(PathBuf);

impl AgentDir {
    /// The directory at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `agent.toml`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("agent.toml")
    }

    /// The agent's certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.0.join("tls").join("agent.crt")
    }

    /// The certificate that takes the place of the present one.
    #[must_use]
    pub fn next_certificate(&self) -> PathBuf {
        self.0.join("tls").join("agent.crt.next")
    }

    /// The private key that takes the place of the present one.
    #[must_use]
    pub fn next_key(&self) -> PathBuf {
        self.0.join("tls").join("agent.key.next")
    }

    /// The address of the coordinator that worked last.
    #[must_use]
    pub fn last_address(&self) -> PathBuf {
        self.0.join("coordinator")
    }

    /// The agent's private key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.0.join("tls").join("agent.key")
    }

    /// The certificates of the CAs that are trusted.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.0.join("tls").join("ca.crt")
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// The state of a long round.
    #[must_use]
    pub fn round(&self) -> PathBuf {
        self.0.join("round")
    }

    /// The directory of a run beside the one that was joined: its store and its round are there.
    #[must_use]
    pub fn of_run(&self, run: RunId) -> Self {
        Self(self.0.join(RUNS_DIR).join(run.to_string()))
    }

    /// Runs beside the one that was joined that have a directory here, by id.
    #[must_use]
    pub fn runs(&self) -> Vec<RunId> {
        let entries = std::fs::read_dir(self.0.join(RUNS_DIR)).into_iter().flatten().flatten();
        let mut runs: Vec<RunId> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        runs.sort_unstable();
        runs
    }

    /// What is left for the next process, should the system kill this one for its memory.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.0.join("memory.json")
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }
}

/// `agent.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// `host:port` of the coordinator, or several of them.
    pub address: Addresses,
    /// The run.
    pub run: RunId,
    /// Who this is: derived from its first key.
    pub agent: AgentId,
    /// What the coordinator calls this agent.
    pub name: String,
    /// BLAKE3 over the certificate of the CA with which it has joined. Which CAs count is in `tls/ca.crt`.
    pub ca_fingerprint: Digest,
    /// What to train on; relative to the agent's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<PathBuf>,
    /// What to evaluate on; relative to the agent's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_shard: Option<PathBuf>,
    /// Name of the label column in a CSV shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// Names of columns of a CSV shard that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_columns: Vec<String>,
    /// Device to train on.
    #[serde(default)]
    pub device: device::Choice,
    /// Where updates are encoded.
    #[serde(default, skip_serializing_if = "EncoderPlace::is_auto")]
    pub encoder: EncoderPlace,
    /// Threads for the maths; absent: as many as there are cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Program that trains instead of the native models, and its arguments; started in the agent's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainer: Option<Vec<String>>,
    /// How long such a program may go without a step or an answer before it is killed, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainer_timeout_s: Option<u64>,
    /// Whether the native models are trained in a process of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolate: bool,
    /// How often a long round is written to disk, so that it is resumed when the agent is killed, in seconds; 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_s: Option<u64>,
    /// Whether the next lease and its base are obtained while a round is computed; absent: yes, where that saves time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<bool>,
    /// Where figures for Prometheus are served; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Where this agent listens for other members of pods; absent: it joins none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_listen: Option<SocketAddr>,
    /// `host:port` at which other members of pods reach it; absent: where it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_advertise: Option<String>,
    /// The site of this agent, whose agents form pods of replicas; absent: the site without a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The runs to take part in beside the joined one; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<RunsChoice>,
    /// When and how much of this machine to leave to its owner.
    #[serde(default, skip_serializing_if = "MannersConfig::is_default")]
    pub manners: MannersConfig,
}

/// The runs to take part in beside the joined one: `all`, or names or ids with commas between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunsChoice(pub RunsWanted);

impl FromStr for RunsChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = match text.trim() {
            "all" => RunsWanted::All,
            names => RunsWanted::Named(names.split(',').map(|name| name.trim().to_owned()).collect()),
        };
        match wanted.validate() {
            Ok(()) => Ok(Self(wanted)),
            Err(error) => Err(format!("{error}; expected `all`, or names of runs like digits,text")),
        }
    }
}

impl TryFrom<String> for RunsChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RunsChoice> for String {
    fn from(RunsChoice(wanted): RunsChoice) -> Self {
        match wanted {
            RunsWanted::All => "all".to_owned(),
            RunsWanted::Named(names) => names.join(","),
        }
    }
}

/// Why `agent.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not there: nobody has joined.
    #[error("{} does not exist", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: TextError,
    },
    /// It is not UTF-8.
    #[error("{}:{}: {}", path.display(), encoding.line, encoding.problem)]
    Encoding {
        /// Where it is.
        path: PathBuf,
        /// Where in it, and how.
        encoding: BadEncoding,
    },
    /// A line is not what it should be.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// Where it is.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
}

impl AgentConfig {
    /// Reads and checks `agent.toml`.
    ///
    /// # Errors
    /// It is missing, unreadable, or a line is wrong (an unknown key included).
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let owned = || path.to_path_buf();
        let text = text_file::read(path, limits::CONFIG_FILE_BYTES).map_err(|error| match error {
            TextError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
                ConfigError::Missing { path: owned() }
            }
            TextError::Encoding { encoding } => ConfigError::Encoding { path: owned(), encoding },
            source => ConfigError::Unreadable { path: owned(), source },
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let at = |offset: usize, problem: String| ConfigError::Line {
            path: path.to_path_buf(),
            line: text[..offset.min(text.len())].matches('\n').count() + 1,
            problem,
        };
        let config: Self = toml::from_str(text).map_err(|error| {
            at(error.span().map_or(0, |span| span.start), error.message().lines().collect::<Vec<_>>().join(" "))
        })?;
        let offset_of = |key: &str| {
            let table = DeTable::parse(text).ok();
            table.and_then(|table| Some(table.get_ref().get_key_value(key)?.0.span().start)).unwrap_or(0)
        };
        if let Some(problem) = config.address.problem() {
            return Err(at(offset_of("address"), problem));
        }
        if let Some(problem) = config.pod_advertise.as_deref().and_then(advertise_problem) {
            return Err(at(offset_of("pod_advertise"), format!("pod_advertise {problem}")));
        }
        if let Some(problem) = config.site.as_deref().and_then(site_problem) {
            return Err(at(offset_of("site"), format!("site {problem}")));
        }
        if config.threads == Some(0) {
            return Err(at(
                offset_of("threads"),
                "threads must be at least 1; leave the key out to use all cores".into(),
            ));
        }
        if config.trainer.as_ref().is_some_and(|command| command.first().is_none_or(String::is_empty)) {
            let problem = "trainer is empty, expected a program and its arguments, like [\"python3\", \"train.py\"]";
            return Err(at(offset_of("trainer"), problem.into()));
        }
        if config.trainer_timeout_s == Some(0) {
            return Err(at(offset_of("trainer_timeout_s"), "trainer_timeout_s must be at least 1".into()));
        }
        Ok(config)
    }

    /// The file that `join` writes: the values, and what else can be set.
    #[must_use]
    pub fn to_commented_toml(&self) -> String {
        let values = toml::to_string(self).expect("strings and numbers always have a TOML form");
        let mut text = String::from(
            "# Written by `anabranch-agent join`. `anabranch-agent set-coordinators` changes `address`. The four keys below it\n\
             # belong to the certificate in tls/: leave them.\n",
        );
        for line in values.lines() {
            if line.starts_with("device") {
                text.push_str("\n# What to train on. Options on the command line win over these.\n");
                for (unset, example) in [
                    (
                        self.shard.is_none(),
                        "# shard = \"train.csv\"        # CSV, a directory with IDX files, or a folder of text; relative to this directory\n",
                    ),
                    (
                        self.eval_shard.is_none(),
                        "# eval_shard = \"test.csv\"    # evaluate on this; without `shard` this agent only evaluates\n",
                    ),
                    (self.label_column.is_none(), "# label_column = \"label\"     # of a CSV file\n"),
                    (
                        self.drop_columns.is_empty(),
                        "# drop_columns = [\"\"]         # of a CSV file: leave these out; \"\" is a column without a name\n",
                    ),
                    (
                        self.encoder == EncoderPlace::Auto,
                        "# encoder = \"cpu\"           # encode updates here even where a GPU trains\n",
                    ),
                    (self.threads.is_none(), "# threads = 2                # default: all cores\n"),
                    (
                        self.trainer.is_none(),
                        "# trainer = [\"python3\", \"train.py\"]   # a program that trains instead of the native models\n",
                    ),
                    (
                        self.trainer_timeout_s.is_none(),
                        "# trainer_timeout_s = 600    # a step of it takes at most this long\n",
                    ),
                    (!self.isolate, "# isolate = true             # native models in a process of their own\n"),
                    (
                        self.checkpoint_s.is_none(),
                        "# checkpoint_s = 60          # a long round is resumed from here when the agent is killed\n",
                    ),
                    (
                        self.overlap.is_none(),
                        "# overlap = false            # ask for the next lease only when a round is over\n",
                    ),
                    (
                        self.metrics.is_none(),
                        "# metrics = \"127.0.0.1:9464\" # figures for Prometheus at http://127.0.0.1:9464/metrics\n",
                    ),
                    (
                        self.pod_listen.is_none(),
                        "# pod_listen = \"10.0.0.7:4440\" # compute rounds together with other agents, which reach this one here (UDP)\n",
                    ),
                    (
                        self.pod_advertise.is_none(),
                        "# pod_advertise = \"clinic.example:4440\" # where they reach it, if that is another address\n",
                    ),
                    (
                        self.site.is_none(),
                        "# site = \"clinic\"            # replicas: agents of one site train together\n",
                    ),
                    (
                        self.runs.is_none(),
                        "# runs = \"all\"               # take part in further runs: all, or names like \"digits,text\"\n",
                    ),
                    (
                        self.manners.is_default(),
                        "# manners.max_threads = 2            # never more threads for the maths\n\
                         # manners.max_memory = \"2G\"         # never more memory for training\n\
                         # manners.nice = 10                  # lower priority\n\
                         # manners.quiet_hours = \"08:00-18:00\"   # UTC: no new work then\n\
                         # manners.pause_on_battery = true    # no new work on battery\n\
                         # manners.max_load = 2.5             # no new work above this 1-minute load average\n",
                    ),
                ] {
                    if unset {
                        text.push_str(example);
                    }
                }
            }
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// Returns what is wrong with the address that an agent tells other members of pods, if anything is.
pub(crate) fn advertise_problem(address: &str) -> Option<String> {
    if !is_host_and_port(address) {
        return Some(format!("{address:?} is not a host and a port, like clinic.example:4440"));
    }
    if address.len() > limits::POD_ADDRESS_BYTES || address.chars().any(|symbol| symbol.is_control() || symbol == ' ') {
        return Some(format!("{address:?} is longer than {} bytes, or has blanks in it", limits::POD_ADDRESS_BYTES));
    }
    None
}

/// Returns what is wrong with the name of a site, if anything is.
pub(crate) fn site_problem(site: &str) -> Option<String> {
    let is_long = site.len() > limits::POD_SITE_BYTES;
    (is_long || site.chars().any(char::is_control))
        .then(|| format!("{site:?} is longer than {} bytes, or has control characters in it", limits::POD_SITE_BYTES))
}

fn is_host_and_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            address: "127.0.0.1:4433".into(),
            run: RunId([1; 16]),
            agent: AgentId([2; 16]),
            name: "north".into(),
            ca_fingerprint: Digest([3; 32]),
            shard: Some("train.csv".into()),
            eval_shard: None,
            label_column: None,
            drop_columns: Vec::new(),
            device: device::Choice::Auto,
            encoder: EncoderPlace::Auto,
            threads: None,
            trainer: None,
            trainer_timeout_s: None,
            isolate: false,
            checkpoint_s: None,
            overlap: None,
            metrics: None,
            pod_listen: None,
            pod_advertise: None,
            site: None,
            runs: None,
            manners: MannersConfig::default(),
        }
    }

    #[test]
    fn what_join_writes_is_what_run_reads() {
        let text = config().to_commented_toml();
        assert_eq!(AgentConfig::parse(Path::new("agent.toml"), &text).expect("valid"), config());
        assert!(text.contains("# eval_shard ="), "{text}");
    }

    /// The commented lines of a fresh file work as they stand, and survive being written again.
    #[test]
    fn the_examples_of_manners_can_be_uncommented() {
        let text = config().to_commented_toml().replace("# manners.", "manners.");
        let read = AgentConfig::parse(Path::new("agent.toml"), &text).expect("valid");
        assert!(read.manners.pause_on_battery && read.manners.max_load.is_some(), "{read:?}");
        assert_eq!(AgentConfig::parse(Path::new("agent.toml"), &read.to_commented_toml()).expect("valid"), read);
    }

    #[test]
    fn the_examples_of_pods_can_be_uncommented() {
        let text = config().to_commented_toml().replace("# pod_", "pod_").replace("# site", "site");
        let read = AgentConfig::parse(Path::new("agent.toml"), &text).expect("valid");
        assert_eq!(read.pod_listen.map(|address| address.port()), Some(4440));
        assert_eq!(
            (read.pod_advertise.as_deref(), read.site.as_deref()),
            (Some("clinic.example:4440"), Some("clinic"))
        );
        assert_eq!(AgentConfig::parse(Path::new("agent.toml"), &read.to_commented_toml()).expect("valid"), read);
    }

    #[test]
    fn the_example_of_runs_can_be_uncommented_and_names_are_checked() {
        let text = config().to_commented_toml().replace("# runs", "runs");
        let read = AgentConfig::parse(Path::new("agent.toml"), &text).expect("valid");
        assert_eq!(read.runs, Some(RunsChoice(RunsWanted::All)));
        assert_eq!(AgentConfig::parse(Path::new("agent.toml"), &read.to_commented_toml()).expect("valid"), read);
        let named: RunsChoice = "digits, text".parse().expect("two names");
        assert_eq!(named, RunsChoice(RunsWanted::Named(vec!["digits".into(), "text".into()])));
        let refused = "digits,".parse::<RunsChoice>().expect_err("a name is empty");
        assert!(refused.contains("expected `all`"), "{refused}");
    }

    #[test]
    fn directories_of_further_runs_are_found_by_their_ids() {
        let temporary = tempfile::tempdir().expect("a folder");
        let dir = AgentDir::new(temporary.path());
        assert_eq!(dir.runs(), []);
        let (a, b) = (RunId([1; 16]), RunId([2; 16]));
        for path in [dir.of_run(b).path(), dir.of_run(a).path(), &dir.path().join("runs").join("other")] {
            std::fs::create_dir_all(path).expect("a folder");
        }
        assert_eq!(dir.runs(), [a, b]);
    }

    #[test]
    fn the_example_of_dropped_columns_can_be_uncommented() {
        let text = config().to_commented_toml().replace("# drop_columns", "drop_columns");
        let read = AgentConfig::parse(Path::new("agent.toml"), &text).expect("valid");
        assert_eq!(read.drop_columns, [""]);
        assert_eq!(AgentConfig::parse(Path::new("agent.toml"), &read.to_commented_toml()).expect("valid"), read);
    }

    /// Issue-level promise: a mistake in a configuration file is told with file and line.
    #[test]
    fn mistakes_are_told_with_their_line() {
        let good = config().to_commented_toml();
        let lines = good.lines().count();
        let cases = [
            (format!("{good}sahrd = \"x\"\n"), lines + 1, "unknown field `sahrd`"),
            (format!("{good}threads = 0\n"), lines + 1, "at least 1"),
            (format!("{good}pod_listen = \"here\"\n"), lines + 1, "socket address"),
            (
                format!("{good}pod_advertise = \"clinic\"\n"),
                lines + 1,
                "pod_advertise \"clinic\" is not a host and a port",
            ),
            (format!("{good}site = \"a\\tb\"\n"), lines + 1, "site \"a\\tb\" is longer than 64 bytes, or has control"),
            (format!("{good}manners.quiet_hours = \"8-18\"\n"), lines + 1, "not a time of the day in UTC"),
            (format!("{good}manners.max_load = -1.0\n"), lines + 1, "not a load average above 0"),
            (format!("{good}manners.max_memory = \"lots\"\n"), lines + 1, "not a size of memory above 0"),
            (format!("{good}manners.max_threads = 0\n"), lines + 1, "nonzero"),
            (format!("{good}manners.nice = 20\n"), lines + 1, "not a whole number from 0 to 19"),
            (format!("{good}manners.nise = 1\n"), lines + 1, "unknown field `nise`"),
            (format!("{good}trainer = []\n"), lines + 1, "expected a program and its arguments"),
            (format!("{good}trainer_timeout_s = 0\n"), lines + 1, "at least 1"),
            (format!("{good}trainer_timeout_s = 9\ntrainer = []\n"), lines + 2, "expected a program"),
            (good.replace("127.0.0.1:4433", "nowhere"), 3, "not a host and a port"),
            (good.replace("\"auto\"", "\"tpu\""), lines, "unknown device `tpu`"),
            (good.replace("\"auto\"", "\"cuda:x\""), lines, "does not end in the number of a device"),
            (good.replace("run = \"01", "run = \"zz"), 4, "32 hexadecimal characters"),
        ];
        for (text, expected, part) in cases {
            match AgentConfig::parse(Path::new("agent.toml"), &text) {
                Err(ConfigError::Line { line, problem, .. }) => {
                    assert!(problem.contains(part), "{problem:?} should contain {part:?}");
                    assert_eq!(line, expected, "{problem}");
                }
                other => panic!("expected an error about {part:?}, found {other:?}"),
            }
        }
    }
}
