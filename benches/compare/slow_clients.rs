//! Many clients that read slowly: how long the upstream's connections are held for them, and what that costs.
//!
//! The kernel lets a socket's send buffer grow to megabytes, in which a whole body can hide: then every proxy frees its
//! upstream at once. What the kernel may hold is therefore pinned, also for the proxies' own sockets, which only the
//! kernel's settings reach; a network namespace has settings of its own, and the machine's stay as they are.

use crate::origin::{Counting, SOCKET_BUFFER};
use crate::proxies::{CONTESTANTS, Contestant, Proxy};
use crate::report::{Row, Samples, table};
use crate::{Effort, Result};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Bytes per second of one client.
const RATE: u64 = 256 * 1024;
/// How often a client reads.
const STEP: Duration = Duration::from_millis(100);
/// A proxy that needs so much longer than its clients' rate asks for has failed.
const PATIENCE: u32 = 3;
const MIB: f64 = 1024.0 * 1024.0;

/// Sets the limits of all sockets in a new network namespace, then becomes the command in its arguments.
const PIN: &str = "ip link set lo up && \
    for limit in tcp_rmem tcp_wmem; do echo 4096 65536 65536 > /proc/sys/net/ipv4/$limit || exit 1; done && \
    exec \"$0\" \"$@\"";

/// This program, measuring slow clients where the buffers of all sockets are small; `None` where that is not allowed
/// (it takes root) or `unshare` and `ip` are not installed.
pub fn pinned(quick: bool) -> Option<Command> {
    let pin = |program: &OsStr| {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", PIN]).arg(program);
        command
    };
    pin(OsStr::new("true")).stderr(Stdio::null()).status().ok().filter(|status| status.success())?;
    let mut command = pin(std::env::current_exe().ok()?.as_os_str());
    command.arg("--pinned").args(quick.then_some("--quick"));
    Some(command)
}

/// One contestant after the other, each freshly started. `pinned`: the proxies' sockets have small buffers.
pub fn measure(dir: &Path, effort: &Effort, pinned: bool) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let contestants = CONTESTANTS.into_iter().chain([Contestant::NginxWithoutFile, Contestant::MillpondWithoutFile]);
    let mut names = Vec::new();
    let mut outcomes = Vec::new();
    for contestant in contestants {
        eprint!("\r\x1b[Kslow clients: {}", contestant.name());
        names.push(contestant.name());
        outcomes.push(runtime.block_on(one(contestant, dir, effort))?);
    }
    eprint!("\r\x1b[K");
    let row = |label: &str, decimals, value: fn(&Outcome) -> f64| Row {
        label: label.to_owned(),
        decimals,
        cells: outcomes.iter().map(|outcome| Samples(vec![value(outcome)])).collect(),
    };
    let rows = [
        row("s until the last upstream connection is free", 2, |outcome| outcome.free.as_secs_f64()),
        row("s until the last client has its body", 2, |outcome| outcome.done.as_secs_f64()),
        row("peak memory growth, MiB", 1, |outcome| outcome.memory as f64 / MIB),
        row("CPU s", 2, |outcome| outcome.cpu.as_secs_f64()),
    ];
    let (clients, body) = (effort.slow_clients, effort.slow_body >> 20);
    let sockets = if pinned { "64 KiB" } else { "not pinned, which hides megabytes" };
    let title = format!(
        "{clients} clients that read {body} MiB at {} KiB/s each (socket buffers of the proxies: {sockets})",
        RATE >> 10
    );
    Ok(table(&title, &names, &rows))
}

struct Outcome {
    free: Duration,
    done: Duration,
    memory: u64,
    cpu: Duration,
}

async fn one(contestant: Contestant, dir: &Path, effort: &Effort) -> Result<Outcome> {
    let mut origin = Counting::start()?;
    let proxy = contestant.start(dir, origin.addr)?;
    // What is set up with the first request is no growth.
    read_slowly(proxy.server.addr, 0).await?;
    let (memory, cpu) = (proxy.server.memory()?, proxy.server.cpu()?);
    proxy.server.forget_peak_memory()?;
    let started = Instant::now();
    let limit = PATIENCE * Duration::from_secs(effort.slow_body / RATE);
    let all = all_clients(&proxy, effort);
    timeout(limit, all).await.map_err(|_| format!("{}: not done after {limit:?}", proxy.name))??;
    let done = started.elapsed();
    let free = origin.has_sent(effort.slow_clients).await?.duration_since(started);
    let memory = proxy.server.peak_memory()?.saturating_sub(memory);
    Ok(Outcome { free, done, memory, cpu: proxy.server.cpu()? - cpu })
}

async fn all_clients(proxy: &Proxy, effort: &Effort) -> Result<()> {
    let mut clients = JoinSet::new();
    for _ in 0..effort.slow_clients {
        clients.spawn(read_slowly(proxy.server.addr, effort.slow_body));
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

/// A client that asks for `size` bytes and reads them at its rate.
async fn read_slowly(proxy: SocketAddr, size: u64) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    let mut connection = socket.connect(proxy).await?;
    let request = format!("GET /{size} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut ticks = interval(STEP);
    // A machine that is late catches up: the rate is what is meant.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut piece = vec![0; usize::try_from(RATE * STEP.as_millis() as u64 / 1000)?];
    let mut received = 0;
    loop {
        ticks.tick().await;
        let mut filled = 0;
        while filled < piece.len() {
            match connection.read(&mut piece[filled..]).await? {
                0 if received + (filled as u64) < size => return Err("a body that ends too early".into()),
                0 => return Ok(()),
                read => filled += read,
            }
        }
        received += filled as u64;
    }
}
