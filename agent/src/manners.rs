//! When a machine's owner needs it, no new work is taken on: quiet hours, battery, load. A round under way is finished
//! and sent.

use std::fmt;
use std::fs;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anabranch_common::limits;
use serde::{Deserialize, Serialize};
use time::Time;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;
use tokio::sync::mpsc::Sender;

use crate::clock;
use crate::host;
use crate::size::Size;

const TIME_OF_DAY: StaticFormatDescription = format_description!("[hour]:[minute]");

/// Hours of the day, in UTC, in which no work is taken on; they may go over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QuietHours {
    /// First quiet minute of the day.
    from: Time,
    /// First minute that is not quiet any more.
    to: Time,
}

/// What somebody typed and nobody can follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MannersError {
    /// Not two times of the day.
    #[error("{0:?} is not a time of the day in UTC, like 08:00-18:00 or 22:00-06:00")]
    QuietHours(String),
    /// Not a step down.
    #[error("{0:?} is not a whole number from 0 to 19, by which the priority is lowered")]
    Nice(String),
    /// Not a load.
    #[error("{0:?} is not a load average above 0, like 2.5")]
    Load(String),
}

impl FromStr for QuietHours {
    type Err = MannersError;

    fn from_str(text: &str) -> Result<Self, MannersError> {
        let time = |text: &str| Time::parse(text.trim(), TIME_OF_DAY).ok();
        let hours = text.split_once('-').and_then(|(from, to)| Some((time(from)?, time(to)?)));
        let (from, to) =
            hours.filter(|(from, to)| from != to).ok_or_else(|| MannersError::QuietHours(text.to_owned()))?;
        Ok(Self { from, to })
    }
}

impl TryFrom<String> for QuietHours {
    type Error = MannersError;

    fn try_from(text: String) -> Result<Self, MannersError> {
        text.parse()
    }
}

impl From<QuietHours> for String {
    fn from(hours: QuietHours) -> Self {
        hours.to_string()
    }
}

impl fmt::Display for QuietHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.hour(), from.minute(), to.hour(), to.minute())
    }
}

impl QuietHours {
    /// Whether it is quiet at this Unix time in milliseconds.
    #[must_use]
    pub fn contain(&self, unix_ms: u64) -> bool {
        // Adding wraps at midnight.
        let now = Time::MIDNIGHT + Duration::from_millis(unix_ms);
        let Self { from, to } = *self;
        if from < to { (from..to).contains(&now) } else { now >= from || now < to }
    }
}

/// By how much the priority is lowered, from 0 to 19, as `nice -n` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Nice(u8);

impl TryFrom<i64> for Nice {
    type Error = MannersError;

    fn try_from(by: i64) -> Result<Self, MannersError> {
        match u8::try_from(by) {
            Ok(by @ 0..=19) => Ok(Self(by)),
            _ => Err(MannersError::Nice(by.to_string())),
        }
    }
}

impl From<Nice> for i64 {
    fn from(nice: Nice) -> Self {
        nice.0.into()
    }
}

impl FromStr for Nice {
    type Err = MannersError;

    fn from_str(text: &str) -> Result<Self, MannersError> {
        text.parse::<i64>().map_err(|_| MannersError::Nice(text.to_owned()))?.try_into()
    }
}

impl Nice {
    /// Lowers the priority of the calling thread, of those that it starts from now on and of their child processes.
    /// Returns the new nice value.
    ///
    /// # Errors
    /// The system refuses.
    pub fn lower(self) -> std::io::Result<i32> {
        Ok(rustix::process::nice(self.0.into())?)
    }
}

/// A load average above 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct MaxLoad(f64);

impl TryFrom<f64> for MaxLoad {
    type Error = MannersError;

    fn try_from(load: f64) -> Result<Self, MannersError> {
        if load.is_finite() && load > 0.0 { Ok(Self(load)) } else { Err(MannersError::Load(load.to_string())) }
    }
}

impl From<MaxLoad> for f64 {
    fn from(load: MaxLoad) -> Self {
        load.0
    }
}

impl FromStr for MaxLoad {
    type Err = MannersError;

