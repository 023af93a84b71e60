//! The ready-made filters. Their files stand in `filters/`, each written as a user would write it, so that it can be
//! copied into another crate and changed there.

use crate::app::Millpond;

#[path = "../filters/body_limit.rs"]
pub mod body_limit;
#[path = "../filters/body_rate.rs"]
pub mod body_rate;
#[path = "../filters/concurrency_limit.rs"]
pub mod concurrency_limit;
#[path = "../filters/fault.rs"]
pub mod fault;
#[path = "../filters/forwarded.rs"]
pub mod forwarded;
#[path = "../filters/headers.rs"]
pub mod headers;
#[path = "../filters/log_body.rs"]
pub mod log_body;
#[path = "../filters/rate_limit.rs"]
pub mod rate_limit;
#[path = "../filters/request_id.rs"]
pub mod request_id;
#[path = "../filters/sub.rs"]
pub mod sub;

/// Register them all.
pub(crate) fn register(millpond: Millpond) -> Millpond {
    millpond
        .filter("body_limit", |conf| Ok(body_limit::BodyLimit::new(conf)))
        .filter("body_rate", body_rate::BodyRate::new)
        .filter("concurrency_limit", concurrency_limit::ConcurrencyLimit::new)
        .filter("fault", fault::Fault::new)
        .filter("forwarded", |conf| Ok(forwarded::Forwarded::new(conf)))
        .filter("headers", |conf| Ok(headers::Headers::new(conf)))
        .filter("log_body", log_body::LogBody::new)
        .filter("rate_limit", rate_limit::RateLimit::new)
        .filter("request_id", request_id::RequestId::new)
        .filter("sub", sub::Sub::new)
}
