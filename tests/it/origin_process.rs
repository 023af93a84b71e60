//! An origin in a process of its own, which a test can kill: `support/peers.rs` starts it.
//!
//! It writes a line for each request when it has read it: method, target, and how much body came.

#![allow(clippy::unwrap_used, reason = "an origin that cannot go on fails its test")]

#[allow(dead_code, unreachable_pub, reason = "the tests use the rest")]
#[path = "support/pattern.rs"]
mod pattern;

use clap::Parser;
use pattern::Pattern;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

#[derive(Clone, Debug, Parser)]
struct Options {
    /// Where to listen.
    address: SocketAddr,
    /// What to answer.
    name: String,
    /// With which status.
    #[arg(long, default_value_t = 200)]
    status: u16,
    /// How long to work on it, in milliseconds.
    #[arg(long, default_value_t = 0)]
    work: u64,
    /// Read so much of a body, and never answer.
    #[arg(long)]
    hold: Option<u64>,
}

fn main() {
    let options = Options::parse();
    let listener = TcpListener::bind(options.address).unwrap();
    for stream in listener.incoming() {
        let (stream, options) = (stream.unwrap(), options.clone());
        // An error is the proxy's leaving.
        thread::spawn(move || serve(&stream, &options).is_ok());
    }
}

fn serve(mut stream: &TcpStream, options: &Options) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    while let Some((line, length)) = head(&mut reader)? {
        let received = body(&mut reader, length.min(options.hold.unwrap_or(u64::MAX)))?;
        println!("{line} {received}");
        if options.hold.is_some() {
            wait_to_be_killed();
        }
        thread::sleep(Duration::from_millis(options.work));
        let Options { status, name, .. } = options;
        let length = name.len();
        write!(stream, "HTTP/1.1 {status} Scripted\r\nContent-Length: {length}\r\n\r\n{name}")?;
    }
    Ok(())
}

/// Method and target of the next request, and its body's length; `None` once the proxy has closed.
fn head(reader: &mut impl BufRead) -> io::Result<Option<(String, u64)>> {
    let mut lines = reader.lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let line = first.trim_end_matches(" HTTP/1.1").to_owned();
    let mut length = 0;
    for header in lines {
        let header = header?.to_ascii_lowercase();
        assert!(!header.starts_with("transfer-encoding"), "this origin knows lengths only");
        match header.strip_prefix("content-length:") {
            Some(value) => length = value.trim().parse().unwrap(),
            None if header.is_empty() => break,
            None => {}
        }
    }
    Ok(Some((line, length)))
}

/// Read so much of the pattern, or as much as comes of it; a wrong byte ends the connection without an answer.
fn body(reader: &mut impl Read, length: u64) -> io::Result<u64> {
    let (mut pattern, mut body, mut piece) = (Pattern::default(), reader.take(length), vec![0; 64 * 1024]);
    loop {
        match body.read(&mut piece)? {
            0 => return Ok(pattern.offset),
            read => pattern.check(&piece[..read]),
        }
    }
}

fn wait_to_be_killed() -> ! {
    loop {
        thread::park();
    }
}
