//! What follows a 101: bytes both ways, until either side is done.

use super::wire::Wire;
use crate::client::tunnel_client;
use crate::error::{Error, ErrorKind, Result};
use crate::peers::Chosen;
use crate::session::Session;
use pingora_http::ResponseHeader;

/// An upstream that has switched protocols.
pub(crate) struct Tunnel {
    wire: Box<dyn Wire>,
    /// Held for its place under `max_conns`.
    _chosen: Chosen,
}

impl Tunnel {
    pub(super) fn new(wire: Box<dyn Wire>, chosen: Chosen) -> Self {
        Tunnel { wire, _chosen: chosen }
    }

    /// Answer the client with the 101 and carry bytes until one side closes, breaks, or both are silent for
    /// `timeouts.read`. Gives the bytes carried from the upstream.
    ///
    /// # Errors
    /// A side broke its connection, or fell silent.
    pub(crate) async fn run(self, session: &mut Session<'_>, header: ResponseHeader) -> Result<()> {
        let Some((stream, early)) = self.wire.into_tunnel() else {
            return Err(Error::new(ErrorKind::Internal, "this upstream cannot be tunnelled to"));
        };
        let idle = session.route().conf().timeouts.read;
        tunnel_client::run(session, header, stream, early, idle).await
    }
}
