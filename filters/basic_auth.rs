//! `basic_auth`: a user name and a password, from an htpasswd file.
//!
//! ```yaml
//! - basic_auth: { realm: Staff only, htpasswd_file: /etc/millpond/htpasswd }
//! ```
//!
//! The file has a line `user:hash` for each user, as `htpasswd` writes it; what stands behind a further colon, and
//! lines that begin with `#`, are comments. Hashes: bcrypt (`htpasswd -B`), SHA-256 and SHA-512 crypt, MD5 crypt
//! (`$apr1$`, `$1$`), and as in nginx `{SHA}`, `{SSHA}` and `{PLAIN}`. The file is looked at again when a request
//! comes, at most once a second, and read when it has changed; a file with a mistake changes nothing, and the log names
//! its line.
//!
//! A hash that is expensive to check is checked off the async threads, and not again for a password that was right: of
//! that, a keyed digest is kept, one for each user. Who names no user of the file waits as long as who is wrong about a
//! password, as far as the hashes of the file cost the same.
//!
//! The user's name is `$remote_user` from then on. The `Authorization` header goes on to the upstream, as with nginx.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::Digest as _;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;
use sha_crypt::{PasswordHash, PasswordVerifier, ShaCrypt};
use sha2::Digest as _;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicAuthConf {
    /// What the client's window calls the place.
    pub realm: String,
    /// The users and their hashes.
    pub htpasswd_file: PathBuf,
}

/// Longer credentials are wrong: what SHA crypt does grows with the square of a password's length.
const LONGEST: usize = 512;

static CHECKS: Lazy<IntCounterVec> = Lazy::new(|| {
    let help =
        "Requests by what their credentials were; result: right, known (right, and checked before), wrong, missing.";
    let opts = Opts::new("millpond_basic_auth_total", help);
    let checks = IntCounterVec::new(opts, &["result"]).expect("the name and the labels are well formed");
    // Where `/metrics` finds it, unless another copy of this file is there.
    if let Err(error) = prometheus::register(Box::new(checks.clone())) {
        log::warn!("basic_auth's metrics: {error}");
    }
    checks
});

/// The filter.
///
/// ```
/// use millpond::filters::basic_auth::{BasicAuth, BasicAuthConf};
///
/// let conf = BasicAuthConf { realm: "Staff only".to_owned(), htpasswd_file: "/nonexistent".into() };
/// let error = BasicAuth::new(conf).err().expect("the file is read here").to_string();
/// assert!(error.contains("/nonexistent"));
/// ```
pub struct BasicAuth {
    challenge: HeaderValue,
    file: LiveFile<Users>,
    /// Strangers may have the hashes computed, but not by every thread at once.
    turns: Arc<Semaphore>,
}

impl BasicAuth {
    /// Make it from its configuration. The file is read here.
    ///
    /// # Errors
    /// `realm` cannot stand in a header, the file cannot be read, or has a line that names no user with a hash of a
    /// known kind.
    pub fn new(conf: BasicAuthConf) -> Result<Self> {
        let expected = |text: String| Error::new(ErrorKind::Filter, text);
        let realm = conf.realm.replace('\\', "\\\\").replace('"', "\\\"");
        let challenge = HeaderValue::from_str(&format!("Basic realm=\"{realm}\", charset=\"UTF-8\""))
            .map_err(|_| expected(format!("a text without control characters as `realm`, not {:?}", conf.realm)))?;
        let file = LiveFile::read("basic_auth", "htpasswd_file", &conf.htpasswd_file, parse)?;
        let turns = std::thread::available_parallelism().map_or(1, |threads| threads.get().div_ceil(2));
        Lazy::force(&CHECKS);
        Ok(BasicAuth { challenge, file, turns: Arc::new(Semaphore::new(turns)) })
    }
}

impl UpstreamPhases for BasicAuth {
    /// The client is to be asked for its credentials.
    type Ctx = bool;

    fn new_ctx(&self) -> bool {
        false
    }

    async fn request_filter(&self, session: &mut Session<'_>, challenged: &mut bool) -> Result<Flow> {
        let credentials = credentials(&session.request().headers);
        let (result, user) = match credentials {
            Some(credentials) => (self.check(&credentials).await?, credentials.user),
            None => (Check::Missing, String::new()),
        };
        CHECKS.with_label_values(&[result.name()]).inc();
        match result {
            Check::Right | Check::Known => {
                session.set_remote_user(user);
                Ok(Flow::Continue)
            }
            Check::Wrong | Check::Missing => {
                *challenged = true;
                Err(Error::with_status(401, format!("basic_auth: {} credentials", result.name())))
            }
        }
    }

