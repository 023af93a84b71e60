//! The temporary file's side of [`State`]: what to write, what to read back.

use super::{Area, Chunk, State};
use crate::error::{Error, ErrorKind};
use crate::pipe::slots::Extent;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;

/// Something to do with the temporary file. At most one of `Write` and `Truncate` is under way, and one `Read`.
#[derive(Debug)]
pub(in crate::pipe) enum Job {
    Write { at: u64, chunks: Vec<Bytes> },
    Read { at: u64, len: usize },
    Truncate,
}

/// How a [`Job`] went.
#[derive(Debug)]
pub(in crate::pipe) enum Done {
    Wrote(io::Result<()>),
    Read(io::Result<BytesMut>),
    Truncated(io::Result<()>),
}

/// The write under way; its bytes stay in memory until it is done, and may go to the client from there.
#[derive(Debug)]
pub(super) struct Spill {
    extent: Extent,
    pub(super) chunks: VecDeque<Chunk>,
}

/// The reading back under way.
#[derive(Debug)]
pub(super) struct Reading {
    extent: Extent,
    area: usize,
}

impl State {
    /// The next thing to do on disk; asked after each event, until there is none.
    pub(in crate::pipe) fn take_job(&mut self) -> Option<Job> {
        if let Some(job) = self.write_job.take() {
            return Some(job);
        }
        if self.is_dead() {
            return None;
        }
        if let Some(job) = self.start_reading() {
            return Some(job);
        }
        let idle = self.spill.is_none() && self.reading.is_none() && !self.truncating;
        if idle && !self.disk_refused && self.slots.can_truncate() {
            self.truncating = true;
            return Some(Job::Truncate);
        }
        None
    }

    pub(in crate::pipe) fn job_done(&mut self, done: Done) {
        match done {
            Done::Wrote(result) => self.wrote(result),
            Done::Read(result) => self.was_read(result),
            Done::Truncated(result) => {
                self.truncating = false;
                self.wake.writer = true;
                match result {
                    Ok(()) => self.slots.clear(),
                    Err(error) => self.refuse_disk(&error, "truncating"),
                }
            }
        }
        self.settle();
    }

    pub(super) fn may_spill(&self) -> bool {
        !self.disk_refused && self.sizes.file_max > 0
    }

    /// Begin to write whole areas from the head of the queue, if there are any, the file has room, and no other write
    /// is under way. The beginning of one more area fills up the slot, so that the file holds little else than bytes.
    pub(super) fn start_spill(&mut self) {
        if self.spill.is_some() || self.truncating || !self.may_spill() {
            return;
        }
        self.set_aside_begun();
        let (count, more) = self.spillable();
        let whole = self.queue.iter().take(count).map(Chunk::len).sum::<usize>();
        if count == 0 {
            return;
        }
        let len = (whole + more) as u64;
        let Some(at) = self.slots.place(len, self.sizes.write as u64, self.sizes.file_max) else { return };
        let mut chunks: VecDeque<_> =
            self.queue.drain(..count).map(|mut chunk| Chunk::shared(chunk.area, chunk.split_to(chunk.len()))).collect();
        if let Some(next) = self.queue.front_mut().filter(|_| more > 0) {
            chunks.push_back(Chunk::shared(next.area, next.split_to(more)));
        }
        let bytes = chunks.iter().map(Chunk::bytes).collect();
        self.spill = Some(Spill { extent: Extent { at, len }, chunks });
        self.write_job = Some(Job::Write { at, chunks: bytes });
    }

    /// An area that the client has begun to read is not freed by writing the rest of it: if it is next, it stays.
    fn set_aside_begun(&mut self) {
        while !self.file_in_use() {
            let Some(chunk) = self.queue.front() else { return };
            if self.areas.at(chunk.area).live == chunk.len() {
                return;
            }
            self.ready.extend(self.queue.pop_front());
        }
    }

    /// How many chunks, each all that is left of its area, make the next write, and how many bytes of the one behind
    /// them. One at least must be whole: writing a part frees no memory.
    fn spillable(&mut self) -> (usize, usize) {
        let Some(first) = self.queue.front() else { return (0, 0) };
        let slot = self.slots.write_room(first.len() as u64, self.sizes.write as u64);
        let room = slot.min(self.sizes.write as u64).min(self.sizes.file_max.saturating_sub(self.slots.used()));
        let (mut count, mut len) = (0, 0);
        for chunk in &self.queue {
            if self.areas.at(chunk.area).open {
                return (count, 0);
            }
            let left = room - len;
            if chunk.len() as u64 > left {
                return (count, if count > 0 { left as usize } else { 0 });
            }
            len += chunk.len() as u64;
            count += 1;
        }
        (count, 0)
    }

    fn wrote(&mut self, result: io::Result<()>) {
        let Some(Spill { extent, mut chunks }) = self.spill.take() else { return };
        self.wake.writer = true;
        let left = chunks.iter().map(Chunk::len).sum::<usize>() as u64;
        let taken = Extent { at: extent.at, len: extent.len - left };
        let rest = Extent { at: extent.at + taken.len, len: left };
        self.slots.release(taken);
        if let Err(error) = &result {
            self.refuse_disk(error, "writing");
        } else {
            self.stats.spills += 1;
            self.stats.spilled_bytes += extent.len;
        }
        if result.is_err() || self.is_dead() {
            self.slots.release(rest);
            chunks.append(&mut self.queue);
            self.queue = chunks;
            if self.is_dead() {
                self.clear();
            }
            return;
        }
        if rest.len > 0 {
            self.slots.store(rest);
        }
        for chunk in chunks {
            self.release(chunk.area, chunk.len());
        }
    }

    /// Read on as soon as there is memory for it, so that the client need not wait for the disk.
    fn start_reading(&mut self) -> Option<Job> {
        if self.reading.is_some() || self.reserve == 0 {
            return None;
        }
        let extent = self.slots.take_front(self.reserve as u64)?;
        let len = extent.len as usize;
        self.reserve -= len;
        self.read_back += len;
        let area = Area { capacity: len, live: len, read_back: true, ..Area::default() };
        let area = self.areas.insert(area);
        self.reading = Some(Reading { extent, area });
        Some(Job::Read { at: extent.at, len })
    }

    fn was_read(&mut self, result: io::Result<BytesMut>) {
        let Some(Reading { extent, area }) = self.reading.take() else { return };
        self.slots.release(extent);
        self.wake.reader = true;
        // The file has room again.
        self.wake.writer = true;
        match result {
            Ok(bytes) if !self.is_dead() && bytes.len() as u64 == extent.len => {
                self.ready.push_back(Chunk::shared(area, bytes.freeze()));
            }
            result => {
                self.release(area, extent.len as usize);
                if let Err(error) = result {
                    self.break_message(error);
                }
            }
        }
    }

    fn refuse_disk(&mut self, error: &io::Error, doing: &str) {
        self.stats.disk_errors += 1;
        if !self.disk_refused {
            log::warn!("{doing} the temporary file of a response: {error}; it goes on in memory");
        }
        self.disk_refused = true;
    }

    /// Bytes in the middle of the message are lost: it cannot go on.
    fn break_message(&mut self, error: io::Error) {
        self.stats.disk_errors += 1;
        log::error!("reading the temporary file of a response: {error}; the response is broken off");
        let ready = std::mem::take(&mut self.ready);
        let error = Error::because(ErrorKind::Internal, "reading the temporary file of a response", error);
        self.broken = Some(error);
        self.clear();
        self.ready = ready;
        self.wake.writer = true;
    }
}
