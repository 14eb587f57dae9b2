//! Named kill points: places at which a test can make the process kill itself, as `kill -9` would.
//!
//! Only with the feature `faults`; without it [`point`] is empty and costs nothing. `ANABRANCH_KILL_AT=NAME` kills at the
//! first passage of a point of that name, `NAME:N` at the N-th. `anabranch-lab kills` knows every name.

/// Environment variable that names a point, and which passage of it is the last.
pub const KILL_ENV: &str = "ANABRANCH_KILL_AT";

/// Ends the process here, without any goodbye, if the environment asks for it.
#[cfg(feature = "faults")]
pub fn point(name: &str) {
    if let Some(armed) = armed::get()
        && armed.name == name
        && armed.is_last_passage()
    {
        armed::kill();
    }
}

/// Nothing, in this build.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_name: &str) {}

#[cfg(feature = "faults")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, kill as send_signal};
    use nix::unistd::getpid;

    use super::KILL_ENV;

    pub(super) struct Armed {
        pub(super) name: String,
        passages_left: AtomicU64,
    }

    impl Armed {
        fn parse(text: &str) -> Self {
            let (name, passage) = match text.split_once(':') {
                Some((name, passage)) => (name, passage.parse().unwrap_or(1)),
                None => (text, 1),
            };
            Self { name: name.to_owned(), passages_left: AtomicU64::new(passage) }
        }

        pub(super) fn is_last_passage(&self) -> bool {
            self.passages_left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    pub(super) fn get() -> Option<&'static Armed> {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        ARMED.get_or_init(|| std::env::var(KILL_ENV).ok().map(|text| Armed::parse(&text))).as_ref()
    }

    pub(super) fn kill() -> ! {
        // The kernel does not return from this one; should it refuse, there is still abort.
        let _ = send_signal(getpid(), Signal::SIGKILL);
        std::process::abort()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_the_passage_that_was_asked_for_is_the_last() {
            let armed = Armed::parse("before-sync:3");
            assert_eq!(armed.name, "before-sync");
            let passages = [(); 5].map(|()| armed.is_last_passage());
            assert_eq!(passages, [false, false, true, false, false]);
            assert!(Armed::parse("before-sync").is_last_passage(), "the first one without a number");
        }
    }
}
