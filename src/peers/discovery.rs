//! Servers that are named in the file: their names are looked up again when an answer has expired, and the group gets
//! the peers of the new one. A lookup that fails changes nothing.

use super::Upstream;
use crate::dns::Dns;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A failed lookup is tried again after so long, or sooner if the last answer was good for less...
const RETRY: Duration = Duration::from_secs(5);
/// ... then after twice as long each time, up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The entries of `servers` with one name: their places, and their ports.
type Entries = Vec<(usize, u16)>;

/// Has the upstream servers with names?
pub(crate) fn is_needed(upstream: &Upstream) -> bool {
    upstream.conf.servers.iter().any(|server| server.host.is_some())
}

/// Keep the upstream's peers at the addresses that their names have. Goes on until it is dropped.
pub(crate) async fn follow(upstream: Arc<Upstream>, dns: Dns) {
    let mut names: BTreeMap<&str, Entries> = BTreeMap::new();
    for (index, server) in upstream.conf.servers.iter().enumerate() {
        if let Some((name, port)) = &server.host {
            names.entry(name).or_default().push((index, *port));
        }
    }
    // They go on for ever.
    join_all(names.iter().map(|(name, entries)| follow_name(&upstream, &dns, name, entries))).await;
}

/// The first lookup is at once: the one that was made when the file was loaded may be long ago.
async fn follow_name(upstream: &Upstream, dns: &Dns, name: &str, entries: &Entries) {
    let mut failure: Option<String> = None;
    let mut retry = RETRY;
    loop {
        match dns.lookup(name).await {
            Ok(answer) => {
                for (server, port) in entries {
                    upstream.set_addresses(*server, answer.at(*port));
                }
                if failure.take().is_some() {
                    log::info!("upstream {}: {name} can be looked up again", upstream.name());
                }
                retry = answer.valid.min(RETRY);
                tokio::time::sleep(answer.valid).await;
            }
            Err(reason) => {
                if failure.as_ref() != Some(&reason) {
                    log::warn!(
                        "upstream {}: looking up {name}: {reason}; its addresses stay as they are",
                        upstream.name()
                    );
                    failure = Some(reason);
                }
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LONGEST_RETRY);
            }
        }
    }
}
