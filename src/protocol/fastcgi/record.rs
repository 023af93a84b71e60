//! FastCGI's records (specification 3.3): how they are written, and [`Records`], which reads them in whatever pieces they
//! come.

use bytes::{BufMut, Bytes, BytesMut};

/// The only version there is.
const VERSION: u8 = 1;

/// One request at a time is on a connection, and this is its id. Records about the connection as a whole have 0.
const REQUEST_ID: u8 = 1;

const HEADER_LENGTH: usize = 8;

/// The most a record can carry.
const MAX_CONTENT: usize = 0xffff;

/// The most that fits and needs no padding: the specification likes multiples of 8.
const FULL_CONTENT: usize = 0xfff8;

#[derive(Clone, Copy)]
enum Kind {
    BeginRequest = 1,
    AbortRequest = 2,
    EndRequest = 3,
    Params = 4,
    Stdin = 5,
    Stdout = 6,
    Stderr = 7,
}

const fn header(kind: Kind, length: usize) -> [u8; HEADER_LENGTH] {
    let [high, low] = (length as u16).to_be_bytes();
    [VERSION, kind as u8, 0, REQUEST_ID, high, low, 0, 0]
}

static FULL_STDIN: [u8; HEADER_LENGTH] = header(Kind::Stdin, FULL_CONTENT);
static LAST_STDIN: [u8; HEADER_LENGTH] = header(Kind::Stdin, 0);

/// Begin a request to a responder. `keep_conn`: it is to leave the connection open behind its answer.
pub(super) fn put_begin_request(out: &mut BytesMut, keep_conn: bool) {
    const RESPONDER: u8 = 1;
    out.put_slice(&header(Kind::BeginRequest, 8));
    out.put_slice(&[0, RESPONDER, u8::from(keep_conn), 0, 0, 0, 0, 0]);
}

pub(super) fn put_abort_request(out: &mut BytesMut) {
    out.put_slice(&header(Kind::AbortRequest, 0));
}

/// Frame a piece of the request body; `last` ends it.
pub(super) fn push_stdin(mut chunk: Bytes, last: bool, out: &mut Vec<Bytes>) {
    while chunk.len() >= FULL_CONTENT {
        out.push(Bytes::from_static(&FULL_STDIN));
        out.push(chunk.split_to(FULL_CONTENT));
    }
    if !chunk.is_empty() {
        out.push(Bytes::copy_from_slice(&header(Kind::Stdin, chunk.len())));
        out.push(chunk);
    }
    if last {
        out.push(Bytes::from_static(&LAST_STDIN));
    }
}

/// Writes variables as a stream of `FCGI_PARAMS` records.
///
/// By the specification a variable may lie across records; PHP reads each record by itself. So a record ends between two
/// variables, but for one that is larger than a record.
pub(super) struct ParamsWriter<'a> {
    out: &'a mut BytesMut,
    /// Where the header of the current record stands.
    record: usize,
}

impl<'a> ParamsWriter<'a> {
    pub(super) fn new(out: &'a mut BytesMut) -> Self {
        let record = out.len();
        out.put_bytes(0, HEADER_LENGTH);
        ParamsWriter { out, record }
    }

    /// Lengths are HTTP headers' and settings', far below the 31 bits that there are for them.
    pub(super) fn put(&mut self, name: &[u8], value: &[u8]) {
        let before = self.out.len();
        for length in [name.len(), value.len()] {
            match u8::try_from(length) {
                Ok(length @ 0..=0x7f) => self.out.put_u8(length),
                _ => self.out.put_u32(length as u32 | 1 << 31),
            }
        }
        self.out.put_slice(name);
        self.out.put_slice(value);
        if self.out.len() - self.record - HEADER_LENGTH > MAX_CONTENT {
            let variable = self.out.split_off(before);
            self.put_in_further_records(&variable);
        }
    }

