//! `include`: put the answers of other routes into a page, nginx's SSI `include` and ESI's.
//!
//! ```yaml
//! - include: { max_depth: 3, types: [text/html] }
//! ```
//!
//! `<!--# include virtual="/header" -->` and `<esi:include src="/header"/>` in a body of one of the types are replaced
//! by what the service's route for that path answers: a GET with the client's headers. They are fetched side by side,
//! as soon as they are seen, and put in where they stand, as they come; the page goes on being read meanwhile, up to 64
//! KiB. An include that fails, or is not answered with 2xx, leaves nothing in its place but `on_error`, and a line in
//! the log. Inside an included page includes are looked for again, by the filter of its own route, `max_depth` deep.
//!
//! Anything else between `<!--#` and `-->` passes as it is, and so does a tag longer than 1 KiB. Bodies with a
//! `Content-Encoding` are not looked into, and fail as includes: the upstream, and who is asked for an include, are
//! asked for one without.

use millpond::prelude::*;
use serde::Deserialize;
use std::collections::VecDeque;

/// The longest tag.
const MAX_TAG: usize = 1024;
/// What may wait behind an include.
const MAX_HELD: usize = 64 * 1024;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncludeConf {
    /// How deep included pages may include others.
    #[serde(default = "default_depth")]
    pub max_depth: u8,
    /// Media types to look into.
    #[serde(default = "default_types")]
    pub types: MediaTypes,
    /// What stands in place of an include that has failed.
    #[serde(default)]
    pub on_error: String,
}

fn default_depth() -> u8 {
    3
}

fn default_types() -> MediaTypes {
    MediaTypes::new(["text/html"])
}

/// The filter.
pub struct Include {
    max_depth: u8,
    types: MediaTypes,
    on_error: Bytes,
}

impl Include {
    /// Make it from its configuration.
    pub fn new(conf: IncludeConf) -> Self {
        Include { max_depth: conf.max_depth, types: conf.types, on_error: conf.on_error.into() }
    }
}

/// Where a page stands.
#[derive(Default)]
pub struct IncludeCtx {
    active: bool,
    /// The end of what has come, which may be the beginning of a tag.
    rest: BytesMut,
    /// What has come before, in order.
    pieces: VecDeque<Piece>,
}

enum Piece {
    Text(Bytes),
    Asked(String, Fetch),
    Answered(Box<Subresponse>),
}

impl UpstreamPhases for Include {
    type Ctx = IncludeCtx;

    fn new_ctx(&self) -> IncludeCtx {
        IncludeCtx::default()
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session<'_>,
        request: &mut RequestHeader,
        _ctx: &mut IncludeCtx,
    ) -> Result<()> {
        request.remove_header("accept-encoding");
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut IncludeCtx,
    ) -> Result<Header> {
        *ctx = IncludeCtx::default();
        ctx.active = session.subrequest_depth() < usize::from(self.max_depth)
            && !response.headers.contains_key("content-encoding")
            && response.status != StatusCode::PARTIAL_CONTENT
            && self.types.contain(response);
        if ctx.active {
            for name in ["content-length", "etag", "last-modified", "accept-ranges"] {
                response.remove_header(name);
            }
        }
        Ok(Header::Pass)
    }

    async fn body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, ctx: &mut IncludeCtx) -> Result<()> {
        if !ctx.active {
            return Ok(());
        }
        for chunk in body.take() {
            ctx.rest.extend_from_slice(&chunk);
        }
        self.cut(session, ctx, body.is_last());
        self.put_out(session, ctx, body).await
    }
}

impl Include {
    /// Cut what has come into pieces, and ask for those that are includes.
    fn cut(&self, session: &Session<'_>, ctx: &mut IncludeCtx, end: bool) {
        loop {
            let (text, tag) = match next_tag(&ctx.rest) {
                Tag::Whole { at, length, uri } => (at, Some((length, uri))),
                Tag::Begun(at) if !end => (at, None),
                Tag::Begun(_) | Tag::None => (ctx.rest.len(), None),
            };
            if text > 0 {
                ctx.pieces.push_back(Piece::Text(ctx.rest.split_to(text).freeze()));
            }
            let Some((length, uri)) = tag else { return };
            drop(ctx.rest.split_to(length));
            ctx.pieces.push_back(self.ask(session, uri));
        }
    }

    fn ask(&self, session: &Session<'_>, uri: String) -> Piece {
        let asked = session.request_for(&uri).and_then(|mut request| {
            request.remove_header("accept-encoding");
            session.subrequest(request, &Target::route())
        });
        match asked {
            Ok(question) => Piece::Asked(uri, question.spawn()),
            Err(error) => self.failed(&uri, &error),
        }
    }

    fn failed(&self, uri: &str, error: &Error) -> Piece {
        log::error!("include {uri}: {error}");
        Piece::Text(self.on_error.clone())
    }

