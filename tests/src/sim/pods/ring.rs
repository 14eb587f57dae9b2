//! What replicas come to without links: the product's members of a ring, with queues in memory between them.

use std::ops::ControlFlow;
use std::thread;

use anabranch_agent::pod::{Address, Parcel, Wire, WireError};
use anabranch_agent::shard::Examples;
use anabranch_agent::train::native::replicas::{ReplicaMemory, ReplicaTask, serve, train_owned};
use anabranch_common::pod::PodRound;
use anabranch_common::spec::AgentSpec;

use crate::ring::{Hub, Item};

/// Returns the model after a round that begins at `base`, of members with these shards. None where training diverges.
pub(super) fn end(
    (round, spec): (&PodRound, &AgentSpec),
    shards: &[Examples],
    base: &[f32],
    seed: u64,
) -> Option<Vec<f32>> {
    let members = round.members();
    let hub = Hub::new(&members);
    thread::scope(|scope| {
        let members = members.iter().zip(shards).enumerate().map(|(place, (member, shard))| {
            let mut wire = Queues { hub: &hub, place };
            let task = ReplicaTask { model: &spec.model, plan: &spec.train, round, me: *member, shard, threads: 1 };
            // The owner too has a thread of its own.
            scope.spawn(move || {
                let mut memory = ReplicaMemory::of_process(None);
                match place {
                    0 => {
                        let go_on = &mut |_| ControlFlow::Continue(());
                        train_owned(&task, &mut memory, base, seed, &mut wire, go_on).map(|trained| trained.end)
                    }
                    _ => serve(&task, &mut memory, &mut wire).map(|()| Vec::new()),
                }
            })
        });
        let members: Vec<_> = members.collect();
        let ends = members.into_iter().map(|member| member.join().expect("a member does not panic").ok());
        ends.collect::<Option<Vec<Vec<f32>>>>()?.into_iter().next()
    })
}

/// A member's end of its queues.
struct Queues<'a> {
    hub: &'a Hub,
    place: usize,
}

impl Wire for Queues<'_> {
    fn send(&mut self, address: Address, parcel: Parcel) -> Result<(), WireError> {
        self.hub.put(address.to, Item::Parcel(0, address, parcel));
        Ok(())
    }

    fn receive(&mut self) -> Result<(Address, Parcel), WireError> {
        match self.hub.take(self.place) {
            Item::Parcel(_, address, parcel) => Ok((address, parcel)),
            Item::Gone(agent) => Err(WireError::Member { agent, reason: "it is gone".to_owned() }),
        }
    }
}

impl Drop for Queues<'_> {
    fn drop(&mut self) {
        self.hub.leave(self.place);
    }
}
