//! `auth_request`: another route says who may pass, nginx's `auth_request`.
//!
//! ```yaml
//! - auth_request: { uri: /auth, copy_headers: [X-User], copy_to_client: [Set-Cookie] }
//! ```
//!
//! A GET for `uri` with the client's headers, but without its body, goes to the route of the service that matches it,
//! usually an `internal` one. Its answer decides: 2xx lets the request pass; 401 and 403 are the client's answer, 401
//! with its `WWW-Authenticate`; everything else, and no answer at all, is a 500. Each request is asked for anew:
//! nothing is kept.
//!
//! What `copy_headers` names goes from the answer to the upstream in place of what the client has sent under that name,
//! also where the answer has none: a client cannot name itself. `copy_to_client` adds headers of the answer to the
//! response.
//!
//! For subrequests nobody is asked, as in nginx; an internal redirect to a route with this filter is asked for anew.
//! `$request_uri` and `$request_method` of the other route are the client's: `set_headers: { X-Original-URI: $request_uri }`.

use millpond::prelude::*;
use serde::Deserialize;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthRequestConf {
    /// Whom to ask: a path, variables allowed.
    pub uri: Template,
    /// Headers of a 2xx answer that the upstream is sent.
    #[serde(default)]
    pub copy_headers: Vec<String>,
    /// Headers of a 2xx answer that the client is sent.
    #[serde(default)]
    pub copy_to_client: Vec<String>,
}

/// The filter.
pub struct AuthRequest {
    uri: Template,
    to_upstream: Vec<HeaderName>,
    to_client: Vec<HeaderName>,
}

impl AuthRequest {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// What is to be copied is no header's name.
    pub fn new(conf: AuthRequestConf) -> Result<Self> {
        Ok(AuthRequest {
            uri: conf.uri,
            to_upstream: names(&conf.copy_headers)?,
            to_client: names(&conf.copy_to_client)?,
        })
    }
}

fn names(names: &[String]) -> Result<Vec<HeaderName>> {
    let parse = |name: &String| {
        let expected = |_| Error::new(ErrorKind::Filter, format!("names of headers, {name:?} is none"));
        HeaderName::from_bytes(name.as_bytes()).map_err(expected)
    };
    names.iter().map(parse).collect()
}

impl UpstreamPhases for AuthRequest {
    /// What the answer says to the client.
    type Ctx = HeaderMap;

    fn new_ctx(&self) -> HeaderMap {
        HeaderMap::new()
    }

    async fn request_filter(&self, session: &mut Session<'_>, to_client: &mut HeaderMap) -> Result<Flow> {
        if session.is_subrequest() {
            return Ok(Flow::Continue);
        }
        let request = session.request_for(&self.uri.render(session))?;
        let question = session.subrequest(request, &Target::route())?;
        let answer = match session.unless_client_leaves(question.send()).await? {
            Ok(answer) => answer,
            Err(error) => return Err(Error::because(ErrorKind::Filter, "no answer", error)),
        };
        let (status, headers) = (answer.header().status, &answer.header().headers);
        match status {
            _ if status.is_success() => {
                self.copy_to_upstream(headers, session.request_mut())?;
                copy(&self.to_client, headers, |name, value| to_client.append(name, value));
                Ok(Flow::Continue)
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                refuse(session, status, headers)?;
                Ok(Flow::Done)
            }
            _ => Err(Error::new(ErrorKind::Filter, format!("the answer {status}, neither 2xx nor 401 nor 403"))),
        }
    }

    async fn response_filter(
        &self,
        _session: &mut Session<'_>,
        response: &mut ResponseHeader,
        to_client: &mut HeaderMap,
    ) -> Result<Header> {
        for (name, value) in to_client.iter() {
            response.append_header(name.clone(), value.clone())?;
        }
        Ok(Header::Pass)
    }
}

impl AuthRequest {
    fn copy_to_upstream(&self, answer: &HeaderMap, request: &mut RequestHeader) -> Result<()> {
        for name in &self.to_upstream {
            request.remove_header(name);
            for value in answer.get_all(name) {
                request.append_header(name.clone(), value.clone())?;
            }
        }
        Ok(())
    }
}

fn copy(names: &[HeaderName], from: &HeaderMap, mut append: impl FnMut(HeaderName, HeaderValue) -> bool) {
    for name in names {
        for value in from.get_all(name) {
            append(name.clone(), value.clone());
        }
    }
}

/// 401 or 403, the first with the challenge.
fn refuse(session: &mut Session<'_>, status: StatusCode, answer: &HeaderMap) -> Result<()> {
    let mut header = ResponseHeader::build(status, None)?;
    header.insert_header("content-type", "text/plain; charset=utf-8")?;
    for challenge in answer.get_all("www-authenticate") {
        header.append_header("www-authenticate", challenge.clone())?;
    }
    session.respond_with(header, format!("{status}\n"))
}
