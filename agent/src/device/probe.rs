//! Looks at GPUs in a child process with a deadline: a driver that crashes or hangs does it there.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_io::signals;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::GpuId;
use crate::clock::Clock;

/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How long what a child has written, or the end of a killed one, is waited for: one that is stuck in the kernel does
/// not even end when it is killed.
const LAST_WORDS: Duration = Duration::from_millis(limits::CHILD_LAST_WORDS_MS);

/// A GPU that the native models can be trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Its name as the driver gives it.
    pub name: String,
    /// Memory that nobody used when it was opened, in bytes; absent where the driver does not say.
    pub memory_free_bytes: Option<u64>,
    /// Whether it is a program on the CPU that only looks like a GPU.
    pub software: bool,
}

/// How the child is started.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The program: it writes its report as JSON to its standard output.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// How long it may take.
    pub deadline: Duration,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not be started.
    #[error("the probe cannot be started")]
    Start(#[source] io::Error),
    /// A signal ended it: the driver's library crashed.
    #[error("the probe crashed with signal {signal}{words}")]
    Crashed {
        /// The signal's number.
        signal: i32,
        /// Its last words, with what leads to them; may be empty.
        words: String,
    },
    /// It ended with an exit code.
    #[error("the probe failed with exit code {code}{words}")]
    Failed {
        /// The code.
        code: i32,
        /// Its last words, with what leads to them; may be empty.
        words: String,
    },
    /// It took too long, and was killed.
    #[error("the probe did not answer within {} s, and was killed{words}", deadline.as_secs_f64())]
    Hung {
        /// How long it had.
        deadline: Duration,
        /// Its last words, with what leads to them; may be empty.
        words: String,
    },
    /// Its answer is no report.
    #[error("the probe's answer cannot be read: {0}")]
    Nonsense(String),
}

impl Probe {
    /// This program, to look at NVIDIA's GPUs: its report is a [`GpuReport`](super::gpu::GpuReport). `verb` is the one that
    /// this process runs.
    ///
    /// # Errors
    /// The system does not say where this program's file is.
    pub fn of_gpus(verb: &str) -> io::Result<Self> {
        Self::of_this_program(verb, ["probe-gpus".into()], limits::DEVICE_PROBE_MS)
    }

    /// This program, to compute a little on the device `id`: its report is a [`Found`].
    ///
    /// # Errors
    /// The system does not say where this program's file is.
    pub fn of_device(verb: &str, id: GpuId) -> io::Result<Self> {
        Self::of_this_program(verb, ["probe-device".into(), id.to_string().into()], limits::DEVICE_TRIAL_MS)
    }

    /// With hidden arguments in place of `verb`, and whatever stood before it: an agent may be a part of a larger program.
    fn of_this_program<const N: usize>(verb: &str, hidden: [OsString; N], deadline_ms: u64) -> io::Result<Self> {
        let before = std::env::args_os().skip(1).take_while(|arg| arg != verb);
        let args = before.chain(hidden).collect();
        Ok(Self { program: std::env::current_exe()?, args, deadline: Duration::from_millis(deadline_ms) })
    }

    /// Starts the child and waits for its report, at most for the deadline and a second.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn run<T: DeserializeOwned>(&self) -> Result<T, ProbeError> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(ProbeError::Start)?;
        let output = child.stdout.take().map(read_apart);
        let errors = child.stderr.take().map(read_apart);
        let status = wait(&mut child, self.deadline);
        if status.is_none() {
            kill(&child);
            // Whether it ends now or never (then it stays behind as a zombie until this process ends).
            wait(&mut child, LAST_WORDS);
        }
        let words = || match last_line(&heard(errors.as_ref())) {
            Some(line) => format!("; its last words: {line}"),
            None => String::new(),
        };
        match status.map(|status| (status.code(), status.signal())) {
            None => Err(ProbeError::Hung { deadline: self.deadline, words: words() }),
            Some((_, Some(signal))) => Err(ProbeError::Crashed { signal, words: words() }),
            Some((Some(0), None)) => {
                let text = heard(output.as_ref());
                serde_json::from_str(&text).map_err(|error| {
                    let beginning: String = text.chars().take(80).collect();
                    ProbeError::Nonsense(format!("{beginning:?} ({error})"))
                })
            }
            Some((code, None)) => Err(ProbeError::Failed { code: code.unwrap_or(-1), words: words() }),
        }
    }
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let clock = Clock::start();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if clock.elapsed() >= patience || signals::is_stop_asked() {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

fn kill(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // A group that is gone needs no signal.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Reads on a thread of its own: a grandchild may hold the pipe open for ever.
fn read_apart(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (text, heard) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is worth having.
        let _ = pipe.take(limits::DEVICE_PROBE_BYTES).read_to_end(&mut bytes);
        // Nobody waits any more.
        let _ = text.try_send(String::from_utf8_lossy(&bytes).into_owned());
    });
    heard
}