    fn put_in_further_records(&mut self, variable: &[u8]) {
        for piece in variable.chunks(MAX_CONTENT) {
            if self.out.len() > self.record + HEADER_LENGTH {
                self.close_record();
                self.record = self.out.len();
                self.out.put_bytes(0, HEADER_LENGTH);
            }
            self.out.put_slice(piece);
        }
    }

    fn close_record(&mut self) {
        let length = self.out.len() - self.record - HEADER_LENGTH;
        let place = self.out.get_mut(self.record..self.record + HEADER_LENGTH);
        place
            .expect("the header's place was left when the record began")
            .copy_from_slice(&header(Kind::Params, length));
    }

    /// End the stream.
    pub(super) fn finish(mut self) {
        self.close_record();
        if self.out.len() > self.record + HEADER_LENGTH {
            // An empty record is the end; if nothing was put, the current one is that already.
            self.out.put_slice(&header(Kind::Params, 0));
        }
    }
}

/// What the bytes at the front of the input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing to look at: a record's header or padding, a record about the connection, a record of an unknown type.
    Skip,
    /// The application's output.
    Stdout,
    /// An empty record: that was all of its output.
    StdoutEnd,
    /// Its standard error; `last`: so far the record goes.
    Stderr {
        /// The rest of the record.
        last: bool,
    },
    /// The request is over, with this protocol status; 0: it was served.
    End(u8),
}

/// Reads records. It holds nothing but a record's header.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// The header, or the body of `FCGI_END_REQUEST`, as far as it has come.
    partial: [u8; HEADER_LENGTH],
    partial_length: usize,
    content: Content,
    /// Bytes of the content, and of the padding behind it, to come.
    content_left: usize,
    padding_left: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Content {
    #[default]
    Skipped,
    Stdout,
    Stderr,
    End,
}

impl Records {
    /// What comes next, and how many bytes of it are at the front of `raw`; they are consumed by that. `None`: `raw` is
    /// empty.
    ///
    /// # Errors
    /// It is no FastCGI: the text says what it is.
    pub(super) fn next(&mut self, raw: &[u8]) -> Result<Option<(Event, usize)>, String> {
        if raw.is_empty() {
            return Ok(None);
        }
        if self.content_left > 0 {
            return Ok(Some(self.content(raw)));
        }
        if self.padding_left > 0 {
            let length = self.padding_left.min(raw.len());
            self.padding_left -= length;
            return Ok(Some((Event::Skip, length)));
        }
        let length = self.collect(raw);
        let event = if self.partial_length == HEADER_LENGTH { self.begin_record()? } else { Event::Skip };
        Ok(Some((event, length)))
    }

    /// Between two records?
    pub(super) fn is_between(&self) -> bool {
        self.partial_length == 0 && self.content_left == 0 && self.padding_left == 0
    }

    /// The last so many bytes of an [`Event::Stdout`] have not been consumed: they come again.
    pub(super) fn put_back(&mut self, length: usize) {
        self.content_left += length;
    }

    fn content(&mut self, raw: &[u8]) -> (Event, usize) {
        let length = self.content_left.min(raw.len());
        if self.content == Content::End {
            self.collect(raw.get(..length).unwrap_or(raw));
        }
        self.content_left -= length;
        let last = self.content_left == 0;
        let event = match self.content {
            Content::Stdout => Event::Stdout,
            Content::Stderr => Event::Stderr { last },
            Content::End if last => {
                self.partial_length = 0;
                let [.., status, _, _, _] = self.partial;
                Event::End(status)
            }
            Content::End | Content::Skipped => Event::Skip,
        };
        (event, length)
    }

    /// Fill `partial` up; how many bytes it took.
    fn collect(&mut self, raw: &[u8]) -> usize {
        let free = self.partial.get_mut(self.partial_length..).unwrap_or_default();
        let length = free.len().min(raw.len());
        for (to, from) in free.iter_mut().zip(raw) {
            *to = *from;
        }
        self.partial_length += length;
        length
    }

