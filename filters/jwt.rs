//! `jwt`: only requests with a JSON Web Token (RFC 7519) that was signed by one of the known keys pass.
//!
//! ```yaml
//! - jwt:
//!     jwks_url: https://login.example.com/keys
//!     issuer: https://login.example.com/
//!     audience: shop
//!     copy_claims: { sub: X-User }
//! ```
//!
//! The token stands in `Authorization: Bearer`, or in the `cookie` that is named. Its signature must be by a key (RFC
//! 7517) of `jwks_file` or `jwks_url`, with one of the `algorithms`; `exp` must be there and `nbf` may be, both with
//! `leeway`; where `issuer` or `audience` are set, the token must have one of them. Everything else is a 401 with
//! `WWW-Authenticate: Bearer`.
//!
//! `copy_claims` sends claims to the upstream in place of what the client has sent under these names, also where the
//! token has no such claim: texts as they are, everything else as JSON.
//!
//! Keys of a URL are fetched when first needed, again after `refresh`, and, at most every ten seconds, when a token
//! names a key that is not among them; those of a file when it has changed. When that fails the old ones stay; without
//! any, 503. A `jwks_url` without scheme and host is a path of the service: another route's answer. Symmetric keys
//! (`oct`) are taken from files only.

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use millpond::conf::units::Time;
use millpond::prelude::*;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a source of keys is asked at most.
const PAUSE: Duration = Duration::from_secs(10);
/// The longest set of keys.
const MAX_SET: usize = 256 * 1024;
/// The longest token.
const MAX_TOKEN: usize = 16 * 1024;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConf {
    /// A file with a set of keys.
    pub jwks_file: Option<PathBuf>,
    /// Where there is one: a URL, or a path of the service. Either this or `jwks_file`.
    pub jwks_url: Option<String>,
    /// The issuers that are trusted; none: all.
    #[serde(default)]
    pub issuer: Names,
    /// Whom the token must be for, one of them; none: anybody.
    #[serde(default)]
    pub audience: Names,
    /// The algorithms that are trusted; none: all that fit the keys.
    #[serde(default)]
    pub algorithms: Vec<Algorithm>,
    /// Claims, and the headers in which the upstream is sent them.
    #[serde(default)]
    pub copy_claims: BTreeMap<String, String>,
    /// The cookie that has the token, instead of `Authorization`.
    pub cookie: Option<String>,
    /// How far clocks may be apart.
    #[serde(default = "no_time")]
    pub leeway: Time,
    /// How long keys of a URL are good for.
    #[serde(default = "an_hour")]
    pub refresh: Time,
    /// How long they may take to come.
    #[serde(default = "five_seconds")]
    pub timeout: Time,
}

fn no_time() -> Time {
    Time(Duration::ZERO)
}

fn an_hour() -> Time {
    Time(Duration::from_secs(3600))
}

fn five_seconds() -> Time {
    Time(Duration::from_secs(5))
}

/// One name, or several.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "OneOrMore")]
pub struct Names(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl From<OneOrMore> for Names {
    fn from(names: OneOrMore) -> Self {
        match names {
            OneOrMore::One(name) => Names(vec![name]),
            OneOrMore::More(names) => Names(names),
        }
    }
}

/// The filter.
pub struct Jwt {
    source: Source,
    validation: Validation,
    copy_claims: Vec<(String, HeaderName)>,
    cookie: Option<String>,
    refresh: Duration,
    timeout: Duration,
    /// Those of a URL.
    keys: Mutex<Keys>,
    /// Held by who asks for keys; the time is when it was done last.
    asking: tokio::sync::Mutex<Option<Instant>>,
}

enum Source {
    File(LiveFile<Vec<Key>>),
    Url { target: Target, path: String },
}

#[derive(Default)]
struct Keys {
    set: Arc<Vec<Key>>,
    /// When they came.
    since: Option<Instant>,
}

struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    key: DecodingKey,
}

