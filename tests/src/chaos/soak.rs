//! `anabranch-lab soak`: a failure every few seconds, of every kind, for hours; then the same audit as everywhere.

use super::drive::Sample;
use super::scenario::{Rate, Scenario};
use super::{Options, Scorecard};

/// The share of the samples, at the end, over which memory and disk have to be flat.
const SETTLED: f64 = 0.75;
/// Growth an hour that counts as flat, in MiB.
const FLAT_MIB: f64 = 16.0;

/// The scenario that a soak runs, for that many hours.
///
/// # Errors
/// The scenario that comes with the lab is wrong.
pub fn scenario(hours: f64) -> anyhow::Result<Scenario> {
    let mut scenario = super::parse(include_str!("../../scenarios/chaos/soak.toml"))?;
    scenario.seconds = hours * 3600.0;
    Ok(scenario)
}

/// How often something fails in it, in seconds.
#[must_use]
pub fn failure_every_s(rates: &[Rate]) -> f64 {
    1.0 / rates.iter().map(|rate| 1.0 / rate.every_s).sum::<f64>()
}

/// Runs it. The figures have the slopes of memory and disk.
///
/// # Errors
/// As [`super::run`].
pub fn run(options: &Options) -> anyhow::Result<Scorecard> {
    let (mut card, record) = super::measure(options)?;
    let settled = settled(&record.samples);
    let memory = slope_mib_an_hour(settled, |sample| sample.coordinator_bytes.map(|bytes| bytes as f64));
    let disk = slope_mib_an_hour(settled, |sample| Some(sample.disk_bytes as f64));
    card.report.metric("memory_slope_mib_per_h", memory);
    card.report.metric("disk_slope_mib_per_h", disk);
    card.report
        .aim(format!("memory and disk grow by less than {FLAT_MIB} MiB an hour"), memory < FLAT_MIB && disk < FLAT_MIB);
    println!(
        "memory {memory:+.2} MiB an hour, disk {disk:+.2} MiB an hour, over the last {:.0} % of the run",
        SETTLED * 100.0
    );
    Ok(card)
}

fn settled(samples: &[Sample]) -> &[Sample] {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
    let skip = (samples.len() as f64 * (1.0 - SETTLED)) as usize;
    &samples[skip..]
}

/// Least squares.
fn slope_mib_an_hour(samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>) -> f64 {
    let points: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|sample| Some((sample.at_ms as f64 / 3.6e6, value(sample)? / f64::from(1 << 20))))
        .collect();
    let count = points.len() as f64;
    if count < 2.0 {
        return 0.0;
    }
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_what_grows_in_an_hour() {
        let at = |minute: u64| Sample {
            at_ms: minute * 60_000,
            coordinator_bytes: (minute != 7).then_some((100 + minute) << 20),
            disk_bytes: 5 << 20,
        };
        let samples: Vec<Sample> = (0..30).map(at).collect();
        let slope = slope_mib_an_hour(&samples, |sample| sample.coordinator_bytes.map(|bytes| bytes as f64));
        assert!((slope - 60.0).abs() < 1e-6, "{slope}");
        assert!(slope_mib_an_hour(&samples, |sample| Some(sample.disk_bytes as f64)).abs() < 1e-9);
    }

    #[test]
    fn something_fails_every_fifteen_seconds() {
        let scenario = scenario(8.0).expect("the scenario that comes with the lab");
        let every_s = failure_every_s(&scenario.random);
        assert!((14.0..16.0).contains(&every_s), "{every_s}");
        let kinds: std::collections::BTreeSet<&str> =
            scenario.timeline(1).iter().map(|event| event.fault.name()).collect();
        assert!(kinds.len() >= 8, "{kinds:?}");
    }
}
