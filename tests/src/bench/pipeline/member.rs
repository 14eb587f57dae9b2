//! Members of a pod as threads of one process: real links, and devices that wait instead of computing.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anabranch_agent::config::AgentDir;
use anabranch_agent::identity::AgentKey;
use anabranch_agent::pod::{
    Address, Attempt, LinkIdentity, LinkWire, Links, Parcel, ParcelSizes, Wire as _, WireError,
};
use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::pod::order::{StageOrder, Work};
use anabranch_common::pod::{PodPeer, PodRound};
use anabranch_common::spec::PodSpec;
use anabranch_coordinator::identity::Identity;
use anyhow::{Context as _, bail, ensure};
use tokio::runtime::Runtime;

use super::ideal::{Log, Round};
use crate::clock::{Stopwatch, unix_ms};

const RUN: RunId = RunId([9; 16]);
/// Longer than links take to open.
const OPENING: Duration = Duration::from_secs(20);
/// How long certificates last.
const DAYS: u32 = 1;

/// Agents of a run, each with its port for the others. Fields are dropped in this order.
pub(in crate::bench) struct Members {
    links: Vec<(AgentId, Links)>,
    /// Carries what the links bring.
    _runtime: Runtime,
}

/// What the members compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) attempt: &'a PodRound,
    pub(super) spec: &'a PodSpec,
    pub(super) sizes: ParcelSizes,
    pub(super) round: Round,
    /// Values of what crosses a cut for one micro-batch.
    pub(super) values: usize,
}

/// What one member did.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Since all members began.
    pub(super) log: Log,
    /// Values that it received.
    pub(super) received: u64,
    /// By how much waits were longer than the device takes, all together.
    pub(super) late: Duration,
}

impl Members {
    /// Makes `count` agents with certificates of one coordinator.
    pub(in crate::bench) fn new(count: usize) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let authority = Identity::create(scratch.path(), &[], unix_ms())?;
        let runtime = Runtime::new()?;
        let inside = runtime.enter();
        let mut links = Vec::with_capacity(count);
        for index in 0..count {
            let name = format!("agent-{index}");
            let key = AgentKey::read_or_make(&AgentDir::new(scratch.path().join(&name)))?;
            let issued = authority.issue_agent(&key.signing_request()?, &name, DAYS, unix_ms())?;
            let identity = LinkIdentity {
                run: RUN,
                authorities: authority.ca_der().into(),
                certificate_der: issued.certificate_der,
                key_der: key.to_der(),
            };
            links.push((issued.agent, Links::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), identity)?));
        }
        drop(inside);
        Ok(Self { links, _runtime: runtime })
    }

    pub(in crate::bench) fn ids(&self) -> Vec<AgentId> {
        self.links.iter().map(|(agent, _)| *agent).collect()
    }

    /// Returns where each member listens.
    pub(in crate::bench) fn ports(&self) -> anyhow::Result<Vec<u16>> {
        let port = |(_, links): &(_, Links)| links.local_address().map(|address| address.port());
        self.links.iter().map(|member| port(member).context("a member has no port")).collect()
    }

    /// Returns how the members are reached, by these ports.
    pub(in crate::bench) fn peers(&self, ports: &[u16]) -> Vec<PodPeer> {
        let peer = |((agent, _), port): (&(AgentId, Links), &u16)| PodPeer {
            agent: *agent,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, *port)).to_string(),
        };
        self.links.iter().zip(ports).map(peer).collect()
    }

    /// Computes a round. Returns what each member did, in the order of the stages.
    pub(super) fn compute(&self, job: Job<'_>) -> anyhow::Result<Vec<Record>> {
        let order = job.round.order()?;
        let wires = self.open(Attempt { round: job.attempt, spec: job.spec, sizes: job.sizes, part_params: &[] })?;
        // All links are there: the members begin together.
        let watch = Stopwatch::start();
        let ids = self.ids();
        let member = |(stage, wire)| Member {
            job,
            ids: &ids,
            stage,
            order: order.stage(u32::try_from(stage).expect("a pod has few members")),
            wire,
            watch,
            lost: BTreeMap::new(),
            activations: VecDeque::new(),
            gradients: VecDeque::new(),
            spare: Vec::new(),
            record: Record::default(),
        };
        let members: Vec<Member<'_>> = wires.into_iter().enumerate().map(member).collect();
        std::thread::scope(|scope| {
            let running: Vec<_> = members.into_iter().map(|member| scope.spawn(move || member.run())).collect();
            let ended = running.into_iter().map(|thread| thread.join().expect("a member does not panic"));
            ended.collect()
        })
    }

    /// Opens the links of an attempt at every member.
    pub(in crate::bench) fn open(&self, attempt: Attempt<'_>) -> anyhow::Result<Vec<LinkWire>> {
        std::thread::scope(|scope| {
            let open = |(_, links): &'_ (_, Links)| links.open(attempt, OPENING, Arc::new(|| false));
            let opening: Vec<_> = self.links.iter().map(|member| scope.spawn(move || open(member))).collect();
            let opened = opening.into_iter().map(|thread| thread.join().expect("opening does not panic"));
            opened.map(|wire| wire.context("the links of a round")).collect()
        })
    }
}

