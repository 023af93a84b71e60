//! memcached behind the proxy: a real server, and servers that lie.

use crate::support::origin::Conn;
use crate::support::servers::{Server, installed, memcached};
use crate::support::*;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// A connection to the server that goes around the proxy.
struct Direct(BufReader<TcpStream>);

impl Direct {
    async fn connect(addr: SocketAddr) -> Self {
        Direct(BufReader::new(TcpStream::connect(addr).await.unwrap()))
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        within("the server answers", self.0.read_until(b'\n', &mut line)).await.unwrap();
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    async fn set(&mut self, key: &str, flags: u32, value: &[u8]) {
        let line = format!("set {key} {flags} 0 {}\r\n", value.len());
        self.0.write_all(&[line.as_bytes(), value, b"\r\n"].concat()).await.unwrap();
        assert_eq!(self.line().await, "STORED");
    }

    /// A value and its flags.
    async fn get(&mut self, key: &str) -> Option<(u32, Vec<u8>)> {
        self.0.write_all(format!("get {key}\r\n").as_bytes()).await.unwrap();
        let line = self.line().await;
        if line == "END" {
            return None;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let ["VALUE", got, flags, length] = words[..] else { panic!("{line}") };
        assert_eq!(got, key);
        let mut value = vec![0; length.parse::<usize>().unwrap() + 7];
        within("the value", self.0.read_exact(&mut value)).await.unwrap();
        assert!(value.ends_with(b"\r\nEND\r\n"));
        value.truncate(value.len() - 7);
        Some((flags.parse().unwrap(), value))
    }

    async fn value(&mut self, key: &str) -> Option<Vec<u8>> {
        self.get(key).await.map(|(_, value)| value)
    }

    /// One of the server's counters.
    async fn stat(&mut self, name: &str) -> u64 {
        self.0.write_all(b"stats\r\n").await.unwrap();
        let mut found = None;
        loop {
            let line = self.line().await;
            if line == "END" {
                return found.unwrap_or_else(|| panic!("no {name}"));
            }
            if let Some(value) = line.strip_prefix(&format!("STAT {name} ")) {
                found = value.parse().ok();
            }
        }
    }

    /// When the value expires, in seconds from now.
    async fn expires(&mut self, key: &str) -> i64 {
        self.0.write_all(format!("mg {key} t\r\n").as_bytes()).await.unwrap();
        let line = self.line().await;
        line.strip_prefix("HD t").unwrap_or_else(|| panic!("{line}")).parse().unwrap()
    }
}

/// A proxy to these servers.
fn setup(servers: Value, settings: Value) -> Setup {
    Proxy::to_keys(servers, "memcached", settings)
}

fn writable() -> Value {
    json!({ "writes": true, "gzip_flag": 1 })
}

async fn start(more: &[&str]) -> Option<(Server, Direct)> {
    if !installed("memcached") {
        return None;
    }
    let server = memcached(more).await;
    let direct = Direct::connect(server.addr).await;
    Some((server, direct))
}

/// Has the proxy no request at a server?
async fn free(proxy: &Proxy) -> Option<()> {
    let active = [("upstream", "app"), ("state", "active")];
    (proxy.metric("upstream_connections", &active).await == Some(0.0)).then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_read_and_misses_are_404() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let tricky = b"one\r\nEND\r\nVALUE x 0 3\r\n\0\xff\r\nEND\r\n";
    direct.set("logo.png", 0, tricky).await;
    direct.set("page.html", 2, b"not really compressed").await;
    direct.set("other.html", 5, b"").await;
    let proxy = setup(json!([server.addr]), json!({ "gzip_flag": 1 })).start().await;
    let before = direct.stat("total_connections").await;
    let mut client = proxy.connect().await;

    for _ in 0..3 {
        let hit = client.get("/logo.png").await;
        assert_eq!((hit.status, hit.body.as_slice(), hit.broken.as_ref()), (200, tricky.as_slice(), None));
        assert_eq!(hit.header("content-type"), Some("image/png"));
        assert_eq!(hit.header("content-encoding"), None);
        let miss = client.get("/missing").await;
        assert_eq!((miss.status, miss.broken), (404, None));
    }
    let compressed = client.get("/page.html").await;
    assert_eq!((compressed.header("content-encoding"), compressed.body.len()), (Some("gzip"), 21));
    let empty = client.get("/other.html").await;
    assert_eq!((empty.status, empty.header("content-encoding"), empty.text().as_str()), (200, None, ""));
    let head = client.request("HEAD", "/page.html", "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("21"), 0));
    assert_eq!(head.header("content-encoding"), Some("gzip"));
    assert_eq!(client.request("HEAD", "/missing", "").await.status, 404);
    for method in ["PUT", "DELETE", "POST"] {
        let refused = client.post(method, "/logo.png", b"x").await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    assert_eq!(client.get("/").await.status, 400, "an empty key");
    assert_eq!(direct.value("logo.png").await.unwrap(), tricky);
    assert_eq!(direct.stat("total_connections").await - before, 1, "all of it on one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_put_read_and_deleted() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let proxy = setup(json!([server.addr]), writable()).start().await;
    let before = direct.stat("total_connections").await;
    let mut client = proxy.connect().await;
    let value = b"two\r\nlines\r\nEND\r\n\0";

    assert_eq!(client.post("PUT", "/a/b.txt", value).await.status, 204);
    assert_eq!(direct.get("a/b.txt").await, Some((0, value.to_vec())));
    let hit = client.get("/a/b.txt").await;
    assert_eq!((hit.status, hit.body.as_slice(), hit.header("content-type")), (200, &value[..], Some("text/plain")));
    assert_eq!(client.post("PUT", "/a/b.txt", b"").await.status, 204);
    assert_eq!(client.get("/a/b.txt").await.text(), "");
    assert_eq!(client.request("DELETE", "/a/b.txt", "").await.status, 204);
    assert_eq!(client.request("DELETE", "/a/b.txt", "").await.status, 404);
    assert_eq!(client.get("/a/b.txt").await.status, 404);

    client.send_request("PUT", "/z", "Content-Encoding: gzip\r\nContent-Length: 2\r\n").await;
    client.send("zz").await;
    assert_eq!(client.response().await.status, 204);
    assert_eq!(direct.get("z").await, Some((2, b"zz".to_vec())));
    assert_eq!(client.get("/z").await.header("content-encoding"), Some("gzip"));

    let refused = client.post("POST", "/z", b"x").await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD, PUT, DELETE")));
    assert_eq!(client.request("PUT", "/z", "").await.status, 411);
    assert_eq!(direct.stat("total_connections").await - before, 1, "all of it on one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_expire_after_their_time() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    const DAY: i64 = 24 * 60 * 60;
    for (expire, seconds) in [("90s", 90), ("30d", 30 * DAY), ("31d", 31 * DAY), ("300d", 300 * DAY)] {
        let proxy = setup(json!([server.addr]), json!({ "writes": true, "expire": expire })).start().await;
        assert_eq!(proxy.connect().await.post("PUT", "/k", b"value").await.status, 204);
        let left = direct.expires("k").await;
        // The server rounds its clock.
        assert!((seconds - 60..=seconds + 1).contains(&left), "{expire}: {left} s");
    }
    let proxy = setup(json!([server.addr]), writable()).start().await;
    assert_eq!(proxy.connect().await.post("PUT", "/k", b"value").await.status, 204);
    assert_eq!(direct.expires("k").await, -1, "never");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_refused_unless_it_is_stored_first() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    for (buffering, status) in [(true, 204), (false, 411)] {
        let setup = setup(json!([server.addr]), writable()).route(json!({ "request_buffering": buffering }));
        let proxy = setup.start().await;
        let mut client = proxy.connect().await;
        client.send_request("PUT", &format!("/{status}"), "Transfer-Encoding: chunked\r\n").await;
        client.send("5\r\nhello\r\n0\r\n\r\n").await;
        assert_eq!(client.response().await.status, status);
    }
    assert_eq!(direct.value("204").await.unwrap(), b"hello");
    assert_eq!(direct.value("411").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_goes_both_ways_in_little_memory() {
    const LARGE: u64 = 20 * MIB;
    let Some((server, mut direct)) = start(&["-I", "64m", "-m", "256"]).await else { return };
    for buffering in [true, false] {
        let route = json!({ "request_buffering": buffering, "client_max_body_size": 0 });
        let proxy = setup(json!([server.addr]), writable()).route(route).start().await;
        let mut client = proxy.connect().await;
        assert_eq!(client.post("PUT", "/small", b"x").await.status, 204);
        let before = proxy.memory();
        assert_eq!(client.post("PUT", "/large", &pattern::body(LARGE)).await.status, 204);
        assert!(direct.value("large").await.unwrap() == pattern::body(LARGE));
        client.send_request("GET", "/large", "").await;
        let head = client.head().await;
        assert_eq!(client.pattern(&head).await, LARGE);
        let grown = proxy.memory().saturating_sub(before);
        assert!(grown < 8 * MIB, "memory grew by {grown} bytes, request_buffering: {buffering}");
        assert_eq!(client.request("DELETE", "/large", "").await.status, 204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_server_has_no_room_for_is_the_clients_affair() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    for buffering in [true, false] {
        let route = json!({ "request_buffering": buffering, "client_max_body_size": 0 });
        let proxy = setup(json!([server.addr, "127.0.0.1:1"]), writable()).route(route).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..3 {
            // 8 MiB are its limit.
            assert_eq!(client.post("PUT", "/k", &pattern::body(9 * MIB)).await.status, 413);
            assert_eq!(client.post("PUT", "/k", b"fits").await.status, 204);
            assert_eq!(direct.value("k").await.unwrap(), b"fits");
        }
        proxy.wait_log(&["413", "SERVER_ERROR object too large for cache"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_too_much_for_the_server_does_not_make_commands_of_the_value() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    direct.set("k", 0, b"old").await;
    let route = json!({ "request_buffering": false, "client_max_body_size": 0 });
    let proxy = setup(json!([server.addr]), writable()).route(route).start().await;
    let asked = direct.stat("total_connections").await;
    let mut client = proxy.connect().await;
    // memcached refuses this line, and reads on behind it.
    client.send_request("PUT", "/k", "Content-Length: 3000000000\r\n").await;
    client.send("flush_all\r\n".repeat(1000)).await;
    assert_eq!(client.head().await.status, 413);
    assert_eq!(direct.stat("cmd_flush").await, 0);
    assert_eq!(direct.value("k").await.unwrap(), b"old");
    assert_eq!(direct.stat("total_connections").await, asked, "no server is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_a_value_stores_nothing() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    direct.set("k", 0, b"old").await;
    let route = json!({ "request_buffering": false });
    let proxy = setup(json!([server.addr]), writable()).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send_request("PUT", "/k", "Content-Length: 100\r\n").await;
    client.send("delete k\r\nflush_all\r\n").await;
    // The server has one connection more than ours.
    let begun = async || free(&proxy).await.is_none().then_some(());
    eventually("the value is on its way", begun).await;
    drop(client);
    eventually("the connection is gone", async || free(&proxy).await).await;
    assert_eq!(direct.value("k").await.unwrap(), b"old");
    assert_eq!(direct.stat("cmd_flush").await, 0);
    assert_eq!(proxy.connect().await.get("/k").await.text(), "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_do_not_read_hold_no_server() {
    const CLIENTS: u64 = 50;
    let Some((server, mut direct)) = start(&[]).await else { return };
    // The kernel may take one of 1 MiB whole, but not one of 7.
    let length = |client: u64| if client.is_multiple_of(5) { 7 * MIB } else { MIB };
    for client in [0, 1] {
        direct.set(&length(client).to_string(), 0, &pattern::body(length(client))).await;
    }
    let proxy = setup(json!([server.addr]), json!({})).start().await;
    assert_eq!(proxy.connect().await.get(&format!("/{MIB}")).await.status, 200);
    let before = proxy.memory();

    let mut stalled = Vec::new();
    for index in 0..CLIENTS {
        let mut client = proxy.connect().await;
        client.send_request("GET", &format!("/{}", length(index)), "").await;
        stalled.push(client);
    }
    let mut heads = Vec::new();
    for client in &mut stalled {
        heads.push(client.head().await);
    }
    eventually("the server is free although nobody has read", async || free(&proxy).await).await;
    assert!(proxy.temp_file_bytes() > 10 * MIB, "{} bytes in files", proxy.temp_file_bytes());
    let grown = proxy.memory().saturating_sub(before);
    // Each may hold its buffers (16 of 16 KiB), and what goes with a connection.
    let most = CLIENTS * (16 * 16 + 64) * KIB + 4 * MIB;
    assert!(grown < most, "memory grew by {grown} bytes, {most} would do");

    let reading = stalled.into_iter().zip(heads).zip(0..).map(|((mut client, head), index)| {
        let rate = if index % 2 == 0 { 2 * MIB } else { 64 * MIB };
        tokio::spawn(async move { (client.pattern_at(&head, rate).await, length(index)) })
    });
    for read in reading.collect::<Vec<_>>() {
        let (read, length) = read.await.unwrap();
        assert_eq!(read, length);
    }
    eventually("the temporary files are gone", async || proxy.temp_files().is_empty().then_some(())).await;
}

/// Each client asks for four, one behind the other. The kernel may take such a value whole: that the response's own
/// buffers would do is shown above.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_values_go_to_slow_clients() {
    const CLIENTS: u64 = 250;
    const EACH: u64 = 4;
    let Some((server, mut direct)) = start(&[]).await else { return };
    // Another client's value would be seen by its length.
    let length = |value: u64| MIB + value % 8;
    for value in 0..8 {
        direct.set(&value.to_string(), 0, &pattern::body(length(value))).await;
    }
    let proxy = setup(json!([server.addr]), json!({})).start().await;
    assert_eq!(proxy.connect().await.get("/0").await.status, 200);
    let before = proxy.memory();

    let gate = Arc::new(Barrier::new(CLIENTS as usize + 1));
    let mut clients = JoinSet::new();
    for index in 0..CLIENTS {
        let (mut client, gate) = (proxy.connect().await, gate.clone());
        clients.spawn(async move {
            for value in (index..).take(EACH as usize) {
                client.send_request("GET", &format!("/{}", value % 8), "").await;
                let head = client.head().await;
                if value == index {
                    gate.wait().await;
                    gate.wait().await;
                }
                assert_eq!(client.pattern_at(&head, MIB).await, length(value));
            }
        });
    }
    within("every client has a header", gate.wait()).await;
    eventually("the server is free although nobody has read", async || free(&proxy).await).await;
    let mut most = proxy.memory();
    within("the clients go on", gate.wait()).await;
    while let Some(done) = clients.join_next().await {
        done.unwrap();
        most = most.max(proxy.memory());
    }

    let (grown, bound) = (most.saturating_sub(before), CLIENTS * (16 * 16 + 64) * KIB + 4 * MIB);
    assert!(grown < bound, "memory grew by {grown} bytes, {bound} would do");
    let lines = proxy.access_log((CLIENTS * EACH) as usize + 1).await;
    assert!(lines.iter().all(|line| line.field("status") == "200"));
    eventually("the server is free again", async || free(&proxy).await).await;
    eventually("the temporary files are gone", async || proxy.temp_files().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_a_command() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    direct.set("witness", 0, b"here").await;
    let proxy = setup(json!([server.addr]), writable()).start().await;
    let mut client = proxy.connect().await;
    let keys = [
        ("a%20b", "a%20b"),
        ("x%0D%0Aflush_all%0D%0A", "x%0D%0Aflush_all%0D%0A"),
        ("x%20witness", "x%20witness"),
        ("x%0Adelete%20witness", "x%0Adelete%20witness"),
        ("k%200%200%201%0D%0Ax%0D%0Aflush_all", "k%200%200%201%0D%0Ax%0D%0Aflush_all"),
        ("%09%0B%1F", "%09%0B%1F"),
        ("%C3%A9%E2%82%AC", "é€"),
        ("%2525%25", "%2525%25"),
    ];
    for (path, key) in keys {
        let (path, value) = (format!("/{path}"), key.as_bytes());
        assert_eq!(client.get(&path).await.status, 404, "{key:?}");
        assert_eq!(client.post("PUT", &path, value).await.status, 204, "{key:?}");
        assert_eq!(direct.value(key).await.as_deref(), Some(value), "{key:?}");
        assert_eq!(client.get(&path).await.text(), key);
    }
    assert_eq!(direct.stat("curr_items").await, keys.len() as u64 + 1);
    for (path, _) in keys {
        assert_eq!(client.request("DELETE", &format!("/{path}"), "").await.status, 204);
    }
    let longest = format!("/{}", "k".repeat(250));
    assert_eq!(client.post("PUT", &longest, b"fits").await.status, 204);
    assert_eq!(client.get(&longest).await.text(), "fits");
    let requests = direct.stat("cmd_set").await + direct.stat("cmd_get").await;
    for path in [format!("{longest}k"), format!("/{}", "%20".repeat(84)), format!("/{}", "k".repeat(30 << 10))] {
        for method in ["GET", "PUT", "DELETE"] {
            assert_eq!(client.post(method, &path, b"flush_all").await.status, 414);
        }
    }
    let huge = proxy.connect().await.get(&format!("/{}", "k".repeat(1 << 20))).await.status;
    assert!(matches!(huge, 400 | 414), "{huge}");
    // A NUL never gets as far as a route.
    assert_eq!(proxy.connect().await.get("/a%00b").await.status, 400);
    assert_eq!(direct.stat("cmd_set").await + direct.stat("cmd_get").await, requests, "none of them was asked for");
    assert_eq!(direct.stat("cmd_flush").await, 0);
    assert_eq!(direct.stat("curr_items").await, 2);
    assert_eq!(direct.value("witness").await.unwrap(), b"here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_has_one_key_and_one_server_however_it_is_written() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let Some((other, _)) = start(&[]).await else { return };
    let by_path = json!({ "key": "$uri", "writes": true });
    let proxy = setup(json!([server.addr]), by_path.clone()).start().await;
    let mut client = proxy.connect().await;
    // nginx's `set $memcached_key $uri` makes the same keys of these.
    for (path, key) in [
        ("/a%20b", "/a%20b"),
        ("/%61//b/../c", "/a/c"),
        ("/x%0D%0Aflush_all%0D%0A", "/x%0D%0Aflush_all%0D%0A"),
        ("/%C3%A9", "/é"),
        ("/%2525", "/%2525"),
    ] {
        assert_eq!(client.post("PUT", path, path.as_bytes()).await.status, 204);
        assert_eq!(direct.value(key).await.as_deref(), Some(path.as_bytes()), "{key:?}");
    }

    let hash = json!({ "balance": "hash", "hash_key": "$uri" });
    let proxy = setup(json!([server.addr, other.addr]), by_path).upstream(hash).start().await;
    let mut client = proxy.connect().await;
    for key in 0..20 {
        assert_eq!(client.post("PUT", &format!("/k{key}"), b"value").await.status, 204);
        assert_eq!(client.get(&format!("/./%6b{key}")).await.text(), "value", "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_queries_in_a_key_are_no_commands_either() {
    let Some((server, mut direct)) = start(&[]).await else { return };
    let key = json!({ "key": "$http_x_key/$args", "writes": true });
    let proxy = setup(json!([server.addr]), key).start().await;
    let mut client = proxy.connect().await;
    client.send_request("PUT", "/?a%0D%0Ab", "X-Key: one two\tthree%0A\r\nContent-Length: 1\r\n").await;
    client.send("x").await;
    assert_eq!(client.response().await.status, 204);
    // The query is as the client sent it; its percent signs are escaped.
    assert_eq!(direct.value("one%20two%09three%250A/a%250D%250Ab").await.unwrap(), b"x");
    assert_eq!(direct.stat("curr_items").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_of_a_value_breaks_the_message() {
    let Some((server, mut direct)) = start(&["-I", "64m", "-m", "256"]).await else { return };
    direct.set("large", 0, &pattern::body(32 * MIB)).await;
    let buffering = json!({ "buffering": { "max_temp_file_size": 0 } });
    let proxy = setup(json!([server.addr]), json!({})).route(buffering).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/large", "").await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    drop(server);
    let mut framing = client::framing(&head, "GET");
    let mut pattern = Pattern::default();
    let broken = loop {
        match client.body_piece(&mut framing).await {
            Ok(Some(piece)) => pattern.check(&piece),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken && pattern.offset < 32 * MIB, "{} bytes", pattern.offset);
    assert_eq!(proxy.connect().await.get("/large").await.status, 502);
}

/// A server that answers each command with these bytes, and closes after the first if it is to.
async fn server(answer: &'static str, closes: bool) -> Origin {
    Origin::start(move |mut conn| async move {
        while command(&mut conn).await.is_some() && conn.send(answer).await && !closes {}
    })
    .await
}

async fn liar(answer: &'static str) -> Origin {
    server(answer, true).await
}

/// Read a command, and the value behind it; `None` once the peer has closed.
async fn command(conn: &mut Conn) -> Option<String> {
    let line = conn.line(b"\r\n").await?;
    if let Some(length) = line.strip_prefix("set ").and_then(|words| words.rsplit(' ').next()) {
        conn.exactly(length.parse::<usize>().unwrap() + 2).await?;
    }
    Some(line)
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_place_of_an_answer_is_a_502_and_in_the_log() {
    let answers = [
        "HTTP/1.1 200 OK\r\n\r\n",
        "VALUE other 0 5\r\nhello\r\nEND\r\n",
        "VALUE k 0\r\n",
        "VALUE k 0 -5\r\nhello\r\nEND\r\n",
        "VALUE k 0 99999999999999999999999\r\n",
        "VALUE k 0 5\nhello\r\nEND\r\n",
        "END\n",
        "STORED\r\n",
        "ERROR\r\n",
        "CLIENT_ERROR bad command line format\r\n",
        "SERVER_ERROR out of memory writing get response\r\n",
    ];
    for answer in answers {
        let (origin, good) = (liar(answer).await, server("VALUE k 0 4\r\ngood\r\nEND\r\n", false).await);
        let proxy = setup(json!([origin.address()]), json!({})).start().await;
        assert_eq!(proxy.connect().await.get("/k").await.status, 502, "{answer:?}");
        let [line] = &proxy.access_log(1).await[..] else { panic!("one line") };
        assert_eq!(line.field("upstream_status"), "502");
        let first = answer.lines().next().unwrap();
        proxy.wait_log(&["memcached answered", first]).await;

        let both = json!([origin.address(), { "address": good.address(), "backup": true }]);
        for (when, status) in [("invalid_header", 200), ("error", 502)] {
            let route = json!({ "next_upstream": { "when": [when] } });
            let proxy = setup(both.clone(), json!({})).route(route).start().await;
            assert_eq!(proxy.connect().await.get("/k").await.status, status, "{answer:?}, {when}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_at_once_is_passed_over() {
    for answer in ["", "VAL", "VALUE k 0 5", "ERROR Too many open connections\r\n"] {
        let (closing, good) = (liar(answer).await, server("VALUE k 0 4\r\ngood\r\nEND\r\n", false).await);
        let both = json!([closing.address(), { "address": good.address(), "backup": true }]);
        let proxy = setup(both, json!({})).start().await;
        assert_eq!(proxy.connect().await.get("/k").await.text(), "good", "{answer:?}");
        let alone = setup(json!([closing.address()]), json!({})).start().await;
        assert_eq!(alone.connect().await.get("/k").await.status, 502, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_as_long_as_it_says_is_a_broken_message() {
    let answers = [
        "VALUE k 0 9\r\nhello\r\nEND\r\n",
        "VALUE k 0 4\r\nhello\r\nEND\r\n",
        "VALUE k 0 5\r\nhello",
        "VALUE k 0 5\r\nhello\r\nEN",
        "VALUE k 0 5\r\nhello\r\nVALUE l 0 1\r\nx\r\nEND\r\n",
    ];
    for answer in answers {
        let origin = liar(answer).await;
        let proxy = setup(json!([origin.address()]), json!({})).start().await;
        let mut client = proxy.connect().await;
        let response = client.get("/k").await;
        assert_eq!(response.status, 200, "{answer:?}");
        assert!(response.broken.is_some(), "{answer:?}: {response:?}");
    }
    // One that stays open is closed.
    let origin = server("VALUE k 0 4\r\nhello\r\nEND\r\n", false).await;
    let proxy = setup(json!([origin.address()]), json!({})).start().await;
    assert!(proxy.connect().await.get("/k").await.broken.is_some());
    origin.wait("the connection is closed", |seen| seen.connections == 1 && seen.open == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_too_many_costs_the_connection_and_not_the_answer() {
    let table = [
        ("VALUE k 0 5\r\nhello\r\nEND\r\nVALUE k 0 6\r\nforged\r\nEND\r\n", 200, "hello"),
        ("END\r\nVALUE k 0 6\r\nforged\r\nEND\r\n", 404, ""),
    ];
    for (answer, status, text) in table {
        let origin = server(answer, false).await;
        let proxy = setup(json!([origin.address()]), json!({})).start().await;
        let mut client = proxy.connect().await;
        for connections in 1..4 {
            let response = client.get("/k").await;
            assert_eq!((response.status, response.text().as_str()), (status, text));
            assert_eq!(origin.connections(), connections);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_a_504() {
    for answer in ["", "VALUE k 0"] {
        let origin = Origin::start(move |mut conn| async move {
            command(&mut conn).await;
            conn.send(answer).await;
            conn.closed().await;
        })
        .await;
        let route = json!({ "timeouts": { "read": "200ms" } });
        let proxy = setup(json!([origin.address()]), json!({})).route(route).start().await;
        assert_eq!(proxy.connect().await.get("/k").await.status, 504, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_moves_on_where_next_upstream_says_so() {
    let (empty, full) = (server("END\r\n", false).await, server("VALUE k 0 5\r\nfound\r\nEND\r\n", false).await);
    let both = json!([empty.address(), { "address": full.address(), "backup": true }]);
    let next = json!({ "next_upstream": { "when": ["http_404"] } });
    let proxy = setup(both.clone(), json!({})).route(next).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        assert_eq!(client.get("/k").await.text(), "found");
    }
    let first = &proxy.access_log(1).await[0];
    assert_eq!(first.field("upstream_status"), "404, 200");
    let stays = setup(both, json!({})).start().await;
    assert_eq!(stays.connect().await.get("/k").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_stored_what_it_has_not_yet_got_is_not_believed() {
    let origin = Origin::start(|mut conn| async move {
        conn.line(b"\r\n").await;
        conn.send("STORED\r\n").await;
        conn.closed().await;
    })
    .await;
    let route = json!({ "request_buffering": false });
    let proxy = setup(json!([origin.address()]), writable()).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send_request("PUT", "/k", "Content-Length: 10\r\n").await;
    client.send("half").await;
    assert_eq!(client.response().await.status, 502);
}
