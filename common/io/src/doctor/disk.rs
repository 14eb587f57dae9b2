//! How fast a disk is, and whether its syncs are honest: measured in a file that has no name, so that nothing is left.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch_common::limits::doctor as limits;
use anabranch_common::rng::SplitMix64;
use nix::sys::statvfs::statvfs;

use super::{Finding, millis_text};
use crate::cli::size_text;
use crate::exit::ExitCode;

/// Names of the checks.
pub const SPACE: &str = "disk-space";
/// How fast large files are written.
pub const SPEED: &str = "disk-speed";
/// How long a sync takes.
pub const SYNC: &str = "disk-sync";

/// Bytes of one write.
const PIECE: usize = 1 << 20;
/// Bytes that are written before a sync that is measured.
const PAGE: usize = 4 << 10;

/// Figures of the disk below a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The directory that was measured: the nearest one that exists.
    pub dir: PathBuf,
    /// Whether its files are held in memory.
    pub is_memory: bool,
    /// Bytes that this user may still write.
    pub free_bytes: u64,
    /// Bytes that were written, with how long that took, the sync included.
    pub written: (u64, Duration),
    /// How long each sync of 4 KiB took, shortest first.
    pub syncs: Vec<Duration>,
}

/// Why a disk was not measured.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be {what}: {source}", path.display())]
pub struct DiskError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

impl DiskError {
    /// Returns the finding.
    #[must_use]
    pub fn judge(&self) -> Finding {
        let advice = match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "make room on this disk, or use another directory"
            }
            io::ErrorKind::PermissionDenied => {
                "run as the user that owns the directory, or make it writable for this one"
            }
            io::ErrorKind::ReadOnlyFilesystem => "use a directory on a disk that is mounted for writing",
            _ => "look at the kernel's log (dmesg) for errors of this disk, or use another directory",
        };
        Finding::failure(SPACE, ExitCode::Storage, self.to_string(), advice)
    }
}

/// Measures the disk of `dir`, or of the nearest directory above it that exists. Writes at most `DISK_BYTES` and the pages
/// of `DISK_SYNCS` syncs. `elapsed` is a clock that does not go back.
///
/// # Errors
/// The directory cannot be used, or has no room.
pub fn measure(dir: &Path, elapsed: &dyn Fn() -> Duration) -> Result<Measured, DiskError> {
    let dir = existing(dir);
    let fail = |what| {
        let path = dir.clone();
        move |source| DiskError { path, what, source }
    };
    let space = statvfs(&dir).map_err(io::Error::from).map_err(fail("looked at"))?;
    let free_bytes = space.blocks_available().saturating_mul(space.fragment_size());
    let mut file = nameless(&dir).map_err(fail("written"))?;
    let written = write_piece_by_piece(&mut file, free_bytes, elapsed).map_err(fail("written"))?;
    let mut syncs = sync_page_by_page(&mut file, elapsed).map_err(fail("synced"))?;
    syncs.sort_unstable();
    Ok(Measured { is_memory: is_memory(&dir), dir, free_bytes, written, syncs })
}

