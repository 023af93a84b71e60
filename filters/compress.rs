//! `compress`: compress response bodies for clients that accept it.
//!
//! ```yaml
//! - compress: { algorithms: [zstd, br, gzip], level: 4, min_length: 1KiB, types: [] }
//! ```
//!
//! Of the codings that the client likes best (`Accept-Encoding`, RFC 9110 12.5.3), the first in `algorithms` is taken;
//! a client that says nothing gets none. A body stays as it is when it
//! - is shorter than `min_length`; one of unknown length, an event stream above all, is compressed at once,
//! - has a `Content-Encoding` already, is of another media type than `types`, or a part (206),
//! - must not be transformed (`Cache-Control: no-transform`, of the request or the response),
//! - is for an HTTP/1.0 client, which could not tell a whole body of unknown length from a broken one.
//!
//! The answer to a HEAD has the header that a GET would have. What depends on `Accept-Encoding` says so in `Vary`,
//! compressed or not. A strong `ETag` becomes a weak one, as the bytes are no longer those that it names;
//! `Content-Length`, `Accept-Ranges` and digests go.
//!
//! Each run of chunks is flushed out of the encoder: what the client has received can be decoded, and a stream stays a
//! stream. In runs of 16 KiB, the size of a pipe's block, that makes a body less than 1.5 percent longer; in runs of
//! 1400 bytes, up to 20 percent.
//!
//! The windows are 32 KiB (gzip) and 256 KiB (br, zstd). While it is sent, a response holds up to 0.45 MiB with gzip,
//! 1.25 MiB with br (2.8 MiB from level 6 on, the highest it has here) and 1.5 MiB with zstd.
//!
//! Beware of compressing pages that repeat what a stranger sent beside a secret (BREACH): the length tells about the
//! secret.

use flate2::Compression;
use flate2::write::GzEncoder;
use millpond::conf::units::Size;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;
use std::io::{self, Write};
use zstd::stream::raw::CParameter;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompressConf {
    /// What may be used, the best first.
    pub algorithms: Vec<Algorithm>,
    /// How hard to try, 1 to 9: a level of each algorithm's own.
    pub level: u32,
    /// Shorter bodies are not worth it.
    pub min_length: Size,
    /// Media types to compress: `type/subtype`, `type/*`, `*+suffix` or `*`. Empty: texts, JSON, XML, scripts, fonts
    /// that are not compressed, SVG and WebAssembly.
    pub types: MediaTypes,
}

impl Default for CompressConf {
    fn default() -> Self {
        let algorithms = vec![Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip];
        CompressConf { algorithms, level: 4, min_length: Size(1024), types: MediaTypes::new([]) }
    }
}

/// A content coding that can be made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Br,
    /// RFC 1952.
    Gzip,
}

impl Algorithm {
    /// Its name in `Content-Encoding`.
    fn coding(self) -> &'static str {
        match self {
            Algorithm::Zstd => "zstd",
            Algorithm::Br => "br",
            Algorithm::Gzip => "gzip",
        }
    }
}

const TYPES: [&str; 13] = [
    "text/*",
    "application/json",
    "application/javascript",
    "application/x-javascript",
    "application/xml",
    "application/wasm",
    "*+json",
    "*+xml",
    "application/vnd.ms-fontobject",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/x-icon",
];

/// Of zstd and brotli: 256 KiB.
const WINDOW_LOG: u32 = 18;
/// Of zstd's tables, which would take 8 MiB at level 9 and hardly help a window that small.
const TABLE_LOG: u32 = 17;
/// The next level takes 33 MiB a response.
const HIGHEST_BROTLI: u32 = 6;
/// Brotli's own pieces of output.
const BROTLI_BUFFER: usize = 4096;

/// Responses compressed, and their bytes before and after.
struct Counters {
    responses: IntCounterVec,
    bytes: IntCounterVec,
}

static COUNTERS: Lazy<Counters> = Lazy::new(|| Counters {
    responses: counters("millpond_compress_responses_total", "Responses compressed.", &["coding"]),
    bytes: counters(
        "millpond_compress_bytes_total",
        "Body bytes; direction: in (as they came), out (compressed).",
        &["coding", "direction"],
    ),
});

