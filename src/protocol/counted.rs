//! [`Counted`]: a value whose length is said in front of it, with a fixed end behind it, as memcached and Redis send them.

use super::Input;
use crate::error::{Error, ErrorKind, Result};

/// The rest of one such value.
pub(super) struct Counted {
    /// Bytes of the value to come.
    left: u64,
    /// What has to come behind the value, as far as it has not come yet.
    end: &'static [u8],
    /// The value's last byte, until its end has come: without that the client is not to have a whole message.
    last: Option<u8>,
    /// Bytes came behind the end.
    excess: bool,
}

impl Counted {
    /// No value: whatever comes is too much.
    pub(super) const NONE: Counted = Counted { left: 0, end: b"", last: None, excess: false };

    /// A value of `length` bytes, and `end`.
    pub(super) const fn new(length: u64, end: &'static [u8]) -> Self {
        Counted { left: length, end, ..Self::NONE }
    }

    /// [`Codec::input_filter`](super::Codec::input_filter); `server` names it for the log.
    ///
    /// # Errors
    /// What is behind the value is not its end: [`ErrorKind::InvalidBody`].
    pub(super) fn input_filter(&mut self, raw: &mut [u8], server: &str) -> Result<Input> {
        let mut body = usize::try_from(self.left).map_or(raw.len(), |left| left.min(raw.len()));
        self.left -= body as u64;
        let behind = raw.get(body..).unwrap_or_default();
        let (end, excess) = behind.split_at(behind.len().min(self.end.len()));
        self.end = self.end.strip_prefix(end).ok_or_else(|| {
            Error::new(ErrorKind::InvalidBody, format!("{server} sent \"{}\" behind a value", end.escape_ascii()))
        })?;
        self.excess |= !excess.is_empty();
        let done = self.left == 0 && self.end.is_empty();
        if done && let (Some(last), Some(first)) = (self.last.take(), raw.first_mut()) {
            *first = last;
            body = 1;
        } else if !done && self.left == 0 && body > 0 {
            body -= 1;
            self.last = raw.get(body).copied();
        }
        Ok(Input { body, done })
    }

    /// Did nothing come behind the end?
    pub(super) fn is_exact(&self) -> bool {
        !self.excess
    }
}
