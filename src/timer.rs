//! Time limits between two operations, as nginx counts them: restarted by progress, not by waiting.

use crate::error::ErrorKind;
use crate::error::{Error, Result};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// A limit on how long one operation may wait. It costs nothing until something really waits.
pub(crate) struct Timer {
    limit: Duration,
    sleep: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Timer {
    pub(crate) fn new(limit: Duration) -> Self {
        Timer { limit, sleep: None }
    }

    /// The operation made progress: start again at the next wait.
    pub(crate) fn restart(&mut self) {
        self.sleep = None;
    }

    /// Called while the operation waits: ready when it has waited for the whole limit.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        self.sleep.get_or_insert_with(|| Box::pin(pingora_timeout::sleep(limit))).as_mut().poll(cx)
    }

    /// Called while the operation waits: an error of `kind` when the limit is reached; `doing` says what waited.
    pub(crate) fn poll_limit<T>(
        &mut self,
        cx: &mut Context<'_>,
        kind: ErrorKind,
        doing: impl FnOnce() -> String,
    ) -> Poll<Result<T>> {
        match self.poll_expired(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Error::new(kind, format!("{}: nothing for {:?}", doing(), self.limit)))),
            Poll::Pending => Poll::Pending,
        }
    }
}
