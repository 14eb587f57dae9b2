//! Agents that the system really kills for want of memory: a cgroup with a limit, and a neighbour in it that takes more and
//! more. Where a test may not make a cgroup (it takes root) nothing is checked, and it says so.
//!
//! | test | guards |
//! |---|---|
//! | an agent that trains itself | it is killed; the next process knows why, and computes fewer examples at once |
//! | a trainer in a process of its own | it is killed; its agent lives on, and the next trainer computes fewer at once |
#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anabranch_tests::process::{Cluster, DIGITS, MemoryGroup, Role, example, numbers, python_has};
use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
/// An agent takes about 130 MiB with the batches of these tests.
const LIMIT: u64 = 320 << 20;
const STEP: u64 = 4 << 20;
const HOG: &str =
    "import sys\nheld = []\nfor line in sys.stdin:\n    held.append(b'x' * (4 << 20))\n    print(flush=True)\n";

/// Has the system kill this process before any other.
fn expose(pid: impl std::fmt::Display) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000")
}

/// A process that takes memory when it is told to.
struct Hog(Child);

impl Hog {
    fn new(group: &MemoryGroup) -> anyhow::Result<Self> {
        let mut command = Command::new("python3");
        command.args(["-c", HOG]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let hog = Self(command.spawn()?);
        group.add(hog.0.id())?;
        Ok(hog)
    }

    /// Takes memory until `done`.
    fn until(&mut self, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let mut input = self.0.stdin.take().context("piped")?;
        let mut output = BufReader::new(self.0.stdout.take().context("piped")?);
        for _ in 0..LIMIT / STEP {
            if done()? {
                return Ok(());
            }
            writeln!(input, "more")?;
            output.read_line(&mut String::new())?;
        }
        // The last step may have been the one.
        anabranch_tests::clock::poll(anabranch_tests::process::PATIENCE, || Ok(done()?.then_some(())))?
            .context("nobody was killed for memory")
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A cluster with one agent in a cgroup, which has sent an update; none where there is no cgroup to be had.
fn started(name: &str, more: &[&str]) -> anyhow::Result<Option<(Cluster, MemoryGroup)>> {
    let Some(group) = MemoryGroup::new(name, LIMIT).filter(|_| python_has("sys")) else {
        eprintln!("not checked: no cgroup of memory can be made here");
        return Ok(None);
    };
    let wide = DIGITS.replace("hidden = [32]", "hidden = [1024]").replace("versions = 40", "versions = 100000");
    let wide = wide.replace("batch_size = 16", "batch_size = 8192").replace("local_steps = 5", "local_steps = 1");
    let mut cluster = Cluster::new(Path::new(LAB), &wide)?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    start(&mut cluster, &group, more)?;
    cluster.wait_for_updates(1)?;
    Ok(Some((cluster, group)))
}

fn start(cluster: &mut Cluster, group: &MemoryGroup, more: &[&str]) -> anyhow::Result<()> {
    let data = example("data/digits-train.csv.gz");
    let mut args: Vec<&OsStr> = vec!["--threads=1".as_ref(), "--shard".as_ref(), data.as_os_str()];
    args.extend(more.iter().map(OsStr::new));
    let agent = cluster.start_agent(Role::Agent, "one", &args, &[])?;
    // Before there is a trainer's process, if there is to be one: it is born into the same group.
    Ok(group.add(agent.pid())?)
}

fn micro_batch(cluster: &Cluster) -> anyhow::Result<u64> {
    Ok(cluster.agent_status("one")?.live.and_then(|live| live.micro_batch).context("a micro-batch")?.into())
}

#[test]
fn an_agent_that_was_killed_for_its_memory_computes_fewer_examples_at_once() -> anyhow::Result<()> {
    let Some((mut cluster, group)) = started("agent", &[])? else { return Ok(()) };
    assert_eq!(micro_batch(&cluster)?, 8192);
    expose(cluster.agent("one")?.pid())?;
    let mut hog = Hog::new(&group)?;
    hog.until(|| cluster.agent("one")?.was_killed())?;
    drop(hog);
    let before = cluster.status()?.updates_accepted;
    start(&mut cluster, &group, &[])?;
    cluster.wait_for_updates(before + 2)?;
    let log = cluster.agent("one")?.log()?;
    let told = "the agent before was killed, it seems for its memory";
    let tried = *numbers(&log, told, "tried").first().with_context(|| format!("it does not know why:\n{log}"))?;
    // The neighbour took memory in steps, and micro-batches may have shrunk before the end.
    let most = (tried / 2).max(1);
    assert_eq!(numbers(&log, told, "max_micro_batch"), [most]);
    ensure!(micro_batch(&cluster)? <= most, "{} examples at once, at most {most} were to be", micro_batch(&cluster)?);
    cluster.park_agents()?;
    let note = cluster.agent_dir("one").join("memory.json");
    assert!(!note.exists(), "an end in order leaves no note");
    assert!({ cluster.park_coordinator()? } == 0 && cluster.verify()?.holds);
    Ok(())
}

#[test]
fn a_trainer_that_was_killed_for_its_memory_costs_a_round_and_its_agent_stays() -> anyhow::Result<()> {
    let Some((mut cluster, group)) = started("trainer", &["--isolate"])? else { return Ok(()) };
    let trainers = |cluster: &mut Cluster| {
        Ok::<_, anyhow::Error>(numbers(&cluster.agent("one")?.log()?, "trainer started", "pid"))
    };
    let first = *trainers(&mut cluster)?.last().context("a trainer")?;
    expose(first)?;
    let mut hog = Hog::new(&group)?;
    let first = Pid::from_raw(first.try_into()?);
    // It is waited for by its agent as soon as it is dead.
    hog.until(|| Ok(kill(first, None::<Signal>).is_err()))?;
    drop(hog);
    let before = cluster.status()?.updates_accepted;
    cluster.wait_for_updates(before + 2)?;
    let log = cluster.agent("one")?.log()?;
    assert!(log.contains("it was killed by signal 9"), "{log}");
    assert!(!numbers(&log, "a round ran out of memory", "max_micro_batch").is_empty(), "{log}");
    assert!(cluster.agent("one")?.exited()?.is_none() && trainers(&mut cluster)?.len() >= 2);
    assert!(micro_batch(&cluster)? < 8192);
    cluster.park_agents()?;
    assert!({ cluster.park_coordinator()? } == 0 && cluster.verify()?.holds);
    Ok(())
}
