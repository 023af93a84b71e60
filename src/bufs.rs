//! [`Bufs`]: what a body callback is given, and gives on.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A run of body chunks, and whether the body ends with it: nginx's buffer chain with `last_buf`.
///
/// A body callback may leave it alone, change it, take all of it and keep it for later, emit none or many chunks, or
/// end the body early with [`end`](Self::end). An empty run that is not [`last`](Self::is_last) goes no further. The
/// end itself cannot be kept: taking it away, as `mem::take` does, is an error; use [`take`](Self::take).
#[derive(Debug, Default, Clone)]
pub struct Bufs {
    chunks: VecDeque<Bytes>,
    last: bool,
}

impl Bufs {
    /// An empty run in the middle of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// A run of one chunk.
    pub fn from_chunk(chunk: Bytes, last: bool) -> Self {
        let mut bufs = Bufs { chunks: VecDeque::new(), last };
        bufs.push(chunk);
        bufs
    }

    /// The empty run that ends a body.
    pub fn end_of_body() -> Self {
        Bufs { chunks: VecDeque::new(), last: true }
    }

    /// Append a chunk; an empty one is dropped.
    pub fn push(&mut self, chunk: impl Into<Bytes>) {
        let chunk = chunk.into();
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// Take the first chunk.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.chunks.pop_front()
    }

    /// Take everything, leaving an empty run; whether the body ends here stays as it is.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.chunks.drain(..).collect()
    }

    /// Take everything as one contiguous buffer: a copy, unless there is just one chunk.
    pub fn take_all(&mut self) -> Bytes {
        if self.chunks.len() == 1 {
            return self.chunks.pop_front().unwrap_or_default();
        }
        let mut all = BytesMut::with_capacity(self.len());
        for chunk in self.chunks.drain(..) {
            all.extend_from_slice(&chunk);
        }
        all.freeze()
    }

    /// Append `other`, and its end of the body.
    pub fn append(&mut self, mut other: Bufs) {
        self.chunks.append(&mut other.chunks);
        self.last |= other.last;
    }

    /// Look at the chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.chunks.iter()
    }

    /// Bytes in all chunks.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// No bytes at all?
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Does the body end with this run?
    pub fn is_last(&self) -> bool {
        self.last
    }

    /// The end comes later. Did it come with this run?
    pub(crate) fn withhold_end(&mut self) -> bool {
        std::mem::take(&mut self.last)
    }

    /// End the body with this run. Of a response, the rest is not read and the upstream's connection is closed; of a
    /// request, the rest is read and thrown away.
    pub fn end(&mut self) {
        self.last = true;
    }
}