impl Jwt {
    /// Make it from its configuration; a file is read at once.
    ///
    /// # Errors
    /// The file cannot be read, has no keys, or is there beside a URL; a header's name is none.
    pub fn new(conf: JwtConf, scope: &FilterScope<'_>) -> Result<Self> {
        let name = |(claim, header): (&String, &String)| {
            let expected = |_| wrong(format!("names of headers, {header:?} is none"));
            Ok((claim.clone(), HeaderName::from_bytes(header.as_bytes()).map_err(expected)?))
        };
        Ok(Jwt {
            source: source(&conf, scope)?,
            validation: validation(&conf),
            copy_claims: conf.copy_claims.iter().map(name).collect::<Result<_>>()?,
            cookie: conf.cookie,
            refresh: conf.refresh.0,
            timeout: conf.timeout.0,
            keys: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }
}

fn source(conf: &JwtConf, scope: &FilterScope<'_>) -> Result<Source> {
    match (&conf.jwks_file, &conf.jwks_url) {
        (Some(path), None) => {
            let read = |text: &str, path: &Path| {
                parse(text.as_bytes(), true).map_err(|error| format!("{}: expected {error}", path.display()))
            };
            LiveFile::read("jwt", "jwks_file", path, read).map(Source::File)
        }
        (None, Some(path)) if path.starts_with('/') => Ok(Source::Url { target: Target::route(), path: path.clone() }),
        (None, Some(url)) => {
            let (target, path) = scope.origin(url)?;
            Ok(Source::Url { target, path })
        }
        _ => Err(wrong("either `jwks_file` or `jwks_url`")),
    }
}

fn validation(conf: &JwtConf) -> Validation {
    let mut validation = Validation::default();
    validation.algorithms.clone_from(&conf.algorithms);
    validation.leeway = conf.leeway.0.as_secs();
    validation.validate_nbf = true;
    validation.validate_aud = !conf.audience.0.is_empty();
    let mut required = vec!["exp"];
    if !conf.issuer.0.is_empty() {
        validation.set_issuer(&conf.issuer.0);
        required.push("iss");
    }
    if !conf.audience.0.is_empty() {
        validation.set_audience(&conf.audience.0);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    validation
}

fn wrong(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Filter, text)
}

impl UpstreamPhases for Jwt {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        let Some(token) = self.token(session.request()) else {
            return refuse(session, "");
        };
        let claims = match self.claims(session, &token).await? {
            Ok(claims) => claims,
            Err(reason) => {
                log::info!("jwt: {reason}");
                return refuse(session, "error=\"invalid_token\"");
            }
        };
        match self.copy(&claims, session.request_mut())? {
            true => Ok(Flow::Continue),
            false => refuse(session, "error=\"invalid_token\""),
        }
    }
}

fn refuse(session: &mut Session<'_>, parameters: &str) -> Result<Flow> {
    let mut header = ResponseHeader::build(StatusCode::UNAUTHORIZED, None)?;
    header.insert_header("content-type", "text/plain; charset=utf-8")?;
    header.insert_header("www-authenticate", format!("Bearer {parameters}").trim_end())?;
    session.respond_with(header, "401 Unauthorized\n")?;
    Ok(Flow::Done)
}

impl Jwt {
    fn token(&self, request: &RequestHeader) -> Option<String> {
        let token = match &self.cookie {
            Some(name) => cookie(request, name),
            None => {
                let value = request.headers.get("authorization")?.to_str().ok()?;
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
            }
        };
        token.filter(|token| token.len() <= MAX_TOKEN).map(str::to_owned)
    }

    /// What the token says, or why it is not believed. `Err`: there are no keys to tell.
    async fn claims(&self, session: &Session<'_>, token: &str) -> Result<Result<Map<String, Value>, String>> {
        let header = match decode_header(token) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let allowed = &self.validation.algorithms;
        if !allowed.is_empty() && !allowed.contains(&header.alg) {
            return Ok(Err(format!("the algorithm {:?}", header.alg)));
        }
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let mut reason = "no key fits".to_owned();
        let name = format!("{:?}", header.alg);
        for key in self.keys(session, header.kid.as_deref()).await?.iter() {
            let named = header.kid.is_none() || key.id.is_none() || key.id == header.kid;
            if !named || key.algorithm.as_ref().is_some_and(|algorithm| *algorithm != name) {
                continue;
            }
            match decode(token, &key.key, &validation) {
                Ok(token) => return Ok(Ok(token.claims)),
                Err(error) => reason = error.to_string(),
            }
        }
        Ok(Err(reason))
    }

