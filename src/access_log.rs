//! The access log: one line per request, written away from the async threads.

use crate::conf::{AccessLog, LogFormat};
use crate::session::{Attempt, Session};
use crate::template::{Template, Variable, Variables};
use crate::variables;
use once_cell::sync::Lazy;
use once_cell::sync::OnceCell;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

/// Lines that may wait for the disk. When they are that many, further ones are dropped and counted in the log: an access
/// log must not stop the traffic it tells of.
const QUEUE: usize = 64 * 1024;

/// nginx's `combined`.
static COMBINED: Lazy<Template> = Lazy::new(|| {
    const TEXT: &str = "$remote_addr - - [$time_local] \"$request_method $request_uri $server_protocol\" $status \
                        $body_bytes_sent \"$http_referer\" \"$http_user_agent\"";
    TEXT.parse().expect("a template of variables that exist")
});

static LOG: OnceCell<Arc<Log>> = OnceCell::new();

struct Log {
    format: LogFormat,
    lines: SyncSender<String>,
}

/// Open the log and start its writer. Once per process.
///
/// # Errors
/// The file cannot be opened for appending.
pub(crate) fn open(conf: &AccessLog) -> std::io::Result<()> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&conf.path)?;
    let (lines, queued) = sync_channel::<String>(QUEUE);
    let path = conf.path.display().to_string();
    std::thread::Builder::new().name("access log".to_owned()).spawn(move || {
        let mut out = BufWriter::with_capacity(64 * 1024, file);
        while let Ok(line) = queued.recv() {
            let mut written = writeln!(out, "{line}");
            // Whatever else is waiting goes into the same write.
            for line in queued.try_iter().take(QUEUE) {
                written = written.and_then(|()| writeln!(out, "{line}"));
            }
            if let Err(error) = written.and_then(|()| out.flush()) {
                log::error!("access log {path}: {error}");
            }
        }
    })?;
    let _ = LOG.set(Arc::new(Log { format: conf.format.clone(), lines }));
    Ok(())
}

/// Write the line of a finished request.
pub(crate) fn log(session: &Session<'_>) {
    let Some(log) = LOG.get() else { return };
    let line = match &log.format {
        LogFormat::Json => json_line(session).to_string(),
        LogFormat::Combined => COMBINED.render_or(&Escaped(session), "-").into_owned(),
        LogFormat::Template(template) => template.render_or(&Escaped(session), "-").into_owned(),
    };
    if let Err(TrySendError::Full(_)) = log.lines.try_send(line) {
        log::warn!("access log: {QUEUE} lines are waiting for the disk, one was dropped");
    }
}

/// A request's values in a form in which they cannot forge a line or end a quoted field: nginx's `escape=default`.
struct Escaped<'a, 's>(&'a Session<'s>);

impl Variables for Escaped<'_, '_> {
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        self.0.value(variable).map(escape)
    }
}

fn escape(value: Cow<'_, str>) -> Cow<'_, str> {
    let unsafe_in_a_line = |character: char| character.is_control() || matches!(character, '"' | '\\');
    if !value.contains(unsafe_in_a_line) {
        return value;
    }
    let mut safe = String::with_capacity(value.len() + 16);
    for character in value.chars() {
        if unsafe_in_a_line(character) {
            safe.push_str(&format!("\\x{:02X}", u32::from(character)));
        } else {
            safe.push(character);
        }
    }
    safe.into()
}

fn json_line(session: &Session<'_>) -> Value {
    let (request, outcome) = (session.request(), &session.outcome);
    let header = |name: &str| request.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let mut line = Map::new();
    let mut add = |key: &str, value: Value| line.insert(key.to_owned(), value);
    add("time", json!(variables::time_iso8601()));
    add("remote_addr", json!(session.remote_addr().map(|address| address.ip().to_string())));
    add("service", json!(session.service().name()));
    add("route", json!(session.route().name()));
    add("method", json!(request.method.as_str()));
    add("host", json!(crate::exchange::start::client_host(session)));
    add("request_uri", json!(String::from_utf8_lossy(request.raw_path())));
    add("protocol", json!(variables::protocol(session)));
    add("status", json!(outcome.status));
    add("body_bytes_sent", json!(outcome.body_bytes_sent));
    add("body_bytes_received", json!(outcome.body_bytes_read));
    add("request_time", json!(session.started().elapsed().as_secs_f64()));
    add("request_id", json!(session.known_request_id()));
    add("user_agent", json!(header("user-agent")));
    add("referer", json!(header("referer")));
    add("upstream", json!(session.route().upstream().map(|upstream| upstream.name().to_owned())));
    add("attempts", session.attempts().iter().map(attempt).collect());
    let buffered = &session.buffered;
    add(
        "buffered",
        json!({
            "memory_high_water": buffered.memory_high_water,
            "temp_file_high_water": buffered.file_high_water,
            "backpressure": buffered.backpressure.as_secs_f64(),
        }),
    );
    add("error", json!(outcome.error.as_ref().map(|error| error.to_string())));
    Value::Object(line)
}

fn attempt(attempt: &Attempt) -> Value {
    json!({
        "address": &*attempt.address,
        "status": attempt.status,
        "outcome": attempt.outcome,
        "reused": attempt.reused,
        "connect_time": attempt.connect_time.map(|time| time.as_secs_f64()),
        "header_time": attempt.header_time.map(|time| time.as_secs_f64()),
        "response_time": attempt.response_time.map(|time| time.as_secs_f64()),
        "bytes_received": attempt.bytes_received,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_cannot_forge_a_line_or_end_a_field() {
        assert_eq!(escape("curl\n127.0.0.1 - -".into()), "curl\\x0A127.0.0.1 - -");
        assert_eq!(escape("a \" b\\".into()), "a \\x22 b\\x5C");
    }
}
