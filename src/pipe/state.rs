//! [`State`]: the pipe without I/O. Events go in as method calls, and what has to happen on disk comes out as [`Job`]s.
//!
//! ```text
//!            commit, push                  start_spill                 read back
//!  upstream ──────────────► queue ───────► spill ──────► slots ─────────────────► ready ────────► handed ──► accepted
//!                             │  memory     a write       on disk     reading       memory  read    client
//!                             └──────────────┴──── while nothing is on disk ────────────────►
//! ```
//! That is also the order of the stream, from its end to its beginning. All memory is counted by [`Memory`]: areas
//! until their last byte was accepted or is on disk, `credit` for what is written next, `spare` for the next read, and
//! `reserve` for reading back. While the file holds anything, some memory is in the reserve, or in areas that were
//! taken from it and return to it: whatever else is full, the file can be emptied.

mod disk;
mod reader;
mod writer;

pub(super) use disk::{Done, Job};
pub(super) use reader::Read;
pub(super) use writer::Room;

use super::areas::{Area, Areas, Chunk};
use super::limits::{FileSpace, Limits, Memory};
use super::slots::Slots;
use super::{PipeConf, PipeStats};
use crate::error::{Error, ErrorKind};
use bytes::BytesMut;
use http::HeaderMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// Larger areas than one block end here: enough to keep system calls rare.
const AREA_MAX: usize = 64 * 1024;

/// How the upstream's side ended.
#[derive(Debug)]
pub(super) enum End {
    Complete(Option<HeaderMap>),
    Failed(Error),
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    sizes: Sizes,
    memory: Memory,
    areas: Areas,

    /// The area that is being read into.
    filling: Option<usize>,
    /// The end of the buffer that is with the writer, to know it again.
    lent: Option<usize>,
    /// A free area, still counted, for the next read.
    spare: Option<BytesMut>,
    /// Blocks to ask for at once: it doubles while reads fill what they are given.
    growth: usize,
    /// Counted for what is written next.
    credit: usize,

    queue: VecDeque<Chunk>,
    spill: Option<disk::Spill>,
    slots: Slots,
    reading: Option<disk::Reading>,
    ready: VecDeque<Chunk>,
    /// Area and length of what the client was given and has not accepted.
    handed: Vec<(usize, usize)>,
    handed_bytes: usize,
    /// Capacity of the areas these bytes are in.
    busy: usize,
    /// The part of it that was not taken from the reserve.
    pinned: usize,

    /// Free memory kept for reading back.
    reserve: usize,
    /// Memory of areas taken from the reserve.
    read_back: usize,
    /// A job that was decided on and not yet fetched.
    write_job: Option<Job>,
    truncating: bool,
    /// The disk failed: no more is written for this response.
    disk_refused: bool,

    /// Memory was full, and the client has had its turn to take something before the file is used.
    client_had_turn: bool,
    reader_gone: bool,
    end: Option<End>,
    /// What was stored could not be read back, or the reader was told of the failure: nothing more goes out.
    broken: Option<Error>,

    stats: PipeStats,
    wake: Wake,
}

/// Who may have something to do since [`State::take_wake`] was last asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wake {
    pub(super) writer: bool,
    pub(super) reader: bool,
}

/// [`PipeConf`], made consistent.
#[derive(Debug)]
struct Sizes {
    /// `buffers.size`; unbuffered, `buffer_size`.
    block: usize,
    growth_max: usize,
    busy: usize,
    file_max: u64,
    write: usize,
    buffering: bool,
}

impl State {
    pub(super) fn new(conf: &PipeConf, limits: &Arc<Limits>) -> Self {
        let sizes = Sizes::new(conf);
        let number = if conf.buffering { conf.buffers_number.max(1) } else { 1 };
        State {
            memory: Memory::new(limits.clone(), sizes.block.saturating_mul(number), sizes.block),
            slots: Slots::new(FileSpace::new(limits.clone())),
            sizes,
            areas: Areas::default(),
            filling: None,
            lent: None,
            spare: None,
            growth: 1,
            credit: 0,
            queue: VecDeque::new(),
            spill: None,
            reading: None,
            ready: VecDeque::new(),
            handed: Vec::new(),
            handed_bytes: 0,
            busy: 0,
            pinned: 0,
            reserve: 0,
            read_back: 0,
            write_job: None,
            truncating: false,
            disk_refused: false,
            client_had_turn: false,
            reader_gone: false,
            end: None,
            broken: None,
            stats: PipeStats::default(),
            wake: Wake::default(),
        }
    }

    /// Whom to wake, asked after each event.
    pub(super) fn take_wake(&mut self) -> Wake {
        std::mem::take(&mut self.wake)
    }

