//! [`Limits`]: what all pipes of the process share, and the two meters that draw on it.

use arc_swap::ArcSwap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The ceilings of the process (`buffer_memory_max`, `temp_files_max`), what is in use of them, and `temp_path`.
///
/// Nothing here ever waits. A reservation that is refused is a reason to spill, or to stop reading until this
/// response's own client has taken something; no response waits for another one.
#[derive(Debug)]
pub struct Limits {
    buffer_memory_max: AtomicUsize,
    temp_files_max: AtomicU64,
    temp_path: ArcSwap<PathBuf>,
    /// Bytes held under `buffer_memory_max`.
    reserved: AtomicUsize,
    /// Bytes of the first blocks, which each response owns outside of it.
    owned: AtomicUsize,
    files: AtomicU64,
}

impl Limits {
    /// Ceilings in bytes; `temp_path` is the directory for temporary files, which must exist when the first one is
    /// needed.
    pub fn new(buffer_memory_max: usize, temp_files_max: u64, temp_path: impl Into<PathBuf>) -> Arc<Self> {
        Arc::new(Limits {
            buffer_memory_max: buffer_memory_max.into(),
            temp_files_max: temp_files_max.into(),
            temp_path: ArcSwap::from_pointee(temp_path.into()),
            reserved: AtomicUsize::new(0),
            owned: AtomicUsize::new(0),
            files: AtomicU64::new(0),
        })
    }

    /// Buffer memory in use by all pipes and request bodies, first blocks included: `pipe_memory_bytes`.
    pub fn memory_bytes(&self) -> usize {
        self.reserved.load(Relaxed) + self.owned.load(Relaxed)
    }

    /// Length of all temporary files, each at its high-water mark: `pipe_temp_file_bytes`.
    pub fn temp_file_bytes(&self) -> u64 {
        self.files.load(Relaxed)
    }

    /// Other ceilings, and another directory for files that are not there yet. What is held stays held: after a ceiling
    /// was lowered below it, nothing more is granted until enough has been given back.
    pub fn set(&self, buffer_memory_max: usize, temp_files_max: u64, temp_path: impl Into<PathBuf>) {
        self.buffer_memory_max.store(buffer_memory_max, Relaxed);
        self.temp_files_max.store(temp_files_max, Relaxed);
        self.temp_path.store(Arc::new(temp_path.into()));
    }

    /// Where temporary files are created.
    pub fn temp_path(&self) -> Arc<PathBuf> {
        self.temp_path.load_full()
    }

    fn try_reserve_memory(&self, n: usize) -> bool {
        let max = self.buffer_memory_max.load(Relaxed);
        let more = |used: usize| used.checked_add(n).filter(|sum| *sum <= max);
        self.reserved.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    fn try_reserve_file(&self, n: u64) -> bool {
        let max = self.temp_files_max.load(Relaxed);
        let more = |used: u64| used.checked_add(n).filter(|sum| *sum <= max);
        self.files.fetch_update(Relaxed, Relaxed, more).is_ok()
    }
}

/// The memory of one response or request body: at most `max`, the first `own` bytes of it outside `buffer_memory_max`.
/// What is still held when it is dropped is given back.
#[derive(Debug)]
pub(super) struct Memory {
    limits: Arc<Limits>,
    max: usize,
    own: usize,
    held: usize,
    high_water: usize,
}

impl Memory {
    pub(super) fn new(limits: Arc<Limits>, max: usize, own: usize) -> Self {
        Memory { limits, max, own, held: 0, high_water: 0 }
    }

    /// Hold `n` bytes more, if both limits allow it.
    pub(super) fn try_take(&mut self, n: usize) -> bool {
        let allowed = self.held.checked_add(n).is_some_and(|sum| sum <= self.max);
        if !allowed || !self.limits.try_reserve_memory(self.outside_own(n)) {
            return false;
        }
        self.hold(n);
        true
    }

    /// Hold `n` bytes that are there already, limits or not.
    pub(super) fn take(&mut self, n: usize) {
        self.limits.reserved.fetch_add(self.outside_own(n), Relaxed);
        self.hold(n);
    }

    /// Let go of `n` bytes.
    pub(super) fn release(&mut self, n: usize) {
        debug_assert!(n <= self.held);
        let n = n.min(self.held);
        self.held -= n;
        let reserved = self.outside_own(n);
        self.limits.reserved.fetch_sub(reserved, Relaxed);
        self.limits.owned.fetch_sub(n - reserved, Relaxed);
    }

