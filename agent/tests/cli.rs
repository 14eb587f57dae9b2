//! The real binary, given bad input: each case has its exit code, says what is wrong and what to do, and loses nothing.
//! The coordinator's half of these stories is tested in `anabranch-tests`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion, RunId, UpdateSeq};
use anabranch_common::token::JoinToken;

use anabranch_agent::config::{AgentConfig, AgentDir};
use anabranch_agent::device::{Choice, GpuBackend};
use anabranch_agent::identity::AgentKey;
use anabranch_agent::manners::MannersConfig;
use anabranch_agent::store::Ledger;

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_anabranch-agent"))
        .args(args)
        .env_remove("ANABRANCH_AGENT_DIR")
        .env_remove("ANABRANCH_TOKEN")
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.starts_with("error: ") || text.contains("\nerror: "), "{text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn token(address: &str) -> String {
    JoinToken { addresses: vec![address.to_owned()], ca_fingerprints: vec![Digest([7; 32])], secret: [9; 32] }
        .to_string()
}

/// A directory as `join` leaves it, with certificates that nobody has issued.
fn enrolled(dir: &Path) -> AgentDir {
    let dir = AgentDir::new(dir);
    let key = AgentKey::read_or_make(&dir).expect("made");
    let config = AgentConfig {
        address: "127.0.0.1:9".into(),
        run: RunId([1; 16]),
        agent: key.id(),
        name: "north".into(),
        ca_fingerprint: Digest([7; 32]),
        shard: None,
        eval_shard: None,
        label_column: None,
        drop_columns: Vec::new(),
        device: Choice::Auto,
        encoder: anabranch_agent::encode::cuda::EncoderPlace::Auto,
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
    };
    fs::write(dir.config(), config.to_commented_toml()).expect("written");
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

#[test]
fn a_mistyped_token_is_noticed_before_anything_is_sent() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = temporary.path().join("agent");
    let good = token("127.0.0.1:9");
    let middle = good.len() / 2;
    let swapped = if good.as_bytes()[middle] == b'a' { "b" } else { "a" };
    let mistyped = format!("{}{swapped}{}", &good[..middle], &good[middle + 1..]);
    for (bad, says) in [(&mistyped[..], "mistyped"), (&good[..middle], "join token"), ("hello", "starts with")] {
        let output = agent(&["join", "--token", bad, "--dir", text(&dir)]);
        fails(&output, 5, &[says, "help: copy the whole line"]);
    }
    assert!(!dir.exists(), "a token that cannot be right leaves nothing behind");
}

#[test]
fn a_coordinator_that_does_not_answer_is_tried_for_a_while_and_the_join_can_be_repeated() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = temporary.path().join("agent");
    // A port that is taken and silent: nobody else can answer there while the test runs.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let token = token(&silent.local_addr().expect("bound").to_string());
    let output = agent(&["join", "--token", &token, "--dir", text(&dir)]);
    fails(&output, 4, &["cannot be reached", "help: check that it runs"]);
    let key = fs::read(dir.join("tls/agent.key")).expect("the key is kept for the next try");
    let output = agent(&["join", "--token", &token, "--dir", text(&dir)]);
    fails(&output, 4, &["cannot be reached"]);
    assert_eq!(fs::read(dir.join("tls/agent.key")).expect("there"), key, "a retry must use the same key");
}

#[test]
fn join_does_not_touch_a_directory_with_something_else_in_it() {
    let temporary = tempfile::tempdir().expect("a directory");
    fs::write(temporary.path().join("thesis.tex"), "precious").expect("written");
    let output = agent(&["join", "--token", &token("127.0.0.1:9"), "--dir", text(temporary.path())]);
    fails(&output, 3, &["is not empty: it holds thesis.tex", "help: choose a directory"]);
    assert_eq!(fs::read_dir(temporary.path()).expect("listed").count(), 1);
}

