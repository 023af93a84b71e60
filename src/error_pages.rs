//! What a client is told of a failure: the page that `error_pages` have for its status, else a built-in one.

use crate::answer::{Answer, answer};
use crate::chain::Pass;
use crate::client::ClientBody;
use crate::conf::ErrorPage;
use crate::error::{Error, ErrorKind, Result};
use crate::internal_redirect::{Why, redirect};
use crate::protocol::BodyLength;
use crate::proxy::{deliver_answer, deliver_whole};
use crate::session::{Session, response_header};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, StatusCode};
use pingora_http::ResponseHeader;

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// An answer that an error page stands for.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: u16,
    /// What the page is sent with, unless it has such headers itself.
    headers: HeaderMap,
}

impl Failure {
    fn new(status: u16) -> Self {
        Failure { status, headers: HeaderMap::new() }
    }

    /// A filter has answered with a status that has a page: what its header says stays (`Retry-After`,
    /// `WWW-Authenticate`, `Location`), but for what it says of its body.
    pub(crate) fn of_filter(session: &Session<'_>, answer: &ResponseHeader) -> Option<Self> {
        let status = answer.status.as_u16();
        configured_page(session, status)?;
        let mut headers = answer.headers.clone();
        let about_the_body: Vec<HeaderName> = headers.keys().filter(|name| is_about_a_body(name)).cloned().collect();
        for name in &about_the_body {
            headers.remove(name);
        }
        Some(Failure { status, headers })
    }

    /// nginx's `ngx_http_upstream_intercept_errors`: an upstream has answered with a status that has a page, and the
    /// route has `intercept_errors`. Of its header the challenge of a 401 stays.
    pub(crate) fn of_upstream(session: &Session<'_>, answer: &ResponseHeader) -> Option<Self> {
        if !session.route().conf.intercept_errors {
            return None;
        }
        configured_page(session, answer.status.as_u16())?;
        let mut failure = Failure::new(answer.status.as_u16());
        if answer.status == StatusCode::UNAUTHORIZED {
            for challenge in answer.headers.get_all(header::WWW_AUTHENTICATE) {
                failure.headers.append(header::WWW_AUTHENTICATE, challenge.clone());
            }
        }
        Some(failure)
    }

    /// The built-in page, for a request without a client.
    pub(crate) fn built_in(&self, session: &Session<'_>) -> Result<(ResponseHeader, Bytes)> {
        let text = built_in_text(self.status);
        Ok((self.header(session, &PLAIN, &text)?, text))
    }

    fn header(&self, session: &Session<'_>, content_type: &HeaderValue, text: &Bytes) -> Result<ResponseHeader> {
        let mut header = response_header(self.status)?;
        header.insert_header(header::CONTENT_TYPE, content_type.clone())?;
        header.set_content_length(text.len())?;
        if let Some(allow) = session.outcome.error.as_ref().and_then(Error::allow) {
            header.insert_header(header::ALLOW, allow)?;
        }
        self.put_onto(&mut header)?;
        Ok(header)
    }

    /// Make a page's header that of the answer.
    fn put_onto(&self, header: &mut ResponseHeader) -> Result<()> {
        header.set_status(self.status)?;
        // The page's own would contradict it.
        header.set_reason_phrase(None)?;
        for name in self.headers.keys().filter(|name| !header.headers.contains_key(*name)).cloned().collect::<Vec<_>>()
        {
            for value in self.headers.get_all(&name) {
                header.append_header(name.clone(), value.clone())?;
            }
        }
        Ok(())
    }
}

/// The page for a status, unless one is on its way already: nginx's `recursive_error_pages off`.
fn configured_page(session: &Session<'_>, status: u16) -> Option<ErrorPage> {
    if session.outcome.error_page || status < 300 {
        return None;
    }
    session.route().conf.error_pages.find(status).cloned()
}

fn is_about_a_body(name: &HeaderName) -> bool {
    let others = [header::ACCEPT_RANGES, header::ETAG, header::LAST_MODIFIED, header::TRANSFER_ENCODING];
    name.as_str().starts_with("content-") && *name != header::CONTENT_SECURITY_POLICY || others.contains(name)
}

/// The request has failed: an error page, if nothing has gone out yet. `Err`: the message must be broken.
pub(crate) async fn fail(pass: &mut Pass<'_>, body: &mut ClientBody, error: Error) -> Result<()> {
    log_failure(&pass.session, &error);
    body.abandon();
    let gone = error.kind() == ErrorKind::ClientGone;
    if error.is_client()
        && let Some(client) = pass.session.client_mut()
    {
        // Where a malformed request ends nobody knows: what follows on this connection is not looked at.
        client.set_keepalive(None);
    }
    let status = error.status();
    pass.session.outcome.error.get_or_insert(error);
    if gone || pass.session.outcome.header_sent {
        if gone {
            pass.session.outcome.status = status;
        }
        return Err(Error::new(ErrorKind::ClientGone, "the message is broken off"));
    }
    let ended = error_page(pass, body, &Failure::new(status)).await;
    let gone = ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ClientGone);
    if gone && !pass.session.outcome.header_sent {
        pass.session.outcome.status = 499;
    }
    ended
}

