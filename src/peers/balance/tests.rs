use super::super::{Chosen, Upstream};
use crate::conf::Conf;
use crate::peers::State;
use crate::peers::balance::Key;
use pingora_core::server::configuration::ServerConf;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

fn conf(upstream: Value) -> crate::conf::Upstream {
    let conf = Conf::from_value(json!({
        "upstreams": { "app": upstream },
        "services": [{ "name": "none", "listen": ["127.0.0.1:1"], "routes": [{ "upstream": "app" }] }],
    }));
    conf.unwrap().upstreams.remove("app").unwrap()
}

fn upstream(upstream: Value) -> Arc<Upstream> {
    Arc::new(Upstream::new(conf(upstream), &ServerConf::default(), None).unwrap())
}

fn servers(count: usize) -> Vec<String> {
    (1..=count).map(|index| format!("127.0.0.{index}:80")).collect()
}

/// The name of the peer that is chosen, which stays busy while the second lives.
fn choose(upstream: &Arc<Upstream>, key: &Key) -> Option<(String, Chosen)> {
    let group = upstream.group();
    let member = group.choose(&[], key)?;
    let chosen = Chosen { peer: member.peer.clone(), member: Some((upstream.clone(), member.clone())) };
    Some((member.peer.name().to_string(), chosen))
}

/// How often each peer is chosen for requests that are over at once.
fn picks(upstream: &Arc<Upstream>, count: usize) -> BTreeMap<String, usize> {
    let mut picks = BTreeMap::new();
    for _ in 0..count {
        let (name, _) = choose(upstream, &Key::None).unwrap();
        *picks.entry(name).or_default() += 1;
    }
    picks
}

fn member(upstream: &Upstream, name: &str) -> Arc<crate::peers::Member> {
    upstream.group().named(Some(name)).next().unwrap().clone()
}

fn keys(count: usize) -> impl Iterator<Item = Key> {
    (0..count).map(|number| Key::Text(format!("/key/{number}")))
}

#[test]
fn picks_are_spread_as_nginx_spreads_them() {
    let weighted = [("127.0.0.1:80", 5), ("127.0.0.2:80", 1), ("127.0.0.3:80", 1)]
        .map(|(a, w)| json!({"address": a, "weight": w}));
    let upstream = upstream(json!({ "servers": weighted }));
    let order: String = (0..7).map(|_| choose(&upstream, &Key::None).unwrap().0.as_bytes()[8] as char).collect();
    assert_eq!(order, "1121311");
}

#[test]
fn ten_thousand_picks_match_the_weights() {
    for balance in ["round_robin", "least_conn"] {
        let weighted = [("127.0.0.1:80", 5), ("127.0.0.2:80", 3), ("127.0.0.3:80", 2)]
            .map(|(address, weight)| json!({ "address": address, "weight": weight }));
        let picks = picks(&upstream(json!({ "servers": weighted, "balance": balance })), 10_000);
        assert_eq!(picks.into_values().collect::<Vec<_>>(), [5_000, 3_000, 2_000], "{balance}");
    }
}

#[test]
fn least_conn_never_exceeds_an_even_share_by_more_than_one() {
    let upstream = upstream(json!({ "servers": servers(4), "balance": "least_conn" }));
    let mut random = fastrand::Rng::with_seed(7);
    let mut running: Vec<(String, Chosen)> = Vec::new();
    for _ in 0..10_000 {
        if !running.is_empty() && random.bool() {
            running.swap_remove(random.usize(..running.len()));
        }
        let busy_before: Vec<u32> = upstream.group().members().iter().map(|member| member.active()).collect();
        let (name, chosen) = choose(&upstream, &Key::None).unwrap();
        // It went to one of those that had the least to do.
        let now = member(&upstream, &name).active();
        assert_eq!(now, busy_before.iter().min().unwrap() + 1);
        running.push((name, chosen));
        if running.len() > 50 {
            running.clear();
        }
    }
}

#[test]
fn least_conn_fills_evenly() {
    let upstream = upstream(json!({ "servers": servers(3), "balance": "least_conn" }));
    let running: Vec<_> = (0..100).map(|_| choose(&upstream, &Key::None).unwrap()).collect();
    let active: Vec<u32> = upstream.group().members().iter().map(|member| member.active()).collect();
    assert!(active.iter().all(|active| (33..=34).contains(active)), "{active:?}");
    drop(running);
    assert!(upstream.group().members().iter().all(|member| member.active() == 0));
}