    pub(super) fn stats(&self) -> PipeStats {
        PipeStats {
            file_high_water: self.slots.high_water(),
            memory_high_water: self.memory.high_water(),
            ..self.stats.clone()
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.memory.held()
    }

    #[cfg(test)]
    pub(super) fn file_used(&self) -> u64 {
        self.slots.used()
    }

    #[cfg(test)]
    pub(super) fn file_length(&self) -> u64 {
        self.slots.length()
    }

    #[cfg(test)]
    pub(super) fn slot_size(&self) -> u64 {
        self.sizes.write as u64
    }

    /// The length of what would be spilled next.
    #[cfg(test)]
    pub(super) fn next_spill(&self) -> Option<usize> {
        self.queue.front().map(Chunk::len)
    }

    /// Nothing that was written will be read any more.
    pub(super) fn is_dead(&self) -> bool {
        self.reader_gone || self.broken.is_some()
    }

    /// What a writer is told when the pipe [is dead](Self::is_dead).
    pub(super) fn nobody_reads(&self) -> Error {
        match &self.broken {
            Some(error) => Error::new(error.kind(), "writing into a response that is broken"),
            None => Error::new(ErrorKind::ClientGone, "writing into a response that nobody reads"),
        }
    }

    /// For the end: the space of the file, to be given back when the file is closed.
    pub(super) fn take_file_space(&mut self) -> FileSpace {
        self.slots.take_space()
    }

    /// Is anything on disk, or on its way there or back?
    fn file_in_use(&self) -> bool {
        let spilling = self.spill.as_ref().is_some_and(|spill| !spill.chunks.is_empty());
        spilling || self.slots.holds_any() || self.reading.is_some()
    }

    /// `len` bytes of an area have gone where they need no memory.
    fn release(&mut self, id: usize, len: usize) {
        let area = self.areas.at(id);
        debug_assert!(len <= area.live);
        area.live -= len;
        if area.live == 0 && !area.open {
            self.free(id);
        }
    }

    /// An area has no live bytes and gets no new ones: keep it for the next read, or for reading back, or let it go.
    fn free(&mut self, id: usize) {
        let Area { capacity, read_back, mut rest, .. } = self.areas.remove(id);
        self.wake.writer = true;
        if read_back {
            self.read_back -= capacity;
        }
        if self.file_in_use() {
            self.keep(capacity);
        } else if self.spare.is_none() && self.may_read() && capacity >= self.sizes.block && fit(&mut rest, capacity) {
            self.spare = Some(rest);
        } else {
            self.memory.release(capacity);
        }
    }

    /// While the file is in use, freed memory goes to the reserve first. Then one block stays for reading on, whatever
    /// other responses need; the rest is let go.
    fn keep(&mut self, capacity: usize) {
        let for_the_file = self.reserve + self.read_back;
        let reserved = self.reserve_goal().saturating_sub(for_the_file).min(capacity);
        self.reserve += reserved;
        let left = capacity - reserved;
        let for_reading = self.memory.held().saturating_sub(for_the_file + self.pinned + capacity);
        let kept = if self.may_read() { left.min(self.sizes.block.saturating_sub(for_reading)) } else { 0 };
        self.credit += kept;
        self.memory.release(left - kept);
    }

    fn may_read(&self) -> bool {
        self.end.is_none() && !self.is_dead()
    }

    fn drop_spare(&mut self) {
        if let Some(spare) = self.spare.take() {
            self.memory.release(spare.capacity());
        }
    }

    /// How much memory should be for reading back, in the reserve and out of it. Who has but one block that is not with
    /// the client only halves it.
    fn reserve_goal(&self) -> usize {
        let block = self.sizes.block;
        let blocks = self.memory.held().saturating_sub(self.pinned) / block;
        match blocks {
            0 | 1 => self.half_block(),
            _ => (self.sizes.busy / block).min(blocks / 4).max(1) * block,
        }
    }

    fn half_block(&self) -> usize {
        self.sizes.block / 2
    }

    /// The file is out of use: its reserve is free for reading on.
    fn settle(&mut self) {
        if self.reserve > 0 && !self.file_in_use() {
            self.memory.release(self.reserve);
            self.reserve = 0;
            self.wake.writer = true;
        }
    }

    /// Forget all bytes; what is with the disk or the writer is forgotten when it comes back.
    fn clear(&mut self) {
        self.drop_spare();
        self.memory.release(std::mem::take(&mut self.credit));
        for chunk in self.ready.drain(..).chain(self.queue.drain(..)).collect::<Vec<_>>() {
            self.release(chunk.area, chunk.len());
        }
        while let Some(extent) = self.slots.take_front(u64::MAX) {
            self.slots.release(extent);
        }
        if self.lent.is_none() {
            self.seal();
        }
        self.settle();
    }
}

impl Sizes {
    /// A write holds the largest area, an area has two halves, something can always be handed out, and the client
    /// cannot have it all: then no combination of numbers gets stuck.
    fn new(conf: &PipeConf) -> Self {
        let block = if conf.buffering { conf.buffers_size } else { conf.buffer_size }.max(2);
        let file_max = usize::try_from(conf.max_temp_file_size).unwrap_or(usize::MAX);
        let write = conf.temp_file_write_size.min(file_max).max(block);
        let all_but_one = conf.buffers_number.saturating_sub(1).max(1);
        let growth_max = match conf.buffering {
            true => (conf.buffers_number / 2).min(AREA_MAX.min(write) / block).clamp(1, 4),
            false => 1,
        };
        Sizes {
            block,
            growth_max,
            busy: if conf.buffering { conf.busy_buffers_size.clamp(1, all_but_one * block) } else { usize::MAX },
            file_max: if conf.buffering { conf.max_temp_file_size } else { 0 },
            write,
            buffering: conf.buffering,
        }
    }
}

/// Make `rest`, empty, offer exactly `capacity` again: possible if nobody else holds the allocation any more.
fn fit(rest: &mut BytesMut, capacity: usize) -> bool {
    if !rest.try_reclaim(capacity) {
        return false;
    }
    if rest.capacity() > capacity {
        drop(rest.split_off(capacity));
    }
    true
}
