use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    let origin = Origin::http(|request| reply(200, &format!("hello {}", request.target))).await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/a").await.text(), "hello /a");
    assert_eq!(client.get("/b").await.text(), "hello /b");
}
