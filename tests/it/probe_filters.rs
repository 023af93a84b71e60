//! The stock binary with filters that show, by headers and log lines, what the chain does to them. `tests/it/chain.rs`
//! runs it.

use millpond::prelude::*;
use serde::Deserialize;
use std::process::ExitCode;

fn main() -> ExitCode {
    Millpond::new()
        .filter("trace", |conf: Trace| Ok(conf))
        .filter("measure", |conf: Measure| Ok(conf))
        .filter("letters", |conf: Letters| Ok(conf))
        .filter("cut", |conf: Cut| Ok(conf))
        .filter("hoard", |conf: Hoard| Ok(conf))
        .filter("swallow_end", |conf: SwallowEnd| Ok(conf))
        .filter("pick", |conf: Pick| Ok(conf))
        .filter("shout", |conf: Shout| Ok(conf))
        .filter("answer", |conf: Answer| Ok(conf))
        .filter("fail", |conf: Fail| Ok(conf))
        .filter("witness", |conf: Witness| Ok(conf))
        .run()
}

/// What every `trace` of a chain has been called for so far, as `name:hook`.
#[derive(Clone, Default)]
struct Calls(Vec<String>);

/// Notes each of its hooks in the session's extensions, and tells of them in `X-Calls` and in the log.
#[derive(Deserialize)]
struct Trace {
    name: String,
}

impl Trace {
    fn note(&self, session: &mut Session<'_>, hook: &str) {
        let call = format!("{}:{hook}", self.name);
        session.extensions().get_or_insert_default::<Calls>().0.push(call);
    }
}

impl UpstreamPhases for Trace {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _: &mut ()) -> Result<Flow> {
        self.note(session, "request");
        Ok(Flow::Continue)
    }

    async fn request_body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, _: &mut ()) -> Result<()> {
        if body.is_last() {
            self.note(session, "request_body");
        }
        Ok(())
    }

    async fn upstream_peer(&self, session: &mut Session<'_>, _: &mut ()) -> Result<Option<Peer>> {
        self.note(session, "peer");
        Ok(None)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session<'_>,
        request: &mut RequestHeader,
        _: &mut (),
    ) -> Result<()> {
        self.note(session, "upstream_request");
        request.append_header("X-Trace", &self.name)?;
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session<'_>,
        _: &mut ResponseHeader,
        _: &mut (),
    ) -> Result<()> {
        self.note(session, "upstream_response");
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        _: &mut (),
    ) -> Result<Header> {
        self.note(session, "response");
        let calls = session.extensions().get_or_insert_default::<Calls>().0.join(" ");
        response.insert_header("X-Calls", calls)?;
        Ok(Header::Pass)
    }

    async fn body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, _: &mut ()) -> Result<()> {
        if body.is_last() {
            self.note(session, "body");
        }
        Ok(())
    }

    async fn logging(&self, session: &mut Session<'_>, _: Option<&Error>, _: &mut ()) {
        self.note(session, "logging");
        let calls = session.extensions().get_or_insert_default::<Calls>().0.join(" ");
        eprintln!("calls: {calls}");
    }
}

/// Holds the header and the body until the end, then says in the header how long the body is.
#[derive(Deserialize)]
struct Measure {}

impl UpstreamPhases for Measure {
    type Ctx = Bufs;

    fn new_ctx(&self) -> Bufs {
        Bufs::new()
    }

    async fn response_filter(&self, _: &mut Session<'_>, _: &mut ResponseHeader, _: &mut Bufs) -> Result<Header> {
        Ok(Header::Hold)
    }

    async fn body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, held: &mut Bufs) -> Result<()> {
        body.take().into_iter().for_each(|chunk| held.push(chunk));
        if body.is_last() {
            held.take().into_iter().for_each(|chunk| body.push(chunk));
            let length = body.len();
            let header = session.held_header().ok_or_else(|| Error::with_status(500, "the header is not held"))?;
            header.insert_header("X-Length", length)?;
        }
        Ok(())
    }
}

/// A chunk for each letter, none for anything else.
#[derive(Deserialize)]
struct Letters {}

impl UpstreamPhases for Letters {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn response_filter(&self, _: &mut Session<'_>, response: &mut ResponseHeader, _: &mut ()) -> Result<Header> {
        response.remove_header("content-length");
        Ok(Header::Pass)
    }

    async fn body_filter(&self, _: &mut Session<'_>, body: &mut Bufs, _: &mut ()) -> Result<()> {
        for chunk in body.take() {
            for at in (0..chunk.len()).filter(|at| chunk[*at].is_ascii_alphabetic()) {
                body.push(chunk.slice(at..at + 1));
            }
        }
        Ok(())
    }
}

/// Ends the body early.
#[derive(Deserialize)]
struct Cut {
    after: usize,
}

impl UpstreamPhases for Cut {
    type Ctx = usize;

    fn new_ctx(&self) -> usize {
        self.after
    }

    async fn response_filter(
        &self,
        _: &mut Session<'_>,
        response: &mut ResponseHeader,
        _: &mut usize,
    ) -> Result<Header> {
        response.remove_header("content-length");
        Ok(Header::Pass)
    }

    async fn body_filter(&self, _: &mut Session<'_>, body: &mut Bufs, left: &mut usize) -> Result<()> {
        for mut chunk in body.take() {
            chunk.truncate(*left);
            *left -= chunk.len();
            body.push(chunk);
        }
        if *left == 0 {
            body.end();
        }
        Ok(())
    }
}

/// Keeps the whole body to itself until the end. With `header`, the header too.
#[derive(Deserialize)]
struct Hoard {
    header: bool,
}

