//! From the file's shape to its meaning. What is wrong is noted, and the rest looked at all the same.

mod error_pages;
mod files;
mod health_check;
mod login;
mod names;
mod protocol;
mod route;
mod service;
mod upstream;

use super::errors::{ConfErrors, shown};
use super::source::{Source, item_path, key_path};
use super::units::Time;
use super::{AccessLog, Address, Admin, Conf, ErrorPage, LogFormat, near, raw};
use names::Names;
use pingora_core::server::configuration::ServerConf;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Resolve the whole file; `raw` has the defaults merged into its routes, `source` is as it was written.
pub(super) fn resolve(raw: &raw::Conf, source: Source) -> Result<Conf, ConfErrors> {
    let base = Path::new(&source.file).parent().map(Path::to_owned).unwrap_or_default();
    let mut resolver =
        Resolver { source, base, listeners: HashMap::new(), names: Names::default(), pages: HashMap::new() };
    resolver.look_up_names(raw);
    let conf = Conf {
        file: resolver.source.file.clone(),
        server: Arc::new(resolver.server_conf(&raw.server)),
        admin: raw.admin.as_ref().and_then(|admin| resolver.admin(admin)),
        access_log: raw.access_log.as_ref().and_then(|log| resolver.access_log(log)),
        temp_path: resolver.folder(&raw.temp_path, "temp_path"),
        buffer_memory_max: raw.buffer_memory_max.0,
        temp_files_max: raw.temp_files_max.0,
        upstreams: resolver.upstreams(raw),
        services: resolver.services(raw),
        places: std::mem::take(&mut resolver.source.places),
    };
    resolver.source.into_result(conf)
}

struct Resolver {
    source: Source,
    /// Where relative paths start.
    base: PathBuf,
    /// The listeners so far, and their keys.
    listeners: HashMap<Address, String>,
    /// What is known of the servers' names.
    names: Names,
    /// The files of error pages so far, by their names in the file: routes that inherit one share it.
    pages: HashMap<String, ErrorPage>,
}

impl Resolver {
    fn error(&mut self, path: &str, found: impl Into<String>, expected: impl Into<String>) {
        self.source.error(path, found, expected);
    }

    /// Complain that `found` is at `path`.
    fn wrong(&mut self, path: &str, found: &str, expected: impl Into<String>) {
        let found = if found.is_empty() { "nothing".to_owned() } else { shown(&found.into()) };
        self.error(path, found, expected);
    }

    fn server_conf(&mut self, given: &Map<String, Value>) -> ServerConf {
        for (key, value) in given {
            self.server_key(key, value);
        }
        let mut keys = raw::server_defaults();
        keys.extend(given.clone());
        let conf = serde_json::from_value::<ServerConf>(Value::Object(keys));
        // what cannot be read has been told, key by key
        conf.unwrap_or_default().validate().unwrap_or_else(|error| {
            self.error("server", "a mapping", error.to_string());
            ServerConf::default()
        })
    }

    /// Pingora's struct would tell of the first wrong key only.
    fn server_key(&mut self, key: &str, value: &Value) {
        let alone = Map::from_iter([(key.to_owned(), value.clone())]);
        if key.starts_with("client_bind_to_ip") {
            self.bind_addresses(key, value);
        }
        if let Err(error) = serde_json::from_value::<ServerConf>(Value::Object(alone)) {
            let reason = error.to_string();
            let expected = reason.rsplit_once("expected ").map_or(reason.as_str(), |(_, expected)| expected);
            self.error(&key_path("server", key), shown(value), expected);
        }
    }

    /// Pingora panics on what is no address.
    fn bind_addresses(&mut self, key: &str, value: &Value) {
        for (index, address) in value.as_array().into_iter().flatten().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let is_right = match key {
                "client_bind_to_ipv4" => text.parse::<Ipv4Addr>().is_ok(),
                _ => text.parse::<Ipv6Addr>().is_ok(),
            };
            if address.is_string() && !is_right {
                let version = if key == "client_bind_to_ipv4" { "4" } else { "6" };
                let path = item_path(&key_path("server", key), index);
                self.wrong(&path, text, format!("an IPv{version} address of this machine"));
            }
        }
    }

    fn admin(&mut self, admin: &raw::Admin) -> Option<Admin> {
        let listen = self.listener(&admin.listen, "admin.listen")?;
        Some(Admin { listen, allow_changes: admin.allow_changes })
    }

    fn access_log(&mut self, log: &raw::AccessLog) -> Option<AccessLog> {
        let path = self.folder(&log.path, "access_log.path");
        Some(AccessLog { path, format: self.log_format(&log.format, "access_log.format")? })
    }

    fn log_format(&mut self, format: &str, path: &str) -> Option<LogFormat> {
        const EXPECTED: &str = "json, combined, or a template such as \"$remote_addr $request_uri $status\"";
        match format {
            "json" => return Some(LogFormat::Json),
            "combined" => return Some(LogFormat::Combined),
            _ => {}
        }
        let template = self.template(format, &[], path)?;
        if template.literal().is_some() {
            let near = near::matches(format, ["json", "combined"]);
            self.wrong(path, format, format!("{EXPECTED}{}", near::question(&near)));
        }
        Some(LogFormat::Template(template))
    }

    fn positive(&mut self, time: Time, path: &str) -> std::time::Duration {
        if time.0.is_zero() {
            self.error(path, time.to_string(), "more than 0s");
        }
        time.0
    }
}

#[cfg(test)]
mod tests;