    async fn response_filter(
        &self,
        _session: &mut Session<'_>,
        response: &mut ResponseHeader,
        challenged: &mut bool,
    ) -> Result<Header> {
        // The error page comes by here, whoever it is from.
        if *challenged {
            response.insert_header("WWW-Authenticate", self.challenge.clone())?;
        }
        Ok(Header::Pass)
    }
}

#[derive(Clone, Copy)]
enum Check {
    Right,
    Known,
    Wrong,
    Missing,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::Right => "right",
            Check::Known => "known",
            Check::Wrong => "wrong",
            Check::Missing => "missing",
        }
    }
}

struct Credentials {
    user: String,
    password: Vec<u8>,
}

/// RFC 7617: `Basic`, and the name and the password in base64.
fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let (scheme, encoded) = headers.get("authorization")?.to_str().ok()?.split_once(' ')?;
    let encoded = encoded.trim();
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > LONGEST * 2 {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = std::str::from_utf8(&decoded[..colon]).ok()?;
    let sound = decoded.len() <= LONGEST && !user.chars().any(char::is_control);
    sound.then(|| Credentials { user: user.to_owned(), password: decoded[colon + 1..].to_vec() })
}

impl BasicAuth {
    async fn check(&self, credentials: &Credentials) -> Result<Check> {
        let users = self.file.current().await;
        let found = users.by_name.get(&credentials.user);
        // A name that is not there costs what one that is there does.
        let Some(user) = found.or_else(|| users.decoy(&credentials.user)).cloned() else { return Ok(Check::Wrong) };
        let digest = users.digest(credentials, &user);
        if found.is_some() && (*user.verified.lock()).is_some_and(|verified| verified.ct_eq(&digest).into()) {
            return Ok(Check::Known);
        }
        let failed = |text: String| Error::new(ErrorKind::Internal, format!("checking a password: {text}"));
        let turn = self.turns.clone().acquire_owned().await.map_err(|error| failed(error.to_string()))?;
        let (checked, password) = (user.clone(), credentials.password.clone());
        // The work goes on when its request is dropped, and its turn with it.
        let right = tokio::task::spawn_blocking(move || (checked.hash.is_of(&password), turn).0).await;
        if right.map_err(|error| failed(error.to_string()))? && found.is_some() {
            *user.verified.lock() = Some(digest);
            return Ok(Check::Right);
        }
        Ok(Check::Wrong)
    }
}

/// A user of the file.
struct User {
    hash: Hash,
    /// The keyed digest of the password that was right.
    verified: Mutex<Option<[u8; 32]>>,
}

/// What the file says.
struct Users {
    by_name: HashMap<String, Arc<User>>,
    /// The same users, to choose from by number.
    all: Vec<Arc<User>>,
    /// Nobody outside can tell what it picks.
    pick: RandomState,
    /// The key of the digests.
    key: [[u8; 16]; 2],
}

impl Users {
    /// The user whose hash is checked for a name that is not there: always the same for the same name.
    fn decoy(&self, name: &str) -> Option<&Arc<User>> {
        let count = u64::try_from(self.all.len()).ok().filter(|count| *count > 0)?;
        self.all.get(usize::try_from(self.pick.hash_one(name) % count).ok()?)
    }

    fn digest(&self, credentials: &Credentials, user: &Arc<User>) -> [u8; 32] {
        let mut digest = sha2::Sha256::new();
        sha2::Digest::update(&mut digest, self.key.concat());
        sha2::Digest::update(&mut digest, Arc::as_ptr(user).addr().to_ne_bytes());
        sha2::Digest::update(&mut digest, &credentials.password);
        sha2::Digest::finalize(digest).into()
    }
}

