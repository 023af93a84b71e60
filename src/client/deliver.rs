//! Phase 5, the client's half: a header and a body through the chain to the client, at the client's speed.

use super::ClientBody;
use super::writer::ClientWriter;
use crate::bufs::Bufs;
use crate::chain::Pass;
use crate::error::{Error, ErrorKind, Result};
use crate::pipe::PipeReader;
use bytes::Bytes;
use http::HeaderMap;
use pingora_http::ResponseHeader;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Where a body comes from.
pub(crate) enum Source<'a> {
    /// It is all here.
    Whole(Bufs, Option<HeaderMap>),
    /// It comes through a pipe.
    Pipe(&'a mut PipeReader),
}

impl Source<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bufs>> {
        match self {
            // As from a pipe, the end is said again to a filter that has held it back.
            Source::Whole(bufs, _) => Poll::Ready(Ok(std::mem::replace(bufs, Bufs::end_of_body()))),
            Source::Pipe(reader) => reader.poll_read(cx),
        }
    }

    fn accepted(&mut self) {
        if let Source::Pipe(reader) = self {
            reader.accepted();
        }
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        match self {
            Source::Whole(_, trailers) => trailers.take(),
            Source::Pipe(reader) => reader.trailers(),
        }
    }
}

enum Event {
    /// A run of the request body, or the client has left.
    Client(Result<Bufs>),
    /// A run of the response body.
    Run(Result<Bufs>),
    /// A filter has more to say.
    Resume,
    /// The pipe is dry, and something small waits in the write buffer.
    Dry,
    /// The message is out.
    Done,
    Failed(Error),
}

/// Send `header` and `source` through the response hooks to the client. It ends when the client's connection has
/// accepted the last byte.
///
/// # Errors
/// The client left, a filter failed, or the source broke: then all that came before it has gone out, and the connection
/// must be broken, for the message has no end. Before the header has gone out, an error page may still be sent.
pub(crate) async fn deliver(
    pass: &mut Pass<'_>,
    header: ResponseHeader,
    source: Source<'_>,
    body: &mut ClientBody,
) -> Result<()> {
    let Some(client) = pass.session.client() else {
        return Err(Error::new(ErrorKind::Internal, "there is no client to deliver to"));
    };
    let conf = pass.session.route().conf();
    let mut delivery = Delivery {
        writer: ClientWriter::new(client, conf.client.send_timeout),
        source,
        unacknowledged: false,
        watched: body.is_watched(),
        rate: Rate::new(pass.session.limit_rate()),
    };
    let empty = matches!(&delivery.source, Source::Whole(bufs, None) if bufs.is_empty());
    pass.session.outcome.status = header.status.as_u16();
    if let Some(header) = pass.response_filter(header).await? {
        delivery.begin(pass, header, empty).await?;
    }
    delivery.run(pass, body).await
}

struct Delivery<'a> {
    writer: ClientWriter,
    source: Source<'a>,
    /// The client has not yet accepted what the source gave out last.
    unacknowledged: bool,
    /// Does it matter if the client leaves?
    watched: bool,
    rate: Rate,
}

