//! What every test is made of: a [`Proxy`] (the binary under test, on free ports, with its files in a private folder),
//! an [`Origin`] (a scripted upstream) and a [`Client`] that is stricter than any browser.
//!
//! # Layout
//! - `proxy`: starts the binary, writes its configuration, reads its logs, metrics and `/proc` entries
//! - `origin`: raw upstreams over TCP, Unix sockets and TLS; a test's closure is the script of each connection
//! - `peers`: origins in processes of their own, to be killed and started again
//! - `load`: requests at a steady rate, whatever becomes of them
//! - `client`: HTTP/1 byte by byte, with a parser that tells a complete message from a broken one
//! - `dns`: a name server whose answers a test changes
//! - `http2`: both ends of HTTP/2, with the flow control in the test's hands
//! - `io`: the streams under them, certificates
//! - `pattern`: bodies that need not be held to be compared
//! - `servers`: real Apache, nginx, Tomcat, memcached, Redis, PHP-FPM and uWSGI

pub mod client;
pub mod dns;
pub mod http2;
pub mod io;
pub mod load;
pub mod origin;
pub mod pattern;
pub mod peers;
pub mod proxy;
pub mod servers;

pub use client::Client;
pub use io::Certificate;
pub use origin::{Origin, reply};
pub use pattern::Pattern;
pub use proxy::{Ports, Proxy, Setup, key_route};
pub use serde_json::{Value, json};

use std::future::Future;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// Nothing in a test takes longer than this on a busy machine unless it hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The future's value; a test that waits longer than [`DEADLINE`] fails and says for what.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Wait until `probe` has a value, for things that send no event (files, `/proc`, counters).
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        let mut tick = interval(Duration::from_millis(10));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Some(value) = probe().await {
                return value;
            }
        }
    })
    .await
}
