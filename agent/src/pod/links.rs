//! The links of an agent with other members of its pod: one endpoint a process, and an attempt's links as a [`Wire`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::pod::PodRound;
use anabranch_common::spec::PodSpec;
use anabranch_io::tls::{self, Authorities, BindError, ParseCertificateError, TlsError};
use parking_lot::Mutex;
use quinn::Endpoint;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};

use super::accept::{self, Room};
use super::desk::Desk;
use super::dial::Dial;
use super::link::code;
use super::terms::{ParcelSizes, Terms};
use super::{Address, MemberWire, OpenLinks, Parcel, Wire, WireError};

/// Who an agent is to other members.
#[derive(Clone)]
pub struct LinkIdentity {
    /// Its run.
    pub run: RunId,
    /// The CAs that have issued the certificates of members.
    pub authorities: Authorities,
    /// Its own, in DER.
    pub certificate_der: Vec<u8>,
    /// Its key, PKCS#8 in DER.
    pub key_der: Vec<u8>,
}

impl fmt::Debug for LinkIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkIdentity").field("run", &self.run).finish_non_exhaustive()
    }
}

/// Why an agent has no port for members.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate names nobody.
    #[error(transparent)]
    Certificate(#[from] ParseCertificateError),
}

/// Returns whether an agent is to stop what it does; asked every `limits::POD_LOOK_MS`.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// An attempt, as its links need it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Who computes what, and how they are reached.
    pub round: &'a PodRound,
    /// The run's `[pod]`.
    pub spec: &'a PodSpec,
    /// How large parcels can be.
    pub sizes: ParcelSizes,
    /// Parameters of each part.
    pub part_params: &'a [usize],
}

/// An agent's port for other members, and its connections to theirs.
pub struct Links {
    endpoint: Endpoint,
    runtime: Handle,
    me: AgentId,
    identity: Mutex<LinkIdentity>,
    room: Arc<Room>,
    accepting: JoinHandle<()>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("me", &self.me).field("address", &self.local_address()).finish_non_exhaustive()
    }
}

impl Links {
    /// Listens on `listen`, and dials from there. Call inside a tokio runtime, which has to go on running on threads of its own:
    /// it carries what links bring while [`Self::open`] and [`LinkWire`] block.
    ///
    /// # Errors
    /// See [`LinksError`].
    pub fn bind(listen: SocketAddr, identity: LinkIdentity) -> Result<Self, LinksError> {
        let LinkIdentity { run, authorities, certificate_der, key_der } = &identity;
        let me = tls::parse_peer(certificate_der)?.agent;
        let config = tls::member_server(authorities, certificate_der, key_der)?;
        let endpoint = tls::lasting_server_endpoint(listen, config, key_der)?;
        let room = Arc::new(Room::new(*run));
        let accepting = tokio::spawn(accept::accept(endpoint.clone(), Arc::clone(&room)));
        Ok(Self { endpoint, runtime: Handle::current(), me, identity: Mutex::new(identity), room, accepting })
    }

    /// Returns the address that is listened on.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// Shows a renewed certificate of the same agent from now on, and trusts these CAs. Links that are open stay.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn replace_certificate(
        &self,
        authorities: &Authorities,
        certificate_der: &[u8],
        key_der: &[u8],
    ) -> Result<(), LinksError> {
        let config = tls::member_server(authorities, certificate_der, key_der)?;
        self.endpoint.set_server_config(Some(config));
        let mut identity = self.identity.lock();
        identity.authorities = authorities.clone();
        (identity.certificate_der, identity.key_der) = (certificate_der.to_vec(), key_der.to_vec());
        Ok(())
    }

    /// Opens the links of an attempt, within `deadline` of the owner's: the owner dials every helper, and each helper the next one in the order of
    /// `round.members()`. Blocks: call from a thread that is none of the runtime's.
    ///
    /// # Errors
    /// [`WireError::Member`] with a member that was not reached, or that has given up; [`WireError::Over`] when `stop` says so;
    /// [`WireError::Repeated`] for an attempt that was opened before, or of whose lease a later one was.
    pub fn open(&self, attempt: Attempt<'_>, deadline: Duration, stop: Stop) -> Result<LinkWire, WireError> {
        let round = attempt.round;
        let members = round.members();
        let Some(mine) = members.iter().position(|member| *member == self.me) else {
            return Err(WireError::Member { agent: self.me, reason: "the round does not name this agent".to_owned() });
        };
        let Neighbours { dialed, others } = neighbours(&members, mine);
        let awaited: BTreeSet<AgentId> = dialed.iter().chain(&others).copied().collect();
        let dials = dialed.iter().map(|agent| self.dial(round, *agent)).collect::<Result<Vec<_>, _>>()?;
        let desk = Arc::new(Desk::new(Terms::new(self.me, &attempt), &awaited));
        self.room.open(&desk)?;
        // From here on dropping the wire closes everything.
        let mut wire = LinkWire { desk, room: Arc::clone(&self.room), stop, dialing: Vec::new(), is_done: false };
        for dial in dials {
            let task = self.runtime.spawn(dial.run(Arc::clone(&wire.desk)));
            wire.dialing.push(task.abort_handle());
        }
        wire.desk.wait_for_links(deadline, &*wire.stop)?;
        Ok(wire)
    }

    fn dial(&self, round: &PodRound, agent: AgentId) -> Result<Dial, WireError> {
        let member = |reason: String| WireError::Member { agent, reason };
        let address = round.address_of(agent).map(str::to_owned);
        let address = address.ok_or_else(|| member(format!("the round has no address of member {}", agent.short())))?;
        let identity = self.identity.lock();
        let LinkIdentity { run, authorities, certificate_der, key_der } = &*identity;
        let config = tls::member_client(authorities, certificate_der, key_der, agent);
        let config = config.map_err(|error| WireError::Member { agent: self.me, reason: error.to_string() })?;
        Ok(Dial { endpoint: self.endpoint.clone(), config, run: *run, agent, address })
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.accepting.abort();
        self.endpoint.close(code::GAVE_UP.into(), b"this agent stops");
    }
}

