//! Server-sent events: a text for each page, to clients that read at their own pace.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch_common::limits;
use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep;

use super::access::{Grants, Viewer};
use super::pages::Pages;
use super::routes::Texts;
use super::state::Which;
use crate::clock;

const HEARTBEAT: Duration = Duration::from_millis(limits::PAGE_HEARTBEAT_MS);

/// The body of an answer that lasts as long as its client.
#[derive(Debug)]
pub(super) struct Live {
    lines: mpsc::Receiver<Bytes>,
    /// The client's place among those that are served at the same time.
    _place: OwnedSemaphorePermit,
}

impl Live {
    /// Begins to send the page as it is, and then each later one. A client that is slow misses some. The events end with the
    /// token of their viewer.
    pub(super) fn start(
        pages: Pages,
        which: Which,
        texts: Arc<Texts>,
        viewer: (Viewer, Grants),
        place: OwnedSemaphorePermit,
    ) -> Self {
        let (to_client, lines) = mpsc::channel(limits::PAGE_CLIENT_EVENTS);
        tokio::spawn(feed(pages, which, texts, viewer, to_client));
        Self { lines, _place: place }
    }
}

impl Body for Live {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().lines.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// Sends until the client or the process goes, or the viewer's token is not good any more.
async fn feed(
    mut pages: Pages,
    which: Which,
    texts: Arc<Texts>,
    (viewer, mut grants): (Viewer, Grants),
    to_client: mpsc::Sender<Bytes>,
) {
    loop {
        if !viewer.is_good(&grants.borrow_and_update(), clock::unix_ms()) {
            return;
        }
        let page = Arc::clone(&pages.borrow_and_update());
        let Some(text) = texts.text(page, which.clone()).await else { return };
        if to_client.send(event(&text)).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                changed = pages.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = to_client.closed() => return,
                changed = grants.changed() => {
                    if changed.is_err() || !viewer.is_good(&grants.borrow(), clock::unix_ms()) {
                        return;
                    }
                }
                () = sleep(HEARTBEAT) => {
                    if !viewer.is_good(&grants.borrow(), clock::unix_ms()) {
                        return;
                    }
                    if to_client.send(Bytes::from_static(b": the page has not changed\n\n")).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// An event. JSON has no line breaks outside of its strings, and writes those inside as `\n`.
fn event(text: &[u8]) -> Bytes {
    Bytes::from([b"event: state\ndata: ", text, b"\n\n"].concat())
}