#[test]
fn join_does_not_replace_another_enrolment() {
    let temporary = tempfile::tempdir().expect("a directory");
    enrolled(temporary.path());
    let other =
        JoinToken { addresses: vec!["127.0.0.1:9".into()], ca_fingerprints: vec![Digest([8; 32])], secret: [9; 32] };
    let output = agent(&["join", "--token", &other.to_string(), "--dir", text(temporary.path())]);
    fails(&output, 3, &["enrolled with another coordinator, as north"]);
}

/// A container calls `join --if-missing` at each start, and its token is good for one day.
#[test]
fn a_join_where_there_is_an_agent_needs_no_token() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = text(temporary.path());
    fails(&agent(&["join", "--if-missing", "--dir", dir]), 2, &["has no agent yet", "help: give --token"]);
    enrolled(temporary.path());
    let before = fs::read(temporary.path().join("agent.toml")).expect("there");
    let output = agent(&["join", "--if-missing", "--dir", dir]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(temporary.path().join("agent.toml")).expect("there"), before);
    assert_eq!(agent(&["join", "--dir", dir]).status.code(), Some(2), "without the option a token is needed");
}

/// With a GPU, without one or with a sick driver: `devices` looks through its child, and never fails.
#[test]
fn devices_are_shown_and_what_this_build_cannot_use_is_refused() {
    let text = agent(&["devices"]);
    assert_eq!(text.status.code(), Some(0), "{}", String::from_utf8_lossy(&text.stderr));
    let shown = String::from_utf8_lossy(&text.stdout);
    assert!(shown.contains("\nbackends   cpu"), "{shown}");
    let json = agent(&["devices", "--json"]);
    let devices: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert!(devices["cpu"]["usable_cpus"].as_u64().is_some_and(|cpus| cpus > 0), "{devices}");
    let (gpus, problems) = (&devices["nvidia"]["gpus"], &devices["nvidia"]["problems"]);
    let count = |list: &serde_json::Value| list.as_array().map_or(0, Vec::len);
    assert!(count(gpus) + count(problems) > 0, "either there is a GPU, or it says why not: {devices}");
    assert!(!problems.to_string().contains("the probe"), "the child answered: {devices}");
    for backend in GpuBackend::ALL.into_iter().filter(|backend| !backend.is_built()) {
        let (device, words) = (format!("{}:0", backend.id()), format!("this build has no {} backend", backend.name()));
        fails(&agent(&["run", "--dir", "d", "--device", &device]), 2, &[&words, "--features"]);
    }
}

#[test]
fn run_without_a_join_says_so() {
    let temporary = tempfile::tempdir().expect("a directory");
    let output = agent(&["run", "--dir", text(&temporary.path().join("nothing"))]);
    fails(&output, 3, &["agent.toml does not exist", "help: enrol first"]);
}

/// What an editor did to the file is told with its place, and has nothing to do with permissions.
#[test]
fn an_agent_toml_that_is_no_utf_8_is_told_with_its_place_and_how_to_convert_it() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = enrolled(temporary.path());
    let text = fs::read_to_string(dir.config()).expect("there");
    let line = text.lines().count() + 1;
    let latin_1 = [text.as_bytes(), b"# caf\xe9\n"].concat();
    fs::write(dir.config(), latin_1).expect("written");
    let output = agent(&["run", "--dir", self::text(temporary.path())]);
    fails(&output, 3, &[&format!("agent.toml:{line}: byte 0xE9 is not UTF-8"), "help: save it as UTF-8", "iconv -f"]);
    let utf_16: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_be_bytes).collect();
    fs::write(dir.config(), utf_16).expect("written");
    let output = agent(&["run", "--dir", self::text(temporary.path())]);
    fails(&output, 3, &["agent.toml:1: this is UTF-16", "help: save it as UTF-8"]);
    fs::remove_file(dir.config()).expect("removed");
    fs::create_dir(dir.config()).expect("made");
    let output = agent(&["run", "--dir", self::text(temporary.path())]);
    fails(&output, 3, &["agent.toml cannot be read", "help: a directory is in its place"]);
    fs::remove_dir(dir.config()).expect("removed");
    nix::unistd::mkfifo(&dir.config(), nix::sys::stat::Mode::S_IRWXU).expect("made");
    let output = agent(&["run", "--dir", self::text(temporary.path())]);
    fails(&output, 3, &["agent.toml cannot be read", "not a regular file", "help: put a file of text"]);
}

