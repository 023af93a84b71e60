//! The client's side of a tunnel: after the 101, bytes both ways.

use super::gone;
use crate::error::{Error, ErrorKind, Result};
use crate::session::Session;
use crate::timer::Timer;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Version};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::HttpTask;
use pingora_http::ResponseHeader;
use pingora_proxy::Session as Client;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite};

const TUNNEL_BUFFER: usize = 16 * 1024;

/// Send the 101 and carry bytes until one side closes.
pub(crate) async fn run(
    session: &mut Session<'_>,
    mut header: ResponseHeader,
    stream: Stream,
    early: Bytes,
    idle: Duration,
) -> Result<()> {
    let status = header.status.as_u16();
    header.set_version(Version::HTTP_11);
    header.remove_header(&CONTENT_LENGTH);
    header.remove_header(&TRANSFER_ENCODING);
    session.outcome.status = status;
    let Some(client) = session.client_mut() else { return Ok(()) };
    // Pingora writes a Connection header of its own only to final answers.
    header.insert_header(CONNECTION, HeaderValue::from_static("upgrade"))?;
    client.write_response_header(Box::new(header), false).await.map_err(gone)?;
    session.outcome.header_sent = true;
    let Some(client) = session.client_mut() else { return Ok(()) };
    let mut tunnel = Tunnel {
        stream,
        buffer: BytesMut::with_capacity(TUNNEL_BUFFER),
        to_upstream: Bytes::new(),
        client_done: false,
        timer: Timer::new(idle),
        carried: 0,
    };
    if !early.is_empty() {
        tunnel.queue_for_client(client, early);
    }
    let ended = poll_fn(|cx| tunnel.poll(cx, client)).await;
    session.outcome.body_bytes_sent = tunnel.carried;
    ended
}

struct Tunnel {
    stream: Stream,
    buffer: BytesMut,
    to_upstream: Bytes,
    client_done: bool,
    timer: Timer,
    /// Bytes for the client.
    carried: u64,
}

impl Tunnel {
    fn queue_for_client(&mut self, client: &mut Client, bytes: Bytes) {
        self.carried += bytes.len() as u64;
        client.downstream_session.send_downstream_proxy_task(HttpTask::UpgradedBody(Some(bytes), false));
    }

    /// Carry what can be carried. Ready when a side has closed and the other has been given all that came before.
    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Client) -> Poll<Result<()>> {
        loop {
            let mut moved = false;
            if let Poll::Ready(up) = self.poll_up(cx, client) {
                match up? {
                    true => moved = true,
                    false => return Poll::Ready(Ok(())),
                }
            }
            if let Poll::Ready(down) = self.poll_down(cx, client) {
                match down? {
                    true => moved = true,
                    false => return Poll::Ready(Ok(())),
                }
            }
            if !moved {
                return self.timer.poll_limit(cx, ErrorKind::ReadTimeout, || "the tunnel".to_owned());
            }
            self.timer.restart();
        }
    }

    /// One step from the client to the upstream; `false` when the client is done.
    fn poll_up(&mut self, cx: &mut Context<'_>, client: &mut Client) -> Poll<Result<bool>> {
        while !self.to_upstream.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.to_upstream) {
                Poll::Ready(Ok(written)) => self.to_upstream.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(cx) {
            return Poll::Ready(Err(broken(error)));
        }
        if self.client_done {
            return Poll::Ready(Ok(false));
        }
        match pin!(client.downstream_session.read_body_or_idle(false)).poll(cx) {
            Poll::Ready(Ok(Some(bytes))) => {
                self.to_upstream = bytes;
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Ok(None)) | Poll::Ready(Err(_)) => {
                self.client_done = true;
                Poll::Ready(Ok(false))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// One step from the upstream to the client; `false` when the upstream is done.
    fn poll_down(&mut self, cx: &mut Context<'_>, client: &mut Client) -> Poll<Result<bool>> {
        match pin!(client.downstream_session.write_downstream_proxy_tasks()).poll(cx) {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(gone(error))),
            Poll::Pending => return Poll::Pending,
        }
        self.buffer.reserve(TUNNEL_BUFFER);
        match pin!(self.stream.read_buf(&mut self.buffer)).poll(cx) {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(false)),
            Poll::Ready(Ok(_)) => {
                let bytes = self.buffer.split().freeze();
                self.queue_for_client(client, bytes);
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken(error))),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::because(ErrorKind::Truncated, "the upstream's side of the tunnel", error)
}
