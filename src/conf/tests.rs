//! The files in `conf/` are right, and the reference is complete.

use super::source::{item_path, key_path};
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name)
}

/// A folder with all the PEM files that the shipped files name.
fn tls_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(vec!["app.internal".into()]).unwrap();
    for name in ["ca", "client", "server", "other"] {
        fs::write(folder.path().join(format!("{name}.pem")), pair.cert.pem()).unwrap();
        fs::write(folder.path().join(format!("{name}.key")), pair.signing_key.serialize_pem()).unwrap();
    }
    folder
}

fn load(name: &str) -> Conf {
    let folder = tls_folder();
    let tls_dir = folder.path().to_str().unwrap().to_owned();
    let text = fs::read_to_string(shipped(name)).unwrap();
    let source = Source::parse(&text, shipped(name).to_str().unwrap()).unwrap();
    let conf = Conf::from_source(source, &|name| (name == "TLS_DIR").then(|| tls_dir.clone()));
    conf.unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_shipped_file_is_right() {
    let mut names: Vec<String> =
        fs::read_dir(shipped("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(".yaml"));
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        load(&name);
    }
}

#[test]
fn quickstart_is_what_it_says() {
    let conf = Conf::load(&shipped("quickstart.yaml")).unwrap();
    assert_eq!(conf.admin.unwrap().listen.to_string(), "127.0.0.1:9145");
    assert_eq!(conf.upstreams["app"].servers[0].addresses[0].to_string(), "127.0.0.1:8080");
    let web = &conf.services[0];
    assert_eq!((web.name.as_str(), web.listen[0].address.to_string().as_str()), ("web", "127.0.0.1:8000"));
    let filters = web.filters.iter().chain(&web.routes[0].filters).map(|filter| filter.name.as_str());
    assert_eq!(filters.collect::<Vec<_>>(), ["request_id", "headers", "sub"]);
}

#[test]
fn error_pages_are_files_and_paths() {
    let conf = load("errors.yaml");
    let pages = |route: usize, status| conf.services[0].routes[route].error_pages.find(status).cloned();
    let Some(ErrorPage::File { content_type, body }) = pages(0, 502) else { panic!("502 has a file") };
    assert_eq!(content_type, "text/html; charset=utf-8");
    assert!(body.starts_with(b"<!doctype html>"));
    assert_eq!(pages(0, 504), pages(0, 502), "by its class");
    assert_eq!(pages(0, 404), Some(ErrorPage::Path("/errors/404".into())));
    assert_eq!(pages(0, 403), None);
    assert!(conf.services[0].error_pages.find(404).is_some(), "without a route");
    let internal: Vec<bool> = conf.services[0].routes.iter().map(|route| route.internal).collect();
    assert_eq!(internal, [false, false, true, true]);
}

#[test]
fn tls_and_http2_come_from_the_file() {
    let conf = load("tls.yaml");
    let listen = &conf.services[0].listen[0];
    assert_eq!((listen.tls.len(), listen.h2), (2, true));
    let tls = conf.upstreams["app"].tls.as_ref().unwrap();
    assert_eq!((tls.server_name.as_str(), tls.verify), ("app.internal", true));
    assert!(tls.ca_file.as_ref().unwrap().ends_with("ca.pem"));
}

#[test]
fn a_certificate_that_is_none_is_an_error() {
    let folder = tls_folder();
    let listen = |cert: &str, key: &str| {
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let tls = serde_json::json!([{ "cert_file": file(cert), "key_file": file(key) }]);
        let service = serde_json::json!({ "name": "web", "listen": [{ "address": "127.0.0.1:0", "tls": tls }],
            "routes": [{ "filters": [{ "x": {} }] }] });
        Conf::from_value(serde_json::json!({ "services": [service] }))
    };
    let conf = listen("server.pem", "server.key").unwrap();
    assert!(conf.services[0].listen[0].h2, "HTTP/2 comes with TLS");
    let errors = listen("server.key", "absent.key").unwrap_err();
    assert!(errors.0[0].expected.starts_with("a PEM file with a CERTIFICATE"), "{errors}");
    assert!(errors.0[1].expected.starts_with("a readable file"), "{errors}");
}

/// The keys of a schema, `[0]` for any item and `*` for any name, with their defaults; a route's also for `defaults`.
fn schema_keys(schema: &Value, root: &Value, path: &str, keys: &mut BTreeMap<String, Value>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        return schema_keys(&root["$defs"][name], root, path, keys);
    }
    for variant in schema["anyOf"].as_array().into_iter().flatten() {
        schema_keys(variant, root, path, keys);
    }
    for (key, child) in check::properties(schema) {
        let path = key_path(path, key);
        keys.insert(path.clone(), child["default"].clone());
        schema_keys(child, root, &path, keys);
    }
    if schema["additionalProperties"].is_object() {
        schema_keys(&schema["additionalProperties"], root, &key_path(path, "*"), keys);
    }
    if schema["items"].is_object() {
        schema_keys(&schema["items"], root, &item_path(path, 0), keys);
    }
}

/// The keys of a file in the same notation, with the values they have; the routes' stand for those of `defaults`.
fn file_keys(value: &Value, path: &str, keys: &mut BTreeMap<String, Value>) {
    let path = path.replace("defaults.", "services[0].routes[0].");
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let key = if path == "upstreams" { "*" } else { key };
                file_keys(child, &key_path(&path, key), keys);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for item in items {
                file_keys(item, &item_path(&path, 0), keys);
            }
        }
        _ => {}
    }
    keys.insert(path, value.clone());
}

