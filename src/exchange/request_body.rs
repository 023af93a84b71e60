//! The request body on its way to an upstream: none, stored and replayable, or streamed once.

use crate::bufs::Bufs;
use crate::error::{Error, ErrorKind, Result};
use crate::pipe::{Spool, SpoolReader};
use crate::protocol::BodyLength;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

/// So many bytes may wait between the client and the upstream while a body is streamed.
const STREAM_WINDOW: usize = 64 * 1024;

/// The body that an exchange sends.
pub(crate) enum RequestBody {
    /// There is none; a request that said `Content-Length: 0` says so upstream too.
    None(BodyLength),
    /// All of it is here, and may be sent as often as need be.
    Stored { spool: Arc<Spool>, reader: Option<SpoolReader> },
    /// It passes by once, while it comes from the client.
    Streamed { receiver: BodyReceiver, length: BodyLength, begun: bool },
}

impl RequestBody {
    pub(crate) fn stored(mut spool: Spool) -> Self {
        spool.finish();
        RequestBody::Stored { spool: Arc::new(spool), reader: None }
    }

    /// A body that comes through the other end, a [`BodySender`].
    pub(crate) fn streamed(length: BodyLength) -> (BodySender, Self) {
        let channel = Arc::new(Mutex::new(Channel::default()));
        let receiver = BodyReceiver(channel.clone());
        (BodySender(channel), RequestBody::Streamed { receiver, length, begun: false })
    }

    pub(crate) fn length(&self) -> BodyLength {
        match self {
            RequestBody::None(length) | RequestBody::Streamed { length, .. } => *length,
            RequestBody::Stored { spool, .. } => BodyLength::Known(spool.len()),
        }
    }

    /// Could another attempt send it from the start?
    pub(crate) fn can_rewind(&self) -> bool {
        !matches!(self, RequestBody::Streamed { begun: true, .. })
    }

    /// Start over, for the next attempt.
    ///
    /// # Errors
    /// Some of a streamed body has gone to an earlier attempt.
    pub(crate) fn rewind(&mut self) -> Result<(), ()> {
        match self {
            RequestBody::Stored { spool, reader } => *reader = Some(spool.reader()),
            RequestBody::Streamed { begun: true, .. } => return Err(()),
            RequestBody::None(_) | RequestBody::Streamed { .. } => {}
        }
        Ok(())
    }

    /// The next piece, `None` at the end. [`rewind`](Self::rewind) comes first.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        match self {
            RequestBody::None(_) => Poll::Ready(Ok(None)),
            RequestBody::Stored { reader: Some(reader), .. } => reader.poll_next(cx),
            RequestBody::Stored { reader: None, .. } => Poll::Ready(Ok(None)),
            RequestBody::Streamed { receiver, begun, .. } => {
                let next = ready!(receiver.poll_next(cx));
                *begun = true;
                Poll::Ready(next)
            }
        }
    }

    /// No further attempt can follow: what is left to send goes with the response, the store is freed when that is
    /// sent.
    pub(crate) fn hand_over(&mut self) -> RequestBody {
        std::mem::replace(self, RequestBody::None(BodyLength::None))
    }
}

#[derive(Default)]
struct Channel {
    bufs: Bufs,
    /// Its length, which takes too long to be counted anew at each of a window full of tiny chunks.
    len: usize,
    state: State,
    receiver_waits: Option<Waker>,
    sender_waits: Option<Waker>,
}

#[derive(Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The sender left before the end.
    Aborted,
    /// The receiver wants no more.
    Closed,
}

/// The client's end of a streamed body. Dropped before the end, it breaks the request.
pub(crate) struct BodySender(Arc<Mutex<Channel>>);

impl BodySender {
    /// Ready when more may be pushed: `false` when nobody wants it.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut channel = self.0.lock();
        if channel.state == State::Closed {
            return Poll::Ready(false);
        }
        if channel.len < STREAM_WINDOW {
            return Poll::Ready(true);
        }
        channel.sender_waits = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Does the receiver want more of it?
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.lock().state == State::Open
    }

    pub(crate) fn push(&mut self, bufs: Bufs) {
        let mut channel = self.0.lock();
        channel.len += bufs.len();
        channel.bufs.append(bufs);
        if let Some(waker) = channel.receiver_waits.take() {
            waker.wake();
        }
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        let mut channel = self.0.lock();
        if !channel.bufs.is_last() && channel.state == State::Open {
            channel.state = State::Aborted;
        }
        if let Some(waker) = channel.receiver_waits.take() {
            waker.wake();
        }
    }
}

/// The upstream's end of a streamed body.
pub(crate) struct BodyReceiver(Arc<Mutex<Channel>>);

impl BodyReceiver {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let mut channel = self.0.lock();
        if let Some(chunk) = channel.bufs.pop() {
            channel.len -= chunk.len();
            if let Some(waker) = channel.sender_waits.take() {
                waker.wake();
            }
            return Poll::Ready(Ok(Some(chunk)));
        }
        if channel.bufs.is_last() {
            return Poll::Ready(Ok(None));
        }
        if channel.state == State::Aborted {
            let text = "the client left before the end of its request body";
            return Poll::Ready(Err(Error::new(ErrorKind::ClientGone, text)));
        }
        channel.receiver_waits = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for BodyReceiver {
    fn drop(&mut self) {
        let mut channel = self.0.lock();
        channel.state = State::Closed;
        if let Some(waker) = channel.sender_waits.take() {
            waker.wake();
        }
    }
}