#[test]
fn a_mistake_in_agent_toml_is_told_with_file_and_line() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = enrolled(temporary.path());
    let good = fs::read_to_string(dir.config()).expect("read");
    let line = good.lines().count() + 1;
    fs::write(dir.config(), format!("{good}thread = 3\n")).expect("written");
    for verb in ["run", "status"] {
        let output = agent(&[verb, "--dir", text(temporary.path())]);
        fails(&output, 3, &[&format!("agent.toml:{line}: unknown field `thread`"), "help: mend that line"]);
    }
}

#[test]
fn shards_that_cannot_be_used_stop_the_agent_before_it_connects() {
    let temporary = tempfile::tempdir().expect("a directory");
    enrolled(temporary.path());
    let dir = text(temporary.path());
    let shard = temporary.path().join("train.csv");
    let path = text(&shard);
    fails(&agent(&["run", "--dir", dir]), 8, &["nothing to train or evaluate on", "--shard"]);
    fails(&agent(&["run", "--dir", dir, "--shard", path]), 8, &[path, "does not exist"]);
    fs::write(&shard, "").expect("written");
    fails(&agent(&["run", "--dir", dir, "--shard", path]), 8, &[path, "help: "]);
    fs::write(&shard, "a,b,label\n1,2,0\n1,oops,1\n").expect("written");
    fails(&agent(&["run", "--dir", dir, "--shard", path]), 8, &["line 3", "oops", "shard inspect"]);
    fails(&agent(&["run", "--dir", dir, "--shard", path, "--label-column", "y"]), 8, &["\"y\"", "--label-column"]);
    fails(&agent(&["shard", "inspect", path]), 8, &["cannot be used"]);
}

#[test]
fn an_agent_joins_pods_with_an_address_that_others_reach_and_with_native_models() {
    let temporary = tempfile::tempdir().expect("a directory");
    let home = enrolled(temporary.path());
    let dir = text(temporary.path());
    let run = |more: &[&str]| agent(&[&["run", "--dir", dir, "--device", "cpu"], more].concat());
    for anywhere in ["--pod-listen=0.0.0.0:4440", "--pod-listen=[::]:4440"] {
        fails(&run(&[anywhere]), 2, &["which names no address", "--pod-advertise HOST:PORT"]);
    }
    fails(&run(&["--pod-advertise=clinic.example:4440"]), 2, &["listens nowhere", "--pod-listen"]);
    fails(&run(&["--pod-listen=10.0.0.7:4440", "--pod-advertise=clinic"]), 2, &["\"clinic\" is not a host and a port"]);
    let native = "the native models in the agent's own process";
    fails(&run(&["--pod-listen=10.0.0.7:4440", "--isolate"]), 2, &[native, "--isolate"]);
    // A program of the user's may compute parts of its model: it is asked.
    let program = agent(&["run", "--dir", dir, "--pod-listen=10.0.0.7:4440", "--", "false"]);
    fails(&program, 14, &["the trainer is not usable"]);

    // Without a shard: it gets as far as its certificate, which nobody has issued.
    let helper = run(&["--pod-listen=127.0.0.1:4440"]);
    fails(&helper, 3, &["agent.crt"]);
    assert!(String::from_utf8_lossy(&helper.stderr).contains("offering to join pods"), "{helper:?}");
    let configured = fs::read_to_string(home.config()).expect("read").replace("# pod_", "pod_");
    fs::write(home.config(), configured).expect("written");
    fails(&run(&[]), 3, &["agent.crt", "advertise=\"clinic.example:4440\""]);
}

