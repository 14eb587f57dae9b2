//! Calling the binary.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_anabranch-coordinator");

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Asserts the exit code, with everything that was printed when it is another.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts what standard error says.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} is not in standard error:\n{}", self.stderr);
        self
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).env_remove("ANABRANCH_LOG").env_remove("ANABRANCH_COORDINATOR_DIR").stdin(Stdio::null());
    command
}

/// Calls the binary and waits for its end.
pub(crate) fn call(args: &[&str]) -> Ended {
    ended(&mut command(args))
}

fn ended(command: &mut Command) -> Ended {
    let output = command.output().expect("the binary starts");
    Ended {
        code: output.status.code().expect("it ends by itself"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A coordinator's directory in a temporary folder.
#[derive(Debug)]
pub(crate) struct Directory {
    folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Directory {
    /// `init` on a free port of the loopback interface.
    pub(crate) fn init() -> Self {
        Self::init_with_port_taken().0
    }

    /// The same with a socket that holds the port.
    pub(crate) fn init_with_port_taken() -> (Self, UdpSocket) {
        let free = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Self { folder, port };
        directory.call(&["init"], &["--listen", &format!("127.0.0.1:{port}")]).code(0);
        (directory, free)
    }

    /// The same for a run whose model may have any tensors.
    pub(crate) fn init_custom() -> Self {
        let directory = Self::init();
        directory.edit("kind = \"mlp\"", "kind = \"custom\"");
        directory
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("d")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// `init` at a moment `days` from now.
    pub(crate) fn init_at(days: i64) -> Self {
        let directory = Self::init();
        std::fs::remove_dir_all(directory.file("tls")).expect("removed");
        let now_ms = anabranch_coordinator::clock::unix_ms();
        let then_ms = now_ms.saturating_add_signed(days * 24 * 60 * 60 * 1000);
        let names = ["127.0.0.1".to_owned()];
        anabranch_coordinator::identity::Identity::create(&directory.path(), &names, then_ms).expect("created");
        directory
    }

    /// Calls `verb... --dir DIR rest...` where no file may grow, as on a full disk.
    pub(crate) fn call_on_full_disk(&self, verb: &[&str], rest: &[&str]) -> Ended {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"", BINARY]).args(self.args(verb, rest));
        ended(&mut shell)
    }

    /// Calls `verb... --dir DIR rest...`.
    pub(crate) fn call(&self, verb: &[&str], rest: &[&str]) -> Ended {
        call(&self.args(verb, rest).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The command `verb... --dir DIR rest...`.
    pub(crate) fn command(&self, verb: &[&str], rest: &[&str]) -> Command {
        command(&self.args(verb, rest).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts `status --watch` with pipes.
    pub(crate) fn watch(&self) -> Watcher {
        let mut command = self.command(&["status", "--watch"], &[]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let stdout = child.stdout.take().map(BufReader::new).expect("a pipe");
        Watcher { child, stdout }
    }

    fn args(&self, verb: &[&str], rest: &[&str]) -> Vec<String> {
        let dir = self.path().display().to_string();
        let words = verb.iter().copied().chain(["--dir", &dir]).chain(rest.iter().copied());
        words.map(String::from).collect()
    }

    /// Replaces text in run.toml.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let path = self.file("run.toml");
        let text = std::fs::read_to_string(&path).expect("run.toml");
        assert!(text.contains(from), "run.toml does not contain {from:?}");
        std::fs::write(&path, text.replacen(from, to, 1)).expect("written");
    }

    /// Starts `run` and waits until it says that it serves.
    #[track_caller]
    pub(crate) fn serve(&self) -> Serving {
        let args = self.args(&["run"], &[]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = command(&args).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let stderr = child.stderr.take().map(BufReader::new);
        let mut serving = Serving { child, stderr, log: String::new() };
        serving.read_log_until("serving");
        assert!(serving.log.contains("serving"), "the coordinator ended instead: {}", serving.log);
        serving
    }
}

/// `status --watch` without a terminal; killed when dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Watcher {
    /// The next line; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("lines are text");
        line
    }

    /// Reads lines up to one that starts with `text`.
    #[track_caller]
    pub(crate) fn lines_until(&mut self, text: &str) {
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the watcher ended before {text:?}: {}", self.stderr());
            if line.starts_with(text) {
                return;
            }
        }
    }

    fn stderr(&mut self) -> String {
        let mut stderr = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
        stderr
    }

    /// Sends it the signal `name`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill");
        assert!(status.success());
    }

    /// Waits for its end; the last line and how it ended.
    pub(crate) fn wait(mut self) -> (String, Ended) {
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).expect("lines are text");
        let stderr = self.stderr();
        let code = self.child.wait().expect("waited").code().expect("it ends by itself");
        (stdout.lines().last().unwrap_or_default().to_owned(), Ended { code, stdout, stderr })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A coordinator that runs; killed when dropped. It logs far less than a pipe holds.
#[derive(Debug)]
pub(crate) struct Serving {
    child: Child,
    stderr: Option<BufReader<ChildStderr>>,
    log: String,
}

impl Serving {
    /// Reads lines of the log up to one that contains `text`, else to the end.
    fn read_log_until(&mut self, text: &str) {
        let Some(stderr) = &mut self.stderr else { return };
        let mut line = String::new();
        while stderr.read_line(&mut line).expect("the log is text") > 0 {
            self.log.push_str(&line);
            if line.contains(text) {
                return;
            }
            line.clear();
        }
    }

    /// Waits for its end; the exit code and what was logged.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        self.read_log_until("no line says this");
        let status = self.child.wait().expect("waited");
        (status.code(), std::mem::take(&mut self.log))
    }

    /// SIGTERM, then as [`wait`](Self::wait).
    pub(crate) fn terminate(self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
        self.wait()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a safetensors file of f32 tensors.
pub(crate) fn write_safetensors(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let mut header = String::from("{");
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let comma = if start == 0 { "" } else { "," };
        header.push_str(&format!(
            "{comma}\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{start},{}]}}",
            data.len()
        ));
    }
    header.push('}');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    std::fs::write(path, bytes).expect("written");
}
