//! The ready-made filters. Their files stand in `filters/`, each written as a user would write it, so that it can be
//! copied into another crate and changed there.

use crate::app::Millpond;

#[path = "../filters/allow_deny.rs"]
pub mod allow_deny;
#[path = "../filters/basic_auth.rs"]
pub mod basic_auth;
#[path = "../filters/compress.rs"]
pub mod compress;
#[path = "../filters/cors.rs"]
pub mod cors;
#[path = "../filters/edit_json.rs"]
pub mod edit_json;
#[path = "../filters/forwarded.rs"]
pub mod forwarded;
#[path = "../filters/headers.rs"]
pub mod headers;
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
        .filter("basic_auth", basic_auth::BasicAuth::new)
        .filter("compress", compress::Compress::new)
        .filter("cors", cors::Cors::new)
        .filter("edit_json", edit_json::EditJson::new)
        .filter("forwarded", |conf| Ok(forwarded::Forwarded::new(conf)))
        .filter("headers", |conf| Ok(headers::Headers::new(conf)))
        .filter("redirect", redirect::Redirect::new)
        .filter("request_id", request_id::RequestId::new)
        .filter("rewrite", rewrite::Rewrite::new)
        .filter("sub", sub::Sub::new)
}
