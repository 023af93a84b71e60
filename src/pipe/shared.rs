//! [`Shared`]: what the two halves of a pipe have in common, and the only place where they meet threads.

use super::file::{TempFile, blocking, close};
use super::limits::Limits;
use super::state::{Done, End, Job, Read, Room, State};
use super::{PipeConf, PipeStats};
use crate::bufs::Bufs;
use crate::error::Result;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// One pipe. The lock is held for moments and never while anything is awaited, written or woken.
#[derive(Debug)]
pub(super) struct Shared {
    core: Mutex<Core>,
    file: TempFile,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) state: State,
    /// When the writer finished or failed.
    pub(super) finished_at: Option<Instant>,
    /// Since when the writer has been waiting for room.
    refused_since: Option<Instant>,
    backpressure: Duration,
    writer: Option<Waker>,
    writer_for_reader_gone: Option<Waker>,
    reader: Option<Waker>,
}

impl Shared {
    pub(super) fn new(conf: &PipeConf, limits: &Arc<Limits>) -> Self {
        let core = Core {
            state: State::new(conf, limits),
            finished_at: None,
            refused_since: None,
            backpressure: Duration::ZERO,
            writer: None,
            writer_for_reader_gone: None,
            reader: None,
        };
        Shared { core: Mutex::new(core), file: TempFile::new(limits.temp_path().as_path()) }
    }

    /// Read something off the state.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.core.lock())
    }

    /// Let something happen, and see to what follows from it.
    pub(super) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.core.lock();
        let result = change(&mut core);
        self.follow_up(core);
        result
    }

    pub(super) fn poll_writer<T>(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        ask: impl FnOnce(&mut State) -> Room<T>,
    ) -> Poll<Result<T>> {
        self.change(|core| {
            if core.state.is_dead() {
                core.end_refusal();
                return Poll::Ready(Err(core.state.nobody_reads()));
            }
            match ask(&mut core.state) {
                Room::Granted(room) => {
                    core.end_refusal();
                    return Poll::Ready(Ok(room));
                }
                Room::AfterTheClient => cx.waker().wake_by_ref(),
                Room::Wait => {
                    core.refused_since.get_or_insert_with(Instant::now);
                }
            }
            store(&mut core.writer, cx);
            Poll::Pending
        })
    }

    pub(super) fn poll_reader_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut core = self.core.lock();
        if core.state.is_dead() {
            return Poll::Ready(());
        }
        store(&mut core.writer_for_reader_gone, cx);
        Poll::Pending
    }

    pub(super) fn poll_read(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<Bufs>> {
        self.change(|core| match core.state.read() {
            Read::Bufs(bufs) => Poll::Ready(Ok(bufs)),
            Read::Failed(error) => Poll::Ready(Err(error)),
            Read::Dry => {
                store(&mut core.reader, cx);
                Poll::Pending
            }
        })
    }

    pub(super) fn end(self: &Arc<Self>, end: End) {
        self.change(|core| {
            core.finished_at.get_or_insert_with(Instant::now);
            core.end_refusal();
            core.state.end(end);
        });
    }

    /// Start the disk jobs that the last event has led to, and wake whom it concerns.
    fn follow_up(self: &Arc<Self>, mut core: MutexGuard<'_, Core>) {
        let jobs = [core.state.take_job(), core.state.take_job()];
        let wakers = core.take_wakers();
        drop(core);
        wakers.into_iter().flatten().for_each(Waker::wake);
        for job in jobs.into_iter().flatten() {
            let shared = self.clone();
            blocking(move || {
                let done = shared.file.run(job);
                shared.change(|core| core.state.job_done(done));
            });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        close(std::mem::take(&mut self.file), self.core.get_mut().state.take_file_space());
    }
}

impl Core {
    pub(super) fn stats(&self) -> PipeStats {
        let waiting = self.refused_since.map(|since| since.elapsed()).unwrap_or_default();
        PipeStats { backpressure: self.backpressure + waiting, ..self.state.stats() }
    }

    fn end_refusal(&mut self) {
        if let Some(since) = self.refused_since.take() {
            self.backpressure += since.elapsed();
        }
    }

    fn take_wakers(&mut self) -> [Option<Waker>; 3] {
        let wake = self.state.take_wake();
        [
            if wake.writer { self.writer.take() } else { None },
            if wake.reader { self.reader.take() } else { None },
            if self.state.is_dead() { self.writer_for_reader_gone.take() } else { None },
        ]
    }
}

impl TempFile {
    fn run(&self, job: Job) -> Done {
        match job {
            Job::Write { at, chunks } => Done::Wrote(self.write_at(&chunks, at)),
            Job::Read { at, len } => Done::Read(self.read_at(at, len)),
            Job::Truncate => Done::Truncated(self.truncate()),
        }
    }
}

fn store(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}