/// One stage at work. Values travel on in the vector in which they came, as no device makes others; the first of them is the
/// number of the micro-batch.
struct Member<'a> {
    job: Job<'a>,
    ids: &'a [AgentId],
    stage: usize,
    order: StageOrder,
    wire: LinkWire,
    watch: Stopwatch,
    /// Members from which nothing more comes.
    lost: BTreeMap<AgentId, WireError>,
    /// Inputs of forward passes that are not computed.
    activations: VecDeque<Vec<f32>>,
    /// The same of backward passes; at the last stage they follow from its own forward passes.
    gradients: VecDeque<Vec<f32>>,
    /// Vectors that the first stage uses again.
    spare: Vec<Vec<f32>>,
    record: Record,
}

impl Member<'_> {
    fn run(mut self) -> anyhow::Result<Record> {
        while let Some(work) = self.order.next() {
            while self.order.ready().is_none() {
                self.receive(work).with_context(|| format!("stage {}", self.stage))?;
            }
            self.compute(self.job.round.takes(work));
            match work {
                Work::Forward { micro_batch, .. } => self.forward(self.number(micro_batch.step, micro_batch.index))?,
                Work::Backward { micro_batch, .. } => {
                    self.backward(self.number(micro_batch.step, micro_batch.index))?
                }
                Work::Update { .. } => {}
            }
            self.order.done();
            self.record.log.push((self.watch.elapsed(), work));
        }
        self.wire.finish()?;
        Ok(self.record)
    }

    fn is_last(&self) -> bool {
        self.stage + 1 == self.ids.len()
    }

    /// The number of a micro-batch, as a value that bf16 has.
    fn number(&self, step: u32, index: u32) -> f32 {
        let number = u64::from(step) * u64::from(self.job.round.micro_batches) + u64::from(index);
        f32::from(u8::try_from(number % 256).expect("a remainder of 256"))
    }

    /// Waits as long as a device would compute.
    fn compute(&mut self, takes: Duration) {
        let end = self.watch.elapsed() + takes;
        let mut now = end - takes;
        while now < end {
            std::thread::sleep(end - now);
            now = self.watch.elapsed();
        }
        self.record.late += now - end;
    }

    fn forward(&mut self, number: f32) -> anyhow::Result<()> {
        let values = if self.stage == 0 {
            let mut values = self.spare.pop().unwrap_or_else(|| vec![0.0; self.job.values]);
            values[0] = number;
            values
        } else {
            self.activations.pop_front().context("a forward pass without its input")?
        };
        check(&values, number)?;
        if self.is_last() {
            // Its gradient is the loss's, which is computed with the forward pass.
            self.gradients.push_back(values);
            return Ok(());
        }
        let shape = [1, values.len()];
        self.send(self.stage + 1, Parcel::Activations { values, shape })
    }

    fn backward(&mut self, number: f32) -> anyhow::Result<()> {
        let values = self.gradients.pop_front().context("a backward pass without its gradient")?;
        check(&values, number)?;
        if self.stage == 0 {
            self.spare.push(values);
            return Ok(());
        }
        let shape = [1, values.len()];
        self.send(self.stage - 1, Parcel::Gradient { values, shape })
    }

    fn send(&mut self, to: usize, parcel: Parcel) -> anyhow::Result<()> {
        Ok(self.wire.send(Address { from: self.stage, to }, parcel)?)
    }

    /// Takes the next parcel, while the one for `work` has not come.
    fn receive(&mut self, work: Work) -> anyhow::Result<()> {
        let from = if matches!(work, Work::Forward { .. }) { self.stage - 1 } else { self.stage + 1 };
        if let Some(error) = self.lost.get(&self.ids[from]) {
            return Err(error.clone().into());
        }
        let (address, parcel) = match self.wire.receive() {
            Ok(received) => received,
            // A member leaves when it is through with the round.
            Err(WireError::Member { agent, reason }) => {
                self.lost.insert(agent, WireError::Member { agent, reason });
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let values = match parcel {
            Parcel::Activations { values, .. } if address.from + 1 == self.stage => {
                self.order.activation()?;
                self.activations.push_back(values);
                self.activations.back()
            }
            Parcel::Gradient { values, .. } if address.from == self.stage + 1 => {
                self.order.gradient()?;
                self.gradients.push_back(values);
                self.gradients.back()
            }
            other => bail!("stage {} sent {other:?}", address.from),
        };
        let count = values.map_or(0, Vec::len);
        ensure!(count == self.job.values, "{count} values crossed a cut, not {}", self.job.values);
        self.record.received += count as u64;
        Ok(())
    }
}

fn check(values: &[f32], number: f32) -> anyhow::Result<()> {
    let found = values.first().copied();
    ensure!(found == Some(number), "micro-batch {found:?} (of 256) came in the place of {number}");
    Ok(())
}
