//! FastCGI: PHP-FPM, uWSGI, and applications that lie.

use crate::support::origin::{Conn, Refusing};
use crate::support::servers::{Server, installed, php_fpm, uwsgi};
use crate::support::*;
use std::fs;
use std::sync::Arc;

/// A proxy whose only route leads to these FastCGI servers.
fn fastcgi(servers: Value) -> Setup {
    Proxy::to_all(servers).upstream(json!({ "protocol": "fastcgi" }))
}

/// PHP-FPM with these scripts, and a proxy to it.
async fn php(scripts: &[(&str, &str)]) -> Option<(Server, Setup)> {
    if !installed("php-fpm8.2") {
        return None;
    }
    let server = php_fpm().await;
    let root = server.dir.path().join("htdocs");
    for (name, script) in scripts {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, script).unwrap();
    }
    let setup = fastcgi(json!([server.addr])).route(json!({ "fastcgi": { "root": root } }));
    Some((server, setup))
}

/// Prints the variables that are asked for, one on a line.
const VARIABLES: &str =
    r#"<?php foreach (explode(",", $_GET["v"]) as $name) echo $name, "=", $_SERVER[$name] ?? "(none)", "\n";"#;

#[tokio::test]
async fn php_is_told_of_the_request() {
    let Some((server, setup)) = php(&[("index.php", VARIABLES), ("blog/index.php", VARIABLES)]).await else { return };
    let params = json!({ "fastcgi": { "params": { "APP": "$request_method-$host", "SERVER_SOFTWARE": "" } } });
    let proxy = setup.route(params).start().await;
    let mut client = proxy.connect().await;
    let root = server.dir.path().join("htdocs");
    let root = root.display();
    let headers = "X-Some-Thing: a\r\nX-Some-Thing: b\r\nProxy: evil\r\nX_Some_Thing: evil\r\nCookie: c=d\r\n";
    for (target, expected) in [
        (
            "/?v=SCRIPT_NAME,PATH_INFO,QUERY_STRING,DOCUMENT_URI",
            "SCRIPT_NAME=/index.php\nPATH_INFO=\n\
          QUERY_STRING=v=SCRIPT_NAME,PATH_INFO,QUERY_STRING,DOCUMENT_URI\nDOCUMENT_URI=/\n"
                .to_owned(),
        ),
        (
            "/index.php/a%20b/c?v=SCRIPT_NAME,SCRIPT_FILENAME,PATH_INFO,PATH_TRANSLATED,PHP_SELF",
            format!(
                "SCRIPT_NAME=/index.php\nSCRIPT_FILENAME={root}/index.php\nPATH_INFO=/a b/c\n\
                  PATH_TRANSLATED={root}/a b/c\nPHP_SELF=/index.php/a b/c\n"
            ),
        ),
        ("/blog/?v=SCRIPT_NAME,DOCUMENT_ROOT", format!("SCRIPT_NAME=/blog/index.php\nDOCUMENT_ROOT={root}\n")),
        (
            "/x/..//%69ndex.php/%0aPHP?v=PATH_INFO,REQUEST_URI",
            "PATH_INFO=/\nPHP\nREQUEST_URI=/x/..//%69ndex.php/%0aPHP?v=PATH_INFO,REQUEST_URI\n".to_owned(),
        ),
        (
            "/?v=HTTP_X_SOME_THING,HTTP_PROXY,HTTP_COOKIE,HTTP_HOST,SERVER_NAME,REQUEST_SCHEME,HTTPS",
            "HTTP_X_SOME_THING=a, b\nHTTP_PROXY=(none)\nHTTP_COOKIE=c=d\nHTTP_HOST=test\nSERVER_NAME=test\n\
          REQUEST_SCHEME=http\nHTTPS=(none)\n"
                .to_owned(),
        ),
        (
            "/?v=REMOTE_ADDR,SERVER_ADDR,SERVER_PORT,SERVER_PROTOCOL,GATEWAY_INTERFACE,REDIRECT_STATUS,APP,SERVER_SOFTWARE",
            format!(
                "REMOTE_ADDR=127.0.0.1\nSERVER_ADDR=127.0.0.1\nSERVER_PORT={}\nSERVER_PROTOCOL=HTTP/1.1\n\
                  GATEWAY_INTERFACE=CGI/1.1\nREDIRECT_STATUS=200\nAPP=GET-test\nSERVER_SOFTWARE=(none)\n",
                proxy.ports.http.port()
            ),
        ),
    ] {
        assert_eq!(client.request("GET", target, headers).await.text(), expected, "{target}");
    }
}

