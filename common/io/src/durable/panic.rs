//! A panic inside sled ends the process.
//!
//! sled unwraps some I/O errors (`sync_all().unwrap()` when its log is dropped) and asserts its invariants on threads of
//! its own. Such a panic would end only that thread: whoever waits for the write would wait for ever, and the process
//! would look alive. So it becomes a stop with the storage exit code, like every other storage error (promise P7).

use std::cell::Cell;
use std::panic::PanicHookInfo;
use std::sync::Once;

use crate::exit::ExitCode;

thread_local! {
    /// Set while this thread opens a store: there, a panic in sled means damaged files and is caught and reported.
    static OPENING: Cell<bool> = const { Cell::new(false) };
}

/// Names that sled 0.34.7 gives its threads (`threadpool.rs`, `db.rs`).
const SLED_THREADS: [&str; 2] = ["sled-io-", "log flusher"];
/// Appears in the source path of every panic raised by sled's own code.
const SLED_SOURCE: &str = "sled-0.34.7";

fn concerns_sled(thread: Option<&str>, source_file: Option<&str>) -> bool {
    thread.is_some_and(|name| SLED_THREADS.iter().any(|prefix| name.starts_with(prefix)))
        || source_file.is_some_and(|file| file.contains(SLED_SOURCE))
}

/// Makes a panic in one of sled's threads, or in its code on any thread, end the process with [`ExitCode::Storage`].
/// Other panics are left to the hook that was there before. Daemons call this once, before they open a store.
pub fn install_panic_policy() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            let current = std::thread::current();
            let ours = concerns_sled(current.name(), info.location().map(std::panic::Location::file));
            if !ours {
                before(info);
            } else if !OPENING.get() {
                before(info);
                eprintln!("error: the store failed internally; nothing is acknowledged after this");
                eprintln!("help: check disk space and the system's log, then start again");
                std::process::exit(i32::from(ExitCode::Storage.as_u8()));
            }
        }));
    });
}

/// Runs `open`, and turns a panic in it into its message.
pub(super) fn catching<T>(open: impl FnOnce() -> T) -> Result<T, String> {
    OPENING.set(true);
    // Nothing outlives the closure: what it was building is dropped with the panic, and the store is not used.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(open));
    OPENING.set(false);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it cannot be opened".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_panics_of_the_store_end_the_process() {
        assert!(concerns_sled(Some("sled-io-3"), None));
        assert!(concerns_sled(Some("log flusher"), Some("parking_lot/src/mutex.rs")));
        assert!(concerns_sled(Some("main"), Some("registry/sled-0.34.7/src/pagecache/logger.rs")));
        assert!(!concerns_sled(Some("main"), Some("coordinator/src/core.rs")));
        assert!(!concerns_sled(None, None));
    }

    #[test]
    fn a_panic_while_opening_is_a_message() {
        let caught = catching(|| -> u8 { panic!("segment {}", 3) });
        assert_eq!(caught, Err("segment 3".to_owned()));
        assert_eq!(catching(|| 5), Ok(5));
    }
}
