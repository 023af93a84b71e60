//! Addresses, files and templates: the scalars whose meaning takes more than a look.

use super::Resolver;
use crate::conf::Address;
use crate::template::Template;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

impl Resolver {
    /// An address to listen on, which nobody else listens on.
    pub(super) fn listener(&mut self, text: &str, path: &str) -> Option<Address> {
        let Some(address) = listen_address(text) else {
            self.wrong(path, text, "an address such as 127.0.0.1:8000, [::]:8000 or unix:/run/x.sock");
            return None;
        };
        let ephemeral = matches!(address, Address::Inet(address) if address.port() == 0);
        if !ephemeral && let Some(other) = self.listeners.insert(address.clone(), path.to_owned()) {
            self.wrong(path, text, format!("an address of its own, {other} has it already"));
        }
        Some(address)
    }

    /// The addresses of a server; a name may have several.
    pub(super) fn server_addresses(&mut self, text: &str, path: &str) -> Vec<Address> {
        if let Some(socket) = text.strip_prefix("unix:").filter(|socket| !socket.is_empty()) {
            return vec![Address::Unix(socket.into())];
        }
        let Some((host, port)) = host_and_port(text) else {
            self.wrong(path, text, "an address such as 127.0.0.1:8080, app.internal:8080 or unix:/run/app.sock");
            return Vec::new();
        };
        if let Ok(ip) = host.parse::<IpAddr>() {
            return vec![Address::Inet(SocketAddr::new(ip, port))];
        }
        match self.names.answers.get(host) {
            Some(Ok(answer)) => answer.at(port).into_iter().map(Address::Inet).collect(),
            Some(Err(reason)) => {
                let expected = format!("a name that can be looked up ({reason})");
                self.wrong(path, text, expected);
                Vec::new()
            }
            // Names are not looked up with a wrong resolver, and it has been said.
            None => Vec::new(),
        }
    }

    /// A path of the file's; relative ones start at the file's folder.
    pub(super) fn folder(&mut self, text: &str, path: &str) -> PathBuf {
        if text.is_empty() {
            self.wrong(path, text, "a path");
        }
        self.base.join(text)
    }

    /// A file that has a PEM block whose label ends with `label`.
    pub(super) fn pem(&mut self, text: &str, label: &str, path: &str) -> PathBuf {
        let file = self.folder(text, path);
        if text.is_empty() {
            return file;
        }
        match std::fs::read(&file) {
            Ok(content) if has_pem_block(&content, label) => {}
            Ok(_) => self.wrong(path, text, format!("a PEM file with a {label}")),
            Err(error) => self.wrong(path, text, format!("a readable file ({}: {error})", file.display())),
        }
        file
    }

    pub(super) fn template(&mut self, text: &str, captures: &[String], path: &str) -> Option<Template> {
        match Template::parse(text, captures) {
            Ok(template) => Some(template),
            Err(error) => {
                self.wrong(path, text, format!("a template ({error})"));
                None
            }
        }
    }
}

/// Why a text is no regular expression, on one line.
pub(super) fn regex_reason(error: &regex::Error) -> String {
    let reason = error.to_string();
    reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

fn listen_address(text: &str) -> Option<Address> {
    if let Some(socket) = text.strip_prefix("unix:") {
        return (!socket.is_empty()).then(|| Address::Unix(socket.into()));
    }
    text.parse::<SocketAddr>().ok().map(Address::Inet)
}

/// `host:port`, `[v6]:port`; the port is not 0.
pub(super) fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<IpAddr>().ok().map(|_| v6)?,
        None => Some(host).filter(|host| !host.contains(':'))?,
    };
    let named = !host.is_empty() && !host.contains(|c: char| c == '/' || c.is_whitespace());
    named.then_some((host, port))
}

fn has_pem_block(content: &[u8], label: &str) -> bool {
    let text = String::from_utf8_lossy(content);
    let has = |marker: &str| {
        let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(marker)?.strip_suffix("-----"));
        lines.any(|found| found.ends_with(label))
    };
    has("-----BEGIN ") && has("-----END ")
}
