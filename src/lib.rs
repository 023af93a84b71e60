//! **Millpond**: reverse proxies on Pingora with nginx's *upstream mechanism*.
//!
//! A response is taken from the upstream at the upstream's speed, held in bounded memory and then in a bounded
//! temporary file, and handed to the client at the client's speed: a slow client never holds an upstream's connection.
//! Filters are written in Rust ([`UpstreamPhases`](phases::UpstreamPhases)), stacked in a [chain], and compiled into a
//! binary of one's own ([`Millpond`]).
//!
//! # The life of a request
//!
//! | phase | what happens | where |
//! |---|---|---|
//! | 1 start | route, filters, the request body stored | `proxy`, [`chain`], `exchange::start` |
//! | 2 connect | a peer, a connection | [`peers`], `exchange::connect` |
//! | 3 send request | the request and its body | `exchange::send_request` |
//! | 4 receive header | the response header, or the next peer | `exchange::receive_header`, `exchange::next_upstream` |
//! | 5 process body | upstream → [`pipe`] → filters → client, two futures in one task | `exchange::process_body`,
//! `client::deliver` |
//! | 6 finish | the connection pooled or closed; counted, logged | `exchange::finish` |
//!
//! # Layout
//!
//! - [`app`]: register filters and protocols, the command line, run
//! - [`conf`], [`template`]: the configuration file, checked as a whole; texts with variables
//! - [`phases`], [`chain`], [`session`], [`bufs`], [`paths`]: what filter authors work with
//! - `proxy`: the only implementation of Pingora's `ProxyHttp`; `answer`: phases 1 to 4; `client`: Pingora's session,
//!   polled
//! - `error_pages`, `internal_redirect`: what is sent in place of a failure, or of an `X-Accel-Redirect`
//! - [`subrequest`]: requests of filters' own
//! - `exchange`: one request to an upstream; [`protocol`]: what is spoken there, bytes in and bytes out
//! - [`pipe`]: the store between a fast upstream and a slow client
//! - [`peers`]: balancing, failures, health; `dns`: where named servers are
//! - `metrics`, `access_log`, `admin`: what operators see
//! - `reload`, `certificates`, `upgrade`: what is replaced while it runs, and the process that takes over

extern crate self as millpond;

#[cfg(not(any(feature = "openssl", feature = "boringssl", feature = "rustls")))]
compile_error!("choose a TLS library: one of the features openssl (default), boringssl and rustls");

mod access_log;
mod admin;
mod answer;
pub mod app;
pub mod bufs;
mod certificates;
pub mod chain;
mod client;
pub mod conf;
mod dns;
pub mod error;
mod error_pages;
mod exchange;
pub mod filters;
mod headers;
mod internal_redirect;
mod listen;
pub mod live_file;
pub mod media_types;
mod metrics;
pub mod paths;
pub mod peers;
pub mod phases;
pub mod pipe;
pub mod protocol;
mod proxy;
mod reload;
pub mod routes;
pub mod scope;
pub mod session;
pub mod subrequest;
mod supervisor;
pub mod template;
mod timer;
mod upgrade;
mod variables;

pub use app::Millpond;

/// What a filter needs, and nothing else.
pub mod prelude {
    pub use crate::app::Millpond;
    pub use crate::bufs::Bufs;
    pub use crate::error::{Error, ErrorKind, Result};
    pub use crate::live_file::LiveFile;
    pub use crate::media_types::MediaTypes;
    pub use crate::peers::Peer;
    pub use crate::phases::{Flow, Header, UpstreamPhases};
    pub use crate::scope::FilterScope;
    pub use crate::session::Session;
    pub use crate::subrequest::{Fetch, Subrequest, Subresponse, Target};
    pub use crate::template::Template;
    pub use bytes::{Bytes, BytesMut};
    pub use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
    pub use pingora_http::{RequestHeader, ResponseHeader};
}

/// The README's code, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