#[test]
fn columns_are_matched_by_name_dropped_and_warned_of() {
    let temporary = tempfile::tempdir().expect("a directory");
    let home = enrolled(temporary.path());
    let dir = text(temporary.path());
    let (shard, eval) = (temporary.path().join("train.csv"), temporary.path().join("eval.csv"));
    fs::write(&shard, ",a,b,label\n0,1,2,0\n").expect("written");
    fs::write(&eval, ",b,c,label\n0,2,1,0\n").expect("written");
    let run = |more: &[&str]| {
        let shards = ["run", "--dir", dir, "--shard", text(&shard), "--eval-shard", text(&eval)];
        agent(&[&shards, more].concat())
    };
    fails(&run(&[]), 8, &["looks like a row index", "other columns", "lacks a and has c instead"]);
    fails(&run(&["--isolate", "--device", "cpu"]), 14, &["other columns"]);
    fails(&run(&["--drop-column", "z"]), 8, &["no column \"z\" to drop", "\"\", a, b, label", "--drop-column"]);
    fails(&run(&["--drop-column=label"]), 8, &["holds the labels"]);
    fails(&run(&["--drop-column=c"]), 8, &["it lacks a\n"]);
    fails(&run(&["--drop-column=a"]), 8, &["it has c in addition\n"]);
    let configured = fs::read_to_string(home.config()).expect("read").replace("# drop_columns", "drop_columns");
    fs::write(home.config(), configured).expect("written");
    let dropped = run(&[]);
    fails(&dropped, 8, &["other columns"]);
    assert!(!String::from_utf8_lossy(&dropped.stderr).contains("row index"), "{dropped:?}");
    let inspected = agent(&["shard", "inspect", text(&shard), "--drop-column="]);
    assert!(inspected.status.success(), "{inspected:?}");
    assert!(!String::from_utf8_lossy(&inspected.stdout).contains("warning"), "{inspected:?}");
}

/// A column that is left out for privacy must not reach a program in silence.
#[test]
fn columns_of_a_program_of_the_users_are_not_ignored() {
    let temporary = tempfile::tempdir().expect("a directory");
    let home = enrolled(temporary.path());
    let dir = text(temporary.path());
    let joined = fs::read_to_string(home.config()).expect("read");
    let with = |lines: &str| fs::write(home.config(), format!("{lines}\n{joined}")).expect("written");
    let refused = |args: &[&str], name: &str| {
        let help = format!("drop=[\"id\"]), and leave out {name}");
        fails(&agent(&[&["run", "--dir", dir], args].concat()), 2, &[name, "is for the native models", &help]);
    };
    let trainer = "trainer = [\"false\"]";
    with(trainer);
    refused(&["--drop-column", "id"], "--drop-column");
    refused(&["--label-column", "y"], "--label-column");
    with(&format!("{trainer}\ndrop_columns = [\"id\"]"));
    refused(&[], "`drop_columns` in agent.toml");
    with("label_column = \"y\"");
    refused(&["--", "false"], "`label_column` in agent.toml");
    // With --isolate the native trainer reads the shards: it misses one.
    with(&format!("{trainer}\ndrop_columns = [\"id\"]"));
    fails(&agent(&["run", "--dir", dir, "--isolate", "--device", "cpu"]), 14, &["nothing to train"]);
}

#[test]
fn a_key_that_is_gone_is_a_clear_refusal() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = enrolled(temporary.path());
    fs::write(dir.key(), "not a key").expect("written");
    fails(&agent(&["run", "--dir", text(temporary.path())]), 3, &["agent.key does not hold a private key", "help: "]);
    fs::remove_file(dir.key()).expect("removed");
    fails(&agent(&["run", "--dir", text(temporary.path())]), 3, &["agent.key cannot be used", "help: "]);
}

/// Two processes on one directory would count two updates under one key.
#[test]
fn a_directory_in_use_is_refused() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = enrolled(temporary.path());
    let held = Ledger::open(&dir.store()).expect("opens");
    let output = agent(&["run", "--dir", text(temporary.path())]);
    fails(&output, 7, &[&format!("in use by process {}", std::process::id()), "help: one process"]);
    drop(held);
    let reader = Ledger::open_copy(&dir.store()).expect("opens");
    let output = agent(&["run", "--dir", text(temporary.path())]);
    fails(&output, 7, &["being read by another process", "help: wait until"]);
    drop(reader);
    fails(&agent(&["run", "--dir", text(temporary.path())]), 8, &["nothing to train"]);
}

