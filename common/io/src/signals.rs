//! The signals that end a daemon: SIGTERM, SIGINT and SIGHUP, from the process's first moment on.
//!
//! ```text
//!  install ─► OnSignal::Exit ─── the process ends at once, with code 0: nothing is begun that would stay behind
//!                  │ set
//!             OnSignal::Tell ─── `recv` says so, and `is_stop_asked` from then on; the daemon ends in order
//! ```
//! A terminal that closes sends SIGHUP, and it comes twice: from the shell and from the kernel. So SIGHUP asks for the first
//! stop only: after any signal it is ignored, and never counts as the second request. A process that was started with
//! SIGHUP ignored (`nohup`) goes on ignoring it.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_common::limits;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::exit::ExitCode;

const HANG_UP: &str = "SIGHUP";

/// Whether a signal has asked this process to end. Of the process, as signals are.
static STOP_ASKED: AtomicBool = AtomicBool::new(false);

/// Signals that were installed before the command line was read, until [`Signals::install`] hands them out.
static EARLY: Mutex<Option<Signals>> = Mutex::new(None);

/// Takes over the signals at once if the command line `args`, the program's name included, is that of a daemon: its first
/// word is `run`. Other verbs keep the system's way: a signal ends them.
pub fn install_for_daemon(args: &[OsString]) {
    if is_daemon(args) {
        // A daemon installs them once more and reports the error.
        *EARLY.lock() = Signals::install().ok();
    }
}

/// A value of an option before the verb (`--log-format json run`) looks like another verb: that daemon installs its
/// handlers when its command line has been read.
fn is_daemon(args: &[OsString]) -> bool {
    let first = args.iter().skip(1).find(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
    first.is_some_and(|verb| verb == "run")
}

/// Whether a signal has asked this process to end: for whatever waits where no event can reach it.
#[must_use]
pub fn is_stop_asked() -> bool {
    STOP_ASKED.load(Ordering::Relaxed)
}

/// What a signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSignal {
    /// It ends the process at once, with code 0.
    Exit,
    /// It is received by [`Signals::recv`].
    Tell,
}

/// The signals of this process.
#[derive(Debug)]
pub struct Signals {
    then: Arc<Mutex<OnSignal>>,
    received: mpsc::Receiver<&'static str>,
}

impl Signals {
    /// Takes over the signals, which end the process with code 0 until [`set`](Self::set) says otherwise. Daemons call this
    /// before anything else. After [`install_for_daemon`] the first call returns what that installed.
    ///
    /// # Errors
    /// The system refuses a handler or a thread.
    pub fn install() -> io::Result<Self> {
        if let Some(early) = EARLY.lock().take() {
            return Ok(early);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let handlers = {
            let _entered = runtime.enter();
            let hang_up = if ignores_hang_up() { None } else { Some(signal(SignalKind::hangup())?) };
            Handlers {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hang_up,
            }
        };
        let then = Arc::new(Mutex::new(OnSignal::Exit));
        let (to, received) = mpsc::channel(limits::SIGNALS_QUEUED);
        let shared = Arc::clone(&then);
        // A thread of its own: it answers whatever the others are waiting for.
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(listen(handlers, &shared, &to)))?;
        Ok(Self { then, received })
    }

    /// Changes what signals do. With [`OnSignal::Exit`] a stop that was asked for before ends the process now.
    pub fn set(&self, then: OnSignal) {
        let mut current = self.then.lock();
        *current = then;
        if then == OnSignal::Exit && is_stop_asked() {
            exit("a signal");
        }
    }

    /// Waits for a signal on a thread without a runtime, and returns its name.
    pub fn wait(&mut self) -> &'static str {
        loop {
            match self.received.blocking_recv() {
                Some(name) => return name,
                // The listening thread never ends before the process.
                None => std::thread::park(),
            }
        }
    }

    /// Waits for a signal, and returns its name.
    pub async fn recv(&mut self) -> &'static str {
        match self.received.recv().await {
            Some(name) => name,
            // The listening thread never ends before the process.
            None => std::future::pending().await,
        }
    }
}

struct Handlers {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
}

async fn listen(mut handlers: Handlers, then: &Mutex<OnSignal>, to: &mpsc::Sender<&'static str>) {
    loop {
        let hung_up = async {
            match &mut handlers.hang_up {
                Some(hang_up) => _ = hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        let name = tokio::select! {
            _ = handlers.terminate.recv() => "SIGTERM",
            _ = handlers.interrupt.recv() => "SIGINT",
            () = hung_up => HANG_UP,
        };
        // Held until the process has ended or the daemon has been told: it does not begin anything in between.
        let then = then.lock();
        let asked_before = STOP_ASKED.swap(true, Ordering::Relaxed);
        match *then {
            OnSignal::Exit => exit(name),
            OnSignal::Tell if !is_request(name, asked_before) => tracing::debug!("{name} again: already stopping"),
            // A queue that is full says already what this one would.
            OnSignal::Tell => _ = to.try_send(name),
        }
    }
}

/// Whether a signal asks for something, when one before has asked the process to end or not.
fn is_request(name: &str, asked_before: bool) -> bool {
    !(asked_before && name == HANG_UP)
}

fn exit(name: &str) -> ! {
    tracing::info!("{name} while starting: ended before anything was begun");
    std::process::exit(i32::from(ExitCode::Ok.as_u8()));
}

/// Whether this process was started with SIGHUP ignored.
fn ignores_hang_up() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignored_in(&status) & 1 != 0)
}

/// The mask of ignored signals in `/proc/PID/status`: bit 0 is signal 1, SIGHUP.
fn ignored_in(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal that closes sends two of them: the orderly stop must not be cut short.
    #[test]
    fn a_hang_up_is_never_the_second_request() {
        for name in ["SIGHUP", "SIGTERM", "SIGINT"] {
            assert!(is_request(name, false), "{name} first");
            assert_eq!(is_request(name, true), name != "SIGHUP", "{name} after another");
        }
    }

    #[test]
    fn a_daemon_is_known_before_its_command_line_is_read() {
        let is = |args: &[&str]| is_daemon(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(is(&["anabranch-agent", "run", "--dir", "agent"]));
        assert!(is(&["anabranch-agent", "-v", "--log-format=json", "run"]));
        for args in
            [&["run"][..], &[], &["anabranch-agent", "status", "--dir", "run"], &["anabranch-agent", "--dir=run"]]
        {
            assert!(!is(args), "{args:?}");
        }
    }

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\tagent\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0000000180004002\n";
        assert_eq!(ignored_in(status), 0x1001);
        assert_eq!(ignored_in("Name:\tagent\n"), 0);
    }
}
