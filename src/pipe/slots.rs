//! [`Slots`]: which part of the temporary file holds what. No I/O.

use super::limits::FileSpace;
use std::collections::VecDeque;

/// The temporary file as a ring of equal slots with a free list.
///
/// Each write lies within one slot; the next one goes behind it if it fits, else to a slot that was freed, else to the
/// end of the file. A slot is free again when all its bytes were read back.
#[derive(Debug)]
pub(super) struct Slots {
    space: FileSpace,
    /// Bytes in a slot.
    size: u64,
    /// For each slot the bytes in it that are stored or being written.
    live: Vec<u64>,
    free: Vec<usize>,
    /// The slot written to last, and how full it is.
    tail: Option<(usize, u64)>,
    /// What is stored, in the order of the stream.
    extents: VecDeque<Extent>,
    /// Sum of `live`.
    used: u64,
    high_water: u64,
}

/// A run of stored bytes within one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) at: u64,
    pub(super) len: u64,
}

impl Slots {
    pub(super) fn new(space: FileSpace) -> Self {
        Slots {
            space,
            size: 0,
            live: Vec::new(),
            free: Vec::new(),
            tail: None,
            extents: VecDeque::new(),
            used: 0,
            high_water: 0,
        }
    }

    /// Bytes stored or being written.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Is anything stored that was not read back?
    pub(super) fn holds_any(&self) -> bool {
        !self.extents.is_empty()
    }

    /// The longest the file has been.
    pub(super) fn high_water(&self) -> u64 {
        self.high_water
    }

    /// How long the file is, or may become by the write under way.
    pub(super) fn length(&self) -> u64 {
        self.space.len()
    }

    /// Is the file longer than nothing, with nothing in it?
    pub(super) fn can_truncate(&self) -> bool {
        self.used == 0 && self.space.len() > 0
    }

    /// How long a write that begins with `first` bytes may be.
    pub(super) fn write_room(&self, first: u64, slot_size: u64) -> u64 {
        match self.tail {
            Some((_, end)) if end + first <= self.size => self.size - end,
            _ if self.size > 0 => self.size,
            _ => slot_size,
        }
    }

    /// Where to write `len` bytes, at most [`write_room`](Self::write_room); None if the file would become longer than
    /// `length_max`, or `temp_files_max` is reached.
    pub(super) fn place(&mut self, len: u64, slot_size: u64, length_max: u64) -> Option<u64> {
        if self.live.is_empty() {
            self.size = slot_size;
        }
        let (slot, start) = match self.tail {
            Some((slot, end)) if end + len <= self.size => (slot, end),
            _ => (self.empty_slot(length_max)?, 0),
        };
        *self.live.get_mut(slot)? += len;
        self.used += len;
        self.tail = Some((slot, start + len));
        Some(slot as u64 * self.size + start)
    }

    fn empty_slot(&mut self, length_max: u64) -> Option<usize> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.length() + self.size > length_max || !self.space.try_grow(self.size) {
            return None;
        }
        self.high_water = self.high_water.max(self.space.len());
        self.live.push(0);
        Some(self.live.len() - 1)
    }

    /// What was placed is on disk now.
    pub(super) fn store(&mut self, extent: Extent) {
        let starts_a_slot = extent.at.is_multiple_of(self.size);
        match self.extents.back_mut() {
            Some(last) if last.at + last.len == extent.at && !starts_a_slot => last.len += extent.len,
            _ => self.extents.push_back(extent),
        }
    }

    /// The first `max` stored bytes, or as many as lie together; they stay until [`release`](Self::release).
    pub(super) fn take_front(&mut self, max: u64) -> Option<Extent> {
        let first = self.extents.front_mut()?;
        let taken = Extent { at: first.at, len: first.len.min(max) };
        first.at += taken.len;
        first.len -= taken.len;
        if first.len == 0 {
            self.extents.pop_front();
        }
        Some(taken)
    }

    /// These bytes need not be on disk any more.
    pub(super) fn release(&mut self, extent: Extent) {
        if extent.len == 0 {
            return;
        }
        let slot = (extent.at / self.size.max(1)) as usize;
        let Some(live) = self.live.get_mut(slot).filter(|live| **live >= extent.len) else {
            debug_assert!(false, "{extent:?} was not placed");
            return;
        };
        *live -= extent.len;
        self.used -= extent.len;
        if *live == 0 {
            self.free.push(slot);
            self.tail = self.tail.filter(|(tail, _)| *tail != slot);
        }
    }

    /// The file is about to be closed.
    pub(super) fn take_space(&mut self) -> FileSpace {
        self.space.take()
    }

    /// The file was truncated.
    pub(super) fn clear(&mut self) {
        self.live.clear();
        self.free.clear();
        self.extents.clear();
        self.tail = None;
        self.used = 0;
        self.space.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::Limits;

    fn slots(temp_files_max: u64) -> Slots {
        Slots::new(FileSpace::new(Limits::new(0, temp_files_max, "")))
    }

    #[test]
    fn writes_that_fit_share_a_slot_and_are_read_back_as_one() {
        let mut slots = slots(1000);
        for at in [0, 30, 60] {
            assert_eq!(slots.place(30, 100, 1000), Some(at));
            slots.store(Extent { at, len: 30 });
        }
        assert_eq!(slots.place(30, 100, 1000), Some(100));
        slots.store(Extent { at: 100, len: 30 });
        assert_eq!(slots.take_front(1000), Some(Extent { at: 0, len: 90 }));
        assert_eq!(slots.take_front(10), Some(Extent { at: 100, len: 10 }));
    }

    #[test]
    fn a_slot_that_was_read_back_is_used_again() {
        let mut slots = slots(200);
        assert_eq!(slots.place(100, 100, 1000), Some(0));
        assert_eq!(slots.place(100, 100, 1000), Some(100));
        assert_eq!(slots.place(1, 100, 1000), None);
        slots.store(Extent { at: 0, len: 100 });
        let first = slots.take_front(60).unwrap();
        slots.release(first);
        assert_eq!(slots.place(1, 100, 1000), None);
        let rest = slots.take_front(60).unwrap();
        slots.release(rest);
        assert_eq!(slots.place(80, 100, 1000), Some(0));
        assert_eq!(slots.high_water(), 200);
    }

    #[test]
    fn the_file_ends_at_its_limit() {
        let mut slots = slots(1000);
        assert_eq!(slots.place(60, 100, 250), Some(0));
        assert_eq!(slots.place(60, 100, 250), Some(100));
        assert_eq!(slots.place(60, 100, 250), None);
        assert_eq!(slots.length(), 200);
    }

    #[test]
    fn an_empty_file_can_be_truncated_and_its_space_returns() {
        let mut slots = slots(100);
        slots.place(10, 100, 1000).unwrap();
        assert!(!slots.can_truncate());
        slots.release(Extent { at: 0, len: 10 });
        assert!(slots.can_truncate());
        slots.clear();
        assert!(!slots.can_truncate());
        assert_eq!(slots.place(40, 50, 1000), Some(0));
    }
}