#[tokio::test]
async fn php_says_status_headers_cookies_and_redirects() {
    let script = r#"<?php
        switch ($_SERVER["PATH_INFO"]) {
            case "/headers": header("X-Own: yes"); header("Set-Cookie: a=b"); header("Set-Cookie: c=d", false); echo "text"; break;
            case "/missing": http_response_code(404); echo "no such page"; break;
            case "/redirect": header("Location: /elsewhere"); break;
            case "/moved": header("Location: /elsewhere", true, 301); break;
            case "/nothing": http_response_code(204); break;
            case "/length": header("Content-Length: 4"); echo "four"; break;
        }"#;
    let Some((_server, setup)) = php(&[("index.php", script)]).await else { return };
    let proxy = setup.start().await;
    let mut client = proxy.connect().await;
    let page = client.get("/index.php/headers").await;
    assert_eq!((page.status, page.header("x-own"), page.text().as_str()), (200, Some("yes"), "text"));
    assert_eq!(page.header("content-type"), Some("text/html; charset=UTF-8"));
    assert_eq!(page.header("status"), None);
    let cookies = page.head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    assert_eq!(cookies.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["a=b", "c=d"]);
    let missing = client.get("/index.php/missing").await;
    assert_eq!((missing.status, missing.text().as_str()), (404, "no such page"));
    for (path, status) in [("redirect", 302), ("moved", 301)] {
        let redirect = client.get(&format!("/index.php/{path}")).await;
        assert_eq!((redirect.status, redirect.header("location")), (status, Some("/elsewhere")));
    }
    assert_eq!(client.get("/index.php/nothing").await.status, 204);
    let head = client.request("HEAD", "/index.php/length", "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("4"), 0));
    assert_eq!(client.get("/index.php/length").await.text(), "four");
}

#[tokio::test]
async fn a_fatal_error_is_in_the_log_and_not_in_the_page() {
    let script = "<?php error_log(\"first\\nsecond\"); throw new Exception('the secret reason');";
    let Some((_server, setup)) = php(&[("index.php", script)]).await else { return };
    let proxy = setup.route(json!({ "name": "shop" })).start().await;
    let page = proxy.connect().await.get("/").await;
    assert_eq!(page.status, 500);
    assert!(!page.text().contains("secret"), "{page:?}");
    proxy.wait_log(&["ERROR", "web/shop: FastCGI sent in stderr", "PHP Fatal error", "the secret reason"]).await;
    proxy.wait_log(&["first\\nsecond"]).await;
}

#[tokio::test]
async fn more_notices_than_a_header_may_be_long_are_no_error() {
    let script = "<?php for ($i = 0; $i < 200; $i++) error_log(str_repeat('x', 1000)); echo 'page';";
    let Some((_server, setup)) = php(&[("index.php", script)]).await else { return };
    let proxy = setup.route(json!({ "buffering": { "buffer_size": "4KiB" } })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "page");
}

#[tokio::test]
async fn each_flush_arrives_at_once() {
    // The script goes on when the test says so, by a file.
    let script = r#"<?php
        for ($i = 0; $i < 3; $i++) {
            echo "part $i\n"; flush();
            for ($wait = 0; !file_exists(__DIR__ . "/go$i") && $wait < 3000; $wait++) { usleep(5000); clearstatcache(); }
        }"#;
    let Some((server, setup)) = php(&[("index.php", script)]).await else { return };
    let proxy = setup.start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    let mut framing = client::framing(&head, "GET");
    for i in 0..3 {
        let expected = format!("part {i}\n").into_bytes();
        assert_eq!(client.body_piece(&mut framing).await, Ok(Some(expected)), "before the script goes on");
        fs::write(server.dir.path().join(format!("htdocs/go{i}")), "").unwrap();
    }
    assert_eq!(client.body_piece(&mut framing).await, Ok(None));
}

/// What it got.
const UPLOAD: &str = r#"<?php $body = file_get_contents("php://input"); echo $_SERVER["CONTENT_LENGTH"], " ", strlen($body), " ", md5($body);"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_reaches_php_whole() {
    use md5::{Digest, Md5};
    let Some((server, setup)) = php(&[("stored/index.php", UPLOAD), ("streamed/index.php", UPLOAD)]).await else {
        return;
    };
    let body = pattern::body(20 * MIB);
    let sum: String = Md5::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = format!("{0} {0} {sum}", 20 * MIB);
    let root = server.dir.path().join("htdocs");
    let defaults = json!({ "upstream": "app", "fastcgi": { "root": root }, "client_max_body_size": 0 });
    let routes = json!([
        { "match": { "path": "/stored/" } },
        { "match": { "path": "/streamed/" }, "request_buffering": false },
    ]);
    let proxy = setup.top(json!({ "defaults": defaults })).routes(routes).start().await;
    let mut client = proxy.connect().await;
    for path in ["/stored/index.php", "/streamed/index.php"] {
        assert_eq!(client.post("POST", path, &body).await.text(), expected, "{path}");
        // A length that is not known before the end: it is read whole, whatever the route says.
        client.send_request("POST", path, "Transfer-Encoding: chunked\r\n").await;
        for chunk in body.chunks(MIB as usize) {
            client.send(format!("{:x}\r\n", chunk.len())).await;
            client.send(chunk).await;
            client.send("\r\n").await;
        }
        client.send("0\r\n\r\n").await;
        assert_eq!(client.response().await.text(), expected, "{path}, chunked");
    }
}

