//! The processes of a trainer: its process group, and whatever has left the group for a session of its own.
//!
//! A trainer's environment has a mark that its descendants inherit, wherever they go (unless they clear it). So they are
//! found in `/proc` when the trainer ends, and those of an agent that was killed when the next one starts.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anabranch_common::limits;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scratch;
use crate::clock::Clock;

/// The variable that holds the mark.
const MARK_ENV: &str = "ANABRANCH_TRAINER_OF";
/// How often the processes are looked for while they have time to end.
const POLL: Duration = Duration::from_millis(20);
/// No group.
const NONE: i32 = 0;

/// The trainer's processes of one agent.
#[derive(Debug)]
pub(super) struct Kin {
    mark: String,
    /// The group of the trainer that was started last.
    group: AtomicI32,
}

impl Kin {
    /// Returns those of the agent whose directory is `home`.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub(super) fn of(home: &Path) -> io::Result<Self> {
        Ok(Self { mark: scratch::name_of(home)?, group: AtomicI32::new(NONE) })
    }

    /// The variable of its environment by which a descendant is known.
    pub(super) fn variable(&self) -> (&'static str, &str) {
        (MARK_ENV, &self.mark)
    }

    /// Takes note of a trainer that was started as the leader of its group.
    pub(super) fn started(&self, leader: u32) {
        self.group.store(i32::try_from(leader).unwrap_or(NONE), Ordering::Relaxed);
    }

    /// Ends every process: SIGTERM, and SIGKILL after `grace`; at once where that is zero. Returns how many there were.
    pub(super) fn end(&self, grace: Duration) -> usize {
        let found = self.signal(Signal::SIGTERM, !grace.is_zero());
        if found == 0 && self.group.load(Ordering::Relaxed) == NONE {
            // No trainer was started in this process, and an earlier one has left none.
            return 0;
        }
        let clock = Clock::start();
        while clock.elapsed() < grace {
            if self.living().is_empty() {
                break;
            }
            std::thread::sleep(POLL);
        }
        // A process can start another between two looks.
        for _ in 0..limits::TRAINER_KILLS {
            if self.signal(Signal::SIGKILL, true) == 0 {
                // The number may become another group's.
                self.group.store(NONE, Ordering::Relaxed);
                break;
            }
            std::thread::sleep(POLL);
        }
        found
    }

    fn signal(&self, signal: Signal, really: bool) -> usize {
        let living = self.living();
        for pid in living.iter().filter(|_| really) {
            // One that has gone in the meantime needs no signal.
            let _ = kill(*pid, signal);
        }
        living.len()
    }

    /// The processes that have not ended. This one is none of them, whoever started it.
    fn living(&self) -> Vec<Pid> {
        let group = Some(self.group.load(Ordering::Relaxed)).filter(|group| *group != NONE);
        let variable = format!("{MARK_ENV}={}", self.mark);
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_kin = |pid: &i32| {
            let Some(Known { is_dead, group: of }) =
                fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| known(&stat))
            else {
                return false;
            };
            !is_dead && (group == Some(of) || has_variable(*pid, variable.as_bytes()))
        };
        let own = i32::try_from(std::process::id()).unwrap_or(NONE);
        pids.filter(|pid| *pid != own).filter(is_kin).map(Pid::from_raw).collect()
    }
}

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq)]
struct Known {
    /// It has ended, and its parent has not asked how.
    is_dead: bool,
    group: i32,
}

/// `pid (name) state parent group ...`; the name may hold anything.
fn known(stat: &str) -> Option<Known> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X" | "x");
    Some(Known { is_dead, group: fields.nth(1)?.parse().ok()? })
}

/// Whether a process was started with `variable` in its environment. Those of other users cannot be read, and have not.
fn has_variable(pid: i32, variable: &[u8]) -> bool {
    let mut environment = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(limits::PROCESS_ENVIRONMENT_BYTES).read_to_end(&mut environment));
    read.is_ok() && environment.split(|byte| *byte == 0).any(|entry| entry == variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_hide_state_and_group() {
        assert_eq!(known("7 (a) S (b)) Z 1 42 42 0 -1"), Some(Known { is_dead: true, group: 42 }));
        assert_eq!(known("7 (sh) S 1 42 42 0 -1"), Some(Known { is_dead: false, group: 42 }));
        assert_eq!(known("7 sh S"), None);
    }
}
