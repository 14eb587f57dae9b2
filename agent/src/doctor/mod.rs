//! `doctor`: whether this machine can take part in a run, checked before or after joining. It changes nothing: neither at
//! the coordinator nor in the agent's directory.
//!
//! ```text
//!  target ─► reach:   address, udp, tls, protocol, clock, server-certificate, path, udp-rate, line, nat
//!        └─► member:  certificate, membership ──► what the run is like
//!                     machine: disk, memory, device ──► first-update
//! ```
//! Each file measures, and judges what it has measured in functions without I/O.

mod estimate;
mod judge;
mod machine;
mod member;
mod reach;

use std::time::Duration;

use anabranch_common::ids::{Digest, RunId};
use anabranch_common::wire::probe::RunFacts;
use anabranch_io::doctor::{Finding, Report, disk};

use crate::clock::Clock;
use crate::config::AgentDir;
pub(crate) use machine::{Device, Memory};

/// Whom an agent talks to, and as whom.
#[derive(Debug)]
pub(crate) struct Target {
    /// `host:port` of the coordinator; the first of several.
    pub(crate) address: String,
    /// BLAKE3 over the certificate of each CA that is trusted.
    pub(crate) cas: Vec<Digest>,
    /// The agent's directory, where one is named; it need not exist.
    pub(crate) dir: Option<AgentDir>,
    /// Who has joined.
    pub(crate) member: Option<Member>,
}

/// An agent that has joined.
#[derive(Debug)]
pub(crate) struct Member {
    /// The run that it has joined.
    pub(crate) run: RunId,
    /// What the coordinator calls it.
    pub(crate) name: String,
    /// Its certificate, in DER.
    pub(crate) certificate_der: Vec<u8>,
    /// Its key, PKCS#8 in DER.
    pub(crate) key_der: Vec<u8>,
}

/// What is known of the machine before the network is asked.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Its memory.
    pub(crate) memory: Memory,
    /// The device that would train.
    pub(crate) device: Device,
    /// Floating-point operations a second of its threads.
    pub(crate) flops_per_s: u64,
}

/// What the checks of the network have found out for later ones.
#[derive(Debug, Default)]
struct Known {
    /// How far this machine's clock is ahead of the coordinator's, in milliseconds.
    ahead_ms: Option<i64>,
    /// The round trip.
    round_trip: Option<Duration>,
    /// Bits a second that went both ways at once.
    bits_per_s: Option<f64>,
    /// What the run is like.
    run: Option<RunFacts>,
}

/// Makes all checks. `nat_s` is how long the check for routers that forget may wait, if it is asked for.
pub(crate) async fn check(target: &Target, machine: &Machine, nat_s: Option<u64>) -> Report {
    let mut report = Report::new(env!("CARGO_PKG_VERSION"), target.describe());
    let mut known = Known::default();
    reach::check(target, nat_s, &mut report, &mut known).await;
    member::check(target, &mut report, &mut known).await;
    let needed_bytes = known.run.as_ref().and_then(estimate::store_bytes).unwrap_or(0);
    match &target.dir {
        Some(dir) => {
            let clock = Clock::start();
            match disk::measure(dir.path(), &|| clock.elapsed()) {
                Ok(measured) => measured.judge(needed_bytes).into_iter().for_each(|finding| report.add(finding)),
                Err(error) => report.add(error.judge()),
            }
        }
        None => report.add(Finding::skipped(disk::SPACE, "name the agent's directory with --dir to check its disk")),
    }
    report.add(machine.memory.judge(known.run.as_ref()));
    report.add(machine.device.judge());
    report.add(estimate::first_update(&known, machine.flops_per_s, &machine.device));
    report
}

impl Target {
    fn describe(&self) -> String {
        match &self.member {
            Some(member) => format!("{} with {}", member.name, self.address),
            None => format!("this machine with {}, before joining", self.address),
        }
    }
}
