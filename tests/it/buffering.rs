//! Design §4: the upstream is free as soon as it has sent its last byte, within bounded memory and a bounded file.

use crate::support::http2::{finish, get};
use crate::support::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::time::{interval, sleep_until, timeout};

/// What the kernel may hold at the proxy's ends of both connections, although the test's ends are pinned.
const KERNEL: u64 = 12 * MIB;

/// Answered on a connection that is closed behind it, so that probing leaves none in the pool.
const PROBE: &str = "/probe";

/// An origin that answers `/N` with N bytes of the pattern, and tells when its kernel has taken the last of them.
struct Source {
    origin: Origin,
    done: mpsc::UnboundedReceiver<Instant>,
    sent: Arc<AtomicU64>,
}

impl Source {
    async fn start(headers: &'static str) -> Self {
        let (tell, done) = mpsc::unbounded_channel();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let origin = Origin::start(move |mut conn| {
            let tell = tell.clone();
            conn.sent = counter.clone();
            async move {
                while let Some(request) = conn.request().await {
                    if request.target == PROBE {
                        conn.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
                        return;
                    }
                    let length = request.target[1..].parse().unwrap();
                    conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{headers}\r\n")).await;
                    if let Some(time) = conn.send_pattern(length).await {
                        // Nobody listens any more in tests that look at the first answer only.
                        let _ = tell.send(time);
                    }
                }
            }
        })
        .await;
        Source { origin, done, sent }
    }

    async fn done(&mut self) -> Instant {
        within("the upstream has sent everything", self.done.recv()).await.unwrap()
    }

    /// Send requests through the proxy until one comes on the origin's first connection: that is free.
    async fn reused(&self, proxy: &Proxy) {
        let mut client = proxy.connect().await;
        eventually("the connection of the slow client's answer serves another request", async || {
            assert_eq!(client.get(PROBE).await.status, 200);
            let probe = self.origin.requests().pop().unwrap();
            (probe.connection == 0).then_some(())
        })
        .await;
    }

    /// Wait until nothing more has been taken from the origin for half a second, and say how much was.
    async fn stalled(&self) -> u64 {
        let mut tick = interval(Duration::from_millis(500));
        let mut last = u64::MAX;
        loop {
            tick.tick().await;
            let now = self.sent.load(Relaxed);
            if now == last {
                return now;
            }
            last = now;
        }
    }
}

fn path(length: u64) -> String {
    format!("/{length}")
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_a_client_that_reads_nothing_does_not_hold_the_upstream() {
    let mut source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).start().await;
    proxy.connect().await.get("/1000").await;
    source.done().await;

    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(64 * MIB), "").await;
    let head = slow.head().await;
    let accepted = source.done().await;

    source.reused(&proxy).await;
    let reused = accepted.elapsed();
    assert!(reused < Duration::from_secs(2), "free after {reused:?}");
    assert_eq!(slow.pattern(&head).await, 64 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_a_client_at_a_steady_rate_is_served_from_memory_and_file() {
    let mut source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).start().await;
    proxy.connect().await.get("/1000").await;
    source.done().await;
    let before = proxy.memory();

    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(16 * MIB), "").await;
    let head = slow.head().await;
    let start = Instant::now();
    let reading = tokio::spawn(async move { slow.pattern_at(&head, 4 * MIB).await });
    let freed = source.done().await - start;
    let (mut memory, mut tick) = (0, interval(Duration::from_millis(50)));
    while !reading.is_finished() {
        tick.tick().await;
        memory = memory.max(proxy.memory());
    }
    assert_eq!(reading.await.unwrap(), 16 * MIB);
    assert!(freed < Duration::from_secs(2), "the upstream was busy for {freed:?}");
    let grown = memory.saturating_sub(before);
    assert!(grown < 16 * 16 * KIB + 256 * KIB + 4 * MIB, "memory grew by {grown} bytes");
    eventually("the temporary file is gone", async || proxy.temp_files().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_memory_cannot_hold_is_in_an_unlinked_file_of_this_user_only() {
    let mut source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(32 * MIB), "").await;
    let head = slow.head().await;
    source.done().await;

    let stored = eventually("a spill", async || Some(proxy.temp_file_bytes()).filter(|bytes| *bytes > 0)).await;
    assert!(stored > 32 * MIB - KERNEL && stored <= 32 * MIB, "{stored} bytes in the file");
    assert_eq!(std::fs::read_dir(proxy.files.temp()).unwrap().count(), 0, "no name in the directory");
    assert!(proxy.metric("pipe_temp_file_bytes", &[]).await.unwrap() >= (32 * MIB - KERNEL) as f64);
    assert_eq!(slow.pattern(&head).await, 32 * MIB);
    let spills = async || proxy.metric("pipe_spills_total", &[]).await.filter(|spills| *spills >= 1.0);
    eventually("the spill is counted", spills).await;
    eventually("the temporary file is gone", async || proxy.temp_files().is_empty().then_some(())).await;
    let metric = async || proxy.metric("pipe_temp_file_bytes", &[]).await.filter(|bytes| *bytes == 0.0);
    eventually("nothing is held", metric).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_never_exceeds_its_limit_and_its_space_is_used_again() {
    let source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).route(json!({ "buffering": { "max_temp_file_size": "4MiB" } })).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(64 * MIB), "").await;
    let head = slow.head().await;

    let taken = source.stalled().await;
    assert!(taken < 4 * MIB + 16 * 16 * KIB + KERNEL, "held back at {taken}");
    let full = proxy.temp_file_bytes();
    assert!(full > 3 * MIB, "the limit is used: {full}");

    let reading = tokio::spawn(async move { slow.pattern_at(&head, 32 * MIB).await });
    let (mut highest, mut tick) = (full, interval(Duration::from_millis(20)));
    while !reading.is_finished() {
        tick.tick().await;
        highest = highest.max(proxy.temp_file_bytes());
    }
    assert_eq!(reading.await.unwrap(), 64 * MIB);
    assert!(highest <= 4 * MIB, "the file grew to {highest}");
}