/// Registered where `/metrics` finds it, unless another copy of this file is.
fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("the name and the labels are well formed");
    if let Err(error) = prometheus::register(Box::new(counters.clone())) {
        log::warn!("{name}: {error}");
    }
    counters
}

/// The filter.
///
/// ```
/// use millpond::filters::compress::{Algorithm, Compress, CompressConf};
///
/// let gzip_alone = CompressConf { algorithms: vec![Algorithm::Gzip], ..CompressConf::default() };
/// assert!(Compress::new(gzip_alone).is_ok());
/// let too_high = CompressConf { level: 19, ..CompressConf::default() };
/// assert!(Compress::new(too_high).is_err());
/// ```
pub struct Compress {
    algorithms: Vec<Algorithm>,
    level: u32,
    min_length: u64,
    types: MediaTypes,
}

impl Compress {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// `algorithms` is empty, or `level` not from 1 to 9.
    pub fn new(conf: CompressConf) -> Result<Self> {
        if conf.algorithms.is_empty() {
            return Err(Error::new(ErrorKind::Filter, "at least one of zstd, br and gzip as `algorithms`"));
        }
        if !(1..=9).contains(&conf.level) {
            return Err(Error::new(ErrorKind::Filter, format!("a `level` from 1 to 9, not {}", conf.level)));
        }
        let types = if conf.types.is_empty() { MediaTypes::new(TYPES) } else { conf.types };
        Lazy::force(&COUNTERS);
        Ok(Compress { algorithms: conf.algorithms, level: conf.level, min_length: conf.min_length.0, types })
    }
}

/// The encoder, while a body is being compressed.
#[derive(Default)]
pub struct CompressCtx(Option<Encoder>);

impl UpstreamPhases for Compress {
    type Ctx = CompressCtx;

    fn new_ctx(&self) -> CompressCtx {
        CompressCtx::default()
    }

    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut CompressCtx,
    ) -> Result<Header> {
        // An error page may follow an answer that failed.
        ctx.0 = None;
        let request = session.request();
        if !self.is_compressible(request, response) {
            return Ok(Header::Pass);
        }
        add_vary(response)?;
        if request.version == http::Version::HTTP_10 {
            return Ok(Header::Pass);
        }
        let Some(algorithm) = negotiate(&request.headers, &self.algorithms) else { return Ok(Header::Pass) };
        change_header(response, algorithm)?;
        if request.method != Method::HEAD {
            ctx.0 = Some(Encoder::new(algorithm, self.level).map_err(failed)?);
        }
        Ok(Header::Pass)
    }

    async fn body_filter(&self, _session: &mut Session<'_>, body: &mut Bufs, ctx: &mut CompressCtx) -> Result<()> {
        let Some(encoder) = &mut ctx.0 else { return Ok(()) };
        let chunks = body.take();
        if !chunks.is_empty() {
            body.push(encoder.run(&chunks).map_err(failed)?);
        }
        if body.is_last()
            && let Some(encoder) = ctx.0.take()
        {
            body.push(encoder.finish().map_err(failed)?);
        }
        Ok(())
    }
}

fn failed(error: io::Error) -> Error {
    Error::because(ErrorKind::Filter, "compressing", error)
}

impl Compress {
    /// Would this response be compressed for a client that accepts it?
    fn is_compressible(&self, request: &RequestHeader, response: &ResponseHeader) -> bool {
        let status = response.status;
        let has_body = !status.is_informational()
            && ![
                StatusCode::NO_CONTENT,
                StatusCode::RESET_CONTENT,
                StatusCode::PARTIAL_CONTENT,
                StatusCode::NOT_MODIFIED,
            ]
            .contains(&status);
        let length = response.headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
        has_body
            && length.is_none_or(|length: u64| length > 0 && length >= self.min_length)
            && !response.headers.contains_key("content-encoding")
            && !response.headers.contains_key("content-range")
            && ![&request.headers, &response.headers].into_iter().any(is_not_to_be_transformed)
            && self.types.contain(response)
    }
}

fn is_not_to_be_transformed(headers: &HeaderMap) -> bool {
    list(headers, "cache-control").any(|directive| directive.eq_ignore_ascii_case("no-transform"))
}

