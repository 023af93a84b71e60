//! Real servers behind the proxy.

use crate::support::servers::{Server, apache, installed, nginx, tomcat};
use crate::support::*;
use std::fs;

/// Static files of all sizes, ranges, conditions, HEAD and errors: what each of the servers does by itself.
async fn serves_files(server: &Server) {
    let htdocs = server.dir.path().join("htdocs");
    fs::write(htdocs.join("large.bin"), pattern::body(16 * MIB)).unwrap();
    fs::write(htdocs.join("small.txt"), "small\n").unwrap();
    fs::write(htdocs.join("empty.bin"), "").unwrap();
    let proxy = Proxy::to_all(json!([server.addr])).start().await;
    let mut client = proxy.connect().await;

    assert_eq!(client.get("/small.txt").await.text(), "small\n");
    client.send_request("GET", "/large.bin", "").await;
    let head = client.head().await;
    assert_eq!(head.header("content-length"), Some((16 * MIB).to_string().as_str()));
    assert_eq!(client.pattern(&head).await, 16 * MIB);

    let head = client.request("HEAD", "/large.bin", "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let range = client.request("GET", "/large.bin", "Range: bytes=100-199\r\n").await;
    assert_eq!((range.status, range.body.as_slice()), (206, &pattern::body(200)[100..]));
    let first = client.get("/small.txt").await;
    let etag = first.header("etag").expect("an ETag").to_owned();
    let unchanged = client.request("GET", "/small.txt", &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(client.get("/empty.bin").await.text(), "");
    assert_eq!(client.get("/missing").await.status, 404);
    assert_eq!(client.get("/small.txt").await.text(), "small\n", "one client connection for all of it");
}

/// A client that reads nothing leaves the real server free for others.
async fn frees_the_server(server: &Server) {
    let proxy = Proxy::to_all(json!([server.addr])).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", "/large.bin", "").await;
    let head = slow.head().await;
    // What is neither in the file nor in memory is in the kernel's buffers towards the client.
    let taken = async || (proxy.temp_file_bytes() > 10 * MIB).then_some(());
    eventually("the proxy has taken the body although the client has read nothing", taken).await;
    assert_eq!(slow.pattern(&head).await, 16 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn apache_serves_files_and_compresses() {
    if !installed("apache2") {
        return;
    }
    let server = apache().await;
    serves_files(&server).await;
    frees_the_server(&server).await;
    // Compressed on the fly: chunked.
    let text = "the same line again and again\n".repeat(20_000);
    fs::write(server.dir.path().join("htdocs/long.txt"), &text).unwrap();
    let proxy = Proxy::to_all(json!([server.addr])).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.request("GET", "/long.txt", "Accept-Encoding: gzip\r\n").await;
        assert_eq!((response.status, response.header("content-encoding")), (200, Some("gzip")));
        assert_eq!(response.broken, None);
        assert!(response.body.len() < text.len() / 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_serves_files() {
    if !installed("nginx") {
        return;
    }
    let server = nginx().await;
    serves_files(&server).await;
    frees_the_server(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tomcat_serves_files_and_pages() {
    if !installed("catalina.sh") {
        return;
    }
    let server = tomcat().await;
    serves_files(&server).await;
    frees_the_server(&server).await;
    let page = "<%@ page contentType=\"text/plain\" %><% \
                int n = 0; while (request.getInputStream().read() >= 0) n++; out.print(n); out.flush(); \
                for (int i = 0; i < 20000; i++) out.print(\" line\"); %>";
    fs::write(server.dir.path().join("htdocs/count.jsp"), page).unwrap();
    let proxy = Proxy::to_all(json!([server.addr])).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.post("POST", "/count.jsp", &pattern::body(100_000)).await;
        assert_eq!(response.text(), format!("100000{}", " line".repeat(20_000)));
    }
}
