//! A short body that keeps something until it is sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// The body of an answer, and what is kept until it is sent or given up.
#[derive(Debug)]
pub(super) struct Whole<T> {
    bytes: Bytes,
    _kept: T,
}

impl<T> Whole<T> {
    pub(super) fn new(bytes: Bytes, kept: T) -> Self {
        Self { bytes, _kept: kept }
    }
}

impl<T: Unpin> Body for Whole<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = std::mem::take(&mut self.get_mut().bytes);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}
