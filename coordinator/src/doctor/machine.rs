//! Clock, open files, memory and disk of this machine, against what the configured runs may take.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_io::cli::size_text;
use anabranch_io::doctor::{Finding, span_text};
use anabranch_io::exit::ExitCode;
use anabranch_io::memory::available_bytes;
use nix::sys::resource::{Resource, getrlimit};

use crate::config::Config;
use crate::runs;

const CLOCK: &str = "clock";
const OPEN_FILES: &str = "open-files";
const MEMORY: &str = "memory";

/// Programs that keep a clock, by the name of their process.
const TIME_SERVICES: [&str; 6] = ["chronyd", "ntpd", "ntp-daemon", "systemd-timesyn", "ptp4l", "phc2sys"];
/// A file that systemd-timesyncd touches when the clock is set.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";
/// Bytes of a parameter in a model.
const VALUE: u64 = 4;

/// Looks for what keeps the clock, and for signs that it went back.
pub(super) fn clock(dir: &Path, now_ms: u64) -> Finding {
    judge_clock(now_ms, newest_file_ms(&dir.join(runs::STORE_DIR)), time_service().as_deref())
}

/// When the newest file of a store was written, Unix time in milliseconds.
fn newest_file_ms(store: &Path) -> Option<u64> {
    let entries = fs::read_dir(store).ok()?.flatten();
    let written = entries.filter_map(|entry| entry.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    written.filter_map(|since| u64::try_from(since.as_millis()).ok()).max()
}

fn time_service() -> Option<String> {
    if Path::new(SYNCHRONIZED).exists() {
        return Some("systemd-timesyncd".to_owned());
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let names = processes.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).find(|name| TIME_SERVICES.contains(&name.as_str()))
}

fn judge_clock(now_ms: u64, newest_file_ms: Option<u64>, service: Option<&str>) -> Finding {
    let ahead_ms = newest_file_ms.map_or(0, |newest| newest.saturating_sub(now_ms));
    if ahead_ms > limits::doctor::FUTURE_FILE_MS {
        let measured = format!("went back: the store was written {} in the future", span_text(ahead_ms));
        let advice = "set this machine's clock (NTP): certificates that were issued since then are not valid yet at it";
        return Finding::failure(CLOCK, ExitCode::Clock, measured, advice);
    }
    match service {
        Some(service) => Finding::ok(CLOCK, format!("kept by {service}")),
        None => Finding::warning(
            CLOCK,
            "no service that keeps it is seen here",
            "set up NTP (chrony, systemd-timesyncd) on this machine; a container has the clock of its host",
        ),
    }
}

/// Holds the limit of open files against the runs.
pub(super) fn open_files(runs: u64) -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, most)) => judge_open_files(most, runs),
        Err(error) => Finding::skipped(OPEN_FILES, format!("the limit cannot be read: {error}")),
    }
}

fn judge_open_files(most: u64, runs: u64) -> Finding {
    let needed = limits::doctor::FILES_OF_PROCESS + limits::doctor::FILES_PER_RUN * runs;
    let measured = format!("{most} allowed, about {needed} needed (runs: {runs})");
    let finding = if most < needed {
        let advice = format!("raise the limit to {needed} or more: LimitNOFILE of the service, or `ulimit -Hn`");
        Finding::warning(OPEN_FILES, measured, advice)
    } else {
        Finding::ok(OPEN_FILES, measured)
    };
    finding.figure("allowed", most).figure("needed", needed)
}

/// Parameters of a run's model, where they follow from its configuration.
fn params(config: &Config) -> Option<u64> {
    Some(config.spec.model.layers().ok()??.manifest.params() as u64)
}

/// Vectors as long as the model that a run has in memory at most: docs/operating.md, "Memory".
fn vectors(merge: &MergeSpec) -> u64 {
    let of_rule = match merge.unaveraged() {
        MergeSpec::FedAvgM { .. } | MergeSpec::Ef21 { .. } => 10,
        MergeSpec::DelayedNesterov { .. } | MergeSpec::FedAdam { .. } => 12,
        MergeSpec::Fadas { .. } => 14,
        MergeSpec::Recall { .. } => 16,
        MergeSpec::FedAsync { .. }
        | MergeSpec::FedBuff { .. }
        | MergeSpec::FedAvg { .. }
        | MergeSpec::FedProx { .. }
        | MergeSpec::SyncSgd { .. }
        | MergeSpec::Rescaled { .. }
        | MergeSpec::Averaged(_) => 8,
    };
    of_rule + if matches!(merge, MergeSpec::Averaged(_)) { 2 } else { 0 }
}

