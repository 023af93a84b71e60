//! Redis behind the proxy: a real server, and servers that lie.

use crate::support::servers::{Server, installed, redis};
use crate::support::*;
use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// A connection to the server that goes around the proxy.
struct Direct(BufReader<TcpStream>);

impl Direct {
    async fn connect(addr: SocketAddr) -> Self {
        Direct(BufReader::new(TcpStream::connect(addr).await.unwrap()))
    }

    /// A command: the first line of its reply, or the string that it is.
    async fn ask(&mut self, words: &[&[u8]]) -> Vec<u8> {
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            command.extend(format!("${}\r\n", word.len()).into_bytes());
            command.extend(*word);
            command.extend(b"\r\n");
        }
        within("the server answers", async {
            self.0.write_all(&command).await.unwrap();
            let mut line = Vec::new();
            self.0.read_until(b'\n', &mut line).await.unwrap();
            line.truncate(line.len() - 2);
            let Some(length) = line.strip_prefix(b"$") else { return line };
            let Ok(length) = str::from_utf8(length).unwrap().parse::<usize>() else { return line };
            let mut value = vec![0; length + 2];
            self.0.read_exact(&mut value).await.unwrap();
            value.truncate(length);
            value
        })
        .await
    }

    async fn set(&mut self, key: &str, value: &[u8]) {
        assert_eq!(self.ask(&[b"SET", key.as_bytes(), value]).await, b"+OK");
    }

    async fn get(&mut self, key: &[u8]) -> Vec<u8> {
        self.ask(&[b"GET", key]).await
    }

    async fn number(&mut self, words: &[&[u8]]) -> i64 {
        let line = String::from_utf8(self.ask(words).await).unwrap();
        line.strip_prefix(':').unwrap_or_else(|| panic!("no number: {line}")).parse().unwrap()
    }

    /// How many connections the server has accepted so far.
    async fn connections(&mut self) -> u64 {
        let info = String::from_utf8(self.ask(&[b"INFO", b"stats"]).await).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
        line.parse().unwrap()
    }
}

fn route(settings: Value) -> Value {
    key_route("redis", settings)
}

/// A proxy to these servers of Redis.
fn setup(servers: Value) -> Setup {
    Proxy::to_keys(servers, "redis", json!({}))
}

