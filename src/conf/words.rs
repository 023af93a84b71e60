//! The closed sets of words in the file.

use super::units::{Word, word};
use serde_json::{Value, json};

/// How a server is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Balance {
    /// nginx's smooth weighted round robin.
    #[default]
    RoundRobin,
    /// The server with the fewest requests for its weight.
    LeastConn,
    /// Two servers at random, the one with fewer requests for its weight.
    Random,
    /// By the client's address, as nginx's `ip_hash`.
    IpHash,
    /// By `hash_key`, on nginx's consistent (ketama) ring.
    Hash,
}

/// How a server's health is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CheckType {
    /// By an HTTP request.
    #[default]
    Http,
    /// By a connection, TLS's handshake included.
    Tcp,
}

/// The HTTP version of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2: by ALPN with TLS, with prior knowledge without.
    Http2,
    /// What TLS negotiates; HTTP/1.1 without TLS.
    Auto,
}

/// A reason to try the next server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Condition {
    /// The connection failed, or ended before the header did.
    Error,
    /// A time limit was reached before the header was complete.
    Timeout,
    /// The header breaks the protocol.
    InvalidHeader,
    /// This status: one of 403, 404, 429, 500, 502, 503, 504.
    Status(u16),
}

/// A header of the upstream's that may be left unobeyed. Either way the client does not see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum IgnoredHeader {
    /// `X-Accel-Buffering`.
    XAccelBuffering,
    /// `X-Accel-Limit-Rate`.
    XAccelLimitRate,
    /// `X-Accel-Redirect`.
    XAccelRedirect,
}

impl Word for Balance {
    const NAME: &'static str = "Balance";

    fn words() -> Vec<(Value, Self)> {
        vec![
            (json!("round_robin"), Balance::RoundRobin),
            (json!("least_conn"), Balance::LeastConn),
            (json!("random"), Balance::Random),
            (json!("ip_hash"), Balance::IpHash),
            (json!("hash"), Balance::Hash),
        ]
    }
}

impl Word for CheckType {
    const NAME: &'static str = "CheckType";

    fn words() -> Vec<(Value, Self)> {
        vec![(json!("http"), CheckType::Http), (json!("tcp"), CheckType::Tcp)]
    }
}

impl Word for HttpVersion {
    const NAME: &'static str = "HttpVersion";

    fn words() -> Vec<(Value, Self)> {
        vec![(json!(1), HttpVersion::Http1), (json!(2), HttpVersion::Http2), (json!("auto"), HttpVersion::Auto)]
    }
}

impl Word for Condition {
    const NAME: &'static str = "Condition";

    fn words() -> Vec<(Value, Self)> {
        let named = [
            (json!("error"), Condition::Error),
            (json!("timeout"), Condition::Timeout),
            (json!("invalid_header"), Condition::InvalidHeader),
        ];
        let statuses = [403, 404, 429, 500, 502, 503, 504];
        let statuses = statuses.map(|status| (json!(format!("http_{status}")), Condition::Status(status)));
        named.into_iter().chain(statuses).collect()
    }
}

impl Word for IgnoredHeader {
    const NAME: &'static str = "IgnoredHeader";

    fn words() -> Vec<(Value, Self)> {
        vec![
            (json!("X-Accel-Buffering"), IgnoredHeader::XAccelBuffering),
            (json!("X-Accel-Limit-Rate"), IgnoredHeader::XAccelLimitRate),
            (json!("X-Accel-Redirect"), IgnoredHeader::XAccelRedirect),
        ]
    }
}

word!(Balance);
word!(CheckType);
word!(HttpVersion);
word!(Condition);
word!(IgnoredHeader);
