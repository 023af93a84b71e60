//! Filters that have more to say than the run they were given: they are called again without one.

use super::Pass;
use crate::bufs::Bufs;
use crate::error::Result;
use crate::session::Resume;
use pingora_http::ResponseHeader;
use std::task::{Context, Poll};

/// A filter to be called again.
pub(super) struct Resumption {
    position: usize,
    /// It has seen the end of the body, which waits for it on its way outwards.
    last: bool,
    when: Resume,
}

impl Pass<'_> {
    /// The filter at `position` has seen `body`, or the header: does it want to be called again?
    pub(super) fn note_resumption(&mut self, position: usize, body: &mut Bufs) {
        let when = self.session.take_resume();
        self.resumptions.retain(|resumption| resumption.position != position);
        let Some(when) = when else { return };
        let last = body.withhold_end();
        let inner = self.resumptions.iter().filter(|resumption| resumption.position > position).count();
        self.resumptions.insert(inner, Resumption { position, last, when });
    }

    /// Ready when a filter can be called again.
    pub(crate) fn poll_resume(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What an inner one says passes by the outer ones, so these go first.
        for resumption in self.resumptions.iter_mut().rev() {
            if let Resume::When(ready) = &mut resumption.when
                && ready.as_mut().poll(cx).is_ready()
            {
                resumption.when = Resume::Now;
            }
            if matches!(resumption.when, Resume::Now) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// May more of the body be read meanwhile?
    pub(crate) fn may_read(&self) -> bool {
        self.resumptions.iter().all(|resumption| matches!(resumption.when, Resume::When(_)) && !resumption.last)
    }

    /// Is there a filter that [`poll_resume`](Self::poll_resume) has found ready?
    pub(crate) fn is_resumed(&self) -> bool {
        self.resumptions.iter().any(|resumption| matches!(resumption.when, Resume::Now))
    }

    /// Call it again, with an empty run; as [`body_filter`](Self::body_filter).
    pub(crate) async fn resume(&mut self, body: &mut Bufs) -> Result<Option<ResponseHeader>> {
        let ready = self.resumptions.iter().rposition(|resumption| matches!(resumption.when, Resume::Now));
        let Some(ready) = ready else { return Ok(None) };
        let resumption = self.resumptions.remove(ready);
        if resumption.last {
            body.end();
        }
        let released = self.body_outwards(body, resumption.position + 1).await?;
        self.watch_withheld(0, body)?;
        Ok(released)
    }
}
