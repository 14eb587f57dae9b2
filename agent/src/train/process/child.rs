//! One child process: its lines in and out, its deadlines, its end.

use std::ffi::OsString;
use std::io::{self, BufReader, Write as _};
use std::ops::ControlFlow;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_io::signals;
use parking_lot::Mutex;

use super::kin::Kin;
use super::lines::{self, Line};
use super::message::{Answer, Ask, HelloAnswer, HelloAsk, PROTOCOL};
use crate::arenas;
use crate::clock::Clock;
use crate::train::StepReport;

/// How often a request that waits for its answer looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(100);
/// How long the rest of what a dead child has written is waited for.
const LAST_WORDS: Duration = Duration::from_millis(limits::CHILD_LAST_WORDS_MS);

/// Why a child is of no use any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Its output has ended.
    #[error("it ended")]
    Gone,
    /// It does not keep to the protocol.
    #[error("it does not speak the trainer protocol: {0}")]
    Broken(String),
    /// It says nothing.
    #[error("it has been silent for {0} s")]
    Silent(u64),
    /// It lives but gets nowhere.
    #[error("it has made no step for {0} s (`trainer_timeout_s`)")]
    Stuck(u64),
    /// It was asked to stop, and goes on.
    #[error("it did not stop when asked to")]
    Stubborn,
    /// The agent was asked to end while the trainer started.
    #[error("the agent is ending")]
    Unwanted,
}

/// What the reading thread has read.
#[derive(Debug)]
enum Heard {
    Answer(Answer),
    Broken(String),
}

/// A running trainer. Dropping it kills its processes.
#[derive(Debug)]
pub(super) struct Child {
    process: std::process::Child,
    kin: Arc<Kin>,
    has_ended: bool,
    input: Option<ChildStdin>,
    heard: Receiver<Heard>,
    words: Arc<Mutex<String>>,
    words_end: Receiver<()>,
    /// How many examples it computes at once in the round that it is in, if it says so.
    micro_batch: Option<u32>,
}

/// How a child ended.
#[derive(Debug)]
pub(super) struct Death {
    /// For people.
    pub(super) text: String,
    /// Whether it looks as if memory was short: the system's killer, or its own words.
    pub(super) out_of_memory: bool,
    /// How many examples it computed at once, if it said so.
    pub(super) micro_batch: Option<u32>,
}

