//! The pipe between one upstream response and its client: nginx's event pipe.
//!
//! The upstream's side writes as fast as the upstream sends, the client's side reads as fast as the client takes. What
//! lies between them is held in memory, at most `buffers.number × buffers.size`; when that is full and the client is
//! not ready, in a temporary file, at most `max_temp_file_size`; when that is full too, or the disk refuses, the writer
//! waits, and the upstream feels it. Nothing is lost, nothing overtakes, and a message that was cut short is never
//! taken for a complete one.
//!
//! ```
//! use millpond::pipe::{Limits, PipeConf, pipe};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> millpond::error::Result<()> {
//! let limits = Limits::new(1 << 30, 16 << 30, std::env::temp_dir());
//! let (mut writer, mut reader) = pipe(&PipeConf::default(), &limits);
//! let mut buffer = writer.buffer().await?;
//! buffer.extend_from_slice(b"what the upstream sent");
//! writer.commit(buffer);
//! writer.finish(None);
//!
//! let bufs = reader.read().await?;
//! assert_eq!((bufs.len(), bufs.is_last()), (22, true));
//! reader.accepted();
//! # Ok(()) }
//! ```
//!
//! # Layout
//! - [`PipeWriter`], [`PipeReader`]: the two halves; `shared`: the lock, the wakers and the disk jobs behind them
//! - `state`: what happens when, without I/O; `simulator` drives it through random interleavings
//! - `areas`, `slots`: what lies where in memory and in the file
//! - `file`: the file itself; [`Limits`]: what the whole process may use
//! - [`Spool`]: the same store for request bodies

mod areas;
mod file;
mod limits;
mod shared;
#[cfg(test)]
mod simulator;
mod slots;
mod spool;
mod state;
#[cfg(test)]
mod tests;

pub use limits::Limits;
pub use spool::{Spool, SpoolReader};

use crate::bufs::Bufs;
use crate::error::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use shared::Shared;
use state::End;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A route's `buffering`, resolved. Sizes are bytes; numbers that do not fit together are made to (a write to the file
/// holds at least one block, every pipe has at least one block).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeConf {
    /// Off: at most `buffer_size` bytes are held, in memory.
    pub buffering: bool,
    /// What an unbuffered response holds.
    pub buffer_size: usize,
    /// Blocks that a response may hold in memory; what was read behind the header is extra.
    pub buffers_number: usize,
    /// Bytes in a block.
    pub buffers_size: usize,
    /// The most that is with the filters and the client's socket, and not yet accepted; in whole areas, as in nginx,
    /// and never all of the blocks, so that one can be spilled.
    pub busy_buffers_size: usize,
    /// The most that is stored in the file and not yet read back; 0: no file.
    pub max_temp_file_size: u64,
    /// The most that is written to the file at once.
    pub temp_file_write_size: usize,
}

impl Default for PipeConf {
    /// The defaults of the configuration.
    fn default() -> Self {
        PipeConf {
            buffering: true,
            buffer_size: 16 << 10,
            buffers_number: 16,
            buffers_size: 16 << 10,
            busy_buffers_size: 64 << 10,
            max_temp_file_size: 1 << 30,
            temp_file_write_size: 64 << 10,
        }
    }
}

/// What a pipe has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PipeStats {
    /// Body bytes written into the pipe.
    pub bytes_in: u64,
    /// Bytes written to the temporary file.
    pub spilled_bytes: u64,
    /// Writes to the temporary file.
    pub spills: u64,
    /// The longest the temporary file has been.
    pub file_high_water: u64,
    /// The most memory held at once.
    pub memory_high_water: usize,
    /// How long the writer was refused, and so the upstream not read.
    pub backpressure: Duration,
    /// Failures of the disk. At the first one writing to the file ends; one at reading breaks the message.
    pub disk_errors: u64,
}

/// A pipe for one response. The halves may live in one task or in two.
pub fn pipe(conf: &PipeConf, limits: &Arc<Limits>) -> (PipeWriter, PipeReader) {
    let shared = Arc::new(Shared::new(conf, limits));
    (PipeWriter { shared: shared.clone(), ended: false }, PipeReader { shared })
}

/// The upstream's side. To end well it is [`finish`](Self::finish)ed; one that is dropped leaves a truncated message.
#[derive(Debug)]
pub struct PipeWriter {
    shared: Arc<Shared>,
    ended: bool,
}

impl PipeWriter {
    /// The body bytes that were read behind the header, before anything else is written. The buffer is extra to the
    /// number of blocks, and the capacity behind the bytes serves the next reads.
    pub fn preread(&mut self, body: BytesMut) {
        self.shared.change(|core| core.state.preread(body));
    }