/// Bytes that a run may have in memory at most, without its agents.
fn run_bytes(config: &Config) -> u64 {
    let params = params(config).unwrap_or(0);
    let decoded = limits::DECODED_UPLOADS_BYTES.max(params.saturating_mul(2 * VALUE));
    let payloads = limits::UPLOADS_IN_FLIGHT_BYTES + decoded + limits::GROUP_COMMIT_BYTES as u64;
    let forms = limits::PUBLISHED_BYTES as u64
        + limits::FORMS_BYTES as u64
        + limits::PACKING_BYTES
        + limits::SENDING_BYTES
        + if config.spec.downlink.share_updates { limits::CHAIN_BYTES as u64 } else { 0 };
    let memories = match config.spec.merge.unaveraged() {
        MergeSpec::Recall { .. } => 3 * limits::RECALL_MEMORY_BYTES as u64,
        MergeSpec::Ef21 { .. } => 3 * limits::EF21_MEMORY_BYTES as u64,
        _ => 0,
    };
    let track = if config.spec.downlink.track.is_some() { 3 } else { 0 };
    let model = (vectors(&config.spec.merge) + track).saturating_mul(params.saturating_mul(VALUE));
    payloads.saturating_add(payloads / 4).saturating_add(forms + memories).saturating_add(model)
}

/// Holds the memory of this machine against what the runs may take.
pub(super) fn memory(configs: &[Config]) -> Finding {
    match available_bytes() {
        _ if configs.is_empty() => Finding::skipped(MEMORY, "needs `config`"),
        Some(available) => judge_memory(available, configs),
        None => Finding::skipped(MEMORY, "this system does not say how much is free"),
    }
}

fn judge_memory(available: u64, configs: &[Config]) -> Finding {
    let models: u64 =
        configs.iter().map(|config| vectors(&config.spec.merge) * VALUE * params(config).unwrap_or(0)).sum();
    let most = configs.iter().map(run_bytes).fold(limits::doctor::PROCESS_BYTES, u64::saturating_add);
    let least = limits::doctor::PROCESS_BYTES.saturating_add(models);
    let runs = if configs.len() == 1 { "the run takes".to_owned() } else { format!("{} runs take", configs.len()) };
    let measured = format!(
        "{} available; {runs} {} at least, {} at most, and 100 KiB for each agent",
        size_text(available),
        size_text(least),
        size_text(most)
    );
    let finding = if available < least {
        let advice = "give this machine or its cgroup more memory, or serve fewer runs: the models alone do not fit";
        Finding::failure(MEMORY, ExitCode::Other, measured, advice)
    } else if available < most {
        let advice =
            "more memory is needed where many large updates come at once: docs/operating.md, \"Memory\", has the parts";
        Finding::warning(MEMORY, measured, advice)
    } else {
        Finding::ok(MEMORY, measured)
    };
    finding.figure("available_bytes", available).figure("least_bytes", least).figure("most_bytes", most)
}

/// Bytes of disk that the runs may take for their checkpoints, and that uploads leave alone.
pub(super) fn disk_bytes(configs: &[Config]) -> u64 {
    let checkpoints = configs.iter().map(|config| {
        // While one is written, those that are kept are there too.
        let kept = config.checkpoint.keep as u64 + 1;
        params(config).unwrap_or(0).saturating_mul(VALUE * vectors(&config.spec.merge) / 2).saturating_mul(kept)
    });
    checkpoints.fold(limits::PARTIAL_UPLOAD_SPARE_BYTES, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use anabranch_io::doctor::Outcome;

    use super::*;
    use crate::config::TemplateOptions;

    fn config() -> Config {
        let listen = ([0, 0, 0, 0], 4433).into();
        let options = TemplateOptions { name: "test".into(), seed: 1, listen, names: Vec::new() };
        Config::parse(Path::new("run.toml"), &Config::template(&options)).expect("what `init` writes")
    }

    #[test]
    fn a_clock_that_went_back_is_told_from_one_that_nobody_keeps() {
        let now = 1_800_000_000_000;
        assert_eq!(judge_clock(now, Some(now - 5), Some("chronyd")).outcome, Outcome::Ok);
        assert_eq!(judge_clock(now, None, None).outcome, Outcome::Warning);
        let back = judge_clock(now, Some(now + 3_600_000), Some("chronyd"));
        assert_eq!((back.exit_code, back.measured.contains("60 min in the future")), (Some(12), true), "{back:?}");
    }

    #[test]
    fn runs_are_held_against_open_files_and_memory() {
        assert_eq!(judge_open_files(1_024, 1).outcome, Outcome::Ok);
        assert_eq!(judge_open_files(1_024, 100).outcome, Outcome::Warning);
        let runs = [config(), config()];
        assert_eq!(judge_memory(1 << 40, &runs).outcome, Outcome::Ok);
        assert_eq!(judge_memory(4 << 30, &runs).outcome, Outcome::Warning, "each run has its own budgets");
        assert_eq!(judge_memory(64 << 20, &runs).exit_code, Some(1));
        assert!(disk_bytes(&runs) > disk_bytes(&runs[..1]));
    }
}
