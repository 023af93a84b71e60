//! A chain without sockets, for `benches/hooks.rs`.

use super::{Chain, Pass};
use crate::Millpond;
use crate::bufs::Bufs;
use crate::conf::Conf;
use crate::error::Result;
use crate::phases::Flow;
use crate::pipe::Limits;
use crate::session::Session;
use pingora_http::RequestHeader;
use std::sync::Arc;

/// A request's way through a chain without a client, for `benches/hooks.rs`; no part of the public interface.
#[doc(hidden)]
pub struct Walk(Pass<'static>);

impl Walk {
    /// A `GET /` on its way through `chain`.
    pub fn new(chain: &Arc<Chain>) -> Self {
        let conf = "upstreams: { none: { servers: [ '127.0.0.1:1' ] } }\n\
                    services: [ { name: walk, listen: [ '127.0.0.1:1' ], routes: [ { upstream: none } ] } ]";
        let conf = Conf::parse(conf, "").expect("the text is a configuration");
        let services = Millpond::new().services(&conf).expect("it names no filters and no files");
        let (service, route) = (services[0].clone(), services[0].routes[0].clone());
        let request = RequestHeader::build("GET", b"/", None).expect("the request is well formed");
        let limits = Limits::new(1 << 20, 0, std::env::temp_dir());
        Walk(Pass::new(Session::without_client(request, service, route, limits), chain))
    }

    /// The request hooks.
    ///
    /// # Errors
    /// A filter's.
    pub async fn request_filter(&mut self) -> Result<Flow> {
        self.0.request_filter().await
    }

    /// The body hooks.
    ///
    /// # Errors
    /// A filter's.
    pub async fn body_filter(&mut self, run: &mut Bufs) -> Result<()> {
        self.0.body_filter(run).await.map(|_| ())
    }
}
