//! `edit_json`: set and remove values in JSON responses; and an example of a filter that needs a body whole.
//!
//! ```yaml
//! - edit_json: { set: { "/meta/request": "$request_id", "/debug": false }, remove: ["/secret", "/users/0/email"] }
//! ```
//!
//! Places are JSON Pointers (RFC 6901): `/a/b`, `/list/0`, `/list/-` for one more at the end, `~1` for a slash and `~0`
//! for a tilde in a name. Texts to set are templates; whatever else stands there is set as it is. First all of `remove`
//! happens, the later ones first, then all of `set`, in the order of the places' names. Where there is nothing to
//! remove, or nothing to set a value in, nothing happens.
//!
//! The body is held, and the header with it, until the end is there. A body that is longer than `max`, or no JSON,
//! passes unchanged, or with `on_error: fail` becomes a 502. So does a body with a `Content-Encoding`, which always
//! passes. The values keep their order, but numbers with more digits than a double holds lose them.

use millpond::conf::units::Size;
use millpond::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EditJsonConf {
    /// Places, and what is to be there.
    pub set: BTreeMap<Pointer, NewValue>,
    /// Places that are to be empty.
    pub remove: Vec<Pointer>,
    /// The longest body to look into; the route's `filter_hold_max` bounds it too.
    pub max: Size,
    /// What becomes of a body that is too long, or no JSON.
    pub on_error: OnError,
}

impl Default for EditJsonConf {
    fn default() -> Self {
        let (set, remove) = (BTreeMap::new(), Vec::new());
        EditJsonConf { set, remove, max: Size(1 << 20), on_error: OnError::Pass }
    }
}

/// What becomes of a body that cannot be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It goes on as it is.
    Pass,
    /// The client gets a 502.
    Fail,
}

/// What is set: a text with variables, or any other value.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub enum NewValue {
    /// Rendered for each response.
    Text(Template),
    /// The same for all.
    Fixed(Value),
}

impl TryFrom<Value> for NewValue {
    type Error = serde_json::Error;

    fn try_from(value: Value) -> Result<Self, serde_json::Error> {
        match value {
            Value::String(_) => serde_json::from_value(value).map(NewValue::Text),
            value => Ok(NewValue::Fixed(value)),
        }
    }
}

impl NewValue {
    fn for_request(&self, session: &Session<'_>) -> Value {
        match self {
            NewValue::Text(template) => Value::from(template.render(session)),
            NewValue::Fixed(value) => value.clone(),
        }
    }
}

/// A place in a JSON text, never the whole of it: a container, and what it is in there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Pointer {
    /// As `Value::pointer_mut` takes it.
    container: String,
    name: String,
}

// A configuration that has been parsed cannot be wrong any more. `try_from` runs when the file is read, and what its
// error says stands in the report, with file and line.
impl TryFrom<String> for Pointer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.rsplit_once('/') {
            Some((container, name)) if container.is_empty() || container.starts_with('/') => {
                let name = name.replace("~1", "/").replace("~0", "~");
                Ok(Pointer { container: container.to_owned(), name })
            }
            _ => Err(format!("a JSON Pointer that begins with a slash, not {text:?}")),
        }
    }
}

impl Pointer {
    fn remove(&self, document: &mut Value) {
        match document.pointer_mut(&self.container) {
            // `shift_remove`: the others stay in their order.
            Some(Value::Object(object)) => drop(object.shift_remove(&self.name)),
            Some(Value::Array(array)) => {
                if let Some(index) = self.index().filter(|index| *index < array.len()) {
                    array.remove(index);
                }
            }
            _ => {}
        }
    }

    fn set(&self, document: &mut Value, value: Value) {
        match document.pointer_mut(&self.container) {
            Some(Value::Object(object)) => drop(object.insert(self.name.clone(), value)),
            Some(Value::Array(array)) if self.name == "-" => array.push(value),
            Some(Value::Array(array)) => {
                if let Some(element) = self.index().and_then(|index| array.get_mut(index)) {
                    *element = value;
                }
            }
            _ => {}
        }
    }

    /// RFC 6901: digits without a leading zero.
    fn index(&self) -> Option<usize> {
        let plain = self.name == "0" || !self.name.starts_with(['0', '+']);
        self.name.parse().ok().filter(|_| plain)
    }
}

/// The filter: one value for all requests of its place in a chain.
///
/// ```
/// use millpond::filters::edit_json::{EditJson, EditJsonConf, Pointer};
///
/// let secret = Pointer::try_from("/user/secret".to_owned())?;
/// let filter = EditJson::new(EditJsonConf { remove: vec![secret], ..EditJsonConf::default() });
/// assert!(filter.is_ok());
/// # Ok::<(), String>(())
/// ```
pub struct EditJson {
    conf: EditJsonConf,
}

impl EditJson {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// There is nothing to set and nothing to remove.
    pub fn new(conf: EditJsonConf) -> Result<Self> {
        if conf.set.is_empty() && conf.remove.is_empty() {
            return Err(Error::new(ErrorKind::Filter, "at least one place to `set` or to `remove`"));
        }
        Ok(EditJson { conf })
    }
}

/// Where a response stands.
#[derive(Default)]
pub struct EditJsonCtx {
    /// The beginning of the body; `None`: whatever comes passes.
    held: Option<BytesMut>,
}

impl UpstreamPhases for EditJson {
    type Ctx = EditJsonCtx;

    fn new_ctx(&self) -> EditJsonCtx {
        EditJsonCtx::default()
    }