/// With whom a member is linked.
struct Neighbours {
    /// Those that it dials.
    dialed: Vec<AgentId>,
    /// Those that dial it.
    others: Vec<AgentId>,
}

fn neighbours(members: &[AgentId], mine: usize) -> Neighbours {
    let at = |index: usize| members.get(index).copied();
    match mine {
        0 => Neighbours { dialed: members.iter().skip(1).copied().collect(), others: Vec::new() },
        1 => Neighbours { dialed: at(2).into_iter().collect(), others: at(0).into_iter().collect() },
        mine => Neighbours {
            dialed: at(mine + 1).into_iter().collect(),
            others: [at(0), at(mine - 1)].into_iter().flatten().collect(),
        },
    }
}

/// The links of one attempt. Dropping it gives the attempt up: the members at the other ends hear of it at once, and what is on its way
/// to them is lost. A member that is through with the round calls [`Self::finish`].
///
/// The loss of a member is told once, after every parcel that came from it; the others are heard until they are lost too.
pub struct LinkWire {
    desk: Arc<Desk>,
    room: Arc<Room>,
    stop: Stop,
    dialing: Vec<AbortHandle>,
    is_done: bool,
}

impl fmt::Debug for LinkWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkWire").field("mark", &self.desk.terms.mark).finish_non_exhaustive()
    }
}

impl LinkWire {
    /// Waits until everything that was sent has arrived, and closes the links. To the others, this member has then left in good
    /// order: what they still send to it is dropped, and they go on with each other.
    ///
    /// # Errors
    /// See [`WireError`]; a member that has left itself needs nothing more.
    pub fn finish(mut self) -> Result<(), WireError> {
        self.desk.finish(&*self.stop)?;
        self.is_done = true;
        Ok(())
    }

    /// Closes the links at once: this member has everything that it needs of the others, and they need nothing more of it. To
    /// them it has left in good order.
    pub fn close(mut self) {
        self.is_done = true;
    }
}

impl OpenLinks for Links {
    fn open(&self, attempt: Attempt<'_>, deadline: Duration, stop: Stop) -> Result<Box<dyn MemberWire>, WireError> {
        Ok(Box::new(Self::open(self, attempt, deadline, stop)?))
    }
}

impl MemberWire for LinkWire {
    fn finish(self: Box<Self>) -> Result<(), WireError> {
        Self::finish(*self)
    }

    fn close(self: Box<Self>) {
        Self::close(*self);
    }
}

impl Wire for LinkWire {
    fn send(&mut self, address: Address, parcel: Parcel) -> Result<(), WireError> {
        self.desk.send(address, parcel, &*self.stop)
    }

    fn receive(&mut self) -> Result<(Address, Parcel), WireError> {
        self.desk.receive(&*self.stop)
    }
}

impl Drop for LinkWire {
    fn drop(&mut self) {
        self.room.close(self.desk.terms.mark);
        self.desk.close(if self.is_done { code::DONE } else { code::GAVE_UP });
        self.dialing.iter().for_each(AbortHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/adr/0031: the owner is linked with everybody, and consecutive helpers with each other.
    #[test]
    fn each_pair_of_neighbours_has_one_link_that_one_of_them_dials() {
        for count in 1..9usize {
            let members: Vec<AgentId> = (0..9).take(count).map(|index| AgentId([index; 16])).collect();
            let mut dialed = Vec::new();
            let mut awaited = Vec::new();
            for (mine, me) in members.iter().enumerate() {
                let neighbours = neighbours(&members, mine);
                dialed.extend(neighbours.dialed.iter().map(|other| (*me, *other)));
                awaited.extend(neighbours.others.iter().map(|other| (*other, *me)));
            }
            dialed.sort();
            awaited.sort();
            assert_eq!(dialed, awaited, "{count} members");
            let owners = (1..count).map(|helper| (members[0], members[helper]));
            let mut expected: Vec<_> =
                owners.chain((2..count).map(|helper| (members[helper - 1], members[helper]))).collect();
            expected.sort();
            assert_eq!(dialed, expected, "{count} members");
        }
    }
}