/// The elements of a header that is a list, in however many lines.
fn list<'a>(headers: &'a HeaderMap, name: &'static str) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Caches are to keep the variants apart.
fn add_vary(response: &mut ResponseHeader) -> Result<()> {
    let said = |name: &str| name == "*" || name.eq_ignore_ascii_case("accept-encoding");
    if !list(&response.headers, "vary").any(said) {
        response.append_header("Vary", "Accept-Encoding")?;
    }
    Ok(())
}

fn change_header(response: &mut ResponseHeader, algorithm: Algorithm) -> Result<()> {
    for name in ["content-length", "accept-ranges", "content-md5", "digest", "content-digest", "repr-digest"] {
        response.remove_header(name);
    }
    response.insert_header("Content-Encoding", algorithm.coding())?;
    let strong = response.headers.get("etag").filter(|etag| etag.as_bytes().starts_with(b"\""));
    if let Some(weak) = strong.and_then(|etag| HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat()).ok()) {
        response.insert_header("ETag", weak)?;
    }
    Ok(())
}

/// What the client likes best, and of that the first of `algorithms`; `None`: nothing, or the body as it is.
fn negotiate(headers: &HeaderMap, algorithms: &[Algorithm]) -> Option<Algorithm> {
    let accepted: Vec<(&str, u16)> = list(headers, "accept-encoding").filter_map(weighted).collect();
    let weight = |wanted: &str| accepted.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, q)| *q);
    // The body as it is comes after everything accepted, unless the client says otherwise.
    let identity = weight("identity").unwrap_or(0);
    let mut best = None;
    for &algorithm in algorithms {
        let alias = (algorithm == Algorithm::Gzip).then(|| weight("x-gzip")).flatten();
        let q = weight(algorithm.coding()).or(alias).or_else(|| weight("*")).unwrap_or(0);
        if q > 0 && q >= identity && best.is_none_or(|(_, most)| q > most) {
            best = Some((algorithm, q));
        }
    }
    best.map(|(algorithm, _)| algorithm)
}

/// `gzip;q=0.8`: the name, and its weight in thousandths. What makes no sense is not there.
fn weighted(element: &str) -> Option<(&str, u16)> {
    let (name, parameters) = element.split_once(';').unwrap_or((element, ""));
    let q = match parameters.trim().split_once('=') {
        Some((q, weight)) if q.trim().eq_ignore_ascii_case("q") => weight.trim().parse::<f32>().ok()?,
        Some(_) => return None,
        None => 1.0,
    };
    (0.0..=1.0).contains(&q).then_some((name.trim(), (q * 1000.0).round() as u16))
}

/// A body being compressed.
struct Encoder {
    algorithm: Algorithm,
    stream: Stream,
}

