//! [`Spool`]: a whole request body, in memory or on disk, to be read as often as it takes.

use super::file::{TempFile, close};
use super::limits::{FileSpace, Limits, Memory};
use crate::error::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

/// A reader gives pieces of at most this length.
const PIECE: usize = 64 * 1024;

/// A request body that is kept until no attempt can need it any more.
///
/// Up to `client_body_buffer_size` bytes are in memory. When more come, or `buffer_memory_max` is reached, what is
/// there goes to a temporary file, whose length only `temp_files_max` limits, and memory collects the next write.
/// Memory and file are freed when the spool and all its readers are dropped. It must be used within a Tokio runtime.
#[derive(Debug)]
pub struct Spool {
    memory_limit: usize,
    tail: Tail,
    file_len: u64,
    store: Arc<Store>,
}

/// The bytes behind those in the file.
#[derive(Debug)]
enum Tail {
    Growing(BytesMut),
    Finished(Bytes),
}

/// What the spool and its readers share.
#[derive(Debug)]
struct Store {
    file: TempFile,
    space: Mutex<FileSpace>,
    memory: Mutex<Memory>,
}

impl Spool {
    /// An empty body, of which `memory_limit` bytes may be in memory.
    pub fn new(memory_limit: usize, limits: &Arc<Limits>) -> Self {
        let store = Store {
            file: TempFile::new(limits.temp_path().as_path()),
            space: Mutex::new(FileSpace::new(limits.clone())),
            memory: Mutex::new(Memory::new(limits.clone(), memory_limit, 0)),
        };
        Spool { memory_limit, tail: Tail::Growing(BytesMut::new()), file_len: 0, store: Arc::new(store) }
    }

    /// Append a chunk of the body, in the order in which the client sends them.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`]: the disk refuses, `temp_files_max` is reached, or the body was
    /// [finished](Self::finish). The body is then incomplete and of no use.
    pub async fn append(&mut self, chunk: Bytes) -> Result<()> {
        let Tail::Growing(tail) = &mut self.tail else {
            return Err(Error::new(ErrorKind::Internal, "appending to a finished request body"));
        };
        if self.store.grow(tail, chunk.len(), self.memory_limit) {
            tail.extend_from_slice(&chunk);
            return Ok(());
        }
        let tail = std::mem::take(tail);
        self.file_len += self.store.write(tail, chunk, self.file_len).await?;
        Ok(())
    }

    /// No more chunks will come.
    pub fn finish(&mut self) {
        if let Tail::Growing(tail) = &mut self.tail {
            self.tail = Tail::Finished(std::mem::take(tail).freeze());
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.file_len + self.tail.bytes().len() as u64
    }

    /// Is there no body at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A reader from the start, for one attempt; there may be any number. Before [`finish`](Self::finish) it gets what
    /// is there now.
    pub fn reader(&self) -> SpoolReader {
        let tail = match &self.tail {
            Tail::Growing(tail) => Bytes::copy_from_slice(tail),
            Tail::Finished(tail) => tail.clone(),
        };
        SpoolReader { tail, file_left: 0..self.file_len, read: None, store: self.store.clone() }
    }
}

impl Tail {
    fn bytes(&self) -> &[u8] {
        match self {
            Tail::Growing(tail) => tail,
            Tail::Finished(tail) => tail,
        }
    }
}

impl Store {
    /// Make room in memory for `n` bytes behind `tail`, if the limits allow it. Memory is counted as it grows, so that
    /// a small body costs little.
    fn grow(&self, tail: &mut BytesMut, n: usize, limit: usize) -> bool {
        let needed = tail.len().saturating_add(n);
        if needed > limit {
            return false;
        }
        let mut memory = self.memory.lock();
        let held = memory.held();
        if needed <= held {
            return true;
        }
        let comfortable = needed.checked_next_power_of_two().unwrap_or(needed).min(limit);
        let granted = [comfortable, needed].into_iter().find(|size| memory.try_take(size - held));
        if let Some(size) = granted {
            tail.reserve(size - tail.len());
        }
        granted.is_some()
    }

