//! `request_id`: one id for a request, told to the upstream, to the client and, as `$request_id`, to the log.
//!
//! ```yaml
//! - request_id: { header: X-Request-Id, trust_incoming: false }
//! ```
//!
//! With `trust_incoming`, an id that the client sent is kept if it is made of at most 128 letters, digits, `-`, `_` and `.`.

use millpond::prelude::*;
use serde::Deserialize;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestIdConf {
    /// The header that carries the id, both ways.
    pub header: String,
    /// Keep the id that the client sent.
    pub trust_incoming: bool,
}

impl Default for RequestIdConf {
    fn default() -> Self {
        RequestIdConf { header: "X-Request-Id".to_owned(), trust_incoming: false }
    }
}

/// The filter.
pub struct RequestId {
    header: String,
    trust_incoming: bool,
}

impl RequestId {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// `header` is no header's name.
    pub fn new(conf: RequestIdConf) -> Result<Self> {
        if HeaderName::from_bytes(conf.header.as_bytes()).is_err() {
            let text = format!("a header's name as `header`, not {:?}", conf.header);
            return Err(Error::new(ErrorKind::Filter, text));
        }
        Ok(RequestId { header: conf.header, trust_incoming: conf.trust_incoming })
    }
}

impl UpstreamPhases for RequestId {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        if self.trust_incoming {
            let incoming = session.request().headers.get(self.header.as_str()).and_then(|id| id.to_str().ok());
            if let Some(id) = incoming.filter(|id| is_sound(id)).map(str::to_owned) {
                session.set_request_id(id);
            }
        }
        Ok(Flow::Continue)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session<'_>,
        request: &mut RequestHeader,
        _ctx: &mut (),
    ) -> Result<()> {
        request.insert_header(self.header.clone(), session.request_id())?;
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        _ctx: &mut (),
    ) -> Result<Header> {
        response.insert_header(self.header.clone(), session.request_id())?;
        Ok(Header::Pass)
    }
}

/// May a stranger's id be repeated in headers and logs?
fn is_sound(id: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=128).contains(&id.len()) && id.bytes().all(sound)
}

#[cfg(test)]
mod tests {
    use super::is_sound;

    #[test]
    fn an_id_cannot_smuggle_anything() {
        assert!(is_sound("4bf92f35-77b3.4da6_a3ce"));
        assert!(!is_sound(""));
        assert!(!is_sound("a b"));
        assert!(!is_sound("\"},{\""));
        assert!(!is_sound(&"x".repeat(129)));
    }
}
