//! The ready-made filters. Their files stand in `filters/`, each written as a user would write it, so that it can be
//! copied into another crate and changed there.

use crate::app::Millpond;

#[path = "../filters/allow_deny.rs"]
pub mod allow_deny;
#[path = "../filters/compress.rs"]
pub mod compress;
#[path = "../filters/forwarded.rs"]
pub mod forwarded;
#[path = "../filters/headers.rs"]
pub mod headers;
#[path = "../filters/request_id.rs"]
pub mod request_id;
#[path = "../filters/sub.rs"]
pub mod sub;

/// Register them all.
pub(crate) fn register(millpond: Millpond) -> Millpond {
    millpond
        .filter("allow_deny", allow_deny::AllowDeny::new)
        .filter("compress", compress::Compress::new)
        .filter("forwarded", |conf| Ok(forwarded::Forwarded::new(conf)))
        .filter("headers", |conf| Ok(headers::Headers::new(conf)))
        .filter("request_id", request_id::RequestId::new)
        .filter("sub", sub::Sub::new)
}