    /// Write `tail` and `chunk` to the file, and free the memory. Returns how many bytes that was.
    async fn write(self: &Arc<Self>, tail: BytesMut, chunk: Bytes, at: u64) -> Result<u64> {
        let len = (tail.len() + chunk.len()) as u64;
        if !self.space.lock().try_grow(len) {
            return Err(Error::new(ErrorKind::Internal, "temp_files_max is reached, spooling a request body"));
        }
        let store = self.clone();
        let write = spawn_blocking(move || {
            let result = store.file.write_at(&[tail.freeze(), chunk], at);
            let mut memory = store.memory.lock();
            let held = memory.held();
            memory.release(held);
            result
        });
        write.await.map_err(aborted)?.map_err(|error| failed("writing", error))?;
        Ok(len)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        close(std::mem::take(&mut self.file), self.space.get_mut().take());
    }
}

/// One reading of a [`Spool`].
#[derive(Debug)]
pub struct SpoolReader {
    tail: Bytes,
    file_left: std::ops::Range<u64>,
    read: Option<JoinHandle<io::Result<BytesMut>>>,
    store: Arc<Store>,
}

impl SpoolReader {
    /// The next piece, at most 64 KiB; `None` behind the last one.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`]: the disk has lost the body.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        if self.file_left.is_empty() {
            let piece = self.tail.split_to(self.tail.len().min(PIECE));
            return Poll::Ready(Ok(Some(piece).filter(|piece| !piece.is_empty())));
        }
        let read = self.read.get_or_insert_with(|| {
            let (store, at) = (self.store.clone(), self.file_left.start);
            let len = (self.file_left.end - at).min(PIECE as u64) as usize;
            spawn_blocking(move || store.file.read_at(at, len))
        });
        let done = ready!(Pin::new(read).poll(cx));
        self.read = None;
        let bytes = done.map_err(aborted)?.map_err(|error| failed("reading", error))?;
        self.file_left.start += bytes.len() as u64;
        Poll::Ready(Ok(Some(bytes.freeze())))
    }

    /// [`poll_next`](Self::poll_next), awaited.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}

fn failed(doing: &str, error: io::Error) -> Error {
    Error::because(ErrorKind::Internal, format!("{doing} the temporary file of a request body"), error)
}

fn aborted(error: JoinError) -> Error {
    Error::because(ErrorKind::Internal, "working on the temporary file of a request body", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut reader: SpoolReader) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            assert!(!piece.is_empty() && piece.len() <= PIECE);
            all.extend_from_slice(&piece);
        }
        all
    }

    #[tokio::test]
    async fn a_body_is_replayed_whatever_its_size() {
        let directory = tempfile::tempdir().unwrap();
        for len in [0, 1, 15, 16, 17, 1000, 200_000] {
            let limits = Limits::new(1 << 20, 1 << 20, directory.path());
            let body: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut spool = Spool::new(16, &limits);
            for chunk in body.chunks(7 + len / 3) {
                spool.append(Bytes::copy_from_slice(chunk)).await.unwrap();
                assert!(limits.memory_bytes() <= 16);
            }
            spool.finish();
            assert_eq!(spool.len(), len as u64);
            assert_eq!(all(spool.reader()).await, body);
            assert_eq!(all(spool.reader()).await, body);
            assert_eq!(limits.temp_file_bytes() > 0, len > 16);
        }
    }

    #[tokio::test]
    async fn many_tiny_chunks_are_written_together() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits::new(1 << 20, 1 << 20, directory.path());
        let mut spool = Spool::new(100, &limits);
        for _ in 0..250 {
            spool.append(Bytes::from_static(b"x")).await.unwrap();
        }
        assert_eq!(limits.temp_file_bytes(), 202);
        assert_eq!(spool.len(), 250);
        assert_eq!(all(spool.reader()).await.len(), 250);
    }

    #[tokio::test]
    async fn without_memory_the_file_is_used_and_without_both_it_fails() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits::new(0, 10, directory.path());
        let mut spool = Spool::new(100, &limits);
        spool.append(Bytes::from_static(b"0123456789")).await.unwrap();
        assert_eq!((limits.memory_bytes(), limits.temp_file_bytes()), (0, 10));
        let error = spool.append(Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }

    #[tokio::test]
    async fn a_missing_directory_is_an_error_and_nothing_stays_held() {
        let limits = Limits::new(1 << 20, 1 << 20, "/nonexistent/millpond");
        let mut spool = Spool::new(4, &limits);
        spool.append(Bytes::from_static(b"abcd")).await.unwrap();
        assert_eq!(limits.memory_bytes(), 4);
        assert!(spool.append(Bytes::from_static(b"e")).await.is_err());
        assert_eq!(limits.memory_bytes(), 0);
    }

    #[test]
    fn memory_and_file_are_freed_with_the_last_reader() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits::new(1 << 20, 1 << 20, directory.path());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reader = runtime.block_on(async {
            let mut spool = Spool::new(4, &limits);
            spool.append(Bytes::from_static(b"abcdefg")).await.unwrap();
            spool.append(Bytes::from_static(b"hi")).await.unwrap();
            spool.finish();
            spool.reader()
        });
        assert_eq!((limits.memory_bytes(), limits.temp_file_bytes()), (2, 7));
        drop(reader);
        assert_eq!((limits.memory_bytes(), limits.temp_file_bytes()), (0, 0));
    }

    #[tokio::test]
    async fn a_finished_body_takes_no_more() {
        let limits = Limits::new(1 << 20, 0, "");
        let mut spool = Spool::new(10, &limits);
        spool.finish();
        assert!(spool.append(Bytes::from_static(b"a")).await.is_err());
        assert!(spool.is_empty());
    }
}