    fn from_str(text: &str) -> Result<Self, MannersError> {
        let bad = || MannersError::Load(text.to_owned());
        text.parse::<f64>().map_err(|_| bad())?.try_into().map_err(|_| bad())
    }
}

/// The table `[manners]` of `agent.toml`; options of `run` win over it, key by key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MannersConfig {
    /// The most threads for the maths, whatever `threads` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_threads: Option<NonZeroU16>,
    /// The most that the process which trains may have in memory, its shards included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<Size>,
    /// By how much to lower the priority of the maths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<Nice>,
    /// When to take on no work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiet_hours: Option<QuietHours>,
    /// Whether to take on no work while the machine runs on its battery.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pause_on_battery: bool,
    /// Above which 1-minute load average to take on no work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_load: Option<MaxLoad>,
}

impl MannersConfig {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// `threads` as they may be (none: one a core), and 0 never.
    #[must_use]
    pub fn bounded(&self, threads: Option<usize>) -> Option<usize> {
        let most = self.max_threads.map(|most| usize::from(most.get()));
        match (threads, most) {
            (Some(threads), Some(most)) => Some(threads.min(most)),
            (None, Some(most)) => Some(std::thread::available_parallelism().map_or(1, usize::from).min(most)),
            (threads, None) => threads,
        }
    }
}

/// What is looked at, and where.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// What is asked for.
    pub config: MannersConfig,
    /// Folder of the power supplies.
    pub power_supplies: PathBuf,
    /// File with the load averages.
    pub loadavg: PathBuf,
}

impl Manners {
    /// Looks where Linux has these things.
    #[must_use]
    pub fn of_this_machine(config: MannersConfig) -> Self {
        Self { config, power_supplies: "/sys/class/power_supply".into(), loadavg: "/proc/loadavg".into() }
    }

    /// Why no work is taken on at this Unix time in milliseconds, if so. The words stay the same while the reason does.
    #[must_use]
    pub fn reason(&self, unix_ms: u64) -> Option<String> {
        let MannersConfig { quiet_hours, pause_on_battery, max_load, .. } = &self.config;
        if let Some(hours) = quiet_hours.filter(|hours| hours.contain(unix_ms)) {
            return Some(format!("quiet hours, {hours} UTC"));
        }
        if *pause_on_battery && on_battery(&self.power_supplies) {
            return Some("the machine runs on its battery".to_owned());
        }
        let MaxLoad(most) = (*max_load)?;
        let load = load(&fs::read_to_string(&self.loadavg).ok()?)?;
        (load > most).then(|| format!("the machine's load is above {most}"))
    }

    /// Says why no work is taken on now, and tells of changes for as long as somebody listens, from a thread of its own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn watch(self, inputs: Sender<host::Input>) -> std::io::Result<Option<String>> {
        let MannersConfig { quiet_hours, pause_on_battery, max_load, .. } = &self.config;
        if quiet_hours.is_none() && !pause_on_battery && max_load.is_none() {
            return Ok(None);
        }
        let first = self.reason(clock::unix_ms());
        let mut told = first.clone();
        std::thread::Builder::new().name("manners".to_owned()).spawn(move || {
            while !inputs.is_closed() {
                std::thread::sleep(Duration::from_millis(limits::MANNERS_LOOK_MS));
                let reason = self.reason(clock::unix_ms());
                if told != reason {
                    told.clone_from(&reason);
                    // The agent has ended: the loop notices.
                    let _ = inputs.blocking_send(host::Input::Hold { reason });
                }
            }
        })?;
        Ok(first)
    }
}

/// Whether no mains supply is connected and a battery of the machine itself (not of a mouse) is being used up.
fn on_battery(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    let (mut mains, mut discharging) = (false, false);
    for supply in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let is = |name: &str, value: &str| fs::read_to_string(supply.join(name)).is_ok_and(|text| text.trim() == value);
        mains |= (is("type", "Mains") || is("type", "USB")) && is("online", "1");
        discharging |= is("type", "Battery") && !is("scope", "Device") && is("status", "Discharging");
    }
    discharging && !mains
}

