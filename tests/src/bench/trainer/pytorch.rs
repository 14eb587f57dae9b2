//! PyTorch in a child process, which runs `pytorch.py`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anabranch_common::spec::OptimizerSpec;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::cases::Case;
use super::{Side, Turn};

const SCRIPT: &str = include_str!("pytorch.py");

/// The child.
pub(super) struct PyTorch {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// PyTorch's version.
    pub(super) version: String,
    /// Whether it multiplies matrices with MKL: some builds have a plain BLAS, which is many times slower.
    pub(super) mkl: bool,
    /// Whether it sees a GPU through CUDA.
    pub(super) cuda: bool,
}

#[derive(Deserialize)]
struct Hello {
    torch: String,
    mkl: bool,
    cuda: bool,
}

#[derive(Deserialize)]
struct Made {
    params: u64,
}

#[derive(Deserialize)]
struct Trained {
    wall_s: f64,
    cpu_s: f64,
    loss: Option<f64>,
}

impl PyTorch {
    /// Starts Python and waits until PyTorch is loaded.
    ///
    /// # Errors
    /// There is no such Python, or it has no PyTorch.
    pub(super) fn start(python: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let requests = requests.context("the child's input was asked for")?;
        let mut answers = BufReader::new(answers.context("the child's output was asked for")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        if line.is_empty() {
            let output = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{}: {}", python.display(), text.lines().last().unwrap_or("it ended without a word"));
        }
        let Hello { torch, mkl, cuda } =
            serde_json::from_str(&line).with_context(|| format!("not an answer: {line}"))?;
        Ok(Self { child, requests, answers, version: torch, mkl, cuda })
    }

    /// Makes the model of `case`; how many parameters it has.
    /// `device` is in PyTorch's words.
    pub(super) fn make(&mut self, case: &Case, threads: usize, device: &str) -> anyhow::Result<u64> {
        let Case { kind, figures, batch, .. } = case;
        let optimizer = if matches!(case.optimizer, OptimizerSpec::Sgd { .. }) { "sgd" } else { "adamw" };
        let request = json!({
            "model": kind, "figures": figures, "batch": batch, "optimizer": optimizer, "threads": threads, "device": device
        });
        Ok(self.ask::<Made>(&request)?.params)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &serde_json::Value) -> anyhow::Result<T> {
        writeln!(self.requests, "{request}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("PyTorch's side answered {line:?} to {request}"))
    }
}

impl Side for PyTorch {
    fn train(&mut self, steps: u32) -> anyhow::Result<Turn> {
        let Trained { wall_s, cpu_s, loss } = self.ask(&json!({"steps": steps}))?;
        if !loss.is_some_and(f64::is_finite) {
            bail!("PyTorch's side diverged: its loss is {loss:?}");
        }
        Ok(Turn { wall_s, cpu_s })
    }
}

impl Drop for PyTorch {
    fn drop(&mut self) {
        // It holds nothing that is worth an orderly end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
