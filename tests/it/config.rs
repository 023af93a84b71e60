//! The configuration file and the command line.

use crate::support::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Run `-t` on this text.
fn test(text: &str) -> Output {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    fs::write(file.path(), text).unwrap();
    Proxy::run(&["-t", "-c", file.path().to_str().unwrap()])
}

/// The errors it reports.
fn errors(text: &str) -> String {
    let output = test(text);
    assert!(!output.status.success(), "a bad file was accepted:\n{text}");
    String::from_utf8(output.stderr).unwrap()
}

/// One line of the report has all these words.
fn reports(errors: &str, words: &[&str]) {
    assert!(
        errors.lines().any(|line| words.iter().all(|word| line.contains(word))),
        "no line has {words:?}:\n{errors}"
    );
}

/// A route with this filter is refused, by a line that has `report` in it.
pub fn refuses_filter(filter: &str, report: &str) {
    let filters = format!("- {{ upstream: app, filters: [ {{ {filter} }} ] }}");
    reports(&errors(&GOOD.replace("- upstream: app", &filters)), &["services[0].routes[0].filters[0]", report]);
}

const GOOD: &str = "
upstreams:
  app: { servers: [ 127.0.0.1:8080 ] }
services:
  - name: web
    listen: [ 127.0.0.1:8000 ]
    routes:
      - upstream: app
";

#[test]
fn a_good_file_is_good() {
    let output = test(GOOD);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_unknown_key_is_an_error_with_its_path() {
    let errors = errors(&GOOD.replace("- upstream: app", "- { upstream: app, bufering: {} }"));
    reports(&errors, &["services[0].routes[0]", "bufering"]);
}

#[test]
fn a_wrong_value_is_reported_with_what_was_found_and_expected() {
    let text = GOOD.replace("- upstream: app", "- { upstream: app, timeouts: { read: soon } }");
    reports(&errors(&text), &["services[0].routes[0].timeouts.read", "soon", "expected"]);
    let text = GOOD.replace("- upstream: app", "- { upstream: app, buffering: { buffer_size: 16 apples } }");
    reports(&errors(&text), &["services[0].routes[0].buffering.buffer_size", "16 apples", "expected"]);
}

#[test]
fn all_errors_are_reported_at_once() {
    let text = "
upstreams:
  app: { servers: [ 127.0.0.1:8080 ], balance: dice }
services:
  - name: web
    listen: [ nowhere ]
    routes:
      - { upstream: missing, next_upstream: { when: [ sometimes ] } }
";
    let errors = errors(text);
    reports(&errors, &["upstreams.app.balance", "dice"]);
    reports(&errors, &["services[0].listen[0]", "nowhere"]);
    reports(&errors, &["services[0].routes[0].upstream", "missing"]);
    reports(&errors, &["services[0].routes[0].next_upstream.when[0]", "sometimes"]);
}

#[test]
fn errors_name_the_file_and_the_line() {
    let file = tempfile::Builder::new().prefix("named").suffix(".yaml").tempfile().unwrap();
    fs::write(file.path(), GOOD.replace("upstream: app", "upstream: nope")).unwrap();
    let path = file.path().to_str().unwrap();
    let output = Proxy::run(&["-t", "-c", path]);
    reports(&String::from_utf8(output.stderr).unwrap(), &[&format!("{path}:8")]);
}

#[test]
fn a_file_that_is_no_yaml_or_not_there_is_an_error() {
    errors("upstreams: [ unfinished");
    errors("just a string");
    let output = Proxy::run(&["-t", "-c", "/nonexistent/proxy.yaml"]);
    assert!(!output.status.success());
    reports(&String::from_utf8(output.stderr).unwrap(), &["/nonexistent/proxy.yaml"]);
}

#[test]
fn an_unknown_filter_and_a_wrong_filter_configuration_are_errors() {
    let with = |filter: &str| GOOD.replace("- upstream: app", &format!("- {{ upstream: app, filters: [ {filter} ] }}"));
    for (filter, report) in [
        ("{ sbu: {} }", ".sbu: found the unknown filter sbu, expected one of"),
        ("{ sbu: {} }", ", did you mean sub?"),
        ("{ request_id: { heder: X } }", ".request_id.heder: found unknown field `heder`, expected `header` or"),
        ("{ request_id: { header: 5 } }", ".request_id.header: found integer `5`, expected a string"),
        ("{ request_id: { header: a b } }", ".request_id: found a mapping, expected a header's name as `header`"),
        ("{ sub: {} }", ".sub: found a mapping, expected the key `replace`"),
    ] {
        reports(&errors(&with(filter)), &[".yaml:8:", ": services[0].routes[0].filters[0]", report]);
    }
}

#[test]
fn an_unknown_variable_is_an_error() {
    let text = GOOD.replace("- upstream: app", "- { upstream: app, set_headers: { X-A: $nonsense } }");
    reports(&errors(&text), &["services[0].routes[0].set_headers", "nonsense"]);
}

#[test]
fn a_missing_certificate_is_an_error_before_the_start() {
    let listen = "{ address: 127.0.0.1:8443, tls: [ { cert_file: /nonexistent.pem, key_file: /nonexistent.key } ] }";
    let text = GOOD.replace("[ 127.0.0.1:8000 ]", &format!("[ {listen} ]"));
    reports(&errors(&text), &["services[0].listen[0].tls[0]", "/nonexistent.pem"]);
}

#[test]
fn a_bad_file_never_starts_a_server() {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    fs::write(file.path(), GOOD.replace("upstream: app", "upstream: nope")).unwrap();
    let output = Proxy::run(&["-c", file.path().to_str().unwrap()]);
    assert!(!output.status.success());
}

#[test]
fn every_file_in_conf_is_good() {
    let mut count = 0;
    for file in files_in("conf", "yaml") {
        is_good(&file);
        count += 1;
    }
    assert!(count > 0);
}

/// A block marked `yaml` in `docs/` is a whole file; a part of one is marked otherwise (`yaml part`).
#[test]
fn every_configuration_in_the_documentation_is_good() {
    let mut count = 0;
    for page in files_in("docs", "md") {
        for block in yaml_blocks(&fs::read_to_string(&page).unwrap()) {
            let file = tempfile::Builder::new().prefix("documented").suffix(".yaml").tempfile().unwrap();
            fs::write(file.path(), &block).unwrap();
            is_good(file.path());
            count += 1;
        }
    }
    assert!(count > 0);
}

#[test]
fn the_example_for_those_who_come_from_nginx_is_the_file_in_conf() {
    let blocks = yaml_blocks(&fs::read_to_string("docs/from-nginx.md").unwrap());
    assert_eq!(blocks, [fs::read_to_string("conf/from-nginx.yaml").unwrap()]);
}

fn files_in(folder: &str, extension: &str) -> impl Iterator<Item = PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.filter(move |file| file.extension().is_some_and(|found| found == extension))
}