/// A password's hash.
enum Hash {
    Bcrypt(String),
    ShaCrypt(PasswordHash),
    Md5Crypt { magic: &'static str, salt: String, hash: String },
    Sha1 { hash: Vec<u8>, salt: Vec<u8> },
    Plain(String),
}

impl Hash {
    /// `None`: it is none of those above.
    fn parse(text: &str) -> Option<Self> {
        if let Some(magic) = ["$apr1$", "$1$"].into_iter().find(|magic| text.starts_with(magic)) {
            let (salt, hash) = text[magic.len()..].split_once('$')?;
            let sound = salt.len() <= 8 && hash.len() == 22;
            return sound.then(|| Hash::Md5Crypt { magic, salt: salt.to_owned(), hash: hash.to_owned() });
        }
        if ["$5$", "$6$"].iter().any(|magic| text.starts_with(magic)) {
            return PasswordHash::new(text).ok().map(Hash::ShaCrypt);
        }
        if ["$2a$", "$2b$", "$2y$"].iter().any(|magic| text.starts_with(magic)) {
            let sound = text.parse::<bcrypt::HashParts>().is_ok_and(|parts| (4..=31).contains(&parts.get_cost()));
            return (sound && text.len() == 60).then(|| Hash::Bcrypt(text.to_owned()));
        }
        if let Some(plain) = text.strip_prefix("{PLAIN}") {
            return Some(Hash::Plain(plain.to_owned()));
        }
        let salted = text.strip_prefix("{SSHA}");
        let mut hash = BASE64_STANDARD.decode(salted.or_else(|| text.strip_prefix("{SHA}"))?).ok()?;
        let sound = if salted.is_some() { hash.len() >= 20 } else { hash.len() == 20 };
        sound.then(|| {
            let salt = hash.split_off(20);
            Hash::Sha1 { hash, salt }
        })
    }

    /// Is it this password's? May take as long as whoever made the hash wanted.
    fn is_of(&self, password: &[u8]) -> bool {
        match self {
            Hash::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Hash::ShaCrypt(hash) => ShaCrypt::default().verify_password(password, hash).is_ok(),
            Hash::Md5Crypt { magic, salt, hash } => {
                md5_crypt(password, salt.as_bytes(), magic.as_bytes()).as_bytes().ct_eq(hash.as_bytes()).into()
            }
            Hash::Sha1 { hash, salt } => {
                sha1::Sha1::new().chain_update(password).chain_update(salt).finalize().as_slice().ct_eq(hash).into()
            }
            Hash::Plain(plain) => plain.as_bytes().ct_eq(password).into(),
        }
    }
}

/// MD5 crypt as FreeBSD and Apache have it (`apr_md5_encode`), without its magic and salt.
fn md5_crypt(password: &[u8], salt: &[u8], magic: &[u8]) -> String {
    let md5 = |parts: &[&[u8]]| -> [u8; 16] { md5::Md5::digest(parts.concat()).into() };
    let mut first = [password, magic, salt].concat();
    let alternate = md5(&[password, salt, password]);
    first.extend(alternate.iter().cycle().take(password.len()));
    let mut bits = password.len();
    while bits > 0 {
        first.push(if bits & 1 == 1 { 0 } else { password.first().copied().unwrap_or_default() });
        bits >>= 1;
    }
    let mut hash = md5(&[&first]);
    for round in 0..1000 {
        let (odd, before) = (round % 2 == 1, hash);
        let (start, end): (&[u8], &[u8]) = if odd { (password, &before) } else { (&before, password) };
        let salt = if round % 3 == 0 { &[] } else { salt };
        let again = if round % 7 == 0 { &[] } else { password };
        hash = md5(&[start, salt, again, end]);
    }
    encoded(hash)
}

/// crypt's base64 of an MD5, in crypt's order.
fn encoded(hash: [u8; 16]) -> String {
    const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const ORDER: [[usize; 3]; 5] = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];
    let groups = ORDER.map(|[high, middle, low]| ([hash[high], hash[middle], hash[low]], 4));
    let digits = groups.into_iter().chain([([0, 0, hash[11]], 2)]).flat_map(|([high, middle, low], count)| {
        let group = u32::from_be_bytes([0, high, middle, low]);
        (0..count).map(move |digit| char::from(DIGITS[(group >> (6 * digit) & 63) as usize]))
    });
    digits.collect()
}

