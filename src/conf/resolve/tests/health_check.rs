//! `health_check` of an upstream, and the names of its servers.

use super::*;

/// The errors of this health check, without the path that all of them begin with.
fn check_errors(check: Value) -> Vec<String> {
    let upstream = json!({ "servers": ["127.0.0.1:1"], "health_check": check });
    let errors = with_upstream(upstream).err().unwrap_or_default();
    errors.into_iter().map(|error| error.replace("upstreams.app.health_check.", "")).collect()
}

#[test]
fn a_health_check_has_defaults() {
    let upstream = with_upstream(json!({ "servers": ["127.0.0.1:1"], "health_check": {} })).unwrap();
    let check = upstream.health_check.unwrap();
    assert_eq!((check.interval, check.jitter), (Duration::from_secs(5), Duration::from_millis(500)));
    assert_eq!((check.timeout, check.rise, check.fall), (Duration::from_secs(1), 2, 3));
    let Probe::Http(probe) = check.probe else { panic!("{:?}", check.probe) };
    assert_eq!((probe.path.as_str(), probe.method.as_str()), ("/", "GET"));
    assert_eq!(probe.statuses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["200-399"]);
    let tcp = json!({ "type": "tcp", "jitter": 0, "path": "/" });
    let tcp = with_upstream(json!({ "servers": ["127.0.0.1:1"], "health_check": tcp })).unwrap().health_check.unwrap();
    assert_eq!((tcp.probe, tcp.jitter), (Probe::Tcp, Duration::ZERO));
    assert_eq!(with_upstream(json!({ "servers": ["127.0.0.1:1"] })).unwrap().health_check, None);
}

#[test]
fn what_makes_no_sense_in_a_health_check_is_an_error() {
    let cases = [
        (json!({ "type": "icmp" }), r#"type: found "icmp", expected one of http, tcp"#),
        (
            json!({ "path": "healthz" }),
            r#"path: found "healthz", expected a path that begins with /, encoded as in a request"#,
        ),
        (
            json!({ "path": "/a b" }),
            r#"path: found "/a b", expected a path that begins with /, encoded as in a request"#,
        ),
        (json!({ "method": "get" }), r#"method: found "get", expected a method in capitals such as GET"#),
        (json!({ "interval": 0 }), "interval: found 0s, expected more than 0s"),
        (json!({ "timeout": "0s" }), "timeout: found 0s, expected more than 0s"),
        (json!({ "rise": 0 }), "rise: found 0, expected at least 1"),
        (json!({ "fall": 0 }), "fall: found 0, expected at least 1"),
        (json!({ "headers": { "A B": "x" } }), r#"headers.A B: found "A B", expected the name of a header"#),
        (
            json!({ "headers": { "Connection": "x" } }),
            "headers.Connection: found connection, expected a header that does not frame the message",
        ),
        (
            json!({ "match": { "status": ["2xx"] } }),
            r#"match.status[0]: found "2xx", expected a status such as 200, or several such as 200-399"#,
        ),
        (json!({ "match": { "status": [] } }), "match.status: found an empty list, expected at least one status"),
        (
            json!({ "match": { "body": "(" } }),
            r#"match.body: found "(", expected a regular expression (unclosed group)"#,
        ),
        (
            json!({ "match": { "headers": { "X": "[" } } }),
            r#"match.headers.X: found "[", expected a regular expression (unclosed character class)"#,
        ),
        (
            json!({ "type": "tcp", "match": { "body": "x" } }),
            "match: found a setting, expected nothing, it is for `type: http`",
        ),
        (json!({ "type": "tcp", "path": "/x" }), "path: found a setting, expected nothing, it is for `type: http`"),
        (json!({ "uri": "/" }), "uri: found the unknown key uri, expected one of the keys type, path, "),
    ];
    for (check, expected) in cases {
        let errors = check_errors(check.clone());
        assert!(errors.len() == 1 && errors[0].starts_with(expected), "{check}: {errors:#?}");
    }
}

#[test]
fn servers_that_do_not_speak_http_are_not_asked_in_it() {
    let with = |check: Value| json!({ "servers": ["127.0.0.1:1"], "protocol": "memcached", "health_check": check });
    let expected = r#"health_check.type: found "http", expected tcp, since the servers speak memcached"#;
    assert_eq!(upstream_error(with(json!({}))), expected);
    assert!(with_upstream(with(json!({ "type": "tcp" }))).is_ok());
}

#[test]
fn a_name_servers_port_is_53_unless_it_says_otherwise() {
    let with = |resolver: Value| {
        let mut file = file(json!({ "servers": ["127.0.0.1:1"] }), json!({ "upstream": "app" }));
        file["resolver"] = resolver;
        conf(file).map(|conf| conf.upstreams["app"].resolver.clone())
    };
    let resolver = with(json!({ "servers": ["10.0.0.2", "10.0.0.3:54", "fd00::2", "[fd00::3]:55"] })).unwrap();
    let servers: Vec<String> = resolver.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["10.0.0.2:53", "10.0.0.3:54", "[fd00::2]:53", "[fd00::3]:55"]);
    assert_eq!((resolver.valid, resolver.timeout), (None, Duration::from_secs(5)));
    let errors = with(json!({ "servers": ["dns.test", "10.0.0.2:0"], "valid": 0, "timeout": 0 })).unwrap_err();
    let paths: Vec<&str> = errors.iter().filter_map(|error| error.split(": ").next()).collect();
    assert_eq!(paths, ["servers[0]", "servers[1]", "valid", "timeout"].map(|key| format!("resolver.{key}")));
}

#[test]
fn only_a_name_is_looked_up_again() {
    let servers = json!(["localhost:80", "127.0.0.1:80", "[::1]:80", "unix:/a"]);
    let upstream = with_upstream(json!({ "servers": servers })).unwrap();
    let hosts: Vec<_> = upstream.servers.iter().map(|server| server.host.clone()).collect();
    assert_eq!(hosts, [Some(("localhost".to_owned(), 80)), None, None, None]);
}