impl Delivery<'_> {
    /// The header, when no filter holds it. An HTTP/2 message can end with it, but not before the filters have seen
    /// that there is no body, and added none.
    async fn begin(&mut self, pass: &mut Pass<'_>, header: ResponseHeader, empty: bool) -> Result<()> {
        let mut run = Bufs::from_chunk(Bytes::new(), true);
        if empty && pass.session.client().is_some_and(|client| client.is_http2()) {
            pass.body_filter(&mut run).await?;
            return self.send(pass, Some(header), run);
        }
        self.send_header(pass, header, false)?;
        if self.writer.is_ended() {
            // The answer to a HEAD, a 204, a 304: what the filters make of the end goes nowhere.
            pass.body_filter(&mut run).await?;
        }
        Ok(())
    }

    async fn run(&mut self, pass: &mut Pass<'_>, body: &mut ClientBody) -> Result<()> {
        loop {
            match poll_fn(|cx| self.poll_event(cx, pass, body)).await {
                Event::Client(run) => {
                    let mut run = run?;
                    pass.request_body_filter(&mut run).await?;
                    body.pass_on(run);
                }
                Event::Run(Ok(run)) => self.filter(pass, run).await?,
                Event::Resume => {
                    let mut run = Bufs::new();
                    let header = self.unless_reset(pass.resume(&mut run)).await?;
                    self.send(pass, header, run)?;
                }
                Event::Run(Err(error)) => {
                    self.flush_small(pass).await?;
                    return Err(error);
                }
                Event::Dry => self.flush_small(pass).await?,
                Event::Done => return Ok(()),
                Event::Failed(error) => return Err(error),
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, pass: &mut Pass<'_>, body: &mut ClientBody) -> Poll<Event> {
        if let Poll::Ready(run) = body.poll_read(cx, &mut pass.session) {
            return Poll::Ready(Event::Client(run));
        }
        let Some(client) = pass.session.client_mut() else { return Poll::Ready(Event::Done) };
        let flushed = self.writer.poll_flush(cx, client);
        pass.session.outcome.body_bytes_sent = self.writer.accepted();
        if let Err(error) = ready!(flushed) {
            return Poll::Ready(Event::Failed(error));
        }
        if self.writer.is_ended() {
            return Poll::Ready(Event::Done);
        }
        if self.rate.has_pending() {
            return match self.rate.poll_slice(cx, self.writer.accepted()) {
                Poll::Ready(run) => Poll::Ready(Event::Run(Ok(run))),
                Poll::Pending if self.writer.is_unflushed() => Poll::Ready(Event::Dry),
                Poll::Pending => Poll::Pending,
            };
        }
        if std::mem::take(&mut self.unacknowledged) {
            self.source.accepted();
        }
        if pass.poll_resume(cx).is_ready() {
            // Nobody knows how long it takes: what came before it does not wait.
            return Poll::Ready(if self.writer.is_unflushed() { Event::Dry } else { Event::Resume });
        }
        let read = if pass.may_read() { self.source.poll_read(cx) } else { Poll::Pending };
        match read {
            Poll::Ready(run) => {
                self.unacknowledged = true;
                Poll::Ready(Event::Run(run))
            }
            Poll::Pending if self.writer.is_unflushed() => Poll::Ready(Event::Dry),
            Poll::Pending if body.is_watched() => self.writer.poll_reset(cx).map(Event::Failed),
            Poll::Pending => Poll::Pending,
        }
    }

    /// One run through the body hooks, and what comes out of them to the client.
    async fn filter(&mut self, pass: &mut Pass<'_>, mut run: Bufs) -> Result<()> {
        if self.rate.is_slice() {
            return self.write(pass, run);
        }
        let header = self.unless_reset(pass.body_filter(&mut run)).await?;
        self.send(pass, header, run)
    }

    /// Filters at work, as long as an HTTP/2 client is there: the writer has its stream, and a filter cannot watch it.
    async fn unless_reset<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Pending if self.watched => self.writer.poll_reset(cx).map(Err),
            done => done,
        })
        .await
    }

    /// What has come out of the filters goes to the client.
    fn send(&mut self, pass: &mut Pass<'_>, header: Option<ResponseHeader>, run: Bufs) -> Result<()> {
        if let Some(header) = header {
            let empty = run.is_empty() && run.is_last();
            self.send_header(pass, header, empty)?;
        }
        if pass.holds_header() {
            return Ok(());
        }
        if self.rate.is_limited() {
            self.rate.pend(run);
            return Ok(());
        }
        self.write(pass, run)
    }

    fn write(&mut self, pass: &mut Pass<'_>, mut run: Bufs) -> Result<()> {
        let trailers = if run.is_last() { self.source.trailers() } else { None };
        match pass.session.client_mut() {
            Some(client) => self.writer.body(client, &mut run, trailers),
            None => Ok(()),
        }
    }

    /// Queue the header for the client. An HTTP/2 message without a body ends with it.
    fn send_header(&mut self, pass: &mut Pass<'_>, header: ResponseHeader, empty: bool) -> Result<()> {
        pass.session.outcome.status = header.status.as_u16();
        pass.session.outcome.header_sent = true;
        let Some(client) = pass.session.client_mut() else { return Ok(()) };
        let end = empty && client.is_http2();
        self.writer.header(client, header, end)
    }

    async fn flush_small(&mut self, pass: &mut Pass<'_>) -> Result<()> {
        match pass.session.client_mut() {
            Some(client) if self.writer.header_sent() => self.writer.flush_small(client).await,
            _ => Ok(()),
        }
    }
}

