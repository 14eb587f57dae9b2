//! A coordinator whose run is in a bucket, as real processes: killed, and started again on a machine without its store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anabranch_coordinator::clock;

use super::servers::Kind;
use super::verbs::call;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// A process that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Running {
    fn start(program: &Path, args: &[&str], environment: &BTreeMap<String, String>) -> Self {
        let mut command = Command::new(program);
        command.args(args).envs(environment).env_remove("ANABRANCH_COORDINATOR_DIR").stdin(Stdio::null());
        // What it logs is shown with a test that fails.
        Self(command.stdout(Stdio::null()).spawn().expect("the binary starts"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }
}

/// The agent: the lab's binary beside the coordinator's plays it.
fn agent() -> Option<PathBuf> {
    let lab = Path::new(env!("CARGO_BIN_EXE_anabranch-coordinator")).with_file_name("anabranch-lab");
    if lab.exists() {
        return Some(lab);
    }
    assert!(std::env::var_os("CI").is_none(), "CI builds the lab before: {} is missing", lab.display());
    eprintln!("not checked: there is no {}; `cargo build -p anabranch-tests` makes it", lab.display());
    None
}

struct Trainer {
    dir: String,
    environment: BTreeMap<String, String>,
}

impl Trainer {
    fn call(&self, verb: &[&str], rest: &[&str]) -> (i32, String) {
        let args: Vec<&str> = verb.iter().copied().chain(["--dir", &self.dir]).chain(rest.iter().copied()).collect();
        call(&args, &self.environment)
    }

    fn start(&self) -> Running {
        let program = Path::new(env!("CARGO_BIN_EXE_anabranch-coordinator"));
        Running::start(program, &["run", "--dir", &self.dir], &self.environment)
    }

    fn status(&self) -> Option<serde_json::Value> {
        let (code, said) = self.call(&["status"], &["--json"]);
        (code == 0).then(|| serde_json::from_str(&said).ok()).flatten()
    }

    /// Waits until the status is as wanted.
    fn wait(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let began = clock::monotonic();
        loop {
            let status = self.status();
            match status {
                Some(status) if wanted(&status) => return status,
                status => assert!(began.elapsed() < PATIENCE, "it does not come: {status:?}"),
            }
        }
    }
}

fn version(status: &serde_json::Value) -> u64 {
    status["version"].as_u64().unwrap_or(0)
}

#[test]
fn a_killed_coordinator_goes_on_with_an_empty_directory_and_the_same_bits() {
    let Some(lab) = agent() else { return };
    for kind in Kind::ALL {
        let Some(server) = kind.start() else { continue };
        goes_on(&lab, &server.url("wards"), server.environment());
    }
}

fn goes_on(lab: &Path, url: &str, environment: BTreeMap<String, String>) {
    let root = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| root.path().join(name).to_str().expect("a path").to_owned();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let trainer = Trainer { dir: at("trainer"), environment };
    let (code, said) = trainer.call(&["init"], &["--listen", &format!("127.0.0.1:{port}")]);
    assert_eq!(code, 0, "{said}");
    configure(&at("trainer/run.toml"), url);
    let (code, token) = trainer.call(&["token", "create"], &[]);
    assert_eq!(code, 0, "{token}");
    let token = token.lines().next().expect("a token");
    let mut serving = trainer.start();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/digits-train.csv.gz");
    let own = |args: &[&str]| {
        let args: Vec<&str> = std::iter::once("as-agent").chain(args.iter().copied()).collect();
        Running::start(lab, &args, &BTreeMap::new())
    };
    trainer.wait(|status| status["serving"] == true);
    let mut join = own(&["join", "--token", token, "--dir", &at("agent")]);
    assert!(join.0.wait().expect("it ends").success(), "the agent has not joined");
    let agent = own(&["run", "--dir", &at("agent"), "--shard", data.to_str().expect("a path")]);
    trainer.wait(|status| version(status) >= 20);
    serving.kill();
    drop(agent);
    assert!(!Path::new(&at("trainer/store/db")).exists(), "nothing of the run is in the directory");
    std::fs::remove_dir_all(at("trainer/store")).expect("removed");
    // What is in the bucket, before anything else is written to it.
    std::fs::create_dir(at("copy")).expect("created");
    let (code, said) = call(&["store", "copy", url, &at("copy")], &trainer.environment);
    assert_eq!(code, 0, "{said}");
    std::fs::copy(at("trainer/run.toml"), at("copy/run.toml")).expect("copied");
    let copied = std::fs::read_to_string(at("copy/run.toml")).expect("read").replacen("url = ", "#url = ", 1);
    std::fs::write(at("copy/run.toml"), copied).expect("written");
    let copy = Trainer { dir: at("copy"), environment: BTreeMap::new() };
    let before = copy.wait(|_| true);
    let mut serving = trainer.start();
    let after = trainer.wait(|status| status["serving"] == true);
    for figure in ["run", "branch", "version", "chain", "updates_accepted"] {
        assert_eq!(before[figure], after[figure], "{figure}");
        assert!(!after[figure].is_null(), "{figure} is part of the status");
    }
    assert!(version(&after) >= 20);
    let bits = |of: &Trainer, out: &str| {
        let version = version(&after).to_string();
        let (code, said) = of.call(&["checkpoint", "export"], &["--version", &version, "--out", &at(out)]);
        assert_eq!(code, 0, "{said}");
        std::fs::read(at(out)).expect("read")
    };
    assert!(bits(&copy, "copy.safetensors") == bits(&trainer, "trainer.safetensors"), "the same bits");
    // And it goes on, with the agent that knows nothing of all this.
    let agent = own(&["run", "--dir", &at("agent"), "--shard", data.to_str().expect("a path")]);
    trainer.wait(|status| version(status) >= version(&after) + 5);
    serving.kill();
    drop(agent);
    let (code, said) = trainer.call(&["checkpoint", "verify"], &[]);
    assert_eq!(code, 0, "{said}");
}

/// A small run that checkpoints often, in a bucket.
fn configure(file: &str, url: &str) {
    let mut text = std::fs::read_to_string(file).expect("read");
    let mut replace = |from: &str, to: &str| {
        assert!(text.contains(from), "run.toml does not contain {from:?}");
        text = text.replacen(from, to, 1);
    };
    replace("#url = \"s3://training/wards\"", &format!("url = \"{url}\""));
    replace("input = [1, 28, 28]", "input = [64]");
    replace("hidden = [128]", "hidden = [16]");
    replace("local_steps = 20", "local_steps = 2");
    replace("every_versions = 200", "every_versions = 8");
    std::fs::write(file, text).expect("written");
}

/// The same run, served in a second place: the first process ends with a code of its own, and has told nobody anything
/// that the second one does not know.
#[test]
fn a_coordinator_that_was_taken_over_ends_with_its_own_code() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| root.path().join(name).to_str().expect("a path").to_owned();
    let trainer = |name: &str| Trainer { dir: at(name), environment: BTreeMap::new() };
    let (first, second) = (trainer("first"), trainer("second"));
    let free = || std::net::UdpSocket::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let (one, other) = (free().to_string(), free().to_string());
    assert_eq!(first.call(&["init"], &["--listen", &one]).0, 0);
    configure(&at("first/run.toml"), &format!("file://{}", at("bucket")));
    assert_eq!(first.call(&["token", "create"], &["--name", "early"]).0, 0);
    let copied = Command::new("cp").args(["-r", &at("first"), &at("second")]).status().expect("copied");
    assert!(copied.success());
    let text = std::fs::read_to_string(at("second/run.toml")).expect("read");
    assert!(text.contains(&one));
    std::fs::write(at("second/run.toml"), text.replace(&one, &other)).expect("written");
    let mut serving = first.start();
    first.wait(|status| status["serving"] == true);
    let _second = second.start();
    second.wait(|status| status["serving"] == true);
    let (code, said) = first.call(&["token", "create"], &["--name", "late"]);
    assert_ne!(code, 0, "{said}");
    assert_eq!(serving.0.wait().expect("it ends").code(), Some(15));
    let (code, said) = second.call(&["token", "list"], &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("early") && !said.contains("late"), "{said}");
}