/// Answer with an error page: the one that is configured; without one, or if it fails too, the built-in one.
///
/// # Errors
/// The message must be broken.
pub(crate) async fn error_page(pass: &mut Pass<'_>, body: &mut ClientBody, failure: &Failure) -> Result<()> {
    pass.session.outcome.status = failure.status;
    if let Some(page) = configured_page(&pass.session, failure.status) {
        pass.session.outcome.error_page = true;
        match answer_page(pass, body, failure, &page).await {
            Err(error) if error.kind() != ErrorKind::ClientGone && !pass.session.outcome.header_sent => {
                log_page_failure(&pass.session, failure.status, &page, &error);
                body.abandon();
            }
            ended => return ended,
        }
    }
    let built_in = built_in_page(pass, body, failure).await;
    if built_in.is_ok() || pass.session.outcome.header_sent {
        return built_in;
    }
    // A filter has failed on the error page too.
    pass.leave_filters();
    built_in_page(pass, body, failure).await
}

async fn answer_page(pass: &mut Pass<'_>, body: &mut ClientBody, failure: &Failure, page: &ErrorPage) -> Result<()> {
    let path = match page {
        ErrorPage::File { content_type, body: text } => {
            return local_page(pass, body, failure, content_type, text.clone()).await;
        }
        ErrorPage::Path(path) => path,
    };
    redirect(pass, body, path.as_bytes(), Why::ErrorPage)?;
    let mut answer = answer(pass, body, BodyLength::None).await?;
    if let Answer::Local(header, _) | Answer::Message(header, _) = &mut answer {
        failure.put_onto(header)?;
    }
    deliver_answer(pass, answer, body).await
}

async fn built_in_page(pass: &mut Pass<'_>, body: &mut ClientBody, failure: &Failure) -> Result<()> {
    local_page(pass, body, failure, &PLAIN, built_in_text(failure.status)).await
}

fn built_in_text(status: u16) -> Bytes {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
    Bytes::from(format!("{status} {reason}\n"))
}

async fn local_page(
    pass: &mut Pass<'_>,
    body: &mut ClientBody,
    failure: &Failure,
    content_type: &HeaderValue,
    text: Bytes,
) -> Result<()> {
    let header = failure.header(&pass.session, content_type, &text)?;
    deliver_whole(pass, header, text, body).await
}

pub(crate) fn log_failure(session: &Session<'_>, error: &Error) {
    let request = session.request();
    let peer = session.attempts().last().map(|attempt| format!(", upstream: {}", attempt.address)).unwrap_or_default();
    let line = format!("{}: {} {}: {error}{peer}", place(session), request.method, request.uri.path());
    match error.status() {
        400..=499 => log::info!("{line}"),
        _ => log::error!("{line}"),
    }
}

fn log_page_failure(session: &Session<'_>, status: u16, page: &ErrorPage, error: &Error) {
    log::error!("{}: the error page for {status}, {page}: {error}; the built-in one is sent", place(session));
}

fn place(session: &Session<'_>) -> String {
    format!("{}/{}", session.service().name(), session.route().name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_the_answer_of_the_failure() {
        let mut failure = Failure::new(502);
        for (name, value) in [("retry-after", "1"), ("vary", "a"), ("x-b", "1"), ("x-b", "2")] {
            failure.headers.append(name, HeaderValue::from_static(value));
        }
        let mut page = ResponseHeader::build(200, None).unwrap();
        page.set_reason_phrase(Some("Fine")).unwrap();
        page.insert_header("vary", "b").unwrap();
        failure.put_onto(&mut page).unwrap();
        assert_eq!((page.status.as_u16(), page.get_reason_phrase()), (502, Some("Bad Gateway")));
        let values = ["retry-after", "vary", "x-b"].map(|name| page.headers.get_all(name).iter().collect::<Vec<_>>());
        assert_eq!(values, [vec!["1"], vec!["b"], vec!["1", "2"]]);
    }

    #[test]
    fn headers_about_a_body_go_with_it() {
        let gone = ["content-type", "content-length", "content-encoding", "etag", "last-modified", "accept-ranges"];
        let stay = ["location", "www-authenticate", "retry-after", "set-cookie", "content-security-policy"];
        let about = |name: &&'static str| is_about_a_body(&HeaderName::from_static(name));
        assert!(gone.iter().all(about));
        assert!(!stay.iter().any(about));
    }
}
