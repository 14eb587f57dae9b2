//! `doctor`: whether this machine and this directory can serve runs. It changes nothing, and works beside a coordinator that
//! runs as well as without one.
//!
//! ```text
//!  configuration, store ─► serving:  port, names, socket buffers, certificates
//!                     └──► machine:  clock, open files, memory, disk
//! ```
//! Each file measures, and judges what it has measured in functions without I/O.

mod machine;
mod serving;
mod store;

use std::path::Path;

use anabranch_io::doctor::{Finding, Report, disk};
use anabranch_io::exit::ExitCode;

use crate::clock;
use crate::config::{self, Config, ConfigError};
use crate::identity::Identity;
use crate::runs;

const CONFIG: &str = "config";
const IDENTITY: &str = "keys";

/// Makes all checks.
pub(crate) async fn check(dir: &Path) -> Report {
    let mut report = Report::new(env!("CARGO_PKG_VERSION"), dir.display().to_string());
    let own = Config::load(&dir.join(config::FILE_NAME));
    let (mut configs, others) = other_configs(dir);
    report.add(judge_configs(&own, &others));
    let identity = Identity::load(dir);
    match &identity {
        Ok(_) => report.add(Finding::ok(IDENTITY, "keys and certificates in tls/ belong together")),
        Err(error) => {
            let advice =
                "restore tls/ from a backup of the directory: a CA cannot be made anew for agents that have joined";
            report.add(Finding::failure(IDENTITY, ExitCode::Config, error.to_string(), advice));
        }
    }
    let url = own.as_ref().ok().and_then(|own| own.store.url.as_deref());
    let held = store::check(dir, url, &mut report);
    if let Ok(own) = &own {
        serving::check(own, identity.as_ref().ok(), &held, &mut report).await;
        configs.insert(0, own.clone());
    }
    let now_ms = clock::unix_ms();
    if let Ok(identity) = &identity {
        serving::judge_certificates(identity, now_ms).into_iter().for_each(|finding| report.add(finding));
    }
    report.add(machine::clock(dir, now_ms));
    report.add(machine::open_files(configs.len().max(1) as u64));
    report.add(machine::memory(&configs));
    let begun = clock::monotonic();
    match disk::measure(dir, &|| begun.elapsed()) {
        Ok(measured) => {
            let needed = machine::disk_bytes(&configs);
            measured.judge(needed).into_iter().for_each(|finding| report.add(finding));
        }
        Err(error) => report.add(error.judge()),
    }
    report
}

/// The configurations of further runs, and what is wrong with those that cannot be read.
fn other_configs(dir: &Path) -> (Vec<Config>, Vec<String>) {
    let (mut configs, mut problems) = (Vec::new(), Vec::new());
    match runs::names(dir) {
        Ok(names) => {
            for name in names {
                match Config::load_run(&runs::dir_of(dir, &name).join(config::FILE_NAME), &name) {
                    Ok(config) => configs.push(config),
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
        Err(error) => problems.push(error.to_string()),
    }
    (configs, problems)
}

fn judge_configs(own: &Result<Config, ConfigError>, others: &[String]) -> Finding {
    match (own, others) {
        (Err(error), _) => {
            let advice = match error.is_missing() {
                true => "make the directory with `anabranch-coordinator init`, or name the one that has a run.toml",
                false => "correct that line; docs/configuration.md describes every key",
            };
            Finding::failure(CONFIG, ExitCode::Config, error.to_string(), advice)
        }
        (Ok(own), []) => Finding::ok(CONFIG, format!("run.toml of {} is fine", own.spec.name)),
        (Ok(_), problems) => {
            let measured = format!("{} other runs cannot be served: {}", problems.len(), problems.join("; "));
            Finding::warning(CONFIG, measured, "correct these lines, then start the coordinator again")
        }
    }
}
