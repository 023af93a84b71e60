//! [`Areas`]: the allocations that a pipe has made, and the [`Chunk`]s of body that lie in them.

use bytes::{Bytes, BytesMut};

/// All areas of one pipe. An area is one allocation of one or more blocks; its bytes are queued as one chunk and are
/// read out in pieces, and it is freed as a whole.
#[derive(Debug, Default)]
pub(super) struct Areas {
    areas: Vec<Area>,
    vacant: Vec<usize>,
}

/// One allocation, or a chunk that somebody else allocated.
#[derive(Debug, Default)]
pub(super) struct Area {
    /// What it counts for, in bytes.
    pub(super) capacity: usize,
    /// Bytes in it that the client has not accepted and the file has not taken.
    pub(super) live: usize,
    /// May more bytes still be read into it?
    pub(super) open: bool,
    /// Has the client some of it, and not accepted it?
    pub(super) with_client: bool,
    /// Was it taken to read the file back into?
    pub(super) read_back: bool,
    /// The spare capacity behind the bytes; without any, still the handle by which the allocation is used again.
    pub(super) rest: BytesMut,
}

impl Areas {
    pub(super) fn insert(&mut self, area: Area) -> usize {
        match self.vacant.pop() {
            Some(id) => {
                self.areas[id] = area;
                id
            }
            None => {
                self.areas.push(area);
                self.areas.len() - 1
            }
        }
    }

    /// `id` came from [`insert`](Self::insert) and was not removed.
    pub(super) fn at(&mut self, id: usize) -> &mut Area {
        &mut self.areas[id]
    }

    pub(super) fn remove(&mut self, id: usize) -> Area {
        self.vacant.push(id);
        std::mem::take(&mut self.areas[id])
    }
}

/// Consecutive body bytes within one area.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) area: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// Read into an area of ours: what is read behind it can be joined to it without a copy.
    Joinable(BytesMut),
    Shared(Bytes),
}

impl Chunk {
    pub(super) fn read(area: usize, bytes: BytesMut) -> Self {
        Chunk { area, data: Data::Joinable(bytes) }
    }

    pub(super) fn shared(area: usize, bytes: Bytes) -> Self {
        Chunk { area, data: Data::Shared(bytes) }
    }

    pub(super) fn len(&self) -> usize {
        match &self.data {
            Data::Joinable(bytes) => bytes.len(),
            Data::Shared(bytes) => bytes.len(),
        }
    }

    /// Append `next`, if it lies directly behind this chunk in the same area, else return it. Many small reads would
    /// otherwise cost more memory for their chunks than for their bytes.
    pub(super) fn join(&mut self, area: usize, next: BytesMut) -> Option<BytesMut> {
        match &mut self.data {
            Data::Joinable(bytes) if self.area == area && bytes.as_ptr_range().end == next.as_ptr() => {
                bytes.unsplit(next);
                None
            }
            _ => Some(next),
        }
    }

    /// Its bytes, if they are [`shared`](Self::shared): another handle to them.
    pub(super) fn bytes(&self) -> Bytes {
        match &self.data {
            Data::Joinable(bytes) => Bytes::copy_from_slice(bytes),
            Data::Shared(bytes) => bytes.clone(),
        }
    }

    /// Take the first `n` bytes, at most [`len`](Self::len).
    pub(super) fn split_to(&mut self, n: usize) -> Bytes {
        match &mut self.data {
            Data::Joinable(bytes) => bytes.split_to(n).freeze(),
            Data::Shared(bytes) => bytes.split_to(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_reads_into_one_area_become_one_chunk() {
        let mut rest = BytesMut::with_capacity(16);
        rest.extend_from_slice(b"abc");
        let mut chunk = Chunk::read(0, rest.split());
        rest.extend_from_slice(b"def");
        let start = rest.as_ptr();
        assert!(chunk.join(0, rest.split()).is_none());
        let bytes = chunk.split_to(6);
        assert_eq!(bytes, "abcdef");
        assert_eq!(bytes[3..].as_ptr(), start, "joined without a copy");
    }

    #[test]
    fn what_lies_elsewhere_is_not_joined() {
        let mut chunk = Chunk::read(0, BytesMut::from("abc"));
        assert!(chunk.join(0, BytesMut::from("def")).is_some());
        assert_eq!(chunk.len(), 3);
    }
}