fn heard(text: Option<&Receiver<String>>) -> String {
    text.and_then(|text| text.recv_timeout(LAST_WORDS).ok()).unwrap_or_default()
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::GpuReport;

    fn shell(script: &str, deadline_ms: u64) -> Result<GpuReport, ProbeError> {
        let deadline = Duration::from_millis(deadline_ms);
        Probe { program: "sh".into(), args: vec!["-c".into(), script.into()], deadline }.run()
    }

    /// A driver's library that crashes takes the child, and the agent says with which signal.
    #[test]
    fn a_crash_in_the_child_is_an_error_with_its_signal() {
        let error = shell("echo no such luck >&2; kill -SEGV $$", 60_000).expect_err("it crashes").to_string();
        assert_eq!(error, "the probe crashed with signal 11; its last words: no such luck");
    }

    /// A driver that hangs costs the deadline, even when a grandchild holds the pipes open.
    #[test]
    fn a_child_that_hangs_is_killed_with_all_that_it_started() {
        let clock = Clock::start();
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("pid");
        let error = shell(&format!("sleep 600 & echo $! > {}; wait", file.display()), 300).expect_err("it hangs");
        assert!(matches!(error, ProbeError::Hung { .. }), "{error}");
        assert!(error.to_string().starts_with("the probe did not answer within 0.3 s"), "{error}");
        assert!(clock.elapsed() < Duration::from_secs(60), "the deadline holds, not the child's ten minutes");
        let pid = std::fs::read_to_string(&file).unwrap_or_default();
        let Ok(pid) = pid.trim().parse::<u32>() else { return };
        // A killed process is there until it is scheduled once more.
        let lives = || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !state.is_empty() && !state.contains(") Z ")
        };
        while lives() {
            assert!(clock.elapsed() < Duration::from_secs(60), "the grandchild outlives its group's kill");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn nonsense_and_failure_are_told_apart() {
        let error = shell("echo hello", 60_000).expect_err("no report").to_string();
        assert!(error.contains("cannot be read") && error.contains("hello"), "{error}");
        let error = shell("echo '{}'", 60_000).expect_err("no report").to_string();
        assert!(error.contains("missing field"), "{error}");
        let error = shell("echo out of luck >&2; exit 3", 60_000).expect_err("it fails").to_string();
        assert_eq!(error, "the probe failed with exit code 3; its last words: out of luck");
        let missing =
            Probe { program: "/nonexistent/probe".into(), args: Vec::new(), deadline: Duration::from_secs(1) };
        assert!(matches!(missing.run::<GpuReport>(), Err(ProbeError::Start(_))));
    }

    /// More than a pipe holds must not block the child until its deadline.
    #[test]
    fn a_child_that_talks_without_end_is_not_read_without_end() {
        let error = shell("head -c 1000000 /dev/zero | tr '\\0' x; exit 0", 60_000).expect_err("no report");
        assert!(!matches!(error, ProbeError::Hung { .. }), "{error}");
    }

    #[test]
    fn a_report_comes_through_as_it_was_sent() {
        let report = GpuReport { problems: vec!["none here".to_owned()], ..GpuReport::default() };
        let json = serde_json::to_string(&report).expect("plain values");
        assert_eq!(shell(&format!("echo '{json}'"), 60_000).expect("a report"), report);
    }
}
