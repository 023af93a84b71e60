//! `headers`: set, add and remove headers of the upstream's request and of the client's response.
//!
//! ```yaml
//! - headers:
//!     request:  { set: { X-Real-IP: $remote_addr }, add: { Via: 1.1 millpond }, remove: [Cookie] }
//!     response: { set: { X-Frame-Options: DENY }, remove: [X-Powered-By] }
//! ```
//!
//! `remove` comes first, then `set` (one value instead of all there are), then `add` (one more value). Values are
//! templates; one that renders to nothing sets and adds nothing.

use millpond::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What the configuration says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadersConf {
    /// On the request that an upstream is sent.
    pub request: Changes,
    /// On the response that the client is sent.
    pub response: Changes,
}

/// Changes to one header.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Headers to replace, with their values.
    pub set: BTreeMap<Name, Template>,
    /// Headers to add a value to.
    pub add: BTreeMap<Name, Template>,
    /// Headers to remove.
    pub remove: Vec<Name>,
}

/// A header's name that has been checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(_) => Ok(Name(name)),
            Err(_) => Err(format!("a header's name, not {name:?}")),
        }
    }
}

/// The filter.
pub struct Headers {
    conf: HeadersConf,
}

impl Headers {
    /// Make it from its configuration.
    pub fn new(conf: HeadersConf) -> Self {
        Headers { conf }
    }
}

impl UpstreamPhases for Headers {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn upstream_request_filter(
        &self,
        session: &mut Session<'_>,
        request: &mut RequestHeader,
        _ctx: &mut (),
    ) -> Result<()> {
        for Name(name) in &self.conf.request.remove {
            request.remove_header(name.as_str());
        }
        for (name, value) in render(&self.conf.request.set, session)? {
            request.insert_header(name, value)?;
        }
        for (name, value) in render(&self.conf.request.add, session)? {
            request.append_header(name, value)?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        _ctx: &mut (),
    ) -> Result<Header> {
        for Name(name) in &self.conf.response.remove {
            response.remove_header(name.as_str());
        }
        for (name, value) in render(&self.conf.response.set, session)? {
            response.insert_header(name, value)?;
        }
        for (name, value) in render(&self.conf.response.add, session)? {
            response.append_header(name, value)?;
        }
        Ok(Header::Pass)
    }
}

/// The names and values that are not empty.
fn render(changes: &BTreeMap<Name, Template>, session: &Session<'_>) -> Result<Vec<(String, HeaderValue)>> {
    let mut rendered = Vec::with_capacity(changes.len());
    for (Name(name), template) in changes {
        let value = template.render(session);
        if !value.is_empty() {
            let value = HeaderValue::from_str(&value)
                .map_err(|error| Error::because(ErrorKind::Filter, format!("headers: the value of {name}"), error))?;
            rendered.push((name.clone(), value));
        }
    }
    Ok(rendered)
}
