//! `fallback`: where an upstream fails, another route of the service answers.
//!
//! ```yaml
//! - fallback: { when: [502, 503, 504], uri: /sorry }
//! ```
//!
//! An answer with one of the statuses, an upstream's or one of this proxy's own, is replaced by the answer of the route
//! that matches `uri`: its status, headers and body. The client's method and body do not go there, its headers do. If
//! that answer has a listed status too, or there is none, the first one stays. `keep_status` sends the other route's
//! answer with the first status, as a page of `error_pages` is.

use millpond::prelude::*;
use serde::Deserialize;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FallbackConf {
    /// The statuses that are replaced, 400 to 599.
    pub when: Vec<u16>,
    /// Who answers in their place: a path, variables allowed.
    pub uri: Template,
    /// Send the first answer's status with it.
    #[serde(default)]
    pub keep_status: bool,
}

/// The filter.
pub struct Fallback(FallbackConf);

impl Fallback {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// No status is named, or one that is no error.
    pub fn new(conf: FallbackConf) -> Result<Self> {
        if conf.when.is_empty() || conf.when.iter().any(|status| !(400..=599).contains(status)) {
            return Err(Error::new(ErrorKind::Filter, "at least one status in `when`, all of them 400 to 599"));
        }
        Ok(Fallback(conf))
    }
}

/// The other route's answer, while it is sent.
#[derive(Default)]
pub struct FallbackCtx(Option<Subresponse>);

impl UpstreamPhases for Fallback {
    type Ctx = FallbackCtx;

    fn new_ctx(&self) -> FallbackCtx {
        FallbackCtx::default()
    }

    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut FallbackCtx,
    ) -> Result<Header> {
        ctx.0 = None;
        if !self.is_listed(response.status) {
            return Ok(Header::Pass);
        }
        match self.ask(session).await {
            Ok(answer) if self.is_listed(answer.header().status) => {
                log::warn!("fallback: {} has answered {} too", self.0.uri.render(session), answer.header().status);
            }
            Ok(answer) => {
                let status = response.status;
                *response = answer.header().clone();
                if self.0.keep_status {
                    response.set_status(status)?;
                    response.set_reason_phrase(None)?;
                }
                ctx.0 = Some(answer);
                // The first answer's body may never come.
                session.resume_body();
            }
            Err(error) => log::error!("fallback: {error}"),
        }
        Ok(Header::Pass)
    }

    async fn body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, ctx: &mut FallbackCtx) -> Result<()> {
        let Some(answer) = &mut ctx.0 else { return Ok(()) };
        body.take();
        match session.unless_client_leaves(answer.next()).await?? {
            Some(mut run) => {
                run.take().into_iter().for_each(|chunk| body.push(chunk));
                session.resume_body();
            }
            // Whatever is left of the first answer is not read.
            None => body.end(),
        }
        Ok(())
    }
}

impl Fallback {
    fn is_listed(&self, status: StatusCode) -> bool {
        self.0.when.contains(&status.as_u16())
    }

    async fn ask(&self, session: &mut Session<'_>) -> Result<Subresponse> {
        let mut request = session.request_for(&self.0.uri.render(session))?;
        if session.request().method == Method::HEAD {
            request.set_method(Method::HEAD);
        }
        let question = session.subrequest(request, &Target::route())?;
        session.unless_client_leaves(question.send()).await?
    }
}