#[test]
fn random_reaches_all_and_prefers_the_idle() {
    let upstream = upstream(json!({ "servers": servers(3), "balance": "random" }));
    assert_eq!(picks(&upstream, 1_000).len(), 3);
    let running: Vec<_> = (0..300).map(|_| choose(&upstream, &Key::None).unwrap()).collect();
    let active: Vec<u32> = upstream.group().members().iter().map(|member| member.active()).collect();
    assert!(active.iter().all(|active| (90..=110).contains(active)), "{active:?}");
    drop(running);
}

#[test]
fn ip_hash_is_nginxs() {
    let upstream = upstream(json!({ "servers": servers(3), "balance": "ip_hash" }));
    let peer = |address: &str| choose(&upstream, &Key::Address(Some(address.parse::<IpAddr>().unwrap()))).unwrap().0;
    // ((89 · 113 + 10) · 113 + 0) · 113 + 0, modulo 6271 at each step, is 2565: the first of three.
    assert_eq!(peer("10.0.0.1"), "127.0.0.1:80");
    assert_eq!(peer("10.0.0.200"), "127.0.0.1:80");
    let spread: std::collections::BTreeSet<_> = (0..50).map(|octet| peer(&format!("10.0.{octet}.1"))).collect();
    assert_eq!(spread.len(), 3);
    assert!(choose(&upstream, &Key::Address(None)).is_some());
}

#[test]
fn ip_hash_moves_only_the_clients_of_a_peer_that_is_away() {
    let upstream = upstream(json!({ "servers": servers(3), "balance": "ip_hash" }));
    let clients: Vec<IpAddr> = (0..100).map(|octet| format!("10.0.{octet}.1").parse().unwrap()).collect();
    let peers = || -> Vec<String> {
        clients.iter().map(|client| choose(&upstream, &Key::Address(Some(*client))).unwrap().0).collect()
    };
    let before = peers();
    upstream.set_state(Some("127.0.0.2:80"), State::Down);
    for (before, now) in before.iter().zip(peers()) {
        assert!(*before == now || before == "127.0.0.2:80");
        assert_ne!(now, "127.0.0.2:80");
    }
    upstream.set_state(Some("127.0.0.2:80"), State::Up);
    assert_eq!(before, peers());
}

/// The share of 10,000 keys that go elsewhere.
fn moved(from: &Arc<Upstream>, to: &Arc<Upstream>) -> f64 {
    let differ = keys(10_000).filter(|key| choose(from, key).unwrap().0 != choose(to, key).unwrap().0).count();
    differ as f64 / 10_000.0
}

#[test]
fn a_consistent_hash_moves_few_keys_when_a_peer_leaves() {
    let hash =
        |servers: Vec<String>| upstream(json!({ "servers": servers, "balance": "hash", "hash_key": "$request_uri" }));
    for count in [3, 5, 10] {
        let all = hash(servers(count));
        let moved = moved(&all, &hash(servers(count).into_iter().skip(1).collect()));
        let allowed = 1.0 / count as f64 + 0.05;
        assert!(moved > 0.0 && moved <= allowed, "{count} peers: {moved} of the keys moved, {allowed} may");
        assert_eq!(picks_by_key(&all).len(), count);
    }
}

#[test]
fn a_consistent_hash_gives_a_resting_peers_keys_away_and_back() {
    let upstream = upstream(json!({ "servers": servers(4), "balance": "hash", "hash_key": "$request_uri" }));
    let before = picks_by_key(&upstream);
    let resting = member(&upstream, "127.0.0.3:80");
    resting.standing().fail(&resting.rules);
    let now = picks_by_key(&upstream);
    assert!(!now.contains_key("127.0.0.3:80"));
    for (peer, keys) in &before {
        assert!(peer == "127.0.0.3:80" || keys.iter().all(|key| now[peer].contains(key)), "{peer} has lost keys");
    }
    resting.set_health(crate::peers::Health::Down);
    resting.set_health(crate::peers::Health::Up);
    assert_eq!(before, picks_by_key(&upstream));
}

fn picks_by_key(upstream: &Arc<Upstream>) -> BTreeMap<String, Vec<usize>> {
    let mut picks: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, key) in keys(1_000).enumerate() {
        picks.entry(choose(upstream, &key).unwrap().0).or_default().push(number);
    }
    picks
}

#[test]
fn unix_sockets_have_their_place_on_the_ring() {
    let sockets = ["unix:/run/a.sock", "unix:/run/b.sock"];
    let upstream = upstream(json!({ "servers": sockets, "balance": "hash", "hash_key": "$uri" }));
    let picks = picks_by_key(&upstream);
    assert!(picks.len() == 2 && picks.values().all(|keys| keys.len() > 200));
}

