//! Signals to real daemons, from their first moment on, and what becomes of the processes that they have started.
//!
//! | test | guards |
//! |---|---|
//! | a signal while the trainer starts | exit code 0; trainer, child, grandchild in a session of its own and scratch directory are gone |
//! | a trainer that ignores SIGTERM | the same, by SIGKILL |
//! | a signal while a daemon starts | exit code 0 |
//! | SIGHUP | stops both daemons in order, also when it comes twice, and is ignored under `nohup` |
//! | an agent that is killed | the next one ends what its trainer has left behind |

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Process, Role, example};
use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// What a trainer that never gets to its first line leaves in the folder `$0`: its process, a child's, and that of a
/// grandchild in a session of its own.
const SLOW_STARTER: &str = r#"
sleep 1000 & echo $! > "$0/child.new" && mv "$0/child.new" "$0/child"
setsid sh -c 'echo $$ > "$0/apart.new" && mv "$0/apart.new" "$0/apart"; sleep 1000' "$0" &
echo $$ > "$0/leader.new" && mv "$0/leader.new" "$0/leader"
sleep 1000
"#;

/// Whether a process lives; one that has ended and was not asked how does not.
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Starts an agent with the trainer `script` and waits until its three processes are there.
fn start_slow(cluster: &mut Cluster, name: &str, script: &str) -> anyhow::Result<[i32; 3]> {
    let folder = cluster.path().join(format!("{name}-pids"));
    fs::create_dir_all(&folder)?;
    let data = example("data/digits-train.csv.gz");
    let args: [&OsStr; 7] = [
        "--shard".as_ref(),
        data.as_os_str(),
        "--".as_ref(),
        "sh".as_ref(),
        "-c".as_ref(),
        script.as_ref(),
        folder.as_os_str(),
    ];
    cluster.start_agent(Role::Agent, name, &args, &[])?;
    let mut pids = [0; 3];
    for (pid, file) in pids.iter_mut().zip(["leader", "child", "apart"]) {
        let read = || Ok(fs::read_to_string(folder.join(file)).ok());
        let text = poll(PATIENCE, read)?.with_context(|| format!("no {file}: {}", cluster.logs()))?;
        *pid = text.trim().parse()?;
        ensure!(lives(*pid), "{file} has ended");
    }
    Ok(pids)
}

/// Where the tensors of an agent's trainer may lie.
fn scratch_of(dir: &Path) -> anyhow::Result<[PathBuf; 2]> {
    let metadata = fs::metadata(dir)?;
    let shared = format!("/dev/shm/anabranch-{:x}-{:x}", metadata.dev(), metadata.ino());
    Ok([shared.into(), dir.join(".trainer-tensors")])
}

fn joined() -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    Ok(cluster)
}

/// Ends an agent while its trainer starts, and checks that nothing is left.
fn ends_with_all(script: &str, signal: Signal) -> anyhow::Result<()> {
    let mut cluster = joined()?;
    let pids = start_slow(&mut cluster, "one", script)?;
    let scratch = scratch_of(&cluster.agent_dir("one"))?;
    ensure!(scratch.iter().any(|path| path.exists()), "there is no scratch directory");
    let agent = cluster.agent("one")?;
    agent.signal(signal)?;
    ensure!(agent.wait(PATIENCE)? == 0, "{signal}: {}", agent.log_tail());
    let left: Vec<i32> = pids.into_iter().filter(|pid| lives(*pid)).collect();
    for pid in &left {
        // A failure leaves nothing behind either.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    ensure!(left.is_empty(), "{signal}: {left:?} of {pids:?} (leader, child, apart) are left");
    ensure!(scratch.iter().all(|path| !path.exists()), "{signal}: the scratch directory is left");
    Ok(())
}

#[test]
fn a_signal_while_the_trainer_starts_ends_all_of_it() -> anyhow::Result<()> {
    SIGNALS.into_iter().try_for_each(|signal| ends_with_all(SLOW_STARTER, signal))
}

#[test]
fn a_trainer_that_ignores_sigterm_is_killed() -> anyhow::Result<()> {
    // What is ignored stays ignored in children.
    ends_with_all(&format!("trap '' TERM\n{SLOW_STARTER}"), Signal::SIGTERM)
}

#[test]
fn the_next_agent_ends_what_a_killed_one_has_left_behind() -> anyhow::Result<()> {
    let mut cluster = joined()?;
    let pids = start_slow(&mut cluster, "one", SLOW_STARTER)?;
    let scratch = scratch_of(&cluster.agent_dir("one"))?;
    cluster.agent("one")?.kill()?;
    ensure!(scratch.iter().any(|path| path.exists()), "there is no scratch directory");
    let args: [&OsStr; 4] = ["--".as_ref(), "sh".as_ref(), "-c".as_ref(), "exit 3".as_ref()];
    let agent = cluster.start_agent(Role::Agent, "one", &args, &[])?;
    assert_eq!(agent.wait(PATIENCE)?, 14, "{}", agent.log_tail());
    let log = agent.log()?;
    assert!(log.contains("had left behind"), "{log}");
    assert!(!pids.into_iter().any(lives), "{pids:?}");
    assert!(scratch.iter().all(|path| !path.exists()));
    Ok(())
}

/// Makes `file` a pipe: a process that reads it waits until another one writes.
fn block_at(file: &Path) -> anyhow::Result<()> {
    fs::remove_file(file)?;
    Ok(nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU)?)
}