/// `limit_rate`: nginx's reckoning, bytes allowed since the response began, with one second's worth to start with.
struct Rate {
    /// Bytes per second; 0: no limit.
    limit: u64,
    started: Instant,
    pending: Option<Bufs>,
    slicing: bool,
    sleep: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Rate {
    fn new(limit: u64) -> Self {
        Rate { limit, started: Instant::now(), pending: None, slicing: false, sleep: None }
    }

    fn is_limited(&self) -> bool {
        self.limit > 0
    }

    fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Is the run that comes now one of `poll_slice`'s, hence filtered already?
    fn is_slice(&mut self) -> bool {
        std::mem::take(&mut self.slicing)
    }

    fn pend(&mut self, run: Bufs) {
        if !run.is_empty() || run.is_last() {
            self.pending = Some(run);
        }
    }

    /// As much of the pending run as may go now.
    fn poll_slice(&mut self, cx: &mut Context<'_>, sent: u64) -> Poll<Bufs> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            let elapsed = self.started.elapsed();
            let earned = ((elapsed.as_secs_f64() * self.limit as f64) as u64).saturating_add(self.limit);
            let Some(allowed) = usize::try_from(earned.saturating_sub(sent)).ok().filter(|allowed| *allowed > 0) else {
                let owed = (sent - earned + 1) as f64 / self.limit as f64;
                let pause = Duration::from_secs_f64(owed).max(Duration::from_millis(10));
                self.sleep = Some(Box::pin(pingora_timeout::sleep(pause)));
                continue;
            };
            self.slicing = true;
            return Poll::Ready(self.cut(allowed));
        }
    }

    fn cut(&mut self, mut allowed: usize) -> Bufs {
        let mut slice = Bufs::new();
        let Some(mut pending) = self.pending.take() else { return slice };
        let last = pending.is_last();
        let mut rest = Bufs::new();
        while let Some(mut chunk) = pending.pop() {
            let now: Bytes = chunk.split_to(allowed.min(chunk.len()));
            allowed -= now.len();
            slice.push(now);
            rest.push(chunk);
        }
        if rest.is_empty() {
            if last {
                slice.end();
            }
        } else {
            if last {
                rest.end();
            }
            self.pending = Some(rest);
        }
        slice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_whole_body_is_said_as_often_as_it_is_asked_for() {
        let mut source = Source::Whole(Bufs::from_chunk(Bytes::from_static(b"body"), true), None);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for expected in [4, 0, 0] {
            let Poll::Ready(Ok(run)) = source.poll_read(&mut cx) else { panic!("it is all here") };
            assert_eq!((run.len(), run.is_last()), (expected, true));
        }
    }

    #[test]
    fn no_rate_is_too_large_to_be_reckoned_with() {
        let mut rate = Rate::new(u64::MAX);
        rate.pend(Bufs::from_chunk(Bytes::from_static(b"body"), true));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(run) = rate.poll_slice(&mut cx, 0) else { panic!("there is no need to wait") };
        assert_eq!((run.len(), run.is_last()), (4, true));
    }
}
