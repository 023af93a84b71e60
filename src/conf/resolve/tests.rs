use crate::conf::*;
use serde_json::{Value, json};
use std::time::Duration;

mod health_check;

/// A file with one upstream and one route.
fn file(upstream: Value, route: Value) -> Value {
    json!({
        "upstreams": { "app": upstream },
        "services": [{ "name": "web", "listen": ["127.0.0.1:0"], "routes": [route] }],
    })
}

fn with_route(route: Value) -> Result<Route, Vec<String>> {
    let mut route = route;
    route["upstream"] = json!("app");
    conf(file(json!({ "servers": ["127.0.0.1:1"] }), route)).map(|conf| conf.services[0].routes[0].clone())
}

fn with_upstream(upstream: Value) -> Result<Upstream, Vec<String>> {
    conf(file(upstream, json!({ "upstream": "app" }))).map(|conf| conf.upstreams["app"].clone())
}

fn conf(value: Value) -> Result<Conf, Vec<String>> {
    Conf::from_value(value).map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
}

/// The only error, without the path that all of them begin with.
fn route_error(route: Value) -> String {
    let errors = with_route(route).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].replace("services[0].routes[0].", "")
}

fn upstream_error(upstream: Value) -> String {
    let errors = with_upstream(upstream).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].replace("upstreams.app.", "")
}

