//! What links have told and the driver has not taken yet: bounded in events and in bytes.

use std::sync::Arc;

use anabranch_common::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{LinkName, NetEvent};

/// The links' end. All links of a process share its room.
#[derive(Debug, Clone)]
pub struct NetSender {
    events: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// The driver's end.
#[derive(Debug)]
pub struct NetReceiver(mpsc::Receiver<Waiting>);

#[derive(Debug)]
struct Waiting {
    link: LinkName,
    event: NetEvent,
    _room: Option<OwnedSemaphorePermit>,
}

/// Makes a queue of at most `limits::AGENT_QUEUE_EVENTS` events and `limits::AGENT_QUEUE_BYTES` bytes of their content.
#[must_use]
pub fn queue() -> (NetSender, NetReceiver) {
    let (events, waiting) = mpsc::channel(limits::AGENT_QUEUE_EVENTS);
    let room = Arc::new(Semaphore::new(limits::AGENT_QUEUE_BYTES));
    (NetSender { events, room }, NetReceiver(waiting))
}

impl NetSender {
    /// Adds what a link tells, with `bytes` of content, when there is room for it.
    pub(super) async fn send(&self, link: LinkName, event: NetEvent, bytes: usize) {
        let permits = u32::try_from(bytes.min(limits::AGENT_QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = match permits {
            0 => None,
            // Nobody closes the semaphore.
            permits => Arc::clone(&self.room).acquire_many_owned(permits).await.ok(),
        };
        // When the driver has ended there is nobody to tell.
        let _ = self.events.send(Waiting { link, event, _room: room }).await;
    }
}

impl NetReceiver {
    /// Returns what a link tells, and its name. Its room is free from then on.
    pub async fn recv(&mut self) -> Option<(LinkName, NetEvent)> {
        self.0.recv().await.map(|Waiting { link, event, .. }| (link, event))
    }
}

/// One link's way to the driver.
#[derive(Debug, Clone)]
pub(super) struct Tell {
    pub(super) link: LinkName,
    pub(super) events: NetSender,
}

impl Tell {
    pub(super) async fn event(&self, event: NetEvent) {
        self.content(event, 0).await;
    }

    /// Tells of something with so many bytes of content.
    pub(super) async fn content(&self, event: NetEvent, bytes: usize) {
        self.events.send(self.link, event, bytes).await;
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{Digest, RunId};

    use super::*;

    const LINK: LinkName = LinkName { run: RunId([1; 16]), number: 1 };

    /// Guards `limits::AGENT_QUEUE_BYTES`: 256 chunks of 1 MiB used to be able to wait.
    #[tokio::test]
    async fn chunks_that_nobody_takes_are_bounded_in_bytes() {
        let (links, mut driver) = queue();
        let chunk = |index| {
            let bytes = vec![0; limits::CHUNK_BYTES];
            let length = bytes.len();
            let links = links.clone();
            async move { links.send(LINK, NetEvent::Chunk { transfer: Digest::default(), index, bytes }, length).await }
        };
        let fit = u32::try_from(limits::AGENT_QUEUE_BYTES / limits::CHUNK_BYTES).expect("few");
        for index in 0..fit {
            chunk(index).await;
        }
        let mut late = std::pin::pin!(chunk(fit));
        tokio::select! {
            biased;
            () = &mut late => panic!("there is no room"),
            () = std::future::ready(()) => {}
        }
        links.send(LINK, NetEvent::Connected, 0).await;
        assert!(matches!(driver.recv().await, Some((LINK, NetEvent::Chunk { index: 0, .. }))));
        late.await;
    }
}