    /// Give out what can be given out in order.
    async fn put_out(&self, session: &mut Session<'_>, ctx: &mut IncludeCtx, body: &mut Bufs) -> Result<()> {
        while let Some(piece) = ctx.pieces.pop_front() {
            let piece = match piece {
                Piece::Text(text) => {
                    body.push(text);
                    continue;
                }
                Piece::Asked(uri, fetch) if !fetch.is_ready() && !ctx.is_full() => {
                    session.resume_body_when(fetch.ready());
                    ctx.pieces.push_front(Piece::Asked(uri, fetch));
                    return Ok(());
                }
                // What stands before it need not wait.
                piece if !body.is_empty() => {
                    session.resume_body();
                    ctx.pieces.push_front(piece);
                    return Ok(());
                }
                Piece::Asked(uri, fetch) => session.unless_client_leaves(self.answered(uri, fetch)).await?,
                Piece::Answered(mut answer) => {
                    // What is cut off in the middle cannot be mended: the page is broken off too.
                    let Some(mut run) = session.unless_client_leaves(answer.next()).await?? else { continue };
                    run.take().into_iter().for_each(|chunk| body.push(chunk));
                    Piece::Answered(answer)
                }
            };
            ctx.pieces.push_front(piece);
        }
        Ok(())
    }

    async fn answered(&self, uri: String, fetch: Fetch) -> Piece {
        match fetch.response().await {
            Ok(answer) if !answer.header().status.is_success() => {
                let text = format!("the answer {}", answer.header().status);
                self.failed(&uri, &Error::new(ErrorKind::Filter, text))
            }
            Ok(answer) if answer.header().headers.contains_key("content-encoding") => {
                self.failed(&uri, &Error::new(ErrorKind::Filter, "an answer with a Content-Encoding"))
            }
            Ok(answer) => Piece::Answered(Box::new(answer)),
            Err(error) => self.failed(&uri, &error),
        }
    }
}

impl IncludeCtx {
    fn is_full(&self) -> bool {
        self.pieces.iter().map(Piece::len).sum::<usize>() > MAX_HELD
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Text(text) => text.len(),
            Piece::Asked(..) | Piece::Answered(_) => 0,
        }
    }
}

/// The next include in a text.
enum Tag {
    None,
    Whole {
        at: usize,
        length: usize,
        uri: String,
    },
    /// It may begin here.
    Begun(usize),
}

/// How a tag begins, how it ends, and the attribute that says what is included.
const FORMS: [(&[u8], &[u8], &str); 2] = [(b"<!--#", b"-->", "virtual"), (b"<esi:include", b">", "src")];

fn next_tag(text: &[u8]) -> Tag {
    for at in memchr::memchr_iter(b'<', text) {
        let rest = &text[at..text.len().min(at + MAX_TAG)];
        for (open, close, attribute) in FORMS {
            let is_open = rest.starts_with(open);
            let end = if is_open { memchr::memmem::find(rest, close) } else { None };
            match end {
                Some(end) => {
                    if let Some(uri) = uri(&rest[open.len()..end], attribute) {
                        return Tag::Whole { at, length: end + close.len(), uri };
                    }
                }
                None if (is_open || open.starts_with(rest)) && rest.len() < MAX_TAG => return Tag::Begun(at),
                None => {}
            }
        }
    }
    Tag::None
}

/// What ` include virtual="/x" ` or ` src="/x"/` includes.
fn uri(inside: &[u8], attribute: &str) -> Option<String> {
    let inside = std::str::from_utf8(inside).ok()?.trim();
    let ssi = attribute == "virtual";
    let attributes = if ssi { inside.strip_prefix("include")? } else { inside };
    if !attributes.is_empty() && !ssi && !inside.starts_with(attribute) {
        return None;
    }
    let value = attributes.trim_start().strip_prefix(attribute)?.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    let (value, _) = value.strip_prefix(quote)?.split_once(quote)?;
    Some(if ssi { value.to_owned() } else { value.replace("&amp;", "&") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri_of(text: &str) -> Option<(usize, usize, String)> {
        match next_tag(text.as_bytes()) {
            Tag::Whole { at, length, uri } => Some((at, length, uri)),
            Tag::Begun(_) | Tag::None => None,
        }
    }

    #[test]
    fn both_forms_are_found() {
        let found = |at, length, uri: &str| Some((at, length, uri.to_owned()));
        assert_eq!(uri_of("ab<!--# include virtual=\"/x?a=b\" -->c"), found(2, 34, "/x?a=b"));
        assert_eq!(uri_of("<!--#include virtual='/x'-->"), found(0, 28, "/x"));
        assert_eq!(uri_of("< <p><esi:include src=\"/x?a=1&amp;b=2\"/>"), found(5, 35, "/x?a=1&b=2"));
    }

    #[test]
    fn other_tags_are_text() {
        for text in
            ["<!--# echo var=\"x\" -->", "<!-- a -->", "<esi:includes src='/x'/>", "<!--# include file=\"x\" -->", "a"]
        {
            assert!(matches!(next_tag(text.as_bytes()), Tag::None), "{text}");
        }
    }

    #[test]
    fn a_tag_may_come_in_two_pieces() {
        let tag = "<!--# include virtual=\"/x\" -->";
        for cut in 1..tag.len() {
            let begun = format!("text{}", &tag[..cut]);
            assert!(matches!(next_tag(begun.as_bytes()), Tag::Begun(4)), "{begun}");
        }
    }

    #[test]
    fn a_tag_is_not_waited_for_for_ever() {
        let long = format!("<!--#{}", "x".repeat(MAX_TAG));
        assert!(matches!(next_tag(long.as_bytes()), Tag::None));
    }
}
