//! `mirror`: send copies of requests, with their bodies, to another upstream, and throw its answers away.
//!
//! ```yaml
//! - mirror: { upstream: copy, sample: 0.1 }
//! ```
//!
//! The original knows nothing of it: the copy is sent in a task of its own, once the request's body has been read, and
//! whatever becomes of it is only counted, in `millpond_mirror_requests_total{upstream,result}`: `sent`, `failed` (no
//! answer), or `dropped` (`max` copies were under way, or the body could not be stored). A body is stored as request
//! bodies are, in `client_body_buffer_size` of memory and then a temporary file. The copy is made with the settings of
//! the route (`uri`, `set_headers`, time limits) and none of its filters, as the request is when this filter sees it.

use millpond::pipe::Spool;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use prometheus::{IntCounterVec, register_int_counter_vec};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

static REQUESTS: Lazy<IntCounterVec> = Lazy::new(|| {
    let help = "Copies of requests, by what became of them.";
    register_int_counter_vec!("millpond_mirror_requests_total", help, &["upstream", "result"])
        .expect("a metric is registered once, under one name")
});

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorConf {
    /// The upstream that gets the copies.
    pub upstream: String,
    /// The share of requests that are copied, 0 to 1.
    #[serde(default = "all")]
    pub sample: f64,
    /// Copies that may be under way at once.
    #[serde(default = "default_max")]
    pub max: usize,
}

fn all() -> f64 {
    1.0
}

fn default_max() -> usize {
    1000
}

/// The filter.
pub struct Mirror {
    upstream: String,
    target: Target,
    sample: f64,
    places: Arc<Semaphore>,
}

impl Mirror {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// The upstream does not exist, or a number is out of its range.
    pub fn new(conf: MirrorConf, scope: &FilterScope<'_>) -> Result<Self> {
        if !(0.0..=1.0).contains(&conf.sample) {
            return Err(Error::new(ErrorKind::Filter, format!("`sample` from 0 to 1, not {}", conf.sample)));
        }
        if conf.max == 0 || conf.max > Semaphore::MAX_PERMITS {
            return Err(Error::new(ErrorKind::Filter, format!("`max` of at least 1, not {}", conf.max)));
        }
        let target = scope.upstream(&conf.upstream)?;
        let places = Arc::new(Semaphore::new(conf.max));
        Ok(Mirror { upstream: conf.upstream, target, sample: conf.sample, places })
    }

    fn count(&self, result: &str) {
        REQUESTS.with_label_values(&[self.upstream.as_str(), result]).inc();
    }
}

/// A copy in the making.
#[derive(Default)]
pub struct MirrorCtx(Option<Copy>);

struct Copy {
    question: Subrequest,
    body: Spool,
    place: OwnedSemaphorePermit,
}

impl UpstreamPhases for Mirror {
    type Ctx = MirrorCtx;

    fn new_ctx(&self) -> MirrorCtx {
        MirrorCtx::default()
    }

    async fn request_filter(&self, session: &mut Session<'_>, ctx: &mut MirrorCtx) -> Result<Flow> {
        if self.sample < 1.0 && fastrand::f64() >= self.sample {
            return Ok(Flow::Continue);
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.count("dropped");
            return Ok(Flow::Continue);
        };
        let question = match session.subrequest(session.request().clone(), &self.target) {
            Ok(question) => question,
            Err(error) => {
                log::warn!("mirror: {error}");
                self.count("dropped");
                return Ok(Flow::Continue);
            }
        };
        if session.has_body() {
            ctx.0 = Some(Copy { question, body: session.spool(), place });
        } else {
            self.send(question, place);
        }
        Ok(Flow::Continue)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session<'_>,
        body: &mut Bufs,
        ctx: &mut MirrorCtx,
    ) -> Result<()> {
        let Some(copy) = &mut ctx.0 else { return Ok(()) };
        for chunk in body.iter() {
            if let Err(error) = copy.body.append(chunk.clone()).await {
                log::warn!("mirror: {error}");
                self.count("dropped");
                ctx.0 = None;
                return Ok(());
            }
        }
        if body.is_last()
            && let Some(Copy { question, body, place }) = ctx.0.take()
        {
            self.send(question.body(body), place);
        }
        Ok(())
    }
}

impl Mirror {
    /// The copy is complete: send it, beside the original.
    fn send(&self, copy: Subrequest, place: OwnedSemaphorePermit) {
        let upstream = self.upstream.clone();
        tokio::spawn(async move {
            let sent = discard(copy).await;
            let result = if sent.is_ok() { "sent" } else { "failed" };
            REQUESTS.with_label_values(&[upstream.as_str(), result]).inc();
            drop(place);
        });
    }
}

/// Send it, and read its answer to the end, so that the connection can be used again.
async fn discard(copy: Subrequest) -> Result<()> {
    let mut answer = copy.send().await?;
    while answer.next().await?.is_some() {}
    Ok(())
}
