//! The ready-made filters. Their files stand in `filters/`, each written as a user would write it, so that it can be
//! copied into another crate and changed there.

use crate::app::Millpond;

#[path = "../filters/allow_deny.rs"]
pub mod allow_deny;
#[path = "../filters/auth_request.rs"]
pub mod auth_request;
#[path = "../filters/basic_auth.rs"]
pub mod basic_auth;
#[path = "../filters/body_limit.rs"]
pub mod body_limit;
#[path = "../filters/body_rate.rs"]
pub mod body_rate;
#[path = "../filters/compress.rs"]
pub mod compress;
#[path = "../filters/concurrency_limit.rs"]
pub mod concurrency_limit;
#[path = "../filters/cors.rs"]
pub mod cors;
#[path = "../filters/edit_json.rs"]
pub mod edit_json;
#[path = "../filters/fallback.rs"]
pub mod fallback;
#[path = "../filters/fault.rs"]
pub mod fault;
#[path = "../filters/forwarded.rs"]
pub mod forwarded;
#[path = "../filters/headers.rs"]
pub mod headers;
#[path = "../filters/include.rs"]
pub mod include;
#[path = "../filters/jwt.rs"]
pub mod jwt;
#[path = "../filters/log_body.rs"]
pub mod log_body;
#[path = "../filters/mirror.rs"]
pub mod mirror;
#[path = "../filters/rate_limit.rs"]
pub mod rate_limit;
#[path = "../filters/redirect.rs"]
pub mod redirect;
#[path = "../filters/request_id.rs"]
pub mod request_id;
#[path = "../filters/rewrite.rs"]
pub mod rewrite;
#[path = "../filters/sub.rs"]
pub mod sub;

/// Register them all.
pub(crate) fn register(millpond: Millpond) -> Millpond {
    millpond
        .filter("allow_deny", allow_deny::AllowDeny::new)
        .filter("auth_request", auth_request::AuthRequest::new)
        .filter("basic_auth", basic_auth::BasicAuth::new)
        .filter("body_limit", |conf| Ok(body_limit::BodyLimit::new(conf)))
        .filter("body_rate", body_rate::BodyRate::new)
        .filter("compress", compress::Compress::new)
        .filter("concurrency_limit", concurrency_limit::ConcurrencyLimit::new)
        .filter("cors", cors::Cors::new)
        .filter("edit_json", edit_json::EditJson::new)
        .filter("fallback", fallback::Fallback::new)
        .filter("fault", fault::Fault::new)
        .filter("forwarded", |conf| Ok(forwarded::Forwarded::new(conf)))
        .filter("headers", |conf| Ok(headers::Headers::new(conf)))
        .filter("include", |conf| Ok(include::Include::new(conf)))
        .filter_in("jwt", jwt::Jwt::new)
        .filter("log_body", log_body::LogBody::new)
        .filter_in("mirror", mirror::Mirror::new)
        .filter("rate_limit", rate_limit::RateLimit::new)
        .filter("redirect", redirect::Redirect::new)
        .filter("request_id", request_id::RequestId::new)
        .filter("rewrite", rewrite::Rewrite::new)
        .filter("sub", sub::Sub::new)
}
