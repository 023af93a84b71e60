//! [`Stderr`]: what an application complains about, on its way to the log.

use std::sync::Arc;

/// So much of a message is logged: nginx's longest line.
const LONGEST: usize = 2048;

/// Gathers a record's worth and logs it. The client never sees any of it.
pub(super) struct Stderr {
    /// The service and the route.
    place: Arc<str>,
    text: Vec<u8>,
    /// Bytes that did not fit.
    dropped: usize,
}

impl Stderr {
    pub(super) fn new(place: Arc<str>) -> Self {
        Stderr { place, text: Vec::new(), dropped: 0 }
    }

    /// More of it; `last`: the message goes so far.
    pub(super) fn write(&mut self, piece: &[u8], last: bool) {
        let room = LONGEST.saturating_sub(self.text.len()).min(piece.len());
        self.text.extend_from_slice(piece.get(..room).unwrap_or_default());
        self.dropped += piece.len() - room;
        if last {
            self.log();
        }
    }

    /// As nginx does: an error, since that is where PHP's fatal ones are found.
    fn log(&mut self) {
        if let Some(line) = self.line() {
            log::error!("{}: FastCGI sent in stderr: {line}", self.place);
        }
        self.text.clear();
        self.dropped = 0;
    }

    /// Quoted, control characters escaped: a message cannot pose as another line of the log.
    fn line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(self.text.trim_ascii());
        match (text.is_empty(), self.dropped) {
            (true, _) => None,
            (false, 0) => Some(format!("{text:?}")),
            (false, dropped) => Some(format!("{text:?} and {dropped} bytes more")),
        }
    }
}

impl Drop for Stderr {
    /// The connection broke in the middle of a message.
    fn drop(&mut self) {
        self.log();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pieces: &[&[u8]]) -> Option<String> {
        let mut stderr = Stderr::new("web/app".into());
        pieces.iter().for_each(|piece| stderr.write(piece, false));
        stderr.line()
    }

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        assert_eq!(
            line(&[b"PHP message: ", b"a\nb\x1b[2J\xff\n"]).unwrap(),
            "\"PHP message: a\\nb\\u{1b}[2J\u{fffd}\""
        );
        assert_eq!(line(&[b" \r\n"]), None);
    }

    #[test]
    fn a_long_message_is_cut() {
        let line = line(&[&[b'x'; 2000], &[b'x'; 100], &[b'x'; 7]]).unwrap();
        assert_eq!(line, format!("\"{}\" and 59 bytes more", "x".repeat(2048)));
    }
}
