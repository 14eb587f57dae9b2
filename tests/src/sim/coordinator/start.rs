//! Coming up: the path of the driver's start, and the operator's rollback before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::ids::{BranchId, Digest, ModelVersion, Position};
use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use anabranch_common::transfer::Budgets;
use anabranch_coordinator::core::Options;
use anabranch_coordinator::core::event::{Now, PeerId};
use anabranch_coordinator::driver;
use anabranch_coordinator::host::{Host, Output};
use anabranch_coordinator::identity;
use anabranch_coordinator::node::merge::Merger;
use anabranch_coordinator::node::{JobError, Settings};
use anabranch_coordinator::recovery::{self, Recovered, RecoveryError};
use anabranch_coordinator::registry::Registry;
use anabranch_coordinator::rest::{Rest, RestError};
use anabranch_coordinator::store::{Engine, Store as _};

use crate::invariants::journal::{Checked, broken, ensure};
use crate::invariants::members::Members;
use crate::picture::{MarkKind, SpanKind};

use crate::sim::disk::SimDisk;
use crate::sim::network::Side;
use crate::sim::schedule::Schedule;
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, RUN, World};

use super::work::Jobs;
use super::{Process, TICK_MS};

impl World {
    pub(in crate::sim) fn start_coordinator(&mut self) {
        if self.coordinator.process.is_some() {
            return;
        }
        self.coordinator.life += 1;
        match self.recover() {
            Ok(outputs) => {
                self.note(0, Sign::End(SpanKind::Dead), || "started".into());
                self.note(0, Sign::Mark(MarkKind::Started), || "serves".into());
                self.after(TICK_MS, Happening::Tick(self.coordinator.life));
                self.carry_out(outputs);
                self.reset_stale_connections();
            }
            Err(StartError::Job(error)) => self.job_failed(&error),
            Err(StartError::Broken(what)) if self.coordinator.disk.is_damaged() => self.restore_coordinator(&what),
            Err(StartError::Broken(what)) => self.violate("P2", what),
        }
    }

    fn recover(&mut self) -> Result<Vec<Output>, StartError> {
        let disk = &self.coordinator.disk;
        let opened = disk.open().and_then(|()| Engine::open(disk.clone()));
        let store = Arc::new(opened.map_err(JobError::from)?);
        let now_ms = self.now_ms();
        let mut options = Options {
            run: RUN,
            first_branch: BranchId([1; 16]),
            starts: 0,
            lease_ttl_ms: self.schedule.lease_ttl_ms,
            checkpoint_every_versions: self.schedule.checkpoint_every,
            checkpoint_every_ms: 0,
        };
        if let Some(versions) = self.coordinator.roll_back_by {
            self.roll_back(&store, options.clone(), versions)?;
            self.coordinator.roll_back_by = None;
        }
        options.starts = identity::run::count_start(store.catalogue()).map_err(JobError::from)?;
        let registry = registry(&store)?;
        let now = Now { unix_ms: self.unix_ms(), mono_ms: 0 };
        let spec = self.setting.spec.clone();
        let recovered = match recovery::recover(&*store) {
            Err(RecoveryError::Empty) => {
                let none = self.journal.recovered_nothing();
                self.checked(none);
                None
            }
            Err(error) => return Err(StartError::Broken(format!("the run cannot be recovered: {error}"))),
            Ok(found) => {
                let recovered =
                    self.journal.recovered(found.position, found.chain, found.state.version, found.model.model());
                self.checked(recovered);
                let base = self.journal.recovered_base(found.model.base());
                self.checked(base);
                let verified = self.verified(&store);
                self.checked(verified);
                self.note(0, Sign::Plain, || {
                    format!("recovered version {} at record {}", found.state.version, found.position)
                });
                recovery::release(&*store).map_err(JobError::from)?;
                Some(found)
            }
        };
        let next_write = recovered.as_ref().map_or(Position(0), |found| found.position.next());
        let halves = self.coordinator.spool.halves();
        let settings = Settings { options, spec, budgets: self.setting.budgets };
        let state = recovered.as_ref().map(|found| &found.state);
        let members = self.coordinator.members.recovered(&registry, state);
        self.checked(members);
        let mut host = Host::new(registry);
        let outputs =
            host.start(settings, recovered, &halves, now).map_err(|error| StartError::Broken(error.to_string()))?;
        if let Some(node) = host.node(RUN) {
            let same_verdicts = self.coordinator.verdicts.recovered(node.core());
            self.checked(same_verdicts);
            self.checked(Members::settled(host.registry(), node.core().state()));
        }
        self.coordinator.process = Some(Process {
            host,
            store,
            merger: Merger::default(),
            next_write,
            jobs: Jobs::default(),
            sinks: BTreeMap::new(),
            peers: BTreeMap::new(),
            started_ms: now_ms,
            next_request: 0,
            revoking: BTreeMap::new(),
            has_finished: false,
        });
        Ok(outputs)
    }