#[test]
fn a_store_that_cannot_be_read_is_a_storage_error() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = enrolled(temporary.path());
    fs::write(dir.store(), "a file where a directory belongs").expect("written");
    let output = agent(&["run", "--dir", text(temporary.path())]);
    fails(&output, 6, &["store"]);
}

#[test]
fn status_of_a_stopped_agent_says_so_and_shows_what_its_store_holds() {
    use anabranch_agent::session::command::Bank;
    use anabranch_agent::session::event::Outcome;
    use anabranch_common::codec::CodecSpec;
    use anabranch_common::journal::Lease;
    use anabranch_common::manifest::{ModelManifest, TensorSpec};
    use anabranch_common::spec::TensorPolicy;
    use anabranch_testkit::lease::lease;

    let temporary = tempfile::tempdir().expect("a directory");
    let dir = enrolled(temporary.path());
    let output = agent(&["status", "--dir", text(temporary.path())]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("not running"), "{output:?}");
    assert!(!dir.store().exists(), "looking must not make a store");

    let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![3] }]).expect("valid");
    let (run, owner, branch) = (RunId([1; 16]), AgentId([2; 16]), BranchId([3; 16]));
    let lease = Lease { epoch: Epoch(5), base_version: ModelVersion(4), ..lease(LeaseId(1), owner, branch) };
    let outcome = Outcome {
        lease: LeaseId(1),
        delta: [1.0, 2.0, 3.0].into(),
        num_examples: 1,
        local_steps: 1,
        train_loss: 0.5,
        compute_ms: 1,
        encoded: None,
        pod: None,
    };
    let (epoch, seq, codec) = (Epoch(5), UpdateSeq(0), CodecSpec::F32);
    let mut ledger = Ledger::open(&dir.store()).expect("opens");
    let policy = TensorPolicy::default();
    let bank = Bank { lease, epoch, seq, codec, policy, feedback_decay: 0.0, outcome, started_from: None };
    anabranch_agent::encode::bank(&mut ledger, run, owner, &manifest, bank).expect("stored");
    drop(ledger);
    let output = agent(&["status", "--dir", text(temporary.path()), "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["running"], false);
    assert_eq!(report["outbox"][0]["epoch"], 5);
    assert_eq!(report["outbox"][0]["base_version"], 4);
}

/// Text from outside must not recolour or retitle the terminal of whoever reads about it.
#[test]
fn control_characters_of_names_and_headers_are_written_out() {
    let temporary = tempfile::tempdir().expect("a directory");
    let missing = temporary.path().join("rows\u{1b}[31m.csv");
    let output = agent(&["shard", "inspect", text(&missing)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(said.contains("rows\\u001b[31m.csv") && !said.contains('\u{1b}'), "{said:?}");

    let headed = temporary.path().join("headed.csv");
    fs::write(&headed, "a\u{1b}]0;owned\u{7},label\n1,x\n").expect("written");
    let output = agent(&["shard", "inspect", text(&headed)]);
    let said = [output.stdout, output.stderr].concat();
    assert!(!String::from_utf8_lossy(&said).contains('\u{1b}'), "{:?}", String::from_utf8_lossy(&said));
}

#[test]
fn wrong_use_is_code_2_and_help_lists_every_verb() {
    assert_eq!(agent(&["run"]).status.code(), Some(2));
    assert_eq!(agent(&["shard", "split", "x", "--agents", "2", "--seed", "1", "--out", "o"]).status.code(), Some(2));
    let help = agent(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for verb in ["join", "run", "status", "shard", "man", "completions", "Exit codes"] {
        assert!(help.contains(verb), "{verb} is not in the help");
    }
    let script = agent(&["completions", "bash"]);
    assert!(script.status.success() && !script.stdout.is_empty());
}
