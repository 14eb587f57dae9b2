//! A thread that flushes sled, so that a flush that never returns is noticed.
//!
//! sled 0.34.7 wakes whoever waits in `flush` through a condition variable. When a write fails on one path
//! (`Log::exit_reservation`) it records the error without waking anybody, so a full disk can leave `flush` asleep for
//! ever. The error is visible from outside, though: the committing thread watches it while it waits.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a waiting commit looks whether sled has recorded an error.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How many times the error is seen before the flush is given up; before that, sled normally reports it itself.
const LOOKS: u32 = 10;

pub(super) struct Flusher {
    requests: Option<SyncSender<()>>,
    results: Receiver<sled::Result<usize>>,
    thread: Option<JoinHandle<()>>,
    stuck: bool,
}

impl Flusher {
    pub(super) fn start(db: sled::Db) -> std::io::Result<Self> {
        let (requests, inbox) = sync_channel::<()>(1);
        let (outbox, results) = sync_channel(1);
        let thread = std::thread::Builder::new().name("store-flush".to_owned()).spawn(move || {
            while inbox.recv().is_ok() {
                if outbox.send(db.flush()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { requests: Some(requests), results, thread: Some(thread), stuck: false })
    }

    /// Flushes. Returns sled's error, or the one it has recorded when the flush does not return.
    pub(super) fn flush(&mut self, db: &sled::Db) -> sled::Result<()> {
        let ended = || sled::Error::ReportableBug("the flushing thread has ended".to_owned());
        if self.requests.as_ref().is_none_or(|requests| requests.send(()).is_err()) {
            return Err(ended());
        }
        let mut looks = 0;
        loop {
            match self.results.recv_timeout(LOOK_EVERY) {
                Ok(result) => return result.and(db.context.global_error()),
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = db.context.global_error() {
                        looks += 1;
                        if looks == LOOKS {
                            self.stuck = true;
                            return Err(error);
                        }
                    }
                }
            }
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.requests = None;
        // A stuck thread never ends; the process is about to.
        if let Some(thread) = self.thread.take().filter(|_| !self.stuck) {
            // A panic in it has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