/// The writing end of such a pipe, once it is being read. Nothing is ever written.
fn reader_of(file: &Path) -> anyhow::Result<fs::File> {
    let open = || {
        let opened = OpenOptions::new().write(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(file);
        Ok(opened.ok())
    };
    poll(PATIENCE, open)?.context("nobody reads")
}

#[test]
fn a_signal_while_a_daemon_starts_ends_it_with_0() -> anyhow::Result<()> {
    let mut cluster = joined()?;
    assert_eq!(cluster.park_coordinator()?, 0);
    // A pipe in place of a configuration file is refused; keys are read later, before anything is begun.
    let (server_key, agent_key) =
        (cluster.coordinator_dir().join("tls/server.key"), cluster.agent_dir("one").join("tls/agent.key"));
    block_at(&server_key)?;
    block_at(&agent_key)?;
    for signal in SIGNALS {
        cluster.spawn_coordinator(&[])?;
        let pipe = reader_of(&server_key)?;
        cluster.coordinator()?.signal(signal)?;
        assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{signal}");
        drop(pipe);
        cluster.start_agent(Role::Agent, "one", &[], &[])?;
        let pipe = reader_of(&agent_key)?;
        cluster.agent("one")?.signal(signal)?;
        assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 0, "{signal}");
        drop(pipe);
    }
    Ok(())
}

#[test]
fn a_terminal_that_closes_stops_both_daemons_in_order() -> anyhow::Result<()> {
    let mut cluster = joined()?;
    cluster.edit("versions = 40", "versions = 100000")?;
    assert_eq!(cluster.park_coordinator()?, 0);
    cluster.start_coordinator()?;
    let data = example("data/digits-train.csv.gz");
    cluster.start_agent(Role::Agent, "one", &["--shard".as_ref(), data.as_os_str(), "--isolate".as_ref()], &[])?;
    cluster.wait_for_updates(2)?;
    // The shell sends one, and then the kernel: the second is no request to stop at once.
    let agent = cluster.agent("one")?;
    agent.signal(Signal::SIGHUP)?;
    agent.wait_for_log("stopping; finished work is kept", PATIENCE)?;
    // It may have ended.
    let _ = agent.signal(Signal::SIGHUP);
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let scratch = scratch_of(&cluster.agent_dir("one"))?;
    assert!(scratch.iter().all(|path| !path.exists()), "{scratch:?}");
    cluster.coordinator()?.signal(Signal::SIGHUP)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    assert!(cluster.verify()?.holds);
    Ok(())
}

#[test]
fn nohup_is_respected() -> anyhow::Result<()> {
    let mut cluster = joined()?;
    assert_eq!(cluster.park_coordinator()?, 0);
    let log = cluster.path().join("nohup.log");
    let mut daemon = Command::new("sh");
    daemon.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", LAB, Role::Coordinator.arg(), "run", "--dir"]);
    daemon.arg(cluster.coordinator_dir());
    let mut daemon = Process::spawn(daemon, log, "nohup")?;
    daemon.wait_for_log(" serving", PATIENCE)?;
    daemon.signal(Signal::SIGHUP)?;
    // An answer after the signal: it is still there.
    assert!(cluster.status()?.serving);
    daemon.signal(Signal::SIGTERM)?;
    assert_eq!(daemon.wait(PATIENCE)?, 0);
    Ok(())
}