    /// `checkpoint rollback`, between two processes.
    fn roll_back(&mut self, store: &Engine<SimDisk>, options: Options, versions: u64) -> Result<(), StartError> {
        let newest = match recovery::recover(store) {
            Ok(recovered) => recovered,
            Err(RecoveryError::Empty) => return Ok(()),
            Err(error) => return Err(StartError::Broken(format!("the run cannot be recovered: {error}"))),
        };
        let recovered =
            self.journal.recovered(newest.position, newest.chain, newest.state.version, newest.model.model());
        self.checked(recovered);
        let version = ModelVersion(newest.state.version.0.saturating_sub(versions)).max(newest.oldest);
        let branch = BranchId(std::array::from_fn(|_| self.rng.next_u64().to_le_bytes()[0]));
        let (spec, registry) = (newest.state.spec.clone(), registry(store)?);
        let done = Rest::start(store, options, spec, registry, Some(newest), self.unix_ms())
            .and_then(|mut rest| rest.roll_back(version, branch));
        // One that was cut short has happened or not; the journal says which.
        let read = self.journal.read_rest(store.journal());
        self.checked(read);
        match done {
            Ok(done) => {
                self.note(0, Sign::Plain, || format!("rolled back to version {} on a new branch", done.version));
                self.journal.synced(done.position);
                if !self.coordinator.disk.is_damaged() {
                    let alike = replays_alike(&self.coordinator.disk);
                    self.checked(alike);
                }
                Ok(())
            }
            Err(RestError::Recovery(RecoveryError::Version { .. })) => Ok(()),
            Err(error) => match (self.coordinator.disk.burnt(), error) {
                (Some(_), RestError::Job(error) | RestError::NoCheckpoint { error, .. }) => Err(StartError::Job(error)),
                (Some(_), RestError::Recovery(error)) => Err(StartError::Job(error.into())),
                (_, error) => Err(StartError::Broken(format!("rollback to version {version}: {error}"))),
            },
        }
    }

    /// A new process answers what is left of old connections with a reset, once something comes on them. After an outage of
    /// length zero that is at once, in the order in which the agents had said hello.
    pub(in crate::sim) fn reset_stale_connections(&mut self) {
        let at_once = self.coordinator.is_replaced_at(self.now_ms());
        let stale = self.conns.iter().filter(|(_, conn)| !conn.coordinator_up);
        let mut stale: Vec<(Option<PeerId>, u64)> = stale.map(|(id, conn)| (conn.peer, *id)).collect();
        if at_once {
            stale.sort_by_key(|(peer, id)| (peer.is_none(), *peer, *id));
        }
        for (_, conn) in stale {
            let wait_ms = if at_once { 0 } else { self.rng.below(limits::KEEP_ALIVE_MS) };
            self.after(wait_ms, Happening::Lost(conn, Side::Agent));
        }
    }
}

fn registry(store: &Engine<SimDisk>) -> Result<Registry, StartError> {
    driver::registry(store.catalogue()).map_err(|error| StartError::Broken(format!("{error:#}")))
}

/// The checkpoint that a rollback ends with keeps recovery from replaying the record of the rollback. Without this
/// checkpoint recovery must arrive at the same run, if there is an older one, or record 0, to replay from.
fn replays_alike(disk: &SimDisk) -> Checked {
    let broken_by = |error: &dyn std::fmt::Display| broken("P2", format!("after a rollback: {error}"));
    let store = match Engine::open(disk.copy()) {
        Ok(store) => store,
        Err(error) => return broken_by(&error),
    };
    let found = match recovery::recover(&store) {
        Ok(found) => found,
        Err(error) => return broken_by(&error),
    };
    if let Err(error) = store.catalogue().delete_checkpoint(found.position) {
        return broken_by(&error);
    }
    match recovery::recover(&store) {
        Ok(replayed) => {
            let said = |run: &Recovered| (run.chain, Digest::of_f32(run.model.model()));
            ensure(said(&replayed) == said(&found) && replayed.state == found.state, "P2", || {
                format!("replay of the rollback at record {} makes another run than its checkpoint", found.position)
            })
        }
        Err(RecoveryError::NoCheckpoint { .. }) => Ok(()),
        Err(error) => broken_by(&error),
    }
}

/// Uploads that are decoded at the same time where that is no bottleneck.
pub(crate) const DECODERS: usize = 16;

/// What uploads may hold: in half of all worlds so little that they wait for each other. Not where there are attackers:
/// honest agents overshoot from bases as old as that makes them, and the bound of P10 leaves room for less.
pub(in crate::sim) fn budgets(seed: u64, schedule: &Schedule) -> Budgets {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0007);
    let plenty = Budgets::with_decoders(DECODERS);
    if rng.below(2) == 0 || schedule.agents.iter().any(|agent| agent.hostile.is_some()) {
        return plenty;
    }
    // The largest payload, and a little for what describes it.
    let one = u64::from(schedule.params) * 8 + 4_096;
    Budgets {
        payload_bytes: one * (1 + rng.below(4)),
        agent_bytes: one * (1 + rng.below(2)),
        decoded_bytes: one * (1 + rng.below(3)),
        decoders: 1,
    }
}

/// Why a process does not come up.
#[derive(Debug)]
enum StartError {
    Job(JobError),
    Broken(String),
}

impl From<JobError> for StartError {
    fn from(error: JobError) -> Self {
        Self::Job(error)
    }
}