impl Child {
    /// Starts `command` in a process group of its own.
    pub(super) fn start(command: &[OsString], dir: Option<&Path>, hello: &HelloAsk, kin: Arc<Kin>) -> io::Result<Self> {
        let (program, args) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(args).process_group(0);
        let (mark, value) = kin.variable();
        command.env("ANABRANCH_PROTOCOL", PROTOCOL.to_string()).env(mark, value);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(dir) = dir {
            command.current_dir(dir);
        }
        let threads = hello.threads.map(|threads| threads.to_string().into());
        let paths = [("ANABRANCH_SHARD", &hello.shard), ("ANABRANCH_EVAL_SHARD", &hello.eval_shard)];
        let paths = paths.map(|(key, path)| (key, path.as_ref().map(|path| path.clone().into_os_string())));
        let memory = hello.max_memory.map(|bytes| bytes.to_string().into());
        let figures = [("ANABRANCH_THREADS", threads), ("ANABRANCH_MAX_MEMORY", memory)];
        for (key, value) in paths.into_iter().chain(figures) {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if hello.max_memory.is_some() && arenas::are_many() {
            command.env(arenas::ONE.0, arenas::ONE.1);
        }
        let mut process = command.spawn()?;
        kin.started(process.id());
        let (answers, heard) = sync_channel(limits::TRAINER_QUEUE);
        let (words_done, words_end) = sync_channel(1);
        let words = Arc::<Mutex<String>>::default();
        let kept = Arc::clone(&words);
        let input = process.stdin.take();
        let (output, errors) = (process.stdout.take(), process.stderr.take());
        let child = Self { process, kin, has_ended: false, input, heard, words, words_end, micro_batch: None };
        // From here on a failure kills the child.
        std::thread::Builder::new().name("trainer-out".to_owned()).spawn(move || {
            if let Some(output) = output {
                read_answers(BufReader::new(output), &answers);
            }
        })?;
        std::thread::Builder::new().name("trainer-err".to_owned()).spawn(move || {
            if let Some(errors) = errors {
                log_words(BufReader::new(errors), &kept);
            }
            // Nobody waits any more.
            let _ = words_done.try_send(());
        })?;
        Ok(child)
    }

    /// Its process, for people.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Says hello and hears who it is.
    pub(super) fn greet(&mut self, hello: &HelloAsk) -> Result<HelloAnswer, Fault> {
        self.send(&Ask::Hello(hello.clone()))?;
        let clock = Clock::start();
        loop {
            if signals::is_stop_asked() {
                return Err(Fault::Unwanted);
            }
            let left = Duration::from_millis(limits::TRAINER_START_MS).saturating_sub(clock.elapsed());
            let answer = match self.heard.recv_timeout(left.min(POLL)) {
                Ok(Heard::Answer(answer)) => answer,
                Ok(Heard::Broken(problem)) => return Err(Fault::Broken(problem)),
                Err(RecvTimeoutError::Disconnected) => return Err(Fault::Gone),
                Err(RecvTimeoutError::Timeout) if left > POLL => continue,
                Err(RecvTimeoutError::Timeout) => return Err(Fault::Silent(limits::TRAINER_START_MS / 1000)),
            };
            return match answer {
                Answer::Heartbeat => continue,
                Answer::Hello(hello) if hello.protocol == PROTOCOL => Ok(hello),
                Answer::Hello(hello) => {
                    Err(Fault::Broken(format!("it speaks version {}, this agent speaks {PROTOCOL}", hello.protocol)))
                }
                other => Err(Fault::Broken(format!("its first line is {other:?} instead of `hello`"))),
            };
        }
    }

    /// Asks, and waits for the answer. `control` hears of steps, and is asked now and then (with no new examples) whether to
    /// go on. A round gets nowhere after `patience` without a step.
    pub(super) fn request(
        &mut self,
        id: u64,
        ask: &Ask,
        patience: Duration,
        control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> Result<Answer, Fault> {
        self.send(ask)?;
        self.micro_batch = None;
        let clock = Clock::start();
        let (mut heard, mut moved, mut stop_by) = (Duration::ZERO, Duration::ZERO, None);
        let mut seen = 0;
        let mut report = StepReport { step: 0, loss: 0.0, examples: 0, micro_batch: None };
        loop {
            report.examples = 0;
            match self.heard.recv_timeout(POLL) {
                Ok(Heard::Broken(problem)) => return Err(Fault::Broken(problem)),
                Err(RecvTimeoutError::Disconnected) => return Err(Fault::Gone),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Heard::Answer(answer)) => {
                    heard = clock.elapsed();
                    match answer {
                        Answer::Heartbeat => {}
                        Answer::Step { id: of, step, examples, loss, micro_batch } if of == id => {
                            self.micro_batch = micro_batch.or(self.micro_batch);
                            moved = heard;
                            let new = u32::try_from(examples.saturating_sub(seen)).unwrap_or(u32::MAX);
                            seen = seen.max(examples);
                            #[expect(clippy::cast_possible_truncation, reason = "losses are reported as f32")]
                            let loss = loss as f32;
                            report = StepReport { step, loss, examples: new, micro_batch: self.micro_batch };
                        }
                        answer if answer.id() == Some(id) => return Ok(answer),
                        other => {
                            return Err(Fault::Broken(format!("request {id} is open, and it says {other:?}")));
                        }
                    }
                }
            }
            let stop = control(report).is_break();
            let now = clock.elapsed();
            if stop && stop_by.is_none() {
                self.send(&Ask::Stop { id })?;
                stop_by = Some(now + Duration::from_millis(limits::TRAINER_STOP_MS));
            }
            if stop_by.is_some_and(|by| now >= by) {
                return Err(Fault::Stubborn);
            }
            if now - heard >= Duration::from_millis(limits::TRAINER_SILENCE_MS) {
                return Err(Fault::Silent(limits::TRAINER_SILENCE_MS / 1000));
            }
            if now - moved >= patience {
                return Err(Fault::Stuck(patience.as_secs()));
            }
        }
    }

    /// A line is short and at most two are unread, so that the pipe has room for it: this does not wait.
    fn send(&mut self, ask: &Ask) -> Result<(), Fault> {
        let mut line = serde_json::to_vec(ask).map_err(|error| Fault::Broken(error.to_string()))?;
        line.push(b'\n');
        let input = self.input.as_mut().ok_or(Fault::Gone)?;
        input.write_all(&line).and_then(|()| input.flush()).map_err(|_| Fault::Gone)
    }

    /// Kills what is left of it, and tells how it ended.
    pub(super) fn bury(mut self, fault: &Fault) -> Death {
        // One that has closed its output by itself is about to end: its exit code says more than our signal.
        let status = if *fault == Fault::Gone { self.end(LAST_WORDS) } else { self.end(Duration::ZERO) };
        // A grandchild may hold the pipe open; then what is there has to do.
        let _ = self.words_end.recv_timeout(LAST_WORDS);
        let words = self.words.lock();
        let killed = *fault == Fault::Gone && status.and_then(|status| status.signal()) == Some(9);
        let out_of_memory = killed || speaks_of_memory(&words);
        let mut text = match (fault, status) {
            (Fault::Gone, Some(status)) => describe(status),
            (fault, _) => format!("{fault}, and was killed"),
        };
        if !words.is_empty() {
            text.push_str(&format!("; its last words: {words}"));
        }
        Death { text, out_of_memory, micro_batch: self.micro_batch }
    }

    /// How many examples it computes at once in the latest round, if it said so.
    pub(super) fn micro_batch(&self) -> Option<u32> {
        self.micro_batch
    }

    /// Ends it while it starts: SIGTERM to all its processes, and SIGKILL after `grace`.
    pub(super) fn terminate(&mut self, grace: Duration) {
        self.input = None;
        self.kin.end(grace);
        self.reap();
    }

    /// Lets it end by itself for `grace`, once its input is closed. Whatever of its processes is left then gets SIGTERM, and
    /// SIGKILL after another `grace`.
    pub(super) fn end(&mut self, grace: Duration) -> Option<ExitStatus> {
        if self.input.is_some() && !grace.is_zero() {
            // If it has gone already, nobody needs to be told.
            let _ = self.send(&Ask::Exit);
        }
        self.input = None;
        let clock = Clock::start();
        while clock.elapsed() < grace && !matches!(self.process.try_wait(), Ok(Some(_))) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kin.end(grace);
        self.reap()
    }

    /// It has been killed, or was gone: this does not wait.
    fn reap(&mut self) -> Option<ExitStatus> {
        self.has_ended = true;
        self.process.wait().ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(Duration::ZERO);
        }
    }
}