/// Whether files in `dir` are held in memory.
#[cfg(target_os = "linux")]
fn is_memory(dir: &Path) -> bool {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    statfs(dir).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// The same where the system does not tell.
#[cfg(not(target_os = "linux"))]
fn is_memory(_dir: &Path) -> bool {
    false
}

/// The nearest directory that exists: `dir` itself may have to be made first.
fn existing(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.ancestors().find(|path| path.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// A file that has no name as soon as it is open: a process that is killed leaves nothing.
fn nameless(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!(".doctor-{}", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

fn write_piece_by_piece(file: &mut File, free: u64, elapsed: &dyn Fn() -> Duration) -> io::Result<(u64, Duration)> {
    // Some disks compress; a generator's output they cannot.
    let mut rng = SplitMix64::new(1);
    let piece: Vec<u8> = (0..PIECE / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
    let pieces = limits::DISK_BYTES.min(free / 2).div_ceil(PIECE as u64).max(1);
    let begun = elapsed();
    for _ in 0..pieces {
        file.write_all(&piece)?;
    }
    file.sync_data()?;
    Ok((pieces * PIECE as u64, elapsed().saturating_sub(begun)))
}

fn sync_page_by_page(file: &mut File, elapsed: &dyn Fn() -> Duration) -> io::Result<Vec<Duration>> {
    let page = [0x5a; PAGE];
    let begun = elapsed();
    let mut syncs = Vec::new();
    while syncs.len() < limits::DISK_SYNCS && elapsed().saturating_sub(begun).as_millis() < limits::DISK_SYNCS_MS.into()
    {
        let before = elapsed();
        file.write_all(&page)?;
        file.sync_data()?;
        syncs.push(elapsed().saturating_sub(before));
    }
    Ok(syncs)
}

impl Measured {
    /// Judges space, speed and syncs. `needed_bytes` is what is known to be needed beside that of every directory.
    #[must_use]
    pub fn judge(&self, needed_bytes: u64) -> Vec<Finding> {
        vec![self.judge_space(needed_bytes), self.judge_speed(), self.judge_syncs()]
    }

    fn judge_space(&self, needed_bytes: u64) -> Finding {
        let measured = format!("{} free in {}", size_text(self.free_bytes), self.dir.display());
        let finding = if self.free_bytes < limits::DISK_FULL_BYTES.saturating_add(needed_bytes) {
            let needed = size_text(limits::DISK_FULL_BYTES.saturating_add(needed_bytes));
            let advice = format!("make room: at least {needed} are needed, or use a directory on another disk");
            Finding::failure(SPACE, ExitCode::Storage, measured, advice)
        } else if self.free_bytes < limits::DISK_SMALL_BYTES.saturating_add(needed_bytes) {
            let advice = "make room before a large model or many runs: a full disk stops the process (exit code 6)";
            Finding::warning(SPACE, measured, advice)
        } else {
            Finding::ok(SPACE, measured)
        };
        finding.figure("free_bytes", self.free_bytes).figure("needed_bytes", needed_bytes)
    }

    fn judge_speed(&self) -> Finding {
        let (bytes, took) = self.written;
        let per_s = bytes as f64 / took.as_secs_f64().max(1e-6);
        let measured = format!("{:.0} MiB/s over {} with a sync", per_s / f64::from(1 << 20), size_text(bytes));
        let finding = if per_s < limits::DISK_SLOW_BYTES_PER_S as f64 {
            let advice =
                "expect checkpoints, rounds that are kept and large updates to take long; use another disk if you can";
            Finding::warning(SPEED, measured, advice)
        } else {
            Finding::ok(SPEED, measured)
        };
        finding.figure("bytes_per_s", per_s.round())
    }

    fn judge_syncs(&self) -> Finding {
        let Some(median) = self.syncs.get(self.syncs.len() / 2).copied() else {
            return Finding::skipped(SYNC, "no sync was measured");
        };
        let longest = self.syncs.last().copied().unwrap_or(median);
        let ms = |time: Duration| millis_text(time.as_secs_f64() * 1e3);
        let us = u64::try_from(median.as_micros()).unwrap_or(u64::MAX);
        let measured = match us {
            0..1_000 => format!("median {us} us, longest {}, of {} syncs of 4 KiB", ms(longest), self.syncs.len()),
            _ => format!("median {}, longest {}, of {} syncs of 4 KiB", ms(median), ms(longest), self.syncs.len()),
        };
        let finding = if self.is_memory {
            let measured = format!("{measured}: the directory is in memory (tmpfs)");
            let advice = "move the directory to a disk: finished work in it does not survive a restart of the machine";
            Finding::warning(SYNC, measured, advice)
        } else if us < limits::DISK_SYNC_HONEST_US {
            let advice = "find out what answers the syncs: a controller with a battery may, but a virtual disk with an unsafe \
                          cache or libeatmydata loses acknowledged work in a power failure";
            Finding::warning(SYNC, format!("{measured}: faster than flash stores them"), advice)
        } else if us >= limits::DISK_SYNC_SLOW_US {
            let advice =
                "expect every acknowledgement to take that long; a disk with a shorter sync helps, such as flash";
            Finding::warning(SYNC, measured, advice)
        } else {
            Finding::ok(SYNC, measured)
        };
        finding.figure("median_us", us).figure("longest_us", u64::try_from(longest.as_micros()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::Outcome;
    use super::*;

    fn disk(sync_us: u64) -> Measured {
        Measured {
            dir: "/data".into(),
            is_memory: false,
            free_bytes: 500 << 30,
            written: (32 << 20, Duration::from_millis(100)),
            syncs: vec![Duration::from_micros(sync_us); 5],
        }
    }

    fn outcomes(disk: &Measured, needed_bytes: u64) -> [Outcome; 3] {
        let findings = disk.judge(needed_bytes);
        [0, 1, 2].map(|index| findings[index].outcome)
    }

    #[test]
    fn each_figure_has_its_own_finding() {
        use Outcome::{Failure, Ok, Warning};
        assert_eq!(outcomes(&disk(400), 0), [Ok, Ok, Ok]);
        assert_eq!(outcomes(&disk(3), 0), [Ok, Ok, Warning], "no flash is that fast");
        assert_eq!(outcomes(&disk(200_000), 0), [Ok, Ok, Warning]);
        assert_eq!(outcomes(&disk(400), 600 << 30), [Failure, Ok, Ok], "the run needs more than there is");
        assert_eq!(outcomes(&Measured { free_bytes: 1 << 30, ..disk(400) }, 0), [Warning, Ok, Ok]);
        let slow = Measured { written: (32 << 20, Duration::from_secs(30)), ..disk(400) };
        assert_eq!(outcomes(&slow, 0), [Ok, Warning, Ok]);
        let memory = Measured { is_memory: true, ..disk(3) };
        let [.., syncs] = &memory.judge(0)[..] else { panic!("three findings") };
        assert!(syncs.measured.contains("tmpfs"), "{}", syncs.measured);
        assert_eq!(disk(400).judge(600 << 30)[0].exit_code, Some(6));
    }

    #[test]
    fn a_directory_that_is_to_be_made_is_measured_by_the_one_above_it_and_nothing_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let ticks = Cell::new(0);
        let elapsed = || {
            ticks.set(ticks.get() + 1);
            Duration::from_millis(ticks.get())
        };
        let measured = measure(&dir.path().join("agent/store"), &elapsed).expect("there is room");
        assert_eq!(measured.dir, dir.path());
        assert!(measured.free_bytes > 0 && measured.written.0 <= limits::DISK_BYTES);
        assert_eq!(measured.syncs.len(), limits::DISK_SYNCS);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_told_with_what_to_do() {
        let told = |kind: io::ErrorKind| {
            let error = DiskError { path: "/data".into(), what: "written", source: kind.into() };
            error.judge()
        };
        assert!(told(io::ErrorKind::StorageFull).advice.is_some_and(|advice| advice.contains("make room")));
        assert!(told(io::ErrorKind::PermissionDenied).advice.is_some_and(|advice| advice.contains("user that owns")));
        assert_eq!(told(io::ErrorKind::Other).exit_code, Some(6));
    }
}
