//! What can go wrong with a request, and what the client is told.
//!
//! One opaque [`Error`] serves the whole crate: it knows its [`ErrorKind`], hence the status the client sees
//! ([`Error::status`]) and the reason `next_upstream.when` knows it by; [`Error::is_timeout`] and its siblings answer
//! the questions that code asks, the `Display` text is for the log.

use std::error::Error as StdError;
use std::fmt;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the phase order of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The client's request is malformed or ambiguous: 400.
    BadRequest,
    /// No route matches: 404.
    NoRoute,
    /// The request body is larger than `client_max_body_size`: 413.
    BodyTooLarge,
    /// The client did not send its body in time: 408.
    ClientTimeout,
    /// The client closed the connection or reset its stream: logged as 499, nobody is left to be answered.
    ClientGone,
    /// The client did not take the response within `client.send_timeout`.
    ClientSendTimeout,
    /// A filter returned an error or panicked: 500.
    Filter,
    /// A filter, a protocol or an engine limit asks for this status.
    Status(u16),
    /// Something failed that should not: 500.
    Internal,
    /// No peer may be tried: 502.
    NoLivePeer,
    /// The connection could not be established: 502.
    Connect,
    /// The connection could not be established in time: 504.
    ConnectTimeout,
    /// The request could not be written: 502.
    Send,
    /// The upstream stopped reading the request: 504.
    SendTimeout,
    /// The upstream closed or reset the connection before its header was complete: 502.
    Closed,
    /// The upstream was silent for `timeouts.read`: 504 before the header, a broken message after it.
    ReadTimeout,
    /// The upstream says that it cannot serve now, whatever it is asked for: 502.
    Unavailable,
    /// The upstream's header breaks its protocol or is larger than `buffer_size`: 502.
    InvalidHeader,
    /// The upstream's body breaks its protocol: a broken message.
    InvalidBody,
    /// The upstream closed the connection before the end of the body: a broken message.
    Truncated,
}

/// An error with its kind, a sentence for the log, and what caused it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    context: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    allow: Option<&'static str>,
}

impl Error {
    /// An error of `kind`; `context` says for the log what was being done, and with what.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, context: context.into(), cause: None, allow: None }))
    }

    /// The same, with the error that led to it.
    pub fn because(
        kind: ErrorKind,
        context: impl Into<String>,
        cause: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Error(Box::new(Inner { kind, context: context.into(), cause: Some(cause.into()), allow: None }))
    }

    /// For filters and protocols: fail the request with `status` (400 to 599; anything else becomes 500).
    pub fn with_status(status: u16, context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Status(status), context)
    }

    /// For filters and protocols: 405, with `allow` as the response's `Allow` (RFC 9110 15.5.6): `GET, HEAD`.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let mut error = Self::with_status(405, format!("a method other than {allow}"));
        error.0.allow = Some(allow);
        error
    }

    /// The methods that would have been allowed, where that is what is wrong.
    pub fn allow(&self) -> Option<&'static str> {
        self.0.allow
    }

    /// The same with the filter that it comes from in front of its text.
    pub(crate) fn in_filter(mut self, name: &str) -> Self {
        self.0.context = format!("filter {name}: {}", self.0.context);
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The status a client is sent for this error, and the access log shows; 499 is only ever logged.
    pub fn status(&self) -> u16 {
        use ErrorKind::*;
        match self.kind() {
            BadRequest => 400,
            NoRoute => 404,
            ClientTimeout | ClientSendTimeout => 408,
            BodyTooLarge => 413,
            ClientGone => 499,
            Status(status @ 400..=599) => status,
            Filter | Internal | Status(_) => 500,
            NoLivePeer | Connect | Send | Closed | Unavailable | InvalidHeader | InvalidBody | Truncated => 502,
            ConnectTimeout | SendTimeout | ReadTimeout => 504,
        }
    }

    /// Was a time limit reached, on either side?
    pub fn is_timeout(&self) -> bool {
        use ErrorKind::*;
        matches!(self.kind(), ClientTimeout | ClientSendTimeout | ConnectTimeout | SendTimeout | ReadTimeout)
    }

    /// Is it an upstream that failed? Only then may another peer do better.
    pub fn is_upstream(&self) -> bool {
        use ErrorKind::*;
        let connecting = matches!(self.kind(), NoLivePeer | Connect | ConnectTimeout | Send | SendTimeout);
        connecting
            || matches!(self.kind(), Closed | ReadTimeout | Unavailable | InvalidHeader | InvalidBody | Truncated)
    }

    /// Is it the client that failed, rather than an upstream or this proxy?
    pub fn is_client(&self) -> bool {
        use ErrorKind::*;
        matches!(self.kind(), BadRequest | BodyTooLarge | ClientTimeout | ClientGone | ClientSendTimeout)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        let mut cause = self.0.cause.as_ref().map(|e| e.as_ref() as &dyn StdError);
        while let Some(error) = cause {
            if let Some(error) = pingora_error(error) {
                return write!(f, ": {}", said_by_pingora(error));
            }
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Pingora's errors say all of their causes at once, each in a frame of words: what an operator needs is the type and what
/// is behind it all.
fn said_by_pingora(error: &pingora_core::Error) -> String {
    let mut innermost = error;
    loop {
        let Some(cause) = &innermost.cause else {
            let context = innermost.context.as_ref().map(|context| context.as_str());
            return [error.etype.as_str(), context.unwrap_or_default()].join(" ").trim_end().to_owned();
        };
        match pingora_error(&**cause) {
            Some(cause) => innermost = cause,
            None => return format!("{}: {cause}", error.etype.as_str()),
        }
    }
}

fn pingora_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a pingora_core::Error> {
    let boxed = error.downcast_ref::<Box<pingora_core::Error>>().map(|error| &**error);
    boxed.or_else(|| error.downcast_ref())
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.kind())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_ref().map(|e| e.as_ref() as &(dyn StdError + 'static))
    }
}

/// Pingora's errors come from filters that build headers; what the engine meets on sockets it maps itself.
impl From<Box<pingora_core::Error>> for Error {
    fn from(error: Box<pingora_core::Error>) -> Self {
        Error::because(ErrorKind::Internal, "pingora", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_cannot_send_a_status_that_is_no_error() {
        assert_eq!(Error::with_status(403, "no").status(), 403);
        assert_eq!(Error::with_status(200, "odd").status(), 500);
    }

    #[test]
    fn of_pingoras_errors_the_type_and_the_root_remain() {
        use pingora_core::{Error as Pingora, ErrorType};
        let io = std::io::Error::other("refused");
        let inner = Pingora::because(ErrorType::ConnectError, "Fail to connect to 127.0.0.1:1", io);
        let outer = Pingora::because(ErrorType::ConnectRefused, "Fail to connect to 127.0.0.1:1", inner);
        let error = Error::because(ErrorKind::Connect, "connecting to 127.0.0.1:1", outer);
        assert_eq!(error.to_string(), "connecting to 127.0.0.1:1: ConnectRefused: refused");
        let alone = Pingora::explain(ErrorType::InvalidHTTPHeader, "too long");
        assert_eq!(Error::from(alone).to_string(), "pingora: InvalidHTTPHeader too long");
    }

    #[test]
    fn the_text_names_every_cause() {
        let io = std::io::Error::other("disk on fire");
        let error = Error::because(ErrorKind::Internal, "writing the temporary file", io);
        assert_eq!(error.to_string(), "writing the temporary file: disk on fire");
    }
}
