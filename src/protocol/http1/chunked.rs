//! The chunked transfer coding (RFC 9112 7.1), decoded in place, one byte of syntax at a time.

use crate::error::{Error, ErrorKind, Result};
use crate::headers::is_hop_by_hop;
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::{EMPTY_HEADER, Status};

/// Hex digits of a chunk size: as many as fit into its 64 bits.
const MAX_DIGITS: u8 = 16;
/// Bytes of a line with a chunk size, its extensions included.
const MAX_SIZE_LINE: usize = 8 * 1024;
/// Bytes of all trailers.
const MAX_TRAILERS: usize = 16 * 1024;
/// Trailers in number.
const MAX_TRAILER_FIELDS: usize = 64;

/// A chunked body that is being read.
#[derive(Default)]
pub(super) struct Chunked {
    state: State,
    /// Bytes of this chunk still to come; while its size is read, as much of that as has come.
    left: u64,
    /// Digits of that size.
    digits: u8,
    /// Bytes of the line that it is on.
    line: usize,
    /// The trailers as they came.
    trailer_section: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// A hex digit, or what follows the last of them.
    #[default]
    Size,
    /// White space behind the size. Some servers fill their size lines up with it.
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// A trailer or the end.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// What one call of [`Chunked::decode`] did.
pub(super) struct Decoded {
    /// Body bytes, now at the front.
    pub(super) body: usize,
    /// Bytes looked at: fewer than there were if the body ended.
    pub(super) used: usize,
}

impl Chunked {
    /// Move the body bytes in `raw` to its front.
    pub(super) fn decode(&mut self, raw: &mut [u8]) -> Result<Decoded> {
        let (mut body, mut used) = (0, 0);
        while self.state != State::Done {
            if self.state == State::Data {
                let run = usize::try_from(self.left).unwrap_or(usize::MAX).min(raw.len() - used);
                if body != used {
                    raw.copy_within(used..used + run, body);
                }
                body += run;
                used += run;
                self.data(run);
            }
            let Some(&byte) = raw.get(used) else { break };
            self.syntax(byte)?;
            used += 1;
        }
        Ok(Decoded { body, used })
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What a body that ends here lacks; nothing if it is complete.
    pub(super) fn missing(&self) -> Option<String> {
        use State::*;
        match self.state {
            Done => None,
            Data => Some(format!("in the middle of a chunk, {} bytes before its end", self.left)),
            Size if self.digits == 0 => Some("before the last chunk".into()),
            Size | SizeSpace | Extension | SizeLf => Some("in the middle of a chunk size".into()),
            DataCr | DataLf => Some("at the end of a chunk, but not of the body".into()),
            TrailerStart | Trailer | TrailerLf | EndLf => Some("behind the last chunk, in the trailers".into()),
        }
    }

    /// The trailers, once, when it is done.
    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    fn data(&mut self, run: usize) {
        self.left -= run as u64;
        if self.left == 0 {
            self.state = State::DataCr;
        }
    }

    /// One byte that is not body. [`State::Data`] takes none: its bytes run out before a byte comes here.
    fn syntax(&mut self, byte: u8) -> Result<()> {
        use State::*;
        self.state = match (self.state, byte) {
            (Size | SizeSpace | Extension, _) => self.size_line(byte)?,
            (SizeLf, b'\n') => self.size_done(),
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => self.next_size(),
            (TrailerStart, b'\r') => EndLf,
            (EndLf, b'\n') => self.end()?,
            (TrailerStart | Trailer | TrailerLf, _) => self.trailer(byte)?,
            (Data | Done, _) => self.state,
            (SizeLf | DataCr | DataLf | EndLf, _) => return Err(unexpected("a line end", byte)),
        };
        Ok(())
    }

    fn size_line(&mut self, byte: u8) -> Result<State> {
        use State::*;
        self.line += 1;
        if self.line > MAX_SIZE_LINE {
            return Err(invalid_body("a chunk size line that is too long"));
        }
        match (self.state, byte) {
            (Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte),
            (Size, _) if self.digits == 0 => Err(unexpected("a chunk size", byte)),
            (_, b'\r') => Ok(SizeLf),
            (Size | SizeSpace, b' ' | b'\t') => Ok(SizeSpace),
            (Size | SizeSpace, b';') => Ok(Extension),
            (Extension, b'\t' | b' '..=b'~' | 0x80..) => Ok(Extension),
            _ => Err(unexpected("the end of a chunk size", byte)),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State> {
        if self.digits == MAX_DIGITS {
            return Err(invalid_body("a chunk size that is too large"));
        }
        self.digits += 1;
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        self.left = self.left << 4 | u64::from(digit);
        Ok(State::Size)
    }

    fn size_done(&mut self) -> State {
        if self.left == 0 { State::TrailerStart } else { State::Data }
    }

    fn next_size(&mut self) -> State {
        self.digits = 0;
        self.line = 0;
        State::Size
    }

    fn trailer(&mut self, byte: u8) -> Result<State> {
        let next = match (self.state, byte) {
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::TrailerLf, _) | (_, b'\n') => return Err(unexpected("a trailer", byte)),
            (_, b'\r') => State::TrailerLf,
            _ => State::Trailer,
        };
        if self.trailer_section.len() >= MAX_TRAILERS {
            return Err(invalid_body("trailers that are too large"));
        }
        self.trailer_section.push(byte);
        Ok(next)
    }

    fn end(&mut self) -> Result<State> {
        if !self.trailer_section.is_empty() {
            self.trailer_section.extend_from_slice(b"\r\n");
            self.trailers = parse_trailers(&self.trailer_section)?;
            self.trailer_section = Vec::new();
        }
        Ok(State::Done)
    }
}

/// Headers about framing and the connection have no place in trailers (RFC 9110 6.5.1), and are dropped.
fn parse_trailers(section: &[u8]) -> Result<Option<HeaderMap>> {
    let mut slots = [EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let fields = match httparse::parse_headers(section, &mut slots) {
        Ok(Status::Complete((_, fields))) => fields,
        Ok(Status::Partial) => return Err(invalid_body("malformed trailers")),
        Err(error) => return Err(malformed_trailers(error)),
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields.iter().filter(|field| may_trail(field.name.as_bytes())) {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(malformed_trailers)?;
        let value = HeaderValue::from_bytes(field.value).map_err(malformed_trailers)?;
        trailers.append(name, value);
    }
    Ok(Some(trailers).filter(|trailers| !trailers.is_empty()))
}

fn may_trail(name: &[u8]) -> bool {
    !is_hop_by_hop(name) && !name.eq_ignore_ascii_case(b"content-length") && !name.eq_ignore_ascii_case(b"host")
}

fn malformed_trailers(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::because(ErrorKind::InvalidBody, "the upstream sent malformed trailers", cause)
}

fn unexpected(expected: &str, byte: u8) -> Error {
    invalid_body(format!("\"{}\" where {expected} was expected", byte.escape_ascii()))
}

fn invalid_body(what: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::InvalidBody, format!("the upstream sent {}", what.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decode `wire` in one piece: the body, and what of `wire` lies behind its end.
    fn decode(wire: &str) -> Result<(String, String, Chunked)> {
        let mut raw = wire.as_bytes().to_vec();
        let mut chunked = Chunked::default();
        let decoded = chunked.decode(&mut raw)?;
        let body = String::from_utf8_lossy(&raw[..decoded.body]).into_owned();
        Ok((body, wire[decoded.used..].to_owned(), chunked))
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_not_touched() {
        for (wire, body, rest) in [
            ("0\r\n\r\n", "", ""),
            ("000\r\n\r\nHTTP", "", "HTTP"),
            ("4\r\nWiki\r\n6\r\npedia \r\nB\r\nin \r\nchunks\r\n0\r\n\r\n", "Wikipedia in \r\nchunks", ""),
            ("000000000000000a;n=v;q=\"a;b\"\r\n0123456789\r\n0 \t;x\r\n\r\n\r\n", "0123456789", "\r\n"),
            ("1 \r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n", "x", ""),
        ] {
            let (found, behind, chunked) = decode(wire).unwrap();
            assert_eq!((found.as_str(), behind.as_str()), (body, rest), "{wire:?}");
            assert!(chunked.is_done() && chunked.missing().is_none());
        }
    }

    #[test]
    fn the_largest_size_does_not_overflow() {
        let (body, _, chunked) = decode("ffffffffffffffff\r\nabc").unwrap();
        assert_eq!(body, "abc");
        assert_eq!(
            chunked.missing().unwrap(),
            format!("in the middle of a chunk, {} bytes before its end", u64::MAX - 3)
        );
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wire in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x1\r\na\r\n",
            " 1\r\na\r\n",
            ";x\r\n",
            "1\na\r\n",
            "1\rXa",
            "1 1\r\na\r\n",
            "1;a\nb\r\na\r\n",
            "1;a\0\r\na\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1\r\na\rX",
            "00000000000000001\r\na\r\n",
            "0\r\n\n",
            "0\r\n\rX",
            "0\r\nA: b\n\r\n",
            "0\r\nA: b\r\r\n\r\n",
            "0\r\nA b\r\n\r\n",
            "0\r\nA: b\r\n c\r\n\r\n",
            "0\r\nA: \0\r\n\r\n",
        ] {
            assert_eq!(decode(wire).err().map(|error| error.kind()), Some(ErrorKind::InvalidBody), "{wire:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let line = |len: usize| format!("1;{}\r\na\r\n", "x".repeat(len - "1;\r".len()));
        assert!(decode(&line(MAX_SIZE_LINE)).is_ok());
        assert!(decode(&line(MAX_SIZE_LINE + 1)).is_err());
        assert!(decode(&line(MAX_SIZE_LINE).repeat(3)).is_ok());
        let trailer = |len: usize| format!("0\r\nX: {}\r\n\r\n", "x".repeat(len - "X: \r\n".len()));
        assert!(decode(&trailer(MAX_TRAILERS)).is_ok());
        assert!(decode(&trailer(MAX_TRAILERS + 1)).is_err());
        assert!(decode(&format!("0\r\n{}\r\n", "X: y\r\n".repeat(MAX_TRAILER_FIELDS + 1))).is_err());
    }

    #[test]
    fn framing_has_no_place_in_trailers() {
        let (_, _, mut chunked) =
            decode("0\r\nContent-Length: 5\r\nX-Sum: 1\r\nTransfer-Encoding: x\r\nHost: h\r\nX-sum: 2\r\n\r\n")
                .unwrap();
        let trailers = chunked.take_trailers().unwrap();
        assert_eq!(trailers.len(), 2);
        assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["1", "2"]);
        let (_, _, mut chunked) = decode("0\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!(chunked.take_trailers(), None);
    }
}
