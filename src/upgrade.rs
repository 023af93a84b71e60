//! Another process takes over (`-u`, then `SIGQUIT` to the old one), and the signals that end this one.
//!
//! Pingora hands the listening sockets over by `server.upgrade_sock`; since both processes then have the same sockets, no
//! connection is lost between them. What Pingora leaves open is closed here: its old process ends also when nobody took
//! the sockets, or when the new process ended just after it took them. So the write end of a pipe goes with them, and the
//! old process goes on serving until the new one has written to it that all its listeners are there. A pipe that is
//! closed without that says that the new process is gone.

use async_trait::async_trait;
use once_cell::sync::OnceCell;
use pingora_core::server::{Fds, ListenFds, ShutdownSignal, ShutdownSignalWatch};
use std::collections::{BTreeSet, HashSet};
use std::fs::OpenOptions;
use std::io::{Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// The pipe's name among the sockets. Pingora separates names by spaces, and closes what no service has asked for.
pub(crate) const CONFIRMATION: &str = "millpond-upgrade";
/// Pingora receives so many descriptors, the pipe included, and so many bytes of their names.
const MOST_DESCRIPTORS: usize = 32;
const MOST_NAME_BYTES: usize = 2048;
/// Pingora tries for 30 seconds to listen at an address that is taken.
const LISTEN_LIMIT: Duration = Duration::from_secs(35);
/// How long the old process waits for the new one's word.
const CONFIRMATION_LIMIT: Duration = Duration::from_secs(60);
/// Pingora does not tell when it listens, its table of sockets has to be looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The process's listening sockets, once Pingora has given them to a service.
#[derive(Clone, Default)]
pub(crate) struct Sockets(Arc<OnceCell<ListenFds>>);

impl Sockets {
    /// When the supervisor is started.
    pub(crate) fn set(&self, sockets: ListenFds) {
        // Which happens once.
        let _ = self.0.set(sockets);
    }

    /// Wait until all of `expected` are listened at; then tell the old process, if there is one, that it may go.
    ///
    /// # Errors
    /// An address is taken, or the old process cannot be told: this process must end, the old one goes on.
    pub(crate) async fn established(&self, expected: &BTreeSet<String>) -> Result<(), String> {
        let Some(sockets) = self.0.get() else { return Ok(()) };
        let started = Instant::now();
        loop {
            let missing: Vec<_> =
                expected.iter().filter(|name| sockets.lock().get(name).is_none()).map(String::as_str).collect();
            if missing.is_empty() {
                return confirm(sockets).map_err(|error| format!("the old process cannot be told to go: {error}"));
            }
            if started.elapsed() > LISTEN_LIMIT {
                return Err(format!("cannot listen at {}", missing.join(", ")));
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Write to the pipe, if one came with the sockets, and close it.
fn confirm(sockets: &ListenFds) -> std::io::Result<()> {
    let mut sockets = sockets.lock();
    let Some(pipe) = sockets.get(CONFIRMATION).copied() else { return Ok(()) };
    // A descriptor that is only a number is opened by its name: taking it as it is would need `unsafe`.
    OpenOptions::new().write(true).open(format!("/proc/self/fd/{pipe}"))?.write_all(b"1")?;
    let listeners: HashSet<String> = sockets.serialize().0.into_iter().filter(|name| name != CONFIRMATION).collect();
    sockets.close_unclaimed(&listeners);
    Ok(())
}

/// What ends this process: SIGTERM gracefully, SIGINT at once, SIGQUIT when another process has taken over.
pub(crate) struct Signals {
    pub(crate) sockets: Sockets,
    /// `server.upgrade_sock`
    pub(crate) upgrade_sock: String,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let listen = |kind: fn() -> SignalKind| signal(kind());
        let signals = [SignalKind::terminate, SignalKind::interrupt, SignalKind::quit].map(listen);
        let [Ok(mut terminate), Ok(mut interrupt), Ok(mut quit)] = signals else {
            log::error!("signals cannot be listened to: nothing could end this process");
            return ShutdownSignal::FastShutdown;
        };
        loop {
            tokio::select! {
                signal = ending(&mut terminate, &mut interrupt) => return signal,
                _ = quit.recv() => {}
            }
            log::info!("upgrade: the listeners are handed over at {}", self.upgrade_sock);
            let handed_over = tokio::select! {
                signal = ending(&mut terminate, &mut interrupt) => return signal,
                handed_over = self.hand_over() => handed_over,
            };
            match handed_over {
                Ok(()) => {
                    log::info!("upgrade: the new process serves, this one finishes what it has begun");
                    return ShutdownSignal::GracefulTerminate;
                }
                Err(text) => log::error!("upgrade: {text}; this process goes on serving (SIGTERM ends it)"),
            }
        }
    }
}

async fn ending(terminate: &mut Signal, interrupt: &mut Signal) -> ShutdownSignal {
    tokio::select! {
        _ = terminate.recv() => ShutdownSignal::GracefulTerminate,
        _ = interrupt.recv() => ShutdownSignal::FastShutdown,
    }
}

impl Signals {
    async fn hand_over(&self) -> Result<(), String> {
        let sockets = self.sockets.0.get().ok_or("there are no listeners yet")?.clone();
        let (tell, told) = oneshot::channel();
        let upgrade_sock = self.upgrade_sock.clone();
        // A thread of its own: a runtime would wait for it at the end of the process, and it may wait for a long time.
        std::thread::Builder::new()
            .name("upgrade".to_owned())
            .spawn(move || tell.send(send(&sockets, &upgrade_sock)))
            .map_err(|error| format!("no thread to hand the listeners over: {error}"))?;
        match timeout(CONFIRMATION_LIMIT, told).await {
            Ok(sent) => sent.unwrap_or_else(|_| Err("the listeners cannot be handed over".to_owned())),
            Err(_) => Err("the new process has taken the listeners, and does not say that it serves".to_owned()),
        }
    }
}

/// Send the sockets with a pipe, and wait for the word that comes back on it.
fn send(sockets: &ListenFds, upgrade_sock: &str) -> Result<(), String> {
    let (mut word, pipe) = pipe().map_err(|error| format!("no pipe: {error}"))?;
    let (mut names, mut descriptors) = sockets.lock().serialize();
    names.push(CONFIRMATION.to_owned());
    descriptors.push(pipe.as_raw_fd());
    can_be_sent(&names)?;
    let mut table = Fds::new();
    table.deserialize(names, descriptors);
    table.send_to_sock(upgrade_sock).map_err(|error| {
        format!("nobody takes the listeners at {upgrade_sock} ({error}): start the new process first, with -u")
    })?;
    drop(pipe);
    word.read_exact(&mut [0]).map_err(|_| "the new process has ended instead of serving, its log says why".to_owned())
}

/// Pingora would cut off what does not fit.
fn can_be_sent(names: &[String]) -> Result<(), String> {
    if let Some(name) = names.iter().find(|name| name.contains(char::is_whitespace)) {
        return Err(format!("the listener {name:?} has a space in its name, and cannot be handed over"));
    }
    let (count, bytes) = (names.len(), names.iter().map(|name| name.len() + 1).sum::<usize>());
    match count <= MOST_DESCRIPTORS && bytes <= MOST_NAME_BYTES {
        true => Ok(()),
        false => Err(format!("{} listeners are more than can be handed over", count - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pingora_would_cut_off_is_not_sent() {
        let listeners = |count: usize| (0..count).map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>();
        assert!(can_be_sent(&listeners(MOST_DESCRIPTORS)).is_ok());
        assert!(can_be_sent(&listeners(MOST_DESCRIPTORS + 1)).is_err());
        assert!(can_be_sent(&["/run/a b.sock".to_owned()]).is_err());
        assert!(can_be_sent(&["x".repeat(MOST_NAME_BYTES)]).is_err());
    }
}
