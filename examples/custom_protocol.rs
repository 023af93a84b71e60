//! A proxy binary with a protocol of one's own: finger (RFC 1288), where a line asks who somebody is, and the answer is
//! text until the server closes.
//!
//! ```sh
//! cargo run --example custom_protocol -- -c examples/custom_protocol.yaml
//! ```

use millpond::prelude::*;
use millpond::protocol::{Codec, Input, Parsed, Protocol, Request};
use serde::Deserialize;
use std::process::ExitCode;

/// What stands behind `protocol: { finger: ... }` in a route. One value serves all requests of the route.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Finger {
    user: Template,
}

impl Protocol for Finger {
    fn codec(&self) -> Box<dyn Codec> {
        Box::new(Query(self.clone()))
    }
}

/// One question and its answer.
struct Query(Finger);

impl Codec for Query {
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()> {
        if !matches!(request.header().method, Method::GET | Method::HEAD) {
            return Err(Error::method_not_allowed("GET, HEAD"));
        }
        let user = request.render(&self.0.user);
        // A line break would begin a question of the client's own, an `@` would have the server ask another one.
        if user.bytes().any(|byte| byte.is_ascii_control() || byte == b'@') {
            return Err(Error::with_status(400, "no name for finger"));
        }
        out.extend_from_slice(user.as_bytes());
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// The answer has no header of its own: with its first byte it is one.
    fn process_header(&mut self, received: &[u8]) -> Result<Parsed> {
        if received.is_empty() {
            return Ok(Parsed::Partial);
        }
        let mut header = ResponseHeader::build(200, None)?;
        header.insert_header("Content-Type", "text/plain; charset=utf-8")?;
        Ok(Parsed::Done(header, 0))
    }

    /// All of it is body.
    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        Ok(Input { body: raw.len(), done: false })
    }

    /// Closing is how it ends.
    fn end_of_input(&mut self) -> Result<()> {
        Ok(())
    }
}

fn main() -> ExitCode {
    Millpond::new().protocol("finger", |conf: Finger, _scope| Ok(conf)).run()
}
