//! A request's values for the variables of [`Template`](crate::template::Template)s.

use crate::headers::without_port;
use crate::session::{Attempt, Session};
use crate::template::{Variable, Variables};
use http::Version;
use pingora_http::RequestHeader;
use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

impl Variables for Session<'_> {
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        let request = self.request();
        Some(match variable {
            Variable::RemoteAddr => self.remote_addr()?.ip().to_string().into(),
            Variable::RemotePort => self.remote_addr()?.port().to_string().into(),
            Variable::RemoteUser => self.remote_user()?.into(),
            Variable::ServerAddr => self.server_addr()?.ip().to_string().into(),
            Variable::ServerPort => self.server_addr()?.port().to_string().into(),
            Variable::Host => without_port(self.host()?).to_ascii_lowercase().into(),
            Variable::Uri => request.uri.path().into(),
            Variable::Args => request.uri.query()?.into(),
            Variable::Arg(name) => argument(request.uri.query()?, name)?.into(),
            Variable::RequestUri => self.asked_uri()?,
            Variable::RequestMethod => self.asked_method().as_str().into(),
            Variable::Scheme => if self.is_tls() { "https" } else { "http" }.into(),
            Variable::Https => self.is_tls().then_some("on")?.into(),
            Variable::ServerProtocol => protocol(self).into(),
            Variable::Http(name) => String::from_utf8_lossy(request.headers.get(name)?.as_bytes()),
            Variable::RequestId => self.request_id().into(),
            Variable::Status => known(u64::from(self.status()))?,
            Variable::BodyBytesSent => self.body_bytes_sent().to_string().into(),
            Variable::RequestTime => seconds(self.started().elapsed()).into(),
            Variable::Service => self.service().name().into(),
            Variable::Route => self.client_route().name().into(),
            Variable::TimeIso8601 => time_iso8601().into(),
            Variable::TimeLocal => time_local().into(),
            Variable::Msec => seconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()).into(),
            Variable::UpstreamAddr => each(self, |attempt| Some(attempt.address.to_string()))?,
            Variable::UpstreamStatus => each(self, |attempt| attempt.status.map(|status| status.to_string()))?,
            Variable::UpstreamConnectTime => each(self, |attempt| attempt.connect_time.map(seconds))?,
            Variable::UpstreamHeaderTime => each(self, |attempt| attempt.header_time.map(seconds))?,
            Variable::UpstreamResponseTime => each(self, |attempt| attempt.response_time.map(seconds))?,
            Variable::UpstreamBytesReceived => each(self, |attempt| Some(attempt.bytes_received.to_string()))?,
            Variable::Capture(name) => self.capture(name)?.into(),
        })
    }
}

fn known(value: u64) -> Option<Cow<'static, str>> {
    (value > 0).then(|| value.to_string().into())
}

/// What the client asked for, as it wrote it: path and query.
pub(crate) fn request_uri(request: &RequestHeader) -> Option<Cow<'_, str>> {
    Some(match request.uri.authority() {
        Some(_) => request.uri.path_and_query()?.as_str().into(),
        None => String::from_utf8_lossy(request.raw_path()),
    })
}

/// One value per attempt, `a, b`; what an attempt has not come to is `-`. Between those before and after an internal
/// redirect stands a colon, `a, b : c`.
fn each(session: &Session<'_>, value: impl Fn(&Attempt) -> Option<String>) -> Option<Cow<'static, str>> {
    let value = |attempt: &Attempt| value(attempt).unwrap_or_else(|| "-".to_owned());
    let exchange = |attempts: &[Attempt]| attempts.iter().map(value).collect::<Vec<_>>().join(", ");
    let exchanges: Vec<_> = session.exchanges().map(|(_, attempts)| exchange(attempts)).collect();
    (!exchanges.is_empty()).then(|| exchanges.join(" : ").into())
}

/// The value of an argument in a query, undecoded, as nginx's `$arg_NAME`.
fn argument<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

/// `HTTP/1.1`, `HTTP/2.0`: nginx's `$server_protocol`.
pub(crate) fn protocol(session: &Session<'_>) -> &'static str {
    match session.request().version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// Now, as `2026-11-24T12:00:00.000Z`.
pub(crate) fn time_iso8601() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Now, in the common log format.
fn time_local() -> String {
    chrono::Local::now().format("%d/%b/%Y:%H:%M:%S %z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_found_among_others() {
        assert_eq!(argument("a=1&id=7&id=8", "id"), Some("7"));
        assert_eq!(argument("a=1&flag", "flag"), Some(""));
        assert_eq!(argument("idx=1", "id"), None);
    }
}
