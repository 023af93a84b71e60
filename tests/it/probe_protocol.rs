//! A binary with a protocol that shows what the engine does with a codec; `protocols.rs` is what looks.
//!
//! ```text
//! > HELLO                            on a new connection, answered with OK
//! < -                                noise, at any time before the header
//! > ASK GET /path keep               `close` if the connection will not be kept
//! < Status: 200, Size: 5, ... \n\n   a header, and a body of its own framing
//! > ABORT                            given up
//! ```

use millpond::prelude::*;
use millpond::protocol::{Codec, Input, Parsed, Protocol, Request};
use serde::Deserialize;
use std::process::ExitCode;

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Probe {}

impl Protocol for Probe {
    fn codec(&self) -> Box<dyn Codec> {
        Box::new(Ask::default())
    }
}

#[derive(Default)]
struct Ask {
    greets: bool,
    left: usize,
}

impl Codec for Ask {
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()> {
        let path = String::from_utf8_lossy(&request.path()?).into_owned();
        let keep = if request.keeps_connection() { "keep" } else { "close" };
        out.extend_from_slice(format!("ASK {} {path} {keep}\n", request.header().method).as_bytes());
        Ok(())
    }

    fn new_connection(&mut self, out: &mut BytesMut) {
        self.greets = true;
        out.extend_from_slice(b"HELLO\n");
    }

    fn process_header(&mut self, received: &[u8]) -> Result<Parsed> {
        if self.greets {
            let answered = received.starts_with(b"OK\n");
            self.greets = !answered;
            return Ok(if answered { Parsed::Consumed(3) } else { Parsed::Partial });
        }
        if received.starts_with(b"-\n") {
            return Ok(Parsed::Consumed(2));
        }
        let text = String::from_utf8_lossy(received);
        let Some((head, _)) = text.split_once("\n\n") else { return Ok(Parsed::Partial) };
        let mut header = ResponseHeader::build(200, None)?;
        for line in head.lines() {
            let Some((name, value)) = line.split_once(": ") else {
                return Err(Error::new(ErrorKind::InvalidHeader, format!("{line:?} in a header")));
            };
            match name {
                "Status" => header.set_status(value.parse::<u16>().unwrap_or(0))?,
                "Size" => self.left = value.parse().unwrap_or(0),
                name => {
                    header.append_header(name.to_owned(), value)?;
                }
            }
        }
        Ok(Parsed::Done(header, head.len() + 2))
    }

    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        let body = raw.len().min(self.left);
        self.left -= body;
        Ok(Input { body, done: self.left == 0 })
    }

    fn keepalive(&self) -> bool {
        true
    }

    fn abort(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(b"ABORT\n");
    }
}

fn main() -> ExitCode {
    Millpond::new().protocol("probe", |conf: Probe, _scope| Ok(conf)).run()
}