#[tokio::test]
async fn an_upload_is_never_run() {
    let paths = ["upload.jpg", "upload", "notes.txt"];
    let scripts: Vec<_> = paths.iter().map(|path| (*path, "<?php echo 'run';")).collect();
    let Some((_server, setup)) = php(&scripts).await else { return };
    let proxy = setup.start().await;
    let mut client = proxy.connect().await;
    for path in paths {
        for target in [format!("/{path}"), format!("/{path}/x.php"), format!("/{path}/"), format!("/{path}%2fx.php")] {
            let answer = client.get(&target).await;
            assert!(matches!(answer.status, 403 | 404), "{target}: {answer:?}");
            assert!(!answer.text().contains("run"), "{target}");
        }
    }
    proxy.wait_log(&["/upload.jpg/x.php", "\"upload.jpg\" in front of a script looks like a file"]).await;
}

#[tokio::test]
async fn a_front_controller_gets_every_path() {
    let script = r#"<?php echo $_SERVER["SCRIPT_NAME"], " ", $_SERVER["PATH_INFO"], " ", $_SERVER["REQUEST_URI"];"#;
    let Some((_server, setup)) = php(&[("index.php", script)]).await else { return };
    let proxy = setup.route(json!({ "match": { "path": "/" }, "uri": "/index.php/" })).start().await;
    let mut client = proxy.connect().await;
    let page = client.get("/2026/11/a%20b?p=1").await;
    assert_eq!(page.text(), "/index.php /2026/11/a b /2026/11/a%20b?p=1");
}