/// The users of a file. Of a name that is there twice the first one counts, as in nginx. No message shows a hash.
fn parse(text: &str, path: &Path) -> Result<Users, String> {
    let mut by_name = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{}:{}", path.display(), index + 1);
        let (name, rest) = line.split_once(':').ok_or_else(|| format!("{place}: expected `user:hash`"))?;
        let hash = if rest.starts_with("{PLAIN}") { rest } else { rest.split(':').next().unwrap_or_default() };
        let hash = Hash::parse(hash).ok_or_else(|| {
            format!(
                "{place}: expected for {name:?} a hash of bcrypt, SHA crypt ($5$, $6$), MD5 crypt ($apr1$, $1$), {{SHA}}, \
                 {{SSHA}} or {{PLAIN}}"
            )
        })?;
        by_name.entry(name.to_owned()).or_insert_with(|| Arc::new(User { hash, verified: Mutex::new(None) }));
    }
    let all = by_name.values().cloned().collect();
    let key = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes);
    Ok(Users { by_name, all, pick: RandomState::new(), key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    /// Of `p:ss w`, made by `htpasswd` and `openssl passwd`.
    const HASHES: [&str; 8] = [
        "$2y$05$0yJVxkK7cRkMrl.0wayZiuyxuBlN8wtNex5yOUpCIiNaO8vec4Fl.",
        "$6$saltsalt$vZyiQnZh9746l1r87Z55D.C724urnEGiRVWpVftb9Zfrj52lgCiBD1sw/r62N6ASG5F7qK2v9rWHc1xi/uN06/",
        "$5$saltsalt$Ekd3WycHleFE2ntNExLRzwFeqjGgh5UZPeI0euD4ZM9",
        "$apr1$saltsalt$1/Bw.KR8ySRDU0mhgBVHE/",
        "$1$saltsalt$0nrpU5Y2EP.3e5qNyWLLZ0",
        "{SHA}y/toJHtMbPd8hz6eZnn3O56M92k=",
        "{SSHA}/OPKa27ZuaxJYO6xN+miSYh/P4NzYWx0",
        "{PLAIN}p:ss w",
    ];

    #[test]
    fn each_kind_of_hash_knows_its_password() {
        for text in HASHES {
            let hash = Hash::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert!(hash.is_of(b"p:ss w"), "{text}");
            for wrong in ["", "p:ss", "p:ss w ", "P:ss w"] {
                assert!(!hash.is_of(wrong.as_bytes()), "{text} {wrong}");
            }
        }
    }

    #[test]
    fn what_is_no_hash_is_named_by_its_line_alone() {
        for hash in ["secret", "", "$2y$05$short", "$apr1$salt", "{SHA}AAAA", "{MD5}x", "$7$x$y", "rl0uE4pJJ3Q2M"] {
            let error = parse(&format!("# comment\n\nann:{hash}\n"), Path::new("users")).err().unwrap();
            assert!(error.starts_with("users:3: expected for \"ann\" a hash"), "{error}");
            assert!(hash.is_empty() || !error.contains(hash), "{error}");
        }
        assert_eq!(parse("ann\n", Path::new("users")).err().unwrap(), "users:1: expected `user:hash`");
    }

    #[test]
    fn a_line_may_have_a_comment_and_the_first_of_two_counts() {
        let users = parse("ann:{SHA}y/toJHtMbPd8hz6eZnn3O56M92k=:Ann\nann:{PLAIN}x", Path::new("users")).unwrap();
        assert!(users.by_name["ann"].hash.is_of(b"p:ss w"));
        assert_eq!(users.all.len(), 1);
    }

    #[tokio::test]
    async fn a_dropped_request_keeps_its_turn_while_its_password_is_checked() {
        let file = std::env::temp_dir().join(format!("millpond-htpasswd-{}", std::process::id()));
        // It takes a while.
        fs::write(&file, "ann:$2y$10$0yJVxkK7cRkMrl.0wayZiuyxuBlN8wtNex5yOUpCIiNaO8vec4Fl.\n").unwrap();
        let filter = BasicAuth::new(BasicAuthConf { realm: "r".into(), htpasswd_file: file.clone() }).unwrap();
        fs::remove_file(file).unwrap();
        let all = filter.turns.available_permits();
        let credentials = Credentials { user: "ann".into(), password: b"x".to_vec() };
        let check = tokio::time::timeout(Duration::ZERO, filter.check(&credentials)).await;
        assert!(check.is_err(), "it is dropped before it is done");
        assert_eq!(filter.turns.available_permits(), all - 1);
        drop(filter.turns.clone().acquire_many_owned(u32::try_from(all).unwrap()).await.unwrap());
    }

    #[test]
    fn credentials_are_read_as_rfc_7617_has_them() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", value.parse().unwrap());
            credentials(&headers).map(|found| (found.user, String::from_utf8(found.password).unwrap()))
        };
        let basic = |text: &str| format!("bAsic {}", BASE64_STANDARD.encode(text));
        assert_eq!(read(&basic("ann:p:ss w")), Some(("ann".to_owned(), "p:ss w".to_owned())));
        assert_eq!(read(&basic("ann:")), Some(("ann".to_owned(), String::new())));
        for wrong in [basic("ann"), basic("a\nn:x"), basic(&"x:".repeat(300)), "Bearer YTpi".into(), "Basic ?".into()] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }
}
