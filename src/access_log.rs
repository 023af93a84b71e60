//! The access log: one line per request, written away from the async threads. Each reload opens the file again, so that
//! it can be renamed (logrotate) or another one be used.

use crate::conf::{AccessLog, LogFormat};
use crate::session::{Attempt, Session};
use crate::template::{Template, Variable, Variables};
use crate::variables;
use arc_swap::ArcSwapOption;
use once_cell::sync::Lazy;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Lines that may wait for the disk. When they are that many, further ones are dropped and counted in the log: an
/// access log must not stop the traffic it tells of.
const QUEUE: usize = 64 * 1024;
/// Bytes of one write, and a line.
const BATCH: usize = 64 * 1024;

/// nginx's `combined`.
static COMBINED: Lazy<Template> = Lazy::new(|| {
    const TEXT: &str = "$remote_addr - $remote_user [$time_local] \"$request_method $request_uri $server_protocol\" \
                        $status $body_bytes_sent \"$http_referer\" \"$http_user_agent\"";
    TEXT.parse().expect("a template of variables that exist")
});

static LOG: ArcSwapOption<Log> = ArcSwapOption::const_empty();

/// Where all lines go. The thread behind it is started by the first one: until then the process may still fork (`-d`),
/// and only one thread survives that. Tokio's channel grows with what waits in it; std's bounded one takes 2.5 MiB at
/// once.
static LINES: Lazy<Sender<Line>> = Lazy::new(|| {
    let (lines, queued) = channel(QUEUE);
    let spawned = std::thread::Builder::new().name("access log".to_owned()).spawn(move || write(queued));
    if let Err(error) = spawned {
        log::error!("access log: no thread to write it: {error}");
    }
    lines
});

/// A log that is open.
pub(crate) struct Log {
    format: LogFormat,
    output: Arc<Output>,
}

struct Output {
    path: PathBuf,
    file: File,
}

/// A line for the file that was in use when the request ended.
type Line = (Arc<Output>, String);

impl Log {
    /// Open the file, creating it if it is not there.
    ///
    /// # Errors
    /// It cannot be opened for appending; the text names it.
    pub(crate) fn open(conf: &AccessLog) -> Result<Self, String> {
        let file = OpenOptions::new().create(true).append(true).open(&conf.path);
        let file = file.map_err(|error| format!("access_log.path: {}: {error}", conf.path.display()))?;
        Ok(Log { format: conf.format.clone(), output: Arc::new(Output { path: conf.path.clone(), file }) })
    }
}

/// Use this log from the next finished request on, or none. A file that is no longer in use is closed once its last
/// line is written.
pub(crate) fn use_log(log: Option<Log>) {
    LOG.store(log.map(Arc::new));
}

/// The writer's thread. It holds a file only while it has lines for it.
fn write(mut queued: Receiver<Line>) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some((mut output, line)) = queued.blocking_recv() {
        add(&mut batch, &line);
        // Whatever else is waiting goes into the same write.
        while let Ok((next, line)) = queued.try_recv() {
            if !Arc::ptr_eq(&output, &next) || batch.len() >= BATCH {
                append(&output, &mut batch);
                output = next;
            }
            add(&mut batch, &line);
        }
        append(&output, &mut batch);
    }
}

fn add(batch: &mut Vec<u8>, line: &str) {
    batch.extend_from_slice(line.as_bytes());
    batch.push(b'\n');
}

fn append(output: &Output, batch: &mut Vec<u8>) {
    if let Err(error) = (&output.file).write_all(batch) {
        log::error!("access log {}: {error}", output.path.display());
    }
    batch.clear();
}

/// Write the line of a finished request.
pub(crate) fn log(session: &Session<'_>) {
    let log = LOG.load();
    let Some(log) = log.as_ref() else { return };
    let line = match &log.format {
        LogFormat::Json => json_line(session).to_string(),
        LogFormat::Combined => COMBINED.render_or(&Escaped(session), "-").into_owned(),
        LogFormat::Template(template) => template.render_or(&Escaped(session), "-").into_owned(),
    };
    if let Err(TrySendError::Full(_)) = LINES.try_send((log.output.clone(), line)) {
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
    add("remote_user", json!(session.remote_user()));
    add("service", json!(session.service().name()));
    add("route", json!(session.route().name()));
    add("method", json!(request.method.as_str()));
    add("host", json!(session.host()));
    let uri = session.original_uri().map(Cow::from);
    add("request_uri", json!(uri.unwrap_or_else(|| String::from_utf8_lossy(request.raw_path()))));
    add("protocol", json!(variables::protocol(session)));
    add("status", json!(outcome.status));
    add("body_bytes_sent", json!(outcome.body_bytes_sent));
    add("body_bytes_received", json!(outcome.body_bytes_read));
    add("request_time", json!(session.started().elapsed().as_secs_f64()));
    add("request_id", json!(session.known_request_id()));
    if session.is_subrequest() {
        // The id is its parent's.
        add("subrequest", json!(true));
    }
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
