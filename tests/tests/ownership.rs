//! P7: a store that belongs to someone else is an error with its own code and a message, and nothing in it changes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, Role};

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
/// `nobody`, on every Linux.
const NOBODY: u32 = 65_534;

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Lets everyone read what is below `path`, but for the folder `closed`.
fn open_up(path: &Path, closed: &Path) -> std::io::Result<()> {
    if path == closed {
        return Ok(());
    }
    set_mode(path, if path.is_dir() { 0o755 } else { 0o644 })?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            open_up(&entry?.path(), closed)?;
        }
    }
    Ok(())
}

/// `run`, by someone to whom the store does not belong. Root may read everything, so that root becomes nobody, with a
/// copy of the binary: the build may lie where nobody may look.
fn run_as_a_stranger(cluster: &Cluster, store: &Path) -> anyhow::Result<(Option<i32>, String)> {
    let dir = cluster.coordinator_dir();
    let is_root = nix::unistd::geteuid().is_root();
    let mut command = if is_root {
        let copy = cluster.path().join("lab");
        fs::copy(LAB, &copy)?;
        set_mode(&copy, 0o755)?;
        set_mode(cluster.path(), 0o755)?;
        open_up(&dir, store)?;
        let mut command = Command::new(copy);
        command.uid(NOBODY).gid(NOBODY);
        command
    } else {
        set_mode(store, 0o000)?;
        Command::new(LAB)
    };
    let ended = command.arg(Role::Coordinator.arg()).arg("run").arg("--dir").arg(&dir).output()?;
    set_mode(store, 0o700)?;
    Ok((ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned()))
}

#[test]
fn a_store_of_someone_else_is_refused_and_left_alone() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    cluster.start_ledger_agent("one", &[])?;
    cluster.wait_for_updates(3)?;
    cluster.park_agents()?;
    assert_eq!(cluster.park_coordinator()?, 0);
    let before = cluster.status()?.updates_accepted;
    let store = cluster.coordinator_dir().join("store");
    let (code, said) = run_as_a_stranger(&cluster, &store)?;
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("permission") && said.contains("store") && said.contains("help: "), "{said}");
    cluster.start_coordinator()?;
    assert_eq!(cluster.status()?.updates_accepted, before, "nothing was lost");
    cluster.start_ledger_agent("one", &[])?;
    cluster.wait_for_updates(before + 3)?;
    Ok(())
}
