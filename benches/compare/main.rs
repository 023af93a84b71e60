//! Millpond beside plain pingora-proxy and nginx, in one run: `cargo bench --bench compare`.
//!
//! Each proxy has one worker thread, keep-alive to the origin and no access log. Rounds are interleaved, so that a
//! machine that is busy for a while is busy for all; cells are the median, and in brackets the smallest and the largest round.
//!
//! - [`proxies`]: the contestants and how each is started; [`plain_pingora`]: the minimal Pingora proxy
//! - [`process`]: a server's CPU time and memory, from `/proc`
//! - [`load`]: small bodies and large ones, by wrk
//! - [`protocols`]: memcached and PHP-FPM, by wrk
//! - [`slow_clients`]: many clients that read slowly
//! - [`origin`]: what the proxies proxy to
//! - [`mod@report`] writes Markdown

#![allow(unreachable_pub, reason = "one binary: its modules are not seen from outside")]

mod load;
mod origin;
mod plain_pingora;
mod process;
mod protocols;
mod proxies;
mod report;
mod slow_clients;

use clap::{Parser, ValueEnum};
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

// As in Millpond's stock binary: the plain Pingora proxy is this program too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
struct Args {
    /// What to measure; all of it when nothing is named
    subjects: Vec<Subject>,
    /// Fewer and shorter rounds, fewer slow clients
    #[arg(long)]
    quick: bool,
    /// The sockets' buffers are small already: measure the slow clients here
    #[arg(long, hide = true)]
    pinned: bool,
    /// What cargo passes to every bench
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the plain Pingora proxy: where to listen, and the origin
    #[arg(long, hide = true, num_args = 2, value_names = ["LISTEN", "ORIGIN"])]
    plain_pingora: Option<Vec<SocketAddr>>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Requests with bodies of 0 B, 1 KiB and 100 KiB
    Small,
    /// Downloads of 64 MiB
    Large,
    /// Clients that read slowly
    Slow,
    /// memcached and FastCGI
    Protocols,
}

/// How much is done.
struct Effort {
    rounds: usize,
    round: Duration,
    slow_clients: usize,
    slow_body: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some([listen, origin]) = args.plain_pingora.as_deref() {
        plain_pingora::run(*listen, *origin);
    }
    let effort = match args.quick {
        true => Effort { rounds: 3, round: Duration::from_secs(1), slow_clients: 50, slow_body: 2 << 20 },
        false => Effort { rounds: 5, round: Duration::from_secs(2), slow_clients: 200, slow_body: 8 << 20 },
    };
    let wanted = |subject| args.subjects.is_empty() || args.subjects.contains(&subject);
    let dir = report::folder()?;
    if args.pinned {
        println!("{}", slow_clients::measure(dir.path(), &effort, true)?);
        return Ok(());
    }
    println!("{}\n", report::machine()?);
    if wanted(Subject::Small) || wanted(Subject::Large) {
        let origin = origin::files(dir.path())?;
        let proxies = proxies::start_all(dir.path(), origin.addr)?;
        if wanted(Subject::Small) {
            println!("{}", load::small_bodies(&proxies, &effort)?);
        }
        if wanted(Subject::Large) {
            println!("{}", load::large_bodies(&proxies, &effort)?);
        }
    }
    if wanted(Subject::Protocols) {
        println!("{}", protocols::measure(dir.path(), &effort)?);
    }
    if wanted(Subject::Slow) {
        match slow_clients::pinned(args.quick) {
            Some(mut pinned) => {
                if !pinned.status()?.success() {
                    return Err("measuring the slow clients has failed".into());
                }
            }
            None => println!("{}", slow_clients::measure(dir.path(), &effort, false)?),
        }
    }
    Ok(())
}