/// The upstream is held back, memory stays bounded, no file is written, nothing is lost.
async fn is_held_back(route: Value, headers: &'static str) {
    let source = Source::start(headers).await;
    let proxy = Proxy::to(&source.origin).route(route).start().await;
    proxy.connect().await.get("/1000").await;
    let before = proxy.memory();

    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(64 * MIB), "").await;
    let head = slow.head().await;
    let taken = source.stalled().await;
    assert!(
        taken < 16 * 16 * KIB + KERNEL,
        "{taken} bytes were taken from the upstream for a client that reads nothing"
    );
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 16 * 16 * KIB + 256 * KIB + 4 * MIB, "memory grew by {grown} bytes");
    assert_eq!(proxy.temp_files(), Vec::<u64>::new());

    assert_eq!(proxy.connect().await.get(PROBE).await.status, 200);
    assert_eq!(source.origin.requests().pop().unwrap().connection, 1, "the first connection is still in use");
    assert_eq!(slow.pattern(&head).await, 64 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_the_upstream_is_held_back() {
    is_held_back(json!({ "buffering": { "max_temp_file_size": 0 } }), "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_buffering_the_upstream_is_held_back() {
    is_held_back(json!({ "buffering": { "enabled": false } }), "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_can_turn_buffering_off_and_the_header_stays_inside() {
    is_held_back(json!({}), "X-Accel-Buffering: no\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_can_turn_buffering_on() {
    let mut source = Source::start("X-Accel-Buffering: yes\r\n").await;
    let proxy = Proxy::to(&source.origin).route(json!({ "buffering": { "enabled": false } })).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(32 * MIB), "").await;
    let head = slow.head().await;
    assert_eq!(head.header("x-accel-buffering"), None, "X-Accel-* is between the upstream and the proxy");
    source.done().await;
    assert_eq!(slow.pattern(&head).await, 32 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ignored_x_accel_buffering_changes_nothing() {
    let mut source = Source::start("X-Accel-Buffering: no\r\n").await;
    let proxy = Proxy::to(&source.origin).route(json!({ "ignore_headers": ["X-Accel-Buffering"] })).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(32 * MIB), "").await;
    let head = slow.head().await;
    source.done().await;
    assert_eq!(slow.pattern(&head).await, 32 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_too_a_client_that_reads_nothing_does_not_hold_the_upstream() {
    let mut source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).tls(&[&Certificate::new("test")]).start().await;
    let mut client = http2::Http2::connect_tls(proxy.ports.tls, "test").await;
    let slow = client.get_head(&path(64 * MIB)).await;
    source.done().await;

    source.reused(&proxy).await;
    let answer = finish(slow).await;
    assert!(answer.broken.is_none(), "{:?}", answer.broken);
    let mut pattern = Pattern::default();
    pattern.check(&answer.body);
    assert_eq!(pattern.offset, 64 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_without_a_file_the_upstream_is_held_back() {
    let source = Source::start("").await;
    let proxy = Proxy::to(&source.origin)
        .route(json!({ "buffering": { "max_temp_file_size": 0 } }))
        .tls(&[&Certificate::new("test")])
        .start()
        .await;
    let mut client = http2::Http2::connect_tls(proxy.ports.tls, "test").await;
    let (slow, _) = client.open(get(&path(64 * MIB)), true).await;
    let slow = within("the head", slow).await.unwrap();
    let taken = source.stalled().await;
    assert!(taken < 16 * 16 * KIB + KERNEL, "{taken} bytes were taken from the upstream");
    let answer = finish(slow).await;
    assert!(answer.broken.is_none(), "{:?}", answer.broken);
    assert!(answer.body == pattern::body(64 * MIB), "the body differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_two_hundred_slow_clients_stay_within_buffer_memory_max() {
    const CLIENTS: u64 = 200;
    let mut source = Source::start("").await;
    let proxy = Proxy::to(&source.origin)
        .top(json!({ "buffer_memory_max": "4MiB" }))
        .route(json!({ "buffering": { "buffers": { "number": 64, "size": "16KiB" } } }))
        .start()
        .await;
    proxy.connect().await.get("/1000").await;
    source.done().await;
    let before = proxy.memory();

    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = proxy.connect().await;
        client.send_request("GET", &path(2 * MIB), "").await;
        clients.push(client);
    }
    let (mut held, mut memory) = (0.0_f64, 0);
    for done in 0..CLIENTS {
        source.done().await;
        if done % 10 == 0 {
            held = held.max(proxy.metric("pipe_memory_bytes", &[]).await.unwrap());
            memory = memory.max(proxy.memory());
        }
    }
    held = held.max(proxy.metric("pipe_memory_bytes", &[]).await.unwrap());
    memory = memory.max(proxy.memory());
    let ceiling = 4 * MIB + CLIENTS * 16 * KIB;
    assert!(held <= ceiling as f64, "{held} bytes held");
    let grown = memory.saturating_sub(before);
    assert!(grown < ceiling + CLIENTS * 256 * KIB + 4 * MIB, "memory grew by {grown} bytes");

    for client in &mut clients {
        let head = client.head().await;
        assert_eq!(client.pattern(&head).await, 2 * MIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_temporary_files_together_stay_within_temp_files_max() {
    const CLIENTS: u64 = 8;
    let source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).top(json!({ "temp_files_max": "8MiB" })).start().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = proxy.connect().await;
        client.send_request("GET", &path(16 * MIB), "").await;
        clients.push(client);
    }
    source.stalled().await;
    let stored = proxy.temp_file_bytes();
    assert!(stored > 4 * MIB, "the limit is used: {stored}");
    assert!(stored <= 8 * MIB, "{stored} bytes in files");
    let reading = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            let head = client.head().await;
            client.pattern(&head).await
        })
    });
    for task in reading.collect::<Vec<_>>() {
        assert_eq!(task.await.unwrap(), 16 * MIB);
    }
}

/// The disk refuses: back-pressure, a warning, a metric, and the whole body for the client.
async fn survives_a_disk(options: &'static str) {
    let source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).temp_mount(options).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(64 * MIB), "").await;
    let head = slow.head().await;
    let taken = source.stalled().await;
    assert!(taken < 16 * 16 * KIB + 4 * MIB + KERNEL, "{taken} bytes were taken from the upstream");
    proxy.wait_log(&["WARN", "temp"]).await;
    assert_eq!(slow.pattern(&head).await, 64 * MIB);
    let held_back = async || proxy.metric("pipe_backpressure_seconds_total", &[]).await.filter(|time| *time > 0.0);
    eventually("the time it was held back is counted", held_back).await;
    assert_eq!(proxy.connect().await.get("/1000").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_the_upstream_back_and_fails_nothing() {
    survives_a_disk("size=1m").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_holds_the_upstream_back_and_fails_nothing() {
    survives_a_disk("ro").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_while_spilling_leaves_no_file() {
    let mut source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", &path(32 * MIB), "").await;
    slow.head().await;
    source.done().await;
    eventually("a spill", async || (proxy.temp_file_bytes() > 0).then_some(())).await;
    let files = proxy.kill9();
    let left: Vec<_> = std::fs::read_dir(files.temp()).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_server_sent_events_arrive_as_they_are_sent() {
    let (tell, mut sent) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut conn| {
        let tell = tell.clone();
        async move {
            conn.request().await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
            let mut tick = interval(Duration::from_millis(100));
            for line in 0..20 {
                tick.tick().await;
                conn.send(format!("data: {line}\n\n")).await;
                tell.send(Instant::now()).unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    let mut framing = client::framing(&head, "GET");
    for line in 0..20 {
        let piece = client.body_piece(&mut framing).await.unwrap().unwrap();
        let arrived = Instant::now();
        assert_eq!(String::from_utf8(piece).unwrap(), format!("data: {line}\n\n"));
        let late = arrived.saturating_duration_since(sent.recv().await.unwrap());
        assert!(late < Duration::from_millis(50), "line {line} arrived {late:?} late");
    }
    assert_eq!(client.body_piece(&mut framing).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_a_long_answer_is_not_held_back() {
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    let origin = Origin::start(move |mut conn| {
        let wait = wait.clone();
        async move {
            conn.request().await;
            conn.send_head(1000).await;
            conn.send(&pattern::body(1000)[..10]).await;
            wait.notified().await;
            conn.send(&pattern::body(1000)[10..]).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    let mut framing = client::framing(&head, "GET");
    let first = client.body_piece(&mut framing).await.unwrap().unwrap();
    assert_eq!(first, pattern::body(10), "ten bytes of a thousand, while the upstream is silent");
    go_on.notify_one();
    let mut body = first;
    while let Some(piece) = client.body_piece(&mut framing).await.unwrap() {
        body.extend(piece);
    }
    assert_eq!(body, pattern::body(1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_buffer_sizes_and_bodies_around_them_come_out_whole() {
    let source = Source::start("").await;
    let buffering = json!({
        "buffer_size": "4KiB", "buffers": { "number": 2, "size": "4KiB" },
        "busy_buffers_size": "4KiB", "temp_file_write_size": "4KiB", "max_temp_file_size": "16KiB",
    });
    let proxy = Proxy::to(&source.origin).route(json!({ "buffering": buffering })).start().await;
    let mut client = proxy.connect().await;
    for length in [0, 1, 4000, 4095, 4096, 4097, 8191, 8192, 8193, 12_288, 12_289, 1_000_003] {
        let response = client.get(&path(length)).await;
        assert_eq!((response.status, response.broken), (200, None), "{length} bytes");
        assert!(response.body == pattern::body(length), "{length} bytes");
    }
    let used = source.origin.requests().into_iter().map(|request| (request.target, request.connection));
    assert_eq!(source.origin.connections(), 1, "{:?}", used.collect::<Vec<_>>());
}

/// Bytes at a steady pace through `limit_rate`.
async fn timed_download(route: Value, headers: &'static str) -> Duration {
    let source = Source::start(headers).await;
    let proxy = Proxy::to(&source.origin).route(route).start().await;
    let mut client = proxy.connect().await;
    let start = Instant::now();
    let response = within("the download", client.get(&path(MIB))).await;
    assert!(response.body == pattern::body(MIB) && response.broken.is_none());
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_rate_limits_the_client_only() {
    let mut source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).route(json!({ "limit_rate": "512KiB" })).start().await;
    let start = Instant::now();
    let mut client = proxy.connect().await;
    client.send_request("GET", &path(2 * MIB), "").await;
    let head = client.head().await;
    let free = source.done().await - start;
    assert_eq!(client.pattern(&head).await, 2 * MIB);
    let whole = start.elapsed();
    assert!(whole > Duration::from_millis(2500) && whole < Duration::from_secs(8), "2 MiB at 512 KiB/s took {whole:?}");
    assert!(free < whole / 2, "the upstream is not limited: {free:?} of {whole:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_can_limit_the_rate() {
    let took = timed_download(json!({}), "X-Accel-Limit-Rate: 524288\r\n").await;
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(5), "1 MiB at 512 KiB/s took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ignored_x_accel_limit_rate_does_not() {
    let route = json!({ "ignore_headers": ["X-Accel-Limit-Rate"] });
    let took = timed_download(route, "X-Accel-Limit-Rate: 100000\r\n").await;
    assert!(took < Duration::from_secs(5), "1 MiB took {took:?}; at 100 kB/s it would be ten seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_pauses_and_goes_on_gets_everything() {
    let mut source = Source::start("").await;
    let proxy = Proxy::to(&source.origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", &path(8 * MIB), "").await;
    let head = client.head().await;
    let mut framing = client::framing(&head, "GET");
    let mut pattern = Pattern::default();
    while pattern.offset < MIB {
        pattern.check(&client.body_piece(&mut framing).await.unwrap().unwrap());
    }
    source.done().await;
    sleep_until((Instant::now() + Duration::from_millis(300)).into()).await;
    while let Some(piece) = client.body_piece(&mut framing).await.unwrap() {
        pattern.check(&piece);
    }
    assert_eq!(pattern.offset, 8 * MIB);
    let freed = proxy.metric("upstream_freed_early_seconds_sum", &[]);
    assert!(timeout(DEADLINE, freed).await.unwrap().unwrap() >= 0.25, "how early it was free is measured");
}
