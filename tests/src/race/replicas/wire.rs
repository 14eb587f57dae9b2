//! The links of a ring in memory: parcels travel at once, and carry the virtual time at which they are there.
//!
//! A member's carrier is a sequence of sends and receives that no other thread can reorder, and what it waits for comes from one
//! neighbour. So every time follows from times before it, however the system schedules the threads. The end of a round alone comes
//! from all members, in any order: it takes no place on any line, and the latest one counts.

use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_agent::pod::{Address, Parcel, Wire, WireError};

use crate::ring::{Hub, Item};

use super::lines::Line;
use super::pace::Pace;

/// Bytes of a value.
const VALUE_BYTES: u64 = 4;
/// Bytes of a parcel without values, as simulated links count them.
const HEAD_BYTES: u64 = 64;

/// A member, from round to round.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) line: Line,
    pub(super) pace: Pace,
    /// How far its carrier has come.
    pub(super) now_ns: u64,
    /// When the last member has told the owner of its end.
    pub(super) ended_ns: u64,
}

/// A member's end of its links.
#[derive(Debug)]
pub(super) struct RingWire<'a> {
    hub: &'a Hub,
    place: usize,
    member: &'a mut Member,
    /// At the owner: when the step is over whose sums are there.
    step_ns: Option<&'a AtomicU64>,
}

impl<'a> RingWire<'a> {
    pub(super) fn new(hub: &'a Hub, place: usize, member: &'a mut Member, step_ns: Option<&'a AtomicU64>) -> Self {
        member.pace.begin_round();
        Self { hub, place, member, step_ns }
    }
}

impl Wire for RingWire<'_> {
    fn send(&mut self, address: Address, parcel: Parcel) -> Result<(), WireError> {
        let Member { line, pace, now_ns, .. } = &mut *self.member;
        if let Parcel::Chunk { values, .. } = &parcel {
            *now_ns = pace.sends(*now_ns, values.len());
        }
        let left_ns = match &parcel {
            Parcel::Ended(_) => line.up.beside(*now_ns),
            _ => line.up.carry(*now_ns, bytes(&parcel)),
        };
        self.hub.put(address.to, Item::Parcel(left_ns, address, parcel));
        Ok(())
    }

    fn receive(&mut self) -> Result<(Address, Parcel), WireError> {
        match self.hub.take(self.place) {
            Item::Parcel(left_ns, address, parcel) => {
                let Member { line, pace, now_ns, ended_ns } = &mut *self.member;
                match &parcel {
                    Parcel::Ended(_) => *ended_ns = line.down.beside(left_ns).max(*ended_ns),
                    Parcel::Chunk { values, .. } => {
                        *now_ns = pace.receives(*now_ns, values.len()).max(line.down.carry(left_ns, bytes(&parcel)));
                        if let Some(step_ns) = self.step_ns {
                            step_ns.store(pace.step_ends(*now_ns), Ordering::SeqCst);
                        }
                    }
                    _ => *now_ns = line.down.carry(left_ns, bytes(&parcel)).max(*now_ns),
                }
                Ok((address, parcel))
            }
            Item::Gone(agent) => Err(WireError::Member { agent, reason: format!("member {}: is gone", agent.short()) }),
        }
    }
}

impl Drop for RingWire<'_> {
    fn drop(&mut self) {
        self.hub.leave(self.place);
    }
}

/// Bytes of a parcel on a line.
fn bytes(parcel: &Parcel) -> u64 {
    let values = match parcel {
        Parcel::Base { values, .. } | Parcel::Chunk { values, .. } => values.len() as u64,
        // Replicas send no others but the digest of a model, which takes no place.
        _ => 0,
    };
    HEAD_BYTES + VALUE_BYTES * values
}
