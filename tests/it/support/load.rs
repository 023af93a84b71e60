//! Requests that come when they are due, whether or not the ones before were answered: what clients do that know nothing
//! of each other.

use super::client::framing;
use super::{Client, within};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

/// GETs under way on many connections that stay open.
pub struct Load {
    answers: watch::Sender<Vec<Answer>>,
    stop: Arc<AtomicBool>,
    connections: JoinSet<()>,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub sent: Instant,
    pub came: Instant,
    /// 0: the connection was closed instead.
    pub status: u16,
    /// The body: the name of the peer.
    pub peer: String,
    /// Why it is no complete answer.
    pub broken: Option<String>,
}

impl Answer {
    pub fn is_good(&self) -> bool {
        self.status == 200 && self.broken.is_none()
    }
}

impl Load {
    /// `rate` requests a second for `target`, shared out to so many connections.
    pub fn start(addr: SocketAddr, target: &'static str, rate: u32, connections: u32) -> Self {
        let (answers, stop) = (watch::Sender::new(Vec::new()), Arc::new(AtomicBool::new(false)));
        let (start, period) = (Instant::now(), Duration::from_secs(1) / rate);
        let each = (0..connections).map(|number| {
            let (answers, stop) = (answers.clone(), stop.clone());
            async move {
                let mut client = Client::connect(addr).await;
                for turn in 0.. {
                    sleep_until((start + period * (number + turn * connections)).into()).await;
                    if stop.load(Relaxed) {
                        break;
                    }
                    let answer = request(&mut client, target).await;
                    if !answer.is_good() {
                        client = Client::connect(addr).await;
                    }
                    answers.send_modify(|answers| answers.push(answer));
                }
            }
        });
        Load { connections: each.collect(), answers, stop }
    }

    /// All answers so far, in the order they came.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.borrow().clone()
    }

    /// Wait until the answers satisfy `test`.
    pub async fn wait(&self, what: &str, test: impl FnMut(&Vec<Answer>) -> bool) {
        within(what, self.answers.subscribe().wait_for(test)).await.unwrap();
    }

    /// Wait until so many more have come.
    pub async fn wait_for_more(&self, count: usize) {
        let target = self.answers.borrow().len() + count;
        self.wait(&format!("{count} more answers"), |answers| answers.len() >= target).await;
    }

    /// Send no more, and wait for the last answers.
    pub async fn stop(mut self) -> Vec<Answer> {
        self.stop.store(true, Relaxed);
        while let Some(ended) = within("a connection of the load ends", self.connections.join_next()).await {
            ended.unwrap();
        }
        self.answers()
    }
}

async fn request(client: &mut Client, target: &str) -> Answer {
    let sent = Instant::now();
    client.send_request("GET", target, "").await;
    let (mut status, mut body, mut broken) = (0, Vec::new(), Some("closed without an answer".to_owned()));
    if let Some(head) = client.try_head().await {
        let mut framing = framing(&head, "GET");
        status = head.status;
        broken = loop {
            match client.body_piece(&mut framing).await {
                Ok(Some(piece)) => body.extend(piece),
                Ok(None) => break None,
                Err(why) => break Some(why),
            }
        };
    }
    Answer { sent, came: Instant::now(), status, peer: String::from_utf8_lossy(&body).into_owned(), broken }
}
