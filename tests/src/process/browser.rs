//! Chromium without a window, over its DevTools protocol: JSON through two pipes, a byte 0 after each message.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use super::PATIENCE;
use crate::clock::poll;

/// Names under which it is installed.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Messages that wait to be read.
const MESSAGES: usize = 4_096;

/// How a page is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Width of the window, in pixels.
    pub width: u32,
    /// Its height.
    pub height: u32,
    /// Whether it is a phone's.
    pub is_phone: bool,
    /// `light` or `dark`.
    pub scheme: &'static str,
}

/// A browser with one page. It ends when it is dropped.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    to_browser: File,
    from_browser: Receiver<Value>,
    next: u64,
    session: String,
    /// What its pages have complained of: exceptions, and errors in the console.
    pub complaints: Vec<String>,
    /// Every address that its pages have asked for.
    pub requests: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser; none where none is installed.
    ///
    /// # Errors
    /// It does not answer, or none is installed on the machine that checks changes.
    pub fn start() -> anyhow::Result<Option<Self>> {
        let found = PROGRAMS.into_iter().find(|program| Command::new(program).arg("--version").output().is_ok());
        let Some(program) = found else {
            if std::env::var_os("CI").is_some() {
                bail!("there is no chromium: install it to test pages");
            }
            return Ok(None);
        };
        let folder = tempfile::Builder::new().prefix("anabranch-browser-").tempdir()?;
        let (down, up) = (folder.path().join("down"), folder.path().join("up"));
        for pipe in [&down, &up] {
            nix::unistd::mkfifo(pipe, Mode::S_IRWXU)?;
        }
        // The protocol's pipes are descriptors 3 and 4, which only a shell gives without unsafe code.
        let child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<\"$DOWN\" 4>\"$UP\"", program])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"])
            .args(["--disable-background-networking", "--hide-scrollbars", "--force-color-profile=srgb"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .env("DOWN", &down)
            .env("UP", &up)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("log"))?)
            .spawn()?;
        let to_browser = OpenOptions::new().write(true).open(&down)?;
        let (messages, from_browser) = sync_channel(MESSAGES);
        let answers = File::open(&up)?;
        std::thread::spawn(move || read(answers, &messages));
        let (complaints, requests) = (Vec::new(), Vec::new());
        let session = String::new();
        let mut browser =
            Self { child, to_browser, from_browser, next: 0, session, complaints, requests, _folder: folder };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach)?;
        session["sessionId"].as_str().context("no session")?.clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(Some(browser))
    }

    /// Asks for something of the protocol, and returns the answer.
    fn ask(&mut self, method: &str, params: Value) -> anyhow::Result<Value> {
        self.next += 1;
        let mut request = json!({ "id": self.next, "method": method, "params": params });
        if !self.session.is_empty() {
            request["sessionId"] = self.session.as_str().into();
        }
        self.to_browser.write_all(format!("{request}\0").as_bytes())?;
        loop {
            let answer = self.from_browser.recv_timeout(PATIENCE);
            let mut answer = answer.with_context(|| format!("the browser does not answer {method}"))?;
            if answer["id"] == self.next {
                if !answer["error"].is_null() {
                    bail!("{method}: {}", answer["error"]);
                }
                return Ok(answer["result"].take());
            }
            self.note(&answer);
        }
    }

    /// Notes what a page does by itself.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(params["exceptionDetails"].to_string()),
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string());
            }
            Some("Network.requestWillBeSent") => {
                self.requests.extend(params["request"]["url"].as_str().map(String::from));
            }
            _ => {}
        }
    }

    /// Sets how pages are looked at.
    ///
    /// # Errors
    /// The browser does not answer.
    pub fn look(&mut self, look: Look) -> anyhow::Result<()> {
        let Look { width, height, is_phone, scheme } = look;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone });
        self.ask("Emulation.setDeviceMetricsOverride", metrics)?;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("Emulation.setEmulatedMedia", features)?;
        Ok(())
    }

    /// Opens an address.
    ///
    /// # Errors
    /// Nothing is served there.
    pub fn open(&mut self, address: &str) -> anyhow::Result<()> {
        let answer = self.ask("Page.navigate", json!({ "url": address }))?;
        match answer["errorText"].as_str() {
            Some(error) => bail!("{address}: {error}"),
            None => Ok(()),
        }
    }

    /// Evaluates JavaScript in the page.
    ///
    /// # Errors
    /// It throws.
    pub fn eval(&mut self, script: &str) -> anyhow::Result<Value> {
        let mut answer = self.ask("Runtime.evaluate", json!({ "expression": script, "returnByValue": true }))?;
        if !answer["exceptionDetails"].is_null() {
            bail!("{script}: {}", answer["exceptionDetails"]);
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until JavaScript gives something true, and returns it.
    ///
    /// # Errors
    /// It does not; with the text of the page.
    pub fn wait_for(&mut self, script: &str) -> anyhow::Result<Value> {
        let found = poll(PATIENCE, || {
            // While a page is loaded, there may be nothing to evaluate in.
            let value = self.eval(script).unwrap_or(Value::Null);
            Ok((!matches!(value, Value::Null | Value::Bool(false)) && value != "" && value != 0).then_some(value))
        })?;
        if let Some(value) = found {
            return Ok(value);
        }
        let text = self.eval("document.body.innerText")?;
        bail!("not within {PATIENCE:?}: {script}\n{}", text.as_str().unwrap_or_default())
    }

    /// Waits until the page shows a text.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_for_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.wait_for(&format!("document.body.innerText.includes({})", json!(text))).map(drop)
    }

    /// Clicks into the middle of an element.
    ///
    /// # Errors
    /// There is none.
    pub fn click(&mut self, selector: &str) -> anyhow::Result<()> {
        let middle = format!(
            "(() => {{ const e = document.querySelector({}); if (!e) return null; e.scrollIntoView({{ block: 'center' }}); \
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()",
            json!(selector)
        );
        let at = self.wait_for(&middle)?;
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1 });
            self.ask("Input.dispatchMouseEvent", event)?;
        }
        Ok(())
    }

    /// Types a text into what has the focus.
    ///
    /// # Errors
    /// The browser does not answer.
    pub fn type_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.ask("Input.insertText", json!({ "text": text }))?;
        Ok(())
    }

    /// Lets pages save files into a folder.
    ///
    /// # Errors
    /// The browser does not answer.
    pub fn save_files_in(&mut self, folder: &Path) -> anyhow::Result<()> {
        self.ask("Browser.setDownloadBehavior", json!({ "behavior": "allow", "downloadPath": folder }))?;
        Ok(())
    }

    /// Takes certificates of any CA, as a person does who goes on past the warning.
    ///
    /// # Errors
    /// The browser does not answer.
    pub fn take_any_certificate(&mut self) -> anyhow::Result<()> {
        self.ask("Security.setIgnoreCertificateErrors", json!({ "ignore": true }))?;
        Ok(())
    }

    /// Presses a key: `Tab`, `Enter`, `Escape`, `ArrowLeft`.
    ///
    /// # Errors
    /// The browser does not answer.
    pub fn press(&mut self, key: &str) -> anyhow::Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            "ArrowLeft" => (37, ""),
            other => bail!("the key {other} has no code here"),
        };
        let event = |kind: &str| {
            let mut event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            event
        };
        self.ask("Input.dispatchKeyEvent", event("keyDown"))?;
        self.ask("Input.dispatchKeyEvent", event("keyUp"))?;
        Ok(())
    }

    /// Writes a picture of the whole page.
    ///
    /// # Errors
    /// The browser does not answer, or the file cannot be written.
    pub fn picture(&mut self, file: &Path) -> anyhow::Result<()> {
        let answer = self.ask("Page.captureScreenshot", json!({ "captureBeyondViewport": true }))?;
        let bytes = STANDARD.decode(answer["data"].as_str().context("no picture")?)?;
        Ok(std::fs::write(file, bytes)?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended; and nobody is left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads messages until the browser ends or nobody listens.
fn read(answers: File, messages: &SyncSender<Value>) {
    let mut answers = BufReader::new(answers);
    loop {
        let mut message = Vec::new();
        match answers.read_until(0, &mut message) {
            Ok(1..) => message.pop(),
            Ok(0) | Err(_) => return,
        };
        let Ok(message) = serde_json::from_slice(&message) else { return };
        if messages.send(message).is_err() {
            return;
        }
    }
}
