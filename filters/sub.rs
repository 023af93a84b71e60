//! `sub`: replace text in response bodies, also where it is cut by the borders of chunks.
//!
//! ```yaml
//! - sub: { replace: { "http://internal/": "https://example.com/" }, types: [text/html], once: false }
//! ```
//!
//! The texts are literal. Where several match at the same place, the longest wins; what has been put in is not looked
//! at again. Bodies with a `Content-Encoding` pass unchanged. At most the longest text less one byte is held back, and
//! only while it may still become a match: a stream stays a stream.

use millpond::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubConf {
    /// Old text to new text; at least one, none of the old ones empty.
    pub replace: BTreeMap<String, String>,
    /// Media types to look into: `type/subtype`, `type/*` or `*`.
    #[serde(default = "default_types")]
    pub types: MediaTypes,
    /// Replace only the first match of all.
    #[serde(default)]
    pub once: bool,
}

fn default_types() -> MediaTypes {
    MediaTypes::new(["text/*", "application/json"])
}

/// The filter.
pub struct Sub {
    /// The longest first: the first that matches is the longest.
    pairs: Vec<(Vec<u8>, Bytes)>,
    types: MediaTypes,
    once: bool,
}

impl Sub {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// There is nothing to replace, or an old text is empty.
    pub fn new(conf: SubConf) -> Result<Self> {
        if conf.replace.is_empty() || conf.replace.contains_key("") {
            let text = "at least one text to replace, none of them empty";
            return Err(Error::new(ErrorKind::Filter, text));
        }
        let mut pairs: Vec<_> =
            conf.replace.into_iter().map(|(old, new)| (old.into_bytes(), Bytes::from(new))).collect();
        pairs.sort_by_key(|(old, _)| std::cmp::Reverse(old.len()));
        Ok(Sub { pairs, types: conf.types, once: conf.once })
    }
}

/// Where a body stands.
#[derive(Default)]
pub struct SubCtx {
    /// This body is to be looked into.
    active: bool,
    /// The end of what has come, which may be the beginning of a match.
    held: BytesMut,
}

impl UpstreamPhases for Sub {
    type Ctx = SubCtx;

    fn new_ctx(&self) -> SubCtx {
        SubCtx::default()
    }

    async fn response_filter(
        &self,
        _session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut SubCtx,
    ) -> Result<Header> {
        ctx.active = !response.headers.contains_key("content-encoding")
            && response.status != StatusCode::PARTIAL_CONTENT
            && self.types.contain(response);
        // An error page may follow an answer that failed.
        ctx.held.clear();
        if ctx.active {
            response.remove_header("content-length");
            response.remove_header("etag");
            response.remove_header("last-modified");
            response.remove_header("accept-ranges");
        }
        Ok(Header::Pass)
    }

    async fn body_filter(&self, _session: &mut Session<'_>, body: &mut Bufs, ctx: &mut SubCtx) -> Result<()> {
        if !ctx.active {
            return Ok(());
        }
        let last = body.is_last();
        let mut out = Vec::new();
        for chunk in body.take() {
            ctx.held.extend_from_slice(&chunk);
            self.replace(ctx, false, &mut out);
        }
        if last {
            self.replace(ctx, true, &mut out);
        }
        out.into_iter().for_each(|chunk| body.push(chunk));
        Ok(())
    }
}

impl Sub {
    /// Move all that is decided from `ctx.held` to `out`; at the `end` everything is.
    fn replace(&self, ctx: &mut SubCtx, end: bool, out: &mut Vec<Bytes>) {
        let mut at = 0;
        while ctx.active && at < ctx.held.len() {
            let Some(step) = self.next_candidate(&ctx.held[at..]) else {
                at = ctx.held.len();
                break;
            };
            at += step;
            let rest = &ctx.held[at..];
            // A longer text that has only begun could still win over a shorter one that is complete.
            let undecided = |old: &[u8]| !end && rest.len() < old.len() && old.starts_with(rest);
            match self.pairs.iter().find(|(old, _)| rest.starts_with(old) || undecided(old)) {
                Some((old, _)) if !rest.starts_with(old) => break,
                Some((old, new)) => {
                    out.push(ctx.held.split_to(at).freeze());
                    drop(ctx.held.split_to(old.len()));
                    out.push(new.clone());
                    at = 0;
                    ctx.active = !self.once;
                }
                None => at += 1,
            }
        }
        if !ctx.active {
            at = ctx.held.len();
        }
        if at > 0 {
            out.push(ctx.held.split_to(at).freeze());
        }
    }

    /// Where the first byte of any of the texts next stands.
    fn next_candidate(&self, bytes: &[u8]) -> Option<usize> {
        bytes.iter().position(|byte| self.pairs.iter().any(|(old, _)| old.first() == Some(byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sub(pairs: &[(&str, &str)], once: bool) -> Sub {
        let replace = pairs.iter().map(|(old, new)| (old.to_string(), new.to_string())).collect();
        Sub::new(SubConf { replace, types: MediaTypes::new(["*"]), once }).unwrap()
    }

    fn run(sub: &Sub, chunks: &[&[u8]]) -> String {
        let mut ctx = SubCtx { active: true, held: BytesMut::new() };
        let mut out = Vec::new();
        for chunk in chunks {
            ctx.held.extend_from_slice(chunk);
            sub.replace(&mut ctx, false, &mut out);
        }
        sub.replace(&mut ctx, true, &mut out);
        String::from_utf8(out.concat()).unwrap()
    }

    #[test]
    fn every_cut_of_the_body_gives_the_same() {
        let sub = sub(&[("old", "new"), ("older", "newest"), ("aab", "X")], false);
        let body = b"old older olde aaab oldolder ol";
        let whole = run(&sub, &[body]);
        assert_eq!(whole, "new newest newe aX newnewest ol");
        for cut in 0..body.len() {
            let (left, right) = body.split_at(cut);
            assert_eq!(run(&sub, &[left, right]), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(run(&sub, &bytes), whole);
    }

    #[test]
    fn once_is_once() {
        assert_eq!(run(&sub(&[("a", "b")], true), &[b"xa", b"a"]), "xba");
    }

    #[test]
    fn a_stream_is_not_held_back() {
        let sub = sub(&[("needle", "thread")], false);
        let mut ctx = SubCtx { active: true, held: BytesMut::from(&b"data: 1\n\n"[..]) };
        let mut out = Vec::new();
        sub.replace(&mut ctx, false, &mut out);
        assert_eq!(out.concat(), b"data: 1\n\n");
    }
}