#[tokio::test]
async fn a_worker_of_phps_is_used_again() {
    let script = "<?php echo getmypid();";
    for (keepalive, connections) in [(4, 1.0), (0, 5.0)] {
        let Some((_server, setup)) = php(&[("index.php", script)]).await else { return };
        let proxy = setup.upstream(json!({ "keepalive": { "connections": keepalive } })).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..5 {
            assert_eq!(client.get("/").await.status, 200);
        }
        let opened = proxy.metric("upstream_connect_seconds_count", &[("upstream", "app")]).await;
        assert_eq!(opened, Some(connections));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_holds_no_worker() {
    let Some((server, setup)) = php(&[("index.php", "<?php readfile(__DIR__ . '/large.bin');")]).await else { return };
    fs::write(server.dir.path().join("htdocs/large.bin"), pattern::body(32 * MIB)).unwrap();
    let proxy = setup.start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", "/", "").await;
    let head = slow.head().await;
    let before = proxy.memory();
    eventually("PHP is free although the client has read nothing", async || {
        let active = [("upstream", "app"), ("state", "active")];
        proxy.metric("upstream_connections", &active).await.filter(|active| *active == 0.0)
    })
    .await;
    assert!(proxy.temp_file_bytes() > 24 * MIB);
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 8 * MIB, "{grown} bytes more");
    assert_eq!(slow.pattern(&head).await, 32 * MIB);
}

#[tokio::test]
async fn uwsgi_speaks_it_too() {
    if !installed("uwsgi") {
        return;
    }
    let application = r#"
def application(env, start):
    body = env["wsgi.input"].read()
    start("201 Made", [("Content-Type", "text/plain"), ("X-Own", "yes")])
    names = ["REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "HTTP_HOST", "CONTENT_LENGTH"]
    return [" ".join(repr(env.get(name)) for name in names).encode(), b" %d" % len(body)]
"#;
    let uwsgi = uwsgi(application).await;
    let proxy = fastcgi(json!([uwsgi.fastcgi])).route(json!({ "fastcgi": {} })).start().await;
    let mut client = proxy.connect().await;
    let page = client.get("/a.py/b%20c?d=e").await;
    assert_eq!((page.status, page.header("x-own")), (201, Some("yes")));
    assert!(page.text().starts_with("'GET' '' '/a.py/b c' 'd=e' 'test' "), "{page:?}");
    let page = client.post("POST", "/", &pattern::body(100_000)).await;
    assert_eq!(page.text(), "'POST' '' '/' '' 'test' '100000' 100000");
}

/// A request as an application gets it.
#[derive(Debug)]
struct Asked {
    params: Vec<(String, String)>,
}

impl Asked {
    fn param(&self, name: &str) -> Option<&str> {
        let mut values = self.params.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "{name} comes twice");
        first
    }
}

/// The next record.
async fn record(conn: &mut Conn) -> Option<(u8, Vec<u8>)> {
    let header = conn.exactly(8).await?;
    let [1, kind, 0, 1, high, low, padding, 0] = header[..] else { panic!("no record of the request: {header:?}") };
    let content = conn.exactly(usize::from(u16::from_be_bytes([high, low]))).await?;
    conn.exactly(padding.into()).await?;
    Some((kind, content))
}

/// The next request, up to where its body begins.
async fn begin(conn: &mut Conn) -> Option<Asked> {
    assert_eq!(record(conn).await?.0, 1, "FCGI_BEGIN_REQUEST");
    let mut stream = Vec::new();
    loop {
        match record(conn).await? {
            (4, content) if content.is_empty() => break,
            (4, content) => stream.extend(content),
            other => panic!("no FCGI_PARAMS: {other:?}"),
        }
    }
    Some(Asked { params: parse_params(&stream) })
}

/// The next request with its body.
async fn request(conn: &mut Conn) -> Option<Asked> {
    let asked = begin(conn).await?;
    loop {
        match record(conn).await? {
            (5, content) if content.is_empty() => return Some(asked),
            (5, _) => {}
            other => panic!("no FCGI_STDIN: {other:?}"),
        }
    }
}

fn parse_params(mut stream: &[u8]) -> Vec<(String, String)> {
    fn take<'a>(stream: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (taken, rest) = stream.split_at(length);
        *stream = rest;
        taken
    }
    fn length(stream: &mut &[u8]) -> usize {
        match take(stream, 1)[0] {
            short @ 0..=0x7f => short.into(),
            long => {
                let rest = take(stream, 3);
                u32::from_be_bytes([long & 0x7f, rest[0], rest[1], rest[2]]) as usize
            }
        }
    }
    let mut params = Vec::new();
    while !stream.is_empty() {
        let lengths = (length(&mut stream), length(&mut stream));
        let mut text = |length| String::from_utf8_lossy(take(&mut stream, length)).into_owned();
        params.push((text(lengths.0), text(lengths.1)));
    }
    params
}

