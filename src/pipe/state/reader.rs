//! The client's side of [`State`]: bytes in order, and what was accepted of them.

use super::{Chunk, End, State};
use crate::bufs::Bufs;
use crate::error::Error;
use http::HeaderMap;
use std::collections::VecDeque;

/// The answer to a reader that wants to go on.
#[derive(Debug)]
pub(in crate::pipe) enum Read {
    Bufs(Bufs),
    /// Nothing, until woken.
    Dry,
    Failed(Error),
}

impl State {
    /// The next bytes, so many that at most `busy_buffers_size` are with the client.
    pub(in crate::pipe) fn read(&mut self) -> Read {
        let mut bufs = Bufs::new();
        self.hand_ready(&mut bufs);
        let disk_is_next = self.slots.holds_any() || self.reading.is_some() || self.broken.is_some();
        if self.ready.is_empty() && !disk_is_next {
            self.hand_spill(&mut bufs);
            self.hand_queue(&mut bufs);
        }
        if self.is_drained() && matches!(self.end, Some(End::Complete(_))) {
            bufs.end();
        }
        if !bufs.is_empty() || bufs.is_last() {
            return Read::Bufs(bufs);
        }
        match self.take_failure() {
            Some(error) => Read::Failed(error),
            None => Read::Dry,
        }
    }

    /// The client took all it was given.
    pub(in crate::pipe) fn accepted(&mut self) {
        self.client_had_turn = false;
        self.handed_bytes = 0;
        self.busy = 0;
        self.pinned = 0;
        let mut handed = std::mem::take(&mut self.handed);
        for (area, len) in handed.drain(..) {
            self.areas.at(area).with_client = false;
            self.release(area, len);
        }
        self.handed = handed;
        self.settle();
    }

    /// The client went away.
    pub(in crate::pipe) fn reader_gone(&mut self) {
        self.reader_gone = true;
        self.clear();
        self.accepted();
        self.wake.writer = true;
    }

    /// Has everything that was written been handed out?
    pub(in crate::pipe) fn is_drained(&self) -> bool {
        !self.is_dead() && self.ready.is_empty() && self.queue.is_empty() && !self.file_in_use()
    }

    /// Did the upstream's side end well, and was all of it handed out?
    pub(in crate::pipe) fn is_complete(&self) -> bool {
        self.is_drained() && matches!(self.end, Some(End::Complete(_)))
    }

    pub(in crate::pipe) fn trailers(&mut self) -> Option<HeaderMap> {
        match &mut self.end {
            Some(End::Complete(trailers)) => trailers.take(),
            _ => None,
        }
    }

    /// The error behind the last byte. Whoever asks again gets one of the same kind.
    fn take_failure(&mut self) -> Option<Error> {
        let drained = self.is_drained();
        let error = match (&mut self.broken, &mut self.end) {
            (Some(error), _) if self.ready.is_empty() => error,
            (None, Some(End::Failed(error))) if drained => error,
            _ => return None,
        };
        let again = Error::new(error.kind(), "reading on in a message that has failed");
        Some(std::mem::replace(error, again))
    }

    fn hand_ready(&mut self, bufs: &mut Bufs) {
        let mut chunks = std::mem::take(&mut self.ready);
        self.hand(&mut chunks, bufs);
        self.ready = chunks;
    }

    /// Nothing is before the bytes that are being written to disk, and they are still in memory.
    fn hand_spill(&mut self, bufs: &mut Bufs) {
        if let Some(mut spill) = self.spill.take() {
            self.hand(&mut spill.chunks, bufs);
            self.spill = Some(spill);
        }
    }

    fn hand_queue(&mut self, bufs: &mut Bufs) {
        if self.spill.as_ref().is_none_or(|spill| spill.chunks.is_empty()) {
            let mut chunks = std::mem::take(&mut self.queue);
            self.hand(&mut chunks, bufs);
            self.queue = chunks;
        }
    }

    /// Like nginx, `busy_buffers_size` counts whole areas, so that it bounds what a stalled client can keep from being
    /// spilled; but one area goes out, in pieces, however large it is.
    fn hand(&mut self, chunks: &mut VecDeque<Chunk>, bufs: &mut Bufs) {
        while let Some(chunk) = chunks.front_mut() {
            let area = self.areas.at(chunk.area);
            if !area.with_client && self.busy > 0 && self.busy + area.capacity > self.sizes.busy {
                return;
            }
            let n = chunk.len().min(self.sizes.busy.saturating_sub(self.handed_bytes));
            if n == 0 {
                return;
            }
            if !area.with_client {
                area.with_client = true;
                self.busy += area.capacity;
                self.pinned += if area.read_back { 0 } else { area.capacity };
            }
            bufs.push(chunk.split_to(n));
            self.handed.push((chunk.area, n));
            self.handed_bytes += n;
            if chunk.len() == 0 {
                chunks.pop_front();
            }
        }
    }
}
