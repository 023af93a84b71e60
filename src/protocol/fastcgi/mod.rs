//! [`FastCgi`]: applications behind FastCGI, PHP-FPM above all.
//!
//! | HTTP | FastCGI |
//! |---|---|
//! | the request | `FCGI_BEGIN_REQUEST` (responder), the variables of CGI/1.1 in `FCGI_PARAMS` |
//! | its body | `FCGI_STDIN`, as it comes |
//! | the response header | the CGI header block at the start of `FCGI_STDOUT`: `Status`, else 302 with a `Location`,
//! else 200 |
//! | the response body | the rest of `FCGI_STDOUT`, until `FCGI_END_REQUEST` |
//! | a line in the log | `FCGI_STDERR` |
//! | 502 (`next_upstream`: `invalid_header`) | no FastCGI, or the end of the request in front of the header |
//! | 502 (`next_upstream`: `error`) | `FCGI_OVERLOADED`, and what else says that the request was refused |
//! | a broken message | the connection ends without `FCGI_END_REQUEST`, and neither the output nor its `Content-Length`
//! was complete |
//! | the client leaves | `FCGI_ABORT_REQUEST`, and the connection is closed |
//!
//! As nginx's `fastcgi_pass`, but for: buffering goes on while the body is uploaded, and an application that dies in
//! the middle of its answer is a broken message, also where connections are not kept.

mod record;
mod stderr;

use super::cgi::{HeaderEnd, Index, OwnParams, Params, Root, Script, Split, parse_header};
use super::{BodyLength, Codec, Input, Parsed, Protocol, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::headers::parse_content_length;
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use pingora_http::ResponseHeader;
use record::{Event, ParamsWriter, Records};
use serde::Deserialize;
use std::sync::Arc;
use stderr::Stderr;

/// A route's `fastcgi`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastCgiConf {
    /// The folder of the scripts, as the application sees it: `DOCUMENT_ROOT`. Default: none, the application is the
    /// only script, and all of the path is its `PATH_INFO`.
    root: Option<Root>,
    /// The script for a path that ends with a slash. Default: `index.php`.
    index: Option<Index>,
    /// A regular expression with two groups: what of the path is the script, and what its `PATH_INFO`. Default: the
    /// script is the first segment with `index`'s extension, a path without one is not found, nor is a script behind
    /// what looks like a file.
    split_path_info: Option<Split>,
    /// Variables that are added, or replace the usual ones; an empty value removes.
    #[serde(default)]
    params: OwnParams,
}

impl FastCgiConf {
    fn script(&self) -> Result<Script> {
        let Some(root) = self.root.clone() else {
            if self.index.is_some() || self.split_path_info.is_some() {
                return Err(expected("`root` beside `index` and `split_path_info`"));
            }
            return Ok(Script::Application);
        };
        let index = self.index.clone().unwrap_or_default();
        if index.extension().is_none() && self.split_path_info.is_none() {
            return Err(expected("`split_path_info`, or an `index` with an extension, by which scripts are known"));
        }
        Ok(Script::File { root, index, split: self.split_path_info.clone() })
    }
}

/// What the settings should have been.
fn expected(what: &str) -> Error {
    Error::new(ErrorKind::Internal, what)
}

/// FastCGI, as one route speaks it.
pub struct FastCgi(Arc<Settings>);

struct Settings {
    params: Params,
    place: Arc<str>,
}

impl FastCgi {
    /// With a route's settings; `place` is what the log calls it.
    ///
    /// # Errors
    /// Settings that do not go together; the text says what was expected.
    pub fn new(conf: FastCgiConf, place: &str) -> Result<Self> {
        let params = Params::new(conf.script()?, conf.params);
        Ok(FastCgi(Arc::new(Settings { params, place: place.into() })))
    }
}

impl Protocol for FastCgi {
    fn codec(&self) -> Box<dyn Codec> {
        Box::new(Responder {
            stderr: Stderr::new(self.0.place.clone()),
            settings: self.0.clone(),
            keep_conn: false,
            records: Records::default(),
            header: BytesMut::new(),
            header_end: HeaderEnd::default(),
            body_left: None,
            end: End::Open,
        })
    }

    /// Applications read as much as `CONTENT_LENGTH` says.
    fn needs_body_length(&self) -> bool {
        true
    }
}

/// One request and its answer.
struct Responder {
    settings: Arc<Settings>,
    keep_conn: bool,
    records: Records,
    /// The header block, as far as it has come.
    header: BytesMut,
    header_end: HeaderEnd,
    /// Body bytes to come, if the header said how many.
    body_left: Option<u64>,
    end: End,
    stderr: Stderr,
}

