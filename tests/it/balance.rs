//! Who gets which request, through the proxy: design §5's `balance` and the keys of a server.

use crate::support::io::Io;
use crate::support::load::Load;
use crate::support::peers::OriginProcess;
use crate::support::servers::{installed, nginx_in_front_of};
use crate::support::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;

const WAYS: [&str; 5] = ["round_robin", "least_conn", "random", "ip_hash", "hash"];

/// The keys of an upstream that balances so.
fn way(balance: &str) -> Value {
    match balance {
        "hash" => json!({ "balance": "hash", "hash_key": "$arg_key" }),
        _ => json!({ "balance": balance }),
    }
}

/// Origins that answer with their names.
async fn named<const N: usize>(names: [&'static str; N]) -> [Origin; N] {
    let mut origins = Vec::new();
    for name in names {
        origins.push(Origin::http(move |_| reply(200, name)).await);
    }
    origins.try_into().ok().unwrap()
}

fn addresses(origins: &[Origin]) -> Vec<&str> {
    origins.iter().map(Origin::address).collect()
}

/// A client with this address.
async fn connect_from(address: Ipv4Addr, proxy: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    Client::on(Io::Tcp(within("a connection to the proxy", socket.connect(proxy)).await.unwrap()))
}

/// Which peer answers each of `count` keys.
async fn peers_by_key(client: &mut Client, count: usize) -> Vec<String> {
    let mut peers = Vec::new();
    for key in 0..count {
        peers.push(client.get(&format!("/?key=key-{key}")).await.text());
    }
    peers
}

/// So many requests, from eight clients at once.
async fn count_by_peer(proxy: &Proxy, requests: usize) -> BTreeMap<String, usize> {
    let left = AtomicUsize::new(requests);
    let clients = (0..8).map(async |_| {
        let (mut client, mut peers) = (proxy.connect().await, Vec::new());
        while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            peers.push(client.get("/").await.text());
        }
        peers
    });
    let mut counts = BTreeMap::new();
    for peer in futures::future::join_all(clients).await.into_iter().flatten() {
        *counts.entry(peer).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn requests_are_shared_by_weight() {
    let origins = named(["a", "b", "c"]).await;
    for (balance, off) in [("round_robin", 10), ("least_conn", 150), ("random", 150)] {
        let weighted = [5, 3, 2].iter().zip(&origins);
        let servers: Vec<_> = weighted.map(|(weight, o)| json!({ "address": o.address(), "weight": weight })).collect();
        let proxy = Proxy::to_all(json!(servers)).upstream(way(balance)).start().await;
        let counts = count_by_peer(&proxy, 1000).await;
        for (peer, share) in [("a", 500_usize), ("b", 300), ("c", 200)] {
            assert!(counts[peer].abs_diff(share) <= off, "{balance}: {counts:?}");
        }
    }
}

/// A request that waits.
const HELD: &str = "/?key=same";

/// Origins whose answers wait until they are let go. `/quick` does not wait, and origin N closes its connection on
/// `/die/N`.
struct Holding {
    origins: Vec<Origin>,
    gates: Vec<Arc<Gate>>,
}

/// What the requests of one origin go through.
struct Gate {
    /// The requests that are in it, and the most that ever were.
    now: AtomicUsize,
    most: AtomicUsize,
    go: Semaphore,
}

impl Gate {
    async fn pass(&self) {
        self.most.fetch_max(self.now.fetch_add(1, Relaxed) + 1, Relaxed);
        self.go.acquire().await.unwrap().forget();
        self.now.fetch_sub(1, Relaxed);
    }
}

impl Holding {
    async fn start(count: usize) -> Self {
        let mut holding = Holding { origins: Vec::new(), gates: Vec::new() };
        for number in 0..count {
            let gate = Arc::new(Gate { now: 0.into(), most: 0.into(), go: Semaphore::new(0) });
            holding.gates.push(gate.clone());
            let script = move |mut conn: origin::Conn| {
                let (gate, death) = (gate.clone(), format!("/die/{number}"));
                async move {
                    while let Some(request) = conn.request().await.filter(|request| request.target != death) {
                        if request.target.starts_with("/?") {
                            gate.pass().await;
                        }
                        conn.send(reply(200, "held")).await;
                    }
                }
            };
            holding.origins.push(Origin::start(script).await);
        }
        holding
    }

    /// How many requests each has seen.
    fn requests(&self) -> Vec<usize> {
        self.origins.iter().map(|origin| origin.requests().len()).collect()
    }

    /// Send a request that waits for its answer, and return once an origin has it.
    async fn hold(&self, proxy: &Proxy) -> Client {
        let before: usize = self.requests().iter().sum();
        let mut client = proxy.connect().await;
        client.send_request("GET", HELD, "").await;
        let more = async || (self.requests().iter().sum::<usize>() > before).then_some(());
        eventually("an origin has the request", more).await;
        client
    }

    fn let_go(&self, origin: usize, count: usize) {
        self.gates[origin].go.add_permits(count);
    }
}

#[tokio::test]
async fn least_conn_holds_requests_evenly_and_fills_up_what_has_become_free() {
    let holding = Holding::start(3).await;
    let proxy = Proxy::to_all(json!(addresses(&holding.origins))).upstream(way("least_conn")).start().await;
    let mut clients = Vec::new();
    for count in 1..=30_usize {
        clients.push(holding.hold(&proxy).await);
        let requests = holding.requests();
        assert!(requests.iter().all(|held| *held <= count.div_ceil(3)), "{count} requests: {requests:?}");
    }
    // The second has nothing to do any more: the next ten are all its.
    holding.let_go(1, 10);
    let free = async || (active(&proxy).await == [10, 0, 10]).then_some(());
    eventually("the second peer is free", free).await;
    for _ in 0..10 {
        clients.push(holding.hold(&proxy).await);
    }
    assert_eq!(holding.requests(), [10, 20, 10]);
}

/// The requests that the proxy has at each peer now.
async fn active(proxy: &Proxy) -> Vec<u64> {
    let page = Client::connect(proxy.ports.admin).await.get("/status.json").await.text();
    let status: Value = serde_json::from_str(&page).unwrap();
    let peers = status["upstreams"]["app"]["peers"].as_array().unwrap();
    peers.iter().map(|peer| peer["active"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn least_conn_weighs() {
    let holding = Holding::start(2).await;
    let heavy = json!({ "address": holding.origins[0].address(), "weight": 2 });
    let proxy = Proxy::to_all(json!([heavy, holding.origins[1].address()])).upstream(way("least_conn")).start().await;
    let mut clients = Vec::new();
    for _ in 0..30 {
        clients.push(holding.hold(&proxy).await);
    }
    assert_eq!(holding.requests(), [20, 10]);
}

#[tokio::test]
async fn least_conn_gives_a_peer_that_had_failed_its_whole_share_again() {
    let holding = Holding::start(2).await;
    let servers: Vec<_> =
        holding.origins.iter().map(|origin| json!({ "address": origin.address(), "fail_timeout": "300ms" })).collect();
    let proxy = Proxy::to_all(json!(servers)).upstream(way("least_conn")).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/die/0").await.text(), "held", "by the second");
    // From now on the second is never idle: the first is never chosen as one of several with as little to do.
    let mut clients = vec![holding.hold(&proxy).await];
    assert_eq!(holding.requests(), [1, 2]);
    eventually("the first has rested", async || {
        assert_eq!(client.get("/quick").await.text(), "held");
        (holding.requests()[0] > 1).then_some(())
    })
    .await;
    for _ in 0..9 {
        clients.push(holding.hold(&proxy).await);
    }
    assert_eq!(active(&proxy).await, [5, 5]);
}

#[tokio::test]
async fn least_conn_stays_even_under_load() {
    let holding = Holding::start(3).await;
    let proxy = Proxy::to_all(json!(addresses(&holding.origins))).upstream(way("least_conn")).start().await;
    let left = AtomicUsize::new(1200);
    let clients = (0..30).map(async |_| {
        let mut client = proxy.connect().await;
        while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            assert_eq!(client.get(HELD).await.text(), "held");
        }
    });
    // The first is three times as slow as the others: one of its answers for every three of theirs.
    let slowly = async {
        let mut tick = tokio::time::interval(Duration::from_millis(8));
        loop {
            tick.tick().await;
            [0, 1, 2, 1, 2, 1, 2].into_iter().for_each(|origin| holding.let_go(origin, 1));
        }
    };
    tokio::select! {
        _ = futures::future::join_all(clients) => {}
        () = slowly => {}
    }
    let most: Vec<_> = holding.gates.iter().map(|gate| gate.most.load(Relaxed)).collect();
    let requests = holding.requests();
    assert_eq!(requests.iter().sum::<usize>(), 1200);
    assert!(most.iter().all(|most| *most <= 30 / 3 + 1), "an even share of 30 clients is 10: {most:?}");
    assert!(requests[1] > requests[0] && requests[2] > requests[0], "the quick get more: {requests:?}");
}

#[tokio::test]
async fn random_prefers_the_idle_of_two() {
    let holding = Holding::start(3).await;
    let proxy = Proxy::to_all(json!(addresses(&holding.origins))).upstream(way("random")).start().await;
    let mut clients = Vec::new();
    for _ in 0..60 {
        let before = holding.requests();
        clients.push(holding.hold(&proxy).await);
        let chosen = (0..3).find(|peer| holding.requests()[*peer] > before[*peer]).unwrap();
        let busiest = (0..3).all(|other| other == chosen || before[other] < before[chosen]);
        assert!(!busiest, "whatever the other one was, it had less to do: {before:?}, then number {chosen}");
    }
    assert!(holding.requests().iter().all(|held| *held > 10), "{:?}", holding.requests());
}

#[tokio::test]
async fn ip_hash_goes_by_the_first_three_octets() {
    let origins = named(["a", "b", "c"]).await;
    let proxy = Proxy::to_all(json!(addresses(&origins))).upstream(way("ip_hash")).start().await;
    let mut peers = BTreeSet::new();
    for third in 0..40 {
        let first = connect_from(Ipv4Addr::new(127, 1, third, 1), proxy.ports.http).await.get("/").await.text();
        let second = connect_from(Ipv4Addr::new(127, 1, third, 200), proxy.ports.http).await.get("/").await.text();
        assert_eq!(first, second, "127.1.{third}.0/24");
        peers.insert(first);
    }
    assert_eq!(peers.len(), 3, "40 networks are spread over all peers");
    let mut client = proxy.connect().await;
    let first = client.get("/").await.text();
    for _ in 0..20 {
        assert_eq!(client.get("/").await.text(), first);
    }
}

/// nginx itself in front of the same origins.
#[tokio::test]
async fn ip_hash_and_hash_choose_as_nginx_does() {
    if !installed("nginx") {
        return;
    }
    let origins = named(["a", "b", "c", "d"]).await;
    let weights = [1, 3, 1, 2];
    let servers: Vec<_> = origins
        .iter()
        .zip(weights)
        .map(|(origin, weight)| json!({ "address": origin.address(), "weight": weight }))
        .collect();
    let lines: String = origins
        .iter()
        .zip(weights)
        .map(|(origin, weight)| format!("server {} weight={weight};", origin.address()))
        .collect();
    for (balance, directive) in [("ip_hash", "ip_hash;"), ("hash", "hash $arg_key consistent;")] {
        let nginx = nginx_in_front_of(&format!("{directive} {lines}")).await;
        let proxy = Proxy::to_all(json!(servers)).upstream(way(balance)).start().await;
        for number in 0..100 {
            let (address, target) = (Ipv4Addr::new(127, 7, number, 1), format!("/?key=key-{number}"));
            let theirs = connect_from(address, nginx.addr).await.get(&target).await.text();
            let ours = connect_from(address, proxy.ports.http).await.get(&target).await.text();
            assert_eq!(ours, theirs, "{balance}, {address} {target}");
        }
    }
}

#[tokio::test]
async fn hash_moves_few_keys_when_a_peer_is_taken_out_by_a_reload() {
    let names = ["a", "b", "c", "d"];
    let origins = named(names).await;
    let proxy = Proxy::to_all(json!(addresses(&origins))).upstream(way("hash")).start().await;
    let mut client = proxy.connect().await;
    let before = peers_by_key(&mut client, 500).await;
    assert_eq!(before, peers_by_key(&mut proxy.connect().await, 500).await, "a key's peer is always the same");
    let mut moved = [0; 4];
    for (index, left) in names.into_iter().enumerate() {
        let mut servers = addresses(&origins);
        servers.remove(index);
        proxy.reload(|config| config["upstreams"]["app"]["servers"] = json!(servers)).await;
        for (before, after) in before.iter().zip(peers_by_key(&mut client, 500).await) {
            assert_ne!(after, left);
            moved[index] += usize::from(*before != after);
        }
    }
    // Where a peer stands on the ring depends on its port, so one alone may have more than its share.
    let mean = moved.iter().sum::<usize>() as f64 / 4.0 / 500.0;
    eprintln!("hash: of 500 keys {moved:?} moved as each of four peers left, {mean:.3} of all");
    assert!(mean > 0.0 && mean <= 1.0 / 4.0 + 0.05, "{moved:?} of 500 keys");
}

#[tokio::test]
async fn hash_gives_a_dead_peers_keys_away_and_back() {
    let (a, mut b, c) =
        (OriginProcess::start("a").await, OriginProcess::start("b").await, OriginProcess::start("c").await);
    let server = |peer: &OriginProcess| json!({ "address": peer.address(), "fail_timeout": "1s" });
    let proxy = Proxy::to_all(json!([server(&a), server(&b), server(&c)])).upstream(way("hash")).start().await;
    let mut client = proxy.connect().await;
    let before = peers_by_key(&mut client, 300).await;
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3);
    b.kill();
    for (before, after) in before.iter().zip(peers_by_key(&mut client, 300).await) {
        assert!(after != "b" && (*before == after || before == "b"), "{before} → {after}");
    }
    b.restart().await;
    let back = async || (peers_by_key(&mut client, 300).await == before).then_some(());
    eventually("all keys are where they were", back).await;
}

#[tokio::test]
async fn max_conns_holds_whatever_the_balance() {
    for balance in WAYS {
        let holding = Holding::start(3).await;
        let servers: Vec<_> =
            holding.origins.iter().map(|origin| json!({ "address": origin.address(), "max_conns": 2 })).collect();
        let proxy = Proxy::to_all(json!(servers)).upstream(way(balance)).start().await;
        let mut clients = Vec::new();
        for _ in 0..6 {
            clients.push(holding.hold(&proxy).await);
        }
        assert_eq!(holding.requests(), [2, 2, 2], "{balance}");
        let mut client = proxy.connect().await;
        assert_eq!(client.get(HELD).await.status, 502, "{balance}: all are full");
        holding.let_go(1, 2);
        let free = async || (active(&proxy).await == [2, 0, 2]).then_some(());
        eventually("the second peer is free", free).await;
        holding.hold(&proxy).await;
        assert_eq!(holding.requests(), [2, 3, 2], "{balance}");
    }
}

#[tokio::test]
async fn max_conns_is_never_exceeded_under_load() {
    let holding = Holding::start(2).await;
    holding.origins.iter().enumerate().for_each(|(origin, _)| holding.let_go(origin, 2000));
    let servers: Vec<_> =
        holding.origins.iter().map(|origin| json!({ "address": origin.address(), "max_conns": 3 })).collect();
    let proxy = Proxy::to_all(json!(servers)).start().await;
    let clients = (0..16).map(async |_| {
        let (mut client, mut full) = (proxy.connect().await, 0);
        for _ in 0..60 {
            match client.get(HELD).await.status {
                200 => {}
                502 => full += 1,
                status => panic!("{status}"),
            }
        }
        full
    });
    let full: usize = futures::future::join_all(clients).await.into_iter().sum();
    let most: Vec<_> = holding.gates.iter().map(|gate| gate.most.load(Relaxed)).collect();
    assert!(most.iter().all(|most| *most <= 3), "{most:?}");
    assert_eq!(holding.requests().iter().sum::<usize>() + full, 16 * 60);
    eventually("no place is lost", async || (active(&proxy).await == [0, 0]).then_some(())).await;
}

#[tokio::test]
async fn backups_serve_when_all_others_are_dead_whatever_the_balance() {
    for balance in WAYS {
        let (mut a, mut b) = (OriginProcess::start("a").await, OriginProcess::start("b").await);
        let [backup, down] = named(["backup", "down"]).await;
        let proxy = Proxy::to_all(json!([
            { "address": a.address(), "fail_timeout": "60s" },
            { "address": b.address(), "fail_timeout": "300ms" },
            { "address": backup.address(), "backup": true },
            { "address": down.address(), "down": true, "weight": 100 },
        ]))
        .upstream(way(balance))
        .start()
        .await;
        let mut client = proxy.connect().await;
        let before: BTreeSet<_> = peers_by_key(&mut client, 30).await.into_iter().collect();
        assert!(before.iter().all(|peer| peer == "a" || peer == "b"), "{balance}: {before:?}");
        a.kill();
        b.kill();
        let dead: BTreeSet<_> = peers_by_key(&mut client, 30).await.into_iter().collect();
        assert!(dead.iter().eq(["backup"]), "{balance}: {dead:?}");
        b.restart().await;
        eventually("the backup is not needed any more", async || {
            (client.get("/?key=key-1").await.text() == "b").then_some(())
        })
        .await;
        let after: BTreeSet<_> = peers_by_key(&mut client, 30).await.into_iter().collect();
        assert!(after.iter().eq(["b"]), "{balance}: {after:?}");
        assert_eq!(down.connections(), 0, "{balance}");
    }
}

#[tokio::test]
async fn timed_a_peer_that_has_rested_starts_slowly() {
    const SLOW_START: Duration = Duration::from_secs(3);
    let ill = Arc::new(AtomicBool::new(false));
    let recovering = Origin::start({
        let ill = ill.clone();
        move |mut conn| {
            let ill = ill.clone();
            async move {
                while conn.request().await.is_some() && !ill.load(Relaxed) {
                    conn.send(reply(200, "recovering")).await;
                }
            }
        }
    })
    .await;
    let others = named(["b", "c"]).await;
    let slow = json!({ "address": recovering.address(), "fail_timeout": "500ms", "slow_start": "3s" });
    let proxy = Proxy::to_all(json!([slow, others[0].address(), others[1].address()])).start().await;
    let load = Load::start(proxy.ports.http, "/", 500, 50);
    load.wait_for_more(300).await;
    let share = |answers: &[load::Answer]| {
        answers.iter().filter(|answer| answer.peer == "recovering").count() as f64 / answers.len() as f64
    };
    assert!((0.30..0.37).contains(&share(&load.answers())), "nobody starts slowly with the process");

    ill.store(true, Relaxed);
    let ill_since = Instant::now();
    let rests = |answers: &Vec<load::Answer>| {
        answers.iter().filter(|answer| answer.sent > ill_since).count() > 200
            && share(&answers[answers.len() - 50..]) == 0.0
    };
    load.wait("it rests", rests).await;
    ill.store(false, Relaxed);
    let well_since = Instant::now();
    let well = |answer: &load::Answer| answer.sent > well_since && answer.peer == "recovering";
    load.wait("it serves again", |answers| answers.iter().any(well)).await;
    let begin = load.answers().into_iter().find(well).unwrap().came;
    let full = begin + SLOW_START;
    load.wait("its slow start is over", |answers| answers.last().is_some_and(|last| last.sent > full)).await;
    load.wait_for_more(500).await;
    let answers = load.stop().await;
    assert!(answers.iter().all(load::Answer::is_good));
    let between = |from: Instant, to: Instant| {
        let those: Vec<_> = answers.iter().filter(|answer| (from..to).contains(&answer.sent)).cloned().collect();
        share(&those)
    };
    let tenth = between(begin, begin + SLOW_START / 10);
    let middle = between(begin + SLOW_START * 4 / 10, begin + SLOW_START * 6 / 10);
    let end = between(full, full + SLOW_START);
    eprintln!(
        "slow start: a share of {tenth:.3} in the first tenth, {middle:.3} around the middle, {end:.3} afterwards"
    );
    assert!(tenth < 1.0 / 6.0, "less than half its share: {tenth}");
    assert!((0.12..0.28).contains(&middle), "half its weight, a fifth of the requests: {middle}");
    assert!((0.30..0.37).contains(&end), "{end}");
}
