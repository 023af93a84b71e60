//! Tunnels after phases 1 to 4, for the protocols a route allows.

use crate::support::*;
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

/// A WebSocket server that sends everything back.
async fn echo() -> Origin {
    Origin::start(|conn| async move {
        let mut socket = accept_async(conn.into_io()).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() {
                break;
            }
            if socket.send(message).await.is_err() {
                break;
            }
        }
    })
    .await
}

async fn open(client: Client) -> WebSocketStream<io::Io> {
    let (socket, response) = within("101", client_async("ws://test/chat", client.into_io())).await.unwrap();
    assert_eq!(response.status(), 101);
    socket
}

async fn echoes(socket: &mut WebSocketStream<io::Io>, message: Message) {
    socket.send(message.clone()).await.unwrap();
    let answer = within("the echo", socket.next()).await.unwrap().unwrap();
    assert!(answer == message, "the message differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_pass_both_ways_and_the_close_too() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut socket = open(proxy.connect().await).await;
    for number in 0..20 {
        echoes(&mut socket, Message::text(format!("message {number}"))).await;
    }
    echoes(&mut socket, Message::binary(pattern::body(4 * MIB))).await;
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = within("the end", socket.next()).await {}
    origin.wait("the upstream's connection is closed", |seen| seen.open == 0).await;
    let line = &proxy.access_log(1).await[0];
    assert_eq!(line.field("status"), "101");
    assert_eq!(line.field("upstream_status"), "101");
}

#[tokio::test]
async fn it_passes_over_tls_too() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let mut socket = open(Client::connect_tls(proxy.ports.tls, "test").await).await;
    echoes(&mut socket, Message::text("over TLS")).await;
}

#[tokio::test]
async fn a_tunnel_that_rests_is_no_timeout_of_the_header() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).route(json!({ "timeouts": { "read": "2s" } })).start().await;
    let mut socket = open(proxy.connect().await).await;
    // Resting is what this is about, for less than the limit.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    echoes(&mut socket, Message::text("still here")).await;
}

#[tokio::test]
async fn the_upstream_sees_the_handshake_and_what_the_route_adds() {
    let origin = Origin::start(|mut conn| async move {
        conn.head().await;
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "set_headers": { "X-Real-IP": "$remote_addr" } })).start().await;
    let headers = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/", headers).await.status, 502, "it closed instead of answering");
    let request = origin.requests().remove(0);
    assert_eq!(request.header("upgrade"), Some("websocket"));
    assert!(request.header("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    assert_eq!(request.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(request.header("x-real-ip"), Some("127.0.0.1"));
}

#[tokio::test]
async fn bytes_right_behind_the_101_are_not_lost() {
    let origin = Origin::start(|mut conn| async move {
        conn.head().await;
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst words")
            .await;
        assert_eq!(conn.exactly(6).await.unwrap(), b"answer");
        conn.send("last words").await;
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").await;
    assert_eq!(client.head().await.status, 101);
    client.send("answer").await;
    assert_eq!(String::from_utf8(client.rest().await).unwrap(), "first wordslast words");
}

#[tokio::test]
async fn an_upstream_that_declines_is_an_ordinary_answer() {
    let origin = Origin::http(|_| reply(403, "no sockets here")).await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    let response = client.request("GET", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").await;
    assert_eq!((response.status, response.text().as_str()), (403, "no sockets here"));
    assert_eq!(client.get("/").await.status, 403, "and the connection goes on");
}

#[tokio::test]
async fn a_protocol_the_route_does_not_allow_is_not_offered() {
    for (allowed, asked) in [(json!([]), "websocket"), (json!(["websocket"]), "h2c")] {
        let origin = Origin::http(|_| reply(200, "plain")).await;
        let proxy = Proxy::to(&origin).route(json!({ "upgrade": allowed })).start().await;
        let mut client = proxy.connect().await;
        let response = client.request("GET", "/", &format!("Connection: Upgrade\r\nUpgrade: {asked}\r\n")).await;
        assert_eq!(response.text(), "plain");
        let request = origin.only_request();
        assert_eq!(request.header("upgrade"), None);
        assert!(request.header("connection").is_none_or(|value| !value.to_lowercase().contains("upgrade")));
    }
}

#[tokio::test]
async fn a_refused_upgrade_that_the_upstream_grants_all_the_same_is_a_502() {
    let origin = Origin::http(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".into()
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "upgrade": [] })).start().await;
    let response = proxy.connect().await.request("GET", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").await;
    assert_eq!(response.status, 502);
}

#[tokio::test]
async fn when_the_client_leaves_the_upstream_is_closed() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut socket = open(proxy.connect().await).await;
    echoes(&mut socket, Message::text("hello")).await;
    drop(socket);
    origin.wait("the upstream's connection is closed", |seen| seen.open == 0).await;
}

#[tokio::test]
async fn when_the_upstream_leaves_the_client_is_closed() {
    let origin = Origin::start(|conn| async move {
        let mut socket = accept_async(conn.into_io()).await.unwrap();
        socket.next().await.unwrap().unwrap();
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut socket = open(proxy.connect().await).await;
    socket.send(Message::text("go")).await.unwrap();
    assert!(within("the end", socket.next()).await.is_none_or(|message| message.is_err()));
}

#[tokio::test]
async fn a_peer_that_refuses_moves_on_for_upgrades_too() {
    let refusing = origin::Refusing::new();
    let good = echo().await;
    let backup = json!({ "address": good.address(), "backup": true });
    let proxy = Proxy::to_all(json!([refusing.address(), backup])).start().await;
    let mut socket = open(proxy.connect().await).await;
    echoes(&mut socket, Message::text("on the second")).await;
}

#[tokio::test]
async fn an_http10_client_is_never_switched() {
    let origin = Origin::http(|request| reply(200, request.header("upgrade").unwrap_or("none"))).await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "none");
}

#[tokio::test]
async fn an_upgrade_written_by_set_headers_asks_for_nothing_that_the_client_or_the_route_did_not() {
    let origin = Origin::http(|request| reply(200, request.header("upgrade").unwrap_or("none"))).await;
    let set = json!({ "set_headers": { "Upgrade": "$http_upgrade", "Connection": "upgrade" }, "upgrade": [] });
    let proxy = Proxy::to(&origin).route(set).start().await;
    let mut client = proxy.connect().await;
    let asking = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(client.request("GET", "/", asking).await.text(), "none");
    assert_eq!(client.request("GET", "/", "Upgrade: websocket\r\n").await.text(), "none");
}