    /// `false`: a claim cannot be sent in a header.
    fn copy(&self, claims: &Map<String, Value>, request: &mut RequestHeader) -> Result<bool> {
        for (claim, header) in &self.copy_claims {
            request.remove_header(header);
            let text = match claims.get(claim) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) else { return Ok(false) };
            request.insert_header(header.clone(), value)?;
        }
        Ok(true)
    }

    /// The keys, with the one of this id among them if it is to be had.
    async fn keys(&self, session: &Session<'_>, id: Option<&str>) -> Result<Arc<Vec<Key>>> {
        let (target, path) = match &self.source {
            Source::File(file) => return Ok(file.current().await),
            Source::Url { target, path } => (target, path),
        };
        let (set, fresh) = self.known();
        let knows = |set: &[Key]| id.is_none_or(|id| set.iter().any(|key| key.id.as_deref() == Some(id)));
        if fresh && knows(&set) {
            return Ok(set);
        }
        // Old keys are better than waiting; without the right one there is nothing better to do.
        let mut asked = match self.asking.try_lock() {
            Ok(asked) => asked,
            Err(_) if knows(&set) && !set.is_empty() => return Ok(set),
            Err(_) => self.asking.lock().await,
        };
        if asked.is_none_or(|at| at.elapsed() >= PAUSE) {
            if let Err(error) = self.ask(session, target, path).await {
                log::error!("jwt: the keys: {error}");
            }
            *asked = Some(Instant::now());
        }
        let (set, _) = self.known();
        if set.is_empty() {
            return Err(Error::with_status(503, "there are no keys to check tokens with"));
        }
        Ok(set)
    }

    fn known(&self) -> (Arc<Vec<Key>>, bool) {
        let keys = self.keys.lock();
        (keys.set.clone(), keys.since.is_some_and(|since| since.elapsed() < self.refresh))
    }

    async fn ask(&self, session: &Session<'_>, target: &Target, path: &str) -> Result<()> {
        let fetched = tokio::time::timeout(self.timeout, fetch(session, target, path)).await;
        let text = fetched.map_err(|_| wrong(format!("not there within {:?}", self.timeout)))??;
        *self.keys.lock() = Keys { set: Arc::new(parse(&text, false)?), since: Some(Instant::now()) };
        Ok(())
    }
}

fn cookie<'r>(request: &'r RequestHeader, name: &str) -> Option<&'r str> {
    let cookies = request.headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Nothing of the client's request goes there.
async fn fetch(session: &Session<'_>, target: &Target, path: &str) -> Result<Bytes> {
    let mut request = RequestHeader::build(Method::GET, path.as_bytes(), Some(2))?;
    request.insert_header("accept", "application/json")?;
    if let Some(host) = session.host() {
        request.insert_header("host", host)?;
    }
    let mut answer = session.subrequest(request, target)?.send().await?;
    if answer.header().status != StatusCode::OK {
        return Err(wrong(format!("{path} has answered {}", answer.header().status)));
    }
    answer.collect(MAX_SET).await
}

/// The keys of a set (RFC 7517) that can check signatures; others are passed over.
fn parse(text: &[u8], symmetric: bool) -> Result<Vec<Key>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(text).map_err(|error| wrong(format!("a set of keys (JWKS): {error}")))?;
    let keys: Vec<Jwk> = set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect();
    let keys: Vec<Key> = JwkSet { keys }.keys.iter().filter_map(|jwk| usable(jwk, symmetric)).collect();
    if keys.is_empty() {
        return Err(wrong("a set of keys (JWKS) with at least one that can check signatures"));
    }
    Ok(keys)
}

fn usable(jwk: &Jwk, symmetric: bool) -> Option<Key> {
    use jsonwebtoken::jwk::PublicKeyUse;
    let encrypts = matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption));
    if encrypts || (!symmetric && matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_))) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let algorithm = jwk.common.key_algorithm.as_ref().map(ToString::to_string);
    Some(Key { id: jwk.common.key_id.clone(), algorithm, key })
}