    /// So many bytes are still to come, as far as is known: a long body is read in larger pieces from the start.
    pub fn expect(&mut self, bytes: u64) {
        self.shared.look(|core| core.state.expect(bytes));
    }

    /// An empty buffer with capacity to read into, which is not to grow. Pending while reading must stop. A buffer that
    /// is not [`commit`](Self::commit)ted is made up for by the next one.
    ///
    /// # Errors
    /// Nobody will read: [`ErrorKind::ClientGone`] when the reader was dropped, [`ErrorKind::Internal`] when the disk
    /// has lost what was stored.
    pub fn poll_buffer(&mut self, cx: &mut Context<'_>) -> Poll<Result<BytesMut>> {
        self.shared.poll_writer(cx, |state| state.buffer())
    }

    /// [`poll_buffer`](Self::poll_buffer), awaited.
    pub async fn buffer(&mut self) -> Result<BytesMut> {
        poll_fn(|cx| self.poll_buffer(cx)).await
    }

    /// Give the buffer back with the body bytes to append, perhaps none; the capacity behind them serves the next
    /// reads.
    pub fn commit(&mut self, buf: BytesMut) {
        self.shared.change(|core| core.state.commit(buf));
    }

    /// For drivers that bring their own chunks: how many bytes may be [`push`](Self::push)ed. Pending while there is no
    /// room.
    ///
    /// # Errors
    /// As for [`poll_buffer`](Self::poll_buffer).
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        self.shared.poll_writer(cx, |state| state.room())
    }

    /// [`poll_room`](Self::poll_room), awaited.
    pub async fn room(&mut self) -> Result<usize> {
        poll_fn(|cx| self.poll_room(cx)).await
    }

    /// Append a chunk without copying it, unless it is tiny. It counts by its length; more than there is room for is
    /// taken, and goes beyond the limit.
    pub fn push(&mut self, chunk: Bytes) {
        self.shared.change(|core| core.state.push(chunk));
    }

    /// What has happened so far.
    pub fn stats(&self) -> PipeStats {
        self.shared.look(|core| core.stats())
    }

    /// Ready when nobody will read any more.
    pub fn poll_reader_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.poll_reader_gone(cx)
    }

    /// [`poll_reader_gone`](Self::poll_reader_gone), awaited.
    pub async fn reader_gone(&mut self) {
        poll_fn(|cx| self.poll_reader_gone(cx)).await;
    }

    /// The message is complete.
    pub fn finish(mut self, trailers: Option<HeaderMap>) {
        self.end(End::Complete(trailers));
    }

    /// The message cannot be completed: what was written goes out, then the reader gets `error`.
    pub fn fail(mut self, error: Error) {
        self.end(End::Failed(error));
    }

    fn end(&mut self, end: End) {
        self.ended = true;
        self.shared.end(end);
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        if !self.ended {
            self.end(End::Failed(Error::new(ErrorKind::Truncated, "the response was abandoned before its end")));
        }
    }
}

/// The client's side. Dropping it tells the writer that nobody reads, and frees what is held.
#[derive(Debug)]
pub struct PipeReader {
    shared: Arc<Shared>,
}

impl PipeReader {
    /// The next run of bytes, never empty unless it is the last, and so long that at most `busy_buffers_size` bytes are
    /// handed out and not [`accepted`](Self::accepted). The last run says so. Pending: the pipe is dry, or everything
    /// that may be with the client is.
    ///
    /// # Errors
    /// The message is incomplete; all bytes before the failure were handed out. What [`PipeWriter::fail`] was given,
    /// [`ErrorKind::Truncated`] when the writer was dropped, [`ErrorKind::Internal`] when the disk has lost bytes.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bufs>> {
        self.shared.poll_read(cx)
    }

    /// [`poll_read`](Self::poll_read), awaited.
    pub async fn read(&mut self) -> Result<Bufs> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// All bytes handed out so far are with the client, or nobody needs them: their memory is free.
    pub fn accepted(&mut self) {
        self.shared.change(|core| core.state.accepted());
    }

    /// The trailers behind a complete message, once.
    pub fn trailers(&mut self) -> Option<HeaderMap> {
        self.shared.look(|core| core.state.trailers())
    }

    /// Did the writer finish, and was everything handed out?
    pub fn is_complete(&self) -> bool {
        self.shared.look(|core| core.state.is_complete())
    }

    /// When the upstream's side was done, well or not.
    pub fn writer_finished_at(&self) -> Option<Instant> {
        self.shared.look(|core| core.finished_at)
    }

    /// What has happened so far.
    pub fn stats(&self) -> PipeStats {
        self.shared.look(|core| core.stats())
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        self.shared.change(|core| core.state.reader_gone());
    }
}
