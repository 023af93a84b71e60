//! The ready-made filters. Their files stand in `filters/`, each written as a user would write it, so that it can be
//! copied into another crate and changed there.

use crate::app::Millpond;

#[path = "../filters/auth_request.rs"]
pub mod auth_request;
#[path = "../filters/fallback.rs"]
pub mod fallback;
#[path = "../filters/forwarded.rs"]
pub mod forwarded;
#[path = "../filters/headers.rs"]
pub mod headers;
#[path = "../filters/include.rs"]
pub mod include;
#[path = "../filters/jwt.rs"]
pub mod jwt;
#[path = "../filters/mirror.rs"]
pub mod mirror;
#[path = "../filters/request_id.rs"]
pub mod request_id;
#[path = "../filters/sub.rs"]
pub mod sub;

/// Register them all.
pub(crate) fn register(millpond: Millpond) -> Millpond {
    millpond
        .filter("auth_request", auth_request::AuthRequest::new)
        .filter("fallback", fallback::Fallback::new)
        .filter("forwarded", |conf| Ok(forwarded::Forwarded::new(conf)))
        .filter("headers", |conf| Ok(headers::Headers::new(conf)))
        .filter("include", |conf| Ok(include::Include::new(conf)))
        .filter_in("jwt", jwt::Jwt::new)
        .filter_in("mirror", mirror::Mirror::new)
        .filter("request_id", request_id::RequestId::new)
        .filter("sub", sub::Sub::new)
}