fn answer_record(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = (content.len() as u16).to_be_bytes();
    [&[1, kind, 0, 1, high, low, 0, 0], content].concat()
}

/// `FCGI_END_REQUEST` with this protocol status.
fn end_request(status: u8) -> Vec<u8> {
    answer_record(3, &[0, 0, 0, 0, status, 0, 0, 0])
}

/// A whole answer.
fn page(text: &str) -> Vec<u8> {
    let output = format!("Content-Type: text/plain\r\n\r\n{text}");
    [answer_record(6, output.as_bytes()), end_request(0)].concat()
}

/// Answers every request with these bytes; `close`: and closes behind them.
async fn application(answer: Vec<u8>, close: bool) -> Origin {
    Origin::start(move |mut conn| {
        let answer = answer.clone();
        async move {
            while request(&mut conn).await.is_some() {
                conn.send(&answer).await;
                if close {
                    return;
                }
            }
        }
    })
    .await
}

/// A proxy to these, whose whole path is for the application.
fn proxy_to(origins: &[&Origin]) -> Setup {
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address()).collect();
    fastcgi(json!(addresses)).route(json!({ "fastcgi": {} }))
}

#[tokio::test]
async fn an_application_that_dies_in_the_middle_breaks_the_message() {
    let output = answer_record(6, b"Content-Type: text/plain\r\n\r\nhalf");
    for keepalive in [0, 4] {
        let origin = application(output.clone(), true).await;
        let proxy = proxy_to(&[&origin]).upstream(json!({ "keepalive": { "connections": keepalive } })).start().await;
        let answer = proxy.connect().await.get("/").await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"half"[..]), "what came goes out");
        assert!(answer.broken.is_some(), "not a whole message");
    }
}

#[tokio::test]
async fn wrong_lengths_break_the_message() {
    let header = answer_record(6, b"Content-Type: text/plain\r\n\r\n");
    let too_short = [&[1, 6, 0, 1, 0, 2, 0, 0][..], b"four", &end_request(0)].concat();
    let too_long = [&[1, 6, 0, 1, 0, 40, 0, 0][..], b"four", &end_request(0)].concat();
    let end_too_short = vec![1, 3, 0, 1, 0, 4, 0, 0, 0, 0, 0, 0];
    for wrong in [too_short, too_long, end_too_short] {
        let origin = application([&header[..], &wrong].concat(), true).await;
        let proxy = proxy_to(&[&origin]).start().await;
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        // With everything in one piece there may be no header either: an error page then.
        let answer = client.response().await;
        assert!(answer.broken.is_some() || answer.status == 502, "{wrong:?}: {answer:?}");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_for_the_next_upstream() {
    let good = application(page("good"), false).await;
    for (bad, reason) in [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), "invalid_header"),
        (answer_record(6, b"no header\n\n"), "invalid_header"),
        (end_request(0), "invalid_header"),
        (end_request(2), "error"),
        (Vec::new(), "error"),
    ] {
        let origin = application(bad.clone(), true).await;
        let alone = proxy_to(&[&origin]).start().await;
        assert_eq!(alone.connect().await.get("/").await.status, 502, "{bad:?}");
        let when = json!({ "next_upstream": { "when": [reason] } });
        let proxy = proxy_to(&[&origin, &good]).route(when).start().await;
        let mut client = proxy.connect().await;
        assert_eq!(client.get("/").await.text(), "good", "{bad:?}");
        assert_eq!(proxy.access_log(1).await[0].field("upstream_status"), "502, 200", "{bad:?}");
    }
}

#[tokio::test]
async fn a_posted_request_that_was_refused_is_not_repeated() {
    let (refusing, good) = (application(end_request(2), false).await, application(page("good"), false).await);
    let proxy = proxy_to(&[&refusing, &good]).start().await;
    assert_eq!(proxy.connect().await.post("POST", "/", b"pay").await.status, 502);
    assert_eq!(good.connections(), 0);
    proxy.wait_log(&["FCGI_OVERLOADED"]).await;
}