async fn start(more: &[&str]) -> Option<(Server, Direct)> {
    if !installed("redis-server") {
        return None;
    }
    let server = redis(more).await;
    let direct = Direct::connect(server.addr).await;
    Some((server, direct))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_put_read_and_deleted() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let proxy = setup(json!([server.addr])).start().await;
    let before = direct.connections().await;
    let mut client = proxy.connect().await;

    assert_eq!(client.get("/logo.png").await.status, 404);
    assert_eq!(client.post("PUT", "/logo.png", b"two\r\nlines\0").await.status, 204);
    assert_eq!(direct.get(b"logo.png").await, b"two\r\nlines\0");
    let hit = client.get("/logo.png").await;
    assert_eq!((hit.status, hit.body.as_slice(), hit.broken.as_ref()), (200, b"two\r\nlines\0".as_slice(), None));
    assert_eq!((hit.header("content-type"), hit.header("content-length")), (Some("image/png"), Some("11")));
    let head = client.request("HEAD", "/logo.png", "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("11"), 0));
    assert_eq!(client.post("PUT", "/empty", b"").await.status, 204);
    assert_eq!(client.get("/empty").await.text(), "");
    assert_eq!(client.request("DELETE", "/logo.png", "").await.status, 204);
    assert_eq!(client.request("DELETE", "/logo.png", "").await.status, 404);
    assert_eq!(client.get("/logo.png").await.status, 404);

    let refused = client.post("POST", "/logo.png", b"x").await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD, PUT, DELETE")));
    assert_eq!(client.request("PUT", "/logo.png", "").await.status, 411);
    assert_eq!(client.get("/").await.status, 400);
    assert_eq!(direct.connections().await - before, 1, "all of it on one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_refused_unless_it_is_stored_first() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (buffering, status) in [(true, 204), (false, 411)] {
        let mut route = route(json!({}));
        route["request_buffering"] = buffering.into();
        let proxy = setup(json!([server.addr])).routes(json!([route])).start().await;
        let mut client = proxy.connect().await;
        client.send_request("PUT", &format!("/{status}"), chunked).await;
        client.send("5\r\nhello\r\n0\r\n\r\n").await;
        assert_eq!(client.response().await.status, status);
    }
    assert_eq!(direct.get(b"204").await, b"hello");
    assert_eq!(direct.get(b"411").await, b"$-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_is_put_while_it_comes() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    for buffering in [true, false] {
        let mut route = route(json!({}));
        route["request_buffering"] = buffering.into();
        route["client_max_body_size"] = 0.into();
        let proxy = setup(json!([server.addr])).routes(json!([route])).start().await;
        let before = proxy.memory();
        let response = proxy.connect().await.post("PUT", "/large", &pattern::body(20 * MIB)).await;
        assert_eq!(response.status, 204);
        let grown = proxy.memory().saturating_sub(before);
        assert!(grown < 8 * MIB, "memory grew by {grown} bytes");
        assert!(direct.get(b"large").await == pattern::body(20 * MIB), "request_buffering: {buffering}");
        direct.ask(&[b"DEL", b"large"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_frees_the_server_long_before_the_client_has_it() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    direct.set("large", &pattern::body(32 * MIB)).await;
    direct.set("small", b"x").await;
    let proxy = setup(json!([server.addr])).start().await;
    assert_eq!(proxy.connect().await.get("/small").await.text(), "x");
    let (before, connections) = (proxy.memory(), direct.connections().await);

    let mut slow = proxy.connect().await;
    slow.send_request("GET", "/large", "").await;
    let head = slow.head().await;
    assert_eq!(head.header("content-length"), Some((32 * MIB).to_string().as_str()));
    let idle = [("upstream", "app"), ("state", "idle")];
    let free = async || proxy.metric("upstream_connections", &idle).await.filter(|idle| *idle == 1.0);
    eventually("the connection is idle although the client has read nothing", free).await;
    assert!(proxy.temp_file_bytes() > 16 * MIB);
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 16 * 16 * KIB + 256 * KIB + 4 * MIB, "memory grew by {grown} bytes");
    assert_eq!(proxy.connect().await.get("/small").await.text(), "x");
    assert_eq!(direct.connections().await, connections, "no other connection was needed");
    assert_eq!(slow.pattern_at(&head, MIB).await, 32 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_expire_after_their_time_to_live() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let proxy = setup(json!([server.addr])).routes(json!([route(json!({ "ttl": "90s500ms" }))])).start().await;
    assert_eq!(proxy.connect().await.post("PUT", "/k", b"value").await.status, 204);
    assert_eq!(direct.get(b"k").await, b"value");
    let left = direct.number(&[b"PTTL", b"k"]).await;
    assert!((30_000..=90_500).contains(&left), "{left} ms");

    let proxy = setup(json!([server.addr])).start().await;
    assert_eq!(proxy.connect().await.post("PUT", "/k", b"value").await.status, 204);
    assert_eq!(direct.number(&[b"PTTL", b"k"]).await, -1, "without a ttl");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_are_told_and_never_shown() {
    const PASSWORD: &str = "s3cret-of-joe";
    let password = format!(">{PASSWORD}");
    let rule = ["--user", "joe", "on", &password, "~*", "&*", "+@all", "--requirepass", "s3cret-of-all"];
    let Some((server, _)) = start(&rule).await else { return };
    let with = |login: Value| setup(json!([server.addr])).upstream(login);

    let setup = with(json!({ "user": "joe", "password_file": "password" }));
    std::fs::write(setup.files.dir().join("password"), format!("{PASSWORD}\n")).unwrap();
    let proxy = setup.start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.post("PUT", "/k", b"value").await.status, 204);
    assert_eq!(client.get("/k").await.text(), "value");
    let status = Client::connect(proxy.ports.admin).await.get("/status.json").await.text();
    assert!(!status.contains(PASSWORD), "{status}");
    let proxy = with(json!({ "password": "s3cret-of-all" })).start().await;
    assert_eq!(proxy.connect().await.get("/k").await.text(), "value");

    let wrong = [
        (json!({ "user": "joe", "password": "wrong-s3cret" }), "WRONGPASS"),
        (json!({ "password": "wrong-s3cret" }), "WRONGPASS"),
        (json!({}), "NOAUTH"),
    ];
    for (login, reason) in wrong {
        let proxy = with(login).start().await;
        for (method, body) in [("GET", ""), ("PUT", "other")] {
            assert_eq!(proxy.connect().await.post(method, "/k", body.as_bytes()).await.status, 502);
        }
        proxy.wait_log(&[reason]).await;
        assert!(!proxy.log().contains("s3cret"), "{}", proxy.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_repeats_the_password_does_not_bring_it_into_the_log() {
    let Some((server, _)) = start(&["--rename-command", "AUTH", ""]).await else { return };
    let proxy = setup(json!([server.addr])).upstream(json!({ "user": "joe", "password": "s3cret" })).start().await;
    assert_eq!(proxy.connect().await.get("/k").await.status, 502);
    proxy.wait_log(&["Redis refused AUTH: ERR"]).await;
    assert!(!proxy.log().contains("s3cret"), "{}", proxy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_do_not_leak_into_each_other_over_pooled_connections() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let in_database = |path: &str, database: Value| {
        let mut route = route(json!({ "key": "k", "database": database }));
        route["match"] = json!({ "path_exact": path });
        route
    };
    let routes = json!([in_database("/own", Value::Null), in_database("/0", json!(0)), in_database("/5", json!(5))]);
    let proxy = setup(json!([server.addr])).upstream(json!({ "database": 3 })).routes(routes).start().await;
    let before = direct.connections().await;
    let mut client = proxy.connect().await;
    for round in ["first", "second"] {
        for path in ["/own", "/5", "/0"] {
            assert_eq!(client.post("PUT", path, format!("{round}{path}").as_bytes()).await.status, 204);
        }
        for path in ["/0", "/own", "/5", "/own", "/0", "/5"] {
            assert_eq!(client.get(path).await.text(), format!("{round}{path}"));
        }
    }
    for (database, path) in [("3", "/own"), ("0", "/0"), ("5", "/5")] {
        direct.ask(&[b"SELECT", database.as_bytes()]).await;
        assert_eq!(direct.get(b"k").await, format!("second{path}").into_bytes());
    }
    assert_eq!(direct.connections().await - before, 3, "one for each database");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_in_another_database_when_one_cannot_be_selected() {
    let Some((server, mut direct)) = start(&["--databases", "4"]).await else { return };
    direct.set("k", b"kept").await;
    let proxy = setup(json!([server.addr])).upstream(json!({ "database": 4 })).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.post("PUT", "/k", b"other").await.status, 502);
    assert_eq!(client.post("PUT", "/new", b"other").await.status, 502);
    assert_eq!(client.request("DELETE", "/k", "").await.status, 502);
    proxy.wait_log(&["Redis refused SELECT: ERR DB index is out of range"]).await;
    assert_eq!(direct.get(b"k").await, b"kept");
    assert_eq!(direct.number(&[b"DBSIZE"]).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_a_command() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let proxy = setup(json!([server.addr])).start().await;
    let mut client = proxy.connect().await;
    let keys = [
        ("a%20b", "a b"),
        ("x%0D%0AFLUSHALL%0D%0A", "x\r\nFLUSHALL\r\n"),
        ("$3%0D%0AGET", "$3\r\nGET"),
        ("%C3%A9%E2%82%AC", "é€"),
        ("%2525", "%25"),
    ];
    for (path, key) in keys {
        let path = format!("/{path}");
        assert_eq!(client.post("PUT", &path, b"value").await.status, 204, "{key:?}");
        assert_eq!(direct.get(key.as_bytes()).await, b"value", "{key:?}");
        assert_eq!(client.get(&path).await.text(), "value");
    }
    assert_eq!(direct.number(&[b"DBSIZE"]).await, keys.len() as i64);
    // A NUL never gets as far as a route.
    assert_eq!(proxy.connect().await.get("/a%00b").await.status, 400);
    let long = format!("/{}", "k".repeat(32 << 10));
    assert_eq!(client.post("PUT", &long, b"value").await.status, 204);
    let thrice = setup(json!([server.addr])).routes(json!([route(json!({ "key": "$1$1$1" }))])).start().await;
    assert_eq!(thrice.connect().await.get(&long).await.status, 414);
    let huge = proxy.connect().await.get(&format!("/{}", "k".repeat(1 << 20))).await.status;
    assert!(matches!(huge, 400 | 414), "{huge}");
    assert_eq!(client.get("/a%20b").await.text(), "value", "the connection is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_brings_about_does_not_rest_the_server() {
    let Some((server, mut direct)) = start(&["--user", "default", "on", "nopass", "~a*", "~list", "+@all"]).await
    else {
        return;
    };
    direct.ask(&[b"RPUSH", b"list", b"x"]).await;
    let proxy = setup(json!([server.addr, "127.0.0.1:1"])).start().await;
    let mut client = proxy.connect().await;
    direct.set("a", b"value").await;
    for _ in 0..4 {
        assert_eq!(client.get("/list").await.status, 409);
        assert_eq!(client.get("/forbidden").await.status, 403);
        assert_eq!(client.get("/a").await.text(), "value");
    }
    proxy.wait_log(&["WRONGTYPE"]).await;
    proxy.wait_log(&["NOPERM"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_says_so() {
    let Some((server, mut direct)) = start(&["--maxmemory", "1"]).await else { return };
    let proxy = setup(json!([server.addr])).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.post("PUT", "/k", b"value").await.status, 507);
    assert_eq!(direct.get(b"k").await, b"$-1");
    assert_eq!(client.get("/k").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_of_a_value_breaks_the_message() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    direct.set("large", &pattern::body(32 * MIB)).await;
    let mut route = route(json!({}));
    route["buffering"] = json!({ "max_temp_file_size": 0 });
    let proxy = setup(json!([server.addr])).routes(json!([route])).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/large", "").await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    drop(server);
    let mut framing = client::framing(&head, "GET");
    let (mut pattern, mut broken) = (Pattern::default(), None);
    while broken.is_none() {
        match client.body_piece(&mut framing).await {
            Ok(Some(piece)) => pattern.check(&piece),
            Ok(None) => panic!("a complete message"),
            Err(why) => broken = Some(why),
        }
    }
    assert!(pattern.offset < 32 * MIB);
    assert_eq!(proxy.connect().await.get("/large").await.status, 502);
}

/// A server that answers the first command on each connection with these bytes, and closes.
async fn liar(answer: &'static str) -> Origin {
    Origin::start(move |mut conn| async move {
        if command(&mut conn).await.is_some() {
            conn.send(answer).await;
        }
    })
    .await
}

/// Read a command; `None` once the peer has closed.
async fn command(conn: &mut origin::Conn) -> Option<Vec<Vec<u8>>> {
    let count: usize = conn.line(b"\r\n").await?.strip_prefix('*').unwrap().parse().unwrap();
    let mut words = Vec::new();
    for _ in 0..count {
        let length: usize = conn.line(b"\r\n").await?.strip_prefix('$').unwrap().parse().unwrap();
        let mut word = conn.exactly(length + 2).await?;
        word.truncate(length);
        words.push(word);
    }
    Some(words)
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_place_of_a_reply_is_a_502() {
    let answers = [
        "",
        "HTTP/1.1 200 OK\r\n\r\n",
        "$-2\r\n",
        "$99999999999999999999999\r\n",
        "$5",
        "$5\nhello\r\n",
        ":1\r\n",
        "+OK\r\n",
        "*1\r\n$1\r\nx\r\n",
        "-ERR no such luck\r\n",
        "-MOVED 1 127.0.0.1:1\r\n",
        "-NOAUTH Authentication required.\r\n",
    ];
    for answer in answers {
        let origin = liar(answer).await;
        let proxy = setup(json!([origin.address()])).start().await;
        assert_eq!(proxy.connect().await.get("/k").await.status, 502, "{answer:?}");
        let [line] = &proxy.access_log(1).await[..] else { panic!("one line") };
        assert_eq!(line.field("upstream_status"), "502");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_as_long_as_it_says_is_a_broken_message() {
    for answer in ["$9\r\nhello\r\n", "$4\r\nhello\r\n", "$5\r\nhello", "$5\r\nhello\r", "$5\r\nhello\n\n"] {
        let origin = liar(answer).await;
        let proxy = setup(json!([origin.address()])).start().await;
        let response = proxy.connect().await.get("/k").await;
        assert_eq!(response.status, 200, "{answer:?}");
        assert!(response.broken.is_some(), "{answer:?}: {response:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_too_many_costs_the_connection_and_not_the_answer() {
    let origin = Origin::start(|mut conn| async move {
        while command(&mut conn).await.is_some() {
            conn.send("$5\r\nhello\r\n$6\r\nforged\r\n").await;
        }
    })
    .await;
    let proxy = setup(json!([origin.address()])).start().await;
    let mut client = proxy.connect().await;
    for connections in 1..4 {
        assert_eq!(client.get("/k").await.text(), "hello");
        assert_eq!(origin.connections(), connections);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_a_504() {
    let origin = Origin::start(|mut conn| async move {
        conn.closed().await;
    })
    .await;
    for login in [json!({}), json!({ "password": "x" })] {
        let mut route = route(json!({}));
        route["timeouts"] = json!({ "read": "200ms" });
        let proxy = setup(json!([origin.address()])).upstream(login.clone()).routes(json!([route])).start().await;
        assert_eq!(proxy.connect().await.get("/k").await.status, 504, "{login}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_serve_now_is_passed_over() {
    for refusal in ["LOADING Redis is loading the dataset in memory", "CLUSTERDOWN The cluster is down", "READONLY x"] {
        let refusal: &'static str = format!("-{refusal}\r\n").leak();
        let loading = liar(refusal).await;
        let ready = Origin::start(|mut conn| async move {
            while let Some(words) = command(&mut conn).await {
                conn.send(if words[0] == b"SET" { "+OK\r\n" } else { "$2\r\nok\r\n" }).await;
            }
        })
        .await;
        let proxy = setup(json!([loading.address(), ready.address()])).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..3 {
            assert_eq!(client.get("/k").await.text(), "ok", "{refusal:?}");
            assert_eq!(client.post("PUT", "/k", b"value").await.status, 204);
        }
        assert_eq!(loading.connections(), 1, "it rests");
        let alone = setup(json!([loading.address()])).start().await;
        assert_eq!(alone.connect().await.get("/k").await.status, 502);
        alone.wait_log(&[refusal[1..].trim_end()]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_waits_until_the_greeting_was_answered() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut conn| {
        let tell = tell.clone();
        async move {
            tell.send(command(&mut conn).await).unwrap();
            tell.send(command(&mut conn).await).unwrap();
            conn.send("+OK\r\n-ERR DB index is out of range\r\n").await;
            tell.send(command(&mut conn).await).unwrap();
        }
    })
    .await;
    let login = json!({ "user": "joe", "password": "s3cret", "database": 7 });
    let proxy = setup(json!([origin.address()])).upstream(login).start().await;
    assert_eq!(proxy.connect().await.post("PUT", "/k", b"value").await.status, 502);
    let mut next = async || within("a command, or the end", told.recv()).await.unwrap();
    assert_eq!(next().await.unwrap(), [&b"AUTH"[..], b"joe", b"s3cret"]);
    assert_eq!(next().await.unwrap(), [&b"SELECT"[..], b"7"]);
    assert_eq!(next().await, None, "nothing follows a greeting that was refused");
}
