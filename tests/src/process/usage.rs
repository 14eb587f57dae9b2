//! What processes used, looked up while they run.

use std::collections::BTreeMap;

use crate::report::proc_kib;

/// Clock ticks in a second of `/proc/PID/stat`: fixed by Linux for what programs see.
const TICKS_PER_S: f64 = 100.0;

/// Peak memory and processor time of processes that come and go, by name.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    peak_kib: BTreeMap<String, u64>,
    cpu_s: BTreeMap<(String, u32), f64>,
    together_kib: u64,
}

impl Usage {
    /// Looks at one process. What has ended keeps its last figures.
    pub(crate) fn look(&mut self, name: &str, pid: u32) {
        if let Some(kib) = proc_kib(&format!("/proc/{pid}/status"), "VmHWM:") {
            let peak = self.peak_kib.entry(name.to_owned()).or_default();
            *peak = kib.max(*peak);
        }
        if let Some(cpu_s) = cpu_s(pid) {
            self.cpu_s.insert((name.to_owned(), pid), cpu_s);
        }
    }

    /// Looks at processes that run at the same time: pages that several of them share count once.
    pub(crate) fn look_together(&mut self, pids: impl Iterator<Item = u32>) {
        let share = |pid: u32| proc_kib(&format!("/proc/{pid}/smaps_rollup"), "Pss:");
        self.together_kib = self.together_kib.max(pids.filter_map(share).sum());
    }

    /// The most memory in bytes that the processes looked at together had at one moment.
    pub(crate) fn together_bytes(&self) -> f64 {
        (self.together_kib << 10) as f64
    }

    /// Peak resident memory in bytes of those whose name is wanted, added up.
    pub(crate) fn peak_bytes(&self, wanted: impl Fn(&str) -> bool) -> f64 {
        let kib: u64 = self.peak_kib.iter().filter(|(name, _)| wanted(name)).map(|(_, kib)| kib).sum();
        (kib << 10) as f64
    }

    /// Processor time in seconds of those whose name is wanted, over all their lives.
    pub(crate) fn cpu_s(&self, wanted: impl Fn(&str) -> bool) -> f64 {
        self.cpu_s.iter().filter(|((name, _), _)| wanted(name)).map(|(_, cpu_s)| cpu_s).sum()
    }
}

/// Processor time in seconds that a process has used.
pub(crate) fn cpu_s(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything, comes the state; user and system time are the 12th and 13th from there.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let mut usage = Usage::default();
        usage.look("me", std::process::id());
        assert!(usage.peak_bytes(|name| name == "me") > 1e6);
        assert_eq!(usage.peak_bytes(|name| name == "you"), 0.0);
        usage.look_together([std::process::id()].into_iter());
        assert!((1e5..=usage.peak_bytes(|name| name == "me")).contains(&usage.together_bytes()));
    }
}
