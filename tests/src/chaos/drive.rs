//! One run of a scenario, from the first process to the moment when every agent is served again.
//!
//! ```text
//!  start ─► first update: time 0 ─► timeline: begin and end faults ─► heal everything ─► every agent served again
//!                                     park ◄── the run has ended, where it ends with a version ◄──┘
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;

use super::fault::Fault;
use super::fleet::Fleet;
use super::scenario::{COORDINATOR, Event};
use crate::clock::Stopwatch;
use crate::process::{Seen, Tail, What};
use crate::report::proc_kib;

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(10);
/// Ticks from one look at logs and exits to the next.
const LOOK: u64 = 4;
/// Ticks from one measurement of memory and disk to the next.
const MEASURE: u64 = 50;
/// How long the first update may take.
const BEGIN_MS: u64 = 60_000;
/// How long a run may take to its last version once faults are over.
const END_MS: u64 = 180_000;
/// A point on a line of memory or disk for each of so many ticks, for the picture and for slopes.
const SAMPLE: u64 = 200;

/// A fault that was injected.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// On which node.
    pub node: String,
    /// What.
    pub fault: Fault,
    /// From when on, in milliseconds.
    pub from_ms: u64,
    /// Until when.
    pub to_ms: u64,
}

/// Memory and disk at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Milliseconds.
    pub at_ms: u64,
    /// Resident memory of the coordinator in bytes; none while it is dead.
    pub coordinator_bytes: Option<u64>,
    /// Its directory in bytes.
    pub disk_bytes: u64,
}

/// Everything that was seen of one run. Times are milliseconds since its first update.
#[derive(Debug, Default)]
pub struct Record {
    /// What agents said.
    pub seen: Vec<Seen>,
    /// Faults, by their beginning.
    pub injected: Vec<Injected>,
    /// Faults that found their node in the middle of another one.
    pub skipped: u64,
    /// Daemons that ended by themselves: when, which, exit code, and whether it was to be expected.
    pub exits: Vec<(u64, String, i32, bool)>,
    /// When faults were over.
    pub healed_ms: u64,
    /// When every agent had another update accepted after that; none when not in time.
    pub served_ms: Option<u64>,
    /// When it was over.
    pub end_ms: u64,
    /// Largest resident memory of each node, in bytes.
    pub peak_bytes: BTreeMap<String, u64>,
    /// Largest size of the coordinator's directory, in bytes.
    pub disk_bytes: u64,
    /// Memory and disk over time.
    pub samples: Vec<Sample>,
    /// Datagrams that passed, that were dropped, and new addresses.
    pub datagrams: [u64; 3],
}

impl Record {
    /// Updates that agents were told to be merged, with their times.
    pub fn accepted(&self) -> impl Iterator<Item = (u64, &str, (u64, u64), u64)> {
        self.seen.iter().filter_map(|seen| match seen.what {
            What::Accepted { key, version } => Some((seen.at_ms, seen.agent.as_str(), key, version)),
            _ => None,
        })
    }

    /// The accuracy that was evaluated last.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        self.seen.iter().rev().find_map(|seen| match seen.what {
            What::Evaluated { accuracy, .. } => Some(accuracy),
            _ => None,
        })
    }

    /// When the accuracy was first at least this.
    #[must_use]
    pub fn time_to(&self, wanted: f64) -> Option<u64> {
        self.seen.iter().find_map(|seen| match seen.what {
            What::Evaluated { accuracy, .. } if accuracy >= wanted => Some(seen.at_ms),
            _ => None,
        })
    }
}

/// How a run goes on and when it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course<'a> {
    pub(super) events: &'a [Event],
    /// How long it goes on after the first update, in milliseconds.
    pub(super) length_ms: u64,
    /// It is over as soon as this accuracy is reached.
    pub(super) until_accuracy: Option<f64>,
    /// How long agents may take to be served again.
    pub(super) resume_ms: u64,
    /// Whether it goes on until the run has ended.
    pub(super) to_end: bool,
    /// Exit codes that are to be expected while a fault is on.
    pub(super) exits: &'a std::collections::BTreeSet<i32>,
}

pub(super) struct Drive<'a> {
    fleet: &'a mut Fleet,
    course: Course<'a>,
    watch: Stopwatch,
    /// When the first update was accepted, on the watch.
    zero_ms: Option<u64>,
    tails: Vec<Tail>,
    record: Record,
    /// Faults that are on: index into `record.injected`, and until when.
    on: Vec<(usize, u64)>,
    ticks: u64,
    /// Whether faults are over.
    healed: bool,
}