/// The 1-minute average.
fn load(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn quiet_hours_begin_on_their_minute_end_before_it_and_go_over_midnight() {
        let day: QuietHours = "08:00-18:30".parse().expect("hours");
        let at = |hour: u64, minute: u64| 20_000 * 24 * HOUR_MS + hour * HOUR_MS + minute * 60_000;
        assert!(
            day.contain(at(8, 0)) && day.contain(at(18, 29)) && !day.contain(at(18, 30)) && !day.contain(at(7, 59))
        );
        let night: QuietHours = "22:00-06:00".parse().expect("hours");
        assert!(night.contain(at(23, 0)) && night.contain(at(5, 59)) && !night.contain(at(6, 0)));
        assert_eq!(night.to_string(), "22:00-06:00");
        for bad in ["", "8:00-18:00", "08:00", "08:00-24:00", "08:60-09:00", "08:00-08:00", "+8:00-18:00"] {
            assert!(bad.parse::<QuietHours>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_battery_counts_when_it_is_the_machines_and_nothing_else_feeds_it() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = |name: &str| folder.path().join(name);
        let config = MannersConfig { pause_on_battery: true, ..MannersConfig::default() };
        let manners = Manners { config, power_supplies: folder.path().to_owned(), loadavg: PathBuf::new() };
        assert_eq!(manners.reason(0), None, "a machine without supplies is a desktop");
        write(file("mouse/type"), "Battery\n");
        write(file("mouse/scope"), "Device\n");
        write(file("mouse/status"), "Discharging\n");
        assert_eq!(manners.reason(0), None, "a mouse is not the machine");
        write(file("BAT0/type"), "Battery\n");
        write(file("BAT0/status"), "Discharging\n");
        assert_eq!(manners.reason(0).as_deref(), Some("the machine runs on its battery"));
        write(file("AC/type"), "Mains\n");
        write(file("AC/online"), "1\n");
        assert_eq!(manners.reason(0), None);
    }

    #[test]
    fn load_counts_above_the_bound_and_one_that_cannot_be_read_does_not() {
        let folder = tempfile::tempdir().expect("a directory");
        let loadavg = folder.path().join("loadavg");
        let config = MannersConfig { max_load: Some("2.5".parse().expect("a load")), ..MannersConfig::default() };
        let manners = Manners { config, power_supplies: PathBuf::new(), loadavg: loadavg.clone() };
        assert_eq!(manners.reason(0), None);
        write(loadavg.clone(), "2.50 0.1 0.1 1/100 1\n");
        assert_eq!(manners.reason(0), None);
        write(loadavg.clone(), "2.51 0.1 0.1 1/100 1\n");
        let reason = manners.reason(0).expect("busy");
        assert_eq!(reason, "the machine's load is above 2.5");
        write(loadavg, "9.00 0.1 0.1 1/100 1\n");
        assert_eq!(manners.reason(0), Some(reason), "the reason is one, however the load moves: it is told once");
        assert!("0".parse::<MaxLoad>().is_err() && "NaN".parse::<MaxLoad>().is_err());
    }

    /// The threads of the maths are started afterwards, and inherit it.
    #[test]
    fn a_lowered_priority_is_inherited_by_threads_that_are_started_later() {
        let nice_of_this_thread = || rustix::process::getpriority_process(None).expect("it has a priority");
        let apart = std::thread::spawn(move || {
            let before = nice_of_this_thread();
            let after = "3".parse::<Nice>().expect("a step").lower().expect("lower is always allowed");
            let inherited = std::thread::spawn(nice_of_this_thread).join().expect("it ends");
            (before, after, inherited)
        });
        let (before, after, inherited) = apart.join().expect("it ends");
        assert_eq!((after, inherited), ((before + 3).min(19), (before + 3).min(19)));
        assert!("20".parse::<Nice>().is_err() && "-1".parse::<Nice>().is_err() && "low".parse::<Nice>().is_err());
    }

    #[test]
    fn the_bound_on_threads_holds_against_what_was_asked_for() {
        let config = MannersConfig { max_threads: NonZeroU16::new(2), ..MannersConfig::default() };
        assert_eq!((config.bounded(Some(8)), config.bounded(Some(1))), (Some(2), Some(1)));
        assert!(config.bounded(None).is_some_and(|threads| (1..=2).contains(&threads)));
        assert_eq!(MannersConfig::default().bounded(None), None);
    }
}