fn is_good(file: &Path) {
    // Some name files by ${TLS_DIR}.
    let dir = tempfile::tempdir().unwrap();
    for name in ["ca", "client", "server", "other"] {
        Certificate::new("test").write(dir.path(), name);
    }
    let mut command = Command::new(proxy::MILLPOND);
    let output = command.arg("-t").arg("-c").arg(file).env("TLS_DIR", dir.path()).output().unwrap();
    let text = fs::read_to_string(file).unwrap();
    assert!(output.status.success(), "{}:\n{text}\n{}", file.display(), String::from_utf8_lossy(&output.stderr));
}

fn yaml_blocks(page: &str) -> Vec<String> {
    let blocks = page.split("\n```yaml\n").skip(1);
    blocks.map(|block| block.split_once("\n```").unwrap().0.to_owned() + "\n").collect()
}

#[test]
fn the_schema_describes_every_part_of_the_file() {
    let output = Proxy::run(&["schema"]);
    assert!(output.status.success());
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["server", "admin", "access_log", "temp_path", "buffer_memory_max", "upstreams", "services", "defaults"]
    {
        assert!(schema["properties"].get(key).is_some(), "{key}");
    }
    let text = schema.to_string();
    for key in ["max_temp_file_size", "next_upstream", "client_max_body_size", "keepalive", "cert_file", "path_regex"] {
        assert!(text.contains(&format!("\"{key}\"")), "{key}");
    }
}

#[test]
fn the_version_is_the_crates() {
    let output = Proxy::run(&["--version"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn sigterm_and_sigint_end_it() {
    for signal in ["TERM", "INT"] {
        let origin = Origin::http(|_| reply(200, "ok")).await;
        let server = json!({ "server": { "grace_period_seconds": 1, "graceful_shutdown_timeout_seconds": 1 } });
        let mut proxy = Proxy::to(&origin).top(server).start().await;
        assert_eq!(proxy.connect().await.get("/").await.status, 200);
        proxy.signal(signal);
        let status = eventually("it ends", async || proxy.ended()).await;
        assert!(status.success(), "{signal}: {status}");
    }
}

#[test]
fn an_empty_server_name_does_not_turn_verification_off() {
    let server = "app: { servers: [ 127.0.0.1:8080 ]";
    let text = GOOD.replace(server, &format!("{server}, tls: {{ server_name: \"\" }}"));
    reports(&errors(&text), &["upstreams.app.tls.server_name", "empty", "expected"]);
}

#[tokio::test]
async fn sighup_reads_the_file_again_and_a_broken_one_changes_nothing() {
    let origin = Origin::http(|request| reply(200, request.header("x-config").unwrap_or("none"))).await;
    let proxy = Proxy::to(&origin).route(json!({ "set_headers": { "X-Config": "first" } })).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "first");
    let connections = origin.connections();
    let file = proxy.files.dir().join("proxy.yaml");
    let text = std::fs::read_to_string(&file).unwrap();

    std::fs::write(&file, text.replace("first", "second")).unwrap();
    proxy.signal("HUP");
    proxy.wait_log(&["reload", "is in use"]).await;
    assert_eq!(client.get("/").await.text(), "second");
    assert_eq!(origin.connections(), connections, "the upstream has not changed, its connections are kept");

    std::fs::write(&file, text.replace("set_headers", "set_haeders")).unwrap();
    proxy.signal("HUP");
    proxy.wait_log(&["set_haeders", "set_headers"]).await;
    assert_eq!(client.get("/").await.text(), "second");

    let elsewhere = text.replace(&proxy.ports.http.to_string(), "127.0.0.1:1");
    std::fs::write(&file, elsewhere).unwrap();
    proxy.signal("HUP");
    proxy.wait_log(&["listeners", "-u"]).await;
    assert_eq!(client.get("/").await.text(), "second");
    assert_eq!(proxy.metric("config_reloads_total", &[("result", "success")]).await, Some(1.0));
    assert_eq!(proxy.metric("config_reloads_total", &[("result", "failure")]).await, Some(2.0));
}
