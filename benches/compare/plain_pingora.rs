//! A minimal reverse proxy with pingora-proxy: every request to one origin, one thread, Pingora's own defaults.

use async_trait::async_trait;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use std::net::SocketAddr;

struct PlainPingora {
    origin: SocketAddr,
}

#[async_trait]
impl ProxyHttp for PlainPingora {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> pingora_core::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.origin, false, String::new())))
    }
}

/// Serve until the process is ended.
pub fn run(listen: SocketAddr, origin: SocketAddr) -> ! {
    let conf = ServerConf { threads: 1, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, PlainPingora { origin });
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run_forever()
}