    /// Before anything is held: `n` bytes come on top of `max`, and may all be the own ones.
    pub(super) fn widen(&mut self, n: usize) {
        self.max += n;
        if self.held == 0 {
            self.own = self.own.max(n);
        }
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// The most that was held at once.
    pub(super) fn high_water(&self) -> usize {
        self.high_water
    }

    fn hold(&mut self, n: usize) {
        self.limits.owned.fetch_add(n - self.outside_own(n), Relaxed);
        self.held += n;
        self.high_water = self.high_water.max(self.held);
    }

    /// Of `n` bytes above `held`, how many lie outside the own ones.
    fn outside_own(&self, n: usize) -> usize {
        (self.held + n).saturating_sub(self.held.max(self.own))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.release(self.held);
    }
}

/// The length of one temporary file as `temp_files_max` knows it. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct FileSpace {
    limits: Arc<Limits>,
    len: u64,
}

impl FileSpace {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        FileSpace { limits, len: 0 }
    }

    pub(super) fn try_grow(&mut self, n: u64) -> bool {
        let granted = self.limits.try_reserve_file(n);
        if granted {
            self.len += n;
        }
        granted
    }

    /// Hand the count over, with the duty to give it back.
    pub(super) fn take(&mut self) -> Self {
        FileSpace { limits: self.limits.clone(), len: std::mem::take(&mut self.len) }
    }

    /// The file was truncated to nothing.
    pub(super) fn clear(&mut self) {
        self.limits.files.fetch_sub(self.len, Relaxed);
        self.len = 0;
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

impl Drop for FileSpace {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_is_outside_the_ceiling_and_counted() {
        let limits = Limits::new(0, 0, "");
        let mut memory = Memory::new(limits.clone(), 64, 16);
        assert!(memory.try_take(16));
        assert!(!memory.try_take(1));
        assert_eq!(limits.memory_bytes(), 16);
        memory.release(8);
        assert!(memory.try_take(8));
        drop(memory);
        assert_eq!(limits.memory_bytes(), 0);
    }

    #[test]
    fn two_responses_share_the_ceiling_and_each_keeps_its_own_block() {
        let limits = Limits::new(32, 0, "");
        let mut one = Memory::new(limits.clone(), 64, 16);
        let mut two = Memory::new(limits.clone(), 64, 16);
        assert!(one.try_take(48));
        assert!(!two.try_take(17));
        assert!(two.try_take(16));
        assert_eq!(limits.memory_bytes(), 64);
        one.release(40);
        assert!(two.try_take(32));
    }

    #[test]
    fn releasing_gives_back_the_shared_bytes_before_the_own_ones() {
        let limits = Limits::new(16, 0, "");
        let mut one = Memory::new(limits.clone(), 64, 16);
        let mut two = Memory::new(limits.clone(), 64, 0);
        assert!(one.try_take(32));
        assert!(!two.try_take(16));
        one.release(16);
        assert!(two.try_take(16));
    }

    #[test]
    fn a_file_is_counted_until_it_is_truncated_or_dropped() {
        let limits = Limits::new(0, 100, "");
        let mut space = FileSpace::new(limits.clone());
        assert!(space.try_grow(60));
        assert!(!space.try_grow(60));
        space.clear();
        assert!(space.try_grow(100));
        assert_eq!(limits.temp_file_bytes(), 100);
        drop(space);
        assert_eq!(limits.temp_file_bytes(), 0);
    }

    #[test]
    fn a_lowered_ceiling_takes_nothing_away_and_grants_nothing_until_there_is_room() {
        let limits = Limits::new(64, 100, "");
        let mut memory = Memory::new(limits.clone(), 64, 0);
        let mut space = FileSpace::new(limits.clone());
        assert!(memory.try_take(48) && space.try_grow(60));
        limits.set(32, 50, "elsewhere");
        assert_eq!((limits.memory_bytes(), limits.temp_file_bytes()), (48, 60));
        assert!(!memory.try_take(1) && !space.try_grow(1));
        memory.release(32);
        space.clear();
        assert!(memory.try_take(16) && space.try_grow(50));
        assert_eq!(limits.temp_path().as_path(), std::path::Path::new("elsewhere"));
    }
}
