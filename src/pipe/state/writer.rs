//! The upstream's side of [`State`]: memory to read into, and what was read.

use super::{Area, Chunk, End, State, fit};
use bytes::{Bytes, BytesMut};

/// A pushed chunk up to this length is copied behind others like it: it would cost more to keep than it holds.
const SMALL: usize = 256;
/// The area for such chunks.
const GATHER: usize = 1024;

/// The answer to a writer that wants to go on.
#[derive(Debug)]
pub(in crate::pipe) enum Room<T> {
    Granted(T),
    /// Memory is full: ask again when the client has had the chance to take something.
    AfterTheClient,
    /// Stop reading until woken.
    Wait,
}

impl State {
    /// Body bytes read behind the header, and the room behind them. Comes first if it comes.
    pub(in crate::pipe) fn preread(&mut self, mut body: BytesMut) {
        let capacity = body.capacity();
        if self.is_dead() || capacity == 0 {
            return;
        }
        // Unbuffered, this is the one block; only what is larger than it comes on top.
        let extra = if self.sizes.buffering { capacity } else { capacity.saturating_sub(self.memory.max()) };
        self.memory.widen(extra);
        self.memory.take(capacity);
        self.sizes.write = self.sizes.write.max(capacity);
        self.seal();
        let bytes = body.split();
        self.open(capacity, body);
        self.append(bytes);
    }

    /// So many bytes are still to come.
    pub(in crate::pipe) fn expect(&mut self, bytes: u64) {
        let blocks = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(self.sizes.block);
        self.growth = blocks.clamp(1, self.sizes.growth_max);
    }

    /// Somewhere to read into.
    pub(in crate::pipe) fn buffer(&mut self) -> Room<BytesMut> {
        if self.lent.is_some() {
            self.seal();
        }
        self.reuse_filling();
        if self.filling.is_none() && !self.reuse_spare() {
            match self.more_memory() {
                Room::Granted(n) => self.open(n, BytesMut::with_capacity(n)),
                Room::AfterTheClient => return Room::AfterTheClient,
                Room::Wait => return Room::Wait,
            }
        }
        let Some(id) = self.filling else { return Room::Wait };
        let buffer = std::mem::take(&mut self.areas.at(id).rest);
        self.lent = Some(end_of(&buffer));
        Room::Granted(buffer)
    }

    /// What [`buffer`](Self::buffer) gave, with the bytes that were read.
    pub(in crate::pipe) fn commit(&mut self, mut buffer: BytesMut) {
        let offered = self.lent.take();
        let Some(id) = self.filling.filter(|_| offered == Some(end_of(&buffer))) else {
            self.seal();
            return self.push(buffer.freeze());
        };
        let bytes = buffer.split();
        self.learn(id, bytes.len(), buffer.capacity());
        self.areas.at(id).rest = buffer;
        match self.is_dead() {
            true => self.seal(),
            false => self.append(bytes),
        }
    }

    /// How many bytes may be pushed.
    pub(in crate::pipe) fn room(&mut self) -> Room<usize> {
        if self.credit == 0 {
            if self.filling.is_some_and(|id| self.areas.at(id).live == 0) {
                self.seal();
            }
            match self.more_memory() {
                Room::Granted(n) => self.credit = n,
                wait => return wait,
            }
        }
        Room::Granted(self.credit)
    }

