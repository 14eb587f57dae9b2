//! Several runs in one coordinator: its directory, a kill, a damaged store, and deleting.

use std::path::{Path, PathBuf};

use anabranch_common::ids::RunId;
use anabranch_common::status::{RunCreated, RunStanding, RunSummary};

use crate::support::{Directory, write_safetensors};

/// A directory, and the file of a configuration for further runs.
struct Several {
    directory: Directory,
    config: String,
}

impl Several {
    fn init() -> Self {
        let directory = Directory::init_custom();
        let text = std::fs::read_to_string(directory.file("run.toml")).expect("run.toml");
        let config = directory.file("further.toml");
        let (without, _) = text.split_once("[server]").expect("a table of the process");
        std::fs::write(&config, without).expect("written");
        Self { directory, config: config.display().to_string() }
    }

    fn create(&self, name: &str, options: &[&str]) -> RunId {
        let rest = [&[name, "--config", &self.config, "--json"], options].concat();
        let created = self.directory.call(&["runs", "create"], &rest).code(0);
        serde_json::from_str::<RunCreated>(&created.stdout).expect("as printed").run
    }

    /// Gives a run of a stopped coordinator a model.
    fn import(&self, name: &str) {
        let file = self.directory.file("model.safetensors");
        write_safetensors(&file, &[("w", &[3], &[1.0, 2.0, 3.0])]);
        self.directory.call(&["checkpoint", "import"], &["--run", name, &file.display().to_string()]).code(0);
    }

    fn list(&self) -> Vec<RunSummary> {
        let listed = self.directory.call(&["runs", "list"], &["--json"]).code(0);
        serde_json::from_str(&listed.stdout).expect("a list")
    }

    /// The runs once none is being opened any more: name, id and state.
    fn opened(&self) -> Vec<(String, Option<RunId>, RunStanding)> {
        let mut runs = Vec::new();
        // Each call takes tens of milliseconds.
        for _ in 0..500 {
            runs = self.list();
            if runs.iter().all(|run| run.state != RunStanding::Opening) {
                break;
            }
        }
        runs.into_iter().map(|run| (run.name, run.run, run.state)).collect()
    }

    fn place(&self, name: &str) -> PathBuf {
        self.directory.file("runs").join(name)
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("it is there")
}

#[test]
fn runs_are_created_at_rest_and_while_serving_and_outlive_a_kill() {
    let several = Several::init();
    let directory = &several.directory;
    let first = several.create("first", &[]);
    several.import("first");
    assert_eq!(several.opened()[1], ("first".into(), Some(first), RunStanding::Parked));
    let refused = directory.file("run.toml").display().to_string();
    directory
        .call(&["runs", "create"], &["bad", "--config", &refused])
        .code(3)
        .says("server is a table of the process");

    let serving = directory.serve();
    let second = several.create("second", &["--submit-token", "job 7"]);
    assert_eq!(several.create("second", &["--submit-token", "job 7"]), second, "the same request");
    let other = ["second", "--config", &several.config, "--submit-token", "job 8"];
    directory.call(&["runs", "create"], &other).code(4).says("there is a run second");
    several.opened();
    directory.call(&["pause"], &[]).code(1).says("name one of them with --run");
    directory.call(&["runs", "pause"], &["first"]).code(0);
    let before = several.opened();
    let own = before[0].clone();
    let expected = [
        own,
        ("first".into(), Some(first), RunStanding::Paused),
        ("second".into(), Some(second), RunStanding::Pending),
    ];
    assert_eq!(before, expected);
    let table = directory.call(&["status"], &[]).code(0).stdout;
    assert!(table.contains("first") && table.contains(&second.to_string()), "{table}");
    let one = directory.call(&["status"], &["--run", &first.to_string(), "--json"]).code(0).stdout;
    assert!(one.contains("\"state\":\"paused\""), "{one}");

    drop(serving);
    let serving = directory.serve();
    assert_eq!(several.opened(), before, "after kill -9");
    directory.call(&["checkpoint", "verify"], &["--run", "first"]).code(0);
    let (code, log) = serving.terminate();
    assert_eq!(code, Some(0), "{log}");
    // A stopped coordinator tells the same.
    assert_eq!(several.opened(), before);
    assert_eq!(several.create("second", &["--submit-token", "job 7"]), second);
    directory.call(&["config", "check"], &["--run", "first"]).code(0);
    directory.call(&["checkpoint", "list"], &["--run", "third"]).code(1).says("there is no run third");
}

#[test]
fn a_damaged_store_stops_no_other_run_and_can_be_deleted() {
    let several = Several::init();
    let directory = &several.directory;
    let ids = [several.create("broken", &[]), several.create("whole", &[])];
    several.import("whole");
    std::fs::write(several.place("broken").join("store/conf"), b"no configuration of sled").expect("written");
    assert_eq!(several.opened()[1], ("broken".into(), None, RunStanding::Failed));

    let serving = directory.serve();
    let runs = several.opened();
    assert_eq!(runs[1], ("broken".into(), None, RunStanding::Failed));
    assert_eq!(runs[2], ("whole".into(), Some(ids[1]), RunStanding::Running));
    directory.call(&["status"], &["--run", "broken"]).code(4).says("run broken cannot be served");
    directory.call(&["runs", "delete"], &["broken", "--confirm", "broken"]).code(0);
    assert!(!several.place("broken").exists());
    assert_eq!(several.opened(), [runs[0].clone(), runs[2].clone()]);
    let (code, log) = serving.terminate();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn deleting_asks_for_the_name_exports_first_and_frees_the_disk() {
    let several = Several::init();
    let directory = &several.directory;
    several.create("first", &[]);
    several.create("second", &[]);
    several.import("first");
    let own = several.opened()[0].0.clone();
    let _serving = directory.serve();
    several.opened();
    let delete = |rest: &[&str]| directory.call(&["runs", "delete"], rest);
    delete(&["first"]).code(2).says("--confirm first");
    delete(&["first", "--confirm", "second"]).code(2).says("nothing was deleted");
    delete(&["first", "--confirm", "first"]).code(4).says("run first is running");
    delete(&[&own, "--confirm", &own]).code(4).says("shares its directory");
    let out = directory.file("out.safetensors");
    let export = ["--confirm", "first", "--export", &out.display().to_string()].map(String::from);
    let export: Vec<&str> = std::iter::once("first").chain(export.iter().map(String::as_str)).collect();
    directory.call(&["runs", "stop"], &["first"]).code(0);
    delete(&export).code(0);
    let data: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(bytes(&out).ends_with(&data));
    delete(&["second", "--confirm", "second"]).code(0);
    assert_eq!(std::fs::read_dir(directory.file("runs")).expect("there").count(), 0, "nothing of them is left");
    several.create("first", &[]);
    assert_eq!(several.opened().len(), 2, "the name is free");
}
