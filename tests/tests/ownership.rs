//! P7: a store that belongs to someone else is an error with its own code and a message, and nothing in it changes. And
//! root, who may look into it, changes nothing by looking, and leaves nothing of its own there when it writes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, PATIENCE, Process, Role};
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

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

/// A stopped run that has merged at least three updates of the agent `one`, and how many it has merged.
fn stopped_run() -> anyhow::Result<(Cluster, u64)> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    cluster.start_ledger_agent("one", &[])?;
    cluster.wait_for_updates(3)?;
    cluster.park_agents()?;
    assert_eq!(cluster.park_coordinator()?, 0);
    let merged = cluster.status()?.updates_accepted;
    Ok((cluster, merged))
}

/// Arguments of a coordinator's verb; those that take a model's file get `file`.
fn with_file<'a>(verb: &[&'a str], file: &'a Path, dir: &'a Path) -> Vec<&'a OsStr> {
    let file = verb.iter().any(|word| ["export", "import"].contains(word)).then_some(file.as_os_str());
    let words = verb.iter().map(|word| OsStr::new(*word)).chain(file);
    words.chain([OsStr::new("--dir"), dir.as_os_str()]).collect()
}

#[test]
fn a_store_of_someone_else_is_refused_and_left_alone() -> anyhow::Result<()> {
    let (mut cluster, before) = stopped_run()?;
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

/// Everything below `dir`, with what looking must not change: owner, group, mode, inode, length and time of change.
fn listing(dir: &Path) -> anyhow::Result<BTreeMap<PathBuf, [i64; 7]>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(path) = folders.pop() {
        let data = fs::symlink_metadata(&path)?;
        if data.is_dir() {
            for entry in fs::read_dir(&path)? {
                folders.push(entry?.path());
            }
        }
        let ids = [data.uid(), data.gid(), data.mode()].map(i64::from);
        let (inode, length) = (data.ino().cast_signed(), data.len().cast_signed());
        found.insert(path, [ids[0], ids[1], ids[2], inode, length, data.mtime(), data.mtime_nsec()]);
    }
    Ok(found)
}

fn give_to_nobody(dir: &Path) -> anyhow::Result<()> {
    for path in listing(dir)?.keys() {
        std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

/// Runs a command line as root, with a umask that keeps others out.
fn as_root(cluster: &Cluster, role: Role, args: &[&OsStr]) -> anyhow::Result<String> {
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 027; exec \"$0\" \"$@\"", LAB, role.arg()])
        .args(args)
        .env("TMPDIR", cluster.path().join("tmp"));
    let ended = command.output()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.success(), "{args:?}: {}\n{said}", ended.status);
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Starts a daemon of the user to whom the directories belong.
fn service(cluster: &Cluster, role: Role, args: &[&OsStr]) -> anyhow::Result<Process> {
    let mut command = Command::new(cluster.path().join("lab"));
    command.uid(NOBODY).gid(NOBODY).arg(role.arg()).args(args);
    Process::spawn(command, cluster.path().join(format!("service-{}.log", role.arg())), role.arg())
}

fn park(mut service: Process) -> anyhow::Result<()> {
    service.signal(Signal::SIGTERM)?;
    let code = service.wait(PATIENCE)?;
    ensure!(code == 0, "{code}: {}", service.log()?);
    Ok(())
}

/// Both daemons, as the user to whom the directories belong, until three more updates are merged.
fn serve_as_nobody(cluster: &mut Cluster, before: u64) -> anyhow::Result<()> {
    let (dir, agent_dir) = (cluster.coordinator_dir(), cluster.agent_dir("one"));
    let run = ["run".as_ref(), "--dir".as_ref(), dir.as_os_str()];
    let mut coordinator = service(cluster, Role::Coordinator, &run)?;
    coordinator.wait_for_log(" serving", PATIENCE)?;
    let agent = service(cluster, Role::LedgerAgent, &["--dir".as_ref(), agent_dir.as_os_str()])?;
    let served = cluster.wait_for_updates(before + 3);
    let log = |service: &Process| service.log().unwrap_or_default();
    served.with_context(|| format!("{}\n{}", log(&coordinator), log(&agent)))?;
    park(agent)?;
    park(coordinator)
}

#[test]
fn root_changes_nothing_by_looking_and_writes_as_the_owner() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not checked: only root can look into what belongs to others");
        return Ok(());
    }
    let (mut cluster, before) = stopped_run()?;
    let (dir, agent_dir) = (cluster.coordinator_dir(), cluster.agent_dir("one"));
    let (copy, out, tmp) = (cluster.path().join("lab"), cluster.path().join("out"), cluster.path().join("tmp"));
    fs::copy(LAB, &copy)?;
    fs::create_dir(&tmp)?;
    set_mode(&copy, 0o755)?;
    set_mode(cluster.path(), 0o755)?;
    let data = agent_dir.join("train.csv");
    fs::write(&data, "a,label\n1,0\n2,1\n")?;
    for dir in [&dir, &agent_dir] {
        give_to_nobody(dir)?;
    }
    let both = || anyhow::Ok([listing(&dir)?, listing(&agent_dir)?]);
    let untouched = both()?;
    let verbs: [&[&str]; 8] = [
        &["status"],
        &["status", "--json"],
        &["agents", "list"],
        &["token", "list"],
        &["config", "check"],
        &["checkpoint", "list"],
        &["checkpoint", "verify"],
        &["checkpoint", "export", "--force", "--out"],
    ];
    for verb in verbs {
        as_root(&cluster, Role::Coordinator, &with_file(verb, &out, &dir))?;
        assert_eq!(both()?, untouched, "{verb:?}");
    }
    let looks: [&[&OsStr]; 3] = [
        &["status".as_ref(), "--dir".as_ref(), agent_dir.as_os_str()],
        &["shard".as_ref(), "inspect".as_ref(), data.as_os_str()],
        &["devices".as_ref()],
    ];
    for args in looks {
        as_root(&cluster, Role::Agent, args)?;
        assert_eq!(both()?, untouched, "{args:?}");
    }
    assert_eq!(fs::read_dir(&tmp)?.count(), 0, "a private copy is left");
    assert_eq!(fs::metadata(&out)?.uid(), 0, "an export is the caller's");
    serve_as_nobody(&mut cluster, before)?;

    let changed: [&[&str]; 3] = [&["token", "create"], &["agents", "revoke", "one"], &["checkpoint", "import"]];
    for verb in changed {
        as_root(&cluster, Role::Coordinator, &with_file(verb, &out, &dir))?;
        let others: Vec<PathBuf> = listing(&dir)?
            .into_iter()
            .filter(|(_, of)| of[..2] != [i64::from(NOBODY); 2])
            .map(|(path, _)| path)
            .collect();
        assert!(others.is_empty(), "{verb:?} leaves {others:?}");
    }
    let run = ["run".as_ref(), "--dir".as_ref(), dir.as_os_str()];
    let mut service = service(&cluster, Role::Coordinator, &run)?;
    service.wait_for_log(" serving", PATIENCE)?;
    park(service)
}
