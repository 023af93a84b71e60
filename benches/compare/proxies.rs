//! The contestants.

use crate::Result;
use crate::process::{Server, free_address};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// A running proxy.
pub struct Proxy {
    /// What the tables call it.
    pub name: &'static str,
    /// Its process.
    pub server: Server,
}

/// What runs, and with which buffers.
#[derive(Clone, Copy)]
pub enum Contestant {
    /// The stock binary with its defaults.
    Millpond,
    /// The same, never using a file.
    MillpondWithoutFile,
    /// [`crate::plain_pingora`].
    PlainPingora,
    /// nginx with its default buffers.
    Nginx,
    /// nginx with Millpond's default buffers.
    NginxEqualBuffers,
    /// The same, never using a file.
    NginxWithoutFile,
}

/// The order of the tables' columns: ratios are Millpond's to each of the others.
pub const CONTESTANTS: [Contestant; 4] =
    [Contestant::Millpond, Contestant::PlainPingora, Contestant::Nginx, Contestant::NginxEqualBuffers];

/// Millpond's defaults, in nginx's words.
const EQUAL_BUFFERS: &str =
    "proxy_buffer_size 16k; proxy_buffers 16 16k; proxy_busy_buffers_size 64k; proxy_temp_file_write_size 64k;";

/// All that take part in every comparison.
pub fn start_all(dir: &Path, origin: SocketAddr) -> Result<Vec<Proxy>> {
    CONTESTANTS.iter().map(|contestant| contestant.start(dir, origin)).collect()
}

impl Contestant {
    /// What the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Contestant::Millpond => "Millpond",
            Contestant::MillpondWithoutFile => "Millpond, no file",
            Contestant::PlainPingora => "pingora-proxy",
            Contestant::Nginx => "nginx, its defaults",
            Contestant::NginxEqualBuffers => "nginx, equal buffers",
            Contestant::NginxWithoutFile => "nginx, no file",
        }
    }

    /// Start it in front of `origin`, with its files in `dir`.
    pub fn start(self, dir: &Path, origin: SocketAddr) -> Result<Proxy> {
        let listen = free_address()?;
        let dir = dir.join(listen.port().to_string());
        fs::create_dir_all(&dir)?;
        let mut command = match self {
            Contestant::Millpond => millpond(&dir, listen, origin, "{}")?,
            Contestant::MillpondWithoutFile => millpond(&dir, listen, origin, "{ max_temp_file_size: 0 }")?,
            Contestant::PlainPingora => plain_pingora(listen, origin)?,
            Contestant::Nginx => nginx(&dir, listen, origin, "")?,
            Contestant::NginxEqualBuffers => nginx(&dir, listen, origin, EQUAL_BUFFERS)?,
            Contestant::NginxWithoutFile => {
                nginx(&dir, listen, origin, &format!("{EQUAL_BUFFERS} proxy_max_temp_file_size 0;"))?
            }
        };
        Ok(Proxy { name: self.name(), server: Server::start(listen, &mut command)? })
    }
}

fn millpond(dir: &Path, listen: SocketAddr, origin: SocketAddr, buffering: &str) -> Result<Command> {
    let conf = format!(
        "server: {{ threads: 1 }}\n\
         temp_path: {dir}\n\
         upstreams: {{ origin: {{ servers: [ \"{origin}\" ] }} }}\n\
         services: [ {{ name: bench, listen: [ \"{listen}\" ],\n\
         \x20 routes: [ {{ upstream: origin, buffering: {buffering} }} ] }} ]\n",
        dir = dir.display(),
    );
    let path = dir.join("millpond.yaml");
    fs::write(&path, conf)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.arg("-c").arg(path).env("RUST_LOG", "error");
    Ok(command)
}

fn plain_pingora(listen: SocketAddr, origin: SocketAddr) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--plain-pingora").arg(listen.to_string()).arg(origin.to_string());
    Ok(command)
}

fn nginx(dir: &Path, listen: SocketAddr, origin: SocketAddr, buffers: &str) -> Result<Command> {
    let server = format!(
        "upstream origin {{ server {origin}; keepalive 128; keepalive_requests 1000000000; }}\n\
         server {{ listen {listen}; {buffers}\n\
         location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n"
    );
    nginx_command(dir, &server)
}

/// nginx with one worker, `sendfile` and `tcp_nopush` as in Debian's own nginx.conf, and these servers.
pub fn nginx_command(dir: &Path, servers: &str) -> Result<Command> {
    let dir_name = dir.display();
    let conf = format!(
        "daemon off; worker_processes 1; pid {dir_name}/pid; error_log stderr error;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n\
         client_body_temp_path {dir_name}/body; proxy_temp_path {dir_name}/proxy;\n\
         fastcgi_temp_path {dir_name}/fastcgi; uwsgi_temp_path {dir_name}/uwsgi; scgi_temp_path {dir_name}/scgi;\n{servers}}}\n"
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, conf)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-c").arg(path).arg("-e").arg("stderr");
    Ok(command)
}