impl UpstreamPhases for Hoard {
    type Ctx = Bufs;

    fn new_ctx(&self) -> Bufs {
        Bufs::new()
    }

    async fn response_filter(&self, _: &mut Session<'_>, _: &mut ResponseHeader, held: &mut Bufs) -> Result<Header> {
        held.take();
        Ok(if self.header { Header::Hold } else { Header::Pass })
    }

    async fn body_filter(&self, _: &mut Session<'_>, body: &mut Bufs, held: &mut Bufs) -> Result<()> {
        body.take().into_iter().for_each(|chunk| held.push(chunk));
        if body.is_last() {
            std::mem::swap(body, held);
            body.end();
        }
        Ok(())
    }
}

/// Forgets that a body has an end.
#[derive(Deserialize)]
struct SwallowEnd {
    request: bool,
}

impl UpstreamPhases for SwallowEnd {
    type Ctx = Bufs;

    fn new_ctx(&self) -> Bufs {
        Bufs::new()
    }

    async fn request_body_filter(&self, _: &mut Session<'_>, body: &mut Bufs, kept: &mut Bufs) -> Result<()> {
        if self.request {
            *kept = std::mem::take(body);
        }
        Ok(())
    }

    async fn response_filter(&self, _: &mut Session<'_>, _: &mut ResponseHeader, _: &mut Bufs) -> Result<Header> {
        Ok(Header::Hold)
    }

    async fn body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, kept: &mut Bufs) -> Result<()> {
        if !self.request && !session.attempts().is_empty() && session.status() == 200 {
            *kept = std::mem::take(body);
        }
        Ok(())
    }
}

/// Names the peer.
#[derive(Deserialize)]
struct Pick {
    address: String,
}

impl UpstreamPhases for Pick {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, session: &mut Session<'_>, _: &mut ()) -> Result<Option<Peer>> {
        let upstream = session.route().upstream().ok_or_else(|| Error::with_status(500, "no upstream"))?;
        Ok(Some(upstream.peer(&self.address)?))
    }
}

/// The request body in capitals, with a `!` at its end, or ended in front of the first `.`.
#[derive(Deserialize)]
struct Shout {}

impl UpstreamPhases for Shout {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_body_filter(&self, _: &mut Session<'_>, body: &mut Bufs, _: &mut ()) -> Result<()> {
        for chunk in body.take() {
            let stop = chunk.iter().position(|byte| *byte == b'.');
            body.push(chunk[..stop.unwrap_or(chunk.len())].to_ascii_uppercase());
            if stop.is_some() {
                body.end();
                break;
            }
        }
        if body.is_last() {
            body.push("!");
        }
        Ok(())
    }
}

/// Answers by itself.
#[derive(Deserialize)]
struct Answer {
    status: u16,
}

impl UpstreamPhases for Answer {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _: &mut ()) -> Result<Flow> {
        session.respond(self.status, "answered")?;
        Ok(Flow::Done)
    }
}

/// Panics in the hook of this name, or fails there with `status`.
#[derive(Deserialize)]
struct Fail {
    hook: String,
    #[serde(default)]
    status: Option<u16>,
}

impl Fail {
    fn in_hook(&self, hook: &str) -> Result<()> {
        match self.status {
            _ if self.hook != hook => Ok(()),
            Some(status) => Err(Error::with_status(status, "as configured")),
            None => panic!("as configured"),
        }
    }
}

impl UpstreamPhases for Fail {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, _: &mut Session<'_>, _: &mut ()) -> Result<Flow> {
        self.in_hook("request_filter").map(|()| Flow::Continue)
    }

    async fn request_body_filter(&self, _: &mut Session<'_>, _: &mut Bufs, _: &mut ()) -> Result<()> {
        self.in_hook("request_body_filter")
    }

    async fn upstream_peer(&self, _: &mut Session<'_>, _: &mut ()) -> Result<Option<Peer>> {
        self.in_hook("upstream_peer").map(|()| None)
    }

    async fn upstream_request_filter(&self, _: &mut Session<'_>, _: &mut RequestHeader, _: &mut ()) -> Result<()> {
        self.in_hook("upstream_request_filter")
    }

    async fn upstream_response_filter(&self, _: &mut Session<'_>, _: &mut ResponseHeader, _: &mut ()) -> Result<()> {
        self.in_hook("upstream_response_filter")
    }

    async fn response_filter(&self, _: &mut Session<'_>, _: &mut ResponseHeader, _: &mut ()) -> Result<Header> {
        self.in_hook("response_filter").map(|()| Header::Pass)
    }

    async fn body_filter(&self, _: &mut Session<'_>, _: &mut Bufs, _: &mut ()) -> Result<()> {
        self.in_hook("body_filter")
    }

    async fn logging(&self, _: &mut Session<'_>, _: Option<&Error>, _: &mut ()) {
        let _ = self.in_hook("logging");
    }
}

/// Tells the log what `logging` is told, and whether somebody else's held header shows.
#[derive(Deserialize)]
struct Witness {}

impl UpstreamPhases for Witness {
    type Ctx = bool;

    fn new_ctx(&self) -> bool {
        false
    }

    async fn body_filter(&self, session: &mut Session<'_>, _: &mut Bufs, saw_header: &mut bool) -> Result<()> {
        *saw_header |= session.held_header().is_some();
        Ok(())
    }

    async fn logging(&self, session: &mut Session<'_>, error: Option<&Error>, saw_header: &mut bool) {
        let (status, sent) = (session.status(), session.body_bytes_sent());
        let error = error.map(|error| error.status());
        eprintln!("witness: status={status} sent={sent} error={error:?} saw_header={saw_header}");
    }
}