#[test]
fn the_reference_names_every_key_with_its_default() {
    // what has no default, or would be absent by default
    const EXAMPLES: [&str; 16] = [
        "admin.listen",
        "upstreams.*.servers[0].address",
        "upstreams.*.tls.server_name",
        "upstreams.*.tls.ca_file",
        "upstreams.*.tls.cert_file",
        "upstreams.*.tls.key_file",
        "services[0].name",
        "services[0].listen[0].address",
        "services[0].listen[0].tls[0].cert_file",
        "services[0].listen[0].tls[0].key_file",
        "services[0].routes[0].name",
        "services[0].routes[0].upstream",
        "services[0].routes[0].uri",
        "services[0].routes[0].match.host",
        "services[0].routes[0].match.path",
        "services[0].routes[0].match.method",
    ];
    let schema = Conf::schema().to_value();
    let mut wanted = BTreeMap::new();
    schema_keys(&schema, &schema, "", &mut wanted);
    wanted.retain(|key, _| !key.starts_with("defaults."));
    let value = Source::parse(&fs::read_to_string(shipped("reference.yaml")).unwrap(), "").unwrap().value;
    let mut given = BTreeMap::new();
    file_keys(&value, "", &mut given);

    let missing: Vec<&String> = wanted.keys().filter(|key| !given.contains_key(*key)).collect();
    assert_eq!(missing, [""; 0], "not in the reference");
    let examples = |key: &str| EXAMPLES.contains(&key) || key.contains(".match.path_");
    let differ = wanted.iter().filter(|(key, default)| {
        let value = &given[*key];
        let leaf = !value.is_object() && !value.as_array().is_some_and(|items| items.iter().any(Value::is_object));
        leaf && !examples(key) && !same(value, default)
    });
    let differ: Vec<_> = differ.map(|(key, default)| (key, default, &given[key])).collect();
    assert_eq!(differ, [], "not the default");
}

/// A schema writes a size of 0 as text, as all sizes.
fn same(value: &Value, default: &Value) -> bool {
    value == default
        || default.as_str().is_some_and(|text| *value == *text || value.as_u64().is_some_and(|n| n.to_string() == text))
}