/// Runs to the end. Daemons are parked afterwards.
pub(super) fn drive(fleet: &mut Fleet, course: Course<'_>, say: &mut dyn FnMut(&str)) -> anyhow::Result<Record> {
    let tails = fleet.nodes().iter().skip(1).map(|name| Tail::new(name, fleet.cluster.log_path(name))).collect();
    let (watch, record) = (Stopwatch::start(), Record::default());
    let on = Vec::new();
    let mut drive = Drive { fleet, course, watch, zero_ms: None, tails, record, on, ticks: 0, healed: false };
    drive.begin()?;
    drive.faults(say)?;
    drive.heal(say)?;
    if course.to_end {
        drive.end()?;
    }
    drive.record.datagrams = drive.fleet.datagrams();
    drive.fleet.cluster.park_agents()?;
    drive.listen()?;
    let code = match drive.fleet.ended(COORDINATOR)? {
        Some(code) => code,
        None => drive.fleet.cluster.park_coordinator()?,
    };
    if code != 0 {
        bail!("the coordinator was parked and ended with {code}:\n{}", drive.fleet.cluster.logs());
    }
    Ok(drive.record)
}

impl Drive<'_> {
    fn now_ms(&self) -> u64 {
        let now_ms = u64::try_from(self.watch.elapsed().as_millis()).unwrap_or(u64::MAX);
        now_ms.saturating_sub(self.zero_ms.unwrap_or(0))
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        for node in self.fleet.nodes() {
            self.fleet.start(&node)?;
        }
        while !self.record.seen.iter().any(|seen| matches!(seen.what, What::Accepted { .. })) {
            self.tick()?;
            if self.now_ms() > BEGIN_MS {
                bail!("no update within {BEGIN_MS} ms of the start:\n{}", self.fleet.cluster.logs());
            }
        }
        let zero_ms = self.now_ms();
        self.zero_ms = Some(zero_ms);
        for seen in &mut self.record.seen {
            seen.at_ms = seen.at_ms.saturating_sub(zero_ms);
        }
        self.record.samples.clear();
        Ok(())
    }

    fn faults(&mut self, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let mut next = 0;
        while self.now_ms() < self.course.length_ms {
            self.tick()?;
            let now_ms = self.now_ms();
            self.end_faults(now_ms, say)?;
            while let Some(event) = self.course.events.get(next).filter(|event| ms(event.at_s) <= now_ms) {
                next += 1;
                self.hurt(event, now_ms, say)?;
            }
            if self.course.until_accuracy.is_some_and(|wanted| self.record.time_to(wanted).is_some()) {
                break;
            }
        }
        Ok(())
    }

    /// At most one fault of the process and one of the line at a time, on one node.
    fn hurt(&mut self, event: &Event, now_ms: u64, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let busy = self.on.iter().any(|(index, _)| {
            let other = &self.record.injected[*index];
            other.node == event.node && other.fault.is_link() == event.fault.is_link()
        });
        if busy {
            self.record.skipped += 1;
            return Ok(());
        }
        say(&format!("{:7.2} s  {}: {}", now_ms as f64 / 1e3, event.node, event.fault.words()));
        self.fleet.hurt(&event.node, &event.fault)?;
        let to_ms = now_ms + ms(event.for_s);
        let injected = Injected { node: event.node.clone(), fault: event.fault.clone(), from_ms: now_ms, to_ms };
        self.on.push((self.record.injected.len(), to_ms));
        self.record.injected.push(injected);
        Ok(())
    }

    /// Ends what is over at `upto_ms`.
    fn end_faults(&mut self, upto_ms: u64, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        if self.on.iter().all(|(_, to_ms)| *to_ms > upto_ms) {
            return Ok(());
        }
        // Before the faults are off the list: who ended meanwhile had a reason.
        self.look()?;
        let (over, on) = self.on.iter().copied().partition(|(_, to_ms)| *to_ms <= upto_ms);
        self.on = on;
        let over: Vec<(usize, u64)> = over;
        for (index, _) in over {
            let injected = self.record.injected[index].clone();
            self.fleet.heal(&injected.node, &injected.fault)?;
            let now_ms = self.now_ms();
            self.record.injected[index].to_ms = now_ms;
            say(&format!("{:7.2} s  {}: over: {}", now_ms as f64 / 1e3, injected.node, injected.fault.words()));
        }
        Ok(())
    }

    fn heal(&mut self, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.end_faults(u64::MAX, say)?;
        self.fleet.good_lines();
        let healed_ms = self.now_ms();
        (self.record.healed_ms, self.healed) = (healed_ms, true);
        let agents = self.fleet.contributors();
        loop {
            self.tick()?;
            let mut served: Vec<&str> =
                self.record.accepted().filter(|(at_ms, ..)| *at_ms > healed_ms).map(|(_, agent, ..)| agent).collect();
            served.sort_unstable();
            served.dedup();
            if served.len() == agents {
                self.record.served_ms = Some(self.now_ms());
                break;
            }
            if self.now_ms() > healed_ms + self.course.resume_ms || self.fleet.ended(COORDINATOR)?.is_some() {
                break;
            }
        }
        self.record.end_ms = self.now_ms();
        Ok(())
    }

    /// Waits until the run has ended, and its coordinator with it.
    fn end(&mut self) -> anyhow::Result<()> {
        let until_ms = self.now_ms() + END_MS;
        while self.fleet.ended(COORDINATOR)?.is_none() {
            self.tick()?;
            if self.now_ms() > until_ms {
                bail!("the run has not ended within {END_MS} ms of its last fault:\n{}", self.fleet.cluster.logs());
            }
        }
        self.record.end_ms = self.now_ms();
        Ok(())
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        std::thread::sleep(TICK);
        self.ticks += 1;
        self.fleet.tick(self.now_ms())?;
        if self.ticks.is_multiple_of(LOOK) {
            self.look()?;
        }
        if self.ticks.is_multiple_of(MEASURE) {
            self.measure()?;
        }
        Ok(())
    }

    fn listen(&mut self) -> anyhow::Result<()> {
        let now_ms = self.now_ms();
        self.tails.iter_mut().try_for_each(|tail| tail.read(now_ms, &mut self.record.seen))
    }

    /// Logs, and daemons that ended by themselves.
    fn look(&mut self) -> anyhow::Result<()> {
        self.listen()?;
        let now_ms = self.now_ms();
        for node in self.fleet.nodes() {
            let Some(code) = self.fleet.ended(&node)? else { continue };
            if code == 0 && self.course.to_end && self.healed {
                continue;
            }
            let mut faults = self.on.iter().map(|(index, _)| &self.record.injected[*index]);
            let fault = faults.rfind(|injected| injected.node == node && !injected.fault.is_link());
            match fault.map(|injected| &injected.fault) {
                Some(Fault::Kill | Fault::Park) => {}
                on => {
                    let known = self.record.exits.iter().any(|(at_ms, other, ..)| {
                        *other == node && fault.is_some_and(|injected| *at_ms >= injected.from_ms)
                    });
                    if !known {
                        let expected = on.is_some() && self.course.exits.contains(&code);
                        self.record.exits.push((now_ms, node.clone(), code, expected));
                    }
                    if on.is_none() {
                        let tail = self.fleet.process(&node)?.log_tail();
                        bail!("{node} ended by itself with {code}, and nothing was done to it:\n{tail}");
                    }
                }
            }
        }
        Ok(())
    }

    fn measure(&mut self) -> anyhow::Result<()> {
        for node in self.fleet.nodes() {
            if self.fleet.ended(&node)?.is_some() {
                continue;
            }
            let pid = self.fleet.process(&node)?.pid();
            let bytes = proc_kib(&format!("/proc/{pid}/status"), "VmRSS:").unwrap_or(0) << 10;
            let peak = self.record.peak_bytes.entry(node.clone()).or_default();
            *peak = (*peak).max(bytes);
            if node == COORDINATOR && self.ticks.is_multiple_of(SAMPLE) {
                let disk_bytes = folder_bytes(&self.fleet.cluster.coordinator_dir());
                self.record.disk_bytes = self.record.disk_bytes.max(disk_bytes);
                let sample = Sample { at_ms: self.now_ms(), coordinator_bytes: Some(bytes), disk_bytes };
                self.record.samples.push(sample);
            }
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds of a scenario, checked when it was read"
)]
pub(super) fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

/// Bytes of the files in a folder that is being written to.
fn folder_bytes(folder: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        // It is gone meanwhile.
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(of).sum()
}