    fn begin_record(&mut self) -> Result<Event, String> {
        self.partial_length = 0;
        let [version, kind, id_high, id_low, length_high, length_low, padding, _] = self.partial;
        if version != VERSION {
            return Err(format!("\"{}\" where a record was expected", self.partial.escape_ascii()));
        }
        let id = u16::from_be_bytes([id_high, id_low]);
        if id != 0 && id != u16::from(REQUEST_ID) {
            return Err(format!("a record of the request {id}, which there is not"));
        }
        self.content_left = usize::from(u16::from_be_bytes([length_high, length_low]));
        self.padding_left = usize::from(padding);
        self.content = Content::of(kind, id);
        match (self.content, self.content_left) {
            (Content::Stdout, 0) => Ok(Event::StdoutEnd),
            (Content::End, length) if length != HEADER_LENGTH => {
                Err(format!("an FCGI_END_REQUEST of {length} bytes, it has {HEADER_LENGTH}"))
            }
            _ => Ok(Event::Skip),
        }
    }
}

impl Content {
    fn of(kind: u8, id: u16) -> Self {
        const STDOUT: u8 = Kind::Stdout as u8;
        const STDERR: u8 = Kind::Stderr as u8;
        const END: u8 = Kind::EndRequest as u8;
        match kind {
            _ if id == 0 => Content::Skipped,
            STDOUT => Content::Stdout,
            STDERR => Content::Stderr,
            END => Content::End,
            _ => Content::Skipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contents of a stream of records of one kind, each record by itself.
    fn contents(mut wire: &[u8], kind: Kind) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let [1, is, 0, 1, high, low, padding, 0, rest @ ..] = wire {
            assert_eq!(*is, kind as u8);
            let (content, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            all.push(content.to_vec());
            wire = &rest[usize::from(*padding)..];
        }
        assert!(wire.is_empty(), "{wire:?}");
        all
    }

    #[test]
    fn lengths_have_one_byte_or_four() {
        let mut out = BytesMut::new();
        let mut params = ParamsWriter::new(&mut out);
        params.put(b"A", b"");
        params.put(b"B", &[b'x'; 127]);
        params.put(b"C", &[b'x'; 128]);
        params.finish();
        let records = contents(&out, Kind::Params);
        assert_eq!(records.len(), 2);
        assert_eq!(records[1], b"", "the end of the stream");
        let expected = [&b"\x01\x00A"[..], b"\x01\x7fB", &[b'x'; 127], b"\x01\x80\x00\x00\x80C", &[b'x'; 128]].concat();
        assert_eq!(records[0], expected);
    }

    #[test]
    fn a_record_ends_between_two_variables() {
        let mut out = BytesMut::new();
        let mut params = ParamsWriter::new(&mut out);
        for _ in 0..3 {
            params.put(b"A", &vec![b'x'; 40_000]);
        }
        params.put(b"B", &vec![b'y'; 200_000]);
        params.put(b"C", b"z");
        params.finish();
        let records = contents(&out, Kind::Params);
        let lengths: Vec<usize> = records.iter().map(Vec::len).collect();
        assert_eq!(lengths, [40_006, 40_006, 40_006, 65_535, 65_535, 65_535, 200_006 - 3 * 65_535 + 4, 0]);
        assert!(records[6].ends_with(b"\x01\x01Cz"));
    }

    #[test]
    fn no_variables_are_an_empty_stream() {
        let mut out = BytesMut::new();
        ParamsWriter::new(&mut out).finish();
        assert_eq!(contents(&out, Kind::Params), [b""]);
    }

    #[test]
    fn a_body_is_cut_into_records() {
        let mut out = Vec::new();
        push_stdin(Bytes::from(vec![b'x'; 100_000]), false, &mut out);
        push_stdin(Bytes::new(), false, &mut out);
        push_stdin(Bytes::from_static(b"end"), true, &mut out);
        let lengths: Vec<usize> = contents(&out.concat(), Kind::Stdin).iter().map(Vec::len).collect();
        assert_eq!(lengths, [65_528, 34_472, 3, 0]);
    }
}
