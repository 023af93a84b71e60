//! Load by wrk: as many requests, or as many bytes, as the proxy can do.

use crate::proxies::Proxy;
use crate::report::{Row, Samples, table};
use crate::{Effort, Result};
use std::process::Command;
use std::time::Duration;

const MIB: f64 = 1024.0 * 1024.0;
pub const SMALL_CONNECTIONS: usize = 32;
pub const LARGE_CONNECTIONS: usize = 4;

/// CPU per request and requests per second, for each small body.
pub fn small_bodies(proxies: &[Proxy], effort: &Effort) -> Result<String> {
    let mut rows = Vec::new();
    for (size, path) in [("0 B", "/0"), ("1 KiB", "/1k"), ("100 KiB", "/100k")] {
        rows.extend(self::rows(size, proxies, effort, path, SMALL_CONNECTIONS)?);
    }
    let title = format!("Small bodies, {SMALL_CONNECTIONS} connections");
    Ok(table(&title, &names(proxies), &rows))
}

/// CPU per request and requests per second of one path.
pub fn rows(label: &str, proxies: &[Proxy], effort: &Effort, path: &str, connections: usize) -> Result<[Row; 2]> {
    let rounds = interleaved(proxies, effort, path, connections)?;
    let cpu = row(format!("{label}: CPU µs per request"), &rounds, 1, |round| {
        round.cpu.as_secs_f64() * 1e6 / round.requests as f64
    });
    let requests =
        row(format!("{label}: requests/s"), &rounds, 0, |round| round.requests as f64 / round.time.as_secs_f64());
    Ok([cpu, requests])
}

/// Throughput of large bodies, and what it costs.
pub fn large_bodies(proxies: &[Proxy], effort: &Effort) -> Result<String> {
    let rounds = interleaved(proxies, effort, "/64m", LARGE_CONNECTIONS)?;
    let rows = [
        row("MiB/s".to_owned(), &rounds, 0, |round| round.bytes / MIB / round.time.as_secs_f64()),
        row("CPU s per GiB".to_owned(), &rounds, 3, |round| round.cpu.as_secs_f64() * 1024.0 * MIB / round.bytes),
    ];
    let title = format!("Bodies of 64 MiB, {LARGE_CONNECTIONS} downloads at once");
    Ok(table(&title, &names(proxies), &rows))
}

fn names(proxies: &[Proxy]) -> Vec<&'static str> {
    proxies.iter().map(|proxy| proxy.name).collect()
}

/// One round of one proxy.
struct Round {
    requests: u64,
    bytes: f64,
    time: Duration,
    cpu: Duration,
}

/// The rounds of each proxy; a first one, which warms everything up, is not counted.
fn interleaved(proxies: &[Proxy], effort: &Effort, path: &str, connections: usize) -> Result<Vec<Vec<Round>>> {
    let mut rounds: Vec<Vec<Round>> = proxies.iter().map(|_| Vec::new()).collect();
    for number in 0..=effort.rounds {
        for (proxy, rounds) in proxies.iter().zip(&mut rounds) {
            eprint!("\r\x1b[K{path}: round {number} of {}, {}", effort.rounds, proxy.name);
            let round = wrk(proxy, path, connections, effort.round)?;
            if number > 0 {
                rounds.push(round);
            }
        }
    }
    eprint!("\r\x1b[K");
    Ok(rounds)
}

fn row(label: String, rounds: &[Vec<Round>], decimals: usize, value: impl Fn(&Round) -> f64) -> Row {
    let cells = rounds.iter().map(|rounds| Samples(rounds.iter().map(&value).collect())).collect();
    Row { label, decimals, cells }
}

fn wrk(proxy: &Proxy, path: &str, connections: usize, time: Duration) -> Result<Round> {
    let before = proxy.server.cpu()?;
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{}s", time.as_secs())])
        .arg(format!("http://{}{path}", proxy.server.addr))
        .output()
        .map_err(|error| format!("wrk: {error}"))?;
    let cpu = proxy.server.cpu()? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("{}, {path}: {text}{}", proxy.name, String::from_utf8_lossy(&output.stderr)).into());
    }
    let summary = text.lines().find_map(Summary::parse).ok_or_else(|| format!("wrk said: {text}"))?;
    Ok(Round { requests: summary.requests, bytes: summary.bytes, time: summary.time, cpu })
}

/// wrk's line `63045 requests in 2.00s, 5.10GB read`.
struct Summary {
    requests: u64,
    time: Duration,
    bytes: f64,
}

impl Summary {
    fn parse(line: &str) -> Option<Self> {
        let (requests, rest) = line.trim().split_once(" requests in ")?;
        let (time, bytes) = rest.strip_suffix(" read")?.split_once("s, ")?;
        let (number, unit) = bytes.split_at(bytes.find(|c: char| c.is_ascii_alphabetic())?);
        let unit = match unit {
            "B" => 1.0,
            "KB" => 1024.0,
            "MB" => MIB,
            "GB" => 1024.0 * MIB,
            _ => return None,
        };
        Some(Summary {
            requests: requests.parse().ok()?,
            time: Duration::from_secs_f64(time.parse().ok()?),
            bytes: number.parse::<f64>().ok()? * unit,
        })
    }
}