#[test]
fn full_peers_and_backups_serve_in_every_way() {
    for balance in ["round_robin", "least_conn", "random", "ip_hash", "hash"] {
        let mut conf = json!({
            "balance": balance,
            "servers": [
                { "address": "127.0.0.1:80", "max_conns": 1 },
                { "address": "127.0.0.2:80", "max_conns": 1 },
                { "address": "127.0.0.3:80", "backup": true, "max_conns": 1 },
                { "address": "127.0.0.4:80", "down": true },
            ],
        });
        if balance == "hash" {
            conf["hash_key"] = json!("$uri");
        }
        let upstream = upstream(conf);
        let key = || match balance {
            "hash" => Key::Text("/".to_owned()),
            "ip_hash" => Key::Address(Some(IpAddr::from([127, 0, 0, 1]))),
            _ => Key::None,
        };
        let mut taken: Vec<_> = (0..2).map(|_| choose(&upstream, &key()).unwrap()).collect();
        assert!(taken.iter().all(|(name, _)| name != "127.0.0.3:80"), "{balance}: a backup served too early");
        taken.push(choose(&upstream, &key()).unwrap());
        assert_eq!(taken[2].0, "127.0.0.3:80", "{balance}");
        assert!(choose(&upstream, &key()).is_none(), "{balance}");
        taken.clear();
        assert!(choose(&upstream, &key()).is_some(), "{balance}");
    }
}

#[test]
fn a_peer_in_its_slow_start_gets_little() {
    let slow = json!({ "address": "127.0.0.2:80", "slow_start": "1h" });
    for balance in ["round_robin", "least_conn", "random"] {
        let upstream = upstream(json!({ "servers": ["127.0.0.1:80", slow], "balance": balance }));
        assert!(picks(&upstream, 100)["127.0.0.2:80"] > 25, "{balance}: nobody starts slowly with the process");
        upstream.set_state(Some("127.0.0.2:80"), State::Down);
        upstream.set_state(Some("127.0.0.2:80"), State::Up);
        let few = picks(&upstream, 100).get("127.0.0.2:80").copied().unwrap_or_default();
        let allowed = if balance == "random" { 60 } else { 5 };
        assert!(few <= allowed, "{balance}: {few}");
    }
}

#[test]
fn what_is_known_of_a_peer_outlives_a_reload() {
    let before = upstream(json!({ "servers": servers(3) }));
    let failed = member(&before, "127.0.0.1:80");
    failed.standing().fail(&failed.rules);
    before.set_state(Some("127.0.0.2:80"), State::Drain);
    let (_, busy) = choose(&before, &Key::None).unwrap();
    let after =
        json!({ "servers": ["127.0.0.4:80", "127.0.0.3:80", "127.0.0.2:80", "127.0.0.1:80"], "balance": "least_conn" });
    let after = Arc::new(Upstream::new(conf(after), &ServerConf::default(), Some(&before)).unwrap());
    after.begin();
    assert_eq!(member(&after, "127.0.0.1:80").standing().fails(), 1);
    assert_eq!(member(&after, "127.0.0.2:80").state(), State::Drain);
    assert_eq!(member(&after, "127.0.0.3:80").active(), 1);
    drop(busy);
    assert_eq!(member(&after, "127.0.0.3:80").active(), 0);
    assert!(Arc::ptr_eq(&before.pool, &after.pool));
}

#[test]
fn a_configuration_that_is_not_used_changes_nothing() {
    let before = upstream(json!({ "servers": servers(2) }));
    let down = json!({ "servers": [{ "address": "127.0.0.1:80", "down": true }, "127.0.0.2:80"] });
    let after = Upstream::new(conf(down), &ServerConf::default(), Some(&before)).unwrap();
    assert_eq!(member(&before, "127.0.0.1:80").state(), State::Up);
    after.begin();
    assert_eq!(member(&before, "127.0.0.1:80").state(), State::Down);
}

#[test]
fn addresses_that_stay_keep_what_is_known_of_them() {
    let upstream = upstream(json!({ "servers": ["127.0.0.9:80", "localhost:80"] }));
    let at = |last: u8| std::net::SocketAddr::from(([127, 0, 0, last], 80));
    upstream.set_addresses(1, vec![at(1), at(2)]);
    let failed = member(&upstream, "127.0.0.2:80");
    failed.standing().fail(&failed.rules);
    upstream.set_addresses(1, vec![at(2), at(3)]);
    let addresses: Vec<_> =
        upstream.group().members().iter().map(|member| member.peer.address_text().to_string()).collect();
    assert_eq!(addresses, ["127.0.0.9:80", "127.0.0.2:80", "127.0.0.3:80"]);
    assert_eq!(member(&upstream, "127.0.0.2:80").standing().fails(), 1);
    assert_eq!(upstream.set_state(Some("localhost:80"), State::Drain), 2);
}