    /// Append a chunk that somebody else allocated. Beyond what was granted, it is counted all the same.
    pub(in crate::pipe) fn push(&mut self, mut chunk: Bytes) {
        if self.is_dead() || chunk.is_empty() {
            return;
        }
        if chunk.len() <= SMALL && self.gather(&chunk) {
            return;
        }
        self.seal();
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(self.sizes.write));
            self.draw(piece.len());
            let area = Area { capacity: piece.len(), live: piece.len(), ..Area::default() };
            let id = self.areas.insert(area);
            self.appended(piece.len());
            self.queue.push_back(Chunk::shared(id, piece));
        }
    }

    /// Nothing more comes. Only the first end counts.
    pub(in crate::pipe) fn end(&mut self, end: End) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(end);
        self.lent = None;
        self.seal();
        self.drop_spare();
        self.memory.release(std::mem::take(&mut self.credit));
        self.wake.reader = true;
    }

    /// Stop reading into the current area.
    pub(super) fn seal(&mut self) {
        self.lent = None;
        if let Some(id) = self.filling.take() {
            self.areas.at(id).open = false;
            self.release(id, 0);
        }
    }

    fn open(&mut self, capacity: usize, rest: BytesMut) {
        let area = Area { capacity, open: true, rest, ..Area::default() };
        self.filling = Some(self.areas.insert(area));
    }

    /// Start over in the current area if the client has taken all of it; leave it if what is left is not worth a read.
    fn reuse_filling(&mut self) {
        let Some(id) = self.filling else { return };
        let area = self.areas.at(id);
        let outgrown = area.capacity < self.growth * self.sizes.block;
        if area.live == 0 && area.rest.capacity() < area.capacity && !outgrown {
            // If a filter still holds some of the bytes, the rest of the area is used up first.
            fit(&mut area.rest, area.capacity);
        }
        if area.rest.capacity() < (area.capacity / 8).max(1) {
            self.seal();
        }
    }

    /// Take the free area, if it is as large as the next one should be.
    fn reuse_spare(&mut self) -> bool {
        let large = if self.growth > 1 { self.growth * self.sizes.block } else { 0 };
        let spare = self.spare.take_if(|spare| spare.capacity() >= large);
        spare.map(|rest| self.open(rest.capacity(), rest)).is_some()
    }

    /// Do reads fill what they are given?
    fn learn(&mut self, id: usize, read: usize, left: usize) {
        let offered = read + left;
        if offered < self.areas.at(id).capacity / 2 {
            return;
        }
        if left <= offered / 8 {
            self.growth = (self.growth * 2).min(self.sizes.growth_max);
        } else if read < offered / 2 {
            self.growth = 1;
        }
    }

    fn append(&mut self, bytes: BytesMut) {
        let Some(id) = self.filling.filter(|_| !bytes.is_empty()) else { return };
        self.appended(bytes.len());
        self.areas.at(id).live += bytes.len();
        let apart = match self.queue.back_mut() {
            Some(last) => last.join(id, bytes),
            None => Some(bytes),
        };
        if let Some(bytes) = apart {
            self.queue.push_back(Chunk::read(id, bytes));
        }
    }

    fn appended(&mut self, len: usize) {
        self.stats.bytes_in += len as u64;
        self.wake.reader = true;
    }

    /// Copy a small chunk behind the last one.
    fn gather(&mut self, chunk: &[u8]) -> bool {
        let fits = |state: &mut Self| {
            state.lent.is_none() && state.filling.is_some_and(|id| state.areas.at(id).rest.capacity() >= chunk.len())
        };
        if !fits(self) {
            let capacity = self.credit.min(GATHER);
            if capacity < chunk.len() {
                return false;
            }
            self.seal();
            self.credit -= capacity;
            self.open(capacity, BytesMut::with_capacity(capacity));
        }
        let Some(id) = self.filling else { return false };
        let rest = &mut self.areas.at(id).rest;
        rest.extend_from_slice(chunk);
        let bytes = rest.split();
        self.append(bytes);
        true
    }

    /// Turn `n` bytes of credit into memory in use.
    fn draw(&mut self, n: usize) {
        let granted = n.min(self.credit);
        self.credit -= granted;
        self.memory.take(n - granted);
    }

    /// Memory for the next bytes, if need be by writing earlier ones to the file.
    fn more_memory(&mut self) -> Room<usize> {
        if self.file_in_use() && self.memory.held() + self.sizes.write > self.memory.max() {
            // The client is behind: make room in time, so that reading need not stop for the disk.
            self.start_spill();
        }
        if let Some(n) = self.acquire() {
            return Room::Granted(n);
        }
        if self.may_spill() && !self.file_in_use() && !self.client_had_turn && !self.queue.is_empty() {
            self.client_had_turn = true;
            return Room::AfterTheClient;
        }
        self.seal();
        self.start_spill();
        Room::Wait
    }

    fn acquire(&mut self) -> Option<usize> {
        let (block, half) = (self.sizes.block, self.half_block());
        if self.credit >= half {
            // Not to be released and taken again: another response might come between.
            return Some(std::mem::take(&mut self.credit));
        }
        self.memory.release(std::mem::take(&mut self.credit));
        self.drop_spare();
        let least = if self.file_in_use() { half } else { block };
        [self.growth * block, block, least].into_iter().find(|n| self.memory.try_take(*n))
    }
}

/// Where the capacity of a buffer ends: it stays there, whatever is read into the buffer or taken from its front.
fn end_of(buffer: &BytesMut) -> usize {
    buffer.as_ptr().addr() + buffer.capacity()
}
