//! The client's side of a request: reading its body, noticing that it leaves, writing the response.
//!
//! Pingora owns the connection; what is here drives Pingora's session so that reading and writing go on beside each
//! other and beside the upstream, all in the request's own task.

pub(crate) mod deliver;
pub(crate) mod tunnel_client;
mod writer;

use crate::bufs::Bufs;
use crate::conf;
use crate::error::{Error, ErrorKind, Result};
use crate::exchange::request_body::BodySender;
use crate::session::Session;
use crate::timer::Timer;
use bytes::Bytes;
use http::Version;
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::Session as Client;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// After a response that came before the end of the request body, so much time is spent on reading the rest: closing at
/// once would make the kernel reset the connection, and the client lose the response. nginx: `lingering_time`.
const LINGERING_TIME: Duration = Duration::from_secs(30);
/// ... and so much on waiting for a piece of it. nginx: `lingering_timeout`.
const LINGERING_TIMEOUT: Duration = Duration::from_secs(5);

/// The request body as it comes from the client, and, behind its end, the client itself.
pub(crate) struct ClientBody {
    /// All of the body has been read.
    done: bool,
    /// Where it goes, while it is streamed to an upstream.
    sender: Option<BodySender>,
    /// Nobody reads it; the client is only watched.
    unread: bool,
    watched: bool,
    limit: Option<u64>,
    timer: Timer,
}

impl ClientBody {
    /// `route` gives the limits; `has_body` says whether there is anything to read.
    pub(crate) fn new(route: &conf::Route, has_body: bool) -> Self {
        ClientBody {
            done: !has_body,
            sender: None,
            unread: false,
            watched: !route.ignore_client_abort,
            limit: route.client_max_body_size,
            timer: Timer::new(route.client.body_timeout),
        }
    }

    /// From now on what is read goes to `sender`.
    pub(crate) fn stream_to(&mut self, sender: BodySender) {
        self.sender = Some(sender);
    }

    /// Tell a client that waits for it to go on and send its body (RFC 9110 10.1.1).
    pub(crate) async fn expect_continue(&self, session: &mut Session<'_>) -> Result<()> {
        let expects = session.request().version == Version::HTTP_11
            && session
                .request()
                .headers
                .get(http::header::EXPECT)
                .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let Some(client) = session.client_mut().filter(|_| expects && !self.done) else { return Ok(()) };
        // Pingora takes an interim answer before the end of the body for a final one, and would close behind it.
        client.set_close_on_response_before_downstream_finish(false);
        let written = client.write_continue_response().await;
        client.set_close_on_response_before_downstream_finish(true);
        written.map_err(gone)
    }

    /// Read all of the body; for each run of it, `store` is called.
    pub(crate) async fn read(&mut self, session: &mut Session<'_>) -> Result<Option<Bufs>> {
        if self.done {
            return Ok(None);
        }
        poll_fn(|cx| self.poll_read(cx, session)).await.map(Some)
    }

    /// The next run of the request body. Behind its end, and without a client, always pending, unless the client
    /// leaves: [`ErrorKind::ClientGone`].
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, session: &mut Session<'_>) -> Poll<Result<Bufs>> {
        if self.done {
            return self.poll_gone(cx, session);
        }
        if self.unread {
            return Poll::Pending;
        }
        if let Some(sender) = &mut self.sender
            && !ready!(sender.poll_room(cx))
        {
            // The upstream has answered and wants no more of it. What is left is discarded behind the response.
            self.sender = None;
            self.unread = true;
            return Poll::Pending;
        }
        let Some(client) = session.client_mut() else { return Poll::Pending };
        let read = pin!(client.downstream_session.read_body_or_idle(false)).poll(cx);
        let chunk = match read {
            Poll::Ready(chunk) => chunk.map_err(body_error)?,
            Poll::Pending => {
                return self.timer.poll_limit(cx, ErrorKind::ClientTimeout, || "reading the request body".to_owned());
            }
        };
        self.timer.restart();
        self.done = chunk.is_none() || client.is_body_done();
        Poll::Ready(self.count(session, chunk))
    }

    fn count(&mut self, session: &mut Session<'_>, chunk: Option<Bytes>) -> Result<Bufs> {
        let read = &mut session.outcome.body_bytes_read;
        *read += chunk.as_ref().map_or(0, Bytes::len) as u64;
        if let Some(limit) = self.limit.filter(|limit| *read > *limit) {
            let text = format!("the request body is larger than {limit} bytes (client_max_body_size)");
            return Err(Error::new(ErrorKind::BodyTooLarge, text));
        }
        Ok(Bufs::from_chunk(chunk.unwrap_or_default(), self.done))
    }

    /// Ready with an error when the client leaves.
    fn poll_gone(&mut self, cx: &mut Context<'_>, session: &mut Session<'_>) -> Poll<Result<Bufs>> {
        if !self.watched {
            return Poll::Pending;
        }
        let Some(client) = session.client_mut() else { return Poll::Pending };
        poll_left(cx, client).map(Err)
    }

    /// Give a filtered run on to the upstream.
    pub(crate) fn pass_on(&mut self, run: Bufs) {
        let last = run.is_last();
        if let Some(sender) = &mut self.sender {
            sender.push(run);
            if last {
                self.sender = None;
            }
        }
    }

    /// Does it matter if the client leaves?
    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Does an upstream wait for what is left of it?
    pub(crate) fn is_awaited(&self) -> bool {
        !self.done && self.sender.as_ref().is_some_and(BodySender::is_wanted)
    }

    /// The request has failed: what is left of its body is nobody's any more.
    pub(crate) fn abandon(&mut self) {
        self.unread = !self.done;
        self.sender = None;
    }

    /// Has all of the body been read?
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }
}

/// Ready when a client, whose request has been read whole, leaves.
pub(crate) fn poll_left(cx: &mut Context<'_>, client: &mut Client) -> Poll<Error> {
    if client.is_http2() && client.response_written().is_some() {
        // The writer has the stream by now, and watches it.
        return Poll::Pending;
    }
    match ready!(pin!(client.downstream_session.read_body_or_idle(false)).poll(cx)) {
        Ok(_) => Poll::Pending,
        Err(error) => Poll::Ready(gone(error)),
    }
}

/// The response is out, and the client still sends: read on for a bounded time, so that it gets to read the response.
pub(crate) async fn linger(client: &mut Client) {
    if client.is_body_done() || !matches!(*client.downstream_session, ServerSession::H1(_)) {
        return;
    }
    client.set_keepalive(None);
    client.downstream_session.shutdown().await;
    let discard = async {
        while let Ok(Ok(Some(_))) =
            pingora_timeout::timeout(LINGERING_TIMEOUT, client.downstream_session.read_request_body()).await
        {}
    };
    let _ = pingora_timeout::timeout(LINGERING_TIME, discard).await;
}

fn gone(error: Box<pingora_core::Error>) -> Error {
    Error::because(ErrorKind::ClientGone, "the client left", error)
}

/// What went wrong while reading the request body: the client's framing, or the client's connection.
fn body_error(error: Box<pingora_core::Error>) -> Error {
    if matches!(error.etype().as_str(), "InvalidChunk" | "InvalidTrailerEnd") {
        return Error::because(ErrorKind::BadRequest, "the request body", error);
    }
    gone(error)
}
