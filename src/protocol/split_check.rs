//! A property of codecs, shared by their tests and the fuzz targets: it does not matter in what pieces the bytes of an
//! answer arrive.

use bytes::BytesMut;
use http::HeaderMap;
use millpond::error::ErrorKind;
use millpond::protocol::{BodyLength, Codec, Parsed, Protocol, Request};
use pingora_http::{RequestHeader, ResponseHeader};

/// All that an engine learns from the codec about one answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    /// Interim answers first; as text, names in their own case.
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    pub end: End,
    pub keepalive: bool,
    pub trailers: Option<HeaderMap>,
}

/// How it ended.
#[derive(Debug, PartialEq)]
pub(crate) enum End {
    Done,
    Closed,
    Upgraded,
    Failed(ErrorKind),
}

/// Read `wire`, an answer to `request`, whole, and in pieces of these sizes, over and over. Panics unless both give the
/// same answer.
pub(crate) fn check(protocol: &dyn Protocol, request: &RequestHeader, wire: &[u8], sizes: &[usize]) -> Answer {
    let whole = read(protocol, request, wire, &[wire.len()]);
    let split = read(protocol, request, wire, sizes);
    assert!(whole.body.len() <= wire.len() && split.body.len() <= wire.len(), "more body than input");
    if let End::Failed(ErrorKind::InvalidHeader | ErrorKind::InvalidBody) = whole.end {
        // Body bytes that came in one piece with the offence are lost.
        assert!(split.body.starts_with(&whole.body));
        assert_eq!((&whole.headers, &whole.end), (&split.headers, &split.end));
    } else {
        assert_eq!(whole, split);
    }
    whole
}

/// Read `wire` in pieces of these sizes, over and over, then the end of the connection.
pub(crate) fn read(protocol: &dyn Protocol, request: &RequestHeader, wire: &[u8], sizes: &[usize]) -> Answer {
    let mut reader = Reader::new(protocol, request);
    let mut sizes = sizes.iter().cycle();
    let mut rest = wire;
    while !rest.is_empty() && reader.end.is_none() {
        let size = sizes.next().map_or(1, |size| (*size).clamp(1, rest.len()));
        let (piece, behind) = rest.split_at(size);
        rest = behind;
        if let Err(error) = reader.piece(piece) {
            reader.end = Some(End::Failed(error.kind()));
        }
    }
    reader.finish()
}

struct Reader {
    codec: Box<dyn Codec>,
    received: Vec<u8>,
    in_body: bool,
    done: bool,
    headers: Vec<String>,
    body: Vec<u8>,
    end: Option<End>,
}

impl Reader {
    fn new(protocol: &dyn Protocol, request: &RequestHeader) -> Self {
        let mut codec = protocol.codec();
        let mut out = BytesMut::new();
        codec.create_request(&Request::new(request, BodyLength::None, &()), &mut out).expect("a valid request");
        codec.new_connection(&mut out);
        let (received, headers, body) = Default::default();
        Reader { codec, received, in_body: false, done: false, headers, body, end: None }
    }

    fn piece(&mut self, piece: &[u8]) -> millpond::error::Result<()> {
        self.received.extend_from_slice(piece);
        while !self.in_body {
            match self.codec.process_header(&self.received)? {
                Parsed::Partial => return Ok(()),
                Parsed::Consumed(len) | Parsed::Skipped(len) => {
                    assert!(len > 0, "nothing was consumed");
                    self.received.drain(..len);
                }
                Parsed::Interim(header, len) => self.header(&header, len),
                Parsed::Upgraded(header, len) => {
                    self.header(&header, len);
                    self.end = Some(End::Upgraded);
                    return Ok(());
                }
                Parsed::Done(header, len) => {
                    self.header(&header, len);
                    self.in_body = true;
                }
            }
        }
        let mut raw = std::mem::take(&mut self.received);
        let input = self.codec.input_filter(&mut raw)?;
        assert!(input.done || !self.done, "a body that was done goes on");
        self.done = input.done;
        self.body.extend_from_slice(raw.get(..input.body).expect("no more body than input"));
        Ok(())
    }

    fn header(&mut self, header: &ResponseHeader, len: usize) {
        let mut text = format!("{:?} {} {:?}\r\n", header.version, header.status, header.get_reason_phrase());
        let mut fields = Vec::new();
        header.header_to_h1_wire(&mut fields);
        text.push_str(&fields.escape_ascii().to_string());
        self.headers.push(text);
        self.received.drain(..len);
    }

    fn finish(mut self) -> Answer {
        let done = self.done;
        let end = self.end.take().unwrap_or_else(|| match (done, self.codec.end_of_input()) {
            (true, _) => End::Done,
            (false, Ok(())) => End::Closed,
            (false, Err(error)) => End::Failed(error.kind()),
        });
        let (keepalive, trailers) = (self.codec.keepalive(), self.codec.trailers());
        Answer { headers: self.headers, body: self.body, end, keepalive, trailers }
    }
}

/// Check all that a fuzz target begins with: what was written for it, and what it has found (`found-…`), as answers to
/// these requests; each also with its last byte changed, so that failures are among them.
#[cfg(test)]
pub(crate) fn check_seeds(target: &str, protocol: &dyn Protocol, requests: &[RequestHeader]) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let seeds: Vec<_> = std::fs::read_dir(folder).expect("a folder of seeds").collect();
    assert!(seeds.len() > 5, "{target} has {} seeds", seeds.len());
    for seed in seeds {
        let mut wire = std::fs::read(seed.expect("a seed").path()).expect("a file");
        for request in requests {
            for sizes in [[1, 1], [2, 3], [7, 1], [40, 1], [wire.len() / 2, 3]] {
                check(protocol, request, &wire, &sizes);
            }
        }
        if let Some(last) = wire.last_mut() {
            *last ^= 0x10;
        }
        for request in requests {
            check(protocol, request, &wire, &[3, 5]);
        }
    }
}