/// How far the answer has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// There was an end of the output: `FCGI_END_REQUEST` has yet to come.
    OutputEnded,
    /// `FCGI_END_REQUEST`.
    Ended,
    /// And bytes behind it.
    Excess,
}

impl Codec for Responder {
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()> {
        if request.body_length() == BodyLength::Unknown {
            return Err(Error::with_status(411, "FastCGI has to know the length of a request body"));
        }
        self.keep_conn = request.keeps_connection();
        record::put_begin_request(out, self.keep_conn);
        let mut params = ParamsWriter::new(out);
        self.settings.params.each(request, |name, value| params.put(name, value))?;
        params.finish();
        Ok(())
    }

    fn request_body(&mut self, chunk: Bytes, last: bool, out: &mut Vec<Bytes>) {
        record::push_stdin(chunk, last, out);
    }

    fn process_header(&mut self, received: &[u8]) -> Result<Parsed> {
        let Some((event, length)) = self.records.next(received).map_err(invalid_header)? else {
            return Ok(Parsed::Partial);
        };
        let (piece, _) = received.split_at(length);
        match event {
            Event::Stdout => return self.header_piece(piece),
            Event::Stderr { last } => self.stderr.write(piece, last),
            Event::End(0) => return Err(invalid_header("the end of the request before its header was complete")),
            Event::End(status) => return Err(refused(status)),
            Event::StdoutEnd | Event::Skip => {}
        }
        Ok(Parsed::Skipped(length))
    }

    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        let (mut consumed, mut body) = (0, 0);
        while !self.is_done()
            && let Some((event, length)) =
                self.records.next(raw.get(consumed..).unwrap_or_default()).map_err(invalid_body)?
        {
            let piece = consumed..consumed + length;
            consumed = piece.end;
            match event {
                Event::Stdout => {
                    self.body_left = self.body_left.map(|left| left.saturating_sub(length as u64));
                    self.end = End::Open;
                    raw.copy_within(piece, body);
                    body += length;
                }
                Event::Stderr { last } => self.stderr.write(raw.get(piece).unwrap_or_default(), last),
                Event::StdoutEnd => self.end = End::OutputEnded,
                Event::End(0) => self.end = End::Ended,
                Event::End(status) => {
                    return Err(invalid_body(format!("the protocol status {status} behind an answer")));
                }
                Event::Skip => {}
            }
        }
        if consumed < raw.len() {
            self.end = End::Excess;
        }
        Ok(Input { body, done: self.is_done() })
    }

    /// nginx takes that for the end whenever the connection was not to be kept.
    fn end_of_input(&mut self) -> Result<()> {
        if self.end != End::Open || self.body_left == Some(0) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Truncated, "the FastCGI application closed before the end of its answer"))
    }

    fn keepalive(&self) -> bool {
        self.keep_conn && self.end == End::Ended
    }

    fn abort(&mut self, out: &mut BytesMut) {
        record::put_abort_request(out);
    }
}

impl Responder {
    fn header_piece(&mut self, piece: &[u8]) -> Result<Parsed> {
        let before = self.header.len();
        self.header.extend_from_slice(piece);
        let Some(end) = self.header_end.find(&self.header) else { return Ok(Parsed::Consumed(piece.len())) };
        self.header.truncate(end);
        let consumed = end - before;
        // The rest of the piece belongs to the body.
        self.records.put_back(piece.len() - consumed);
        let header = parse_header(&self.header.split().freeze())?;
        self.body_left = content_length(&header);
        Ok(Parsed::Done(header, consumed))
    }

    fn is_done(&self) -> bool {
        matches!(self.end, End::Ended | End::Excess) && self.records.is_between()
    }
}

fn content_length(header: &ResponseHeader) -> Option<u64> {
    parse_content_length(header.headers.get(CONTENT_LENGTH)?.as_bytes())
}

/// A protocol status (specification 5.5): the request has not been served, another peer may do better. For nginx that
/// is an `invalid_header`, as is any end of the request in front of the header.
fn refused(status: u8) -> Error {
    let name = match status {
        1 => "FCGI_CANT_MPX_CONN",
        2 => "FCGI_OVERLOADED",
        3 => "FCGI_UNKNOWN_ROLE",
        _ => "an unknown protocol status",
    };
    Error::new(ErrorKind::Unavailable, format!("the FastCGI application refused the request: {name} ({status})"))
}

fn invalid_header(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidHeader, format!("the FastCGI application sent {}", what.into()))
}

fn invalid_body(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidBody, format!("the FastCGI application sent {}", what.into()))
}

#[cfg(test)]
mod tests;