/// The last words of Rust's allocator, of Python, of PyTorch on a GPU and of the C++ library.
fn speaks_of_memory(words: &str) -> bool {
    ["memory allocation of", "MemoryError", "OutOfMemoryError", "out of memory", "std::bad_alloc"]
        .iter()
        .any(|sign| words.contains(sign))
}

/// How a process ended, for people.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(9)) => "it was killed by signal 9 (often the system's answer to too little memory)".to_owned(),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

fn read_answers(mut output: impl io::BufRead, to: &SyncSender<Heard>) {
    loop {
        let heard = match lines::read(&mut output, limits::TRAINER_LINE_BYTES) {
            Ok(Line::Text(line)) if line.trim().is_empty() => continue,
            Ok(Line::Text(line)) => match serde_json::from_str(&line) {
                Ok(answer) => Heard::Answer(answer),
                Err(error) => Heard::Broken(format!("{:?} is no message ({error})", beginning(&line))),
            },
            Ok(Line::TooLong(line)) => Heard::Broken(format!(
                "a line of more than {} bytes, beginning with {:?}",
                limits::TRAINER_LINE_BYTES,
                beginning(&line)
            )),
            Ok(Line::End) | Err(_) => return,
        };
        if to.send(heard).is_err() {
            return;
        }
    }
}

fn beginning(line: &str) -> String {
    line.chars().take(80).collect()
}

/// What it writes to standard error goes to the log, and the newest of it is kept for the report of its end.
fn log_words(mut errors: impl io::BufRead, kept: &Mutex<String>) {
    while let Ok(line) = lines::read(&mut errors, limits::TRAINER_WORDS_BYTES) {
        let (Line::Text(text) | Line::TooLong(text)) = line else { return };
        if text.trim().is_empty() {
            continue;
        }
        tracing::info!("trainer: {text}");
        *kept.lock() = text;
    }
}