/// The output waits in the `Vec`.
enum Stream {
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(algorithm: Algorithm, level: u32) -> io::Result<Self> {
        let stream = match algorithm {
            Algorithm::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level.try_into().unwrap_or(4))?;
                encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
                encoder.set_parameter(CParameter::HashLog(TABLE_LOG))?;
                encoder.set_parameter(CParameter::ChainLog(TABLE_LOG))?;
                Stream::Zstd(encoder)
            }
            Algorithm::Br => {
                let level = level.min(HIGHEST_BROTLI);
                Stream::Br(Box::new(brotli::CompressorWriter::new(Vec::new(), BROTLI_BUFFER, level, WINDOW_LOG)))
            }
            Algorithm::Gzip => Stream::Gzip(GzEncoder::new(Vec::new(), Compression::new(level))),
        };
        COUNTERS.responses.with_label_values(&[algorithm.coding()]).inc();
        Ok(Encoder { algorithm, stream })
    }

    /// Compress a run, to its end: nobody knows when the next one comes.
    fn run(&mut self, chunks: &[Bytes]) -> io::Result<Vec<u8>> {
        let stream: &mut dyn Write = match &mut self.stream {
            Stream::Zstd(stream) => stream,
            Stream::Br(stream) => stream,
            Stream::Gzip(stream) => stream,
        };
        chunks.iter().try_for_each(|chunk| stream.write_all(chunk))?;
        stream.flush()?;
        let out = std::mem::take(match &mut self.stream {
            Stream::Zstd(stream) => stream.get_mut(),
            Stream::Br(stream) => stream.get_mut(),
            Stream::Gzip(stream) => stream.get_mut(),
        });
        self.count("in", chunks.iter().map(Bytes::len).sum());
        self.count("out", out.len());
        Ok(out)
    }

    /// The end of the body.
    fn finish(self) -> io::Result<Vec<u8>> {
        let coding = self.algorithm.coding();
        let out = match self.stream {
            Stream::Zstd(stream) => stream.finish()?,
            Stream::Br(stream) => stream.into_inner(),
            Stream::Gzip(stream) => stream.finish()?,
        };
        COUNTERS.bytes.with_label_values(&[coding, "out"]).inc_by(out.len() as u64);
        Ok(out)
    }

    fn count(&self, direction: &str, bytes: usize) {
        COUNTERS.bytes.with_label_values(&[self.algorithm.coding(), direction]).inc_by(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const ALL: [Algorithm; 3] = [Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip];

    fn accepts(lines: &[&str]) -> Option<Algorithm> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("accept-encoding", line.parse().unwrap());
        }
        negotiate(&headers, &ALL)
    }

    #[test]
    fn the_client_has_the_first_say_and_the_list_the_second() {
        use Algorithm::*;
        for (line, expected) in [
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, br", Some(Br)),
            ("gzip;q=1.0, br;q=0.9", Some(Gzip)),
            ("GZIP ; Q=0.001", Some(Gzip)),
            ("x-gzip", Some(Gzip)),
            ("*", Some(Zstd)),
            ("*;q=0.5, zstd;q=0", Some(Br)),
            ("identity;q=0, gzip;q=0.1", Some(Gzip)),
            ("identity;q=0.5, gzip;q=0.5", Some(Gzip)),
            ("identity, gzip;q=0.5", None),
            ("*;q=0", None),
            ("identity;q=0", None),
            ("gzip;q=0, identity", None),
            ("gzip;q=2, br;q=nan, zstd;q=", None),
            ("gzip;level=9", None),
            ("deflate", None),
            ("", None),
        ] {
            assert_eq!(accepts(&[line]), expected, "{line:?}");
        }
        assert_eq!(accepts(&["deflate", "br"]), Some(Br), "several lines are one list");
        assert_eq!(accepts(&[]), None);
    }

    /// What a client makes of `bytes`, be they the beginning of a body.
    fn decoded(algorithm: Algorithm, bytes: &[u8]) -> Vec<u8> {
        let mut decoder: Box<dyn Read> = match algorithm {
            Algorithm::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
            Algorithm::Br => Box::new(brotli::Decompressor::new(bytes, 4096)),
            Algorithm::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
        };
        let (mut out, mut piece) = (Vec::new(), [0; 512]);
        // A beginning ends in an error.
        while let Ok(count @ 1..) = decoder.read(&mut piece) {
            out.extend_from_slice(&piece[..count]);
        }
        out
    }

    #[test]
    fn what_each_run_brought_can_be_decoded_at_once() {
        for algorithm in ALL {
            let mut encoder = Encoder::new(algorithm, 4).unwrap();
            let (mut sent, mut seen) = (Vec::new(), Vec::new());
            for event in 0..20 {
                let text = Bytes::from(format!("data: event {event}\n\n"));
                sent.extend_from_slice(&text);
                seen.extend(encoder.run(&[text]).unwrap());
                assert_eq!(decoded(algorithm, &seen), sent, "{algorithm:?}");
            }
            seen.extend(encoder.finish().unwrap());
            assert_eq!(decoded(algorithm, &seen), sent, "{algorithm:?}");
        }
    }

    #[test]
    fn an_empty_body_is_a_whole_one() {
        for algorithm in ALL {
            let body = Encoder::new(algorithm, 4).unwrap().finish().unwrap();
            assert!(!body.is_empty(), "{algorithm:?}");
            assert_eq!(decoded(algorithm, &body), b"", "{algorithm:?}");
        }
    }

    #[test]
    fn types_are_exact_families_or_suffixes() {
        let is = |media: &str| {
            let mut response = ResponseHeader::build(200, None).unwrap();
            response.insert_header("Content-Type", media).unwrap();
            MediaTypes::new(TYPES).contain(&response)
        };
        for media in ["text/html; charset=utf-8", "TEXT/CSS", "application/json", "image/svg+xml", "a/problem+json"] {
            assert!(is(media), "{media}");
        }
        for media in ["image/png", "application/zip", "application/jsonx", "font/woff2", "textual/html", ""] {
            assert!(!is(media), "{media}");
        }
    }
}