#[tokio::test]
async fn a_server_that_refuses_connections_is_passed_over() {
    let (refusing, good) = (Refusing::new(), application(page("good"), false).await);
    let proxy = fastcgi(json!([refusing.address(), good.address()])).route(json!({ "fastcgi": {} })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "good");
}

#[tokio::test]
async fn a_silent_application_is_a_504() {
    let origin = application(answer_record(6, b"Content-Type: te"), false).await;
    let proxy = proxy_to(&[&origin]).route(json!({ "timeouts": { "read": "200ms" } })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 504);
}

#[tokio::test]
async fn an_application_may_answer_before_it_has_read() {
    let origin = Origin::start(|mut conn| async move {
        while begin(&mut conn).await.is_some() {
            conn.send(page("enough")).await;
            conn.closed().await;
        }
    })
    .await;
    let proxy = proxy_to(&[&origin]).route(json!({ "request_buffering": false })).start().await;
    for _ in 0..2 {
        let mut client = proxy.connect().await;
        client.send_request("POST", "/", "Content-Length: 100000\r\n").await;
        client.send(pattern::bytes(0, 50_000)).await;
        let answer = client.response().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "enough"));
    }
    assert_eq!(origin.connections(), 2, "a connection with half a request on it is closed");
}

#[tokio::test]
async fn an_application_is_told_that_the_client_has_left() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |mut conn| {
        let tell = tell.clone();
        async move {
            request(&mut conn).await;
            conn.send(answer_record(6, b"Content-Type: text/plain\r\n\r\nhalf")).await;
            tell.send(record(&mut conn).await).unwrap();
        }
    })
    .await;
    let proxy = proxy_to(&[&origin]).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    client.head().await;
    drop(client);
    assert_eq!(within("a last word", told.recv()).await, Some(Some((2, Vec::new()))), "FCGI_ABORT_REQUEST");
}

#[tokio::test]
async fn a_request_cannot_break_out_of_its_variables() {
    let seen: Arc<std::sync::Mutex<Vec<Asked>>> = Arc::default();
    let list = seen.clone();
    let origin = Origin::start(move |mut conn| {
        let list = list.clone();
        async move {
            while let Some(asked) = request(&mut conn).await {
                list.lock().unwrap().push(asked);
                conn.send(page("seen")).await;
            }
        }
    })
    .await;
    let proxy = proxy_to(&[&origin]).route(json!({ "fastcgi": { "root": "/srv" } })).start().await;
    let last = || seen.lock().unwrap().pop().unwrap();

    let path = "/index.php/%0d%0aSCRIPT_FILENAME%3d/etc/passwd%01%ff";
    assert_eq!(proxy.connect().await.get(path).await.text(), "seen");
    let asked = last();
    assert_eq!(asked.param("PATH_INFO"), Some("/\r\nSCRIPT_FILENAME=/etc/passwd\u{1}\u{fffd}"));
    assert_eq!(asked.param("SCRIPT_FILENAME"), Some("/srv/index.php"));

    for path in ["/index.php/%00", "/../index.php", "/%2e%2e/index.php", "/index.php%00.jpg/x.php"] {
        assert_eq!(proxy.connect().await.get(path).await.status, 400, "{path}");
    }
    assert!(seen.lock().unwrap().is_empty());

    let long = "x".repeat(900 << 10);
    let answer = proxy.connect().await.request("GET", "/index.php", &format!("X-Long: {long}\r\n")).await;
    assert_eq!(answer.text(), "seen");
    let asked = last();
    assert_eq!(asked.param("HTTP_X_LONG").map(str::len), Some(long.len()));
    assert_eq!(asked.param("SCRIPT_FILENAME"), Some("/srv/index.php"));

    // A target has 64 KiB at most, by the library that reads it.
    assert_eq!(proxy.connect().await.get(&format!("/index.php/{long}")).await.status, 400);
    let long = "x".repeat(60_000);
    assert_eq!(proxy.connect().await.get(&format!("/index.php/{long}")).await.text(), "seen");
    assert_eq!(last().param("PATH_INFO").map(str::len), Some(long.len() + 1));
}