#[test]
fn several_wrong_values_and_unknown_keys_come_out_in_one_go() {
    let text = "\
upstreams:
  app:
    servers: [127.0.0.1:8080, nowhere]
    keepalive: { conections: 3 }
services:
  - name: web
    listen: [127.0.0.1:0]
    routes:
      - upstream: ap
        buffering: { buffers: { size: 16KB5 }, busy_buffers_size: 1 }
        next_upstream: { when: [error, http_599] }
        match: { path: a, path_regex: '(' }
      - limit_rat: 5
";
    let errors = Conf::parse(text, "conf/x.yaml").unwrap_err();
    let expected = "\
conf/x.yaml:3:31: upstreams.app.servers[1]: found \"nowhere\", expected an address such as 127.0.0.1:8080, \
app.internal:8080 or unix:/run/app.sock
conf/x.yaml:4:30: upstreams.app.keepalive.conections: found the unknown key conections, expected a key that exists, \
did you mean connections?
conf/x.yaml:9:19: services[0].routes[0].upstream: found \"ap\", expected the name of an upstream (app), \
did you mean app?
conf/x.yaml:10:39: services[0].routes[0].buffering.buffers.size: found \"16KB5\", expected a size such as 16KiB
conf/x.yaml:11:40: services[0].routes[0].next_upstream.when[1]: found \"http_599\", expected one of error, timeout, \
invalid_header, http_403, http_404, http_429, http_500, http_502, http_503, http_504
conf/x.yaml:12:24: services[0].routes[0].match.path: found \"a\", expected a path that begins with /
conf/x.yaml:12:39: services[0].routes[0].match.path_regex: found \"(\", expected only one kind of path, path is there \
already
conf/x.yaml:13:9: services[0].routes[1].upstream: found nothing, expected the name of an upstream, or filters that \
answer
conf/x.yaml:13:20: services[0].routes[1].limit_rat: found the unknown key limit_rat, expected a key that exists, \
did you mean limit_rate?";
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn an_empty_file_misses_services() {
    for text in ["", "{}", "# nothing"] {
        let errors = Conf::parse(text, "x.yaml").unwrap_err();
        assert!(errors.to_string().ends_with(": services: found nothing, expected at least one service"), "{errors}");
        assert_eq!(errors.0.len(), 1);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let errors = Conf::load(std::path::Path::new("no/such.yaml")).unwrap_err();
    assert!(errors.to_string().starts_with("no/such.yaml: found No such file"), "{errors}");
}

#[test]
fn defaults_are_merged_under_every_route() {
    let mut file = file(json!({ "servers": ["127.0.0.1:1"] }), json!({ "buffering": { "buffer_size": "8KiB" } }));
    file["defaults"] = json!({ "upstream": "app", "set_headers": { "X-A": "a" },
        "buffering": { "buffers": { "number": 4 }, "buffer_size": "1KiB" } });
    let conf = conf(file).unwrap();
    let route = &conf.services[0].routes[0];
    assert_eq!((route.buffering.number, route.buffering.buffer_size), (4, 8192));
    assert_eq!(route.upstream.as_deref(), Some("app"));
    assert_eq!(route.set_headers.len(), 1);
}

#[test]
fn an_error_of_the_defaults_is_told_once_and_there() {
    let mut file = file(json!({ "servers": ["127.0.0.1:1"] }), json!({}));
    file["services"][0]["routes"] = json!([{ "match": { "path": "/a" } }, {}]);
    file["defaults"] = json!({ "upstream": "app", "timeouts": { "read": 0 }, "name": "x" });
    let expected = [
        "defaults.name: found the key name, expected it in the routes, where it belongs",
        "defaults.timeouts.read: found 0s, expected more than 0s",
        "services[0].routes[1].name: found \"x\", expected a name of its own, \
         services[0].routes[0].name has it already",
    ];
    assert_eq!(conf(file).unwrap_err(), expected);
}

#[test]
fn routes_are_named_after_their_match() {
    let name = |matches: Value| with_route(json!({ "match": matches })).unwrap().name;
    assert_eq!(name(json!({})), "/");
    assert_eq!(name(json!({ "host": "Example.com", "path": "/api/" })), "example.com/api/");
    assert_eq!(name(json!({ "host": "*.example.com", "path_exact": "/a" })), "*.example.com=/a");
    assert_eq!(name(json!({ "path_regex": "^/a", "method": ["POST", "GET"] })), "GET,POST ~^/a");
}

#[test]
fn two_routes_for_the_same_requests_are_an_error() {
    let mut file = file(json!({ "servers": ["127.0.0.1:1"] }), json!({}));
    let same = json!({ "upstream": "app", "match": { "path": "/a" } });
    file["services"][0]["routes"] = json!([same, same]);
    let expected = "services[0].routes[1].match: found /a, expected other requests than those of services[0].routes[0]";
    assert_eq!(conf(file).unwrap_err(), [expected]);
}

#[test]
fn listeners_and_services_are_used_once() {
    let mut file = file(json!({ "servers": ["127.0.0.1:1"] }), json!({ "upstream": "app" }));
    let mut service = file["services"][0].clone();
    service["listen"] = json!(["127.0.0.1:8000", "127.0.0.1:0", { "address": "127.0.0.1:8000" }]);
    file["services"].as_array_mut().unwrap().push(service);
    file["admin"] = json!({ "listen": "127.0.0.1:8000" });
    let expected = [
        r#"services[1].name: found "web", expected a name of its own, services[0].name has it already"#,
        r#"services[1].listen[0]: found "127.0.0.1:8000", expected an address of its own, admin.listen has it already"#,
    ];
    let errors = conf(file).unwrap_err();
    assert_eq!(errors[..2], expected);
    assert_eq!(errors.len(), 3);
}

#[test]
fn templates_know_the_captures_of_their_own_route() {
    let route = json!({ "match": { "path_regex": "^/(?<id>[0-9]+)" }, "uri": "/v2/$id/$1", "host": "h-$id" });
    assert!(with_route(route).is_ok());
    let error = route_error(json!({ "match": { "path_regex": "^/x" }, "uri": "/$1" }));
    assert_eq!(error, r#"uri: found "/$1", expected a template (unknown variable $1)"#);
    let error = route_error(json!({ "set_headers": { "X-A": "$hots" } }));
    let expected = "expected a template (unknown variable $hots, did you mean host?)";
    assert_eq!(error, format!(r#"set_headers.X-A: found "$hots", {expected}"#));
}

#[test]
fn what_makes_no_sense_in_a_route_is_an_error() {
    let cases = [
        (json!({ "uri": "v2/" }), "uri"),
        (json!({ "match": { "host": "a:80" } }), "match.host"),
        (json!({ "match": { "host": "*" } }), "match.host"),
        (json!({ "match": { "method": ["get"] } }), "match.method[0]"),
        (json!({ "match": { "path_regex": "(" } }), "match.path_regex"),
        (json!({ "set_headers": { "a b": "" } }), "set_headers.a b"),
        (json!({ "set_headers": { "Content-Length": "1" } }), "set_headers.Content-Length"),
        (json!({ "hide_headers": ["ok", ""] }), "hide_headers[1]"),
        (json!({ "upgrade": ["web socket"] }), "upgrade[0]"),
        (json!({ "filters": [{ "a": {}, "b": {} }] }), "filters[0]"),
        (json!({ "filters": [{}] }), "filters[0]"),
        (json!({ "host": "" }), "host"),
        (json!({ "timeouts": { "connect": "0s" } }), "timeouts.connect"),
        (json!({ "client": { "send_timeout": 0 } }), "client.send_timeout"),
        (json!({ "client_body_buffer_size": 0 }), "client_body_buffer_size"),
        (json!({ "buffering": { "buffer_size": 1023 } }), "buffering.buffer_size"),
        (json!({ "buffering": { "buffer_size": "2GiB" } }), "buffering.buffer_size"),
        (json!({ "buffering": { "buffers": { "number": 1 } } }), "buffering.buffers.number"),
        (json!({ "buffering": { "buffers": { "size": 0 } } }), "buffering.buffers.size"),
        (json!({ "buffering": { "busy_buffers_size": "256KiB" } }), "buffering.busy_buffers_size"),
        (json!({ "buffering": { "busy_buffers_size": "8KiB" } }), "buffering.busy_buffers_size"),
        (json!({ "buffering": { "max_temp_file_size": 1 } }), "buffering.max_temp_file_size"),
        (json!({ "buffering": { "temp_file_write_size": 1 } }), "buffering.temp_file_write_size"),
        (json!({ "ignore_headers": ["X-Accel-Expires"] }), "ignore_headers[0]"),
    ];
    for (route, path) in cases {
        let error = route_error(route);
        assert!(error.starts_with(&format!("{path}: found")), "{path}: {error}");
    }
}

#[test]
fn buffers_that_are_left_alone_fit_themselves_to_others() {
    let small = with_route(json!({ "buffering": { "buffers": { "number": 2, "size": "4KiB" } } })).unwrap().buffering;
    assert_eq!((small.busy_buffers_size, small.temp_file_write_size), (4096, 65536));
    let large = with_route(json!({ "buffering": { "buffers": { "size": "1MiB" } } })).unwrap().buffering;
    assert_eq!((large.busy_buffers_size, large.temp_file_write_size), (1 << 20, 1 << 20));
}

#[test]
fn zero_is_unlimited_where_it_says_so() {
    let route = with_route(json!({ "client_max_body_size": 0, "limit_rate": 0 })).unwrap();
    assert_eq!((route.client_max_body_size, route.limit_rate), (None, 0));
    assert_eq!(with_route(json!({})).unwrap().client_max_body_size, Some(1 << 20));
}

#[test]
fn a_route_without_upstream_needs_a_filter() {
    let upstream = json!({ "servers": ["127.0.0.1:1"] });
    let conf_with = |route: Value| conf(file(upstream.clone(), route));
    let conf = conf_with(json!({ "filters": [{ "fault": null }] })).unwrap();
    let route = &conf.services[0].routes[0];
    assert_eq!(route.upstream, None);
    let path = "services[0].routes[0].filters[0].fault".to_owned();
    assert_eq!(route.filters, [Filter { name: "fault".into(), conf: json!({}), path, place: None }]);
    assert_eq!(conf_with(json!({})).unwrap_err().len(), 1);
}

#[test]
fn an_address_to_connect_from_is_one() {
    let mut wrong = file(json!({ "servers": ["127.0.0.1:1"] }), json!({ "upstream": "app" }));
    wrong["server"] = json!({ "client_bind_to_ipv4": ["127.0.0.1", "::1"], "client_bind_to_ipv6": ["localhost"] });
    let errors = conf(wrong).map(|_| ()).unwrap_err();
    assert_eq!(
        errors,
        [
            r#"server.client_bind_to_ipv4[1]: found "::1", expected an IPv4 address of this machine"#,
            r#"server.client_bind_to_ipv6[0]: found "localhost", expected an IPv6 address of this machine"#,
        ]
    );
}

#[test]
fn servers_have_nginx_defaults() {
    let full = json!({ "address": "[::1]:81", "weight": 5, "max_fails": 0, "fail_timeout": 0, "max_conns": 7,
        "backup": true, "down": true });
    let upstream = with_upstream(json!({ "servers": ["127.0.0.1:80", full, "unix:/run/a.sock"] })).unwrap();
    let server = Server {
        addresses: vec![Address::Inet("127.0.0.1:80".parse().unwrap())],
        name: "127.0.0.1:80".into(),
        host: None,
        weight: 1,
        max_fails: 1,
        fail_timeout: Duration::from_secs(10),
        max_conns: 0,
        slow_start: Duration::ZERO,
        backup: false,
        down: false,
    };
    assert_eq!(upstream.servers[0], server);
    assert_eq!(upstream.servers[1].addresses[0].to_string(), "[::1]:81");
    assert_eq!((upstream.servers[1].weight, upstream.servers[1].backup, upstream.servers[1].down), (5, true, true));
    assert_eq!(upstream.servers[2].addresses, [Address::Unix("/run/a.sock".into())]);
    assert_eq!(upstream.http_version, HttpVersion::Http1);
}

#[test]
fn what_makes_no_sense_in_an_upstream_is_an_error() {
    let with = |key: &str, value: Value| json!({ "servers": ["127.0.0.1:1"], key: value });
    let cases = [
        (json!({}), "servers"),
        (json!({ "servers": ["127.0.0.1"] }), "servers[0]"),
        (json!({ "servers": ["127.0.0.1:0"] }), "servers[0]"),
        (json!({ "servers": ["::1:80"] }), "servers[0]"),
        (json!({ "servers": ["http://a:80"] }), "servers[0]"),
        (json!({ "servers": ["unix:"] }), "servers[0]"),
        (json!({ "servers": [{ "weight": 2 }] }), "servers[0].address"),
        (json!({ "servers": [{ "address": "127.0.0.1:1", "weight": 0 }] }), "servers[0].weight"),
        (json!({ "servers": [{ "address": "127.0.0.1:1", "weight": -1 }] }), "servers[0].weight"),
        (json!({ "servers": [{ "address": "127.0.0.1:1", "fail_timeout": 0 }] }), "servers[0].fail_timeout"),
        (with("http_version", json!(3)), "http_version"),
        (with("balance", json!("fair")), "balance"),
        (with("balance", json!("hash")), "hash_key"),
        (with("hash_key", json!("$uri")), "hash_key"),
        (json!({ "servers": ["127.0.0.1:1"], "balance": "hash", "hash_key": "$nothing" }), "hash_key"),
        (
            json!({ "servers": [{ "address": "127.0.0.1:1", "slow_start": "1s" }], "balance": "ip_hash" }),
            "servers[0].slow_start",
        ),
        (
            json!({ "servers": [{ "address": "127.0.0.1:1", "weight": 10001 }], "balance": "hash", "hash_key": "$uri" }),
            "servers",
        ),
        (with("keepalive", json!({ "requests": 0 })), "keepalive.requests"),
        (with("keepalive", json!({ "time": 0 })), "keepalive.time"),
        (json!({ "servers": ["127.0.0.1:1"], "protocol": "memcached", "http_version": 2 }), "http_version"),
        (with("keepalive", json!({ "timeout": 0 })), "keepalive.timeout"),
        (with("http2", json!({ "streams": 0 })), "http2.streams"),
        (with("http2", json!({ "window": "64MiB" })), "http2.window"),
        (with("tls", json!({})), "tls.server_name"),
        (with("tls", json!({ "server_name": "a", "ca_file": "no/such.pem" })), "tls.ca_file"),
    ];
    for (upstream, path) in cases {
        let error = upstream_error(upstream);
        assert!(error.starts_with(&format!("{path}: found")), "{path}: {error}");
    }
}

#[test]
fn the_name_for_tls_is_that_of_the_servers() {
    let upstream = with_upstream(json!({ "servers": ["localhost:443"], "tls": {} })).unwrap();
    assert_eq!(upstream.tls.unwrap().server_name, "localhost");
    assert!(upstream.servers.iter().all(|server| server.name == "localhost:443"));
    let unverified = with_upstream(json!({ "servers": ["127.0.0.1:443"], "tls": { "verify": false } })).unwrap();
    assert_eq!(unverified.tls.unwrap().server_name, "");
}

#[test]
fn server_is_pingoras_own_with_thirty_seconds_of_grace() {
    let mut file = file(json!({ "servers": ["127.0.0.1:1"] }), json!({ "upstream": "app" }));
    let plain = conf(file.clone()).unwrap().server_conf();
    assert_eq!((plain.threads, plain.grace_period_seconds), (1, Some(30)));
    file["server"] = json!({ "threads": 3, "grace_period_seconds": 5, "user": "nobody" });
    let conf_with = conf(file.clone()).unwrap();
    assert_eq!(conf_with.server_conf(), *conf_with.server);
    assert_eq!((conf_with.server.threads, conf_with.server.user.as_deref()), (3, Some("nobody")));
    file["server"] =
        json!({ "thread": 3, "work_stealing": "x", "user": 7, "group": 7, "max_retries": -1, "threads": 0 });
    let errors = conf(file).unwrap_err();
    let paths: Vec<&str> = errors.iter().filter_map(|error| error.split(':').next()).collect();
    assert_eq!(
        paths,
        ["thread", "work_stealing", "max_retries", "threads", "user", "group"].map(|key| format!("server.{key}"))
    );
}

#[test]
fn the_access_log_is_json_combined_or_a_template() {
    let format = |format: &str| {
        let mut file = file(json!({ "servers": ["127.0.0.1:1"] }), json!({ "upstream": "app" }));
        file["access_log"] = json!({ "format": format });
        conf(file).map(|conf| conf.access_log.unwrap().format)
    };
    assert_eq!(format("json"), Ok(LogFormat::Json));
    assert_eq!(format("combined"), Ok(LogFormat::Combined));
    assert_eq!(format("$status"), Ok(LogFormat::Template("$status".parse().unwrap())));
    assert!(format("combind").unwrap_err()[0].ends_with("did you mean combined?"));
}

#[test]
fn relative_files_start_at_the_folder_of_the_configuration() {
    let text =
        "{ temp_path: tmp, services: [{ name: a, listen: ['127.0.0.1:0'], routes: [{ filters: [{ x: {} }] }] }] }";
    assert_eq!(Conf::parse(text, "some/where.yaml").unwrap().temp_path, std::path::Path::new("some/tmp"));
    assert_eq!(Conf::parse(text, "where.yaml").unwrap().temp_path, std::path::Path::new("tmp"));
}

#[test]
fn the_raw_shape_survives_its_own_serialisation() {
    let mut conf: raw::Conf = serde_json::from_value(file(json!({ "servers": ["127.0.0.1:1"] }), json!({}))).unwrap();
    conf.services[0].routes[0].upstream = Some("app".into());
    assert_eq!(self::conf(serde_json::to_value(&conf).unwrap()).map(|conf| conf.services.len()), Ok(1));
}

#[test]
fn one_mistake_does_not_make_others_of_what_depends_on_it() {
    let mut file = file(json!({ "servers": ["127.0.0.1:1"] }), json!({ "upstream": "app" }));
    let routes = [json!({ "upstream": "app", "match": { "path_regex": "(" } }), json!({ "upstream": "app" }), json!(7)];
    file["services"][0]["routes"] = json!(routes);
    file["upstreams"]["app"] = json!("127.0.0.1:1");
    let errors = conf(file).unwrap_err();
    let paths: Vec<&str> = errors.iter().filter_map(|error| error.split(':').next()).collect();
    assert_eq!(
        paths,
        ["upstreams.app", "services[0].routes[2]", "services[0].routes[0].match.path_regex"],
        "{errors:#?}"
    );
}

#[test]
fn a_route_has_the_settings_of_what_its_upstream_speaks() {
    let mut file = file(json!({ "servers": ["127.0.0.1:1"], "protocol": "memcached" }), json!({ "upstream": "app" }));
    file["upstreams"]["web"] = json!({ "servers": ["127.0.0.1:1"] });
    file["upstreams"]["own"] = json!({ "servers": ["127.0.0.1:1"], "protocol": "finger" });
    file["defaults"] = json!({ "memcached": { "key": "$uri", "gzip_flag": 1 }, "scgi": {} });
    file["services"][0]["routes"] = json!([
        { "upstream": "app", "memcached": { "key": "$args" } },
        { "upstream": "web", "match": { "path": "/web" } },
        { "upstream": "own", "match": { "path": "/own" }, "protocol": { "finger": { "user": "$1" } } },
        { "filters": [{ "x": {} }], "match": { "path": "/none" } },
    ]);
    let routes = conf(file).unwrap().services[0].routes.clone();
    let spoken = |index: usize| {
        let protocol: &Option<Protocol> = &routes[index].protocol;
        protocol.as_ref().map(|protocol| (protocol.name.as_str(), protocol.conf.clone(), protocol.path.as_str()))
    };
    let path = |key: &str| format!("services[0].routes[{key}");
    assert_eq!(
        spoken(0),
        Some(("memcached", json!({ "key": "$args", "gzip_flag": 1 }), path("0].memcached").as_str()))
    );
    assert_eq!(spoken(1).map(|(name, conf, _)| (name, conf)), Some(("http", json!({}))));
    assert_eq!(spoken(2), Some(("finger", json!({ "user": "$1" }), path("2].protocol.finger").as_str())));
    assert_eq!(spoken(3), None);
}

#[test]
fn settings_of_what_the_upstream_does_not_speak_are_an_error() {
    let error = |route: Value| route_error(route);
    assert_eq!(
        error(json!({ "memcached": { "key": "x" } })),
        "memcached: found settings of memcached, expected those of http, which the route's upstream speaks"
    );
    assert_eq!(
        error(json!({ "protocol": { "finger": {} } })),
        "protocol.finger: found settings of finger, expected those of http, which the route's upstream speaks"
    );
    assert_eq!(
        error(json!({ "protocol": { "memcached": {} } })),
        "protocol.memcached: found settings of memcached, expected them under the route's own key memcached"
    );
    assert_eq!(
        error(json!({ "protocol": { "http": {} } })),
        "protocol.http: found settings of http, expected no settings, HTTP has none"
    );
    let without = file(json!({ "servers": ["127.0.0.1:1"] }), json!({ "filters": [{ "x": {} }], "scgi": {} }));
    let expected = "services[0].routes[0].scgi: found settings of scgi, expected an upstream that speaks it";
    assert_eq!(conf(without).unwrap_err(), [expected]);
}

/// An upstream of Redis with these settings too.
fn redis(settings: Value) -> Value {
    let mut upstream = json!({ "servers": ["127.0.0.1:1"], "protocol": "redis" });
    upstream.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    upstream
}

#[test]
fn a_password_comes_from_the_file_the_environment_or_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let login = |settings: Value| with_upstream(redis(settings)).unwrap().login;
    let expected = |user: Option<&str>| Login { user: user.map(Into::into), password: Some(Secret::new("hunter2")) };
    assert_eq!(login(json!({ "user": "joe", "password": "hunter2" })), expected(Some("joe")));
    assert_eq!(login(json!({ "password_file": file })), expected(None));
    assert_eq!(login(json!({})), Login::default());
    let database = |database: Value| with_upstream(redis(json!({ "database": database }))).unwrap().database;
    assert_eq!((database(json!(3)).as_deref(), database(json!("3")).as_deref()), (Some("3"), Some("3")));
}

#[test]
fn what_makes_no_sense_of_a_login_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "\n").unwrap();
    let error = |settings: Value| upstream_error(redis(settings));
    assert_eq!(error(json!({ "user": "joe" })), "password: found nothing, expected the password of `user`");
    assert_eq!(error(json!({ "password": "" })), "password: found nothing, expected a password");
    let both = error(json!({ "password": "hunter2", "password_file": empty }));
    assert_eq!(both, "password_file: found a second password, expected either `password` or `password_file`");
    assert!(error(json!({ "password_file": empty })).contains("this one is empty"));
    assert!(error(json!({ "password_file": "/absent" })).contains("a readable file"));
    let expected = "database: found \"mine\", expected a number, Redis has no names for databases";
    assert_eq!(error(json!({ "database": "mine" })), expected);
    for key in ["user", "password", "password_file", "database"] {
        let errors = with_upstream(json!({ "servers": ["127.0.0.1:1"], key: "x" })).unwrap_err();
        assert!(errors.iter().any(|error| error.ends_with("expected none with the protocol http")), "{errors:?}");
    }
}

#[test]
fn a_password_is_not_shown() {
    let upstream = with_upstream(redis(json!({ "user": "joe", "password": "hunter2" }))).unwrap();
    assert!(!format!("{upstream:?}").contains("hunter2"));
    assert_eq!(
        upstream_error(redis(json!({ "password": 1234 }))),
        "password: found what is not shown, expected a string"
    );
    let text = "\
upstreams: { app: { protocol: redis, servers: [ 127.0.0.1:1 ], password: \"1${MILLPOND_TEST_UNSET}\" } }
services: [ { name: web, listen: [ 127.0.0.1:0 ], routes: [ { upstream: app, redis: { key: k } } ] } ]
";
    let errors = Conf::parse(text, "").unwrap_err().to_string();
    assert!(errors.contains("password: found what is not shown, expected the environment to have"), "{errors}");
}