    // Phase 4. The header is here and the body is not: decide now whether the body is of interest at all, for one that
    // is not should neither be held nor slowed down.
    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut EditJsonCtx,
    ) -> Result<Header> {
        // An error page may follow an answer that failed while its header was held. It begins anew, and so must we.
        ctx.held = None;
        if !is_json(response) {
            return Ok(Header::Pass);
        }
        if session.request().method == Method::HEAD {
            // Nobody knows how long the body of the GET would be.
            change_header(response);
            return Ok(Header::Pass);
        }
        // Too long by its own account: there is no need to find out.
        let length = response.headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > self.most(session)) {
            self.cannot("is too long")?;
            return Ok(Header::Pass);
        }
        ctx.held = Some(BytesMut::new());
        // `Hold` keeps the header back until `body_filter` emits a byte or the end. Only so can it be changed by what
        // is found in the body. With `Pass` it would be on its way, and a Content-Length in it a promise.
        Ok(Header::Hold)
    }

    // Phase 5, again and again: each run has what has come since the last one.
    async fn body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, ctx: &mut EditJsonCtx) -> Result<()> {
        let Some(held) = &mut ctx.held else { return Ok(()) };
        // What a filter holds has to have a bound, or strangers choose how much memory there is. The engine has one of
        // its own, `filter_hold_max`, and fails what goes beyond; stop before that.
        let too_long = (held.len() + body.len()) as u64 > self.most(session);
        // `take` leaves an empty run, which goes no further, and that is how a filter holds something. The mark of the
        // end stays in it: an end that is taken away would be missed by everyone.
        for chunk in body.take() {
            held.extend_from_slice(&chunk);
        }
        if too_long {
            // All of it goes on, the header unchanged in front of it, and the rest of the body passes as it comes.
            body.push(ctx.held.take().unwrap_or_default());
            return self.cannot("is too long");
        }
        if !body.is_last() {
            return Ok(());
        }
        let whole = ctx.held.take().unwrap_or_default().freeze();
        let edited = match serde_json::from_slice(&whole) {
            Ok(document) => self.edited(document, session),
            Err(_) => {
                body.push(whole);
                return self.cannot("is no JSON");
            }
        };
        // Still held, since nothing has been emitted: the last moment to change it. The length is known now, so say it;
        // the engine holds us to it.
        if let Some(header) = session.held_header() {
            change_header(header);
            header.set_content_length(edited.len())?;
        }
        body.push(edited);
        Ok(())
    }
}

impl EditJson {
    /// The longest body that may be held here.
    fn most(&self, session: &Session<'_>) -> u64 {
        self.conf.max.0.min(session.route().conf().filter_hold_max)
    }

    fn edited(&self, mut document: Value, session: &Session<'_>) -> Vec<u8> {
        // The later ones first: elements of an array then do not move before their turn comes.
        self.conf.remove.iter().rev().for_each(|pointer| pointer.remove(&mut document));
        for (pointer, value) in &self.conf.set {
            pointer.set(&mut document, value.for_request(session));
        }
        document.to_string().into_bytes()
    }

    /// An `Err` from a hook fails the request. As the header has not gone out, the client gets a page with the status.
    fn cannot(&self, what: &str) -> Result<()> {
        match self.conf.on_error {
            OnError::Pass => Ok(()),
            OnError::Fail => Err(Error::with_status(502, format!("the body {what}"))),
        }
    }
}

/// A whole body of JSON, as far as the header says.
fn is_json(response: &ResponseHeader) -> bool {
    let content_type = response.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&response.status);
    (media == "application/json" || media.ends_with("+json"))
        && !bodiless
        && !response.status.is_informational()
        && response.status != StatusCode::PARTIAL_CONTENT
        && !response.headers.contains_key("content-encoding")
}

/// What no longer holds of a body that has been changed.
fn change_header(header: &mut ResponseHeader) {
    for name in [
        "content-length",
        "etag",
        "last-modified",
        "accept-ranges",
        "content-md5",
        "digest",
        "content-digest",
        "repr-digest",
    ] {
        header.remove_header(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(pointer: &str) -> Pointer {
        Pointer::try_from(pointer.to_owned()).unwrap()
    }

    #[test]
    fn values_are_set_where_there_is_something_to_set_them_in() {
        let mut document = json!({ "a": { "b": 1 }, "l": [1, 2], "m/n": { "o~": 0 } });
        for pointer in ["/a/b", "/a/c", "/l/1", "/l/-", "/m~1n/o~0", "/", "/l/7", "/l/01", "/l/+1", "/no/b", "/a/b/c"] {
            at(pointer).set(&mut document, json!("x"));
        }
        let expected = json!({ "a": { "b": "x", "c": "x" }, "l": [1, "x", "x"], "m/n": { "o~": "x" }, "": "x" });
        assert_eq!(document, expected);
    }

    #[test]
    fn values_are_removed_and_the_others_stay_in_order() {
        let mut document: Value = serde_json::from_str(r#"{"z":1,"y":{"x":2,"w":3},"a":[1,2,3]}"#).unwrap();
        for pointer in ["/z", "/y/x", "/a/1", "/a/9", "/a/-", "/y/none", "/none/x"] {
            at(pointer).remove(&mut document);
        }
        assert_eq!(document.to_string(), r#"{"y":{"w":3},"a":[1,3]}"#);
    }

    #[test]
    fn a_pointer_begins_with_a_slash() {
        for text in ["", "a", "a/b"] {
            assert!(Pointer::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
